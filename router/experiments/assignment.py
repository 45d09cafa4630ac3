"""Who is in which arm: a pure function of an experiment's salt and of what is assigned, the same on every replica.

Every decision about a unit is a number of its own, drawn from a hash of the unit: whether it is in yet (ramp), whether
it is held out, and one for each arm. So none depends on another, on other units, or on the order in which they came.

An arm is chosen by weighted rendezvous hashing (Thaler and Ravishankar, A Name-Based Mapping Scheme for Rendezvous,
1996; the logarithm is Schindelhauer's and Schomaker's, Weighted Distributed Hash Tables, 2005): the unit's number for
an arm, in (0, 1), becomes the score −ln(number) / share, and the lowest score wins. Such scores are exponential
variables whose rates are the shares, so each arm wins with the probability of its share. When shares change,

- a unit moves only to an arm whose share has grown in proportion to that of its own arm;
- of two arms exactly the difference of the shares moves, and so it is when an arm is added or removed and the others
  keep their proportions: nothing could move less;
- of more arms at most 2d / (1 + d) moves, where d is half the sum of the differences. Some rule may do better for one
  change, but no rule that sees nothing but the present shares does better for all of them (Bavarian and others,
  Optimality of Correlated Sampling Strategies, arXiv 1612.01041; Daliri, Musco and Suresh, arXiv 2408.07978).
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Final

from router.experiment import Experiment, ExperimentState, Unit

_BITS: Final = 53
"""What a float can hold exactly."""


def unit_hash(salt: str, kind: Unit, unit: str) -> str:
    """32 hexadecimal digits: the first half of the SHA-256 of salt, kind and unit, in UTF-8 with a zero byte between
    them."""
    # JSON may bring half of a surrogate pair
    told = "\0".join((salt, kind, unit)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(told).hexdigest()[:32]


def draw(unit: str, purpose: str) -> float:
    """A number in (0, 1) for a unit's hash: uniform over units, and independent of its numbers for other purposes."""
    digest = hashlib.sha256(f"{unit}\0{purpose}".encode()).digest()
    return ((int.from_bytes(digest[:8], "big") >> (64 - _BITS)) + 0.5) / (1 << _BITS)


def arm_of(shares: Mapping[str, float], unit: str) -> str:
    """The arm of a unit's hash. Shares need not make 100; one of them is above 0."""
    best, lowest = "", math.inf
    for arm, share in shares.items():
        if share > 0:
            score = -math.log(draw(unit, f"arm {arm}")) / share
            if score < lowest:
                best, lowest = arm, score
    return best


def is_held_out(experiment: Experiment, unit: str) -> bool:
    """Whether the unit is kept out for good. Who is held out at 5 per cent also is at 10."""
    return experiment.holdout > 0 and draw(unit, "holdout") < experiment.holdout / 100


def included(experiment: Experiment, at: int) -> float:
    """The part of the units that is in at that time (Unix milliseconds), from 0 to 1. Never shrinks."""
    ramp = experiment.ramp
    if ramp is None or experiment.start is None:
        return 1.0
    done = (at - experiment.start) / (float(ramp.over) * 1000)
    return min(1.0, max(0.0, ramp.begin / 100 + (1 - ramp.begin / 100) * done))


def is_included(experiment: Experiment, unit: str, at: int) -> bool:
    """Whether the ramp has come to the unit. Who is in stays in, and in the same arm."""
    part = included(experiment, at)
    return part >= 1 or draw(unit, "ramp") < part


def is_shadowed(experiment: Experiment, call_id: str) -> bool:
    """Whether the lot to be repeated in the background falls on the call, whatever arm its unit is in."""
    shadow = experiment.shadow
    return shadow is not None and draw(unit_hash(experiment.salt, "request", call_id), "shadow") < shadow.share / 100


def shares_in_force(experiment: Experiment, state: ExperimentState) -> dict[str, float]:
    """The shares by which arms are chosen: those that were adapted, if they still are to be, for the arms there are."""
    written = {arm.name: arm.share for arm in experiment.arms}
    adapted = None if experiment.adapt is None else state.shares
    if adapted is None or adapted.keys() != written.keys() or not any(share > 0 for share in adapted.values()):
        return written
    return {name: adapted[name] for name in written}


def assigned_arm(experiment: Experiment, shares: Mapping[str, float], state: ExperimentState, unit: str) -> str:
    """The arm of a unit's hash, or control when its arm was stopped: nobody else moves."""
    arm = arm_of(shares, unit)
    return experiment.control if arm in state.stopped else arm


def expected_shares(experiment: Experiment, state: ExperimentState) -> dict[str, float]:
    """The part of the units, in per cent, that each arm gets: what was stopped has gone to control."""
    found = shares_in_force(experiment, state)
    for arm in state.stopped:
        if arm in found and arm != experiment.control:
            found[experiment.control] = found.get(experiment.control, 0.0) + found[arm]
            found[arm] = 0.0
    return found


def expected_moves(old: Mapping[str, float], new: Mapping[str, float]) -> float:
    """The part of the units, from 0 to 1, that another choice of shares moves to another arm.

    One less the probability that the same arm wins both times: the sum over the arms of 1 / Σ max(old_j / old_i,
    new_j / new_i) (Moulton and Jiang, Maximally Consistent Sampling and the Jaccard Index of Probability Distributions,
    arXiv 1809.04052).
    """
    arms = old.keys() | new.keys()
    stay = 0.0
    for arm in arms:
        before, after = old.get(arm, 0.0), new.get(arm, 0.0)
        if before > 0 and after > 0:
            stay += 1 / math.fsum(max(old.get(each, 0.0) / before, new.get(each, 0.0) / after) for each in arms)
    return max(0.0, 1 - stay)
