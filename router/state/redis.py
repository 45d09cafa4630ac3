"""One connection to Redis or Valkey, on which scripts run: alone or on a cluster, as all keys lie in one slot.

Whoever calls while a batch is on its way is in the next one, so that many callers cost little more than one. Nobody
waits for a connection to be made: while there is none, every call fails at once, and a task connects again.

**What is lost is known to be lost.** A Redis that was restarted, or failed over to a replica, may have forgotten
everything or come back with what it knew some minutes ago. All keys therefore bear a generation, which is told anew
whenever the server is not the one (`run_id`) that the last was made on. What an older generation counted is not seen
again and goes by its time to live.
"""

import asyncio
import hashlib
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

_CONNECT: Final = 2.0
"""Seconds to connect in, with TLS, a password and the scripts."""
_IDLE: Final = 15.0
"""Seconds of silence after which the connection is tried, before something between us forgets it."""
_STEADY: Final = 5.0
"""Seconds after which a lost connection is made again at once."""
_MOST_OVERDUE: Final = 10_000
"""Scripts that are kept to be run later. They only do at once what time does as well."""
_BATCH: Final = 500
"""Scripts that are sent together."""
_HOPS: Final = 4
"""Nodes of a cluster to ask for the one that has our keys."""

_BEGIN: Final = """
local kept = redis.call('HMGET', KEYS[1], 'server', 'generation')
if kept[1] == ARGV[1] and kept[2] and kept[2] ~= ARGV[2] then
  return kept[2]
end
local time = redis.call('TIME')
local generation = string.sub(ARGV[1], 1, 8) .. string.format('%x', time[1] * 1000000 + time[2])
redis.call('HSET', KEYS[1], 'server', ARGV[1], 'generation', generation)
return generation
"""
"""ARGV: the server's `run_id`; a generation that is wanted no more, or nothing."""
_HEAD: Final = """
local generation = redis.call('HGET', KEYS[1], 'generation')
if not generation then
  return redis.error_reply('DELTAWAY the state was removed')
end
local root = KEYS[1] .. ':' .. generation .. ':'
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if ARGV[1] ~= '' then
  now = tonumber(ARGV[1])
end
"""
"""Before every script: `now` is in microseconds, `root` what all keys begin with."""


class RedisAway(Exception):
    """Redis cannot be reached, or refuses. The message says why."""

    def __init__(self, reason: str, *, sent: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent
        """Whether the script may have been run."""


class Script:
    """A Lua script. ARGV[1] is the time in microseconds for tests, or empty: then it is the server's."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = _HEAD + source
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class _Asked:
    """A command, and who waits for its answer, if anybody does."""

    __slots__ = ("answer", "command", "script")

    def __init__(self, command: tuple[Any, ...], script: Script | None, answer: "asyncio.Future[Any] | None") -> None:
        self.command = command
        self.script = script
        self.answer = answer


class Redis:
    """`patience`: seconds that a call may take. `pause`: seconds between two tries to connect. Keys begin with
    `prefix`; one of them, a few dozen bytes, stays for ever."""

    def __init__(self, url: str, prefix: str = "deltaway", patience: float = 0.25, pause: float = 1.0) -> None:
        self.away: str | None = "Redis has not been reached yet"
        """Why no call can be made; None: it can."""
        self.root = f"{{{prefix}}}"
        self.generation = ""
        self._url = url
        self._patience = patience
        self._pause = pause
        self._server = ""
        self._connection: AbstractConnection | None = None
        self._connected_at = 0.0
        self._waiting: list[_Asked] = []
        self._overdue: deque[_Asked] = deque(maxlen=_MOST_OVERDUE)
        self._sending: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect if that can be done soon; if not, it goes on in the background. Raises `RedisAway` when the client
        library is missing."""
        require_redis()
        with suppress(RedisAway):
            await self._connect()
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        for task in (self._watching, self._sending):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await self._lose("Redis was left")

    async def run(self, script: Script, *arguments: str | int | float) -> Any:
        """What the script returns: integers, bytes, lists of them. Raises `RedisAway`."""
        return await self._ask(("EVALSHA", script.sha, 1, self.root, *arguments), script)

    def later(self, script: Script, *arguments: str | int) -> None:
        """Have the script run as soon as that is possible, before whatever is asked from now on. For what must not be
        left undone: nobody waits for it, and it may run twice."""
        asked = _Asked(("EVALSHA", script.sha, 1, self.root, *arguments), script, None)
        self._overdue.append(asked)
        if self.away is None:
            self._waiting.append(asked)
            self._begin_to_send()

    async def begin_anew(self) -> None:
        """Begin a new generation, if nobody else has just done so. Raises `RedisAway`."""
        current = await self._ask(("HGET", self.root, "generation"))
        generation = await self._ask(("EVAL", _BEGIN, 1, self.root, self._server, current or ""))
        self.generation = generation.decode()

    # -- calls -----------------------------------------------------------------------------------------------------

    async def _ask(self, command: tuple[Any, ...], script: Script | None = None) -> Any:
        if self.away is not None:
            raise RedisAway(self.away)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(command, script, answer))
        self._begin_to_send()
        return await answer

    def _begin_to_send(self) -> None:
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._waiting and (connection := self._connection) is not None:
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                trouble: str | None = "Redis was left"
                try:
                    trouble = await self._exchange(connection, batch)
                finally:
                    if trouble is not None:
                        for asked in batch:
                            _fail(asked, trouble, sent=True)
                        await self._lose(trouble)
        finally:
            self._sending = None

    async def _exchange(self, connection: "AbstractConnection", batch: list[_Asked]) -> str | None:
        """Send them all, then read all answers. Gives why the connection should not be used again, if so."""
        from redis.exceptions import NoScriptError, RedisError, ResponseError

        trouble = None
        try:
            async with asyncio.timeout(self._patience):
                packed = connection.pack_commands([asked.command for asked in batch])
                await connection.send_packed_command(packed, check_health=False)
                for asked in batch:
                    try:
                        answer = await connection.read_response()
                    except NoScriptError:
                        if asked.script is not None:
                            asked.command = ("EVAL", asked.script.source, *asked.command[2:])
                            self._waiting.append(asked)
                    except ResponseError as error:
                        trouble = f"Redis refuses: {error}"
                        _fail(asked, trouble, sent=False)
                    else:
                        self._done(asked, answer)
        except TimeoutError:
            return f"Redis did not answer within {self._patience:g} s"
        except (RedisError, OSError) as error:
            return f"Redis closed the connection: {error}"
        return trouble

    def _done(self, asked: _Asked, answer: Any) -> None:
        if asked.answer is None:
            with suppress(ValueError):
                self._overdue.remove(asked)
        elif not asked.answer.done():
            asked.answer.set_result(answer)

    # -- the connection --------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Connect again whenever the connection was lost, and try it when it has been silent."""
        while True:
            if self._connection is None:
                try:
                    await self._connect()
                except RedisAway:
                    await asyncio.sleep(self._pause)
                    continue
            try:
                async with asyncio.timeout(_IDLE):
                    await self._lost.wait()
            except TimeoutError:
                with suppress(RedisAway):
                    await self._ask(("PING",))
            else:
                if time.monotonic() - self._connected_at < _STEADY:
                    await asyncio.sleep(self._pause)

    async def _connect(self) -> None:
        from redis.exceptions import RedisError

        self._lost.clear()
        try:
            async with asyncio.timeout(_CONNECT):
                connection = await self._reach()
        except TimeoutError:
            self.away = f"Redis does not answer within {_CONNECT:g} s"
        except RedisAway as error:
            self.away = str(error)
        except (RedisError, OSError, ValueError) as error:
            self.away = f"Redis cannot be reached: {error}"
        else:
            self._connection = connection
            self._connected_at = time.monotonic()
            self.away = None
            if self._overdue:
                self._waiting.extend(self._overdue)
                self._begin_to_send()
        if self.away is not None:
            raise RedisAway(self.away)

    async def _reach(self) -> "AbstractConnection":
        """A connection to the server that has our keys."""
        from redis.asyncio.connection import Connection, parse_url
        from redis.exceptions import MovedError

        options: dict[str, Any] = dict(parse_url(self._url))
        kind: type[AbstractConnection] = options.pop("connection_class", Connection)
        options |= {"protocol": 2, "socket_timeout": None, "socket_connect_timeout": None, "decode_responses": False}
        for _ in range(_HOPS):
            connection = kind(**options)
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                self._server = await _server(connection)
                generation = await _call(connection, "EVAL", _BEGIN, 1, self.root, self._server, "")
                self.generation = generation.decode()
            except MovedError as error:
                await connection.disconnect(nowait=True)
                # another node of the cluster has the slot; one without a name is where this one is
                options |= {"host": error.host or options.get("host", "localhost"), "port": error.port}
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            else:
                return connection
        raise RedisAway("the nodes of the Redis cluster do not agree on who has our keys")

    async def _lose(self, reason: str) -> None:
        self.away = reason
        connection, self._connection = self._connection, None
        waiting, self._waiting = self._waiting, []
        for asked in waiting:
            _fail(asked, reason, sent=False)
        self._lost.set()
        if connection is not None:
            await connection.disconnect(nowait=True)


def require_redis() -> None:
    """Raises `RedisAway` when the client library is not installed."""
    try:
        import redis  # noqa: F401
    except ModuleNotFoundError as error:
        raise RedisAway("`shared: redis://…` needs the Redis client: install deltaway[redis]") from error


def _fail(asked: _Asked, reason: str, *, sent: bool) -> None:
    if asked.answer is not None and not asked.answer.done():
        asked.answer.set_exception(RedisAway(reason, sent=sent))


async def _call(connection: "AbstractConnection", *command: Any) -> Any:
    await connection.send_command(*command, check_health=False)
    return await connection.read_response()


async def _server(connection: "AbstractConnection") -> str:
    """The server's `run_id`, which changes with every start."""
    from redis.exceptions import NoPermissionError

    try:
        told: bytes = await _call(connection, "INFO", "server")
    except NoPermissionError:
        # then a restart is noticed only if it lost our keys
        return "unknown"
    found = [line[7:] for line in told.decode().splitlines() if line.startswith("run_id:")]
    return found[0].strip() if found else "unknown"
