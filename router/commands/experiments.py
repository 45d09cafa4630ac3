"""`deltaway experiments`: which there are, and what may be said of one today."""

import json
from collections.abc import Mapping
from typing import Any

import rich_click as click

from router.commands.gateway import asked, console, key_option, url_option
from router.commands.words import number, path, plain


@click.command()
@click.argument("name", required=False)
@click.option("--from", "from_", help="Calls made from then on.")
@click.option("--to", help="Calls made before then.")
@click.option("--json", "as_json", is_flag=True, help="Print what the gateway answers.")
@url_option
@key_option
def experiments(name: str | None, from_: str | None, to: str | None, as_json: bool, url: str, key: str | None) -> None:
    """List the experiments, or report on the one called NAME."""
    asking = "/v1/experiments" if name is None else path(f"/v1/experiments/{name}", from_=from_, to=to)
    found = asked(lambda client: client.call("GET", asking), url, key)
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif name is None:
        _print_list(found)
    else:
        _print_report(found)


def _print_list(found: Mapping[str, Any]) -> None:
    from rich.table import Table

    if not found["data"]:
        click.echo("no experiment is defined: write one under `experiments` in the configuration")
        return
    table = Table("experiment", "route", "unit", "arms", "shadow", box=None, header_style="bold")
    for each in found["data"]:
        arms = ", ".join(
            f"{arm['name']} {arm['share']:g} %{' (stopped)' if arm['name'] in each['stopped'] else ''}"
            for arm in each["arms"]
        )
        table.add_row(*map(plain, (each["id"], each["route"], each["unit"], arms, each["shadow"] or "")))
    console().print(table)


def _print_report(found: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    out.print(Text(plain(f"{found['name']} on {found['route']}, by {found['unit']}: {found['standing']}"), "bold"))
    ratio = found["sample_ratio"]
    if ratio is not None and ratio["alarm"]:
        out.print(Text("Units do not reach the arms in the planned shares.", "bold red"))
    table = Table("arm", "share", "calls", "units", box=None, header_style="bold")
    for arm in found["arms"]:
        share = "" if arm["share"] is None else f"{arm['share']:g} %"
        table.add_row(plain(arm["name"]), share, number(arm["exposures"]), number(arm["units"]))
    out.print(table)
    for metric in found["arms"][0]["metrics"]:
        rows = Table(plain(metric), "value", "against control", "", box=None, header_style="bold")
        for arm in found["arms"]:
            one = arm["metrics"][metric]
            rows.add_row(plain(arm["name"]), _value(one), _against(one), (one["verdict"] or "").replace("_", " "))
        out.print(rows)
    if (shadow := found["shadow"]) is not None:
        out.print(Text(plain(f"shadow {shadow['target']}, {number(shadow['pairs'])} pairs"), "bold"))
        out.print(plain(f"  ended alike {number(shadow['same_outcome'])}, failed {number(shadow['shadow_errors'])}"))
        for name, pairs in shadow["differences"].items():
            if pairs["mean"] is not None:
                out.print(plain(f"  {name} {pairs['mean']:+.4g} a call{_between(pairs['interval'], 1, '')}"))
    for sentence in found["sentences"]:
        out.print(plain(sentence))


def _value(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return ""
    if one["unit"] == "share":
        return f"{one['value'] * 100:.4g} %"
    return f"{one['value']:.4g} {one['unit']}".rstrip()


def _against(one: Mapping[str, Any]) -> str:
    if one["relative"] is not None and one["unit"] != "share":
        return f"{one['relative'] * 100:+.3g} %{_between(one['relative_interval'], 100, ' %')}"
    if one["difference"] is None:
        return ""
    scale, unit = (100, " points") if one["unit"] == "share" else (1, f" {one['unit']}".rstrip())
    return f"{one['difference'] * scale:+.3g}{unit}{_between(one['interval'], scale, unit)}"


def _between(interval: list[float] | None, scale: float, unit: str) -> str:
    if interval is None:
        return ""
    return f" (between {interval[0] * scale:+.3g}{unit} and {interval[1] * scale:+.3g}{unit})"
