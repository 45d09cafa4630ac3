"""Everything that can go wrong, as one small tree.

::

    RouterError
    ├── RequestError                 the caller can mend it
    │   ├── InvalidRequest           400  the body or a header is wrong (`param` names the place)
    │   ├── AuthenticationFailed     401  no key, or a wrong one
    │   ├── PermissionDenied         403  the key may not do this
    │   ├── UnknownModel             404  no such route or provider/model
    │   ├── NotFound                 404  no such path or object
    │   ├── MethodNotAllowed         405
    │   ├── Conflict                 409  it stands against what is there now: look again, then decide
    │   ├── Gone                     410  it was there, and is not any more
    │   ├── BodyTooLarge             413
    │   ├── HeadersTooLarge          431
    │   ├── LimitReached             429  a limit of the caller's own: wait, as `retry_after` says
    │   ├── BudgetSpent              402  a budget does not allow the call, or stopped it
    │   ├── NotCached                504  an answer from the cache alone was wanted, and there is none
    │   ├── Stopped                  499  somebody who may asked that the answer be stopped
    │   └── ClientGone               499  the caller left; never written to anybody
    ├── GatewayError                 we can mend it
    │   ├── ProviderUnavailable      503  the provider's key is not set
    │   ├── Overloaded               503  our own limit of parallel calls to a provider
    │   ├── ShuttingDown             503
    │   ├── StoreUnavailable         503  what must be read or recorded cannot be
    │   ├── Interrupted              503  the process that wrote the answer has died
    │   ├── PriceUnknown             503  the call may not be made at an unknown price
    │   └── InternalError            500
    └── ProviderError                the vendor's answer, or the lack of one
        ├── Rejected                 400  the vendor refuses the request
        │   ├── ContextTooLong       400
        │   ├── ContentFiltered      400
        │   ├── Unsupported          400  a feature that this model or vendor has not
        │   └── VendorModelUnknown   404
    │       └── VendorModelForbidden  502  our key there may not use the model
        ├── VendorAuthFailed         502  the vendor refuses our key
        ├── VendorQuotaExhausted     502  our account there is empty or in arrears
        ├── RateLimited              429
        ├── VendorOverloaded         503
        ├── VendorFailed             502  any other 5xx, or an error inside a 200
        ├── Unreachable              502  refused, reset, no such host, TLS
        ├── TimedOut                 504  connect, first token, idle or total deadline
        ├── ProtocolViolated         502  not what the protocol says: HTML, truncated JSON, an endless line
        └── StreamCut                502  the stream ended before the answer did

A class says everything about its error: HTTP status, `kind` for programs, whether another try may help, how loud
to log. Instances add the public message and details. Dialects render errors, they never switch on the class.
"""

from typing import ClassVar, Final, Literal, TypeAlias

Level: TypeAlias = Literal["info", "warning", "error"]
Kind: TypeAlias = Literal[
    "invalid_request",
    "authentication",
    "permission",
    "not_found",
    "conflict",
    "too_large",
    "client_gone",
    "stopped",
    "rate_limit",
    "budget",
    "unavailable",
    "overloaded",
    "timeout",
    "upstream",
    "internal",
]


class RouterError(Exception):
    """One failure of one call. `message` is public: it never holds a key or a prompt, and says what to do.

    `code` is a stable word for programs, `param` the place in the request body (`$.messages[0].content`),
    `retry_after` seconds to wait before another try.
    """

    status: ClassVar[int] = 500
    kind: ClassVar[Kind] = "internal"
    code: str = "internal_error"
    retryable: ClassVar[bool] = False
    level: ClassVar[Level] = "error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.param = param
        self.retry_after = retry_after


class RequestError(RouterError):
    status = 400
    kind: ClassVar[Kind] = "invalid_request"
    code = "invalid_request"
    level = "info"


class InvalidRequest(RequestError):
    code = "invalid_value"


class AuthenticationFailed(RequestError):
    status = 401
    kind = "authentication"
    code = "invalid_api_key"


class PermissionDenied(RequestError):
    status = 403
    kind = "permission"
    code = "permission_denied"


class UnknownModel(RequestError):
    status = 404
    kind = "not_found"
    code = "model_not_found"


class NotFound(RequestError):
    status = 404
    kind = "not_found"
    code = "not_found"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"


class Conflict(RequestError):
    status = 409
    kind = "conflict"
    code = "conflict"


class Gone(RequestError):
    status = 410
    kind = "not_found"
    code = "gone"


class BodyTooLarge(RequestError):
    status = 413
    kind = "too_large"
    code = "request_too_large"


class HeadersTooLarge(RequestError):
    status = 431
    kind = "too_large"
    code = "headers_too_large"


class LimitReached(RequestError):
    status = 429
    kind = "rate_limit"
    code = "rate_limit_exceeded"
    retryable = True


class BudgetSpent(RequestError):
    """`retry_after` is when the budget's period ends, if it does."""

    status = 402
    kind = "budget"
    code = "budget_exceeded"


class NotCached(RequestError):
    status = 504
    kind = "not_found"
    code = "not_cached"


class Stopped(RequestError):
    status = 499
    kind = "stopped"
    code = "stopped"


class ClientGone(RequestError):
    status = 499
    kind = "client_gone"
    code = "client_gone"


class GatewayError(RouterError):
    pass


class ProviderUnavailable(GatewayError):
    status = 503
    kind = "unavailable"
    code = "provider_unavailable"
    level = "warning"


class Overloaded(GatewayError):
    status = 503
    kind = "overloaded"
    code = "gateway_overloaded"
    retryable = True
    level = "warning"


class ShuttingDown(GatewayError):
    status = 503
    kind = "unavailable"
    code = "shutting_down"
    retryable = True
    level = "warning"


class StoreUnavailable(GatewayError):
    status = 503
    kind = "unavailable"
    code = "store_unavailable"
    retryable = True


class Interrupted(GatewayError):
    status = 503
    kind = "unavailable"
    code = "interrupted"
    retryable = True
    level = "warning"


class PriceUnknown(GatewayError):
    status = 503
    kind = "unavailable"
    code = "price_unknown"
    level = "warning"


class InternalError(GatewayError):
    pass


class ProviderError(RouterError):
    """A vendor's failure. `vendor_*` are for logs and receipts; `message` quotes the vendor, shortened.

    `vendor_retry`: what the vendor itself says of another try at it (`x-should-retry`), if it does.
    """

    status = 502
    kind: ClassVar[Kind] = "upstream"
    code = "upstream_error"
    level: ClassVar[Level] = "warning"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        vendor_status: int | None = None,
        vendor_code: str | None = None,
        vendor_request_id: str | None = None,
        vendor_retry: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, param=param, retry_after=retry_after)
        self.vendor_status = vendor_status
        self.vendor_code = vendor_code
        self.vendor_request_id = vendor_request_id
        self.vendor_retry = vendor_retry


class Rejected(ProviderError):
    status = 400
    kind: ClassVar[Kind] = "invalid_request"
    code = "invalid_request"
    level: ClassVar[Level] = "info"


class ContextTooLong(Rejected):
    code = "context_length_exceeded"


class ContentFiltered(Rejected):
    code = "content_filter"


class Unsupported(Rejected):
    code = "unsupported"


class VendorModelUnknown(Rejected):
    status = 404
    kind: ClassVar[Kind] = "not_found"
    code = "model_not_found"


class VendorModelForbidden(VendorModelUnknown):
    """As good as none for us: the vendor refuses this model to our key, which may be good for others."""

    status = 502
    kind = "upstream"
    code = "provider_permission_denied"
    level = "warning"


class VendorAuthFailed(ProviderError):
    code = "provider_authentication_failed"
    level = "error"


class VendorQuotaExhausted(ProviderError):
    code = "provider_quota_exhausted"
    level = "error"


class RateLimited(ProviderError):
    status = 429
    kind = "rate_limit"
    code = "rate_limit_exceeded"
    retryable = True


class VendorOverloaded(ProviderError):
    status = 503
    kind = "overloaded"
    code = "provider_overloaded"
    retryable = True


class VendorFailed(ProviderError):
    retryable = True


STALE: Final = "stale_connection"
"""Code of an `Unreachable` whose request cannot have reached the vendor: a kept connection had died."""


class Unreachable(ProviderError):
    code = "provider_unreachable"
    retryable = True


class TimedOut(ProviderError):
    status = 504
    kind = "timeout"
    code = "provider_timeout"
    retryable = True


class ProtocolViolated(ProviderError):
    code = "provider_protocol_error"
    retryable = True


class StreamCut(ProviderError):
    code = "stream_cut"
    retryable = True
