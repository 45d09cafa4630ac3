"""How a server starts and stops: plugins and sockets open, drain on SIGTERM, everything closed at the end.

On SIGTERM: `/health/ready` answers 503 at once, for `delay` seconds new calls are still served (the load balancer
needs that long to notice), then no connection is accepted and open streams may go on for `grace` seconds. What is
not finished then ends with an error event that says so. On SIGINT (Ctrl-C) the same without the delay; a second one
ends the process at once. On SIGHUP nothing stops: the configuration is read anew.
"""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from types import FrameType
from typing import Any, Final, TypeAlias

from router.errors import ShuttingDown
from router.generation import Generations
from router.reloading import Reloader
from router.running import Running
from router.settings import Shutdown

LAST_WORDS: Final = 2.0
"""Seconds the interrupted calls have to write their last event before the server closes their connections."""

Lifespan: TypeAlias = Callable[[Any], Any]


def lifespan(
    behind: Callable[[], AbstractAsyncContextManager[None]],
    generations: Generations,
    reloader: Reloader,
    running: Running,
    shutdown: Shutdown,
) -> Lifespan:
    """The Litestar lifespan of one worker. `behind`: what is open as long as anything else is."""

    @asynccontextmanager
    async def opened(app: Any) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(behind())
            await stack.enter_async_context(generations.lifespan())
            await stack.enter_async_context(reloader.lifespan())
            stack.callback(_reload_on_hangup(reloader))
            restore = _drain_on_signals(running, shutdown)
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


def _reload_on_hangup(reloader: Reloader) -> Callable[[], None]:
    """SIGHUP reads the configuration anew. Gives what restores the handler before."""
    if not hasattr(signal, "SIGHUP"):
        return lambda: None
    loop = asyncio.get_running_loop()

    def begin(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(reloader.soon, "SIGHUP")

    try:
        before = signal.signal(signal.SIGHUP, begin)
    except ValueError:
        # signals belong to the main thread; elsewhere whoever started us has them
        return lambda: None
    # a worker is started with it blocked, so that one which comes too early waits until here
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    return lambda: _put_back(before)


def _put_back(handler: Any) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL if handler is None else handler)


def _drain_on_signals(running: Running, shutdown: Shutdown) -> Callable[[], None]:
    """Put the drain before the server's own handlers. Gives what restores them."""
    loop = asyncio.get_running_loop()
    servers_own: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def begin(number: int, frame: FrameType | None) -> None:
        if running.draining:
            servers_own[number](number, frame)
            return
        running.draining = True
        # who presses Ctrl-C has no load balancer to wait for, and may press again
        delay = shutdown.delay if number == signal.SIGTERM else 0.0
        if not delay:
            servers_own[number](number, frame)
        loop.call_soon_threadsafe(schedule, number, delay)

    def schedule(number: int, delay: float) -> None:
        stopping = ShuttingDown("the server is stopping; send the request again", retry_after=1.0)
        if delay:
            loop.call_later(delay, servers_own[number], number, None)
        loop.call_later(delay + shutdown.grace, running.interrupt_all, stopping)

    def restore() -> None:
        for number, handler in servers_own.items():
            signal.signal(number, handler)

    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        # else not under a server that stops on signals, e.g. in a test
        if callable(handler) and handler is not signal.default_int_handler:
            servers_own[number] = handler
            try:
                signal.signal(number, begin)
            except ValueError:
                # signals belong to the main thread; elsewhere whoever started us stops us
                return lambda: None
    return restore
