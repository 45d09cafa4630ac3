"""`/schema/openapi.json`: the API described. The routes that stream are bare ASGI ones: they are added by hand here."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from litestar import Request
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from msgspec import Struct

from router.wire.unknown import Unknown

_REF = "#/components/schemas/{name}"
_TEXT: Final[dict[str, Any]] = {"type": "string"}
_KEPT: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("limit", "How many.", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
    ("after", "The id that the page before ended with.", _TEXT),
    ("order", "By the time they were made.", {**_TEXT, "enum": ["asc", "desc"], "default": "asc"}),
    ("model", "Those that were asked for by this name.", _TEXT),
    ("metadata[name]", "Those with this pair; of several, those with all.", _TEXT),
)


class ErrorBody(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Struct):
    """Every error of every route has this shape; the header `x-request-id` names the request in the log."""

    error: ErrorBody


class Description(JsonRenderPlugin):
    """Litestar's description of its own routes, completed by the chat routes: path → type of the request body."""

    def __init__(self, chat: Mapping[str, Any]) -> None:
        super().__init__()
        self._chat = chat

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        refs, schemas = msgspec.json.schema_components(
            [*self._chat.values(), ErrorResponse], schema_hook=_any_object, ref_template=_REF
        )
        *bodies, error = refs
        paths = {path: _chat_path(body, error) for path, body in zip(self._chat, bodies, strict=True)}
        components = openapi_schema.get("components", {})
        whole = {
            **openapi_schema,
            "paths": {**paths, **_stream_paths(error), **openapi_schema.get("paths", {})},
            "components": {**components, "schemas": {**_open(schemas), **components.get("schemas", {})}},
        }
        return self.render_json(request, whole)


def _any_object(kind: type) -> dict[str, Any]:
    if issubclass(kind, Unknown):
        return {"type": "object"}
    raise TypeError(f"no JSON Schema for {kind.__name__}")


def _open(schemas: dict[str, Any]) -> dict[str, Any]:
    """The schemas as they are for a client: fields that are not named are taken, and travel to the vendor."""
    opened = {}
    for name, schema in schemas.items():
        properties = {key: value for key, value in schema.get("properties", {}).items() if key != "unknown"}
        opened[name] = {**schema, "properties": properties, "additionalProperties": True} if properties else schema
    return opened


def openapi_config(version: str, chat: Mapping[str, Any]) -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Deltaway",
        version=version,
        description="One endpoint for many model vendors.",
        path="/schema",
        render_plugins=[Description(chat)],
        components=Components(security_schemes={"key": SecurityScheme(type="http", scheme="bearer")}),
        security=[{"key": []}],
    )


def _chat_path(body: dict[str, Any], error: dict[str, Any]) -> dict[str, Any]:
    def failed(words: str) -> dict[str, Any]:
        return {"description": words, "content": {"application/json": {"schema": error}}}

    return {
        "post": {
            "tags": ["chat"],
            "summary": "Create a chat completion",
            "operationId": "CreateChatCompletion",
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {
                "200": {
                    "description": "The answer: one JSON object, or with `stream: true` server-sent events that end "
                    "with `data: [DONE]` if and only if the answer is complete.",
                    "content": {
                        "application/json": {"schema": {"type": "object"}},
                        "text/event-stream": {"schema": {"type": "string"}},
                    },
                },
                "400": failed("The request is wrong; `param` names the place."),
                "401": failed("No key, or a wrong one."),
                "403": failed("The key may not use this model."),
                "404": failed("No such model; the message names near ones."),
                "413": failed("The body is over the limit."),
                "429": failed("The vendor limits the rate; see `retry-after`."),
                "502": failed("The vendor failed."),
                "503": failed("The provider is not available."),
                "504": failed("The vendor was too slow."),
            },
        },
        "get": {
            "tags": ["chat"],
            "summary": "List kept completions, the oldest first",
            "operationId": "ListChatCompletions",
            "parameters": [
                {"name": name, "in": "query", "required": False, "description": words, "schema": schema}
                for name, words, schema in _KEPT
            ],
            "responses": {
                "200": {
                    "description": "A page of those that were asked for with `store: true`.",
                    "content": {"application/json": {"schema": {"type": "object"}}},
                },
                "400": failed("A parameter is wrong; `param` names it."),
                "401": failed("No key, or a wrong one."),
                "503": failed("The store is away."),
            },
        },
    }


def _stream_paths(error: dict[str, Any]) -> dict[str, Any]:
    def failed(words: str) -> dict[str, Any]:
        return {"description": words, "content": {"application/json": {"schema": error}}}

    def described(words: str, form: str = "application/json") -> dict[str, Any]:
        schema = {"type": "string" if form == "text/event-stream" else "object"}
        return {"description": words, "content": {form: {"schema": schema}}}

    def parameter(name: str, where: str, words: str, *, required: bool = False) -> dict[str, Any]:
        return {"name": name, "in": where, "required": required, "description": words, "schema": {"type": "string"}}

    stream = parameter("id", "path", "`x-deltaway-stream` of the call's answer.", required=True)
    token = parameter("token", "query", "In place of a key, for whoever cannot send headers.")
    refused = {
        "401": failed("No key or token, or a wrong one."),
        "404": failed("No such stream, or another key's."),
        "503": failed("The log of streams is away."),
    }
    return {
        "/v1/streams/{id}": {
            "get": {
                "tags": ["streams"],
                "summary": "Come back to a stream",
                "operationId": "ReadStream",
                "parameters": [
                    stream,
                    token,
                    parameter("Last-Event-ID", "header", "The id of the event that was read last."),
                    parameter("last_event_id", "query", "The same; the header is the newer of both."),
                ],
                "responses": {
                    "200": described("What came after that event, then live.", "text/event-stream"),
                    "204": {"description": "All was seen."},
                    "400": failed("The last event id is malformed, of another stream, or beyond the end."),
                    "410": failed("It has ended, and its time is over."),
                    **refused,
                },
            },
            "delete": {
                "tags": ["streams"],
                "summary": "Stop a stream",
                "operationId": "StopStream",
                "parameters": [stream, token],
                "responses": {
                    "200": described("It had ended before."),
                    "202": described("It is being stopped."),
                    **refused,
                },
            },
        },
        "/v1/streams/{id}/token": {
            "post": {
                "tags": ["streams"],
                "summary": "Make an address that opens a stream without a key",
                "operationId": "CreateStreamToken",
                "parameters": [stream],
                "responses": {"200": described("The address, and until when it is good."), **refused},
            }
        },
    }
