"""Error bodies of every shape, and when vendors want us to come back."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire.vendor_error import MAX_MESSAGE, VendorMessage, clean, duration, extract_error, retry_after


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
    "body", [None, [], {}, {"error": "x"}, {"error": {"details": "x"}}, {"error": {"details": [1]}}]
)
def test_bodies_without_retry_info_tell_nothing(body: Any) -> None:
    assert retry_after({}, "", body) is None
