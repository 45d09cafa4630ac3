"""`/v1/requests` and `/v1/usage` as clients see them: shapes, ownership, CSV, and what is refused."""

import asyncio
import csv
import io
from decimal import Decimal
from typing import Any

import httpx
import pytest
from msgspec import structs

from router.focus import COLUMNS
from router.ids import request_id
from router.ledger.rows import TOKEN_CLASSES
from router.store.store import Store
from support.ledgers import DAY, START, Book, Ledger, call_id, random_ledger
from support.serving import application, served
from support.serving import client as serving_client
from tests.reports.routes import asking

ALL = "from=2026-09-01&to=2026-12-31"


async def get(client: httpx.AsyncClient, path: str, key: str = "open") -> Any:
    answer = await client.get(path, headers={"authorization": key})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
async def ledger(store: Store) -> Ledger:
    made = random_ledger(21, 150, days=30)
    await made.into(store)
    return made


# -- receipts --------------------------------------------------------------------------------------------------------


async def test_a_receipt_tells_all_there_is(store: Store, ledger: Ledger) -> None:
    call = next(call for call in ledger.calls if sum(row.call_id == call.id for row in ledger.attempts) == 3)
    rows = [row for row in ledger.attempts if row.call_id == call.id]
    async with asking(store) as client:
        found = await get(client, f"/v1/requests/{call.id}")
    assert found["id"] == call.id
    assert found["object"] == "request"
    assert found["created_at"] == call.created_at // 1000
    for name in ("outcome", "dialect", "target", "stream", "error", "decision"):
        assert found[name] == getattr(call, name)
    for name in ("model", "route", "key", "user", "team", "tags"):
        assert found[name] == getattr(call.labels, name)
    labels = call.labels
    assert found["experiment"] == (
        None
        if labels.experiment is None
        else {"name": labels.experiment, "arm": labels.arm, "unit": None, "forced": False, "shadow_of": None}
    )
    assert (found["feedback"], found["shadows"]) == ({}, [])
    assert found["timing"] == {
        "duration_ms": 2100.0, "overhead_ms": 0.9, "queue_ms": 0.2, "first_token_ms": 310.2,
        "longest_gap_ms": None, "plugins": {"auth": 0.1},
    }  # fmt: skip
    assert [attempt["n"] for attempt in found["attempts"]] == [1, 2, 3]
    for attempt, row in zip(found["attempts"], rows, strict=True):
        assert attempt["target"] == f"{row.provider}/{row.model}"
        assert (attempt["usage"] is None) == (row.source is None)
        if row.source is not None:
            assert attempt["usage"] == {name: getattr(row, name) for name in (*TOKEN_CLASSES, "source", "flag")}
        if row.cost is not None:
            wanted = {"amount": f"{Decimal(row.cost).scaleb(-9):.9f}", "currency": row.currency, "price": row.price}
            assert attempt["cost"] == wanted
        assert attempt["unpriced"] == (row.provider == "new" and row.source is not None)
    costs = found["cost"] if isinstance(found["cost"], list) else [found["cost"]] if found["cost"] else []
    for cost in costs:
        nano = sum(row.cost or 0 for row in rows if row.currency == cost["currency"])
        assert Decimal(cost["amount"]) == Decimal(nano).scaleb(-9)
    assert {cost["currency"] for cost in costs} == {row.currency for row in rows if row.cost is not None}
    assert found["unpriced"] == any(attempt["unpriced"] for attempt in found["attempts"])


async def test_what_a_client_has_done_it_sees_at_once() -> None:
    config = "providers: {mock: {protocol: mock}}\nledger: {group_commit: 5s}"
    question = {"model": "mock/echo", "messages": [{"role": "user", "content": "Hi"}]}
    async with served(application(config)) as url, serving_client(url) as client:
        answer = await client.post("/v1/chat/completions", json=question)
        found = await get(client, f"/v1/requests/{answer.headers['x-request-id']}")
        assert found["outcome"] == "finished"
        answer = await client.post("/v1/chat/completions", json=question)
        assert [each["outcome"] for each in (await get(client, "/v1/requests"))["data"]] == ["finished"] * 2
        assert (await client.post("/v1/chat/completions", json=question)).status_code == 200
        assert (await get(client, "/v1/usage"))["total"]["requests"] == 3


async def test_a_call_that_another_process_has_just_served_is_waited_for(store: Store) -> None:
    made = random_ledger(22, 1, days=1)
    request = request_id()
    made.calls[:] = [structs.replace(made.calls[0], id=request)]
    made.attempts.clear()

    async def a_moment_later() -> None:
        await asyncio.sleep(0.2)
        await made.into(store)

    async with asking(store) as client:
        found, _ = await asyncio.gather(get(client, f"/v1/requests/{request}"), a_moment_later())
        assert found["id"] == request
        assert (await client.get(f"/v1/requests/{request_id()}")).status_code == 404


async def test_a_call_in_several_currencies_has_a_cost_in_each(store: Store, ledger: Ledger) -> None:
    currencies: dict[str, set[str]] = {}
    for row in ledger.attempts:
        if row.currency is not None:
            currencies.setdefault(row.call_id, set()).add(row.currency)
    several, wanted = next((made, found) for made, found in currencies.items() if len(found) > 1)
    async with asking(store) as client:
        found = await get(client, f"/v1/requests/{several}")
    assert {cost["currency"] for cost in found["cost"]} == wanted


async def test_lists_have_openais_shape_and_both_cursors(store: Store, ledger: Ledger) -> None:
    ids = sorted((call.id for call in ledger.calls), reverse=True)
    async with asking(store) as client:
        first = await get(client, "/v1/requests")
        assert first["object"] == "list"
        assert [row["id"] for row in first["data"]] == ids[:20]
        assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[0], ids[19], True)
        second = await get(client, f"/v1/requests?after={first['last_id']}&limit=100")
        assert [row["id"] for row in second["data"]] == ids[20:120]
        back = await get(client, f"/v1/requests?before={second['first_id']}&limit=5")
        assert [row["id"] for row in back["data"]] == ids[15:20]
        empty = await get(client, "/v1/requests?user=nobody")
        assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_filters_narrow(store: Store, ledger: Ledger) -> None:
    async with asking(store) as client:
        found = await get(client, "/v1/requests?outcome=failed,running&tag=team=a&limit=100")
        wanted = {
            call.id for call in ledger.calls if call.outcome in ("failed", None) and call.labels.tags.get("team") == "a"
        }
        assert {row["id"] for row in found["data"]} == wanted != set()
        found = await get(client, "/v1/requests?from=2026-09-03&to=2026-09-05&limit=100")
        wanted = {call.id for call in ledger.calls if START + 2 * DAY <= call.created_at < START + 5 * DAY}
        assert {row["id"] for row in found["data"]} == wanted != set()
        assert await get(client, "/v1/requests?from=20260903&to=20260905&limit=100") == found
        seconds = f"from={START // 1000 + 2 * 86400}&to={START // 1000 + 5 * 86400}"
        assert await get(client, f"/v1/requests?{seconds}&limit=100") == found
        assert await get(client, "/v1/requests?from=20260903T000000Z&to=2026-09-06%2000:00&limit=100") == found
        found = await get(client, "/v1/requests?from=2026-09-03T00:00:00%2B08:00&to=2026-09-03T00:00:00Z&limit=100")
        begin = START + 2 * DAY
        wanted = {call.id for call in ledger.calls if begin - 8 * 3_600_000 <= call.created_at < begin}
        assert {row["id"] for row in found["data"]} == wanted


# -- ownership -------------------------------------------------------------------------------------------------------


async def test_a_key_sees_its_own_calls_and_an_admin_key_all(store: Store, ledger: Ledger) -> None:
    other = next(call for call in ledger.calls if call.labels.key == "dw-two")
    nobodys = next(call for call in ledger.calls if call.labels.key is None)
    async with asking(store) as client:
        own = await get(client, "/v1/requests?limit=100", "one")
        assert {row["key"] for row in own["data"]} == {"dw-one"}
        assert len(own["data"]) == sum(call.labels.key == "dw-one" for call in ledger.calls)
        for hidden in (other, nobodys):
            refused = await client.get(f"/v1/requests/{hidden.id}", headers={"authorization": "one"})
            missing = await client.get(f"/v1/requests/{call_id(START, 999_999)}", headers={"authorization": "one"})
            assert refused.status_code == missing.status_code == 404
            assert refused.json() == missing.json() | {"error": refused.json()["error"]}
            assert refused.json()["error"]["message"] == missing.json()["error"]["message"]
            assert (await get(client, f"/v1/requests/{hidden.id}", "admin"))["id"] == hidden.id
        spent = await get(client, f"/v1/usage?by=key&{ALL}", "one")
        assert [row["group"] for row in spent["data"]] == [{"key": "dw-one"}]
        for path in ("/v1/requests?key=dw-two", "/v1/usage?key=dw-two", "/v1/usage?format=focus&key=dw-two"):
            refused = await client.get(path, headers={"authorization": "one"})
            assert refused.status_code == 403
            assert refused.json()["error"]["param"] == "key"
            assert (await client.get(path, headers={"authorization": "admin"})).status_code == 200
        assert (await get(client, "/v1/requests?key=dw-one", "one"))["data"]
        assert len((await get(client, f"/v1/usage?by=key&{ALL}", "admin"))["data"]) == 3


async def test_without_a_key_nothing_is_told_where_one_is_needed(store: Store) -> None:
    async with asking(store) as client:
        for path in ("/v1/requests", "/v1/requests/req_1", "/v1/usage", "/v1/usage?format=csv"):
            assert (await client.get(path, headers={"authorization": "stranger"})).status_code == 401


async def test_gaps_are_told_to_all_and_their_figures_to_admins(store: Store) -> None:
    from router.ledger.rows import Gap

    await Ledger([], [], [], [Gap("gap_1", "j", START, START + 500, 3, 4, 5, 6, {"CNY": 70})]).into(store)
    async with asking(store) as client:
        times = {"began": "2026-09-01T00:00:00Z", "ended": "2026-09-01T00:00:00.500Z"}
        assert (await get(client, f"/v1/usage?{ALL}", "one"))["gaps"] == [times]
        (gap,) = (await get(client, f"/v1/usage?{ALL}", "admin"))["gaps"]
        amounts = [{"amount": "0.000000070", "currency": "CNY"}]
        assert gap == times | {"calls": 3, "attempts": 4, "input": 5, "output": 6, "amounts": amounts}


# -- usage -----------------------------------------------------------------------------------------------------------


async def test_usage_is_summed_and_converted(store: Store, ledger: Ledger) -> None:
    async with asking(store, Book(dearer=2)) as client:
        found = await get(client, f"/v1/usage?by=provider,tag:team&bucket=month&rerate=true&{ALL}")
    assert found["object"] == "usage"
    assert (found["from"], found["to"]) == ("2026-09-01T00:00:00Z", "2027-01-01T00:00:00Z")
    assert (found["by"], found["bucket"], found["currency"]) == (["provider", "tag:team"], "month", "USD")
    assert {row["start"] for row in found["data"]} == {"2026-09-01T00:00:00Z"}
    total = found["total"]
    assert total["requests"] == len(ledger.calls)
    assert total["attempts"] == len(ledger.attempts)
    sums: dict[str, int] = {}
    for row in ledger.attempts:
        if row.cost is not None and row.currency is not None:
            sums[row.currency] = sums.get(row.currency, 0) + row.cost
    assert {a["currency"]: Decimal(a["amount"]) for a in total["cost"]["amounts"]} == {
        code: Decimal(nano).scaleb(-9) for code, nano in sums.items()
    }
    assert total["cost"]["converted"]["currency"] == "USD"
    converted = [row["cost"]["converted"]["amount"] for row in found["data"] if row["cost"]["converted"]]
    assert sum(map(Decimal, converted)) == Decimal(total["cost"]["converted"]["amount"])
    # twice the price, but for the rounding of each attempt
    charged, again = total["cost"]["converted"]["amount"], total["rerated"]["converted"]["amount"]
    assert abs(2 * Decimal(charged) - Decimal(again)) < Decimal("0.000001")
    assert total["audit"]["attempts"] == len(ledger.audits)


async def test_by_currency_no_request_is_counted_twice(store: Store, ledger: Ledger) -> None:
    async with asking(store) as client:
        found = await get(client, f"/v1/usage?by=currency&{ALL}")
    assert {row["requests"] for row in found["data"]} == {None}
    assert found["total"]["requests"] is None
    assert {row["group"]["currency"] for row in found["data"]} == {"USD", "CNY", "EUR", None}


async def test_an_unknown_price_is_never_zero(store: Store, ledger: Ledger) -> None:
    async with asking(store) as client:
        found = await get(client, f"/v1/usage?by=provider&provider=new&{ALL}")
        row = (await client.get(f"/v1/usage?format=csv&provider=new&{ALL}")).text.splitlines()[1]
    (cost,) = [row["cost"] for row in found["data"]]
    assert cost["unpriced"] > 0
    assert (cost["amounts"], cost["converted"]) == ([], None)
    assert "0.000000000" not in row


async def test_rerating_writes_nothing(store: Store, ledger: Ledger) -> None:
    async with asking(store, Book(dearer=5)) as client:
        before = await get(client, f"/v1/usage?by=model&{ALL}")
        again = await get(client, f"/v1/usage?by=model&rerate=true&{ALL}")
        after = await get(client, f"/v1/usage?by=model&{ALL}")
    assert before == after
    assert [row | {"rerated": None} for row in again["data"]] == before["data"]


async def test_without_a_beginning_the_last_thirty_days_are_summed(store: Store) -> None:
    async with asking(store) as client:
        found = await get(client, "/v1/usage?to=2026-10-31")
        assert (found["from"], found["to"]) == ("2026-10-02T00:00:00Z", "2026-11-01T00:00:00Z")
        assert (await get(client, "/v1/usage"))["to"] is None


# -- CSV -------------------------------------------------------------------------------------------------------------


async def test_csv_has_a_line_for_each_group_and_no_formula(store: Store, ledger: Ledger) -> None:
    query = f"by=user,tag:feature,key&bucket=day&{ALL}"
    async with asking(store) as client:
        answer = await client.get(f"/v1/usage?format=csv&rerate=true&{query}")
        shown = await get(client, f"/v1/usage?{query}")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["x-deltaway-gaps"] == "0"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == len(shown["data"])
    for row, wanted in zip(rows, shown["data"], strict=True):
        user = wanted["group"]["user"] or ""
        assert row["user"] == (f"'{user}" if user.startswith("=") else user)
        assert row["start"] == wanted["start"]
        assert int(row["requests"]) == wanted["requests"]
        assert int(row["reasoning"]) == wanted["tokens"]["reasoning"]
        assert row["cost_in_USD"] == (wanted["cost"]["converted"] or {"amount": ""})["amount"]
        for amount in wanted["cost"]["amounts"]:
            assert row[f"cost_{amount['currency']}"] == amount["amount"]
    assert any(row["user"].startswith("'=cmd") for row in rows)
    for line in csv.reader(io.StringIO(answer.text)):
        assert not any(cell.startswith(("=", "+", "@")) for cell in line)


async def test_focus_adds_up_to_the_ledger_to_the_last_nano_unit(store: Store, ledger: Ledger) -> None:
    async with asking(store) as client:
        answer = await client.get(f"/v1/usage?format=focus&{ALL}")
    assert answer.headers["x-deltaway-focus"] == "1.2"
    unpriced = sum(row.cost is None and any(getattr(row, name) for name in TOKEN_CLASSES) for row in ledger.attempts)
    assert answer.headers["x-deltaway-unpriced"] == str(unpriced) != "0"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert tuple(rows[0]) == COLUMNS
    spent: dict[str, Decimal] = {}
    for row in rows:
        spent[row["BillingCurrency"]] = spent.get(row["BillingCurrency"], Decimal()) + Decimal(row["BilledCost"])
    for currency, amount in spent.items():
        assert amount == Decimal(sum(row.cost or 0 for row in ledger.attempts if row.currency == currency)).scaleb(-9)
    priced = [row for row in ledger.attempts if row.cost is not None]
    for name in TOKEN_CLASSES:
        used = sum(int(row["ConsumedQuantity"]) for row in rows if row["x_TokenClass"] == name)
        assert used == sum(getattr(row, name) for row in priced)


# -- what is refused -------------------------------------------------------------------------------------------------

WRONG = {
    "/v1/usage?by=modle": ("by", "did you mean `model`"),
    "/v1/usage?by=model,,key": ("by", "tag:NAME"),
    "/v1/usage?by=tag:": ("by", "tag:NAME"),
    "/v1/usage?by=" + ",".join(f"tag:t{n}" for n in range(9)): ("by", "more than 8"),
    "/v1/usage?bucket=week": ("bucket", "known: hour, day, month"),
    "/v1/usage?format=xml": ("format", "known: json, csv, focus"),
    "/v1/usage?format=focus&by=key": ("by", "leave it out"),
    "/v1/usage?format=focus&rerate=true": ("rerate", "leave it out"),
    "/v1/usage?rerate=yes": ("rerate", "known: true, false"),
    "/v1/usage?from=yesterday": ("from", "2026-10-01"),
    "/v1/usage?from=2026-02-30": ("from", "no time"),
    "/v1/usage?to=2026-13": ("to", "no time"),
    "/v1/usage?to=9999-12-31": ("to", "no time"),
    "/v1/usage?from=-5": ("from", "no time"),
    "/v1/usage?from=2026": ("from", "no time"),
    "/v1/usage?from=202610": ("from", "no time"),
    "/v1/usage?from=20261301": ("from", "no time"),
    "/v1/usage?from=1790000000000": ("from", "9 to 11 digits"),
    "/v1/usage?from=20261001T": ("from", "no time"),
    "/v1/usage?to=2026-W48": ("to", "no time"),
    "/v1/usage?to=2026-W48-1": ("to", "no time"),
    "/v1/usage?to=2026W481T12:00": ("to", "no time"),
    "/v1/usage?from=0001-01-01T00:00:00%2B14:00": ("from", "no time"),
    "/v1/requests?after=req_nope": ("after", "no id of a request"),
    "/v1/usage?from=2026-10-02&to=2026-10-01": ("from", "not before"),
    "/v1/usage?from=2026-10-01T00:00:00Z&to=2026-10-01T00:00:00Z": ("from", "not before"),
    "/v1/usage?fromm=2026-10-01": ("fromm", "did you mean `from`"),
    "/v1/usage?key=a&key=b": ("key", "twice"),
    "/v1/usage?key=": ("key", "1 to 512"),
    "/v1/usage?user=%00": ("user", "printable"),
    "/v1/usage?user=%ff": (None, "UTF-8"),
    "/v1/usage?user=" + "x" * 513: ("user", "1 to 512"),
    "/v1/usage?tag=team": ("tag", "name=value"),
    "/v1/usage?outcome=finishd": ("outcome", "did you mean `finished`"),
    "/v1/usage?outcome=finished,": ("outcome", "running)"),
    "/v1/requests?limit=0": ("limit", "from 1 to 100"),
    "/v1/requests?limit=101": ("limit", "from 1 to 100"),
    "/v1/requests?limit=many": ("limit", "from 1 to 100"),
    "/v1/requests?limit=%D9%A3": ("limit", "from 1 to 100"),
    "/v1/requests?after=req_1&before=req_2": ("before", "two places"),
    "/v1/requests?after=a%20b": ("after", "no id"),
    "/v1/requests?by=model": ("by", "unknown parameter"),
    "/v1/requests/req_1?key=a": ("key", "unknown parameter"),
}


@pytest.mark.parametrize("path", WRONG)
async def test_what_is_not_understood_is_refused_by_name(sqlite_store: Store, path: str) -> None:
    param, words = WRONG[path]
    async with asking(sqlite_store) as client:
        answer = await client.get(path)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize("path", ["/v1/requests", "/v1/requests/req_1", "/v1/usage", "/v1/usage?format=focus"])
async def test_a_store_that_is_away_is_told_without_saying_where_it_is(sqlite_store: Store, path: str) -> None:
    await sqlite_store.close()
    async with asking(sqlite_store) as client:
        answer = await client.get(path)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "store_unavailable"
    assert "deltaway.db" not in answer.text
    assert "retry-after" in answer.headers
