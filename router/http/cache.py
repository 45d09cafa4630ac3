"""`DELETE /v1/cache`: answers that are kept for later calls are removed."""

from typing import Any, Literal

from litestar import Request, delete
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from router.cache.entry import CacheStore
from router.errors import StoreUnavailable
from router.http.query import Query
from router.http.receipts import Caller


class CacheCleared(Struct, frozen=True, kw_only=True):
    object: Literal["cache.cleared"] = "cache.cleared"
    entries: int
    """How many answers there were."""


def cache_routes(cache: CacheStore, caller: Caller) -> list[HTTPRouteHandler]:
    """The handler. A key removes the answers to its own calls, an admin key and a caller of None all."""

    @delete("/v1/cache", summary="Remove answers from the cache", tags=["cache"], status_code=200)
    async def clear_cache(request: Request[Any, Any, Any]) -> CacheCleared:
        """Those that were written for calls of the key. Calls that run put theirs in when they end."""
        principal = await caller(request)
        Query(request.scope, ())
        removed = await cache.clear(None if principal is None or principal.admin else principal.key)
        if removed is None:
            raise StoreUnavailable(
                "the cache cannot be reached now, so what is in it is still there; try again later", retry_after=5.0
            )
        return CacheCleared(entries=removed)

    return [clear_cache]
