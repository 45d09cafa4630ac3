"""Health checks for load balancers and orchestrators: alive, and ready for new calls."""

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from router.generation import Generations
from router.ledger.books import Books
from router.running import Running


class Health(Struct, frozen=True):
    status: str
    running: int
    """Calls in progress."""
    store: str = "ok"
    """`away`: the ledger's journal holds what comes until the store is back."""
    backlog: int = 0
    """Records of the ledger that are not in the store yet."""
    generation: str = ""
    """Which configuration is in force: the same digits wherever its files are the same."""


def health_routes(running: Running, books: Books, generations: Generations) -> list[HTTPRouteHandler]:
    def health(status: str) -> Health:
        store = "ok" if books.away is None else "away"
        return Health(status, len(running), store, books.backlog, generations.current.id)

    @get("/health/live", summary="Is the process alive?", tags=["health"], sync_to_thread=False)
    def live() -> Health:
        return health("ok")

    @get("/health/ready", summary="May new calls come? 503 while draining.", tags=["health"], sync_to_thread=False)
    def ready() -> Response[Health]:
        if running.draining:
            return Response(health("draining"), status_code=503)
        return Response(health("ok"))

    return [live, ready]
