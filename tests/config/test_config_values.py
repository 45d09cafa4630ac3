"""What a valid file becomes."""

from pathlib import Path
from typing import Any

import pytest
from rich.pretty import pretty_repr

from router.config import ConfigError, defaults, load, parse
from router.provider import Target
from router.route import Route, RouteTarget, Timeouts, overlay
from router.settings import Config, PluginRow, ProviderRow, Server


def config(text: str, environ: dict[str, str] | None = None) -> Config:
    return parse(text, "c.yaml", environ or {}).config


def row(keys: str, environ: dict[str, str] | None = None) -> ProviderRow:
    return config(f"providers:\n  a:\n    protocol: openai\n    {keys}\n", environ).providers["a"]


def options(text: str, environ: dict[str, str] | None = None) -> Any:
    """A value as it is handed to what understands it."""
    return row(f"options: {{x: {text}}}", environ).options.get("x", "left out")


def test_without_a_file_there_is_the_mock_alone() -> None:
    found = load(None, {}).config
    assert found == defaults().config
    assert list(found.providers) == ["mock"]
    assert found.providers["mock"].protocol == "mock"
    assert found.models == {}
    assert [plugin.name for plugin in found.plugins] == ["logging", "usage"]
    assert found.server == Server()


def test_a_section_that_is_left_out_has_its_default() -> None:
    found = config("server: {heartbeat: 1s}\n")
    assert found.providers == Config().providers
    assert found.plugins == Config().plugins
    assert config("providers: {a: {protocol: openai}}\n").providers.keys() == {"a"}
    assert config("plugins: []\n").plugins == ()


def test_the_defaults_of_one_configuration_are_not_shared_with_another() -> None:
    Config().providers.clear()
    assert list(Config().providers) == ["mock"]


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("\ufeffserver: {heartbeat: 0s, body_limit: 10MB}\n", "utf-8")
    server = load(path, {}).config.server
    assert server.heartbeat == 0
    assert server.body_limit == 10_000_000


def test_the_whole_server() -> None:
    text = (
        'server: {cors: {allow_origins: ["https://a.example:8443", "http://localhost:3000"], '
        "allow_credentials: true, max_age: 1h}, shutdown: {delay: 0s, grace: 500ms}}\n"
    )
    server = config(text).server
    assert server.cors is not None
    assert server.cors.allow_origins == ("https://a.example:8443", "http://localhost:3000")
    assert server.cors.allow_credentials is True
    assert server.cors.max_age == 3600
    assert server.shutdown.delay == 0
    assert server.shutdown.grace == 0.5


def test_a_whole_provider() -> None:
    text = """
providers:
  a:
    protocol: my_package.vendor:Vendor
    base_url: https://api.example.com/v1//
    api_key: ${KEY}
    headers: {X-Team: search, x-key: "${KEY}"}
    max_parallel: 3
    transport: httpx
    timeouts: {idle: 5s}
    models: [one, org/two, "3"]
    options: {level: 2, names: [a, null], deep: {on: yes}}
"""
    expected = ProviderRow(
        name="a",
        protocol="my_package.vendor:Vendor",
        base_url="https://api.example.com/v1",
        api_keys=("12345",),
        headers={"x-team": "search", "x-key": "12345"},
        max_parallel=3,
        transport="httpx",
        timeouts=Timeouts(idle=5),
        models=("one", "org/two", "3"),
        options={"level": 2, "names": ["a", None], "deep": {"on": "yes"}},
    )
    assert config(text, {"KEY": "12345"}).providers == {"a": expected}


def test_targets_are_text_or_mappings_and_models_may_hold_slashes() -> None:
    text = """
models:
  chat: {targets: [mock/echo, {target: mock/org/model:free}], timeouts: {total: 9s}}
"""
    route = config(text).models["chat"]
    assert route.targets == (RouteTarget(Target("mock", "echo")), RouteTarget(Target("mock", "org/model:free")))
    assert overlay(Timeouts(), route.timeouts) == Timeouts(total=9)


def test_names_that_yaml_would_read_as_something_else_stay_text() -> None:
    found = config("providers: {on: {protocol: mock}, 1.10: {protocol: mock}}\nmodels: {null: {targets: [1.10/x]}}\n")
    assert list(found.providers) == ["on", "1.10"]
    assert found.models == {"null": Route("null", (RouteTarget(Target("1.10", "x")),))}


def test_plugins_are_names_dotted_paths_or_mappings() -> None:
    text = """
plugins:
  - logging
  - auth: {keys: [a]}
  - my.own:Plugin:
      level: 3
  - usage:
"""
    assert config(text).plugins == (
        PluginRow("logging", {}, ("plugins", 0, "logging")),
        PluginRow("auth", {"keys": ["a"]}, ("plugins", 1, "auth")),
        PluginRow("my.own:Plugin", {"level": 3}, ("plugins", 2, "my.own:Plugin")),
        PluginRow("usage", {}, ("plugins", 3, "usage")),
    )


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1", 1),
        ("-1", -1),
        ("0x1f", 31),
        ("0o17", 15),
        ("017", 17),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("0e-400", 0.0),
        ("1e-400", "1e-400"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("yes", "yes"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2026-11-22", "2026-11-22"),
        ("1_000", "1_000"),
        (".inf", ".inf"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("! 1", "1"),
        ("!!int '7'", 7),
        ("!!float '1.5'", 1.5),
        ("9" * 41, "9" * 41),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(written: str, value: Any) -> None:
    found = options(written)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ('"${A}"', "alpha"),
        ('"<${A}-${A}>"', "<alpha-alpha>"),
        ('"${NONE:-b}"', "b"),
        ('"${EMPTY:-b}"', "b"),
        ('"${NONE:-}"', ""),
        ('"${A:-b}"', "alpha"),
        ('"${NONE:-a:b-c $x}"', "a:b-c $x"),
        ('"$${A}"', "${A}"),
        ('"$A $$ $"', "$A $$ $"),
        ('"${NUMBER}"', "42"),
        ('"${YAML}"', "[a, {b: c}]\n# d"),
        ('"${REFERENCE}"', "${A}"),
        ('"${NONE}"', "left out"),
    ],
)
def test_variables_are_replaced_in_values(written: str, value: str) -> None:
    environ = {"A": "alpha", "EMPTY": "", "NUMBER": "42", "YAML": "[a, {b: c}]\n# d", "REFERENCE": "${A}"}
    assert options(written, environ) == value


def test_a_plain_scalar_gets_its_type_after_replacement() -> None:
    assert row("max_parallel: ${N}", {"N": "7"}).max_parallel == 7
    assert row("options:\n      x: ${N:-true}").options == {"x": True}


@pytest.mark.parametrize("key", ["12345", "0123", "1e5", "true", "null", "~"])
def test_a_key_from_a_variable_is_text_whatever_it_looks_like(key: str) -> None:
    assert row("api_key: ${KEY}", {"KEY": key}).api_keys == (() if key in ("null", "~") else (key,))


def test_an_empty_key_is_no_key() -> None:
    assert row('api_key: ""').api_keys == ()
    assert row("api_key: ${KEY:-}").api_keys == ()


def test_an_unset_variable_makes_its_provider_alone_unavailable() -> None:
    text = """
providers:
  a:
    protocol: openai
    base_url: "https://${HOST}/v1"
    api_key: ${KEY}
    max_parallel: ${PARALLEL}
    models: [one, "${MODEL}"]
    headers: {x-a: "${KEY}", x-b: b}
    options: {deep: {list: [1, "${DEEP}"], gone: "${DEEP}"}}
  b: {protocol: "${PROTOCOL}"}
  c: {protocol: openai, api_key: "${SET}"}
"""
    rows = parse(text, "c.yaml", {"SET": "s"}, protocols=["openai"]).config.providers
    a = rows["a"]
    assert set(a.missing) == {"HOST", "KEY", "PARALLEL", "MODEL", "DEEP"}
    assert (a.base_url, a.api_keys, a.max_parallel, a.models) == (None, (), 1000, ("one",))
    assert a.headers == {"x-b": "b"}
    assert a.options == {"deep": {"list": [1]}}
    assert rows["b"].missing == ("PROTOCOL",)
    assert rows["c"].missing == ()
    assert rows["c"].api_keys == ("s",)


def test_an_unavailable_provider_is_checked_all_the_same() -> None:
    with pytest.raises(ConfigError, match="1:52: unknown key `modles`"):
        config('providers: {a: {protocol: openai, api_key: "${K}", modles: []}}')


def test_anchors_aliases_and_merge_keys_work() -> None:
    text = """
providers:
  a: &a {protocol: openai, base_url: "https://a.example", timeouts: &t {idle: 1s}}
  b: {<<: *a, base_url: "https://b.example"}
  c: {<<: [{max_parallel: 1}, {max_parallel: 2, transport: httpx}], protocol: mock, timeouts: *t}
"""
    rows = config(text).providers
    assert (rows["b"].protocol, rows["b"].base_url) == ("openai", "https://b.example")
    assert (rows["c"].max_parallel, rows["c"].transport) == (1, "httpx")
    assert rows["a"].timeouts == rows["b"].timeouts == rows["c"].timeouts == Timeouts(idle=1)


def test_no_secret_shows_in_a_representation() -> None:
    text = (
        "providers: {a: {protocol: openai, api_key: hunter2, headers: {x: hunter2}, options: {k: hunter2}}}\n"
        "plugins: [auth: {key: hunter2}]\n"
    )
    found = config(text)
    assert "hunter2" not in repr(found)
    assert "hunter2" not in pretty_repr(found)
