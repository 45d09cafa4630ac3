"""What a ledger holds, read from its tables and not through the product's reports."""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from router.ledger.rows import TOKEN_CLASSES
from router.settings import StoreUrl
from router.store.tables import attempts, calls
from support.stores import opened_store


@dataclass
class Rows:
    """By the call's user, which tests use as its marker."""

    calls: dict[str, list[Any]] = field(default_factory=dict)
    attempts: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    async def read(cls, url: StoreUrl) -> "Rows":
        rows = cls()
        async with opened_store(url) as store, store.reading() as connection:
            for table, found in ((calls, rows.calls), (attempts, rows.attempts)):
                for row in await connection.execute(select(table)):
                    found.setdefault(row.user, []).append(row)
        return rows


def tokens_of(row: Any) -> dict[str, int]:
    return {name: getattr(row, name) for name in TOKEN_CLASSES}
