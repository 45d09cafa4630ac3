"""Health as people and programs see it: a word for everybody, and the whole of it for operators."""

from collections.abc import Callable, Iterable
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from router.adapters import Adapter
from router.generation import Generation
from router.health import BreakerState, KeyTrouble, key_id
from router.provider import Target
from router.routing.health_book import HealthBook, KeyRest
from router.settings import ProviderRow

Word: TypeAlias = Literal["ok", "resting", "recovering"]
"""`resting`: left alone for a while. `recovering`: tried by one call at a time."""

_ENDING: Final = 4
"""Characters of a key that are shown, of one that is long enough."""
_LONG: Final = 16
_WHY: Final[dict[KeyTrouble | None, str]] = {
    "invalid": "the vendor refused the key",
    "quota": "no quota is left, or the account is in arrears",
    None: "the vendor limits the rate",
}


class ErrorShown(Struct, frozen=True):
    code: str
    message: str
    at: int
    """Unix seconds."""


class KeyHealth(Struct, frozen=True, kw_only=True):
    """A key of ours at a provider. Times are Unix seconds."""

    place: str
    """`1 of 3`."""
    ending: str
    """Its last four characters, if it is long enough to show them."""
    state: Literal["usable", "resting"]
    trouble: KeyTrouble | Literal["limited"] | None = None
    words: str = ""
    since: int | None = None
    until: int | None = None


class TargetHealth(Struct, frozen=True, kw_only=True):
    """A target that was tried, or that others have told of. Times are Unix seconds."""

    target: str
    health: Word
    words: str
    """Why it is not `ok`, and for how long; empty when it is."""
    breaker: BreakerState
    until: int | None
    """When it may be tried; null: now."""
    failures_in_a_row: int
    attempts: int
    """That ended within `health.window`."""
    failures: int
    failure_rate: float | None
    """Of those; null when there were none."""
    first_token_ms: float | None
    """The average that `balance: latency` goes by: a peak at once, what is better with time."""
    duration_ms: float | None
    running: int
    error: ErrorShown | None
    """The last one."""


class ProviderHealth(Struct, frozen=True, kw_only=True):
    name: str
    available: bool
    missing: tuple[str, ...]
    """Environment variables that must be set first."""
    keys: list[KeyHealth]
    targets: list[TargetHealth]


class RouteHealth(Struct, frozen=True, kw_only=True):
    name: str
    health: Word | None
    """As good as its best target; null: none of them is available."""
    words: str
    targets: dict[str, Word]


class Sharing(Struct, frozen=True, kw_only=True):
    """Whether processes tell each other. Averages, counts and errors are always those of the process that answers."""

    kind: Literal["memory", "machine", "redis"]
    trouble: str | None
    """Why they do not, for the moment."""


class HealthShown(Struct, frozen=True, kw_only=True):
    object: Literal["health"] = "health"
    at: int
    """Unix seconds."""
    shared: Sharing
    providers: list[ProviderHealth]
    routes: list[RouteHealth]


class HealthView:
    """What the book knows, for one generation at one moment. `clock` gives Unix seconds."""

    def __init__(self, generation: Generation, book: HealthBook, clock: Callable[[], float]) -> None:
        self._generation = generation
        self._book = book
        self._now = book.clock()
        self._offset = clock() - self._now

    def model(self, name: str) -> Word | None:
        """Of a route, or of `provider/model`; None: it is not available at all."""
        catalog, config = self._generation.catalog, self._generation.config
        if catalog.is_route(name):
            return _best(self.target(each.target) for each in config.models[name].targets if self._has(each.target))
        provider, _, model = name.partition("/")
        target = Target(provider, model)
        return self.target(target) if self._has(target) else None

    def target(self, target: Target) -> Word:
        standing = self._book.standing(target)
        if standing.state == "open" or self._keys_free_at(target.provider) is not None:
            return "resting"
        if standing.state == "half_open":
            return "recovering"
        return "ok" if standing.free_at is None else "resting"

    # -- the whole of it ---------------------------------------------------------------------------------------------

    def providers(self) -> list[ProviderHealth]:
        config = self._generation.config
        known: dict[str, list[Target]] = {name: [] for name in config.providers}
        for target in self._book.known():
            if target.provider in known:
                known[target.provider].append(target)
        return [
            ProviderHealth(
                name=row.name,
                available=not row.missing,
                missing=row.missing,
                keys=self._keys(row),
                targets=[shown for target in sorted(known[row.name], key=str) if (shown := self._shown(target))],
            )
            for row in config.providers.values()
        ]

    def routes(self) -> list[RouteHealth]:
        found = []
        for route in self._generation.config.models.values():
            words = {str(each.target): self.target(each.target) for each in route.targets if self._has(each.target)}
            best = _best(words.values())
            said = ""
            if best in ("resting", "recovering"):
                # of those that are as good, the one that is free the soonest
                rests = [self._rest(each.target) for each in route.targets if words.get(str(each.target)) == best]
                said = min(rests, key=lambda rest: rest.free_at or 0.0).words
            found.append(RouteHealth(name=route.name, health=best, words=said, targets=words))
        return found

    # -- inside ------------------------------------------------------------------------------------------------------

    def _has(self, target: Target) -> bool:
        row = self._generation.config.providers.get(target.provider)
        return row is not None and not row.missing

    def _keys_free_at(self, provider: str) -> float | None:
        adapter: Adapter | None = self._generation.adapters.get(provider)
        return None if adapter is None else adapter.free_at(self._book)

    def _keys(self, row: ProviderRow) -> list[KeyHealth]:
        found, count = [], len(row.api_keys)
        for place, key in enumerate(row.api_keys, 1):
            rest = self._book.key_rest(row.name, key_id(row.name, key))
            ending = f"…{key[-_ENDING:]}" if len(key) >= _LONG else ""
            found.append(self._key(f"{place} of {count}", ending, rest))
        return found

    def _key(self, place: str, ending: str, rest: KeyRest | None) -> KeyHealth:
        if rest is None:
            return KeyHealth(place=place, ending=ending, state="usable")
        return KeyHealth(
            place=place,
            ending=ending,
            state="resting",
            trouble=rest.trouble or "limited",
            words=f"resting {self._left(rest.until)} more: {_WHY[rest.trouble]}",
            since=self._at(rest.since),
            until=self._at(rest.until),
        )

    def _shown(self, target: Target) -> TargetHealth | None:
        known = self._book.shown(target)
        if known is None:
            return None
        rest = self._rest(target)
        return TargetHealth(
            target=str(target),
            health=self.target(target),
            words=rest.words,
            breaker=known.state,
            until=None if rest.free_at is None else self._at(rest.free_at),
            failures_in_a_row=known.streak,
            attempts=known.attempts,
            failures=known.failures,
            failure_rate=round(known.failures / known.attempts, 4) if known.attempts else None,
            first_token_ms=_milliseconds(known.first_token),
            duration_ms=_milliseconds(known.duration),
            running=known.running,
            error=None
            if known.error is None
            else ErrorShown(known.error.code, known.error.message, self._at(known.error.at)),
        )

    def _rest(self, target: Target) -> "_Rest":
        known, word = self._book.shown(target), self.target(target)
        free, why = (None, "") if known is None else (known.free_at, known.why)
        keys = self._keys_free_at(target.provider)
        if keys is not None and (free is None or free < keys):
            free, why = keys, "none of the provider's keys may be used"
        if word == "resting" and free is not None:
            return _Rest(free, f"resting {self._left(free)} more: {why}")
        if word == "recovering":
            return _Rest(free, f"recovering: tried by one call at a time ({why})")
        return _Rest(free, "")

    def _at(self, moment: float) -> int:
        """Unix seconds."""
        return round(moment + self._offset)

    def _left(self, until: float) -> str:
        return f"{max(1, round(until - self._now))} s"


class _Rest(Struct, frozen=True):
    free_at: float | None
    """The book's time; None: now."""
    words: str


def _best(words: Iterable[Word]) -> Word | None:
    found = set(words)
    order: tuple[Word, ...] = ("ok", "recovering", "resting")
    return next((word for word in order if word in found), None)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
