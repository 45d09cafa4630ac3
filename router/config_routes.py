"""Reads `models`: routes and their targets, as far as it takes the names of the providers to see what is wrong."""

import re
from collections.abc import Collection, Iterable
from typing import get_args

from router.document import Mapping, Node, Scalar, Sequence
from router.nearest import did_you_mean
from router.provider import Target
from router.reader import Path, Reader, Unreadable, find, short, written
from router.route import FallbackClass, Retry, RetryEntry, Route, RouteEntry, RouteTarget, TargetEntry


class RouteReader:
    """`providers`: the names of the rows in the file. Problems are noted in the reader."""

    def __init__(self, reader: Reader, providers: Collection[str]) -> None:
        self._reader = reader
        self._providers = providers

    def routes(self, node: Node) -> dict[str, Route]:
        found: dict[str, Route] = {}
        for name, entry in self._reader.mapping(node, ("models",)).entries.items():
            path: Path = ("models", name)
            if not re.fullmatch(r"[\x21-\x7e]+", name):
                self._reader.report(
                    entry.place, f"`{short(name)}` cannot name a route: use printable ASCII without white space"
                )
            targets = self._list(entry.node, (*path, "targets"))
            fallback = {kind: self._list(entry.node, (*path, "fallback", kind)) for kind in get_args(FallbackClass)}
            try:
                route = self._reader.read(entry.node, RouteEntry, path)
            except Unreadable:
                continue
            read = _read(targets, route.targets)
            self._without_effect(entry.node, path, route)
            if route.balance == "weighted" and read and not any(each.weight for each in read):
                self._reader.report(entry.place, f"{written(path)}: all weights are 0, so no target would be chosen")
            found[name] = Route(
                name,
                read,
                route.balance,
                _retry(route.retry, len(read)),
                {kind: _read(listed, getattr(route.fallback, kind)) for kind, listed in fallback.items() if listed},
                route.hedge,
                route.continuation,
                route.timeouts,
                route.on_disconnect,
                route.context,
            )
        return found

    def _without_effect(self, node: Node, path: Path, route: RouteEntry) -> None:
        """Note what is written and would do nothing: whoever wrote it counts on it."""
        if route.balance != "weighted":
            for steps in (("targets",), *(("fallback", kind) for kind in get_args(FallbackClass))):
                listed, _ = find(node, steps)
                for index, item in enumerate(listed.items if isinstance(listed, Sequence) else ()):
                    weight, _ = find(item, ("weight",)) if isinstance(item, Mapping) else (None, None)
                    if weight is not None:
                        self._nothing(
                            weight,
                            (*path, *steps, index, "weight"),
                            f"means nothing with `balance: {route.balance}`: write `balance: weighted`, or remove it",
                        )
        hedge, (written_, _), attempts = route.hedge, find(node, ("hedge",)), find(node, ("retry", "attempts"))[0]
        if hedge is None or written_ is None:
            return
        share, after = find(written_, ("share",))[0], find(written_, ("after",))[0]
        if len(route.targets) < 2:
            self._nothing(written_, (*path, "hedge"), "needs a second target to ask: list one, or remove `hedge`")
        if not hedge.share:
            self._nothing(
                share or written_, (*path, "hedge", "share"), "is 0%, so that no call is hedged: remove `hedge`"
            )
        if route.retry.attempts == 1:
            words = "is 1, so that no call is hedged, which takes a second attempt: write 2, or remove `hedge`"
            self._nothing(attempts or written_, (*path, "retry", "attempts"), words)
        for name in ("first_token", "total"):
            limit = None if route.timeouts is None else getattr(route.timeouts, name)
            if limit is not None and hedge.after >= limit:
                words = f"is not shorter than `timeouts.{name}`, which ends the attempt before it"
                self._nothing(after or written_, (*path, "hedge", "after"), words)
                break

    def _nothing(self, node: Node, path: Path, words: str) -> None:
        self._reader.report(node.place, f"{written(path)} {words}")

    def _list(self, route: Node, path: Path) -> list[Target | None]:
        """The targets in the list at `path`, whose first two steps lead to the route; None for one that is wrong. What
        is not written as a target at all is the reader's to report."""
        node, _ = find(route, path[2:])
        if not isinstance(node, Sequence):
            return []
        if not node.items:
            self._reader.report(node.place, f"{written(path)} is empty: list a target, provider/model")
        found: list[Target | None] = []
        for index, item in enumerate(node.items):
            inner, _ = find(item, ("target",)) if isinstance(item, Mapping) else (item, None)
            target = None
            if isinstance(inner, Scalar) and isinstance(inner.value, str):
                target = self.target(inner, inner.value, (*path, index))
                if target is not None and target in found:
                    self._reader.report(inner.place, f"{written((*path, index))} is in the list twice")
            found.append(target)
        return found

    def target(self, node: Scalar, text: str, path: Path) -> Target | None:
        """The text as a target; None, with a problem noted, when it is none or its provider is not there."""
        provider, slash, model = text.partition("/")
        shown = f" `{short(text)}`" if not node.names else ""
        names = self._providers
        if not slash or not provider or not re.fullmatch(r"[\x21-\x7e]+", model):
            hint = f": write `{provider}/` and the model's name" if provider in names and not node.names else ""
            self._reader.report(node.place, f"{written(path)}{shown} is not a target, which is provider/model{hint}")
            return None
        if provider not in names:
            known = f"(providers here: {', '.join(map(short, sorted(names))) or 'none'})"
            unknown = f" `{short(provider)}`" if not node.names else ""
            self._reader.report(node.place, f"unknown provider{unknown}{did_you_mean(provider, names)} {known}")
            return None
        return Target(provider, model)


def _read(targets: Iterable[Target | None], entries: Iterable[str | TargetEntry]) -> tuple[RouteTarget, ...]:
    """The targets of a list with what its entries say of each; those that are wrong are left out."""
    read: list[RouteTarget] = []
    for target, entry in zip(targets, entries, strict=False):
        each = TargetEntry(entry) if isinstance(entry, str) else entry
        if target is not None:
            read.append(RouteTarget(target, each.weight, each.region, each.max_parallel, each.when, each.can))
    return tuple(read)


def _retry(written_: RetryEntry, targets: int) -> Retry:
    attempts = max(Retry().attempts, targets) if written_.attempts is None else written_.attempts
    return Retry(min(attempts, 20), written_.backoff, written_.max_wait, written_.budget, written_.reserve)
