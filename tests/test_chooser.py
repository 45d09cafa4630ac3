"""Which candidates a call has: what the route says, what the call needs, and what is known of the targets."""

import random
from typing import Any

import msgspec
import pytest

from router.adapters import Adapter, Keyed
from router.call import Call, Principal
from router.catalog import Catalog
from router.chooser import Chooser
from router.config import parse
from router.errors import InvalidRequest, Overloaded, PriceUnknown, RouterError, VendorFailed
from router.health import Ended
from router.messages import FunctionTool
from router.provider import Target
from router.route import HealthRules
from router.routing.health_book import HealthBook
from support.dispatching import Free, a_call

TEXT = """
providers:
  a: {protocol: mock}
  b: {protocol: mock}
models:
  chat: {targets: [a/x, b/y]}
  short: {targets: [{target: a/x, can: {context: 50}}], fallback: {context_length: [b/long]}}
  only-short: {targets: [{target: a/x, can: {context: 50}}]}
  blind: {targets: [{target: a/x, can: {tools: false}}, {target: b/y, can: {tools: false}}]}
  full: {targets: [{target: a/x, max_parallel: 1}]}
"""
LONG = "the river takes every arm and gives it back " * 20


class Priced(Free):
    """Knows the price of what `b` has."""

    def knows(self, target: Target, at: int) -> bool:
        return target.provider == "b"


class Setting:
    def __init__(self, keys: int = 0, pricing: Any = None, text: str = TEXT) -> None:
        self.now = 100.0
        self.health = HealthBook(HealthRules(), lambda: self.now, random.Random(1))
        catalog = Catalog(parse(text, "c.yaml", {}).config)
        nothing: Any = None
        keyed = [Keyed(nothing, f"k{n}", f"{n + 1} of {keys}") for n in range(keys)] or [Keyed(nothing)]
        adapters = {name: Adapter(name, keyed, nothing) for name in ("a", "b")}
        self.catalog = catalog
        self.chooser = Chooser(
            catalog,
            adapters,
            pricing or Free(),
            None,
            self.health,
            unpriced=pricing is None,
            draw=random.Random(1),
            clock=lambda: self.now,
        )

    def ill(self, target: Target) -> None:
        for _ in range(5):
            self.health.begin(target)
            self.health.end(Ended(target, VendorFailed("x"), False, None, 0.1))

    def chosen(self, call: Call, arm: Target | None = None) -> list[str]:
        way = self.catalog.resolve(call.request.model)
        return [str(each.target) for each in self.chooser.candidates(call, way, arm)]


def test_a_target_that_rests_is_left_out_and_the_trip_says_so() -> None:
    setting, call = Setting(), a_call("chat")
    setting.ill(Target("a", "x"))
    assert setting.chosen(call) == ["b/y"]
    (skipped,) = call.trip.skipped
    assert str(skipped.target) == "a/x"
    assert "resting" in skipped.why


def test_a_target_whose_keys_all_rest_is_left_out() -> None:
    setting = Setting(keys=2)
    setting.health.rest_key("a", "k0", "invalid")
    assert setting.chosen(a_call("chat")) == ["a/x", "b/y"]
    setting.health.rest_key("a", "k1", "quota")
    assert setting.chosen(a_call("chat")) == ["b/y"]


def test_what_is_asked_for_by_name_is_tried_whatever_is_known_of_it() -> None:
    setting = Setting()
    setting.ill(Target("a", "x"))
    assert setting.chosen(a_call("a/x")) == ["a/x"]


def test_a_prompt_too_long_for_the_route_goes_to_its_fallback() -> None:
    setting, call = Setting(), a_call("short", LONG)
    assert setting.chosen(call) == ["b/long"]
    assert call.trip.choice.startswith("fallback for context_length")
    assert setting.chosen(a_call("short", "Hi")) == ["a/x"]


def test_without_a_fallback_the_client_is_told_that_its_prompt_is_too_long() -> None:
    with pytest.raises(InvalidRequest, match="its context of 50 tokens is too short") as caught:
        Setting().chosen(a_call("only-short", LONG))
    assert caught.value.code == "context_length_exceeded"


def test_a_call_that_no_target_can_serve_is_told_why_for_each() -> None:
    with pytest.raises(InvalidRequest, match=r"a/x: no tools; b/y: no tools") as caught:
        Setting().chosen(a_call("blind", tools=(FunctionTool("f"),)))
    assert caught.value.code == "no_target"


def test_a_route_without_room_says_to_try_again() -> None:
    setting = Setting()
    setting.health.begin(Target("a", "x"))
    with pytest.raises(Overloaded) as caught:
        setting.chosen(a_call("full"))
    error: RouterError = caught.value
    assert error.retry_after is not None


def test_an_arms_target_comes_first_and_the_route_behind_it() -> None:
    setting, call = Setting(), a_call("chat")
    assert setting.chosen(call, Target("b", "y")) == ["b/y", "a/x"]
    assert setting.chosen(a_call("chat"), Target("b", "other")) == ["b/other", "a/x", "b/y"]
    assert "experiment" in call.trip.choice


def test_where_prices_must_be_known_targets_without_one_are_left_out() -> None:
    setting = Setting(pricing=Priced())
    assert setting.chosen(a_call("chat")) == ["b/y"]
    with pytest.raises(PriceUnknown, match="`a/x`"):
        setting.chosen(a_call("a/x"))


REGIONS = """
providers: {a: {protocol: mock}}
models:
  chat:
    targets: [{target: a/x, region: eu}, {target: a/y, region: us}]
    fallback: {context_length: [a/anywhere, {target: a/long, region: eu}]}
"""


def test_a_fallback_keeps_to_the_region_that_the_call_names() -> None:
    setting = Setting(text=REGIONS)
    call = msgspec.structs.replace(a_call("chat"), regions=("eu",))
    assert setting.chosen(call) == ["a/x"]
    way = setting.catalog.resolve("chat")
    assert [each.target.model for each in setting.chooser.fallback(call, way, "context_length")] == ["long"]


def test_the_region_of_a_key_binds_a_call_that_names_its_target() -> None:
    text = "providers: {a: {protocol: mock, region: us}, b: {protocol: mock}}\n"
    for region, model, there in (
        ("us", "a/x", True),
        ("eu, us", "a/x", True),
        ("eu", "a/x", False),
        ("us", "b/y", False),
    ):
        call = a_call(model).with_principal(Principal("dw-1", tags={"region": region}))
        if there:
            assert Setting(text=text).chosen(call) == [model]
            continue
        with pytest.raises(InvalidRequest) as caught:
            Setting(text=text).chosen(call)
        assert caught.value.code == "no_target"
        assert [str(each.target) for each in call.trip.skipped] == [model]


def test_a_key_whose_region_is_empty_does_not_free_a_call_from_its_own() -> None:
    call = msgspec.structs.replace(a_call("a/x"), regions=("eu",))
    assert call.with_principal(Principal("dw-1", tags={"region": ""})).regions == ("eu",)
    assert call.with_principal(Principal("dw-1", tags={"region": "us"})).regions == ("us",)
