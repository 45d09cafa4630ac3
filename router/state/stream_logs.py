"""Which log of streams a process has: where `shared` says."""

from pathlib import Path

from router.settings import SharedUrl, Streams
from router.state.redis import Redis
from router.state.redis_log import RedisLog
from router.streams.log import StreamLog
from router.streams.machine_log import FILE, MachineLog
from router.streams.memory_log import MemoryLog


def stream_log(shared: SharedUrl, directory: Path, streams: Streams, redis: Redis | None) -> StreamLog:
    """`directory` is that of the journals; `redis` the connection of the state, if it has one."""
    keep = float(streams.keep)
    if shared == "memory":
        return MemoryLog(keep, streams.limit)
    if redis is not None:
        return RedisLog(redis, keep, streams.limit)
    return MachineLog(directory / FILE, keep, streams.limit)
