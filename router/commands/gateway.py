"""What the commands that ask a running gateway share: which one, with which key, and what its refusal looks like."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import rich_click as click

from router.client import Client, GatewayError

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_URL = "http://127.0.0.1:8080"

url_option = click.option(
    "--url", envvar="DELTAWAY_URL", default=DEFAULT_URL, help="The gateway.", show_default=True, show_envvar=True
)
key_option = click.option(
    "--key", envvar=["DELTAWAY_API_KEY", "DELTAWAY_ADMIN_KEY"], help="The key to call with.", show_envvar=True
)
admin_key_option = click.option(
    "--key",
    envvar=["DELTAWAY_ADMIN_KEY", "DELTAWAY_API_KEY"],
    help="The admin key to call with.",
    show_envvar=True,
)


def console() -> "Console":
    """Where tables are printed. Not to a terminal, a table is as wide as what is in it: nothing is cut off."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=10_000)


def asked(question: Callable[[Client], Any], url: str, key: str | None) -> Any:
    """The answer; a refusal ends the command in its words."""
    try:
        return question(Client(url, key))
    except GatewayError as error:
        raise click.ClickException(str(error)) from None
