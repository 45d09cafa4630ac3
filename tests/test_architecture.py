"""Who may import whom, and what no module may do when it is imported. Read from the source, nothing is run."""

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("router", "providers", "plugins")

# A module may import its own layer and those before it. A module that is in no layer fails the tests.
LAYERS: dict[str, tuple[str, ...]] = {
    # what is said: plain values
    "values": ("router.messages", "router.events", "router.errors", "router.money"),
    # what adapters and plugins are written against: contracts, pure functions, Structs of public formats
    "contracts": (
        "router.access",
        "router.accounts",
        "router.audio",
        "router.cache",
        "router.cache.entry",
        "router.cache.fingerprint",
        "router.call",
        "router.conversation",
        "router.dialect",
        "router.experiment",
        "router.experiments",
        "router.experiments.assignment",
        "router.experiments.confidence",
        "router.experiments.sample_ratio",
        "router.experiments.sentence",
        "router.experiments.statistics",
        "router.experiments.thompson",
        "router.extension",
        "router.fold",
        "router.gates",
        "router.generated",
        "router.health",
        "router.ids",
        "router.json_example",
        "router.key_text",
        "router.ledger",
        "router.ledger.rows",
        "router.nearest",
        "router.plugin",
        "router.pricing",
        "router.provider",
        "router.quantities",
        "router.route",
        "router.routing",
        "router.routing.*",
        "router.services",
        "router.settings",
        "router.slots",
        "router.splice",
        "router.sse",
        "router.streams",
        "router.streams.log",
        "router.tokens",
        "router.wire",
        "router.wire.*",
    ),
    # what does the work
    "machinery": (
        "router.accepted",
        "router.adapters",
        "router.attempts",
        "router.bill",
        "router.backing",
        "router.cache.*",
        "router.catalog",
        "router.chooser",
        "router.config",
        "router.config_experiments",
        "router.config_routes",
        "router.conversations",
        "router.conversations.*",
        "router.deadline",
        "router.dialects",
        "router.dialects.*",
        "router.differences",
        "router.dispatch",
        "router.document",
        "router.door",
        "router.estimate",
        "router.experiments.*",
        "router.focus",
        "router.generation",
        "router.http1",
        "router.keyring",
        "router.keys",
        "router.ledger.*",
        "router.lifecycle",
        "router.planning",
        "router.prices",
        "router.prices.*",
        "router.reader",
        "router.reconcile",
        "router.reloading",
        "router.report",
        "router.running",
        "router.state",
        "router.state.*",
        "router.store",
        "router.store.*",
        "router.streams.*",
        "router.telemetry",
        "router.trials",
        "router.upstream",
    ),
    # what speaks HTTP: to our clients, and as a client of ours for the command line
    "edge": ("router.http", "router.http.*", "router.client"),
    # what puts it together and starts it
    "root": (
        "router.app",
        "router.server",
        "router.cli",
        "router.commands",
        "router.commands.*",
        "router.__main__",
    ),
}
ORDER = tuple(LAYERS)
ADD_TO = "add it to LAYERS in tests/test_architecture.py, to the first layer that has what it imports"

ADAPTER_LAYERS = ("values", "contracts")
"""The layers that `providers/` and `plugins/` may import."""

ROOT_LAYER = LAYERS["root"]
COMPOSERS = ("router.app",)
"""The only modules that may know the packages `providers` and `plugins`."""

# Third-party packages that only some modules may import; every other one is open to all from "machinery" on.
ONLY: dict[str, tuple[str, ...]] = {
    "aiohttp": ("router.upstream",),
    "httpx": ("router.upstream",),
    "httpx_aiohttp": ("router.upstream",),
    "litestar": ("router.http.*", *ROOT_LAYER),
    "uvicorn": ("router.http.connection", *ROOT_LAYER),
    "uvloop": ROOT_LAYER,
    "httptools": ("router.http1", "router.http.connection", *ROOT_LAYER),
    "click": ROOT_LAYER,
    "rich": ROOT_LAYER,
    "rich_click": ROOT_LAYER,
    "yaml": ("router.document", "router.config"),
    "tiktoken": ("router.tokens",),
    "sqlalchemy": ("router.store.*",),
    "alembic": ("router.store.*",),
    "aiosqlite": ("router.store.*",),
    "asyncpg": ("router.store.*",),
    "redis": ("router.state.*",),
    "structlog": (
        *(
            "router.telemetry",
            "router.backing",
            "router.estimate",
            "router.experiments.*",
            "router.generation",
            "router.keys",
            "router.reloading",
            "router.ledger.*",
            "router.streams.*",
            "router.conversations.*",
            "router.cache.*",
            "router.http.*",
            "plugins.*",
        ),
        *ROOT_LAYER,
    ),
}
PURE = ("msgspec",)
"""What values, contracts, providers and plugins may import from outside the standard library, and `structlog` above."""

MAKES_A_CONSTANT = (
    *("frozenset", "tuple", "dict", "dict.fromkeys", "range", "len", "max", "min", "sorted", "type"),
    *("TypeVar", "ParamSpec", "NewType", "MappingProxyType", "re.compile", "struct.Struct", "Struct", "Path"),
    *("ContextVar", "contextvars.ContextVar", "object", "bytes", "str", "int", "float", "timedelta"),
    *("Decoder", "Encoder", "msgspec.json.Decoder", "msgspec.json.Encoder", "json.Decoder", "json.Encoder"),
    *("text", "JSON(none_as_null=True).with_variant", "sa.JSON().with_variant", "_labels", "_of_conversation"),
    *("BigInteger().with_variant", "sa.BigInteger().with_variant", "Text().with_variant", "sa.Text().with_variant"),
    "Index('contents_by_words', 'words', postgresql_using='gin').ddl_if",
    *("attrgetter", "itemgetter", "partial", "files", "sys.intern", "str.maketrans", "bytes.maketrans"),
    # an option that several commands share; a decorator does not count as a call
    "click.option",
)
"""What may be called while a module is imported: it makes a value and touches nothing."""


class Module(NamedTuple):
    name: str
    path: Path
    tree: ast.Module

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def read_modules() -> list[Module]:
    modules = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            modules.append(Module(".".join(parts), path, ast.parse(path.read_text("utf-8"), str(path))))
    return modules


def top(name: str) -> str:
    return name.partition(".")[0]


def layer_of(name: str) -> str | None:
    if name == "router":
        return "values"
    for layer, patterns in LAYERS.items():
        if any(fnmatch(name, pattern) for pattern in patterns):
            return layer
    return None


MODULES = read_modules()
NAMES = frozenset(module.name for module in MODULES)
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
each_module_of_the_core = pytest.mark.parametrize(
    "module", [module for module in MODULES if module.name.startswith("router")], ids=lambda module: module.name
)
each_adapter_or_plugin = pytest.mark.parametrize(
    "module", [module for module in MODULES if not module.name.startswith("router")], ids=lambda module: module.name
)


def imports(module: Module, *, at_import_only: bool = False) -> Iterator[tuple[str, ast.AST]]:
    """Full names of the modules that are imported anywhere in `module`; a name out of our own is its module."""
    nodes = module.tree.body if at_import_only else ast.walk(module.tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in NAMES else node.module), node


def test_the_three_packages_are_there() -> None:
    assert {top(module.name) for module in MODULES} == set(PACKAGES)


@each_module_of_the_core
def test_every_module_of_the_core_has_its_layer(module: Module) -> None:
    assert layer_of(module.name) is not None, f"`{module.name}` is in no layer: {ADD_TO}"


@each_module_of_the_core
def test_the_core_imports_no_later_layer(module: Module) -> None:
    own = layer_of(module.name) or ORDER[-1]
    for name, node in imports(module):
        layer = layer_of(name) if top(name) == "router" else None
        if layer is not None:
            assert ORDER.index(layer) <= ORDER.index(own), (
                f"{module.at(node)}: `{module.name}` ({own}) imports `{name}`, which is in the later layer {layer}"
            )


@each_module_of_the_core
def test_only_the_composition_root_knows_providers_and_plugins(module: Module) -> None:
    for name, node in imports(module):
        assert module.name in COMPOSERS or top(name) not in ("providers", "plugins"), (
            f"{module.at(node)}: `{module.name}` imports `{name}`; only {', '.join(COMPOSERS)} may"
        )


@each_adapter_or_plugin
def test_providers_and_plugins_import_contracts_alone(module: Module) -> None:
    package = top(module.name)
    for name, node in imports(module):
        if top(name) == "router":
            assert layer_of(name) in ADAPTER_LAYERS, (
                f"{module.at(node)}: `{module.name}` imports `{name}`; it may import the layers {ADAPTER_LAYERS} only"
            )
        else:
            assert top(name) == package or top(name) not in PACKAGES, (
                f"{module.at(node)}: `{module.name}` imports `{name}`: providers and plugins do not know each other"
            )


@each_module
def test_a_third_party_package_is_imported_only_where_it_may_be(module: Module) -> None:
    pure = top(module.name) != "router" or layer_of(module.name) in ADAPTER_LAYERS
    for name, node in imports(module):
        package = top(name)
        if package in sys.stdlib_module_names or package in PACKAGES:
            continue
        if package in ONLY:
            may = any(fnmatch(module.name, pattern) for pattern in ONLY[package])
            assert may, f"{module.at(node)}: `{package}` may be imported by {', '.join(ONLY[package])} only"
        elif pure:
            assert package in PURE, (
                f"{module.at(node)}: `{module.name}` may import {', '.join(PURE)} from outside, not `{package}`"
            )


@pytest.mark.parametrize(
    "module",
    [module for module in MODULES if top(module.name) != "router" or layer_of(module.name) in ADAPTER_LAYERS],
    ids=lambda module: module.name,
)
def test_adapters_plugins_and_contracts_open_no_socket(module: Module) -> None:
    closed = {"socket", "http.client", "urllib.request", "ssl", "subprocess", "selectors"}
    for name, node in imports(module):
        assert name not in closed, f"{module.at(node)}: `{module.name}` is pure and may not import `{name}`"


@each_module
def test_no_import_is_relative(module: Module) -> None:
    for node in ast.walk(module.tree):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{module.at(node)}: write the full name"


def test_no_import_goes_in_a_circle() -> None:
    graph = {
        module.name: {name for name, _ in imports(module, at_import_only=True) if name in NAMES} for module in MODULES
    }
    for name, needed in graph.items():
        needed.discard(name)
    # raises CycleError, which names the circle
    assert len(list(TopologicalSorter(graph).static_order())) == len(NAMES)


@each_module
def test_every_module_says_what_it_is(module: Module) -> None:
    if module.tree.body:
        assert ast.get_docstring(module.tree), f"{module.at(module.tree)}: a docstring says what a module is for"


@each_module
def test_importing_a_module_does_no_work(module: Module) -> None:
    for statement in at_import(module.tree.body):
        if isinstance(statement, ast.Expr):
            assert isinstance(statement.value, ast.Constant), f"{module.at(statement)}: a call at import"
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
            for node in run_at_import(statement.value):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func).partition("[")[0]
                    assert called in MAKES_A_CONSTANT or called.rpartition(".")[2].lstrip("_")[:1].isupper(), (
                        f"{module.at(node)}: `{called}(…)` is called at import; make it in a function, or if it only "
                        "makes a constant add it to MAKES_A_CONSTANT in tests/test_architecture.py"
                    )
                if isinstance(node, ast.Attribute):
                    assert ast.unparse(node) != "os.environ", f"{module.at(node)}: the environment is read at import"


@each_module
def test_a_modules_state_is_constant(module: Module) -> None:
    for node in ast.walk(module.tree):
        assert not isinstance(node, ast.Global), f"{module.at(node)}: `global` means state that all calls share"
    for statement in at_import(module.tree.body):
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or statement.value is None:
            continue
        value = statement.value
        mutable = isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)) or (
            isinstance(value, ast.Call)
            and ast.unparse(value.func) in ("list", "dict", "set", "dict.fromkeys", "defaultdict", "deque", "Counter")
        )
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        exports = [target for target in targets if isinstance(target, ast.Name) and target.id == "__all__"]
        if mutable and not exports:
            final = isinstance(statement, ast.AnnAssign) and "Final" in ast.unparse(statement.annotation)
            assert final, f"{module.at(statement)}: a mutable value at module level is a constant, so annotate it Final"


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, those inside `if` and `try` too."""
    for statement in body:
        if isinstance(statement, ast.If):
            if ast.unparse(statement.test) == "__name__ == '__main__'":
                continue
            yield from at_import(statement.body)
            yield from at_import(statement.orelse)
        elif isinstance(statement, ast.Try):
            yield from at_import(statement.body)
            for handler in statement.handlers:
                yield from at_import(handler.body)
        else:
            assert not isinstance(statement, (ast.For, ast.While, ast.With)), (
                f"line {statement.lineno}: a loop or a `with` at import is work"
            )
            yield statement


def run_at_import(value: ast.expr) -> Iterator[ast.AST]:
    """The nodes of an expression without the bodies of its lambdas."""
    waiting: list[ast.AST] = [value]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def test_importing_the_contracts_loads_nothing_heavy() -> None:
    """An adapter's or a plugin's test must not pay for a web framework."""
    contracts = sorted(name for name in NAMES if layer_of(name) in ADAPTER_LAYERS)
    code = f"import sys; import {', '.join(contracts)}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert not set(loaded.split()) & set(ONLY)


@pytest.mark.parametrize("name", PACKAGES)
def test_no_other_distribution_claims_our_package_names(name: str) -> None:
    assert set(importlib.metadata.packages_distributions().get(name, [])) <= {"deltaway"}
