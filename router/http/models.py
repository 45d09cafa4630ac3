"""`GET /v1/models`: the names a client may ask for, as OpenAI lists its models."""

import time
from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from msgspec import Struct

from router.call import Principal
from router.catalog import Listed
from router.errors import UnknownModel
from router.generation import Generation, Generations
from router.http.health_views import HealthView, Word
from router.http.request import read_head
from router.routing.health_book import HealthBook


class Model(Struct, frozen=True):
    """`owned_by` is the provider, or `deltaway` for a route. `created` is when this server started (Unix seconds)."""

    id: str
    created: int
    owned_by: str
    available: bool
    """Whether a call to it can be made now."""
    health: Word | None = None
    """`ok`, `resting` (left alone for a while, after failures) or `recovering`; null: it is not available."""
    missing: tuple[str, ...] = ()
    """Environment variables that must be set first."""
    object: str = "model"


class ModelList(Struct, frozen=True):
    data: list[Model]
    object: str = "list"


def model_routes(generations: Generations, health: HealthBook, started: int) -> list[HTTPRouteHandler]:
    """The handlers. Where calls need no key anybody may look."""

    async def caller(generation: Generation, request: Request[Any, Any, Any]) -> Principal | None:
        if generation.authenticator is None:
            return None
        return await generation.authenticator.authenticate(read_head(request.scope).credentials)

    def may(generation: Generation, principal: Principal | None, name: str) -> bool:
        return principal is None or principal.may_use(name, route=generation.catalog.is_route(name))

    @get("/v1/models", summary="List models", tags=["models"])
    async def list_models(request: Request[Any, Any, Any]) -> ModelList:
        generation = generations.current
        principal = await caller(generation, request)
        models, view = generation.catalog.models(), HealthView(generation, health, time.time)
        return ModelList([_model(listed, view, started) for listed in models if may(generation, principal, listed.id)])

    @get("/v1/models/{model_id:path}", summary="Retrieve a model", tags=["models"])
    async def retrieve_model(request: Request[Any, Any, Any], model_id: FromPath[str]) -> Model:
        generation, name = generations.current, model_id.removeprefix("/")
        principal = await caller(generation, request)
        if not may(generation, principal, name):
            raise UnknownModel("no model of that name that this key may use", param="model")
        view = HealthView(generation, health, time.time)
        for listed in generation.catalog.models():
            if listed.id == name:
                return _model(listed, view, started)
        # not listed, and yet `provider/model` always works; or else the error knows near names
        provider = generation.catalog.resolve(name).candidates[0].target.provider
        return Model(name, started, provider, available=True, health=view.model(name))

    return [list_models, retrieve_model]


def _model(listed: Listed, view: HealthView, started: int) -> Model:
    health = view.model(listed.id) if listed.available else None
    return Model(listed.id, started, listed.owned_by, listed.available, health, listed.missing)
