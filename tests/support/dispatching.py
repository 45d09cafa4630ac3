"""A real dispatch whose vendor is a list of events: for what the core does around an answer."""

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from router.adapters import Adapter, Keyed
from router.attempts import Attempts
from router.call import Attempt, Call, Credentials, Events, Terms, Trip, new_trip
from router.catalog import Catalog
from router.chooser import Chooser
from router.config import parse
from router.dispatch import Dispatch
from router.estimate import Estimator
from router.events import Event, Usage, UsageReported
from router.messages import ChatRequest, Content, User
from router.pricing import Cost, Pricing
from router.provider import HttpError, HttpHead, HttpRequest, Target
from router.route import HealthRules
from router.routing.health_book import HealthBook

CONFIG = """
providers:
  openai: {protocol: openai, base_url: "http://127.0.0.1:9/v1"}
models:
  chat: {targets: [openai/gpt-5]}
"""


class Told:
    """Books that remember what they were told, and price nothing."""

    away = None
    backlog = 0

    def __init__(self) -> None:
        self.opened: list[Attempt] = []
        self.settled: list[Attempt] = []

    def open(self, call: Call, attempt: Attempt) -> None:
        self.opened.append(attempt)

    def settle(self, call: Call, attempt: Attempt) -> None:
        assert any(attempt is opened for opened in self.opened)
        assert not any(attempt is settled for settled in self.settled), "settled twice"
        assert attempt.outcome is not None
        self.settled.append(attempt)

    def close(self, call: Call, error: BaseException | None, layers: tuple[str, ...]) -> None:
        return None


class Free:
    """A price book without a price."""

    def cost(self, *_: Any, **__: Any) -> Cost | None:
        return None

    ceiling = cost

    def knows(self, target: Target, at: int) -> bool:
        return False

    def convert(self, nano: int, currency: str, to: str, at: int) -> int | None:
        return nano if currency == to else None


class Listed:
    """Decoder, stream, upstream and provider in one: plays the events, then raises the error if there is one."""

    def __init__(self, events: Sequence[Event], error: BaseException | None) -> None:
        self.head = HttpHead(200, {})
        self.usage: Usage | None = None
        self.closed = 0
        self._events = events
        self._error = error
        self._read = False

    async def send(self, request: HttpRequest, timeouts: Any) -> "Listed":
        return self

    async def read(self) -> bytes:
        if self._read and self._error is not None:
            raise self._error
        data, self._read = b"" if self._read else b"all", True
        return data

    async def release(self) -> None:
        self.closed += 1

    aclose = release

    def feed(self, data: bytes) -> Iterator[Event]:
        for event in self._events:
            if isinstance(event, UsageReported):
                self.usage = event.usage
            yield event

    def finish(self) -> Iterator[Event]:
        return iter(())

    def encode(self, request: ChatRequest, target: Target) -> HttpRequest:
        return HttpRequest("http://127.0.0.1:9/", {}, b"", streamed=True)

    def decoder(self, *_: Any) -> "Listed":
        return self

    def error(self, response: HttpError, target: Target) -> Any:
        raise AssertionError("no vendor was asked")

    def learn(self, *_: Any) -> bool:
        return False


def dispatched(
    events: Sequence[Event], error: BaseException | None = None, estimator: Estimator | None = None
) -> tuple[Dispatch, Told]:
    config = parse(CONFIG, "providers.yaml", {}).config
    listed: Any = Listed(events, error)
    books = Told()
    adapter = Adapter("openai", [Keyed(listed)], listed)
    health = HealthBook(HealthRules(), time.monotonic, random.Random(1))
    adapters, catalog, draw = {"openai": adapter}, Catalog(config), random.Random(1)
    chooser = Chooser(catalog, adapters, Free(), estimator, health, draw=draw, clock=time.monotonic)
    return Dispatch(catalog, chooser, Attempts(adapters, books, health, estimator), health), books


def a_call(model: str = "chat", prompt: Content = "Hi", **fields: Any) -> Call:
    request = ChatRequest(model=model, messages=(User(prompt),), protocol="openai", **fields)
    return Call(id="req_1", request=request, dialect="openai.chat", trip=a_trip(), credentials=Credentials(None))


def a_trip(pricing: Pricing | None = None, *, keyed: bool = True) -> Trip:
    """Under a configuration with the route `chat`, as `generation` g1."""
    trip = new_trip()
    trip.terms = Terms("g1", pricing or Free(), lambda name: name == "chat", keyed)
    return trip


async def collected(events: Events) -> list[Event]:
    return [event async for event in events]
