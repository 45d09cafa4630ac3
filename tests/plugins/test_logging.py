"""One line a call, with all that matters and nothing that is private."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from plugins.auth import Auth, Key
from plugins.logging import LONGEST, Logging, shown
from plugins.usage import UsagePlugin
from router.call import Call, Events
from router.errors import (
    ClientGone,
    InternalError,
    RateLimited,
    Rejected,
    RouterError,
    ShuttingDown,
    StreamCut,
    TimedOut,
    VendorAuthFailed,
)
from router.events import Usage
from router.plugin import CallNext, compose
from tests.plugins.calls import ANSWER, START, TEXT, a_call, collect, vendor
from tests.plugins.lending import lend

PROMPT, KEY = "my secret prompt", "dw-ab12-" + "K" * 43


async def line_of(source: CallNext, call: Call) -> MutableMapping[str, Any]:
    """The one line that is written of a call, whatever ends it."""
    with capture_logs() as lines:
        try:
            await collect(compose([Logging()], source)(call))
        except BaseException:  # noqa: BLE001, RUF100  # cancellation too
            pass
    (line,) = lines
    return line


async def test_a_finished_call() -> None:
    call = a_call(stream=True, asked=True)
    trip = call.trip
    trip.first_delta = trip.started + 0.0123
    trip.usage = Usage(input=7, output=2, reasoning=3)
    trip.dropped = ("logit_bias",)
    line = await line_of(vendor(), call)
    assert line.pop("duration_ms") >= 0
    assert line == {
        "event": "call",
        "log_level": "info",
        "request_id": "req_1",
        "outcome": "finished",
        "dialect": "openai.chat",
        "model": "chat",
        "stream": True,
        "attempts": 1,
        "target": "openai/gpt-5",
        "first_token_ms": 12.3,
        "tokens": {"input": 7, "output": 2, "reasoning": 3, "source": "reported"},
        "dropped": ["logit_bias"],
    }


async def test_events_pass_unchanged() -> None:
    assert await collect(compose([Logging()], vendor())(a_call())) == list(ANSWER)


@pytest.mark.parametrize(
    ("error", "level", "outcome", "code"),
    [
        (Rejected("no"), "info", "failed", "invalid_request"),
        (RateLimited("slow"), "warning", "failed", "rate_limit_exceeded"),
        (VendorAuthFailed("key"), "error", "failed", "provider_authentication_failed"),
        (TimedOut("late", code="idle_timeout"), "warning", "timeout", "idle_timeout"),
        (ClientGone("left"), "info", "client_gone", "client_gone"),
        (InternalError("ours"), "error", "failed", "internal_error"),
        (KeyError("ours"), "error", "failed", "KeyError"),
    ],
)
async def test_a_failed_call_tells_its_error_as_loud_as_it_is(
    error: Exception, level: str, outcome: str, code: str
) -> None:
    line = await line_of(vendor((), error), a_call())
    assert (line["log_level"], line["outcome"], line["error"]["code"]) == (level, outcome, code)
    if isinstance(error, RouterError):
        assert (line["error"]["status"], line["error"]["kind"]) == (error.status, error.kind)


async def test_a_cut_answer() -> None:
    call = a_call()
    call.trip.first_delta = call.trip.started
    assert (await line_of(vendor((START, *TEXT), StreamCut("cut")), call))["outcome"] == "cut"


async def test_a_call_that_the_client_left() -> None:
    call = a_call()
    with capture_logs() as lines:
        events = compose([Logging()], vendor())(call)
        await anext(events)
        call.trip.interruption = ClientGone("the client left")
        await call.trip.close()
    assert [(line["log_level"], line["outcome"]) for line in lines] == [("info", "client_gone")]


async def test_a_call_that_the_core_interrupted_tells_why() -> None:
    call = a_call()

    async def waits(call: Call) -> Events:
        yield START
        await asyncio.sleep(3600)

    with capture_logs() as lines:
        task = asyncio.create_task(collect(compose([Logging()], waits)(call)))
        await asyncio.sleep(0.01)
        call.trip.interruption = ShuttingDown("the server is stopping")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert lines[0]["error"]["code"] == "shutting_down"
    assert lines[0]["log_level"] == "warning"


async def test_a_refused_call_is_logged_when_logging_is_outermost() -> None:
    with capture_logs() as lines:
        layers = compose([Logging(), Auth(Auth.Settings(keys=(Key(KEY, "web"),)), lend())], vendor())
        with pytest.raises(RouterError):
            await collect(layers(a_call(key="wrong", asked=False)))
    (line,) = lines
    assert (line["outcome"], line["error"]["status"], line["log_level"]) == ("refused", 401, "info")
    assert "key" not in line


async def test_the_key_is_shown_by_its_public_id() -> None:
    with capture_logs() as lines:
        layers = compose([Logging(), Auth(Auth.Settings(keys=(Key(KEY, "web"),)), lend())], vendor())
        await collect(layers(a_call(key=KEY)))
    assert lines[0]["key"] == "dw-ab12"


@pytest.mark.parametrize(
    "error",
    [
        None,
        Rejected(f"the vendor refuses {PROMPT!r} of {KEY}"),
        StreamCut(PROMPT),
        KeyError(PROMPT),
        RuntimeError(KEY),
        asyncio.CancelledError(PROMPT),
    ],
)
async def test_no_prompt_and_no_key_is_ever_logged(error: BaseException | None) -> None:
    with capture_logs() as lines:
        plugins = [Logging(), Auth(Auth.Settings(keys=(Key(KEY, "web"),)), lend()), UsagePlugin()]
        call = a_call(prompt=PROMPT, key=KEY)
        try:
            await collect(compose(plugins, vendor((START, *TEXT), error))(call))
        except BaseException:  # noqa: BLE001, RUF100
            pass
    assert len(lines) == 1
    for secret in ("secret", "prompt", KEY, "K" * 10, "hello"):
        assert secret not in str(lines)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("openai/gpt-5", "openai/gpt-5"),
        ("模型", "模型"),
        ("x" * 1000, "x" * LONGEST + "…"),
        ("a\x1b[2Jb", r"'a\x1b[2Jb'"),
        ("a\nb", r"'a\nb'"),
    ],
)
def test_a_clients_word_is_shown_short_and_harmless(word: str, text: str) -> None:
    assert shown(word) == text


async def test_nothing_is_written_per_event() -> None:
    with capture_logs() as lines:
        await collect(compose([Logging()], vendor((START, *TEXT * 100)))(a_call()))
    assert len(lines) == 1
