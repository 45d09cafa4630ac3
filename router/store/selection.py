"""Which calls or attempts are asked for, as conditions of a query on either database."""

import re
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct
from sqlalchemy import ColumnElement, Table, and_, column, func, or_, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import Text

from router.store.tables import attempts, calls

Dialect: TypeAlias = Literal["sqlite", "postgresql"]
RUNNING: Final = "running"
"""Stands among the outcomes for those that have none yet."""

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_SLACK_MS: Final = 60_000
"""How far the time inside an id may be from the call's own: both are read from the clock, one after the other."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")


class Selection(Struct, frozen=True, kw_only=True):
    """Each field narrows; None and empty ones do not. Times are Unix milliseconds: from `since` on, before `until`."""

    since: int | None = None
    until: int | None = None
    key: str | None = None
    user: str | None = None
    team: str | None = None
    model: str | None = None
    """The name that was asked for."""
    route: str | None = None
    target: str | None = None
    """`provider/model`; of a call the last one it was tried at."""
    provider: str | None = None
    experiment: str | None = None
    arm: str | None = None
    outcomes: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()


def of_calls(selection: Selection, dialect: Dialect) -> list[ColumnElement[bool]]:
    found = _of_both(selection, calls, dialect)
    # ids begin with the time: an index that ends in the id then knows where the time begins and ends
    if selection.since is not None:
        found += [calls.c.id >= first_id(selection.since - _SLACK_MS), calls.c.created_at >= selection.since]
    if selection.until is not None:
        found += [calls.c.id < first_id(selection.until + _SLACK_MS), calls.c.created_at < selection.until]
    if selection.target is not None:
        found.append(calls.c.target == selection.target)
    if selection.provider is not None:
        if dialect == "postgresql":
            # Postgres knows how many targets begin so, and not how many come out of a function
            found.append(calls.c.target.startswith(f"{selection.provider}/", autoescape=True))
        else:
            found.append(provider_of_call(dialect) == selection.provider)
    return found


def of_attempts(selection: Selection, dialect: Dialect) -> list[ColumnElement[bool]]:
    found = _of_both(selection, attempts, dialect)
    if selection.since is not None:
        found.append(attempts.c.created_at >= selection.since)
    if selection.until is not None:
        found.append(attempts.c.created_at < selection.until)
    if selection.target is not None:
        provider, _, model = selection.target.partition("/")
        found += [attempts.c.provider == provider, attempts.c.model == model]
    if selection.provider is not None:
        found.append(attempts.c.provider == selection.provider)
    return found


def tag(table: Table, name: str, dialect: Dialect) -> ColumnElement[Any]:
    """The value of one tag; NULL without it. The name may be any text, as clients choose it."""
    tags = table.c.tags
    if dialect == "postgresql":
        return func.jsonb_extract_path_text(tags.cast(JSONB), name)
    if _PLAIN.fullmatch(name):
        return func.json_extract(tags, f'$."{name}"')
    each = func.json_each(tags).table_valued(column("key", Text), column("value", Text))
    return select(each.c.value).where(each.c.key == name).scalar_subquery()


def provider_of_call(dialect: Dialect) -> ColumnElement[Any]:
    """The provider in `calls.target`; NULL for a call that was never tried."""
    target = calls.c.target
    if dialect == "postgresql":
        return func.split_part(target, "/", 1)
    return func.substr(target, 1, func.instr(target, "/") - 1)


def first_id(at: int) -> str:
    """The least id that a call made at this time can have (Unix milliseconds)."""
    number, characters = max(at, 0), []
    for _ in range(10):
        characters.append(_ALPHABET[number & 31])
        number >>= 5
    return "req_" + "".join(reversed(characters))


def _of_both(selection: Selection, table: Table, dialect: Dialect) -> list[ColumnElement[bool]]:
    named = {
        "key": selection.key,
        "user": selection.user,
        "team": selection.team,
        "asked": selection.model,
        "route": selection.route,
        "experiment": selection.experiment,
        "arm": selection.arm,
    }
    found = [table.c[name] == value for name, value in named.items() if value is not None]
    if selection.outcomes:
        found.append(_outcomes(selection.outcomes, table))
    found += [tag(table, name, dialect) == value for name, value in selection.tags]
    return found


def _outcomes(outcomes: tuple[str, ...], table: Table) -> ColumnElement[bool]:
    ended = [outcome for outcome in outcomes if outcome != RUNNING]
    column = table.c.outcome
    if len(ended) == len(outcomes):
        # one is compared, not listed: an index by outcome then gives its rows in their order
        return column == ended[0] if len(ended) == 1 else column.in_(ended)
    running = column.is_(None)
    return or_(running, column.in_(ended)) if ended else and_(running)
