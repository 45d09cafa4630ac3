"""The public request format of OpenAI's Chat Completions, every field of it, as Structs.

Source: OpenAI's API reference and its published OpenAPI document (2026), and the request fields that Alibaba's
compatible mode adds. Vendors differ in ranges and words, so a Struct states only what holds for all of them; OpenAI's
own limits are kept where the field is OpenAI's own. Knows nothing of the neutral model.
"""

from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import UNSET, Meta, UnsetType

from router.wire.unknown import Node, Opaque

PROTOCOL: Final = "openai"
"""Whose words the extras of this format are."""

# -- parts of a message's content ----------------------------------------------------------------------------------


class PromptCacheBreakpoint(Node, kw_only=True):
    mode: str | None = None
    ttl: str | None = None


class Part(Node, kw_only=True, tag_field="type"):
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


class TextPart(Part, kw_only=True, tag="text"):
    text: str


class ImageUrl(Node, kw_only=True):
    url: str
    detail: str | None = None


class ImagePart(Part, kw_only=True, tag="image_url"):
    image_url: ImageUrl | str
    """The bare address is Mistral's form."""


class InputAudio(Node, kw_only=True):
    data: str
    format: str


class AudioPart(Part, kw_only=True, tag="input_audio"):
    input_audio: InputAudio


class FileData(Node, kw_only=True):
    file_id: str | None = None
    filename: str | None = None
    file_data: str | None = None


class FilePart(Part, kw_only=True, tag="file"):
    file: FileData


class RefusalPart(Part, kw_only=True, tag="refusal"):
    refusal: str


AnyPart: TypeAlias = TextPart | ImagePart | AudioPart | FilePart | RefusalPart | Opaque
Content: TypeAlias = str | list[AnyPart]

# -- messages ------------------------------------------------------------------------------------------------------


class FunctionCall(Node, kw_only=True):
    name: str
    arguments: str
    parsed_arguments: Any = UNSET
    """Not a request field: what OpenAI's client libraries make of `arguments`, and send back with the message."""


class CustomCall(Node, kw_only=True):
    name: str
    input: str


class FunctionToolCall(Node, kw_only=True, tag_field="type", tag="function"):
    id: str
    function: FunctionCall


class CustomToolCall(Node, kw_only=True, tag_field="type", tag="custom"):
    id: str
    custom: CustomCall


class EarlierAudio(Node, kw_only=True):
    id: str


class Developer(Node, kw_only=True, tag_field="role", tag="developer"):
    content: Content
    name: str | None = None


class System(Node, kw_only=True, tag_field="role", tag="system"):
    content: Content
    name: str | None = None


class User(Node, kw_only=True, tag_field="role", tag="user"):
    content: Content
    name: str | None = None


class Assistant(Node, kw_only=True, tag_field="role", tag="assistant"):
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[FunctionToolCall | CustomToolCall] | None = None
    audio: EarlierAudio | None = None
    function_call: FunctionCall | None = None
    reasoning_content: str | None = None
    """Not OpenAI's: what DeepSeek, Qwen and others stream as reasoning, sent back."""
    annotations: Any = UNSET
    """Not a request field, but part of the answer that clients send back whole."""
    parsed: Any = UNSET
    """Not a request field: what OpenAI's client libraries make of `content`, and send back. Few vendors take it."""


class Tool(Node, kw_only=True, tag_field="role", tag="tool"):
    tool_call_id: str
    content: Content
    name: str | None = None


class Function(Node, kw_only=True, tag_field="role", tag="function"):
    name: str
    content: Content | None


Message: TypeAlias = System | Developer | User | Assistant | Tool | Function

# -- tools ---------------------------------------------------------------------------------------------------------

ToolName: TypeAlias = Annotated[str, Meta(min_length=1)]
"""Vendors allow names of different length and characters."""


class FunctionDefinition(Node, kw_only=True):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Node, kw_only=True, tag_field="type", tag="function"):
    function: FunctionDefinition


class CustomDefinition(Node, kw_only=True):
    name: ToolName
    description: str | None = None
    format: dict[str, Any] | None = None


class CustomTool(Node, kw_only=True, tag_field="type", tag="custom"):
    custom: CustomDefinition


class DeprecatedFunction(Node, kw_only=True):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None


class NamedFunction(Node, kw_only=True):
    name: ToolName


class FunctionChoice(Node, kw_only=True, tag_field="type", tag="function"):
    function: NamedFunction


class CustomChoice(Node, kw_only=True, tag_field="type", tag="custom"):
    custom: NamedFunction


class AllowedTools(Node, kw_only=True):
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class AllowedToolsChoice(Node, kw_only=True, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedTools


# -- the rest of the request ---------------------------------------------------------------------------------------


class TextFormat(Node, kw_only=True, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(Node, kw_only=True, tag_field="type", tag="json_object"):
    pass


class SchemaDefinition(Node, kw_only=True):
    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Node, kw_only=True, tag_field="type", tag="json_schema"):
    json_schema: SchemaDefinition


class StreamOptions(Node, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class VoiceId(Node, kw_only=True):
    id: str


class AudioOutput(Node, kw_only=True):
    voice: str | VoiceId
    format: str | None = None


class PredictedText(Node, kw_only=True, tag_field="type", tag="text"):
    text: str


class Prediction(Node, kw_only=True, tag_field="type", tag="content"):
    content: str | list[PredictedText]


class ApproximateLocation(Node, kw_only=True):
    city: str | None = None
    country: str | None = None
    region: str | None = None
    timezone: str | None = None


class UserLocation(Node, kw_only=True, tag_field="type", tag="approximate"):
    approximate: ApproximateLocation


class WebSearchOptions(Node, kw_only=True):
    search_context_size: str | None = None
    user_location: UserLocation | None = None


class PromptCacheOptions(Node, kw_only=True):
    mode: str | None = None
    ttl: str | None = None


class ModerationMode(Node, kw_only=True):
    mode: str


class ModerationPolicy(Node, kw_only=True):
    input: ModerationMode | None = None
    output: ModerationMode | None = None


class Moderation(Node, kw_only=True):
    model: str
    policy: ModerationPolicy | None = None


MetadataKey: TypeAlias = Annotated[str, Meta(max_length=64)]
MetadataValue: TypeAlias = Annotated[str, Meta(max_length=512)]


class ChatCompletionRequest(Node, kw_only=True):
    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[Message], Meta(min_length=1)]

    stream: bool | None = None
    stream_options: StreamOptions | None = None

    temperature: float | None = None
    top_p: float | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    stop: str | list[str] | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0)] | None = None
    seed: int | None = None

    tools: list[FunctionTool | CustomTool | Opaque] | None = None
    tool_choice: str | FunctionChoice | CustomChoice | AllowedToolsChoice | Opaque | None = None
    parallel_tool_calls: bool | None = None
    functions: list[DeprecatedFunction] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | Opaque | None = None

    reasoning_effort: str | None = None
    verbosity: str | None = None
    modalities: list[str] | None = None
    audio: AudioOutput | None = None
    prediction: Prediction | None = None
    web_search_options: WebSearchOptions | None = None
    service_tier: str | None = None
    store: bool | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=16)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: Annotated[str, Meta(max_length=128)] | None = None
    user: str | None = None
    moderation: Moderation | None = None

    # not OpenAI's: Qwen's compatible mode, and several other vendors
    top_k: int | UnsetType | None = UNSET
    """A null of its own: it switches the filter off at Qwen."""
    repetition_penalty: float | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
