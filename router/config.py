"""`providers.yaml` → `Config`, or every problem in it with file, line, column and what to do.

Structure is `router.reader`'s part, the forms of single values are their types'; here stands what takes two places
to see: a target whose provider is not there, a plugin listed twice. Which protocols and plugins exist is told by the
caller: this module imports neither.
"""

import re
from collections.abc import Collection
from collections.abc import Mapping as Environment
from pathlib import Path as FilePath
from typing import Any, Final, TypeVar

from msgspec import Struct, structs

from router import document as documents
from router.config_experiments import ExperimentReader
from router.config_routes import RouteReader
from router.document import ConfigError, Mapping, Node, Place, Problem, Scalar, Sequence
from router.experiment import Experiment
from router.nearest import did_you_mean
from router.reader import Path, Reader, Unreadable, find, short, written
from router.route import HealthRules, Route, Timeouts, overlay
from router.settings import (
    PLUGINS,
    Config,
    ConfigEntry,
    Conversations,
    Ledger,
    PluginRow,
    Prices,
    ProviderEntry,
    ProviderRow,
    Server,
    SharedUrl,
    StoreUrl,
    Streams,
)

__all__ = ["Config", "ConfigError", "Document", "Loaded", "Problem", "defaults", "load", "parse"]

T = TypeVar("T")


class Document:
    """A parsed file, kept so that settings whose shape only the app knows get errors as good as the rest."""

    def __init__(self, name: str, root: Node | None, text: str = "") -> None:
        self.name = name
        self.text = text
        self._root = root

    @property
    def is_file(self) -> bool:
        """Whether `name` is a file's: paths in it are relative to its directory."""
        return self._root is not None

    def convert(self, path: Path, type_: type[T]) -> T:
        """The settings at `path` as a `type_`; a path that is not written reads as an empty mapping.

        Fields may be annotated with `router.quantities` (`Duration`, `Size`) or any type that has a `parse`. Within
        a provider's row, keys whose variable is not set are left out. Raises `ConfigError`.
        """
        reader = Reader(self.name, lenient=path[:1] == ("providers",))
        node, place = find(self._root, path)
        if node is None or (isinstance(node, Scalar) and node.value is None and not node.unset):
            node = Mapping(place or Place(0, 0), {})
        try:
            return reader.read(node, type_, path)
        except Unreadable:
            raise ConfigError(tuple(sorted(reader.problems))) from None

    def problem(self, path: Path, message: str) -> Problem:
        """A problem at the node that `path` leads to, or at the nearest one above it."""
        _, place = find(self._root, path)
        return Problem(self.name, *(place or Place(0, 0)), message)


class Loaded(Struct, frozen=True):
    config: Config
    document: Document


def defaults() -> Loaded:
    """The configuration when there is no file: the `mock` provider, no route."""
    return Loaded(Config(), Document("(defaults)", None))


def load(
    path: FilePath | str | None,
    environ: Environment[str, str],
    *,
    protocols: Collection[str] | None = None,
    plugins: Collection[str] | None = None,
) -> Loaded:
    """Read the file at `path`; None gives the defaults. Raises `ConfigError`, also when it cannot be opened."""
    if path is None:
        return defaults()
    name = str(path)
    try:
        with FilePath(path).open("rb") as file:
            # one byte more than allowed, so that a file which is too large is seen to be
            data = file.read(documents.MAX_SIZE + 1)
    except FileNotFoundError:
        raise ConfigError((Problem(name, 0, 0, "there is no such file: name another with --config"),)) from None
    except OSError as error:
        raise ConfigError((Problem(name, 0, 0, f"cannot be read: {error.strerror or error}"),)) from None
    if len(data) > documents.MAX_SIZE:
        raise ConfigError((Problem(name, 1, 1, documents.TOO_LARGE),))
    return parse(documents.decode(data, name), name, environ, protocols=protocols, plugins=plugins)


def parse(
    text: str,
    name: str,
    environ: Environment[str, str],
    *,
    protocols: Collection[str] | None = None,
    plugins: Collection[str] | None = None,
) -> Loaded:
    """Read a document's text; `name` stands for it in errors. Raises `ConfigError` with every problem found.

    `protocols` and `plugins` are the known names; None accepts any.
    """
    root, problems = documents.compose(text, name, environ)
    if root is None:
        raise ConfigError(tuple(sorted(set(problems))))
    check = _Check(name, root, protocols, plugins)
    config = check.config()
    problems = sorted({*problems, *check.problems})
    if problems or config is None:
        raise ConfigError(tuple(sorted(set(problems))))
    return Loaded(config, Document(name, root, text))


_DOTTED: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_PROVIDER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _Check:
    def __init__(
        self, name: str, root: Node, protocols: Collection[str] | None, plugins: Collection[str] | None
    ) -> None:
        self.root = root
        self.protocols = protocols
        self.plugins = plugins
        self.strict = Reader(name)
        self.lenient = Reader(name, lenient=True)

    @property
    def problems(self) -> list[Problem]:
        return self.strict.problems + self.lenient.problems

    def config(self) -> Config | None:
        """None when something could not be read at all; otherwise valid only if there are no problems."""
        try:
            top = self.strict.mapping(self.root, ())
        except Unreadable:
            return None
        self.strict.keys(top, ConfigEntry.__struct_encode_fields__, ())
        config = Config()
        for section, read in (
            ("server", lambda node: self.strict.read(node, Server, ("server",))),
            ("store", lambda node: self.strict.read(node, StoreUrl, ("store",))),
            ("shared", lambda node: self.strict.read(node, SharedUrl, ("shared",))),
            ("ledger", lambda node: self.strict.read(node, Ledger, ("ledger",))),
            ("streams", lambda node: self.strict.read(node, Streams, ("streams",))),
            ("conversations", lambda node: self.strict.read(node, Conversations, ("conversations",))),
            ("prices", self._prices),
            ("providers", self._providers),
            ("models", self._models),
            ("health", lambda node: self.strict.read(node, HealthRules, ("health",))),
            ("experiments", self._experiments),
            ("plugins", self._plugins),
        ):
            entry = top.entries.get(section)
            if entry is not None:
                try:
                    config = structs.replace(config, **{section: read(entry.node)})
                except Unreadable:
                    continue
        return config

    # -- prices ----------------------------------------------------------------------------------------------------

    def _prices(self, node: Node) -> Prices:
        prices = self.strict.read(node, Prices, ("prices",))
        if prices.currency in prices.rates:
            path: Path = ("prices", "rates", prices.currency)
            _, place = find(self.root, path)
            words = f"{written(path)} is a rate of `prices.currency` in itself: remove it, or name another currency"
            self.strict.report(place or node.place, words)
        return prices

    # -- providers -------------------------------------------------------------------------------------------------

    def _providers(self, node: Node) -> dict[str, ProviderRow]:
        rows = self.strict.mapping(node, ("providers",))
        if not rows.entries:
            self.strict.report(rows.place, "`providers` is empty: write a provider, or remove it to have `mock` alone")
        found: dict[str, ProviderRow] = {}
        for name, entry in rows.entries.items():
            path: Path = ("providers", name)
            if not _PROVIDER.fullmatch(name):
                self.strict.report(
                    entry.place,
                    f"`{short(name)}` cannot name a provider: use letters, digits and `.`, `_`, `-` inside",
                )
            self._protocol(entry.node, path)
            self._once(entry.node, "models", path)
            self._once(entry.node, "api_keys", path)
            try:
                row = self.lenient.read(entry.node, ProviderEntry, path)
            except Unreadable:
                continue
            found[name] = ProviderRow(
                name=name,
                protocol=row.protocol,
                base_url=row.base_url,
                api_keys=row.api_keys or ((row.api_key,) if row.api_key else ()),
                headers={str(header): value for header, value in row.headers.items()},
                max_parallel=row.max_parallel,
                transport=row.transport,
                timeouts=None if row.timeouts is None else overlay(Timeouts(), row.timeouts),
                models=row.models,
                can=row.can,
                region=row.region,
                price_list=row.price_list,
                options=row.options,
                missing=self._missing(entry.node, row),
            )
        return found

    def _missing(self, node: Node, row: ProviderEntry) -> tuple[str, ...]:
        """The variables that the row waits for. Of several keys one will do."""
        unset = documents.unset(node)
        keys, _ = find(node, ("api_keys",))
        if keys is not None and any(row.api_keys):
            for name in documents.unset(keys):
                unset.pop(name, None)
        return tuple(unset)

    def _protocol(self, row: Node, path: Path) -> None:
        node, _ = find(row, ("protocol",))
        if isinstance(node, Scalar) and isinstance(node.value, str):
            self._known(node, "protocol", self.protocols, (*path, "protocol"))

    def _once(self, row: Node, key: str, path: Path) -> None:
        """Note what stands twice in the list under `key`."""
        node, _ = find(row, (key,))
        seen: set[str] = set()
        for index, item in enumerate(node.items if isinstance(node, Sequence) else ()):
            if isinstance(item, Scalar) and item.text in seen:
                self.strict.report(item.place, f"{written((*path, key, index))} is in the list twice: remove one")
            elif isinstance(item, Scalar):
                seen.add(item.text)

    def _known(self, node: Scalar, noun: str, known: Collection[str] | None, path: Path) -> None:
        """Note a name that is neither `known` nor a dotted path."""
        name = node.value if isinstance(node.value, str) else ""
        if ":" in name:
            if not _DOTTED.fullmatch(name):
                self.strict.report(node.place, f"{written(path)} must be written `package.module:Class`")
        elif known is not None and name not in known:
            shown = f" `{short(name)}`" if not node.names else ""
            self.strict.report(
                node.place,
                f"unknown {noun}{shown}{did_you_mean(name, known)} (known: {', '.join(sorted(known))}; "
                "your own: package.module:Class)",
            )

    # -- routes ----------------------------------------------------------------------------------------------------

    def _provider_names(self) -> Collection[str]:
        """The names in the file, also of rows that could not be read."""
        node, _ = find(self.root, ("providers",))
        return node.entries.keys() if isinstance(node, Mapping) else Config().providers.keys()

    def _models(self, node: Node) -> dict[str, Route]:
        return RouteReader(self.strict, self._provider_names()).routes(node)

    def _experiments(self, node: Node) -> dict[str, Experiment]:
        models, _ = find(self.root, ("models",))
        names = models.entries.keys() if isinstance(models, Mapping) else ()
        return ExperimentReader(self.strict, RouteReader(self.strict, self._provider_names()), names).experiments(node)

    # -- plugins ---------------------------------------------------------------------------------------------------

    def _plugins(self, node: Node) -> tuple[PluginRow, ...]:
        if not isinstance(node, Sequence):
            self.strict.read(node, list[Any], ("plugins",))
            return PLUGINS
        found: dict[str, PluginRow] = {}
        for index, item in enumerate(node.items):
            path: Path = ("plugins", index)
            try:
                row = self._plugin(item, path)
            except Unreadable:
                continue
            if row.name in found:
                self.strict.report(item.place, f"`plugins[{index}]` is in the list twice: remove one")
            found[row.name] = row
        return tuple(found.values())

    def _plugin(self, item: Node, path: Path) -> PluginRow:
        if isinstance(item, Mapping):
            if len(item.entries) != 1:
                raise self.strict.wrong(item.place, f"{written(path)} must be one plugin: begin each with its own `-`")
            name, entry = next(iter(item.entries.items()))
            self._known(Scalar(entry.place, name, name), "plugin", self.plugins, path)
            settings: dict[str, Any] = {}
            if not (isinstance(entry.node, Scalar) and entry.node.value is None and not entry.node.unset):
                settings = self.strict.read(entry.node, dict[str, Any], (*path, name))
            return PluginRow(name, settings, (*path, name))
        name = self.strict.read(item, str, path)
        if isinstance(item, Scalar):
            self._known(item, "plugin", self.plugins, path)
        return PluginRow(name, {}, (*path, name))
