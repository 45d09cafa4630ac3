"""What the book makes of attempts: which failures are the target's, which the key's, which nobody's."""

import math
import random

import pytest

from router.errors import (
    AuthenticationFailed,
    ClientGone,
    ContentFiltered,
    ContextTooLong,
    Overloaded,
    ProtocolViolated,
    RateLimited,
    Rejected,
    RouterError,
    StreamCut,
    TimedOut,
    Unreachable,
    VendorAuthFailed,
    VendorFailed,
    VendorModelForbidden,
    VendorModelUnknown,
    VendorOverloaded,
    VendorQuotaExhausted,
)
from router.health import Ended, Health, Standing, key_id
from router.provider import Target
from router.quantities import Timeout
from router.route import HealthRules
from router.routing.ewma import TAU
from router.routing.health_book import MOST_TARGETS, HealthBook, Told

TARGET, OTHER = Target("acme", "large"), Target("acme", "small")
KEY = key_id("acme", "secret")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(clock: Clock) -> HealthBook:
    return HealthBook(HealthRules(), clock, random.Random(1))


def attempt(
    book: HealthBook,
    clock: Clock,
    error: RouterError | None = None,
    *,
    target: Target = TARGET,
    seconds: float = 1.0,
    answered: bool | None = None,
    streamed: bool = True,
    complete: bool = True,
) -> None:
    book.begin(target)
    clock.now += seconds
    answered = error is None if answered is None else answered
    book.end(Ended(target, error, answered, seconds / 2 if answered and streamed else None, seconds, complete))


def ill(book: HealthBook, clock: Clock, target: Target = TARGET) -> None:
    for _ in range(5):
        attempt(book, clock, VendorFailed("no"), target=target)
    assert book.standing(target).state == "open"


def test_it_is_what_the_contract_asks_for(book: HealthBook) -> None:
    health: Health = book
    assert health.standing(TARGET) == Standing()


@pytest.mark.parametrize("kind", [VendorFailed, VendorOverloaded, Unreachable, TimedOut, ProtocolViolated, StreamCut])
@pytest.mark.parametrize("answered", [False, True])
def test_failures_that_tell_of_an_ill_target_open_its_breaker(
    book: HealthBook, clock: Clock, kind: type[RouterError], answered: bool
) -> None:
    for _ in range(5):
        assert book.standing(TARGET).state == "closed"
        attempt(book, clock, kind("no"), answered=answered)
    standing = book.standing(TARGET)
    assert standing.state == "open"
    assert standing.free_at is not None
    assert clock.now < standing.free_at <= clock.now + 10


@pytest.mark.parametrize("kind", [Rejected, ContentFiltered, ContextTooLong])
def test_a_refusal_says_that_the_target_lives(book: HealthBook, clock: Clock, kind: type[RouterError]) -> None:
    for _ in range(4):
        attempt(book, clock, VendorFailed("no"))
    attempt(book, clock, kind("not this"))
    for _ in range(4):
        attempt(book, clock, VendorFailed("no"))
    assert book.standing(TARGET).state == "closed"


@pytest.mark.parametrize(
    "error",
    [
        VendorAuthFailed("no"),
        VendorQuotaExhausted("no"),
        Overloaded("no"),
        ClientGone("gone"),
        AuthenticationFailed("no"),
        None,
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_the_targets_is_neither_failure_nor_success(
    book: HealthBook, clock: Clock, error: RouterError | None
) -> None:
    for _ in range(4):
        attempt(book, clock, VendorFailed("no"))
    for _ in range(10):
        attempt(book, clock, error, answered=False)
    assert book.standing(TARGET).state == "closed"
    attempt(book, clock, VendorFailed("no"))
    assert book.standing(TARGET).state == "open"


def test_a_call_whose_time_was_over_says_nothing_of_a_target_that_was_answering(book: HealthBook, clock: Clock) -> None:
    for _ in range(10):
        attempt(book, clock, TimedOut("over", code="total_timeout"), answered=True, seconds=600)
        attempt(book, clock, TimedOut("over", code="total_timeout"), answered=False, seconds=0.2)
    assert book.standing(TARGET).state == "closed"
    for _ in range(5):
        attempt(book, clock, TimedOut("over", code="total_timeout"), answered=False, seconds=30)
    assert book.standing(TARGET).state == "open"


def test_a_limited_target_waits_as_long_as_its_vendor_says(book: HealthBook, clock: Clock) -> None:
    attempt(book, clock, RateLimited("slow down", retry_after=7))
    assert book.standing(TARGET).state == "closed"
    assert book.standing(TARGET).free_at == clock.now + 7
    clock.now += 7
    assert book.standing(TARGET).free_at is None


@pytest.mark.parametrize(("retry_after", "wait"), [(None, 2), (86_400, 300), (-5, 0)])
def test_how_long_a_limited_target_waits_has_bounds(
    book: HealthBook, clock: Clock, retry_after: float | None, wait: float
) -> None:
    attempt(book, clock, RateLimited("slow down", retry_after=retry_after))
    assert (book.standing(TARGET).free_at or clock.now) == clock.now + wait


def test_a_limited_target_that_answers_after_all_waits_no_longer(book: HealthBook, clock: Clock) -> None:
    attempt(book, clock, RateLimited("slow down", retry_after=60))
    attempt(book, clock)
    assert book.standing(TARGET).free_at is None


def test_an_answer_that_began_before_the_limit_lifts_it_not(book: HealthBook, clock: Clock) -> None:
    book.begin(TARGET)
    clock.now += 5
    attempt(book, clock, RateLimited("slow down", retry_after=60))
    clock.now += 1
    book.end(Ended(TARGET, None, True, 0.5, 7.0))
    assert book.standing(TARGET).free_at is not None


def test_a_model_that_is_not_there_rests_for_long(book: HealthBook, clock: Clock) -> None:
    attempt(book, clock, VendorModelUnknown("no such model"))
    standing = book.standing(TARGET)
    assert standing.state == "open"
    assert (standing.free_at or 0) >= clock.now + 0.8 * 300


def test_the_next_attempt_is_the_probe_and_the_one_after_it_has_to_wait(book: HealthBook, clock: Clock) -> None:
    ill(book, clock)
    clock.now = book.standing(TARGET).free_at or 0
    assert book.standing(TARGET) == Standing(
        "half_open", None, book.standing(TARGET).first_token, book.standing(TARGET).duration, 0
    )
    book.begin(TARGET)
    assert book.standing(TARGET).free_at is not None
    book.end(Ended(TARGET, None, False, None, 0.0))
    assert book.standing(TARGET).free_at is None
    attempt(book, clock)
    assert book.standing(TARGET).state == "closed"


def test_a_target_that_has_recovered_is_judged_by_its_probe(book: HealthBook, clock: Clock) -> None:
    ill(book, clock)
    assert (book.standing(TARGET).first_token or 0) > 5
    clock.now += 10
    attempt(book, clock, seconds=0.4)
    assert book.standing(TARGET).first_token == 0.2
    assert book.standing(TARGET).duration == 0.4


def test_running_attempts_are_counted(book: HealthBook, clock: Clock) -> None:
    for _ in range(3):
        book.begin(TARGET)
    assert book.standing(TARGET).running == 3
    book.end(Ended(TARGET, None, True, 0.1, 0.2))
    assert book.standing(TARGET).running == 2


def test_a_refusal_is_no_sign_of_speed(book: HealthBook, clock: Clock) -> None:
    attempt(book, clock, seconds=4)
    before = book.standing(TARGET)
    book.begin(TARGET)
    book.end(Ended(TARGET, Rejected("no"), False, None, 0.001))
    assert book.standing(TARGET) == before


def test_one_that_was_given_up_is_as_slow_as_it_was_waited_for(book: HealthBook, clock: Clock) -> None:
    attempt(book, clock, answered=False, seconds=0.5)
    assert book.standing(TARGET).first_token is None
    attempt(book, clock, answered=False, seconds=3)
    assert book.standing(TARGET).first_token == 3
    attempt(book, clock, answered=False, seconds=0.5)
    assert (book.standing(TARGET).first_token or 0) > 2.8
    attempt(book, clock, answered=False, seconds=9)
    assert book.standing(TARGET).first_token == 9


def test_an_end_without_a_beginning_is_a_mistake(book: HealthBook) -> None:
    with pytest.raises(ValueError, match="acme/large"):
        book.end(Ended(TARGET, None, True, 0.1, 0.1))


def test_new_rules_hold_for_what_comes(book: HealthBook, clock: Clock) -> None:
    ill(book, clock)
    free_at = book.standing(TARGET).free_at
    book.apply(HealthRules(consecutive=1, rest=Timeout(1)))
    assert book.standing(TARGET).free_at == free_at
    attempt(book, clock, VendorFailed("no"), target=OTHER)
    assert book.standing(OTHER).state == "open"
    assert (book.standing(OTHER).free_at or 0) <= clock.now + 1


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["invalid", "quota"])
def test_a_dead_key_rests_and_is_tried_again(book: HealthBook, clock: Clock, trouble: str) -> None:
    book.rest_key("acme", KEY, trouble)  # type: ignore[arg-type]
    assert book.key_free_at("acme", KEY) == clock.now + 600
    assert book.tells("acme", KEY) == trouble
    clock.now += 600
    assert book.key_free_at("acme", KEY) is None
    assert book.tells("acme", KEY) is None


def test_a_limited_key_rests_for_seconds_and_has_no_trouble(book: HealthBook, clock: Clock) -> None:
    book.rest_key("acme", KEY, None, 4)
    assert book.key_free_at("acme", KEY) == clock.now + 4
    assert book.tells("acme", KEY) is None


def test_a_limit_does_not_make_a_dead_key_live_sooner(book: HealthBook, clock: Clock) -> None:
    book.rest_key("acme", KEY, "invalid")
    book.rest_key("acme", KEY, None, 1)
    assert book.tells("acme", KEY) == "invalid"
    assert book.key_free_at("acme", KEY) == clock.now + 600


def test_keys_rest_alone(book: HealthBook) -> None:
    book.rest_key("acme", KEY, "quota")
    assert book.key_free_at("acme", key_id("acme", "another")) is None
    assert book.key_free_at("other", KEY) is None


# -- memory --------------------------------------------------------------------------------------------------------


def test_names_that_clients_invent_take_no_more_room_than_there_is(book: HealthBook, clock: Clock) -> None:
    for n in range(3 * MOST_TARGETS):
        attempt(book, clock, VendorModelUnknown("no"), target=Target("acme", f"m{n}"))
    assert len(book.known()) == MOST_TARGETS


def test_invented_names_make_no_ill_target_well(book: HealthBook, clock: Clock) -> None:
    ill(book, clock)
    for n in range(2 * MOST_TARGETS):
        attempt(book, clock, VendorModelUnknown("no"), target=Target("acme", f"m{n}"), seconds=0.0001)
    assert book.standing(TARGET).state == "open"


def test_a_target_with_a_running_attempt_is_not_forgotten(book: HealthBook, clock: Clock) -> None:
    book.begin(TARGET)
    for n in range(2 * MOST_TARGETS):
        attempt(book, clock, target=Target("acme", f"m{n}"))
    assert book.standing(TARGET).running == 1
    book.end(Ended(TARGET, None, True, 0.1, 0.2))


def test_targets_that_all_run_have_room(book: HealthBook, clock: Clock) -> None:
    for n in range(MOST_TARGETS + 5):
        book.begin(Target("acme", f"m{n}"))
    for n in range(MOST_TARGETS + 5):
        book.end(Ended(Target("acme", f"m{n}"), None, True, 0.1, 0.2))
    attempt(book, clock)
    assert book.standing(TARGET).first_token == 0.5


# -- clients that leave, answers that are not streamed -----------------------------------------------------------------


def test_an_answer_that_a_client_left_counts_neither_way(book: HealthBook, clock: Clock) -> None:
    attempt(book, clock, seconds=10)
    for _ in range(5):
        attempt(book, clock, seconds=2, complete=False)
    standing = book.standing(TARGET)
    assert standing.duration is not None
    assert standing.duration == pytest.approx(10 * math.exp(-10 / TAU)), "nothing was added to it"
    assert standing.first_token == pytest.approx(1 + 4 * math.exp(-10 / TAU)), "the first deltas were"
    shown = book.shown(TARGET)
    assert shown is not None
    assert shown.attempts == 1


def test_clients_that_leave_do_not_break_a_row_of_failures(book: HealthBook, clock: Clock) -> None:
    for _ in range(4):
        attempt(book, clock, VendorFailed("no"))
        attempt(book, clock, complete=False)
    assert book.standing(TARGET).state == "closed"
    attempt(book, clock, VendorFailed("no"))
    assert book.standing(TARGET).state == "open"


def test_a_probe_that_its_client_left_makes_room_for_the_next(book: HealthBook, clock: Clock) -> None:
    ill(book, clock)
    clock.now += 10
    attempt(book, clock, complete=False)
    standing = book.standing(TARGET)
    assert (standing.state, standing.free_at) == ("half_open", None)


def test_an_answer_that_was_not_streamed_has_a_duration_alone(book: HealthBook, clock: Clock) -> None:
    attempt(book, clock, seconds=4, streamed=False)
    assert book.standing(TARGET).first_token is None
    assert book.standing(TARGET).duration == 4
    attempt(book, clock, seconds=4, streamed=False, complete=False)
    assert book.standing(TARGET).first_token is None


# -- models that our key may not use -------------------------------------------------------------------------------


def test_a_forbidden_model_rests_alone_and_is_nothing_to_tell(book: HealthBook, clock: Clock) -> None:
    calls = listened(book)
    attempt(book, clock, VendorModelForbidden("no"))
    standing = book.standing(TARGET)
    assert standing.state == "open"
    assert standing.free_at is not None
    assert standing.free_at > clock.now + 200
    assert book.standing(OTHER) == Standing()
    assert calls == []


def test_refusals_do_not_take_out_a_model_that_answers_others(book: HealthBook, clock: Clock) -> None:
    for _ in range(3):
        attempt(book, clock)
        for _ in range(10):
            attempt(book, clock, VendorModelForbidden("no"))
            assert book.standing(TARGET).state == "closed"


# -- for people ----------------------------------------------------------------------------------------------------


def test_it_shows_why_a_target_rests_and_what_went_wrong_last(book: HealthBook, clock: Clock) -> None:
    assert book.shown(TARGET) is None
    ill(book, clock)
    shown = book.shown(TARGET)
    assert shown is not None
    assert (shown.why, shown.streak, shown.attempts, shown.failures) == ("5 failures in a row", 5, 5, 5)
    assert shown.error is not None
    assert (shown.error.code, shown.error.message, shown.error.at) == ("upstream_error", "no", clock.now)


def test_it_shows_that_a_vendor_limits_the_rate(book: HealthBook, clock: Clock) -> None:
    attempt(book, clock, RateLimited("slow down", retry_after=7))
    shown = book.shown(TARGET)
    assert shown is not None
    assert shown.why == "the vendor limits the rate"


def test_a_reset_closes_one_breaker_or_all_of_a_provider_and_frees_its_keys(book: HealthBook, clock: Clock) -> None:
    ill(book, clock)
    ill(book, clock, OTHER)
    book.rest_key("acme", KEY, "invalid")
    assert book.reset("acme", "large") == 1
    assert book.standing(TARGET).state == "closed"
    assert book.standing(OTHER).state == "open"
    assert book.reset("acme") == 2
    assert book.standing(OTHER).state == "closed"
    assert book.key_free_at("acme", KEY) is None
    assert book.reset("nobody") == 0


# -- between processes ---------------------------------------------------------------------------------------------


@pytest.fixture
def peer(clock: Clock) -> HealthBook:
    return HealthBook(HealthRules(), clock, random.Random(2))


def listened(book: HealthBook) -> list[None]:
    calls: list[None] = []
    book.on_told = lambda: calls.append(None)
    return calls


def test_an_opening_is_told_once_and_closed_by_a_closing(book: HealthBook, peer: HealthBook, clock: Clock) -> None:
    calls = listened(book)
    ill(book, clock)
    assert len(calls) == 1
    told = book.take_told()
    assert [each.change for each in told] == ["open"]
    assert book.take_told() == []
    peer.hear(told)
    standing = peer.standing(TARGET)
    assert standing.state == "open"
    mine = book.standing(TARGET).free_at
    assert mine is not None
    assert standing.free_at is not None
    assert mine <= standing.free_at <= mine + 1
    clock.now += 10
    attempt(book, clock)
    peer.hear(book.take_told())
    assert peer.standing(TARGET).state == "closed"


def test_a_resting_key_is_told_with_its_trouble(book: HealthBook, peer: HealthBook, clock: Clock) -> None:
    listened(book)
    book.rest_key("acme", KEY, "quota")
    clock.now += 100
    peer.hear(book.take_told())
    assert peer.tells("acme", KEY) == "quota"
    assert peer.key_free_at("acme", KEY) == clock.now + 500
    book.reset("acme")
    peer.hear(book.take_told())
    assert peer.key_free_at("acme", KEY) is None


def test_what_was_heard_is_not_told_again(book: HealthBook, peer: HealthBook, clock: Clock) -> None:
    listened(book)
    listened(peer)
    ill(book, clock)
    peer.hear(book.take_told())
    assert peer.take_told() == []


def test_nobody_is_told_to_rest_for_longer_than_a_first_rest(book: HealthBook, clock: Clock) -> None:
    book.hear([Told("open", "acme", "large", 300)])
    for seconds in (1, 4, 4):
        clock.now += seconds
        book.hear([Told("open", "acme", "large", 300)])
    clock.now += 2
    assert book.standing(TARGET).state == "half_open"
    assert book.standing(TARGET).free_at is None


def test_others_that_were_wrong_twice_are_not_believed_for_a_while(book: HealthBook, clock: Clock) -> None:
    for _ in range(2):
        book.hear([Told("open", "acme", "large", 10)])
        assert book.standing(TARGET).state == "open"
        clock.now += 11
        attempt(book, clock)
    book.hear([Told("open", "acme", "large", 10)])
    assert book.standing(TARGET).state == "closed"
    clock.now += 301
    book.hear([Told("open", "acme", "large", 10)])
    assert book.standing(TARGET).state == "open"


def test_others_are_wrong_too_where_a_third_has_closed_the_breaker_before(book: HealthBook, clock: Clock) -> None:
    for _ in range(2):
        book.hear([Told("open", "acme", "large", 10)])
        book.hear([Told("closed", "acme", "large")])
        attempt(book, clock)
    book.hear([Told("open", "acme", "large", 10)])
    assert book.standing(TARGET).state == "closed"


def test_an_answer_to_what_was_asked_before_belies_nobody(book: HealthBook, clock: Clock) -> None:
    for _ in range(3):
        book.begin(TARGET)
        clock.now += 1
        book.hear([Told("open", "acme", "large", 10)])
        book.end(Ended(TARGET, None, True, 1.0, 1.0))
        assert book.standing(TARGET).state == "open"
        book.hear([Told("closed", "acme", "large")])


def test_others_are_believed_again_when_they_were_right(book: HealthBook, clock: Clock) -> None:
    for _ in range(2):
        book.hear([Told("open", "acme", "large", 10)])
        clock.now += 11
        attempt(book, clock)
    ill(book, clock)
    clock.now += 11
    attempt(book, clock)
    book.hear([Told("open", "acme", "large", 10)])
    assert book.standing(TARGET).state == "open"


def test_a_process_that_cannot_reach_a_vendor_does_not_take_it_from_the_others(clock: Clock) -> None:
    names = ("sick", "well", "other")
    books = {name: HealthBook(HealthRules(), clock, random.Random(name)) for name in names}
    for each in books.values():
        listened(each)
    resting = dict.fromkeys(names, 0)
    for _ in range(3600):
        clock.now += 1
        for name, each in books.items():
            if each.standing(TARGET).free_at is None:
                attempt(each, clock, Unreachable("no route") if name == "sick" else None, seconds=0)
            else:
                resting[name] += 1
        told = {name: each.take_told() for name, each in books.items()}
        for name, each in books.items():
            each.hear(word for teller in names if teller != name for word in told[teller])
    assert resting["sick"] > 3000
    assert resting["well"] < 360
    assert resting["other"] < 360


def test_what_is_still_to_be_told_is_newer_than_what_is_heard(book: HealthBook, clock: Clock) -> None:
    listened(book)
    ill(book, clock)
    book.hear([Told("closed", "acme", "large")])
    assert book.standing(TARGET).state == "open"
    book.take_told()
    book.hear([Told("closed", "acme", "large")])
    assert book.standing(TARGET).state == "closed"


def test_a_model_that_is_not_there_is_nothing_to_tell(book: HealthBook, clock: Clock) -> None:
    calls = listened(book)
    attempt(book, clock, VendorModelUnknown("no"))
    assert calls == []
    assert book.all_told() == []


def test_all_that_rests_can_be_told_anew(book: HealthBook, clock: Clock) -> None:
    ill(book, clock)
    attempt(book, clock, target=OTHER)
    book.rest_key("acme", KEY, "invalid")
    assert {(each.change, each.name) for each in book.all_told()} == {("open", "large"), ("rests", KEY)}
    clock.now += 601
    assert book.all_told() == []


def test_a_process_that_nobody_listens_to_collects_nothing(book: HealthBook, clock: Clock) -> None:
    ill(book, clock)
    listened(book)
    assert book.take_told() == []
