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

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from time import monotonic
from typing import Protocol, TypeAlias, runtime_checkable

from router.call import Call, Credentials, Events, Principal
from router.events import Event

CallNext: TypeAlias = Callable[[Call], Events]
"""Opens the stream of the next layer inwards."""


class Plugin(Protocol):
    """One layer of the onion, built once at start as `cls(settings)`, or `cls()` if it has no `Settings`.

    Optional class attributes:

    * `Settings`: a msgspec Struct, checked against the configuration at start. The constructor may raise
      `ValueError` for what a type cannot say, with a message that says what to write instead;
    * `wants_services = True`: it is built as `cls(settings, services)`, with what `router.services` lends;
    * `needs_ledger = True`: a configuration with the ledger off is refused at start;
    * `outside_of` and `inside_of`: names of plugins that this one must come before or after in the list. A list
      that breaks them is refused at start, never reordered; a name that is not in the list is no matter.

    `stream` is an async generator, or a function that looks at the call and returns `call_next(call)`: such a layer
    costs nothing per event.
    """

    def stream(self, call: Call, call_next: CallNext) -> Events: ...


@runtime_checkable
class Authenticator(Protocol):
    """A plugin that can tell who presents a key; routes other than chat ask it."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Raises `AuthenticationFailed`."""
        ...


@runtime_checkable
class HasLifespan(Protocol):
    """A plugin that opens something at start and closes it at the end."""

    def lifespan(self) -> AbstractAsyncContextManager[None]: ...


def check_order(plugins: Mapping[str, type]) -> list[tuple[str, str]]:
    """What is wrong with the order of a list of plugins, outermost first: (the plugin to move, what to do).

    Maps each name to its class. Each broken constraint is told once, whichever side declares it.
    """
    names = list(plugins)
    problems: dict[tuple[str, str], str] = {}
    for name, kind in plugins.items():
        for other in getattr(kind, "outside_of", ()):
            if other in names and names.index(other) < names.index(name):
                problems[name, other] = f"`{name}` must be outside of `{other}`: list it before `{other}`"
        for other in getattr(kind, "inside_of", ()):
            if other in names and names.index(other) > names.index(name):
                problems.setdefault((other, name), f"`{other}` must be outside of `{name}`: list it before `{name}`")
    return [(name, message) for (name, _), message in problems.items()]


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
        call.trip.opened_at.append(monotonic())
        try:
            events = layer(call)
        except Exception as error:
            # a layer that is no generator: what it raises comes out where a generator's would
            events = _failed(error)
        generators = call.trip.generators
        if not generators or generators[-1] is not events:
            generators.append(events)
        return events

    return opened


async def _failed(error: Exception) -> Events:
    nothing: tuple[Event, ...] = ()
    for event in nothing:
        yield event
    raise error
