"""Keys and owners in the store."""

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.access import Budget, Key, Limits, Owner
from router.keyring import unenforced
from router.money import CURRENCIES, Money
from router.store.keys import Hashed, KeyRows, LastAdminKey
from router.store.store import Store

AT = 1_790_000_000_123
HASHED = Hashed(b"\x01" * 32, "pepper-1")
FULL = Key(
    id="dw-full0000",
    name="All of it, «ünïcode» too",
    admin=True,
    models=("openai/*", "chat"),
    routes=("chat*",),
    tags={"team": "a", "feature": "search"},
    user="u1",
    team="t1",
    limits=Limits(rpm=60, tpm=10**12, parallel=1),
    budgets=(Budget(Money(1, "USD"), "day"), Budget(Money(10**21 - 1, "CNY"), "total")),
    on_disconnect="finish",
    created_at=AT // 1000,
    expires_at=1_800_000_000,
)


def a_key(name: str, **fields: Any) -> Key:
    return Key(id=f"dw-{name:0>8}", name=name, created_at=AT // 1000, **fields)


async def names(rows: KeyRows, limit: int, **cursor: str) -> tuple[list[str], bool]:
    page = await rows.page(limit, **cursor)
    assert page is not None
    return [key.name for key in page.keys], page.more


async def test_a_key_comes_back_as_it_was_put(store: Store) -> None:
    rows = KeyRows(store)
    await rows.add(FULL, HASHED, AT)
    found = await rows.get(FULL.id)
    assert found is not None
    assert (found.key, found.hashed, found.previous) == (FULL, HASHED, None)
    assert await rows.get("dw-nobody00") is None


AMOUNTS = st.builds(Money, st.integers(0, 10**21 - 1), st.sampled_from(sorted(CURRENCIES)))
LIMITS = st.builds(Limits, *[st.none() | st.integers(1, 10**12)] * 3)
BUDGETS = st.lists(st.builds(Budget, AMOUNTS, st.sampled_from(["day", "month", "total"])), max_size=3).map(tuple)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limits=LIMITS, budgets=BUDGETS)
async def test_limits_and_budgets_come_back_exactly(store: Store, limits: Limits, budgets: tuple[Budget, ...]) -> None:
    rows, owner = KeyRows(store), Owner("team", "t", "", limits, budgets)
    await rows.put_owner(owner)
    assert await rows.get_owner("team", "t") == owner


async def test_pages_go_both_ways_through_every_key_once(store: Store) -> None:
    rows = KeyRows(store)
    # two in the same millisecond: the id decides
    for number, at in enumerate([1, 2, 3, 3, 4]):
        await rows.add(a_key(str(number)), HASHED, AT + at)
    assert await names(rows, 2) == (["4", "3"], True)
    assert await names(rows, 2, after="dw-00000003") == (["2", "1"], True)
    assert await names(rows, 2, after="dw-00000001") == (["0"], False)
    assert await names(rows, 2, before="dw-00000000") == (["2", "1"], True)
    assert await names(rows, 2, before="dw-00000002") == (["4", "3"], False)
    assert await names(rows, 9, before="dw-00000004") == ([], False)
    assert await rows.page(2, after="dw-nobody00") is None


async def test_what_is_changed_is_changed_and_nothing_else(store: Store) -> None:
    rows = KeyRows(store)
    await rows.add(FULL, HASHED, AT)
    changed = await rows.change(FULL.id, {"name": "new", "limits": Limits(), "budgets": (), "expires_at": None})
    assert changed == msgspec.structs.replace(FULL, name="new", limits=Limits(), budgets=(), expires_at=None)
    found = await rows.get(FULL.id)
    assert found is not None
    assert (found.key, found.hashed) == (changed, HASHED)
    assert await rows.change("dw-nobody00", {"name": "x"}) is None


async def test_a_rotated_key_keeps_the_secret_before_for_the_overlap(store: Store) -> None:
    rows = KeyRows(store)
    await rows.add(FULL, HASHED, AT)
    second = Hashed(b"\x02" * 32, "pepper-1")
    key = await rows.rotate(FULL.id, second, AT, 60_000)
    found = await rows.get(FULL.id)
    assert key is not None
    assert found is not None
    assert (found.hashed, found.previous) == (second, HASHED.digest)
    assert (key.rotated_at, key.previous_until) == (AT // 1000, AT // 1000 + 60)


@pytest.mark.parametrize(("pepper", "overlap"), [("pepper-1", 0), ("pepper-2", 60_000)])
async def test_a_secret_that_could_not_be_checked_is_not_kept(store: Store, pepper: str, overlap: int) -> None:
    rows = KeyRows(store)
    await rows.add(FULL, HASHED, AT)
    await rows.rotate(FULL.id, Hashed(b"\x02" * 32, pepper), AT, overlap)
    found = await rows.get(FULL.id)
    assert found is not None
    assert found.previous is None


async def test_a_revoked_key_stays_revoked(store: Store) -> None:
    rows = KeyRows(store)
    await rows.add(a_key("a"), HASHED, AT)
    await rows.rotate("dw-0000000a", Hashed(b"\x02" * 32, "pepper-1"), AT, 60_000)
    revoked = await rows.revoke("dw-0000000a", AT + 1000, pepper=None)
    assert revoked is not None
    assert revoked.revoked_at == AT // 1000 + 1
    # the second time changes nothing, the time neither
    assert await rows.revoke("dw-0000000a", AT + 9000, pepper=None) == revoked
    assert await rows.change("dw-0000000a", {"name": "x"}) is None
    assert await rows.rotate("dw-0000000a", HASHED, AT, 0) is None
    found = await rows.get("dw-0000000a")
    assert found is not None
    assert (found.key, found.previous) == (revoked, None)
    assert await rows.revoke("dw-nobody00", AT, pepper=None) is None


async def test_the_last_admin_key_that_could_be_used_cannot_be_revoked(store: Store) -> None:
    rows = KeyRows(store)
    await rows.add(a_key("a", admin=True), HASHED, AT)
    await rows.add(a_key("plain"), HASHED, AT)
    await rows.add(a_key("expired", admin=True, expires_at=AT // 1000), HASHED, AT)
    await rows.add(a_key("other", admin=True), Hashed(b"\x03" * 32, "pepper-2"), AT)
    with pytest.raises(LastAdminKey):
        await rows.revoke("dw-0000000a", AT, pepper="pepper-1")
    found = await rows.get("dw-0000000a")
    assert found is not None
    assert found.key.revoked_at is None
    await rows.add(a_key("b", admin=True), HASHED, AT)
    assert await rows.revoke("dw-0000000a", AT, pepper="pepper-1")


async def test_of_two_admin_keys_that_are_revoked_at_once_one_stays(store: Store) -> None:
    rows = KeyRows(store)
    ids = ["dw-0000000a", "dw-0000000b"]
    for name in "ab":
        await rows.add(a_key(name, admin=True), HASHED, AT)
    tries = [rows.revoke(key_id, AT, pepper="pepper-1") for key_id in ids]
    done = await asyncio.gather(*tries, return_exceptions=True)
    assert {type(result) for result in done} == {Key, LastAdminKey}


async def test_of_many_first_admin_keys_at_once_one_is_added(store: Store) -> None:
    rows = KeyRows(store)
    assert not await rows.has_admin("pepper-1", AT)
    tries = [rows.add_first_admin(a_key(str(n), admin=True), HASHED, AT) for n in range(8)]
    assert sorted(await asyncio.gather(*tries)) == [False] * 7 + [True]
    assert await rows.has_admin("pepper-1", AT)
    assert not await rows.has_admin("pepper-2", AT)


async def test_every_change_has_its_number_in_order(store: Store) -> None:
    rows = KeyRows(store)
    assert (await rows.numbers()).changes == 0
    count = 12
    await asyncio.gather(*(rows.add(a_key(str(n)), HASHED, AT) for n in range(count)))
    found = await rows.changed_since(0)
    assert [row.revision for row in found] == list(range(1, count + 1))
    assert (await rows.numbers()).changes == count
    await rows.change("dw-00000000", {"name": "x"})
    await rows.rotate("dw-00000001", HASHED, AT, 0)
    await rows.revoke("dw-00000002", AT, pepper=None)
    assert [row.key.id for row in await rows.changed_since(count)] == ["dw-00000000", "dw-00000001", "dw-00000002"]


async def test_owners_are_put_replaced_listed_and_removed(store: Store) -> None:
    rows = KeyRows(store)
    one = Owner("user", "u1", "One", Limits(rpm=5), (Budget(Money.parse("10 USD"), "day"),))
    await rows.put_owner(Owner("user", "u1", limits=Limits(tpm=7)))
    await rows.put_owner(one)
    for owner in (Owner("user", "u2"), Owner("user", "u3"), Owner("team", "u1", "a team")):
        await rows.put_owner(owner)
    assert await rows.get_owner("user", "u1") == one
    assert await rows.get_owner("team", "u1") == Owner("team", "u1", "a team")
    page = await rows.page_owners("user", 2)
    assert ([owner.id for owner in page.owners], page.more) == (["u1", "u2"], True)
    page = await rows.page_owners("user", 2, after="u2")
    assert ([owner.id for owner in page.owners], page.more) == (["u3"], False)
    page = await rows.page_owners("user", 1, before="u3")
    assert ([owner.id for owner in page.owners], page.more) == (["u2"], True)
    before = await rows.numbers()
    assert await rows.remove_owner("user", "u1")
    assert not await rows.remove_owner("user", "u1")
    assert await rows.get_owner("user", "u1") is None
    after = await rows.numbers()
    assert after.removals == before.removals + 1
    assert after.changes > before.changes
    assert [row.owner.id for row in await rows.owners_changed_since(before.changes)] == []


async def test_a_secret_of_all_processes_is_made_once(store: Store) -> None:
    rows = KeyRows(store)
    found = await asyncio.gather(*(rows.secret("pepper", bytes([n])) for n in range(8)))
    assert len(set(found)) == 1
    assert await rows.secret("pepper", b"late") == found[0]
    assert await rows.secret("other", b"late") == b"late"


async def test_limits_that_no_plugin_holds_anybody_to_are_told(store: Store) -> None:
    assert await unenforced(store, []) == []
    key = Key(id="dw-aaaaaaaa", name="a", limits=Limits(rpm=1))
    await KeyRows(store).add(key, Hashed(b"d", "pepper"), 1)
    await KeyRows(store).put_owner(Owner("team", "t1", budgets=(Budget(Money(1, "USD")),)))
    assert [word.split(",")[0] for word in await unenforced(store, ["auth"])] == [
        "keys or their owners have budgets",
        "keys or their owners have limits",
    ]
    assert await unenforced(store, ["limits", "budget"]) == []
