"""A stream log in Redis, for the replicas of a gateway on many machines: a Redis Stream for each stream.

An entry is some blocks, as one append brought them; its id is the number of the last. What counts is the time of the
server; what Redis lets expire by itself has long been taken for gone.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import msgspec

from router.call import Outcome
from router.state.redis import Redis, RedisAway, Script
from router.streams.log import Appended, Claim, LogAway, StreamHead, Stretch, Told, known_for, split_blocks
from router.streams.rows import Row, rows_of

_TOGETHER: Final = 256 * 1024
"""Bytes that are sent with one script, or one block: others use the connection too, and none may wait for long."""
_MICRO: Final = 1_000_000

_COMMON: Final = """
-- as in `router.streams.log`
local DEAD = 10000000
local keep, known_for, limit = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local SLACK = 120000000
local RENEWED = 60000000

local function expire(key, time)
  redis.call('PEXPIRE', key, string.format('%.0f', time / 1000))
end

local function claims(id)
  local found = {}
  for _, name in ipairs(redis.call('SMEMBERS', root .. 'claims:' .. id)) do
    if redis.call('HGET', root .. 'claim:' .. name, 'stream') == id then
      found[#found + 1] = root .. 'claim:' .. name
    end
  end
  return found
end

-- what a stream has is there for so long from now on
local function stay(id, slack)
  expire(root .. 'stream:' .. id, known_for + slack)
  expire(root .. 'blocks:' .. id, keep + slack)
  expire(root .. 'claims:' .. id, keep + slack)
  for _, key in ipairs(claims(id)) do expire(key, keep + slack) end
end

local function unclaim(id)
  for _, key in ipairs(claims(id)) do redis.call('DEL', key) end
  redis.call('DEL', root .. 'claims:' .. id)
end

local function closed(id, writer)
  redis.call('ZREM', root .. 'open:' .. writer, id)
  redis.call('SREM', root .. 'stopped:' .. writer, id)
  redis.call('HDEL', root .. 'read:' .. writer, id)
end

local function seen(writer)
  return tonumber(redis.call('GET', root .. 'seen:' .. writer) or '0')
end

-- a sign of life; streams whose time was over by then are not open again
local function see(writer)
  local at, open = seen(writer), root .. 'open:' .. writer
  if now - at >= math.max(keep, DEAD) then
    for _, id in ipairs(redis.call('ZRANGE', open, 0, -1)) do
      if redis.call('HGET', root .. 'stream:' .. id, 'writer') == writer then
        redis.call('HSET', root .. 'stream:' .. id, 'over', string.format('%.0f', at))
      end
      closed(id, writer)
    end
  end
  redis.call('SET', root .. 'seen:' .. writer, string.format('%.0f', now), 'PX',
    string.format('%.0f', (known_for + SLACK) / 1000))
end

-- the stream as it is now, or nothing
local function known(id)
  local kept = redis.call('HMGET', root .. 'stream:' .. id, 'head', 'writer', 'last', 'size', 'ended', 'over')
  if not kept[1] then return nil end
  local found = {
    id = id, head = kept[1], writer = kept[2], last = tonumber(kept[3]), size = tonumber(kept[4]),
    ended = kept[5] or '', over = kept[6] and tonumber(kept[6])
  }
  if not found.over then
    local at = seen(found.writer)
    if now - at >= math.max(keep, DEAD) then found.over = at end
  end
  if found.over and now - found.over >= known_for then
    return nil
  end
  if found.over and now - found.over >= keep then
    found.expired = true
    redis.call('DEL', root .. 'blocks:' .. id)
    unclaim(id)
  end
  return found
end

local function save(found)
  redis.call('HSET', root .. 'stream:' .. found.id, 'last', string.format('%.0f', found.last),
    'size', string.format('%.0f', found.size))
  if found.ended ~= '' then
    redis.call('HSET', root .. 'stream:' .. found.id, 'ended', found.ended, 'over', string.format('%.0f', found.over))
    closed(found.id, found.writer)
    stay(found.id, math.min(0, found.over - now))
  else
    stay(found.id, SLACK)
  end
end

-- entries: number of the last block, data; what the stream has is passed over
local function put(found, first, entries)
  local blocks = root .. 'blocks:' .. found.id
  if first > found.last + 1 then
    redis.call('DEL', blocks)
    found.last, found.size = first - 1, 0
  end
  for _, entry in ipairs(entries) do
    local last, data = entry[1], entry[2]
    if last > found.last then
      for _ = first, found.last do
        local _, stop = string.find(data, '\\n\\n', 1, true)
        data = string.sub(data, stop + 1)
      end
      local begins = math.max(first, found.last + 1)
      redis.call('XADD', blocks, string.format('%.0f-0', last), 'first', string.format('%.0f', begins), 'data', data)
      found.last, found.size = last, found.size + #data
    end
    first = last + 1
  end
  while found.size > limit and redis.call('XLEN', blocks) > 1 do
    local oldest = redis.call('XRANGE', blocks, '-', '+', 'COUNT', 1)[1]
    found.size = found.size - #oldest[2][4]
    redis.call('XDEL', blocks, oldest[1])
  end
end
"""
"""ARGV: time, keep and how long it is known in microseconds, limit.

`stream:<id>` is a hash: head, writer, number of the last block, bytes kept, how it ended and since when it is over.
`blocks:<id>` has them, `claims:<id>` the names of its claims, `claim:<name>` is stream, fingerprint, until. Of a
writer: `seen:` its last sign of life, `open:` its streams and when they were renewed, `stopped:` those to be stopped,
`read:` when they were read.
"""
_BEGIN: Final = Script(
    _COMMON
    + """
local id, writer, head = ARGV[5], ARGV[6], ARGV[7]
see(writer)
if not known(id) then
  redis.call('DEL', root .. 'stream:' .. id, root .. 'blocks:' .. id)
  redis.call('HSET', root .. 'stream:' .. id, 'head', head, 'writer', writer, 'last', 0, 'size', 0)
  redis.call('ZADD', root .. 'open:' .. writer, string.format('%.0f', now), id)
  expire(root .. 'open:' .. writer, known_for + SLACK)
  stay(id, SLACK)
end
"""
)
"""More: id, writer, head."""
_APPEND: Final = Script(
    _COMMON
    + """
local writer, at, lost = ARGV[5], 7, {}
see(writer)
for _ = 1, tonumber(ARGV[6]) do
  local id, first, ended, final = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3] == '1'
  local entries, count = {}, tonumber(ARGV[at + 4])
  at = at + 5
  for n = 1, count do
    entries[n] = {tonumber(ARGV[at]), ARGV[at + 1]}
    at = at + 2
  end
  local found = known(id)
  if not found or found.writer ~= writer then
    lost[#lost + 1] = id
  elseif found.over then
    local last = first - 1
    if count > 0 then last = entries[count][1] end
    if last > found.last or ended == '' or ended ~= found.ended then lost[#lost + 1] = id end
  else
    put(found, first, entries)
    if final and ended ~= '' then found.ended, found.over = ended, now end
    save(found)
  end
end
local open = root .. 'open:' .. writer
local old = redis.call('ZRANGEBYSCORE', open, '-inf', string.format('%.0f', now - RENEWED), 'LIMIT', 0, 200)
for _, id in ipairs(old) do
  stay(id, SLACK)
  redis.call('ZADD', open, string.format('%.0f', now), id)
end
if #old > 0 then
  for _, name in ipairs({'open:', 'stopped:', 'read:'}) do expire(root .. name .. writer, known_for + SLACK) end
end
return {redis.call('SMEMBERS', root .. 'stopped:' .. writer), redis.call('HGETALL', root .. 'read:' .. writer), lost}
"""
)
"""More: writer, how many streams; of each id, first number, end or empty, whether it ends with these, how many
entries; of each last number and data."""
_READ: Final = Script(
    _COMMON
    + """
local id, after, most = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local found = known(id)
if not found then return false end
local blocks = root .. 'blocks:' .. id
local oldest = redis.call('XRANGE', blocks, '-', '+', 'COUNT', 1)[1]
local begins = found.last + 1
if oldest then begins = tonumber(oldest[2][2]) end
if not found.over then
  redis.call('HSET', root .. 'read:' .. found.writer, id, string.format('%.0f', math.floor(now / 1000)))
  expire(root .. 'read:' .. found.writer, known_for + SLACK)
end
local entries, size = {}, 0
local from = math.max(after + 1, begins)
while from <= found.last and size <= most do
  local some = redis.call('XRANGE', blocks, string.format('%.0f-0', from), '+', 'COUNT', 8)
  if #some == 0 then break end
  for _, entry in ipairs(some) do
    local first = tonumber(entry[2][2])
    entries[#entries + 1] = {first, entry[2][4]}
    -- one that is wanted in part is not measured
    if first > after then size = size + #entry[2][4] end
    from = tonumber(string.match(entry[1], '^%d+')) + 1
    if size > most then break end
  end
end
return {found.head, begins, found.last, found.ended, found.expired and 1 or 0, entries}
"""
)
"""More: id, number of the last block that is not wanted, bytes."""
_LIVING: Final = Script(_COMMON + "return now - seen(ARGV[5]) < DEAD and 1 or 0")
"""More: writer."""
_SEAL: Final = Script(
    _COMMON
    + """
local found = known(ARGV[5])
if found and not found.over then
  put(found, found.last + 1, {{found.last + 1, ARGV[6]}})
  found.ended, found.over = ARGV[7], seen(found.writer)
  save(found)
end
"""
)
"""More: id, block, end."""
_STOP: Final = Script(
    _COMMON
    + """
local found = known(ARGV[5])
if found and not found.over then
  redis.call('SADD', root .. 'stopped:' .. found.writer, ARGV[5])
  expire(root .. 'stopped:' .. found.writer, known_for + SLACK)
end
"""
)
"""More: id."""
_CLAIM: Final = Script(
    _COMMON
    + """
local name, id, fingerprint = ARGV[5], ARGV[6], ARGV[7]
local key = root .. 'claim:' .. name
local kept = redis.call('HMGET', key, 'stream', 'fingerprint', 'until')
if kept[1] then
  local found = known(kept[1])
  if (found and not found.expired) or (not found and tonumber(kept[3]) > now) then
    return {kept[1], kept[2], 0}
  end
  redis.call('SREM', root .. 'claims:' .. kept[1], name)
end
redis.call('HSET', key, 'stream', id, 'fingerprint', fingerprint, 'until', string.format('%.0f', now + keep))
redis.call('SADD', root .. 'claims:' .. id, name)
expire(key, keep)
expire(root .. 'claims:' .. id, keep + SLACK)
return {id, fingerprint, 1}
"""
)
"""More: name, id, fingerprint."""
_RELEASE: Final = Script(
    _COMMON
    + """
if redis.call('HGET', root .. 'claim:' .. ARGV[5], 'stream') == ARGV[6] then
  redis.call('DEL', root .. 'claim:' .. ARGV[5])
  redis.call('SREM', root .. 'claims:' .. ARGV[6], ARGV[5])
end
"""
)
"""More: name, id."""
_REMOVE: Final = Script(
    _COMMON
    + """
local writer = redis.call('HGET', root .. 'stream:' .. ARGV[5], 'writer')
if writer then closed(ARGV[5], writer) end
unclaim(ARGV[5])
redis.call('DEL', root .. 'stream:' .. ARGV[5], root .. 'blocks:' .. ARGV[5])
"""
)
"""More: id."""


class RedisLog:
    """Used while the connection is open. `keep`: seconds after its end; `limit`: bytes of one stream; `own_time`: a
    clock of tests, in microseconds."""

    def __init__(self, redis: Redis, keep: float, limit: int, own_time: Callable[[], int] | None = None) -> None:
        self.keep = keep
        self.limit = limit
        self._redis = redis
        self._own_time = own_time

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        yield

    async def begin(self, head: StreamHead) -> None:
        await self._run(_BEGIN, head.id, head.writer, msgspec.msgpack.encode(head))

    async def append(self, writer: str, batch: Sequence[Appended]) -> Told:
        stopped: list[bytes] = []
        read: list[bytes] = []
        lost: set[str] = set()
        for count, arguments in _scripts(batch, self.limit):
            stopped, read, missed = await self._run(_APPEND, writer, count, *arguments)
            lost.update(each.decode() for each in missed)
        return Told(
            frozenset([each.decode() for each in stopped]),
            {name.decode(): int(at) for name, at in zip(read[::2], read[1::2], strict=True)},
            frozenset(lost),
        )

    async def read(self, stream: str, after: int, limit: int = 256 * 1024) -> Stretch | None:
        found = await self._run(_READ, stream, after, limit)
        if found is None:
            return None
        data, begins, last, ended, expired, entries = found
        first = min(max(after + 1, begins), last + 1)
        return Stretch(
            msgspec.msgpack.decode(data, type=StreamHead),
            first,
            tuple(_blocks(entries, first, limit)),
            begins,
            last,
            cast("Outcome", ended.decode()) if ended else None,
            bool(expired),
        )

    async def living(self, writer: str) -> bool:
        return bool(await self._run(_LIVING, writer))

    async def seal(self, stream: str, block: bytes, ended: Outcome) -> None:
        await self._run(_SEAL, stream, block, ended)

    async def stop(self, stream: str) -> None:
        await self._run(_STOP, stream)

    async def claim(self, owner: str, key: str, stream: str, fingerprint: str) -> Claim:
        name = _name(owner, key)
        try:
            first, of_request, fresh = await self._run(_CLAIM, name, stream, fingerprint)
        except (LogAway, asyncio.CancelledError) as error:
            if not isinstance(error.__cause__, RedisAway) or error.__cause__.sent:
                # it may have been made all the same, and nobody will use it
                self._redis.later(_RELEASE, *self._beginning(), name, stream)
            raise
        return Claim(first.decode(), of_request.decode(), bool(fresh))

    async def release(self, owner: str, key: str, stream: str) -> None:
        await self._run(_RELEASE, _name(owner, key), stream)

    async def remove(self, stream: str) -> None:
        await self._run(_REMOVE, stream)

    async def _run(self, script: Script, *arguments: Any) -> Any:
        try:
            return await self._redis.run(script, *self._beginning(), *arguments)
        except RedisAway as error:
            raise LogAway(str(error)) from error

    def _beginning(self) -> tuple[str | int, ...]:
        time: str | int = "" if self._own_time is None else self._own_time()
        return time, int(self.keep * _MICRO), int(known_for(self.keep) * _MICRO), self.limit


def _scripts(batch: Sequence[Appended], limit: int) -> Iterator[tuple[int, list[Any]]]:
    """How many streams, and their arguments; one at least. A stream whose blocks are many is in several, the end in the
    last of them."""
    count, size = 0, 0
    arguments: list[Any] = []
    for appended in batch:
        rows = rows_of(appended.first, appended.blocks, limit)
        pieces = list(_pieces(rows)) or [[]]
        for number, piece in enumerate(pieces, 1):
            bytes_of_it = sum(len(row.data) for row in piece)
            if count and size + bytes_of_it > _TOGETHER:
                yield count, arguments
                count, size, arguments = 0, 0, []
            first = piece[0].first if piece else appended.first
            arguments += [appended.id, first, appended.ended or "", int(number == len(pieces)), len(piece)]
            for row in piece:
                arguments += [row.last, row.data]
            count, size = count + 1, size + bytes_of_it
    if count or not batch:
        yield count, arguments


def _pieces(rows: Sequence[Row]) -> Iterator[list[Row]]:
    piece: list[Row] = []
    size = 0
    for row in rows:
        if piece and size + len(row.data) > _TOGETHER:
            yield piece
            piece, size = [], 0
        piece.append(row)
        size += len(row.data)
    if piece:
        yield piece


def _blocks(entries: Sequence[tuple[int, bytes]], first: int, limit: int) -> Iterator[bytes]:
    """Those from number `first`, up to `limit` bytes but one at least."""
    size = 0
    for begin, data in entries:
        for block in split_blocks(data)[max(0, first - begin) :]:
            if size and size + len(block) > limit:
                return
            size += len(block)
            yield block


def _name(owner: str, key: str) -> str:
    """Of a claim: of one length, whatever the key is."""
    return hashlib.sha256(f"{len(owner)} {owner}{key}".encode()).hexdigest()
