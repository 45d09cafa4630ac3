"""Streams that can be come back to, seen by HTTP: bad input first, then reading, leaving, stopping and repeating."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.serving import asking, client, config_for, create_app, gateway, served
from support.vendor import Exchange, Vendor, delta, sse, usage_chunk, vendor

KEYS = "[{auth: {keys: [{key: key-of-a, name: a}, {key: key-of-b, name: b}], admin_key: the-admin-key}}, usage]"
RESUMABLE = {"x-deltaway-resumable": "true"}
UNKNOWN = "strm_01M82V4AKSHHVQGQTBC4SRCZVA"


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@asynccontextmanager
async def opened(
    plugins: str = "[logging, usage]", server: str = "{}", more: str = ""
) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway whose only vendor is the mock."""
    text = config_for("http://127.0.0.1:9", plugins, server) + more
    async with served(create_app(gateway(text))) as url, client(url) as http:
        yield http


def events(data: bytes) -> list[tuple[str, str]]:
    """Id and data of every event."""
    found = []
    for piece in data.decode().split("\n\n")[:-1]:
        lines = [line for line in piece.split("\n") if not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        found.append((fields.get("id", ""), fields["data"]))
    return found


def text_of(data: bytes) -> str:
    chunks = [json.loads(data) for _, data in events(data) if data != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", []))


async def whole_stream(http: httpx.AsyncClient, model: str = "mock/lorem-20", **headers: str) -> tuple[str, bytes]:
    """The id of a resumable stream, and its bytes."""
    answer = await http.post("/v1/chat/completions", json=asking(model), headers={**RESUMABLE, **headers})
    assert answer.status_code == 200
    return answer.headers["x-deltaway-stream"], answer.content


async def _after(http: httpx.AsyncClient, stream: str, number: int) -> httpx.Response:
    return await http.get(f"/v1/streams/{stream}", headers={"last-event-id": f"{stream}-{number}"})


async def code_of(http: httpx.AsyncClient, path: str, **headers: str) -> tuple[int, str]:
    answer = await http.get(path, headers=headers)
    return answer.status_code, answer.json()["error"]["code"]


# -- bad input -----------------------------------------------------------------------------------------------------


async def test_what_cannot_be_come_back_to_is_told_in_words() -> None:
    async with opened() as http:
        stream, _ = await whole_stream(http)
        other, _ = await whole_stream(http)
        path = f"/v1/streams/{stream}"
        assert await code_of(http, f"/v1/streams/{UNKNOWN}") == (404, "stream_not_found")
        assert await code_of(http, "/v1/streams/abc") == (404, "not_found")
        assert await code_of(http, "/v1/streams") == (404, "not_found")
        assert await code_of(http, f"{path}/more/of/it") == (404, "not_found")
        for wrong in ("1", "strm_x-1", f"{stream}-", f"{stream}-01", f"{stream}--1", f"{stream}-1 OR 1", "☃"):
            said = {"last-event-id": wrong.encode()}
            answer = await http.get(path, headers=said)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_event_id"), wrong
        assert await code_of(http, path, **{"last-event-id": f"{other}-1"}) == (400, "foreign_event_id")
        assert await code_of(http, path, **{"last-event-id": f"{stream}-99"}) == (400, "invalid_event_id")
        assert await code_of(http, f"{path}?last_event_id=x") == (400, "invalid_event_id")
        assert await code_of(http, f"{path}?lastEventId=1") == (400, "unknown_parameter")
        assert await code_of(http, f"{path}?token=abc") == (401, "invalid_token")
        answer = await http.put(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, DELETE")


@pytest.mark.parametrize(
    ("header", "value"),
    [("x-deltaway-resumable", "yes"), ("x-deltaway-on-disconnect", "stay"), ("idempotency-key", "x" * 256)],
)
async def test_a_header_that_is_not_understood_is_refused(header: str, value: str) -> None:
    async with opened() as http:
        answer = await http.post("/v1/chat/completions", json=asking("mock/echo"), headers={header: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, header)


async def test_a_stream_is_its_keys_own() -> None:
    async with opened(KEYS) as http:
        mine = {"authorization": "Bearer key-of-a"}
        stream, data = await whole_stream(http, **mine)
        path = f"/v1/streams/{stream}"
        assert (await http.get(path, headers=mine)).content == data
        assert (await http.get(path, headers={"authorization": "Bearer the-admin-key"})).content == data
        theirs = {"authorization": "Bearer key-of-b"}
        assert await code_of(http, path, **theirs) == (404, "stream_not_found")
        assert await code_of(http, path) == (401, "missing_api_key")
        assert (await http.delete(path, headers=theirs)).status_code == 404
        assert (await http.post(f"{path}/token", headers=theirs)).status_code == 404


async def test_a_call_that_is_refused_has_its_status_and_no_ids() -> None:
    async with opened() as http:
        for model, status in (("mock/error-429", 429), ("mock/error-500", 502), ("nobody/x", 404)):
            answer = await http.post("/v1/chat/completions", json=asking(model), headers=RESUMABLE)
            assert (answer.status_code, "error" in answer.json()) == (status, True)


# -- coming back ---------------------------------------------------------------------------------------------------


async def test_ids_are_only_in_streams_that_asked_for_them() -> None:
    async with opened() as http:
        plain = await http.post("/v1/chat/completions", json=asking("mock/lorem-5"))
        stream, data = await whole_stream(http, "mock/lorem-5")
        assert b"id: " not in plain.content
        assert re.sub(rb"id: .*\n", b"", data) == plain.content
        assert [name for name, _ in events(data)] == [f"{stream}-{number}" for number in range(1, 9)]


async def test_from_every_place_the_rest_is_the_rest() -> None:
    async with opened() as http:
        stream, data = await whole_stream(http)
        said = events(data)
        for number, (name, _) in enumerate(said, 1):
            answer = await http.get(f"/v1/streams/{stream}", headers={"last-event-id": name})
            if number == len(said):
                assert (answer.status_code, answer.content) == (204, b"")
            else:
                assert events(answer.content) == said[number:]
            twin = await http.get(f"/v1/streams/{stream}", params={"last_event_id": name})
            assert twin.content == answer.content
        newer = await http.get(
            f"/v1/streams/{stream}", params={"last_event_id": f"{stream}-3"}, headers={"last-event-id": f"{stream}-9"}
        )
        assert events(newer.content) == said[9:], "the header is newer than the address"


async def test_a_reader_who_comes_in_the_middle_goes_on_live() -> None:
    async with opened() as http:
        sending = http.stream("POST", "/v1/chat/completions", json=asking("mock/lorem-40+slow-20"), headers=RESUMABLE)
        async with sending as answer:
            stream = answer.headers["x-deltaway-stream"]
            lines = answer.aiter_lines()
            async for line in lines:
                if line == f"id: {stream}-10":
                    break
            beside = await http.get(f"/v1/streams/{stream}", headers={"last-event-id": f"{stream}-3"})
            rest = [line async for line in lines]
        assert events(beside.content)[0][0] == f"{stream}-4"
        assert beside.content.endswith(b"data: [DONE]\n\n")
        assert rest[-2] == "data: [DONE]"


@pytest.mark.parametrize("model", ["mock/cut-5", "mock/lorem-8+cut-5"])
async def test_a_stream_that_broke_off_ends_as_it_did(model: str) -> None:
    async with opened() as http:
        stream, data = await whole_stream(http, model)
        assert b"[DONE]" not in data
        again = await http.get(f"/v1/streams/{stream}")
        assert again.content == data
        assert json.loads(events(again.content)[-1][1])["error"]["code"]


async def test_what_was_evicted_is_said() -> None:
    async with opened(more="streams: {limit: 64KiB}\nshared: memory\n") as http:
        stream, data = await whole_stream(http, "mock/lorem-1000")
        assert len(data) > 128 * 1024
        async with asyncio.timeout(5):
            # a process has its newest streams whole, for a moment
            while b"gap" not in (answer := await _after(http, stream, 2)).content:
                await asyncio.sleep(0.02)
        (name, gap), *rest = events(answer.content.replace(b"event: gap\n", b""))
        told = json.loads(gap)
        assert (told["object"], told["first"]) == ("stream.gap", 3)
        assert name == f"{stream}-{told['last']}"
        assert rest[0][0] == f"{stream}-{told['last'] + 1}"
        assert rest == events(data)[told["last"] :]


async def test_a_stream_expires_in_words() -> None:
    async with opened(more="streams: {keep: 1s}\nshared: memory\n") as http:
        stream, _ = await whole_stream(http)
        async with asyncio.timeout(5):
            while (answer := await http.get(f"/v1/streams/{stream}")).status_code == 200:
                await asyncio.sleep(0.1)
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "stream_expired")


# -- for browsers --------------------------------------------------------------------------------------------------


async def begun(http: httpx.AsyncClient, model: str, **headers: str) -> Any:
    answer = await http.post("/v1/chat/completions", json=asking(model), headers={"prefer": "respond-async", **headers})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.headers["location"] == answer.json()["url"]
    return answer.json()


async def test_an_answer_is_begun_here_and_read_there_with_nothing_but_its_address() -> None:
    async with opened(KEYS) as http:
        told = await begun(http, "mock/lorem-10", authorization="Bearer key-of-a")
        answer = await http.get(told["url"])
        assert answer.status_code == 200
        assert len(text_of(answer.content).split()) == 10
        done = await http.get(told["url"], headers={"last-event-id": events(answer.content)[-1][0]})
        assert done.status_code == 204
        other = told["url"].replace(told["id"], UNKNOWN)
        assert (await http.get(other)).json()["error"]["code"] == "invalid_token"
        again = await http.post(f"/v1/streams/{told['id']}/token", headers={"authorization": "Bearer key-of-a"})
        assert (await http.get(again.json()["url"])).content == answer.content


async def test_a_browser_is_told_once_a_connection_how_soon_to_come_back() -> None:
    async with opened(more="streams: {retry: 250ms}\n") as http:
        told = await begun(http, "mock/lorem-10")
        answer = await http.get(told["url"])
        assert answer.content.startswith(b"retry: 250\nid: ")
        assert answer.content.count(b"retry:") == 1
        by_id = await http.get(f"/v1/streams/{told['id']}")
        assert by_id.content == answer.content.removeprefix(b"retry: 250\n"), "others get the bytes as they were"


async def test_an_answer_that_was_to_be_whole_is_read_as_a_stream() -> None:
    async with opened() as http:
        sent = asking("mock/lorem-5", stream=False)
        told = (await http.post("/v1/chat/completions", json=sent, headers={"prefer": "respond-async"})).json()
        assert (await http.get(told["url"])).content.endswith(b"data: [DONE]\n\n")


async def test_a_call_that_is_refused_after_a_202_says_so_in_its_stream() -> None:
    async with opened() as http:
        told = await begun(http, "mock/error-429")
        answer = await http.get(told["url"])
        ((_, data),) = events(answer.content)
        assert json.loads(data)["error"]["code"] == "rate_limit_exceeded"


# -- leaving and stopping ------------------------------------------------------------------------------------------


async def dawdles(exchange: Exchange) -> None:
    """Ten deltas, then one at a time as long as it is listened to."""
    await exchange.head()
    await exchange.chunk(sse(*(delta("word ") for _ in range(10))))
    for _ in range(200):
        if exchange.gone.is_set():
            return
        await asyncio.sleep(0.01)
        await exchange.chunk(sse(delta("more ")))
    await exchange.chunk(sse(delta(finish="stop"), usage_chunk(), "[DONE]"))
    await exchange.end()


@asynccontextmanager
async def before_vendor(more: str = "", server: str = "{}") -> AsyncIterator[tuple[httpx.AsyncClient, Vendor]]:
    async with vendor(dawdles) as played:
        text = config_for(played.url, server=server) + more
        async with served(create_app(gateway(text))) as url, client(url) as http:
            yield http, played


async def outcome(http: httpx.AsyncClient, number: str) -> Any:
    async with asyncio.timeout(10):
        while True:
            receipt = (await http.get(f"/v1/requests/{number}")).json()
            if receipt.get("outcome") is not None:
                return receipt
            await asyncio.sleep(0.05)


async def leaves(http: httpx.AsyncClient, **headers: str) -> tuple[str, str]:
    """Asks, reads some events, and goes; gives the request's id and the stream's."""
    async with http.stream("POST", "/v1/chat/completions", json=asking("v/m"), headers=headers) as answer:
        async for _ in answer.aiter_lines():
            break
        return answer.headers["x-request-id"], answer.headers.get("x-deltaway-stream", "")


async def test_finish_goes_on_without_its_client_and_cancel_does_not() -> None:
    async with before_vendor() as (http, played):
        finished, _ = await leaves(http, **{"x-deltaway-on-disconnect": "finish"})
        left, _ = await leaves(http, **{"x-deltaway-on-disconnect": "cancel"})
        gone = await outcome(http, left)
        assert gone["outcome"] == "client_gone"
        assert gone["usage"]["output"] >= 10
        receipt = await outcome(http, finished)
        assert (receipt["outcome"], receipt["usage"]["source"]) == ("finished", "reported")
        # it would have gone on for two seconds
        await played.settled(1.0)


async def test_the_server_the_route_and_the_call_say_what_becomes_of_it_the_nearer_first() -> None:
    routes = "models: {r: {targets: [v/m], on_disconnect: finish}, s: {targets: [v/m]}}\n"
    async with before_vendor(routes) as (http, _):
        async with http.stream("POST", "/v1/chat/completions", json=asking("r")) as answer:
            await anext(answer.aiter_lines())
            by_route = answer.headers["x-request-id"]
        async with http.stream("POST", "/v1/chat/completions", json=asking("s")) as answer:
            await anext(answer.aiter_lines())
            by_server = answer.headers["x-request-id"]
        assert (await outcome(http, by_server))["outcome"] == "client_gone"
        assert (await outcome(http, by_route))["outcome"] == "finished"


async def test_a_resumable_stream_waits_for_its_reader_to_come_back() -> None:
    async with before_vendor("streams: {linger: 1s}\n") as (http, _):
        number, stream = await leaves(http, **RESUMABLE)
        await asyncio.sleep(0.3)
        answer = await http.get(f"/v1/streams/{stream}", headers={"last-event-id": f"{stream}-1"})
        assert answer.content.endswith(b"data: [DONE]\n\n")
        assert (await outcome(http, number))["outcome"] == "finished"
        number, stream = await leaves(http, **RESUMABLE)
        assert (await outcome(http, number))["outcome"] == "client_gone"
        rest = await http.get(f"/v1/streams/{stream}")
        assert json.loads(events(rest.content)[-1][1])["error"]["code"] == "client_gone"


async def test_it_is_stopped_from_anywhere_and_settled_with_what_was_used() -> None:
    async with before_vendor() as (http, played):
        async with http.stream("POST", "/v1/chat/completions", json=asking("v/m"), headers=RESUMABLE) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            stream, number = answer.headers["x-deltaway-stream"], answer.headers["x-request-id"]
            stopped = await http.delete(f"/v1/streams/{stream}")
            assert (stopped.status_code, stopped.json()["outcome"]) == (202, None)
            rest = [line async for line in lines]
        assert '"code":"stopped"' in rest[-2]
        receipt = await outcome(http, number)
        assert (receipt["outcome"], receipt["usage"]["source"]) == ("stopped", "estimated")
        assert receipt["usage"]["output"] >= 10
        # it would have gone on for two seconds
        await played.settled(1.0)
        again = await http.delete(f"/v1/streams/{stream}")
        assert (again.status_code, again.json()["outcome"]) == (200, "stopped")


# -- repeating -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_repeated_call_is_paid_for_once(stream: bool) -> None:
    async with before_vendor() as (http, played):
        sent = {"json": asking("v/m", stream=stream), "headers": {"idempotency-key": "k 1"}}
        first, second = await asyncio.gather(*(http.post("/v1/chat/completions", **sent) for _ in range(2)))
        third = await http.post("/v1/chat/completions", **sent)
        assert first.status_code == 200
        assert first.content == second.content == third.content
        assert first.headers["x-request-id"] == second.headers["x-request-id"] == third.headers["x-request-id"]
        assert [each.headers.get("idempotent-replayed") for each in (first, second, third)].count("true") == 2
        assert len(played.requests) == 1


async def test_a_key_for_another_request_is_refused_and_another_clients_key_is_its_own() -> None:
    async with opened(KEYS) as http:
        a, b = {"authorization": "Bearer key-of-a"}, {"authorization": "Bearer key-of-b"}
        key = {"idempotency-key": "same"}
        first = await http.post("/v1/chat/completions", json=asking("mock/echo"), headers={**a, **key})
        other = await http.post("/v1/chat/completions", json=asking("mock/echo", text="Ho"), headers={**a, **key})
        theirs = await http.post("/v1/chat/completions", json=asking("mock/echo", text="Ho"), headers={**b, **key})
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
        assert theirs.headers["x-request-id"] != first.headers["x-request-id"]
        assert theirs.status_code == 200


async def test_what_was_evicted_is_never_passed_over_where_there_are_no_ids_to_say_so() -> None:
    async with opened(more="streams: {limit: 64KiB}\nshared: memory\n") as http:
        sent: dict[str, Any] = {"json": asking("mock/lorem-1000"), "headers": {"idempotency-key": "long"}}
        first = await http.post("/v1/chat/completions", **sent)
        assert first.content.endswith(b"data: [DONE]\n\n")
        async with asyncio.timeout(5):
            while (again := await http.post("/v1/chat/completions", **sent)).status_code == 200:
                await asyncio.sleep(0.02)
        assert (again.status_code, again.json()["error"]["code"]) == (410, "stream_evicted")


async def test_a_call_that_nobody_waits_for_and_nobody_reads_ends_and_says_so() -> None:
    async with opened(more="streams: {linger: 0s}\n") as http:
        told = await begun(http, "mock/slow-50", **{"x-deltaway-on-disconnect": "cancel"})
        rest = await http.get(told["url"])
        assert json.loads(events(rest.content)[-1][1])["error"]["code"] == "client_gone"
        assert (await outcome(http, told["request_id"]))["outcome"] == "client_gone"


async def test_a_key_stands_for_the_conversation_and_the_form_of_the_answer_too() -> None:
    async with opened() as http:
        key = {"idempotency-key": "one"}
        sent = {"json": asking("mock/echo", stream=False)}
        assert (await http.post("/v1/chat/completions", headers=key, **sent)).status_code == 200
        made = (await http.post("/v1/conversations", json={})).json()["id"]
        for more in ({"x-deltaway-conversation": made}, {"prefer": "respond-async"}):
            other = await http.post("/v1/chat/completions", headers={**key, **more}, **sent)
            assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")


async def test_a_refused_call_may_be_tried_again_with_its_key() -> None:
    async with opened() as http:
        sent: dict[str, Any] = {"json": asking("mock/error-503"), "headers": {"idempotency-key": "again"}}
        first, second = [await http.post("/v1/chat/completions", **sent) for _ in range(2)]
        assert first.status_code == second.status_code == 503
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
