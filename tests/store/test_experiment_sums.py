"""An experiment's sums as the store adds them up, beside the same reckoned call by call."""

import random
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec import Struct

from router.call import Outcome
from router.experiment import OWN_METRICS, MetricKind
from router.experiments.statistics import Sums
from router.ledger.rows import TOKEN_CLASSES, AttemptRow, Batch, CallRow, Exposure, Labels
from router.store.experiments import COMPARED, Difference, experiment_sums, shadow_pairs
from router.store.feedback import Feedback, give
from router.store.ledger import bring_in
from router.store.store import Store

RATES = {"USD": 1.0, "CNY": 0.14}
METRICS: dict[str, MetricKind] = {"thumbs": "binary", "stars": "number", "never": "number"}
OUTCOMES: tuple[Outcome | None, ...] = (
    *("finished", "finished", "finished", "client_gone", "stopped", "failed", "cut", "timeout", "budget", "refused"),
    *("cached", "interrupted", None),
)
SHARES = ("control=50,qwen=50", "control=80,qwen=20")


class Made(Struct):
    batch: Batch
    said: list[Feedback] = []

    async def into(self, store: Store) -> None:
        await bring_in(store, self.batch, 1)
        for each in self.said:
            await give(store, each)

    def attempts_of(self, call_id: str) -> list[AttemptRow]:
        return [row for (name, _), row in self.batch.attempts.items() if name == call_id]


def made_of(rng: random.Random, size: int) -> Made:
    """Calls of few units, in two experiments and in none; one in eight is repeated in the background."""
    made = Made(Batch("jrn", 1))
    for number in range(size):
        name, at = f"req_{number:06d}", rng.randrange(1000)
        experiment = rng.choice(("trial", "trial", "trial", "other", None))
        arm = rng.choice(("control", "qwen", "holdout"))
        add_call(made, rng, name, at, experiment, arm)
        if experiment is not None and rng.random() < 0.125:
            add_call(made, rng, f"{name}_again", at + rng.randrange(50), experiment, "shadow", shadow_of=name)
    return made


def add_call(
    made: Made, rng: random.Random, name: str, at: int, experiment: str | None, arm: str, shadow_of: str | None = None
) -> None:
    labels = Labels("chat", "chat", "dw-one", experiment=experiment, arm=arm if experiment else None)
    outcome = rng.choice(OUTCOMES)
    first = rng.choice((None, 0.25, rng.uniform(1, 900)))
    timing: dict[str, Any] = {} if rng.random() < 0.1 else {"duration_ms": (first or 0) + rng.choice((3, 10, 4321.5))}
    if first is not None and timing:
        timing["first_token_ms"] = first
    made.batch.calls[name] = CallRow(name, at, labels, "openai.chat", True, "jrn", {}, at, outcome, timing=timing)
    for n in range(1, rng.choice((0, 1, 1, 1, 2, 3)) + 1):
        source: Any = rng.choice(("reported", "reported", "reported", "estimated", None))
        tokens = {each: rng.choice((0, rng.randrange(2000))) if source else 0 for each in TOKEN_CLASSES}
        currency = rng.choice(("USD", "USD", "CNY", "CNY", "JPY")) if source and rng.random() < 0.9 else None
        made.batch.attempts[name, n] = AttemptRow(
            *(name, n, at, labels, "v", "m", "jrn", at, rng.choice(("finished", "cut", "failed", "stopped"))),
            **tokens,
            source=source,
            cost=rng.randrange(10**9) if currency else None,
            currency=currency,
        )
    if experiment is None:
        return
    forced, shares = rng.random() < 0.1, rng.choice(SHARES)
    unit = rng.choice("abcdefgh")
    made.batch.exposures[name] = Exposure(name, at, experiment, arm, unit, "user", forced, shares, shadow_of, "jrn")
    for metric, kind, value in (
        ("thumbs", "binary", rng.choice((0.0, 1.0))),
        ("stars", rng.choice(("number", "number", "binary")), rng.choice((0.0, 1.0))),
        ("unheard", "number", 5.0),
    ):
        if rng.random() < 0.3:
            value = value if kind == "binary" else rng.uniform(-5, 5)
            said = Feedback(call_id=name, metric=metric, kind=kind, value=value, created_at=1, updated_at=1)  # type: ignore[arg-type]
            made.said.append(said)


def counted_as(made: Made, name: str) -> dict[str, float]:
    """What a call is counted as, in each metric in which it is; `unpriced` where its cost is not known."""
    call, tried = made.batch.calls[name], made.attempts_of(name)
    found: dict[str, float] = {}
    if call.outcome in ("finished", "failed", "cut", "timeout"):
        found["errors"] = float(call.outcome != "finished")
    first, duration = call.timing.get("first_token_ms"), call.timing.get("duration_ms")
    if first is not None:
        found["first_token"] = first
    answering = [row for row in tried if row.outcome in ("finished", "cut") and row.source is not None]
    if call.outcome == "finished":
        if duration is not None:
            found["duration"] = duration
        if answering:
            found["output_tokens"] = float(sum(row.output + row.reasoning for row in answering))
            if first is not None and duration - first >= 10:
                found["tokens_per_second"] = found["output_tokens"] / (duration - first) * 1000
    if call.outcome is not None and tried:
        unpriced = [
            row
            for row in tried
            if (row.cost is None and row.source is not None and any(getattr(row, each) for each in TOKEN_CLASSES))
            or (row.cost is not None and row.currency not in RATES)
        ]
        if unpriced:
            found["unpriced"] = 1.0
        else:
            found["cost"] = sum((row.cost or 0) * RATES[row.currency or "USD"] for row in tried) / 1e9
    for each in made.said:
        if each.call_id == name and METRICS.get(each.metric) == each.kind:
            found[each.metric] = each.value
    return found


def exposed(made: Made, since: int | None, until: int | None) -> list[Exposure]:
    return [
        row
        for row in made.batch.exposures.values()
        if row.experiment == "trial"
        and not row.forced
        and (since is None or row.created_at >= since)
        and (until is None or row.created_at < until)
    ]


def close(found: Sums, expected: Sums) -> bool:
    pairs = [(getattr(found, name), getattr(expected, name)) for name in Sums.__struct_fields__]
    return all(one == pytest.approx(other, rel=1e-9, abs=1e-12) for one, other in pairs)


@pytest.mark.parametrize(
    ("seed", "size", "since", "until"),
    [(1, 0, None, None), (2, 1, None, None), (3, 60, None, None), (4, 400, None, None), (5, 400, 200, 700)],
)
async def test_the_sums_are_those_of_the_calls(
    store: Store, seed: int, size: int, since: int | None, until: int | None
) -> None:
    made = made_of(random.Random(seed), size)
    await made.into(store)
    found = await experiment_sums(store, "trial", METRICS, RATES, since=since, until=until)
    rows = exposed(made, since, until)
    by_arm: dict[str, list[Exposure]] = defaultdict(list)
    for row in rows:
        by_arm[row.arm].append(row)
    assert set(found.arms) == set(by_arm)
    for arm, group in by_arm.items():
        values = {row.call_id: counted_as(made, row.call_id) for row in group}
        sums = found.arms[arm]
        assert (sums.exposures, sums.units) == (len(group), len({row.unit for row in group}))
        assert sums.unpriced == sum("unpriced" in each for each in values.values())
        assert set(sums.metrics) == {*OWN_METRICS, *METRICS}
        for metric, each in sums.metrics.items():
            observed = [(row.unit, values[row.call_id][metric]) for row in group if metric in values[row.call_id]]
            assert close(each, Sums.of(observed)), metric
    times = [row.created_at for row in rows]
    assert (found.first_at, found.last_at) == ((min(times), max(times)) if times else (None, None))
    strata: dict[str, dict[str, int]] = {}
    for unit in {row.unit for row in rows if row.arm != "shadow"}:
        of_unit = (row for row in rows if row.unit == unit and row.arm != "shadow")
        first = min(of_unit, key=lambda row: (row.created_at, row.call_id))
        counts = strata.setdefault(first.shares, {})
        counts[first.arm] = counts.get(first.arm, 0) + 1
    assert {each.shares: each.units for each in found.strata} == strata


@pytest.mark.parametrize(("seed", "size", "since"), [(6, 0, None), (7, 500, None), (8, 500, 300)])
async def test_repetitions_are_compared_with_their_originals(
    store: Store, seed: int, size: int, since: int | None
) -> None:
    made = made_of(random.Random(seed), size)
    await made.into(store)
    found = await shadow_pairs(store, "trial", RATES, since=since)
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in exposed(made, since, None):
        original = made.batch.exposures.get(row.shadow_of or "")
        if original is not None and not original.forced:
            pairs[original.arm].append((original.call_id, row.call_id))
    assert set(found) == set(pairs)
    calls = made.batch.calls
    for arm, group in pairs.items():
        sums = found[arm]
        assert sums.pairs == len(group)
        ends = [(calls[original].outcome, calls[again].outcome) for original, again in group]
        assert sums.outcomes == {pair: ends.count(pair) for pair in ends}
        assert sums.same_outcome == sum(before == after for before, after in ends)
        assert sums.original_errors == sum(before in ("failed", "cut", "timeout") for before, _ in ends)
        assert sums.repeated_errors == sum(after in ("failed", "cut", "timeout") for _, after in ends)
        for name in COMPARED:
            both = [(counted_as(made, one).get(name), counted_as(made, other).get(name)) for one, other in group]
            known = [(one, other) for one, other in both if one is not None and other is not None]
            assert sums.differences[name] == difference_of(known)


class Close(Struct, eq=False):
    """Compares the sums as closely as they can be."""

    sums: Difference

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Difference) and all(
            getattr(other, name) == pytest.approx(getattr(self.sums, name), rel=1e-9, abs=1e-9)
            for name in Difference.__struct_fields__
        )


def difference_of(pairs: Iterable[tuple[float, float]]) -> Close:
    listed = list(pairs)
    differences = [after - before for before, after in listed]
    squares = sum(each * each for each in differences)
    return Close(Difference(len(listed), sum(differences), squares, sum(before for before, _ in listed)))


async def test_without_a_rate_or_a_metric_nothing_is_guessed(store: Store) -> None:
    made = made_of(random.Random(9), 100)
    await made.into(store)
    found = await experiment_sums(store, "trial", {}, {})
    priced = {row.call_id for row in made.batch.attempts.values() if row.cost is not None}
    for arm, sums in found.arms.items():
        assert set(sums.metrics) == set(OWN_METRICS)
        # what cost nothing needs no rate
        assert sums.metrics["cost"].y == 0.0
        over = [row for row in exposed(made, None, None) if row.arm == arm and row.call_id in priced]
        assert sums.unpriced >= sum(made.batch.calls[row.call_id].outcome is not None for row in over)


async def test_an_experiment_that_nobody_was_in_has_no_sums(store: Store) -> None:
    found = await experiment_sums(store, 'it\'s "none"', METRICS, RATES)
    assert (found.arms, found.strata, found.first_at, found.last_at) == ({}, [], None, None)
    assert await shadow_pairs(store, "none", {}) == {}
