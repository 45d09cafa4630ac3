"""What follows a failed attempt: nothing, another key, another target, or the same one after a wait. Pure.

Errors are told apart by what another attempt could change:

* the vendor is ill, or too busy (`VendorFailed`, `Unreachable`, `TimedOut`, `RateLimited`, …): another target first,
  then the same again after its `retry-after` or a back-off with full jitter (Brooker, "Exponential Backoff And Jitter",
  AWS Architecture Blog, 2015);
* our key there is refused or empty: another key of the provider, then another target, never the same;
* the model is not there: another target;
* the request does not fit the target (too long, filtered, a feature it has not): the targets of that fallback class;
* the request is wrong: nobody else would take it.

How many extra attempts there may be in all is a `RetryBudget`'s matter: a brown-out is not to be amplified.
"""

import random
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from router.errors import (
    ContentFiltered,
    ContextTooLong,
    InvalidRequest,
    Overloaded,
    ProviderError,
    RateLimited,
    RouterError,
    Unsupported,
    VendorAuthFailed,
    VendorModelUnknown,
    VendorQuotaExhausted,
)
from router.route import FallbackClass, Retry
from router.routing.candidates import Candidate

Remedy: TypeAlias = Literal["none", "elsewhere", "anywhere"]
"""Where another attempt may help: nowhere, at another target, or at the same too."""

_BURST: Final = 10.0
"""Seconds of `reserve` that may be saved up."""


def remedy(error: RouterError) -> Remedy:
    """Where another attempt at the same request may help."""
    if isinstance(error, Overloaded):
        return "anywhere"
    if not isinstance(error, ProviderError):
        return "none"
    if isinstance(error, VendorAuthFailed | VendorQuotaExhausted | VendorModelUnknown):
        return "elsewhere"
    if not error.retryable:
        return "none"
    return "elsewhere" if error.vendor_retry is False else "anywhere"


def fallback_class(error: RouterError) -> FallbackClass | None:
    """Why the request does not fit the target, though it is not wrong; None for any other failure."""
    if isinstance(error, ContextTooLong):
        return "context_length"
    if isinstance(error, ContentFiltered):
        return "content_filter"
    # what an adapter cannot say in its vendor's words, another may
    return "unsupported" if isinstance(error, Unsupported | InvalidRequest) else None


def fitting(kind: FallbackClass, failed: Candidate, remaining: Sequence[Candidate]) -> list[Candidate]:
    """Which of the route's own targets may take what `failed` could not, where no fallback is written."""
    if kind == "unsupported":
        return list(remaining)
    if kind == "content_filter":
        # whether an answer that one vendor refuses may come from another is for the operator to say
        return []
    had = failed.can.context
    return [each for each in remaining if each.can.context is not None and (had is None or each.can.context > had)]


def wait_before(retry: Retry, error: RouterError, tries: int, draw: random.Random) -> float | None:
    """Seconds to wait before the same target is tried again after `tries` attempts; None: longer than is waited."""
    if error.retry_after is None:
        return min(draw.uniform(0, retry.backoff * 2 ** (tries - 1)), retry.max_wait)
    if error.retry_after > retry.max_wait:
        return None
    # a little more, and not all at the same moment
    return error.retry_after + draw.uniform(0, min(1.0, retry.backoff))


def is_final(error: RouterError) -> bool:
    """Whether the client is told at once, as nobody else may be asked."""
    return remedy(error) == "none" and fallback_class(error) in (None, "content_filter")


def is_the_keys(error: RouterError) -> bool:
    """Whether another key of the same provider may fare better."""
    return isinstance(error, VendorAuthFailed | VendorQuotaExhausted | RateLimited)


def telling(errors: Sequence[RouterError]) -> RouterError:
    """Which of a call's failures its client is told: the last one that may pass, so that it can try again later, or
    the last."""
    return next((error for error in reversed(errors) if error.retryable), errors[-1])


class RetryBudget:
    """Extra attempts (retries, fallbacks, hedges) that a route may make: `share` of its calls, and `reserve` a second.

    A token bucket as Finagle's `RetryBudget` (https://twitter.github.io/finagle/guide/Clients.html#retries). Times are
    seconds of any clock that goes forward.
    """

    __slots__ = ("_at", "_most", "_most_saved", "_reserve", "_saved", "_share", "_tokens")

    def __init__(self, share: float, reserve: float, saved: float = 0.0) -> None:
        """`saved`: extra attempts that may be made at once."""
        self._share = share
        self._reserve = reserve
        self._most_saved = max(reserve * _BURST, 1.0) if reserve else 0.0
        self._saved = self._most_saved
        """What flows in with time, up to a bound."""
        self._most = max(100.0 * share, 1.0)
        self._tokens = saved
        """What calls have put in."""
        self._at: float | None = None

    def deposit(self) -> None:
        """A call has begun."""
        self._tokens = min(self._tokens + self._share, self._most)

    def withdraw(self, now: float) -> bool:
        """Whether one extra attempt may be made; it is then counted."""
        if self._at is not None:
            self._saved = min(self._saved + (now - self._at) * self._reserve, self._most_saved)
        self._at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
        elif self._saved >= 1.0:
            self._saved -= 1.0
        else:
            return False
        return True
