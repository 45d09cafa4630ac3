"""`python -m benchmarks.experiments`: do the statistics of experiments hold when one looks at them every day?

Experiments are made up by the thousand, each with a known truth, and looked at once a day as the product does it, from
sums over units. Three tables: arms without a difference, arms with one, and counts of units against planned shares. In
the first two a common z-test of the same sums, looked at every day, stands beside it: it shows what looking costs.

Where the distribution allows, a day is drawn as a whole (sums of normal values, counts of ones), else unit by unit.
The same seed gives the same tables.
"""

import argparse
import math
import os
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from random import Random
from statistics import mean, median
from typing import Final, TypeAlias

from benchmarks.__main__ import describe_machine
from router.experiment import Metric
from router.experiments.sample_ratio import Period, sample_ratio
from router.experiments.statistics import Sums, compare

Days: TypeAlias = Iterator[Sums]
"""What is known of one arm at the end of each day."""
Source: TypeAlias = Callable[[Random, int], Days]
Draw: TypeAlias = Callable[[int], tuple[float, float]]
"""Number of observations → their sum, and the sum of their squares."""

BINARY: Final = Metric("binary")
NUMBER: Final = Metric("number")
SURE: Final = 1.959964
"""The z-test's bound at 5 per cent."""


# -- one arm ---------------------------------------------------------------------------------------------------------


def binary(rate: float, a_day: int) -> Source:
    """Every unit says yes or no once."""
    table = binomial(a_day, rate)

    def days(random: Random, count: int) -> Days:
        n = y = 0
        for _ in range(count):
            n, y = n + a_day, y + drawn(table, random)
            yield Sums(n, n, y, y, y, n, y)

    return days


def normal(middle: float, a_day: int) -> Source:
    """One value for each unit, with a standard deviation of 1."""

    def days(random: Random, count: int) -> Days:
        n, y, squares = 0, 0.0, 0.0
        for _ in range(count):
            today = random.gauss(middle, 1 / math.sqrt(a_day))
            n, y = n + a_day, y + a_day * today
            squares += a_day * today * today + random.gammavariate((a_day - 1) / 2, 2)
            yield Sums(n, n, y, squares, y, n, squares)

    return days


def lognormal(middle: float, sigma: float, a_day: int) -> Source:
    """One value for each unit, with a long tail, as costs and times have. `middle` is the mean."""
    of_log = math.log(middle) - sigma * sigma / 2

    def days(random: Random, count: int) -> Days:
        n, y, squares = 0, 0.0, 0.0
        for _ in range(count):
            values = [math.exp(random.gauss(of_log, sigma)) for _ in range(a_day)]
            n, y, squares = n + a_day, y + sum(values), squares + sum([value * value for value in values])
            yield Sums(n, n, y, squares, y, n, squares)

    return days


def returning(unit: Callable[[Random], Draw], first: int, a_day: int, *, jumps: bool = False) -> Source:
    """Units that come back: `first` on the first day, `a_day` more on each other, a third each with few, some and many
    observations a day. With `jumps`, every tenth has a day with 20, once."""
    tables = [poisson(rate) for rate in (0.2, 1, 3)]

    def days(random: Random, count: int) -> Days:
        # of each unit: how it answers, how often, the day of its jump, Y, N
        units: list[tuple[Draw, list[float], int, list[float]]] = []
        known, n, y, yy, yn, nn, squares = 0, 0, 0.0, 0.0, 0.0, 0, 0.0
        for day in range(count):
            for _ in range(a_day if day else first):
                jump = random.randrange(10 * count) if jumps else -1
                units.append((unit(random), random.choice(tables), jump, [0.0, 0]))
            for draw, table, jump, so_far in units:
                if day == jump:
                    more = 20
                elif (chance := random.random()) < table[0]:
                    continue
                else:
                    more = min(bisect_right(table, chance), len(table) - 1)
                value, squared = draw(more)
                before, times = so_far
                known += not times
                n, y, squares = n + more, y + value, squares + squared
                yy += value * (2 * before + value)
                yn += before * more + value * (times + more)
                nn += int(more * (2 * times + more))
                so_far[:] = before + value, times + more
            yield Sums(known, n, y, yy, yn, nn, squares)

    return days


def opinion(middle: float, likeness: float, random: Random) -> Draw:
    """A unit whose values lie around its own mean; `likeness` is the intraclass correlation. Deviation 1 in all."""
    own = random.gauss(middle, math.sqrt(likeness))
    within = math.sqrt(1 - likeness)

    def draw(times: int) -> tuple[float, float]:
        total = times * own + random.gauss(0, within * math.sqrt(times))
        spread = within * within * random.gammavariate((times - 1) / 2, 2) if times > 1 else 0.0
        return total, total * total / times + spread

    return draw


def habit(rate: float, likeness: float, random: Random) -> Draw:
    """A unit that says yes at its own rate; `likeness` is the intraclass correlation."""
    strength = 1 / likeness - 1
    own = random.betavariate(rate * strength, (1 - rate) * strength)

    def draw(times: int) -> tuple[float, float]:
        yes = sum([random.random() < own for _ in range(times)])
        return yes, yes

    return draw


def binomial(count: int, rate: float) -> list[float]:
    """The cumulative distribution."""
    log_yes, log_no, of_all = math.log(rate), math.log1p(-rate), math.lgamma(count + 1)
    return list(
        accumulate(
            math.exp(of_all - math.lgamma(k + 1) - math.lgamma(count - k + 1) + k * log_yes + (count - k) * log_no)
            for k in range(count + 1)
        )
    )


def poisson(rate: float) -> list[float]:
    """The cumulative distribution, as far as it matters."""
    return list(accumulate(math.exp(k * math.log(rate) - rate - math.lgamma(k + 1)) for k in range(40)))


def drawn(table: list[float], random: Random) -> int:
    return min(bisect_right(table, random.random()), len(table) - 1)


# -- many experiments ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An experiment with a known truth. `arms` makes control and arm; it is called where they are run."""

    name: str
    metric: Metric
    arms: Callable[[], tuple[Source, Source]]
    truth: float = 0.0
    """Arm minus control."""
    of_control: float = 1.0
    """Control's true value."""


@dataclass(frozen=True)
class Measured:
    """Parts of all experiments, but for the days."""

    wrong: float
    """An interval ever missed the true difference."""
    wrong_relative: float
    wrong_z: float
    """The interval of the z-test ever missed it."""
    decided: float
    """Ever called better or worse."""
    decided_wrong: float
    """Called the opposite of the truth, or anything where there is none."""
    day: float | None
    """Mean of the first days on which it was."""
    z_at_the_end: float
    """Significant in one z-test on the last day."""
    silent: float
    """Looks at which nothing could be said, of all looks."""
    seconds: float


def measure(case: Case, tests: int, days: int, seed: int) -> Measured:
    started = time.perf_counter()
    control, arm = case.arms()
    ratio = case.truth / case.of_control
    wrong = wrong_relative = wrong_z = decided_wrong = at_the_end = silent = 0
    decided: list[int] = []
    for number in range(tests):
        random = Random(f"{seed} {case.name} {number}")
        missed = missed_relative = missed_z = False
        first: int | None = None
        z = 0.0
        for day, (of_control, of_arm) in enumerate(zip(control(random, days), arm(random, days), strict=True), 1):
            comparison = compare(of_control, of_arm, case.metric)
            interval, relative = comparison.interval, comparison.relative_interval
            silent += interval is None
            missed |= interval is not None and not interval.low <= case.truth <= interval.high
            missed_relative |= relative is not None and not relative.low <= ratio <= relative.high
            if first is None and comparison.verdict in ("better", "worse"):
                first = day
                decided_wrong += not case.truth or (case.truth > 0) != (comparison.verdict == "better")
            error = math.sqrt(of_control.variance + of_arm.variance)
            difference = of_arm.mean - of_control.mean
            missed_z |= abs(difference - case.truth) > SURE * error
            z = abs(difference) / error if error else 0.0
        wrong, wrong_relative, wrong_z = wrong + missed, wrong_relative + missed_relative, wrong_z + missed_z
        at_the_end += z > SURE
        if first is not None:
            decided.append(first)
    return Measured(
        wrong=wrong / tests,
        wrong_relative=wrong_relative / tests,
        wrong_z=wrong_z / tests,
        decided=len(decided) / tests,
        decided_wrong=decided_wrong / tests,
        day=mean(decided) if decided else None,
        z_at_the_end=at_the_end / tests,
        silent=silent / tests / days,
        seconds=time.perf_counter() - started,
    )


def _same(source: Callable[[], Source]) -> tuple[Source, Source]:
    return source(), source()


def _pair(control: Callable[[], Source], arm: Callable[[], Source]) -> tuple[Source, Source]:
    return control(), arm()


def _of(metric: Metric, name: str, source: Callable[[], Source]) -> Case:
    return Case(name, metric, partial(_same, source))


OPINIONS: Final = partial(returning, partial(opinion, 1.0, 0.5), 40, 3)
A_A: Final = (
    _of(BINARY, "feedback, rate 0.3, 50 a day", partial(binary, 0.3, 50)),
    _of(BINARY, "feedback, rate 0.02, 100 a day", partial(binary, 0.02, 100)),
    Case(
        "feedback, rate 0.02, 900 and 100 a day",
        BINARY,
        partial(_pair, partial(binary, 0.02, 900), partial(binary, 0.02, 100)),
    ),
    _of(NUMBER, "normal, 50 a day", partial(normal, 1.0, 50)),
    _of(NUMBER, "lognormal (sigma 1.5), 40 a day", partial(lognormal, 1.0, 1.5, 40)),
    Case(
        "lognormal (sigma 1.5), 90 and 10 a day",
        NUMBER,
        partial(_pair, partial(lognormal, 1.0, 1.5, 90), partial(lognormal, 1.0, 1.5, 10)),
    ),
    _of(NUMBER, "units return, correlation 0.5", OPINIONS),
    _of(NUMBER, "the same, some with a sudden 20 calls", partial(OPINIONS, jumps=True)),
    _of(BINARY, "units return, feedback, correlation 0.5", partial(returning, partial(habit, 0.3, 0.5), 40, 3)),
)
A_B: Final = (
    *(
        Case(
            f"feedback 0.30 → {0.3 + more:.2f}, 50 a day",
            BINARY,
            partial(_pair, partial(binary, 0.3, 50), partial(binary, 0.3 + more, 50)),
            truth=more,
            of_control=0.3,
        )
        for more in (0.03, 0.06, 0.12)
    ),
    Case(
        "feedback 0.02 → 0.04, 100 a day",
        BINARY,
        partial(_pair, partial(binary, 0.02, 100), partial(binary, 0.04, 100)),
        truth=0.02,
        of_control=0.02,
    ),
    *(
        Case(
            f"lognormal (sigma 1), {more:+.0%}, 40 a day",
            NUMBER,
            partial(_pair, partial(lognormal, 1.0, 1.0, 40), partial(lognormal, 1 + more, 1.0, 40)),
            truth=more,
        )
        for more in (-0.1, -0.3)
    ),
    *(
        Case(
            f"units return, {more:+.1f} deviations",
            NUMBER,
            partial(_pair, OPINIONS, partial(returning, partial(opinion, 1.0 + more, 0.5), 40, 3)),
            truth=more,
        )
        for more in (0.4, 0.8)
    ),
)


# -- sample ratio ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Days of 1,000 units each: planned and true share of the arm."""

    name: str
    planned: float
    true: float
    then: float | None = None
    """The share from the eleventh day on, planned and true."""


SPLITS: Final = (
    Split("50/50, as planned", 0.5, 0.5),
    Split("90/10, as planned", 0.1, 0.1),
    Split("50/50, from the 11th day 80/20, as planned", 0.5, 0.5, 0.2),
    Split("52/48, planned 50/50", 0.5, 0.48),
    Split("50/50 planned, 5 % of one arm lost", 0.5, 0.95 / 1.95),
    Split("50/50 planned, 10 % of one arm lost", 0.5, 0.9 / 1.9),
)


def alarms(split: Split, tests: int, days: int, seed: int) -> list[int]:
    """The day of each alarm."""
    tables = {share: binomial(1000, share) for share in (split.true, split.then) if share is not None}
    found = []
    for number in range(tests):
        random = Random(f"{seed} {split.name} {number}")
        periods: list[Period] = []
        for day in range(1, days + 1):
            later = split.then is not None and day > 10
            planned, true = (
                (split.then, split.then) if later and split.then is not None else (split.planned, split.true)
            )
            arm = drawn(tables[true], random)
            if len(periods) == 1 + later:
                before = periods.pop().counts
                counts = {"control": before["control"] + 1000 - arm, "arm": before["arm"] + arm}
            else:
                counts = {"control": 1000 - arm, "arm": arm}
            periods.append(Period({"control": 1 - planned, "arm": planned}, counts))
            if sample_ratio(periods).alarm:
                found.append(day)
                break
    return found


# -- tables ----------------------------------------------------------------------------------------------------------


def main() -> int:
    arguments = _arguments()
    started = time.perf_counter()
    tests, days, seed = arguments.tests, arguments.days, arguments.seed
    with ProcessPoolExecutor(arguments.workers) as pool:
        # the long ones first, so that none is waited for at the end
        cases = [*reversed(A_A), *reversed(A_B)]
        running = {case.name: pool.submit(measure, case, tests, days, seed) for case in cases}
        counting = {split.name: pool.submit(alarms, split, tests, days, seed) for split in SPLITS}
        measured = {name: future.result() for name, future in running.items()}
        counted = {name: future.result() for name, future in counting.items()}
    print(f"{tests:,} experiments of each kind, {days} daily looks, seed {seed}; {describe_machine()}\n")
    print(report(measured, counted, tests))
    print(f"\n{time.perf_counter() - started:.0f} s")
    broken = [name for name, row in measured.items() if max(row.wrong, row.wrong_relative) > 0.05]
    if broken:
        print(f"more than 5 % wrong: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


def report(measured: dict[str, Measured], counted: dict[str, list[int]], tests: int) -> str:
    lines = [
        "**No difference**: how many ever raised a false alarm",
        "",
        "| metric, units in each arm | always-valid | z-test every day | z-test on the last day | nothing said yet |",
        "|---|---|---|---|---|",
    ]
    for case in A_A:
        row = measured[case.name]
        lines.append(
            f"| {case.name} | {row.decided:.1%} | {row.wrong_z:.1%} | {row.z_at_the_end:.1%} "
            f"| {row.silent:.0%} of looks |"
        )
    lines += [
        "",
        "**A difference**: how many had the truth within the interval at every look, and how many found it",
        "",
        (
            "| metric, truth | truth within, always | relative, always | z-test every day | found | wrong sign "
            "| on day (mean) | z-test on the last day |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in A_B:
        row = measured[case.name]
        day = "–" if row.day is None else f"{row.day:.1f}"
        lines.append(
            f"| {case.name} | {1 - row.wrong:.1%} | {1 - row.wrong_relative:.1%} | {1 - row.wrong_z:.1%} "
            f"| {row.decided:.0%} | {row.decided_wrong:.1%} | {day} | {row.z_at_the_end:.0%} |"
        )
    lines += [
        "",
        "**Sample ratio**: how many ever raised an alarm, at 0.1 %, with 1,000 units a day",
        "",
        "| split | alarm | on day (median) |",
        "|---|---|---|",
    ]
    for split in SPLITS:
        found = counted[split.name]
        lines.append(f"| {split.name} | {len(found) / tests:.2%} | {f'{median(found):g}' if found else '–'} |")
    return "\n".join(lines)


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description="How often the statistics of experiments are wrong when they are looked at every day.",
    )
    parser.add_argument("--tests", type=int, default=2000, help="experiments of each kind (2000)")
    parser.add_argument("--days", type=int, default=30, help="looks at each, one a day (30)")
    parser.add_argument("--seed", type=int, default=1, help="another one gives other experiments (1)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (all cores)")
    arguments = parser.parse_args(given)
    if arguments.tests < 1 or arguments.days < 1 or arguments.workers < 1:
        parser.error("--tests, --days and --workers must be at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
