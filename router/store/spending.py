"""What was spent, by subjects and in periods that budgets are for, from the rows of attempts."""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from msgspec import Struct
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from router.access import SubjectKind
from router.accounts import Account
from router.experiment import SHADOW
from router.money import NANO
from router.store.selection import Dialect, Selection, of_attempts
from router.store.store import Store
from router.store.tables import attempts

Convert: TypeAlias = Callable[[int, str, str, int], int | None]
"""`Pricing.convert`: nano-units, their currency, the wanted currency, Unix milliseconds."""
_DAY: Final = 86_400_000
_MANY: Final = 500
"""Ids in one query."""


class Spent(Struct, frozen=True):
    nano: int
    """In the account's currency."""
    unconverted: tuple[str, ...] = ()
    """Currencies of which something was spent that no rate is known for: it is left out."""


class DayTotal(Struct, frozen=True):
    """What was spent in one currency in one day of UTC, which begins at `day` (Unix milliseconds)."""

    day: int
    currency: str
    nano: int


async def spent(store: Store, account: Account, convert: Convert) -> Spent:
    """What attempts that began in the account's period cost, each day at its own rate. Raises `StoreAway`."""
    async with store.reading() as connection:
        totals = await day_totals(connection, store.dialect, account, account.since, account.until)
    return added_up(totals, account.currency, convert)


async def day_totals(
    connection: AsyncConnection, dialect: Dialect, account: Account, since: int, until: int | None
) -> list[DayTotal]:
    """Of the account's subject, from `since` on and before `until`. What still runs is not in it: it is reserved, or
    charged when it ends."""
    day: ColumnElement[Any] = (attempts.c.created_at // _DAY).label("day")
    # in units and billionths: what a large team spends in a month of small coins is more than 64 bits of billionths
    units, billionths = func.sum(attempts.c.cost // NANO), func.sum(attempts.c.cost % NANO)
    statement = (
        select(day, attempts.c.currency, units, billionths)
        .where(*of_attempts(_selection(account.kind, account.subject, since, until), dialect))
        .where(attempts.c.cost.is_not(None), attempts.c.currency.is_not(None), attempts.c.outcome.is_not(None))
        .group_by(day, attempts.c.currency)
    )
    rows = await connection.execute(statement)
    return [DayTotal(int(at) * _DAY, currency, int(whole) * NANO + int(rest)) for at, currency, whole, rest in rows]


def added_up(totals: Sequence[DayTotal], currency: str, convert: Convert) -> Spent:
    nano, unconverted = 0, set()
    for total in totals:
        if total.currency == currency:
            nano += total.nano
        elif (converted := convert(total.nano, total.currency, currency, total.day)) is not None:
            nano += converted
        else:
            unconverted.add(total.currency)
    return Spent(nano, tuple(sorted(unconverted)))


async def cost_of_calls(store: Store, ids: Sequence[str]) -> dict[str, list[tuple[int, str, int]]]:
    """When each attempt of these calls began (Unix milliseconds), and what it cost: currency and nano-units.

    Attempts without a known cost are left out, as are calls without others. Raises `StoreAway`.
    """
    found: dict[str, list[tuple[int, str, int]]] = {}
    columns = (attempts.c.call_id, attempts.c.created_at, attempts.c.currency, attempts.c.cost)
    async with store.reading() as connection:
        for first in range(0, len(ids), _MANY):
            statement = (
                select(*columns)
                .where(attempts.c.call_id.in_(ids[first : first + _MANY]))
                .where(attempts.c.cost.is_not(None), attempts.c.currency.is_not(None))
                .order_by(attempts.c.call_id, attempts.c.n)
            )
            for call_id, at, currency, nano in await connection.execute(statement):
                found.setdefault(call_id, []).append((at, currency, nano))
    return found


def _selection(kind: SubjectKind, subject: str, since: int, until: int | None) -> Selection:
    match kind:
        case "key":
            return Selection(key=subject, since=since, until=until)
        case "user":
            return Selection(user=subject, since=since, until=until)
        case "team":
            return Selection(team=subject, since=since, until=until)
        case "tag":
            name, _, value = subject.partition("=")
            return Selection(tags=((name, value),), since=since, until=until)
        case "experiment":
            return Selection(experiment=subject, arm=SHADOW, since=since, until=until)
