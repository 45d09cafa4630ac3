"""Error bodies of every shape, and when vendors want us to come back."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire.vendor_error import (
    MAX_MESSAGE,
    VendorMessage,
    clean,
    duration,
    extract_error,
    retry_after,
    should_retry,
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            b'{"error":{"message":"m","type":"t","param":"p","code":"c"},"request_id":"r"}',
            {"message": "m", "type": "t", "param": "p", "code": "c", "request_id": "r"},
        ),
        (b'{"object":"error","message":"m","type":"T","param":null,"code":400}', {"code": "400", "status": 400}),
        (b'{"error":"m"}', {"message": "m", "code": None}),
        (b'{"error":"Unauthorized","message":"no key"}', {"message": "Unauthorized: no key"}),
        (b'{"detail":"m"}', {"message": "m"}),
        (b'{"msg":"m"}', {"message": "m"}),
        (
            b'{"message":"m","code":"InvalidParameter","request_id":"r"}',
            {"code": "InvalidParameter", "request_id": "r"},
        ),
        (b'{"errors":[{"message":"m"}]}', {"message": "m"}),
        (b'{"errors":["one","two"]}', {"message": "one; two"}),
        (
            b'[{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}]',
            {"type": "RESOURCE_EXHAUSTED", "status": 429},
        ),
        (
            b'{"type":"error","error":{"type":"overloaded_error","message":"m"}}',
            {"message": "m", "type": "overloaded_error"},
        ),
        (
            b'{"detail":[{"loc":["body","a"],"msg":"x","type":"extra_forbidden"},{"loc":["body","b",0],"msg":"y"}]}',
            {"message": "a: x; b.0: y", "param": "a", "code": "extra_forbidden"},
        ),
        (
            b'{"object":"error","message":{"detail":[{"loc":["body","a"],"msg":"x"}]},"type":"T"}',
            {"message": "a: x", "type": "T"},
        ),
        (b'{"base_resp":{"status_code":1004,"status_msg":"m"}}', {"message": "m", "code": "1004", "status": None}),
        (
            b'{"error":{"message":"Provider returned error","metadata":{"raw":"cause"}}}',
            {"message": "Provider returned error: cause"},
        ),
        (b'{"code":"Stopped"}', {"message": "Stopped", "code": "Stopped"}),
        (b'\xef\xbb\xbf {"error":"m"}', {"message": "m"}),
        (
            b'id:1\r\nevent:error\r\n:HTTP_STATUS/400\r\ndata:{"code":"C","message":"m"}\r\n\r\n',
            {"message": "m", "code": "C"},
        ),
        (
            b"<html><head><title>502 Bad</title></head><body><h1>Oops &amp; more</h1></body></html>",
            {"message": "502 Bad Oops & more"},
        ),
        (b"upstream connect error", {"message": "upstream connect error", "body": None}),
        (b"", {"message": "(no message)"}),
        (b"{}", {"message": "{}"}),
        (b"\xff\xfe", {"message": "\ufffd\ufffd"}),
    ],
)
def test_message_is_found_in_every_known_shape(body: bytes, expected: dict[str, Any]) -> None:
    found = extract_error(body)
    assert {name: getattr(found, name) for name in expected} == expected


def test_answers_are_no_errors() -> None:
    assert extract_error(b'{"choices":[]}') == VendorMessage(message='{"choices":[]}')


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_give_a_message_within_bounds(body: bytes) -> None:
    found = extract_error(body, "text/html")
    assert 0 < len(found.message) <= MAX_MESSAGE


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "detail", "loc", "msg", "code", "errors", "base_resp"]), inner
        )
    ),
    max_leaves=10,
)


@given(JSON)
def test_any_json_gives_a_message(value: Any) -> None:
    found = extract_error(json.dumps(value).encode())
    assert found.message
    assert found.code is None or isinstance(found.code, str)


def test_keys_are_masked_and_ordinary_words_are_not() -> None:
    assert clean("key sk-proj-abc_DEF123 and AIzaSyA1234567890 gsk_abcdefgh") == "key sk-… and AIza… gsk_…"
    assert clean("Authorization: Bearer abcdef.ghijkl") == "Authorization: Bearer …"
    words = "the risk-based task-oriented model pk is fine"
    assert clean(words) == words


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1h2m3.5s", 3723.5),
        ("250us", 0.00025),
        ("34.4s", 34.4),
        ("7", 7.0),
        ("soon", None),
        ("", None),
        ("1s later", None),
        ("-5", None),
        ("nan", None),
    ],
)
def test_durations_as_go_writes_them(text: str, seconds: float | None) -> None:
    found = duration(text)
    assert found is None if seconds is None else found == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Please try again in 41.724s.", 41.724),
        ("Please try again in 6m0s. Visit", 360.0),
        ("try again in 30m12s", 1812.0),
        ("try again in 1h2m", 3600.0),
        ("Please try again in 20ms.", 0.02),
        ("Please retry after 20 seconds.", 20.0),
        ("Try again in 3 minutes", 180.0),
        ("try again in 2.5 minutes", 150.0),
        ("Please retry in 34.4s.", 34.4),
        ("Please try again in 1m2s", 62.0),
        ("try again in 1 hour", 3600.0),
        ("try again in 0.5 hours", 1800.0),
        ("Please wait 12 seconds before your next request", 12.0),
        ("please wait for 1.5s", 1.5),
        ("try again in 1d2h", 3600.0),
        ("please wait", None),
        ("try again in 3 models", None),
        ("please try again in a moment", None),
        ("retry later", None),
    ],
)
def test_wait_is_read_from_words(message: str, seconds: float | None) -> None:
    found = retry_after({}, message)
    assert found is None if seconds is None else found == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "9"}, 9.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "1m30s"}, 90.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:10 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:10 GMT"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "1e9"}, 3600.0),
        ({"x-ratelimit-reset-requests": "2s", "x-ratelimit-reset-tokens": "1m"}, 60.0),
        (
            {
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-reset-tokens": "1m",
                "x-ratelimit-remaining-requests": "0",
            },
            2.0,
        ),
        ({"x-ratelimit-reset-requests": "1790000000"}, None),
        ({"x-ms-retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "2026-10-21T07:28:10Z", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.0),
        ({"retry-after": "1792567690", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.0),
        ({"x-ratelimit-reset-requests": "1792567690", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.0),
        ({"x-ratelimit-reset": "1792567690000", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.0),
        ({"x-ratelimit-reset": "0.25"}, 0.25),
        ({"ratelimit-reset": "7"}, 7.0),
        ({"ratelimitbysize-reset": "41"}, 41.0),
        (
            {
                "anthropic-ratelimit-requests-remaining": "49",
                "anthropic-ratelimit-requests-reset": "2026-10-21T08:00:00Z",
                "anthropic-ratelimit-tokens-remaining": "0",
                "anthropic-ratelimit-tokens-reset": "2026-10-21T07:28:30Z",
                "date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            30.0,
        ),
        # none is exhausted, yet the call was too much for one of them
        (
            {
                "x-ratelimit-remaining-requests-day": "900",
                "x-ratelimit-reset-requests-day": "33011.38",
                "x-ratelimit-remaining-tokens-minute": "40",
                "x-ratelimit-reset-tokens-minute": "11.5",
            },
            11.5,
        ),
        ({"x-ratelimit-reset-requests": "2026-10-21T07:28:10"}, None),
        ({"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "0"}, None),
        ({}, None),
    ],
)
def test_wait_is_read_from_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_reset_headers_count_for_limits_only_and_words_come_before_them() -> None:
    headers = {"x-ratelimit-reset-requests": "2s"}
    assert retry_after(headers, limited=False) is None
    assert retry_after(headers, "try again in 5s") == 5


@pytest.mark.parametrize(
    "body", [{"error": {"details": [{}, {"retryDelay": "34.4s"}]}}, [{"error": {"details": [{"retryDelay": "34.4s"}]}}]]
)
def test_wait_is_read_from_googles_retry_info(body: Any) -> None:
    assert retry_after({}, "", body) == 34.4


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"error": {"message": "slow down", "retry_after": 3}}, 3.0),
        ({"error": "Model is currently loading", "estimated_time": 20.5}, 20.5),
        ({"error": {"metadata": {"retry_after_seconds": "8"}}}, 8.0),
        ({"retry_after_ms": 250}, 0.25),
        ({"error": {"metadata": {"headers": {"X-RateLimit-Reset": "1792567690000"}}}}, 10.0),
        ({"error": {"retry_after": True}}, None),
        ({"error": {"retry_after": "soon", "metadata": {"headers": {"X-RateLimit-Reset": 5}}}}, None),
    ],
)
def test_wait_is_read_from_fields_of_the_body(body: Any, seconds: float | None) -> None:
    assert retry_after({"date": "Wed, 21 Oct 2026 07:28:00 GMT"}, "", body) == seconds


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"x-should-retry": "true"}, True),
        ({"x-should-retry": "False"}, False),
        ({"x-should-retry": "?"}, None),
        ({}, None),
    ],
)
def test_what_a_vendor_says_of_another_try(headers: dict[str, str], said: bool | None) -> None:
    assert should_retry(headers) is said


@pytest.mark.parametrize(
    "body", [None, [], {}, {"error": "x"}, {"error": {"details": "x"}}, {"error": {"details": [1]}}]
)
def test_bodies_without_retry_info_tell_nothing(body: Any) -> None:
    assert retry_after({}, "", body) is None
