"""`deltaway keys` against the routes over a real socket."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from litestar import Litestar
from litestar.exceptions import HTTPException

from plugins.auth import Auth
from router.dialects.openai_chat import OpenAIChat
from router.door import Door
from router.errors import RouterError
from router.http.errors import ErrorResponses
from router.http.keys import key_routes
from router.keyring import Keyring
from router.keys import StoredKeys
from router.services import Services
from support.serving import served
from support.stores import empty_store

ROOT = Path(__file__).resolve().parents[2]
ENVIRON = {"DELTAWAY_ADMIN_KEY": "the-key-of-the-environment"}
TEXT = re.compile(r"dw-[a-z0-9]{8}-[A-Za-z0-9_-]{43}\n")


class Said(NamedTuple):
    code: int | None
    stdout: str
    stderr: str


class Terminal:
    """Runs the command as people do: in a process of its own."""

    def __init__(self, url: str, key: str | None) -> None:
        self.environ = {"PATH": os.environ["PATH"], "DELTAWAY_URL": url, "COLUMNS": "200"}
        self.environ |= {"DELTAWAY_ADMIN_KEY": key} if key else {}

    async def run(self, *words: str) -> Said:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from router.commands.keys import keys; keys()", *words),
            env=self.environ,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        stdout, stderr = await process.communicate()
        return Said(process.returncode, stdout.decode(), stderr.decode())

    async def prints(self, *words: str) -> str:
        result = await self.run(*words)
        assert result.code == 0, result.stderr
        return result.stdout

    async def refuses(self, *words: str) -> str:
        result = await self.run(*words)
        assert result.code in (1, 2)
        assert "Traceback" not in result.stderr
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).split())

    async def make(self, *words: str) -> tuple[str, str]:
        """A new key's id and its text."""
        text = await self.prints("create", *words)
        assert TEXT.fullmatch(text)
        return text[:11], text.strip()

    async def shown(self, key_id: str) -> dict[str, str]:
        lines = (await self.prints("show", key_id)).splitlines()
        return {name.strip(): value.strip() for name, value in (re.split(r"  +", line, maxsplit=1) for line in lines)}


@pytest.fixture
async def url(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """`plugins` as its parameter: the names of those that run."""
    plugins = getattr(request, "param", ("limits", "budget"))
    async with empty_store("sqlite", tmp_path) as store:
        book, lacking = StoredKeys(store, ENVIRON), None
        lent: Any = [lacking] * 5
        auth = Auth(Auth.Settings(), Services(ENVIRON, book, *lent, lambda name: False))
        errors = ErrorResponses(OpenAIChat())
        app = Litestar(
            route_handlers=key_routes(
                Keyring(store, book, other_admin=lambda: True), Door(auth), plugins=lambda: frozenset(plugins)
            ),
            exception_handlers={RouterError: errors.router_error, HTTPException: errors.http_exception},
            openapi_config=None,
            logging_config=None,
        )
        async with book.lifespan(), served(app) as url:
            yield url


@pytest.fixture
def terminal(url: str) -> Terminal:
    return Terminal(url, ENVIRON["DELTAWAY_ADMIN_KEY"])


async def test_a_key_is_made_shown_changed_and_revoked(terminal: Terminal) -> None:
    key_id, text = await terminal.make(
        "search",
        *("--model", "openai/*", "--model", "mock/echo", "--route", "chat*", "--tag", "team=a", "--user", "u1"),
        *("--team", "t1", "--rpm", "60", "--parallel", "4", "--budget", "10 USD/day", "--budget", "200 CNY"),
        *("--on-disconnect", "finish", "--expires", "2031-05-01"),
    )
    before = await terminal.shown(key_id)
    assert before.pop("created")
    assert before == {
        "id": key_id,
        "name": "search",
        "status": "active",
        "may use": "openai/*, mock/echo, chat* (route)",
        "tags": "team=a",
        "owner": "user u1, team t1",
        "limits": "rpm 60, parallel 4",
        "budgets": "10.00 USD/day, 200.00 CNY/month",
        "on disconnect": "finish",
        "expires": "2031-05-01 00:00Z",
    }
    # one limit is changed, the others stay
    await terminal.prints(
        *("update", key_id, "--name", "found", "--tpm", "1000"),
        *("--clear", "expiry", "--clear", "models", "--clear", "on-disconnect"),
    )
    after = await terminal.shown(key_id)
    assert after.pop("created")
    assert before.pop("expires")
    assert before.pop("on disconnect")
    assert after == {
        **before,
        "name": "found",
        "limits": "rpm 60, tpm 1000, parallel 4",
        "may use": "chat* (route)",
    }
    assert "revoked" in await terminal.prints("revoke", key_id)
    assert (await terminal.shown(key_id))["status"] == "revoked"
    assert text not in await terminal.prints("show", key_id)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("1935576000", "2031-05-03 12:00Z"),
        ("2031-05-03", "2031-05-03 00:00Z"),
        ("20310503", "2031-05-03 00:00Z"),
        ("2031-05-03T12:00:00+02:00", "2031-05-03 10:00Z"),
    ],
)
async def test_an_expiry_is_unix_seconds_or_a_date(terminal: Terminal, written: str, shown: str) -> None:
    key_id, _ = await terminal.make("web", "--expires", written)
    assert (await terminal.shown(key_id))["expires"] == shown
    key_id, _ = await terminal.make("web")
    await terminal.prints("update", key_id, "--expires", written)
    assert (await terminal.shown(key_id))["expires"] == shown


async def test_a_rotation_prints_the_new_key_alone(terminal: Terminal) -> None:
    key_id, text = await terminal.make("web")
    rotated = await terminal.run("rotate", key_id, "--overlap", "1h")
    assert TEXT.fullmatch(rotated.stdout)
    assert rotated.stdout.strip() != text
    assert "works until" in rotated.stderr
    assert (await terminal.shown(key_id))["old one until"]


async def test_the_list_is_a_table_that_says_how_to_go_on(terminal: Terminal) -> None:
    ids = [(await terminal.make(name))[0] for name in ("one", "[bold]two", "three")]
    listed = await terminal.run("list", "--limit", "2")
    lines = listed.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["id", ids[2], ids[1]]
    # a name is no markup
    assert "[bold]two" in lines[2]
    assert "everything" in lines[1]
    assert f"--after {ids[1]}" in listed.stderr
    rest = await terminal.run("list", "--limit", "2", "--after", ids[1])
    assert ids[0] in rest.stdout
    assert not rest.stderr


async def test_an_admin_key_that_was_made_works(terminal: Terminal, url: str) -> None:
    _, text = await terminal.make("second", "--admin")
    assert "second" in await Terminal(url, text).prints("list")


async def test_what_is_wrong_is_told_in_words(terminal: Terminal) -> None:
    wrong = {
        ("create", "web", "--rpm", "-5"): "limits.rpm",
        ("create", "web", "--budget", "10 XYZ"): "budgets[0].amount",
        ("create", "web", "--budget", "10 USD/week"): "budgets[0].per",
        ("create", "web", "--expires", "tomorrow!"): "expires_at",
        ("create", "web", "--expires", "30y"): "expires_in",
        ("create", "web", "--expires", "30"): "expires_at",
        ("create", "web", "--expires", "1000000000"): "must lie ahead",
        ("create", "web", "--tag", "team"): "name=value",
        ("create", "web", "--model", ""): "models[0]",
        ("show", "dw-00000000"): "no key `dw-00000000`",
        ("show", "../../v1/models"): "is no key's id",
        ("update", "dw-00000000"): "nothing is to be changed",
        ("rotate", "dw-00000000", "--overlap", "1"): "overlap",
        ("rotate", "dw-00000000"): "no key",
        ("revoke", "dw-abcdefgh-" + "x" * 43): "give the id alone: dw-abcdefgh",
    }
    told = await asyncio.gather(*(terminal.refuses(*words) for words in wrong))
    assert [(words, said) for (words, right), said in zip(wrong.items(), told, strict=True) if right not in said] == []


async def test_without_an_admin_key_it_says_so(terminal: Terminal, url: str) -> None:
    _, plain = await terminal.make("plain")
    assert "admin key" in await Terminal(url, plain).refuses("list")
    assert "--key" in await Terminal(url, None).refuses("list")


@pytest.mark.parametrize("url", [("auth", "budget")], indirect=True)
async def test_what_is_not_enforced_is_said_beside_the_key(terminal: Terminal) -> None:
    made = await terminal.run("create", "x", "--rpm", "5", "--budget", "1 USD")
    assert TEXT.fullmatch(made.stdout)
    warning = "warning: `limits` is kept, but not enforced: put `limits` into the list of plugins"
    assert made.stderr.splitlines()[1:] == [warning]
    changed = await terminal.run("update", made.stdout[:11], "--tpm", "9")
    assert changed.stderr.splitlines() == [warning]
    assert (await terminal.run("update", made.stdout[:11], "--clear", "limits")).stderr == ""
