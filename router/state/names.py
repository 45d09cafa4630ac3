"""Accounts by their names, for state that keeps them as text."""

from typing import Any

from router.accounts import Account


def account_named(name: str) -> Account:
    """The account that `str(account)` is `name`. The subject may hold any character, the rest holds no slash."""
    head, period, currency = name.rsplit("/", 2)
    kind, _, subject = head.partition(":")
    per, _, span = period.partition(":")
    parts: Any = (kind, subject, per, span, currency)
    return Account(*parts)
