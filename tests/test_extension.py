"""How names of plugins and protocols become classes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plugins import BUILT_IN, known_plugins, load_plugin
from plugins.logging import Logging
from router.extension import ExtensionNotFound, Extensions, UnknownExtension
from router.plugin import check_order

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "docs" / "sample-plugin"


def test_a_built_in_name_is_found() -> None:
    assert load_plugin("logging") is Logging


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_is_a_plugin(name: str) -> None:
    assert callable(load_plugin(name).stream)
    assert name in known_plugins()


def test_a_place_is_found() -> None:
    assert load_plugin("plugins.logging:Logging") is Logging


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(UnknownExtension, match=r"no plugin `loging`: did you mean `logging`\? \(known: auth, budget,"):
        load_plugin("loging")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("no_such_package.module:Class", "no module `no_such_package.module`"),
        ("plugins.no_such_module:Class", "no module `plugins.no_such_module`"),
        ("plugins.logging:NoSuchClass", "no `NoSuchClass` in the module `plugins.logging`"),
        ("plugins.logging:", "is no place of a plugin"),
        (":Class", "is no place of a plugin"),
    ],
)
def test_a_place_that_does_not_exist_says_what_is_missing(place: str, message: str) -> None:
    with pytest.raises(ExtensionNotFound, match=message):
        load_plugin(place)


@pytest.mark.parametrize(
    ("source", "error"),
    [("import no_such_package", ModuleNotFoundError), ("1 / 0", ZeroDivisionError), ("def", SyntaxError)],
)
def test_a_module_that_fails_inside_says_so_itself(
    source: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken_{error.__name__.lower()}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error) as raised:
        load_plugin(f"{name}:Class")
    assert not isinstance(raised.value, ExtensionNotFound)


def entry_points(folder: Path, **packages: str) -> None:
    """Installed packages: name → the place its entry point `x` names."""
    for package, place in packages.items():
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[test.things]\nx = {place}\n")


def test_two_packages_with_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(tmp_path, one="plugins.logging:Logging", two="plugins.usage:UsagePlugin")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownExtension, match="more than one installed thing is named `x`"):
        Extensions("thing", "test.things", {}).load("x")


def test_a_built_in_name_cannot_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(tmp_path, one="plugins.usage:UsagePlugin")
    monkeypatch.syspath_prepend(tmp_path)
    assert Extensions("thing", "test.things", {}).load("x").__name__ == "UsagePlugin"  # type: ignore[attr-defined]
    assert Extensions("thing", "test.things", {"x": "plugins.logging:Logging"}).load("x") is Logging


def test_the_built_in_plugins_agree_on_their_order() -> None:
    assert check_order({name: load_plugin(name) for name in ("logging", "auth", "usage")}) == []
    assert check_order({name: load_plugin(name) for name in ("usage", "auth", "logging")}) != []


USE = """
import asyncio
from plugins import known_plugins, load_plugin
from router.call import Call, Credentials, new_trip
from router.events import TextDelta
from router.messages import ChatRequest, User
from router.plugin import compose

assert "shout" in known_plugins(), known_plugins()
kind = load_plugin("shout")

async def vendor(call):
    yield TextDelta(0, 0, "yes.")

async def main():
    request = ChatRequest(model="m", messages=(User("Hi"),), protocol="openai")
    call = Call(id="c", request=request, dialect="openai.chat", trip=new_trip(), credentials=Credentials(None))
    return [event.text async for event in compose([kind(kind.Settings(mark="?"))], vendor)(call)]

print(asyncio.run(main()))
"""


def test_an_installed_package_adds_a_plugin(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    installed = subprocess.run(
        [*pip, "--no-build-isolation", "--target", str(tmp_path), str(SAMPLE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    used = subprocess.run([sys.executable, "-c", USE], env=environ, capture_output=True, text=True, check=False)
    assert (used.stdout, used.stderr) == ("['YES?']\n", "")
