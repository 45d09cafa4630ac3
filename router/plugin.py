"""The plugin contract: an onion of async generators whose streams the core closes.

A plugin is one function body with all four moments in reading order::

    async def stream(self, call, call_next):
        ...                                     # before
        try:
            async for event in call_next(call):
                yield event                     # each event: change, drop, hold back, add
        except ProviderError: ...               # on failure
        finally: ...                            # on close: the end, an error, or the client leaving

To rewrite the request, pass `call.with_request(…)` on; to answer without a vendor, do not call `call_next`.
The one rule: no timeout and no task group around a `yield` (PEP 789).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Protocol, TypeAlias, runtime_checkable

from router.call import Call, Credentials, Events, Principal

CallNext: TypeAlias = Callable[[Call], Events]
"""Opens the stream of the next layer inwards."""


class Plugin(Protocol):
    """One layer of the onion, built once at start as `cls(settings)`, or `cls()` if it has no `Settings`.

    Optional class attributes: `Settings` (a msgspec Struct: checked against the configuration at start),
    `outside_of` and `inside_of` (names of plugins this one must come before or after in the list; a list that
    breaks them is refused at start, never reordered).
    """

    def stream(self, call: Call, call_next: CallNext) -> Events: ...


@runtime_checkable
class Authenticator(Protocol):
    """A plugin that can tell who presents a key; routes other than chat ask it."""

    def authenticate(self, credentials: Credentials) -> Principal:
        """Raises `AuthenticationFailed`."""
        ...


@runtime_checkable
class HasLifespan(Protocol):
    """A plugin that opens something at start and closes it at the end."""

    def lifespan(self) -> AbstractAsyncContextManager[None]: ...


def compose(plugins: Sequence[Plugin], source: CallNext) -> CallNext:
    """The onion around `source`; the plugin listed first is the outermost."""
    layer = owned(source)
    for plugin in reversed(plugins):
        layer = owned(partial(plugin.stream, call_next=layer))
    return layer


def owned(layer: CallNext) -> CallNext:
    """Give every stream that a layer opens to its call, which closes the innermost first.

    An async generator that its consumer leaves is closed at some later tick, in another task, or never
    (PEP 533): the vendor would go on and bill. So no layer has to remember to close; `Trip.close` does.
    """

    def opened(call: Call) -> Events:
        events = layer(call)
        call.trip.generators.append(events)
        return events

    return opened
