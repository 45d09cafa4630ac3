"""`deltaway feedback`: say how good an answer was, as a metric of an experiment."""

import json
from typing import Any

import rich_click as click

from router.commands.gateway import asked, key_option, url_option
from router.commands.words import plain


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("request_id")
@click.argument("metric")
@click.argument("value")
@click.option("--comment", help="Words, to go with it.")
@click.option("--json", "as_json", is_flag=True, help="Print what the gateway answers.")
@url_option
@key_option
def feedback(
    request_id: str, metric: str, value: str, comment: str | None, as_json: bool, url: str, key: str | None
) -> None:
    """Say how good the answer to a request was: VALUE is true or false, or a number, as METRIC is defined."""
    said: dict[str, Any] = {"request_id": request_id, "metric": metric, "value": _read(value)}
    if comment is not None:
        said["comment"] = comment
    given = asked(lambda client: client.call("POST", "/v1/feedback", said), url, key)
    if as_json:
        click.echo(json.dumps(given, indent=2, ensure_ascii=False))
        return
    became = "kept" if given["created"] else "kept in place of the last" if given["replaced"] else "was kept already"
    click.echo(plain(f"{given['metric']}={json.dumps(given['value'])} on {given['request_id']}: {became}"))


def _read(value: str) -> object:
    """What is neither goes as text: the gateway says what it should be."""
    try:
        return json.loads(value, parse_constant=str)
    except ValueError:
        return value
