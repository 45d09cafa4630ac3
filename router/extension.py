"""Finds the class behind a name of the configuration: a provider's protocol, a plugin.

A name stands in the table of what is built in, or under an entry-point group of an installed package, or is the place
itself, `package.module:Class`. Classes are imported on first use.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points

from msgspec import Struct

from router.nearest import did_you_mean


class UnknownExtension(LookupError):
    """Nothing has that name. The message lists those there are, and the nearest."""


class ExtensionNotFound(ImportError):
    """The place of a class does not exist: no such module, or nothing of that name in it.

    An error inside the module is not this: it is raised as it is.
    """


class Extensions(Struct, frozen=True):
    """One kind of thing that installed packages can add to."""

    kind: str
    """What messages call it: `plugin`."""
    group: str
    """The entry-point group: `deltaway.plugins`."""
    built_in: Mapping[str, str]
    """Name → `module:Class`. These win over installed packages."""

    def known(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted({*self.built_in, *entry_points(group=self.group).names}))

    def load(self, name: str) -> object:
        """The class. Raises `UnknownExtension`, `ExtensionNotFound`, or whatever its module raises."""
        return self._imported(self._place(name))

    def _place(self, name: str) -> str:
        if ":" in name:
            return name
        place = self.built_in.get(name)
        if place is not None:
            return place
        installed = sorted({entry.value for entry in entry_points(group=self.group, name=name)})
        if len(installed) > 1:
            raise UnknownExtension(f"more than one installed {self.kind} is named `{name}`: write one of {installed}")
        if not installed:
            known = self.known()
            raise UnknownExtension(f"no {self.kind} `{name}`{did_you_mean(name, known)} (known: {', '.join(known)})")
        return installed[0]

    def _imported(self, place: str) -> object:
        module_name, _, attribute = place.partition(":")
        if not module_name or not attribute:
            raise ExtensionNotFound(f"`{place}` is no place of a {self.kind}: write `package.module:Class`")
        try:
            found: object = import_module(module_name)
        except ModuleNotFoundError as error:
            # a module that is there but lacks one of its own imports must say so itself
            missing = error.name or ""
            if missing != module_name and not module_name.startswith(f"{missing}."):
                raise
            raise ExtensionNotFound(f"no module `{module_name}`, where the {self.kind} `{place}` should be") from None
        for name in attribute.split("."):
            try:
                found = getattr(found, name)
            except AttributeError:
                raise ExtensionNotFound(f"no `{attribute}` in the module `{module_name}`") from None
        return found
