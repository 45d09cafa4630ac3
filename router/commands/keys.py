"""`deltaway keys`: the keys of a running gateway, over its HTTP interface."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from urllib.parse import quote

import rich_click as click
from rich.table import Column, Table
from rich.text import Text

from router.commands.gateway import admin_key_option, asked, console, url_option
from router.key_text import is_public_id

Command = TypeVar("Command", bound=Callable[..., Any])
CLEARED: Final[dict[str, Any]] = {
    "models": [],
    "routes": [],
    "tags": {},
    "user": None,
    "team": None,
    "limits": {},
    "budgets": [],
    "on-disconnect": None,
    "expiry": None,
}
"""What `--clear` may name, and what the field then becomes."""
_FIELDS: Final = {"expiry": "expires_at", "on-disconnect": "on_disconnect"}
"""Those of them whose field has another name."""


@click.group()
def keys() -> None:
    """The keys that clients call with, and what each may do. Needs an admin key."""


def _said(command: Command) -> Command:
    """The options that say what a key may do."""
    options = (
        click.option("--model", "models", multiple=True, help="What it may ask for, as openai/* or chat. Repeatable."),
        click.option("--route", "routes", multiple=True, help="A route it may ask for, as chat*. Repeatable."),
        click.option("--tag", "tags", multiple=True, help="A tag that all its calls bear, as team=a. Repeatable."),
        click.option("--user", help="The user it belongs to."),
        click.option("--team", help="The team it belongs to."),
        click.option("--rpm", type=int, help="Requests a minute."),
        click.option("--tpm", type=int, help="Tokens a minute."),
        click.option("--parallel", type=int, help="Calls at once."),
        click.option("--budget", "budgets", multiple=True, help="'10 USD/month', or /day, or /total. Repeatable."),
        click.option(
            "--on-disconnect",
            type=click.Choice(["cancel", "finish"]),
            help="What becomes of its calls whose client leaves: ended, or finished for who comes back.",
        ),
        click.option("--expires", help="30d from now, a date such as 2030-12-31, or Unix seconds."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@keys.command()
@click.argument("name")
@_said
@click.option("--admin", is_flag=True, help="An admin key: it may do everything, keys included.")
@url_option
@admin_key_option
def create(name: str, admin: bool, url: str, key: str | None, **said: Any) -> None:
    """Make a key called NAME, and print it: it cannot be read again."""
    body = {"name": name, "admin": admin, **_body(said)}
    limits = _limits(said)
    if limits:
        body["limits"] = limits
    _print_issued(asked(lambda client: client.call("POST", "/admin/keys", body), url, key), "made")


@keys.command("list")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100), help="How many.")
@click.option("--after", help="The id of the last key of the page before.")
@url_option
@admin_key_option
def list_keys(limit: int, after: str | None, url: str, key: str | None) -> None:
    """List the keys, the newest first."""
    path = f"/admin/keys?limit={limit}" + (f"&after={quote(after, safe='')}" if after else "")
    page = asked(lambda client: client.call("GET", path), url, key)
    table = Table(
        Column("id", min_width=11), "name", "status", "may use", "limits", "budgets", "owner", "expires", box=None
    )
    table.header_style = "bold"
    for shown in page["data"]:
        cells = (
            *(shown["id"], shown["name"], shown["status"] + (", admin" if shown["admin"] else "")),
            *(_scope(shown), _limits_shown(shown), _budgets_shown(shown), _owner(shown), _date(shown["expires_at"])),
        )
        table.add_row(*map(Text, cells))
    console().print(table)
    if page["has_more"]:
        click.echo(f"There are more: deltaway keys list --limit {limit} --after {page['last_id']}", err=True)


@keys.command()
@click.argument("key_id")
@url_option
@admin_key_option
def show(key_id: str, url: str, key: str | None) -> None:
    """Show one key, by its id."""
    _print_key(asked(lambda client: client.call("GET", _path(key_id)), url, key))


@keys.command()
@click.argument("key_id")
@click.option("--name", help="Its new name.")
@_said
@click.option(
    "--clear", multiple=True, type=click.Choice(sorted(CLEARED)), help="What it shall have none of. Repeatable."
)
@url_option
@admin_key_option
def update(key_id: str, name: str | None, clear: tuple[str, ...], url: str, key: str | None, **said: Any) -> None:
    """Change a key; what is not named stays as it is."""
    body = {_FIELDS.get(word, word): CLEARED[word] for word in clear}
    body |= _body(said) | ({"name": name} if name is not None else {})
    limits = _limits(said)
    if not body and not limits:
        raise click.UsageError("nothing is to be changed: name a field, or --clear one")
    if limits:
        before = (
            {} if "limits" in clear else asked(lambda client: client.call("GET", _path(key_id)), url, key)["limits"]
        )
        body["limits"] = {**before, **limits}
    _print_key(asked(lambda client: client.call("POST", _path(key_id), body), url, key))


@keys.command()
@click.argument("key_id")
@click.option("--overlap", default="24h", show_default=True, help="How long the old one still works; 0s: not at all.")
@url_option
@admin_key_option
def rotate(key_id: str, overlap: str, url: str, key: str | None) -> None:
    """Give a key a new secret, and print it: it cannot be read again."""
    path, body = f"{_path(key_id)}/rotate", {"overlap": overlap}
    _print_issued(asked(lambda client: client.call("POST", path, body), url, key), "rotated")


@keys.command()
@click.argument("key_id")
@url_option
@admin_key_option
def revoke(key_id: str, url: str, key: str | None) -> None:
    """End a key, for ever and within a second."""
    shown = asked(lambda client: client.call("DELETE", _path(key_id)), url, key)
    click.echo(f"{shown['id']} ({shown['name']}) is revoked")


# -- what is asked -----------------------------------------------------------------------------------------------------


def _path(key_id: str) -> str:
    if is_public_id(key_id):
        return f"/admin/keys/{key_id}"
    if is_public_id(key_id[:11]):
        # the key itself would end up in the logs of what lies between
        raise click.UsageError(f"give the id alone: {key_id[:11]}")
    raise click.UsageError(f"`{key_id}` is no key's id: `deltaway keys list` shows them")


def _body(said: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {name: said[name] for name in ("user", "team", "on_disconnect") if said[name] is not None}
    body |= {name: list(said[name]) for name in ("models", "routes") if said[name]}
    if said["tags"]:
        body["tags"] = dict(_tag(text) for text in said["tags"])
    if said["budgets"]:
        body["budgets"] = [_budget(text) for text in said["budgets"]]
    if said["expires"] is not None:
        expires: str = said["expires"]
        if re.fullmatch(r"[0-9]+ ?[a-z]+", expires):
            body["expires_in"] = expires
        else:
            # eight digits are a date, 20301231
            body["expires_at"] = int(expires) if re.fullmatch(r"[0-9]{9,11}", expires) else expires
    return body


def _limits(said: dict[str, Any]) -> dict[str, int]:
    return {name: said[name] for name in ("rpm", "tpm", "parallel") if said[name] is not None}


def _tag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"`{text}` is no tag: write name=value")
    return name, value


def _budget(text: str) -> dict[str, str]:
    amount, slash, per = text.partition("/")
    return {"amount": amount.strip(), **({"per": per.strip()} if slash else {})}


# -- what is printed ---------------------------------------------------------------------------------------------------


def _print_issued(shown: dict[str, Any], done: str) -> None:
    # the key alone goes to standard output, so that a script can take it from there
    click.echo(f"{shown['id']} ({shown['name']}) is {done}. This is the key; it is shown this once:", err=True)
    click.echo(shown["key"])
    if shown["previous_until"] is not None:
        click.echo(f"The one before works until {_date(shown['previous_until'])}", err=True)
    _warn(shown)


def _print_key(shown: dict[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    rows = {
        "id": shown["id"],
        "name": shown["name"],
        "status": shown["status"] + (", admin" if shown["admin"] else ""),
        "may use": _scope(shown),
        "tags": ", ".join(f"{name}={value}" for name, value in shown["tags"].items()),
        "owner": _owner(shown),
        "limits": _limits_shown(shown),
        "budgets": _budgets_shown(shown),
        # a gateway of the version before says nothing of it
        "on disconnect": shown.get("on_disconnect"),
        "created": _date(shown["created_at"]),
        "expires": _date(shown["expires_at"]),
        "rotated": _date(shown["rotated_at"]),
        "old one until": _date(shown["previous_until"]),
        "revoked": _date(shown["revoked_at"]),
    }
    for name, value in rows.items():
        if value:
            table.add_row(Text(name, style="bold"), Text(value))
    console().print(table)
    _warn(shown)


def _warn(shown: dict[str, Any]) -> None:
    # a gateway of the version before says nothing of it
    for warning in shown.get("warnings", ()):
        click.echo(f"warning: {warning}", err=True)


def _scope(shown: dict[str, Any]) -> str:
    return ", ".join([*shown["models"], *(f"{route} (route)" for route in shown["routes"])]) or "everything"


def _limits_shown(shown: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in shown["limits"].items() if value is not None)


def _budgets_shown(shown: dict[str, Any]) -> str:
    return ", ".join(f"{budget['amount']}/{budget['per']}" for budget in shown["budgets"])


def _owner(shown: dict[str, Any]) -> str:
    owners = (("user", shown["user"]), ("team", shown["team"]))
    return ", ".join(f"{kind} {name}" for kind, name in owners if name is not None)


def _date(seconds: int | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}Z"
