"""The contract of a dialect: a wire format that clients speak to us. Client body → request, events → client bytes."""

from typing import Protocol

from msgspec import Struct

from router.errors import RouterError
from router.events import Event
from router.fold import Answer
from router.messages import ChatRequest


class Asked(Struct, frozen=True):
    """One decoded client request: what is asked of the model, and what the client wants of the answer's form."""

    request: ChatRequest
    include_usage: bool = False
    """Whether a streamed answer shall report usage. A whole answer always does."""
    conversation: str | None = None
    """The id of the kept conversation that it is a turn of."""
    parent: str | None = None
    """The item of that conversation which the messages are to follow; None: whichever is its last."""
    store: bool = False
    """Whether the gateway shall keep the request and its answer, which then bears an id of the gateway's own."""


class StreamEncoder(Protocol):
    """The events of one call → the bytes of its body. Made anew for every call; keeps no event."""

    def encode(self, event: Event) -> bytes:
        """The bytes of one event; empty where the dialect has no word for it."""
        ...

    def end(self) -> bytes:
        """The mark of an honest end. Called only after `Completed`."""
        ...


class Dialect(Protocol):
    name: str
    """As in receipts: `openai.chat`."""
    heartbeat: bytes
    """What is written on a stream while there is nothing to say."""

    def decode(self, body: bytes) -> Asked:
        """Raises `InvalidRequest`, naming the path in the body."""
        ...

    def stream(self, asked: Asked, request_id: str) -> StreamEncoder: ...

    def whole(self, asked: Asked, answer: Answer, request_id: str) -> bytes: ...

    def failure(self, error: RouterError, request_id: str) -> bytes:
        """The error event that ends a stream which has begun."""
        ...

    def error(self, error: RouterError, request_id: str) -> bytes:
        """The body of an error response."""
        ...
