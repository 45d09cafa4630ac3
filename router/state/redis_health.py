"""What processes tell each other of health by way of Redis."""

from collections.abc import Callable, Sequence
from typing import Final

from router.routing.health_book import HealthBook, Told
from router.state.redis import Redis, RedisAway, Script
from router.state.shared_health import KEPT, MOST, HealthAway, kept_for, named, read, written

_EXCHANGE: Final = Script("""
local words, order = root .. 'health', root .. 'health:order'
local owner, most = ARGV[2], tonumber(ARGV[5])
local newest = redis.call('ZRANGE', order, -1, -1, 'WITHSCORES')
local last = newest[2] and tonumber(newest[2]) or 0
local longest = tonumber(ARGV[6])
if #ARGV > 6 then
  local at = math.max(now, last)
  for i = 7, #ARGV, 3 do
    at = at + 1
    local kept = tonumber(ARGV[i + 1])
    if kept > longest then longest = kept end
    redis.call('HSET', words, ARGV[i], string.format('%.0f', now + kept) .. ' ' .. owner .. ' ' .. ARGV[i + 2])
    redis.call('ZADD', order, string.format('%.0f', at), ARGV[i])
  end
  last = at
  local old = redis.call('ZRANGE', order, 0, -most - 1)
  for _, subject in ipairs(old) do
    redis.call('HDEL', words, subject)
    redis.call('ZREM', order, subject)
  end
  for _, key in ipairs({words, order}) do
    if redis.call('PTTL', key) < longest / 1000 then redis.call('PEXPIRE', key, math.ceil(longest / 1000)) end
  end
end
local since = tonumber(ARGV[3])
if ARGV[4] ~= generation or since > last then since = 0 end
local answer = {generation, string.format('%.0f', last)}
if since < last then
  for _, subject in ipairs(redis.call('ZRANGEBYSCORE', order, '(' .. string.format('%.0f', since), '+inf')) do
    local word = redis.call('HGET', words, subject)
    if word then
      local till, teller, told = string.match(word, '^(%d+) (%S+) (.*)$')
      if till and tonumber(till) > now and teller ~= owner then
        answer[#answer + 1] = string.format('%.0f', tonumber(till) - now)
        answer[#answer + 1] = told
      end
    end
  end
end
return answer
""")
"""ARGV: time; who asks; the last that it has heard, and of which generation; how many words are kept, and for how many
microseconds at least; subject, microseconds to keep it, and text of each word. Gives the generation, the last word's
place, and of each new word of others the microseconds left and its text."""


class RedisHealth:
    """`owner` is this process, without white space. `clock`, in seconds, stands in for the server's in tests."""

    def __init__(self, redis: Redis, book: HealthBook, owner: str, clock: Callable[[], float] | None = None) -> None:
        self._redis = redis
        self._book = book
        self._owner = owner
        self._clock = clock
        self._generation = b""
        self._heard_at = b"0"

    async def exchange(self, told: Sequence[Told]) -> list[Told]:
        heard, generation = await self._exchange(told)
        if generation != self._generation:
            # nothing is known there any more of what this process has found out
            more, self._generation = await self._exchange(self._book.all_told())
            heard += more
        return heard

    async def _exchange(self, told: Sequence[Told]) -> tuple[list[Told], bytes]:
        arguments: list[str | int] = [
            "" if self._clock is None else round(self._clock() * 1e6),
            self._owner,
            self._heard_at.decode(),
            self._generation.decode(),
            MOST,
            round(KEPT * 1e6),
        ]
        for each in told:
            arguments += (named(each), round(kept_for(each) * 1e6), written(each).decode())
        try:
            generation, self._heard_at, *rows = await self._redis.run(_EXCHANGE, *arguments)
        except RedisAway as error:
            raise HealthAway(str(error)) from error
        heard = (read(text, int(left) / 1e6) for left, text in zip(rows[::2], rows[1::2], strict=True))
        return [each for each in heard if each is not None], generation
