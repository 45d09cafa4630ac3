"""`deltaway reconcile`: a vendor's bill beside the ledger of a running gateway."""

import json
import sys
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from router.commands.gateway import asked, console, key_option, url_option
from router.commands.words import count, number, path, plain

if TYPE_CHECKING:
    from router.bill import Bill, Entry
    from router.bill import Mapping as Columns
    from router.client import Client
    from router.reconcile import Difference, Reconciliation

_LARGEST: Final = 256 * 1024 * 1024
"""Bytes of a bill."""


def _decimal(ctx: click.Context, param: click.Parameter, value: str) -> Decimal:
    try:
        number = Decimal(value)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite() or not 0 <= number <= 10**6:
        raise click.BadParameter(f"`{value}` must be a number of zero or more", ctx, param)
    return number


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--provider", metavar="NAME", help="Whose bill it is, by its name in `providers`.")
@click.option("--mapping", type=click.Path(dir_okay=False, path_type=Path), help="A YAML file that names its columns.")
@click.option("--tolerance", callback=_decimal, default="0", show_default=True, help="Percent that figures may differ.")
@click.option(
    "--rounding",
    callback=_decimal,
    default="0.01",
    show_default=True,
    help="Amount that costs may differ all the same.",
)
@click.option("--timezone", "zone", metavar="±HH:00", help="Whose days they are; else the format's own.")
@click.option("--encoding", help="Of the file, such as gbk; else it is found out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@url_option
@key_option
def reconcile(
    file: Path, provider: str | None, mapping: Path | None, tolerance: Decimal, rounding: Decimal, zone: str | None,
    encoding: str | None, as_json: bool, url: str, key: str | None,
) -> None:  # fmt: skip
    """Compare a bill or usage export, FILE.csv, with what the gateway has recorded, by day and model.

    Known are OpenAI's activity and cost exports and Alibaba Cloud's bill details; others with --mapping. Ends with 1
    if anything differs.
    """
    from router.bill import BillError, hours_of, read
    from router.reconcile import bucket_of, compare, providers_in, recorded, spans

    told = _mapping(mapping, encoding)
    try:
        hours = None if zone is None else hours_of(zone)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--timezone") from None
    try:
        bill = read(_bytes(file), told, hours=hours)
    except BillError as error:
        raise click.ClickException(f"{file}: {error}") from None
    if not bill.entries:
        raise click.ClickException(f"{file}: no line of it says anything")

    def sums(client: "Client") -> list[dict[str, Any]]:
        return [
            row
            for since, until in spans(bill)
            for row in client.call(
                "GET", path("/v1/usage", by="target,provider", bucket=bucket_of(bill), from_=since, to=until)
            )["data"]
        ]

    rows = asked(sums, url, key)
    name = provider or _only(providers_in(rows))
    if provider is not None and provider not in (others := providers_in(rows)):
        _must_be_known(provider, others, url, key)
        known = ", ".join(others) or "none"
        click.echo(f"the ledger has nothing of `{plain(provider)}` in this time (of others: {plain(known)})", err=True)
    ledger = recorded(rows, bill, name) if name is not None else {}
    result = compare(bill, ledger, percent=tolerance, amount=rounding)
    if as_json:
        click.echo(json.dumps(_as_json(result, bill, name), indent=2, ensure_ascii=False))
    else:
        _print_result(result, bill, name, tolerance, rounding)
    if not result.agrees:
        sys.exit(1)


def _only(providers: list[str]) -> str | None:
    if len(providers) > 1:
        raise click.UsageError(
            f"say whose bill it is with --provider: the ledger has {plain(', '.join(providers))} in this time"
        )
    return providers[0] if providers else None


def _must_be_known(provider: str, others: list[str], url: str, key: str | None) -> None:
    """A provider of which there is nothing in this time: without it every line of the bill would be missing."""
    from router.nearest import did_you_mean

    owners = {str(model["owned_by"]) for model in asked(lambda client: client.models(), url, key)}
    known = sorted({*owners, *others} - {"deltaway"})
    if provider in known:
        return
    ever = path("/v1/usage", by="provider", provider=provider, from_="1970-01-01")
    if not asked(lambda client: client.call("GET", ever), url, key)["data"]:
        raise click.UsageError(
            f"`{plain(provider)}` is no provider of the gateway{plain(did_you_mean(provider, known))} "
            f"(known: {plain(', '.join(known)) or 'none'})"
        )


def _bytes(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(_LARGEST + 1)
    except OSError as error:
        raise click.ClickException(f"{file}: cannot be read: {error.strerror or error}") from None
    if len(data) > _LARGEST:
        raise click.ClickException(f"{file}: is larger than 256 MiB: split it by months")
    return data


def _mapping(file: Path | None, encoding: str | None) -> "Columns":
    """What the file says, with --encoding over it."""
    import msgspec

    from router.bill import Mapping as Columns
    from router.config import ConfigError, Document
    from router.document import compose, decode

    told = Columns()
    if file is not None:
        try:
            root, problems = compose(decode(_bytes(file), str(file)), str(file), {})
            if problems:
                raise ConfigError(tuple(problems))
            told = Document(str(file), root).convert((), Columns)
        except ConfigError as error:
            raise click.ClickException("\n".join(map(str, error.problems))) from None
    return told if encoding is None else msgspec.structs.replace(told, encoding=encoding)


# -- what came of it -------------------------------------------------------------------------------------------------


def _print_result(
    result: "Reconciliation", bill: "Bill", provider: str | None, tolerance: Decimal, rounding: Decimal
) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    days = "months" if bill.monthly else "days"
    zone = f"UTC{bill.hours:+d}" if bill.hours else "UTC"
    compared = ", ".join([*bill.measures, *(["cost"] if bill.costs else [])])
    out.print(Text(f"{bill.format}, {days} of {zone}, {provider or 'no provider'}: compares {compared}", "dim"))
    for side, words in (("ledger", "in the bill, not in the ledger"), ("bill", "in the ledger, not in the bill")):
        missing = [one for one in result.missing if one.missing_in == side]
        if missing:
            table = Table("day", "model", words, box=None, header_style="bold")
            for one in missing:
                table.add_row(Text(one.period), Text(plain(one.model)), Text(_entry(one.entry, bill)))
            out.print(table)
    if result.differences:
        table = Table("day", "model", "what", box=None, header_style="bold")
        for heading in ("bill", "ledger", "difference", "%"):
            table.add_column(heading, justify="right")
        for found in result.differences:
            percent = "" if found.percent is None else f"{found.percent:+.2f}"
            figures = [_figure(found, value) for value in (found.bill, found.ledger, found.difference)]
            table.add_row(*map(Text, [found.period, plain(found.model), found.measure, *figures, percent]))
        out.print(table)
    for (period, model), attempts in result.unpriced.items():
        click.echo(
            f"{period} {plain(model)}: {count(attempts, 'attempt')} without a known price in the ledger", err=True
        )
    if result.agrees:
        within = f" within {tolerance} %" if tolerance else ""
        cost = f", costs within {rounding}" if bill.costs and rounding else ""
        click.echo(f"all {number(result.compared)} {days} and models agree{within}{cost}")
    else:
        counts = f"{number(len(result.missing))} missing, {number(len(result.differences))} different"
        click.echo(f"{counts}; {number(result.compared)} {days} and models are in both", err=True)


def _entry(entry: "Entry", bill: "Bill") -> str:
    from router.money import short_decimal

    counts = [f"{number(entry.counts[name])} {name}" for name in bill.measures if entry.counts.get(name)]
    costs = [f"{short_decimal(nano)} {currency}" for currency, nano in entry.costs.items() if nano]
    return ", ".join([*counts, *costs])


def _figure(found: "Difference", value: int) -> str:
    from router.money import short_decimal

    return number(value) if found.currency is None else f"{short_decimal(value)} {found.currency}"


def _as_json(result: "Reconciliation", bill: "Bill", provider: str | None) -> Mapping[str, Any]:
    from router.money import decimal_of

    def value(found: "Difference", number: int) -> int | str:
        return number if found.currency is None else decimal_of(number)

    return {
        "format": bill.format,
        "provider": provider,
        "agrees": result.agrees,
        "compared": result.compared,
        "missing": [
            {
                "missing_in": one.missing_in,
                "period": one.period,
                "model": one.model,
                "counts": one.entry.counts,
                "costs": {currency: decimal_of(nano) for currency, nano in one.entry.costs.items()},
            }
            for one in result.missing
        ],
        "differences": [
            {
                "period": found.period,
                "model": found.model,
                "measure": found.measure,
                "currency": found.currency,
                "bill": value(found, found.bill),
                "ledger": value(found, found.ledger),
                "difference": value(found, found.difference),
                "percent": found.percent,
            }
            for found in result.differences
        ],
        "unpriced": [
            {"period": period, "model": model, "attempts": attempts}
            for (period, model), attempts in result.unpriced.items()
        ],
    }
