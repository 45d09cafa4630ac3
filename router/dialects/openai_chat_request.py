"""The request side of OpenAI's Chat Completions dialect: a client's body → `Asked`. Knows no vendor and no answer.

What the neutral model has no word for goes into `extra`, under the name and at the level it was found on. Where the
neutral node flattens a nested object, the nested object's fields keep its name, so that `extra` laid over the encoded
node restores what the client sent: `{"type": "image_url", "image_url": {"url": …, "a": 1}, "b": 2}` gives
`Image(url=…, extra={"image_url": {"a": 1}, "b": 2})`. The same holds for the request's `stream_options`, a tool's or
tool call's `function` and `custom`, and a response format's `json_schema`.
"""

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import UNSET, DecodeError, ValidationError

from router.dialect import Asked
from router.errors import InvalidRequest
from router.messages import (
    AllowedTools,
    Assistant,
    Audio,
    ChatRequest,
    Content,
    CustomTool,
    Extra,
    File,
    FunctionTool,
    Image,
    JsonObject,
    JsonSchema,
    Message,
    NamedTool,
    OtherFormat,
    OtherPart,
    OtherTool,
    OtherToolChoice,
    Part,
    PlainText,
    Reasoning,
    Refusal,
    ResponseFormat,
    Sampling,
    System,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    User,
)
from router.wire import openai_chat as wire
from router.wire.unknown import Opaque, Sieve, Unknown, verbatim


class RequestDecoder:
    """Bodies → `Asked`. Holds compiled decoders, no state of any request."""

    def __init__(self) -> None:
        self._known = msgspec.json.Decoder(wire.ChatCompletionRequest)
        self._any = msgspec.json.Decoder()
        self._sieve = Sieve(wire.ChatCompletionRequest)

    def decode(self, body: bytes) -> Asked:
        """Raises `InvalidRequest`. Of a key that stands twice in an object, the last one counts."""
        try:
            try:
                request = self._known.decode(body)
            except ValidationError:
                # a field, part or tool the format does not name, or a mistake: the second look tells
                request = msgspec.convert(self._sieve.sift(self._any.decode(body)), wire.ChatCompletionRequest)
        except ValidationError as error:
            raise _invalid(str(error)) from None
        except DecodeError as error:
            raise InvalidRequest(f"The body is not valid JSON: {_syntax(error, body)}.", code="invalid_json") from None
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"The body is not valid UTF-8 (byte {_first_bad_byte(body)}).", code="invalid_json"
            ) from None
        except RecursionError:
            raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None
        return _asked(request)


# -- errors --------------------------------------------------------------------------------------------------------

_PLACE: Final = re.compile(r" - at (?:`key` in )?`\$?\.?([^`]*)`$")
_MISSING: Final = re.compile(r"^Object missing required field `([^`]*)`$")
_BAD_VALUE: Final = re.compile(r"^Invalid (?:enum )?value (.*)$", re.DOTALL)
_TYPE: Final = re.compile(r"`([^`]*)`")
_WORDS: Final = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_ROLES: Final = "developer, system, user, assistant, tool, function"
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_LONGEST_QUOTE: Final = 60


def _invalid(message: str) -> InvalidRequest:
    """msgspec's message in the words of JSON, with the place in front."""
    found = _PLACE.search(message)
    place = found[1] if found else ""
    problem = message[: found.start()] if found else message
    if missing := _MISSING.match(problem):
        place = f"{place}.{missing[1]}" if place else missing[1]
        return InvalidRequest(f"`{place}`: required, but missing.", code="missing_required_parameter", param=place)
    if wrong := _BAD_VALUE.match(problem):
        problem = f"{wrong[1][:_LONGEST_QUOTE]} is not a known value"
        if place.endswith(".role"):
            problem += f"; expected one of {_ROLES}"
    elif problem == "Expected `array` of length >= 1" or problem == "Expected `str` of length >= 1":
        problem = "must not be empty"
    else:
        problem = _TYPE.sub(lambda types: _in_json_words(types[1]), problem)
        problem = problem[:1].lower() + problem[1:]
        if place.endswith("].content"):
            problem = problem.replace("array", "array of parts", 1)
        if found and found[0].startswith(" - at `key`"):
            problem = f"one of its keys: {problem}"
    if not place:
        return InvalidRequest(f"The body is not a chat completion request: {problem}.", code="invalid_type")
    code = "invalid_type" if problem.startswith("expected") and ", got" in problem else "invalid_value"
    return InvalidRequest(f"`{place}`: {problem}.", code=code, param=re.sub(r"\[\.\.\.\]$", "", place))


def _in_json_words(types: str) -> str:
    return " or ".join(_WORDS.get(one, one) for one in types.split(" | "))


def _syntax(error: DecodeError, body: bytes) -> str:
    """msgspec's words for a syntax error; it gives no position where text ends too early."""
    message = str(error)
    if "(byte" in message:
        return message
    if _SURROGATE.search(body):
        return "it is cut off, or a string in it has half of a surrogate pair"
    return f"it is cut off (byte {len(body)})"


def _first_bad_byte(body: bytes) -> int:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0


# -- the request ---------------------------------------------------------------------------------------------------

_PASSED_ON: Final = (
    "verbosity",
    "modalities",
    "audio",
    "prediction",
    "web_search_options",
    "service_tier",
    "store",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "moderation",
)
"""Known fields that only this protocol has."""


def _asked(asked: wire.ChatCompletionRequest) -> Asked:
    extra: Extra = {} if asked.unknown is None else dict(asked.unknown.fields)
    for name in _PASSED_ON:
        value = getattr(asked, name)
        if value is not None:
            extra[name] = verbatim(value)
    stream = asked.stream is True
    include_usage = False
    options = asked.stream_options
    if options is not None:
        if not stream:
            raise InvalidRequest(
                "`stream_options`: only allowed when `stream` is true.", code="invalid_value", param="stream_options"
            )
        include_usage = options.include_usage is True
        rest = verbatim(options)
        rest.pop("include_usage", None)
        if rest:
            extra["stream_options"] = rest
    if asked.top_k is None:
        extra["top_k"] = None
    tools, tool_choice = _tools(asked, extra)
    conversation, parent = _conversation(extra)
    return Asked(
        ChatRequest(
            model=asked.model,
            messages=tuple([_MESSAGE[type(message)](message) for message in asked.messages]),
            protocol=wire.PROTOCOL,
            stream=stream,
            sampling=_sampling(asked),
            thinking=Thinking(
                effort=asked.reasoning_effort, budget=asked.thinking_budget, enabled=asked.enable_thinking
            ),
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=asked.parallel_tool_calls,
            response_format=None if asked.response_format is None else _format(asked.response_format),
            user=asked.user,
            metadata=asked.metadata or {},
            extra=extra,
        ),
        include_usage,
        conversation,
        parent,
        asked.store is True,
    )


def _conversation(extra: Extra) -> tuple[str | None, str | None]:
    """`conversation` as OpenAI's Responses have it, an id or `{"id": …}`, and our `parent` beside the id: not for the
    vendor. Takes it out of `extra`."""
    said = extra.pop("conversation", None)
    if said is None:
        return None, None
    fields = {"id": said} if isinstance(said, str) else said
    if not isinstance(fields, dict):
        raise InvalidRequest(
            '`conversation`: expected the id of a conversation, or `{"id": …}`.',
            code="invalid_type",
            param="conversation",
        )
    for name, value in fields.items():
        place = f"conversation.{name}"
        if name not in ("id", "parent"):
            raise InvalidRequest(
                f"`{place[:60]}`: unknown field (known: id, parent).", code="unknown_parameter", param=place[:60]
            )
        if not isinstance(value, str) or not value:
            raise InvalidRequest(f"`{place}`: expected an id.", code="invalid_type", param=place)
    if "id" not in fields:
        raise InvalidRequest(
            "`conversation.id`: required, but missing.", code="missing_required_parameter", param="conversation.id"
        )
    return fields["id"], fields.get("parent")


def _sampling(asked: wire.ChatCompletionRequest) -> Sampling:
    stop = asked.stop
    most = asked.max_completion_tokens
    return Sampling(
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=None if asked.top_k is UNSET else asked.top_k,
        frequency_penalty=asked.frequency_penalty,
        presence_penalty=asked.presence_penalty,
        repetition_penalty=asked.repetition_penalty,
        logit_bias=asked.logit_bias,
        seed=asked.seed,
        stop=(stop,) if isinstance(stop, str) else None if stop is None else tuple(stop),
        n=asked.n,
        max_tokens=asked.max_tokens if most is None else most,
        logprobs=asked.logprobs,
        top_logprobs=asked.top_logprobs,
    )


def _tools(asked: wire.ChatCompletionRequest, extra: Extra) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    tools = [_tool(tool) for tool in asked.tools or ()]
    tools += [_deprecated(function) for function in asked.functions or ()]
    choice: ToolChoice | None = None
    match asked.tool_choice:
        case None:
            choice = _deprecated_choice(asked.function_call, extra)
        case "none" | "auto" | "required" as word:
            choice = word
        case str() as word:
            # a vendor's own word, such as Mistral's `any`
            extra["tool_choice"] = word
        case other:
            choice = _choice(other)
    return tuple(tools), choice


def _tool(tool: wire.FunctionTool | wire.CustomTool | Opaque) -> Tool:
    if isinstance(tool, wire.FunctionTool):
        function = tool.function
        return FunctionTool(
            function.name,
            function.description,
            function.parameters,
            function.strict,
            extra=_extra(tool.unknown, function=function.unknown),
        )
    if isinstance(tool, wire.CustomTool):
        custom = tool.custom
        return CustomTool(custom.name, custom.description, custom.format, _extra(tool.unknown, custom=custom.unknown))
    return OtherTool(tool.fields.fields)


def _deprecated(function: wire.DeprecatedFunction) -> Tool:
    extra = _extra(function.unknown)
    return FunctionTool(function.name, function.description, function.parameters, deprecated=True, extra=extra)


def _choice(
    choice: wire.FunctionChoice | wire.CustomChoice | wire.AllowedToolsChoice | Opaque,
) -> ToolChoice:
    if isinstance(choice, Opaque):
        return OtherToolChoice(choice.fields.fields)
    inner: wire.NamedFunction | wire.AllowedTools
    if isinstance(choice, wire.FunctionChoice):
        inner = choice.function
    elif isinstance(choice, wire.CustomChoice):
        inner = choice.custom
    else:
        inner = choice.allowed_tools
    if choice.unknown is not None or inner.unknown is not None:
        return OtherToolChoice(verbatim(choice))
    if isinstance(inner, wire.AllowedTools):
        return AllowedTools(inner.mode, tuple(inner.tools))
    return NamedTool(inner.name, "custom" if isinstance(choice, wire.CustomChoice) else "function")


def _deprecated_choice(choice: Any, extra: Extra) -> ToolChoice | None:
    if isinstance(choice, wire.NamedFunction):
        if choice.unknown is not None:
            extra["function_call"] = choice.unknown.fields
        return NamedTool(choice.name, deprecated=True)
    word: ToolChoice | None = choice
    return word


def _format(
    wanted: wire.TextFormat | wire.JsonObjectFormat | wire.JsonSchemaFormat | Opaque,
) -> ResponseFormat:
    if isinstance(wanted, wire.JsonSchemaFormat):
        schema = wanted.json_schema
        return JsonSchema(
            schema.name,
            schema.schema,
            schema.description,
            schema.strict,
            _extra(wanted.unknown, json_schema=schema.unknown),
        )
    if isinstance(wanted, Opaque) or wanted.unknown is not None:
        return OtherFormat(verbatim(wanted))
    return JsonObject() if isinstance(wanted, wire.JsonObjectFormat) else PlainText()


def _extra(unknown: Unknown | None, **nested: Unknown | None) -> Extra:
    """A node's unknown fields, and those of the objects inside that the neutral node flattens."""
    extra: Extra = {} if unknown is None else dict(unknown.fields)
    for name, inner in nested.items():
        if inner is not None:
            extra[name] = inner.fields
    return extra


# -- messages ------------------------------------------------------------------------------------------------------


def _system(message: wire.System) -> Message:
    return System(_content(message.content), "system", message.name, _extra(message.unknown))


def _developer(message: wire.Developer) -> Message:
    return System(_content(message.content), "developer", message.name, _extra(message.unknown))


def _user(message: wire.User) -> Message:
    return User(_content(message.content), message.name, _extra(message.unknown))


def _assistant(message: wire.Assistant) -> Message:
    extra = _extra(message.unknown)
    if message.audio is not None:
        extra["audio"] = verbatim(message.audio)
    if message.function_call is not None:
        # a call without an id has no equal in the neutral model
        extra["function_call"] = verbatim(message.function_call)
    if message.annotations is not UNSET:
        extra["annotations"] = message.annotations
    content, reasoning = message.content, message.reasoning_content
    return Assistant(
        None if content is None else _content(content),
        tuple([_tool_call(call) for call in message.tool_calls]) if message.tool_calls else (),
        () if reasoning is None else (Reasoning(reasoning),),
        message.refusal,
        message.name,
        extra,
    )


def _tool_call(call: wire.FunctionToolCall | wire.CustomToolCall) -> ToolCall:
    if isinstance(call, wire.FunctionToolCall):
        function = call.function
        extra = _extra(call.unknown, function=function.unknown)
        return ToolCall(call.id, function.name, function.arguments, "function", extra)
    custom = call.custom
    return ToolCall(call.id, custom.name, custom.input, "custom", _extra(call.unknown, custom=custom.unknown))


def _tool_result(message: wire.Tool) -> Message:
    return ToolResult(message.tool_call_id, _content(message.content), message.name, extra=_extra(message.unknown))


def _function_result(message: wire.Function) -> Message:
    content = "" if message.content is None else _content(message.content)
    return ToolResult(None, content, message.name, extra=_extra(message.unknown))


_MESSAGE: Final[dict[type, Callable[[Any], Message]]] = {
    wire.System: _system,
    wire.Developer: _developer,
    wire.User: _user,
    wire.Assistant: _assistant,
    wire.Tool: _tool_result,
    wire.Function: _function_result,
}


# -- parts ---------------------------------------------------------------------------------------------------------


def _content(content: wire.Content) -> Content:
    return content if isinstance(content, str) else tuple([_PART[type(part)](part) for part in content])


def _part_extra(part: wire.Part, **nested: Unknown | None) -> Extra:
    extra = _extra(part.unknown, **nested)
    if part.prompt_cache_breakpoint is not None:
        extra["prompt_cache_breakpoint"] = verbatim(part.prompt_cache_breakpoint)
    return extra


def _text(part: wire.TextPart) -> Part:
    return Text(part.text, _part_extra(part))


def _image(part: wire.ImagePart) -> Part:
    image = part.image_url
    if isinstance(image, str):
        return Image(image, extra=_part_extra(part))
    return Image(image.url, detail=image.detail, extra=_part_extra(part, image_url=image.unknown))


def _audio(part: wire.AudioPart) -> Part:
    audio = part.input_audio
    return Audio(audio.data, audio.format, _part_extra(part, input_audio=audio.unknown))


def _file(part: wire.FilePart) -> Part:
    file = part.file
    return File(file.file_id, file.filename, file.file_data, extra=_part_extra(part, file=file.unknown))


def _refusal(part: wire.RefusalPart) -> Part:
    return Refusal(part.refusal, _part_extra(part))


def _other(part: Opaque) -> Part:
    return OtherPart(part.fields.fields)


_PART: Final[dict[type, Callable[[Any], Part]]] = {
    wire.TextPart: _text,
    wire.ImagePart: _image,
    wire.AudioPart: _audio,
    wire.FilePart: _file,
    wire.RefusalPart: _refusal,
    Opaque: _other,
}
