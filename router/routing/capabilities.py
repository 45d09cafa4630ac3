"""What models are able to do: the route's word, over the provider's row, over the data of the package.

`data/capabilities.json` is made by `scripts/seed_capabilities.py`; `data/SOURCES.md` tells where it is from. It speaks
of a vendor's own models, and whose a provider is, is told by its `price_list`, its host, or its protocol's own address.
"""

import re
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from router.route import Can
from router.settings import ProviderRow

DATA: Final = "capabilities.json"
_NOTHING: Final = Can()


class Known(Struct, frozen=True, forbid_unknown_fields=True):
    """`Can`, and the data sets that say so, as letters of `Shipped.sources`."""

    source: str
    tools: bool | None = None
    images: bool | None = None
    audio: bool | None = None
    json_schema: bool | None = None
    reasoning: bool | None = None
    context: int | None = None


class Vendor(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    hosts: tuple[str, ...]
    """Hosts that serve its models; `*.` stands for any name before the rest."""
    price_lists: tuple[str, ...]
    protocols: tuple[str, ...]
    """Protocols whose own address is the vendor's."""
    snapshots: str | None
    """What the names of a model's dated snapshots end in; None: each has an entry of its own, or nothing is known."""
    models: dict[str, Known]


class Shipped(Struct, frozen=True, forbid_unknown_fields=True):
    sources: dict[str, str]
    vendors: tuple[Vendor, ...]


class Capabilities:
    """Reads the data of the package when it is made: some milliseconds, once for each configuration."""

    def __init__(self) -> None:
        text = files("router.routing").joinpath("data", DATA).read_bytes()
        self.shipped = msgspec.json.decode(text, type=Shipped)
        self._vendors = {vendor.name: vendor for vendor in self.shipped.vendors}
        self._snapshots = {
            vendor.name: re.compile(vendor.snapshots) for vendor in self.shipped.vendors if vendor.snapshots is not None
        }

    def can_of(self, row: ProviderRow, model: str, over: Can = _NOTHING) -> Can:
        """What is known of a model at a provider; `over` is the route's word. Field by field, the first that says
        something counts. Of the patterns in the row, the first that matches."""
        vendor = self.vendor_of(row)
        said = next((can for pattern, can in row.can.items() if fnmatchcase(model, pattern)), _NOTHING)
        return _over(_over(_NOTHING if vendor is None else self.known(vendor, model), said), over)

    def known(self, vendor: str, model: str) -> Can:
        """What the package knows of a vendor's model, whatever snapshot of it."""
        models = self._vendors[vendor].models
        own, head = models.get(model), None
        if (snapshots := self._snapshots.get(vendor)) is not None:
            head = models.get(snapshots.sub("", model))
        return _over(_can(head), _can(own))

    def vendor_of(self, row: ProviderRow) -> str | None:
        """Whose models a provider serves; None: nobody's that is known."""
        host = urlsplit(row.base_url).hostname if row.base_url is not None else None
        for vendor in self.shipped.vendors:
            if row.price_list in vendor.price_lists:
                return vendor.name
        for vendor in self.shipped.vendors:
            if row.base_url is None and row.protocol in vendor.protocols:
                return vendor.name
            if host is not None and any(_is(host, pattern) for pattern in vendor.hosts):
                return vendor.name
        return None


def _is(host: str, pattern: str) -> bool:
    return host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:]))


def _can(known: Known | None) -> Can:
    if known is None:
        return _NOTHING
    return Can(known.tools, known.images, known.audio, known.json_schema, known.reasoning, known.context)


def _over(base: Can, over: Can) -> Can:
    """`base` with what `over` says."""
    if over == _NOTHING:
        return base
    said = {name: value for name, value in msgspec.structs.asdict(over).items() if value is not None}
    return msgspec.structs.replace(base, **said)
