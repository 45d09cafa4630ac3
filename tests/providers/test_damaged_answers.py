"""Answers that were damaged on their way, or that a vendor's fault made: only a `ProviderError` may come out.

Recorded transcripts are changed at the level of bytes and of JSON values, and played through the decoder, the fold and
the client's dialect.
"""

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from providers import load_provider
from router.dialect import Asked
from router.dialects.openai_chat import OpenAIChat
from router.errors import ProviderError
from router.events import Completed, Event, OrderCheck
from router.fold import Fold
from router.messages import ChatRequest, User
from router.provider import Decoder, HttpHead, ProviderSettings, Target

TRANSCRIPTS = Path(__file__).parent / "transcripts"
BODIES = [
    (path.parent.parent.name, path.read_bytes())
    for protocol in ("dashscope", "openai")
    for path in sorted((TRANSCRIPTS / protocol).glob("*/upstream.*"))
    if path.stat().st_size and not (path.parent / "error.json").exists()
]
DIALECT = OpenAIChat()
ODD = st.sampled_from(
    [b"", b"\n", b"\r", b"\n\n", b"data:", b"event: error\n", b":HTTP_STATUS/500\n", b"{", b"}", b"[", b"]", b'"',
     b"\\", b"\\ud800", b"\xff", b"\xef\xbb\xbf", b"null", b"1e999", b"-1", b"NaN", b"[DONE]", b"true", b"0" * 5000]
)  # fmt: skip
KEYS = st.sampled_from(["index", "id", "text", "code", "error", "function", "name", "arguments", "type"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "null", "x", "stop", "error", "tool_calls", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def decoder(protocol: str, *, streamed: bool = True) -> Decoder:
    provider_class: Any = load_provider(protocol)
    provider = provider_class(ProviderSettings(name="v", base_url="http://vendor.invalid/v1"))
    request = ChatRequest(model="m", messages=(User("Hi"),), protocol="openai", stream=streamed)
    target = Target("v", "m")
    made: Decoder = provider.decoder(request, target, provider.encode(request, target), HttpHead(200, {}))
    return made


def played(protocol: str, pieces: list[bytes]) -> tuple[list[Event], str | None]:
    """The events, and the class of the error after them."""
    reading, check, fold = decoder(protocol), OrderCheck(), Fold()
    asked = Asked(ChatRequest(model="m", messages=(User("Hi"),), protocol="openai", stream=True), True)
    written = DIALECT.stream(asked, "req_1")
    events: list[Event] = []
    error: str | None = None
    try:
        for step in (*pieces, None):
            for event in reading.finish() if step is None else reading.feed(step):
                check.see(event)
                fold.add(event)
                events.append(event)
                for line in written.encode(event).split(b"\n\n")[:-1]:
                    json.loads(line.removeprefix(b"data: "))
    except ProviderError as failure:
        error = type(failure).__name__
    json.loads(DIALECT.whole(asked, fold.result(), "req_1"))
    assert error is not None or isinstance(events[-1], Completed)
    assert reading.usage is None or min(reading.usage.prompt_total, reading.usage.completion_total) >= 0
    return events, error


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    protocol, body = draw(st.sampled_from(BODIES))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 60)))
        how = draw(st.integers(0, 2))
        if how == 0:
            body = body[:start] + draw(ODD) + body[end:]
        elif how == 1:
            body = body[:end] + body[start:]
        else:
            body = body[:start] + draw(st.binary(max_size=4)) + body[start:]
    return protocol, body


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damaged(), st.data())
def test_damaged_bytes_give_legal_events_and_a_provider_error_at_most(
    answer: tuple[str, bytes], data: st.DataObject
) -> None:
    protocol, body = answer
    whole = played(protocol, [body])
    cut = data.draw(st.integers(0, len(body)))
    assert played(protocol, [body[:cut], body[cut:]]) == whole


@st.composite
def rewritten(draw: st.DrawFn) -> tuple[str, bytes]:
    """A transcript with one to three values of one payload replaced."""
    protocol, body = draw(st.sampled_from(BODIES))
    lines = body.split(b"\n")
    payloads = [i for i, line in enumerate(lines) if _payload(line) is not None]
    if not payloads:
        return protocol, body
    at = draw(st.sampled_from(payloads))
    value = _payload(lines[at])
    for _ in range(draw(st.integers(1, 3))):
        value = _replaced(draw, value)
    start = b"data: " if lines[at].startswith(b"data") else b""
    lines[at] = start + json.dumps(value).encode()
    return protocol, b"\n".join(lines)


def _payload(line: bytes) -> Any:
    try:
        value = json.loads(line.removeprefix(b"data:"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _replaced(draw: st.DrawFn, value: Any) -> Any:
    """The value with one inside it, or itself, replaced."""
    if isinstance(value, dict) and value and draw(st.integers(0, 7)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: _replaced(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 7)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], _replaced(draw, value[at]), *value[at + 1 :]]
    return draw(JSON)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rewritten())
def test_values_of_any_kind_give_legal_events_and_a_provider_error_at_most(answer: tuple[str, bytes]) -> None:
    protocol, body = answer
    assert played(protocol, [body]) == played(protocol, [body[i : i + 7] for i in range(0, len(body), 7)])
