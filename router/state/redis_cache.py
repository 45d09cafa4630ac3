"""A cache in Redis, for the replicas of a gateway on many machines. What would end first makes room."""

from collections.abc import Callable
from typing import Any, Final

from router.cache.shelf import ShelfAway
from router.state.redis import Redis, RedisAway, Script

_DROP: Final = """
local ends, sizes, bytes = root .. 'cache-ends', root .. 'cache-sizes', root .. 'cache-bytes'
local function drop(key)
  local kept = redis.call('HGET', sizes, key)
  if kept then
    redis.call('DECRBY', bytes, tonumber(string.match(kept, '^%d+')))
    redis.call('HDEL', sizes, key)
  end
  redis.call('ZREM', ends, key)
  return redis.call('DEL', root .. 'cache:' .. key)
end
"""
"""`cache-sizes` is key → size and owner, `cache-ends` when each ends, `cache-bytes` the sum of the sizes."""
_GET: Final = Script("""
local ends = redis.call('ZSCORE', root .. 'cache-ends', ARGV[2])
if not ends or tonumber(ends) <= now then return false end
return redis.call('GET', root .. 'cache:' .. ARGV[2])
""")
"""ARGV: time, key."""
_PUT: Final = Script(
    _DROP
    + """
local key, owner, data, ttl, room = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, 200)) do drop(ended) end
drop(key)
local size = #data + 512
local taken = tonumber(redis.call('GET', bytes) or '0')
local dropped = 0
while taken + size > room and dropped < 1000 do
  local first = redis.call('ZRANGE', ends, 0, 0)[1]
  if not first then break end
  drop(first)
  dropped = dropped + 1
  taken = tonumber(redis.call('GET', bytes) or '0')
end
if taken + size > room then return 0 end
redis.call('SET', root .. 'cache:' .. key, data, 'PX', ttl)
redis.call('ZADD', ends, now + ttl * 1000, key)
redis.call('HSET', sizes, key, size .. ' ' .. owner)
redis.call('INCRBY', bytes, size)
for _, index in ipairs({ends, sizes, bytes}) do
  redis.call('PEXPIRE', index, math.max(ttl + 60000, redis.call('PTTL', index)))
end
return 1
"""
)
"""ARGV: time, key, owner, data, milliseconds, room."""
_REMOVE: Final = Script(_DROP + "return drop(ARGV[2])")
"""ARGV: time, key."""
_CLEAR: Final = Script(
    _DROP
    + """
local found = redis.call('HSCAN', sizes, ARGV[2], 'COUNT', 500)
local gone = 0
for i = 1, #found[2], 2 do
  if ARGV[3] == '0' or string.match(found[2][i + 1], '^%d+ (.*)$') == ARGV[4] then
    local ends_at = redis.call('ZSCORE', ends, found[2][i])
    if ends_at and tonumber(ends_at) > now then gone = gone + 1 end
    drop(found[2][i])
  end
end
return {found[1], gone}
"""
)
"""ARGV: time, cursor, whether only of one owner, that owner. Gives the next cursor and how many went."""


class RedisCache:
    """Opened and closed by whoever made the connection. `own_time`: a clock of tests, in microseconds."""

    def __init__(self, redis: Redis, own_time: Callable[[], int] | None = None) -> None:
        self._redis = redis
        self._own_time = own_time

    async def close(self) -> None:
        return None

    async def get(self, key: str) -> bytes | None:
        found: bytes | None = await self._run(_GET, key)
        return found

    async def put(self, key: str, owner: str, data: bytes, ttl: float, room: int) -> None:
        await self._run(_PUT, key, owner, data, max(1, int(ttl * 1000)), room)

    async def remove(self, key: str) -> None:
        await self._run(_REMOVE, key)

    async def clear(self, owner: str | None) -> int:
        cursor: bytes
        cursor, removed = b"0", 0
        while True:
            cursor, gone = await self._run(_CLEAR, cursor, int(owner is not None), owner or "")
            removed += int(gone)
            if cursor == b"0":
                return removed

    async def _run(self, script: Script, *arguments: Any) -> Any:
        try:
            return await self._redis.run(script, "" if self._own_time is None else self._own_time(), *arguments)
        except RedisAway as error:
            raise ShelfAway(str(error)) from error
