"""`/admin/health`: what is known of providers, their keys and targets, for whoever holds an admin key."""

import time
from typing import Any, Literal

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from router.door import Door
from router.errors import InvalidRequest
from router.generation import Generations
from router.http.described import described
from router.http.health_views import HealthShown, HealthView, Sharing
from router.http.json_body import json_body
from router.http.request import read_head
from router.nearest import did_you_mean
from router.settings import SharedUrl
from router.state.shared import State


class ResetBody(Struct, frozen=True, forbid_unknown_fields=True):
    """One of them."""

    target: str | None = None
    """`provider/model`: its breaker is closed."""
    provider: str | None = None
    """The breakers of all its targets are closed, and its keys may be used again."""


class ResetDone(Struct, frozen=True):
    reset: int
    """Breakers that were open, targets that were limited, and keys that rested."""
    object: Literal["health.reset"] = "health.reset"


def admin_health_routes(
    generations: Generations, state: State, door: Door, shared: SharedUrl
) -> list[HTTPRouteHandler]:
    """The handlers. They need an admin key, whatever the list of plugins says. `shared` is where state is kept."""
    book = state.health

    @get("/admin/health", summary="What is known of providers, keys and targets", tags=["health"])
    async def show_health(request: Request[Any, Any, Any]) -> HealthShown:
        """Openings of breakers and resting keys are those of all processes that share state; averages, counts and
        errors those of the process that answers."""
        await _admit(door, request)
        view = HealthView(generations.current, book, time.time)
        return HealthShown(
            at=int(time.time()), shared=_sharing(state, shared), providers=view.providers(), routes=view.routes()
        )

    @post(
        "/admin/health/reset",
        summary="Close a breaker, or let a provider's keys be used again",
        tags=["health"],
        status_code=200,
        operation_class=described(ResetBody, required=True),
    )
    async def reset_health(request: Request[Any, Any, Any]) -> ResetDone:
        """Other processes are told."""
        await _admit(door, request)
        body = await json_body(request, ResetBody)
        if (body.target is None) == (body.provider is None):
            words = "say `target` (provider/model) or `provider`, one of them"
            raise InvalidRequest(words, code="missing_required_parameter")
        provider, slash, model = (
            (body.target or "").partition("/") if body.provider is None else (body.provider, "", "")
        )
        param = "target" if body.provider is None else "provider"
        if param == "target" and not (slash and model):
            raise InvalidRequest("`target`: must be provider/model", param=param)
        known = generations.current.config.providers
        if provider not in known:
            words = f"`{param}`: there is no provider `{provider[:60]}`{did_you_mean(provider, known)}"
            raise InvalidRequest(words, param=param)
        return ResetDone(book.reset(provider, model or None))

    return [show_health, reset_health]


async def _admit(door: Door, request: Request[Any, Any, Any]) -> None:
    """Before anything else of the request is read."""
    await door.admin(read_head(request.scope).credentials)


def _sharing(state: State, shared: SharedUrl) -> Sharing:
    kind: Literal["memory", "machine", "redis"] = "redis"
    if shared in ("memory", "auto"):
        kind = "memory" if shared == "memory" else "machine"
    return Sharing(kind=kind, trouble=None if state.shared_health is None else state.shared_health.trouble)
