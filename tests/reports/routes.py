"""The routes on the ledger without the rest of a gateway."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from litestar import Litestar, Request
from litestar.exceptions import HTTPException

from router.call import Principal
from router.dialects.openai_chat import OpenAIChat
from router.errors import AuthenticationFailed, RouterError
from router.experiment import Experiment
from router.http.errors import ErrorResponses
from router.http.feedback import feedback_routes
from router.http.receipts import receipt_routes
from router.http.usage import usage_routes
from router.ledger.books import NoLedger
from router.store.store import Store
from support.ledgers import Book

PRINCIPALS = {
    "one": Principal("dw-one", "one"),
    "two": Principal("dw-two", "two"),
    "admin": Principal("dw-root", "root", admin=True),
    "open": None,
}


@asynccontextmanager
async def asking(
    store: Store,
    book: Book | None = None,
    experiments: Mapping[str, Experiment] | None = None,
    *,
    recorded: bool = True,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the routes; `authorization` names one of `PRINCIPALS`."""

    async def caller(request: Request[Any, Any, Any]) -> Principal | None:
        key = request.headers.get("authorization", "open")
        if key not in PRINCIPALS:
            raise AuthenticationFailed("who are you?")
        return PRINCIPALS[key]

    books = NoLedger()
    errors = ErrorResponses(OpenAIChat())
    app = Litestar(
        [
            *receipt_routes(store, books, caller),
            *usage_routes(store, books, lambda: (book or Book(), "USD"), caller),
            *feedback_routes(store, books, caller, lambda: experiments or {}, recorded=recorded),
        ],
        exception_handlers={RouterError: errors.router_error, HTTPException: errors.http_exception},
        logging_config=None,
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client
