"""Errors of routes other than chat, in the OpenAI dialect: wrong paths, methods and keys, and our own faults."""

from typing import Any

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException

from router.dialect import Dialect
from router.errors import (
    BodyTooLarge,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RouterError,
)
from router.http.reply import error_headers
from router.ids import request_id


class ErrorResponses:
    """Litestar exception handlers that answer in `dialect`."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._log = structlog.get_logger("deltaway.http")

    def numbered(self, response: Response[Any]) -> Response[Any]:
        """Every response bears a request id, not only an error's."""
        response.headers.setdefault("x-request-id", request_id())
        return response

    def router_error(self, request: Request[Any, Any, Any], error: RouterError) -> Response[bytes]:
        return self._response(error)

    def http_exception(self, request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
        path, method = request.scope["path"], request.method
        mapped: RouterError
        if error.status_code == 404:
            mapped = NotFound(f"nothing is served at `{path}`; the chat endpoint is `/v1/chat/completions`")
        elif error.status_code == 405:
            mapped = MethodNotAllowed(f"`{path}` does not take {method}")
        elif error.status_code == 413:
            mapped = BodyTooLarge("the request body is larger than the limit set by `server.body_limit`")
        elif error.status_code < 500:
            mapped = InvalidRequest(error.detail)
        else:
            return self.unexpected(request, error)
        return self._response(mapped, dict(error.headers or {}))

    def unexpected(self, request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        call_id = request_id()
        self._log.error("a request failed by a fault of ours", request_id=call_id, exc_info=error)
        mapped = InternalError(f"internal error; the server's log knows more under request id {call_id}")
        return self._response(mapped, call_id=call_id)

    def _response(
        self, error: RouterError, headers: dict[str, str] | None = None, call_id: str | None = None
    ) -> Response[bytes]:
        if call_id is None:
            call_id = request_id()
            self._log.info("refused", request_id=call_id, status=error.status, code=error.code)
        ours = {name.decode(): value.decode() for name, value in error_headers(error)}
        return Response(
            self._dialect.error(error, call_id),
            status_code=error.status,
            media_type="application/json",
            headers={**(headers or {}), **ours, "x-request-id": call_id},
        )
