"""Plugins as their authors write them. Never run: `tests/test_typing.py` gives it to mypy, strict."""

from contextlib import AbstractAsyncContextManager, nullcontext

import msgspec
from msgspec import Struct

from router.call import Call, Credentials, Events, Principal
from router.errors import AuthenticationFailed, ProviderError, RouterError
from router.events import ChoiceFinished, Completed, Event, Started, TextDelta, UsageReported
from router.fold import Answer, Fold
from router.plugin import Authenticator, CallNext, HasLifespan, Plugin, compose


class Passes:
    async def stream(self, call: Call, call_next: CallNext) -> Events:
        async for event in call_next(call):
            yield event


class NotAGenerator:
    """Hands the next layer's stream on, unwrapped."""

    def stream(self, call: Call, call_next: CallNext) -> Events:
        return call_next(call.with_request(msgspec.structs.replace(call.request, model="mock/echo")))


class AnswersItself:
    class Settings(Struct, frozen=True, forbid_unknown_fields=True):
        text: str = "Closed for today."

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def stream(self, call: Call, call_next: CallNext) -> Events:
        yield Started("closed", call.request.model, 0)
        yield TextDelta(0, 0, self._settings.text)
        yield ChoiceFinished(0, "stop")
        yield Completed()


class Remembers:
    """Folds the answer beside the stream and opens something at start."""

    inside_of = ("logging",)

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def lifespan(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def stream(self, call: Call, call_next: CallNext) -> Events:
        fold = Fold()
        try:
            async for event in call_next(call):
                fold.add(event)
                if isinstance(event, UsageReported):
                    print(event.usage.prompt_total, event.usage.completion_total)
                yield event
        except ProviderError as error:
            print(error.status, error.kind, error.retryable, error.vendor_status)
            raise
        finally:
            self.answers.append(fold.result())


class Doorkeeper:
    async def authenticate(self, credentials: Credentials) -> Principal:
        if credentials.secret is None:
            raise AuthenticationFailed("no key was presented")
        return Principal("dw-1")

    async def stream(self, call: Call, call_next: CallNext) -> Events:
        principal = await self.authenticate(call.credentials)
        async for event in call_next(call.with_principal(principal)):
            yield event


def built(vendor: CallNext) -> CallNext:
    plugins: list[Plugin] = [
        Doorkeeper(),
        Remembers(),
        AnswersItself(AnswersItself.Settings()),
        NotAGenerator(),
        Passes(),
    ]
    return compose(plugins, vendor)


authenticator: Authenticator = Doorkeeper()
with_lifespan: HasLifespan = Remembers()


def every_event_has_a_name(event: Event) -> str:
    return type(event).__name__


def every_error_says_everything(error: RouterError) -> tuple[int, str, str, bool, str]:
    return error.status, error.kind, error.code, error.retryable, error.message
