"""The documentation is true: its commands exist, its links lead somewhere, its examples run."""

import ast
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import click
import pytest
import yaml

from plugins import known_plugins
from providers import BUILT_IN, known_protocols
from router.app import build, create_app
from router.cli import main
from router.config import load
from router.events import ChoiceFinished, Completed, Started, TextDelta, Usage, UsageReported, check_order
from router.http.kept import STREAMS_PATH
from router.http.streams import PATHS
from router.messages import ChatRequest, User
from router.provider import HttpHead, ProviderSettings, Target

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
README = ROOT / "README.md"


class Block(NamedTuple):
    """One fenced block of code."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str, of: list[Path] = DOCUMENTS) -> Iterator[Block]:
    for document in of:
        text = document.read_text("utf-8")
        for match in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.M | re.S):
            indent, language, body = match.groups()
            if language in languages:
                body = "\n".join(line.removeprefix(indent) for line in body.split("\n"))
                yield Block(document, text.count("\n", 0, match.start()) + 1, language, body)


def each(*languages: str) -> pytest.MarkDecorator:
    found = list(blocks(*languages))
    assert found
    return pytest.mark.parametrize("block", found, ids=lambda block: block.name)


def rendered(document: Path) -> str:
    """The text of a document without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", document.read_text("utf-8"), flags=re.M | re.S)


# -- commands --------------------------------------------------------------------------------------------------------


def commands_of(document: Path) -> set[str]:
    text = document.read_text("utf-8")
    return {line.strip() for block in blocks("sh", of=[document]) for line in block.text.splitlines()} | {
        code.strip() for code in re.findall(r"`([^`\n]+)`", text)
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_make_target_that_is_named_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named = {match[1] for command in commands_of(document) if (match := re.match(r"make ([a-z]+)\b", command))}
    assert named <= targets


def every_command() -> dict[str, click.Command]:
    assert isinstance(main, click.Group)
    context = click.Context(main)
    found = {name: main.get_command(context, name) for name in main.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_deltaway_command_that_is_named_exists(document: Path) -> None:
    pattern = re.compile(r"(?:\.venv/bin/)?deltaway ([a-z]+)\b(?: ([a-z]+)\b)?(.*)")
    for command in commands_of(document):
        if match := pattern.match(command):
            known = every_command().get(match[1])
            if isinstance(known, click.Group) and match[2] is not None:
                known = known.commands.get(match[2])
            assert known is not None, f"no command: {command}"
            options = {option for parameter in known.params for option in parameter.opts}
            assert set(re.findall(r"(?<=\s)--?[a-z]+(?:-[a-z]+)*", match[3])) <= options, command


def test_the_readme_names_the_two_commands_of_a_fresh_machine() -> None:
    lines = {line for block in blocks("sh", of=[README]) for line in block.text.splitlines()}
    assert {"make serve", "make test"} <= lines


def test_the_readme_lists_every_command_and_its_options() -> None:
    commands = every_command()
    text = README.read_text("utf-8")
    listed = set(re.findall(r"^\| `deltaway ([a-z]+)", text, re.M))
    assert listed == set(commands)
    serve = {option for parameter in commands["serve"].params for option in parameter.opts}
    (row,) = re.findall(r"^\| `deltaway serve` \| (.*)$", text, re.M)
    assert set(re.findall(r"`(--[a-z]+)`", row)) <= serve


def test_the_paths_that_the_readme_lists_are_the_paths_that_are_served() -> None:
    rows = re.findall(r"^\| `(?:(?:GET|POST|PUT) |(?=/))(.+?) \|", README.read_text("utf-8"), re.M)
    listed = {path for row in rows for path in re.findall(r"/[\w./{}-]+", row)}
    app = create_app(build(loaded("plugins: []\n"), {}))
    served = {re.sub(r"\{\w+:\w+\}", "{id}", route.path) for route in app.routes}
    # one route that looks at the rest of the path itself
    served = served - {STREAMS_PATH} | set(PATHS)
    assert {path for path in served if not path.startswith("/schema")} | {"/schema/openapi.json"} == listed


# -- configuration ---------------------------------------------------------------------------------------------------


def loaded(text: str, environ: Mapping[str, str] | None = None) -> Any:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "providers.yaml"
        path.write_text(text, "utf-8")
        return load(str(path), environ or {}, protocols=known_protocols(), plugins=known_plugins())


@each("yaml")
def test_a_yaml_block_is_yaml(block: Block) -> None:
    assert yaml.safe_load(block.text) is not None


def whole_configurations() -> list[Block]:
    found = []
    for block in blocks("yaml", of=[README, ROOT / "docs" / "add-a-provider.md"]):
        value = yaml.safe_load(block.text)
        protocols = {row["protocol"] for row in value.get("providers", {}).values()}
        if protocols and protocols <= set(BUILT_IN):
            found.append(block)
    return found


@pytest.mark.parametrize("block", whole_configurations(), ids=lambda block: block.name)
def test_a_configuration_in_the_documentation_is_a_valid_one(block: Block) -> None:
    """With every variable set, so that each provider is built and its options are read."""
    environ = dict.fromkeys(re.findall(r"\$\{(\w+)\}", block.text), "key-1") | {"DELTAWAY_ADMIN_KEY": "k" * 48}
    gateway = build(loaded(block.text, environ), environ)
    assert set(gateway.current.adapters) == set(yaml.safe_load(block.text)["providers"])


# -- code ------------------------------------------------------------------------------------------------------------


@each("python")
def test_a_python_block_compiles(block: Block) -> None:
    ast.parse(block.text, block.name)


def module_of(document: str) -> types.ModuleType:
    """The Python blocks of one document, run one after the other as one module."""
    path = ROOT / "docs" / document
    module = types.ModuleType(path.stem.replace("-", "_"))
    for block in blocks("python", of=[path]):
        # the line numbers of a traceback are those of the document
        code = compile("\n" * block.line + block.text, str(path), "exec", dont_inherit=True)
        exec(code, module.__dict__)
    return module


async def test_the_plugin_of_the_documentation_passes_its_own_test() -> None:
    module = module_of("write-a-plugin.md")
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        await test()


def test_the_provider_of_the_documentation_speaks_its_protocol() -> None:
    module = module_of("add-a-provider.md")
    kind = module.Brook
    provider = kind(ProviderSettings(name="brook", base_url=kind.base_url, api_key="key-1", options=kind.Options()))
    request, target = ChatRequest(model="m", messages=(User("Hi"),), protocol="openai"), Target("brook", "m")
    sent = provider.encode(request, target)
    assert sent.url == "https://api.brook.example/v1/generate"
    assert sent.headers["authorization"] == "Bearer key-1"
    body = b'{"text": "Hel"}\n{"text": "lo"}\n{"done": true, "tokens_in": 1, "tokens_out": 2}\n'
    wanted = [
        Started("", "m", 0),
        TextDelta(0, 0, "Hel"),
        TextDelta(0, 0, "lo"),
        ChoiceFinished(0, "stop"),
        UsageReported(Usage(input=1, output=2)),
        Completed(),
    ]
    for size in range(1, len(body) + 1):
        decoder = provider.decoder(request, target, sent, HttpHead(200, {}))
        events = [event for at in range(0, len(body), size) for event in decoder.feed(body[at : at + size])]
        events += decoder.finish()
        assert check_order(events) == wanted


# -- links and words -------------------------------------------------------------------------------------------------


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", rendered(document), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_inside_leads_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", rendered(document)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), f"no file: {link}"
        assert not anchor or anchor in anchors(found), f"no heading: {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_is_named_exists(document: Path) -> None:
    """`router/…`, `tests/…` and the like, in backticks or in a drawing."""
    names = re.findall(
        r"(?<![\w./-])((?:router|providers|plugins|tests|docs)/[\w./-]*\w\.(?:py|md|yaml))", document.read_text("utf-8")
    )
    missing = [name for name in names if not (ROOT / name).exists()]
    assert not missing


def test_every_document_can_be_reached_from_the_readme() -> None:
    waiting, reached = [README], set()
    while waiting:
        document = waiting.pop()
        if document in reached or document.suffix != ".md":
            continue
        reached.add(document)
        links = re.findall(r"\]\(([^)\s#]+)", rendered(document))
        waiting += [(document.parent / link).resolve() for link in links if not link.startswith("http")]
    assert reached == set(DOCUMENTS)
