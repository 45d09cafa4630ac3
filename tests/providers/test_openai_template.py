"""The short way for like chunks must be invisible: the same events as the long way, whatever a server sends."""

import json
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.openai import OpenAI, Options, decoder
from providers.openai.template import Template, template_of
from router.errors import ProviderError
from router.events import Event, Extra, ReasoningDelta, TextDelta
from router.messages import ChatRequest, User
from router.provider import HttpHead, ProviderSettings, Target

TARGET = Target("vendor", "model-1")
REQUEST = ChatRequest(model="chat", messages=(User("Hi"),), protocol="openai", stream=True)


def play(pieces: list[bytes], *, short: bool = True, **options: Any) -> tuple[list[Event], Any]:
    """The events of a stream, and the error at its end; `short` allows the short way."""
    settings = ProviderSettings(name="vendor", base_url="https://vendor.example/v1", options=Options(**options))
    provider = OpenAI(settings)
    events: list[Event] = []
    with patch.object(decoder, "_MAX_VAIN", decoder._MAX_VAIN if short else 0):
        reading = provider.decoder(REQUEST, TARGET, provider.encode(REQUEST, TARGET), HttpHead(200, {}))
        try:
            for piece in pieces:
                events.extend(reading.feed(piece))
            events.extend(reading.finish())
        except ProviderError as error:
            return events, (type(error), error.message)
    return events, None


def chunk(delta: Any, finish: str | None = None, **top: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "c1", "created": 1, "model": "m", "choices": [choice], "usage": None, **top}


def frame(value: Any, *, ascii_only: bool = False, spaced: bool = False) -> bytes:
    separators = (", ", ": ") if spaced else (",", ":")
    return b"data: " + json.dumps(value, ensure_ascii=ascii_only, separators=separators).encode() + b"\n\n"


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8) | st.sampled_from(
    ['"', "\\", '\\"', '},"logprobs":null', '"content":"x"', "\n", "\u2028", "<think>", "</think>", "null", "0"]
)
deltas = (
    st.fixed_dictionaries({"content": texts})
    | st.fixed_dictionaries({"reasoning_content": texts, "content": st.sampled_from([None, ""])})
    | st.fixed_dictionaries({"reasoning": texts})
    | st.fixed_dictionaries({"content": texts, "role": st.just("assistant")})
    | st.fixed_dictionaries({"content": texts, "refusal": st.sampled_from([None, "No"])})
    | st.fixed_dictionaries({"reasoning": texts, "reasoning_content": texts})
    | st.fixed_dictionaries({"tool_calls": st.just([{"index": 0, "id": "a", "function": {"name": "f"}}])})
)
tops = st.fixed_dictionaries(
    {},
    optional={
        "obfuscation": st.text("abcXYZ019", max_size=4) | st.sampled_from(['a"b', "a b", "\\"]),
        "system_fingerprint": st.sampled_from(["fp_1", "fp_2", None]),
        "usage": st.sampled_from([None, {"prompt_tokens": 1, "completion_tokens": 2}]),
        "id": st.sampled_from(["c1", "c2"]),
    },
)
choice_extras = st.sampled_from(
    [{}, {}, {}, {"content_filter_results": {"hate": {"filtered": False}}}, {"logprobs": {"content": [{"token": "x"}]}}]
)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Chunks like those of a real stream: long runs of one form, and changes in between."""
    frames = [frame(chunk({"role": "assistant", "content": ""}))]
    for _ in range(draw(st.integers(1, 4))):
        top, extras, index = draw(tops), draw(choice_extras), draw(st.sampled_from([0, 0, 0, 1]))
        spaced, ascii_only, form = draw(st.booleans()), draw(st.booleans()), draw(deltas)
        for _ in range(draw(st.integers(1, 5))):
            delta = {
                key: draw(texts) if isinstance(value, str) and key != "role" else value for key, value in form.items()
            }
            if "obfuscation" in top:
                top = {**top, "obfuscation": draw(st.text("abcXYZ019", max_size=4) | st.just('a"b'))}
            value = chunk(delta, **top)
            value["choices"][0] |= {**extras, "index": index}
            frames.append(frame(value, ascii_only=ascii_only, spaced=spaced))
    return frames


def ending() -> list[bytes]:
    stops = [chunk({}, "stop"), chunk({}, "stop")]
    stops[1]["choices"][0]["index"] = 1
    return [*map(frame, stops), b"data: [DONE]\n\n"]


@given(streams(), st.booleans())
def test_short_way_gives_the_events_of_the_long_way(frames: list[bytes], tags: bool) -> None:
    body = frames + ending()
    assert play(body, think_tags=tags) == play(body, think_tags=tags, short=False)
    assert play([b"".join(body)]) == play(body, short=False)


@given(streams(), st.data())
def test_damaged_chunks_end_as_they_do_the_long_way(frames: list[bytes], data: st.DataObject) -> None:
    body = bytearray(b"".join(frames + ending()))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b'"', b"\\", b"{", b"}", b",", b'"content":"z",'])
        )
    assert play([bytes(body)]) == play([bytes(body)], short=False)


def template(data: bytes, key: str = "content") -> Template | None:
    value = json.loads(data)
    text = value["choices"][0]["delta"][key]
    event = TextDelta(0, 0, text) if key == "content" else ReasoningDelta(0, 0, text)
    return template_of(data, value, key, event)


def bare(value: Any) -> bytes:
    return frame(value)[6:-2]


def test_template_reads_like_chunks_and_no_others() -> None:
    made = template(bare(chunk({"content": "a"})))
    assert made is not None
    assert made.read(bare(chunk({"content": 'b"\n🌍'}))) == TextDelta(0, 0, 'b"\n🌍')
    for other in (
        chunk({"content": ""}),
        chunk({"content": None}),
        chunk({"content": 1}),
        chunk({"content": "a", "role": "assistant"}),
        chunk({"content": "a"}, "stop"),
        chunk({"content": "a"}, usage={}),
        chunk({"content": "a"}, id="c2"),
    ):
        assert made.read(bare(other)) is None
    injected = bare(chunk({"content": "a"})).replace(b'"a"', b'"a","content":"b"')
    assert made.read(injected) is None
    assert made.read(b"") is None


def test_template_allows_for_padding_of_any_length() -> None:
    made = template(bare(chunk({"content": "a"}, obfuscation="abc")))
    assert made is not None
    for padding in ("", "x", "A1b2C3d4"):
        assert made.read(bare(chunk({"content": "b"}, obfuscation=padding))) == TextDelta(0, 0, "b")
    for padding in ('"', "a b", 'x","usage":{"prompt_tokens":1},"y":"'):
        assert made.read(bare(chunk({"content": "b"}, obfuscation=padding))) is None
    raw = bare(chunk({"content": "b"}, obfuscation="PAD"))
    assert made.read(raw.replace(b"PAD", b'","x":1,"y":"')) is None
    assert made.read(raw.replace(b'"obfuscation":"PAD"', b'"obfuscation":"')) is None


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices":[{"delta":{"content":"a","content":"b"}}]}',
        b'{"choices":[{"delta":{"content":"b","c\\u006fntent":"b"}}]}',
        b'{"content":"b","choices":[{"delta":{"c\\u006fntent":"b"}}]}',
        b'{"choices":[{"delta":{"content":"b"}}],"choices":[{"delta":{"c\\u006fntent":"b"}}]}',
    ],
)
def test_no_template_is_made_where_the_text_has_no_single_place(data: bytes) -> None:
    assert template(data) is None


def test_no_template_shares_a_list_between_events() -> None:
    value = chunk({"content": "a"})
    for extra in (Extra("openai", choice={"logprobs": {"content": []}}), Extra("openai", answer={"x": 1})):
        assert template_of(bare(value), value, "content", TextDelta(0, 0, "a", extra)) is None


def test_repeated_vendor_fields_come_with_every_event_of_the_short_way() -> None:
    value = chunk({"content": "a"})
    extra = Extra("openai", choice={"content_filter_results": {"hate": {"filtered": False}}})
    made = template_of(bare(value), value, "content", TextDelta(0, 2, "a", extra))
    assert made is not None
    assert made.read(bare(value)) == TextDelta(0, 2, "a", extra)


def test_short_way_is_taken_and_given_up_where_it_never_fits() -> None:
    reading = OpenAI(ProviderSettings(name="v", base_url="https://vendor.example/v1")).decoder(
        REQUEST,
        TARGET,
        None,
        HttpHead(200, {}),  # type: ignore[arg-type]
    )
    with patch.object(decoder, "template_of", wraps=template_of) as making:
        for _ in range(20):
            list(reading.feed(frame(chunk({"content": "a"}))))
        assert making.call_count == 1
        for n in range(50):
            list(reading.feed(frame(chunk({"content": "a"}, id=f"c{n}"))))
        assert making.call_count <= 1 + 8
