"""`deltaway usage`: sums of the ledger, from a running gateway."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import rich_click as click

from router.commands.filters import filter_options
from router.commands.gateway import asked, console, key_option, url_option
from router.commands.words import INPUT, OUTPUT, amount, amounts, count, number, path, plain


@click.command()
@click.option("--by", help="What to sum by, with commas: model, target, provider, key, user, team, tag:NAME, …")
@click.option("--bucket", type=click.Choice(["hour", "day", "month"]), help="Sums for each.")
@filter_options
@click.option("--rerate", is_flag=True, help="Price every attempt anew with today's prices, beside what was charged.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--json", "as_json", is_flag=True, help="Print what the gateway answers.")
@click.option("--focus", "as_focus", is_flag=True, help="Print CSV in the FOCUS format of the FinOps Foundation.")
@url_option
@key_option
def usage(
    by: str | None, bucket: str | None, rerate: bool, as_csv: bool, as_json: bool, as_focus: bool, url: str,
    key: str | None, **filters: Any,
) -> None:  # fmt: skip
    """Sum up requests, tokens and costs, of the last thirty days unless --from says otherwise."""
    if as_csv + as_json + as_focus > 1:
        raise click.UsageError("--csv, --json and --focus are three answers: choose one")
    grouped: dict[str, Any] = {"by": by, "bucket": bucket, "rerate": rerate}
    if as_csv:
        asking = path("/v1/usage", **grouped, **filters, format="csv")
        click.echo(asked(lambda client: client.text(asking), url, key), nl=False)
        return
    if as_focus:
        if by or bucket or rerate:
            raise click.UsageError("FOCUS has its own grouping: leave --by, --bucket and --rerate out")
        asking = path("/v1/usage", **filters, format="focus")
        click.echo(asked(lambda client: client.text(asking), url, key), nl=False)
        report = asked(lambda client: client.call("GET", path("/v1/usage", **filters)), url, key)
        if unpriced := report["total"]["cost"]["unpriced"]:
            click.echo(f"{count(unpriced, 'attempt')} without a known price: in no line", err=True)
        return
    report = asked(lambda client: client.call("GET", path("/v1/usage", **grouped, **filters)), url, key)
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    _print_report(report)


def _print_report(report: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    out.print(Text(f"{report['from']} to {report['to'] or 'now'}, {report['currency']} at each day's rate", "dim"))
    named = [*(["start"] if report["bucket"] else []), *map(plain, report["by"])]
    rerated = report["total"]["rerated"] is not None
    table = Table(*named, box=None, header_style="bold")
    counted = report["total"]["requests"] is not None
    headings = [*(["requests"] if counted else []), "attempts", "in", "out", "cost", f"in {report['currency']}"]
    for heading in [*headings, *(["today"] if rerated else [])]:
        table.add_column(heading, justify="right")
    for sums in report["data"]:
        group = [plain("-" if value is None else value) for value in sums["group"].values()]
        started = [_start(sums["start"], report["bucket"])] if report["bucket"] else []
        table.add_row(*map(Text, [*started, *group, *_figures(sums, counted, rerated)]))
    if named or not report["data"]:
        table.add_section()
        labels = ["all", *[""] * (len(named) - 1)] if named else []
        table.add_row(*(Text(word, "bold") for word in [*labels, *_figures(report["total"], counted, rerated)]))
    out.print(table)
    for note in _notes(report):
        click.echo(note, err=True)


def _figures(sums: Mapping[str, Any], counted: bool, rerated: bool) -> list[str]:
    tokens, cost = sums["tokens"], sums["cost"]
    return [
        *([number(sums["requests"])] if counted else []),
        number(sums["attempts"]),
        number(sum(tokens[name] for name in INPUT)),
        number(sum(tokens[name] for name in OUTPUT)),
        amounts(cost["amounts"], unpriced=bool(cost["unpriced"])),
        _converted(cost),
        *([_converted(sums["rerated"])] if rerated else []),
    ]


def _converted(spent: Mapping[str, Any] | None) -> str:
    return amount(spent["converted"]).partition(" ")[0] if spent and spent["converted"] else ""


def _start(instant: str, bucket: str) -> str:
    return {"hour": f"{instant[:10]} {instant[11:16]}", "day": instant[:10], "month": instant[:7]}[bucket]


def _notes(report: Mapping[str, Any]) -> Iterator[str]:
    """What the sums alone would hide."""
    total = report["total"]
    cost, estimated, audit = total["cost"], total["estimated"], total["audit"]
    if cost["unpriced"]:
        yield f"{count(cost['unpriced'], 'attempt')} used tokens at a price that is not known: in no cost"
    if cost["unconverted"]:
        left = " + ".join(amount(part) for part in cost["unconverted"])
        yield f"not in the sum in {report['currency']}, for no rate is known: {left}"
    if estimated["attempts"]:
        tokens = f"{number(estimated['input'])} in, {number(estimated['output'])} out"
        yield f"{count(estimated['attempts'], 'attempt')} estimated, for nobody reported the tokens: {tokens}"
    if total["flagged"]:
        yield f"{count(total['flagged'], 'attempt')} reported with figures that do not add up"
    if audit:
        said = [
            f"{side} {100 * audit[f'{side}_drift']:+.2f} %"
            for side in ("input", "output")
            if audit[f"{side}_drift"] is not None
        ]
        yield f"{count(audit['attempts'], 'attempt')} counted anew; reported beside counted: {', '.join(said)}"
    if total["rerated"] and total["rerated"]["unpriced"]:
        yield f"{count(total['rerated']['unpriced'], 'attempt')} without a price today"
    for gap in report["gaps"]:
        calls = count(gap["calls"], "call") if "calls" in gap else "calls"
        yield f"from {gap['began']} to {gap['ended']}: {calls} that could not be recorded one by one"
