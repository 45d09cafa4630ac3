"""What vendors do wrong without damage on the way: endless answers, errors without words, our key in their words."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from providers import load_provider
from providers.dashscope.tool_calls import MAX_ARGUMENTS, MAX_CALLS
from router.errors import ProtocolViolated, ProviderError, Rejected, VendorFailed
from router.events import Event, TextDelta, ToolCallDelta
from router.fold import Fold
from router.messages import ChatRequest, User
from router.provider import Decoder, HttpError, HttpHead, Provider, ProviderSettings, Target

KEY = "a-key-in-no-known-form"
TARGET = Target("v", "m")
BOTH = pytest.mark.parametrize("protocol", ["openai", "dashscope"])
Json = dict[str, Any]


def adapter(protocol: str, key: str = KEY) -> Provider:
    made: Any = load_provider(protocol)
    provider: Provider = made(ProviderSettings(name="v", base_url="http://vendor.invalid/v1", api_key=key))
    return provider


def decoder(protocol: str, key: str = KEY) -> Decoder:
    provider = adapter(protocol, key)
    request = ChatRequest(model="m", messages=(User("Hi"),), protocol="openai", stream=True)
    return provider.decoder(request, TARGET, provider.encode(request, TARGET), HttpHead(200, {}))


def frame(protocol: str, said: Json, index: int = 0, finish: str | None = None) -> bytes:
    choice = {"index": index, "delta" if protocol == "openai" else "message": said, "finish_reason": finish}
    body = {"choices": [choice]}
    return b"data:%b\n\n" % json.dumps(body if protocol == "openai" else {"output": body}).encode()


def call(index: int, arguments: str, **function: str) -> Json:
    return {"tool_calls": [{"index": index, "type": "function", "function": {"arguments": arguments, **function}}]}


def fed(protocol: str, pieces: Iterable[bytes]) -> Iterator[Event]:
    reading = decoder(protocol)
    for piece in pieces:
        yield from reading.feed(piece)
    yield from reading.finish()


def failure(protocol: str, *pieces: bytes, key: str = KEY) -> ProviderError:
    reading = decoder(protocol, key)
    with pytest.raises(ProviderError) as caught:
        for piece in pieces:
            list(reading.feed(piece))
        list(reading.finish())
    return caught.value


# -- endless answers -------------------------------------------------------------------------------------------------


@BOTH
def test_a_tool_call_that_never_gets_its_name_is_not_kept_for_ever(protocol: str) -> None:
    piece = frame(protocol, call(0, "x" * 100_000))
    with pytest.raises(ProtocolViolated):
        list(fed(protocol, [piece] * (MAX_ARGUMENTS // 100_000 + 1)))


@BOTH
@pytest.mark.parametrize("name", [{}, {"name": "f"}], ids=["unnamed", "named"])
def test_endless_tool_calls_come_to_an_end(protocol: str, name: dict[str, str]) -> None:
    with pytest.raises(ProtocolViolated, match="tool calls"):
        list(fed(protocol, (frame(protocol, call(index, "{", **name)) for index in range(MAX_CALLS + 1))))


@BOTH
def test_endless_choices_come_to_an_end(protocol: str) -> None:
    with pytest.raises(ProtocolViolated, match="choices"):
        list(fed(protocol, (frame(protocol, {"content": "x"}, index, "stop") for index in range(2000))))


def test_arguments_in_very_many_pieces_are_each_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0

    def counting(text: str) -> bool:
        nonlocal looked
        looked += len(text)
        return False

    monkeypatch.setattr("providers.dashscope.tool_calls._is_object", counting)
    pieces = [call(0, '{"code":"', name="f")] + [call(0, "}}")] * 5000 + [call(0, '"}')]
    frames = [frame("dashscope", said) for said in pieces] + [frame("dashscope", {}, finish="tool_calls")]
    said = "".join(event.arguments for event in fed("dashscope", frames) if isinstance(event, ToolCallDelta))
    assert json.loads(said) == {"code": "}}" * 5000}
    assert looked < 2 * len(said)


# -- errors without words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [True, 7, {"odd": 1}, [None]])
def test_an_error_in_a_choice_is_one_also_when_it_says_nothing(error: Any) -> None:
    chunk = {"id": "1", "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop", "error": error}]}
    assert type(failure("openai", b"data: %b\n\n" % json.dumps(chunk).encode())) is VendorFailed


def test_dashscopes_codes_may_be_numbers() -> None:
    found = failure("dashscope", b'{"code":400,"message":"Bad.","request_id":"r"}')
    assert (type(found), found.vendor_code) == (Rejected, "400")
    events = list(fed("dashscope", [b'{"code":200,"output":{"text":"Hi","finish_reason":"stop"}}']))
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["Hi"]


# -- text ------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("broken", [b"\xff", b"\\ud83d"], ids=["bad UTF-8", "half a surrogate pair"])
def test_text_that_is_not_unicode_is_shown_as_browsers_show_it(protocol: str, broken: bytes) -> None:
    body = frame(protocol, {"content": "?"}, finish="stop").replace(b"?", broken)
    assert [event.text for event in fed(protocol, [body]) if isinstance(event, TextDelta)] == ["\ufffd"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@BOTH
def test_what_is_no_number_in_json_is_no_json(protocol: str, number: str) -> None:
    body = frame(protocol, {"content": "\u00e9"}).replace(b'"\\u00e9"', f'"\u00e9","x":{number}'.encode())
    assert isinstance(failure(protocol, b"data:{" + body), ProviderError)
    assert isinstance(
        failure(protocol, body.replace(b"data:{", b'data:{"created":%b,' % number.encode())), ProviderError
    )


@BOTH
@pytest.mark.parametrize(("depth", "read"), [(100, True), (300, False), (900, False), (5000, False)])
@pytest.mark.parametrize("nest", ["[]", '{"a":}'])
def test_json_that_is_nested_deeper_than_can_be_walked_is_refused(
    protocol: str, nest: str, depth: int, read: bool
) -> None:
    deep = nest[:-1] * depth + "1" + nest[-1] * depth
    body = frame(protocol, {"content": "Hi", "more": "?"}, finish="stop").replace(b'"?"', deep.encode())
    if not read:
        assert isinstance(failure(protocol, body), ProviderError)
        return
    fold = Fold()
    for event in fed(protocol, [body]):
        fold.add(event)
    assert fold.result().choices[0].text() == "Hi"


# -- our key ---------------------------------------------------------------------------------------------------------

QUOTED = [
    json.dumps({"error": {"message": f"Wrong key {KEY}.", "code": KEY, "param": KEY, "type": KEY}}),
    json.dumps({"code": "InvalidApiKey", "message": f"Wrong key {KEY}.", "request_id": KEY}),
    f"<html>{KEY}</html>",
    KEY,
]


@BOTH
@pytest.mark.parametrize("body", QUOTED)
def test_our_key_is_in_no_error_whatever_its_form(protocol: str, body: str) -> None:
    errors = [adapter(protocol).error(HttpError(401, {}, body.encode()), TARGET), failure(protocol, body.encode())]
    errors.append(failure(protocol, f"event:error\ndata:{body}\n\n".encode()))
    for error in errors:
        assert KEY not in repr((error, vars(error)))


@BOTH
def test_a_key_that_is_a_placeholder_is_left_where_it_is_a_word(protocol: str) -> None:
    body = json.dumps({"error": {"message": "none of the models is there"}}).encode()
    assert "none of the models" in adapter(protocol, "none").error(HttpError(404, {}, body), TARGET).message
