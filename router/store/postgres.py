"""Connections to Postgres."""

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from router.store.away import StoreAway, explain_postgres
from router.store.statement import Statement

_CONNECT: Final = 5.0
"""Seconds."""


class PostgresConnection:
    """An asyncpg connection, to write with."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def write_many(self, statements: Sequence[Statement]) -> None:
        """All of them in one transaction. Raises asyncpg's errors."""
        match statements:
            case [(sql, [row])]:
                # a transaction by itself
                await self._connection.execute(sql, *row)
                return
        async with self._connection.transaction():
            for sql, rows in statements:
                await self._connection.executemany(sql, rows)

    def is_closed(self) -> bool:
        return bool(self._connection.is_closed())

    async def close(self) -> None:
        await self._connection.close()

    async def drop(self) -> None:
        """Close it without waiting: what it has begun is rolled back."""
        self._connection.terminate()


async def connect_postgres(url: str, *, patience: float) -> Any:
    """An asyncpg connection. `patience`: how long a statement may take, in seconds. Raises `StoreAway`."""
    import asyncpg  # type: ignore[import-untyped]

    place, wait = place_of(url), min(_CONNECT, patience)
    try:
        return await asyncpg.connect(
            url,
            timeout=wait,
            command_timeout=patience,
            # a router between us forgets connections that are silent for long
            server_settings={"application_name": "deltaway", "tcp_keepalives_idle": "60"},
        )
    except TimeoutError as error:
        raise StoreAway(f"{place} does not answer within {wait:g} s: is the network up?") from error
    except OSError as error:
        raise StoreAway(f"{place} cannot be reached: is it running, and is `store` right? ({error})") from error
    except asyncpg.ClientConfigurationError as error:
        raise StoreAway(f"{place}: `store` is not a URL that Postgres understands") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise explain_postgres(error, place) or StoreAway(f"{place} refuses the connection ({error})") from error


def require_driver() -> None:
    """Raises `StoreAway` when the driver is not installed."""
    try:
        import asyncpg  # noqa: F401
    except ModuleNotFoundError as error:
        raise StoreAway(
            "`store` names Postgres, but its driver is not installed: pip install 'deltaway[postgres]'"
        ) from error


def place_of(url: str) -> str:
    """Which database, without user and password."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    database = parts.path.lstrip("/")
    # a password with a slash that was not quoted
    return f"Postgres at {host}" if "@" in database else f"Postgres at {host}, database {database},"
