"""The `deltaway` command. Imports what a subcommand needs when it runs: `--help` and `chat` start fast."""

import os
import re
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import rich_click as click

from router.commands.gateway import asked, console, key_option, url_option

if TYPE_CHECKING:
    from router.client import Client
    from router.config import ConfigError

DEFAULT_CONFIG = "providers.yaml"
ELSEWHERE: Final = ("experiments", "feedback", "keys", "plan", "reconcile", "reload", "requests", "usage")
"""Commands that are a module of `router.commands` each, imported when they are wanted."""


class Commands(click.RichGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(f"router.commands.{cmd_name}"), cmd_name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="deltaway")
def main() -> None:
    """One endpoint for many model vendors."""


config_option = click.option(
    "--config",
    "config",
    type=click.Path(dir_okay=False),
    help=f"The configuration file; {DEFAULT_CONFIG} here if there is one, else the defaults.",
)


@main.command()
@config_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Processes.")
@click.option("--insecure", is_flag=True, help="Serve without keys on an address that others can reach.")
def serve(config: str | None, host: str, port: int, workers: int, insecure: bool) -> None:
    """Run the gateway. Without a configuration it serves `mock`, which needs no key."""
    # it asks for a reload: until something can do one it waits, and while the gateway stops it ends nothing
    if hasattr(signal, "SIGHUP"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from router.app import build, read_config
    from router.config import ConfigError
    from router.ledger.keeping import CannotKeep
    from router.server import BindError, is_loopback, run
    from router.store.store import StoreAway

    path = _config_path(config)
    try:
        loaded = read_config(path, os.environ)
        gateway = build(loaded, os.environ)
    except ConfigError as error:
        _fail_config(error)
    if gateway.current.authenticator is None and not insecure and not is_loopback(host):
        raise click.ClickException(
            f"{host} can be reached from other machines and no key is needed: put `auth` in the list of plugins, "
            "or say --insecure"
        )
    try:
        run(gateway, path, host, port, workers, keys_needed=not insecure and not is_loopback(host))
    except (BindError, CannotKeep, StoreAway) as error:
        raise click.ClickException(str(error)) from None


@main.command()
@config_option
def check(config: str | None) -> None:
    """Check a configuration, and print what it amounts to."""
    from router.app import build, prices_of, read_config
    from router.config import ConfigError
    from router.report import report

    path = _config_path(config)
    try:
        loaded = read_config(path, os.environ)
        gateway = build(loaded, os.environ)
    except ConfigError as error:
        _fail_config(error)
    for line in report(loaded.config, prices_of(gateway)):
        click.echo(line)


@main.command()
@url_option
@key_option
def models(url: str, key: str | None) -> None:
    """List the models the gateway serves."""
    from rich.table import Table

    found, words = asked(_models_and_words, url, key)
    table = Table("model", "provider", "available", "health", box=None, header_style="bold")
    for model in found:
        missing = ", ".join(model.get("missing", ()))
        available = "yes" if model.get("available", True) else f"no: set {missing}"
        health = words.get(model["id"]) or model.get("health") or ""
        table.add_row(model["id"], model["owned_by"], available, health)
    console().print(table)


@main.command()
@click.option("-m", "--model", default="mock/echo", show_default=True, help="A route, or provider/model.")
@click.option("-s", "--system", help="Instructions for the model.")
@click.option("-c", "--conversation", help="Go on with a kept conversation, conv_…; `new` makes one and prints its id.")
@url_option
@key_option
@click.argument("words", nargs=-1)
def chat(
    model: str, system: str | None, conversation: str | None, url: str, key: str | None, words: tuple[str, ...]
) -> None:
    """Talk to a model. Without WORDS: reads standard input, or holds a conversation on a terminal."""
    if conversation is not None and conversation != "new" and not re.fullmatch(r"conv_[0-9A-Za-z]+", conversation):
        raise click.UsageError(f"`{conversation}` is no conversation's id: write conv_…, or new")
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    text = " ".join(words) or ("" if sys.stdin.isatty() else sys.stdin.read())
    if not text.strip() and not sys.stdin.isatty():
        raise click.ClickException("nothing was said: give words, or pipe a text in")
    if conversation == "new":
        made: dict[str, Any] = asked(lambda client: client.call("POST", "/v1/conversations", {}), url, key)
        conversation = str(made["id"])
        # apart from the answer, so that a script can read either
        click.echo(f"conversation {conversation}", err=True)
    if text.strip():
        _turn(model, messages, text, conversation, url, key)
        return
    while True:
        try:
            text = click.prompt(click.style("you", bold=True), prompt_suffix="> ")
        except click.Abort:
            click.echo()
            return
        _turn(model, messages, text, conversation, url, key)


def _models_and_words(client: "Client") -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The models; and by name, what is wrong with those that are not well, if the key is an admin key."""
    from router.client import GatewayError

    models = client.models()
    if all(model.get("health") in (None, "ok") for model in models):
        return models, {}
    try:
        health = client.call("GET", "/admin/health")
    except GatewayError:
        # the word is for everybody, the details are not
        return models, {}
    words = {target["target"]: target["words"] for row in health["providers"] for target in row["targets"]}
    return models, {**words, **{route["name"]: route["words"] for route in health["routes"]}}


def _turn(
    model: str, messages: list[dict[str, str]], text: str, conversation: str | None, url: str, key: str | None
) -> None:
    """Say one thing and print the answer as it comes; both join the messages, unless the gateway keeps them."""
    messages.append({"role": "user", "content": text})

    def printed(client: "Client") -> str:
        answer, before = [], ""
        try:
            for kind, piece in client.chat(model, messages, conversation):
                if kind == "text":
                    if before == "reasoning":
                        click.echo("\n", err=True)
                    answer.append(piece)
                    click.echo(piece, nl=False)
                else:
                    click.echo(click.style(piece, dim=True), nl=False, err=True)
                before = kind
        finally:
            # an error has a line of its own
            if before:
                click.echo()
        return "".join(answer)

    answer = asked(printed, url, key)
    if conversation is None:
        messages.append({"role": "assistant", "content": answer})
    else:
        messages.clear()


def _config_path(given: str | None) -> str | None:
    """The file to read: the one named, else the usual one if it is there."""
    if given is not None:
        return given
    return DEFAULT_CONFIG if Path(DEFAULT_CONFIG).is_file() else None


def _fail_config(error: "ConfigError") -> NoReturn:
    for problem in error.problems:
        click.echo(str(problem), err=True)
    count = len(error.problems)
    click.echo(click.style(f"{count} problem{'s' if count > 1 else ''} in the configuration", bold=True), err=True)
    sys.exit(1)
