"""What a driver's or the engine's failure means: the store is away, or the statement was wrong."""

import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError, EmulatedDBAPIException, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout


class StoreAway(Exception):
    """The store cannot be reached, is locked, full or damaged. The message says what happened and what to do."""


_SQLITE: Final = {
    sqlite3.SQLITE_BUSY: "is locked by another process: wait for it, or end it",
    sqlite3.SQLITE_LOCKED: "is locked by another process: wait for it, or end it",
    sqlite3.SQLITE_FULL: "cannot grow, the disk is full: free some space",
    sqlite3.SQLITE_IOERR: "could not be read or written: look for a full or failing disk",
    sqlite3.SQLITE_CORRUPT: "is damaged: restore it from a backup, or move it away to begin anew",
    sqlite3.SQLITE_NOTADB: "is not a SQLite database: restore it from a backup, or move it away to begin anew",
    sqlite3.SQLITE_READONLY: "may not be written to: check the permissions of the file, its directory and the disk",
    sqlite3.SQLITE_PERM: "may not be opened: check its permissions",
    sqlite3.SQLITE_AUTH: "may not be opened: check its permissions",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check that its directory exists and may be written to",
    sqlite3.SQLITE_NOMEM: "could not be read: there is no memory left",
    sqlite3.SQLITE_PROTOCOL: "is locked by another process: wait for it, or end it",
}
_REFUSED: Final = frozenset(
    {
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_TOOBIG,
    }
)
_FOREIGN: Final = ("no such table", "no such column", "has no column", "already exists")

_POSTGRES: Final = {
    "26000": "is behind a pooler that shares sessions between transactions: let it pool whole sessions",
    "42P05": "is behind a pooler that shares sessions between transactions: let it pool whole sessions",
    "28": "refuses the user or the password: check `store` in the configuration",
    "3D": "has no such database: create it, or check `store` in the configuration",
    "42501": "does not let this user do that: grant it the rights on the database's tables",
    "42P01": "is not as Deltaway left it: is it another program's database?",
    "42P07": "is not as Deltaway left it: is it another program's database?",
    "42703": "is not as Deltaway left it: is it another program's database?",
    "53100": "has no disk space left: free some",
    "53300": "takes no more connections: raise its `max_connections`, or run fewer processes",
    "53": "lacks resources",
    "57014": "took too long",
    "57": "is starting, stopping or ended the connection: wait for it",
    "08": "closed the connection: is it running, and the network up?",
    "25006": "is read-only, perhaps a standby: name the primary in `store`",
    "40": "gave up a transaction that got in another's way",
    "55P03": "holds a lock for too long",
    "58": "failed: look into its log",
    "XX": "failed: look into its log",
}
"""By SQLSTATE, or its class (https://www.postgresql.org/docs/current/errcodes-appendix.html)."""


_REFUSED_STATES: Final = frozenset({"22", "23", "54"})
"""Classes of SQLSTATE: data exceptions, constraints, what is too large."""


def explain(error: BaseException, place: str) -> StoreAway | None:
    """`error` as the store being away at `place`; None: it is not, and the error should be seen as it is."""
    match error:
        case StoreAway():
            return error
        case IntegrityError():
            return None
        case PoolTimeout():
            return StoreAway(f"{place}: all connections are in use and none came free: is the database too slow?")
        case TimeoutError():
            return StoreAway(f"{place} did not answer in time: is it running, and is the network up?")
        case ConnectionError():
            return StoreAway(f"{place} closed the connection: is it running, and is the network up?")
        case DBAPIError():
            return _of_engine(error, place)
        case sqlite3.Error():
            return explain_sqlite(error, place)
        case _ if type(error).__module__.startswith("asyncpg."):
            return explain_postgres(error, place)
        case _:
            return None


def is_refusal(error: BaseException) -> bool:
    """Whether the store refuses what it was given for what it says. Anything else may pass: it is tried again."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return isinstance(error, sqlite3.ProgrammingError) and "closed" not in str(error)
        return code & 0xFF in _REFUSED
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        return state[:2] in _REFUSED_STATES
    return isinstance(error, ValueError | TypeError | OverflowError)


def _of_engine(error: DBAPIError, place: str) -> StoreAway | None:
    orig = error.orig
    if isinstance(orig, sqlite3.Error):
        return explain_sqlite(orig, place)
    driver = orig.orig if isinstance(orig, EmulatedDBAPIException) else orig
    said = explain_postgres(driver, place)
    if said is None and error.connection_invalidated:
        return StoreAway(f"{place} closed the connection: is it running, and is the network up?")
    return said


def explain_sqlite(error: sqlite3.Error, place: str) -> StoreAway | None:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        # the driver's own: the connection was closed under the statement
        closed = isinstance(error, sqlite3.OperationalError)
        return StoreAway(f"{place} was closed in the middle of a statement") if closed else None
    if what := _SQLITE.get(code & 0xFF):
        return StoreAway(f"{place} {what} ({error})")
    if code & 0xFF == sqlite3.SQLITE_ERROR and any(word in str(error) for word in _FOREIGN):
        return StoreAway(f"{place} is not as Deltaway left it: is it another program's file? ({error})")
    return None


def explain_postgres(error: BaseException | None, place: str) -> StoreAway | None:
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        what = _POSTGRES.get(state) or _POSTGRES.get(state[:2])
        return None if what is None else StoreAway(f"{place} {what} ({error})")
    if error is None or isinstance(error, ValueError):
        # what was to be written cannot be said to Postgres
        return None
    return StoreAway(f"{place} closed the connection: is it running, and is the network up? ({error})")
