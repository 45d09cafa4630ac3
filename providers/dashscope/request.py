"""A chat request in DashScope's words: the body, and what decides how it is sent.

Everything but the model and the messages goes into `parameters`. Knows no URL, no key and no HTTP header.
"""

from typing import Any, Final

from msgspec import Struct

from providers.dashscope.conversation import Conversation, media_place, reasoning_of
from providers.dashscope.families import Family, Path
from providers.dashscope.lessons import Lesson
from router.errors import InvalidRequest
from router.messages import (
    AllowedTools,
    Assistant,
    ChatRequest,
    FunctionTool,
    JsonObject,
    JsonSchema,
    NamedTool,
    OtherTool,
    PlainText,
)

MAX_CHOICES: Final = 4
MAX_TOP_LOGPROBS: Final = 5
_SEEDS: Final = 2**31
_HOTTEST: Final = 1.99
"""The temperature must be below 2."""
_NARROWEST: Final = 0.001
"""`top_p` must be above 0."""

_PARAMETERS: Final = frozenset(
    {
        "enable_code_interpreter",
        "enable_search",
        "ocr_options",
        "preserve_thinking",
        "repetition_penalty",
        "search_options",
        "skill",
        "tool_stream",
        "translation_options",
        "vl_enable_image_hw_output",
        "vl_high_resolution_images",
    }
)
"""DashScope's own parameters, taken from a request's extra fields as they are."""

_EFFORTS: Final = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "xhigh",
    "xhigh": "xhigh",
    "max": "xhigh",
}
"""The words of other vendors, and those of the models that take `reasoning_effort`."""
_BUDGETS: Final[dict[str, int | None]] = {
    "minimal": 1024,
    "low": 4096,
    "medium": 16384,
    "high": None,
    "xhigh": None,
    "max": None,
}
"""Tokens that an effort is worth on models that have a budget only; None leaves the model's own bound."""

_BUILT_IN_TOOLS: Final = {
    "web_search": "enable_search",
    "web_search_preview": "enable_search",
    "code_interpreter": "enable_code_interpreter",
}
"""Other vendors' built-in tools that are a parameter here."""


class Draft(Struct, frozen=True):
    """One request, ready to be sent."""

    body: dict[str, Any]
    path: Path
    streamed: bool
    dropped: tuple[str, ...]
    uses_oss: bool


class _Thinking(Struct, frozen=True):
    on: bool
    """Whether the model will think, as far as is known."""
    parameters: dict[str, Any]


def draft(
    request: ChatRequest,
    model: str,
    family: Family,
    lesson: Lesson,
    *,
    path: Path | None = None,
    known: frozenset[str] = frozenset(),
) -> Draft:
    """Write the request. `path` is the configured binding of the model, `known` more parameters it may have.

    Raises `InvalidRequest` where DashScope cannot be asked this at all.
    """
    return _Writer(request, family, lesson, known).write(model, path)


class _Writer:
    def __init__(self, request: ChatRequest, family: Family, lesson: Lesson, known: frozenset[str]) -> None:
        self.request = request
        self.family = family
        self.lesson = lesson
        self.known = _PARAMETERS | known
        self.parameters: dict[str, Any] = {"result_format": "message"}
        self.dropped: list[str] = []
        last = request.messages[-1] if request.messages else None
        self.partial = isinstance(last, Assistant) and (
            bool(last.extra.get("partial")) or request.protocol == "anthropic"
        )

    def write(self, model: str, configured: Path | None) -> Draft:
        path = self._path(configured)
        conversation = Conversation(path, plain=self.lesson.plain_content, keep_reasoning=self._keeps_reasoning())
        messages = conversation.write(self.request)
        self._sampling()
        tools = self._tools()
        choice = self._tool_choice(tools)
        thinking = self._thinking(forced=self.partial or isinstance(choice, dict))
        streamed = self.request.stream or self.family.stream_only or self.lesson.stream_only or thinking.on
        if streamed:
            self.parameters["incremental_output"] = True
        self.parameters |= thinking.parameters
        if not streamed and self.family.thinking == "off":
            # a whole answer is given only without thinking, whatever the default is tomorrow
            self.parameters["enable_thinking"] = False
        if tools:
            self.parameters["tools"] = tools
            self._put_tool_choice(choice, thinking)
        self._response_format()
        self._extra()
        return Draft(
            {"model": model, "input": {"messages": messages}, "parameters": self.parameters},
            path,
            streamed,
            (*conversation.dropped, *self.dropped),
            conversation.uses_oss,
        )

    def _path(self, configured: Path | None) -> Path:
        media = media_place(self.request)
        bound = configured or self.lesson.path
        if media is None:
            return bound or self.family.path
        if bound == "text":
            raise InvalidRequest("this model takes text only; ask one that sees and hears", param=media)
        return "multimodal"

    def _keeps_reasoning(self) -> bool:
        asked = self.request.extra.get("preserve_thinking")
        if asked is not None or not self.family.keeps_reasoning:
            return bool(asked)
        # all of it must be sent back, or none
        return all(reasoning_of(m) for m in self.request.messages if isinstance(m, Assistant))

    # -- sampling --------------------------------------------------------------------------------------------------

    def _sampling(self) -> None:
        sampling, put = self.request.sampling, self._put
        if sampling.temperature is not None:
            put("temperature", min(sampling.temperature, _HOTTEST))
        if sampling.top_p is not None:
            put("top_p", max(sampling.top_p, _NARROWEST))
        put("top_k", sampling.top_k)
        put("presence_penalty", sampling.presence_penalty)
        put("repetition_penalty", sampling.repetition_penalty)
        put("max_tokens", sampling.max_tokens)
        if sampling.seed is not None:
            put("seed", sampling.seed % _SEEDS)
        if sampling.stop:
            put("stop", list(sampling.stop))
        self._put_choices(sampling.n)
        if sampling.frequency_penalty:
            self.dropped.append("frequency_penalty")
        if sampling.logit_bias:
            self.dropped.append("logit_bias")
        if sampling.logprobs:
            put("logprobs", True)
            put("top_logprobs", sampling.top_logprobs and min(sampling.top_logprobs, MAX_TOP_LOGPROBS))
            if (sampling.top_logprobs or 0) > MAX_TOP_LOGPROBS:
                self.dropped.append("top_logprobs")

    def _put(self, name: str, value: Any) -> None:
        if value is not None:
            self.parameters[name] = value

    def _put_choices(self, n: int | None) -> None:
        if n is None or n == 1:
            return
        if not 1 <= n <= MAX_CHOICES:
            raise InvalidRequest(f"DashScope gives 1 to {MAX_CHOICES} choices, not {n}", param="$.n")
        if self.request.tools:
            raise InvalidRequest("DashScope gives one choice only where there are tools: leave `n` out", param="$.n")
        self.parameters["n"] = n

    # -- tools -----------------------------------------------------------------------------------------------------

    def _tools(self) -> list[dict[str, Any]]:
        written: list[dict[str, Any]] = []
        for i, tool in enumerate(self.request.tools):
            place = f"tools[{i}]"
            if isinstance(tool, FunctionTool):
                place = f"functions[{i}]" if tool.deprecated else f"{place}.function"
                written.append(self._function(tool, place))
            elif isinstance(tool, OtherTool) and tool.fields.get("type") in _BUILT_IN_TOOLS:
                self.parameters[_BUILT_IN_TOOLS[tool.fields["type"]]] = True
                self.dropped.extend(f"{place}.{key}" for key in tool.fields if key != "type")
            else:
                self.dropped.append(place)
        if isinstance(self.request.tool_choice, AllowedTools):
            allowed = {_allowed_name(tool) for tool in self.request.tool_choice.tools}
            written = [tool for tool in written if tool["function"]["name"] in allowed]
        return written

    def _function(self, tool: FunctionTool, place: str) -> dict[str, Any]:
        if tool.name == "search":
            raise InvalidRequest(
                "DashScope keeps the tool name `search` for itself: give this tool another name",
                param=f"$.{place}.name",
            )
        if tool.strict:
            self.dropped.append(f"{place}.strict")
        outer = place.removesuffix(".function")
        for key, value in tool.extra.items():
            self.dropped.extend([f"{place}.{name}" for name in value] if key == "function" else [f"{outer}.{key}"])
        function: dict[str, Any] = {"name": tool.name}
        if tool.description is not None:
            function["description"] = tool.description
        function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}

    def _tool_choice(self, tools: list[dict[str, Any]]) -> str | dict[str, Any] | None:
        """The choice in DashScope's words: `auto`, `none` or one function. `required` of several has none."""
        match self.request.tool_choice:
            case "none" | "auto" as word:
                return word
            case NamedTool(name=name, kind="function"):
                return {"type": "function", "function": {"name": name}}
            case "required" | AllowedTools(mode="required"):
                if len(tools) == 1:
                    return {"type": "function", "function": {"name": tools[0]["function"]["name"]}}
                self.dropped.append("tool_choice")
                return None
            case None | AllowedTools():
                return None
            case _:
                self.dropped.append("tool_choice")
                return None

    def _put_tool_choice(self, choice: str | dict[str, Any] | None, thinking: _Thinking) -> None:
        if isinstance(choice, dict) and thinking.on:
            # a thinking model refuses to be told which tool to call
            self.dropped.append("tool_choice")
        else:
            self._put("tool_choice", choice)
        self._put("parallel_tool_calls", self.request.parallel_tool_calls)

    # -- thinking --------------------------------------------------------------------------------------------------

    def _thinking(self, *, forced: bool) -> _Thinking:
        """What is asked of thinking. `forced` says that the request has what a thinking model refuses."""
        enabled, budget, effort = self._asked_thinking()
        asked = enabled
        if asked is None and effort is not None:
            asked = effort != "none"
        if asked is None and budget is not None:
            asked = budget > 0
        mode = self.family.thinking
        if mode == "never":
            self._drop_thinking(enabled or None, budget, effort if effort != "none" else None)
            return _Thinking(on=False, parameters={})
        if mode == "always":
            if asked is False:
                self._drop_thinking(enabled, None, effort)
                effort = None
            return _Thinking(on=True, parameters=self._measure(budget, effort))
        on = asked if asked is not None else mode == "on" and not forced
        if not on:
            said = asked is False or mode == "on"
            return _Thinking(on=False, parameters={"enable_thinking": False} if said else {})
        parameters = {"enable_thinking": True} if asked else {}
        return _Thinking(on=True, parameters={**parameters, **self._measure(budget, effort)})

    def _asked_thinking(self) -> tuple[bool | None, int | None, str | None]:
        thinking, extra = self.request.thinking, self.request.extra
        enabled, budget = thinking.enabled, thinking.budget
        if enabled is None and isinstance(extra.get("enable_thinking"), bool):
            enabled = extra["enable_thinking"]
        given = extra.get("thinking_budget")
        if budget is None and isinstance(given, int) and not isinstance(given, bool):
            budget = given
        return enabled, budget, thinking.effort

    def _measure(self, budget: int | None, effort: str | None) -> dict[str, Any]:
        """How much to think: a budget, or an effort in the model's words. A budget is the more exact of the two."""
        if budget is not None and budget > 0:
            if effort is not None:
                self.dropped.append("reasoning_effort")
            return {"thinking_budget": budget}
        if effort is None or effort == "none":
            return {}
        if effort not in _EFFORTS:
            self.dropped.append("reasoning_effort")
            return {}
        if self.family.takes_effort:
            return {"reasoning_effort": _EFFORTS[effort]}
        worth = _BUDGETS[effort]
        return {"thinking_budget": worth} if worth is not None else {}

    def _drop_thinking(self, enabled: bool | None, budget: int | None, effort: str | None) -> None:
        asked = {"enable_thinking": enabled, "thinking_budget": budget, "reasoning_effort": effort}
        self.dropped.extend(name for name, value in asked.items() if value is not None)

    # -- the rest --------------------------------------------------------------------------------------------------

    def _response_format(self) -> None:
        match self.request.response_format:
            case None | PlainText():
                pass
            case JsonObject():
                self.parameters["response_format"] = {"type": "json_object"}
            case JsonSchema() as wanted:
                schema = {
                    "name": wanted.name,
                    "description": wanted.description,
                    "schema": wanted.schema,
                    "strict": wanted.strict,
                }
                self.parameters["response_format"] = {
                    "type": "json_schema",
                    "json_schema": {key: value for key, value in schema.items() if value is not None},
                }
                for key, value in wanted.extra.items():
                    # fields of the inner object stand under its name
                    names = [f"{key}.{inner}" for inner in value] if key == "json_schema" else [key]
                    self.dropped.extend(f"response_format.{name}" for name in names)
            case _:
                self.dropped.append("response_format")

    def _extra(self) -> None:
        """The fields that only the client's protocol knows. Those that DashScope knows too are parameters."""
        for name, value in self.request.extra.items():
            if name == "top_k":
                # null turns it off, which is not the same as leaving it out
                self.parameters[name] = value
            elif name in self.known:
                self._put(name, value)
            elif name in ("modalities", "audio"):
                self._modality(name, value)
            elif name == "web_search_options":
                self.parameters.setdefault("enable_search", True)
                inner = value if isinstance(value, dict) else {}
                self.dropped.extend(f"web_search_options.{key}" for key in inner)
            elif name not in ("enable_thinking", "thinking_budget", "stream_options") and value is not None:
                self.dropped.append(name)
        if self.request.user is not None:
            self.dropped.append("user")
        if self.request.metadata:
            self.dropped.append("metadata")

    def _modality(self, name: str, value: Any) -> None:
        """Speech is for the omni models; text alone is what all give anyway."""
        if "omni" in self.family.names.pattern:
            self._put(name, value)
        elif value not in (None, ["text"]):
            self.dropped.append(name)


def _allowed_name(tool: dict[str, Any]) -> Any:
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else tool.get("name")
