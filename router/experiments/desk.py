"""Where calls are assigned to arms: one experiment a route, by a hash of the call's unit, without asking anybody."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from msgspec import Struct

from router.call import Call
from router.errors import InvalidRequest, PermissionDenied
from router.experiment import HOLDOUT, Arm, Assigned, Experiment, ExperimentState, Unit
from router.experiments.arms import Change, change_of, reading
from router.experiments.assignment import (
    assigned_arm,
    expected_shares,
    is_held_out,
    is_included,
    shares_in_force,
    unit_hash,
)
from router.nearest import did_you_mean
from router.provider import Target
from router.reader import short

HEADER: Final = "x-deltaway-experiment"
_WHERE: Final[dict[Unit, str]] = {
    "user": "name the user in `user` of the body or in the header `x-deltaway-user`",
    "conversation": "name the conversation in the header `x-deltaway-conversation`",
    "key": "calls have a key only where the plugin `auth` is on; assign by another `unit`",
    "request": "",
}
_PARAMETER: Final[dict[Unit, str | None]] = {
    "user": "user",
    "conversation": "x-deltaway-conversation",
    "key": None,
    "request": None,
}


class Entered(Struct, frozen=True):
    """A call that is in an experiment."""

    call: Call
    """With what its arm changes in the request."""
    target: Target | None
    """Where its arm wants it to go first."""
    assigned: Assigned


class _Plan(Struct, frozen=True):
    """An experiment in one of its states."""

    state: ExperimentState
    shares: dict[str, float]
    told: str


class _Running:
    """One experiment with what its arms change, read once."""

    def __init__(self, experiment: Experiment, changes: Mapping[str, Change | None]) -> None:
        self.experiment = experiment
        self.arms: dict[str, tuple[Arm, Change | None]] = {
            arm.name: (arm, changes[arm.name]) for arm in experiment.arms
        }
        self._plan: _Plan | None = None

    def plan(self, state: ExperimentState) -> _Plan:
        """Made anew only when the state is another."""
        plan = self._plan
        if plan is None or plan.state is not state:
            expected = expected_shares(self.experiment, state)
            held = self.experiment.holdout
            if held:
                expected = {**{name: share * (100 - held) / 100 for name, share in expected.items()}, HOLDOUT: held}
            told = ",".join(f"{name}={share:.12g}" for name, share in expected.items())
            plan = self._plan = _Plan(state, shares_in_force(self.experiment, state), told)
        return plan


class Desk:
    """The experiments of one configuration. `state`: what has become of the one of that name, as far as is known here.

    Parameters of arms have been checked (`check_arms`).
    """

    def __init__(self, experiments: Iterable[Experiment], state: Callable[[str], ExperimentState]) -> None:
        decode = reading()
        self._state = state
        self._by_name = {
            each.name: _Running(each, {arm.name: change_of(arm, decode) for arm in each.arms}) for each in experiments
        }
        self._by_route = {running.experiment.route: running for running in self._by_name.values()}

    def enter(self, call: Call) -> Entered | None:
        """The call as its arm wants it, which its trip notes; None: it goes its route's own way.

        Raises `InvalidRequest` for a unit that the call does not carry and for an arm that is forced and not there,
        `PermissionDenied` for one that is forced by anybody but an admin.
        """
        if call.forced:
            self._check_forced(call)
        running = self._by_route.get(call.request.model)
        if running is None:
            return None
        trip, experiment = call.trip, running.experiment
        assigned = trip.assigned
        if assigned is None:
            assigned = self._assigned(call, running)
            if assigned is None:
                return None
            trip.assigned = assigned
            trip.headers[HEADER] = f"{experiment.name}={assigned.arm}"
        elif assigned.shadow_of is not None or assigned.experiment != experiment.name:
            return None
        found = running.arms.get(assigned.arm)
        if found is None:
            return Entered(call, None, assigned)
        arm, change = found
        return Entered(
            call if change is None else call.with_request(change.applied(call.request)), arm.target, assigned
        )

    def _assigned(self, call: Call, running: _Running) -> Assigned | None:
        experiment, at = running.experiment, call.trip.created_at
        forced = call.forced.get(experiment.name)
        if forced is None and not _is_on(experiment, at):
            return None
        kind = experiment.unit
        carried = _unit(call, kind)
        if not carried and forced is None:
            if experiment.without_unit == "exclude":
                return None
            raise InvalidRequest(
                f"the experiment `{experiment.name}` on `{experiment.route}` assigns by {kind}, and this call has no "
                f"{kind}: {_WHERE[kind]}",
                code="missing_unit",
                param=_PARAMETER[kind],
            )
        unit = unit_hash(experiment.salt, kind, carried or call.id)
        plan = running.plan(self._state(experiment.name))
        if forced is not None:
            return Assigned(experiment.name, forced, unit, kind, forced=True, shares=plan.told)
        if not is_included(experiment, unit, at):
            return None
        if is_held_out(experiment, unit):
            return Assigned(experiment.name, HOLDOUT, unit, kind, shares=plan.told)
        return Assigned(
            experiment.name, assigned_arm(experiment, plan.shares, plan.state, unit), unit, kind, shares=plan.told
        )

    def _check_forced(self, call: Call) -> None:
        trip = call.trip
        principal = trip.principal
        if trip.in_force.keyed and (principal is None or not principal.admin):
            raise PermissionDenied(f"only an admin key may choose an arm: leave the header `{HEADER}` out")
        for name, arm in call.forced.items():
            running = self._by_name.get(name)
            if running is None:
                raise _unknown("experiment", name, self._by_name)
            if arm not in running.arms and arm != HOLDOUT:
                raise _unknown(f"arm of `{name}`:", arm, (*running.arms, HOLDOUT))


def _is_on(experiment: Experiment, at: int) -> bool:
    return (experiment.start is None or at >= experiment.start) and (experiment.end is None or at < experiment.end)


def _unit(call: Call, kind: Unit) -> str | None:
    match kind:
        case "user":
            return call.user
        case "conversation":
            return call.conversation
        case "key":
            return None if call.trip.principal is None else call.trip.principal.key
        case "request":
            return call.id


def _unknown(noun: str, name: str, known: Iterable[str]) -> InvalidRequest:
    names = sorted(known)
    listed = ", ".join(names) or "none"
    return InvalidRequest(
        f"the header `{HEADER}` names an unknown {noun} `{short(name)}`{did_you_mean(name, names)} (known: {listed})",
        param=HEADER,
    )
