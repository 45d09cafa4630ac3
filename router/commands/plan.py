"""`deltaway plan`: what a configuration would change at a running gateway, in words."""

import json
import sys
from pathlib import Path
from typing import Any

import rich_click as click

from router.commands.gateway import admin_key_option, asked, url_option
from router.commands.words import plain


@click.command()
@click.option(
    "--config",
    "config",
    type=click.Path(dir_okay=False),
    help="A file of this machine, read as if it were the gateway's: its variables and its prices file are those "
    "that the gateway has. Without it the gateway reads its own file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what the gateway answers.")
@url_option
@admin_key_option
def plan(config: str | None, as_json: bool, url: str, key: str | None) -> None:
    """Tell what a reload would change, and change nothing. Ends with 1 when it would be refused."""
    body: dict[str, Any] = {}
    if config is not None:
        try:
            body["text"] = Path(config).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.ClickException(f"{config} cannot be read: {error}") from None
    answer = asked(lambda client: client.call("POST", "/admin/config/plan", body), url, key)
    if as_json:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    elif answer["would_be"] is None:
        for problem in answer["refused"]:
            place = f":{problem['line']}:{problem['column']}" if problem["line"] else ""
            click.echo(plain(f"{problem['file']}{place}: {problem['message']}"), err=True)
        click.echo(click.style("a reload would be refused, and change nothing", bold=True), err=True)
    elif not answer["changes"]:
        click.echo(f"nothing would change: generation {answer['generation']} stays in force")
    else:
        for change in answer["changes"]:
            click.echo(plain(change["words"]))
        click.echo(click.style(f"generation {answer['generation']} → {answer['would_be']}", dim=True))
    if answer["would_be"] is None:
        sys.exit(1)
