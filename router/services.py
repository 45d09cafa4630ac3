"""What the core lends to plugins that ask for it (`wants_services = True`): keys, limits, budgets, prices, tokens."""

from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct

from router.access import Owner, OwnerKind
from router.accounts import Accounts
from router.cache.entry import CacheStore, NoCache
from router.call import Call, Credentials, Principal
from router.gates import Gates
from router.pricing import Pricing
from router.provider import Target
from router.tokens import TokenCounter


class KeyBook(Protocol):
    """The keys of the store, remembered for as long as nobody changes them."""

    def known(self, credentials: Credentials) -> Principal | None:
        """Who that is, if it can be said without waiting. Raises `AuthenticationFailed`."""
        ...

    async def find(self, credentials: Credentials) -> Principal | None:
        """The same, asking the store if need be; None: no key of the store. Raises `AuthenticationFailed` for one
        that has expired or was revoked, `StoreUnavailable` when the store cannot be asked."""
        ...

    def owner(self, kind: OwnerKind, name: str) -> Owner | None:
        """The user's or team's own limits and budgets, if it has any."""
        ...


def _alike(call: Call) -> tuple[str, ...]:
    return ()


class Services(Struct, frozen=True):
    environ: Mapping[str, str]
    keys: KeyBook
    tokens: TokenCounter
    """One for the whole process: vocabularies are large."""
    pricing: Pricing
    gates: Gates
    accounts: Accounts
    candidates: Callable[[str], tuple[Target, ...]]
    """The targets that a model's name may lead to. Raises as `Catalog.resolve` does."""
    is_route: Callable[[str], bool]
    course: Callable[[Call], tuple[str, ...]] = _alike
    """What decides, beside its request, who answers a call, as words: the tags that its route looks at, and the arm
    that an experiment assigns it to, which is settled with it. Raises as an assignment does."""
    cache: CacheStore = NoCache()
    """The answers that are kept. It outlives the configuration."""
