"""`deltaway reload`: a running gateway takes up what its configuration's file says."""

import json
import sys
from typing import Any

import rich_click as click

from router.client import Client, GatewayError
from router.commands.gateway import admin_key_option, console, url_option
from router.commands.words import plain


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print what the gateway answers.")
@url_option
@admin_key_option
def reload(as_json: bool, url: str, key: str | None) -> None:
    """Have every process of the gateway read its file anew. Running calls end under what they began with."""
    try:
        answer = Client(url, key).call("POST", "/admin/config/reload")
    except GatewayError as error:
        # a line for each problem, as `deltaway check` has it
        click.echo(str(error), err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    words = "is in force now" if answer["changed"] else "was in force already"
    click.echo(f"generation {answer['generation']} {words}")
    if not answer["announced"]:
        click.echo("the store is away: other processes were not told", err=True)
    _print_instances(answer["instances"], answer["generation"])


def _print_instances(instances: list[dict[str, Any]], generation: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("host", "process", "version", "generation", "since", "", box=None, header_style="bold")
    for each in instances:
        state = each["error"] or ("has not answered yet" if each["behind"] else "")
        if not state and each["generation"] != generation:
            state = "its file says something else"
        words = [each["host"], str(each["pid"]), each["version"], each["generation"], each["since"], state]
        table.add_row(*(Text(plain(word)) for word in words))
    console().print(table)
