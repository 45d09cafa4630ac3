"""What one vendor account has taught by refusing requests: learned from a 400, remembered while the process runs.

Pure bookkeeping on error messages and bodies. Only fields whose loss leaves the answer usable are given up, and each
is reported as dropped from then on; a refusal of anything else stays the caller's to see.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import Struct

from router.errors import ProviderError, Rejected, Unsupported

GIVEN_UP: Final[frozenset[str]] = frozenset(
    {
        "enable_thinking",
        "frequency_penalty",
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "repetition_penalty",
        "safety_identifier",
        "seed",
        "service_tier",
        "store",
        "strict",
        "temperature",
        "thinking_budget",
        "top_k",
        "top_p",
        "user",
        "verbosity",
    }
)
"""Fields that may be left out where a vendor refuses them."""

_TWINS: Final = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_MAX_MODELS: Final = 512
_MAX_TAUGHT: Final = 256

_REFUSALS: Final = frozenset(
    {
        "extra_forbidden",
        "unknown_parameter",
        "unknown_field",
        "unrecognized_parameter",
        "unsupported_parameter",
        "value_error.extra",
    }
)
"""Codes that say the field itself is refused, not its value."""

_NAME: Final = r"[\s:]*['\"`“]?([A-Za-z_][\w.\[\]]*)['\"`”]?"
_NAMED: Final = (
    re.compile(r"[Uu]nrecognized request arguments? supplied: ([\w, ]+)"),
    re.compile(
        r"(?:unknown|unsupported|unrecognized|unexpected|extra)"
        r" (?:request |input |body |keyword |extra )?(?:parameter|field|argument|name|property|key|input)s?" + _NAME,
        re.I,
    ),
    re.compile(
        r"['\"`“]?([A-Za-z_][\w.\[\]]*)['\"`”]?:? (?:"
        r"(?:(?:parameter|field|property) )?(?:is|are) (?:currently )?"
        r"(?:unsupported|unknown|not (?:yet )?(?:supported|allowed|permitted|recognized))"
        r"|extra (?:inputs|fields) (?:are )?not permitted)",
        re.I,
    ),
)
_DEVELOPER: Final = re.compile(r"['\"`“]developer['\"`”]|\bdeveloper role|\brole\b.{0,40}\bdeveloper\b", re.I)


class Facts(Struct, frozen=True):
    """What is known of one model."""

    drop: frozenset[str] = frozenset()
    max_tokens_field: str | None = None
    developer: bool | None = None


class Lessons:
    """The facts of one provider row, by model. Bounded: the oldest model is forgotten first."""

    def __init__(self) -> None:
        self.stream_options = True
        """Whether this vendor takes `stream_options`."""
        self._facts: dict[str, Facts] = {}
        self._taught: dict[int, None] = {}

    def of(self, model: str) -> Facts:
        return self._facts.get(model, _NOTHING)

    def learn(self, error: ProviderError, model: str, body: bytes) -> bool:
        """Whether a request encoded anew will differ in what the vendor refused.

        Also true when another call learned the same meanwhile, and this one was encoded before: but once per body,
        so that no request can go round in circles.
        """
        if type(error) not in (Rejected, Unsupported) or error.vendor_status not in (400, 422):
            return False
        try:
            sent = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError):
            return False
        mark = hash(body)
        if mark in self._taught or not isinstance(sent, dict) or not self._taken(error, model, sent):
            return False
        self._taught[mark] = None
        while len(self._taught) > _MAX_TAUGHT:
            del self._taught[next(iter(self._taught))]
        return True

    def _taken(self, error: ProviderError, model: str, sent: dict[str, Any]) -> bool:
        if "stream_options" in sent and "stream_options" in f"{error.param} {error.message}":
            self.stream_options = False
            return True
        facts = self.of(model)
        if _DEVELOPER.search(error.message) and _has_developer(sent):
            self._keep(model, msgspec.structs.replace(facts, developer=False))
            return True
        drop = facts.drop
        for name in _refused(error):
            if name in _TWINS and name in sent and facts.max_tokens_field in (None, _TWINS[name]):
                self._keep(model, msgspec.structs.replace(facts, max_tokens_field=_TWINS[name]))
                return True
            if name in GIVEN_UP and (name in sent or (name == "strict" and _has_strict(sent))):
                drop |= {name}
        if drop == facts.drop and not any(name in sent for name in drop):
            return False
        self._keep(model, msgspec.structs.replace(facts, drop=drop))
        return True

    def _keep(self, model: str, facts: Facts) -> None:
        self._facts.pop(model, None)
        self._facts[model] = facts
        while len(self._facts) > _MAX_MODELS:
            del self._facts[next(iter(self._facts))]


_NOTHING: Final = Facts()


def _refused(error: ProviderError) -> Iterator[str]:
    """The fields an error names as refused, by the last step of their path."""
    if error.param is not None and error.vendor_code in _REFUSALS:
        yield _last(error.param)
    for pattern in _NAMED:
        for found in pattern.finditer(error.message):
            for name in found[1].split(","):
                yield _last(name)


def _last(path: str) -> str:
    return path.strip(" .").rpartition(".")[2]


def _has_developer(sent: dict[str, Any]) -> bool:
    return any(isinstance(message, dict) and message.get("role") == "developer" for message in _items(sent, "messages"))


def _has_strict(sent: dict[str, Any]) -> bool:
    functions = (tool.get("function") for tool in _items(sent, "tools") if isinstance(tool, dict))
    wanted = sent.get("response_format")
    schema = wanted.get("json_schema") if isinstance(wanted, dict) else None
    return any(isinstance(node, dict) and "strict" in node for node in (*functions, schema))


def _items(sent: dict[str, Any], key: str) -> list[Any]:
    value = sent.get(key)
    return value if isinstance(value, list) else []
