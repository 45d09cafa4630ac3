"""What the mock vendor's models do, played as dispatch plays them: encode, respond, decode."""

import asyncio
import time
from typing import Any

import msgspec
import pytest

from providers.mock import Mock, directive, tokens
from providers.openai import OpenAI
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
    VendorModelUnknown,
    VendorOverloaded,
    VendorQuotaExhausted,
)
from router.events import Event, ReasoningDelta, Started, TextDelta, ToolCallDelta, Usage, check_order
from router.fold import Answer, Fold
from router.messages import (
    AllowedTools,
    Assistant,
    ChatRequest,
    CustomTool,
    FunctionTool,
    JsonObject,
    JsonSchema,
    NamedTool,
    Sampling,
    System,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    User,
)
from router.provider import HttpError, HttpHead, InProcess, ProviderSettings, Target, VendorResponse
from router.splice import Splice, continuation_of

WEATHER = FunctionTool(
    "weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
        "required": ["city", "days"],
    },
)
CLOCK = FunctionTool("clock")
SHELL = CustomTool("shell")


def asked(model: str, text: str = "one two three", **fields: Any) -> ChatRequest:
    fields.setdefault("messages", (System("Be brief."), User(text)))
    return ChatRequest(model=model, protocol="openai", **fields)


async def respond(request: ChatRequest) -> VendorResponse:
    mock = mock_provider()
    return await mock.respond(mock.encode(request, Target("mock", request.model)))


def mock_provider() -> Mock:
    return Mock(ProviderSettings(name="mock", base_url="", options=Mock.Options()))


async def events_of(request: ChatRequest) -> list[Event]:
    mock, target = mock_provider(), Target("mock", request.model)
    sent = mock.encode(request, target)
    response = await mock.respond(sent)
    assert response.status == 200
    decoder = mock.decoder(request, target, sent, HttpHead(response.status, response.headers))
    events: list[Event] = []
    async for chunk in response.body:
        events.extend(decoder.feed(chunk))
    events.extend(decoder.finish())
    return check_order(events)


async def answer_of(request: ChatRequest) -> Answer:
    fold = Fold()
    for event in await events_of(request):
        fold.add(event)
    return fold.result()


async def error_of(model: str) -> ProviderError:
    response = await respond(asked(model))
    body = b"".join([chunk async for chunk in response.body])
    return mock_provider().error(HttpError(response.status, response.headers, body), Target("mock", model))


def test_it_answers_in_process() -> None:
    assert isinstance(mock_provider(), InProcess)


async def test_echo_repeats_the_last_user_text_word_by_word() -> None:
    events = await events_of(asked("echo", messages=(User("first"), Assistant("ok"), User("one  two\nthree "))))
    assert [e.text for e in events if isinstance(e, TextDelta)] == ["one", "  two", "\nthree", " "]


async def test_echo_joins_the_text_parts_of_a_message() -> None:
    answer = await answer_of(asked("echo", messages=(User((Text("Hello "), Text("world"))),)))
    assert answer.choices[0].text() == "Hello world"


async def test_the_same_request_gives_the_same_answer_twice() -> None:
    first, second = await answer_of(asked("tools", tools=(WEATHER,))), await answer_of(asked("tools", tools=(WEATHER,)))
    first.created = second.created = 0
    assert first == second


async def test_answers_to_other_requests_have_other_ids() -> None:
    first, second = await answer_of(asked("tools", tools=(WEATHER,))), await answer_of(asked("tools", tools=(CLOCK,)))
    assert first.id != second.id
    assert first.choices[0].tool_calls()[0].id != second.choices[0].tool_calls()[0].id


@pytest.mark.parametrize(
    "text", ["", " ", "a", "you and  me\n\n", "你好，世界 ok", "日本語テキスト", "한국어", "x" * 100, "😀 é"]
)
def test_tokens_join_to_the_text(text: str) -> None:
    assert "".join(tokens(text)) == text
    assert all(len(token.strip()) <= 24 for token in tokens(text))


def test_chinese_text_is_not_one_token() -> None:
    assert tokens("你好 世界") == ["你", "好", " 世", "界"]


async def test_lorem_has_the_tokens_it_was_asked_for_and_reports_them() -> None:
    events = await events_of(asked("lorem-200"))
    assert sum(isinstance(e, TextDelta) for e in events) == 200
    answer = await answer_of(asked("lorem-200"))
    assert answer.usage == Usage(input=2 + 3, output=200)
    assert tokens(answer.choices[0].text()) == [e.text for e in events if isinstance(e, TextDelta)]


async def test_reasoning_comes_before_the_text_and_is_counted_apart() -> None:
    events = await events_of(asked("reasoning"))
    kinds = [type(e) for e in events if isinstance(e, ReasoningDelta | TextDelta)]
    assert kinds == [ReasoningDelta] * kinds.count(ReasoningDelta) + [TextDelta] * 3
    answer = await answer_of(asked("reasoning"))
    assert answer.usage is not None
    assert (answer.usage.reasoning, answer.usage.output) == (kinds.count(ReasoningDelta), 3)


async def test_reasoning_can_be_switched_off() -> None:
    answer = await answer_of(asked("reasoning", thinking=Thinking(enabled=False)))
    assert (answer.choices[0].reasoning(), answer.choices[0].text()) == ("", "one two three")


async def test_tools_calls_two_tools_with_arguments_their_schemas_admit() -> None:
    answer = await answer_of(asked("tools", tools=(WEATHER, CLOCK, SHELL)))
    calls = answer.choices[0].tool_calls()
    assert [(call.name, msgspec.json.decode(call.arguments)) for call in calls] == [
        ("weather", {"city": "text", "days": 1}),
        ("clock", {}),
    ]
    assert len({call.id for call in calls}) == 2
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_tool_arguments_come_in_pieces() -> None:
    events = await events_of(asked("tools", tools=(WEATHER,)))
    assert sum(isinstance(e, ToolCallDelta) for e in events) > 1


async def test_one_tool_is_called_when_parallel_calls_are_off() -> None:
    answer = await answer_of(asked("tools", tools=(WEATHER, CLOCK), parallel_tool_calls=False))
    assert [call.name for call in answer.choices[0].tool_calls()] == ["weather"]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("none", []),
        ("required", ["weather", "shell"]),
        (NamedTool("shell", "custom"), ["shell"]),
        (AllowedTools("auto", ({"type": "function", "function": {"name": "weather"}},)), ["weather"]),
    ],
)
async def test_tool_choice_is_honoured(choice: Any, names: list[str]) -> None:
    answer = await answer_of(asked("tools", tools=(WEATHER, SHELL), tool_choice=choice))
    assert [call.name for call in answer.choices[0].tool_calls()] == names
    assert bool(answer.choices[0].text()) is not bool(names)


async def test_a_custom_tool_gets_free_text() -> None:
    answer = await answer_of(asked("tools", tools=(SHELL,)))
    (call,) = answer.choices[0].tool_calls()
    assert (call.kind, call.arguments) == ("custom", "text")


async def test_a_tool_result_is_answered_in_text() -> None:
    calls = (ToolCall("c1", "weather", "{}"), ToolCall("c2", "clock", "{}"))
    turns = (User("?"), Assistant(tool_calls=calls), ToolResult("c1", "rain"), ToolResult("c2", "noon"))
    answer = await answer_of(asked("tools", tools=(WEATHER,), messages=turns))
    assert answer.choices[0].text() == "The tool says: rain, noon"
    assert answer.choices[0].finish_reason == "stop"


async def test_a_json_schema_gets_an_instance_of_it() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    answer = await answer_of(asked("echo", response_format=JsonSchema("point", schema)))
    assert msgspec.json.decode(answer.choices[0].text()) == {"n": 0}


async def test_json_mode_gets_an_object() -> None:
    answer = await answer_of(asked("echo", response_format=JsonObject()))
    assert msgspec.json.decode(answer.choices[0].text()) == {"echo": "one two three"}


async def test_several_choices_come_interleaved() -> None:
    events = await events_of(asked("echo", sampling=Sampling(n=2)))
    assert [e.choice for e in events if isinstance(e, TextDelta)] == [0, 1, 0, 1, 0, 1]
    answer = await answer_of(asked("echo", sampling=Sampling(n=2)))
    assert [choice.text() for choice in answer.choices] == ["one two three"] * 2
    assert answer.usage == Usage(input=5, output=6)


@pytest.mark.parametrize(("model", "limit"), [("lorem-50", 7), ("reasoning", 4), ("tools", 1), ("echo", 0)])
async def test_max_tokens_ends_the_answer_with_length(model: str, limit: int) -> None:
    answer = await answer_of(asked(model, tools=(WEATHER, CLOCK), sampling=Sampling(max_tokens=limit)))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_total == limit


async def test_an_answer_of_just_max_tokens_is_complete() -> None:
    answer = await answer_of(asked("echo", sampling=Sampling(max_tokens=3)))
    assert answer.choices[0].finish_reason == "stop"


async def test_the_first_stop_sequence_ends_the_text_before_it() -> None:
    answer = await answer_of(asked("echo", "a b c d", sampling=Sampling(stop=("d", " c", "x"))))
    assert (answer.choices[0].text(), answer.choices[0].stop_sequence) == ("a b", " c")
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("model", "kind", "wait"),
    [
        ("error-400", Rejected, None),
        ("error-401", VendorAuthFailed, None),
        ("error-402", VendorQuotaExhausted, None),
        ("error-404", VendorModelUnknown, None),
        ("error-408", TimedOut, None),
        ("error-409", VendorFailed, None),
        ("error-418", Rejected, None),
        ("error-429", RateLimited, 1.0),
        ("error-500", VendorFailed, None),
        ("error-503", VendorOverloaded, 1.0),
        ("error-504", TimedOut, None),
        ("error-529", VendorOverloaded, None),
    ],
)
async def test_error_models_fail_with_their_status(model: str, kind: type[ProviderError], wait: float | None) -> None:
    error = await error_of(model)
    assert type(error) is kind
    assert error.vendor_status == int(model[-3:])
    assert error.retry_after == wait
    assert error.vendor_request_id
    assert f"`mock/{model}`" in error.message


async def test_a_schema_that_is_none_is_refused() -> None:
    response = await respond(asked("echo", response_format=JsonSchema("point", {"anyOf": 5})))
    assert response.status == 400


@pytest.mark.parametrize(
    "model",
    [
        "gpt-5",
        "lorem",
        "lorem-x",
        "lorem-9999999",
        "echo-",
        "echo+",
        "error-200",
        "echo+lorem-3",
        "slow-1+slow-2",
        "slow-start",
        "slow-start-x",
        "slow-start-1+slow-start-2",
        "flaky-101",
        "flaky",
        "error-odd",
        "error-4290",
        "-",
    ],
)
async def test_an_unknown_model_is_refused_and_the_known_ones_listed(model: str) -> None:
    assert directive(model) is None
    error = await error_of(model)
    assert isinstance(error, VendorModelUnknown)
    assert "`lorem-N`" in error.message


@pytest.mark.parametrize("status", range(400, 600))
async def test_every_status_is_an_error_as_of_an_openai_compatible_vendor(status: int) -> None:
    vendor = OpenAI(ProviderSettings(name="openai", base_url="https://v.example/v1"))
    response = await respond(asked(f"error-{status}"))
    body = b"".join([chunk async for chunk in response.body])
    theirs = vendor.error(HttpError(response.status, response.headers, body), Target("openai", "m"))
    ours = await error_of(f"error-{status}")
    assert (type(ours), ours.retry_after) == (type(theirs), theirs.retry_after)


@pytest.mark.parametrize(
    ("why", "kind"),
    [("context_length", ContextTooLong), ("content_filter", ContentFiltered), ("unsupported", Unsupported)],
)
async def test_a_request_may_be_told_not_to_fit(why: str, kind: type[ProviderError]) -> None:
    error = await error_of(f"error-{why}")
    assert (type(error), error.vendor_status) == (kind, 400)


@pytest.mark.parametrize(
    ("share", "failed"),
    [(0, []), (25, [4, 8, 12]), (30, [4, 7, 10]), (50, [2, 4, 6, 8, 10, 12]), (100, [*range(1, 13)])],
)
async def test_a_flaky_model_fails_the_same_calls_each_time(share: int, failed: list[int]) -> None:
    mock, request = mock_provider(), asked(f"flaky-{share}")
    statuses = [(await mock.respond(mock.encode(request, Target("mock", request.model)))).status for _ in range(12)]
    assert [n for n, status in enumerate(statuses, 1) if status == 500] == failed
    assert set(statuses) <= {200, 500}


async def test_flaky_models_are_counted_each_by_its_own_name() -> None:
    mock = mock_provider()
    for model in ("flaky-50+echo", "flaky-50+lorem-3", "flaky-50+echo"):
        response = await mock.respond(mock.encode(asked(model), Target("mock", model)))
    assert response.status == 500


async def test_a_slow_start_comes_before_the_first_delta_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    response = await respond(asked("echo+slow-start-500"))
    assert waits == []
    await anext(response.body)
    assert waits == [0.5]
    async for _ in response.body:
        pass
    assert [wait for wait in waits if wait] == [0.5]


@pytest.mark.parametrize(
    ("begun", "rest"),
    [
        ("one", [" two", " three"]),
        ("one two three", []),
        ("other", ["one", " two", " three"]),
        ("on", ["e", " two", " three"]),
    ],
)
async def test_a_beginning_of_the_answer_is_gone_on_with(begun: str, rest: list[str]) -> None:
    events = await events_of(asked("echo", messages=(User("one two three"), Assistant(begun))))
    assert [event.text for event in events if isinstance(event, TextDelta)] == rest


async def test_what_was_cut_is_continued_to_the_whole_answer() -> None:
    mock, target, splice = mock_provider(), Target("mock", "lorem-30"), Splice(asked("lorem-30"))
    splice.see(Started("m", "m", 0))
    for word in tokens((await answer_of(asked("lorem-30"))).choices[0].text())[:10]:
        splice.see(TextDelta(0, 0, word))
    splice.leave(None)
    for event in splice.join(await events_of(continuation_of(mock, asked("lorem-30"), target, splice.text))):
        splice.see(event)
    assert splice.text == (await answer_of(asked("lorem-30"))).choices[0].text()


async def test_the_body_of_an_error_may_be_unreadable() -> None:
    error = mock_provider().error(HttpError(500, {}, b"<html>"), Target("mock", "echo"))
    assert isinstance(error, VendorFailed)


async def events_until_it_breaks(model: str, text: str = "one two") -> list[Event]:
    response = await respond(asked(model, text))
    decoder = mock_provider().decoder(asked(model), Target("mock", model), None, None)  # type: ignore[arg-type]
    events: list[Event] = []
    body = aiter(response.body)
    try:
        while True:
            events.extend(decoder.feed(await anext(body)))
    except ConnectionError:
        pass
    with pytest.raises(StreamCut):
        list(decoder.finish())
    return events


@pytest.mark.parametrize("deltas", [0, 1, 10, 16, 100])
async def test_cut_breaks_the_connection_after_so_many_deltas(deltas: int) -> None:
    events = await events_until_it_breaks(f"cut-{deltas}")
    assert sum(isinstance(e, TextDelta) for e in events) == deltas


async def test_cut_breaks_a_shorter_answer_before_its_end() -> None:
    events = await events_until_it_breaks("echo+cut-10")
    assert [e.text for e in events if isinstance(e, TextDelta)] == ["one", " two"]


async def test_stall_sends_its_deltas_then_nothing_and_ends_when_cancelled() -> None:
    response = await respond(asked("stall-10"))
    first = await anext(response.body)
    assert first.count(b"text_delta") == 10
    waiting = asyncio.ensure_future(anext(response.body))  # type: ignore[arg-type]
    await asyncio.sleep(0.02)
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 1)


async def test_slow_waits_between_deltas_and_sends_each_alone() -> None:
    response = await respond(asked("echo+slow-20", "a b c d"))
    started = time.monotonic()
    chunks = [chunk async for chunk in response.body]
    assert 0.06 <= time.monotonic() - started < 1
    assert [chunk.count(b"text_delta") for chunk in chunks] == [1, 1, 1, 1, 0]


async def test_a_long_answer_lets_other_tasks_run() -> None:
    response = await respond(asked("lorem-2000"))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async for _ in response.body:
        pass
    task.cancel()
    assert turns > 50


async def test_modifiers_alone_give_filler() -> None:
    assert len(await events_of(asked("slow-0"))) == 50 + 4


def test_a_line_that_is_no_event_is_a_broken_protocol() -> None:
    decoder = mock_provider().decoder(asked("echo"), Target("mock", "echo"), None, None)  # type: ignore[arg-type]
    good = b'{"type":"started","id":"a","model":"b","created":0}\n'
    fed = iter(decoder.feed(good + b'{"type":"boom"}\n'))
    assert next(fed)
    with pytest.raises(ProtocolViolated):
        next(fed)


def test_an_endless_line_is_a_broken_protocol() -> None:
    decoder = mock_provider().decoder(asked("echo"), Target("mock", "echo"), None, None)  # type: ignore[arg-type]
    with pytest.raises(ProtocolViolated):
        list(decoder.feed(b"x" * (8 * 1024 * 1024 + 1)))


async def test_configured_headers_are_sent() -> None:
    mock = Mock(ProviderSettings(name="mock", base_url="", headers={"x-team": "a"}))
    assert mock.encode(asked("echo"), Target("mock", "echo")).headers["x-team"] == "a"
