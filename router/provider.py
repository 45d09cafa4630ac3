"""The contract of a provider adapter: request → HTTP request, bytes → events, error body → error.

Adapters are sans-io: they hold no socket and no clock, so one suite of recorded transcripts, cut at every byte, tests
them all. `docs/add-a-provider.md` walks through one.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from msgspec import Struct

from router.errors import ProviderError
from router.events import Event, Usage
from router.messages import ChatRequest


class Target(Struct, frozen=True):
    """One model at one provider. Written `provider/model`."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


class ProviderSettings(Struct, frozen=True, kw_only=True):
    """What an adapter is built from: one row under `providers` in the configuration."""

    name: str
    base_url: str
    api_key: str | None = None
    headers: Mapping[str, str] = {}
    """Sent with every request, over the adapter's own."""
    options: Any = None
    """An instance of the adapter's `Options`."""


class HttpRequest(Struct, frozen=True):
    """What is sent to the vendor. Header names are in lower case."""

    url: str
    headers: dict[str, str]
    body: bytes
    streamed: bool
    """Whether the vendor was asked to stream, which it may be even when the client did not ask."""
    method: str = "POST"
    dropped: tuple[str, ...] = ()
    """Fields of the client's request that this vendor has no equal for, as paths in the client's words."""


class HttpHead(Struct, frozen=True):
    """Status and headers of the vendor's response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]


class HttpError(Struct, frozen=True):
    """A response that is not a 2xx, its body cut at a bound."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Decoder(Protocol):
    """Turns one response's bytes into events; made anew for every response.

    `feed` takes the bytes in any cut. Both methods yield what is complete and raise a `ProviderError` at the
    place where the vendor failed, after the events that came before it. `finish` is called once at the end of
    the body; it raises `StreamCut` unless the answer had come to its proper end. A decoder that has yielded
    `Completed` ignores what follows.
    """

    @property
    def usage(self) -> Usage | None:
        """The last counts the vendor has told, final or not: all that is known when a stream is cut."""
        ...

    def feed(self, data: bytes) -> Iterable[Event]: ...

    def finish(self) -> Iterable[Event]: ...


class Provider(Protocol):
    """One protocol spoken to one vendor account. Built once from its row; shared by all calls."""

    Options: ClassVar[type[Struct]]
    """Settings of its own, under `options` in the provider's row. Checked at start."""
    base_url: ClassVar[str | None]
    """Where the vendor is when the row does not say; None: the row must."""

    def __init__(self, settings: ProviderSettings) -> None: ...

    def encode(self, request: ChatRequest, target: Target) -> HttpRequest:
        """The request in the vendor's words. Raises `InvalidRequest` where it cannot be said at all."""
        ...

    def decoder(self, request: ChatRequest, target: Target, sent: HttpRequest, head: HttpHead) -> Decoder: ...

    def error(self, response: HttpError, target: Target) -> ProviderError: ...

    def learn(self, error: ProviderError, target: Target, sent: HttpRequest) -> bool:
        """Whether `error` taught something (another path, a field the vendor refuses) that makes a second try,
        encoded anew, worth while. Must not say yes twice for the same lesson."""
        ...


@runtime_checkable
class Continues(Protocol):
    """A provider whose vendor can be given the beginning of its answer.

    Optional: without it a vendor is told, in words, to go on with the answer that another has left off.
    """

    def continued(self, request: ChatRequest, target: Target) -> ChatRequest | None:
        """`request`, which ends with the beginning of the answer as an `Assistant` message, in the form by which the
        vendor goes on from there; None where it cannot (with thinking, say)."""
        ...


class VendorResponse(Struct, frozen=True):
    """What an in-process vendor answers. `body` may raise `ConnectionError` to cut the stream."""

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]


@runtime_checkable
class InProcess(Protocol):
    """A provider that is its own vendor: `mock` answers here instead of over a socket."""

    async def respond(self, request: HttpRequest) -> VendorResponse: ...
