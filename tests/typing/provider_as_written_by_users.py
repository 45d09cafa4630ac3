"""A provider as its author writes it. Never run: `tests/test_typing.py` gives it to mypy, strict."""

from collections.abc import Iterable
from typing import ClassVar

import msgspec
from msgspec import Struct

from router.errors import ProviderError, StreamCut, VendorFailed
from router.events import ChoiceFinished, Completed, Event, Started, TextDelta, Usage, UsageReported
from router.messages import ChatRequest, User
from router.provider import Decoder, HttpError, HttpHead, HttpRequest, Provider, ProviderSettings, Target


class WholeText:
    """The body of the answer is the text."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._text = b""
        self.usage: Usage | None = None

    def feed(self, data: bytes) -> Iterable[Event]:
        self._text += data
        return ()

    def finish(self) -> Iterable[Event]:
        if not self._text:
            raise StreamCut(f"`{self._target}` said nothing")
        self.usage = Usage(output=len(self._text.split()), source="estimated")
        return [
            Started("", self._target.model, 0),
            TextDelta(0, 0, self._text.decode("utf-8", "replace")),
            ChoiceFinished(0, "stop"),
            UsageReported(self.usage),
            Completed(),
        ]


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    greeting: str = ""


class PlainText:
    Options: ClassVar[type[Struct]] = Options
    base_url: ClassVar[str | None] = "https://text.example/v1"

    def __init__(self, settings: ProviderSettings) -> None:
        self._settings = settings

    def encode(self, request: ChatRequest, target: Target) -> HttpRequest:
        said = [message.content for message in request.messages if isinstance(message, User)]
        return HttpRequest(
            url=f"{self._settings.base_url}/{target.model}",
            headers={"authorization": f"Bearer {self._settings.api_key}", **self._settings.headers},
            body=msgspec.json.encode({"said": said}),
            streamed=False,
        )

    def decoder(self, request: ChatRequest, target: Target, sent: HttpRequest, head: HttpHead) -> Decoder:
        return WholeText(target)

    def error(self, response: HttpError, target: Target) -> ProviderError:
        return VendorFailed(f"`{target}` answered {response.status}", vendor_status=response.status)

    def learn(self, error: ProviderError, target: Target, sent: HttpRequest) -> bool:
        return False


kind: type[Provider] = PlainText
one: Provider = PlainText(ProviderSettings(name="text", base_url="https://text.example/v1"))
