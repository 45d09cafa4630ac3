"""The parameters of a GET on the ledger: which rows, of what time, whose. What is not understood is an error."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qsl

from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType
from msgspec import structs

from router.call import Principal
from router.errors import InvalidRequest, PermissionDenied
from router.nearest import did_you_mean
from router.store.selection import RUNNING, Selection

OUTCOMES: Final = (
    *("finished", "client_gone", "stopped", "failed", "cut", "timeout", "budget", "refused", "cached", "interrupted"),
    RUNNING,
)
FILTERS: Final = {
    "key": "Calls of this key, by its id (`dw-…`).",
    "user": "Calls for this user.",
    "team": "Calls of this team's keys.",
    "model": "Calls that asked for this name.",
    "route": "Calls that asked for this route.",
    "target": "Calls whose last attempt was at this `provider/model`.",
    "provider": "Calls whose last attempt was at this provider.",
    "experiment": "Calls in this experiment.",
    "arm": "Calls in this arm of an experiment.",
    "outcome": "Calls that ended so, as receipts say it, or `running`; several with commas.",
    "tag": "Calls with this tag: `name=value`. May be given several times: all must fit.",
    "from": "Calls made from then on: `2026-10-01`, `2026-10`, `2026-10-01T12:00:00Z` or Unix seconds. UTC.",
    "to": "Calls made before then; a date or month that is named is in it.",
}
"""Parameter → what it says."""
REPEATED: Final = ("tag", "include", "include[]")
_LONGEST: Final = 512
_DATE: Final = re.compile(r"([0-9]{4})-([0-9]{2})(?:-([0-9]{2}))?|([0-9]{4})([0-9]{2})([0-9]{2})")
_SECONDS: Final = re.compile(r"[0-9]{9,11}")
"""From 1973 on: fewer digits are a year or a date, more are milliseconds."""
_TIME: Final = re.compile(r"[0-9]{4}(-?)[0-9]{2}\1[0-9]{2}[Tt ][0-9].*")
"""No weeks: a day that is named so would be taken for a moment."""


def described_parameters(parameters: Mapping[str, str]) -> list[Parameter]:
    """Parameter → what it says, as `/schema/openapi.json` has it."""
    return [
        Parameter(name, "query", description=words, schema=Schema(type=OpenAPIType.STRING))
        for name, words in parameters.items()
    ]


class Query:
    """The parameters of one request. Raises `InvalidRequest` for one that is not `known`, or is given twice."""

    def __init__(self, scope: Any, known: Iterable[str]) -> None:
        words = tuple(known)
        self._values: dict[str, list[str]] = {}
        try:
            pairs = parse_qsl(
                scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100
            )
        except (UnicodeDecodeError, ValueError):
            raise InvalidRequest("the query is not text in UTF-8, or has more than 100 parameters") from None
        for name, value in pairs:
            if name not in words:
                listed = ", ".join(words)
                shown = name[:40] if name.isprintable() else "…"
                raise InvalidRequest(
                    f"unknown parameter `{shown}`{did_you_mean(name, words)} (known: {listed})",
                    code="unknown_parameter",
                    param=shown,
                )
            if name in self._values and name not in REPEATED:
                raise InvalidRequest(f"`{name}` is given twice", param=name)
            # what no text of a row can be, and a database may refuse
            if not value or len(value) > _LONGEST or not value.isprintable():
                raise InvalidRequest(f"`{name}` must be 1 to {_LONGEST} printable characters", param=name)
            self._values.setdefault(name, []).append(value)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str) -> str | None:
        return self._values[name][0] if name in self._values else None

    def word(self, name: str, words: Iterable[str], default: str) -> str:
        """One of `words`."""
        value = self.text(name)
        if value is None:
            return default
        known = tuple(words)
        if value not in known:
            raise unknown_word(name, value, known)
        return value

    def words(self, name: str) -> tuple[str, ...]:
        """Words with commas between them, each once."""
        value = self.text(name)
        return () if value is None else tuple(dict.fromkeys(word.strip() for word in value.split(",")))

    def flag(self, name: str) -> bool:
        return self.word(name, ("true", "false"), "false") == "true"

    def number(self, name: str, default: int, least: int, most: int) -> int:
        value = self.text(name)
        if value is None:
            return default
        if not re.fullmatch(r"\d{1,9}", value, re.ASCII) or not least <= int(value) <= most:
            raise InvalidRequest(f"`{name}` must be a whole number from {least} to {most}", param=name)
        return int(value)

    def selection(self) -> Selection:
        """What the filters select."""
        outcomes = self.words("outcome")
        for outcome in outcomes:
            if outcome not in OUTCOMES:
                raise unknown_word("outcome", outcome, OUTCOMES)
        since, until = self.text("from"), self.text("to")
        selection = Selection(
            **{name: self.text(name) for name in ("key", "user", "team", "model", "route", "provider", "target")},
            experiment=self.text("experiment"),
            arm=self.text("arm"),
            outcomes=outcomes,
            tags=tuple(_tag(pair) for pair in self._values.get("tag", ())),
            since=None if since is None else moment(since, "from"),
            until=None if until is None else moment(until, "to", end=True),
        )
        if selection.since is not None and selection.until is not None and selection.since >= selection.until:
            raise InvalidRequest("`from` is not before `to`", param="from")
        return selection


def unknown_word(name: str, value: str, known: Iterable[str]) -> InvalidRequest:
    words = tuple(known)
    return InvalidRequest(
        f"`{name}` cannot be `{value[:40]}`{did_you_mean(value, words)} (known: {', '.join(words)})", param=name
    )


def own(principal: Principal | None, selection: Selection) -> Selection:
    """The selection as far as the caller may look: a key sees its own calls, an admin key sees all. None: nobody
    needs a key. Raises `PermissionDenied` for a question about another key."""
    if principal is None or principal.admin:
        return selection
    if selection.key not in (None, principal.key):
        raise PermissionDenied(
            f"the key `{principal.name or principal.key}` may look at its own calls only: leave `key` out",
            param="key",
        )
    return structs.replace(selection, key=principal.key)


_LAST: Final = 253_370_764_800_000
"""The year 9999 begins, in Unix milliseconds."""


def moment(text: str, param: str, *, end: bool = False) -> int:
    """A time in Unix milliseconds. A day or month stands for its beginning, or with `end` for what follows it.
    Raises `InvalidRequest`."""
    try:
        if date := _DATE.fullmatch(text):
            year, month, day = date[1] or date[4], date[2] or date[5], date[3] or date[6]
            start = datetime(int(year), int(month), int(day or 1), tzinfo=UTC)
            if end:
                start = start + timedelta(days=1) if day else (start + timedelta(days=31)).replace(day=1)
            return _milliseconds(start)
        if _SECONDS.fullmatch(text):
            return _milliseconds(datetime.fromtimestamp(int(text), UTC))
        if not _TIME.fullmatch(text):
            raise ValueError
        # a + that was not escaped has become a space
        at = datetime.fromisoformat(re.sub(r" (?=\d{2}:?\d{2}$)", "+", text))
        return _milliseconds(at if at.tzinfo else at.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"`{param}` is no time: write a date such as 2026-10-01 or 2026-10, a time such as 2026-10-01T12:00:00Z, "
            "or Unix seconds (9 to 11 digits)",
            param=param,
        ) from None


def _milliseconds(at: datetime) -> int:
    """Raises `ValueError` for what no clock of ours has shown or will show."""
    found = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    if not 0 <= found <= _LAST:
        raise ValueError
    return found


def _tag(pair: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not equals or not name:
        raise InvalidRequest("`tag` must look like `name=value`", param="tag")
    return name, value
