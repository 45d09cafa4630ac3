"""Runs the application under uvicorn: one process, or several that share the listening socket."""

import asyncio
import ipaddress
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Sequence

import uvicorn
from uvicorn.supervisors import Multiprocess

from router.accepted import Accepted
from router.app import ACCEPTED_VARIABLE, CONFIG_VARIABLE, KEYS_VARIABLE, Gateway, create_app
from router.http.connection import ClientConnection
from router.keyring import first_admin_key, unenforced
from router.ledger.keeping import check_directory
from router.lifecycle import LAST_WORDS
from router.store.store import Store
from router.telemetry import configure

BACKLOG = 4096
KEEP_ALIVE = 75
"""Seconds an idle client connection stays open: longer than load balancers keep theirs."""


class Workers(Multiprocess):
    """Passes SIGHUP on to its workers, each of which reads the configuration anew. uvicorn would restart them."""

    def run(self) -> None:
        # the mask goes over to the workers: one that has no handler yet is not ended by the signal but gets it later
        if hasattr(signal, "SIGHUP"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        super().run()

    def handle_signals(self) -> None:
        if hasattr(signal, "SIGHUP") and signal.SIGHUP in signal.sigpending():
            signal.sigwait({signal.SIGHUP})
            self.handle_hup()
        super().handle_signals()

    def handle_hup(self) -> None:
        for process in self.processes:
            if process.pid is not None and process.process.is_alive():
                os.kill(process.pid, signal.SIGHUP)


class BindError(Exception):
    """The address cannot be listened on."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run(
    gateway: Gateway, config_path: str | None, host: str, port: int, workers: int, *, keys_needed: bool = False
) -> None:
    """Serve until a signal ends it. `keys_needed`: no reload may take the need of keys away. Raises
    `BindError`, `StoreAway`, `CannotKeep`."""
    listening = bind(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    admin_key, warnings = asyncio.run(prepared(gateway))
    for line in greeting(gateway, url, admin_key, warnings):
        print(line, flush=True)  # noqa: T201  # what the person at the terminal sees first
    configure()
    shutdown = gateway.current.config.server.shutdown
    os.environ[CONFIG_VARIABLE] = str(config_path or "")
    os.environ[KEYS_VARIABLE] = "1" if keys_needed else ""
    gateway.reloader.keys_needed = keys_needed
    settings = uvicorn.Config(
        create_app(gateway) if workers == 1 else "router.app:from_environment",
        factory=workers > 1,
        workers=workers,
        loop="auto",
        http=ClientConnection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # nothing here reads the client's scheme, and its address only for logs
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(shutdown.grace + LAST_WORDS + 1),
    )
    if workers > 1:
        accepted = Accepted(gateway.backing.directory / f"accepted-{os.getpid()}.yaml")
        if config_path:
            accepted.write(gateway.current.loaded.document.text)
            os.environ[ACCEPTED_VARIABLE] = str(accepted.path)
        try:
            Workers(settings, sockets=[listening]).run()
        finally:
            accepted.remove()
        return
    try:
        uvicorn.Server(settings).run(sockets=[listening])
    except KeyboardInterrupt:
        # uvicorn raises Ctrl-C anew once it has stopped in good order
        return


async def prepared(gateway: Gateway) -> tuple[str | None, list[str]]:
    """Bring the store up to date before anybody is greeted; gives the admin key, if this start has made it, and what
    people should know of the keys there are."""
    if gateway.current.config.ledger.enabled:
        check_directory(gateway.backing.directory)
    store = Store(gateway.current.config.store)
    await store.open()
    try:
        admin_key = None if gateway.current.admins.has_admin_key else await first_admin_key(store, os.environ)
        return admin_key, await unenforced(store, gateway.current.layer_names)
    finally:
        await store.close()


def bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once on connections of a socket whose protocol is named, and no others
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise BindError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host and --port"
        ) from None
    listening.set_inheritable(True)
    return listening


def greeting(gateway: Gateway, url: str, admin_key: str | None, warnings: Sequence[str] = ()) -> Iterator[str]:
    """What to try next, and the first admin key, which nothing can show again."""
    listed = [model for model in gateway.current.catalog.models() if model.available]
    first = listed[0].id if listed else "mock/echo"
    header = key = ""
    if gateway.current.authenticator is not None:
        variable = "DELTAWAY_ADMIN_KEY" if os.environ.get("DELTAWAY_ADMIN_KEY") else "DELTAWAY_API_KEY"
        header, key = f'-H "Authorization: Bearer ${variable}" ', f' --key "${variable}"'
    yield f"Deltaway serves {url}/v1 · {len(listed)} models ready"
    for row in gateway.current.config.providers.values():
        if row.missing:
            yield f"  provider {row.name} waits for {', '.join(row.missing)}"
    for warning in warnings:
        yield f"  {warning}"
    if admin_key is not None:
        yield f"Admin key, shown this once: {admin_key}"
    yield "Try:"
    yield f"  curl -N {url}/v1/chat/completions {header}-H 'content-type: application/json' \\"
    yield f"""    -d '{{"model":"{first}","stream":true,"messages":[{{"role":"user","content":"Hello"}}]}}'"""
    yield f"  {command(sys.argv[0])} chat --url {url}{key} -m {first} Hello"


def command(called: str, path: str | None = None) -> str:
    """How a shell finds `deltaway`: by its name, or as it was `called` where it stands in no directory of `path`.

    `make serve` runs it out of the virtual environment, which few people have in their PATH.
    """
    if os.path.basename(called) != "deltaway" or shutil.which("deltaway", path=path):
        return "deltaway"
    return shlex.quote(called)
