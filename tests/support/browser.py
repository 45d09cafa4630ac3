"""A page in a real browser: headless Chromium opens what the test serves, and the page's script reports by itself.

The page is of another origin than the gateway, so that what the browser allows between origins is what is tested. Tests
that use it bear the mark `needs("chromium")`.
"""

import asyncio
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-default-apps",
        "--disable-extensions",
    ),
    *("--disable-breakpad", "--disable-crash-reporter", "--disable-dev-shm-usage", "--mute-audio"),
)
_PAGE = """<!doctype html>
<meta charset="utf-8"><title>page of a test</title><link rel="icon" href="data:,">
<script type="module">
const given = %s;
const tell = (what) => fetch("/told", {method: "POST", body: JSON.stringify(what)});
async function shown() {
%s
}
try {
  await tell({result: await shown() ?? null});
} catch (error) {
  await tell({error: `${error}`});
}
</script>
"""


class Browser:
    """Pages of one origin, in one browser after another: each page has a fresh one."""

    def __init__(self, directory: Path) -> None:
        self.port = 0
        self._directory = directory
        self._page = b""
        self._told: asyncio.Future[dict[str, Any]] | None = None

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def show(self, script: str, seconds: float = 30, **given: Any) -> Any:
        """Run the body of an asynchronous function in a page; gives what it returns. `given` is what it knows the
        test's values as. Raises `AssertionError` with what the script threw, or when it has not returned in time."""
        self._page = (_PAGE % (json.dumps(given), script)).encode()
        self._told = asyncio.get_running_loop().create_future()
        process = self._start()
        try:
            async with asyncio.timeout(seconds):
                while not self._told.done():
                    if (code := process.poll()) is not None:
                        raise AssertionError(f"Chromium ended with {code}: {self._said()}")
                    await asyncio.wait({self._told}, timeout=0.2)
        except TimeoutError:
            raise AssertionError(f"the page has not told its result within {seconds} s: {self._said()}") from None
        finally:
            with suppress(ProcessLookupError):
                # the session is its own, so nobody else is in its group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        told = self._told.result()
        if "error" in told:
            raise AssertionError(f"the page's script threw: {told['error']}")
        return told["result"]

    def _start(self) -> subprocess.Popen[bytes]:
        home = tempfile.mkdtemp(dir=self._directory)
        with self._log.open("wb") as log:
            return subprocess.Popen(
                ["chromium", *_FLAGS, f"--user-data-dir={home}/profile", f"{self.origin}/"],
                # it writes beside its profile too
                env={**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def _log(self) -> Path:
        return self._directory / "chromium.log"

    def _said(self) -> str:
        return self._log.read_text("utf-8", "replace")[-2000:]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body, status = b"", b"200 OK"
            if head.startswith(b"post /told "):
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                told = json.loads(await reader.readexactly(length))
                if self._told is not None and not self._told.done():
                    self._told.set_result(told)
            elif head.startswith(b"get / "):
                body = self._page
            else:
                status = b"404 Not Found"
            kind = b"content-type: text/html; charset=utf-8\r\ncache-control: no-store\r\nconnection: close\r\n"
            writer.write(b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, kind, len(body), body))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            # a connection that the browser opened and did not need
            return
        finally:
            writer.close()


@asynccontextmanager
async def browser(directory: Path) -> AsyncIterator[Browser]:
    """Its pages' origin is known at once, so that a gateway may be told to let them in."""
    made = Browser(directory)
    server = await asyncio.start_server(made._connected, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
