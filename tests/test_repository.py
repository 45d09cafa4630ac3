"""What is committed and what is built: nothing of one machine in it, everything that is promised in it."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-build.lock")
DATA = frozenset({".gz", ".tiktoken", ".png", ".ico", ".woff2", ".sse", ".bin", ".jsonl"})
"""Recorded or binary files, which are not prose or code of ours."""


def tracked() -> list[Path]:
    """The committed files, or in an unpacked archive all files."""
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode == 0:
        paths = [ROOT / name for name in found.stdout.split("\0") if name]
        return [path for path in paths if path.is_file()]
    hidden = {".venv", "node_modules", "__pycache__", "dist", "build"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not hidden & set(path.relative_to(ROOT).parts)]


def written_by_hand() -> list[Path]:
    names = (*LOCKS, "package-lock.json", "LICENSE", Path(__file__).name)
    return [path for path in tracked() if path.suffix not in DATA and path.name not in names]


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def found_in(pattern: str, paths: list[Path], flags: re.RegexFlag = re.NOFLAG) -> list[str]:
    wanted, found = re.compile(pattern, flags), []
    for path in paths:
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
            if match := wanted.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    return found


# -- what may not be committed ---------------------------------------------------------------------------------------


def test_no_file_names_a_place_on_one_machine() -> None:
    paths = [path for path in tracked() if path.suffix not in DATA and path.name != Path(__file__).name]
    assert not found_in(r"(?<![\w.~$}])/(work|home|root|Users|tmp/[a-z])(/|\b)[\w.-]*|[A-Z]:\\Users", paths)


def test_no_file_names_a_package_registry() -> None:
    paths = [path for path in tracked() if path.suffix not in DATA and path.name != Path(__file__).name]
    registries = (
        r"p[y]thonhosted\.org|p[y]pi\.org|r[e]gistry\.npmjs\.org|r[e]gistry\.yarnpkg|/simple/|index-url=|\bfile:///"
    )
    assert not found_in(registries, paths)


def test_nothing_is_left_unfinished() -> None:
    marks = r"\b(T[O]DO|F[I]XME|X[X]X|H[A]CK|W[I]P)\b|^(<{7}|>{7}) "
    assert not found_in(marks, written_by_hand())


def test_no_real_key_is_committed() -> None:
    keys = r"\bsk-(proj-|ant-)?[A-Za-z0-9]{32,}|AIza[\w-]{30,}|gsk_\w{30,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    assert not found_in(keys, written_by_hand())


def test_text_files_end_in_one_newline_and_hold_no_tabs_or_trailing_blanks() -> None:
    wrong = []
    for path in written_by_hand():
        if path.suffix not in (".py", ".md", ".yaml", ".toml"):
            continue
        text = path.read_text("utf-8")
        if text and (
            not text.endswith("\n") or text.endswith("\n\n") or "\t" in text or re.search(r"[ ]$", text, re.M)
        ):
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong


def test_no_committed_file_is_large_but_the_vocabularies() -> None:
    large = [path for path in tracked() if path.stat().st_size > 400_000 and "vocabularies" not in path.parts]
    assert not large


# -- the promises of the project file --------------------------------------------------------------------------------


def test_the_distribution_cannot_be_uploaded() -> None:
    """The names `router`, `providers` and `plugins` are safe in an application, not in a public library."""
    assert "Private :: Do Not Upload" in project()["classifiers"]


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert project()["license"] == "Apache-2.0"


def test_the_changelog_knows_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert text.startswith("# Changelog\n")
    assert "keepachangelog.com" in text
    versions = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", text, re.M)
    assert versions, "a version is headed `## [1.2.3] - 2030-12-31`, the coming one `## [1.2.3] - unreleased`"
    assert versions[0][0] == project()["version"]
    assert all(date == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in versions)
    kinds = set(re.findall(r"^### (.+)$", text, re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


# -- the locks -------------------------------------------------------------------------------------------------------


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / name).read_text("utf-8"), re.M))


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_hashes_for_every_package_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert "://" not in text
    requirements = [block for block in re.split(r"^(?=\S)", text, flags=re.M) if block.strip()]
    assert requirements
    for block in requirements:
        assert re.match(r"[A-Za-z0-9._-]+==\S+", block), f"not a pin: {block.splitlines()[0]}"
        assert "--hash=sha256:" in block, f"no hash: {block.splitlines()[0]}"


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-build.lock"])
def test_what_is_served_is_what_was_tested(name: str) -> None:
    tested = pins("requirements-dev.lock")
    assert {package: tested.get(package) for package in pins(name)} == pins(name)


def test_every_dependency_is_pinned() -> None:
    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower() for requirement in requirements}

    assert names(project()["dependencies"]) <= set(pins("requirements.lock"))
    assert names(project()["optional-dependencies"]["dev"]) <= set(pins("requirements-dev.lock"))


# -- the wheel -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built as an installer builds it, by the pinned build tool and without network."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=ROOT, check=True)
    (path,) = out.glob("deltaway-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_three_packages_alone(wheel: zipfile.ZipFile) -> None:
    info = f"deltaway-{project()['version']}.dist-info"
    assert {name.partition("/")[0] for name in wheel.namelist()} == {"router", "providers", "plugins", info}


def test_the_wheel_holds_every_committed_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    """The data too: vocabularies, `py.typed`, what the console is built into."""
    ours = {path.relative_to(ROOT).as_posix() for path in tracked()}
    ours = {name for name in ours if name.startswith(("router/", "providers/", "plugins/"))}
    assert ours
    assert ours <= set(wheel.namelist())


def test_the_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert "deltaway = router.cli:main" in wheel.read(name).decode()


def test_every_package_is_marked_as_typed(wheel: zipfile.ZipFile) -> None:
    assert {f"{name}/py.typed" for name in ("router", "providers", "plugins")} <= set(wheel.namelist())


# -- the source archive ----------------------------------------------------------------------------------------------


def test_the_source_archive_holds_every_committed_file(tmp_path: Path) -> None:
    """So that `make serve` and `make test` work in an unpacked one."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    (path,) = tmp_path.glob("deltaway-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {path.relative_to(ROOT).as_posix() for path in tracked()} <= names
    assert not {name.partition("/")[0] for name in names} & {".venv", ".git", "node_modules"}


# -- what is to be run -----------------------------------------------------------------------------------------------


def test_the_automatic_checks_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_example_configuration_is_yaml() -> None:
    text = (ROOT / "providers.yaml").read_text("utf-8")
    assert {"providers", "models"} <= set(yaml.safe_load(text))
