"""A breaker opens when the rules say so, lets one probe at a time through, and always comes back to be tried."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.quantities import Duration, Share, Timeout
from router.route import HealthRules
from router.routing.breaker import PROBE_PATIENCE, Breaker, Window

RULES = HealthRules(
    consecutive=3,
    rate=Share(0.5),
    minimum=6,
    window=Duration(10),
    rest=Timeout(10),
    longest_rest=Timeout(35),
)


class NoChance(random.Random):
    """Draws nothing, so that rests are as long as they may be."""

    def random(self) -> float:
        return 0.0


DRAW = NoChance()


def fail(breaker: Breaker, now: float, began: float | None = None, rules: HealthRules = RULES) -> bool:
    breaker.begin(now if began is None else began)
    return breaker.failed(now if began is None else began, now, rules, DRAW)


def succeed(breaker: Breaker, now: float, began: float | None = None, rules: HealthRules = RULES) -> bool:
    breaker.begin(now if began is None else began)
    return breaker.lived(now if began is None else began, now, rules, DRAW)


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(3):
        fail(breaker, at)
    assert breaker.state(at) == "open"
    return breaker


def test_it_opens_on_failures_in_a_row_and_says_so() -> None:
    breaker = Breaker()
    assert not fail(breaker, 0)
    assert not fail(breaker, 1)
    assert breaker.state(1) == "closed"
    assert fail(breaker, 2)
    assert breaker.state(2) == "open"
    assert breaker.free_at(2) == 12
    assert breaker.why == "3 failures in a row"


def test_a_success_in_between_begins_the_row_anew() -> None:
    breaker = Breaker()
    for now in (0.0, 1.0):
        fail(breaker, now)
    succeed(breaker, 2)
    assert not fail(breaker, 3)
    assert breaker.state(3) == "closed"


def test_it_opens_on_the_rate_once_there_were_enough_attempts() -> None:
    breaker = Breaker()
    for now in range(0, 4, 2):
        succeed(breaker, now)
        fail(breaker, now + 1)
    assert breaker.state(3) == "closed"
    succeed(breaker, 4)
    assert fail(breaker, 5)
    assert breaker.why == "3 of 6 attempts failed within 10 s"


def test_the_last_attempt_that_the_rate_needs_may_be_a_good_one() -> None:
    breaker = Breaker()
    for failed in (True, True, False, True, False):
        (fail if failed else succeed)(breaker, 0)
    assert breaker.state(0) == "closed"
    assert succeed(breaker, 1)
    assert breaker.state(1) == "open"


def test_a_rate_of_zero_opens_on_a_failure_and_never_on_a_success() -> None:
    rules = HealthRules(consecutive=100, rate=Share(0), minimum=2)
    breaker = Breaker()
    for now in range(10):
        assert not succeed(breaker, now, rules=rules)
    assert fail(breaker, 10, rules=rules)


def test_failures_older_than_the_window_count_no_longer() -> None:
    breaker = Breaker()
    for now in (0.0, 0.1):
        fail(breaker, now)
    for now in (0.2, 0.3, 0.4):
        succeed(breaker, now)
    assert not fail(breaker, 11)
    assert (breaker.window.attempts, breaker.window.failures) == (1, 1)


def test_what_began_before_it_opened_neither_closes_it_nor_counts_again() -> None:
    breaker = opened(at=5)
    assert not succeed(breaker, 6, began=1)
    assert not fail(breaker, 16, began=1)
    assert breaker.state(14.9) == "open"
    assert breaker.state(15) == "half_open"
    assert breaker.openings == 1


def test_one_probe_at_a_time() -> None:
    breaker = opened()
    assert breaker.free_at(10) is None
    breaker.begin(10)
    assert breaker.free_at(11) == 10 + PROBE_PATIENCE
    assert breaker.state(11) == "half_open"


def test_a_probe_that_never_ends_lets_another_go() -> None:
    breaker = opened()
    breaker.begin(10)
    assert breaker.free_at(10 + PROBE_PATIENCE) is None
    breaker.begin(10 + PROBE_PATIENCE)
    assert breaker.free_at(11 + PROBE_PATIENCE) == 10 + 2 * PROBE_PATIENCE


def test_a_cancelled_probe_frees_its_place() -> None:
    breaker = opened()
    breaker.begin(10)
    breaker.spared(10)
    assert breaker.free_at(11) is None
    assert breaker.state(11) == "half_open"


def test_what_began_before_it_opened_frees_no_place() -> None:
    breaker = opened(at=5)
    breaker.begin(15)
    breaker.spared(4)
    assert breaker.free_at(16) == 15 + PROBE_PATIENCE


def test_a_probe_that_is_answered_closes_it_and_forgets_what_was() -> None:
    breaker = opened()
    assert succeed(breaker, 12, began=11)
    assert breaker.state(12) == "closed"
    assert (breaker.streak, breaker.window.attempts, breaker.openings, breaker.why) == (0, 0, 0, "")
    assert not fail(breaker, 13)


def test_rests_double_up_to_the_longest_until_it_has_closed() -> None:
    breaker, now = Breaker(), 0.0
    for _ in range(3):
        fail(breaker, now)
    rests = []
    for _ in range(4):
        rests.append(breaker.until - now)
        now = breaker.until
        assert fail(breaker, now)
    assert rests == [10, 20, 35, 35]
    succeed(breaker, breaker.until)
    now = breaker.until + 50
    for _ in range(3):
        fail(breaker, now)
    assert breaker.until - now == 10


def test_very_many_openings_rest_no_longer_than_the_longest() -> None:
    breaker, now = opened(), 0.0
    for _ in range(2000):
        now = breaker.until
        fail(breaker, now)
    assert breaker.until - now == 35


@given(seed=st.integers())
def test_chance_shortens_a_rest_by_a_fifth_at_most(seed: int) -> None:
    breaker, draw = Breaker(), random.Random(seed)
    for _ in range(3):
        breaker.failed(0, 0, RULES, draw)
    assert 8 < breaker.until <= 10


def test_processes_that_open_together_do_not_probe_together() -> None:
    untils = set()
    for seed in range(20):
        breaker, draw = Breaker(), random.Random(seed)
        for _ in range(3):
            breaker.failed(0, 0, RULES, draw)
        untils.add(breaker.until)
    assert len(untils) == 20


def test_a_failure_while_it_rests_anyway_lengthens_nothing() -> None:
    breaker = opened()
    assert not fail(breaker, 5)
    assert breaker.free_at(5) == 10
    assert breaker.free_at(10) is None


def test_a_success_while_it_rests_closes_it() -> None:
    breaker = opened()
    assert succeed(breaker, 5)
    assert breaker.state(5) == "closed"


def test_a_model_that_is_not_there_rests_for_the_longest_time_at_once() -> None:
    breaker = Breaker()
    breaker.begin(0)
    assert breaker.absent(0, 0, RULES, DRAW)
    assert breaker.free_at(0) == 35
    assert breaker.is_absent
    assert not breaker.is_ill
    assert breaker.why == "the vendor does not know the model"


def test_a_model_that_was_just_there_is_not_gone_by_one_answer() -> None:
    breaker = Breaker()
    succeed(breaker, 0)
    assert not breaker.absent(1, 1, RULES, DRAW)
    assert breaker.streak == 1


def test_what_others_tell_opens_a_closed_breaker_and_leaves_an_open_one_as_it_is() -> None:
    mine, theirs = opened(), Breaker()
    assert not mine.open_until(20, "elsewhere", 1)
    assert mine.free_at(1) == 10
    assert theirs.open_until(20, "elsewhere", 1)
    assert theirs.free_at(1) == 20
    assert theirs.why == "elsewhere"
    assert not theirs.open_until(40, "elsewhere again", 2)
    assert theirs.free_at(2) == 20
    assert not theirs.open_until(60, "elsewhere again", 21)
    assert theirs.state(21) == "half_open"


def test_an_opening_that_is_over_opens_nothing() -> None:
    breaker = Breaker()
    assert not breaker.open_until(5, "elsewhere", 6)
    assert breaker.state(6) == "closed"


def test_another_window_begins_anew() -> None:
    window = Window()
    for now in range(5):
        window.add(True, now, 10)
    window.add(True, 5, 20)
    assert (window.attempts, window.failures) == (1, 1)


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60))
def test_a_window_holds_nothing_older_and_all_that_is_younger_by_a_slot(steps: list[tuple[float, bool]]) -> None:
    window, now, seen = Window(), 1000.0, list[tuple[float, bool]]()
    for pause, failed in steps:
        now += pause
        window.add(failed, now, 10)
        seen.append((now, failed))
        surely = [bad for at, bad in seen if at > now - 9]
        perhaps = [bad for at, bad in seen if at > now - 10.001]
        assert len(surely) <= window.attempts <= len(perhaps)
        assert sum(surely) <= window.failures <= sum(perhaps)


class Lives(RuleBasedStateMachine):
    """Attempts that go only when the breaker lets them, and end in any way and order."""

    @initialize(seed=st.integers())
    def begin(self, seed: int) -> None:
        self.breaker, self.draw, self.now = Breaker(), random.Random(seed), 0.0
        self.running: list[float] = []
        self.probes: list[float] = []
        """Those of the running that began while it was half open, since it last opened."""

    @rule(seconds=st.floats(0.001, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def attempt(self) -> None:
        if self.breaker.free_at(self.now) is not None:
            return
        if self.breaker.state(self.now) == "half_open":
            fresh = [began for began in self.probes if self.now - began < PROBE_PATIENCE]
            assert not fresh, "a second probe while the first is under way"
            self.probes.append(self.now)
        self.breaker.begin(self.now)
        self.running.append(self.now)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(["lived", "failed", "spared", "absent"]))
    def end(self, data: st.DataObject, how: str) -> None:
        began = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        before = self.breaker.opened_at
        if how == "spared":
            self.breaker.spared(began)
        else:
            getattr(self.breaker, how)(began, self.now, RULES, self.draw)
        if began in self.probes:
            self.probes.remove(began)
        if self.breaker.opened_at != before:
            self.probes.clear()

    @rule(seconds=st.floats(0.1, 30))
    def hear(self, seconds: float) -> None:
        if self.breaker.open_until(self.now + seconds, "elsewhere", self.now):
            self.probes.clear()

    @invariant()
    def it_is_never_closed_while_the_rules_say_open(self) -> None:
        if self.breaker.state(self.now) == "closed":
            window = self.breaker.window
            assert self.breaker.streak < RULES.consecutive
            assert window.attempts < RULES.minimum or window.failures < RULES.rate * window.attempts

    @invariant()
    def it_is_never_open_for_longer_than_the_longest_rest(self) -> None:
        free = self.breaker.free_at(self.now)
        assert free is None or free <= self.now + max(RULES.longest_rest, PROBE_PATIENCE)

    @invariant()
    def one_success_after_its_rest_closes_it(self) -> None:
        if self.breaker.state(self.now) == "half_open" and not self.running:
            assert self.breaker.free_at(self.now) is None


TestLives = Lives.TestCase


@pytest.mark.parametrize("how", ["failed", "spared", "lived"])
def test_a_place_is_free_again_however_the_probe_ended(how: str) -> None:
    breaker = opened()
    breaker.begin(10)
    if how == "spared":
        breaker.spared(10)
    else:
        getattr(breaker, how)(10, 11, RULES, DRAW)
    assert breaker.free_at(100) is None
