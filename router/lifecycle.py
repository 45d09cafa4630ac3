"""How a server starts and stops: plugins and sockets open, drain on SIGTERM, everything closed at the end.

On SIGTERM: `/health/ready` answers 503 at once, for `delay` seconds new calls are still served (the load balancer
needs that long to notice), then no connection is accepted and open streams may go on for `grace` seconds. What is
not finished then ends with an error event that says so.
"""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import FrameType
from typing import Any, Final, TypeAlias

from router.errors import ShuttingDown
from router.plugin import HasLifespan, Plugin
from router.running import Running
from router.settings import Shutdown
from router.upstream import Upstream

LAST_WORDS: Final = 2.0
"""Seconds the interrupted calls have to write their last event before the server closes their connections."""

Lifespan: TypeAlias = Callable[[Any], Any]


def lifespan(
    plugins: Sequence[Plugin], upstreams: Iterable[Upstream], running: Running, shutdown: Shutdown
) -> Lifespan:
    """The Litestar lifespan of one worker."""

    @asynccontextmanager
    async def opened(app: Any) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for upstream in upstreams:
                stack.push_async_callback(upstream.aclose)
            for plugin in plugins:
                if isinstance(plugin, HasLifespan):
                    await stack.enter_async_context(plugin.lifespan())
            restore = _drain_on_sigterm(running, shutdown)
            # what start-up made lives as long as the process: the collector need not look at it again
            gc.collect()
            gc.freeze()
            try:
                yield
                await _settled(running)
            finally:
                restore()
                gc.unfreeze()

    return opened


async def _settled(running: Running) -> None:
    """The server cancels what is left of the calls just before it calls us: let them write down how they ended."""
    for _ in range(100):
        if not len(running):
            return
        await asyncio.sleep(0.02)


def _drain_on_sigterm(running: Running, shutdown: Shutdown) -> Callable[[], None]:
    """Put the drain before the server's own handler. Gives what restores the handler."""
    loop = asyncio.get_running_loop()
    try:
        servers_own = signal.getsignal(signal.SIGTERM)
    except ValueError:
        return lambda: None
    if not callable(servers_own):
        # not under a server that stops on SIGTERM, e.g. in a test
        return lambda: None

    def begin(number: int, frame: FrameType | None) -> None:
        if running.draining:
            servers_own(number, frame)
            return
        running.draining = True
        loop.call_soon_threadsafe(schedule, number)

    def schedule(number: int) -> None:
        stopping = ShuttingDown("the server is stopping; send the request again", retry_after=1.0)
        loop.call_later(shutdown.delay, servers_own, number, None)
        loop.call_later(shutdown.delay + shutdown.grace, running.interrupt_all, stopping)

    try:
        signal.signal(signal.SIGTERM, begin)
    except ValueError:
        # signals belong to the main thread; elsewhere whoever started us stops us
        return lambda: None

    def restore() -> None:
        signal.signal(signal.SIGTERM, servers_own)

    return restore
