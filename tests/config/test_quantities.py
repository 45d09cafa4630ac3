"""Durations and sizes as people write them, and the nearest word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.nearest import alternatives, did_you_mean, nearest
from router.quantities import Duration, Size, size, written


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15s", 15), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("1.5s", 1.5), ("0s", 0), ("90 s", 90), ("720h", 2592000)],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "15", "-1s", "1 d", "1s1s", "1,5s", "1e3s", "٣s", "1S", None, True, 1, [], "1s\n"]
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("32MiB", 32 * 1024**2), ("10MB", 10_000_000), ("512KB", 512_000), ("1.5KiB", 1536), ("7B", 7), (7, 7), ("7", 7)],
)
def test_a_size_is_read_in_bytes(text: object, count: int) -> None:
    assert Size.parse(text) == count


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1TB", "1mb", "1e3", True, 1.5, -1, None, "1MB\n"])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        Size.parse(text)


@given(st.integers(0, 10**7))
def test_a_written_duration_reads_as_itself(milliseconds: int) -> None:
    seconds = Duration.parse(f"{milliseconds}ms")
    assert Duration.parse(written(seconds)) == pytest.approx(seconds, rel=1e-5)


@given(st.integers(0, 2**39))
def test_a_written_size_reads_as_itself(count: int) -> None:
    assert Size.parse(size(count)) == count


def test_the_nearest_words_come_first() -> None:
    assert nearest("heartbeet", ["heart", "heartbeat", "body_limit"]) == ["heartbeat", "heart"]
    assert nearest("x" * 100_000, ["x" * 1000]) == ["x" * 1000]
    assert did_you_mean("GPT-5", ["gpt-5"]) == ": did you mean `gpt-5`?"
    assert did_you_mean("zzz", ["abc"]) == ""
    assert alternatives(["a", "b", "c"]) == "`a`, `b` or `c`"
