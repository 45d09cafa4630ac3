"""`GET /v1/experiments` and `/v1/experiments/{name}`: what is defined, and what may be said of it today."""

import time
from collections.abc import Callable
from typing import Any, Final

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from msgspec import Struct

from router.call import Principal
from router.errors import NotFound, PermissionDenied
from router.experiment import Experiment
from router.experiments.rates import rates
from router.experiments.report import Report, comparable, report
from router.experiments.states import States
from router.generation import Generation
from router.http.described import described
from router.http.query import FILTERS, Query, described_parameters
from router.http.receipts import Caller, readable, up_to_date
from router.ledger.books import Books
from router.nearest import did_you_mean
from router.store.experiment_states import KeptState, all_states
from router.store.experiments import ShadowPairs, experiment_sums, shadow_pairs
from router.store.store import Store

_PERIOD: Final = ("from", "to")


class ArmDefined(Struct, frozen=True):
    name: str
    share: float
    """Per cent."""
    target: str | None
    parameters: list[str]
    """Names of the fields that it changes."""
    system: bool
    """Whether it has a system prompt of its own."""


class Defined(Struct, frozen=True, kw_only=True):
    """Times are Unix milliseconds."""

    id: str
    route: str
    unit: str
    control: str
    arms: list[ArmDefined]
    stopped: list[str]
    """Arms that a guardrail has stopped."""
    start: int | None
    end: int | None
    holdout: float
    metrics: list[str]
    shadow: str | None
    object: str = "experiment"


class ExperimentList(Struct, frozen=True):
    """All of them: there is no next page."""

    data: list[Defined]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: str = "list"


def experiment_routes(
    store: Store, books: Books, states: States, current: Callable[[], Generation], caller: Caller
) -> list[HTTPRouteHandler]:
    """The handlers, for admin keys, and for anybody where calls need no key. `current`: the generation in force."""

    async def operator(request: Request[Any, Any, Any]) -> None:
        principal: Principal | None = await caller(request)
        if principal is not None and not principal.admin:
            raise PermissionDenied("experiments are for operators to see: use an admin key")

    @get("/v1/experiments", summary="List experiments", tags=["experiments"])
    async def list_experiments(request: Request[Any, Any, Any]) -> ExperimentList:
        await operator(request)
        Query(request.scope, ())
        found = [_defined(each, states) for each in current().config.experiments.values()]
        return ExperimentList(found, False, found[0].id if found else None, found[-1].id if found else None)

    @get(
        "/v1/experiments/{name:str}",
        summary="Report on an experiment",
        tags=["experiments"],
        operation_class=described(query=described_parameters({name: FILTERS[name] for name in _PERIOD})),
    )
    async def report_experiment(request: Request[Any, Any, Any], name: FromPath[str]) -> Report:
        """Intervals and verdicts hold however often one looks."""
        await operator(request)
        generation = current()
        known = generation.config.experiments
        experiment = known.get(name)
        if experiment is None:
            listed = ", ".join(known) or "none"
            raise NotFound(f"no experiment `{name[:80]}`{did_you_mean(name, known)} (known: {listed})")
        selection = Query(request.scope, _PERIOD).selection()
        now, currency = int(time.time() * 1000), generation.config.prices.currency
        await up_to_date(books)
        worth = rates(generation.pricing, currency, now)
        kinds = {metric: each.kind for metric, each in experiment.metrics.items()}
        since, until = selection.since, selection.until
        with readable():
            sums = await experiment_sums(store, name, kinds, worth, since=since, until=until)
            strata = sums.strata
            if since is None and until is None:
                since, until = comparable(experiment, strata)
                if since is not None or until is not None:
                    sums = await experiment_sums(store, name, kinds, worth, since=since, until=until)
            pairs: dict[str, ShadowPairs] = {}
            if experiment.shadow is not None:
                pairs = await shadow_pairs(store, name, worth, since=since, until=until)
            kept = (await all_states(store)).states.get(name, KeptState())
        return report(experiment, sums, pairs, kept, strata, currency, now, (since, until))

    return [list_experiments, report_experiment]


def _defined(experiment: Experiment, states: States) -> Defined:
    return Defined(
        id=experiment.name,
        route=experiment.route,
        unit=experiment.unit,
        control=experiment.control,
        arms=[
            ArmDefined(
                arm.name,
                arm.share,
                None if arm.target is None else str(arm.target),
                sorted(arm.parameters),
                arm.system is not None,
            )
            for arm in experiment.arms
        ],
        stopped=list(states.state(experiment.name).stopped),
        start=experiment.start,
        end=experiment.end,
        holdout=experiment.holdout,
        metrics=list(experiment.metrics),
        shadow=None if experiment.shadow is None else str(experiment.shadow.target),
    )
