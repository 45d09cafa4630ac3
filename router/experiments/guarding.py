"""Looks after the experiments while they run: guardrails that stop an arm, shares that are adapted, and what other
processes have done of it. One task for a process; of all processes one does each look.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog
from msgspec import structs

from router.experiment import Experiment, ExperimentState
from router.experiments import thompson
from router.experiments.rates import rates
from router.experiments.report import breached, comparable, compared, metrics_of
from router.experiments.sentence import clause
from router.experiments.states import States
from router.experiments.statistics import Comparison, Sums
from router.pricing import Pricing
from router.store.claims import claim
from router.store.experiment_states import all_states, change_state, states_number
from router.store.experiments import ExperimentSums, experiment_sums
from router.store.store import Store, StoreAway

POLL: Final = 0.5
"""Seconds between two looks at what other processes have changed."""


class Guarding:
    """`experiments` and `pricing` are those in force, with the currency of reports. `clock` gives Unix milliseconds."""

    def __init__(
        self,
        store: Store,
        states: States,
        experiments: Callable[[], Mapping[str, Experiment]],
        pricing: Callable[[], tuple[Pricing, str]],
        clock: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._store = store
        self._states = states
        self._experiments = experiments
        self._pricing = pricing
        self._clock = clock
        self._seen = 0
        self._due: dict[str, int] = {}
        """When this process looks next, by the name of the work."""
        self._log = structlog.get_logger("deltaway.experiments")

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        task = asyncio.get_running_loop().create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            try:
                if self._experiments():
                    await self.follow()
                    await self.look()
            except StoreAway:
                # what is known goes on being true
                pass
            except Exception as error:
                self._log.error("the experiments could not be looked after", exc_info=error)
            await asyncio.sleep(POLL)

    async def follow(self) -> None:
        """Take up what any process has changed. Raises `StoreAway`."""
        if await states_number(self._store) != self._seen:
            found = await all_states(self._store)
            self._states.take({name: kept.state for name, kept in found.states.items()})
            self._seen = found.number

    async def look(self) -> None:
        """Do what is due of the work, if no other process has done it. Raises `StoreAway`."""
        now = self._clock()
        for experiment in list(self._experiments().values()):
            if (experiment.start or 0) > now or (experiment.end is not None and experiment.end <= now):
                continue
            if experiment.guardrails and await self._is_ours("guard", experiment, experiment.guard_every, now):
                await self._guard(experiment, now)
            adapt = experiment.adapt
            if adapt is not None and await self._is_ours("adapt", experiment, float(adapt.every), now):
                await self._adapt(experiment, now)

    async def _is_ours(self, work: str, experiment: Experiment, every: float, now: int) -> bool:
        name, period = f"{work}:{experiment.name}", int(every * 1000)
        if self._due.get(name, 0) > now:
            return False
        self._due[name] = now + period
        return await claim(self._store, name, now, period)

    async def _guard(self, experiment: Experiment, now: int) -> None:
        sums = await self._sums(experiment, now)
        since, until = comparable(experiment, sums.strata)
        if since is not None or until is not None:
            sums = await self._sums(experiment, now, since, until)
        comparisons = compared(experiment, sums)
        known = self._states.state(experiment.name).stopped
        for arm, metric in breached(experiment, comparisons):
            if arm not in known:
                await self._stop(experiment, arm, metric, comparisons[arm][metric], now)
                known = (*known, arm)

    async def _stop(self, experiment: Experiment, arm: str, metric: str, comparison: Comparison, now: int) -> None:
        why = clause(metric, arm, experiment.control, comparison)

        def stopped(state: ExperimentState) -> ExperimentState:
            return structs.replace(state, stopped=tuple(dict.fromkeys((*state.stopped, arm))))

        if await change_state(self._store, experiment.name, stopped, {arm: why}, now) is not None:
            self._log.warning("an arm was stopped", experiment=experiment.name, arm=arm, why=why)
            await self.follow()

    async def _adapt(self, experiment: Experiment, now: int) -> None:
        adapt = experiment.adapt
        if adapt is None:
            return
        sums, metric = await self._sums(experiment, now), metrics_of(experiment)[adapt.metric]
        stopped = self._states.state(experiment.name).stopped
        # an arm of no share never has units enough to be drawn for
        names = [arm.name for arm in experiment.arms if arm.share and arm.name not in stopped]
        observed = {name: sums.arms[name].metrics.get(adapt.metric, Sums()) for name in names if name in sums.arms}
        if len(observed) < len(names) or len(names) < 2:
            return
        shares = thompson.shares(observed, metric, floor=adapt.floor)
        if shares is None:
            return
        shares = {arm.name: shares.get(arm.name, 0.0) for arm in experiment.arms}
        why = f"by {adapt.metric}: " + ", ".join(f"{name} {share:g} %" for name, share in shares.items())

        def adapted(state: ExperimentState) -> ExperimentState:
            return structs.replace(state, shares=shares)

        if await change_state(self._store, experiment.name, adapted, {"shares": why}, now) is not None:
            self._log.info("shares were adapted", experiment=experiment.name, shares=shares)
            await self.follow()

    async def _sums(
        self, experiment: Experiment, now: int, since: int | None = None, until: int | None = None
    ) -> ExperimentSums:
        pricing, currency = self._pricing()
        kinds = {name: metric.kind for name, metric in experiment.metrics.items()}
        worth = rates(pricing, currency, now)
        return await experiment_sums(self._store, experiment.name, kinds, worth, since=since, until=until)
