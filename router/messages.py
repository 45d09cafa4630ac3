"""What a client asks: one vendor-neutral request, made by a dialect, read by providers and plugins.

The model is a superset of what the chat protocols share. What only one protocol knows stays in `extra` dictionaries
at the level it was found on (request, message, part, tool); `ChatRequest.protocol` names the protocol they belong
to. A provider of that protocol sends them on unchanged, another one maps those it has an equal for and reports the
rest as dropped. Pure values: no vendor, no I/O.
"""

from typing import Any, Literal, TypeAlias

from msgspec import Struct

Extra: TypeAlias = dict[str, Any]


# -- parts of a message's content ----------------------------------------------------------------------------------


class Text(Struct, frozen=True, tag="text"):
    text: str
    extra: Extra = {}


class Image(Struct, frozen=True, tag="image"):
    """`url` is an http(s) address or a `data:` URL, empty for an uploaded file's `file_id`."""

    url: str = ""
    file_id: str | None = None
    detail: str | None = None
    extra: Extra = {}


class Audio(Struct, frozen=True, tag="audio"):
    """`data` is base64 (or an address, for vendors that take one), `format` a file format such as `wav`."""

    data: str
    format: str
    extra: Extra = {}


class File(Struct, frozen=True, tag="file"):
    """A document: one of an uploaded file's id, or a `data:` URL with a name, or an address."""

    file_id: str | None = None
    filename: str | None = None
    data: str | None = None
    url: str | None = None
    extra: Extra = {}


class Refusal(Struct, frozen=True, tag="refusal"):
    text: str
    extra: Extra = {}


class Reasoning(Struct, frozen=True, tag="reasoning"):
    """Reasoning of an earlier turn. `signature` must return with it; the others stand in for hidden text."""

    text: str = ""
    signature: str | None = None
    redacted: str | None = None
    encrypted: str | None = None
    extra: Extra = {}


class OtherPart(Struct, frozen=True, tag="other"):
    """A part of a kind that is not modelled, verbatim."""

    fields: Extra


Part: TypeAlias = Text | Image | Audio | File | Refusal | Reasoning | OtherPart
Content: TypeAlias = str | tuple[Part, ...]


# -- messages ------------------------------------------------------------------------------------------------------


class ToolCall(Struct, frozen=True):
    """`arguments` is JSON text for a function, free text for a custom tool."""

    id: str
    name: str
    arguments: str
    kind: Literal["function", "custom"] = "function"
    extra: Extra = {}


class System(Struct, frozen=True, tag="system"):
    content: Content
    role: Literal["system", "developer"] = "system"
    name: str | None = None
    extra: Extra = {}


class User(Struct, frozen=True, tag="user"):
    content: Content
    name: str | None = None
    extra: Extra = {}


class Assistant(Struct, frozen=True, tag="assistant"):
    """An earlier answer, in the order reasoning, content, tool calls. `content` is None with calls alone.

    A turn in another order comes as several `Assistant`s side by side; adapters join them again.
    """

    content: Content | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: tuple[Reasoning, ...] = ()
    refusal: str | None = None
    name: str | None = None
    extra: Extra = {}


class ToolResult(Struct, frozen=True, tag="tool_result"):
    """`call_id` is None only for the deprecated `function` role, which matches by `name`."""

    call_id: str | None
    content: Content
    name: str | None = None
    is_error: bool = False
    extra: Extra = {}


Message: TypeAlias = System | User | Assistant | ToolResult


# -- tools ---------------------------------------------------------------------------------------------------------


class FunctionTool(Struct, frozen=True, tag="function"):
    """`parameters` is a JSON Schema; None means no arguments. `deprecated` marks the old `functions` form."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    deprecated: bool = False
    extra: Extra = {}


class CustomTool(Struct, frozen=True, tag="custom"):
    name: str
    description: str | None = None
    format: dict[str, Any] | None = None
    extra: Extra = {}


class OtherTool(Struct, frozen=True, tag="other"):
    """A vendor's built-in tool, verbatim."""

    fields: Extra


Tool: TypeAlias = FunctionTool | CustomTool | OtherTool


class NamedTool(Struct, frozen=True, tag="named"):
    name: str
    kind: Literal["function", "custom"] = "function"
    deprecated: bool = False


class AllowedTools(Struct, frozen=True, tag="allowed"):
    mode: Literal["auto", "required"]
    tools: tuple[dict[str, Any], ...]


class OtherToolChoice(Struct, frozen=True, tag="other"):
    fields: Extra


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | NamedTool | AllowedTools | OtherToolChoice


# -- the request ---------------------------------------------------------------------------------------------------


class JsonObject(Struct, frozen=True, tag="json_object"):
    pass


class JsonSchema(Struct, frozen=True, tag="json_schema"):
    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None
    extra: Extra = {}


class PlainText(Struct, frozen=True, tag="text"):
    pass


class OtherFormat(Struct, frozen=True, tag="other"):
    fields: Extra


ResponseFormat: TypeAlias = PlainText | JsonObject | JsonSchema | OtherFormat


class Sampling(Struct, frozen=True, kw_only=True):
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    n: int | None = None
    max_tokens: int | None = None
    """A cap on generated tokens, reasoning included where the vendor counts it."""
    logprobs: bool | None = None
    top_logprobs: int | None = None


class Thinking(Struct, frozen=True, kw_only=True):
    """How much a model may reason: `effort` is a vendor word, `budget` a number of tokens, `enabled` a switch."""

    effort: str | None = None
    budget: int | None = None
    enabled: bool | None = None


class ChatRequest(Struct, frozen=True, kw_only=True):
    model: str
    messages: tuple[Message, ...]
    protocol: str
    """Whose words the `extra` dictionaries are, e.g. `openai`."""
    stream: bool = False
    sampling: Sampling = Sampling()
    thinking: Thinking = Thinking()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    metadata: dict[str, str] = {}
    extra: Extra = {}
