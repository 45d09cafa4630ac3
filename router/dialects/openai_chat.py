"""OpenAI's Chat Completions, spoken to clients. Knows no vendor, no HTTP and no plugin."""

import time
from collections.abc import Callable
from typing import Final

from router.dialect import Asked
from router.dialects.openai_chat_answer import Form, error_body, whole
from router.dialects.openai_chat_request import RequestDecoder
from router.dialects.openai_chat_stream import HEARTBEAT, StreamEncoder, failure
from router.errors import RouterError
from router.fold import Answer
from router.ids import made_at
from router.messages import ChatRequest, FunctionTool

NAME: Final = "openai.chat"


class OpenAIChat:
    """The dialect of `POST /v1/chat/completions`. `clock` gives Unix seconds, for vendors that tell no time."""

    name = NAME
    heartbeat = HEARTBEAT

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._requests = RequestDecoder()

    def decode(self, body: bytes) -> Asked:
        return self._requests.decode(body)

    def stream(self, asked: Asked, request_id: str) -> StreamEncoder:
        return StreamEncoder(self._form(asked, request_id))

    def whole(self, asked: Asked, answer: Answer, request_id: str) -> bytes:
        return whole(answer, self._form(asked, request_id))

    def failure(self, error: RouterError, request_id: str) -> bytes:
        return failure(error, request_id)

    def error(self, error: RouterError, request_id: str) -> bytes:
        """The request id is in the response's headers, so the body is exactly OpenAI's."""
        return error_body(error)

    def _form(self, asked: Asked, request_id: str) -> Form:
        return Form(
            id="chatcmpl-" + request_id.removeprefix("req_"),
            model=asked.request.model,
            # what is kept says the same as what was sent
            created=made_at(request_id) // 1000 if asked.store else int(self._clock()),
            include_usage=asked.include_usage,
            deprecated=_deprecated(asked.request),
            own_id=asked.store,
        )


def _deprecated(request: ChatRequest) -> bool:
    """Whether the client described its tools in the old `functions` form, and so knows no other answer."""
    return bool(request.tools) and all(isinstance(tool, FunctionTool) and tool.deprecated for tool in request.tools)
