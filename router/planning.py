"""What another configuration would change, in words for people. Pure; a secret's text is never among them.

What deserves words of its own has them here; every other key is told by `router.differences`, old → new, so that
nothing is left out.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from msgspec import structs

from router.differences import Change, differing, path_of
from router.experiment import Arm, Experiment
from router.route import Route
from router.settings import Config, ProviderRow

InUse: TypeAlias = Mapping[str, int]


def changes(old: Config, new: Config, in_use: InUse) -> list[Change]:
    """In the order of the file's sections. `in_use`: how many calls run, by the name that was asked for."""
    found: list[Change] = []
    for name in Config.__struct_fields__:
        if getattr(old, name) != getattr(new, name):
            told = _SECTIONS.get(name)
            found += _others(name, old, new) if told is None else told(old, new, in_use)
    return found


def _others(name: str, old: Config, new: Config) -> Iterator[Change]:
    yield from differing((name,), getattr(old, name), getattr(new, name))


def _store(old: Config, new: Config, in_use: InUse) -> Iterator[Change]:
    yield _url("store", old.store, new.store)


def _shared(old: Config, new: Config, in_use: InUse) -> Iterator[Change]:
    yield _url("shared", old.shared, new.shared)


def _url(name: str, old: str, new: str) -> Change:
    """One that may hold a password: only its place is told."""
    before, after = _place(old), _place(new)
    words = f"`{name}`: {before} → {after}" if before != after else f"`{name}`: its user, password or options change"
    return Change(name, words)


def _place(url: str) -> str:
    if url.startswith("sqlite:") or "://" not in url:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


# -- providers -----------------------------------------------------------------------------------------------------


def _providers(old: Config, new: Config, in_use: InUse) -> Iterator[Change]:
    for name in old.providers:
        if name not in new.providers:
            running = sum(count for asked, count in in_use.items() if asked.startswith(f"{name}/"))
            yield Change(
                path_of(("providers", name)),
                f"the provider `{name}` is removed: {_finish(running)}; new calls to `{name}/…` get 404",
            )
    for name, row in new.providers.items():
        before = old.providers.get(name)
        if before is None:
            where = f" at {row.base_url}" if row.base_url else ""
            waits = f"; it waits for {_listed(row.missing)}" if row.missing else ""
            yield Change(
                path_of(("providers", name)), f"the provider `{name}` is added: protocol {row.protocol}{where}{waits}"
            )
        elif before != row:
            yield from _provider(name, before, row)
    yield from _order(("providers",), "providers", list(old.providers), list(new.providers))


def _provider(name: str, old: ProviderRow, new: ProviderRow) -> Iterator[Change]:
    path = ("providers", name)
    if old.api_keys != new.api_keys:
        yield Change(path_of((*path, "api_keys")), f"the provider `{name}` {_keys(old.api_keys, new.api_keys)}")
    for field in ("headers", "options"):
        # either may hold a key: their names are enough
        yield from _named((*path, field), getattr(old, field), getattr(new, field))
    if old.missing != new.missing:
        words = f"waits for {_listed(new.missing)}" if new.missing else "waits for no variable any more"
        yield Change(path_of(path), f"the provider `{name}` {words}")
    told = {field: getattr(new, field) for field in ("name", "api_keys", "headers", "options", "missing")}
    yield from differing(path, structs.replace(old, **told), new)


def _keys(old: tuple[str, ...], new: tuple[str, ...]) -> str:
    more, fewer = len([key for key in new if key not in old]), len([key for key in old if key not in new])
    if not more and not fewer:
        return "uses its keys in another order"
    counts = ((more, "new"), (fewer, "fewer")) if more and fewer else ((more, "more"), (fewer, "less"))
    words = [f"{_number(count)} key{'s' * (count > 1)} {what}" for count, what in counts if count]
    return f"has {' and '.join(words)}: {len(new)} in all"


# -- routes --------------------------------------------------------------------------------------------------------


def _routes(old: Config, new: Config, in_use: InUse) -> Iterator[Change]:
    for name in old.models:
        if name not in new.models:
            yield Change(
                path_of(("models", name)),
                f"the route `{name}` is removed: {_finish(in_use.get(name, 0))}; new calls to it get 404",
            )
    for name, route in new.models.items():
        before = old.models.get(name)
        if before is None:
            targets = ", ".join(f"`{each.target}`" for each in route.targets)
            yield Change(path_of(("models", name)), f"the route `{name}` is added: {route.balance} {targets}")
        elif before != route:
            yield from _route(name, before, route, in_use.get(name, 0))
    yield from _order(("models",), "routes", list(old.models), list(new.models))


def _route(name: str, old: Route, new: Route, running: int) -> Iterator[Change]:
    path, found = ("models", name), list[Change]()
    before, after = {each.target: each for each in old.targets}, {each.target: each for each in new.targets}
    apart = len(before) == len(old.targets) and len(after) == len(new.targets)
    if apart:
        for target in before:
            if target not in after:
                found.append(Change(path_of((*path, "targets")), f"the route `{name}` no longer leads to `{target}`"))
        for place, (target, each) in enumerate(after.items()):
            at = (*path, "targets", place)
            if target not in before:
                found.append(Change(path_of(at), f"the route `{name}` leads to `{target}` too, as number {place + 1}"))
            else:
                found += differing(at, before[target], each, f"`{target}` of the route `{name}`")
        found += _order((*path, "targets"), f"targets of the route `{name}`", [*map(str, before)], [*map(str, after)])
    else:
        found += differing((*path, "targets"), old.targets, new.targets)
    found += differing(path, structs.replace(old, targets=new.targets), new)
    if running and found:
        first = found[0]
        found[0] = structs.replace(first, words=f"{first.words} ({_finish(running)} as they began)")
    yield from found


# -- plugins -------------------------------------------------------------------------------------------------------


def _plugins(old: Config, new: Config, in_use: InUse) -> Iterator[Change]:
    before, after = {row.name: row for row in old.plugins}, {row.name: row for row in new.plugins}
    for name in before:
        if name not in after:
            yield Change(path_of(("plugins", name)), f"the plugin `{name}` is removed")
    for name, row in after.items():
        if name not in before:
            behind = list(after).index(name)
            where = "as the outermost" if not behind else f"inside of `{list(after)[behind - 1]}`"
            yield Change(path_of(("plugins", name)), f"the plugin `{name}` is added, {where}")
        elif before[name].settings != row.settings:
            # settings may hold keys: their names are enough
            yield from _named(("plugins", name), before[name].settings, row.settings)
    yield from _order(("plugins",), "plugins", list(before), list(after))


# -- experiments ---------------------------------------------------------------------------------------------------


def _experiments(old: Config, new: Config, in_use: InUse) -> Iterator[Change]:
    for name, gone in old.experiments.items():
        if name not in new.experiments:
            yield Change(
                path_of(("experiments", name)),
                f"the experiment `{name}` is removed: calls to `{gone.route}` go its own way again",
            )
    for name, each in new.experiments.items():
        before = old.experiments.get(name)
        if before is None:
            shares = ", ".join(f"{arm.name} {arm.share:g} %" for arm in each.arms)
            yield Change(
                path_of(("experiments", name)),
                f"the experiment `{name}` is added on the route `{each.route}`, by {each.unit}: {shares}",
            )
        elif before != each:
            yield from _experiment(name, before, each)
    yield from _order(("experiments",), "experiments", list(old.experiments), list(new.experiments))


def _experiment(name: str, old: Experiment, new: Experiment) -> Iterator[Change]:
    path = ("experiments", name)
    before, after = {arm.name: arm for arm in old.arms}, {arm.name: arm for arm in new.arms}
    drawn = [field for field in ("salt", "unit") if getattr(old, field) != getattr(new, field)]
    for field in drawn:
        change = "its salt changes" if field == "salt" else f"its unit changes, {old.unit} → {new.unit}"
        yield Change(path_of((*path, field)), f"the experiment `{name}`: {change}, so all units are drawn anew")
    for arm in before:
        if arm not in after:
            yield Change(
                path_of((*path, "arms", arm)), f"the experiment `{name}` has no arm `{arm}` any more: its units move"
            )
    for arm in after:
        if arm not in before:
            yield Change(path_of((*path, "arms", arm)), f"the experiment `{name}` has a new arm `{arm}`")
    shares = _fractions(old), _fractions(new)
    if shares[0] != shares[1] or old.holdout != new.holdout:
        yield Change(path_of((*path, "arms")), f"the experiment `{name}`: {_moved(old, new, anew=bool(drawn))}")
    for arm, row in after.items():
        if arm in before:
            yield from differing(
                (*path, "arms", arm), structs.replace(before[arm], share=row.share), row, f"the arm `{arm}` of `{name}`"
            )
    yield from _order((*path, "arms"), f"arms of the experiment `{name}`", list(before), list(after))
    told = {field: getattr(new, field) for field in ("arms", "salt", "unit", "holdout")}
    yield from differing(path, structs.replace(old, **told), new)


def _fractions(experiment: Experiment) -> dict[str, float]:
    """The part of all units that each arm has, the ones held out by no arm's name."""
    inside = 1 - experiment.holdout / 100
    arms: dict[str, float] = {arm.name: inside * arm.share / 100 for arm in experiment.arms}
    return {**arms, "": 1 - inside}


def _moved(old: Experiment, new: Experiment, *, anew: bool) -> str:
    """The shares, and how many units go elsewhere: the total variation distance of old and new, which no assignment
    can fall below."""
    before, after = {arm.name: arm for arm in old.arms}, {arm.name: arm for arm in new.arms}
    shares = {name: (_share(before.get(name)), _share(after.get(name))) for name in {**before, **after}}
    words = [f"{name} {was} → {will}" for name, (was, will) in shares.items() if was != will]
    if old.holdout != new.holdout:
        words.append(f"held out {old.holdout:g} → {new.holdout:g}")
    if anew:
        return ", ".join(words)
    held, holds = _fractions(old), _fractions(new)
    distance = sum(abs(held.get(name, 0) - holds.get(name, 0)) for name in {**held, **holds}) / 2
    return f"{', '.join(words)}: about {100 * distance:.3g} % of the units move"


def _share(arm: Arm | None) -> str:
    return "0" if arm is None else f"{arm.share:g}"


# -- words ---------------------------------------------------------------------------------------------------------


def _finish(running: int) -> str:
    if not running:
        return "no call runs on it"
    return f"{running} call{'s run' if running > 1 else ' runs'} on it and finish{'' if running > 1 else 'es'}"


def _named(path: tuple[str | int, ...], old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[Change]:
    """Keys whose values are not for everybody's eyes."""
    for key in {**old, **new}:
        if key not in new:
            yield Change(path_of((*path, key)), f"`{path_of((*path, key))}` is removed")
        elif key not in old:
            yield Change(path_of((*path, key)), f"`{path_of((*path, key))}` is added")
        elif old[key] != new[key]:
            yield Change(path_of((*path, key)), f"`{path_of((*path, key))}` has another value")


def _order(path: tuple[str | int, ...], what: str, old: list[str], new: list[str]) -> Iterator[Change]:
    """What is in both and stands in another order."""
    before, after = [name for name in old if name in new], [name for name in new if name in old]
    if before != after:
        yield Change(path_of(path), f"the {what} stand in another order: {', '.join(f'`{name}`' for name in new)}")


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _number(count: int) -> str:
    return {1: "one", 2: "two", 3: "three"}.get(count, str(count))


_Told: TypeAlias = Callable[[Config, Config, InUse], Iterator[Change]]
_SECTIONS: Final[dict[str, _Told]] = {
    "store": _store,
    "shared": _shared,
    "providers": _providers,
    "models": _routes,
    "experiments": _experiments,
    "plugins": _plugins,
}
