"""`deltaway requests`: receipts of calls, from a running gateway."""

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import rich_click as click

from router.commands.filters import filter_options
from router.commands.gateway import asked, console, key_option, url_option
from router.commands.words import INPUT, OUTPUT, amounts, milliseconds, number, path, plain, time, tokens, total


@click.command()
@click.argument("request_id", required=False, metavar="[ID]")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 100), help="How many.")
@click.option("--after", metavar="ID", help="Go on behind this one.")
@filter_options
@click.option("--json", "as_json", is_flag=True, help="Print what the gateway answers.")
@url_option
@key_option
def requests(
    request_id: str | None, limit: int, after: str | None, as_json: bool, url: str, key: str | None, **filters: Any
) -> None:
    """List calls, the newest first; with an ID, all that is known of one."""
    if request_id is not None:
        if any(filters.values()) or after:
            raise click.UsageError("with an ID there is nothing to filter: leave the options out")
        receipt = asked(lambda client: client.call("GET", f"/v1/requests/{quote(request_id, safe='')}"), url, key)
        if as_json:
            click.echo(json.dumps(receipt, indent=2, ensure_ascii=False))
            return
        for line in _receipt(receipt):
            click.echo(line)
        return
    asking = path("/v1/requests", limit=limit, after=after, **filters)
    page = asked(lambda client: client.call("GET", asking), url, key)
    if as_json:
        click.echo(json.dumps(page, indent=2, ensure_ascii=False))
        return
    _print_page(page)


def _print_page(page: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    # an id that is cut off is of no use
    table.add_column("id", no_wrap=True, min_width=30)
    table.add_column("time (UTC)", no_wrap=True, min_width=19)
    table.add_column("outcome", no_wrap=True, min_width=7)
    for heading in ("model", "target", "key"):
        table.add_column(heading, overflow="fold")
    for heading in ("in", "out", "cost", "took"):
        table.add_column(heading, justify="right", no_wrap=heading != "cost")
    for call in page["data"]:
        words = [
            call["id"],
            time(call["created_at"]),
            call["outcome"] or "running",
            call["model"],
            call["target"] or "",
            call["key"] or "",
            number(total(call["usage"], INPUT)) if call["usage"] else "",
            number(total(call["usage"], OUTPUT)) if call["usage"] else "",
            amounts(call["cost"], unpriced=call["unpriced"]),
            milliseconds(call["timing"]["duration_ms"]),
        ]
        table.add_row(*(Text(plain(word)) for word in words))
    console().print(table)
    if page["has_more"]:
        click.echo(f"There are more: add --after {page['last_id']}", err=True)


def _receipt(receipt: Mapping[str, Any]) -> Iterator[str]:
    """A receipt in words, line by line."""
    for name, value in _head(receipt):
        yield f"{click.style(name.ljust(11), bold=True)} {value}"
    for attempt in receipt["attempts"]:
        yield ""
        yield click.style(f"attempt {attempt['n']} at {plain(attempt['target'])}", bold=True)
        for name, value in _attempt(attempt):
            yield f"  {name.ljust(9)} {value}"


def _head(receipt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    timing, decision = receipt["timing"], receipt["decision"]
    yield "request", plain(receipt["id"])
    yield "made", f"{time(receipt['created_at'])} UTC, {plain(receipt['dialect'])}{', streamed' * receipt['stream']}"
    yield "outcome", receipt["outcome"] or "running"
    if receipt["error"]:
        yield "error", _error(receipt["error"])
    yield "asked for", plain(receipt["model"])
    if "why" in decision:
        candidates = ", ".join(map(plain, decision.get("candidates", ())))
        yield "routed", f"{plain(decision['why'])}{': ' if candidates else ''}{candidates}"
    for left_out in decision.get("skipped", ()):
        yield "left out", plain(f"{left_out['target']}: {left_out['why']}")
    if "generation" in decision:
        yield "configured", plain(decision["generation"])
    for name in ("key", "user", "team"):
        if receipt[name]:
            yield name, plain(receipt[name])
    if receipt["tags"]:
        yield "tags", plain(", ".join(f"{name}={value}" for name, value in receipt["tags"].items()))
    if receipt["experiment"]:
        yield "experiment", plain(_experiment(receipt["experiment"]))
    if receipt.get("shadows"):
        yield "repeated", plain(", ".join(receipt["shadows"]))
    for metric, value in receipt.get("feedback", {}).items():
        yield "feedback", plain(f"{metric}={json.dumps(value)}")
    said = _timing(
        timing,
        queue_ms="queue",
        first_token_ms="first token",
        duration_ms="in all",
        overhead_ms="our part",
        longest_gap_ms="longest gap",
    )
    if said:
        yield "time", said
    if timing["plugins"]:
        yield "plugins", ", ".join(f"{plain(name)} {milliseconds(spent)}" for name, spent in timing["plugins"].items())
    if receipt["usage"]:
        yield "tokens", tokens(receipt["usage"])
    if receipt["cost"] or receipt["unpriced"]:
        yield "cost", amounts(receipt["cost"], unpriced=receipt["unpriced"])


def _experiment(experiment: Mapping[str, Any]) -> str:
    words = f"{experiment['name']}={experiment['arm']}"
    if experiment.get("unit"):
        words += f", by {experiment['unit']}"
    if experiment.get("forced"):
        words += ", forced"
    return f"{words}, repeats {experiment['shadow_of']}" if experiment.get("shadow_of") else words


def _attempt(attempt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if attempt.get("role"):
        words = f"{attempt['role']}: {attempt['why']}" if attempt["why"] else attempt["role"]
        seam = "" if attempt["seam"] is None else f", after {number(attempt['seam'])} characters"
        yield "made", plain(words + seam)
    if attempt.get("key"):
        yield "key", plain(attempt["key"])
    yield "outcome", attempt["outcome"] or "running"
    if attempt["error"]:
        yield "error", _error(attempt["error"])
    said = _timing(attempt["timing"], first_token_ms="first token", duration_ms="in all", longest_gap_ms="longest gap")
    if said:
        yield "time", said
    if attempt["vendor_request_id"]:
        yield "vendor", plain(attempt["vendor_request_id"])
    mode = [plain(attempt["service_tier"] or "")] + (["thinking"] if attempt["thinking"] else [])
    if any(mode):
        yield "mode", ", ".join(filter(None, mode))
    if attempt["usage"]:
        yield "tokens", tokens(attempt["usage"])
    if attempt["audit"]:
        yield (
            "counted",
            f"{number(attempt['audit']['input'])} in, {number(attempt['audit']['output'])} out by our tokenizer",
        )
    if attempt["cost"]:
        yield "cost", f"{amounts(attempt['cost'])} at {plain(attempt['cost']['price'])}"
    elif attempt["unpriced"]:
        yield "cost", "no price is known"


def _timing(timing: Mapping[str, Any], **names: str) -> str:
    return ", ".join(
        f"{words} {milliseconds(timing[name])}" for name, words in names.items() if timing[name] is not None
    )


def _error(error: Mapping[str, Any]) -> str:
    return plain(f"{error.get('message', '')} ({error.get('code', '')}, HTTP {error.get('status', '')})")
