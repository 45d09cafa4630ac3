"""A client's bytes → the vendor's bytes: what one says in Chat Completions reaches a vendor of that protocol unchanged.

The bodies are drawn from the fields that OpenAI documents, with fields of no known name strewn in at every level. Said
in another way on arrival are only: `stop` as a list, `max_tokens` as its successor, a known field's null as its
absence, and usage, which is always asked for.
"""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from providers.openai import OpenAI
from router.dialects.openai_chat import OpenAIChat
from router.provider import HttpRequest, ProviderSettings, Target

Json = dict[str, Any]

DIALECT = OpenAIChat()
TARGET = Target("openai", "gpt-5-mini")


def sent_for(body: Json) -> HttpRequest:
    provider = OpenAI(ProviderSettings(name="openai", base_url="https://api.openai.com/v1", api_key="key-1"))
    return provider.encode(DIALECT.decode(json.dumps(body).encode()).request, TARGET)


# -- what a client may say -------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
WORD = st.sampled_from(["a", "look", "find_1"])
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
OBJECT = st.dictionaries(TEXT, ANY, max_size=2)
STRAY = st.dictionaries(st.sampled_from(["x_new", "cache_control", "extra_content"]), ANY, max_size=1)


def node(required: dict[str, Any], optional: dict[str, Any] | None = None) -> st.SearchStrategy[Json]:
    """An object with some of its optional fields, and now and then one of no known name."""
    fields = st.fixed_dictionaries(required, optional=optional or {})
    return st.builds(lambda known, stray: {**known, **stray}, fields, STRAY)


def just(word: str) -> st.SearchStrategy[str]:
    return st.just(word)


BREAKPOINT = {"prompt_cache_breakpoint": node({"mode": just("explicit")}, {"ttl": just("30m")})}
TEXT_PART = node({"type": just("text"), "text": TEXT}, BREAKPOINT)
PART = st.one_of(
    TEXT_PART,
    node({"type": just("image_url"), "image_url": node({"url": TEXT}, {"detail": just("original")})}, BREAKPOINT),
    node({"type": just("input_audio"), "input_audio": node({"data": TEXT, "format": just("wav")})}, BREAKPOINT),
    node({"type": just("file"), "file": node({}, {"file_id": TEXT, "filename": TEXT, "file_data": TEXT})}, BREAKPOINT),
    node({"type": just("video_url"), "video_url": OBJECT}),
)
SAID = TEXT | st.lists(TEXT_PART, min_size=1, max_size=3)
FUNCTION_CALL = node({"name": WORD, "arguments": TEXT})
TOOL_CALL = st.one_of(
    node({"id": TEXT, "type": just("function"), "function": FUNCTION_CALL}),
    node({"id": TEXT, "type": just("custom"), "custom": node({"name": WORD, "input": TEXT})}),
)
REFUSAL_PART = node({"type": just("refusal"), "refusal": TEXT})
MESSAGE = st.one_of(
    node({"role": st.sampled_from(["system", "developer"]), "content": SAID}, {"name": WORD}),
    node({"role": just("user"), "content": TEXT | st.lists(PART, min_size=1, max_size=4)}, {"name": WORD}),
    node(
        {"role": just("assistant"), "content": TEXT | st.lists(TEXT_PART | REFUSAL_PART, min_size=1, max_size=3)},
        {
            "name": WORD,
            "refusal": TEXT,
            "tool_calls": st.lists(TOOL_CALL, min_size=1, max_size=3),
            "audio": node({"id": TEXT}),
            "function_call": FUNCTION_CALL,
            "annotations": st.lists(OBJECT, max_size=1),
        },
    ),
    node({"role": just("assistant"), "content": st.none(), "tool_calls": st.lists(TOOL_CALL, min_size=1, max_size=3)}),
    node({"role": just("tool"), "tool_call_id": TEXT, "content": SAID}, {"name": WORD}),
    node({"role": just("function"), "name": WORD, "content": TEXT}),
)
TOOL = st.one_of(
    node(
        {
            "type": just("function"),
            "function": node({"name": WORD}, {"description": TEXT, "parameters": OBJECT, "strict": st.booleans()}),
        }
    ),
    node({"type": just("custom"), "custom": node({"name": WORD}, {"description": TEXT, "format": OBJECT})}),
    node({"type": just("web_search_preview"), "filters": OBJECT}),
)
TOOL_CHOICE = st.one_of(
    st.sampled_from(["none", "auto", "required", "any"]),
    node({"type": just("function"), "function": node({"name": WORD})}),
    node({"type": just("custom"), "custom": node({"name": WORD})}),
    node(
        {
            "type": just("allowed_tools"),
            "allowed_tools": node({"mode": st.sampled_from(["auto", "required"]), "tools": st.lists(OBJECT)}),
        }
    ),
    node({"type": just("hosted"), "server": TEXT}),
)
FORMAT = st.one_of(
    node({"type": st.sampled_from(["text", "json_object"])}),
    node(
        {
            "type": just("json_schema"),
            "json_schema": node({"name": WORD}, {"description": TEXT, "schema": OBJECT, "strict": st.booleans()}),
        }
    ),
    node({"type": just("grammar"), "grammar": OBJECT}),
)
MODES = node({}, {"input": node({"mode": just("block")}), "output": node({"mode": just("score")})})
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "n": st.integers(1, 128),
    "stop": TEXT | st.lists(TEXT, max_size=4),
    "max_completion_tokens": st.integers(1, 10**6),
    "max_tokens": st.integers(1, 10**6),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.sampled_from(["50256", "11"]), st.integers(-100, 100)),
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(0, 20),
    "seed": st.integers(-(2**70), 2**70),
    "tools": st.lists(TOOL, min_size=1, max_size=3),
    "tool_choice": TOOL_CHOICE,
    "parallel_tool_calls": st.booleans(),
    "response_format": FORMAT,
    "reasoning_effort": st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh", "max"]),
    "verbosity": st.sampled_from(["low", "medium", "high"]),
    "modalities": st.sampled_from([["text"], ["text", "audio"]]),
    "audio": node({"voice": TEXT | node({"id": TEXT}), "format": just("pcm16")}),
    "prediction": node(
        {"type": just("content"), "content": TEXT | st.lists(node({"type": just("text"), "text": TEXT}))}
    ),
    "web_search_options": node(
        {},
        {
            "search_context_size": just("low"),
            "user_location": node(
                {
                    "type": just("approximate"),
                    "approximate": node({}, {"city": TEXT, "country": TEXT, "region": TEXT, "timezone": TEXT}),
                }
            ),
        },
    ),
    "service_tier": st.sampled_from(["auto", "default", "flex", "scale", "priority", "fast"]),
    "store": st.booleans(),
    "metadata": st.dictionaries(TEXT, TEXT, min_size=1, max_size=2),
    "prompt_cache_key": TEXT,
    "prompt_cache_options": node({}, {"mode": just("explicit"), "ttl": just("30m")}),
    "prompt_cache_retention": st.sampled_from(["in_memory", "24h"]),
    "safety_identifier": TEXT,
    "user": TEXT,
    "moderation": node({"model": TEXT}, {"policy": MODES}),
}
"""Every field of OpenAI's request but those of the stream and of the deprecated form of tools."""

OLD_TOOLS: dict[str, st.SearchStrategy[Any]] = {
    "functions": st.lists(node({"name": WORD}, {"description": TEXT, "parameters": OBJECT}), min_size=1, max_size=2),
    "function_call": st.sampled_from(["none", "auto"]) | node({"name": WORD}),
}


@st.composite
def bodies(draw: st.DrawFn) -> Json:
    messages = draw(st.lists(MESSAGE, min_size=1, max_size=3))
    fields = dict(draw(st.sets(st.sampled_from(sorted(FIELDS)), max_size=6).flatmap(_some)))
    if draw(st.booleans()):
        fields = {name: value for name, value in fields.items() if not name.startswith("tool")}
        fields["functions"] = draw(OLD_TOOLS["functions"])
        if draw(st.booleans()):
            fields["function_call"] = draw(OLD_TOOLS["function_call"])
    nulls = draw(st.sets(st.sampled_from(sorted(FIELDS.keys() - fields.keys())), max_size=2))
    stray = draw(STRAY)
    stream: Json = draw(
        st.just({})
        | st.just({"stream": False})
        | node({"include_usage": st.booleans()}, {"include_obfuscation": st.booleans()}).map(
            lambda options: {"stream": True, "stream_options": options}
        )
    )
    return {"model": "m", "messages": messages, **fields, **dict.fromkeys(nulls), **stray, **stream}


def _some(names: set[str]) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries({name: FIELDS[name] for name in sorted(names)})


def as_sent(body: Json) -> Json:
    """What the vendor shall get for a body: the body, in the few other words that the module names."""
    known = FIELDS.keys() | OLD_TOOLS.keys()
    wanted = {name: value for name, value in body.items() if not (name in known and value is None)}
    wanted["model"] = TARGET.model
    if isinstance(wanted.get("stop"), str):
        wanted["stop"] = [wanted["stop"]]
    if "max_tokens" in wanted:
        most = wanted.pop("max_tokens")
        wanted.setdefault("max_completion_tokens", most)
    if wanted.get("stream"):
        wanted["stream_options"] = {**wanted["stream_options"], "include_usage": True}
    else:
        wanted.pop("stream", None)
    return wanted


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(bodies())
def test_a_body_reaches_a_vendor_of_the_same_protocol_unchanged(body: Json) -> None:
    sent = sent_for(body)
    assert json.loads(sent.body) == as_sent(body)
    assert sent.dropped == ()
