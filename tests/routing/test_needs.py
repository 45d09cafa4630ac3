"""What a request needs, and why a target cannot or may not serve it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.messages import (
    Assistant,
    Audio,
    ChatRequest,
    File,
    FunctionTool,
    Image,
    JsonObject,
    JsonSchema,
    Sampling,
    Text,
    Thinking,
    ToolResult,
    User,
)
from router.provider import Target
from router.route import Can, Timeouts, When
from router.routing.candidates import Candidate, Needs
from router.routing.needs import lacks, needs_of, wants_tokens

ABILITIES = ("tools", "images", "audio", "json_schema", "reasoning")


def asked(*content: Any, **fields: Any) -> ChatRequest:
    return ChatRequest(model="chat", protocol="openai", messages=(User(content or "Hello"),), **fields)


def candidate(**fields: Any) -> Candidate:
    return Candidate(Target("vendor", "model"), Timeouts(), **fields)


def needs(request: ChatRequest, prompt_tokens: int = 0, **tags: str) -> Needs:
    return needs_of(request, tags, (), prompt_tokens)


def test_plain_text_needs_nothing() -> None:
    assert needs(asked()) == Needs()


@pytest.mark.parametrize(
    ("request_", "need"),
    [
        (asked(tools=(FunctionTool("look"),)), "tools"),
        (asked(Text("What is it?"), Image("https://example.com/a.png")), "images"),
        (asked(Text("What is it?"), Audio("AAAA", "wav")), "audio"),
        (asked(extra={"modalities": ["text", "audio"]}), "audio"),
        (asked(response_format=JsonSchema("answer", {})), "json_schema"),
        (asked(thinking=Thinking(effort="low")), "reasoning"),
        (asked(thinking=Thinking(budget=1000)), "reasoning"),
        (asked(thinking=Thinking(enabled=True)), "reasoning"),
    ],
)
def test_what_a_request_needs_is_seen_and_nothing_else(request_: ChatRequest, need: str) -> None:
    assert [name for name in ABILITIES if getattr(needs(request_), name)] == [need]


@pytest.mark.parametrize(
    "request_",
    [
        asked(response_format=JsonObject()),
        asked(thinking=Thinking(effort="none")),
        asked(thinking=Thinking(enabled=False, budget=1000)),
        asked(Text("only text")),
    ],
)
def test_what_every_model_can_do_is_no_need(request_: ChatRequest) -> None:
    assert needs(request_) == Needs()


def test_an_image_is_seen_in_any_message() -> None:
    picture = (Image("data:image/png;base64,AAAA"),)
    for message in (Assistant(picture), ToolResult("call_1", picture)):
        request = ChatRequest(model="chat", protocol="openai", messages=(User("Look"), message, User("And?")))
        assert needs(request).images


@pytest.mark.parametrize("ability", ABILITIES)
def test_a_target_that_is_known_to_lack_an_ability_is_told_apart(ability: str) -> None:
    wanted = Needs(**{ability: True})
    assert ability.split("_")[0] in (lacks(candidate(can=Can(**{ability: False})), wanted) or "").lower()
    assert lacks(candidate(can=Can(**{ability: True})), wanted) is None
    assert lacks(candidate(), wanted) is None, "what is not known excludes nobody"
    assert lacks(candidate(can=Can(**{ability: False})), Needs()) is None


# -- context -------------------------------------------------------------------------------------------------------


def test_a_context_that_is_too_short_says_so() -> None:
    short = candidate(can=Can(context=32768))
    assert lacks(short, Needs(prompt_tokens=45000)) == "its context of 32768 tokens is too short for 45000"
    assert lacks(short, Needs(prompt_tokens=30000, max_tokens=9000)) == (
        "its context of 32768 tokens is too short for 30000 and an answer of 9000"
    )
    assert lacks(short, Needs(prompt_tokens=30000)) is None


def test_our_count_is_an_estimate_and_excludes_only_what_is_surely_too_long() -> None:
    assert lacks(candidate(can=Can(context=1000)), Needs(prompt_tokens=1240)) is None
    assert lacks(candidate(can=Can(context=1000)), Needs(prompt_tokens=1260)) is not None


def test_the_guessed_length_of_a_document_excludes_no_target() -> None:
    document = File(data="data:application/pdf;base64," + "A" * 400_000)
    needed = needs(asked(Text("Sum it up"), document), 75_100)
    assert lacks(candidate(can=Can(context=32768)), needed) is None
    written = needs(asked(Text("word " * 60_000), document), 135_100)
    assert lacks(candidate(can=Can(context=32768)), written) is not None


def test_tokens_are_wanted_only_where_they_may_matter() -> None:
    plain, other = candidate(), Candidate(Target("other", "model"), Timeouts())
    assert not wants_tokens([plain, other], "ordered", asked())
    assert not wants_tokens([candidate(can=Can(context=8000))], "latency", asked())
    assert wants_tokens([candidate(can=Can(context=8000))], "latency", asked(Text("x" * 9000)))
    assert wants_tokens([candidate(can=Can(context=8000))], "ordered", asked(sampling=Sampling(max_tokens=7999)))
    assert wants_tokens([candidate(when=When(max_prompt_tokens=10))], "ordered", asked())
    assert wants_tokens([candidate(when=When(min_prompt_tokens=10))], "ordered", asked())
    assert wants_tokens([plain, other], "cost", asked())
    assert not wants_tokens([plain], "cost", asked()), "there is nothing to compare"


@given(st.text(max_size=300), st.integers(1, 400))
def test_a_prompt_that_is_not_counted_would_not_have_been_too_long(text: str, context: int) -> None:
    short = candidate(can=Can(context=context))
    request = asked(Text(text))
    if not wants_tokens([short], "ordered", request):
        # a token is a byte at least
        assert lacks(short, needs(request, len(text.encode()))) is None


# -- conditions ----------------------------------------------------------------------------------------------------


def test_conditions_on_tags_are_shell_patterns() -> None:
    only = candidate(when=When(tags={"team": "research*"}))
    assert lacks(only, Needs(tags={"team": "research-eu"})) is None
    assert lacks(only, Needs(tags={"team": "sales"})) == "`when.tags.team` is not `research*`"
    assert lacks(only, Needs()) == "`when.tags.team` is `research*`, and the call has no tag `team`"


def test_conditions_on_the_prompts_length_include_their_borders() -> None:
    between = candidate(when=When(min_prompt_tokens=100, max_prompt_tokens=200))
    for tokens in (100, 200):
        assert lacks(between, Needs(prompt_tokens=tokens)) is None
    assert lacks(between, Needs(prompt_tokens=99)) == "`when.min_prompt_tokens` is 100, the prompt has 99"
    assert lacks(between, Needs(prompt_tokens=201)) == "`when.max_prompt_tokens` is 200, the prompt has 201"


@pytest.mark.parametrize("ability", ABILITIES)
@pytest.mark.parametrize("wanted", [True, False])
def test_a_condition_on_a_need_holds_both_ways(ability: str, wanted: bool) -> None:
    target = candidate(when=When(**{ability: wanted}))
    assert lacks(target, Needs(**{ability: wanted})) is None
    refused = lacks(target, Needs(**{ability: not wanted}))
    assert refused is not None
    assert refused.startswith(f"`when.{ability}` is {str(wanted).lower()}, and the call ")


def test_a_call_stays_in_the_regions_it_names() -> None:
    eu = Needs(regions=("eu",))
    assert lacks(candidate(region="eu"), eu) is None
    assert lacks(candidate(region="us"), eu) == "not in the region `eu`"
    assert lacks(candidate(), eu) == "not in the region `eu`", "where it is is not known, and data may not go there"
    assert lacks(candidate(region="us"), Needs(regions=("eu", "us"))) is None
