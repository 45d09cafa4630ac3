"""Budgets counted in Redis, for the replicas of a gateway on many machines."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from router.accounts import Account, AccountsAway, Charge, Hold, Opening, Refusal, Standing
from router.state.holding import EXPIRY, KEPT, wanted
from router.state.names import account_named
from router.state.openings import Opened, Openings, Told
from router.state.redis import Redis, RedisAway, Script

_KEPT: Final = int(KEPT * 1000)
_SUMS: Final = """
-- Lua's numbers are exact up to 2^53: an amount is its whole units and its billionths
local function split(text)
  local size = #text
  if size <= 9 then return 0, tonumber(text) end
  return tonumber(string.sub(text, 1, size - 9)), tonumber(string.sub(text, size - 8))
end
local function join(units, nano)
  if units == 0 then return string.format('%d', nano) end
  return string.format('%.0f%09d', units, nano)
end
local function add(a, b)
  local units, nano = split(a)
  local more, rest = split(b)
  units, nano = units + more, nano + rest
  if nano >= 1000000000 then return join(units + 1, nano - 1000000000) end
  return join(units, nano)
end
local function less(a, b)
  local units, nano = split(a)
  local more, rest = split(b)
  return units < more or (units == more and nano < rest)
end
local function take(a, b)
  if less(a, b) then return '0' end
  local units, nano = split(a)
  local more, rest = split(b)
  units, nano = units - more, nano - rest
  if nano < 0 then return join(units - 1, nano + 1000000000) end
  return join(units, nano)
end
local function account(name) return root .. 'account:' .. name end
local function held(call) return root .. 'held:' .. call end
local lapses = root .. 'lapses'
local function release(key, amount)
  local reserved = redis.call('HGET', key, 'reserved')
  if reserved then redis.call('HSET', key, 'reserved', take(reserved, amount)) end
end
for _, call in ipairs(redis.call('ZRANGEBYSCORE', lapses, '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('ZREM', lapses, call)
  local fields = redis.call('HGETALL', held(call))
  for i = 1, #fields, 2 do
    if fields[i] ~= '' then
      release(account(fields[i]), fields[i + 1])
      redis.call('HSET', held(call), fields[i], '0')
    end
  end
end
-- an account that is not open is opened with what the ledger said, if it was asked
local function open(name, ends, kept, spent, asked)
  local key = account(name)
  if redis.call('EXISTS', key) == 0 then
    if spent == '' then return false end
    redis.call('HSET', key, 'spent', spent, 'reserved', '0', 'asked', asked)
  end
  redis.call('PEXPIRE', key, string.format('%.0f', math.max(tonumber(ends) - now / 1000, 0) + kept))
  return true
end
"""
"""Whatever expired is released first. The field of a call's holds that has no name is who holds them."""
_RESERVE: Final = Script(
    _SUMS
    + """
local call, owner, expiry, kept = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local holds = 7 + 5 * tonumber(ARGV[6])
local missing = {1}
for at = 7, holds - 1, 5 do
  if not open(ARGV[at], ARGV[at + 1], kept, ARGV[at + 2], ARGV[at + 3]) then missing[#missing + 1] = (at - 7) / 5 end
end
if #missing > 1 then return missing end
for at = holds, #ARGV, 3 do
  local found = redis.call('HMGET', account(ARGV[at]), 'spent', 'reserved')
  if less(ARGV[at + 1], add(add(found[1], found[2]), ARGV[at + 2])) then
    return {2, (at - holds) / 3, found[1], found[2]}
  end
end
local key, life = held(call), math.ceil(expiry / 1000) + kept
for at = 7, holds - 1, 5 do
  local name, amount = ARGV[at], ARGV[at + 4]
  redis.call('HSET', key, name, add(redis.call('HGET', key, name) or '0', amount))
  redis.call('HSET', account(name), 'reserved', add(redis.call('HGET', account(name), 'reserved'), amount))
end
redis.call('HSET', key, '', owner)
redis.call('PEXPIRE', key, life)
redis.call('ZADD', lapses, string.format('%.0f', now + expiry), call)
redis.call('PEXPIRE', lapses, life)
redis.call('SADD', root .. 'owner:' .. owner, call)
redis.call('PEXPIRE', root .. 'owner:' .. owner, life)
return {0, generation}
"""
)
"""ARGV: time, call, owner, expiry in microseconds, time to keep in milliseconds, how many accounts; of each account its
name, its end, what the ledger said or nothing, when it was asked, the amount; of each hold its account, limit, and
amount with those before it. Gives 0 and the generation; 1 and which accounts are not open; or 2, the hold that is
refused, spent and reserved."""
_SETTLE: Final = Script(
    _SUMS
    + """
local call, kept, known, at, charges = ARGV[2], ARGV[3], ARGV[4], ARGV[5], 7 + 2 * tonumber(ARGV[6])
local fields, holds = redis.call('HGETALL', held(call)), {}
local lost = #fields == 0 and known ~= generation and at ~= ''
if #fields > 0 then
  for i = 1, #fields, 2 do
    if fields[i] == '' then
      redis.call('SREM', root .. 'owner:' .. fields[i + 1], call)
    else
      release(account(fields[i]), fields[i + 1])
      holds[fields[i]] = true
    end
  end
  redis.call('DEL', held(call))
  redis.call('ZREM', lapses, call)
end
-- with a time only what was opened before it is charged
local function charge(name, amount, time)
  local key = account(name)
  local asked = redis.call('HGET', key, 'asked')
  if asked and (not time or tonumber(asked) < tonumber(time)) then
    redis.call('HSET', key, 'spent', add(redis.call('HGET', key, 'spent'), amount))
  end
end
if #fields > 0 then
  for i = 7, charges - 1, 2 do charge(ARGV[i], ARGV[i + 1]) end
end
if (lost or charges <= #ARGV) and redis.call('SET', root .. 'late:' .. call, '', 'NX', 'PX', kept) then
  if lost then
    for i = 7, charges - 1, 2 do charge(ARGV[i], ARGV[i + 1], at) end
  end
  for i = charges, #ARGV, 3 do charge(ARGV[i], ARGV[i + 1], not holds[ARGV[i]] and ARGV[i + 2]) end
end
return 1
"""
)
"""ARGV: time, call, time to keep in milliseconds, the generation that the call reserved in or nothing, when it was
settled elsewhere or is settled now if it may have been lost, or nothing; how many charges, and name and amount of each;
name, amount and time of each that comes late."""
_STANDINGS: Final = Script(
    _SUMS
    + """
local missing, found = {1}, {0}
for at = 3, #ARGV, 4 do
  if open(ARGV[at], ARGV[at + 1], ARGV[2], ARGV[at + 2], ARGV[at + 3]) then
    local sums = redis.call('HMGET', account(ARGV[at]), 'spent', 'reserved')
    found[#found + 1], found[#found + 2] = sums[1], sums[2]
  else
    missing[#missing + 1] = (at - 3) / 4
  end
end
if #missing > 1 then return missing end
return found
"""
)
"""ARGV: time, time to keep; name, end, what the ledger said or nothing, when it was asked, of each account. Gives 0,
spent and reserved of each; or 1 and which are not open."""
_HELD_BY: Final = Script(
    _SUMS
    + """
local calls = {}
for _, call in ipairs(redis.call('SMEMBERS', root .. 'owner:' .. ARGV[2])) do
  local names = redis.call('HKEYS', held(call))
  if #names > 0 then calls[#calls + 1] = {call, names} end
end
return calls
"""
)
"""ARGV: time, owner."""


class RedisAccounts:
    """Accounts as the process `owner` sees them. `clock` gives Unix seconds: of when the ledger was asked, and a call
    settled. With `own_time`, for tests, also the time by which holds expire, which is the server's otherwise."""

    def __init__(
        self,
        redis: Redis,
        opening: Opening,
        owner: str,
        clock: Callable[[], float] = time.time,
        expiry: float = EXPIRY,
        *,
        own_time: bool = False,
    ) -> None:
        self._redis = redis
        self._openings = Openings(opening, clock)
        self._owner = owner
        self._clock = clock
        self._expiry = round(expiry * 1e6)
        self._own_time = own_time
        self._reserved_in: dict[str, str] = {}
        """The generation in which each running call of ours has reserved."""

    @property
    def generation(self) -> str:
        return self._redis.generation

    async def reserve(self, call_id: str, holds: Sequence[Hold]) -> Refusal | None:
        if not holds:
            return None
        checks: list[str | int] = []
        amounts: dict[Account, int] = {}
        for hold, amount in wanted(holds):
            amounts[hold.account] = amount
            checks += (str(hold.account), str(hold.limit), str(amount))
        accounts = list(amounts)
        told: Told = {}
        while True:
            arguments: list[str | int] = [self._now(), call_id, self._owner, self._expiry, _KEPT, len(accounts)]
            for account in accounts:
                arguments += (*_said(account, told), str(amounts[account]))
            try:
                answer = await self._redis.run(_RESERVE, *arguments, *checks)
            except RedisAway as error:
                if error.sent:
                    self._release_later(call_id)
                raise AccountsAway(str(error)) from error
            except asyncio.CancelledError:
                self._release_later(call_id)
                raise
            match answer:
                case [0, generation]:
                    # another process may have begun it
                    self._reserved_in[call_id] = self._redis.generation = generation.decode()
                    return None
                case [2, index, spent, reserved]:
                    hold = holds[index]
                    return Refusal(hold, Standing(hold.account, int(spent), int(reserved)))
            await self._openings.ask([accounts[index] for index in answer[1:]], told)

    async def settle(
        self, call_id: str, charges: Mapping[Account, int], late: Sequence[Charge] = (), at: int | None = None
    ) -> None:
        known = self._reserved_in.get(call_id, "")
        if at is None and known:
            at = int(self._clock() * 1000)
        arguments: list[str | int] = [self._now(), call_id, _KEPT, known, "" if at is None else at, len(charges)]
        for account, amount in charges.items():
            arguments += (str(account), str(amount))
        for charge in late:
            arguments += (str(charge.account), str(charge.amount), charge.at)
        await self._run(_SETTLE, *arguments)
        self._reserved_in.pop(call_id, None)

    async def standings(self, accounts: Sequence[Account]) -> list[Standing]:
        told: Told = {}
        while True:
            arguments: list[str | int] = [self._now(), _KEPT]
            for account in accounts:
                arguments += _said(account, told)
            missing, *answer = await self._run(_STANDINGS, *arguments)
            if not missing:
                sums = list(map(int, answer))
                return [Standing(*each) for each in zip(accounts, sums[::2], sums[1::2], strict=True)]
            await self._openings.ask([accounts[index] for index in answer], told)

    async def held_by(self, owner: str) -> list[tuple[str, tuple[Account, ...]]]:
        calls = await self._run(_HELD_BY, self._now(), owner)
        return [
            (call_id.decode(), tuple(account_named(name.decode()) for name in names if name))
            for call_id, names in calls
        ]

    async def begin_anew(self) -> None:
        try:
            await self._redis.begin_anew()
        except RedisAway as error:
            raise AccountsAway(str(error)) from error

    def _release_later(self, call_id: str) -> None:
        # nobody knows whether it was reserved, and nobody will settle it; one that had reserved before is settled
        if call_id not in self._reserved_in:
            self._redis.later(_SETTLE, self._now(), call_id, _KEPT, "", "", 0)

    async def _run(self, script: Script, *arguments: str | int) -> Any:
        try:
            return await self._redis.run(script, *arguments)
        except RedisAway as error:
            raise AccountsAway(str(error)) from error

    def _now(self) -> str | int:
        return round(self._clock() * 1e6) if self._own_time else ""


def _said(account: Account, told: Mapping[Account, Opened]) -> tuple[str, int, str, int]:
    opened = told.get(account)
    return (str(account), account.until or 0, *(("", 0) if opened is None else (str(opened.spent), opened.asked)))
