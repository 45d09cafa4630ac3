"""Generations: all that one configuration made for the request path, and how one takes the place of another.

A call keeps to the generation it began under until it ends. The swap is one assignment, so no call sees two. What an
old generation holds open is closed when its last call has ended: its plugins, and the sockets that no other uses.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Final, Protocol

import structlog
from msgspec import structs

from router.adapters import Adapter
from router.call import Credentials, Principal, Terms
from router.catalog import Catalog
from router.config import ConfigError, Loaded
from router.plugin import Authenticator, CallNext, HasLifespan, Plugin
from router.prices.pricing import PriceBookPricing
from router.settings import Config, ProviderRow
from router.upstream import Upstream

_ID_LENGTH: Final = 12
_PATIENCE: Final = 30.0
"""Seconds that the plugins of a generation may take to open, and as many to close."""


def generation_id(document: str, prices: str | None) -> str:
    """Twelve hexadecimal digits, the same for the same files wherever they are."""
    said = hashlib.sha256(document.encode("utf-8", "surrogatepass"))
    if prices is not None:
        said.update(b"\0" + prices.encode("utf-8", "surrogatepass"))
    return said.hexdigest()[:_ID_LENGTH]


class Admins(Protocol):
    """Knows the admin keys, also where calls need no key at all."""

    @property
    def has_admin_key(self) -> bool: ...

    async def authenticate(self, credentials: Credentials) -> Principal: ...


class Generation:
    """One configuration, ready to serve. `since` is when it was made, in Unix milliseconds."""

    def __init__(
        self,
        identity: str,
        since: int,
        loaded: Loaded,
        catalog: Catalog,
        pricing: PriceBookPricing,
        adapters: Mapping[str, Adapter],
        plugins: Sequence[Plugin],
        layers: CallNext,
        admins: Admins,
    ) -> None:
        """`admins` knows the admin keys; `layers` is the onion of `plugins`."""
        self.id = identity
        self.since = since
        self.loaded = loaded
        self.catalog = catalog
        self.pricing = pricing
        self.adapters = dict(adapters)
        self.plugins = tuple(plugins)
        self.layers = layers
        self.layer_names = tuple(row.name for row in loaded.config.plugins)
        self.admins = admins
        self.authenticator: Authenticator | None = next(
            (plugin for plugin in plugins if isinstance(plugin, Authenticator)), None
        )
        """Who is asked for a key; None where calls need none."""
        server = loaded.config.server
        self.body_limit: int = server.body_limit
        self.heartbeat = float(server.heartbeat)
        self.terms = Terms(identity, pricing, catalog.is_route, self.authenticator is not None)
        self.calls = 0
        """Those that have begun under it and run, in this process."""
        self._drained: asyncio.Event | None = None

    @property
    def config(self) -> Config:
        return self.loaded.config

    def adapter_for(self, row: ProviderRow) -> Adapter | None:
        """Its adapter of that name, if the row says the same of everything that an adapter is made of."""
        known = self.config.providers.get(row.name)
        if known is None or _made_of(known) != _made_of(row):
            return None
        return self.adapters.get(row.name)

    @property
    def operators(self) -> tuple[Authenticator, ...]:
        """Whom the operators' routes ask, in turn: the plugin that guards the calls, and what knows the admin keys."""
        if self.authenticator is None or self.authenticator is self.admins:
            return (self.admins,)
        return self.authenticator, self.admins

    def tracked(self) -> "_InFlight":
        """`with generation.tracked():` around a call: as long as it runs, nothing that it needs is closed."""
        return _InFlight(self)

    def begun(self) -> None:
        self.calls += 1

    def ended(self) -> None:
        self.calls -= 1
        if not self.calls and self._drained is not None:
            self._drained.set()

    async def drained(self) -> None:
        """Wait until no call runs under it. Once it is out of force none can begin."""
        if self.calls:
            self._drained = asyncio.Event()
            await self._drained.wait()


def _made_of(row: ProviderRow) -> ProviderRow:
    """Of a row what makes the adapter: the rest belongs to the catalog and the price book."""
    return structs.replace(row, timeouts=None, models=(), can={}, price_list=None)


class _InFlight:
    __slots__ = ("_generation",)

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def __enter__(self) -> Generation:
        self._generation.begun()
        return self._generation

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._generation.ended()


class Generations:
    """Those of one process: the one in force, and older ones that still have calls."""

    def __init__(self, first: Generation, comes: Callable[[Generation], None]) -> None:
        """`comes` tells what outlives generations of each that comes into force; it may not fail."""
        self.current = first
        """The one in force; whoever takes it keeps it for the whole of what they do."""
        self.patience = _PATIENCE
        self._comes = comes
        self._used_by: dict[Upstream, int] = {}
        """How many generations use a socket."""
        self._retired: dict[asyncio.Task[None], asyncio.Event] = {}
        """What each generation lives in, and the word that it is out of force."""
        self._opening: set[asyncio.Task[None]] = set()
        """Of those the ones that are not open yet."""
        self._in_force: asyncio.Event | None = None
        self._stopping = asyncio.Event()
        self._log = structlog.get_logger("deltaway.config")
        comes(first)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Opens what the first generation has to open; at the end closes what any of them has open."""
        self._stopping.clear()
        self._in_force = await self._open(self.current)
        try:
            yield
        finally:
            self._stopping.set()
            for retired in self._retired.values():
                retired.set()
            for task in self._opening:
                task.cancel()
            if self._retired:
                _, left = await asyncio.wait(self._retired, timeout=self.patience + 1)
                for task in left:
                    task.cancel()
                    self._log.error("plugins did not close in time and were left", task=task.get_name())
            self._in_force = None

    async def swap(self, generation: Generation) -> None:
        """Put it in force once its plugins are open. Raises `ConfigError` where one of them cannot be opened, or takes
        too long: then nothing changes."""
        opened, before = await self._open(generation), self._in_force
        self.current = generation
        self._comes(generation)
        self._in_force = opened
        if before is not None:
            before.set()

    @property
    def draining(self) -> int:
        """Generations that are out of force and still have calls."""
        return len(self._retired) - (self._in_force is not None)

    async def _open(self, generation: Generation) -> asyncio.Event:
        """The word that ends it."""
        opened, retired = asyncio.get_running_loop().create_future(), asyncio.Event()
        # in a task of its own: what a plugin enters it must leave in the same one
        living = asyncio.create_task(self._live(generation, opened, retired), name=f"generation {generation.id}")
        self._retired[living] = retired
        living.add_done_callback(lambda done: self._retired.pop(done, None))
        self._opening.add(living)
        try:
            # not `wait_for`: a plugin that does not let itself be cancelled would hold that too
            await asyncio.wait([opened], timeout=self.patience)
            if not opened.done():
                words = f"the plugins could not be opened: they took longer than {self.patience:g} seconds"
                raise ConfigError((generation.loaded.document.problem(("plugins",), words),))
            await opened
        except BaseException:
            retired.set()
            # one that has failed closes by itself what it had open
            if not opened.done():
                opened.cancel()
                living.cancel()
            raise
        finally:
            self._opening.discard(living)
        return retired

    async def _live(self, generation: Generation, opened: "asyncio.Future[None]", retired: asyncio.Event) -> None:
        upstreams = {adapter.upstream for adapter in generation.adapters.values()}
        for upstream in upstreams:
            self._used_by[upstream] = self._used_by.get(upstream, 0) + 1
        stack = AsyncExitStack()
        try:
            if await self._entered(generation, stack, opened):
                await retired.wait()
                await self._drain(generation)
        finally:
            await self._left(generation, stack)
            for upstream in upstreams:
                await self._let_go(upstream)

    async def _entered(self, generation: Generation, stack: AsyncExitStack, opened: "asyncio.Future[None]") -> bool:
        """Open its plugins; whether all are, and are still wanted."""
        for row, plugin in zip(generation.config.plugins, generation.plugins, strict=True):
            if not isinstance(plugin, HasLifespan):
                continue
            try:
                await stack.enter_async_context(plugin.lifespan())
            except GeneratorExit:
                raise
            except BaseException as error:
                # also what would end the process, as SystemExit: a plugin that cannot open decides about itself alone
                if opened.done():
                    return False
                words = f"the plugin `{row.name}` could not be opened: {type(error).__name__}: {error}"
                self._log.error(words, generation=generation.id, exc_info=error)
                failed = ConfigError((generation.loaded.document.problem(row.path, words.rstrip(": ")),))
                failed.__cause__ = error
                opened.set_exception(failed)
                return False
        if opened.done():
            return False
        opened.set_result(None)
        return True

    async def _left(self, generation: Generation, stack: AsyncExitStack) -> None:
        try:
            async with asyncio.timeout(self.patience):
                await stack.aclose()
        except GeneratorExit:
            raise
        except BaseException as error:
            self._log.error("a plugin failed while it closed", generation=generation.id, exc_info=error)

    async def _drain(self, generation: Generation) -> None:
        """Until its last call has ended, or the server stops: then whoever stops it has waited for the calls."""
        if self._stopping.is_set() or not generation.calls:
            return
        waits = [asyncio.create_task(generation.drained()), asyncio.create_task(self._stopping.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _let_go(self, upstream: Upstream) -> None:
        self._used_by[upstream] -= 1
        if self._used_by[upstream]:
            return
        del self._used_by[upstream]
        try:
            await upstream.aclose()
        except Exception as error:
            self._log.error("the connections to a vendor could not be closed", exc_info=error)
