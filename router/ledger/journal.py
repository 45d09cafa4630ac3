"""One process's journal: records appended to files that survive the process, read again only when it has not.

A journal is a row of segments, `<id>.<number>.journal`, in one directory, and a lock file that its process holds for
as long as it lives (flock: the kernel lets go when the process dies, however it dies). Space is allocated before it is
needed, so that a disk that is full refuses new attempts while those under way can still be settled.

A segment begins with 16 bytes: `DWJ1`, four zeros, the number of its first record (little-endian, 64 bits). A record is
its length and the CRC-32 of its payload (32 bits each), then the payload. Zeros follow the last one. A record that was
torn by a crash fails its sum and ends its segment.

Knows nothing of what the records say.
"""

import asyncio
import errno
import fcntl
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

SEGMENT: Final = 4 * 1024 * 1024
"""Bytes of one segment."""
_TAIL: Final = 16 * 1024
"""Bytes at the end of a segment that are not counted on."""
_MAGIC: Final = b"DWJ1\0\0\0\0"
_HEADER: Final = struct.Struct("<8sQ")
_BLOCK: Final = 65536
_RECORD: Final = struct.Struct("<II")


class JournalFull(Exception):
    """No room for a new promise: the bound is reached, or the disk is full. The message says which."""


class Stored(NamedTuple):
    """A record as it is read again."""

    position: int
    payload: bytes


class _Segment:
    """One file, allocated in full."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.end = _HEADER.size
        """Where the next record goes."""
        self.first = 0
        self.last = 0
        """Number of its last record; below `first` while it has none."""
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _reserve(self.fd, size)
        except OSError:
            self.remove()
            raise

    @property
    def room(self) -> int:
        return self.size - self.end

    def begin(self, first: int) -> None:
        self.first, self.last = first, first - 1
        os.pwrite(self.fd, _HEADER.pack(_MAGIC, first), 0)

    def remove(self) -> None:
        """Raises `OSError`; its room is free all the same."""
        os.close(self.fd)
        self.path.unlink(missing_ok=True)


class Journal:
    """Appends records and numbers them from 1. `limit` bounds the bytes of all its segments."""

    def __init__(self, directory: Path, name: str, limit: int, segment: int = SEGMENT) -> None:
        self.id = name
        self._directory = directory
        self._limit = limit
        self._size = segment
        self._number = 0
        self._segments: deque[_Segment] = deque()
        """Those with records; the last is written to."""
        self._spare: deque[_Segment] = deque()
        self._promised = 0
        self._synced = 0
        self._syncing: asyncio.Task[None] | None = None
        self._dirty: set[_Segment] = set()
        self._lock = -1
        self.position = 0
        """Number of the last record."""

    def open(self) -> None:
        """Make the directory, take the lock, allocate the first segment. Raises `OSError`, `JournalFull`."""
        self._directory.mkdir(parents=True, exist_ok=True)
        path = lock_path(self._directory, self.id)
        # locked before it has its name: whoever looks for journals without a process never takes a new one
        unnamed = path.with_suffix(".new")
        self._lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(path)
        self._allocate(1)

    def append(self, payloads: Sequence[bytes], *, promise: int = 0, promised: bool = False) -> int:
        """Write the records; gives the number of the last. They survive the process from now on.

        `promise` more bytes are kept free for what must be written later (`release` gives them back); what was so
        `promised` may use them, other records may not. Without room: `JournalFull`, and nothing is written. Raises
        `OSError` when the disk fails.
        """
        if self._lock < 0:
            raise JournalFull(f"the journal `{self.id}` is closed")
        size = sum(map(len, payloads)) + _RECORD.size * len(payloads)
        if not promised:
            self._make_room(size + self._promised + promise)
        segment = self._writable(size)
        pieces: list[bytes] = []
        for payload in payloads:
            pieces += _RECORD.pack(len(payload), zlib.crc32(payload)), payload
        _write(segment.fd, b"".join(pieces), segment.end)
        segment.end += size
        self.position += len(payloads)
        segment.last = self.position
        self._promised += promise
        self._dirty.add(segment)
        return self.position

    def release(self, promise: int) -> None:
        self._promised -= promise

    async def synced(self, position: int) -> None:
        """Wait until the records up to `position` are on the disk. Many waiters share one fsync. Raises `OSError`."""
        while self._synced < position:
            if self._syncing is None or self._syncing.done():
                self._syncing = asyncio.get_running_loop().create_task(self._sync())
            await asyncio.shield(self._syncing)

    def drop(self, position: int) -> None:
        """The records up to `position` are kept elsewhere: remove the segments that hold nothing else."""
        while len(self._segments) > 1 and self._segments[0].last <= position:
            segment = self._segments.popleft()
            self._dirty.discard(segment)
            segment.remove()

    def read(self, after: int, count: int) -> list[Stored]:
        """Up to `count` records after the number `after`, from the files."""
        found: list[Stored] = []
        for segment in list(self._segments):
            if segment.last <= after:
                continue
            for stored in _records(segment.path):
                if after < stored.position <= self.position:
                    found.append(stored)
                    if len(found) == count:
                        return found
        return found

    def close(self, *, remove: bool) -> None:
        """Let go of the files; `remove` them when nothing in them is needed any more."""
        for segment in (*self._segments, *self._spare):
            if remove or segment in self._spare:
                segment.remove()
            else:
                os.close(segment.fd)
        self._segments.clear()
        self._spare.clear()
        if self._lock >= 0:
            if remove:
                lock_path(self._directory, self.id).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def prepare(self) -> bool:
        """Whether a segment should be allocated before it is needed. `allocate` may then be called in a thread."""
        used = sum(segment.room for segment in self._segments if segment is self._segments[-1])
        return not self._spare and used < self._size // 2

    def allocate(self) -> None:
        """One more spare segment, if the bound allows it. Raises `JournalFull`."""
        if self._bytes() + self._size > self._limit:
            raise JournalFull(
                f"the journal has reached its bound of {self._limit} bytes (`ledger.journal_limit`): "
                "what is not in the store yet and the room kept for running calls fill it"
            )
        try:
            self._number += 1
            self._spare.append(_Segment(self._path(self._number), self._size))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "the disk is full" if full else error.strerror or str(error)
            raise JournalFull(f"the journal in `{self._directory}` cannot grow: {reason}") from error

    # -- room ------------------------------------------------------------------------------------------------------

    def _make_room(self, size: int) -> None:
        while self._room() < size:
            self.allocate()

    def _room(self) -> int:
        # a record that does not fit into what is left of a segment goes into the next
        tail = min(_TAIL, self._size // 16)
        last = max(0, self._segments[-1].room - tail) if self._segments else 0
        return last + sum(segment.room - tail for segment in self._spare)

    def _bytes(self) -> int:
        return sum(segment.size for segment in (*self._segments, *self._spare))

    def _allocate(self, first: int) -> None:
        if not self._spare:
            self.allocate()
        segment = self._spare.popleft()
        segment.begin(first)
        self._segments.append(segment)

    def _writable(self, size: int) -> _Segment:
        if not self._segments or self._segments[-1].room < size:
            self._allocate(self.position + 1)
        return self._segments[-1]

    def _path(self, number: int) -> Path:
        return self._directory / f"{self.id}.{number:08d}.journal"

    async def _sync(self) -> None:
        position, segments = self.position, list(self._dirty)
        self._dirty.clear()
        fds: list[int] = []
        try:
            # a segment may be dropped meanwhile, and its number given to another file
            fds.extend(os.dup(segment.fd) for segment in segments)
            # closes them, whatever happens
            given, fds = fds, []
            await asyncio.to_thread(_fsync, given, self._directory)
        except BaseException:
            for fd in fds:
                os.close(fd)
            self._dirty.update(segment for segment in segments if segment in self._segments)
            raise
        else:
            self._synced = max(self._synced, position)
        finally:
            self._syncing = None


def lock_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.lock"


class Left:
    """The journal of a process that has died, claimed by us. Use as a context manager."""

    def __init__(self, directory: Path, name: str, lock: int) -> None:
        self.id = name
        self._directory = directory
        self._lock = lock

    def records(self, after: int) -> Iterator[Stored]:
        """Its records after the number `after`, in order."""
        for path in self._paths():
            for stored in _records(path):
                if stored.position > after:
                    yield stored

    def remove(self) -> None:
        for path in (*self._paths(), lock_path(self._directory, self.id)):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._lock)

    def _paths(self) -> list[Path]:
        return sorted(self._directory.glob(f"{self.id}.*.journal"))


def left_behind(directory: Path) -> Iterator[Left]:
    """The journals of processes that live no more; each is ours until it is closed. Of two takers one gets it."""
    for path in sorted(directory.glob("*.lock")):
        try:
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # removed by another taker between our opening and locking it
            stale = not os.path.exists(path) or os.stat(path).st_ino != os.fstat(lock).st_ino
        except OSError:
            stale = True
        if stale:
            os.close(lock)
            continue
        left = Left(directory, path.name.removesuffix(".lock"), lock)
        try:
            yield left
        finally:
            left.close()


def _records(path: Path) -> Iterator[Stored]:
    data = path.read_bytes()
    if len(data) < _HEADER.size:
        return
    magic, position = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return
    at = _HEADER.size
    while at + _RECORD.size <= len(data):
        length, checksum = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        payload = data[at : at + length]
        if not length or len(payload) < length or zlib.crc32(payload) != checksum:
            return
        yield Stored(position, payload)
        position, at = position + 1, at + length


def _write(fd: int, data: bytes, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        more = os.pwrite(fd, data[written:], offset + written)
        written += more


def _reserve(fd: int, size: int) -> None:
    """Disk space for the whole file. Raises `OSError`."""
    try:
        os.posix_fallocate(fd, 0, size)
    except AttributeError:
        # macOS has none
        _fill(fd, size)
    except OSError as error:
        # nor have some file systems
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        _fill(fd, size)


def _fill(fd: int, size: int) -> None:
    for offset in range(0, size, _BLOCK):
        _write(fd, bytes(min(_BLOCK, size - offset)), offset)


def _fsync(fds: list[int], directory: Path) -> None:
    try:
        for fd in fds:
            # macOS has no fdatasync
            getattr(os, "fdatasync", os.fsync)(fd)
    finally:
        for fd in fds:
            os.close(fd)
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
