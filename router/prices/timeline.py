"""Which prices hold when: periods, hours of the day, and the models that a list names. Pure; holds no clock."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from router.prices.book import SERVICE_TIERS, STANDARD, THINKING, Entry, Hours, Period, PriceList, Sheet, instant
from router.prices.card import Card, compiled

BEGINNING: Final = -(2**62)
END: Final = 2**62
"""Milliseconds before and after all calls."""
DAY: Final = 86_400


class Clock:
    """Compiled `Hours`."""

    def __init__(self, hours: Hours) -> None:
        self._windows = tuple((_seconds(begin), _seconds(end)) for begin, end in hours.windows)
        self._weekdays_only = hours.weekdays_only
        self._holidays = frozenset(instant(day) // (1000 * DAY) for day in hours.except_days)
        self._offset = hours.utc_offset * 3600

    def within(self, at: int) -> bool:
        seconds = at // 1000
        of_day = seconds % DAY
        if not any(
            begin <= of_day < end if begin < end else of_day >= begin or of_day < end for begin, end in self._windows
        ):
            return False
        day = (seconds + self._offset) // DAY
        # the first of January 1970 was a Thursday
        return not (self._weekdays_only and (day + 3) % 7 > 4) and day not in self._holidays


def _seconds(of_day: str) -> int:
    hours, minutes = of_day.split(":")
    return (int(hours) * 60 + int(minutes)) * 60 % DAY


class Priced:
    """One period of one entry of a list, compiled mode by mode as they are asked for."""

    def __init__(self, prices: PriceList, name: str, period: Period) -> None:
        self.prices = prices
        self.period = period
        day = (period.start or period.seen)[:10]
        own = "#own" if prices.own else ""
        self.id = f"{prices.name}/{name}{f'@{day}' if day else ''}{own}"
        self._clock = Clock(prices.hours[period.hours]) if period.hours is not None else None
        self._cards: dict[tuple[str, bool], Card | None] = {}
        self._possible: dict[str, tuple[Card, ...]] = {}
        self._modes: dict[str | None, str] = dict(SERVICE_TIERS)
        self._modes.update(prices.service_tiers)

    def card(self, service_tier: str | None, thinking: bool, at: int) -> Card | None:
        """The prices of a call; None where the list has none for such calls."""
        mode = self._mode(service_tier)
        if self._clock is not None and mode == STANDARD and self._clock.within(at):
            mode = self.period.hours or STANDARD
        return self._card(mode, thinking)

    def cards(self, service_tier: str | None = None) -> tuple[Card, ...]:
        """Every card that may come to hold for a call that asks for the tier, whenever it is answered."""
        mode = self._mode(service_tier)
        if mode not in self._possible:
            modes = [mode, self.period.hours] if mode == STANDARD and self.period.hours is not None else [mode]
            pairs = [(one, thinking) for one in modes for thinking in (False, True)]
            found = tuple(dict.fromkeys(card for pair in pairs if (card := self._card(*pair)) is not None))
            if not found:
                return ()
            self._possible[mode] = found
        return self._possible[mode]

    def _mode(self, service_tier: str | None) -> str:
        return self._modes.get(service_tier, service_tier) or STANDARD

    def _card(self, mode: str, thinking: bool) -> Card | None:
        key = (mode, thinking and THINKING in self.period.modes)
        if key not in self._cards:
            card = self._compiled(*key)
            if card is None:
                # not remembered: anybody may ask for any word
                return None
            self._cards[key] = card
        return self._cards[key]

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(self.period.modes)

    def _compiled(self, mode: str, thinking: bool) -> Card | None:
        period = self.period
        name = mode
        if thinking:
            name = THINKING if mode == STANDARD else f"{mode}-{THINKING}"
        sheet: Sheet | None = period if name == STANDARD else period.modes.get(name)
        if sheet is None:
            return None
        below = period if name == THINKING else None
        mark = "" if name == STANDARD else f"#{name}"
        return compiled(sheet, below, self.prices.currency, self.prices.derived, self.id + mark)


class Timeline:
    """A model's prices through time. Of periods that hold at once the one that was given first wins."""

    def __init__(self, layers: Sequence[Sequence[Priced]]) -> None:
        spans = [_spans(layer) for layer in layers]
        bounds = sorted({BEGINNING, *(bound for layer in spans for begin, end, _ in layer for bound in (begin, end))})
        self._bounds = bounds
        self._found = [
            next((priced for layer in spans for begin, end, priced in layer if begin <= bound < end), None)
            for bound in bounds
        ]
        self._from = self._to = 0
        self._last: Priced | None = None

    def at(self, at: int) -> Priced | None:
        if not self._from <= at < self._to:
            index = bisect_right(self._bounds, at) - 1
            self._from = self._bounds[index]
            self._to = self._bounds[index + 1] if index + 1 < len(self._bounds) else END
            self._last = self._found[index]
        return self._last


def _spans(layer: Sequence[Priced]) -> list[tuple[int, int, Priced]]:
    """When each period of one entry holds: until the next begins, or until it ends itself."""
    begins = [BEGINNING if one.period.start is None else instant(one.period.start) for one in layer]
    found = []
    for begin, priced in zip(begins, layer, strict=True):
        end = END if priced.period.until is None else instant(priced.period.until)
        found.append((begin, min([end, *(other for other in begins if other > begin)]), priced))
    return found


class Index:
    """Finds a model's entry in a list, by its name, a pattern or as a snapshot."""

    def __init__(self, prices: PriceList) -> None:
        self.prices = prices
        names = {name: entry for entry in prices.entries for name in entry.models}
        self._exact = {name: entry for name, entry in names.items() if "*" not in name}
        # the longest pattern says most
        self._patterns = sorted(((name, entry) for name, entry in names.items() if "*" in name), key=_length)
        self._snapshots = re.compile(prices.snapshots) if prices.snapshots else None

    def head(self, model: str) -> str | None:
        """The name of the entry that prices the model, itself or as the model that it is a snapshot of."""
        entry = self._exact.get(model)
        if entry is None and self._snapshots is not None:
            snapshot = self._snapshots.search(model)
            entry = self._exact.get(model[: snapshot.start()]) if snapshot else None
        return None if entry is None else entry.models[0]

    def exact(self, name: str | None) -> list[Priced]:
        """The periods of the entry with that name."""
        entry = self._exact.get(name or "")
        return [] if entry is None else [Priced(self.prices, entry.models[0], period) for period in entry.periods]

    def patterns(self, model: str) -> list[tuple[str, list[Priced]]]:
        """The patterns that fit, the longest first, and their periods."""
        return [
            (pattern, [Priced(self.prices, pattern, period) for period in entry.periods])
            for pattern, entry in self._patterns
            if re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), model)
        ]

    def models(self) -> tuple[str, ...]:
        return (*self._exact, *(name for name, _ in self._patterns))


def _length(item: tuple[str, Entry]) -> tuple[int, str]:
    return -len(item[0]), item[0]
