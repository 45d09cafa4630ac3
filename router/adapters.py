"""One configured provider, ready to be called: its protocol once for each of its keys, and what carries the bytes."""

import ssl
from collections.abc import Collection, Sequence

from msgspec import Struct

from router.config import ConfigError, Document
from router.health import Health, key_id
from router.provider import InProcess, Provider, ProviderSettings
from router.settings import ProviderRow
from router.upstream import CarrierFactory, HttpUpstream, InProcessUpstream, Upstream


class Keyed(Struct, frozen=True):
    """The provider with one of its keys."""

    provider: Provider
    id: str = ""
    """`router.health.key_id` of the key; empty where there is none."""
    place: str = ""
    """`2 of 3`; empty for the only one."""


class Adapter:
    """Its keys are used in turns; those that rest are left out as long as there are others."""

    __slots__ = ("_turn", "keyed", "name", "upstream")

    def __init__(self, name: str, keyed: Sequence[Keyed], upstream: Upstream) -> None:
        self.name = name
        self.keyed = tuple(keyed)
        self.upstream = upstream
        self._turn = 0

    @property
    def provider(self) -> Provider:
        return self.keyed[0].provider

    def next_key(self, health: Health) -> Keyed:
        """The key whose turn it is; when all rest, the one that is free the soonest."""
        return self._turned(health, ()) or min(self.keyed, key=lambda each: health.key_free_at(self.name, each.id) or 0)

    def other_key(self, health: Health, used: Collection[str]) -> Keyed | None:
        """A key that may be used and was not; None when there is none."""
        return self._turned(health, used)

    def _turned(self, health: Health, used: Collection[str]) -> Keyed | None:
        keyed = self.keyed
        if len(keyed) == 1 and not used:
            return keyed[0]
        free = [each for each in keyed if each.id not in used and health.key_free_at(self.name, each.id) is None]
        if not free:
            return None
        self._turn += 1
        return free[self._turn % len(free)]

    def free_at(self, health: Health) -> float | None:
        """When one of the keys may be used; None: now."""
        soonest: float | None = None
        for each in self.keyed:
            at = health.key_free_at(self.name, each.id) if each.id else None
            if at is None:
                return None
            soonest = at if soonest is None else min(soonest, at)
        return soonest


def build_adapter(
    row: ProviderRow, cls: type[Provider], document: Document, context: ssl.SSLContext, carrier: CarrierFactory
) -> Adapter | None:
    """None for a row that lacks a variable; what it does say is checked all the same. Raises `ConfigError`."""
    path = ("providers", row.name)
    options = document.convert((*path, "options"), cls.Options)
    if row.missing:
        return None
    base_url = row.base_url or cls.base_url
    if base_url is None:
        message = f"the protocol `{row.protocol}` has no address of its own: write `base_url`"
        raise ConfigError((document.problem(path, message),))
    keys = row.api_keys or (None,)
    providers = [
        cls(ProviderSettings(name=row.name, base_url=base_url, api_key=key, headers=row.headers, options=options))
        for key in keys
    ]
    first = providers[0]
    upstream: Upstream
    if isinstance(first, InProcess):
        upstream = InProcessUpstream(row.name, first, row.max_parallel)
    else:
        upstream = HttpUpstream(row.name, carrier(row.transport, context), row.max_parallel)
    keyed = [
        Keyed(
            provider,
            "" if key is None else key_id(row.name, key),
            f"{place} of {len(keys)}" if len(keys) > 1 else "",
        )
        for place, (provider, key) in enumerate(zip(providers, keys, strict=True), 1)
    ]
    return Adapter(row.name, keyed, upstream)
