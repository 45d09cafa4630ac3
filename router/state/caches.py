"""Which cache of answers a process has: where `shared` says."""

from pathlib import Path

from router.cache.machine_cache import FILE, MachineCache
from router.cache.memory_cache import MemoryCache
from router.cache.steady import SteadyCache
from router.state.redis import Redis
from router.state.redis_cache import RedisCache


def cache_beside(link: object, directory: Path) -> SteadyCache:
    """`link`: what limits and budgets are shared by; None: they are not. `directory` is that of the journals."""
    if link is None:
        return SteadyCache(MemoryCache())
    if isinstance(link, Redis):
        return SteadyCache(RedisCache(link))
    return SteadyCache(MachineCache(directory / FILE))
