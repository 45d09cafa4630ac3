"""`docs/prices.md` says what is true: its files are read, its errors are told, its lists exist."""

import re
from pathlib import Path

import pytest
import yaml

from router.config import parse as parse_configuration
from router.document import ConfigError
from router.prices.book import MODES
from router.prices.file import PriceEntry, parse
from router.prices.shipped import Shipped

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "prices.md"
TEXT = DOCUMENT.read_text("utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.M | re.S)
LISTS = {**Shipped().listed}


@pytest.mark.parametrize("text", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_is_read(text: str) -> None:
    if isinstance(yaml.safe_load(text)["prices"], dict):
        assert parse_configuration(text, "providers.yaml", {}).config.prices.file
    else:
        own = parse(text, "prices.yaml", {*LISTS, "my-vllm"})
        assert own.lists
        assert own.quotes


def test_the_wrong_example_is_told_as_shown() -> None:
    ((text, shown),) = re.findall(r"^```yaml wrong\n(.*?)^```\n\n```text\n(.*?)^```$", TEXT, re.M | re.S)
    with pytest.raises(ConfigError) as caught:
        parse(text, "prices.yaml", ("alibaba-cn", "openai"))
    assert f"{caught.value}\n" == shown


def test_every_key_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", TEXT))
    assert set(PriceEntry.__struct_encode_fields__) <= explained
    assert set(MODES) <= explained


def test_every_list_is_named_with_its_hosts_and_currency() -> None:
    table = TEXT.partition("## What is in the package")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| `")]
    named = {name: (currency, hosts) for names, currency, hosts in rows for name in re.findall(r"`([\w-]+)`", names)}
    assert set(named) == set(LISTS)
    for listed in LISTS.values():
        currency, hosts = named[listed.name]
        assert listed.currency in currency
        assert all(f"`{host}`" in hosts for host in listed.hosts), listed.name
