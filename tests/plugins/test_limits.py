"""A call takes from all the limits it counts for or is refused in words, and gives back what it did not use."""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from plugins.limits import LimitsPlugin, duration, over
from router.access import Limits, Owner
from router.call import Call, Events, Principal
from router.config import ConfigError, parse
from router.errors import LimitReached, RateLimited, StoreUnavailable
from router.gates import GatesAway, Parallel, Passage, Rate
from router.plugin import compose
from router.services import Services
from router.state.memory_gates import MemoryGates
from router.tokens import TokenCounter
from tests.plugins.calls import collect
from tests.plugins.lending import Vendor, a_call, lend, text

KEY = Principal("dw-ab12", "search")
OWN = Principal("dw-ab12", "search", user="u1", team="research", limits=Limits(rpm=2))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limits(services: Services, **settings: Any) -> LimitsPlugin:
    return LimitsPlugin(LimitsPlugin.Settings(**settings), services)


async def answered(plugin: LimitsPlugin, services: Services, call: Call) -> Call:
    await collect(compose([plugin], Vendor(services))(call))
    return call


def test_a_call_without_limits_passes_by() -> None:
    events = object()
    plugin = limits(lend())
    assert plugin.stream(a_call(principal=KEY, user="u1"), lambda call: events) is events  # type: ignore[arg-type,return-value]


async def test_a_key_that_asks_too_often_is_told_which_limit_and_when_to_come_back() -> None:
    services = lend(gates=MemoryGates(clock := Clock()))
    plugin = limits(services, key=Limits(rpm=2))
    for _ in range(2):
        await answered(plugin, services, a_call(principal=KEY))
    call = a_call(principal=KEY)
    with pytest.raises(LimitReached) as caught:
        await answered(plugin, services, call)
    assert caught.value.message == "the key `dw-ab12` may make 2 requests a minute; try again in 30 s"
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.retry_after == pytest.approx(30)
    assert call.trip.attempts == []
    clock.now += 30
    await answered(plugin, services, a_call(principal=KEY))


async def test_each_key_has_its_own_count() -> None:
    services = lend()
    plugin = limits(services, key=Limits(rpm=1))
    await answered(plugin, services, a_call(principal=KEY))
    await answered(plugin, services, a_call(principal=Principal("dw-cd34")))
    with pytest.raises(LimitReached):
        await answered(plugin, services, a_call(principal=KEY))


def test_what_somebody_has_of_their_own_wins_field_by_field() -> None:
    assert over(Limits(rpm=600, tpm=1000), Limits(rpm=60, parallel=5)) == Limits(60, 1000, 5)
    assert over(Limits(rpm=600), Limits()) == Limits(rpm=600)


class Recorded(MemoryGates):
    """What was asked of the gates."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[Rate] = []
        self.parallels: list[Parallel] = []
        self.corrections: list[Rate] = []
        self.inside: set[str] = set()

    async def enter(self, call_id: str, rates: Sequence[Rate], parallels: Sequence[Parallel]) -> Passage:
        self.rates += rates
        self.parallels += parallels
        passage = await super().enter(call_id, rates, parallels)
        if passage.refused_by is None:
            self.inside.add(call_id)
        return passage

    async def leave(self, call_id: str, corrections: Sequence[Rate] = ()) -> None:
        self.corrections += corrections
        self.inside.discard(call_id)
        await super().leave(call_id, corrections)


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (
            a_call(principal=OWN, user="ignored"),
            {"rpm:key:dw-ab12": 2, "rpm:user:u1": 7, "rpm:team:research": 30},
        ),
        (a_call(principal=KEY), {"rpm:key:dw-ab12": 10}),
        (a_call(principal=KEY, user="u2"), {"rpm:key:dw-ab12": 10, "rpm:user:u2": 20}),
        (a_call(), {"rpm:anonymous": 10}),
        (a_call(user="u1"), {"rpm:anonymous": 10, "rpm:user:u1": 7}),
        (a_call(principal=Principal("admin", admin=True), user="u1"), {}),
        (a_call(principal=Principal("admin", admin=True, limits=Limits(rpm=3))), {"rpm:key:admin": 3}),
    ],
    ids=["own", "default", "with-a-user", "nobody", "only-a-user", "admin", "admin-with-its-own"],
)
async def test_a_call_counts_for_its_key_its_user_and_its_team(call: Call, wanted: dict[str, int]) -> None:
    gates = Recorded()
    services = lend(Owner("user", "u1", limits=Limits(rpm=7)), gates=gates)
    plugin = limits(services, key=Limits(rpm=10), user=Limits(rpm=20), team=Limits(rpm=30))
    await answered(plugin, services, call)
    assert {rate.key: rate.limit for rate in gates.rates} == wanted


async def test_a_users_name_of_any_length_takes_little_of_the_state_and_of_the_message() -> None:
    services = lend(gates=(gates := Recorded()))
    plugin = limits(services, user=Limits(rpm=1))
    await answered(plugin, services, a_call(user="x" * 10_000 + "1"))
    await answered(plugin, services, a_call(user="x" * 10_000 + "2"))
    assert all(len(rate.key) < 100 for rate in gates.rates)
    with pytest.raises(LimitReached) as caught:
        await answered(plugin, services, a_call(user="x" * 10_000 + "1"))
    assert len(caught.value.message) < 200


# -- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "estimated"), [({}, 8), ({"max_tokens": 100}, 108), ({"max_tokens": 100, "n": 3}, 308)]
)
async def test_tokens_are_estimated_before_and_corrected_after(sampling: dict[str, int], estimated: int) -> None:
    services = lend(gates=(gates := Recorded()))
    plugin = limits(services, key=Limits(tpm=1000), team=Limits(tpm=5000))
    call = await answered(plugin, services, a_call(principal=OWN, **sampling))
    assert {rate.key: rate.cost for rate in gates.rates} == {
        "rpm:key:dw-ab12": 1,
        "tpm:key:dw-ab12": estimated,
        "tpm:team:research": estimated,
    }
    # 8 of input, 11 of output
    assert gates.corrections == [
        Rate("tpm:key:dw-ab12", 1000, 60.0, 19 - estimated),
        Rate("tpm:team:research", 5000, 60.0, 19 - estimated),
    ]
    assert call.trip.headers["x-ratelimit-remaining-tokens"] == str(1000 - estimated)


async def test_all_tries_of_a_call_count() -> None:
    services = lend(gates=(gates := Recorded()))
    plugin = limits(services, key=Limits(tpm=1000))
    await collect(compose([plugin], Vendor(services, failing=1))(a_call(principal=KEY)))
    assert [rate.cost for rate in gates.corrections] == [(8 + 4) + (8 + 11) - 8]


async def test_a_call_that_no_vendor_answered_gets_its_tokens_back() -> None:
    services = lend(gates=(gates := Recorded()))
    plugin = limits(services, key=Limits(tpm=1000))
    failing = Vendor(services, text()[:1], error=RateLimited("slow down"))
    with pytest.raises(RateLimited):
        await collect(compose([plugin], failing)(a_call(principal=KEY)))
    assert [rate.cost for rate in gates.corrections] == [-8]

    async def cache(call: Call) -> Events:
        for event in text("known"):
            yield event

    await collect(compose([plugin], cache)(a_call(principal=KEY, max_tokens=10)))
    assert gates.corrections[1].cost == -18


async def test_an_answer_whose_usage_nobody_knows_keeps_the_estimate() -> None:
    services = lend(gates=(gates := Recorded()))
    vendor = Vendor(services)

    async def forgetful(call: Call) -> Events:
        async for event in vendor(call):
            yield event
        call.trip.attempts[0].usage = None

    await collect(compose([limits(services, key=Limits(tpm=1000))], forgetful)(a_call(principal=KEY)))
    assert gates.corrections == []


async def test_a_request_over_the_whole_limit_passes_a_full_bucket_only() -> None:
    services = lend(gates=MemoryGates(clock := Clock()))
    plugin = limits(services, key=Limits(tpm=100))
    await answered(plugin, services, a_call(principal=KEY))
    with pytest.raises(LimitReached) as caught:
        await answered(plugin, services, a_call(principal=KEY, max_tokens=1000))
    assert caught.value.message == (
        "the key `dw-ab12` may use 100 tokens a minute, and this call may take 1008: it passes only after a minute "
        "without calls; send less, ask for fewer tokens, or try again in 12 s"
    )
    clock.now += 60
    await answered(plugin, services, a_call(principal=KEY, max_tokens=1000))


async def test_no_number_of_tokens_is_too_large_to_be_counted() -> None:
    services = lend(gates=(gates := Recorded()))
    call = a_call(principal=KEY, max_tokens=10**30)
    await answered(limits(services, key=Limits(tpm=100)), services, call)
    assert gates.rates[0].cost == 10**12


async def test_without_a_vocabulary_tokens_are_estimated_by_length(tmp_path: Path) -> None:
    services = lend(gates=(gates := Recorded()), tokens=TokenCounter(tmp_path))
    with capture_logs() as logs:
        await answered(limits(services, key=Limits(tpm=1000)), services, a_call(principal=KEY, prompt="x" * 40))
    # 40 letters by length, 6 around the message
    assert gates.rates[0].cost == 10 + 6
    assert [line["event"] for line in logs] == ["tokens are estimated by length"]


async def test_tokens_are_counted_by_length_alone_if_so_wished() -> None:
    services = lend(gates=(gates := Recorded()))
    plugin = limits(services, key=Limits(tpm=1000), tokenizer=False)
    await answered(plugin, services, a_call(principal=KEY, prompt="x" * 40))
    assert gates.rates[0].cost == 10 + 6
    assert services.tokens.asked == []  # type: ignore[attr-defined]


async def test_a_request_is_not_counted_where_nobody_limits_tokens() -> None:
    services = lend()
    await answered(limits(services, key=Limits(rpm=10, parallel=3)), services, a_call(principal=KEY))
    assert services.tokens.asked == []  # type: ignore[attr-defined]


async def test_a_model_that_nobody_knows_is_left_to_the_layers_inside() -> None:
    services = lend()
    call = await answered(limits(services, key=Limits(tpm=1000)), services, a_call("unheard-of", principal=KEY))
    assert call.trip.attempts


# -- places --------------------------------------------------------------------------------------------------------


async def test_calls_at_once_are_bounded_and_a_place_is_free_again_when_its_call_ends() -> None:
    services = lend()
    plugin = limits(services, key=Limits(parallel=2))
    gate = asyncio.Event()
    vendor = Vendor(services, gate=gate)
    layers = compose([plugin], vendor)
    tasks = [asyncio.create_task(collect(layers(a_call(principal=KEY, number=number)))) for number in range(2)]
    while vendor.running < 2:
        await asyncio.sleep(0)
    with pytest.raises(LimitReached) as caught:
        await collect(layers(a_call(principal=KEY, number=3)))
    assert caught.value.message == "the key `dw-ab12` may have 2 calls at once; try again when one has ended"
    assert caught.value.retry_after is not None
    gate.set()
    await asyncio.gather(*tasks)
    await collect(layers(a_call(principal=KEY, number=3)))


class Slow(Recorded):
    """Gates at some distance: what is asked of them takes effect on the way back, whoever still waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way: set[asyncio.Task[Any]] = set()

    async def enter(self, call_id: str, rates: Sequence[Rate], parallels: Sequence[Parallel]) -> Passage:
        await asyncio.sleep(0)
        return await self._sent(super().enter(call_id, rates, parallels))

    async def leave(self, call_id: str, corrections: Sequence[Rate] = ()) -> None:
        await asyncio.sleep(0)
        await self._sent(super().leave(call_id, corrections))

    async def _sent(self, work: Any) -> Any:
        async def arrive() -> Any:
            await asyncio.sleep(0)
            return await work

        task = asyncio.create_task(arrive())
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)
        result = await asyncio.shield(task)
        await asyncio.sleep(0)
        return result


@pytest.mark.parametrize("gates", [Recorded, Slow])
@pytest.mark.parametrize("turns", range(26))
async def test_a_place_is_free_again_wherever_the_call_is_cancelled(turns: int, gates: type[Recorded]) -> None:
    services = lend(gates=(state := gates()))
    plugin = limits(services, key=Limits(parallel=1, tpm=1000))
    async with plugin.lifespan():
        call = a_call(principal=KEY)

        async def served() -> None:
            try:
                await collect(compose([plugin], Vendor(services))(call))
            finally:
                await call.trip.close()

        task = asyncio.create_task(served())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    # what was late has come by now
    assert state.inside == set()
    assert (await state.enter("other", [], [Parallel("parallel:key:dw-ab12", 1)])).refused_by is None


@pytest.mark.parametrize("seen", range(6))
async def test_a_place_is_free_again_wherever_the_client_leaves(seen: int) -> None:
    services = lend(gates=(gates := Recorded()))
    plugin = limits(services, key=Limits(parallel=1, tpm=1000))
    call = a_call(principal=KEY)
    events = compose([plugin], Vendor(services))(call)
    for _ in range(seen):
        await anext(events)
    await call.trip.close()
    assert gates.inside == set()
    assert len(gates.corrections) == (1 if seen > 1 else 0)


# -- the state away ------------------------------------------------------------------------------------------------


class Away(Recorded):
    def __init__(self) -> None:
        super().__init__()
        self.away = True

    async def enter(self, call_id: str, rates: Sequence[Rate], parallels: Sequence[Parallel]) -> Passage:
        if self.away:
            raise GatesAway("connection refused by redis://10.0.0.1")
        return await super().enter(call_id, rates, parallels)

    async def leave(self, call_id: str, corrections: Sequence[Rate] = ()) -> None:
        if self.away:
            raise GatesAway("connection refused by redis://10.0.0.1")
        await super().leave(call_id, corrections)


async def test_calls_pass_while_limits_cannot_be_counted_and_the_log_says_so_once() -> None:
    services = lend(gates=(gates := Away()))
    plugin = limits(services, key=Limits(rpm=1))
    with capture_logs() as logs:
        for _ in range(3):
            await answered(plugin, services, a_call(principal=KEY))
        gates.away = False
        await answered(plugin, services, a_call(principal=KEY))
        with pytest.raises(LimitReached):
            await answered(plugin, services, a_call(principal=KEY))
        gates.away = True
        await answered(plugin, services, a_call(principal=KEY))
    assert [line["event"] for line in logs] == [
        "limits cannot be counted: calls pass without them",
        "limits are counted again",
        "limits cannot be counted: calls pass without them",
    ]


async def test_calls_are_refused_while_limits_cannot_be_counted_if_so_wished() -> None:
    services = lend(gates=Away())
    plugin = limits(services, key=Limits(rpm=1), on_failure="closed")
    with capture_logs() as logs, pytest.raises(StoreUnavailable) as caught:
        await answered(plugin, services, a_call(principal=KEY))
    assert caught.value.retry_after
    assert "redis" not in caught.value.message
    assert logs[0]["reason"] == "connection refused by redis://10.0.0.1"


async def test_a_call_ends_although_the_state_went_away_meanwhile() -> None:
    services = lend(gates=(gates := Away()))
    gates.away = False
    plugin = limits(services, key=Limits(parallel=5))
    call = a_call(principal=KEY)
    events = compose([plugin], Vendor(services))(call)
    await anext(events)
    gates.away = True
    with capture_logs() as logs:
        assert len([event async for event in events]) == 4
    assert [line["event"] for line in logs] == ["places of calls that end now fall free late"]


@pytest.mark.parametrize(("limit", "said"), [(Limits(parallel=9), 2), (Limits(rpm=100, tpm=10**6), 0)])
async def test_that_places_fall_free_late_is_said_once_an_outage_and_only_of_places(limit: Limits, said: int) -> None:
    services = lend(gates=(gates := Away()))
    layers = compose([limits(services, key=limit)], Vendor(services))
    with capture_logs() as logs:
        for outage in range(2):
            gates.away = False
            running = [layers(a_call(principal=KEY, number=4 * outage + number)) for number in range(4)]
            for events in running:
                await anext(events)
            gates.away = True
            for events in running:
                assert len(await collect(events)) == 4
    assert [line["event"] for line in logs] == ["places of calls that end now fall free late"] * said


class Mute(Recorded):
    async def enter(self, call_id: str, rates: Sequence[Rate], parallels: Sequence[Parallel]) -> Passage:
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_state_that_does_not_answer_counts_as_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.limits.PATIENCE", 0.01)
    services = lend(gates=Mute())
    with capture_logs() as logs:
        await answered(limits(services, key=Limits(rpm=1)), services, a_call(principal=KEY))
    assert logs[0]["reason"] == "no answer in time"


# -- headers -------------------------------------------------------------------------------------------------------


async def test_the_headers_tell_of_the_limit_that_is_nearest_to_its_end() -> None:
    services = lend(gates=MemoryGates(Clock()))
    plugin = limits(services, key=Limits(rpm=600, tpm=100), user=Limits(rpm=60, tpm=5000))
    call = await answered(plugin, services, a_call(principal=KEY, user="u1"))
    assert call.trip.headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "92",
        "x-ratelimit-reset-tokens": "4.8s",
    }


async def test_a_refusal_bears_the_headers_of_the_limit_that_refused() -> None:
    services = lend(gates=MemoryGates(Clock()))
    plugin = limits(services, key=Limits(rpm=600, tpm=1000), user=Limits(tpm=1010))
    await answered(plugin, services, a_call(principal=KEY, max_tokens=900))
    call = a_call(principal=KEY, user="u1", prompt="x" * 994)
    with pytest.raises(LimitReached):
        await answered(plugin, services, call)
    assert call.trip.headers["x-ratelimit-remaining-requests"] == "599"
    assert call.trip.headers["x-ratelimit-limit-tokens"] == "1000"
    # 8 + 11 were used, and nothing was taken for this one
    assert call.trip.headers["x-ratelimit-remaining-tokens"] == "981"


async def test_places_have_no_headers() -> None:
    services = lend()
    call = await answered(limits(services, key=Limits(parallel=3)), services, a_call(principal=KEY))
    assert call.trip.headers == {}


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        *((0.0, "0s"), (0.0001, "1ms"), (0.12, "120ms"), (0.9999, "1s"), (1.0, "1s"), (8.64, "8.64s")),
        *((59.999, "59.999s"), (60.0, "1m0s"), (86.4, "1m26.4s"), (360.0, "6m0s"), (3600.0, "1h0m0s")),
    ],
)
def test_a_duration_is_written_as_openai_writes_it(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@given(st.floats(0, 10**6))
def test_a_duration_is_no_shorter_than_what_it_stands_for(seconds: float) -> None:
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:([\d.]+)s)?|(\d+)ms", duration(seconds))
    assert match
    hours, minutes, rest, milliseconds = (float(group or 0) for group in match.groups())
    read = hours * 3600 + minutes * 60 + rest + milliseconds / 1000
    assert seconds - 1e-6 <= read <= seconds + 0.0011


# -- settings ------------------------------------------------------------------------------------------------------


def read(settings: str) -> LimitsPlugin.Settings:
    loaded = parse(f"plugins:\n  - limits: {settings}\n", "p.yaml", {})
    return loaded.document.convert(loaded.config.plugins[0].path, LimitsPlugin.Settings)


def test_the_settings_are_read() -> None:
    wanted = LimitsPlugin.Settings(key=Limits(600, 1_000_000, 50), team=Limits(tpm=5), on_failure="closed")
    text = "{key: {rpm: 600, tpm: 1000000, parallel: 50}, team: {tpm: 5}, on_failure: closed}"
    assert read(text) == wanted
    assert read("{}") == LimitsPlugin.Settings()


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ("{key: {rpm: -1}}", "p.yaml:2:25: `plugins[0].limits.key.rpm` must be at least 1"),
        ("{key: {rpm: 0}}", "p.yaml:2:25: `plugins[0].limits.key.rpm` must be at least 1"),
        (
            "{user: {tpm: 1.5}}",
            "p.yaml:2:26: `plugins[0].limits.user.tpm` must be a whole number, not a number",
        ),
        (
            "{key: {rps: 1}}",
            (
                "p.yaml:2:20: unknown key `rps` in `plugins[0].limits.key`: did you mean `rpm`? "
                "(known: parallel, rpm, tpm)"
            ),
        ),
        (
            "{on_failure: opened}",
            "p.yaml:2:26: `plugins[0].limits.on_failure` must be one of open, closed: did you mean `open`?",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(settings: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(settings)
    assert str(caught.value) == wanted
