"""Arms that are stopped by themselves, and shares that follow: on every store, in several processes."""

import random

import msgspec
import pytest

from router.experiment import Adapt, Arm, Experiment, ExperimentState, Guardrail, Metric
from router.experiments.guarding import Guarding
from router.experiments.states import States
from router.ledger.rows import AttemptRow, Batch, CallRow, Exposure, Labels
from router.store.claims import claim
from router.store.experiment_states import all_states, change_state
from router.store.feedback import Feedback, give
from router.store.ledger import bring_in
from router.store.store import Store
from support.dispatching import Free

ARMS = (Arm("control", 50), Arm("b", 50))
GUARDED = Experiment(
    name="trial", route="chat", arms=ARMS, control="control", salt="trial", guardrails=(Guardrail("errors", 20),)
)
SHARES = "control=50,b=50"
MINUTE = 60_000


async def called(store: Store, failing: dict[str, float], units: int = 300) -> None:
    """Calls of each arm, of which a share fails."""
    rng, batch = random.Random(1), Batch("jrn", 1)
    for arm, share in failing.items():
        for number in range(units):
            name = f"req_{arm}_{number:04d}"
            outcome = "failed" if rng.random() < share else "finished"
            labels = Labels("chat", "chat", experiment="trial", arm=arm)
            batch.calls[name] = CallRow(name, 1, labels, "openai.chat", False, "jrn", {}, 1, outcome)
            batch.attempts[name, 1] = AttemptRow(name, 1, 1, labels, "v", "m", "jrn", 1, outcome)
            unit = f"{arm}{number}"
            batch.exposures[name] = Exposure(name, 1, "trial", arm, unit, "user", False, SHARES, None, "jrn")
    await bring_in(store, batch, 1)


class Process:
    def __init__(self, store: Store, experiment: Experiment = GUARDED) -> None:
        self.now = 10 * MINUTE
        self.states = States()
        self.guarding = Guarding(
            store, self.states, lambda: {experiment.name: experiment}, lambda: (Free(), "USD"), lambda: self.now
        )

    @property
    def state(self) -> ExperimentState:
        return self.states.state("trial")


async def test_an_arm_that_fails_is_stopped_at_the_first_look_and_all_processes_follow(store: Store) -> None:
    await called(store, {"control": 0.02, "b": 0.4})
    one, other = Process(store), Process(store)
    await one.guarding.look()
    assert one.state.stopped == ("b",)
    assert other.state.stopped == ()
    await other.guarding.follow()
    assert other.state.stopped == ("b",)
    kept = (await all_states(store)).states["trial"]
    assert "`b` fails more often than `control`" in kept.why["b"]


async def test_arms_that_are_alike_and_control_are_never_stopped(store: Store) -> None:
    await called(store, {"control": 0.4, "b": 0.38})
    process = Process(store)
    await process.guarding.look()
    assert process.state.stopped == ()


async def test_few_calls_stop_nobody(store: Store) -> None:
    await called(store, {"control": 0.0, "b": 1.0}, units=8)
    process = Process(store)
    await process.guarding.look()
    assert process.state.stopped == ()


async def test_what_was_reset_is_stopped_again_only_at_the_next_look(store: Store) -> None:
    await called(store, {"control": 0.02, "b": 0.4})
    process = Process(store)
    await process.guarding.look()
    await change_state(store, "trial", lambda _: ExperimentState(), {}, process.now)
    await process.guarding.follow()
    assert process.state.stopped == ()
    await process.guarding.look()
    assert process.state.stopped == ()
    process.now += MINUTE
    await process.guarding.look()
    assert process.state.stopped == ("b",)


async def test_of_all_processes_one_does_each_look_and_a_dead_one_costs_a_turn(store: Store) -> None:
    assert await claim(store, "guard:trial", 1000, 500)
    assert not await claim(store, "guard:trial", 1400, 500)
    assert await claim(store, "guard:trial", 1500, 500)
    # made by a clock that was far ahead
    assert await claim(store, "guard:trial", 100, 500)


async def test_shares_follow_the_better_arm_and_leave_each_its_floor(store: Store) -> None:
    adapted = Experiment(
        name="trial",
        route="chat",
        arms=ARMS,
        control="control",
        salt="trial",
        metrics={"thumbs": Metric("binary")},
        adapt=Adapt("thumbs", floor=10),
    )
    await called(store, {"control": 0.0, "b": 0.0}, units=60)
    for arm, good in (("control", 10), ("b", 50)):
        for number in range(60):
            said = Feedback(
                call_id=f"req_{arm}_{number:04d}",
                metric="thumbs",
                kind="binary",
                value=float(number < good),
                created_at=1,
                updated_at=1,
            )
            await give(store, said)
    process = Process(store, adapted)
    await process.guarding.look()
    shares = process.state.shares
    assert shares is not None
    assert shares["b"] > 80
    assert shares["control"] >= 9.9
    assert sum(shares.values()) == pytest.approx(100)


async def test_an_experiment_that_is_over_is_left_alone(store: Store) -> None:
    await called(store, {"control": 0.02, "b": 0.4})
    process = Process(store, msgspec.structs.replace(GUARDED, end=5 * MINUTE))
    await process.guarding.look()
    assert process.state.stopped == ()
