"""Makes `router/prices/data/` anew: the price lists and exchange rates of the package.

Run now and then by hand, never at run time; the data sets it reads are no dependencies of the project. They are
installed for the occasion into an environment of their own, with what this script itself needs:

    python -m venv seed && seed/bin/pip install model-prices genai-prices currencyconverter pyyaml msgspec
    seed/bin/pip download --no-deps litellm -d seed && unzip seed/litellm-*.whl "litellm/model_prices*" -d seed
    seed/bin/python scripts/seed_prices.py --litellm seed/litellm/model_prices_and_context_window_backup.json

- model-prices (MIT): prices in USD with their history and a source for each period, from models.dev (MIT).
- genai-prices (MIT): vendors that the first does not cover, service tiers, audio, names of snapshots. Where both price
  a model and differ, model-prices' figure stays and the difference is printed.
- litellm's table (MIT outside of its enterprise folder): a second opinion only; what differs is printed.
- CurrencyConverter (Apache-2.0): the European Central Bank's euro reference rates.
- `scripts/prices/*.yaml`: lists that no data set has, above all Alibaba's prices in CNY, kept by hand with sources.
"""

import argparse
import csv
import io
import json
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[1]
BY_HAND: Final = ROOT / "scripts" / "prices"
DATA: Final = ROOT / "router" / "prices" / "data"
RATES_FROM: Final = "2024-01"

FILLED_AS_INPUT: Final = {"cache_read": ["input", "1"], "cache_write": ["input", "1"], "reasoning": ["output", "1"]}
"""Vendors whose cache fills itself: filling it is billed as input."""
ANTHROPIC: Final = {"cache_read": ["input", "1"], "cache_write_1h": ["input", "2"], "reasoning": ["output", "1"]}
MOONSHOT: Final = FILLED_AS_INPUT | {"cache_write_1h": ["input", "2"]}
PLAIN: Final = {"cache_read": ["input", "1"], "reasoning": ["output", "1"]}

# our name: (model-prices' name, genai-prices' name, title, hosts, rules, what snapshots end in)
VENDORS: Final[dict[str, tuple[str, str, str, list[str], dict[str, list[str]], str | None]]] = {
    "openai": ("openai", "openai", "OpenAI", ["api.openai.com"], FILLED_AS_INPUT, r"-\d{4}-\d{2}-\d{2}$"),
    "anthropic": ("anthropic", "anthropic", "Anthropic", ["api.anthropic.com"], ANTHROPIC, r"-\d{8}$"),
    "google": ("google", "google", "Google Gemini API", ["generativelanguage.googleapis.com"], FILLED_AS_INPUT, None),
    "deepseek": ("deepseek", "deepseek", "DeepSeek, accounts in USD", ["api.deepseek.com"], FILLED_AS_INPUT, None),
    "xai": ("xai", "x-ai", "xAI", ["api.x.ai"], FILLED_AS_INPUT, None),
    "mistral": ("mistral", "mistral", "Mistral", ["api.mistral.ai"], FILLED_AS_INPUT, None),
    "moonshot": ("moonshotai", "moonshotai", "Moonshot AI (Kimi)", ["api.moonshot.ai"], MOONSHOT, None),
    "zai": ("zai", "zai", "Z.ai", ["api.z.ai"], FILLED_AS_INPUT, None),
    "minimax": ("minimax", "minimax", "MiniMax", ["api.minimax.io"], FILLED_AS_INPUT, None),
    "cohere": ("cohere", "cohere", "Cohere", ["api.cohere.com", "api.cohere.ai"], FILLED_AS_INPUT, None),
    "perplexity": ("perplexity", "perplexity", "Perplexity", ["api.perplexity.ai"], FILLED_AS_INPUT, None),
    "meta": ("meta", "meta", "Meta Llama API", ["api.meta.ai"], FILLED_AS_INPUT, None),
    "alibaba-intl": (
        "alibaba",
        "",
        "Alibaba Cloud Model Studio, international (Singapore)",
        ["dashscope-intl.aliyuncs.com", "*.ap-southeast-1.maas.aliyuncs.com"],
        PLAIN,
        None,
    ),
    "groq": ("", "groq", "Groq", ["api.groq.com"], FILLED_AS_INPUT, None),
    "cerebras": ("", "cerebras", "Cerebras", ["api.cerebras.ai"], FILLED_AS_INPUT, None),
    "together": ("", "together", "Together AI", ["api.together.xyz", "api.together.ai"], FILLED_AS_INPUT, None),
    "fireworks": ("", "fireworks", "Fireworks AI", ["api.fireworks.ai"], FILLED_AS_INPUT, None),
    "novita": ("", "novita", "Novita AI", ["api.novita.ai"], FILLED_AS_INPUT, None),
    "baseten": ("", "baseten", "Baseten model APIs", ["inference.baseten.co"], FILLED_AS_INPUT, None),
}
SERVICE_TIERS: Final = {"openai": {"fast": "priority"}, "groq": {"on_demand": "standard"}}
"""Vendors' words for our modes. OpenAI calls its priority tier `fast` too, at the same price."""
RENAMED: Final = {"openai": {"fast": "priority"}}
"""model-prices' words for our modes."""
LEFT_OUT: Final = re.compile(
    r"omni|livetranslate|asr|tts|realtime|transcribe|image|veo-|imagen|lyria|whisper|sora|\.ft-$"
)
"""Models that are not paid for by tokens of text alone, or in which a picture's tokens cost otherwise than text's."""
KIBI: Final = {32_000: 32_768, 128_000: 131_072, 200_000: 204_800, 256_000: 262_144}
"""Alibaba's K is 1024 (see `scripts/prices/alibaba-cn.yaml`)."""
AT_LEAST: Final = ("xai",)
"""Vendors whose longer band begins at its border, not above it."""
FREE: Final = {
    "google": {"gemma-3-12b-it", "gemma-3-27b-it", "gemma-3-4b-it", "gemma-3n-e2b-it", "gemma-3n-e4b-it"},
    "mistral": {"mistral-moderation-2603"},
    "zai": {"glm-4.5-flash", "glm-4.6v-flash", "glm-4.7-flash"},
}
"""Models that their vendors' own price pages call free. Any other zero of a data set is a figure not yet filled in."""
CLASSES: Final = ("input", "cache_read", "cache_read_explicit", "cache_write", "cache_write_1h", "input_audio")
CLASSES_OUT: Final = ("output", "reasoning", "output_audio")

Sheet = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litellm", type=Path, help="litellm's table, for a second opinion")
    arguments = parser.parse_args()
    lists = [*by_hand(), *from_data_sets()]
    if arguments.litellm:
        compare(lists, json.loads(arguments.litellm.read_text("utf-8")))
    DATA.mkdir(exist_ok=True)
    for one in lists:
        write(DATA / f"{one['name']}.json", written(one))
        models, periods = len(one["entries"]), sum(len(entry["periods"]) for entry in one["entries"])
        say(f"{one['name']}: {models} models, {periods} periods")
    write(DATA / "index.json", rows(index(lists)))
    write(DATA / "rates.json", written_rates(exchange_rates()))


def index(lists: Iterable[Sheet]) -> list[Sheet]:
    found = [{"name": one["name"], "title": one["title"], "currency": one["currency"]} for one in lists]
    for entry, one in zip(found, lists, strict=True):
        if one.get("hosts"):
            entry["hosts"] = one["hosts"]
    return sorted(found, key=lambda entry: entry["name"])


# -- lists that are kept by hand -----------------------------------------------------------------------------------


def by_hand() -> list[Sheet]:
    """The lists of `scripts/prices`. Every scalar is read as text, so that no figure passes through a float."""
    return [
        hand_list(yaml.load(path.read_text("utf-8"), Loader=yaml.BaseLoader)) for path in sorted(BY_HAND.glob("*.yaml"))
    ]


def hand_list(source: Sheet) -> Sheet:
    periods: dict[tuple[str, ...], list[Sheet]] = {}
    for row in source["rows"]:
        periods.setdefault(tuple(row["models"]), []).append(hand_period(row, source))
    entries = [{"models": list(models), "periods": its} for models, its in periods.items()]
    head = {key: source[key] for key in ("name", "title", "currency", "hosts", "sources", "derived") if key in source}
    return head | ({"hours": {source["hours"]: PEAK}} if "hours" in source else {}) | {"entries": entries}


def hand_period(row: Sheet, source: Sheet) -> Sheet:
    cached = row.get("cache") == "true"
    base, thinking = {}, {}
    tiers, thinking_tiers = [], []
    for position, (above, price, output, *thought) in enumerate(row["bands"]):
        rates: Sheet = {"input": decimal(price)}
        if cached or "cache_read" in row:
            rates["cache_read"] = row.get("cache_read", times(price, "0.2"))
        if cached:
            rates["cache_read_explicit"] = row.get("cache_read_explicit", times(price, "0.1"))
            rates["cache_write"] = times(price, "1.25")
        rates["output"] = decimal(output)
        if not position:
            base, thinking = rates, {"output": decimal(thought[0])} if thought else {}
            continue
        border = {"above": int(above.removesuffix("K")) * 1024}
        tiers.append(border | rates)
        if thought:
            thinking_tiers.append(border | {"output": decimal(thought[0])})
    period = {key: row[key] for key in ("from", "until") if key in row} | base
    if tiers:
        period["tiers"] = tiers
    modes = {}
    if thinking:
        modes["thinking"] = thinking | ({"tiers": thinking_tiers} if thinking_tiers else {})
    if "peak" in row:
        period["hours"] = source["hours"]
        modes[source["hours"]] = scaled(base, row["peak"])
    if modes:
        period["modes"] = modes
    about = {"source": row.get("source", source["page"]), "seen": row["seen"]}
    return period | about | ({"note": row["note"]} if "note" in row else {})


PEAK: Final = {
    "windows": [["01:00", "04:00"], ["06:00", "10:00"]],
    "weekdays_only": True,
    "except_days": [
        *("2026-09-25", "2026-09-26", "2026-09-27"),
        *(f"2026-10-0{day}" for day in range(1, 8)),
    ],
    "utc_offset": 8,
    "source": "https://api-docs.deepseek.com/quick_start/pricing",
}
"""DeepSeek's dear hours: Monday to Friday without China's public holidays, by the time in Beijing."""


# -- lists from data sets ------------------------------------------------------------------------------------------


def from_data_sets() -> list[Sheet]:
    snapshot = json.loads(files("model_prices").joinpath("snapshot.json").read_bytes())
    from genai_prices import data

    others = {provider.id: provider for provider in data.providers}
    lists = []
    for name, (ours, theirs, title, hosts, derived, snapshots) in VENDORS.items():
        entries = history(name, snapshot["prices"][ours], snapshot) if ours else []
        if theirs:
            entries = joined(name, entries, Genai(others[theirs]))
        entries = without_blanks(name, entries)
        sources = [f"model-prices {version('model-prices')} (MIT), of {snapshot['updated_at'][:10]}"] if ours else []
        sources += [f"genai-prices {version('genai-prices')} (MIT)"] if theirs else []
        one = {"name": name, "title": title, "currency": "USD", "hosts": hosts, "sources": sources, "derived": derived}
        one |= {"snapshots": snapshots} if snapshots else {}
        one |= {"service_tiers": SERVICE_TIERS[name]} if name in SERVICE_TIERS else {}
        hours = {period["hours"] for entry in entries for period in entry["periods"] if "hours" in period}
        one |= {"hours": {mode: hours_of(snapshot, ours, mode) for mode in sorted(hours)}} if hours else {}
        lists.append(one | {"entries": sorted(entries, key=lambda entry: entry["models"][0].lower())})
    return lists


def history(name: str, prices: dict[str, Any], snapshot: Sheet) -> list[Sheet]:
    """model-prices' timelines, one a mode, as periods that hold every mode."""
    entries = []
    for model, timelines in prices.items():
        if LEFT_OUT.search(model):
            continue
        modes = {RENAMED.get(name, {}).get(mode, mode): its for mode, its in timelines.items()}
        periods = [*model_periods(name, model, modes, snapshot)]
        if periods:
            entries.append({"models": [model], "periods": periods})
    return entries


def model_periods(name: str, model: str, modes: dict[str, list[Sheet]], snapshot: Sheet) -> Iterator[Sheet]:
    schedule = schedule_of(snapshot, name, model)
    first = next((one["rates"]["valid_from"] for one in modes.get("standard", []) if one["rates"]), None)
    if first is None:
        return
    starts = {first, *(one["start"] for its in modes.values() for one in its if one["start"] and one["start"] > first)}
    if schedule and schedule["valid_from"] > first:
        starts.add(schedule["valid_from"])
    found = []
    for start in sorted(starts):
        its = {mode: in_force(timeline, start) for mode, timeline in modes.items()}
        standard = its.pop("standard", None)
        if standard is None:
            found.append((start, None, None))
            continue
        sheet = sheet_of(name, standard)
        others = {mode: sheet_of(name, rates) for mode, rates in its.items() if rates is not None}
        others = {mode: other for mode, other in others.items() if not (mode == "thinking" and other == sheet)}
        if schedule and start >= schedule["valid_from"]:
            mode = "peak" if "peak_multiplier" in schedule else "idle"
            sheet["hours"] = mode
            others[mode] = scaled(sheet, str(multiplier(schedule, model)))
        if others:
            sheet["modes"] = dict(sorted(others.items()))
        found.append((start, sheet, standard))
    kept: list[Sheet] = []
    for start, sheet, standard in found:
        if sheet is None:
            if kept:
                kept[-1].setdefault("until", moment(start))
            continue
        about = {"source": standard["source"], "seen": snapshot["updated_at"][:10]}
        began = moment(start)
        if kept and "until" not in kept[-1] and (kept[-1]["from"] == began or says_more(sheet, kept[-1])):
            # that a data set learned of a further figure is no change of the price
            began = kept.pop()["from"]
        kept.append({"from": began} | sheet | about)
    yield from kept


def says_more(later: Sheet, earlier: Sheet) -> bool:
    """Whether every price of the earlier sheet is in the later one too, and at the same hours."""
    if earlier.get("hours") != later.get("hours"):
        # dear hours that begin are a change of the price
        return False
    if any(key in earlier and earlier[key] != later.get(key) for key in (*CLASSES, *CLASSES_OUT, "above")):
        return False
    tiers, others = earlier.get("tiers", []), later.get("tiers", [])
    if len(tiers) != len(others) or not all(says_more(other, tier) for other, tier in zip(others, tiers, strict=True)):
        return False
    modes = later.get("modes", {})
    return all(mode in modes and says_more(modes[mode], sheet) for mode, sheet in earlier.get("modes", {}).items())


def in_force(timeline: list[Sheet], at: str) -> Sheet | None:
    rates = None
    for one in timeline:
        if one["start"] is None or one["start"] <= at:
            rates = one["rates"]
    return rates


def sheet_of(name: str, rates: Sheet) -> Sheet:
    sheet = rates_of(rates)
    tiers = []
    for tier in rates.get("tiers", []):
        above = KIBI.get(tier["above"], tier["above"]) if name.startswith("alibaba") else tier["above"]
        above -= 1 if name in AT_LEAST else 0
        tiers.append({"above": above} | rates_of(tier))
    if name.startswith("alibaba"):
        for one in (sheet, *tiers):
            if "cache_write" in one and one.get("cache_read") == times(one["input"], "0.2"):
                one["cache_read_explicit"] = times(one["input"], "0.1")
    if name == "anthropic":
        for one in (sheet, *tiers):
            one["cache_write_1h"] = times(one["input"], "2")
    return ordered(sheet) | ({"tiers": [{"above": one.pop("above")} | ordered(one) for one in tiers]} if tiers else {})


def rates_of(rates: Sheet) -> Sheet:
    return {
        key: decimal(repr(rates[key]))
        for key in ("input", "output", "cache_read", "cache_write")
        # a write that costs nothing is one that nobody priced
        if rates.get(key) is not None and not (key == "cache_write" and rates[key] == 0)
    }


def schedule_of(snapshot: Sheet, name: str, model: str) -> Sheet | None:
    provider = VENDORS[name][0]
    for one in snapshot["schedules"]["schedule"]:
        factors = one.get("peak_multiplier", one.get("off_peak_multiplier"))
        if (
            one["provider"] == provider
            and "valid_until" not in one
            and (not isinstance(factors, dict) or model in factors)
        ):
            return dict(one)
    return None


def multiplier(schedule: Sheet, model: str) -> float:
    factors = schedule.get("peak_multiplier", schedule.get("off_peak_multiplier"))
    return float(factors[model] if isinstance(factors, dict) else factors)


def hours_of(snapshot: Sheet, provider: str, mode: str) -> Sheet:
    (schedule,) = (
        one for one in snapshot["schedules"]["schedule"] if one["provider"] == provider and "valid_until" not in one
    )
    hours: Sheet = {"windows": schedule["peak_hours_utc" if mode == "peak" else "off_peak_hours_utc"]}
    if schedule.get("weekdays_only"):
        hours["weekdays_only"] = True
    if "holidays" in schedule:
        calendar = snapshot["schedules"]["holidays"][schedule["holidays"]]
        hours["except_days"] = [day for day in calendar["dates"] if day >= schedule["valid_from"][:10]]
        hours["utc_offset"] = calendar["utc_offset_hours"]
    return hours | {"source": schedule["source"]}


class Genai:
    """One provider of genai-prices, as of today."""

    MODES: Final = {"flex": "flex", "priority": "priority", "batch": "batch"}
    KEYS: Final = {
        "input_mtok": "input",
        "cache_read_mtok": "cache_read",
        "cache_write_mtok": "cache_write",
        "cache_write_1h_mtok": "cache_write_1h",
        "input_audio_mtok": "input_audio",
        "output_mtok": "output",
        "output_audio_mtok": "output_audio",
    }

    def __init__(self, provider: Any) -> None:
        self.source = f"genai-prices {version('genai-prices')}"
        self.models = {
            model.id: model for model in provider.models if not LEFT_OUT.search(model.id) or "audio" in model.id
        }

    def sheet(self, model: Any) -> Sheet | None:
        prices = model.prices
        if isinstance(prices, list):
            current = [one.prices for one in prices if not self._by_hour(one) and self._begun(one)]
            prices = current[-1] if current else None
        return None if prices is None else self._rates(prices)

    def modes(self, model: Any) -> dict[str, Sheet]:
        found = {}
        for variant in model.price_variants or []:
            word = variant.when.get("service_tier") or variant.when.get("processing") or variant.when.get("speed")
            if word in self.MODES and (sheet := self._rates(variant.prices)):
                found[word] = sheet
            if variant.when.get("speed") == "fast" and (sheet := self._rates(variant.prices)):
                found["fast"] = sheet
        return found

    def names(self, model: Any) -> list[str]:
        """The exact names among what the model is matched by."""
        clauses = getattr(model.match, "or_", [model.match])
        return [clause.equals for clause in clauses if hasattr(clause, "equals")]

    def since(self, model: Any) -> str | None:
        prices = model.prices
        if isinstance(prices, list):
            begun = [one for one in prices if not self._by_hour(one) and self._begun(one)]
            if begun and begun[-1].constraint is not None:
                return str(begun[-1].constraint.start_date)
        return None

    def _begun(self, one: Any) -> bool:
        return one.constraint is None or one.constraint.start_date <= datetime.now(UTC).date()

    def _by_hour(self, one: Any) -> bool:
        return hasattr(one.constraint, "start_time")

    def _rates(self, prices: Any) -> Sheet:
        sheet: Sheet = {}
        tiers: dict[int, Sheet] = {}
        for key, ours in self.KEYS.items():
            price = prices.__dict__.get(key)
            if price is None:
                continue
            sheet[ours] = decimal(getattr(price, "base", price))
            for tier in getattr(price, "tiers", ()):
                tiers.setdefault(tier.start, {})[ours] = decimal(tier.price)
        found = ordered(sheet)
        if tiers:
            found["tiers"] = [{"above": above} | ordered(tier) for above, tier in sorted(tiers.items())]
        return found


def joined(name: str, entries: list[Sheet], other: Genai) -> list[Sheet]:
    """What genai-prices adds: to models that are there names, service tiers and audio; and the models that are not."""
    known = {entry["models"][0] for entry in entries}
    for entry in entries:
        model = other.models.get(entry["models"][0])
        if model is None:
            continue
        entry["models"] += [alias for alias in other.names(model) if alias not in known]
        period, sheet = entry["periods"][-1], other.sheet(model)
        if sheet is None:
            continue
        same = all(period.get(key) == sheet.get(key) for key in ("input", "output"))
        if not same:
            say(f"{name}/{model.id}: {short(period)} here, {short(sheet)} in {other.source}")
            continue
        if cached(period) != cached(sheet) and "cache_read" in sheet:
            say(f"{name}/{model.id}: cache {cached(period)} here, {cached(sheet)} in {other.source}")
        if bands(period) != bands(sheet):
            say(f"{name}/{model.id}: bands {bands(period)} here, {bands(sheet)} in {other.source}")
        added = {key: sheet[key] for key in ("input_audio", "output_audio") if key in sheet}
        if added:
            entry["periods"][-1] = period = {"from": period["from"]} | ordered(period | added) | rest(period)
        modes = other.modes(model)
        for mode, theirs in modes.items():
            ours = period.get("modes", {}).get(mode)
            if ours is None:
                period.setdefault("modes", {})[mode] = theirs
            elif short(ours) != short(theirs):
                say(f"{name}/{model.id}: {mode} {short(ours)} here, {short(theirs)} in {other.source}")
            elif "tiers" in theirs and "tiers" not in ours:
                period["modes"][mode] = theirs
            elif added:
                period["modes"][mode] = ordered(ours | {k: theirs[k] for k in added if k in theirs}) | rest(ours)
    named = {alias for entry in entries for alias in entry["models"]}
    for model in other.models.values():
        sheet = other.sheet(model)
        if model.id in named or sheet is None or "input" not in sheet:
            continue
        modes, since = other.modes(model), other.since(model)
        period = ({"from": since} if since else {}) | sheet | ({"modes": modes} if modes else {})
        about = {"source": other.source, "seen": datetime.now(UTC).date().isoformat()}
        entries.append({"models": list(dict.fromkeys([model.id, *other.names(model)])), "periods": [period | about]})
    return without_doubles(entries)


def without_blanks(name: str, entries: list[Sheet]) -> list[Sheet]:
    """What is known: a zero of a model that nobody calls free is no price, and neither is a period of such zeros.

    Embeddings have no output, and what is not there may cost nothing.
    """
    kept = []
    for entry in entries:
        model = entry["models"][0]
        if model in FREE.get(name, ()) or "embed" in model:
            kept.append(entry)
            continue
        periods: list[Sheet] = []
        for period in entry["periods"]:
            filled = without_zeros(period)
            if filled is not None:
                periods.append(filled)
            elif periods and "until" not in periods[-1]:
                last = periods.pop()
                periods.append({"from": last.pop("from"), "until": period["from"]} | last)
        if periods:
            kept.append(entry | {"periods": periods})
    return kept


def without_zeros(sheet: Sheet) -> Sheet | None:
    """The sheet without the classes that a zero stands for; None where that is all input or all output."""
    if any(one.get(key) == "0" for one in (sheet, *sheet.get("tiers", [])) for key in ("input", "output")):
        return None
    found = {key: price for key, price in sheet.items() if key not in (*CLASSES, *CLASSES_OUT) or price != "0"}
    if "tiers" in found:
        found["tiers"] = [without_zeros(tier) for tier in found["tiers"]]
    if "modes" in found:
        modes = {mode: without_zeros(one) for mode, one in found["modes"].items()}
        found["modes"] = {mode: one for mode, one in modes.items() if one is not None}
        if not found["modes"]:
            del found["modes"]
    return found


def without_doubles(entries: list[Sheet]) -> list[Sheet]:
    """Each name once: the model that is called so comes before one that is called so too."""
    first = {entry["models"][0] for entry in entries}
    seen: set[str] = set()
    for entry in entries:
        head, *others = entry["models"]
        entry["models"] = [head, *(one for one in others if one not in first and one not in seen)]
        seen |= set(entry["models"])
    return entries


# -- exchange rates ------------------------------------------------------------------------------------------------


def exchange_rates() -> Sheet:
    """The first rates of each month, and the last ones there are."""
    sys.path.insert(0, str(ROOT))
    from router.money import CURRENCIES

    archive = files("currency_converter").joinpath("eurofxref-hist.zip")
    with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as found:
        (name,) = found.namelist()
        days = list(csv.DictReader(io.StringIO(found.read(name).decode())))
    days = sorted((day for day in days if day["Date"] >= RATES_FROM), key=lambda day: day["Date"])
    first = {day["Date"][:7]: day for day in reversed(days)}
    wanted = {day["Date"]: day for day in (*reversed(first.values()), days[-1])}
    sources = [
        "Euro foreign exchange reference rates, European Central Bank",
        f"carried by CurrencyConverter {version('currencyconverter')}",
    ]
    table = {
        day: {
            code: decimal(rate) for code, rate in sorted(row.items()) if code in CURRENCIES and rate not in ("", "N/A")
        }
        for day, row in wanted.items()
    }
    return {"per": "EUR", "sources": sources, "days": table}


# -- a second opinion ----------------------------------------------------------------------------------------------


def compare(lists: list[Sheet], table: dict[str, Sheet]) -> None:
    """Say where litellm's table has another price for input or output."""
    prefixes = {"openai": "", "anthropic": "", "google": "gemini/", "deepseek": "deepseek/", "xai": "xai/"}
    prefixes |= {"mistral": "mistral/", "groq": "groq/", "alibaba-intl": "dashscope/", "zai": "zai/"}
    same = 0
    for one in lists:
        for entry in one["entries"] if one["name"] in prefixes else ():
            period, model = entry["periods"][-1], entry["models"][0]
            row = table.get(prefixes[one["name"]] + model, {})
            row = (row.get("tiered_pricing") or [row])[0]
            theirs = {ours: row.get(f"{ours}_cost_per_token") for ours in ("input", "output")}
            if None in theirs.values():
                continue
            found = {key: decimal(Decimal(str(price)) * 10**6) for key, price in theirs.items()}
            if found == {key: period.get(key) for key in found}:
                same += 1
            else:
                say(f"{one['name']}/{model}: {short(period)} here, {found['input']}/{found['output']} in litellm")
    say(f"litellm agrees on {same} models")


# -- figures and files ---------------------------------------------------------------------------------------------


def decimal(price: object) -> str:
    """A figure as short decimal text; what a float has beyond nine places is noise."""
    return format(round(Decimal(str(price)), 9).normalize(), "f")


def times(price: str, factor: str) -> str:
    return decimal(Decimal(price) * Decimal(factor))


def scaled(sheet: Sheet, factor: str) -> Sheet:
    """The sheet with every price times the factor."""
    found: Sheet = {key: times(sheet[key], factor) for key in (*CLASSES, *CLASSES_OUT) if key in sheet}
    if "tiers" in sheet:
        found["tiers"] = [{"above": tier["above"]} | scaled(tier, factor) for tier in sheet["tiers"]]
    return found


def ordered(sheet: Sheet) -> Sheet:
    return {key: sheet[key] for key in (*CLASSES, *CLASSES_OUT) if key in sheet}


def rest(sheet: Sheet) -> Sheet:
    return {key: value for key, value in sheet.items() if key not in (*CLASSES, *CLASSES_OUT, "from")}


def short(sheet: Sheet) -> str:
    return f"{sheet.get('input')}/{sheet.get('output')}"


def cached(sheet: Sheet) -> tuple[Any, Any]:
    return sheet.get("cache_read"), sheet.get("cache_write")


def bands(sheet: Sheet) -> list[tuple[Any, ...]]:
    return [(tier["above"], tier.get("input"), tier.get("output")) for tier in sheet.get("tiers", [])]


def moment(text: str) -> str:
    """`2026-08-16T16:00:00Z` as we write it, and as the day alone what is no hour that anybody announces."""
    at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    announced = at.minute in (0, 30) and not at.second and (at.hour or at.minute)
    return at.strftime("%Y-%m-%dT%H:%MZ") if announced else at.date().isoformat()


def written(one: Sheet) -> str:
    """A list as JSON with a line a period, so that changes can be read."""
    head = {key: value for key, value in one.items() if key not in ("entries", "hosts")}
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}," for key, value in head.items()]
    entries = []
    for entry in one["entries"]:
        models = json.dumps(entry["models"], ensure_ascii=False)
        entries.append(f'{{"models": {models}, "periods": {rows(entry["periods"])}}}')
    return "{\n" + "\n".join(lines) + '\n"entries": [\n' + ",\n".join(entries) + "\n]}"


def written_rates(table: Sheet) -> str:
    days = ",\n".join(f"{json.dumps(day)}: {json.dumps(rates)}" for day, rates in table["days"].items())
    return f'{{"per": {json.dumps(table["per"])}, "sources": {json.dumps(table["sources"])}, "days": {{\n{days}\n}}}}'


def rows(values: list[Any]) -> str:
    return "[\n" + ",\n".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n]"


def write(path: Path, text: str) -> None:
    path.write_text(text + "\n", "utf-8")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
