"""Serves an application over a real socket: Litestar's test client buffers streams."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from litestar import Litestar

from router.app import Gateway, build, create_app
from router.config import parse
from router.http.connection import ClientConnection
from router.upstream import CarrierFactory, make_carrier


@asynccontextmanager
async def served(app: Any, **settings: Any) -> AsyncIterator[str]:
    """The application under uvicorn in this event loop; gives its URL."""
    # with its protocol named, asyncio does without Nagle's delay on what it accepts
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            http=ClientConnection,
            ws="none",
            lifespan="on",
            **{"timeout_graceful_shutdown": 5, **settings},
        )
        server = uvicorn.Server(config)
        # the signal handlers belong to the test runner
        running = asyncio.ensure_future(server._serve([listening]))
        try:
            async with asyncio.timeout(10):
                while not server.started:
                    if running.done():
                        running.result()
                    await asyncio.sleep(0.005)
            yield url
        finally:
            server.should_exit = True
            await running


def gateway(text: str, environ: Mapping[str, str] | None = None, carrier: CarrierFactory = make_carrier) -> Gateway:
    """A gateway from the text of a configuration."""
    return build(parse(text, "providers.yaml", environ or {}), environ or {}, carrier)


def application(text: str, environ: Mapping[str, str] | None = None) -> Litestar:
    return create_app(gateway(text, environ))


@asynccontextmanager
async def client(url: str, key: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20, trust_env=False) as opened:
        yield opened


def config_for(vendor_url: str, plugins: str = "[logging, usage]", server: str = "{}", more: str = "") -> str:
    """One OpenAI-compatible vendor named `v` at `vendor_url`."""
    return f"""
server: {server}
providers:
  v: {{protocol: openai, base_url: "{vendor_url}", api_key: sk-vendor-key{more}}}
  mock: {{protocol: mock}}
plugins: {plugins}
"""


def asking(model: str = "v/m", stream: bool = True, text: str = "Hi", **more: Any) -> dict[str, Any]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": text}], **more}
