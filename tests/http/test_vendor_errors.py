"""What a client of OpenAI's library sees of an OpenAI-compatible vendor's errors, through the whole gateway."""

import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from support.serving import application, config_for, served
from support.vendor import Exchange, sse, vendor

KEY = "sk-vendor-key"
"""As `config_for` writes it."""


def refusing(status: int, error: Any, **headers: str) -> Any:
    async def script(exchange: Exchange) -> None:
        await exchange.whole(status, json.dumps({"error": error}).encode(), **headers)

    return script


def within(error: Any) -> Any:
    async def script(exchange: Exchange) -> None:
        if not exchange.request.json().get("stream"):
            await exchange.whole(200, json.dumps({"error": error}).encode())
            return
        await exchange.head()
        await exchange.chunk(sse({"error": error}, "[DONE]"))
        await exchange.end()

    return script


async def raised(script: Any, stream: bool) -> openai.APIStatusError:
    async with vendor(script) as played, served(application(config_for(played.url))) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(
                    model="v/m", stream=stream, messages=[{"role": "user", "content": "Hi"}]
                )
        assert len(played.requests) == 1
        return caught.value


def said(code: Any, kind: str = "invalid_request_error", param: str | None = None) -> dict[str, Any]:
    return {"message": f"No; your key is {KEY}.", "type": kind, "param": param, "code": code}


CASES: list[Any] = [
    (400, said("context_length_exceeded", param="messages"), openai.BadRequestError, "context_length_exceeded", False),
    (400, said("content_filter"), openai.BadRequestError, "content_filter", False),
    (400, said("content_policy_violation"), openai.BadRequestError, "content_filter", False),
    (400, said("unsupported_value", param="logit_bias"), openai.BadRequestError, "unsupported_value", False),
    (400, said("invalid_json_schema"), openai.BadRequestError, "invalid_json_schema", False),
    (400, said(400, "BadRequestError"), openai.BadRequestError, "invalid_request", False),
    (400, said(None), openai.BadRequestError, "invalid_request", False),
    (401, said("invalid_api_key"), openai.InternalServerError, "provider_authentication_failed", False),
    (402, said("insufficient_balance"), openai.InternalServerError, "provider_quota_exhausted", False),
    (403, said(None, "permission"), openai.InternalServerError, "provider_permission_denied", False),
    (404, said("model_not_found"), openai.NotFoundError, "model_not_found", False),
    (413, said(None), openai.BadRequestError, "invalid_request", False),
    (422, said(None), openai.BadRequestError, "invalid_request", False),
    (429, said("rate_limit_exceeded", "tokens"), openai.RateLimitError, "rate_limit_exceeded", True),
    (429, said("insufficient_quota"), openai.InternalServerError, "provider_quota_exhausted", False),
    (500, said(None, "server_error"), openai.InternalServerError, "upstream_error", True),
    (503, said("server_is_overloaded"), openai.InternalServerError, "provider_overloaded", True),
]  # fmt: skip


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(("status", "error", "kind", "code", "again"), CASES)
async def test_a_refusal_is_the_librarys_error_of_its_kind(
    status: int, error: Any, kind: type, code: str, again: bool, stream: bool
) -> None:
    found = await raised(refusing(status, error, retry_after="7"), stream)
    assert type(found) is kind
    assert found.code == code
    assert found.status_code not in (401, 402, 403), "these are for the client's own key"
    assert found.param == error["param"]
    assert found.response.headers["x-should-retry"] == ("true" if again else "false")
    assert found.response.headers.get("retry-after") == ("7" if again else None)
    assert KEY not in found.response.text


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (said("context_length_exceeded"), openai.BadRequestError, "context_length_exceeded"),
        (said("unsupported_value"), openai.BadRequestError, "unsupported_value"),
        (said(429, "rate_limit"), openai.RateLimitError, "rate_limit_exceeded"),
        (said(401, "auth"), openai.InternalServerError, "provider_authentication_failed"),
        ("busy", openai.InternalServerError, "upstream_error"),
    ],
)
async def test_an_error_within_a_200_is_the_librarys_error_of_its_kind(
    error: Any, kind: type, code: str, stream: bool
) -> None:
    found = await raised(within(error), stream)
    assert (type(found), found.code) == (kind, code)
    assert KEY not in found.response.text


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({"retry_after": "3"}, "", "3"),
        ({"retry_after_ms": "1500"}, "", "2"),
        ({"retry_after": "Sun, 22 Nov 2026 13:00:20 GMT", "date": "Sun, 22 Nov 2026 13:00:00 GMT"}, "", "20"),
        ({"x_ratelimit_reset_requests": "6m0s", "x_ratelimit_remaining_requests": "0"}, "", "360"),
        ({}, "Please try again in 41.724s.", "42"),
        ({"retry_after": "999999"}, "", "3600"),
    ],
)
async def test_every_form_of_a_wait_is_told_in_whole_seconds(
    headers: dict[str, str], message: str, seconds: str
) -> None:
    found = await raised(refusing(429, {**said("rate_limit_exceeded"), "message": message or "Slow."}, **headers), True)
    assert found.response.headers["retry-after"] == seconds
