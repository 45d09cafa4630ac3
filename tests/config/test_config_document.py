"""Settings whose shape only a provider or a plugin knows are read with the same errors as the rest."""

from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from router.config import ConfigError, Document, defaults, parse
from router.quantities import Duration, Size


class Inner(Struct, frozen=True):
    name: str
    on: bool = False


class Settings(Struct, frozen=True, kw_only=True):
    wait: Duration = Duration(5)
    room: Size | None = None
    mode: Literal["fast", "safe"] = "fast"
    level: Annotated[int, Meta(ge=1, le=9)] = 1
    names: Annotated[list[str], Meta(max_length=2)] = []
    inner: Inner | None = None
    rows: dict[str, Inner] = {}
    either: int | list[int] | None = None
    role: bool | Literal["auto"] = "auto"
    anything: Any = None

    def __post_init__(self) -> None:
        if self.level > 5 and self.mode == "fast":
            raise ValueError("a `level` over 5 needs `mode: safe`")


class Renamed(Struct, frozen=True, rename="camel"):
    max_size: int = 1


class Cat(Struct, frozen=True, tag="cat"):
    lives: int


class Dog(Struct, frozen=True, tag="dog"):
    loud: bool


class Pets(Struct, frozen=True):
    pets: list[Cat | Dog] = []


def document(settings: str, environ: dict[str, str] | None = None) -> Document:
    return parse(f"plugins:\n  - p: {settings}\n", "c.yaml", environ or {}).document


def read(settings: str, environ: dict[str, str] | None = None) -> Settings:
    return document(settings, environ).convert(("plugins", 0, "p"), Settings)


def errors(settings: str, type_: type = Settings) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        document(settings).convert(("plugins", 0, "p"), type_)
    return [str(problem).removeprefix("c.yaml:") for problem in caught.value.problems]


def test_settings_are_read_as_their_struct() -> None:
    found = read(
        "{wait: 1m, room: 2KiB, mode: safe, level: 7, names: [a, b], inner: {name: x}, "
        "rows: {r: {name: y, on: true}}, either: [1, 2], role: false, anything: {a: [1]}}"
    )
    assert found == Settings(
        wait=Duration(60),
        room=Size(2048),
        mode="safe",
        level=7,
        names=["a", "b"],
        inner=Inner("x"),
        rows={"r": Inner("y", True)},
        either=[1, 2],
        role=False,
        anything={"a": [1]},
    )
    assert type(found.wait) is Duration
    assert type(found.room) is Size


@pytest.mark.parametrize("settings", ["{}", "", "null"])
def test_no_settings_are_the_defaults(settings: str) -> None:
    assert read(settings) == Settings()


def test_a_plugin_that_is_only_named_has_the_defaults() -> None:
    found = parse("plugins: [p]\n", "c.yaml", {})
    assert found.document.convert(found.config.plugins[0].path, Settings) == Settings()


def test_plugins_of_a_file_that_lists_none_have_the_defaults() -> None:
    found = parse("server: {}\n", "c.yaml", {})
    assert [found.document.convert(plugin.path, Settings) for plugin in found.config.plugins] == [Settings()] * 2


def test_without_a_file_everything_has_its_defaults() -> None:
    assert defaults().document.convert(("providers", "mock", "options"), Settings) == Settings()
    assert str(defaults().document.problem(("plugins", 0), "wrong")) == "(defaults): wrong"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("{wiat: 1s}", "2:9: unknown key `wiat` in `plugins[0].p`: did you mean `wait`? "),
        ("{wait: 3}", "2:15: `plugins[0].p.wait` must be a duration with a unit: write 3s, or 3ms, …"),
        ("{mode: sfae}", "2:15: `plugins[0].p.mode` must be one of fast, safe: did you mean `safe`?"),
        ("{role: atuo}", "2:15: `plugins[0].p.role` must be one of true, false, auto: did you mean `auto`?"),
        ("{role: 1}", "2:15: `plugins[0].p.role` must be one of true, false, auto"),
        ("{level: 0}", "2:16: `plugins[0].p.level` must be at least 1"),
        ("{level: x}", "2:16: `plugins[0].p.level` must be a whole number, not text"),
        ("{level: 6}", "2:8: `plugins[0].p`: a `level` over 5 needs `mode: safe`"),
        ("{names: [a, b, c]}", "2:16: `plugins[0].p.names`: expected `array` of length <= 2"),
        ("{names: [a, 1]}", "2:20: `plugins[0].p.names[1]` must be text, not a number: put it in quotes"),
        ("{names: a}", "2:16: `plugins[0].p.names` must be a list, not text"),
        ("{inner: {on: true}}", "2:16: `plugins[0].p.inner` needs the key `name`"),
        ("{inner: x}", "2:16: `plugins[0].p.inner` must be a mapping of keys to values, not text"),
        ("{rows: {r: {name: x, no: 1}}}", "2:29: unknown key `no` in `plugins[0].p.rows.r` (known: name, on)"),
        ("{either: x}", "2:17: `plugins[0].p.either` must be a whole number, not text"),
        ("{either: [1, x]}", "2:21: `plugins[0].p.either[1]` must be a whole number, not text"),
        ("{either: {}}", "2:17: `plugins[0].p.either` must be a whole number or a list or null, not a mapping"),
        ("{wait: }", "2:9: `plugins[0].p.wait` has no value: write one, or remove the key"),
    ],
)
def test_wrong_settings_are_pointed_at(settings: str, expected: str) -> None:
    (error,) = errors(settings)
    assert error.startswith(expected)


def test_all_wrong_settings_are_told() -> None:
    found = errors("{level: x, mode: y, rows: {a: {}, b: {on: 1}}, inner: {nme: z}}")
    assert [error.split(": ")[0] for error in found] == ["2:16", "2:25", "2:38", "2:45", "2:50", "2:62", "2:63"]


def test_keys_may_be_renamed_and_structs_tagged() -> None:
    assert document("{maxSize: 3}").convert(("plugins", 0, "p"), Renamed) == Renamed(3)
    assert document("{pets: [{type: cat, lives: 9}]}").convert(("plugins", 0, "p"), Pets) == Pets([Cat(9)])
    assert errors("{pets: [{type: cat, lives: 9}, {type: dog, loud: 1}]}", Pets) == [
        "2:57: `plugins[0].p.pets[1].loud` must be true or false, not a number"
    ]


def test_options_of_a_provider_whose_variable_is_not_set_are_left_out() -> None:
    text = 'providers: {a: {protocol: openai, options: {wait: "${WAIT}", level: 3}}}\n'
    found = parse(text, "c.yaml", {}).document.convert(("providers", "a", "options"), Settings)
    assert found == Settings(level=3)


def test_a_variable_in_settings_is_text_where_text_is_wanted() -> None:
    assert read('{inner: {name: "${N}"}, wait: "${W}"}', {"N": "007", "W": "2s"}).inner == Inner("007")


def test_a_problem_of_the_apps_own_has_a_place() -> None:
    found = parse("plugins:\n  - a\n  - b\n", "c.yaml", {}).document
    assert str(found.problem(("plugins", 1), "belongs before `a`")) == "c.yaml:3:5: belongs before `a`"
    assert str(found.problem(("plugins", 1, "b"), "no")) == "c.yaml:3:5: no"
    assert str(found.problem(("server",), "no")) == "c.yaml:1:1: no"
