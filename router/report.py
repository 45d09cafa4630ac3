"""What `deltaway check` says about a valid configuration, as lines of text. Pure: somebody else prints them."""

from collections.abc import Mapping
from typing import Final

from router.experiment import Experiment
from router.money import short_decimal
from router.quantities import size, written
from router.route import Route, RouteTarget
from router.settings import Config, ProviderRow, Server, StoreUrl

_BALANCES: Final = {"weighted": "by weight", "latency": "the fastest first", "cost": "the cheapest first"}


def report(config: Config, prices: Mapping[str, str] | None = None) -> list[str]:
    """Routes with their targets, providers with a missing key, prices, plugins, the server: a line each, indented by
    two. `prices`: targets, and what is known of their price in words."""
    unusable = [name for name, row in config.providers.items() if row.missing]
    lines = [_summary(config, unusable), "", "providers"]
    width = max(map(len, config.providers), default=0)
    lines += [f"  {name:<{width}}  {_provider(row)}" for name, row in config.providers.items()]
    lines += ["", "routes (any provider/model works beside them)"]
    width = max(map(len, config.models), default=0)
    lines += [f"  {name:<{width}}  {_route(route, config)}" for name, route in config.models.items()] or ["  none"]
    if config.experiments:
        lines += ["", "experiments"]
        width = max(map(len, config.experiments))
        lines += [f"  {name:<{width}}  {_experiment(each)}" for name, each in config.experiments.items()]
    if prices:
        lines += ["", "prices (of a million tokens)"]
        width = max(map(len, prices))
        lines += [f"  {target:<{width}}  {words}" for target, words in prices.items()]
    lines += ["", "plugins, outermost first", f"  {', '.join(row.name for row in config.plugins) or 'none'}"]
    lines += ["", "ledger", f"  {_ledger(config)}"]
    return [*lines, "", "server", *(f"  {line}" for line in _server(config.server))]


def _summary(config: Config, unusable: list[str]) -> str:
    providers, routes = len(config.providers), len(config.models)
    counted = f"{providers} provider{'s' * (providers != 1)}, {routes} route{'s' * (routes != 1)}"
    return f"valid: {counted}{'; without a key: ' + ', '.join(unusable) if unusable else ''}"


def _provider(row: ProviderRow) -> str:
    words = [row.protocol, *([row.base_url] if row.base_url else [])]
    if row.missing:
        words.append(f"(unavailable: set {' and '.join(row.missing)})")
    return " ".join(words)


def _route(route: Route, config: Config) -> str:
    targets = [_target(each, route, config) for each in route.targets]
    between = {"ordered": ", then ", "weighted": ", ", "latency": ", ", "cost": ", "}[route.balance]
    words = [between.join(targets)]
    if route.balance != "ordered":
        words.append(
            {"weighted": "by weight", "latency": "the fastest first", "cost": "the cheapest first"}[route.balance]
        )
    words += [f"{kind} → {', '.join(str(each.target) for each in listed)}" for kind, listed in route.fallback.items()]
    if route.hedge is not None:
        words.append(f"hedged after {written(route.hedge.after)}")
    if route.continuation:
        words.append("continued in the middle")
    return "; ".join(words)


def _target(each: RouteTarget, route: Route, config: Config) -> str:
    words = str(each.target)
    if route.balance == "weighted":
        words += f" ×{each.weight:g}"
    if each.region is not None:
        words += f" in {each.region}"
    return f"{words} (unavailable)" if config.providers[each.target.provider].missing else words


def _experiment(experiment: Experiment) -> str:
    arms = ", ".join(f"{arm.name} {arm.share:g} %" for arm in experiment.arms)
    words = [f"on {experiment.route} by {experiment.unit}: {arms}"]
    if experiment.holdout:
        words.append(f"{experiment.holdout:g} % held out")
    if experiment.shadow is not None:
        shadow = experiment.shadow
        most = f"{short_decimal(shadow.budget.nano)} {shadow.budget.currency}"
        words.append(f"shadow {shadow.target} {shadow.share:g} % up to {most}")
    return "; ".join(words)


def _ledger(config: Config) -> str:
    settings = config.ledger
    if not settings.enabled:
        return f"off; keys in {_place(config.store)}"
    durability = settings.durability or ("process" if config.store.file is not None else "store")
    return f"{_place(config.store)}, durability {durability}, journal in {settings.journal}"


def _place(url: StoreUrl) -> str:
    """The URL without its password."""
    scheme, _, rest = url.partition("://")
    if url.file is not None or "@" not in rest:
        return url
    who, _, where = rest.rpartition("@")
    return f"{scheme}://{who.partition(':')[0]}@{where.partition('?')[0]}"


def _server(server: Server) -> list[str]:
    cors = ", ".join(server.cors.allow_origins) if server.cors else "off"
    return [
        f"heartbeat {written(server.heartbeat) if server.heartbeat else 'off'}",
        f"body limit {size(server.body_limit)}",
        f"cors {cors}",
        f"shutdown after {written(server.shutdown.delay)}, running answers get {written(server.shutdown.grace)}",
    ]
