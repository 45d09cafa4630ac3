"""DashScope's errors, classified by their code, and only where there is none by their status.

Sources: Alibaba's error code page. Two codes mean something else than elsewhere: an account in arrears answers 400
`Arrearage`, and `insufficient_quota` is a limit of tokens a minute, gone in a moment.
"""

import re
from collections.abc import Mapping
from typing import Final

from router.errors import (
    ContentFiltered,
    ContextTooLong,
    ProviderError,
    RateLimited,
    Rejected,
    TimedOut,
    Unsupported,
    VendorAuthFailed,
    VendorFailed,
    VendorModelForbidden,
    VendorModelUnknown,
    VendorOverloaded,
    VendorQuotaExhausted,
)
from router.wire.unsupported import says_unsupported
from router.wire.vendor_error import VendorMessage, retry_after, should_retry, without_key

# Beginnings of codes in lower case; the first that fits counts.
_CODES: Final[tuple[tuple[str, type[ProviderError]], ...]] = (
    ("datainspectionfailed", ContentFiltered),
    ("data_inspection_failed", ContentFiltered),
    ("content_filter", ContentFiltered),
    ("arrearage", VendorQuotaExhausted),
    ("allocationquota.freetieronly", VendorQuotaExhausted),
    ("prepaidbilloverdue", VendorQuotaExhausted),
    ("postpaidbilloverdue", VendorQuotaExhausted),
    ("commoditynotpurchased", VendorQuotaExhausted),
    ("invalidapikey", VendorAuthFailed),
    ("invalid_api_key", VendorAuthFailed),
    ("notauthorized", VendorAuthFailed),
    ("not authorized", VendorAuthFailed),
    ("accessdenied", VendorModelForbidden),
    ("access_denied", VendorModelForbidden),
    ("model.accessdenied", VendorModelForbidden),
    ("workspace.accessdenied", VendorModelForbidden),
    ("modelnotfound", VendorModelUnknown),
    ("model.notexist", VendorModelUnknown),
    ("model_not_found", VendorModelUnknown),
    ("throttling", RateLimited),
    ("limit_", RateLimited),
    ("rate_limit", RateLimited),
    ("limitrequests", RateLimited),
    ("insufficient_quota", RateLimited),
    ("requesttimeout", TimedOut),
    ("gatewaytimeout", TimedOut),
    ("modelunavailable", VendorOverloaded),
    ("serviceunavailable", VendorOverloaded),
    ("internalerror.algo.invalidparameter", Rejected),
    ("internalerror.algo.datainspectionfailed", ContentFiltered),
    ("internalerror", VendorFailed),
    ("internal_error", VendorFailed),
    ("modelserving", VendorFailed),
    ("invalidparameter", Rejected),
    ("invalid_parameter", Rejected),
    ("invalid_request", Rejected),
    ("badrequest", Rejected),
    ("invalidurl", Rejected),
    ("unsupportedoperation", Unsupported),
)

_STATUSES: Final[dict[int, type[ProviderError]]] = {
    401: VendorAuthFailed,
    402: VendorQuotaExhausted,
    403: VendorModelForbidden,
    404: VendorModelUnknown,
    408: TimedOut,
    429: RateLimited,
    503: VendorOverloaded,
    504: TimedOut,
}

# "<400> InternalError.Algo.InvalidParameter: Range of input length should be …": the model server's own words
_INNER: Final = re.compile(r"<(\d{3})>\s*(InternalError\.Algo\.\w+)")
_TOO_LONG: Final = re.compile(r"input length|context length|maximum context", re.I)

URL_ERROR: Final = "url error"
"""What a model that is bound to the other service path answers ("url error, please check url!")."""

_STREAM_ONLY: Final = re.compile(
    r"only support(s|ed)? stream|enable_thinking must be set to false for non-streaming|support(s)? stream mode only",
    re.I,
)
_STRING_ONLY: Final = re.compile(r"content must be a string", re.I)


def classify(
    said: VendorMessage,
    status: int,
    *,
    source: str,
    headers: Mapping[str, str] | None = None,
    key: str | None = None,
) -> ProviderError:
    """The error for what the vendor said. `status` is the true one, also for an error within a 200.

    `key` is our own, which vendors quote.
    """
    headers = headers or {}
    said = without_key(said, key)
    kind = _kind(said, status)
    answered = "answered, our key there may not use this" if kind is VendorModelForbidden else "answered"
    return kind(
        f"`{source}` {answered}: {said.message}",
        retry_after=_wait(said, headers, kind),
        vendor_status=status,
        vendor_code=said.code,
        vendor_request_id=said.request_id or headers.get("x-request-id"),
        vendor_retry=should_retry(headers),
    )


def _wait(said: VendorMessage, headers: Mapping[str, str], kind: type[ProviderError]) -> float | None:
    return retry_after(headers, said.message, said.body, limited=kind is RateLimited) if kind.retryable else None


def _kind(said: VendorMessage, status: int) -> type[ProviderError]:
    inner = _INNER.search(said.message)
    kind = (inner and _by_code(inner[2])) or _by_code(said.code)
    if inner is not None and kind is VendorFailed:
        # the model server's own status says more than "internal error"
        kind = _by_status(int(inner[1]))
    # the types of OpenAI's shape are coarse, `invalid_request_error` comes with a 401 too
    kind = kind or _STATUSES.get(status) or _by_code(said.type) or _by_status(status)
    if kind is not Rejected:
        return kind
    if _TOO_LONG.search(said.message):
        return ContextTooLong
    return Unsupported if says_unsupported(said.message) else Rejected


def _by_code(code: str | None) -> type[ProviderError] | None:
    word = (code or "").lower()
    return next((kind for start, kind in _CODES if word.startswith(start)), None)


def _by_status(status: int) -> type[ProviderError]:
    return _STATUSES.get(status) or (Rejected if 400 <= status < 500 else VendorFailed)


def says_other_path(error: ProviderError) -> bool:
    return isinstance(error, Rejected | VendorModelUnknown) and URL_ERROR in error.message.lower()


def says_stream_only(error: ProviderError) -> bool:
    return isinstance(error, Rejected) and _STREAM_ONLY.search(error.message) is not None


def says_string_only(error: ProviderError) -> bool:
    return isinstance(error, Rejected) and _STRING_ONLY.search(error.message) is not None
