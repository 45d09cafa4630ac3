"""Paging as OpenAI's lists have it: `after` or `before` an id, and `limit`."""

from typing import Any, Final

from litestar import Request
from msgspec import Struct

from router.errors import InvalidRequest
from router.http.query import Query

DEFAULT: Final = 20
MOST: Final = 100


class Cursor(Struct, frozen=True):
    limit: int = DEFAULT
    after: str | None = None
    before: str | None = None


def read_cursor(request: Request[Any, Any, Any]) -> Cursor:
    """Raises `InvalidRequest` that names the parameter."""
    query = Query(request.scope, ("limit", "after", "before"))
    cursor = Cursor(query.number("limit", DEFAULT, 1, MOST), query.text("after"), query.text("before"))
    if cursor.after is not None and cursor.before is not None:
        raise InvalidRequest("`after` and `before` say two places: give one of them", param="before")
    return cursor
