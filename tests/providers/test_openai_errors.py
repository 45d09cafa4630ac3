"""Which error the OpenAI adapter makes of what a vendor says."""

from typing import Any

import msgspec
import pytest

from providers.openai import OpenAI
from router import errors
from router.errors import ProviderError
from router.messages import ChatRequest, User
from router.provider import HttpError, HttpHead, ProviderSettings, Target

OPENAI = "https://api.openai.com/v1"
DASHSCOPE = "https://dashscope.aliyuncs.com/compatible-mode/v1"


def failed(status: int, body: Any, headers: dict[str, str] | None = None, base_url: str = OPENAI) -> ProviderError:
    adapter = OpenAI(ProviderSettings(name="openai", base_url=base_url, api_key="secret-key-of-mine"))
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return adapter.error(HttpError(status, headers or {}, content), Target("openai", "m"))


def within(chunk: Any, base_url: str = OPENAI) -> ProviderError:
    """The error of a stream that has this chunk."""
    adapter = OpenAI(ProviderSettings(name="openai", base_url=base_url))
    request, target = (
        ChatRequest(model="m", messages=(User("Hi"),), protocol="openai", stream=True),
        Target("openai", "m"),
    )
    reading = adapter.decoder(request, target, adapter.encode(request, target), HttpHead(200, {"x-request-id": "r-9"}))
    with pytest.raises(ProviderError) as caught:
        list(reading.feed(b"data: " + msgspec.json.encode(chunk) + b"\n\n"))
    return caught.value


def said(message: str = "m", code: Any = None, kind: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


QUOTA = said("You exceeded your current quota, please check your plan.", "insufficient_quota", "insufficient_quota")


def test_insufficient_quota_is_an_empty_account_but_at_dashscope_a_limit_that_refills() -> None:
    """quirk 63"""
    assert type(failed(429, QUOTA)) is errors.VendorQuotaExhausted
    assert type(failed(429, QUOTA, base_url=DASHSCOPE)) is errors.RateLimited
    assert type(within(QUOTA, DASHSCOPE)) is errors.RateLimited
    allocated = said("Allocated quota exceeded, please increase your quota limit.", "insufficient_quota")
    assert type(failed(429, allocated)) is errors.RateLimited
    arrears = said("m", "Arrearage")
    assert type(failed(400, arrears, base_url=DASHSCOPE)) is errors.VendorQuotaExhausted


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (said(kind="invalid_request_error"), errors.Rejected),
        (said(kind="BadRequestError", code=400), errors.Rejected),
        (said(kind="authentication_error"), errors.VendorAuthFailed),
        (said(kind="permission_error"), errors.VendorModelForbidden),
        (said(code=403), errors.VendorModelForbidden),
        (said(kind="rate_limit_error"), errors.RateLimited),
        (said(kind="overloaded_error"), errors.VendorOverloaded),
        (said(kind="server_error"), errors.VendorFailed),
        (said(code="Throttling.RateQuota"), errors.RateLimited),
        (said(code="slow_down"), errors.VendorOverloaded),
        (said(code="data_inspection_failed"), errors.ContentFiltered),
        (said(code="model_not_found"), errors.VendorModelUnknown),
        (said(code="unsupported_value"), errors.Unsupported),
        (said("x does not support tools", kind="invalid_request_error"), errors.Unsupported),
        (said(code="Arrearage"), errors.VendorQuotaExhausted),
        (said(code="invalid_api_key"), errors.VendorAuthFailed),
        (said(code="content_filter"), errors.ContentFiltered),
        (said(code=401), errors.VendorAuthFailed),
        (said(code=402), errors.VendorQuotaExhausted),
        (said(code=408), errors.TimedOut),
        (said(code="503"), errors.VendorOverloaded),
        (said("the request exceeds the available context size, try increasing it"), errors.ContextTooLong),
        (said("boom"), errors.VendorFailed),
    ],
)
def test_error_inside_a_200_is_told_by_its_code_its_status_or_its_type(error: Any, expected: type) -> None:
    found = within(error)
    assert type(found) is expected
    assert found.vendor_request_id == "r-9"


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, said("Unsupported value: 'temperature'", "unsupported_value"), errors.Unsupported),
        (400, said("gemma:2b does not support tools"), errors.Unsupported),
        (404, said("No endpoints found that support tool use.", 404), errors.Unsupported),
        (500, said("image input is not supported", 500, "server_error"), errors.Unsupported),
        (501, said("This server does not support it", 501, "not_supported_error"), errors.Unsupported),
        (400, said("Unknown parameter: 'toolz'.", "unknown_parameter"), errors.Rejected),
        (400, said("Invalid schema: 'allOf' is not permitted", "invalid_json_schema"), errors.Rejected),
        (422, said("extra fields not permitted", "extra_forbidden"), errors.Rejected),
        (400, said("maximum context length is 8192 tokens", "context_length_exceeded"), errors.ContextTooLong),
        (
            400,
            said("The input token count (9) exceeds the maximum number of tokens allowed (8)."),
            errors.ContextTooLong,
        ),
        (400, said("Your request exceeded model token limit: 131072"), errors.ContextTooLong),
        (
            400,
            said("This model's maximum prompt length is 8 but the request contains 9 tokens."),
            errors.ContextTooLong,
        ),
        (400, said("m", "content_filter"), errors.ContentFiltered),
        (400, said("Input data may contain inappropriate content."), errors.ContentFiltered),
        (403, said("Content violates usage guidelines."), errors.ContentFiltered),
        (403, said("You may not use this model."), errors.VendorModelForbidden),
        (403, said("You do not have access to the model x", "permission_denied"), errors.VendorModelForbidden),
        (403, said("m", "access_denied"), errors.VendorModelForbidden),
        (403, said("m", "Model.AccessDenied"), errors.VendorModelForbidden),
        (403, said("m", 403, "PERMISSION_DENIED"), errors.VendorModelForbidden),
        (403, {}, errors.VendorModelForbidden),
        (403, said("m", "invalid_api_key"), errors.VendorAuthFailed),
        (403, said("m", "account_deactivated"), errors.VendorAuthFailed),
        (403, said("m", "unsupported_country_region_territory"), errors.VendorAuthFailed),
        (
            403,
            said("Your API key was reported as leaked. Please use another API key.", 403, "PERMISSION_DENIED"),
            errors.VendorAuthFailed,
        ),
        (
            400,
            said("API key not valid. Please pass a valid API key.", 400, "INVALID_ARGUMENT"),
            errors.VendorAuthFailed,
        ),
        (400, said("Incorrect API key provided: ab"), errors.VendorAuthFailed),
        (400, said("Your credit balance is too low to access the API."), errors.VendorQuotaExhausted),
        (403, said("Your team has used all available credits."), errors.VendorQuotaExhausted),
        (402, said("Insufficient Balance", "invalid_request_error"), errors.VendorQuotaExhausted),
        (400, said("Model Not Exist", "invalid_request_error"), errors.VendorModelUnknown),
        (400, said("Invalid model: tiny", "1500", "invalid_model"), errors.VendorModelUnknown),
        (400, said("x/y is not a valid model ID", 400), errors.VendorModelUnknown),
        (400, said("The model `x` has been decommissioned", "model_decommissioned"), errors.VendorModelUnknown),
        (404, {"error": "model 'x' not found, try pulling it first"}, errors.VendorModelUnknown),
    ],
)
def test_a_refusal_is_told_by_its_code_its_words_or_its_status(status: int, error: Any, expected: type) -> None:
    assert type(failed(status, error)) is expected


@pytest.mark.parametrize("name", ["invalid api key", "credit balance is too low", "all available credits"])
@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (400, "The model `{}` does not exist", errors.VendorModelUnknown),
        (400, "{} is not a valid model ID", errors.VendorModelUnknown),
        (403, "You do not have access to the model {}", errors.VendorModelForbidden),
    ],
)
def test_no_name_of_a_model_takes_out_a_key(status: int, words: str, expected: type, name: str) -> None:
    assert type(failed(status, said(words.format(name)))) is expected


def test_a_model_that_our_key_may_not_use_is_said_to_be_that() -> None:
    found = failed(403, said("No access to large.", "permission_denied"))
    assert (found.status, found.code, found.retryable) == (502, "provider_permission_denied", False)
    assert found.message.endswith(" answered 403, our key there may not do this: No access to large.")


def test_a_lacking_feature_keeps_the_vendors_own_word() -> None:
    assert failed(400, said("m", "unsupported_value")).code == "unsupported_value"
    assert failed(400, said("`x` does not support tools")).code == "unsupported"


@pytest.mark.parametrize(("header", "again"), [("true", True), ("false", False), (None, None)])
def test_what_the_vendor_says_of_another_try_is_kept(header: str | None, again: bool | None) -> None:
    headers = {} if header is None else {"x-should-retry": header}
    assert failed(429, said(), headers).vendor_retry is again


@pytest.mark.parametrize("status", [*range(400, 600)])
def test_every_status_has_a_class_and_5xx_may_be_tried_again(status: int) -> None:
    found = failed(status, said())
    assert found.vendor_status == status
    assert found.retryable is (status >= 500 or status in (408, 409, 425, 429, 498, 499))


def test_message_names_the_provider_and_the_status_and_quotes_the_vendor() -> None:
    found = failed(400, said("Bad\n  value"), {"x-request-id": "req_7"})
    assert found.message == "openai answered 400: Bad value"
    assert found.vendor_request_id == "req_7"


def test_keys_never_show() -> None:
    message = "Wrong key secret-key-of-mine, or sk-proj-abcdef123456, or Bearer abc.def.ghi"
    found = failed(401, said(message))
    assert found.message == "openai answered 401: Wrong key …, or sk-…, or Bearer …"
    assert "secret" not in failed(502, b"<html>secret-key-of-mine</html>").message


def test_long_bodies_are_cut() -> None:
    for body in (said("x" * 9000), b"<html>" + b"<p>y</p>" * 9000, b"z" * 9000):
        assert len(failed(500, body).message) <= 500 + len("openai answered 500: ")


def test_no_wait_is_told_where_waiting_does_not_help() -> None:
    headers = {"retry-after": "5", "x-ratelimit-reset-requests": "6m0s"}
    assert failed(400, said(), headers).retry_after is None
    assert failed(401, said(), headers).retry_after is None
    assert failed(429, said(), headers).retry_after == 5
    assert failed(503, said(), headers).retry_after == 5
