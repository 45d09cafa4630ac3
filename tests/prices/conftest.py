"""The price book as the tests use it: built for a few providers, with and without prices of the user's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.prices.pricing import PriceBookPricing, price_book
from router.settings import Config, Prices, ProviderRow

ADDRESSES = {
    "openai": "https://api.openai.com/v1",
    "dashscope": "https://dashscope.aliyuncs.com/api/v1",
    "mock": "mock:",
    "own": None,
}
ROWS = (
    ProviderRow(name="openai", protocol="openai"),
    ProviderRow(name="claude", protocol="openai", base_url="https://api.anthropic.com/v1"),
    ProviderRow(name="gemini", protocol="openai", base_url="https://generativelanguage.googleapis.com/v1beta/openai"),
    ProviderRow(name="qwen", protocol="dashscope"),
    ProviderRow(name="qwen-intl", protocol="openai", base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1"),
    ProviderRow(name="qwen-us", protocol="openai", base_url="https://dashscope-us.aliyuncs.com/compatible-mode/v1"),
    ProviderRow(name="deepseek", protocol="openai", base_url="https://api.deepseek.com"),
    ProviderRow(name="deepseek-yuan", protocol="openai", base_url="https://api.deepseek.com", price_list="deepseek-cn"),
    ProviderRow(name="mock", protocol="mock"),
    ProviderRow(name="my-vllm", protocol="openai", base_url="http://127.0.0.1:8000/v1"),
    ProviderRow(name="homeless", protocol="own"),
)


@pytest.fixture
def book(tmp_path: Path) -> Callable[..., PriceBookPricing]:
    """Builds the pricing, with the text of a `prices.yaml` and settings of `prices` if the test has some."""

    def build(text: str | None = None, **settings: Any) -> PriceBookPricing:
        if text is not None:
            (tmp_path / "prices.yaml").write_text(text, "utf-8")
            settings["file"] = "prices.yaml"
        config = Config(providers={row.name: row for row in ROWS}, prices=Prices(**settings))
        return price_book(config, str(tmp_path / "providers.yaml"), ADDRESSES)

    return build


@pytest.fixture(scope="session")
def pricing() -> PriceBookPricing:
    """The prices of the package."""
    return price_book(Config(providers={row.name: row for row in ROWS}), None, ADDRESSES)
