"""What a report says: figures beside control, alarms and sentences. Pure."""

import random

import msgspec
import pytest

from router.experiment import Arm, Experiment, ExperimentState, Guardrail, Metric, Shadow
from router.experiments.report import Report, breached, comparable, compared, report
from router.experiments.statistics import Sums
from router.money import Money
from router.provider import Target
from router.store.experiment_states import KeptState
from router.store.experiments import ArmSums, Difference, ExperimentSums, ShadowPairs, Stratum

TRIAL = Experiment(
    name="trial",
    route="chat",
    arms=(Arm("control", 50), Arm("b", 50, Target("v", "b"))),
    control="control",
    salt="trial",
    metrics={"thumbs": Metric("binary")},
    guardrails=(Guardrail("errors", 20),),
    shadow=Shadow(Target("v", "s"), 10, Money(10**9, "USD")),
)


def some(share_of_errors: float, cost: float, units: int = 2000, seed: int = 1) -> ArmSums:
    draw = random.Random(seed)
    errors = Sums.of((unit, float(draw.random() < share_of_errors)) for unit in range(units))
    costs = Sums.of((unit, cost * draw.lognormvariate(0, 0.3)) for unit in range(units))
    return ArmSums(units, units, {"errors": errors, "cost": costs}, 0)


def sums(control: ArmSums, b: ArmSums, counts: tuple[int, int] = (1000, 1000)) -> ExperimentSums:
    stratum = Stratum("control=50,b=50", {"control": counts[0], "b": counts[1]})
    return ExperimentSums({"control": control, "b": b}, [stratum], 1, 2)


def told(
    found: ExperimentSums,
    pairs: dict[str, ShadowPairs] | None = None,
    kept: KeptState | None = None,
    trial: Experiment = TRIAL,
    period: tuple[int | None, int | None] = (None, None),
) -> Report:
    return report(trial, found, pairs or {}, kept or KeptState(), found.strata, "USD", 5, period)


def test_an_arm_that_fails_more_and_costs_less_is_said_to_in_figures_and_words() -> None:
    said = told(sums(some(0.02, 0.01), some(0.30, 0.006, seed=2)))
    control, b = said.arms
    assert (control.name, b.name, said.standing) == ("control", "b", "running")
    assert (b.metrics["errors"].verdict, b.metrics["cost"].verdict) == ("worse", "better")
    assert b.metrics["cost"].unit == "USD"
    relative = b.metrics["cost"].relative
    assert relative is not None
    assert relative == pytest.approx(-0.4, abs=0.05)
    assert control.metrics["errors"].verdict is None
    assert control.metrics["errors"].error is not None
    assert [guard.breached_by for guard in said.guardrails] == [["b"]]
    assert said.sample_ratio is not None
    assert not said.sample_ratio.alarm
    assert any("`b` costs" in sentence and "less" in sentence for sentence in said.sentences)


def test_a_guardrail_is_not_breached_by_chance_or_by_few_units() -> None:
    alike = compared(TRIAL, sums(some(0.05, 1), some(0.05, 1, seed=3)))
    assert breached(TRIAL, alike) == []
    few = compared(TRIAL, sums(some(0.0, 1, units=10), some(1.0, 1, units=10)))
    assert breached(TRIAL, few) == []
    assert few["b"]["errors"].verdict == "too_early"


def test_a_broken_split_is_an_alarm_before_anything_else() -> None:
    said = told(sums(some(0.1, 1), some(0.1, 1), (60_000, 50_000)))
    assert said.sample_ratio is not None
    assert said.sample_ratio.alarm
    assert said.sentences[0].startswith("Units do not reach the arms in the planned shares")


def test_an_experiment_without_calls_says_so() -> None:
    said = told(ExperimentSums({}, [], None, None))
    assert said.sentences == ["No call has been in the experiment yet."]
    assert [arm.exposures for arm in said.arms] == [0, 0]
    assert said.sample_ratio is None


def test_a_stopped_arm_is_told_with_its_reason() -> None:
    kept = KeptState(ExperimentState(("b",), None, 1), {"b": "errors 30 % against 2 %"}, 1)
    said = told(sums(some(0.1, 1), some(0.1, 1)), kept=kept)
    assert said.arms[1].stopped == "errors 30 % against 2 %"
    assert said.arms[1].share in (None, 0)
    assert any("was stopped" in sentence for sentence in said.sentences)


def test_a_shadow_is_compared_pair_by_pair() -> None:
    by_request = msgspec.structs.replace(TRIAL, unit="request")
    cheaper = Difference(400, -2.0, 0.02, 4.0)
    pairs = {
        "control": ShadowPairs(400, {("finished", "finished"): 390, ("finished", "failed"): 10}, {"cost": cheaper})
    }
    said = told(sums(some(0.1, 1), some(0.1, 1)), pairs=pairs, trial=by_request)
    assert said.shadow is not None
    assert (said.shadow.pairs, said.shadow.same_outcome, said.shadow.shadow_errors) == (400, 390, 10)
    cost = said.shadow.differences["cost"]
    assert cost.mean == pytest.approx(-0.005)
    assert cost.interval is not None
    low, high = cost.interval
    assert low < -0.005 < high < 0


@pytest.mark.parametrize(("start", "end", "standing"), [(10, None, "not_begun"), (1, 5, "ended"), (1, 9, "running")])
def test_when_it_runs_is_told(start: int, end: int | None, standing: str) -> None:
    timed = msgspec.structs.replace(TRIAL, start=start, end=end)
    assert told(ExperimentSums({}, [], None, None), trial=timed).standing == standing


def test_pairs_of_units_that_return_have_no_interval() -> None:
    pairs = {"control": ShadowPairs(400, {}, {"cost": Difference(400, -2.0, 0.02, 4.0)})}
    said = told(sums(some(0.1, 1), some(0.1, 1)), pairs=pairs)
    assert said.shadow is not None
    assert said.shadow.differences["cost"].interval is None
    assert said.shadow.differences["cost"].mean == pytest.approx(-0.005)


HALVES, TENTH, STOPPED = "control=50,b=50", "control=90,b=10", "control=100,b=0"


@pytest.mark.parametrize(
    ("strata", "period"),
    [
        ([(HALVES, 10)], (None, None)),
        ([(HALVES, 10), (TENTH, 20)], (20, None)),
        ([(HALVES, 10), (STOPPED, 30)], (10, 30)),
        ([(HALVES, 10), (TENTH, 20), (STOPPED, 30)], (20, 30)),
    ],
)
def test_arms_are_compared_within_a_time_of_equal_shares(
    strata: list[tuple[str, int]], period: tuple[int | None, int | None]
) -> None:
    assert comparable(TRIAL, [Stratum(shares, {"control": 1}, at) for shares, at in strata]) == period


def test_changed_shares_are_told_of() -> None:
    found = sums(some(0.1, 1), some(0.1, 1))
    found.strata.append(Stratum(TENTH, {"control": 9, "b": 1}, 20))
    assert "shares were changed" in told(found, period=(20, None)).sentences[0]


def test_a_holdout_is_no_sample_ratio_mismatch() -> None:
    held = msgspec.structs.replace(TRIAL, holdout=10)
    found = sums(some(0.1, 1), some(0.1, 1))
    units = {"control": 450, "b": 450, "holdout": 100}
    found = msgspec.structs.replace(found, strata=[Stratum("control=45,b=45,holdout=10", units, 1)])
    ratio = told(found, trial=held).sample_ratio
    assert ratio is not None
    assert (ratio.alarm, ratio.expected["holdout"]) == (False, pytest.approx(100))
