"""Who may say that a configuration is to be taken up: an admin, SIGHUP, the file itself, another process."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from shows.processes import ADMIN_KEY, GatewayProcess, fetch, running

from router.cli import main
from router.generation import generation_id
from support.serving import asking, client
from support.stores import BACKENDS, Backend, store_url

FIRST = """
store: "STORE"
server: {watch: WATCH}
providers:
  mock: {protocol: mock}
models:
  old: {targets: [mock/slow-20]}
plugins: [usage]
"""
SECOND = FIRST.replace("old: {targets: [mock/slow-20]}", "new: {targets: [mock/echo]}")


def written(text: str, store: str = "sqlite:///deltaway.db", watch: str = "false") -> str:
    return text.replace("STORE", store).replace("WATCH", watch)


async def generations(gateway: GatewayProcess) -> list[str]:
    _, body = await fetch(gateway.port, "/admin/config")
    return [each["generation"] for each in body["instances"]]


async def until(holds: Callable[[], Any], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.05)


async def test_sighup_reloads_a_process_and_ends_no_stream(tmp_path: Path) -> None:
    first, second = written(FIRST), written(SECOND)
    async with running(tmp_path, first) as gateway, client(gateway.url) as http:
        assert await generations(gateway) == [generation_id(first, None)]
        async with http.stream("POST", "/v1/chat/completions", json=asking("old", text="a b c d e f g h")) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            gateway.write({"providers.yaml": second})
            gateway.signal(signal.SIGHUP)
            await until(lambda: holds(gateway, [generation_id(second, None)]))
            assert [line async for line in lines if line][-1] == "data: [DONE]"
        assert (await http.post("/v1/chat/completions", json=asking("new"))).status_code == 200


async def holds(gateway: GatewayProcess, wanted: list[str]) -> bool:
    return await generations(gateway) == wanted


@pytest.mark.timeout(120)
async def test_sighup_to_the_parent_reaches_all_its_workers_and_ends_none(tmp_path: Path) -> None:
    first, second = written(FIRST), written(SECOND)
    async with running(tmp_path, first, workers=2) as gateway, client(gateway.url) as http:
        await until(lambda: holds(gateway, [generation_id(first, None)] * 2))
        workers = gateway.worker_pids()
        failed: list[Any] = []
        stop = asyncio.Event()

        async def calls_on_end() -> None:
            while not stop.is_set():
                answer = await http.post("/v1/chat/completions", json=asking("mock/echo", stream=False))
                if answer.status_code != 200:
                    failed.append(answer.text)

        calling = asyncio.create_task(calls_on_end())
        gateway.write({"providers.yaml": second})
        gateway.signal(signal.SIGHUP)
        await until(lambda: holds(gateway, [generation_id(second, None)] * 2))
        stop.set()
        await calling
        assert failed == []
        assert gateway.worker_pids() == workers


async def test_a_watched_file_is_taken_up_and_a_bad_one_is_told_once(tmp_path: Path) -> None:
    first, second = written(FIRST, watch="true"), written(SECOND, watch="true")
    async with running(tmp_path, first) as gateway:
        gateway.write({"providers.yaml": "providers: {mock: {protocol: mok}}\n"})
        await until(lambda: says(gateway, "unknown protocol"))
        assert await generations(gateway) == [generation_id(first, None)]
        _, body = await fetch(gateway.port, "/admin/config")
        assert "providers.yaml:1:" in body["error"]
        # as Kubernetes does it: a link to a directory that is put in the place of another
        (tmp_path / "later").mkdir()
        (tmp_path / "later" / "providers.yaml").write_text(second)
        link = tmp_path / "providers.link"
        link.symlink_to(tmp_path / "later" / "providers.yaml")
        link.rename(tmp_path / "providers.yaml")
        await until(lambda: holds(gateway, [generation_id(second, None)]))
        assert gateway.said().count("was not taken up") == 1


async def says(gateway: GatewayProcess, words: str) -> bool:
    return words in gateway.said()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.timeout(120)
async def test_processes_of_one_store_follow_each_other_and_tell_who_does_not(backend: Backend, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    async with store_url(backend, tmp_path) as url:
        first, second = (written(text, str(url)) for text in (FIRST, SECOND))
        async with running(one, first) as here, running(other, first) as there:
            await until(lambda: holds(here, [generation_id(first, None)] * 2))
            here.write({"providers.yaml": second})
            there.write({"providers.yaml": second})
            said = await asyncio.to_thread(invoked, here, "reload")
            assert f"generation {generation_id(second, None)} is in force now" in said
            assert said.count(generation_id(second, None)) == 3
            assert await there_is(there) == generation_id(second, None)
            # the file of the other machine is bad: it goes on with what it has, and says so
            here.write({"providers.yaml": first})
            there.write({"providers.yaml": "models: {}\n" + second})
            said = await asyncio.to_thread(invoked, here, "reload")
            assert "providers.yaml:" in said
            assert await there_is(there) == generation_id(second, None)
            assert await there_is(here) == generation_id(first, None)


async def there_is(gateway: GatewayProcess) -> str:
    _, body = await fetch(gateway.port, "/health/ready")
    found: str = body["generation"]
    return found


def invoked(gateway: GatewayProcess, *command: str, code: int = 0) -> str:
    ran = CliRunner().invoke(main, [*command, "--url", gateway.url, "--key", ADMIN_KEY])
    assert ran.exit_code == code, ran.output
    return ran.output


async def test_plan_says_what_would_change_and_ends_with_one_if_it_is_refused(tmp_path: Path) -> None:
    first, second = written(FIRST), written(SECOND)
    async with running(tmp_path / "gateway", first) as gateway:

        async def plan(*options: str, code: int = 0) -> str:
            return await asyncio.to_thread(lambda: invoked(gateway, "plan", *options, code=code))

        assert "nothing would change" in await plan()
        file = tmp_path / "mine.yaml"
        file.write_text(second)
        said = await plan("--config", str(file))
        assert "the route `old` is removed: no call runs on it; new calls to it get 404" in said
        assert f"{generation_id(first, None)} → {generation_id(second, None)}" in said
        assert '"would_be"' in await plan("--config", str(file), "--json")
        file.write_text(second.replace("protocol: mock", "protocol: mok"))
        assert "would be refused" in await plan("--config", str(file), code=1)
        missing = await plan("--config", str(tmp_path / "none.yaml"), code=1)
        assert "cannot be read" in missing
        assert await generations(gateway) == [generation_id(first, None)]
        # the file itself
        gateway.write({"providers.yaml": second})
        assert "the route `new` is added: ordered `mock/echo`" in await plan()


async def test_a_bad_file_ends_the_reload_command_with_all_its_problems(tmp_path: Path) -> None:
    async with running(tmp_path, written(FIRST)) as gateway:
        gateway.write({"providers.yaml": "providers: {a: {protocol: mok}, b: {}}\n"})
        said = await asyncio.to_thread(lambda: invoked(gateway, "reload", code=1))
        assert "providers.yaml:1:27: " in said
        assert said.count("providers.yaml:1:") == 2


@pytest.mark.timeout(120)
@pytest.mark.parametrize("refused", ["providers: {mock: {protocol: mok}}\n", 'store: "sqlite:///other.db"\n'])
async def test_a_replaced_worker_begins_with_what_was_accepted_last(tmp_path: Path, refused: str) -> None:
    first, second = written(FIRST), written(SECOND)
    async with running(tmp_path, first, workers=2) as gateway, client(gateway.url) as http:
        await until(lambda: holds(gateway, [generation_id(first, None)] * 2))
        gateway.write({"providers.yaml": second})
        gateway.signal(signal.SIGHUP)
        await until(lambda: holds(gateway, [generation_id(second, None)] * 2))
        kept = accepted_in(tmp_path)
        assert kept.stat().st_mode & 0o777 == 0o600
        gateway.write({"providers.yaml": refused + second.partition("\n")[2].replace("store:", "# store:")})
        before = gateway.worker_pids()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: says(gateway, "was not taken up (a worker begins)"))
        await until(lambda: answers(http))
        assert await there_is(gateway) == generation_id(second, None)
        assert not (tmp_path / "other.db").exists()
        await gateway.stop()
        assert not kept.exists()


def accepted_in(directory: Path) -> Path:
    (found,) = directory.glob("deltaway.journal/accepted-*.yaml")
    return found


async def answers(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.post("/v1/chat/completions", json=asking("new", stream=False))).status_code == 200
    except httpx.TransportError:
        return False


async def test_sighup_while_it_starts_ends_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "providers.yaml"
    os.mkfifo(pipe)
    gateway = GatewayProcess(tmp_path)
    try:
        gateway.start_only()
        # opens once the gateway reads: it is in the middle of its start
        writing = await asyncio.to_thread(os.open, pipe, os.O_WRONLY)
        gateway.signal(signal.SIGHUP)
        os.write(writing, written(FIRST).encode())
        os.close(writing)
        await until(lambda: says(gateway, "was not taken up (SIGHUP)"), 60)
        await gateway.stop()
    finally:
        await gateway.end()


async def test_a_watched_prices_file_that_is_mended_and_a_file_that_is_gone_are_seen(tmp_path: Path) -> None:
    first, second = written(FIRST, watch="true"), written(SECOND, watch="true") + "prices: {file: prices.yaml}\n"
    good = "prices:\n  - {list: mock, models: ['*'], currency: USD, input: 1, output: 2}\n"
    async with running(tmp_path, first) as gateway:
        # the file in force names no prices: only the last attempt does
        gateway.write({"prices.yaml": good.replace("2", "much"), "providers.yaml": second})
        await until(lambda: says(gateway, "prices.yaml:2:"))
        gateway.write({"prices.yaml": good})
        await until(lambda: holds(gateway, [generation_id(second, good)]))
        (tmp_path / "providers.yaml").unlink()
        await until(lambda: says(gateway, "there is no such file"))
        _, body = await fetch(gateway.port, "/admin/config")
        assert "there is no such file" in body["error"]
        assert await generations(gateway) == [generation_id(second, good)]
        gateway.write({"providers.yaml": first})
        await until(lambda: holds(gateway, [generation_id(first, None)]))
        assert gateway.said().count("there is no such file") == 1
