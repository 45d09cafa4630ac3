"""Which adapter speaks which protocol. Adapters are imported on first use.

A vendor that speaks a known protocol needs a row in `providers.yaml` and nothing here. A new protocol is a class
that implements `router.provider.Provider`: in this table, under the entry-point group `deltaway.providers` of any
installed package, or named in the row itself as `package.module:Class`.
"""

from typing import Final, cast

from router.extension import Extensions
from router.provider import Provider

BUILT_IN: Final[dict[str, str]] = {
    "openai": "providers.openai:OpenAI",
    "dashscope": "providers.dashscope:DashScope",
    "mock": "providers.mock:Mock",
}
GROUP: Final = "deltaway.providers"


def known_protocols() -> tuple[str, ...]:
    """The names `load_provider` knows, sorted."""
    return _extensions().known()


def load_provider(protocol: str) -> type[Provider]:
    """The adapter of that name, or at `package.module:Class`. Raises `UnknownExtension` or `ExtensionNotFound`."""
    return cast("type[Provider]", _extensions().load(protocol))


def _extensions() -> Extensions:
    return Extensions("protocol", GROUP, BUILT_IN)
