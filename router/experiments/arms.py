"""What an arm makes of a request: parameters and a system prompt take the place of the client's. Pure.

An arm's parameters are the fields of OpenAI's request, and are read by the same decoder as a client's: names, types and
meanings are the same. What only one vendor knows stands under `extra_body`, as in OpenAI's own client.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from router.config import Document
from router.dialects.openai_chat_request import RequestDecoder
from router.document import Problem
from router.errors import InvalidRequest
from router.experiment import Arm
from router.messages import ChatRequest, Extra, Message, System
from router.nearest import did_you_mean
from router.reader import Path, short, written
from router.settings import Config
from router.wire.openai_chat import ChatCompletionRequest

EXTRA_BODY: Final = "extra_body"
_SAMPLING: Final = (
    *("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias"),
    *("seed", "stop", "n", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"),
)
_THINKING: Final = {"reasoning_effort": "effort", "thinking_budget": "budget", "enable_thinking": "enabled"}
_WHOLE: Final = {
    "tools": "tools",
    "functions": "tools",
    "tool_choice": "tool_choice",
    "function_call": "tool_choice",
    "parallel_tool_calls": "parallel_tool_calls",
    "response_format": "response_format",
}
"""Parameter → the field of `ChatRequest` that it is."""
_NOT_AN_ARMS: Final = {
    "model": "the arm's `target` says what answers",
    "messages": "the arm's `system` replaces the system prompt; the rest of a conversation is the client's",
    "stream": "the client says how it wants its answer",
    "stream_options": "the client says how it wants its answer",
    "user": "it says who the client's user is",
    "metadata": "it holds the labels of the client's call",
    "store": "what a vendor keeps is the client's to say",
}
_FIELDS: Final = tuple(name for name in ChatCompletionRequest.__struct_encode_fields__ if name != "unknown")
"""The format's fields."""


class Change(Struct, frozen=True):
    """An arm's parameters and system prompt, read."""

    sampling: dict[str, Any] = {}
    thinking: dict[str, Any] = {}
    whole: dict[str, Any] = {}
    """Fields of `ChatRequest`."""
    named: frozenset[str] = frozenset()
    """Every parameter: what the client says under these names in words of its own is left out."""
    extra: Extra = {}
    system: str | None = None

    def applied(self, request: ChatRequest) -> ChatRequest:
        fields = dict(self.whole)
        if self.sampling:
            fields["sampling"] = msgspec.structs.replace(request.sampling, **self.sampling)
        if self.thinking:
            fields["thinking"] = msgspec.structs.replace(request.thinking, **self.thinking)
        if self.extra or not self.named.isdisjoint(request.extra):
            kept = {name: value for name, value in request.extra.items() if name not in self.named}
            fields["extra"] = {**kept, **self.extra}
        if self.system is not None:
            fields["messages"] = _spoken_to(request.messages, self.system)
        return msgspec.structs.replace(request, **fields) if fields else request


def change_of(arm: Arm, decode: Callable[[Mapping[str, Any]], ChatRequest]) -> Change | None:
    """What the arm changes in a request; None: nothing. Raises `InvalidRequest` for parameters that are no request's.

    `decode` reads parameters as the fields of a request with nothing else in it (`reading`).
    """
    named, system = set(arm.parameters), arm.system
    if not named:
        return None if system is None else Change(system=system)
    fields = {name: value for name, value in arm.parameters.items() if name != EXTRA_BODY}
    body = arm.parameters.get(EXTRA_BODY) or {}
    said = decode({**body, **fields})
    named |= body.keys()
    # both are the neutral model's `tool_choice`, and leave the client's own words for it behind
    if named & {"tool_choice", "function_call"}:
        named |= {"tool_choice", "function_call"}
    sampling = {"max_tokens" if name.startswith("max_") else name for name in named.intersection(_SAMPLING)}
    thinking = [field for name, field in _THINKING.items() if name in named]
    return Change(
        {name: getattr(said.sampling, name) for name in sampling},
        {name: getattr(said.thinking, name) for name in thinking},
        {field: getattr(said, field) for name, field in _WHOLE.items() if name in named},
        frozenset(named),
        {name: value for name, value in said.extra.items() if name in named},
        system,
    )


def reading() -> Callable[[Mapping[str, Any]], ChatRequest]:
    """What reads parameters as OpenAI's dialect reads a client's. Raises `InvalidRequest`."""
    decoder = RequestDecoder()
    least = {"model": "any", "messages": [{"role": "user", "content": ""}]}

    def decode(parameters: Mapping[str, Any]) -> ChatRequest:
        return decoder.decode(json.dumps({**parameters, **least}).encode()).request

    return decode


def check_arms(config: Config, document: Document) -> list[Problem]:
    """What is wrong with parameters of arms, and with shadows, that takes more than the section itself to see."""
    found: list[Problem] = []
    if not config.experiments:
        # a decoder is slow to make, and a configuration may be read often
        return found
    decode = reading()
    for experiment in config.experiments.values():
        base: Path = ("experiments", experiment.name)
        for arm in experiment.arms:
            path: Path = (*base, "arms", arm.name, "parameters")
            found += [
                document.problem((*path, *where), f"{written((*path, *where))} {words}")
                for where, words in _problems(arm.parameters, decode)
            ]
        shadow = experiment.shadow
        if shadow is not None and str(shadow.target) in config.models:
            words = f"a route is named `{shadow.target}` too, and a route's name wins: give the route another one"
            found.append(document.problem((*base, "shadow", "target"), words))
        if shadow is not None and not config.ledger.enabled:
            words = "its budget is remembered by the ledger: remove `enabled: false` from `ledger`, or the shadow"
            found.append(document.problem((*base, "shadow"), f"{written((*base, 'shadow'))}: {words}"))
    return found


def _problems(
    parameters: Mapping[str, Any], decode: Callable[[Mapping[str, Any]], ChatRequest]
) -> list[tuple[tuple[str, ...], str]]:
    """Where something is wrong, and what."""
    found: list[tuple[tuple[str, ...], str]] = []
    for name, value in parameters.items():
        if name == EXTRA_BODY:
            if not isinstance(value, dict):
                found.append(((name,), "must be a mapping: fields of the request that only a vendor knows"))
                continue
            found += [
                ((name, inner), "is not for a vendor alone: write it beside `extra_body`, not in it")
                for inner in value
                if inner in _FIELDS
            ]
        elif name in _NOT_AN_ARMS:
            found.append(((name,), f"cannot be changed by an arm: {_NOT_AN_ARMS[name]}"))
        elif name not in _FIELDS:
            near = did_you_mean(name, [field for field in _FIELDS if field not in _NOT_AN_ARMS])
            found.append(
                ((name,), f"is no parameter of a request{near} (what only a vendor knows stands under `{EXTRA_BODY}`)")
            )
        else:
            try:
                decode({name: value})
            except InvalidRequest as error:
                found.append(((name,), _without_place(error, name)))
    return found


def _without_place(error: InvalidRequest, name: str) -> str:
    """The decoder's words, whose beginning names the field."""
    inner = (error.param or name).removeprefix(name).lstrip(".")
    words = re.sub(r"^`[^`]*`: ", "", error.message).rstrip(".")
    return f"is wrong: {f'`{short(inner)}`: ' if inner else ''}{words}"


def _spoken_to(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """The messages with this system prompt, in the role that the client's had; an empty one takes it away."""
    others = tuple(message for message in messages if not isinstance(message, System))
    if not system:
        return others
    replaced = next((message for message in messages if isinstance(message, System)), System(""))
    return (System(system, replaced.role), *others)
