"""Takes up a changed configuration in a running process, whoever says so: an admin, a signal, the file, a replica.

The file of each machine is the truth there. It is read and built aside, in a thread; only what is whole and allowed
comes into force, and what is not changes nothing. A reload that was accepted is announced in the store, so that every
process of the gateway reads its own file.
"""

import asyncio
import os
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal, TypeAlias

import structlog
from msgspec import Struct, structs

from router.accepted import Accepted
from router.config import ConfigError, Loaded, Problem
from router.differences import Change
from router.generation import Generation, Generations
from router.ids import ulid
from router.planning import changes
from router.running import Running
from router.store.instances import Instance, Instances
from router.store.store import Store, StoreAway

POLL: Final = 0.5
"""Seconds between two looks for an announcement."""
WATCH: Final = 1.0
"""Seconds between two looks at the file; a change is read when two of them have found the same."""
_ALIVE: Final = 5.0
"""Seconds between two words that this process lives."""
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)")
_SHORTEST_SECRET: Final = 6
"""Characters; what is shorter is no secret, and may be any word."""
_FIXED: Final = ("store", "shared", "ledger", "streams")
_FREE_OF_SERVER: Final = ("heartbeat", "watch", "region", "on_disconnect")
"""What of `server` may change while the gateway runs."""

Read: TypeAlias = Callable[[str | None], Loaded]
"""Reads the file, or checks a text as if it stood there. Raises `ConfigError`."""
Make: TypeAlias = Callable[[Loaded, Generation], Generation]
"""Builds a generation that may follow another. Raises `ConfigError`."""
Announce: TypeAlias = Literal["always", "changes", "never"]
"""When the other processes are told: whatever came of it, when something new is in force, or never."""
Stamp: TypeAlias = tuple[tuple[int, int, int] | None, ...]


class Plan(Struct, frozen=True):
    """What a configuration would change."""

    generation: str
    """The one in force."""
    would_be: str | None
    """None: it is refused."""
    changes: list[Change] = []
    refused: list[Problem] = []


class Reloader:
    """The configuration of one process. `file` None: it runs on the defaults, and there is nothing to read."""

    def __init__(
        self,
        generations: Generations,
        running: Running,
        store: Store,
        file: str | None,
        read: Read,
        make: Make,
        environ: Mapping[str, str],
    ) -> None:
        """`environ`: what `${VAR}` is replaced by."""
        self.generations = generations
        self.file = file
        self.keys_needed = False
        """Whether others can reach the gateway, and nobody has said that it may serve them without keys."""
        self.accepted: Accepted | None = None
        """Where other workers of this gateway find the text that was accepted last. One that began with it reads its
        file once it runs, as at any reload."""
        self._running = running
        self._read = read
        self._environ = environ
        self._make = make
        self._instances = Instances(store)
        self._turn = asyncio.Lock()
        self._id = f"ins_{ulid()}"
        self._version = version("deltaway")
        self._since = _now()
        self._prices = generations.current.config.prices.file
        """The prices file that was named when the configuration was read last, whatever came of it."""
        self._stamped = self._first_stamp()
        """The files as they were just before they were read last, whatever came of it."""
        self._handled: int | None = None
        """The number of the last announcement that was dealt with; None: the store has not been asked yet."""
        self._error: str | None = None
        self._said: tuple[str, ...] = ()
        """The problems that the log has been told last."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked = False
        """Somebody wants a reload soon, and none has begun to read since."""
        self._log = structlog.get_logger("deltaway.config")

    # -- what may be asked -------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """This process's own, in the list of instances."""
        return self._id

    @property
    def since(self) -> int:
        """When the configuration came into force in this process, in Unix milliseconds."""
        return self._since

    @property
    def error(self) -> str | None:
        """Why what the file says is not in force; None: it is, as far as is known."""
        return self._error

    async def plan(self, text: str | None = None) -> Plan:
        """What the file would change, or `text` in its place. Changes nothing."""
        before = self.generations.current
        try:
            after = await asyncio.to_thread(self._made, before, text)
        except ConfigError as error:
            refused = [structs.replace(each, message=self._masked(each.message, text)) for each in error.problems]
            return Plan(before.id, None, refused=refused)
        in_use = Counter(trip.asked for trip in self._running.trips() if trip.asked)
        listed = self._changes(before, after, in_use)
        return Plan(
            before.id, after.id, [structs.replace(each, words=self._masked(each.words, text)) for each in listed]
        )

    def _masked(self, words: str, text: str | None) -> str:
        """The words without the values of variables that `text` names: whoever has sent it could name any."""
        for name in _VARIABLE.findall(text or ""):
            value = self._environ.get(name, "")
            # words may hold only the beginning of a long one
            for length in range(len(value), _SHORTEST_SECRET - 1, -1):
                if value[:length] in words:
                    words = words.replace(value[:length], f"${{{name}}}")
                    break
        return words

    async def reload(self, announce: Announce = "always") -> tuple[bool, int | None]:
        """Put in force what the file says; whether that is something new, and the number under which the others were
        told. Where it is refused nothing changes, and `ConfigError` is raised with every problem."""
        try:
            async with self._turn:
                self._asked = False
                swapped = await self._take_up()
            told = announce == "always" or (announce == "changes" and swapped)
            return swapped, await self._announce() if told else None
        finally:
            await self._tell()

    async def _announce(self) -> int | None:
        try:
            number = await self._instances.announce()
        except StoreAway as error:
            self._log.error("the others were not told of the configuration", reason=str(error))
            return None
        if self._handled == number - 1:
            self._handled = number
        # else another's announcement came between, perhaps after our file was read: then it is read once more
        return number

    async def instances(self) -> list[Instance]:
        """The processes of this gateway. Raises `StoreAway`."""
        return await self._instances.present(_now())

    async def followed(self, number: int, patience: float) -> list[Instance]:
        """The processes, once all have dealt with that announcement, or after so many seconds. Raises `StoreAway`."""
        until = time.monotonic() + patience
        while True:
            found = await self.instances()
            if all(each.wanted >= number for each in found) or time.monotonic() >= until:
                return found
            await asyncio.sleep(0.1)

    # -- the life of it ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Follows announcements, and the file where `server.watch` says so, until the end."""
        tasks = [asyncio.create_task(self._follow(), name="config"), asyncio.create_task(self._watch(), name="watch")]
        try:
            yield
        finally:
            for task in (*tasks, *self._tasks):
                task.cancel()
            await asyncio.gather(*tasks, *self._tasks, return_exceptions=True)
            with suppress(StoreAway):
                await self._instances.remove(self._id)

    def soon(self, why: str) -> None:
        """Reload as soon as may be; a file that is refused is told in the log. One that waits is enough for all."""
        if self._asked:
            return
        self._asked = True
        task = asyncio.create_task(self._reload_and_log(why, "always"))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload_and_log(self, why: str, announce: Announce) -> None:
        try:
            await self.reload(announce)
        except ConfigError as error:
            self._refused(error, why)
        except Exception:
            # said already
            return

    # -- a reload ----------------------------------------------------------------------------------------------------

    async def _take_up(self) -> bool:
        before = self.generations.current
        try:
            after = await asyncio.to_thread(self._read_and_made, before)
        except ConfigError as error:
            self._error = "\n".join(map(str, error.problems))
            raise
        except Exception as error:
            self._failed(error)
            raise
        if after.id == before.id:
            self._error, self._said = None, ()
            return False
        try:
            await self.generations.swap(after)
        except ConfigError as error:
            self._error = "\n".join(map(str, error.problems))
            raise
        except Exception as error:
            self._failed(error)
            raise
        self._error, self._said, self._since = None, (), _now()
        self._log.info("a new configuration is in force", generation=after.id, before=before.id)
        if self.accepted is not None:
            try:
                await asyncio.to_thread(self.accepted.write, after.loaded.document.text)
            except OSError as error:
                self._log.error("workers that begin later begin with an older configuration", exc_info=error)
        return True

    def _read_and_made(self, before: Generation) -> Generation:
        """`_made` of the file; what is looked at is noted first, so that a change while it is read is seen. Runs in a
        thread."""
        self._stamped = self._stamp()
        loaded = self._read(None)
        self._prices = loaded.config.prices.file
        self._stamped = (*self._stamped[:1], *self._stamp()[1:])
        return self._follower(before, loaded)

    def _made(self, before: Generation, text: str | None) -> Generation:
        """The generation that may follow. Runs in a thread."""
        return self._follower(before, self._read(text))

    def _follower(self, before: Generation, loaded: Loaded) -> Generation:
        problems = [*self._fixed(before.loaded, loaded)]
        after: Generation | None = None
        try:
            after = self._make(loaded, before)
        except ConfigError as error:
            problems += error.problems
        if after is not None and self.keys_needed and after.authenticator is None:
            words = (
                "this would serve everybody who can reach the gateway without a key: leave `auth` in the list of "
                "plugins, or restart it with --insecure"
            )
            problems.append(loaded.document.problem(("plugins",), words))
        if problems or after is None:
            raise ConfigError(tuple(sorted(set(problems))))
        return after

    def _fixed(self, before: Loaded, after: Loaded) -> list[Problem]:
        """What cannot change while the gateway runs, and would."""
        old, new = before.config, after.config
        paths: list[tuple[str, ...]] = [(name,) for name in _FIXED if getattr(old, name) != getattr(new, name)]
        paths += [
            ("server", name)
            for name in old.server.__struct_fields__
            if name not in _FREE_OF_SERVER and getattr(old.server, name) != getattr(new.server, name)
        ]
        words = "cannot change while the gateway runs: restart it, or put back what was there"
        return [after.document.problem(path, f"`{'.'.join(path)}` {words}") for path in paths]

    def _changes(self, before: Generation, after: Generation, in_use: Mapping[str, int]) -> list[Change]:
        found = changes(before.config, after.config, in_use)
        old, new = before.pricing.own_text, after.pricing.own_text
        if old != new and before.config.prices.file == after.config.prices.file:
            found.append(Change("prices.file", f"what {after.config.prices.file} says has changed"))
        if not found and before.id != after.id:
            found.append(Change("", "only comments, the order of keys or how they are written have changed"))
        return found

    def _refused(self, error: ConfigError, why: str) -> None:
        """Once for each set of problems, however often it is looked at."""
        words = tuple(map(str, error.problems))
        if words == self._said:
            return
        self._said = words
        self._log.error(
            f"the configuration was not taken up ({why}): what was in force stays so",
            problems=list(words),
            generation=self.generations.current.id,
        )

    def _failed(self, error: Exception) -> None:
        self._error = f"a fault of the gateway's or of a plugin's own: {error}"
        self._log.error("the configuration could not be taken up: what was in force stays so", exc_info=error)

    # -- following the others ----------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        told_at = -_ALIVE
        if self.accepted is not None:
            await self._reload_and_log("a worker begins", "never")
        while True:
            try:
                number = await self._instances.announced()
                if self._handled is None and self._stamp() == self._stamped:
                    # what was announced before this process began has been read at its start
                    self._handled = number
                    await self._instances.forget(_now())
                if number != self._handled:
                    self._handled = number
                    await self._reload_and_log("told by another process", "never")
                    told_at = time.monotonic()
                elif time.monotonic() - told_at >= _ALIVE:
                    await self._tell()
                    told_at = time.monotonic()
            except StoreAway:
                # the ledger says so; whatever was announced is seen when the store is back
                pass
            except Exception as error:
                self._log.error("announcements could not be followed by a fault of ours", exc_info=error)
            await asyncio.sleep(POLL)

    async def _tell(self) -> None:
        """This process's row as it is now."""
        current = self.generations.current
        row = Instance(
            self._id,
            socket.gethostname(),
            os.getpid(),
            self._version,
            current.id,
            self._since,
            self._handled or 0,
            self._error,
            _now(),
        )
        with suppress(StoreAway):
            await self._instances.put(row)

    # -- the file ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """A look each second is as quick as people are, and works where events of the file system do not: on network
        drives, and with the symbolic links that Kubernetes swaps."""
        seen = self._stamped
        while self.file is not None:
            await asyncio.sleep(WATCH)
            try:
                before, seen = seen, self._stamp()
                # one that is being written, or replaced, is not judged
                if seen == self._stamped or seen != before:
                    continue
                if self.generations.current.config.server.watch:
                    await self._reload_and_log("its file has changed", "changes")
            except Exception as error:
                self._log.error("the configuration's file could not be watched", exc_info=error)

    def _stamp(self) -> Stamp:
        """Tells whether the files are those that they were. None: one is not there."""
        return tuple(_stamp_of(path) for path in self._files())

    def _files(self) -> list[Path]:
        """The configuration's, and the prices' that it named when it was read last."""
        if self.file is None:
            return []
        file = Path(self.file)
        return [file] if self._prices is None else [file, file.parent / self._prices]

    def _first_stamp(self) -> Stamp:
        """That of the files if they are still what was read before this was made, else one that they cannot have."""
        current = self.generations.current
        stamp, texts = self._stamp(), (current.loaded.document.text, current.pricing.own_text)
        for path, text in zip(self._files(), texts, strict=False):
            try:
                if not path.is_file() or text is None or path.read_bytes() != text.encode("utf-8"):
                    return ()
            except OSError:
                return ()
        return stamp


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        # of what a symbolic link leads to
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _now() -> int:
    return int(time.time() * 1000)
