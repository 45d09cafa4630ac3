"""Vendors' bills as they come: every format, encoding and way to write a number; and where a wrong one is wrong."""

from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.bill import BillError, Columns, Entry, Mapping, hours_of, read

BILLS = Path(__file__).parent / "bills"
"""Exports with the columns that the vendors' own have, and rows made up for them."""


def export(name: str) -> str:
    return (BILLS / name).read_text("utf-8")


def only(bill: Any) -> Entry:
    ((_, entry),) = bill.entries.items()
    return entry


def test_openais_activity_export() -> None:
    bill = read(export("openai-activity.csv").encode())
    assert (bill.format, bill.hours, bill.monthly, bill.by_model, bill.costs) == ("openai-usage", 0, False, True, False)
    assert bill.measures == ("requests", "prompt", "cache_read", "input_audio", "output", "output_audio")
    assert bill.entries == {
        ("2026-09-28", "gpt-5-mini-2025-08-07"): Entry(
            {"requests": 4, "prompt": 7200, "cache_read": 1280, "input_audio": 12, "output": 1000, "output_audio": 4}
        )
    }


def test_openais_activity_export_without_models_is_of_days() -> None:
    bill = read(b"start_time,end_time,input_tokens,output_tokens\n1790553600,1790640000,10,5\n")
    assert not bill.by_model
    assert bill.entries == {("2026-09-28", ""): Entry({"prompt": 10, "output": 5})}


def test_openais_cost_export() -> None:
    bill = read(export("openai-costs.csv").encode())
    assert (bill.format, bill.costs, bill.by_model) == ("openai-costs", True, True)
    assert bill.entries == {
        ("2026-09-28", "gpt-5-mini-2025-08-07"): Entry(
            {"input": 5920, "cache_read": 1280, "output": 1000}, {"USD": 3_512_000}
        ),
        ("2026-09-28", "gpt-audio-mini-2025-12-15"): Entry({"input_audio": 12}, {"USD": 50_000_000}),
        ("2026-09-28", "web search tool calls"): Entry({}, {"USD": 250_000_000}),
    }


def test_openais_cost_export_that_is_not_grouped_has_costs_of_days() -> None:
    lines = export("openai-costs.csv").splitlines()
    row = "1790553600,1790640000,2026-09-28T00:00:00,2026-09-29T00:00:00,0.00383598,usd,,,,,,,org-x,,X,a@example.com,"
    bill = read(f"{lines[0]}\n{row}\n".encode())
    assert not bill.by_model
    assert bill.measures == ()
    assert only(bill) == Entry({}, {"USD": 3_835_980})


def test_alibabas_new_bill_details() -> None:
    bill = read(export("alibaba-new.csv").encode("utf-8-sig"))
    assert (bill.format, bill.hours, bill.costs) == ("alibaba", 8, True)
    assert bill.entries == {
        ("2026-09-29", "qwen-plus"): Entry(
            {"input": 1234, "cache_read": 256, "output": 2500}, {"CNY": 987_200 + 40_960 + 4_000_000}
        ),
        ("2026-09-30", "ZHIPU/GLM-5.3"): Entry({"output": 3000}, {"CNY": 30_000_000}),
        ("2026-09-30", "wan2.2-t2i"): Entry({}, {"CNY": 800_000_000}),
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk", "gb18030", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_alibabas_older_bill_details_in_every_encoding(encoding: str, delimiter: str) -> None:
    import csv
    import io

    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(csv.reader(io.StringIO(export("alibaba-old.csv"))))
    bill = read(text.getvalue().encode(encoding))
    assert bill.entries == {("2026-09-29", "qwen-max"): Entry({"output": 1500}, {"CNY": 28_500_000})}


def test_alibabas_english_bill_details() -> None:
    bill = read(export("alibaba-english.csv").encode())
    assert bill.entries == {("2026-09-29", "qwen-max"): Entry({"output": 1500}, {"USD": 9_600_000})}


def test_a_bill_of_months_is_one_of_months() -> None:
    bill = read(export("alibaba-months.csv").encode("gbk"))
    assert bill.monthly
    assert bill.entries == {("2026-09", "qwen-max"): Entry({"input": 10_000}, {"CNY": 24_000_000})}


def test_days_are_those_of_the_bills_own_zone() -> None:
    row = "2026-09-28T20:00:00Z,m,1,2\n"
    told = Mapping(columns=Columns(date="when", model="m", prompt="i", output="o"))
    data = b"when,m,i,o\n" + row.encode()
    assert list(read(data, told).entries) == [("2026-09-28", "m")]
    assert list(read(data, told, hours=8).entries) == [("2026-09-29", "m")]
    zoned = Mapping(columns=told.columns, timezone="+08:00")
    assert list(read(data, zoned).entries) == [("2026-09-29", "m")]
    # what has no zone is in the bill's
    assert list(read(data.replace(b"Z", b""), zoned).entries) == [("2026-09-28", "m")]


def test_any_table_by_a_mapping() -> None:
    text = (
        "Report of October\n\nDay;Modell;Anfragen;Eingabe;Ausgabe;Kosten\n"
        "01.10.2026;gros;3;1.234,5;0,002;€ 1.234,50\nSumme;;;;;1.234,50\n"
    )
    told = Mapping(
        columns=Columns(
            date="day", model="Modell", requests="Anfragen", prompt="Eingabe", output="Ausgabe", cost="Kosten"
        ),
        currency="EUR",
        date_format="%d.%m.%Y",
        unit=1000,
        models={"gros": "gros/modele"},
    )
    with pytest.raises(BillError, match=r"line 5: .*`Summe` is no date as `%d.%m.%Y`"):
        read(
            text.encode("cp1252"),
            Mapping(**{n: getattr(told, n) for n in told.__struct_fields__} | {"encoding": "cp1252"}),
        )
    text = text.replace("Summe;", ";Total")
    bill = read(text.encode("utf-8"), told)
    assert bill.entries == {
        ("2026-10-01", "gros/modele"): Entry(
            {"requests": 3, "prompt": 1_234_500, "output": 2}, {"EUR": 1_234_500_000_000}
        )
    }
    assert bill.measures == ("requests", "prompt", "output")


def test_a_mapping_may_tell_one_column_of_a_known_bill_otherwise() -> None:
    told = Mapping(format="alibaba", columns=Columns(cost="目录总价"))
    assert only(read(export("alibaba-old.csv").encode(), told)).costs == {"CNY": 30_000_000}


NUMBERS = {
    "1234": "1234", "1,234": "1234", "1,234,567": "1234567", "1'234": "1234", "1 234": "1234", "1\u202f234": "1234",
    "-5": "-5", "\u22125": "-5", "+5": "5", "5.": "5", "1e3": "1000", "1.5E+3": "1500", "$ 12": "12",
    "￥1,200.00": "1200",
}  # fmt: skip


@pytest.mark.parametrize("written", NUMBERS)
def test_numbers_as_people_write_them(written: str) -> None:
    told = Mapping(columns=Columns(date="d", prompt="n"), decimal=".")
    assert only(read(f'd,n\n2026-10-01,"{written}"\n'.encode(), told)).counts == {"prompt": int(NUMBERS[written])}


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**6 - 1)), min_size=1, max_size=20), st.booleans())
def test_the_decimal_mark_is_found_out(amounts: list[tuple[int, int]], comma: bool) -> None:
    lines = []
    for whole, places in amounts:
        text = f"{whole:,}.{places:06d}"
        lines.append(text.translate({44: ".", 46: ","}) if comma else text)
    told = Mapping(columns=Columns(date="d", cost="c"), currency="EUR")
    data = "d\tc\n" + "".join(f"2026-10-01\t{line}\n" for line in lines)
    wanted = sum(int(Decimal(f"{whole}.{places:06d}") * 10**9) for whole, places in amounts)
    assert only(read(data.encode(), told)).costs == {"EUR": wanted}


SIMPLE = Mapping(columns=Columns(date="d", model="m", prompt="n", cost="c"), currency="USD")
WRONG: dict[str, tuple[bytes, Mapping | None, str]] = {
    "empty": (b"", None, "the file is empty"),
    "blank": (b"\n\n  \n", None, "the file is empty"),
    "no bill": (b"name,age\nx,3\n", None, "of no known bill .*name, age"),
    "html": (b"<!doctype html><html>", None, "of no known bill"),
    "lacks a column": (b"d,m,n\n2026-10-01,x,1\n", SIMPLE, "no column `c`, which the mapping names as `cost`"),
    "near a column": (b"date,input\n", Mapping(columns=Columns(date="dat", prompt="input")), "did you mean `date`"),
    "names no date": (b"date,input\n", Mapping(columns=Columns(prompt="input")), "no column as `date`"),
    "no date": (b"d,m,n,c\nyesterday,x,1,1\n", SIMPLE, r"line 2: column 1 \(`d`\): `yesterday` is no date"),
    "no such day": (b"d,m,n,c\n2026-02-30,x,1,1\n", SIMPLE, "`2026-02-30` is no date"),
    "no such year": (b"d,m,n,c\n0206-02-01,x,1,1\n", SIMPLE, "`0206-02-01` is no date"),
    "empty date": (b"d,m,n,c\n2026-02-01,x,1,1\n,x,1,1\n", SIMPLE, r"line 3: column 1 \(`d`\): is empty"),
    "no number": (b"d,m,n,c\n2026-02-01,x,many,1\n", SIMPLE, r"line 2: column 3 \(`n`\): `many` is no number"),
    "hex": (b"d,m,n,c\n2026-02-01,x,0x1F,1\n", SIMPLE, "`0x1F` is no number"),
    "infinite": (b"d,m,n,c\n2026-02-01,x,1,inf\n", SIMPLE, "`inf` is no number"),
    "half a token": (b"d,m,n,c\n2026-02-01,x,1.5,1\n", SIMPLE, "`1.5` is no whole number"),
    "two marks": (b'd,m,n,c\n2026-02-01,x,1,"2,5"\n2026-02-01,x,1,2.5\n', SIMPLE, "line 3: .*another decimal mark"),
    "bare thousands": (b"d,m,n,c\n2026-02-01,x,1,234,5\n", SIMPLE, "line 2: has more cells than"),
    "no currency": (b"d,c\n2026-02-01,1\n", Mapping(columns=Columns(date="d", cost="c")), "has no currency"),
    "odd currency": (
        b"start_time,amount_value,amount_currency\n1790553600,1,doubloons\n", None, r"line 2: column 3 .*no currency",
    ),
    "days and months": (
        "账期,实例ID,应付金额\n2026-09,a,1\n2026-09-01,a,1\n".encode(), None, "some dates are days and some are months",
    ),
    "bytes": (b"d,m,n,c\n2026-02-01,\xff\xff\xff,1,1\n", SIMPLE, "line 2: .*encoding"),
    "encoding": (b"d,m\n", Mapping(columns=Columns(date="d"), encoding="klingon"), "no encoding `klingon`"),
    "open quote": (b'd,m,n,c\n2026-02-01,"x,1,1\n' + b"y" * 200_000, SIMPLE, "this is no CSV"),
    "quoted line": (b'd,m,n,c\n2026-02-01,"x\ny",1,1\nbad,x,1,1\n', SIMPLE, "line 4: .*`bad`"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_bill_is_told_with_line_and_column(case: str) -> None:
    data, told, words = WRONG[case]
    with pytest.raises(BillError, match=words):
        read(data, told)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_bill_or_an_error(data: bytes) -> None:
    for told in (None, SIMPLE):
        with suppress(BillError):
            read(b"d,m,n,c\n" + data, told)


@given(st.text(alphabet='0123456789.,-;"\n\t x', max_size=60))
def test_any_cells_are_read_or_refused(cells: str) -> None:
    with suppress(BillError):
        read(f"d;m;n;c\n2026-10-01;x;{cells};1\n".encode(), SIMPLE)


@pytest.mark.parametrize(("zone", "hours"), [("UTC", 0), ("+08:00", 8), ("-5", -5), ("+8", 8), ("UTC+08:00", 8)])
def test_time_zones(zone: str, hours: int) -> None:
    assert hours_of(zone) == hours


@pytest.mark.parametrize("zone", ["", "+05:30", "CET", "+15", "8"])
def test_a_time_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="whole hours"):
        hours_of(zone)
