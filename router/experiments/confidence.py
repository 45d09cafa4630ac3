"""A bound on a running estimate that holds at every look: Robbins' normal mixture. Knows no arm and no metric.

For a standard Brownian motion B and any r > 0, the mean of exp(kB(t) - k²t/2) over k ~ Normal(0, r) is a martingale
that begins at 1, so by Ville's inequality it ever reaches 1/alpha with probability alpha at most (H. Robbins,
"Statistical methods related to the law of the iterated logarithm", Annals of Mathematical Statistics 41, 1970). Solved
for B: |B(t)| < sqrt(t) * multiplier(r * t, alpha) at all times. That the mean of independent values follows it with an
estimated variance, asymptotically, is due to I. Waudby-Smith, D. Arbour, R. Sinha, E. H. Kennedy and A. Ramdas,
"Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics 52, 2024,
arXiv:2103.06476.
"""

import math


def multiplier(clock: float, alpha: float) -> float:
    """How many standard errors the estimate may be off, at every look, with probability 1 - alpha.

    `clock` is the time of the process so far, through the time for which it is tuned; see `tuned`.
    """
    return math.sqrt((1 + 1 / clock) * (math.log1p(clock) - 2 * math.log(alpha)))


def always_valid_p(z: float, clock: float) -> float:
    """The least alpha at which `multiplier(clock, alpha)` standard errors do not reach `z`; 1 at most.

    Under the null, it is ever at or below alpha with probability alpha at most, whenever one stops.
    """
    return math.exp(min(0.0, (math.log1p(clock) - z * z * clock / (1 + clock)) / 2))


def tuned(alpha: float) -> float:
    """The clock at which `multiplier` is least: the solution of c = log(1 + c) - 2 log(alpha)."""
    least = -2 * math.log(alpha)
    clock = least
    # the map shrinks distances by 1 / (1 + c) < 1, and c > 0 as alpha < 1
    for _ in range(60):
        clock = math.log1p(clock) + least
    return clock
