"""Which adapter speaks which protocol. Adapters are imported on first use.

A vendor that speaks a known protocol needs a row in `providers.yaml` and nothing here. A new protocol is a class
that implements `router.provider.Provider`: in this table, under the entry-point group `deltaway.providers` of any
installed package, or named in the row itself as `package.module:Class`.
"""

from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Final, cast

from router.provider import Provider

GROUP: Final = "deltaway.providers"

BUILT_IN: Final[dict[str, str]] = {
    "openai": "providers.openai:OpenAI",
    "dashscope": "providers.dashscope:DashScope",
    "mock": "providers.mock:Mock",
}


class UnknownProtocol(LookupError):
    """No adapter of that name. The message names those there are, and the nearest."""


class ProviderNotFound(ImportError):
    """The place an adapter is said to be at does not exist: no such module, or no such name in it.

    An error inside an adapter's module is not this; it is raised as it is.
    """


def known_protocols() -> tuple[str, ...]:
    """The names `load_provider` knows, sorted: the built-in ones and those of installed packages."""
    return tuple(sorted({*BUILT_IN, *entry_points(group=GROUP).names}))


def load_provider(protocol: str) -> type[Provider]:
    """The adapter of a protocol, by name or as `package.module:Class`. Built-in names win over installed ones."""
    place = protocol if ":" in protocol else BUILT_IN.get(protocol)
    if place is None:
        found = [entry.value for entry in entry_points(group=GROUP, name=protocol)]
        if not found:
            raise UnknownProtocol(_unknown(protocol))
        place = found[0]
    return cast("type[Provider]", _imported(place))


def _unknown(protocol: str) -> str:
    known = known_protocols()
    near = get_close_matches(protocol, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no provider speaks the protocol {protocol!r} (known: {', '.join(known)}){hint}"


def _imported(place: str) -> object:
    module_name, _, attribute = place.partition(":")
    try:
        found: object = import_module(module_name)
    except ModuleNotFoundError as error:
        # a module that is there but fails to import something else has its own error to tell
        missing = error.name or ""
        if missing != module_name and not module_name.startswith(f"{missing}."):
            raise
        raise ProviderNotFound(f"no module {module_name!r}, where the provider {place!r} should be") from None
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ProviderNotFound(f"no {attribute!r} in the module {module_name!r}") from None
    return found
