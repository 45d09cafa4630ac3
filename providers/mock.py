"""The `mock` vendor: answers without a network or a key, the same way every time, for users' own tests.

The model's name says what to do: one script, then any modifiers, joined by `+` (`mock/lorem-200+slow-50`).

============= ==========================================================================================
echo          the last user message, word by word
lorem-N       N tokens of filler (the script when only modifiers are given, with an N that is enough)
reasoning     some reasoning, then the echo
tools         a call of the first tool, or of the first two where parallel calls are allowed, with the
              smallest arguments that their schemas admit; answers in text once it has a tool's result
------------- ------------------------------------------------------------------------------------------
slow-MS       MS milliseconds between deltas
slow-start-MS MS milliseconds before the first delta
cut-N         the connection breaks after N deltas, or at the end of a shorter answer
stall-N       as `cut-N`, but the connection stays open and nothing more comes
error-S       HTTP status S (400 to 599) instead of an answer; 429 and 503 with `retry-after: 1`
error-WHY     the refusal of a request that does not fit the model: `context_length`, `content_filter`
              or `unsupported`
flaky-P       HTTP status 500 to P of a hundred calls of this name, spread evenly and always the same
              ones of a process: `flaky-25` fails the fourth, the eighth, …
============= ==========================================================================================

`response_format` is honoured: a JSON Schema gets the smallest value that it admits. So are `n`, `max_tokens`, `stop`,
`tool_choice` and `parallel_tool_calls`. A token is a word with the white space before it, a Chinese, Japanese or
Korean character, or 24 characters of a longer word; for tool arguments 8 characters. Each is one delta, and `usage`
counts them, on the way in too. A request that ends with the beginning of the answer, as the assistant's, is answered
with the rest of it.

Built on the public contract: `respond` plays the vendor (and alone may sleep), the rest is an ordinary adapter whose
wire format is one JSON event a line. It knows no dialect, no plugin and no socket.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from http import HTTPStatus
from itertools import cycle, islice
from typing import Any, ClassVar, Final

import msgspec
from msgspec import Struct

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
    VendorModelForbidden,
    VendorModelUnknown,
    VendorOverloaded,
    VendorQuotaExhausted,
)
from router.events import (
    ChoiceFinished,
    Completed,
    Event,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    ToolKind,
    Usage,
    UsageReported,
)
from router.json_example import example
from router.messages import (
    AllowedTools,
    Assistant,
    ChatRequest,
    Content,
    CustomTool,
    FunctionTool,
    JsonObject,
    JsonSchema,
    Message,
    NamedTool,
    Text,
    ToolResult,
    User,
)
from router.provider import HttpError, HttpHead, HttpRequest, ProviderSettings, Target, VendorResponse
from router.slots import Slots
from router.wire.vendor_error import extract_error, retry_after

MODELS: Final = (
    *("echo", "lorem-N", "reasoning", "tools", "slow-MS", "slow-start-MS", "cut-N", "stall-N"),
    *("error-S", "error-context_length", "error-content_filter", "error-unsupported", "flaky-P"),
)
MAX_NUMBER: Final = 100_000
"""The largest N and MS."""
MAX_LINE: Final = 8 * 1024 * 1024
"""Bytes one line of an answer may have."""

_MAX_NAMES: Final = 512
"""Names of flaky models whose calls are counted."""
_FOREVER: Final = 24 * 3600.0
"""Seconds that a stalled answer stays open."""
_FILLER: Final = 50
"""Tokens of filler when the model's name gives no script."""
_BATCH: Final = 16
"""Deltas in one chunk of the body, unless they are slow."""
_IDEOGRAPHIC: Final = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TOKEN: Final = re.compile(rf"\s*(?:[{_IDEOGRAPHIC}]|[^\s{_IDEOGRAPHIC}]{{1,24}})|\s+")
_LOREM: Final = (
    *("lorem", "ipsum", "dolor", "sit", "amet", "consectetur", "adipiscing", "elit", "sed", "do", "eiusmod"),
    *("tempor", "incididunt", "ut", "labore", "et", "dolore", "magna", "aliqua"),
)
_REASONING: Final = "The user said something. I repeat it, because that is what an echo does."


# -- what the vendor is asked ----------------------------------------------------------------------------------------


class ToolSpec(Struct, frozen=True):
    name: str
    kind: ToolKind = "function"
    parameters: dict[str, Any] | None = None


class Wanted(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a request to the mock vendor: what a script can make use of."""

    model: str
    text: str = ""
    """The last user message."""
    begun: str = ""
    """The beginning of the answer, which is not to be written again."""
    result: str | None = None
    """What the tools gave, when that is what the conversation ends with."""
    tools: tuple[ToolSpec, ...] = ()
    """Those that may be called."""
    parallel: bool = True
    think: bool = True
    json: bool = False
    json_schema: dict[str, Any] | None = None
    n: int = 1
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    input: int = 0
    """Tokens of all messages and tools."""


class Directive(Struct, frozen=True):
    """A model's name, taken apart."""

    script: str
    length: int = 0
    slow: float = 0.0
    """Seconds."""
    slow_start: float = 0.0
    """Seconds."""
    flaky: int = 0
    """Failures of a hundred calls."""
    unfit: str | None = None
    """Why the request does not fit."""
    cut: int | None = None
    """Deltas."""
    stall: int | None = None
    error: int | None = None


def directive(model: str) -> Directive | None:
    """What the model's name asks for; None when it is none of ours."""
    found: dict[str, Any] = {}
    for part in model.split("+"):
        word, dash, digits = part.rpartition("-") if "-" in part else (part, "", "")
        number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 7 else None
        asked: dict[str, Any]
        match word, number:
            case (("echo" | "reasoning" | "tools"), None) if not dash:
                asked = {"script": word}
            case "lorem", int() if number <= MAX_NUMBER:
                asked = {"script": word, "length": number}
            case "slow", int() if number <= MAX_NUMBER:
                asked = {"slow": number / 1000}
            case "slow-start", int() if number <= MAX_NUMBER:
                asked = {"slow_start": number / 1000}
            case "flaky", int() if number <= 100:
                asked = {word: number}
            case "error", None if digits in _UNFIT:
                asked = {"unfit": digits}
            case (("cut" | "stall"), int()) if number <= MAX_NUMBER:
                asked = {word: number}
            case "error", int() if 400 <= number <= 599:
                asked = {word: number}
            case _:
                return None
        if found.keys() & asked.keys():
            return None
        found |= asked
    if "script" not in found:
        found |= {"script": "lorem", "length": max(_FILLER, found.get("cut", 0), found.get("stall", 0))}
    return Directive(**found)


# -- the adapter -----------------------------------------------------------------------------------------------------


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing to set: the model's name says everything."""


class Mock:
    """The adapter, and the vendor behind it."""

    Options: ClassVar[type[Struct]] = Options
    base_url: ClassVar[str | None] = "mock:"

    def __init__(self, settings: ProviderSettings) -> None:
        self._settings = settings
        self._calls: dict[str, int] = {}
        """Flaky models → calls so far."""

    def encode(self, request: ChatRequest, target: Target) -> HttpRequest:
        wanted = Wanted(
            model=target.model,
            text=_last_user_text(request.messages),
            begun=_beginning(request.messages),
            result=_tool_results(request.messages),
            tools=_callable_tools(request),
            parallel=request.parallel_tool_calls is not False,
            think=request.thinking.enabled is not False,
            json=isinstance(request.response_format, JsonObject | JsonSchema),
            json_schema=request.response_format.schema if isinstance(request.response_format, JsonSchema) else None,
            n=request.sampling.n or 1,
            max_tokens=request.sampling.max_tokens,
            stop=request.sampling.stop or (),
            input=_input_tokens(request),
        )
        headers = {"content-type": "application/json", **self._settings.headers}
        url = self._settings.base_url
        return HttpRequest(url=url, headers=headers, body=msgspec.json.encode(wanted), streamed=True)

    def decoder(self, request: ChatRequest, target: Target, sent: HttpRequest, head: HttpHead) -> "LineDecoder":
        return LineDecoder()

    def error(self, response: HttpError, target: Target) -> ProviderError:
        said = extract_error(response.body, response.headers.get("content-type"))
        kind = _UNFIT.get(said.code or "") or _ERRORS.get(response.status)
        kind = kind or (Rejected if response.status < 500 else VendorFailed)
        return kind(
            f"`{target}` answered {response.status}: {said.message}",
            retry_after=retry_after(response.headers),
            vendor_status=response.status,
            vendor_code=said.code,
            vendor_request_id=response.headers.get("x-request-id"),
        )

    def continued(self, request: ChatRequest, target: Target) -> ChatRequest | None:
        return request

    def learn(self, error: ProviderError, target: Target, sent: HttpRequest) -> bool:
        return False

    async def respond(self, request: HttpRequest) -> VendorResponse:
        """Plays the vendor. Never waits here: what is slow is the body."""
        wanted = msgspec.json.decode(request.body, type=Wanted)
        identity = "mock-" + sha256(request.body).hexdigest()[:12]
        script = directive(wanted.model)
        if script is None:
            known = ", ".join(f"`{name}`" for name in MODELS)
            return _failed(404, identity, f"there is no such mock model; use one of {known}, joined by `+`")
        if script.error is not None:
            return _failed(script.error, identity, f"an error, as the model `error-{script.error}` is asked for")
        if script.unfit is not None:
            message = f"an error, as the model `error-{script.unfit}` is asked for"
            return _failed(400, identity, message, code=script.unfit)
        if script.flaky and self._is_time_to_fail(wanted.model, script.flaky):
            return _failed(500, identity, f"an error, as {script.flaky} of a hundred calls of this model get one")
        try:
            for schema in (wanted.json_schema, *(tool.parameters for tool in wanted.tools)):
                example(schema)
        except ValueError:
            return _failed(400, identity, "a schema in the request is no JSON Schema")
        head = {"content-type": "application/x-ndjson", "x-request-id": identity}
        events = _answer(script, wanted, identity, created=int(time.time()))
        return VendorResponse(200, head, _body(script, events))

    def _is_time_to_fail(self, model: str, share: int) -> bool:
        """Whether this call of a flaky model is one of those that fail. Calls are counted, nothing is drawn."""
        calls = self._calls.pop(model, 0) + 1
        self._calls[model] = calls
        if len(self._calls) > _MAX_NAMES:
            del self._calls[next(iter(self._calls))]
        return calls * share // 100 > (calls - 1) * share // 100


_ERRORS: Final[Mapping[int, type[ProviderError]]] = {
    401: VendorAuthFailed,
    402: VendorQuotaExhausted,
    403: VendorModelForbidden,
    404: VendorModelUnknown,
    408: TimedOut,
    409: VendorFailed,
    425: VendorFailed,
    429: RateLimited,
    498: VendorOverloaded,
    499: VendorFailed,
    503: VendorOverloaded,
    504: TimedOut,
    524: TimedOut,
    529: VendorOverloaded,
}
"""As of an OpenAI-compatible vendor: the other 4xx are `Rejected`, the other 5xx `VendorFailed`."""
_UNFIT: Final[Mapping[str, type[ProviderError]]] = {
    "context_length": ContextTooLong,
    "content_filter": ContentFiltered,
    "unsupported": Unsupported,
}
_PHRASES: Final = {498: "No Capacity", 524: "A Timeout Occurred", 529: "Overloaded"}
"""Of statuses that are not HTTP's own."""


class LineDecoder:
    """One JSON event a line → events."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(Event).decode
        self._rest = b""
        self._completed = False
        self.usage: Usage | None = None

    def feed(self, data: bytes) -> Iterator[Event]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise ProtocolViolated(f"the mock vendor sent a line of more than {MAX_LINE} bytes")
        for line in lines:
            if self._completed:
                return
            try:
                event = self._decode(line)
            except msgspec.DecodeError as error:
                raise ProtocolViolated("the mock vendor sent a line that is no event") from error
            self._completed = isinstance(event, Completed)
            if isinstance(event, UsageReported):
                self.usage = event.usage
            yield event

    def finish(self) -> Iterable[Event]:
        if not self._completed:
            raise StreamCut("the mock vendor's answer ended before it was complete")
        return ()


# -- reading the request ---------------------------------------------------------------------------------------------


def _plain(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content if isinstance(part, Text))


def _last_user_text(messages: Sequence[Message]) -> str:
    return next((_plain(m.content) for m in reversed(messages) if isinstance(m, User)), "")


def _beginning(messages: Sequence[Message]) -> str:
    """The text of a last message of the assistant's, which it has not called a tool in."""
    last = messages[-1] if messages else None
    return _plain(last.content) if isinstance(last, Assistant) and not last.tool_calls else ""


def _tool_results(messages: Sequence[Message]) -> str | None:
    """The texts of the tool results at the end, joined; None when the last message is something else."""
    texts: list[str] = []
    for message in reversed(messages):
        if not isinstance(message, ToolResult):
            break
        texts.append(_plain(message.content))
    return ", ".join(reversed(texts)) if texts else None


def _callable_tools(request: ChatRequest) -> tuple[ToolSpec, ...]:
    choice = request.tool_choice
    if choice == "none":
        return ()
    names: set[Any] | None = None
    if isinstance(choice, NamedTool):
        names = {choice.name}
    elif isinstance(choice, AllowedTools):
        names = {tool.get("name") or tool.get("function", {}).get("name") for tool in choice.tools}
    tools: list[ToolSpec] = []
    for tool in request.tools:
        if isinstance(tool, FunctionTool | CustomTool) and (names is None or tool.name in names):
            function = isinstance(tool, FunctionTool)
            tools.append(ToolSpec(tool.name, "function" if function else "custom", getattr(tool, "parameters", None)))
    return tuple(tools)


def _input_tokens(request: ChatRequest) -> int:
    total = 0
    for message in request.messages:
        total += len(tokens(_plain(message.content)))
        if isinstance(message, Assistant):
            total += sum(len(tokens(call.arguments)) for call in message.tool_calls)
    if request.tools:
        total += len(tokens(msgspec.json.encode(request.tools).decode()))
    return total


# -- writing the answer ----------------------------------------------------------------------------------------------


def tokens(text: str) -> list[str]:
    """The mock's tokens: they join to the text."""
    return _TOKEN.findall(text)


class Budget:
    """What one choice may still generate."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.used = 0

    def take(self, pieces: Sequence[str]) -> Sequence[str]:
        """As many of the pieces as `max_tokens` still allows."""
        if self.limit is not None:
            pieces = pieces[: max(self.limit - self.used, 0)]
        self.used += len(pieces)
        return pieces


def _answer(script: Directive, wanted: Wanted, identity: str, created: int) -> Iterator[Event]:
    yield Started(identity, wanted.model, created)
    counts = [Usage() for _ in range(wanted.n)]
    choices = [_choice(script, wanted, identity, index, counts) for index in range(wanted.n)]
    while choices:
        # in turn, as a vendor does that samples them side by side
        open_choices = []
        for choice in choices:
            event = next(choice, None)
            if event is not None:
                yield event
                open_choices.append(choice)
        choices = open_choices
    output, reasoning = sum(count.output for count in counts), sum(count.reasoning for count in counts)
    yield UsageReported(Usage(input=wanted.input, output=output, reasoning=reasoning))
    yield Completed()


def _choice(script: Directive, wanted: Wanted, identity: str, index: int, counts: list[Usage]) -> Iterator[Event]:
    slots, budget = Slots(), Budget(wanted.max_tokens)
    reason: FinishReason = "stop"
    reasoned, stopped_by, complete = 0, None, True
    if script.script == "reasoning" and wanted.think:
        pieces = tokens(_REASONING)
        for text in budget.take(pieces):
            yield ReasoningDelta(index, slots.run("reasoning"), text)
        reasoned = budget.used
        complete = reasoned == len(pieces)
    calls = wanted.tools[: 2 if wanted.parallel else 1] if script.script == "tools" and wanted.result is None else ()
    for number, tool in enumerate(calls):
        slot = slots.open()
        arguments = _arguments(tool)
        yield ToolCallStarted(index, slot, f"call_{identity[5:]}_{index}_{number}", tool.name, tool.kind)
        pieces = [arguments[i : i + 8] for i in range(0, len(arguments), 8)]
        taken = budget.take(pieces)
        for text in taken:
            yield ToolCallDelta(index, slot, text)
        reason = "tool_calls"
        complete = complete and len(taken) == len(pieces)
        if not complete:
            break
    if not calls and complete:
        pieces, stopped_by = _stopped(_text(script, wanted), wanted.stop)
        if wanted.begun and (whole := "".join(pieces)).startswith(wanted.begun):
            pieces = tokens(whole[len(wanted.begun) :])
        taken = budget.take(pieces)
        for text in taken:
            yield TextDelta(index, slots.run("text"), text)
        complete = len(taken) == len(pieces)
    counts[index] = Usage(output=budget.used - reasoned, reasoning=reasoned)
    if not complete:
        reason, stopped_by = "length", None
    yield ChoiceFinished(index, reason, stop_sequence=stopped_by)


def _text(script: Directive, wanted: Wanted) -> list[str]:
    """The visible text of an answer, in tokens."""
    if wanted.json:
        value = {"echo": wanted.text} if wanted.json_schema is None else example(wanted.json_schema)
        return tokens(msgspec.json.encode(value).decode())
    if script.script == "lorem":
        words = islice(cycle(_LOREM), script.length)
        return [word if i == 0 else " " + word for i, word in enumerate(words)]
    if script.script == "tools":
        if wanted.result is None:
            return tokens("There is no tool that I may call.")
        return tokens(f"The tool says: {wanted.result}")
    return tokens(wanted.text)


def _arguments(tool: ToolSpec) -> str:
    if tool.kind == "custom":
        return "text"
    return msgspec.json.encode(example(tool.parameters or {}) or {}).decode()


def _stopped(pieces: list[str], stop: Sequence[str]) -> tuple[list[str], str | None]:
    """The pieces up to the first stop sequence, and which one that was."""
    text = "".join(pieces) if stop else ""
    found = min(((text.find(word), word) for word in stop if word and word in text), default=None)
    return (pieces, None) if found is None else (tokens(text[: found[0]]), found[1])


async def _body(script: Directive, events: Iterator[Event]) -> AsyncGenerator[bytes, None]:
    encode = msgspec.json.Encoder().encode
    limit = script.stall if script.cut is None else script.cut
    batch = 1 if script.slow else _BATCH
    chunk = bytearray()
    deltas = held = 0
    if script.slow_start:
        await asyncio.sleep(script.slow_start)
    for event in events:
        if limit is not None and (deltas >= limit or isinstance(event, ChoiceFinished)):
            break
        if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
            if deltas and script.slow:
                if chunk:
                    yield bytes(chunk)
                    chunk.clear()
                await asyncio.sleep(script.slow)
            deltas += 1
            held += 1
        chunk += encode(event) + b"\n"
        if held >= batch:
            yield bytes(chunk)
            chunk.clear()
            held = 0
            # a body that never waits would starve every other call
            await asyncio.sleep(0)
    if chunk:
        yield bytes(chunk)
    if script.cut is not None:
        raise ConnectionResetError("the mock vendor was asked to break it")
    if script.stall is not None:
        await asyncio.sleep(_FOREVER)


def _failed(status: int, identity: str, message: str, code: str | None = None) -> VendorResponse:
    headers = {"content-type": "application/json", "x-request-id": identity}
    if status in (429, 503):
        headers["retry-after"] = "1"
    phrase = _PHRASES.get(status) or next((known.phrase for known in HTTPStatus if known == status), "")
    said = {"message": f"{phrase}: {message}" if phrase else message, "type": "mock_error", "param": None, "code": code}

    async def body() -> AsyncGenerator[bytes, None]:
        yield msgspec.json.encode({"error": said})

    return VendorResponse(status, headers, body())
