from typing import Any

import pytest
from msgspec.structs import replace

from router.call import Call, Credentials, Principal, Terms, new_trip
from router.errors import InvalidRequest, PermissionDenied
from router.experiment import HOLDOUT, SHADOW, Adapt, Arm, Assigned, Experiment, ExperimentState, Ramp
from router.experiments.assignment import arm_of, unit_hash
from router.experiments.desk import Desk
from router.messages import ChatRequest, System, User
from router.provider import Target
from router.quantities import Timeout
from support.dispatching import Free

QWEN = Target("qwen", "qwen-plus")
ARMS = (Arm("control", 50), Arm("qwen", 50, QWEN, {"temperature": 0.2}, "Be short"))
SHARES = {"control": 50.0, "qwen": 50.0}


def an_experiment(**fields: Any) -> Experiment:
    return Experiment(
        **{"name": "trial", "route": "chat", "arms": ARMS, "control": "control", "salt": "pepper", **fields}
    )


class States:
    def __init__(self) -> None:
        self.now = ExperimentState()

    def __call__(self, name: str) -> ExperimentState:
        return self.now


def a_desk(states: States | None = None, **fields: Any) -> Desk:
    return Desk([an_experiment(**fields)], states or States())


def a_call(user: str | None = "ann", *, keyed: bool = True, at: int = 0, model: str = "chat", **fields: Any) -> Call:
    trip = new_trip()
    trip.terms, trip.created_at = Terms("g1", Free(), lambda name: name == "chat", keyed), at
    trip.principal = fields.get("principal")
    request = ChatRequest(model=model, messages=(User("Hi"),), protocol="openai")
    call = Call(id="req_1", request=request, dialect="openai.chat", trip=trip, credentials=Credentials(None), user=user)
    return replace(call, **fields)


def a_user_of(arm: str) -> str:
    return next(name for n in range(1000) if arm_of(SHARES, unit_hash("pepper", "user", name := f"user-{n}")) == arm)


def arm(desk: Desk, call: Call) -> str | None:
    entered = desk.enter(call)
    return None if entered is None else entered.assigned.arm


ADMIN = Principal("dw-admin000", admin=True)


# -- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "words", "param"),
    [
        (
            "user",
            "this call has no user: name the user in `user` of the body or in the header `x-deltaway-user`",
            "user",
        ),
        ("conversation", "in the header `x-deltaway-conversation`", "x-deltaway-conversation"),
        ("key", "calls have a key only where the plugin `auth` is on", None),
    ],
)
def test_a_unit_that_the_call_does_not_carry_is_named(kind: Any, words: str, param: str | None) -> None:
    call = a_call(None)
    with pytest.raises(InvalidRequest) as raised:
        a_desk(unit=kind).enter(call)
    assert f"the experiment `trial` on `chat` assigns by {kind}" in raised.value.message
    assert words in raised.value.message
    assert raised.value.param == param
    assert raised.value.code == "missing_unit"
    assert call.trip.assigned is None


def test_an_empty_user_is_none() -> None:
    with pytest.raises(InvalidRequest, match="this call has no user"):
        a_desk().enter(a_call(""))


def test_where_it_says_so_a_call_without_the_unit_is_left_out() -> None:
    call = a_call(None)
    assert a_desk(without_unit="exclude").enter(call) is None
    assert call.trip.assigned is None
    assert call.trip.headers == {}


@pytest.mark.parametrize("principal", [None, Principal("dw-ab12cd34")], ids=["unknown", "no admin"])
def test_only_an_admin_may_choose_an_arm(principal: Principal | None) -> None:
    with pytest.raises(PermissionDenied, match="only an admin key may choose an arm"):
        a_desk().enter(a_call(principal=principal, forced={"trial": "qwen"}))


def test_that_holds_on_other_routes_too() -> None:
    with pytest.raises(PermissionDenied):
        a_desk().enter(a_call(model="mock/echo", forced={"trial": "qwen"}))


@pytest.mark.parametrize(
    ("forced", "words"),
    [
        ({"trail": "qwen"}, "unknown experiment `trail`: did you mean `trial`? (known: trial)"),
        ({"trial": "qwne"}, "unknown arm of `trial`: `qwne`: did you mean `qwen`? (known: control, holdout, qwen)"),
        ({"trial": "shadow"}, "unknown arm of `trial`: `shadow`"),
    ],
)
def test_what_is_forced_and_not_there_is_named(forced: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        a_desk().enter(a_call(principal=ADMIN, forced=forced))
    assert words in raised.value.message
    assert raised.value.param == "x-deltaway-experiment"


# -- an arm --------------------------------------------------------------------------------------------------------


def test_a_call_gets_what_its_arm_changes_and_says_so() -> None:
    call = a_call(a_user_of("qwen"))
    entered = a_desk().enter(call)
    assert entered is not None
    assert entered.target == QWEN
    assert entered.call.request.sampling.temperature == 0.2
    assert entered.call.request.messages == (System("Be short"), User("Hi"))
    assert entered.call.trip is call.trip
    assert call.trip.headers == {"x-deltaway-experiment": "trial=qwen"}
    assert call.trip.assigned == entered.assigned
    unit = unit_hash("pepper", "user", a_user_of("qwen"))
    assert entered.assigned == Assigned("trial", "qwen", unit, "user", shares="control=50,qwen=50")


def test_an_arm_that_changes_nothing_passes_the_call_on_as_it_is() -> None:
    call = a_call(a_user_of("control"))
    entered = a_desk().enter(call)
    assert entered is not None
    assert entered.call is call
    assert entered.target is None


def test_a_call_of_another_route_is_in_no_experiment() -> None:
    call = a_call(model="mock/echo")
    assert a_desk().enter(call) is None
    assert (call.trip.assigned, call.trip.headers) == (None, {})


def test_a_desk_made_anew_assigns_alike() -> None:
    calls = [a_call(f"user-{number}") for number in range(200)]
    first = [arm(a_desk(), call) for call in calls]
    again = [arm(a_desk(), a_call(f"user-{number}")) for number in range(200)]
    assert first == again
    assert set(first) == {"control", "qwen"}


@pytest.mark.parametrize(
    ("kind", "fields", "value"),
    [
        ("user", {}, "ann"),
        ("conversation", {"conversation": "c1"}, "c1"),
        ("key", {"principal": Principal("dw-ab12cd34")}, "dw-ab12cd34"),
        ("request", {}, "req_1"),
    ],
)
def test_each_unit_is_read_where_it_stands(kind: Any, fields: dict[str, Any], value: str) -> None:
    entered = a_desk(unit=kind).enter(a_call(**fields))
    assert entered is not None
    assert entered.assigned.unit == unit_hash("pepper", kind, value)
    assert entered.assigned.kind == kind


def test_the_keys_own_user_is_the_unit() -> None:
    call = a_call("somebody").with_principal(Principal("dw-ab12cd34", user="bob"))
    entered = a_desk().enter(call)
    assert entered is not None
    assert entered.assigned.unit == unit_hash("pepper", "user", "bob")


def test_a_call_that_comes_again_gets_the_same_arm_whatever_has_become_of_it() -> None:
    states = States()
    desk, call = a_desk(states), a_call(a_user_of("qwen"))
    first = desk.enter(call)
    states.now = ExperimentState(stopped=("qwen",), revision=1)
    again = desk.enter(call)
    assert first is not None
    assert again is not None
    assert (again.assigned, again.target, again.call.request) == (first.assigned, QWEN, first.call.request)


def test_a_shadow_is_in_no_experiment() -> None:
    call = a_call()
    call.trip.assigned = Assigned("trial", SHADOW, "0" * 32, "user", shadow_of="req_0")
    assert a_desk().enter(call) is None


# -- when ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "inside"), [(999, False), (1000, True), (1999, True), (2000, False)])
def test_it_begins_at_its_start_and_is_over_at_its_end(at: int, inside: bool) -> None:
    assert (a_desk(start=1000, end=2000).enter(a_call(at=at)) is not None) == inside


def test_outside_of_its_time_nobody_needs_a_unit() -> None:
    assert a_desk(end=1).enter(a_call(None, at=1)) is None


def test_who_the_ramp_has_not_reached_is_not_in_it_yet() -> None:
    desk = a_desk(start=0, ramp=Ramp(0, Timeout(1)))
    call = a_call(at=0)
    assert desk.enter(call) is None
    assert call.trip.assigned is None
    assert arm(desk, a_call(at=1000)) in ("control", "qwen")


def test_who_is_held_out_goes_the_routes_way_and_is_counted() -> None:
    call = a_call(a_user_of("qwen"))
    entered = a_desk(holdout=100).enter(call)
    assert entered is not None
    assert (entered.call, entered.target, entered.assigned.arm) == (call, None, HOLDOUT)
    assert call.trip.headers == {"x-deltaway-experiment": "trial=holdout"}


# -- what became of it -----------------------------------------------------------------------------------------------


def test_the_units_of_a_stopped_arm_get_control_from_the_next_call_on() -> None:
    states = States()
    desk, user = a_desk(states), a_user_of("qwen")
    assert arm(desk, a_call(user)) == "qwen"
    states.now = ExperimentState(stopped=("qwen",), revision=1)
    entered = desk.enter(a_call(user))
    assert entered is not None
    assert entered.assigned.arm == "control"
    assert entered.target is None
    assert entered.assigned.shares == "control=100,qwen=0"


def test_adapted_shares_are_told_exactly() -> None:
    states = States()
    states.now = ExperimentState(shares={"control": 100 / 3, "qwen": 200 / 3}, revision=1)
    entered = a_desk(states, adapt=Adapt("errors")).enter(a_call())
    assert entered is not None
    assert entered.assigned.shares == "control=33.3333333333,qwen=66.6666666667"


# -- forced --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", ["control", "qwen", HOLDOUT])
def test_an_admin_gets_the_arm_that_was_asked_for(chosen: str) -> None:
    call = a_call(principal=ADMIN, forced={"trial": chosen})
    entered = a_desk().enter(call)
    assert entered is not None
    assert (entered.assigned.arm, entered.assigned.forced) == (chosen, True)
    assert call.trip.headers == {"x-deltaway-experiment": f"trial={chosen}"}


def test_where_no_key_is_needed_anybody_may_choose() -> None:
    assert arm(a_desk(), a_call(keyed=False, forced={"trial": "qwen"})) == "qwen"


def test_a_forced_arm_needs_no_unit_and_no_start_and_is_not_stopped() -> None:
    states = States()
    states.now = ExperimentState(stopped=("qwen",), revision=1)
    call = a_call(None, principal=ADMIN, forced={"trial": "qwen"})
    assert arm(a_desk(states, start=1000, holdout=100), call) == "qwen"


def test_the_shares_of_a_call_tell_of_the_holdout_too() -> None:
    entered = a_desk(holdout=10).enter(a_call())
    assert entered is not None
    assert entered.assigned.shares == "control=45,qwen=45,holdout=10"
