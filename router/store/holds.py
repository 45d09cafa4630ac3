"""What running calls have reserved of budgets while the shared state is away: the SQL of the table `holds`.

A call that has settled leaves what it was charged in a row without an owner. It counts until the call's own row says
that the call has ended, for then its attempts are on record with what they cost: nothing is counted twice, and nothing
goes uncounted while the rows are on their way.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from sqlalchemy import ColumnElement, Insert, and_, case, delete, exists, func, or_, select
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from router.store.selection import Dialect
from router.store.tables import calls, holds

Connection: TypeAlias = AsyncConnection
Amounts: TypeAlias = Mapping[str, int]
"""Account → nano-units."""
_SETTLED: Final = ""
"""The owner of what a call was charged."""


async def lock(connection: Connection, dialect: Dialect, accounts: Sequence[str]) -> None:
    """Until the end of the transaction nobody else changes what is held of these accounts."""
    if dialect == "postgresql":
        # in order, so that two never wait for each other; on SQLite the transaction has the only lock there is
        for account in sorted(set(accounts)):
            await connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"budget:{account}", 0))))


async def reserved(connection: Connection, accounts: Sequence[str], at: int) -> dict[str, int]:
    """What counts of each account `at` (Unix milliseconds)."""
    statement = (
        select(holds.c.account, func.sum(holds.c.amount))
        .where(holds.c.account.in_(accounts), holds.c.expires_at > at, ~_is_on_record())
        .group_by(holds.c.account)
    )
    found = {account: int(amount) for account, amount in await connection.execute(statement)}
    return {account: found.get(account, 0) for account in accounts}


async def held(connection: Connection, call_id: str) -> list[str]:
    """The accounts of which the call holds something."""
    statement = select(holds.c.account).where(holds.c.call_id == call_id, holds.c.owner != _SETTLED)
    return [account for (account,) in await connection.execute(statement)]


async def add(
    connection: Connection, dialect: Dialect, call_id: str, amounts: Amounts, owner: str, at: int, expires_at: int
) -> None:
    """Add to what the call holds; what has expired by now (`at`) is nothing."""
    rows = [
        {"call_id": call_id, "account": account, "amount": amount, "owner": owner, "expires_at": expires_at}
        for account, amount in amounts.items()
    ]
    if not rows:
        return
    insert: Any = insert_postgres(holds) if dialect == "postgresql" else insert_sqlite(holds)
    new = insert.excluded
    statement: Insert = insert.on_conflict_do_update(
        index_elements=[holds.c.call_id, holds.c.account],
        set_={
            "amount": case((holds.c.expires_at > at, holds.c.amount), else_=0) + new.amount,
            "owner": new.owner,
            "expires_at": new.expires_at,
        },
    )
    await connection.execute(statement, rows)


async def settle(connection: Connection, dialect: Dialect, call_id: str, charges: Amounts, at: int, until: int) -> None:
    """Put what the call was charged in the place of what it holds, to count `until` (Unix milliseconds) at most."""
    await connection.execute(delete(holds).where(holds.c.call_id == call_id))
    charged = {account: amount for account, amount in charges.items() if amount}
    await add(connection, dialect, call_id, charged, _SETTLED, at, until)


async def of_owner(connection: Connection, owner: str) -> dict[str, list[str]]:
    """The calls of a process that hold something, with the accounts."""
    statement = (
        select(holds.c.call_id, holds.c.account)
        .where(holds.c.owner == owner, holds.c.owner != _SETTLED)
        .order_by(holds.c.call_id, holds.c.account)
    )
    found: dict[str, list[str]] = {}
    for call_id, account in await connection.execute(statement):
        found.setdefault(call_id, []).append(account)
    return found


async def sweep(connection: Connection, at: int, before: int) -> None:
    """Remove what settled and counts no longer, and what expired `before` (Unix milliseconds)."""
    settled = and_(holds.c.owner == _SETTLED, or_(holds.c.expires_at <= at, _closed()))
    await connection.execute(delete(holds).where(or_(holds.c.expires_at <= before, settled)))


def _is_on_record() -> ColumnElement[bool]:
    return and_(holds.c.owner == _SETTLED, _closed())


def _closed() -> ColumnElement[bool]:
    return exists().where(calls.c.id == holds.c.call_id, calls.c.outcome.is_not(None))
