"""Health checks for load balancers and orchestrators: alive, and ready for new calls."""

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from router.running import Running


class Health(Struct, frozen=True):
    status: str
    running: int
    """Calls in progress."""


def health_routes(running: Running) -> list[HTTPRouteHandler]:
    @get("/health/live", summary="Is the process alive?", tags=["health"], sync_to_thread=False)
    def live() -> Health:
        return Health("ok", len(running))

    @get("/health/ready", summary="May new calls come? 503 while draining.", tags=["health"], sync_to_thread=False)
    def ready() -> Response[Health]:
        if running.draining:
            return Response(Health("draining", len(running)), status_code=503)
        return Response(Health("ok", len(running)))

    return [live, ready]
