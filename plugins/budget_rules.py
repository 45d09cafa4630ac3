"""The settings of `budget`: who may spend how much, and what happens at the edges."""

from typing import Annotated, Final, Literal, Self, TypeAlias

from msgspec import Meta, Struct

from router.access import Budget, Period, SubjectKind
from router.money import NANO, Money

EVERY: Final = "*"
WORDS: Final[dict[Period, str]] = {"day": "a day", "month": "a month", "total": "in total"}
_LARGEST: Final = 10**9
"""Units of a currency: in nano-units all sums of them fit into 64 bits."""
_KINDS: Final[tuple[SubjectKind, ...]] = ("key", "user", "team", "tag")
Budgets: TypeAlias = tuple[Budget, ...]


class Amount(str):
    """Money as it is written: `10 USD`."""

    @classmethod
    def parse(cls, value: object) -> Self:
        try:
            money = Money.parse(value)
        except ValueError as error:
            message = str(error)
            raise ValueError(message if message.startswith("must") else f"has a wrong currency: {message}") from None
        if money.nano > _LARGEST * NANO:
            raise ValueError(f"must be at most {_LARGEST} {money.currency}")
        return cls(money)


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """A budget for one key, user, team or tag (`name=value`), or for each of them (`*`, `name=*`)."""

    amount: Amount
    per: Period = "month"
    key: str | None = None
    user: str | None = None
    team: str | None = None
    tag: str | None = None

    def __post_init__(self) -> None:
        named = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(named) != 1:
            said = f"has {' and '.join(f'`{kind}`' for kind in named)}" if named else "has none of them"
            raise ValueError(f"a budget is for one of `key`, `user`, `team` or `tag`; this one {said}")
        subject = self.subject
        if not subject:
            raise ValueError(f'`{self.kind}` is empty: name one, or write "*" for each one')
        name, _, value = subject.partition("=")
        if self.kind == "tag" and (not name or not value or name == EVERY):
            raise ValueError("`tag` must look like feature=search, or feature=* for each value")

    @property
    def kind(self) -> SubjectKind:
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def subject(self) -> str:
        return str(getattr(self, self.kind))

    @property
    def budget(self) -> Budget:
        return Budget(Money.parse(self.amount), self.per)


class BudgetSettings(Struct, frozen=True, forbid_unknown_fields=True):
    rules: tuple[Rule, ...] = ()
    unpriced: Literal["refuse", "allow"] = "refuse"
    """A call that counts for a budget, to a model whose price is not known."""
    output: Annotated[int, Meta(ge=1, le=10**7)] = 4096
    """Tokens of output when the client sets no `max_tokens`: of a stream those that are reserved at a time, else the
    most that each choice may have."""
    on_failure: Literal["open", "closed"] = "closed"
    """What happens to calls with a budget while no budget can be asked: they pass, or are refused."""
    tokenizer: bool = True
    """False: count tokens by length alone (a token is four bytes)."""

    def __post_init__(self) -> None:
        seen: set[tuple[str, str, str, str]] = set()
        for rule in self.rules:
            currency = rule.budget.amount.currency
            place = (rule.kind, rule.subject, rule.per, currency)
            if place in seen:
                shown = rule.subject[:64]
                raise ValueError(f"two rules for the {rule.kind} `{shown}` {WORDS[rule.per]} in {currency}: keep one")
            seen.add(place)
