"""What a configuration would change, in words: nothing is left out, and no secret is told."""

import contextlib
import itertools
import types
import typing
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct, structs

from router.config import parse
from router.differences import Change
from router.experiment import Arm
from router.planning import changes
from router.settings import Config, Currency, PluginRow, Rate

ENVIRON = {"ONE": "sk-secret-one", "TWO": "sk-secret-two", "THREE": "sk-secret-three"}
BASE = """
providers:
  openai: {protocol: openai, base_url: "https://api.example.com/v1", api_key: "${ONE}", headers: {x-team: a},
           options: {reports_usage: true}, timeouts: {idle: 30s}}
  mock: {protocol: mock}
models:
  chat: {targets: [openai/gpt-5-mini, {target: mock/echo, weight: 2}], balance: weighted}
  old: {targets: [mock/echo]}
experiments:
  trial:
    route: chat
    unit: user
    arms: {control: {share: 50}, qwen: {share: 50, target: mock/echo}}
plugins: [usage, {limits: {key: {rpm: 5}}}]
"""


def config(text: str = BASE) -> Config:
    return parse(text, "providers.yaml", ENVIRON).config


def planned(*edits: tuple[str, str], in_use: dict[str, int] | None = None) -> list[Change]:
    text = BASE
    for before, after in edits:
        assert before in text
        text = text.replace(before, after)
    return changes(config(), config(text), in_use or {})


def words(*edits: tuple[str, str], in_use: dict[str, int] | None = None) -> list[str]:
    return [change.words for change in planned(*edits, in_use=in_use)]


def test_the_same_configuration_changes_nothing() -> None:
    assert planned() == []


@pytest.mark.parametrize(
    ("calls", "told"),
    [
        ({}, "no call runs on it"),
        ({"old": 1}, "1 call runs on it and finishes"),
        ({"old": 3, "mock/echo": 7}, "3 calls run on it and finish"),
    ],
)
def test_a_removed_route_is_told_with_the_calls_that_run_on_it(calls: dict[str, int], told: str) -> None:
    assert planned(("  old: {targets: [mock/echo]}\n", ""), in_use=calls) == [
        Change("models.old", f"the route `old` is removed: {told}; new calls to it get 404")
    ]


def test_a_changed_route_is_told_by_what_changes_in_it() -> None:
    edits = (
        ("{target: mock/echo, weight: 2}]", "{target: mock/echo, region: eu}, mock/tools]"),
        ("balance: weighted", "balance: latency, timeouts: {idle: 10s}, retry: {backoff: 1s}"),
    )
    assert words(*edits, in_use={"chat": 2}) == [
        "`mock/echo` of the route `chat`: weight: 2 → 1 (2 calls run on it and finish as they began)",
        "`mock/echo` of the route `chat`: region: not set → eu",
        "the route `chat` leads to `mock/tools` too, as number 3",
        "`models.chat.balance`: weighted → latency",
        "`models.chat.retry.backoff`: 250ms → 1s",
        "`models.chat.timeouts`: not set → {idle: 10s}",
    ]


def test_another_order_of_targets_is_told() -> None:
    edits = (
        ("[openai/gpt-5-mini, {target: mock/echo, weight: 2}]", "[{target: mock/echo, weight: 2}, openai/gpt-5-mini]"),
    )
    assert words(*edits) == [
        "the targets of the route `chat` stand in another order: `mock/echo`, `openai/gpt-5-mini`",
    ]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ('api_keys: ["${ONE}", "${TWO}"]', "has one key more: 2 in all"),
        ('api_key: "${TWO}"', "has one key new and one key fewer: 1 in all"),
        ('api_keys: ["${ONE}", "${TWO}", "${THREE}"]', "has two keys more: 3 in all"),
    ],
)
def test_changed_keys_are_counted_and_never_told(keys: str, told: str) -> None:
    found = planned(('api_key: "${ONE}"', keys))
    assert found == [Change("providers.openai.api_keys", f"the provider `openai` {told}")]


def test_values_that_may_be_secret_are_told_by_their_names() -> None:
    found = planned(
        ("headers: {x-team: a}", 'headers: {x-team: "secret-b", x-key: "${TWO}"}'),
        ("rpm: 5", "rpm: 6"),
        ("reports_usage: true", "reports_usage: false"),
    )
    assert [change.words for change in found] == [
        "`providers.openai.headers.x-team` has another value",
        "`providers.openai.headers.x-key` is added",
        "`providers.openai.options.reports_usage` has another value",
        "`plugins.limits.key` has another value",
    ]
    assert "secret" not in str(found)


def test_a_password_in_an_address_is_not_told() -> None:
    old, new = config(), config(BASE + 'store: "postgresql://me:secret@db.example.com/ledger"\n')
    other = config(BASE + 'store: "postgresql://me:other@db.example.com/ledger"\n')
    assert [change.words for change in changes(old, new, {})] == [
        "`store`: sqlite:///deltaway.db → postgresql://db.example.com/ledger"
    ]
    assert [change.words for change in changes(new, other, {})] == ["`store`: its user, password or options change"]


def test_providers_come_and_go() -> None:
    edits = (
        (
            "  mock: {protocol: mock}\n",
            '  mock: {protocol: mock}\n  new: {protocol: openai, base_url: "http://x/v1", api_key: "${NONE}"}\n',
        ),
    )
    assert words(*edits) == ["the provider `new` is added: protocol openai at http://x/v1; it waits for `NONE`"]
    old, new = config(BASE.replace("plugins", "# plugins")), config("providers: {other: {protocol: mock}}\n")
    told = [change.words for change in changes(old, new, {"openai/gpt": 1, "openai/x": 1, "chat": 5})]
    assert "the provider `openai` is removed: 2 calls run on it and finish; new calls to `openai/…` get 404" in told


def test_plugins_come_go_and_move() -> None:
    assert words(("[usage, {limits: {key: {rpm: 5}}}]", "[{limits: {key: {rpm: 5}}}, auth, usage]")) == [
        "the plugin `auth` is added, inside of `limits`",
        "the plugins stand in another order: `limits`, `auth`, `usage`",
    ]
    assert words(("[usage, {limits: {key: {rpm: 5}}}]", "[usage]")) == ["the plugin `limits` is removed"]


# -- experiments -----------------------------------------------------------------------------------------------------


def test_shifted_shares_are_told_with_how_many_units_move() -> None:
    assert words(("control: {share: 50}, qwen: {share: 50", "control: {share: 60}, qwen: {share: 40")) == [
        "the experiment `trial`: control 50 → 60, qwen 50 → 40: about 10 % of the units move"
    ]


def test_an_arm_more_is_told_with_how_many_units_move() -> None:
    arms = "control: {share: 40}, new: {share: 20}, qwen: {share: 40"
    assert words(("control: {share: 50}, qwen: {share: 50", arms)) == [
        "the experiment `trial` has a new arm `new`",
        "the experiment `trial`: control 50 → 40, qwen 50 → 40, new 0 → 20: about 20 % of the units move",
    ]


def test_another_salt_draws_all_units_anew() -> None:
    assert words(("unit: user", "unit: user\n    salt: again")) == [
        "the experiment `trial`: its salt changes, so all units are drawn anew"
    ]
    assert words(("unit: user", "unit: key")) == [
        "the experiment `trial`: its unit changes, user → key, so all units are drawn anew"
    ]


def test_times_of_an_experiment_are_told_as_days() -> None:
    assert words(("unit: user", "unit: user\n    end: 2026-12-01")) == [
        "`experiments.trial.end`: not set → 2026-12-01T00:00:00Z"
    ]


@given(st.lists(st.integers(0, 100), min_size=2, max_size=5), st.lists(st.integers(0, 100), min_size=2, max_size=5))
def test_no_assignment_could_move_fewer_units_than_are_told(old: list[int], new: list[int]) -> None:
    size = max(len(old), len(new))
    before, after = [_hundred(shares, size) for shares in (old, new)]
    base = config().experiments["trial"]
    names = [f"arm{place}" for place in range(size)]

    def with_shares(shares: list[float]) -> Config:
        arms = tuple(Arm(name, share) for name, share in zip(names, shares, strict=True))
        return structs.replace(config(), experiments={"trial": structs.replace(base, arms=arms, control="arm0")})

    found = changes(with_shares(before), with_shares(after), {})
    # who is in an arm that grows may stay; of one that shrinks the difference must leave
    leaving = sum(max(was - will, 0) for was, will in zip(before, after, strict=True))
    assert bool(found) == (before != after)
    if found:
        assert found[0].words.endswith(f"about {leaving:.3g} % of the units move")


def _hundred(shares: list[int], size: int) -> list[float]:
    padded = [*shares, *[0] * (size - len(shares))]
    total = sum(padded)
    return [100.0 * share / total for share in padded] if total else [100.0, *[0.0] * (size - 1)]


# -- nothing is left out ---------------------------------------------------------------------------------------------

FULL = """
server: {cors: {allow_origins: ["https://a.example.com"]}, region: eu}
prices: {file: prices.yaml, rates: {EUR: 1.1}}
providers:
  openai: {protocol: openai, base_url: "https://api.example.com/v1", api_key: "${ONE}", headers: {x-team: a},
           options: {reports_usage: true}, timeouts: {idle: 30s}, models: [m], can: {"gpt-*": {tools: true}},
           price_list: openai}
  mock: {protocol: mock}
models:
  chat:
    targets:
      - target: openai/gpt-5
        region: eu
        max_parallel: 5
        when: {tags: {a: b}, min_prompt_tokens: 5}
        can: {context: 9}
      - mock/echo
    balance: weighted
    fallback: {context_length: [mock/echo]}
    hedge: {after: 2s}
    timeouts: {idle: 3s}
experiments:
  trial:
    route: chat
    arms: {control: {share: 50}, qwen: {share: 50, target: mock/echo, parameters: {temperature: 1}, system: Hi}}
    start: 2026-11-01
    end: 2026-12-01
    ramp: {begin: 10, over: 2h}
    shadow: {target: mock/echo, share: 5, budget: 5 USD}
    metrics: {liked: {kind: binary}}
    guardrails: [{metric: errors, worse_by: 5}]
    adapt: {metric: liked}
plugins: [usage, {limits: {key: {rpm: 5}}}]
"""
LEFT_OUT = {
    # where its settings stand: another place of the same words changes nothing
    "plugins[].path",
    "plugins[].path[]",
    # a name is its key's
    "providers{}.name",
    "models{}.name",
    "experiments{}.name",
}


def edits_of(value: Any, type_: Any, path: str) -> Iterator[tuple[str, Any]]:
    """`value` with one thing in it changed, for each thing there is, and the path of that."""
    origin = get_origin(type_)
    if origin is Annotated:
        yield from edits_of(value, get_args(type_)[0], path)
    elif origin in (Union, types.UnionType):
        inner = next(each for each in get_args(type_) if each is not type(None))
        if value is not None:
            yield from edits_of(value, inner, path)
            yield path, None
    elif isinstance(value, Struct):
        hints = typing.get_type_hints(type(value), include_extras=True)
        for field in value.__struct_fields__:
            for at, edited in edits_of(getattr(value, field), hints[field], f"{path}.{field}".lstrip(".")):
                with contextlib.suppress(ValueError):
                    # what a type forbids no file can say
                    yield at, structs.replace(value, **{field: edited})
    elif isinstance(value, dict):
        inner = (get_args(type_) or (Any, Any))[1]
        for key, each in value.items():
            for at, edited in edits_of(each, inner, path + "{}"):
                yield at, {**value, key: edited}
            yield path, {name: other for name, other in value.items() if name != key}
    elif isinstance(value, tuple):
        arguments = get_args(type_) or (Any,)
        for place, each in enumerate(value):
            for at, edited in edits_of(each, arguments[0], path + "[]"):
                yield at, (*value[:place], edited, *value[place + 1 :])
        if value:
            yield path, value[1:]
    else:
        yield path, _another(value, type_)


def _another(value: Any, type_: Any) -> Any:
    if get_origin(type_) is Literal:
        return next(word for word in itertools.chain(get_args(type_)) if word != value)
    match value:
        case bool():
            return not value
        case Decimal():
            return Rate(value + 1)
        case int() | float():
            return type(value)(value + 1)
        case str():
            return type(value)("CNY" if isinstance(value, Currency) else f"{value}x")
    raise AssertionError(f"no other value of {type_} is known to this test")


FULLY = config(FULL)
EDITS = [(path, edited) for path, edited in edits_of(FULLY, Config, "") if path not in LEFT_OUT]


@pytest.mark.parametrize(("path", "edited"), EDITS, ids=[f"{path}-{n}" for n, (path, _) in enumerate(EDITS)])
def test_every_key_of_a_configuration_has_its_words(path: str, edited: Config) -> None:
    found = changes(FULLY, edited, {})
    assert found
    assert all(change.words and change.path for change in found)
    section = path.split(".")[0].split("{")[0].split("[")[0]
    assert {change.path.split(".")[0] for change in found} == {section}


def test_every_section_was_changed() -> None:
    assert {path.split(".")[0].split("{")[0].split("[")[0] for path, _ in EDITS} == set(Config.__struct_fields__)


def test_a_change_says_from_what_to_what() -> None:
    told = changes(FULLY, structs.replace(FULLY, server=structs.replace(FULLY.server, region="us")), {})
    assert told == [Change("server.region", "`server.region`: eu → us")]


def test_a_long_value_is_cut() -> None:
    arms = FULLY.experiments["trial"].arms
    longer = structs.replace(
        FULLY.experiments["trial"], arms=(arms[0], structs.replace(arms[1], system="Be brief. " * 99))
    )
    (change,) = changes(FULLY, structs.replace(FULLY, experiments={"trial": longer}), {})
    assert change.words.startswith("the arm `qwen` of `trial`: system: Hi → Be brief.")
    assert len(change.words) < 150


def test_settings_of_a_plugin_that_the_file_does_not_name_are_told_too() -> None:
    old = structs.replace(FULLY, plugins=(PluginRow("usage"),))
    assert changes(old, structs.replace(FULLY, plugins=(PluginRow("usage", {"a": 1}),)), {}) == [
        Change("plugins.usage.a", "`plugins.usage.a` is added")
    ]
    assert msgspec.json.encode(changes(old, FULLY, {}))
