"""Reads a vendor's bill or usage export: bytes of CSV → what it says of each day and model. Pure.

Known without being told are the exports of OpenAI's usage dashboard (activity, and costs) and the bill details of
Alibaba Cloud, with Chinese or English headings; any other table by a `Mapping` of its columns. What cannot be read is
an error with its line and column: a bill that is half understood would seem to be wrong.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from router.money import checked_currency, nano_of
from router.nearest import alternatives, did_you_mean

MEASURES: Final = (
    "requests",
    "prompt",
    "input",
    "cache_read",
    "cache_write",
    "input_audio",
    "output",
    "output_audio",
)
"""What is counted. `prompt` is all text that was sent, `input` what of it was neither read from a cache nor written to
one; `output` includes reasoning."""
FormatName: TypeAlias = Literal["openai-usage", "openai-costs", "alibaba"]
_FIELDS: Final = ("date", "model", *MEASURES, "cost", "currency")
_BY_CLASS: Final = ("input", "cache_read", "cache_write", "input_audio", "output", "output_audio")
"""The measures of a bill with one line for each class of token."""
_DELIMITERS: Final = (",", ";", "\t", "|")
_PREAMBLE: Final = 20
"""Lines that may stand above the headings."""
_TOTALS: Final = frozenset({"total", "sum", "subtotal", "grand total", "合计", "总计", "小计", "合計", "總計"})


class BillError(Exception):
    """The bill cannot be read. Says where, and what to do."""

    def __init__(self, message: str, *, line: int = 0, column: str = "") -> None:
        place = f"line {line}: " if line else ""
        place += f"column {column}: " if column else ""
        super().__init__(place + message)
        self.line = line
        self.column = column


class Columns(Struct, frozen=True, forbid_unknown_fields=True):
    """The heading of each column."""

    date: str | None = None
    model: str | None = None
    requests: str | None = None
    prompt: str | None = None
    input: str | None = None
    cache_read: str | None = None
    cache_write: str | None = None
    input_audio: str | None = None
    output: str | None = None
    output_audio: str | None = None
    cost: str | None = None
    currency: str | None = None


class Mapping(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to read a table that is not known. With `format`, a known one of which some things are told otherwise."""

    format: FormatName | None = None
    columns: Columns = Columns()
    currency: str | None = None
    """Of all costs, where no column says it."""
    timezone: str | None = None
    """Whose days they are: `+08:00`."""
    date_format: str | None = None
    """As Python's `strptime` has it, such as `%d/%m/%Y`."""
    decimal: Literal[".", ","] | None = None
    delimiter: str | None = None
    encoding: str | None = None
    unit: int = 1
    """Tokens that one counted unit stands for."""
    models: dict[str, str] = {}
    """The bill's names of models → the vendor's own."""

    def __post_init__(self) -> None:
        if self.unit < 1:
            raise ValueError("`unit` must be 1 or more")
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ValueError("`delimiter` must be one character")
        if self.currency is not None:
            checked_currency(self.currency)
        if self.timezone is not None:
            hours_of(self.timezone)


class Entry(Struct):
    """What is said of one day and model."""

    counts: dict[str, int] = {}
    """Measure → how many."""
    costs: dict[str, int] = {}
    """Currency → nano-units."""

    def count(self, measure: str, number: int) -> None:
        self.counts[measure] = self.counts.get(measure, 0) + number

    def charge(self, currency: str, nano: int) -> None:
        self.costs[currency] = self.costs.get(currency, 0) + nano


class Bill(Struct, frozen=True, kw_only=True):
    format: str
    hours: int
    """How many hours its days are ahead of UTC."""
    monthly: bool
    """It tells months, not days."""
    by_model: bool
    measures: tuple[str, ...]
    """What it counts."""
    costs: bool
    """Whether it has costs."""
    entries: dict[tuple[str, str], Entry]
    """(`2026-10-01` or `2026-10`, model) → what it says."""


class _Format(Struct, frozen=True, kw_only=True):
    name: str
    headings: dict[str, tuple[str, ...]]
    """Field → headings it is known by, the best first."""
    needs: tuple[str, ...]
    hours: int = 0
    currency: str | None = None


_OPENAI_TIME: Final = ("start_time_iso", "start_time", "date")
_FORMATS: Final = (
    # what https://platform.openai.com/usage exports of activity: the fields of its usage API
    # (https://platform.openai.com/docs/api-reference/usage), a row for each bucket of time and grouping
    _Format(
        name="openai-usage",
        headings={
            "date": _OPENAI_TIME,
            "model": ("model",),
            "requests": ("num_model_requests",),
            "prompt": ("input_tokens",),
            "cache_read": ("input_cached_tokens",),
            "input_audio": ("input_audio_tokens",),
            "output": ("output_tokens",),
            "output_audio": ("output_audio_tokens",),
        },
        needs=("date", "prompt", "output"),
    ),
    # and of costs: `line_item` holds the model and the class of tokens
    _Format(
        name="openai-costs",
        headings={
            "date": _OPENAI_TIME,
            "cost": ("amount_value",),
            "currency": ("amount_currency",),
            "item": ("line_item",),
            "quantity": ("quantity",),
            "unit": ("quantity_unit",),
        },
        needs=("date", "cost"),
        currency="USD",
    ),
    # https://help.aliyun.com/zh/user-center/v2-version-bill-field-description (headings with a group before a slash),
    # the bill details before them, and the English ones; the last names are those of its billing API
    # (DescribeInstanceBill). What the instance's id is made of:
    # https://help.aliyun.com/zh/model-studio/bill-query-and-cost-management
    _Format(
        name="alibaba",
        headings={
            "date": (
                *("消费时间", "账单日期", "账期日期", "日期", "账单月份", "账期"),
                *("Consumption Time", "Billing Date", "Date", "Billing Month", "Billing Cycle"),
            ),
            "item": (
                *("实例ID(出账粒度)", "资产/资源实例ID", "资源实例ID", "实例ID", "Instance ID (Billing Granularity)"),
                *("Asset/Resource Instance ID", "Instance ID"),
            ),
            "quantity": ("用量", "Usage"),
            "unit": ("用量单位", "Usage Unit", "Usage Unit of Measure"),
            "cost": (
                *("应付金额(含税)", "应付金额", "优惠后金额", "Payable Amount (Tax Included)", "Payable Amount"),
                *("Amount After Price Reduction", "Amount After Reduction", "Amount After Discount", "Pretax Amount"),
            ),
            "currency": ("定价币种", "币种", "Pricing Currency", "Currency"),
        },
        needs=("date", "item", "cost"),
        hours=8,
    ),
)


def read(data: bytes, mapping: Mapping | None = None, *, hours: int | None = None) -> Bill:
    """The bill in the bytes of a file. `hours` says how far its days are ahead of UTC, over what is known of its
    format. Raises `BillError`."""
    mapping = mapping or Mapping()
    table = _table(_text(data, mapping.encoding), mapping)
    if hours is None:
        hours = table.format.hours if mapping.timezone is None else hours_of(mapping.timezone)
    reader = _Reader(table, mapping, hours)
    reader.read()
    return reader.bill()


def hours_of(zone: str) -> int:
    """Hours ahead of UTC: of `UTC`, `+08:00`, `-5`. Raises `ValueError`."""
    match = re.fullmatch(r"(?:UTC)?(?:([+-])(\d{1,2})(?::?00)?)?", zone.strip() or "?")
    if match is None or (match[2] and int(match[2]) > 14):
        raise ValueError("a time zone looks like UTC or +08:00, in whole hours")
    return int(f"{match[1]}{match[2]}") if match[1] else 0


# -- the table -------------------------------------------------------------------------------------------------------


class _Table(Struct, frozen=True):
    format: _Format
    places: dict[str, int]
    """Field → number of its column, from 0."""
    headings: list[str]
    rows: list[tuple[int, list[str]]]
    """Number of the line in the file, and its cells."""


def _text(data: bytes, encoding: str | None) -> str:
    """The file's text: Excel and Chinese consoles write other encodings than UTF-8."""
    try:
        if encoding is not None:
            return data.decode(encoding).removeprefix("\ufeff")
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return data.decode("utf-16")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return data.decode("gb18030")
    except LookupError:
        raise BillError(f"there is no encoding `{encoding}`: such as utf-8, gbk or latin-1") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BillError("this line is not in the file's encoding: name it with --encoding", line=line) from None


def _table(text: str, mapping: Mapping) -> _Table:
    """The rows below the headings, and which column is which."""
    best: list[str] = []
    for delimiter in (mapping.delimiter,) if mapping.delimiter else _DELIMITERS:
        rows = list(_rows(text, delimiter))
        for index, (_, cells) in enumerate(rows[:_PREAMBLE]):
            if found := _match(cells, mapping):
                kind, places = found
                return _Table(kind, places, cells, [row for row in rows[index + 1 :] if any(row[1])])
        first = next((cells for _, cells in rows if any(cells)), [])
        best = max(best, first, key=len)
    raise _unknown(best, mapping)


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    before = 0
    try:
        for cells in reader:
            yield before + 1, [cell.strip() for cell in cells]
            before = reader.line_num
    except csv.Error as error:
        raise BillError(f"this is no CSV: {error}", line=reader.line_num) from None


def _match(cells: Sequence[str], mapping: Mapping) -> tuple[_Format, dict[str, int]] | None:
    """The format whose headings these are."""
    known: dict[str, int] = {}
    for place, cell in enumerate(cells):
        for name in (_heading(cell), _heading(cell.partition("/")[2])):
            if name:
                known.setdefault(name, place)
    told = {name: heading for name in _FIELDS if (heading := getattr(mapping.columns, name)) is not None}
    formats = [_own(told)] if mapping.format is None and told else _FORMATS
    for kind in formats:
        if mapping.format not in (None, kind.name):
            continue
        headings = kind.headings | {name: (heading,) for name, heading in told.items()}
        places = {}
        for name, words in headings.items():
            found = next((known[_heading(word)] for word in words if _heading(word) in known), None)
            if found is not None:
                places[name] = found
        if all(name in places for name in (*kind.needs, *told)):
            return kind, places
    return None


def _own(told: dict[str, str]) -> _Format:
    return _Format(name="mapping", headings={}, needs=("date", *told))


def _heading(text: str) -> str:
    """Headings are alike whatever their case, spaces and brackets."""
    return re.sub(r"[\s_]+", "", unicodedata.normalize("NFKC", text)).casefold()


def _unknown(cells: Sequence[str], mapping: Mapping) -> BillError:
    shown = [cell for cell in cells if cell][:60]
    if not shown:
        return BillError("the file is empty")
    for name in _FIELDS:
        heading = getattr(mapping.columns, name)
        if heading is not None and _heading(heading) not in {_heading(cell) for cell in shown}:
            near = did_you_mean(heading, shown)
            return BillError(
                f"no column `{heading}`, which the mapping names as `{name}`{near} (there are: {', '.join(shown)})"
            )
    if mapping.columns.date is None and mapping.format is None and mapping.columns != Columns():
        return BillError("the mapping names no column as `date`: add it under `columns`")
    names = alternatives(kind.name for kind in _FORMATS)
    return BillError(
        f"these headings are of no known bill ({names}): name its columns with --mapping "
        f"(there are: {', '.join(shown)})"
    )


# -- the rows --------------------------------------------------------------------------------------------------------


class _Reader:
    """Adds the rows of one table up."""

    def __init__(self, table: _Table, mapping: Mapping, hours: int) -> None:
        self._table = table
        self._mapping = mapping
        self._zone = timezone(timedelta(hours=hours))
        self._hours = hours
        self._entries: dict[tuple[str, str], Entry] = {}
        self._months: set[int] = set()
        self._tokens = False
        self._modelled = "model" in table.places
        self._decimal = mapping.decimal or self._find_decimal()

    def read(self) -> None:
        add = {"openai-costs": self._openai_cost, "alibaba": self._alibaba}.get(self._table.format.name, self._counts)
        for line, cells in self._table.rows:
            row = _Row(self._table, line, cells)
            if not self._is_nothing(row):
                add(row)

    def bill(self) -> Bill:
        kind, places = self._table.format, self._table.places
        if len(self._months) > 1:
            raise BillError("some dates are days and some are months: leave one kind out")
        by_class = _BY_CLASS if self._tokens else ()
        measures = tuple(name for name in MEASURES if name in places or name in by_class)
        return Bill(
            format=kind.name,
            hours=self._hours,
            monthly=self._months == {1},
            by_model=self._modelled,
            measures=measures,
            costs="cost" in places,
            entries=self._entries,
        )

    # -- by format ---------------------------------------------------------------------------------------------------

    def _counts(self, row: "_Row") -> None:
        """A column for each measure."""
        entry = self._entry(row, row.text("model"))
        for name in MEASURES:
            if name in self._table.places:
                unit = 1 if name == "requests" else self._mapping.unit
                entry.count(name, self._whole(row, name, unit))
        self._charge(entry, row)

    def _openai_cost(self, row: "_Row") -> None:
        """A line for each class: `gpt-5-mini-2025-08-07, cached input`. Without one, the whole day's cost."""
        item = row.text("item")
        match = _LINE_ITEM.fullmatch(item)
        self._modelled = self._modelled or bool(item)
        entry = self._entry(row, match["model"] if match else item)
        unit = row.text("unit").casefold()
        if match and row.text("quantity") and (not unit or "token" in unit):
            self._tokens = True
            entry.count(_openai_class(match["kind"], match["of"] or ""), self._whole(row, "quantity", 1))
        self._charge(entry, row)

    def _alibaba(self, row: "_Row") -> None:
        """A line for each class, which the instance's id names: `…;llm-…;qwen-max;output_token;app;0`."""
        item = row.text("item")
        model, token_class = _instance(item)
        self._modelled = True
        entry = self._entry(row, model)
        per = _tokens_per(row.text("unit"))
        if token_class is not None and per is not None and row.text("quantity"):
            self._tokens = True
            # thousands of tokens come with as many places as there are
            entry.count(token_class, round(self._number(row, "quantity") * per))
        self._charge(entry, row)

    # -- cells -------------------------------------------------------------------------------------------------------

    def _is_nothing(self, row: "_Row") -> bool:
        """An empty bucket of time, or a total under the rows."""
        places = self._table.places
        told = [name for name in places if name not in ("date", "currency", "unit")]
        if not any(row.text(name) for name in told):
            return True
        return not row.text("date") and any(cell.casefold().rstrip(":：") in _TOTALS for cell in row.cells)

    def _entry(self, row: "_Row", model: str) -> Entry:
        name = self._mapping.models.get(model, model)
        return self._entries.setdefault((self._period(row), name), Entry({}, {}))

    def _charge(self, entry: Entry, row: "_Row") -> None:
        if not row.text("cost"):
            return
        code = row.text("currency").upper() or self._mapping.currency or self._table.format.currency
        code = {"人民币": "CNY", "RMB": "CNY", "美元": "USD"}.get(code or "", code)
        if not code and re.search(r"[\u4e00-\u9fff]", "".join(self._table.headings)):
            code = "CNY"
        if not code:
            raise row.wrong("cost", "has no currency: write `currency` into a mapping")
        try:
            checked_currency(code)
        except ValueError as error:
            raise row.wrong("currency", str(error)) from None
        entry.charge(code, nano_of(self._number(row, "cost")))

    def _whole(self, row: "_Row", name: str, unit: int) -> int:
        number = (self._number(row, name) if row.text(name) else Decimal(0)) * unit
        if number != number.to_integral_value():
            raise row.wrong(
                name, f"`{row.text(name)}` is no whole number: say `unit` in a mapping if it is in thousands"
            )
        return int(number)

    def _number(self, row: "_Row", name: str) -> Decimal:
        text = _bare(row.text(name))
        other = "," if self._decimal == "." else "."
        grouped = rf"\d{{1,3}}(?:[{other}' ]\d{{3}})+"
        if not re.fullmatch(rf"[+-]?(?:\d+|{grouped})?(?:[{self._decimal}]\d*)?(?:[eE][+-]?\d{{1,3}})?", text):
            told = f"`{self._decimal}` is the decimal mark here" if not self._mapping.decimal else "see `decimal`"
            raise row.wrong(name, f"`{row.text(name)[:40]}` is no number ({told})")
        try:
            return Decimal(re.sub(rf"[{other}' ]", "", text).replace(self._decimal, "."))
        except InvalidOperation:
            raise row.wrong(name, f"`{row.text(name)[:40]}` is no number") from None

    def _find_decimal(self) -> str:
        """The decimal mark: `12,5` or `1.234,5` anywhere shows a comma. `1,234` alone shows nothing."""
        shown: dict[str, tuple[_Row, str]] = {}
        numeric = [name for name in self._table.places if name in (*MEASURES, "cost", "quantity")]
        for line, cells in self._table.rows:
            row = _Row(self._table, line, cells)
            for name in numeric:
                text = _bare(row.text(name))
                if mark := _mark(text):
                    shown.setdefault(mark, (row, name))
        if len(shown) > 1:
            row, name = max(shown.values(), key=lambda place: place[0].line)
            raise row.wrong(
                name, f"`{row.text(name)[:40]}` has another decimal mark than lines above: say `decimal` in a mapping"
            )
        return next(iter(shown), ".")

    def _period(self, row: "_Row") -> str:
        text = row.text("date")
        if not text:
            raise row.wrong("date", "is empty")
        found = self._moment(text)
        if found is None:
            wanted = f"as `{self._mapping.date_format}`" if self._mapping.date_format else "such as 2026-10-01"
            raise row.wrong("date", f"`{text[:40]}` is no date {wanted}: say `date_format` in a mapping")
        day, month = found
        self._months.add(int(month))
        return day[:7] if month else day

    def _moment(self, text: str) -> tuple[str, bool] | None:
        """The day in the bill's own zone, and whether it only tells the month."""
        try:
            if self._mapping.date_format is not None:
                at = datetime.strptime(text, self._mapping.date_format)
                return self._day(at), "%d" not in self._mapping.date_format and "%j" not in self._mapping.date_format
            if re.fullmatch(r"\d{10}(?:\.0+)?", text):
                return self._day(datetime.fromtimestamp(float(text), UTC)), False
            if month := re.fullmatch(r"(\d{4})[-/.年]?(\d{1,2})月?", text):
                return self._day(datetime(int(month[1]), int(month[2]), 1)), True
            if day := re.match(r"(\d{4})(?:[-/.年](\d{1,2})[-/.月](\d{1,2})日?|(\d{2})(\d{2}))(?![\d])[T ]*(.*)", text):
                year, rest = int(day[1]), day[6].partition("~")[0].strip()
                date = datetime(year, int(day[2] or day[4]), int(day[3] or day[5]))
                if not rest:
                    return self._day(date), False
                return self._day(datetime.fromisoformat(f"{date:%Y-%m-%d}T{rest}")), False
        except (ValueError, OverflowError):
            return None
        return None

    def _day(self, at: datetime) -> str:
        if not 2000 <= at.year < 2100:
            raise ValueError("a slip of the pen")
        return f"{at.astimezone(self._zone) if at.tzinfo else at:%Y-%m-%d}"


class _Row:
    """One row, with words for what is wrong in it."""

    def __init__(self, table: _Table, line: int, cells: list[str]) -> None:
        self._table = table
        self.line = line
        self.cells = cells
        if any(cells[len(table.headings) :]):
            raise BillError(
                "has more cells than there are headings: is a comma inside a number without quotes?", line=line
            )

    def text(self, name: str) -> str:
        place = self._table.places.get(name)
        return "" if place is None or place >= len(self.cells) else self.cells[place]

    def wrong(self, name: str, message: str) -> BillError:
        place = self._table.places.get(name)
        column = f"{place + 1} (`{self._table.headings[place]}`)" if place is not None else name
        return BillError(message, line=self.line, column=column)


# -- what the vendors' words mean ------------------------------------------------------------------------------------

_LINE_ITEM: Final = re.compile(
    r"(?:[\w ]+ \| )?(?P<model>[^,|]+?)(?: (?P<of>audio|text|image))?,\s*"
    r"(?P<kind>cached[ _]input|cache[ _]writes?|input|output)(?:[ _]tokens)?(?:,.*)?"
)


def _openai_class(kind: str, of: str) -> str:
    if "cached" in kind:
        return "cache_read"
    if "write" in kind:
        return "cache_write"
    return f"{kind}_audio" if of == "audio" else kind


_TOKEN_TYPE: Final = re.compile(r"(?:\w+_)?(?:input|output)_tokens?(?:_\w+)?")


def _instance(item: str) -> tuple[str, str | None]:
    """The model in the id of an instance and its class of token: the segment that names a class comes after the
    model's, but for a resold model, which has its vendor's name before a slash."""
    segments = [segment.strip() for segment in item.split(";")]
    for index, segment in enumerate(segments):
        if index and _TOKEN_TYPE.fullmatch(segment):
            before = [one for one in segments[:index] if one]
            named = next((one for one in before if "/" in one), before[-1] if before else item)
            return named, _alibaba_class(segment)
    # a model that is not billed by tokens: `ApiKeyID;workspace;model;…`
    return (segments[2] if len(segments) > 3 and segments[2] else item), None


def _alibaba_class(word: str) -> str:
    if "cache_creation" in word:
        return "cache_write"
    if "cache" in word:
        return "cache_read"
    side = "input" if "input" in word else "output"
    return f"{side}_audio" if word.startswith(("audio", "omni_audio")) else side


def _tokens_per(unit: str) -> int | None:
    """Tokens in one of the unit: `Token`, `千tokens`, `KTokens`, `1K tokens`, `百万tokens`. None: it counts
    something else."""
    word = re.sub(r"[\s_]+", "", unit).casefold()
    if word and "token" not in word:
        return None
    factors: dict[str, int] = {"百万": 10**6, "万": 10**4, "千": 1000, "1000": 1000, "k": 1000, "m": 10**6}
    return next(
        (per for name, per in factors.items() if word.removeprefix("1").startswith(name) or word.startswith(name)), 1
    )


def _bare(text: str) -> str:
    """A number without its currency and odd spaces."""
    return re.sub(r"[\u00a0\u202f\u2009]", " ", text).replace("\u2212", "-").strip(" ¥￥$€£")


def _mark(text: str) -> str | None:
    """The decimal mark that a number shows, if it does."""
    dots, commas = text.count("."), text.count(",")
    if dots and commas:
        return "." if text.rfind(".") > text.rfind(",") else ","
    if dots == 1 and not re.fullmatch(r"[+-]?[1-9]\d{0,2}\.\d{3}", text):
        return "."
    if commas == 1 and not re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", text):
        return ","
    return None
