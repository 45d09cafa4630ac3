"""A client that remembers, for every call, whether its end reached it."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from shows.processes import ADMIN_KEY


@dataclass
class Seen:
    """One call as its client saw it."""

    marker: str
    request_id: str | None = None
    status: int = 0
    ended: bool = False
    """`[DONE]` or the whole body has arrived."""
    began: float | None = None
    """When the first delta came, in the event loop's time."""


async def ask(
    port: int,
    marker: str,
    text: str | None = None,
    *,
    stream: bool,
    model: str = "v/m",
    leave_at: bytes | None = None,
    suite: str = "shows",
    **more: Any,
) -> Seen:
    """One call of the user `marker` with the tag `suite`, to its end or to that of the gateway.

    It says `text`, or its marker. With `leave_at` the client leaves as soon as it has read that. `more` joins the body.
    """
    seen = Seen(marker)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return seen
    asked = {"model": model, "stream": stream, "messages": [{"role": "user", "content": text or marker}], **more}
    body = json.dumps(asked).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {ADMIN_KEY}\r\nx-deltaway-user: {marker}\r\nx-deltaway-tags: suite={suite}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    try:
        writer.write(head.encode() + body)
        length = _head(seen, await reader.readuntil(b"\r\n\r\n"))
        if length is not None:
            await reader.readexactly(length)
            seen.ended = seen.status == 200
            return seen
        tail = b""
        while data := await reader.read(65536):
            if seen.began is None:
                seen.began = asyncio.get_running_loop().time()
            tail += data
            if leave_at is not None and leave_at in tail:
                return seen
            tail = tail[-256:]
            seen.ended = seen.ended or b"data: [DONE]\n\n" in tail
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
    return seen


def _head(seen: Seen, data: bytes) -> int | None:
    """Notes the answer's head; gives the body's length, None for a stream."""
    first, *lines = data.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    seen.status, seen.request_id = int(first.split()[1]), headers.get("x-request-id")
    return int(headers["content-length"]) if "content-length" in headers else None
