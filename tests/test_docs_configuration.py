"""`docs/configuration.md` and `providers.yaml` say what is true: examples run, keys and defaults are the code's."""

import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec
import pytest
from msgspec import Struct

from plugins import known_plugins, load_plugin
from providers import load_provider
from router.catalog import Catalog
from router.config import ConfigError, load, parse
from router.quantities import Duration, Share, Size, parses, size
from router.route import Timeouts, TimeoutsEntry
from router.settings import ConfigEntry

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "configuration.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(yaml(?: wrong)?)\n(.*?)^```$", TEXT, re.M | re.S)
EXAMPLES = [text for info, text in BLOCKS if info == "yaml"]
PROTOCOLS = ("openai", "dashscope", "mock")
PLUGINS = known_plugins()
EXPLAINED_HERE = ("logging", "auth", "cache", "usage")
"""The others have pages of their own."""
KEYS = {"OPENAI_API_KEY": "k-1", "DASHSCOPE_API_KEY": "k-2", "VENDOR_KEY": "k-3"}


@pytest.mark.parametrize("environ", [{}, KEYS], ids=["without-keys", "with-keys"])
@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_is_valid(text: str, environ: dict[str, str]) -> None:
    assert parse(text, "providers.yaml", environ, protocols=PROTOCOLS, plugins=PLUGINS).config.providers


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_suits_the_adapters_and_plugins(text: str) -> None:
    loaded = parse(text, "providers.yaml", KEYS)
    for row in loaded.config.providers.values():
        assert loaded.document.convert(("providers", row.name, "options"), load_provider(row.protocol).Options)
    for plugin in loaded.config.plugins:
        settings = getattr(load_plugin(plugin.name), "Settings", None) if plugin.name in known_plugins() else None
        if settings is not None:
            assert loaded.document.convert(plugin.path, settings) is not None


def test_the_wrong_example_has_the_errors_that_are_shown() -> None:
    ((text, shown),) = re.findall(r"^```yaml wrong\n(.*?)^```\n\n```text\n(.*?)^```$", TEXT, re.M | re.S)
    with pytest.raises(ConfigError) as caught:
        parse(text, "providers.yaml", {}, protocols=PROTOCOLS, plugins=PLUGINS)
    assert str(caught.value) == shown.rstrip("\n")


def tables(text: str) -> dict[str, str]:
    """The first column of the tables → the third: key → default."""
    return dict(re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \|", text, re.M))


def documented() -> dict[str, str]:
    """The keys that this package reads itself; sections about options and settings have tables of their own."""
    return tables(re.sub(r"^### .*?(?=^## )", "", TEXT, flags=re.M | re.S))


def keys(type_: Any, path: str) -> dict[str, msgspec.structs.FieldInfo]:
    """Every key below a type, as the tables write it."""
    if get_origin(type_) is Annotated:
        return keys(get_args(type_)[0], path)
    if get_origin(type_) in (typing.Union, types.UnionType):
        return {name: field for arm in get_args(type_) for name, field in keys(arm, path).items()}
    if get_origin(type_) is dict:
        return keys(get_args(type_)[1], f"{path}.NAME")
    if get_origin(type_) is tuple and ".fallback." in path:
        # written as `targets` are
        return {}
    if get_origin(type_) is tuple:
        return keys(get_args(type_)[0], f"{path}[]")
    if type_ is TimeoutsEntry or parses(type_) or not (isinstance(type_, type) and issubclass(type_, Struct)):
        return {}
    found: dict[str, msgspec.structs.FieldInfo] = {}
    for field in msgspec.structs.fields(type_):
        name = f"{path}.{field.encode_name}".removeprefix(".")
        # a section is explained by its keys
        is_word = isinstance(field.type, type) and issubclass(field.type, str)
        found |= {name: field} if type_ is not ConfigEntry or is_word else {}
        found |= keys(field.type, name)
    return found


FIELDS = keys(ConfigEntry, "")


def test_every_key_is_documented_and_no_other() -> None:
    limits = {f"timeouts.{name}" for name in Timeouts.__struct_fields__}
    assert set(documented()) == {*FIELDS, *limits}


@pytest.mark.parametrize("key", FIELDS)
def test_a_documented_default_is_the_real_one(key: str) -> None:
    check_default(FIELDS[key], documented()[key])


OPTIONS = [f"Options of `protocol: {name}`" for name in PROTOCOLS]
SETTINGS = [*OPTIONS, *(f"Settings of `{name}`" for name in EXPLAINED_HERE)]


@pytest.mark.parametrize("heading", SETTINGS)
def test_every_option_of_what_is_built_in_is_documented_with_its_default(heading: str) -> None:
    name = heading.rstrip("`").replace("`", " ").split()[-1]
    cls = load_provider(name).Options if heading.startswith("Options") else getattr(load_plugin(name), "Settings", None)
    fields = keys(cls, "")
    section = re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^##)", TEXT, re.M | re.S)
    shown = tables(section[1]) if section else {}
    assert set(shown) == set(fields)
    for key, field in fields.items():
        check_default(field, shown[key])


def check_default(field: msgspec.structs.FieldInfo, shown: str) -> None:
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if field.required:
        assert shown == "required"
    elif isinstance(default, Duration):
        assert Duration.parse(shown.strip("`")) == default
    elif isinstance(default, Share):
        assert shown == f"`{default * 100:g}%`"
    elif isinstance(default, Size):
        assert shown == f"`{size(default)}`"
    elif isinstance(default, bool):
        assert shown == f"`{str(default).lower()}`"
    elif isinstance(default, int | float | str):
        assert shown == f"`{default}`"
    else:
        assert shown in ("none", "see its keys", "see below", "the protocol's own")


@pytest.mark.parametrize("name", Timeouts.__struct_fields__)
def test_a_documented_timeout_is_the_real_one(name: str) -> None:
    shown, real = documented()[f"timeouts.{name}"].strip("`"), getattr(Timeouts(), name)
    assert (float(shown) if name == "min_rate" else Duration.parse(shown)) == real


def test_the_example_file_works_without_any_key() -> None:
    config = load(ROOT / "providers.yaml", {}, protocols=PROTOCOLS, plugins=PLUGINS).config
    assert config.providers["openai"].missing == ("OPENAI_API_KEY",)
    (candidate,) = Catalog(config).resolve("chat").candidates
    assert str(candidate.target) == "mock/echo"


def test_the_example_file_works_with_keys() -> None:
    config = load(ROOT / "providers.yaml", KEYS, protocols=PROTOCOLS, plugins=PLUGINS).config
    assert not any(row.missing for row in config.providers.values())
    assert [str(candidate.target) for candidate in Catalog(config).resolve("chat").candidates] == [
        "openai/gpt-5-mini",
        "qwen/qwen-plus",
        "mock/echo",
    ]
