"""`docs/limits-and-budgets.md` says what is true: its examples are valid, its keys and defaults are the code's."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from plugins import known_plugins, load_plugin
from plugins.budget import BudgetPlugin
from plugins.budget_rules import Rule
from plugins.limits import LimitsPlugin
from router.access import Limits
from router.config import parse
from router.plugin import check_order

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "limits-and-budgets.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.M | re.S)


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_is_valid(text: str) -> None:
    loaded = parse(text, "providers.yaml", {}, plugins=known_plugins())
    kinds = {row.name: load_plugin(row.name) for row in loaded.config.plugins}
    assert check_order(kinds) == []
    for row in loaded.config.plugins:
        settings = getattr(kinds[row.name], "Settings", None)
        assert settings is None or loaded.document.convert(row.path, settings) is not None
    assert loaded.config.plugins[-1].settings or loaded.config.plugins[-2].settings


def rows(heading: str) -> dict[str, str]:
    """Key → default, or what is in the last column, of the table that begins below these words."""
    table = re.search(rf"{re.escape(heading)}.*?\n\n(\|.*?)\n\n", TEXT, re.S)
    assert table
    found: dict[str, str] = {}
    for line in table[1].splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for key in re.findall(r"`(\w+)`", cells[0]):
            found[key] = cells[2] if len(cells) > 2 else cells[-1]
    return found


@pytest.mark.parametrize(
    ("heading", "kind"), [("## Limits", LimitsPlugin.Settings), ("## Budgets", BudgetPlugin.Settings)]
)
def test_every_setting_is_documented_with_its_default(heading: str, kind: type[Struct]) -> None:
    shown = rows(heading)
    assert set(shown) == set(kind.__struct_fields__)
    for field in msgspec.structs.fields(kind):
        default: Any = field.default
        if isinstance(default, bool):
            assert shown[field.name] == f"`{str(default).lower()}`"
        elif isinstance(default, int | str):
            assert shown[field.name] == f"`{default}`"
        else:
            assert shown[field.name] in ("none", "no limits")


def test_every_limit_and_every_part_of_a_rule_is_documented() -> None:
    assert set(rows("take any of these")) == set(Limits.__struct_fields__)
    assert set(rows("A rule has one of")) == set(Rule.__struct_fields__)


def test_it_is_said_what_a_budget_can_be_passed_by() -> None:
    found = re.search(r"What a budget can be passed by:\n\n(.*?)\n\n", TEXT, re.S)
    assert found
    for words in ("in one piece", "service tier", "when Redis goes away", "a price that is not known", "on_failure"):
        assert words in found[1]
