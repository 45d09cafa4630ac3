"""What an experiment says today, in words for people who decide and do not calculate. Pure."""

import math
from collections.abc import Mapping
from typing import Final

from router.experiments.statistics import LEAST_UNITS, Comparison, Interval

_OWN: Final[Mapping[str, tuple[str, str, str, str]]] = {
    "cost": ("costs ", "less", "more", " a call"),
    "duration": ("takes ", "less", "more", " time"),
    "first_token": ("begins to answer ", "sooner", "later", ""),
    "tokens_per_second": ("writes ", "slower", "faster", ""),
}
"""Metric → verb, a word for lower, one for higher, and what follows it."""


def sentence(units: int, arm: str, control: str, comparisons: Mapping[str, Comparison]) -> str:
    """All metrics of one arm: `After 1,240 units: …; ….` Metrics by name, in the order they are to be told."""
    parts = [clause(metric, arm, control, comparison) for metric, comparison in comparisons.items()]
    return f"After {units:,} unit{'' if units == 1 else 's'}: {'; '.join(parts) or 'nothing is measured'}."


def clause(metric: str, arm: str, control: str, comparison: Comparison) -> str:
    """One metric of one arm."""
    match comparison.verdict:
        case "too_early":
            return f"{metric}: nothing can be said yet, {_lack(arm, control, comparison)}"
        case "undecided":
            return f"{metric}: no difference between `{arm}` and `{control}` is certain yet ({_range(comparison)})"
        case verdict:
            return _decided(metric, arm, control, comparison, verdict)


def _decided(metric: str, arm: str, control: str, comparison: Comparison, verdict: str) -> str:
    if metric in _OWN and comparison.relative is not None and comparison.relative_interval is not None:
        verb, lower, higher, after = _OWN[metric]
        word = higher if comparison.relative > 0 else lower
        inside = _span(comparison.relative_interval, 100, " %", lower, higher)
        return f"`{arm}` {verb}{number(abs(comparison.relative) * 100)} % {word}{after} than `{control}` ({inside})"
    if metric == "errors":
        often = "more" if (comparison.difference or 0) > 0 else "less"
        inside = _span(comparison.interval or Interval(0, 0), 100, " points", "less", "more")
        return f"`{arm}` fails {often} often than `{control}`, {_values(comparison)} ({inside})"
    return f"{metric}: `{arm}` is {verdict} than `{control}`, {_values(comparison)} ({_range(comparison)})"


def _lack(arm: str, control: str, comparison: Comparison) -> str:
    match comparison.lack:
        case "events":
            return "one of the two answers is too rare so far"
        case "spread":
            return "all values are the same so far"
        case _:
            counts = f"{comparison.arm.units:,} in `{arm}`, {comparison.control.units:,} in `{control}`"
            return f"too few units ({counts}; it takes {LEAST_UNITS} of equal weight in each)"


def _values(comparison: Comparison) -> str:
    scale, unit = (100, " %") if comparison.metric.kind == "binary" else (1, "")
    arm, control = comparison.arm.value or 0, comparison.control.value or 0
    return f"{number(arm * scale)}{unit} against {number(control * scale)}{unit}"


def _range(comparison: Comparison) -> str:
    """Binary metrics in percentage points; numbers in per cent of control's value, or plain where that may be zero."""
    if comparison.metric.kind != "binary" and comparison.relative_interval is not None:
        return _span(comparison.relative_interval, 100, " %")
    interval = comparison.interval or Interval(0, 0)
    return _span(interval, *((100, " points") if comparison.metric.kind == "binary" else (1, "")))


def _span(interval: Interval, scale: float, unit: str, lower: str = "lower", higher: str = "higher") -> str:
    low, high = interval.low * scale, interval.high * scale
    if low < 0 < high:
        return f"between {number(-low)}{unit} {lower} and {number(high)}{unit} {higher}"
    near, far = sorted((abs(low), abs(high)))
    # `24 % and 38 %`, but `2.1 and 11 points`
    first = f"{number(near)}{unit}" if unit == " %" else number(near)
    return f"between {first} and {number(far)}{unit} {higher if high > 0 else lower}"


def number(value: float) -> str:
    """Two significant digits where it is below 100, whole above: `0.0024`, `3.1`, `31`, `1,240`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text
