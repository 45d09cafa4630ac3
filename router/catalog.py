"""A name that a client asks for → the targets that can answer. Pure: made from the configuration, asks nobody."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from router.errors import ProviderUnavailable, UnknownModel
from router.nearest import alternatives, nearest
from router.provider import Target
from router.reader import short
from router.route import Balance, FallbackClass, Hedge, Retry, Route, RouteTarget, Timeouts, overlay
from router.routing.candidates import Candidate
from router.routing.capabilities import Capabilities
from router.settings import Config, ProviderRow

_ONCE: Final = Retry(attempts=1)


class Way(Struct, frozen=True):
    """Where a name leads to."""

    name: str
    candidates: tuple[Candidate, ...]
    """Those whose provider is available, in the order of the file; never empty."""
    is_route: bool = False
    balance: Balance = "ordered"
    retry: Retry = _ONCE
    fallback: dict[FallbackClass, tuple[Candidate, ...]] = {}
    """Targets for calls that those of the route cannot serve, as far as they are available."""
    hedge: Hedge | None = None
    continuation: bool = False

    @property
    def streams(self) -> bool:
        """Whether vendors are asked to stream whatever the client wants: to see who begins first, how soon a target
        begins, and what there is of an answer whose vendor dies."""
        return self.continuation or self.hedge is not None or self.balance == "latency"


class Listed(Struct, frozen=True):
    """One name for `GET /v1/models`. `missing` are the variables whose absence makes it unavailable."""

    id: str
    owned_by: str
    """The provider's name, `deltaway` for a route."""
    available: bool
    missing: tuple[str, ...] = ()


class Catalog:
    def __init__(self, config: Config) -> None:
        self._providers = config.providers
        self._routes = config.models
        self._capabilities = Capabilities()
        self._timeouts = {row.name: overlay(Timeouts(), row.timeouts) for row in config.providers.values()}
        self._ways = {route.name: self._way(route) for route in config.models.values()}
        self._arms: dict[str, tuple[Target, ...]] = {
            each.route: tuple(arm.target for arm in each.arms if arm.target is not None)
            for each in config.experiments.values()
        }

    def resolve(self, name: str) -> Way:
        """Where `name` leads to. A route's name wins over `provider/model`.

        Raises `UnknownModel` with the nearest names, `ProviderUnavailable` with the variables to set.
        """
        way = self._ways.get(name)
        if way is not None and way.candidates:
            return way
        if way is not None:
            raise self._unavailable(name, (each.target.provider for each in self._routes[name].targets))
        # a vendor's model names may hold slashes themselves
        provider, _, model = name.partition("/")
        row = self._providers.get(provider)
        if row is None or not model:
            raise self._unknown(name)
        if row.missing:
            raise self._unavailable(name, (provider,))
        return Way(name, (self._candidate(RouteTarget(Target(provider, model)), None),))

    def arm(self, route: str, target: Target) -> Candidate | None:
        """The target of an experiment's arm, as a candidate of the route; None while its provider is unavailable."""
        if self._providers[target.provider].missing:
            return None
        known = next((each for each in self._routes[route].targets if each.target == target), None)
        return self._candidate(known or RouteTarget(target), self._routes[route])

    def reaches(self, name: str) -> tuple[Target, ...]:
        """Every target that a call to `name` may reach: also by fallback, and as an experiment's arm. Raises as
        `resolve` does."""
        way = self.resolve(name)
        fallen = (each for listed in way.fallback.values() for each in listed)
        arms = (target for target in self._arms.get(name, ()) if not self._providers[target.provider].missing)
        return tuple(dict.fromkeys([*(each.target for each in (*way.candidates, *fallen)), *arms]))

    def window(self, name: str) -> int | None:
        """Tokens of prompt and answer together that every target takes which a call to `name` is likely to reach, arms
        of experiments included: the least that is known of any; None: nothing is. Raises as `resolve` does."""
        known = [each.can.context for each in self.resolve(name).candidates]
        if not self.is_route(name):
            provider, _, model = name.partition("/")
            known = [self._capabilities.can_of(self._providers[provider], model).context]
        for target in self._arms.get(name, ()):
            candidate = self.arm(name, target)
            known.append(None if candidate is None else candidate.can.context)
        return min((context for context in known if context is not None), default=None)

    def tags(self, name: str) -> tuple[str, ...]:
        """The tags by which calls to `name` go to this target or that."""
        way = self._ways.get(name)
        if way is None:
            return ()
        fallen = (each for listed in way.fallback.values() for each in listed)
        return tuple(sorted({tag for each in (*way.candidates, *fallen) for tag in each.when.tags}))

    def is_route(self, name: str) -> bool:
        return name in self._routes

    def models(self) -> list[Listed]:
        """Routes, then the models that the providers list, in the configuration's order; no name twice."""
        names = [
            Listed(
                name, "deltaway", bool(way.candidates), () if way.candidates else self._missing_of(self._routes[name])
            )
            for name, way in self._ways.items()
        ]
        for row in self._providers.values():
            full = (f"{row.name}/{model}" for model in row.models)
            names += [Listed(name, row.name, not row.missing, row.missing) for name in full if name not in self._routes]
        return names

    def _way(self, route: Route) -> Way:
        return Way(
            route.name,
            self._available(route, route.targets),
            True,
            route.balance,
            route.retry,
            {kind: self._available(route, targets) for kind, targets in route.fallback.items()},
            route.hedge,
            route.continuation,
        )

    def _available(self, route: Route, targets: Iterable[RouteTarget]) -> tuple[Candidate, ...]:
        return tuple(
            self._candidate(each, route) for each in targets if not self._providers[each.target.provider].missing
        )

    def _candidate(self, each: RouteTarget, route: Route | None) -> Candidate:
        target, can = each.target, each.can
        base = self._timeouts[target.provider]
        if route is not None:
            # a call that names its target goes there, whatever is known of it
            can = self._capabilities.can_of(self._providers[target.provider], target.model, can)
        return Candidate(
            target,
            base if route is None else overlay(base, route.timeouts),
            each.weight,
            self._providers[target.provider].region if each.region is None else each.region,
            each.max_parallel,
            each.when,
            can,
        )

    def _missing_of(self, route: Route) -> tuple[str, ...]:
        names = (name for each in route.targets for name in self._providers[each.target.provider].missing)
        return tuple(dict.fromkeys(names))

    def _unavailable(self, name: str, providers: Iterable[str]) -> ProviderUnavailable:
        rows = [self._providers[provider] for provider in dict.fromkeys(providers)]
        reasons = "; ".join(f"provider `{row.name}` needs {_variables(row)}" for row in rows)
        return ProviderUnavailable(f"`{short(name)}` is not available: {reasons} in the gateway's environment")

    def _unknown(self, name: str) -> UnknownModel:
        provider, slash, model = name.partition("/")
        if provider in self._providers and not model:
            advice = f": write `{provider}/` and the model's name"
        else:
            near = self._near(name, provider if slash else "", model)
            advice = f": did you mean {alternatives(near)}?" if near else ""
        shown = f"unknown model `{short(name)}`{advice}" if name else "the model's name is empty"
        return UnknownModel(f"{shown} (GET /v1/models lists the names; provider/model always works)", param="model")

    def _near(self, name: str, provider: str, model: str) -> list[str]:
        """Names like `name`: the same model at a provider, a provider spelled otherwise, then what looks alike."""
        listed = [f"{row.name}/{known}" for row in self._providers.values() for known in row.models]
        same = [full for full in listed if full.partition("/")[2] in (name, model)]
        respelled = [short(f"{near}/{model}") for near in nearest(provider, self._providers, 1)] if provider else []
        return list(dict.fromkeys([*same, *respelled, *nearest(name, [*self._routes, *listed])]))[:3]


def _variables(row: ProviderRow) -> str:
    """The row's unset variables, as part of a sentence."""
    names = [f"`{name}`" for name in row.missing]
    return f"{' and '.join(names)}, which {'is' if len(names) == 1 else 'are'} not set"
