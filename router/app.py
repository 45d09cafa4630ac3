"""The composition root: a configuration becomes a running application. The only importer of providers and plugins."""

import os
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path as FilePath
from typing import Any, NoReturn, TypeVar

import msgspec
import structlog
from litestar import Litestar, Request, asgi
from litestar.exceptions import HTTPException
from msgspec import Struct

from plugins import known_plugins, load_plugin
from plugins.auth import Auth
from providers import known_protocols, load_provider
from router.accepted import Accepted
from router.adapters import Adapter, build_adapter
from router.attempts import Attempts
from router.backing import Backing, backing
from router.call import Principal
from router.catalog import Catalog
from router.chooser import Chooser
from router.config import ConfigError, Document, Loaded, Problem, load, parse
from router.conversations.completions import KeptCompletions
from router.conversations.prompt import Prompts
from router.conversations.retention import Retention
from router.conversations.summary import Summariser
from router.conversations.turns import Turns
from router.dialects.openai_chat import OpenAIChat
from router.dispatch import Dispatch
from router.door import Door
from router.errors import RouterError, StoreUnavailable
from router.experiment import Experiment
from router.experiments.arms import check_arms
from router.experiments.desk import Desk
from router.experiments.guarding import Guarding
from router.experiments.shadows import Shadows
from router.extension import ExtensionNotFound, UnknownExtension
from router.generation import Generation, Generations, generation_id
from router.http.admin_experiments import admin_experiment_routes
from router.http.admin_health import admin_health_routes
from router.http.aside import Aside
from router.http.cache import cache_routes
from router.http.chat import Chat
from router.http.completions import METHODS as COMPLETIONS
from router.http.completions import CompletionList, completion_routes
from router.http.config import config_routes
from router.http.conversations import conversation_routes
from router.http.cors import CorsLayer
from router.http.ending import Ending
from router.http.errors import ErrorResponses
from router.http.experiments import experiment_routes
from router.http.feedback import feedback_routes
from router.http.health import health_routes
from router.http.kept import STREAMS_PATH, Kept
from router.http.keys import key_routes
from router.http.models import model_routes
from router.http.openapi import openapi_config
from router.http.production import Production
from router.http.receipts import receipt_routes
from router.http.request import read_head
from router.http.stream_token import StreamTokens
from router.http.streams import StreamEndpoint
from router.http.usage import usage_routes
from router.key_text import Pepper
from router.keyring import Keyring
from router.lifecycle import LAST_WORDS, lifespan
from router.plugin import Plugin, check_order, compose
from router.prices.pricing import PriceBookPricing, price_book
from router.provider import Target
from router.reader import Path
from router.reloading import Reloader
from router.running import Running
from router.services import Services
from router.settings import PluginRow
from router.store.items import Removed
from router.store.store import StoreAway
from router.store.summaries import StoredSummaries
from router.streams.log import LogAway, stream_id
from router.streams.streams import Streams
from router.telemetry import configure
from router.upstream import CarrierFactory, make_carrier, tls_context
from router.wire.openai_chat import ChatCompletionRequest

T = TypeVar("T")
CHAT_PATH = "/v1/chat/completions"
CONFIG_VARIABLE = "DELTAWAY_CONFIG"
"""Tells worker processes which file to read; empty: the defaults."""
KEYS_VARIABLE = "DELTAWAY_KEYS_NEEDED"
"""Tells them, as `1`, that others can reach the gateway: no reload may take `auth` away."""
ACCEPTED_VARIABLE = "DELTAWAY_ACCEPTED"
"""Tells them where the text is that was accepted last, which they begin with; empty: they read the file."""


class Gateway(Struct, frozen=True):
    """Everything one worker is made of: what the configuration in force made, and what outlives it."""

    generations: Generations
    backing: Backing
    running: Running
    reloader: Reloader
    shadows: Shadows

    @property
    def current(self) -> Generation:
        return self.generations.current


def read_config(path: str | None, environ: Mapping[str, str]) -> Loaded:
    """The file at `path` checked against the protocols and plugins that are installed. Raises `ConfigError`."""
    return load(path, environ, protocols=known_protocols(), plugins=known_plugins())


def build(loaded: Loaded, environ: Mapping[str, str], carrier: CarrierFactory = make_carrier) -> Gateway:
    """Put the gateway together. Raises `ConfigError` for settings that only an adapter or plugin understands."""
    behind, context, running = backing(loaded, environ), tls_context(), Running()
    tokens = behind.tokens if loaded.config.ledger.tokenizer else None
    shadows = Shadows(behind.state.accounts, behind.books, tokens, running)
    name, is_file = loaded.document.name, loaded.document.is_file
    # what is installed is asked once: to find out takes longer than to read a file
    known: dict[str, Any] = {"protocols": known_protocols(), "plugins": known_plugins()}

    def read(text: str | None) -> Loaded:
        if text is not None:
            return parse(text, name, environ, **known)
        if not is_file:
            words = "the gateway was started without a configuration: restart it with --config"
            raise ConfigError((loaded.document.problem((), words),))
        _check_regular(name)
        return load(name, environ, **known)

    def make(found: Loaded, previous: Generation) -> Generation:
        return build_generation(found, environ, behind, shadows, context, carrier, previous)

    def comes(generation: Generation) -> None:
        behind.rates.pricing = generation.pricing
        behind.health.apply(generation.config.health)

    generations = Generations(build_generation(loaded, environ, behind, shadows, context, carrier), comes)
    reloader = Reloader(generations, running, behind.store, name if is_file else None, read, make, environ)
    return Gateway(generations, behind, running, reloader, shadows)


def build_generation(
    loaded: Loaded,
    environ: Mapping[str, str],
    behind: Backing,
    shadows: Shadows,
    context: ssl.SSLContext,
    carrier: CarrierFactory = make_carrier,
    previous: Generation | None = None,
) -> Generation:
    """All that the configuration makes for the request path. Touches no event loop, so that a thread may do it.

    Of `previous`, the one in force, the adapters are kept whose rows say the same: with their connections, with what
    they have learned, and with their count of parallel calls. Raises `ConfigError`.
    """
    config, document = loaded.config, loaded.document
    catalog = Catalog(config)
    problems = Problems()
    adapters: dict[str, Adapter] = {}
    addresses: dict[str, str | None] = {}
    for row in config.providers.values():
        with problems.gathered():
            provider = _loaded(load_provider, row.protocol, document, ("providers", row.name, "protocol"))
            addresses[row.protocol] = provider.base_url
            kept = None if previous is None else previous.adapter_for(row)
            adapter = kept or build_adapter(row, provider, document, context, carrier)
            if adapter is not None:
                adapters[row.name] = adapter
    kinds: dict[str, type[Plugin]] = {}
    for layer in config.plugins:
        with problems.gathered():
            kinds[layer.name] = _loaded(load_plugin, layer.name, document, layer.path)
    pricing = _pricing(loaded, addresses, problems)
    if len(kinds) < len(config.plugins):
        problems.fail()
    services = Services(
        environ,
        behind.keys,
        behind.tokens,
        pricing,
        behind.state.gates,
        behind.state.accounts,
        catalog.reaches,
        catalog.is_route,
        lambda call: dispatch.course(call),
        behind.cache,
    )
    plugins: list[Plugin] = []
    for layer in config.plugins:
        with problems.gathered():
            plugins.append(_plugin(layer, kinds[layer.name], document, services))
        if getattr(kinds[layer.name], "needs_ledger", False) and not config.ledger.enabled:
            words = f"`{layer.name}` needs the ledger: remove `enabled: false` from `ledger`, or this plugin"
            problems.found.append(document.problem(layer.path, words))
    if not problems.found:
        paths = {layer.name: layer.path for layer in config.plugins}
        problems.found += [document.problem(paths[name], message) for name, message in check_order(kinds)]
    problems.found += check_arms(config, document)
    if problems.found:
        problems.fail()
    estimator = behind.estimator if config.ledger.enabled or "usage" in kinds else None
    chooser = Chooser(
        catalog,
        adapters,
        pricing,
        estimator,
        behind.health,
        unpriced=config.prices.unknown == "flag",
        currency=config.prices.currency,
        home=config.server.region,
        draw=random.Random(),
        clock=behind.health.clock,
    )
    attempts = Attempts(adapters, behind.books, behind.health, estimator)
    desk = Desk(config.experiments.values(), behind.states.state) if config.experiments else None

    def crowded(provider: str) -> bool:
        adapter = adapters.get(provider)
        return adapter is None or adapter.upstream.crowded

    answered = shadows.offering(
        config.experiments.values(),
        lambda call: dispatch.stream(call),
        tracked=lambda: generation.tracked(),
        crowded=crowded,
    )
    dispatch = Dispatch(catalog, chooser, attempts, behind.health, experiments=desk, answered=answered)
    generation = Generation(
        generation_id(document.text, pricing.own_text),
        int(time.time() * 1000),
        loaded,
        catalog,
        pricing,
        adapters,
        plugins,
        compose(plugins, dispatch.stream),
        _admins(plugins, services, document),
    )
    return generation


def _admins(plugins: Sequence[Plugin], services: Services, document: Document) -> Auth:
    """What knows the admin keys: the plugin, or one like it where calls need no key."""
    listed = next((plugin for plugin in plugins if isinstance(plugin, Auth)), None)
    try:
        return listed or Auth(Auth.Settings(), services)
    except ValueError as error:
        raise ConfigError((document.problem((), str(error)),)) from None


def _pricing(loaded: Loaded, addresses: Mapping[str, str | None], problems: "Problems") -> PriceBookPricing:
    """The price book; a prices file that is wrong is noted, and left out."""
    config, document = loaded.config, loaded.document
    without = msgspec.structs.replace(config, prices=msgspec.structs.replace(config.prices, file=None))
    pricing = price_book(without, None, addresses)
    if config.prices.file is not None:
        path = FilePath(document.name).parent / config.prices.file
        if path.is_file():
            with problems.gathered():
                pricing = price_book(config, document.name, addresses)
        else:
            words = f"`prices.file`: there is no file {config.prices.file} beside the configuration"
            problems.found.append(document.problem(("prices", "file"), words))
    if not problems.found:
        problems.found += [
            document.problem(("providers", name, "price_list"), words)
            for name, words in pricing.unknown_lists().items()
        ]
    return pricing


def prices_of(gateway: Gateway) -> dict[str, str]:
    """What is known of the prices of the targets that routes lead to and providers list, by target."""
    config = gateway.current.config
    routed = [target for route in config.models.values() for target in route.leads_to()]
    tried = [target for experiment in config.experiments.values() for target in experiment.leads_to()]
    listed = [Target(row.name, model) for row in config.providers.values() for model in row.models]
    targets = dict.fromkeys([*routed, *tried, *listed])
    coverage = gateway.current.pricing.coverage(targets, int(time.time() * 1000))
    return {str(each.target): each.words for each in coverage}


class Problems:
    """Those of a configuration, gathered so that all are told at once."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            self.found += error.problems

    def fail(self) -> NoReturn:
        raise ConfigError(tuple(sorted(set(self.found))))


def create_app(gateway: Gateway) -> Litestar:
    """The ASGI application. Its routes ask for the generation in force at each request."""
    generations, behind, server = gateway.generations, gateway.backing, gateway.current.config.server
    door = Door.of(lambda: generations.current.operators)
    keyring = Keyring(behind.store, behind.keys, other_admin=lambda: generations.current.admins.has_admin_key)
    dialect = OpenAIChat()
    errors = ErrorResponses(dialect)
    ending = Ending(behind.books)

    async def pepper() -> Pepper:
        try:
            return await behind.keys.pepper()
        except StoreAway as error:
            raise StoreUnavailable(
                "the store is away, and with it what tokens are signed with", retry_after=5.0
            ) from error

    streams = Streams(
        behind.log,
        behind.journal.id,
        lambda head, error: dialect.failure(error, head.request_id),
        linger=float(behind.config.streams.linger),
    )
    production = Production(dialect, gateway.running, ending, float(server.shutdown.grace) + LAST_WORDS)
    tokens = StreamTokens(pepper)
    counter = behind.tokens if behind.config.ledger.tokenizer else None
    turns = Turns(behind.store, behind.journal.id, Prompts(counter, Summariser(StoredSummaries(behind.store))))
    kept = Kept(
        dialect, streams, production, tokens, turns, Aside(gateway.running, ending), KeptCompletions(behind.store)
    )
    chat = Chat(dialect, generations, gateway.running, ending, kept, COMPLETIONS)
    come_back = StreamEndpoint({dialect.name: dialect}, generations, streams, tokens)

    async def forget(removed: Removed) -> None:
        """What the logs of streams have of what was removed, and the call that writes in it."""
        streams_of = removed.streams
        if removed.call is not None:
            turns.deleted(removed.call)
            streams_of = tuple(dict.fromkeys((*streams_of, stream_id(removed.call))))
        for stream in streams_of:
            try:
                await streams.remove(stream)
            except LogAway as error:
                structlog.get_logger("deltaway.streams").error(
                    "a deleted answer stays in the log until its time is over", stream=stream, reason=str(error)
                )

    def keep() -> float | None:
        return generations.current.config.conversations.keep

    retention = Retention(behind.store, keep, forget)

    @asgi(CHAT_PATH, copy_scope=False)
    async def chat_completions(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            await completion_list.handle(scope, receive, send)
        else:
            await chat.handle(scope, receive, send)

    @asgi(STREAMS_PATH, is_mount=True, copy_scope=False)
    async def come_back_to_streams(scope: Any, receive: Any, send: Any) -> None:
        await come_back.handle(scope, receive, send)

    async def caller(request: Request[Any, Any, Any]) -> Principal | None:
        """Who asks; None where no key is needed."""
        authenticator = generations.current.authenticator
        return None if authenticator is None else await authenticator.authenticate(read_head(request.scope).credentials)

    completion_list = CompletionList(behind.store, caller)

    def priced() -> tuple[PriceBookPricing, str]:
        generation = generations.current
        return generation.pricing, generation.config.prices.currency

    def experiments() -> Mapping[str, Experiment]:
        return generations.current.config.experiments

    guarding = Guarding(behind.store, behind.states, experiments, priced)
    recorded = gateway.current.config.ledger.enabled
    app = Litestar(
        route_handlers=[
            chat_completions,
            come_back_to_streams,
            *model_routes(generations, behind.health, int(time.time())),
            *receipt_routes(behind.store, behind.books, caller),
            *usage_routes(behind.store, behind.books, priced, caller),
            *cache_routes(behind.cache, caller),
            *feedback_routes(behind.store, behind.books, caller, experiments, recorded=recorded),
            *experiment_routes(behind.store, behind.books, behind.states, lambda: generations.current, caller),
            *conversation_routes(behind.store, behind.books, caller, forget),
            *completion_routes(behind.store, caller),
            *key_routes(keyring, door, plugins=lambda: frozenset(generations.current.layer_names)),
            *config_routes(gateway.reloader, door),
            *health_routes(gateway.running, behind.books, generations),
            *admin_experiment_routes(behind.store, experiments, door),
            *admin_health_routes(generations, behind.state, door, behind.config.shared),
        ],
        lifespan=[
            lifespan(behind.opened, generations, gateway.reloader, gateway.running, server.shutdown),
            lambda _: gateway.shadows.lifespan(),
            lambda _: guarding.lifespan(),
            lambda _: turns.lifespan(),
            lambda _: retention.lifespan(),
            lambda _: streams.lifespan(),
            lambda _: production.lifespan(),
        ],
        exception_handlers={
            RouterError: errors.router_error,
            HTTPException: errors.http_exception,
            Exception: errors.unexpected,
        },
        after_request=errors.numbered,
        openapi_config=openapi_config(version("deltaway"), {CHAT_PATH: ChatCompletionRequest}),
        logging_config=None,
        request_max_body_size=server.body_limit,
    )
    if server.cors is not None:
        # around what answers before routing too
        app.asgi_handler = CorsLayer(app.asgi_handler, server.cors)
    return app


def from_environment() -> Litestar:
    """The application of one worker process; the configuration's path comes in the environment."""
    configure()
    environ = dict(os.environ)
    path, kept = environ.get(CONFIG_VARIABLE) or None, environ.get(ACCEPTED_VARIABLE)
    accepted = Accepted(FilePath(kept)) if path and kept else None
    text = None if accepted is None else accepted.read()
    if path is None or text is None:
        loaded = read_config(path, environ)
    else:
        # under the file's own name: paths in it are beside that file, and messages name it
        loaded = parse(text, path, environ, protocols=known_protocols(), plugins=known_plugins())
    gateway = build(loaded, environ)
    gateway.reloader.keys_needed = environ.get(KEYS_VARIABLE) == "1"
    gateway.reloader.accepted = accepted
    return create_app(gateway)


def _check_regular(name: str) -> None:
    """A pipe would hold whoever reads it until somebody writes. Raises `ConfigError`."""
    path = FilePath(name)
    if path.exists() and not path.is_file():
        words = "is not a regular file, and only such a one can be read again: name another with --config"
        raise ConfigError((Problem(name, 0, 0, words),))


def _plugin(row: PluginRow, kind: Any, document: Document, services: Services) -> Plugin:
    if not hasattr(kind, "Settings"):
        if row.settings:
            raise ConfigError((document.problem(row.path, f"the plugin `{row.name}` has no settings"),))
        plugin: Plugin = kind()
        return plugin
    # a default plugin stands nowhere in the file: a path that leads nowhere reads as no settings
    settings = document.convert(row.path or ("plugins", row.name), kind.Settings)
    try:
        built: Plugin = kind(settings, services) if getattr(kind, "wants_services", False) else kind(settings)
    except ValueError as error:
        raise ConfigError((document.problem(row.path, str(error)),)) from None
    return built


def _loaded(load: Callable[[str], T], name: str, document: Document, path: Path) -> T:
    """The class of that name. An error inside its own module is raised as it is: its author needs the traceback."""
    try:
        return load(name)
    except (UnknownExtension, ExtensionNotFound) as error:
        raise ConfigError((document.problem(path, str(error)),)) from None
