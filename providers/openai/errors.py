"""Which of our errors a vendor's failure is: by its own code first, then by the HTTP status, then by its words.

OpenAI answers 429 when the account is empty, DashScope 400, DeepSeek 402: so the code says more than the status. Words
count only for what most servers have no code for: a context that is too long, and a feature that a model has not.

Only a 401, or a code or words that name the key or the account, say that our key is bad. Any other 403 is about what
was asked for with it: clients choose the model, and must not be able to take out a key by their choice.
"""

import re
from collections.abc import Mapping
from typing import Final

from router.errors import (
    ContentFiltered,
    ContextTooLong,
    ProtocolViolated,
    ProviderError,
    RateLimited,
    Rejected,
    StreamCut,
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

ErrorClass = type[ProviderError]

_BY_CODE: Final[dict[str, ErrorClass]] = {
    "context_length_exceeded": ContextTooLong,
    "model_context_window_exceeded": ContextTooLong,
    "context_window_exceeded": ContextTooLong,
    "exceed_context_size_error": ContextTooLong,
    "content_filter": ContentFiltered,
    "content_policy_violation": ContentFiltered,
    "responsibleaipolicyviolation": ContentFiltered,
    "data_inspection_failed": ContentFiltered,
    "datainspectionfailed": ContentFiltered,
    "unsupported_parameter": Unsupported,
    "unsupported_value": Unsupported,
    "not_supported_error": Unsupported,
    "model_not_found": VendorModelUnknown,
    "model_not_available": VendorModelUnknown,
    "model_decommissioned": VendorModelUnknown,
    "invalid_model": VendorModelUnknown,
    "modelnotfound": VendorModelUnknown,
    "model.notexist": VendorModelUnknown,
    "deploymentnotfound": VendorModelUnknown,
    "invalid_api_key": VendorAuthFailed,
    "invalidapikey": VendorAuthFailed,
    "authentication_error": VendorAuthFailed,
    "account_deactivated": VendorAuthFailed,
    "unsupported_country_region_territory": VendorAuthFailed,
    "access_denied": VendorModelForbidden,
    "accessdenied": VendorModelForbidden,
    "model.accessdenied": VendorModelForbidden,
    "insufficient_quota": VendorQuotaExhausted,
    "credit_balance_exhausted": VendorQuotaExhausted,
    "billing_hard_limit_reached": VendorQuotaExhausted,
    "billing_not_active": VendorQuotaExhausted,
    "insufficient_balance": VendorQuotaExhausted,
    "exceeded_current_quota_error": VendorQuotaExhausted,
    "arrearage": VendorQuotaExhausted,
    "rate_limit_exceeded": RateLimited,
    "limit_requests": RateLimited,
    "limit_burst_rate": RateLimited,
    "server_is_overloaded": VendorOverloaded,
    "overloaded_error": VendorOverloaded,
    "slow_down": VendorOverloaded,
    # Zhipu numbers its errors
    "1113": VendorQuotaExhausted,
    "1211": VendorModelUnknown,
    "1261": ContextTooLong,
    "1301": ContentFiltered,
    "1302": RateLimited,
    "1303": RateLimited,
    "1305": VendorOverloaded,
}
"""Codes, and types that say as much as a code. In lower case."""

_BY_STATUS: Final[dict[int, ErrorClass]] = {
    401: VendorAuthFailed,
    402: VendorQuotaExhausted,
    403: VendorModelForbidden,
    408: TimedOut,
    409: VendorFailed,
    425: VendorFailed,
    429: RateLimited,
    498: VendorOverloaded,
    499: VendorFailed,
    503: VendorOverloaded,
    504: TimedOut,
    524: TimedOut,
    529: VendorOverloaded,
}
"""The other 4xx are `Rejected`, the other 5xx `VendorFailed`. 498: Groq's flex tier is full; 529: Anthropic's word."""

_BY_TYPE: Final[dict[str, ErrorClass]] = {
    "invalid_request_error": Rejected,
    "badrequesterror": Rejected,
    "invalid_argument": Rejected,
    "invalid_parameter": Rejected,
    "invalid_parameter_error": Rejected,
    "unauthenticated": VendorAuthFailed,
    "authenticationerror": VendorAuthFailed,
    "permission_denied": VendorModelForbidden,
    "permission_error": VendorModelForbidden,
    "not_found": VendorModelUnknown,
    "not_found_error": VendorModelUnknown,
    "notfounderror": VendorModelUnknown,
    "rate_limit_error": RateLimited,
    "ratelimiterror": RateLimited,
    "resource_exhausted": RateLimited,
    "unavailable": VendorOverloaded,
    "service_unavailable_error": VendorOverloaded,
    "deadline_exceeded": TimedOut,
    "timeout": TimedOut,
}
"""For errors inside a 200, where no status tells. In lower case."""

_CONTEXT: Final = re.compile(
    r"maximum context length|maximum model length|maximum prompt length|range of input length"
    r"|\bcontext (?:length|window|size)\b.{0,40}\bexceed|\bexceed.{0,40}\bcontext (?:length|window|size)"
    r"|longer than the model['’]s context length|(?:prompt|input) is too long|too many (?:input )?tokens"
    r"|input token count\b.{0,40}\bexceeds|exceeded model token limit|`inputs` tokens \+ `max_new_tokens` must be",
    re.I,
)
_FILTERED: Final = re.compile(
    r"may contain inappropriate content|violates (?:our |the )?usage guidelines|content management policy"
    r"|result of our safety system|considered high risk",
    re.I,
)
_EMPTY: Final = re.compile(r"credit balance is too low|all available credits|insufficient (?:account )?balance", re.I)
_KEY: Final = re.compile(
    r"api[ _-]?key (?:is |was |has been )?(?:not valid|invalid|incorrect|expired|revoked|disabled|suspended|reported)"
    r"|(?:incorrect|invalid|expired|revoked) api[ _-]?key",
    re.I,
)
_GONE: Final = re.compile(
    r"\bmodel not exist\b|is not a valid model id|\binvalid model: "
    r"|\bmodel\b.{0,80} (?:does not exist|is not found|not found)",
    re.I,
)
_WORDS: Final[tuple[tuple[frozenset[int], re.Pattern[str], ErrorClass], ...]] = (
    (frozenset({400, 413, 422}), _CONTEXT, ContextTooLong),
    (frozenset({400, 403}), _FILTERED, ContentFiltered),
    (frozenset({400, 403, 429}), _EMPTY, VendorQuotaExhausted),
    (frozenset({400, 403}), _KEY, VendorAuthFailed),
    (frozenset({400}), _GONE, VendorModelUnknown),
)
"""Statuses that say too little → words → class; the first that fits. xAI filters with 403, Google and xAI answer 400 to
a wrong key, Anthropic to an empty account, DeepSeek, Mistral and OpenRouter to a model they have not."""
_KEYS_OWN: Final = (VendorAuthFailed, VendorQuotaExhausted)
"""For these no call is made with the key for a while."""
_NAMES_MODEL: Final = re.compile(r"\bmodel\b", re.I)
_REFUSING: Final = frozenset({400, 404, 415, 422, 500, 501})
"""Statuses with which servers refuse a feature that they have not: llama.cpp with 500."""
_ALLOCATED: Final = re.compile(r"allocated quota|\btpm\b|tokens? per minute", re.I)
_WORD: Final = re.compile(r"[a-z]+(?:_[a-z]+)+")
"""A code in OpenAI's form: `unsupported_parameter`, `invalid_json_schema`."""
_MODEL: Final = re.compile(r"\bmodel|\bendpoint|\bdeployment", re.I)


def classify(said: VendorMessage, status: int | None, *, quota_refills: bool = False) -> ErrorClass:
    """The error class of a vendor's message. `status` is None for an error inside a 200.

    `quota_refills`: at DashScope `insufficient_quota` is the limit of tokens a minute, not an empty account.
    """
    if status is None or 200 <= status < 300:
        status = said.status
    words = [word.lower() for word in (said.code, said.type) if word]
    for word in words:
        known = _BY_CODE.get(word)
        if known is VendorQuotaExhausted and (quota_refills or _ALLOCATED.search(said.message)):
            if word == "insufficient_quota":
                return RateLimited
        elif known is None and word.startswith("throttling"):
            return RateLimited
        if known is not None:
            return known
    if status is None:
        known = next((_BY_TYPE[word] for word in words if word in _BY_TYPE), None)
        if known is not None and known is not Rejected:
            return known
        status = 400 if known is Rejected or _CONTEXT.search(said.message) else 500
    for statuses, words_of, found in _WORDS:
        # what speaks of a model may quote its name, which is the client's: it must not take out our key
        if found in _KEYS_OWN and _NAMES_MODEL.search(said.message):
            continue
        if status in statuses and words_of.search(said.message):
            return found
    if status in _REFUSING and says_unsupported(said.message):
        return Unsupported
    if status == 403 and _flagged(said):
        return ContentFiltered
    if status == 404 and _MODEL.search(said.message):
        return VendorModelUnknown
    if 300 <= status < 400:
        return ProtocolViolated
    return _BY_STATUS.get(status, Rejected if status < 500 else VendorFailed)


def _flagged(said: VendorMessage) -> bool:
    """OpenRouter's moderation answers 403 and says why in the metadata."""
    error = said.body.get("error") if isinstance(said.body, dict) else None
    metadata = error.get("metadata") if isinstance(error, dict) else None
    return isinstance(metadata, dict) and "reasons" in metadata


def _own_word(found: ErrorClass, said: VendorMessage) -> str | None:
    """The vendor's code where it says more than ours: why a request is refused, which programs act upon."""
    if found not in (Rejected, Unsupported) or said.code is None:
        return None
    return said.code if _WORD.fullmatch(said.code) else None


class Failures:
    """Makes the errors of one response, in the name of the provider that sent it."""

    __slots__ = ("_headers", "_key", "_provider", "_quota_refills", "_request_id")

    def __init__(
        self, provider: str, headers: Mapping[str, str], *, quota_refills: bool, key: str | None = None
    ) -> None:
        self._provider = provider
        self._headers = headers
        self._key = key
        self._quota_refills = quota_refills
        ids = (headers.get(name) for name in ("x-request-id", "request-id", "apim-request-id", "cf-ray"))
        self._request_id = next((value for value in ids if value), None)

    def answered(self, said: VendorMessage, status: int) -> ProviderError:
        """A response that is not a 2xx. Only where a wait may help is there a time to wait."""
        said = without_key(said, self._key)
        found = classify(said, status, quota_refills=self._quota_refills)
        answered = f"{self._provider} answered {status}"
        if found is VendorModelForbidden:
            answered += ", our key there may not do this"
        return found(
            f"{answered}: {said.message}",
            code=_own_word(found, said),
            param=said.param,
            retry_after=retry_after(self._headers, said.message, said.body, limited=status == 429)
            if found.retryable
            else None,
            vendor_status=status,
            vendor_code=said.code or said.type,
            vendor_request_id=said.request_id or self._request_id,
            vendor_retry=should_retry(self._headers),
        )

    def within(self, said: VendorMessage, status: int | None = None) -> ProviderError:
        """An error inside a 200. `status` is what the vendor says it would have been."""
        said = without_key(said, self._key)
        found = classify(said, status, quota_refills=self._quota_refills)
        return found(
            f"{self._provider} failed within its answer: {said.message}",
            code=_own_word(found, said),
            param=said.param,
            retry_after=retry_after({}, said.message, said.body) if found.retryable else None,
            vendor_status=status or said.status,
            vendor_code=said.code or said.type,
            vendor_request_id=said.request_id or self._request_id,
        )

    def broken_off(self, error: ErrorClass, word: str) -> ProviderError:
        """A finish reason that is a failure."""
        return error(
            f"{self._provider} broke its answer off with the finish reason {word!r}",
            vendor_code=word,
            vendor_request_id=self._request_id,
        )

    def cut(self, what: str) -> StreamCut:
        return StreamCut(f"{self._provider} {what}", vendor_request_id=self._request_id)

    def page(self, said: VendorMessage) -> ProtocolViolated:
        text = without_key(said, self._key).message
        return self.violated(f"a web page came instead of a completion; check base_url. It says: {text}")

    def violated(self, what: str, code: str | None = None) -> ProtocolViolated:
        return ProtocolViolated(
            f"{self._provider} broke the protocol: {what}", code=code, vendor_request_id=self._request_id
        )
