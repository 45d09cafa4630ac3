"""What models are able to do: the package's data, the provider's row, and the route's word."""

import pytest

from router.prices.shipped import Shipped as ShippedPrices
from router.route import Can
from router.routing.capabilities import Capabilities
from router.settings import ProviderRow

OPENAI = ProviderRow(name="openai", protocol="openai")
QWEN = ProviderRow(name="qwen", protocol="dashscope")


@pytest.fixture(scope="module")
def capabilities() -> Capabilities:
    return Capabilities()


def test_a_vendors_own_models_are_known_by_its_protocol_its_host_or_its_price_list(capabilities: Capabilities) -> None:
    claude = ProviderRow(name="c", protocol="openai", base_url="https://api.anthropic.com/v1")
    workspace = ProviderRow(name="w", protocol="openai", base_url="https://ws-1.cn-beijing.maas.aliyuncs.com/v1")
    relay = ProviderRow(name="r", protocol="openai", base_url="https://relay.example.com/v1", price_list="openai")
    assert capabilities.vendor_of(OPENAI) == "openai"
    assert capabilities.vendor_of(QWEN) == "alibaba"
    assert capabilities.vendor_of(claude) == "anthropic"
    assert capabilities.vendor_of(workspace) == "alibaba"
    assert capabilities.vendor_of(relay) == "openai"


@pytest.mark.parametrize(
    "row",
    [
        ProviderRow(name="openai", protocol="openai", base_url="http://127.0.0.1:8000/v1"),
        ProviderRow(name="openai", protocol="openai", base_url="https://api.openai.com.example.org/v1"),
        ProviderRow(name="mock", protocol="mock"),
    ],
)
def test_nothing_is_known_of_the_same_names_elsewhere(capabilities: Capabilities, row: ProviderRow) -> None:
    assert capabilities.vendor_of(row) is None
    assert capabilities.can_of(row, "gpt-4o") == Can()


def test_what_is_known_of_a_model_holds_for_its_dated_snapshots(capabilities: Capabilities) -> None:
    assert capabilities.can_of(OPENAI, "gpt-5-mini").context == 400_000
    assert capabilities.can_of(OPENAI, "gpt-5-mini-2027-01-31").context == 400_000
    assert capabilities.can_of(OPENAI, "gpt-5-mini-2025-08-07").audio is False, "the snapshot's own entry says less"


def test_a_model_that_only_looks_like_a_known_one_is_not_known(capabilities: Capabilities) -> None:
    for model in ("gpt-5-mini-turbo", "gpt-5-min", "GPT-4o", "no-such-model", ""):
        assert capabilities.can_of(OPENAI, model) == Can()


def test_a_text_models_lack_of_eyes_is_known(capabilities: Capabilities) -> None:
    assert capabilities.can_of(QWEN, "qwen-plus").images is False
    assert capabilities.can_of(QWEN, "qwen3-vl-plus").images is True
    assert capabilities.can_of(OPENAI, "gpt-4o").reasoning is False


def test_the_routes_word_wins_over_the_rows_and_that_over_the_packages(capabilities: Capabilities) -> None:
    row = ProviderRow(
        name="qwen", protocol="dashscope", can={"qwen-p*": Can(images=True, context=5000), "*": Can(tools=False)}
    )
    plain = capabilities.can_of(QWEN, "qwen-plus")
    told = capabilities.can_of(row, "qwen-plus", Can(context=7000))
    assert told == Can(
        tools=plain.tools,
        images=True,
        audio=plain.audio,
        json_schema=plain.json_schema,
        reasoning=plain.reasoning,
        context=7000,
    )
    assert plain.tools is True, "only the first pattern that matches counts"
    assert capabilities.can_of(row, "other", Can()).tools is False


def test_false_is_said_only_where_all_sources_know_the_model(capabilities: Capabilities) -> None:
    sources = set(capabilities.shipped.sources)
    for vendor in capabilities.shipped.vendors:
        for name, known in vendor.models.items():
            assert known.source, name
            assert set(known.source) <= sources, name
            said = (known.tools, known.images, known.audio, known.json_schema, known.reasoning)
            assert False not in said or set(known.source) == sources, name
            assert known.context is None or 1000 <= known.context <= 20_000_000, name


def test_vendors_are_told_apart_as_the_price_book_does(capabilities: Capabilities) -> None:
    listed = ShippedPrices().listed
    for vendor in capabilities.shipped.vendors:
        for name in vendor.price_lists:
            assert name in listed
            for host in listed[name].hosts:
                row = ProviderRow(name="row", protocol="openai", base_url=f"https://{host.replace('*', 'any')}/v1")
                assert capabilities.vendor_of(row) == vendor.name
