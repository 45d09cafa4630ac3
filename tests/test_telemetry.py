"""What the logs look like, ours and the libraries'."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from router.telemetry import configure

SECRET = "my secret prompt"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging is the process's: put it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("httpx", "httpcore", "aiohttp", "asyncio")}
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fails(text: str) -> None:
    secret_local = text
    try:
        raise KeyError(secret_local)
    except KeyError as error:
        raise RuntimeError(text) from error


def test_a_line_of_ours_is_one_json_object() -> None:
    stream = io.StringIO()
    configure(stream)
    structlog.get_logger("deltaway.calls").warning("call", request_id="req_1", tokens={"input": 7}, other=object())
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "call",
        "level": "warning",
        "request_id": "req_1",
        "tokens": {"input": 7},
        "other": "object",
    }


def test_a_librarys_line_looks_the_same() -> None:
    stream = io.StringIO()
    configure(stream)
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7, extra={"color_message": "x"})
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "Started server process [7]", "level": "info", "logger": "uvicorn.error"}


def test_a_terminal_gets_lines_for_people() -> None:
    stream = Terminal()
    configure(stream)
    structlog.get_logger().info("call", request_id="req_1")
    assert "\x1b[" in stream.getvalue()
    assert "req_1" in stream.getvalue()


def test_pretty_may_be_asked_for_without_a_terminal() -> None:
    stream = io.StringIO()
    configure(stream, pretty=True)
    structlog.get_logger().info("call", request_id="req_1")
    assert "request_id=req_1" in stream.getvalue()
    assert "\x1b[" not in stream.getvalue()


def test_a_terminal_can_have_json() -> None:
    stream = Terminal()
    configure(stream, pretty=False)
    structlog.get_logger().info("call")
    assert lines(stream)[0]["event"] == "call"


@pytest.mark.parametrize("name", ["httpx", "httpcore.http11", "aiohttp.client"])
def test_http_libraries_are_heard_from_warnings_on(name: str) -> None:
    stream = io.StringIO()
    configure(stream)
    logging.getLogger(name).info("HTTP Request: POST https://vendor.example/v1?key=%s", SECRET)
    assert stream.getvalue() == ""
    logging.getLogger(name).warning("trouble")
    assert lines(stream)[0]["event"] == "trouble"


def test_debug_is_not_heard() -> None:
    stream = io.StringIO()
    configure(stream)
    structlog.get_logger().debug("detail")
    logging.getLogger("any").debug("detail")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["json", "terminal"])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "library"])
def test_an_exception_shows_types_and_places_but_no_text_and_no_variable(stream: io.StringIO, ours: bool) -> None:
    configure(stream)
    try:
        fails(SECRET)
    except RuntimeError as error:
        if ours:
            structlog.get_logger().error("a fault", exc_info=error)
        else:
            logging.getLogger("uvicorn.error").exception("a fault")
    text = stream.getvalue()
    assert "a fault" in text
    assert "builtins.RuntimeError" in text
    assert "caused by builtins.KeyError" in text
    assert "test_telemetry.py:" in text
    assert "in fails" in text
    assert "secret" not in text


def test_the_current_exception_is_meant_by_true() -> None:
    stream = io.StringIO()
    configure(stream)
    try:
        fails(SECRET)
    except RuntimeError:
        structlog.get_logger().error("a fault", exc_info=True)
    structlog.get_logger().error("no fault", exc_info=True)
    first, second = lines(stream)
    assert first["exception"].startswith("builtins.RuntimeError\n")
    assert "exception" not in second


def test_a_chain_of_exceptions_that_is_a_ring_ends() -> None:
    stream = io.StringIO()
    configure(stream)
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one
    structlog.get_logger().error("ring", exc_info=one)
    assert lines(stream)[0]["exception"] == "builtins.ValueError\ncaused by builtins.ValueError"


def test_asyncio_does_not_show_the_text_of_a_lost_exception() -> None:
    stream = io.StringIO()
    configure(stream)
    logging.getLogger("asyncio").error(
        "Task exception was never retrieved\nfuture: <Task finished exception=KeyError('%s')>", SECRET
    )
    assert lines(stream)[0]["event"] == "Task exception was never retrieved"


def test_configuring_twice_writes_each_line_once() -> None:
    stream = io.StringIO()
    configure(io.StringIO())
    configure(stream)
    logging.getLogger("any").info("hello")
    assert len(lines(stream)) == 1


def test_importing_sets_nothing_up() -> None:
    code = "import logging, router.telemetry; raise SystemExit(len(logging.getLogger().handlers))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_log_that_nobody_reads_any_more_fails_nothing() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    configure(Closed(), pretty=False)
    structlog.get_logger("deltaway.test").info("a line")
