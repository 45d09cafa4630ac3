"""Reads `experiments`: what it takes several places of the file to see, such as shares that do not make 100."""

import math
import re
from collections.abc import Collection, Iterable
from typing import Final

from router.config_routes import RouteReader
from router.document import Mapping, Node, Scalar
from router.experiment import HOLDOUT, OWN_METRICS, SHADOW, Arm, Experiment, ExperimentEntry, Shadow
from router.nearest import did_you_mean
from router.provider import Target
from router.reader import Path, Reader, Unreadable, find, short, written

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAMES: Final = "use up to 64 letters, digits and `.`, `_`, `-` inside"


class ExperimentReader:
    """`routes`: the names of the routes in the file."""

    def __init__(self, reader: Reader, targets: RouteReader, routes: Collection[str]) -> None:
        self._reader = reader
        self._targets = targets
        self._routes = routes

    def experiments(self, node: Node) -> dict[str, Experiment]:
        found: dict[str, Experiment] = {}
        for name, entry in self._reader.mapping(node, ("experiments",)).entries.items():
            path: Path = ("experiments", name)
            if not _NAME.fullmatch(name):
                self._reader.report(entry.place, f"`{short(name)}` cannot name an experiment: {_NAMES}")
            targets = self._arm_targets(entry.node, path)
            shadow_target = self._target(entry.node, (*path, "shadow", "target"))
            try:
                read = self._reader.read(entry.node, ExperimentEntry, path)
            except Unreadable:
                continue
            other = next((each for each in found.values() if each.route == read.route), None)
            if other is not None:
                words = (
                    f"the route `{read.route}` is in the experiment `{other.name}` already: one experiment a route, "
                    "so that neither spoils the other"
                )
                self._note(entry.node, (*path, "route"), words)
            self._check(entry.node, read, path)
            shadow = read.shadow
            found[name] = Experiment(
                name=name,
                route=read.route,
                unit=read.unit,
                arms=tuple(
                    Arm(arm, each.share, targets.get(arm), each.parameters, each.system)
                    for arm, each in read.arms.items()
                ),
                control=read.control or next(iter(read.arms), ""),
                without_unit=read.without_unit,
                salt=name if read.salt is None else read.salt,
                start=read.start,
                end=read.end,
                ramp=read.ramp,
                holdout=read.holdout,
                shadow=None
                if shadow is None or shadow_target is None
                else Shadow(shadow_target, shadow.share, shadow.budget, shadow.parallel),
                metrics=read.metrics,
                guardrails=read.guardrails,
                guard_every=float(read.guard_every),
                adapt=read.adapt,
            )
        return found

    def _arm_targets(self, node: Node, path: Path) -> dict[str, Target | None]:
        arms, _ = find(node, ("arms",))
        names = arms.entries if isinstance(arms, Mapping) else {}
        return {name: self._target(node, (*path, "arms", name, "target")) for name in names}

    def _target(self, node: Node, path: Path) -> Target | None:
        inner, _ = find(node, path[2:])
        if isinstance(inner, Scalar) and isinstance(inner.value, str):
            return self._targets.target(inner, inner.value, path)
        return None

    def _check(self, node: Node, read: ExperimentEntry, path: Path) -> None:
        self._known(node, (*path, "route"), "route", read.route, self._routes)
        total = math.fsum(arm.share for arm in read.arms.values())
        if not read.arms:
            self._note(node, (*path, "arms"), f"{written((*path, 'arms'))} is empty: write two arms or more")
        elif not math.isclose(total, 100, abs_tol=1e-9):
            words = f"the shares of {written((*path, 'arms'))} make {total:g}, not 100"
            self._note(node, (*path, "arms"), words)
        for arm in read.arms:
            if arm in (SHADOW, HOLDOUT) or not _NAME.fullmatch(arm):
                why = "that name has a meaning of its own" if arm in (SHADOW, HOLDOUT) else _NAMES
                self._note(node, (*path, "arms", arm), f"`{short(arm)}` cannot name an arm: {why}")
        if read.control is not None:
            self._known(node, (*path, "control"), "arm", read.control, read.arms)
        for name in read.metrics:
            if name in OWN_METRICS:
                words = f"`{name}` is measured of every call by itself: give this metric another name"
                self._note(node, (*path, "metrics", name), words)
            elif not _NAME.fullmatch(name):
                self._note(node, (*path, "metrics", name), f"`{short(name)}` cannot name a metric: {_NAMES}")
        for index, guardrail in enumerate(read.guardrails):
            measured = [*OWN_METRICS, *read.metrics]
            self._known(node, (*path, "guardrails", index, "metric"), "metric", guardrail.metric, measured)
        if read.adapt is not None:
            self._known(node, (*path, "adapt", "metric"), "metric", read.adapt.metric, [*OWN_METRICS, *read.metrics])
            if read.adapt.floor * len(read.arms) > 100:
                words = f"{len(read.arms)} arms cannot all have {read.adapt.floor:g} per cent"
                self._note(node, (*path, "adapt", "floor"), words)
        if read.ramp is not None and read.start is None:
            self._note(node, (*path, "ramp"), f"{written((*path, 'ramp'))} needs `start`, from which on it grows")
        if read.start is not None and read.end is not None and read.end <= read.start:
            self._note(node, (*path, "end"), f"{written((*path, 'end'))} is not after `start`")

    def _known(self, node: Node, path: Path, noun: str, name: str, known: Iterable[str]) -> None:
        words = sorted(known)
        if name not in words:
            listed = ", ".join(words) or "none"
            shown = f"unknown {noun} `{short(name)}`{did_you_mean(name, words)} (known: {listed})"
            self._note(node, path, shown)

    def _note(self, node: Node, path: Path, message: str) -> None:
        """A problem at the node that `path` leads to, whose first two steps lead to the experiment."""
        _, place = find(node, path[2:])
        self._reader.report(place or node.place, message)
