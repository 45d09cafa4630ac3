"""Which error the DashScope adapter makes of what the vendor says, as a response and within a 200."""

import msgspec
import pytest

from providers.dashscope import DashScope
from router import errors
from router.errors import ProviderError
from router.messages import ChatRequest, User
from router.provider import HttpError, HttpHead, ProviderSettings, Target

TARGET = Target("qwen", "qwen-plus")
REQUEST = ChatRequest(model="qwen-plus", messages=(User("Hi"),), protocol="openai", stream=True)

CASES = [
    (400, "InvalidParameter", "Range of input length should be [1, 98304]", errors.ContextTooLong),
    (400, "InternalError.Algo.InvalidParameter", "Range of input length should be [1, 98304]", errors.ContextTooLong),
    (400, "DataInspectionFailed", "Input data may contain inappropriate content.", errors.ContentFiltered),
    (400, "data_inspection_failed", "Output data may contain inappropriate content.", errors.ContentFiltered),
    (
        400,
        "Arrearage",
        "Access denied, please make sure your account is in good standing.",
        errors.VendorQuotaExhausted,
    ),
    (
        403,
        "AllocationQuota.FreeTierOnly",
        "The free tier of the model has been exhausted.",
        errors.VendorQuotaExhausted,
    ),
    (429, "insufficient_quota", "You exceeded your current quota.", errors.RateLimited),
    (429, "Throttling.AllocationQuota", "Allocated quota exceeded.", errors.RateLimited),
    (429, "Throttling.RateQuota", "Requests rate limit exceeded.", errors.RateLimited),
    (401, "InvalidApiKey", "Invalid API-key provided.", errors.VendorAuthFailed),
    (403, "Model.AccessDenied", "Model access denied.", errors.VendorModelForbidden),
    (403, "AccessDenied.Unpurchased", "Access to model denied.", errors.VendorModelForbidden),
    (403, "access_denied", "Access denied.", errors.VendorModelForbidden),
    (403, "InvalidApiKey", "Invalid API-key provided.", errors.VendorAuthFailed),
    (404, "ModelNotFound", "The model does not exist.", errors.VendorModelUnknown),
    (404, "Model.NotExist", "Model not exist.", errors.VendorModelUnknown),
    (400, "UnsupportedOperation", "The operation is unsupported on the referee object.", errors.Unsupported),
    (400, "InvalidParameter", "This model does not support enable_search.", errors.Unsupported),
    (
        400,
        "InvalidParameter",
        "<400> InternalError.Algo.InvalidParameter: The tool call is not supported.",
        errors.Unsupported,
    ),
    (400, "InvalidParameter", "The thinking_budget parameter must be a positive integer", errors.Rejected),
    (400, "BadRequest.EmptyInput", "Required input parameter missing from request.", errors.Rejected),
    (503, "ModelUnavailable", "Model is unavailable, please try again later.", errors.VendorOverloaded),
    (500, "InternalError", "An internal error has occured.", errors.VendorFailed),
]


def adapter() -> DashScope:
    return DashScope(ProviderSettings(name="qwen", base_url="https://dashscope.example/api/v1"))


def body(code: str, message: str) -> bytes:
    return msgspec.json.encode({"code": code, "message": message, "request_id": "r-1"})


@pytest.mark.parametrize(("status", "code", "message", "expected"), CASES)
def test_a_response_is_told_by_its_code_and_its_words(status: int, code: str, message: str, expected: type) -> None:
    assert type(adapter().error(HttpError(status, {}, body(code, message)), TARGET)) is expected


@pytest.mark.parametrize(("status", "code", "message", "expected"), CASES)
def test_an_error_within_a_200_is_the_same(status: int, code: str, message: str, expected: type) -> None:
    provider = adapter()
    reading = provider.decoder(REQUEST, TARGET, provider.encode(REQUEST, TARGET), HttpHead(200, {}))
    frame = b"id:1\nevent:error\n:HTTP_STATUS/%d\ndata:%s\n\n" % (status, body(code, message))
    with pytest.raises(ProviderError) as caught:
        list(reading.feed(frame))
    assert type(caught.value) is expected


def test_what_the_vendor_says_of_another_try_is_kept() -> None:
    response = HttpError(429, {"x-should-retry": "false"}, body("Throttling", "Slow down."))
    assert adapter().error(response, TARGET).vendor_retry is False
