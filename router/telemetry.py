"""What the logs look like: structlog for our own lines, and the libraries' lines through the same renderer.

One JSON object a line, or colours on a terminal. Nothing is set up at import and nothing is bound per call: whoever
logs says what it is about. Exceptions are written as type and place: their texts may quote a prompt or a key, and so
may local variables.
"""

import logging
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from traceback import extract_tb
from typing import Any, Final, TextIO, cast

import msgspec
import structlog
from structlog.stdlib import ProcessorFormatter

QUIET: Final = ("httpx", "httpcore", "aiohttp", "asyncio")
"""Loggers of which only warnings are heard: at `info` they print addresses, some vendors' with the key in them."""
FRAMES: Final = 12
"""Lines of a traceback that are kept, the innermost."""

EventDict = MutableMapping[str, Any]


def configure(stream: TextIO | None = None, pretty: bool | None = None) -> None:
    """Send all logs to `stream` (standard error). `pretty`: for people; None: if the stream is a terminal."""
    stream = stream or sys.stderr
    if pretty is None:
        pretty = stream.isatty()
    render: Any = structlog.dev.ConsoleRenderer(colors=stream.isatty()) if pretty else _json
    stamp: list[Any] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    structlog.configure(
        processors=[*stamp, describe_exception, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", Unfailing(stream))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *stamp],
            processors=[first_line_of_asyncio, ProcessorFormatter.remove_processors_meta, describe_exception, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


class Unfailing:
    """A stream for log lines. One whose reader has gone, or whose disk is full, fails no call."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        # `contextlib.suppress` would cost as much as the line
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            pass

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            pass


def describe_exception(logger: Any, method: str, event: EventDict) -> EventDict:
    """`exc_info` → `exception`: types and places of an exception and its causes, never their texts."""
    error = event.pop("exc_info", None)
    if isinstance(error, tuple):
        error = error[1]
    elif error is not None and not isinstance(error, BaseException):
        error = sys.exc_info()[1] if error else None
    if error is not None:
        event["exception"] = "\n".join(_described(error))
    return event


def first_line_of_asyncio(logger: Any, method: str, event: EventDict) -> EventDict:
    """asyncio's later lines show the futures it complains of, with the text of their exceptions."""
    if event.get("logger") == "asyncio":
        event["event"] = str(event["event"]).partition("\n")[0]
    return event


def _described(error: BaseException) -> Iterator[str]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        kind = type(following)
        yield f"{'caused by ' if len(seen) > 1 else ''}{kind.__module__}.{kind.__qualname__}"
        for frame in extract_tb(following.__traceback__)[-FRAMES:]:
            yield f"  {'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno} in {frame.name}"
        hidden = None if following.__suppress_context__ else following.__context__
        following = following.__cause__ or hidden


def _json(logger: Any, method: str, event: EventDict) -> str:
    # an object that is no JSON shows its type: its text could be anything
    return msgspec.json.encode(dict(event), enc_hook=lambda value: type(value).__name__).decode()
