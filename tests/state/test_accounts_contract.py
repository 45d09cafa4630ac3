"""What holds for budgets wherever they are counted."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.accounts import Account, Accounts, AccountsAway, Charge, Hold, Refusal, Standing
from tests.state.backends import Bank, alone, an_account, bank, ledger, machine, memory, postgres, redis

EVERYWHERE = [memory, alone, machine, redis, ledger, postgres]
KEY = an_account()
TEAM = an_account("team", "research", "day")
TAG = an_account("tag", "feature=a/b:c=d", "total", "CNY")
UNIT = 10**9


@pytest.fixture(params=EVERYWHERE)
async def counter(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bank]:
    async with bank(request.param, tmp_path) as found:
        yield found


@pytest.fixture
async def accounts(counter: Bank) -> Accounts:
    return await counter.view("journal-1")


def hold(amount: int, limit: int = 10 * UNIT, account: Account = KEY) -> Hold:
    return Hold(account, limit, amount)


async def standing(accounts: Accounts, account: Account = KEY) -> tuple[int, int]:
    """Spent, and reserved."""
    (found,) = await accounts.standings([account])
    assert found.account == account
    return found.spent, found.reserved


async def test_an_account_begins_with_what_the_ledger_says(counter: Bank, accounts: Accounts) -> None:
    await counter.spent_before(KEY, 3 * UNIT)
    refusal = await accounts.reserve("req_1", [hold(8 * UNIT)])
    assert refusal == Refusal(hold(8 * UNIT), Standing(KEY, 3 * UNIT, 0))
    assert await accounts.reserve("req_1", [hold(7 * UNIT)]) is None
    assert await standing(accounts) == (3 * UNIT, 7 * UNIT)


async def test_one_that_is_only_looked_at_is_opened_too(counter: Bank, accounts: Accounts) -> None:
    await counter.spent_before(TAG, 5)
    assert await accounts.standings([KEY, TAG, TEAM]) == [
        Standing(KEY, 0, 0),
        Standing(TAG, 5, 0),
        Standing(TEAM, 0, 0),
    ]


async def test_what_a_call_reserves_and_spends_is_counted_once(counter: Bank, accounts: Accounts) -> None:
    await accounts.reserve("req_1", [hold(4), hold(5, account=TEAM)])
    await accounts.reserve("req_2", [hold(10)])
    assert await standing(accounts) == (0, 14)
    await counter.settle(accounts, "req_1", {KEY: 3, TEAM: 6})
    assert await standing(accounts) == (3, 10)
    assert await standing(accounts, TEAM) == (6, 0)
    await accounts.settle("req_1", {KEY: 3, TEAM: 6})
    assert await standing(accounts) == (3, 10)
    # nothing was spent
    await accounts.settle("req_2", {})
    assert await standing(accounts) == (3, 0)


async def test_reserving_is_all_or_nothing(accounts: Accounts) -> None:
    refusal = await accounts.reserve("req_1", [hold(4), hold(5, limit=4, account=TEAM), hold(1, account=TAG)])
    assert refusal == Refusal(hold(5, limit=4, account=TEAM), Standing(TEAM, 0, 0))
    assert [await standing(accounts, account) for account in (KEY, TEAM, TAG)] == [(0, 0)] * 3
    await accounts.settle("req_1", {KEY: 1})
    assert await standing(accounts) == (0, 0)


async def test_a_limit_may_be_reached_and_not_passed(accounts: Accounts) -> None:
    assert await accounts.reserve("req_1", [hold(6, limit=10)]) is None
    refusal = await accounts.reserve("req_2", [hold(5, limit=10)])
    assert refusal is not None
    assert refusal.standing == Standing(KEY, 0, 6)
    assert await accounts.reserve("req_2", [hold(4, limit=10)]) is None
    assert await accounts.reserve("req_3", [hold(0, limit=10)]) is None
    assert await accounts.reserve("req_4", [hold(1, limit=10)]) is not None


async def test_a_call_may_reserve_more_as_it_goes_on(counter: Bank, accounts: Accounts) -> None:
    for _ in range(3):
        assert await accounts.reserve("req_1", [hold(3, limit=10), hold(1, account=TEAM)]) is None
    # what it holds itself counts as well
    assert (await accounts.reserve("req_1", [hold(2, limit=10)])) == Refusal(hold(2, limit=10), Standing(KEY, 0, 9))
    assert await standing(accounts) == (0, 9)
    assert await standing(accounts, TEAM) == (0, 3)
    await counter.settle(accounts, "req_1", {KEY: 7})
    assert await standing(accounts) == (7, 0)
    assert await standing(accounts, TEAM) == (0, 0)


async def test_two_holds_of_one_account_add_up(accounts: Accounts) -> None:
    twice = [hold(6, limit=20), hold(6, limit=11)]
    assert await accounts.reserve("req_1", twice) == Refusal(twice[1], Standing(KEY, 0, 0))
    assert await accounts.reserve("req_1", [hold(6, limit=20), hold(5, limit=11)]) is None
    assert await standing(accounts) == (0, 11)


async def test_a_charge_may_be_larger_than_the_hold_and_of_an_account_that_is_not_held(
    counter: Bank, accounts: Accounts
) -> None:
    await accounts.standings([TEAM])
    await accounts.reserve("req_1", [hold(4, limit=10)])
    await counter.settle(accounts, "req_1", {KEY: 14, TEAM: 2})
    assert await standing(accounts) == (14, 0)
    assert await standing(accounts, TEAM) == (2, 0)
    assert await accounts.reserve("req_2", [hold(0, limit=10)]) == Refusal(hold(0, limit=10), Standing(KEY, 14, 0))


async def test_a_call_that_holds_nothing_settles_nothing(accounts: Accounts) -> None:
    await accounts.reserve("req_1", [hold(4)])
    await accounts.settle("req_2", {KEY: 5})
    assert await accounts.reserve("req_3", []) is None
    await accounts.settle("req_3", {KEY: 5})
    assert await standing(accounts) == (0, 4)


# -- what comes late -------------------------------------------------------------------------------------------------


def ended(counter: Bank, *costs: tuple[Account, int]) -> list[Charge]:
    """An attempt ends now, which has cost that; some time passes before and after."""
    counter.clock.advance(1)
    charges = [Charge(account, nano, int(counter.clock() * 1000)) for account, nano in costs]
    counter.clock.advance(1)
    return charges


async def test_a_call_that_holds_nothing_is_charged_once_on_accounts_that_were_opened_before_it_ended(
    counter: Bank, accounts: Accounts
) -> None:
    await counter.spent_before(KEY, 3)
    assert await standing(accounts) == (3, 0)
    late = ended(counter, (KEY, 5), (TAG, 7))
    await counter.settle(accounts, "req_1", {}, late)
    assert await standing(accounts) == (8, 0)
    # the other one is opened now, and the ledger tells
    assert await standing(accounts, TAG) == (7, 0)
    for view in (accounts, await counter.view("journal-2")):
        await view.settle("req_1", {}, late)
        await view.settle("req_1", {})
        assert [await standing(view, account) for account in (KEY, TAG)] == [(8, 0), (7, 0)]


async def test_an_account_that_was_opened_between_a_calls_end_and_its_settlement_knows_it(
    counter: Bank, accounts: Accounts
) -> None:
    late = ended(counter, (KEY, 5))
    await counter.spent_before(KEY, 5)
    assert await standing(accounts) == (5, 0)
    if counter.store is None:
        await accounts.settle("req_1", {}, late)
    assert await standing(accounts) == (5, 0)


async def test_of_a_call_that_was_tried_twice_only_the_try_after_the_opening_is_charged(
    counter: Bank, accounts: Accounts
) -> None:
    first = ended(counter, (KEY, 5))
    if counter.store is None:
        # the ledger itself is shown all of it in the end
        await counter.spent_before(KEY, 5)
        assert await standing(accounts) == (5, 0)
    second = ended(counter, (KEY, 20))
    await counter.settle(accounts, "req_1", {}, [*first, *second])
    assert await standing(accounts) == (25, 0)


async def test_what_a_call_holds_and_what_it_does_not_are_charged_together(counter: Bank, accounts: Accounts) -> None:
    await accounts.standings([TAG])
    await accounts.reserve("req_1", [hold(10)])
    late = ended(counter, (TAG, 4), (TEAM, 6))
    await counter.settle(accounts, "req_1", {KEY: 5}, late)
    for _ in range(2):
        assert [await standing(accounts, account) for account in (KEY, TAG, TEAM)] == [(5, 0), (4, 0), (6, 0)]
        await accounts.settle("req_1", {KEY: 5}, late)
    assert await accounts.held_by("journal-1") == []


async def test_a_reservation_that_nobody_heard_of_is_charged_whenever_its_account_was_opened(
    counter: Bank, accounts: Accounts
) -> None:
    late = ended(counter, (KEY, 5))
    # it came after all, and the ledger was asked when the attempt had ended by another's clock
    await accounts.reserve("req_1", [hold(10)])
    await counter.settle(accounts, "req_1", {}, late)
    await accounts.settle("req_1", {}, late)
    assert await standing(accounts) == (5, 0)


async def test_the_budget_that_was_set_while_calls_ran_refuses_when_they_have_spent_it(
    counter: Bank, accounts: Accounts
) -> None:
    other = await counter.view("journal-2")
    await accounts.reserve("req_1", [hold(5, account=TEAM)])
    assert await accounts.reserve("req_new", [hold(1, limit=10)]) is None
    await counter.settle(accounts, "req_new", {KEY: 1})
    for number, view in enumerate((accounts, other)):
        await counter.settle(view, f"req_{number + 1}", {TEAM: 5} if number == 0 else {}, ended(counter, (KEY, 5)))
    refusal = await other.reserve("req_3", [hold(1, limit=10)])
    assert refusal == Refusal(hold(1, limit=10), Standing(KEY, 11, 0))


async def test_what_is_held_for_too_long_counts_no_longer_and_can_still_be_charged(
    counter: Bank, accounts: Accounts
) -> None:
    await accounts.reserve("req_1", [hold(4)])
    counter.clock.advance(3000)
    await accounts.reserve("req_2", [hold(5)])
    counter.clock.advance(700)
    assert await standing(accounts) == (0, 5)
    # one that lives on counts again, with what it reserves from now on
    await accounts.reserve("req_1", [hold(2)])
    assert await standing(accounts) == (0, 7)
    counter.clock.advance(3650)
    assert await standing(accounts) == (0, 0)
    assert {call_id for call_id, _ in await accounts.held_by("journal-1")} == {"req_1", "req_2"}
    await counter.settle(accounts, "req_1", {KEY: 3})
    await counter.settle(accounts, "req_2", {KEY: 6})
    assert await standing(accounts) == (9, 0)


async def test_what_a_process_left_can_be_found_and_settled_by_another(counter: Bank, accounts: Accounts) -> None:
    other = await counter.view("journal-2")
    await accounts.reserve("req_1", [hold(4), hold(5, account=TAG)])
    await accounts.reserve("req_2", [hold(4)])
    await accounts.settle("req_2", {})
    if counter.shared:
        await other.reserve("req_3", [hold(1, account=TEAM)])
        assert await accounts.held_by("journal-2") == [("req_3", (TEAM,))]
    ((call_id, held),) = await other.held_by("journal-1")
    assert (call_id, set(held)) == ("req_1", {KEY, TAG})
    assert await other.held_by("journal-0") == []
    await counter.settle(other, "req_1", {KEY: 3, TAG: 0})
    assert await accounts.held_by("journal-1") == []
    assert await standing(accounts) == (3, 0)
    assert await standing(accounts, TAG) == (0, 0)


async def test_amounts_beyond_64_bits_are_exact(counter: Bank, accounts: Accounts) -> None:
    limit, much = 10**21, 4 * 10**18 + 1
    for index in range(5):
        assert await accounts.reserve(f"req_{index}", [hold(much + index, limit)]) is None
        await counter.settle(accounts, f"req_{index}", {KEY: much + index})
    assert await standing(accounts) == (5 * much + 10, 0)
    near = 5 * much + 10 + 7
    assert await accounts.reserve("req_x", [hold(8, near)]) == Refusal(hold(8, near), Standing(KEY, near - 7, 0))
    assert await accounts.reserve("req_x", [hold(7, near)]) is None


async def test_the_ledger_is_asked_once_by_many_who_come_at_once(counter: Bank, accounts: Accounts) -> None:
    await counter.spent_before(KEY, 5)
    await asyncio.gather(*(accounts.reserve(f"req_{n}", [hold(1)]) for n in range(20)))
    assert await standing(accounts) == (5, 20)
    assert counter.asked in ([KEY], [])


async def test_a_ledger_that_cannot_be_asked_is_asked_again(counter: Bank, accounts: Accounts) -> None:
    if counter.store is not None:
        await counter.store.close()
        with pytest.raises(AccountsAway):
            await accounts.reserve("req_1", [hold(1)])
        await counter.store.open()
    else:
        answer, told = counter.told, "the store is away"

        class Away(dict[Account, int]):
            def get(self, *_: object) -> Any:
                raise AccountsAway(told)

        counter.told = Away()
        with pytest.raises(AccountsAway, match=told):
            await accounts.reserve("req_1", [hold(1)])
        counter.told = answer
    await counter.spent_before(KEY, 5)
    await accounts.reserve("req_1", [hold(1)])
    assert await standing(accounts) == (5, 1)


async def test_a_hundred_at_once_get_what_there_is_and_no_more(counter: Bank) -> None:
    views = [await counter.view(f"journal-{n % (4 if counter.shared else 1)}") for n in range(4)]
    await counter.spent_before(KEY, 3)
    wanted = [hold(10, limit=103), hold(1, account=TEAM), hold(1, account=TAG)]
    answers = await asyncio.gather(*(views[n % 4].reserve(f"req_{n}", wanted) for n in range(100)))
    passed = [n for n, answer in enumerate(answers) if answer is None]
    assert len(passed) == 10
    assert await standing(views[0]) == (3, 100)
    await asyncio.gather(*(counter.settle(views[n % 4], f"req_{n}", {KEY: 7}) for n in passed))
    assert await standing(views[1]) == (73, 0)
    assert await standing(views[2], TEAM) == (0, 0)


# -- against a model -------------------------------------------------------------------------------------------------

NAMES = {"k": KEY, "t": TEAM, "g": TAG}
RESERVE = st.tuples(
    st.just("reserve"),
    st.integers(0, 4),
    st.lists(st.tuples(st.sampled_from("ktg"), st.integers(0, 12), st.integers(0, 30)), min_size=1, max_size=4),
)
SETTLE = st.tuples(st.just("settle"), st.integers(0, 4), st.dictionaries(st.sampled_from("ktg"), st.integers(0, 12)))
ADVANCE = st.tuples(st.just("advance"), st.integers(1, 12), st.none())


class Model:
    """Budgets as simple as they can be said."""

    def __init__(self) -> None:
        self.now = 0
        self.spent = dict.fromkeys("ktg", 0)
        self.held: dict[int, dict[str, int]] = {}
        self.until: dict[int, int] = {}

    def reserved(self, name: str) -> int:
        return sum(held.get(name, 0) for call, held in self.held.items() if self.until[call] > self.now)

    def reserve(self, call: int, holds: list[tuple[str, int, int]]) -> int | None:
        """Which hold is refused."""
        wanted = dict.fromkeys("ktg", 0)
        for index, (name, amount, limit) in enumerate(holds):
            wanted[name] += amount
            if self.spent[name] + self.reserved(name) + wanted[name] > limit:
                return index
        if call in self.held and self.until[call] <= self.now:
            self.held[call] = dict.fromkeys(self.held[call], 0)
        held = self.held.setdefault(call, {})
        for name, amount, _ in holds:
            held[name] = held.get(name, 0) + amount
        self.until[call] = self.now + 20
        return None

    def settle(self, call: int, charges: dict[str, int]) -> bool:
        if self.held.pop(call, None) is None:
            return False
        for name, amount in charges.items():
            self.spent[name] += amount
        return True


STEPS = st.lists(st.one_of(RESERVE, RESERVE, SETTLE, ADVANCE), max_size=25)
AS_A_MODEL = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("backend", [memory, alone, machine, redis])
@given(steps=STEPS)
@AS_A_MODEL
async def test_every_sum_is_that_of_the_model(
    backend: str, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, Any]]
) -> None:
    await compare(backend, tmp_path_factory.mktemp("bank"), steps)


@pytest.mark.parametrize("backend", [ledger, postgres])
@given(steps=STEPS)
@settings(AS_A_MODEL, max_examples=8)
async def test_every_sum_of_the_ledger_is_that_of_the_model(
    backend: str, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, Any]]
) -> None:
    await compare(backend, tmp_path_factory.mktemp("bank"), steps)


async def compare(backend: str, directory: Path, steps: list[tuple[str, int, Any]]) -> None:
    async with bank(backend, directory, expiry=20) as counter:
        model, views = Model(), [await counter.view("journal-1"), await counter.view("journal-2")]
        generation = dict.fromkeys(range(5), 0)
        for index, (step, number, what) in enumerate(steps):
            accounts = views[index % 2]
            # an id is used for one call
            call_id = f"req_{number}_{generation.get(number, 0)}"
            if step == "advance":
                counter.clock.advance(number)
                model.now += number
            elif step == "reserve":
                holds = [Hold(NAMES[name], limit, amount) for name, amount, limit in what]
                refusal, refused = await accounts.reserve(call_id, holds), model.reserve(number, what)
                assert (None if refusal is None else refusal.hold) == (None if refused is None else holds[refused])
            else:
                charges = {NAMES[name]: amount for name, amount in what.items()}
                if model.settle(number, what):
                    await counter.settle(accounts, call_id, charges)
                    generation[number] += 1
                else:
                    await accounts.settle(call_id, charges)
            for name, account in NAMES.items():
                assert await standing(accounts, account) == (model.spent[name], model.reserved(name)), (name, index)
