"""2,000 calls that end in every way there is, in three currencies: the ledger's sums are those of our own reckoning.

What was used is drawn first, and what it costs is reckoned here with fractions, from the numbers alone. The scripted
vendor then serves exactly that. `pytest -s` prints both sums.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from shows.clients import Seen, ask
from shows.processes import GatewayProcess, fetch, running
from shows.stored import Rows, tokens_of

from router.ledger.rows import TOKEN_CLASSES
from support.stores import BACKENDS, Backend, store_url
from support.vendor import Exchange, delta, sse, vendor

CALLS = 2000
AT_ONCE = 50
WORD = " one"
"""One token of every vocabulary."""

PRICES = """
prices:
  - {list: dollars, models: [plain], currency: USD, input: 0.250000001, cache_read: 0.025, cache_write: 0.3125,
     input_audio: 10, output: 2.000000003, reasoning: 2.5, output_audio: 20}
  - {list: yuan, models: [tiered], currency: CNY, input: 0.8, cache_read: 0.160000007, output: 2.000000001,
     tiers: [{above: 1000, input: 2.4, cache_read: 0.48, output: 20}, {above: 4000, input: 4.8, output: 48.000000001}]}
  - {list: euros, models: [steps], currency: EUR, input: 1.5, output: 4.500000001, basis: marginal,
     tiers: [{above: 500, input: 1.100000003, output: 3.9}, {above: 3000, input: 0.7}]}
"""
USD = {
    "input": "0.250000001",
    "cache_read": "0.025",
    "cache_write": "0.3125",
    "input_audio": "10",
    "output": "2.000000003",
    "reasoning": "2.5",
    "output_audio": "20",
}
CNY = (
    (0, {"input": "0.8", "cache_read": "0.160000007", "output": "2.000000001"}),
    (1000, {"input": "2.4", "cache_read": "0.48", "output": "20"}),
    # what a tier does not say stays as it was below
    (4000, {"input": "4.8", "cache_read": "0.48", "output": "48.000000001"}),
)
EUR = {
    "input": ((0, "1.5"), (500, "1.100000003"), (3000, "0.7")),
    "output": ((0, "4.500000001"), (500, "3.9")),
}
CURRENCY = {"dollars/plain": "USD", "yuan/tiered": "CNY", "euros/steps": "EUR", "dollars/unpriced": None}

OUTCOMES = {
    "streamed": "finished",
    "whole": "finished",
    "tools": "finished",
    "tools whole": "finished",
    "no usage": "finished",
    "no usage whole": "finished",
    "refused 4xx": "failed",
    "failed 5xx": "failed",
    "ended early": "failed",
    "reset": "cut",
    "error inside": "cut",
    "left": "client_gone",
}
"""Kind of call → how the ledger has to say that it ended."""
SHARES = (30, 18, 6, 4, 6, 4, 7, 7, 2, 6, 4, 6)
NOTHING = {"refused 4xx", "failed 5xx"}
"""Kinds that cost nothing: the vendor refused before it did anything."""
REPORTED = {"streamed", "whole", "tools", "tools whole"}


@dataclass
class Plan:
    """One call, drawn before it is made."""

    number: int
    kind: str
    target: str
    deltas: int
    status: int = 200
    tokens: dict[str, int] = field(default_factory=dict)
    """What the vendor will report."""

    @property
    def streamed(self) -> bool:
        return self.kind not in ("whole", "tools whole", "no usage whole")


def drawn(dice: random.Random, number: int) -> Plan:
    kind = dice.choices(list(OUTCOMES), SHARES)[0]
    plan = Plan(number, kind, dice.choices(list(CURRENCY), (8, 5, 5, 1))[0], dice.randrange(1, 9))
    if kind in NOTHING:
        plan.status = dice.choice((400, 404, 413, 422, 429) if kind == "refused 4xx" else (500, 502, 503))
    if kind in REPORTED:
        tokens = dict.fromkeys(TOKEN_CLASSES, 0)
        # the borders of the tiers too, from both sides
        tokens["input"] = dice.choice((0, 1, 500, 501, 1000, 1001, 3000, 4000, 4001, *[dice.randrange(20_000)] * 9))
        tokens["output"] = dice.choice((0, 1, 500, 501, *[dice.randrange(6_000)] * 6))
        if plan.target != "euros/steps":
            tokens["cache_read"] = dice.choice((0, 0, dice.randrange(5_000)))
            tokens["reasoning"] = dice.choice((0, 0, dice.randrange(3_000)))
        if plan.target == "dollars/plain":
            tokens["cache_write"] = dice.choice((0, 0, dice.randrange(700)))
            tokens["input_audio"] = dice.choice((0, 0, 0, dice.randrange(90)))
            tokens["output_audio"] = dice.choice((0, 0, 0, dice.randrange(90)))
        plan.tokens = tokens
    return plan


# -- the reckoning of our own ------------------------------------------------------------------------------------------


def cost_of(target: str, tokens: Mapping[str, int]) -> int | None:
    """Nano-units; None where no price is known."""
    if target == "dollars/unpriced":
        return None
    if target == "dollars/plain":
        return in_nano(Fraction(tokens[name]) * Fraction(USD[name]) for name in TOKEN_CLASSES if tokens[name])
    if target == "yuan/tiered":
        prompt = tokens["input"] + tokens["cache_read"]
        rates = next(rates for above, rates in reversed(CNY) if prompt > above or above == 0)
        by_class = rates | {"reasoning": rates["output"]}
        return in_nano(tokens[name] * Fraction(by_class[name]) for name in TOKEN_CLASSES if tokens[name])
    return in_nano(
        Fraction(rate) * max(0, min(tokens[side], end) - above)
        for side, steps in EUR.items()
        for (above, rate), end in zip(steps, [*(above for above, _ in steps[1:]), 10**9], strict=True)
    )


def in_nano(exact: Iterable[Fraction]) -> int:
    """Units a million tokens, times tokens → nano-units, rounded once."""
    return round(sum(exact, Fraction()) * 10**9 / 10**6)


# -- the vendor --------------------------------------------------------------------------------------------------------


def vendor_script(plans: list[Plan]) -> Any:
    async def play(exchange: Exchange) -> None:
        asked = exchange.request.json()
        plan = plans[int(asked["messages"][-1]["content"].split()[-1])]
        assert bool(asked.get("stream")) == plan.streamed
        if plan.kind in NOTHING:
            error = {"message": "not this one", "type": "some_error", "code": "scripted", "param": None}
            await exchange.whole(plan.status, json.dumps({"error": error}).encode())
        elif plan.streamed:
            await _stream(exchange, plan)
        else:
            await exchange.whole(200, _body(plan))

    return play


async def _stream(exchange: Exchange, plan: Plan) -> None:
    await exchange.head()
    if plan.kind == "ended early":
        await exchange.end()
        return
    for _ in range(plan.deltas):
        await exchange.chunk(sse(delta(WORD)))
    if plan.kind == "left":
        await exchange.stall()
    elif plan.kind == "reset":
        # what was written is to arrive before the reset does
        await asyncio.sleep(0.05)
        exchange.cut()
    elif plan.kind == "error inside":
        await exchange.chunk(sse({"error": {"message": "broke", "type": "server_error", "code": "scripted"}}))
        await exchange.end()
    else:
        if plan.kind == "tools":
            await exchange.chunk(sse(delta(tool_calls=[_TOOL_CALL])))
        last = [delta(finish="tool_calls" if plan.kind == "tools" else "stop")]
        if plan.tokens:
            last.append({**delta(), "choices": [], "usage": _usage(plan.tokens)})
        await exchange.chunk(sse(*last, "[DONE]"))
        await exchange.end()


_TOOL_CALL = {
    "index": 0,
    "id": "call_1",
    "type": "function",
    "function": {"name": "look", "arguments": '{"at":"it"}'},
}
_TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def _body(plan: Plan) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": WORD * plan.deltas}
    if plan.kind == "tools whole":
        message["tool_calls"] = [{name: value for name, value in _TOOL_CALL.items() if name != "index"}]
    finish = "tool_calls" if plan.kind == "tools whole" else "stop"
    body = {
        **delta(),
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    if plan.tokens:
        body["usage"] = _usage(plan.tokens)
    return json.dumps(body).encode()


def _usage(tokens: Mapping[str, int]) -> dict[str, Any]:
    """As OpenAI reports it: totals, and parts of them."""
    prompt = tokens["input"] + tokens["cache_read"] + tokens["cache_write"] + tokens["input_audio"]
    completion = tokens["output"] + tokens["reasoning"] + tokens["output_audio"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": tokens["cache_read"],
            "cache_write_tokens": tokens["cache_write"],
            "audio_tokens": tokens["input_audio"],
        },
        "completion_tokens_details": {
            "reasoning_tokens": tokens["reasoning"],
            "audio_tokens": tokens["output_audio"],
        },
    }


# -- the show ----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", BACKENDS)
async def test_two_thousand_mixed_calls_cost_what_they_cost(backend: Backend, tmp_path: Path) -> None:
    dice = random.Random(20261122)
    plans = [drawn(dice, number) for number in range(CALLS)]
    async with store_url(backend, tmp_path) as url, vendor(vendor_script(plans)) as played:
        config = f"""
server: {{shutdown: {{delay: 0s}}}}
store: {url}
prices: {{file: prices.yaml}}
providers:
  dollars: {{protocol: openai, base_url: "{played.url}", api_key: sk-vendor}}
  yuan: {{protocol: openai, base_url: "{played.url}", api_key: sk-vendor}}
  euros: {{protocol: openai, base_url: "{played.url}", api_key: sk-vendor}}
plugins: [logging, auth, usage]
"""
        async with running(tmp_path, config, files={"prices.yaml": PRICES}) as gateway:
            seen = await all_called(gateway, plans)
            report = await complete_report(gateway)
            await gateway.stop()
        rows = await Rows.read(url)
    check_rows(plans, seen, rows)
    check_sums(backend, plans, rows, report)
    assert '"level":"error"' not in gateway.said()


async def all_called(gateway: GatewayProcess, plans: list[Plan]) -> list[Seen]:
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(plan: Plan) -> Seen:
        async with turns:
            more: dict[str, Any] = {"tools": [_TOOL]} if plan.kind.startswith("tools") else {}
            leave_at = WORD.encode() if plan.kind == "left" else None
            text = f"user-{plan.number}", f"call {plan.number}"
            return await ask(gateway.port, *text, stream=plan.streamed, model=plan.target, leave_at=leave_at, **more)

    return list(await asyncio.gather(*map(one, plans)))


async def complete_report(gateway: GatewayProcess) -> Any:
    """What `GET /v1/usage` says once every call has come to its end."""

    async def reported() -> Any:
        status, report = await fetch(gateway.port, "/v1/usage?by=target,outcome")
        assert status == 200, report
        return report

    async with asyncio.timeout(30):
        while ended(await reported()) < CALLS:
            await asyncio.sleep(0.1)
    return await reported()


def ended(report: Any) -> int:
    return sum(sums["requests"] for sums in report["data"] if sums["group"]["outcome"] != "running")


def check_rows(plans: list[Plan], seen: list[Seen], rows: Rows) -> None:
    """Each call has its row, and each row is exact."""
    assert rows.calls.keys() == rows.attempts.keys() == {f"user-{plan.number}" for plan in plans}
    assert {len(each) for each in (*rows.calls.values(), *rows.attempts.values())} == {1}
    for plan, told in zip(plans, seen, strict=True):
        call, attempt = rows.calls[told.marker][0], rows.attempts[told.marker][0]
        what = f"{plan.kind} of {plan.target}, call {plan.number}"
        assert (call.outcome, attempt.outcome) == (OUTCOMES[plan.kind],) * 2, what
        assert told.ended == (call.outcome == "finished"), what
        assert told.request_id == call.id == attempt.call_id, what
        tokens = tokens_of(attempt)
        assert attempt.flag is None, what
        if plan.kind in REPORTED:
            assert (attempt.source, tokens) == ("reported", plan.tokens), what
        elif plan.kind in NOTHING:
            assert (attempt.source, attempt.cost) == (None, None), what
            assert not any(tokens.values()), what
            continue
        else:
            said = 0 if plan.kind == "ended early" else plan.deltas
            assert attempt.source == "estimated", what
            assert tokens["input"] > 0, what
            if plan.kind in ("reset", "left"):
                assert 0 < tokens["output"] <= said, what
            else:
                assert tokens["output"] == said, what
            assert sum(tokens.values()) == tokens["input"] + tokens["output"], what
        cost, currency = cost_of(plan.target, tokens), CURRENCY[plan.target]
        assert (attempt.cost, attempt.currency) == (cost, currency), what


def check_sums(backend: Backend, plans: list[Plan], rows: Rows, report: Any) -> None:
    """What the report says is the sum of our own reckoning."""
    outcomes = Counter(OUTCOMES[plan.kind] for plan in plans)
    reckoned: Counter[str] = Counter()
    """What the vendor reported, priced from the script; what it did not, from the tokens on record."""
    tokens: Counter[str] = Counter()
    unpriced = estimated = 0
    for plan in plans:
        used = plan.tokens or tokens_of(rows.attempts[f"user-{plan.number}"][0])
        tokens.update(used)
        if plan.kind in NOTHING:
            continue
        estimated += plan.kind not in REPORTED
        currency, cost = CURRENCY[plan.target], cost_of(plan.target, used)
        if currency is None or cost is None:
            unpriced += any(used.values())
        else:
            reckoned[currency] += cost
    table = Counter[str]()
    for each in rows.attempts.values():
        if each[0].currency is not None:
            table[each[0].currency] += each[0].cost
    total = report["total"]
    amounts = amounts_of(total)
    print(f"\n{backend}: {dict(outcomes)}")
    for code in sorted(reckoned):
        print(
            f"{code}: reckoned {reckoned[code]:>15}  in the rows {table[code]:>15}  reported {amounts[code]:>15} nano"
        )
    assert amounts == dict(table) == dict(reckoned)
    by_group = Counter[str]()
    for sums in report["data"]:
        by_group.update(amounts_of(sums))
    assert by_group == reckoned
    assert total["requests"] == CALLS
    assert {name: count for name, count in total["outcomes"].items() if count} == dict(outcomes)
    assert {name: total["tokens"][name] for name in TOKEN_CLASSES} == {name: tokens[name] for name in TOKEN_CLASSES}
    assert total["cost"]["unpriced"] == unpriced
    assert total["estimated"]["attempts"] == estimated


def amounts_of(sums: Any) -> dict[str, int]:
    """Nano-units by currency."""
    return {cost["currency"]: int(Decimal(cost["amount"]) * 10**9) for cost in sums["cost"]["amounts"]}
