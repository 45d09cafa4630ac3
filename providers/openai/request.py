"""`ChatRequest` → the body of a Chat Completions request. Knows what is said, not where it is sent.

`extra` dictionaries of the same protocol are laid over the encoded node at the level they were found on; of another
protocol they are reported as dropped, each kind of place once (`messages[*].content[*].cache_control`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from router.messages import (
    AllowedTools,
    Assistant,
    Audio,
    ChatRequest,
    Content,
    CustomTool,
    File,
    FunctionTool,
    Image,
    JsonObject,
    JsonSchema,
    Message,
    NamedTool,
    OtherPart,
    OtherTool,
    Part,
    PlainText,
    Reasoning,
    Refusal,
    ResponseFormat,
    System,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    User,
)

PROTOCOL: Final = "openai"
Json = dict[str, Any]


class Manner(Struct, frozen=True):
    """How one vendor wants one model's requests written."""

    max_tokens_field: str
    developer: bool
    stream_options: bool
    echo_reasoning: Literal["never", "tool_calls", "always"]
    forward_extras: bool
    drop: frozenset[str]
    """Fields of the body to leave out; `strict` means the one inside tools and schemas."""
    prefill: Literal["none", "plain", "prefix", "partial", "continue_final_message"] = "none"
    """How a last message of the assistant's is marked as the beginning of the answer."""


def body_of(request: ChatRequest, model: str, manner: Manner) -> tuple[Json, tuple[str, ...]]:
    """The body, and the fields of the request that are not in it, as paths."""
    return _Writer(request.protocol == PROTOCOL, manner).body(request, model)


_SAMPLING: Final = (
    "temperature",
    "top_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "n",
    "logprobs",
    "top_logprobs",
)


class _Writer:
    """Writes one body."""

    __slots__ = ("_dropped", "_forward", "_manner", "_own", "_strict")

    def __init__(self, own: bool, manner: Manner) -> None:
        self._own = own
        self._forward = own and manner.forward_extras
        self._manner = manner
        self._strict = "strict" not in manner.drop
        self._dropped: dict[str, None] = {}

    def body(self, request: ChatRequest, model: str) -> tuple[Json, tuple[str, ...]]:
        manner = self._manner
        messages = request.messages if self._own else _joined(request.messages)
        body: Json = {"model": model, "messages": [_MESSAGE[type(message)](self, message) for message in messages]}
        if manner.prefill != "none":
            self._mark_prefill(body)
        if request.stream:
            body["stream"] = True
            if manner.stream_options:
                body["stream_options"] = {"include_usage": True}
        self._add_sampling(body, request)
        if request.tools:
            self._add_tools(body, request.tools)
        if request.tool_choice is not None:
            self._add_tool_choice(body, request.tool_choice)
        if request.parallel_tool_calls is not None and (request.tools or self._own):
            body["parallel_tool_calls"] = request.parallel_tool_calls
        if request.response_format is not None:
            self._add_format(body, request.response_format)
        if request.user is not None:
            body["user"] = request.user
        if request.metadata:
            body["metadata"] = request.metadata
        if request.extra:
            self._lay(request.extra, body, "")
            if not manner.stream_options and body.pop("stream_options", None):
                self._drop("stream_options")
        for name in manner.drop:
            if body.pop(name, None) is not None:
                self._drop(name)
        return body, tuple(self._dropped)

    def _mark_prefill(self, body: Json) -> None:
        last = body["messages"][-1] if body["messages"] else {}
        if last.get("role") != "assistant" or "tool_calls" in last:
            return
        kind = self._manner.prefill
        if kind == "continue_final_message":
            body["add_generation_prompt"], body["continue_final_message"] = False, True
        elif kind != "plain":
            last[kind] = True

    def _drop(self, path: str) -> None:
        self._dropped[path] = None

    def _lay(self, extra: Mapping[str, Any], over: Json, where: str) -> None:
        """Add fields of the same protocol; nothing that stands there already is replaced, objects are merged."""
        for name, value in extra.items():
            ours = over.get(name)
            if isinstance(ours, dict) and isinstance(value, dict):
                over[name] = merged = ours.copy()
                self._lay(value, merged, f"{where}{name}.")
            elif not self._forward and not (self._own and name in _NAMED):
                self._drop(where + name)
            elif name not in over:
                over[name] = value

    # -- the request's own fields ----------------------------------------------------------------------------------

    def _add_sampling(self, body: Json, request: ChatRequest) -> None:
        sampling, thinking = request.sampling, request.thinking
        if sampling is not _UNSAID:
            for name in _SAMPLING:
                value = getattr(sampling, name)
                if value is not None:
                    body[name] = value
            if sampling.max_tokens is not None:
                body[self._manner.max_tokens_field] = sampling.max_tokens
            if sampling.logit_bias is not None:
                # documented as whole numbers
                bias = sampling.logit_bias.items()
                body["logit_bias"] = {token: int(value) if value == int(value) else value for token, value in bias}
        if thinking.effort is not None:
            body["reasoning_effort"] = thinking.effort
        if thinking.budget is not None:
            body["thinking_budget"] = thinking.budget
        if thinking.enabled is not None:
            body["enable_thinking"] = thinking.enabled

    def _add_tools(self, body: Json, tools: tuple[Tool, ...]) -> None:
        listed: list[Json] = []
        functions: list[Json] = []
        for tool in tools:
            if isinstance(tool, FunctionTool):
                function: Json = {"name": tool.name}
                if tool.description is not None:
                    function["description"] = tool.description
                if tool.parameters is not None:
                    function["parameters"] = tool.parameters
                if tool.deprecated:
                    self._lay(tool.extra, function, "functions[*].")
                    functions.append(function)
                    continue
                self._add_strict(function, tool.strict, "tools[*].function.strict")
                item: Json = {"type": "function", "function": function}
            elif isinstance(tool, CustomTool):
                custom: Json = {"name": tool.name}
                if tool.description is not None:
                    custom["description"] = tool.description
                if tool.format is not None:
                    custom["format"] = tool.format
                item = {"type": "custom", "custom": custom}
            else:
                self._add_other(listed, tool, "tools[*]")
                continue
            if tool.extra:
                self._lay(tool.extra, item, "tools[*].")
            listed.append(item)
        if listed:
            body["tools"] = listed
        if functions:
            body["functions"] = functions

    def _add_other(self, into: list[Json], other: OtherTool | OtherPart, where: str) -> None:
        if self._own:
            into.append(other.fields)
        else:
            self._drop(where)

    def _add_strict(self, into: Json, strict: bool | None, where: str) -> None:
        if strict is None:
            return
        if self._strict:
            into["strict"] = strict
        else:
            self._drop(where)

    def _add_tool_choice(self, body: Json, choice: ToolChoice) -> None:
        if isinstance(choice, str):
            # where there are only `functions`, the choice has the old form too
            old = "functions" in body and "tools" not in body and choice != "required"
            body["function_call" if old else "tool_choice"] = choice
        elif isinstance(choice, NamedTool):
            if choice.deprecated:
                body["function_call"] = {"name": choice.name}
            else:
                body["tool_choice"] = {"type": choice.kind, choice.kind: {"name": choice.name}}
        elif isinstance(choice, AllowedTools):
            allowed = {"mode": choice.mode, "tools": choice.tools}
            body["tool_choice"] = {"type": "allowed_tools", "allowed_tools": allowed}
        elif self._own:
            body["tool_choice"] = choice.fields
        else:
            self._drop("tool_choice")

    def _add_format(self, body: Json, wanted: ResponseFormat) -> None:
        if isinstance(wanted, JsonSchema):
            schema: Json = {"name": wanted.name}
            if wanted.description is not None:
                schema["description"] = wanted.description
            if wanted.schema is not None:
                schema["schema"] = wanted.schema
            self._add_strict(schema, wanted.strict, "response_format.json_schema.strict")
            item: Json = {"type": "json_schema", "json_schema": schema}
            if wanted.extra:
                self._lay(wanted.extra, item, "response_format.")
            body["response_format"] = item
        elif isinstance(wanted, PlainText):
            body["response_format"] = {"type": "text"}
        elif isinstance(wanted, JsonObject):
            body["response_format"] = {"type": "json_object"}
        elif self._own:
            body["response_format"] = wanted.fields
        else:
            self._drop("response_format")

    # -- messages --------------------------------------------------------------------------------------------------

    def _system(self, message: System) -> Json:
        role = message.role if self._manner.developer else "system"
        return self._said(role, message)

    def _user(self, message: User) -> Json:
        return self._said("user", message)

    def _said(self, role: str, message: System | User) -> Json:
        content = message.content
        fields: Json = {"role": role, "content": content if isinstance(content, str) else self._parts(content)}
        if message.name is not None:
            fields["name"] = message.name
        if message.extra:
            self._lay(message.extra, fields, "messages[*].")
        return fields

    def _assistant(self, message: Assistant) -> Json:
        content = message.content
        fields: Json = {"role": "assistant"}
        if content is not None:
            fields["content"] = content if isinstance(content, str) else self._parts(content)
        elif message.tool_calls or message.refusal is not None or (self._own and message.extra):
            fields["content"] = None
        else:
            # many servers refuse a null that nothing else stands for
            fields["content"] = ""
        if message.name is not None:
            fields["name"] = message.name
        if message.refusal is not None:
            fields["refusal"] = message.refusal
        thoughts = message.reasoning
        if isinstance(content, tuple):
            thoughts += tuple([part for part in content if isinstance(part, Reasoning)])
        if thoughts:
            self._add_reasoning(fields, thoughts, bool(message.tool_calls))
        if message.tool_calls:
            fields["tool_calls"] = [self._tool_call(call) for call in message.tool_calls]
        if message.extra:
            self._lay(message.extra, fields, "messages[*].")
        return fields

    def _add_reasoning(self, fields: Json, thoughts: tuple[Reasoning, ...], called: bool) -> None:
        echo = self._manner.echo_reasoning
        if echo == "never" or (echo == "tool_calls" and not called):
            self._drop("messages[*].reasoning_content")
            return
        fields["reasoning_content"] = "".join([thought.text for thought in thoughts])
        if any(thought.signature or thought.redacted or thought.encrypted for thought in thoughts):
            self._drop("messages[*].reasoning.signature")

    def _tool_call(self, call: ToolCall) -> Json:
        if call.kind == "function":
            fields: Json = {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
        else:
            fields = {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
        if call.extra:
            self._lay(call.extra, fields, "messages[*].tool_calls[*].")
        return fields

    def _tool_result(self, message: ToolResult) -> Json:
        content = message.content
        written = content if isinstance(content, str) else self._parts(content)
        if message.call_id is None:
            fields: Json = {"role": "function", "name": message.name or "", "content": written}
        else:
            fields = {"role": "tool", "tool_call_id": message.call_id, "content": written}
            if message.name is not None:
                fields["name"] = message.name
        if message.is_error:
            self._drop("messages[*].is_error")
        if message.extra:
            self._lay(message.extra, fields, "messages[*].")
        return fields

    # -- parts -----------------------------------------------------------------------------------------------------

    def _parts(self, content: tuple[Part, ...]) -> str | list[Json]:
        """The parts; an empty text where none is left. Thoughts are not content: `_add_reasoning` has them."""
        parts: list[Json] = []
        for part in content:
            if isinstance(part, OtherPart):
                self._add_other(parts, part, "messages[*].content[*]")
            elif not isinstance(part, Reasoning):
                item = _PART[type(part)](part)
                if part.extra:
                    self._lay(part.extra, item, "messages[*].content[*].")
                parts.append(item)
        return parts or ""


def _text(part: Text) -> Json:
    return {"type": "text", "text": part.text}


def _image(part: Image) -> Json:
    if part.file_id is not None and not part.url:
        return {"type": "file", "file": {"file_id": part.file_id}}
    image: Json = {"url": part.url}
    if part.detail is not None:
        image["detail"] = part.detail
    return {"type": "image_url", "image_url": image}


def _audio(part: Audio) -> Json:
    return {"type": "input_audio", "input_audio": {"data": part.data, "format": part.format}}


def _file(part: File) -> Json:
    file: Json = {}
    if part.file_id is not None:
        file["file_id"] = part.file_id
    if part.filename is not None:
        file["filename"] = part.filename
    # OpenAI takes a data URL only; hosts that fetch addresses take them in the same field
    data = part.data if part.data is not None else part.url
    if data is not None:
        file["file_data"] = data
    return {"type": "file", "file": file}


def _refusal(part: Refusal) -> Json:
    return {"type": "refusal", "refusal": part.text}


def _joined(messages: tuple[Message, ...]) -> list[Message]:
    """The messages with neighbouring assistant turns made one: other protocols split a turn by its order."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if isinstance(message, Assistant) and isinstance(last, Assistant):
            joined[-1] = Assistant(
                _together(last.content, message.content),
                last.tool_calls + message.tool_calls,
                last.reasoning + message.reasoning,
                message.refusal if last.refusal is None else last.refusal,
                last.name,
                {**last.extra, **message.extra},
            )
        else:
            joined.append(message)
    return joined


def _together(one: Content | None, two: Content | None) -> Content | None:
    if one is None or two is None:
        return two if one is None else one
    return tuple(part for content in (one, two) for part in ((Text(content),) if isinstance(content, str) else content))


_UNSAID: Final = ChatRequest(model="", messages=(), protocol="").sampling
_NAMED: Final = frozenset(
    {
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
        "stream_options",
        "include_obfuscation",
        "tool_choice",
        "function_call",
        "prompt_cache_breakpoint",
    }
)
"""Fields that OpenAI documents and the neutral model leaves to this protocol: no extras, whatever the row says."""

_MESSAGE: Final[dict[type, Callable[[_Writer, Any], Json]]] = {
    System: _Writer._system,
    User: _Writer._user,
    Assistant: _Writer._assistant,
    ToolResult: _Writer._tool_result,
}
_PART: Final[dict[type, Callable[[Any], Json]]] = {
    Text: _text,
    Image: _image,
    Audio: _audio,
    File: _file,
    Refusal: _refusal,
}
