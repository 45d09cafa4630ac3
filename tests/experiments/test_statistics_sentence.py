"""What is said in words."""

import random

import pytest

from router.experiment import Metric
from router.experiments.sentence import number, sentence
from router.experiments.statistics import Comparison, Sums, compare

RATE, COST = Metric("binary"), Metric("number", higher_is="worse")
ERRORS, SCORE = Metric("binary", higher_is="worse"), Metric("number")


def values(middle: float, count: int = 620, seed: int = 0) -> Sums:
    draw = random.Random(seed)
    return Sums.of(enumerate(draw.gauss(middle, middle / 4) for _ in range(count)))


def answers(yes: int, no: int) -> Sums:
    return Sums.of(enumerate([1] * yes + [0] * no))


def said(**comparisons: Comparison) -> str:
    return sentence(1240, "qwen", "control", comparisons)


def test_all_metrics_are_in_one_sentence() -> None:
    cost, thumbs = compare(values(1), values(0.69, seed=1), COST), compare(answers(9, 3), answers(8, 5), RATE)
    assert said(cost=cost, thumbs=thumbs) == (
        "After 1,240 units: `qwen` costs 31 % less a call than `control` (between 28 % and 34 % less); "
        "thumbs: nothing can be said yet, too few units (13 in `qwen`, 12 in `control`; it takes 30 of equal weight "
        "in each)."
    )


@pytest.mark.parametrize(
    ("metric", "arm", "words"),
    [
        ("cost", 1.5, "`qwen` costs 50 % more a call than `control` (between "),
        ("duration", 0.7, "`qwen` takes 30 % less time than `control` (between "),
        ("first_token", 1.5, "`qwen` begins to answer 50 % later than `control` (between "),
        ("tokens_per_second", 0.7, "`qwen` writes 30 % slower than `control` (between "),
    ],
)
def test_what_the_ledger_knows_has_words_of_its_own(metric: str, arm: float, words: str) -> None:
    assert words in said(**{metric: compare(values(1), values(arm, seed=1), COST)})


def test_errors_are_said_in_points() -> None:
    assert said(errors=compare(answers(50, 950), answers(150, 850), ERRORS)) == (
        "After 1,240 units: `qwen` fails more often than `control`, 15 % against 5 % (between 6 and 14 points more)."
    )
    assert "fails less often" in said(errors=compare(answers(150, 850), answers(50, 950), ERRORS))


def test_feedback_is_better_or_worse() -> None:
    assert "thumbs: `qwen` is better than `control`, 65 % against 50 % (between " in said(
        thumbs=compare(answers(500, 500), answers(650, 350), RATE)
    )
    assert "stars: `qwen` is worse than `control`, 3 against 4 (between " in said(
        stars=compare(values(4), values(3, seed=1), SCORE)
    )


def test_what_is_undecided_says_how_far_it_may_be() -> None:
    assert said(thumbs=compare(answers(500, 500), answers(510, 490), RATE)) == (
        "After 1,240 units: thumbs: no difference between `qwen` and `control` is certain yet "
        "(between 5.8 points lower and 7.8 points higher)."
    )
    assert "is certain yet (between 4" in said(cost=compare(values(1), values(1, seed=1), COST))


def test_a_number_without_a_ratio_is_said_as_it_is() -> None:
    below = compare(values(-4), values(-3, seed=1), SCORE)
    assert "stars: `qwen` is better than `control`, -3 against -4 (between 0.8" in said(stars=below)


def test_why_it_is_too_early() -> None:
    assert "one of the two answers is too rare so far" in said(thumbs=compare(answers(1, 99), answers(2, 98), RATE))
    alike = Sums.of(enumerate([2.0] * 50))
    assert "all values are the same so far" in said(cost=compare(alike, alike, COST))
    assert sentence(1, "qwen", "control", {}) == "After 1 unit: nothing is measured."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00241, "0.0024"),
        (0.5, "0.5"),
        (3.14159, "3.1"),
        (-3.14159, "-3.1"),
        (31.4, "31"),
        (99.7, "100"),
        (1240.4, "1,240"),
        (1e-9, "0.000000001"),
    ],
)
def test_numbers_have_two_digits_that_matter(value: float, text: str) -> None:
    assert number(value) == text
