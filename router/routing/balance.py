"""Which target of a route a call goes to, and which come after it. Pure: clock, dice and prices are given.

Targets that lack something the call needs, that rest or are full are left out. The others are put in order:

* those of the gateway's own region, or of the regions the call names in their order, come before all others;
* `ordered`: as in the file;
* `weighted`: drawn by weight without replacement (Efraimidis and Spirakis, "Weighted random sampling with a reservoir",
  Information Processing Letters 97, 2006: the smallest of the exponential draws with the weights as rates comes first);
* `latency`: of two drawn at random the one of lower cost (Mitzenmacher, "The Power of Two Choices in Randomized Load
  Balancing", 2001), the others by their cost. A cost is (first token + duration) × (attempts under way + 1), times as
  peak-EWMA in seconds, as Finagle does with one time of a whole answer
  (https://twitter.github.io/finagle/guide/Clients.html, "Power of Two Choices + Peak EWMA");
* `cost`: what the call is expected to cost, the cheapest first.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from router.call import Skipped
from router.health import Standing
from router.money import NANO
from router.provider import Target
from router.route import Balance
from router.routing.candidates import Candidate, Choice, Needs
from router.routing.needs import lacks

_PENALTY: Final = 1e9
"""The cost, in seconds, of a target of which nothing is known while a first attempt finds it out: Finagle's too."""

Price: TypeAlias = Callable[[Target], int | None]
"""Expected nano-units of one currency, the same for all targets; None: not known."""
_Pairs: TypeAlias = list[tuple[Candidate, Standing]]


def choose(
    candidates: Sequence[Candidate],
    needs: Needs,
    *,
    balance: Balance,
    standing: Callable[[Target], Standing],
    now: float,
    draw: random.Random,
    price: Price | None = None,
    home: str | None = None,
    currency: str = "",
) -> Choice:
    """The candidates that may be tried, the best first. `now` is of the clock of `standing`; `currency` names that of
    `price`.

    When every one that could serve the call rests, the one that is free soonest is tried alone.
    """
    skipped: list[Skipped] = []
    ready: _Pairs = []
    resting: _Pairs = []
    full = 0
    for each in candidates:
        lack = lacks(each, needs)
        if lack is not None:
            skipped.append(Skipped(each.target, lack))
            continue
        stands = standing(each.target)
        if each.max_parallel is not None and stands.running >= each.max_parallel:
            full += 1
            skipped.append(Skipped(each.target, f"full: {stands.running} of {each.max_parallel} calls at once"))
        elif rests(stands, now):
            resting.append((each, stands))
        else:
            ready.append((each, stands))
    if ready or full:
        skipped += [Skipped(each.target, resting_words(stands, now)) for each, stands in resting]
    if ready:
        ordered, why = _ordered(ready, balance, draw, price, currency, _nearness(needs.regions, home))
        return Choice(tuple(ordered), tuple(skipped), why)
    if full:
        return Choice((), tuple(skipped), "every target that could serve it is full or rests", full=True)
    if not resting:
        return Choice((), tuple(skipped), "no target can serve it")
    soonest, stands = min(resting, key=lambda pair: pair[1].free_at or now)
    skipped += [Skipped(each.target, resting_words(other, now)) for each, other in resting if each is not soonest]
    return Choice(
        (soonest,), tuple(skipped), f"all targets rest: {soonest.target} is free soonest ({resting_words(stands, now)})"
    )


# -- who may be tried ----------------------------------------------------------------------------------------------


def rests(stands: Standing, now: float) -> bool:
    """Whether the target is not to be tried now."""
    if stands.free_at is not None:
        return stands.free_at > now
    return stands.state == "open"


def resting_words(stands: Standing, now: float) -> str:
    left = f" {math.ceil(stands.free_at - now)} s more" if stands.free_at is not None else ""
    return f"resting{left}, as its vendor asked" if stands.state == "closed" else f"resting{left} after failures"


# -- the order -----------------------------------------------------------------------------------------------------


def _nearness(regions: tuple[str, ...], home: str | None) -> Callable[[Candidate], int] | None:
    """How near a candidate is, the nearest 0; None: all alike."""
    if len(regions) > 1:
        return lambda each: regions.index(each.region) if each.region in regions else len(regions)
    if home is not None and not regions:
        return lambda each: each.region != home
    return None


def _ordered(
    ready: _Pairs,
    balance: Balance,
    draw: random.Random,
    price: Price | None,
    currency: str,
    nearness: Callable[[Candidate], int] | None,
) -> tuple[list[Candidate], str]:
    if len(ready) == 1:
        return [ready[0][0]], "the only one of the route that can serve it now"
    if nearness is None:
        return _balanced(ready, balance, draw, price, currency)
    groups: dict[tuple[bool, int], _Pairs] = {}
    for pair in ready:
        # a weight of 0 means: only when the others fail, wherever they are
        last = balance == "weighted" and not pair[0].weight
        groups.setdefault((last, nearness(pair[0])), []).append(pair)
    parts = [_balanced(groups[group], balance, draw, price, currency) for group in sorted(groups)]
    ordered = [each for some, _ in parts for each in some]
    why = parts[0][1]
    if len(groups) > 1 and nearness(ordered[0]) == 0:
        why += f", of those in the region {ordered[0].region}"
    return ordered, why


def _balanced(
    ready: _Pairs, balance: Balance, draw: random.Random, price: Price | None, currency: str
) -> tuple[list[Candidate], str]:
    if len(ready) == 1:
        return [ready[0][0]], "the only one"
    match balance:
        case "ordered":
            return [each for each, _ in ready], "the first of the route that can serve it"
        case "weighted":
            return _by_weight(ready, draw)
        case "latency":
            return _by_latency(ready, draw)
        case "cost":
            return _by_cost(ready, price, currency)


def _by_weight(ready: _Pairs, draw: random.Random) -> tuple[list[Candidate], str]:
    drawn: list[tuple[float, int]] = []
    for n, (each, _) in enumerate(ready):
        # one draw for each, whatever its weight: the same dice give the same order
        spin = -math.log(1.0 - draw.random())
        drawn.append((spin / each.weight if each.weight else math.inf, n))
    drawn.sort()
    ordered = [ready[n][0] for _, n in drawn]
    first = ordered[0]
    if not first.weight:
        return ordered, "weighted: only targets of weight 0 are left"
    total = sum([each.weight for each in ordered])
    return ordered, f"weighted: drew {first.target} (weight {first.weight:g} of {total:g})"


def _by_latency(ready: _Pairs, draw: random.Random) -> tuple[list[Candidate], str]:
    costs = [(_latency(stands), n) for n, (_, stands) in enumerate(ready)]
    places = [n for _, n in sorted(costs)]
    for n, (each, stands) in enumerate(ready):
        if stands.state != "closed" and each.weight:
            # it would hardly be chosen for what it was when it fell ill, and so never be found well
            places.remove(n)
            return [each, *(ready[place][0] for place in places)], f"{each.target} is tried again after failures"
    one, other = int(draw.random() * len(ready)), int(draw.random() * (len(ready) - 1))
    other += other >= one
    first, last = (other, one) if costs[other][0] < costs[one][0] else (one, other)
    places.remove(first)
    why = f"latency: {_shown(costs[first][0])} against {_shown(costs[last][0])} of {ready[last][0].target}"
    return [ready[first][0], *(ready[place][0] for place in places)], why


def _latency(stands: Standing) -> float:
    """What one more call costs there, in seconds."""
    if stands.first_token is None and stands.duration is None:
        # tried when nobody else is trying it: a cold start sends it one call, not all
        return _PENALTY + stands.running if stands.running else 0.0
    return ((stands.first_token or 0.0) + (stands.duration or 0.0)) * (stands.running + 1)


def _shown(cost: float) -> str:
    return "not yet known" if cost == 0.0 or cost >= _PENALTY else f"{cost:.2f} s"


def _by_cost(ready: _Pairs, price: Price | None, currency: str) -> tuple[list[Candidate], str]:
    priced: list[tuple[float, int]] = []
    for n, (each, _) in enumerate(ready):
        nano = None if price is None else price(each.target)
        priced.append((math.inf if nano is None else nano, n))
    priced.sort()
    ordered = [ready[n][0] for _, n in priced]
    least = priced[0][0]
    if least == math.inf:
        return ordered, "cost: no price is known, so the first of the route that can serve it"
    return ordered, f"cheapest: {least / NANO:.6f}{f' {currency}' if currency else ''} expected"
