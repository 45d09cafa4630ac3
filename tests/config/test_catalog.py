"""Names → candidates, and what a client is told when there are none."""

import pytest

from router.catalog import Catalog, Listed, Way
from router.config import defaults, parse
from router.errors import ProviderUnavailable, UnknownModel
from router.provider import Target
from router.route import Can, Timeouts
from router.routing.candidates import Candidate

TEXT = """
providers:
  openai: {protocol: openai, api_key: "${OPENAI_API_KEY}", models: [gpt-5-mini, gpt-5]}
  qwen: {protocol: dashscope, api_key: "${A}${B}", models: [qwen-plus]}
  mock: {protocol: mock, models: [echo], timeouts: {idle: 30s, total: 300s}}
models:
  chat: {targets: [openai/gpt-5-mini, qwen/qwen-plus, mock/echo], timeouts: {first_token: 20s, idle: 5s}}
  paid: {targets: [openai/gpt-5, qwen/qwen-plus, openai/gpt-5-mini]}
  mock/echo: {targets: [mock/lorem-3]}
"""


def catalog(environ: dict[str, str] | None = None) -> Catalog:
    return Catalog(parse(TEXT, "c.yaml", environ or {}).config)


ALL = {"OPENAI_API_KEY": "k", "A": "a", "B": "b"}


def names(found: Way) -> list[str]:
    return [str(candidate.target) for candidate in found.candidates]


def test_a_route_leads_to_its_targets_in_order() -> None:
    assert names(catalog(ALL).resolve("chat")) == ["openai/gpt-5-mini", "qwen/qwen-plus", "mock/echo"]


def test_a_route_passes_over_what_is_not_available() -> None:
    assert names(catalog().resolve("chat")) == ["mock/echo"]
    assert names(catalog({"OPENAI_API_KEY": "k"}).resolve("paid")) == ["openai/gpt-5", "openai/gpt-5-mini"]


def test_any_model_of_a_provider_can_be_asked_for() -> None:
    assert catalog(ALL).resolve("openai/org/model:free").candidates == (
        Candidate(Target("openai", "org/model:free"), Timeouts()),
    )


def test_a_route_wins_over_a_provider_and_its_model() -> None:
    assert names(catalog().resolve("mock/echo")) == ["mock/lorem-3"]


def test_timeouts_come_from_the_route_then_the_provider_then_the_default() -> None:
    def timeouts(name: str, environ: dict[str, str] | None = None) -> Timeouts:
        return catalog(environ or {}).resolve(name).candidates[0].timeouts

    assert timeouts("chat") == Timeouts(connect=5, first_token=20, idle=5, total=300)
    assert timeouts("mock/other") == Timeouts(connect=5, first_token=60, idle=30, total=300)
    assert timeouts("paid", ALL) == Timeouts(connect=5, first_token=60, idle=60, total=600)


def test_a_target_is_in_its_own_region_or_else_in_its_providers() -> None:
    text = """
providers: {a: {protocol: mock, region: eu}, b: {protocol: mock}}
models:
  chat: {targets: [a/x, {target: a/y, region: us}, b/z], fallback: {context_length: [a/long]}}
experiments: {trial: {route: chat, arms: {new: {share: 50, target: a/new}, old: {share: 50}}}}
"""
    found = Catalog(parse(text, "c.yaml", {}).config)
    way = found.resolve("chat")
    assert [each.region for each in way.candidates] == ["eu", "us", None]
    assert [each.region for each in way.fallback["context_length"]] == ["eu"]
    arm = found.arm("chat", Target("a", "new"))
    assert arm is not None
    assert arm.region == "eu"
    assert [found.resolve(name).candidates[0].region for name in ("a/any", "b/any")] == ["eu", None]


LIST = " (GET /v1/models lists the names; provider/model always works)"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("caht", f"unknown model `caht`: did you mean `chat`?{LIST}"),
        ("gpt-5", f"unknown model `gpt-5`: did you mean `openai/gpt-5`?{LIST}"),
        ("azure/gpt-5", f"unknown model `azure/gpt-5`: did you mean `openai/gpt-5`?{LIST}"),
        ("opnai/some", f"unknown model `opnai/some`: did you mean `openai/some`?{LIST}"),
        ("openai", f"unknown model `openai`: write `openai/` and the model's name{LIST}"),
        ("openai/", f"unknown model `openai/`: write `openai/` and the model's name{LIST}"),
        ("zzz", f"unknown model `zzz`{LIST}"),
        ("", f"the model's name is empty{LIST}"),
        ("x" * 200, f"unknown model `{'x' * 79}…`{LIST}"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        catalog(ALL).resolve(name)
    assert caught.value.message == message
    assert (caught.value.status, caught.value.param) == (404, "model")


def test_a_provider_without_its_variable_says_which() -> None:
    with pytest.raises(ProviderUnavailable) as caught:
        catalog().resolve("qwen/qwen-plus")
    assert caught.value.status == 503
    assert caught.value.message == (
        "`qwen/qwen-plus` is not available: provider `qwen` needs `A` and `B`, which are not set "
        "in the gateway's environment"
    )


def test_a_route_without_any_available_target_says_why_for_each_provider() -> None:
    with pytest.raises(ProviderUnavailable) as caught:
        catalog({"A": "a"}).resolve("paid")
    assert caught.value.message == (
        "`paid` is not available: provider `openai` needs `OPENAI_API_KEY`, which is not set; "
        "provider `qwen` needs `B`, which is not set in the gateway's environment"
    )


def test_routes_and_listed_models_are_listed() -> None:
    assert catalog({"A": "a", "B": "b"}).models() == [
        Listed("chat", "deltaway", True),
        Listed("paid", "deltaway", True),
        Listed("mock/echo", "deltaway", True),
        Listed("openai/gpt-5-mini", "openai", False, ("OPENAI_API_KEY",)),
        Listed("openai/gpt-5", "openai", False, ("OPENAI_API_KEY",)),
        Listed("qwen/qwen-plus", "qwen", True),
    ]


def test_an_unavailable_route_lists_what_it_misses() -> None:
    paid = next(listed for listed in catalog().models() if listed.id == "paid")
    assert paid == Listed("paid", "deltaway", False, ("OPENAI_API_KEY", "A", "B"))


def test_without_a_file_the_mock_answers_and_is_listed() -> None:
    found = Catalog(defaults().config)
    assert names(found.resolve("mock/echo")) == ["mock/echo"]
    assert "mock/echo" in [listed.id for listed in found.models()]


def test_a_routes_candidates_know_what_their_models_can_do_and_the_routes_word_counts_more() -> None:
    text = """
providers:
  qwen: {protocol: dashscope, api_key: k, can: {"qwen-*": {tools: false}}}
models:
  chat: {targets: [{target: qwen/qwen-plus, can: {context: 5000}}]}
"""
    known = Catalog(parse(text, "c.yaml", {}).config)
    (candidate,) = known.resolve("chat").candidates
    assert (candidate.can.images, candidate.can.tools, candidate.can.context) == (False, False, 5000)
    (named,) = known.resolve("qwen/qwen-plus").candidates
    assert named.can == Can(), "a call that names its target goes there, whatever is known of it"


WINDOWS = """
providers:
  openai: {protocol: openai, api_key: "${OPENAI_API_KEY}", can: {"big*": {context: 100000}, "small*": {context: 8000}}}
  other: {protocol: openai, base_url: "http://127.0.0.1:1/v1", api_key: "${A}", can: {"tiny*": {context: 1000}}}
models:
  both: {targets: [openai/big, {target: openai/small, can: {context: 9000}}, other/unknown]}
  away: {targets: [openai/big, other/tiny]}
  long: {targets: [openai/small], fallback: {context_length: [openai/big]}}
  trial: {targets: [openai/big]}
  unknown: {targets: [openai/unknown]}
experiments:
  e: {route: trial, unit: user, arms: {control: {share: 50}, less: {target: openai/small, share: 50}}}
"""


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("both", 9000),
        ("openai/big-2", 100_000),
        ("openai/whatever", None),
        ("unknown", None),
        # one whose key is not set is not reached, and a fallback only by what was too long
        ("away", 100_000),
        ("long", 8000),
        ("trial", 8000),
    ],
)
def test_the_window_of_a_name_is_the_smallest_that_is_known_of_its_targets(name: str, window: int | None) -> None:
    assert Catalog(parse(WINDOWS, "c.yaml", {"OPENAI_API_KEY": "k"}).config).window(name) == window


def test_the_window_of_an_unknown_name_is_refused_as_the_name_is() -> None:
    with pytest.raises(UnknownModel):
        catalog(ALL).window("chta")
