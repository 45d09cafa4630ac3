"""The length of audio is read from its bytes where they tell it, and counted at the pace of each vendor."""

import base64
import io
import wave
from typing import Any

import pytest

from router.audio import asks_for_audio, heard, is_length_told, seconds, sends_audio, sound_in, spoken
from router.messages import Assistant, Audio, ChatRequest, Message, Text, User
from router.tokens import PER_FILE, measured


def asked(*messages: Message, **extra: Any) -> ChatRequest:
    return ChatRequest(model="m", messages=messages, protocol="openai", extra=extra)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def recording(length: float, *, rate: int = 16_000, channels: int = 1, before: bytes = b"") -> str:
    """A `wav` file in base64; `before` stands before its format."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(bytes(int(length * rate) * channels * 2))
    data = file.getvalue()
    return encoded(data[:12] + before + data[12:])


def of(data: str, form: str = "wav") -> ChatRequest:
    return asked(User((Text("what is said here?"), Audio(data, form))))


LISTED = b"LIST" + (5).to_bytes(4, "little") + b"INFO!" + b"\0"


@pytest.mark.parametrize(
    "part",
    [
        Audio(recording(10), "wav"),
        Audio(recording(10, rate=48_000, channels=2), "wav"),
        Audio(recording(10, before=LISTED), "wav"),
        Audio(f"data:audio/wav;base64,{recording(10)}", "wav"),
        # whatever it is called
        Audio(recording(10), "mp3"),
        Audio(encoded(bytes(480_000)), "pcm16"),
    ],
)
def test_samples_as_they_are_tell_their_length(part: Audio) -> None:
    assert seconds(part) == pytest.approx(10, abs=0.01)


@pytest.mark.parametrize(
    "part",
    [
        Audio(encoded(b"ID3" + bytes(9000)), "mp3"),
        Audio("https://example.com/a.wav", "wav"),
        Audio("", "wav"),
        Audio("UklGRg==", "wav"),
        Audio("A", "wav"),
        Audio("é" * 100, "wav"),
        Audio(encoded(b"RIFF\0\0\0\0WAVEdata" + b"\xff" * 4 + bytes(9000)), "wav"),
        Audio(encoded(b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + b"\x01\0\x01\0" + b"\xff" * 12 + bytes(9000)), "wav"),
    ],
)
def test_a_length_that_the_bytes_do_not_tell_is_not_made_up(part: Audio) -> None:
    assert seconds(part) is None
    tokens, known = heard(asked(User((part,))), "gpt-audio")
    assert tokens > 0
    assert not known


@pytest.mark.parametrize(
    ("model", "sent", "said"),
    [
        ("gpt-audio", 100, 200),
        ("ft:gpt-4o-audio-preview", 100, 200),
        ("qwen3.5-omni-plus", 70, 125),
        ("qwen3-omni-flash", 125, 125),
        ("qwen-omni-turbo", 250, 250),
        ("google/gemini-3-flash", 320, 320),
    ],
)
def test_each_vendor_counts_at_its_own_pace(model: str, sent: int, said: int) -> None:
    assert heard(of(recording(10)), model) == (pytest.approx(sent, abs=1), True)
    # ten seconds of 48,000 bytes, four characters to three bytes
    assert spoken(asked(), model, 640_000) == said


def test_a_piece_of_less_than_a_second_counts_as_one_where_the_vendor_says_so() -> None:
    assert heard(of(recording(0.5)), "qwen-omni-turbo")[0] == 25
    assert heard(of(recording(0.5)), "gpt-audio")[0] == pytest.approx(5, abs=1)
    assert spoken(asked(), "qwen-omni-turbo", 4) == 25
    assert spoken(asked(), "qwen-omni-turbo", 0) == 0


@pytest.mark.parametrize(
    ("form", "told", "length"),
    [("pcm16", True, 10), ("wav", True, 10), ("flac", False, 20), ("mp3", False, 120), ("new", False, 120)],
)
def test_compressed_speech_counts_at_a_low_rate(form: str, told: bool, length: int) -> None:
    request = asked(modalities=["text", "audio"], audio={"voice": "alloy", "format": form})
    assert is_length_told(request) is told
    assert spoken(request, "gpt-audio", 640_000) == length * 20


def test_an_earlier_answer_that_was_spoken_is_audio_of_unknown_length() -> None:
    request = asked(User("Hi"), Assistant(None, extra={"audio": {"id": "audio_1"}}), User("Again"))
    assert sends_audio(request)
    assert heard(request, "gpt-audio") == (300, False)
    assert measured(request)[1] - measured(request, recordings=False)[1] == PER_FILE


def test_whether_a_call_has_audio_is_told_by_its_parts_and_its_modalities() -> None:
    assert not sends_audio(asked(User("Hi"), Assistant("Hello"), User((Text("audio"),))))
    assert sends_audio(of(recording(1)))
    assert not asks_for_audio(asked(User("Hi"), audio={"voice": "alloy", "format": "wav"}))
    assert not asks_for_audio(asked(User("Hi"), modalities=["text"]))
    assert not asks_for_audio(asked(User("Hi"), modalities="audio"))
    assert asks_for_audio(asked(User("Hi"), modalities=["text", "audio"]))


@pytest.mark.parametrize(
    ("block", "found"),
    [
        ({"audio": {"id": "a", "data": "AAAA"}}, (4, "")),
        ({"audio": {"transcript": "Hello"}}, (0, "Hello")),
        ({"audio": {"data": None, "expires_at": 1}}, (0, "")),
        ({"audio": "AAAA"}, (0, "")),
        ({"content": [{"image": "x"}, {"audio": {"data": "AAAAAAAA"}}]}, (8, "")),
        ({"content": "audio"}, (0, "")),
        ({}, (0, "")),
    ],
)
def test_a_piece_of_speech_is_found_in_the_words_of_either_protocol(
    block: dict[str, Any], found: tuple[int, str]
) -> None:
    assert sound_in(block) == found


def test_a_recording_whose_length_is_told_is_reserved_at_the_most_that_any_model_counts() -> None:
    _, none = measured(asked(User(())))
    _, minute = measured(asked(User((Audio(recording(60), "wav"),))))
    assert minute - none == pytest.approx(60 * 32, abs=1)
    for request in (of(recording(10)), of(encoded(bytes(9000)), "mp3"), of("https://example.com/a.mp3", "mp3")):
        assert measured(request)[1] - measured(request, recordings=False)[1] >= heard(request, "qwen-omni-turbo")[0]
