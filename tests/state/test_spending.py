"""What the ledger says was spent, and what it counts while it stands in for the shared state."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec import structs

from router.accounts import Account, Hold, Standing, account
from router.ledger.rows import AttemptRow, Batch, Labels, Opened, Progress, Settled
from router.state.holding import EXPIRY, KEPT
from router.state.ledger_accounts import LedgerAccounts
from router.store.ledger import bring_in
from router.store.spending import Spent, cost_of_calls, spent
from router.store.store import Store
from support.stores import BACKENDS, empty_store
from tests.state.backends import Clock, an_account, record, same_currency

DAY = 86_400_000
NOON = 1_794_830_400_000
"""2026-11-16 12:00 UTC, in milliseconds."""


@pytest.fixture(params=BACKENDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with empty_store(request.param, tmp_path) as store:
        yield store


async def attempts(store: Store, *rows: tuple[Labels, int, int | None, str | None]) -> None:
    """One attempt each, of a call of its own: labels, when it began, what it cost."""
    batch = Batch("journal-1")
    for index, (labels, at, nano, currency) in enumerate(rows):
        row = AttemptRow(
            *(f"req_{at}_{index}", 1, at, labels, "mock", "echo", "journal-1"),
            settled_at=at,
            outcome="finished",
            cost=nano,
            currency=currency,
        )
        batch.add(index + 1, Settled(row))
    await bring_in(store, batch, NOON)


async def told(store: Store, kind: str, subject: str, per: str = "month", currency: str = "USD") -> int:
    found = await spent(store, an_account(kind, subject, per, currency), same_currency)
    assert found.unconverted == ()
    return found.nano


async def test_what_a_running_call_has_written_down_counts_when_it_has_ended(store: Store) -> None:
    row = AttemptRow("req_1", 1, NOON, Labels("m", key="dw-a"), "mock", "echo", "journal-1", cost=7, currency="USD")
    batch = Batch("journal-1")
    batch.add(1, Progress(row))
    await bring_in(store, batch, NOON)
    assert await told(store, "key", "dw-a") == 0
    batch.add(2, Settled(structs.replace(row, settled_at=NOON, outcome="interrupted")))
    await bring_in(store, batch, NOON)
    assert await told(store, "key", "dw-a") == 7


async def test_an_experiment_has_spent_what_it_repeated_in_the_background(store: Store) -> None:
    shadow, control = (Labels("m", experiment="trial", arm=arm) for arm in ("shadow", "control"))
    other = Labels("m", experiment="other", arm="shadow")
    await attempts(store, (shadow, NOON, 5, "USD"), (control, NOON, 7, "USD"), (other, NOON, 9, "USD"))
    assert await told(store, "experiment", "trial", "total") == 5


async def test_each_subject_is_asked_by_its_own_column(store: Store) -> None:
    a = Labels("m", key="dw-a", user="ada", team="red", tags={"team": "blue", "x": "1"})
    b = Labels("m", key="dw-b", user="ada", team="blue", tags={"x": "2"})
    await attempts(store, (a, NOON, 1, "USD"), (b, NOON, 10, "USD"), (a, NOON + 1, 100, "USD"), (b, NOON, None, None))
    assert await told(store, "key", "dw-a") == 101
    assert await told(store, "user", "ada") == 111
    assert await told(store, "team", "blue") == 10
    assert await told(store, "tag", "team=blue") == 101
    assert await told(store, "tag", "x=2") == 10
    assert await told(store, "user", "dw-a") == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [('a"b', "c"), ("$.a", "=b="), ("ü 名", "'"), ("a.b[0]", "{}"), ("a%_", "%"), ("", ""), ("back\\slash", '"')],
)
async def test_a_tag_may_be_any_text(store: Store, name: str, value: str) -> None:
    await attempts(
        store,
        (Labels("m", tags={name: value, "other": "1"}), NOON, 5, "USD"),
        (Labels("m", tags={name: f"{value}!"}), NOON, 7, "USD"),
        (Labels("m", tags={"other": value}), NOON, 9, "USD"),
    )
    assert await told(store, "tag", f"{name}={value}") == 5


async def test_a_period_holds_what_began_in_it(store: Store) -> None:
    key = Labels("m", key="dw-a")
    midnight, month = NOON - DAY // 2, NOON - DAY // 2 - 15 * DAY
    begun = [midnight - 1, midnight, midnight + DAY - 1, midnight + DAY, month - 1, month]
    await attempts(store, *((key, at, 10**index, "USD") for index, at in enumerate(begun)))
    assert await told(store, "key", "dw-a", "day") == 110
    assert await told(store, "key", "dw-a", "month") == 101_111
    assert await told(store, "key", "dw-a", "total") == 111_111


async def test_other_currencies_count_at_the_rate_of_their_day(store: Store) -> None:
    key = Labels("m", key="dw-a")
    rows = [(key, NOON - DAY, 70, "CNY"), (key, NOON, 80, "CNY"), (key, NOON + 5, 80, "CNY"), (key, NOON, 5, "USD")]
    await attempts(store, *rows, (key, NOON, 9, "EUR"))
    asked: list[tuple[int, str, str, int]] = []

    def convert(nano: int, currency: str, to: str, at: int) -> int | None:
        asked.append((nano, currency, to, at))
        return None if currency == "EUR" else nano // (7 if at < NOON - DAY // 2 else 8)

    assert await spent(store, an_account("key", "dw-a"), convert) == Spent(10 + 20 + 5, ("EUR",))
    midnight = NOON - DAY // 2
    assert sorted(asked) == [
        (9, "EUR", "USD", midnight),
        (70, "CNY", "USD", midnight - DAY),
        (160, "CNY", "USD", midnight),
    ]


async def test_the_sum_may_be_more_than_64_bits(store: Store) -> None:
    key = Labels("m", key="dw-a")
    await attempts(store, *((key, NOON + n, 2**62 + n, "VND") for n in range(5)))
    assert await told(store, "key", "dw-a", currency="VND") == 5 * 2**62 + 10


async def test_costs_are_given_by_call(store: Store) -> None:
    labels = Labels("m")
    batch = Batch("journal-1")

    def row(call: str, n: int, nano: int | None, currency: str | None) -> AttemptRow:
        return AttemptRow(call, n, NOON + n, labels, "mock", "echo", "journal-1", cost=nano, currency=currency)

    rows = [
        row("req_a", 1, 5, "USD"),
        row("req_a", 2, 7, "CNY"),
        row("req_b", 1, None, None),
        row("req_c", 1, 0, "USD"),
    ]
    for position, each in enumerate(rows, 1):
        batch.add(position, Opened(each))
    await bring_in(store, batch, NOON)
    many = [f"req_{n}" for n in range(1200)]
    assert await cost_of_calls(store, [*many, "req_a", "req_b", "req_c"]) == {
        "req_a": [(NOON + 1, "USD", 5), (NOON + 2, "CNY", 7)],
        "req_c": [(NOON + 1, "USD", 0)],
    }
    assert await cost_of_calls(store, []) == {}


# -- standing in -------------------------------------------------------------------------------------------------------


def accounts_on(store: Store, clock: Clock) -> LedgerAccounts:
    return LedgerAccounts(store, same_currency, "journal-1", clock)


async def test_a_charge_counts_until_the_rows_are_there_and_then_once(store: Store) -> None:
    clock, key = Clock(), an_account()
    accounts = accounts_on(store, clock)
    await accounts.reserve("req_1", [Hold(key, 100, 50)])
    await accounts.settle("req_1", {key: 30})
    # the call has ended, and its rows are on their way
    assert await accounts.standings([key]) == [Standing(key, 0, 30)]
    assert await accounts.held_by("journal-1") == []
    await record(store, "req_1", {key: 30}, int(clock() * 1000))
    assert await accounts.standings([key]) == [Standing(key, 30, 0)]
    # rows that never come are not waited for
    await accounts.reserve("req_2", [Hold(key, 100, 50)])
    await accounts.settle("req_2", {key: 40})
    assert await accounts.standings([key]) == [Standing(key, 30, 40)]
    clock.advance(61)
    assert await accounts.standings([key]) == [Standing(key, 30, 0)]


async def test_what_a_running_call_was_charged_so_far_is_not_counted_twice_for_long(store: Store) -> None:
    clock, key = Clock(), an_account()
    accounts = accounts_on(store, clock)
    await accounts.reserve("req_1", [Hold(key, 100, 50)])
    # its first attempt failed and cost something: until the call ends, both count
    await record(store, "req_1", {key: 10}, int(clock() * 1000), ended=False)
    assert await accounts.standings([key]) == [Standing(key, 10, 50)]
    await accounts.settle("req_1", {})
    assert await accounts.standings([key]) == [Standing(key, 10, 0)]


@pytest.mark.parametrize("per", ["day", "month", "total"])
async def test_older_rows_are_added_up_once_and_newer_ones_every_time(store: Store, per: str) -> None:
    clock = Clock()
    now = int(clock() * 1000)
    key: Account = account("key", "dw-a", per, "USD", now)  # type: ignore[arg-type]
    labels = Labels("m", key="dw-a")
    # long ago, an hour, some minutes and a moment ago; and in a day that is not yet
    await attempts(
        store, *((labels, now - ago, nano, "USD") for ago, nano in ((3_600_000, 1), (300_000, 10), (1, 100)))
    )
    accounts = accounts_on(store, clock)
    assert await accounts.standings([key]) == [Standing(key, 111, 0)]
    await attempts(store, (labels, now + 5, 1000, "USD"))
    clock.advance(1)
    assert await accounts.standings([key]) == [Standing(key, 1111, 0)]
    # an attempt that took very long
    await attempts(store, (labels, now - 3_600_000 + 7, 10_000, "USD"))
    clock.advance(400)
    assert await accounts.standings([key]) == [Standing(key, 11_111, 0)]


async def test_a_period_that_is_over_is_added_up_to_its_end(store: Store) -> None:
    clock = Clock()
    now = int(clock() * 1000)
    yesterday = account("key", "dw-a", "day", "USD", now - DAY)
    await attempts(store, (Labels("m", key="dw-a"), now - DAY, 1, "USD"), (Labels("m", key="dw-a"), now, 10, "USD"))
    assert await accounts_on(store, clock).standings([yesterday]) == [Standing(yesterday, 1, 0)]


async def test_what_settled_or_expired_long_ago_is_removed(store: Store) -> None:
    clock, key = Clock(), an_account()
    accounts = accounts_on(store, clock)
    for index in range(5):
        await accounts.reserve(f"req_{index}", [Hold(key, 100, 1)])
    await accounts.settle("req_0", {key: 1})
    clock.advance(EXPIRY + KEPT + 60)
    await accounts.reserve("req_x", [Hold(key, 100, 1)])
    await accounts.settle("req_x", {})
    async with store.reading() as connection:
        assert (await connection.exec_driver_sql("SELECT count(*) FROM holds")).scalar_one() == 0
