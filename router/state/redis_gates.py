"""Limits counted in Redis, for the replicas of a gateway on many machines."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from router.gates import GatesAway, Parallel, Passage, Rate
from router.state.bucket import TOLERANCE, first_refusal, passage
from router.state.redis import Redis, RedisAway, Script
from router.state.renewing import EXPIRY

_BUCKETS: Final = """
local function read(key, limit, period)
  local kept = redis.call('GET', root .. 'bucket:' .. key)
  if not kept then return 0 end
  local taken, at = string.match(kept, '(%S+) (%S+)')
  taken = tonumber(taken)
  local since = now - tonumber(at)
  if since > 0 then taken = math.max(0, taken - since * limit / period) end
  return taken
end
local function write(key, limit, period, taken)
  if taken <= 0 then
    redis.call('DEL', root .. 'bucket:' .. key)
  else
    local text = string.format('%.17g %.0f', taken, now)
    redis.call('SET', root .. 'bucket:' .. key, text, 'PX', math.ceil(taken * period / limit / 1000) + 1000)
  end
end
"""
"""As in `router.state.bucket`; periods are in microseconds."""
_ENTER: Final = Script(
    _BUCKETS
    + """
local call, expiry, tolerance = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local rates, parallels = tonumber(ARGV[5]), tonumber(ARGV[6])
local at = 7
local passed, answer, keys = 1, {0}, {}
for i = 1, rates do
  local limit, period, cost = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local taken = read(ARGV[at], limit, period)
  local over = taken
  if cost <= limit then over = taken + cost - limit end
  if over > tolerance then passed = 0 end
  answer[1 + i] = taken
  at = at + 4
end
for i = 1, parallels do
  local places = root .. 'places:' .. ARGV[at]
  redis.call('ZREMRANGEBYSCORE', places, '-inf', now)
  keys[i] = places
  local left = tonumber(ARGV[at + 1]) - redis.call('ZCARD', places)
  local has = redis.call('ZSCORE', places, call)
  if left <= 0 and not has then passed = 0 end
  answer[1 + rates + 2 * i - 1], answer[1 + rates + 2 * i] = left, has and 1 or 0
  at = at + 2
end
if passed == 1 then
  at = 7
  for i = 1, rates do
    local limit, period, cost = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
    answer[1 + i] = math.max(0, answer[1 + i] + cost)
    write(ARGV[at], limit, period, answer[1 + i])
    at = at + 4
  end
  local inside = root .. 'inside:' .. call
  for i = 1, parallels do
    redis.call('ZADD', keys[i], now + expiry, call)
    redis.call('PEXPIRE', keys[i], math.ceil(expiry / 1000) + 1000)
    redis.call('SADD', inside, keys[i])
  end
  redis.call('SADD', inside, '')
  redis.call('PEXPIRE', inside, math.ceil(expiry / 1000))
end
answer[1] = passed
for i = 1, rates do answer[1 + i] = string.format('%.17g', answer[1 + i]) end
return answer
"""
)
"""ARGV: time, call, expiry, tolerance, how many rates and parallels; key, limit, period, cost of each rate; key and
limit of each parallel. Gives 1 if the call passed, units taken of each rate, places left of each parallel and whether
the call had one already."""
_LEAVE: Final = Script(
    _BUCKETS
    + """
local inside = root .. 'inside:' .. ARGV[2]
local places = redis.call('SMEMBERS', inside)
if #places == 0 then return 0 end
redis.call('DEL', inside)
for _, key in ipairs(places) do
  if key ~= '' then redis.call('ZREM', key, ARGV[2]) end
end
for at = 3, #ARGV, 4 do
  local limit, period, cost = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  write(ARGV[at], limit, period, math.max(0, read(ARGV[at], limit, period) + cost))
end
return 1
"""
)
"""ARGV: time, call; key, limit, period, cost of each correction."""


_RENEW: Final = Script("""
local expiry = tonumber(ARGV[2])
for at = 3, #ARGV do
  local inside = root .. 'inside:' .. ARGV[at]
  for _, key in ipairs(redis.call('SMEMBERS', inside)) do
    if key ~= '' then
      redis.call('ZADD', key, 'XX', now + expiry, ARGV[at])
      redis.call('PEXPIRE', key, math.ceil(expiry / 1000) + 1000)
    end
  end
  redis.call('PEXPIRE', inside, math.ceil(expiry / 1000))
end
return 0
""")
"""ARGV: time, expiry; calls."""
_RENEWED: Final = 200
"""Calls that are renewed at once: nobody else is served meanwhile."""


class RedisGates:
    """A call that neither leaves nor is renewed is taken to have left after `expiry` seconds. `clock`, in seconds,
    stands in for the server's in tests."""

    def __init__(self, redis: Redis, clock: Callable[[], float] | None = None, expiry: float = EXPIRY) -> None:
        self._redis = redis
        self._clock = clock
        self._expiry = round(expiry * 1e6)
        self._inside: set[str] = set()
        """The calls of this process that have entered and not left."""

    async def enter(self, call_id: str, rates: Sequence[Rate], parallels: Sequence[Parallel]) -> Passage:
        arguments: list[str | int] = [self._now(), call_id, self._expiry, str(TOLERANCE), len(rates), len(parallels)]
        for rate in rates:
            arguments += _said(rate)
        for parallel in parallels:
            arguments += (parallel.key, parallel.limit)
        try:
            answer = await self._redis.run(_ENTER, *arguments)
        except RedisAway as error:
            if error.sent:
                self._leave_later(call_id)
            raise GatesAway(str(error)) from error
        except asyncio.CancelledError:
            self._leave_later(call_id)
            raise
        passed, taken, places = (
            answer[0],
            [float(text) for text in answer[1 : 1 + len(rates)]],
            answer[1 + len(rates) :],
        )
        left, has = places[::2], places[1::2]
        if not passed:
            free = [1 if had else count for count, had in zip(left, has, strict=True)]
            return passage(first_refusal(rates, taken, parallels, free), rates, taken, left)
        self._inside.add(call_id)
        left = [count if had else count - 1 for count, had in zip(left, has, strict=True)]
        return passage((None, 0.0), rates, taken, left)

    async def leave(self, call_id: str, corrections: Sequence[Rate] = ()) -> None:
        # first: what cannot leave now must not be renewed
        self._inside.discard(call_id)
        arguments: list[str | int] = [self._now(), call_id]
        for rate in corrections:
            arguments += _said(rate)
        try:
            await self._redis.run(_LEAVE, *arguments)
        except RedisAway as error:
            raise GatesAway(str(error)) from error

    async def renew(self) -> None:
        # one that leaves meanwhile is not there to be renewed
        inside = list(self._inside)
        try:
            for begin in range(0, len(inside), _RENEWED):
                call_ids = inside[begin : begin + _RENEWED]
                await self._redis.run(_RENEW, self._now(), self._expiry, *call_ids)
        except RedisAway as error:
            raise GatesAway(str(error)) from error

    def _leave_later(self, call_id: str) -> None:
        # nobody knows whether it was let in, and nobody will say that it leaves
        self._redis.later(_LEAVE, self._now(), call_id)

    def _now(self) -> str | int:
        return "" if self._clock is None else round(self._clock() * 1e6)


def _said(rate: Rate) -> tuple[str, int, int, int]:
    return rate.key, rate.limit, round(rate.period * 1e6), rate.cost
