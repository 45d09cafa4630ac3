"""The DashScope adapter's reading of answers where a transcript cannot say it: timing, bounds, all inputs of a kind."""

import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.dashscope import DashScope
from providers.dashscope.frames import MAX_WHOLE, Frames
from providers.dashscope.increments import LONG, Increments, Reading
from providers.dashscope.usage import Counts, read_usage
from router.errors import ProtocolViolated, ProviderError, RateLimited, StreamCut
from router.events import Event, ReasoningDelta, TextDelta, check_order
from router.fold import Fold
from router.messages import ChatRequest, User
from router.provider import Decoder, HttpError, HttpHead, ProviderSettings, Target
from router.sse import MAX_EVENT

TARGET = Target("qwen", "qwen-plus")
REQUEST = ChatRequest(model="qwen-plus", messages=(User("Hi"),), protocol="openai", stream=True)


def adapter() -> DashScope:
    return DashScope(ProviderSettings(name="qwen", base_url="https://dashscope.example/api/v1"))


def decoder() -> Decoder:
    provider = adapter()
    return provider.decoder(REQUEST, TARGET, provider.encode(REQUEST, TARGET), HttpHead(200, {}))


def body(text: str, finish: str | None = "null", output: int | None = None, **message: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    fields: dict[str, Any] = {"output": {"choices": [choice]}, "request_id": "r-1"}
    if output is not None:
        fields["usage"] = {"input_tokens": 9, "output_tokens": output}
    return msgspec.json.encode(fields)


def frame(text: str, finish: str | None = "null", output: int | None = None, **message: Any) -> bytes:
    return b"id:1\nevent:result\n:HTTP_STATUS/200\ndata:" + body(text, finish, output, **message) + b"\n\n"


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, TextDelta)]


# -- framing ---------------------------------------------------------------------------------------------------------


def test_frames_without_blank_lines_between_come_out_at_once() -> None:
    """quirk 11: older gateways leave the blank lines out."""
    reading = decoder()
    assert texts(list(reading.feed(frame("I am").removesuffix(b"\n")))) == ["I am"]
    assert texts(list(reading.feed(frame(" Qwen").removesuffix(b"\n")))) == [" Qwen"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_ends_a_frame(end: bytes) -> None:
    """quirk 2: CRLF and mixes."""
    reading = decoder()
    seen = list(reading.feed((frame("a") + frame("b") + frame("", "stop")).replace(b"\n", end)))
    seen += reading.finish()
    assert texts(check_order(seen)) == ["a", "b"]


def test_the_end_is_the_end_of_the_body_without_a_done_mark() -> None:
    """quirk 7: no `[DONE]`, the connection just closes."""
    reading = decoder()
    seen = [*reading.feed(frame("a")), *reading.feed(frame("", "stop"))]
    assert [type(event).__name__ for event in seen] == ["Started", "TextDelta", "ChoiceFinished"]
    assert [type(event).__name__ for event in reading.finish()] == ["Completed"]
    assert list(reading.feed(frame("more"))) == []


def test_keepalive_comments_are_no_events() -> None:
    """quirk 3 and 4: comments, and comments wrapped as data, must not look like progress."""
    assert list(decoder().feed(b": keepalive\n\n" * 50 + b"data: : keepalive\n\n")) == []


def test_an_endless_line_is_cut_off() -> None:
    reading = Frames("qwen/qwen-plus")
    list(reading.feed(b"data:"))
    with pytest.raises(ProtocolViolated) as caught:
        for _ in range(MAX_EVENT // 65536 + 1):
            list(reading.feed(b"x" * 65536))
    assert caught.value.code == "event_too_large"


def test_an_endless_whole_body_is_cut_off() -> None:
    reading = Frames("qwen/qwen-plus")
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolViolated) as caught:
            for _ in range(MAX_WHOLE // (4 << 20) + 1):
                list(reading.feed(b"{" + b" " * (4 << 20)))
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_WHOLE
    finally:
        tracemalloc.stop()
    assert caught.value.code == "event_too_large"


def test_json_that_never_ends_over_many_lines_is_given_up() -> None:
    with pytest.raises(ProtocolViolated):
        list(decoder().feed(b"data:{\n" * 2000))


@given(st.binary(max_size=200))
def test_garbage_raises_nothing_but_provider_errors(data: bytes) -> None:
    reading = decoder()
    with pytest.raises(ProviderError):
        [*reading.feed(data), *reading.finish()]


KEYS = st.sampled_from(
    ["output", "usage", "choices", "message", "content", "text", "tool_calls", "function", "arguments", "name", "id",
     "index", "finish_reason", "reasoning_content", "logprobs", "code", "error", "input_tokens", "output_tokens",
     "output_tokens_details", "reasoning_tokens"]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=30
)


@given(VALUES)
def test_json_of_any_shape_gives_legal_events_or_a_provider_error(value: Any) -> None:
    reading = decoder()
    seen: list[Event] = []
    try:
        seen.extend(reading.feed(b"data:" + msgspec.json.encode({"output": value}) + b"\n\n"))
        seen.extend(reading.feed(frame("", "stop")))
        seen.extend(reading.finish())
    except ProviderError:
        return
    check_order(seen)


# -- usage while it runs ---------------------------------------------------------------------------------------------


def test_the_counts_so_far_are_known_when_a_stream_is_cut() -> None:
    """quirk 21: usage is in every frame and cumulative."""
    reading = decoder()
    assert reading.usage is None
    list(reading.feed(frame("a", output=1)))
    list(reading.feed(frame("b", output=2)))
    with pytest.raises(StreamCut):
        list(reading.finish())
    assert reading.usage is not None
    assert (reading.usage.input, reading.usage.output) == (9, 2)


counts = st.integers(-5, 50)


@given(counts, counts, counts, counts, counts, counts, counts, st.none() | counts)
def test_classes_are_disjoint_and_sum_to_the_vendors_totals(
    into: int, out: int, cached: int, written: int, heard: int, thought: int, spoken: int, total: int | None
) -> None:
    usage = read_usage(
        {
            "input_tokens": into,
            "output_tokens": out,
            "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": cached, "cache_creation_input_tokens": written},
            "input_tokens_details": {"audio_tokens": heard},
            "output_tokens_details": {"reasoning_tokens": thought, "audio_tokens": spoken},
        }
    )
    classes = (usage.input, usage.cache_read, usage.cache_write, usage.cache_write_1h, usage.input_audio)
    assert min(*classes, usage.output, usage.reasoning, usage.output_audio) >= 0
    assert usage.prompt_total == max(into, 0)
    assert usage.completion_total == max(out, 0)
    fits = (
        min(into, out, cached, written, heard, thought, spoken) >= 0
        and cached + written <= into
        # what was heard may have been read from the cache
        and heard <= into
        and thought + spoken <= out
        and total in (None, 0, into + out)
    )
    assert (usage.flag is None) is fits


@pytest.mark.parametrize(
    ("usage", "write", "write_1h"),
    [
        ({"cache_creation_input_tokens": 10}, 10, 0),
        ({"cache_creation": {"ephemeral_5m_input_tokens": 10}}, 10, 0),
        ({"cache_creation_input_tokens": 10, "cache_creation": {"ephemeral_5m_input_tokens": 10}}, 10, 0),
        ({"cache_creation_input_tokens": 10, "cache_creation": {"ephemeral_1h_input_tokens": 4}}, 6, 4),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_cache_writes_are_found_where_they_are(usage: Any, write: int, write_1h: int, nested: bool) -> None:
    given_usage = {"input_tokens": 20, "output_tokens": 0, **({"prompt_tokens_details": usage} if nested else usage)}
    read = read_usage(given_usage)
    assert (read.cache_write, read.cache_write_1h, read.input, read.flag) == (
        write,
        write_1h,
        20 - write - write_1h,
        None,
    )


def test_counts_of_other_kinds_than_numbers_are_nothing() -> None:
    read = read_usage({"input_tokens": "9", "output_tokens": True, "total_tokens": None, "prompt_tokens_details": 3})
    assert (read.prompt_total, read.completion_total) == (0, 0)
    assert read.flag == (
        "input_tokens is no number; output_tokens is no number; "
        "the tokens of the prompt are not told; the tokens of the completion are not told"
    )
    assert read_usage({"input_tokens": 9.0, "output_tokens": 1e300}).prompt_total == 9


@pytest.mark.parametrize(
    ("usage", "tokens", "flag"),
    [
        ({"output_tokens": 3}, (0, 3), "the tokens of the prompt are not told"),
        ({"input_tokens": 9}, (9, 0), "the tokens of the completion are not told"),
        ({"input_tokens": 9, "total_tokens": 12}, (9, 3), None),
        (
            {"input_tokens": 1e14, "output_tokens": 3},
            (0, 3),
            "input_tokens is not believed; the tokens of the prompt are not told",
        ),
        ({"input_tokens": 10**9, "output_tokens": 3}, (10**9, 3), None),
        (
            {"input_tokens": 9, "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 10**9 + 1}},
            (9, 3),
            "reasoning_tokens is not believed",
        ),
    ],
)
def test_a_side_that_is_not_told_or_not_believed_is_flagged(
    usage: Any, tokens: tuple[int, int], flag: str | None
) -> None:
    read = read_usage(usage)
    assert ((read.prompt_total, read.completion_total), read.flag) == (tokens, flag)


def test_what_was_heard_may_have_been_read_from_the_cache() -> None:
    details = {"audio_tokens": 40, "cached_tokens": 80}
    read = read_usage({"input_tokens": 100, "output_tokens": 1, "input_tokens_details": details})
    assert (read.input, read.cache_read, read.input_audio, read.flag) == (0, 80, 20, None)


def test_counts_that_tell_nothing_are_none_and_one_choice_without_counts_is_not_zero() -> None:
    seen = Counts()
    seen.see({"input_tokens": 1e15, "output_tokens": "3"}, [0])
    assert seen.total() is None
    seen.see({"input_tokens": 9, "output_tokens": 5, "total_tokens": 14}, [1])
    assert seen.total() == {"input_tokens": 9, "output_tokens": None, "total_tokens": None}


def test_counts_after_the_last_choice_replace_and_those_of_choices_add() -> None:
    seen = Counts()
    seen.see({"input_tokens": 9, "output_tokens": 1}, [0])
    seen.see({"input_tokens": 9, "output_tokens": 5}, [1])
    seen.see({"input_tokens": 9, "output_tokens": 2}, [0])
    assert seen.total() == {"input_tokens": 9, "output_tokens": 7}
    seen.see({"input_tokens": 9, "output_tokens": 8}, [])
    assert seen.total() == {"input_tokens": 9, "output_tokens": 8}


# -- increments or the whole text so far -----------------------------------------------------------------------------


def joined(frames: list[str], tokens: list[int] | None = None) -> str:
    text = Increments(Reading())
    counted = tokens or [None] * len(frames)
    return "".join(text.take(frame, tokens=n) for frame, n in zip(frames, counted, strict=True)) + text.settle()


@given(st.lists(st.text("ab ", min_size=1, max_size=3), min_size=1, max_size=8))
def test_short_increments_are_never_lost_or_repeated(frames: list[str]) -> None:
    """Also `a`, `a`: a legitimate repetition (each frame has its token)."""
    assert joined(frames, list(range(1, len(frames) + 1))) == "".join(frames)
    assert joined(frames) == "".join(frames)


@given(st.lists(st.text("ab ", max_size=5), min_size=1, max_size=8), st.text("ab ", min_size=LONG))
def test_cumulative_frames_give_the_text_once(increments: list[str], start: str) -> None:
    frames = [start]
    for increment in increments:
        frames.append(frames[-1] + increment)
    assert joined(frames) == frames[-1]


def test_what_is_certain_is_not_held_back() -> None:
    text = Increments(Reading())
    assert text.take("ha") == "ha"
    # "haha" in either reading, or the same again
    assert text.take("ha") == ""
    assert text.take("haha") == "ha"
    assert text.take("!") == "haha!"


def test_one_text_proves_the_reading_of_the_others() -> None:
    reading = Reading()
    thinking, answer = Increments(reading), Increments(reading)
    assert [thinking.take("Let"), thinking.take(" me")] == ["Let", " me"]
    assert [answer.take("a"), answer.take("a")] == ["a", "a"]


def test_a_stream_that_stops_being_cumulative_loses_nothing() -> None:
    text = Increments(Reading())
    long = "x" * LONG
    assert [text.take(long), text.take(long + "a"), text.take("b"), text.take("b")] == [long, "a", "b", "b"]


def test_a_repeated_text_beside_tool_calls_is_the_text_so_far() -> None:
    call = {"index": 0, "id": "call_1", "function": {"name": "now", "arguments": "{}"}}
    reading = decoder()
    seen = [*reading.feed(frame("On it.")), *reading.feed(frame("On it.", "tool_calls", tool_calls=[call]))]
    assert texts(seen) == ["On it."]


def test_reasoning_that_is_held_back_comes_before_the_text() -> None:
    reading = decoder()
    seen = list(reading.feed(frame("", reasoning_content="ha") * 2 + frame("Yes") + frame("", "stop")))
    seen += reading.finish()
    check_order(seen)
    assert [event.text for event in seen if isinstance(event, ReasoningDelta | TextDelta)] == ["ha", "ha", "Yes"]


# -- tool calls ------------------------------------------------------------------------------------------------------


def fold(*frames: bytes) -> list[tuple[str, str, str]]:
    reading, total = decoder(), Fold()
    seen = [event for data in frames for event in reading.feed(data)]
    seen += reading.finish()
    for event in check_order(seen):
        total.add(event)
    return [(call.id, call.name, call.arguments) for call in total.result().choices[0].tool_calls()]


def call(arguments: Any, call_id: str = "", name: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}, **fields}


@pytest.mark.parametrize(
    "second",
    [
        call('"x"}', "", None, index=0),
        call('"x"}', "call_a", None, index=0),
        call('"x"}', "call_other", None, index=0),
        call('"x"}', "", ""),
        call('{"n":"x"}', "call_a", "f", index=0),
    ],
    ids=[
        "quirk 44: an empty id goes on",
        "quirk 45: a repeated id goes on",
        "quirk 45: a new id in each piece goes on",
        "quirk 40: no index goes on with the last",
        "the whole call again",
    ],
)
def test_pieces_of_one_call_are_one_call(second: dict[str, Any]) -> None:
    first = call('{"n":', "call_a", "f", index=0)
    frames = (frame("", tool_calls=[first]), frame("", tool_calls=[second]), frame("", "tool_calls"))
    assert fold(*frames) == [("call_a", "f", '{"n":"x"}')]


def test_indexes_with_gaps_open_dense_slots() -> None:
    """quirk 42."""
    calls = [call("{}", "call_a", "f", index=1), call("{}", "call_b", "g", index=5)]
    assert fold(frame("", tool_calls=calls), frame("", "tool_calls")) == [("call_a", "f", "{}"), ("call_b", "g", "{}")]


def test_calls_without_ids_get_ids_of_their_own() -> None:
    """quirk 43."""
    calls = [call("{}", "", "f", index=0), call("{}", "", "f", index=1)]
    ids = [call_id for call_id, _, _ in fold(frame("", tool_calls=calls), frame("", "tool_calls"))]
    assert len(set(ids)) == 2
    assert all(ids)


def test_a_whole_call_that_is_repeated_without_id_is_not_doubled() -> None:
    first, again = call('{"n":1}', "call_a", "f", index=0), call('{"n":1}', "", None, index=0)
    assert fold(frame("", tool_calls=[first]), frame("", "tool_calls", tool_calls=[again])) == [
        ("call_a", "f", '{"n":1}')
    ]


def test_an_object_that_grows_is_given_out_whole() -> None:
    """quirk 47: arguments as an object."""
    first, grown = call({"n": "x"}, "call_a", "f", index=0), call({"n": "xy"}, "call_a", "f", index=0)
    assert fold(frame("", tool_calls=[first]), frame("", "tool_calls", tool_calls=[grown])) == [
        ("call_a", "f", '{"n":"xy"}')
    ]


# -- errors ----------------------------------------------------------------------------------------------------------


def test_a_wait_that_the_vendor_names_is_kept_for_errors_in_a_stream() -> None:
    data = b'event:error\n:HTTP_STATUS/429\ndata:{"code":"Throttling","message":"Please try again in 3s."}\n\n'
    with pytest.raises(RateLimited) as caught:
        list(decoder().feed(data))
    assert (caught.value.retry_after, caught.value.vendor_status) == (3.0, 429)


def test_the_true_status_of_an_error_in_a_stream_is_in_its_comment() -> None:
    data = b'id:1\nevent: error \n:HTTP_STATUS/503\ndata:{"code":"Odd","message":"Odd.","request_id":"r-1"}\n\n'
    with pytest.raises(ProviderError) as caught:
        list(decoder().feed(data))
    assert caught.value.status == 503
    assert (caught.value.vendor_status, caught.value.vendor_code, caught.value.vendor_request_id) == (503, "Odd", "r-1")


def test_a_status_line_counts_like_the_comment() -> None:
    with pytest.raises(ProviderError) as caught:
        list(decoder().feed(b'event:error\nstatus:429\ndata:{"code":"Odd","message":"Odd."}\n\n'))
    assert type(caught.value) is RateLimited


def test_an_error_spread_over_several_lines_is_read() -> None:
    data = b'event:error\n:HTTP_STATUS/400\ndata:{\ndata:"code":"Arrearage","message":"Pay."}\n\n'
    with pytest.raises(ProviderError) as caught:
        list(decoder().feed(data))
    assert caught.value.code == "provider_quota_exhausted"


def test_an_error_that_is_cut_short_still_says_what_came() -> None:
    reading = decoder()
    list(reading.feed(b'event:error\n:HTTP_STATUS/500\ndata:{"code":"Intern'))
    with pytest.raises(ProviderError) as caught:
        list(reading.finish())
    assert caught.value.vendor_status == 500


@pytest.mark.parametrize("code", ["", "200", "Success"])
def test_a_code_of_success_is_none(code: str) -> None:
    """quirk 62: a 200 may say in its body that it failed, or that it did not."""
    reading = decoder()
    fields = msgspec.json.decode(body("Hi", "stop")) | {"code": code, "message": "", "status_code": 200}
    assert texts([*reading.feed(msgspec.json.encode(fields)), *reading.finish()]) == ["Hi"]


def test_no_error_quotes_the_key() -> None:
    said = b'{"code":"InvalidApiKey","message":"Invalid API-key sk-abcdef123456 provided."}'
    assert "abcdef" not in adapter().error(HttpError(401, {}, said), TARGET).message


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "Rejected"), (401, "VendorAuthFailed"), (402, "VendorQuotaExhausted"), (403, "VendorModelForbidden"),
        (404, "VendorModelUnknown"), (408, "TimedOut"), (413, "Rejected"), (422, "Rejected"), (429, "RateLimited"),
        (500, "VendorFailed"), (502, "VendorFailed"), (503, "VendorOverloaded"), (504, "TimedOut"),
        (524, "VendorFailed"),
    ],
)  # fmt: skip
def test_without_a_known_code_the_status_decides(status: int, name: str) -> None:
    for said in (b"", b'{"code":"Odd","message":"Odd."}', b"<html><body>Bad</body></html>"):
        assert type(adapter().error(HttpError(status, {}, said), TARGET)).__name__ == name


def test_a_coarse_type_does_not_outdo_the_status() -> None:
    said = b'{"error":{"message":"Incorrect API key provided.","type":"invalid_request_error","code":null}}'
    assert type(adapter().error(HttpError(401, {}, said), TARGET)).__name__ == "VendorAuthFailed"
