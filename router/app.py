"""The composition root: a configuration becomes a running application. The only importer of providers and plugins."""

import os
import ssl
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, TypeVar

from litestar import Litestar, asgi
from litestar.config.cors import CORSConfig
from litestar.exceptions import HTTPException
from msgspec import Struct

from plugins import known_plugins, load_plugin
from providers import known_protocols, load_provider
from router.catalog import Catalog
from router.config import ConfigError, Document, Loaded, Problem, load
from router.dialects.openai_chat import OpenAIChat
from router.dispatch import Adapter, Dispatch
from router.errors import RouterError
from router.extension import ExtensionNotFound, UnknownExtension
from router.http.chat import Chat
from router.http.errors import ErrorResponses
from router.http.health import health_routes
from router.http.models import model_routes
from router.http.openapi import openapi_config
from router.lifecycle import lifespan
from router.plugin import Authenticator, CallNext, Plugin, check_order, compose
from router.provider import InProcess, ProviderSettings
from router.reader import Path
from router.running import Running
from router.settings import Cors, PluginRow, ProviderRow
from router.telemetry import configure
from router.upstream import CarrierFactory, HttpUpstream, InProcessUpstream, Upstream, make_carrier, tls_context
from router.wire.openai_chat import ChatCompletionRequest

T = TypeVar("T")
CHAT_PATH = "/v1/chat/completions"
CONFIG_VARIABLE = "DELTAWAY_CONFIG"
"""Tells worker processes which file to read; empty: the defaults."""


class Gateway(Struct, frozen=True):
    """Everything one worker is made of."""

    loaded: Loaded
    catalog: Catalog
    adapters: dict[str, Adapter]
    plugins: tuple[Plugin, ...]
    layers: CallNext
    running: Running

    @property
    def authenticator(self) -> Authenticator | None:
        return next((plugin for plugin in self.plugins if isinstance(plugin, Authenticator)), None)


def read_config(path: str | None, environ: Mapping[str, str]) -> Loaded:
    """The file at `path` checked against the protocols and plugins that are installed. Raises `ConfigError`."""
    return load(path, environ, protocols=known_protocols(), plugins=known_plugins())


def build(loaded: Loaded, environ: Mapping[str, str], carrier: CarrierFactory = make_carrier) -> Gateway:
    """Put the gateway together. Raises `ConfigError` for settings that only an adapter or plugin understands."""
    config = loaded.config
    catalog = Catalog(config)
    context = tls_context()
    problems: list[Problem] = []
    adapters: dict[str, Adapter] = {}
    for row in config.providers.values():
        try:
            adapter = _adapter(row, loaded.document, context, carrier)
            if adapter is not None:
                adapters[row.name] = adapter
        except ConfigError as error:
            problems.extend(error.problems)
    plugins: list[Plugin] = []
    for layer in config.plugins:
        try:
            plugins.append(_plugin(layer, loaded.document, environ))
        except ConfigError as error:
            problems.extend(error.problems)
    if not problems:
        problems.extend(_order_problems(config.plugins, loaded.document))
    if problems:
        raise ConfigError(tuple(sorted(problems)))
    layers = compose(plugins, Dispatch(catalog, adapters).stream)
    return Gateway(loaded, catalog, adapters, tuple(plugins), layers, Running())


def create_app(gateway: Gateway) -> Litestar:
    """The ASGI application."""
    server = gateway.loaded.config.server
    dialect = OpenAIChat()
    errors = ErrorResponses(dialect)
    chat = Chat(
        dialect,
        gateway.layers,
        gateway.running,
        gateway.authenticator,
        body_limit=server.body_limit,
        heartbeat=float(server.heartbeat),
    )

    @asgi(CHAT_PATH, copy_scope=False)
    async def chat_completions(scope: Any, receive: Any, send: Any) -> None:
        await chat.handle(scope, receive, send)

    return Litestar(
        route_handlers=[
            chat_completions,
            *model_routes(gateway.catalog, gateway.authenticator, int(time.time())),
            *health_routes(gateway.running),
        ],
        lifespan=[
            lifespan(
                gateway.plugins,
                [adapter.upstream for adapter in gateway.adapters.values()],
                gateway.running,
                server.shutdown,
            )
        ],
        exception_handlers={
            RouterError: errors.router_error,
            HTTPException: errors.http_exception,
            Exception: errors.unexpected,
        },
        cors_config=_cors(server.cors),
        after_request=errors.numbered,
        openapi_config=openapi_config(version("deltaway"), {CHAT_PATH: ChatCompletionRequest}),
        logging_config=None,
        request_max_body_size=server.body_limit,
    )


def from_environment() -> Litestar:
    """The application of one worker process; the configuration's path comes in the environment."""
    configure()
    environ = dict(os.environ)
    loaded = read_config(environ.get(CONFIG_VARIABLE) or None, environ)
    return create_app(build(loaded, environ))


def _adapter(row: ProviderRow, document: Document, context: ssl.SSLContext, carrier: CarrierFactory) -> Adapter | None:
    """None for a row that lacks a variable; what it does say is checked all the same."""
    path = ("providers", row.name)
    cls = _loaded(load_provider, row.protocol, document, (*path, "protocol"))
    options = document.convert((*path, "options"), cls.Options)
    if row.missing:
        return None
    base_url = row.base_url or cls.base_url
    if base_url is None:
        message = f"the protocol `{row.protocol}` has no address of its own: write `base_url`"
        raise ConfigError((document.problem(path, message),))
    settings = ProviderSettings(
        name=row.name, base_url=base_url, api_key=row.api_key, headers=row.headers, options=options
    )
    provider = cls(settings)
    upstream: Upstream
    if isinstance(provider, InProcess):
        upstream = InProcessUpstream(row.name, provider)
    else:
        upstream = HttpUpstream(row.name, carrier(row.transport, context), row.max_parallel)
    return Adapter(provider, upstream)


def _plugin(row: PluginRow, document: Document, environ: Mapping[str, str]) -> Plugin:
    cls: Any = _loaded(load_plugin, row.name, document, row.path)
    if not hasattr(cls, "Settings"):
        if row.settings:
            raise ConfigError((document.problem(row.path, f"the plugin `{row.name}` has no settings"),))
        plugin: Plugin = cls()
        return plugin
    # a default plugin stands nowhere in the file: a path that leads nowhere reads as no settings
    settings = document.convert(row.path or ("plugins", row.name), cls.Settings)
    try:
        built: Plugin = cls(settings, environ) if getattr(cls, "wants_environment", False) else cls(settings)
    except ValueError as error:
        raise ConfigError((document.problem(row.path, str(error)),)) from None
    return built


def _loaded(load: Callable[[str], T], name: str, document: Document, path: Path) -> T:
    """The class of that name. An error inside its own module is raised as it is: its author needs the traceback."""
    try:
        return load(name)
    except (UnknownExtension, ExtensionNotFound) as error:
        raise ConfigError((document.problem(path, str(error)),)) from None


def _order_problems(rows: tuple[PluginRow, ...], document: Document) -> list[Problem]:
    classes = {row.name: load_plugin(row.name) for row in rows}
    paths = {row.name: row.path for row in rows}
    return [document.problem(paths[name], message) for name, message in check_order(classes)]


def _cors(cors: Cors | None) -> CORSConfig | None:
    if cors is None:
        return None
    return CORSConfig(
        allow_origins=list(cors.allow_origins),
        allow_methods=["GET", "POST", "DELETE", "OPTIONS"],
        # the official SDKs send a family of x-stainless-* headers; the key guards the door, not this list
        allow_headers=["*"],
        allow_credentials=cors.allow_credentials,
        expose_headers=[
            "x-request-id",
            "x-deltaway-target",
            "x-deltaway-attempts",
            "x-deltaway-dropped",
            "retry-after",
            "x-should-retry",
        ],
        max_age=int(cors.max_age),
    )
