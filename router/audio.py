"""How long a recording or an answer's speech is by its bytes, and how many tokens that is to a model. Pure.

Vendors count audio by the second. Samples as they are (PCM, bare or in a `wav` file) tell their length. A compressed
format does not: it is taken as speech at a low rate, which counts too much rather than too little, and whoever counts
says so by a flag.
"""

import binascii
import struct
from collections.abc import Iterator
from math import ceil
from typing import Any, Final

from msgspec import Struct

from router.messages import Assistant, Audio, ChatRequest


class Pace(Struct, frozen=True):
    """How a vendor counts a second of audio."""

    heard: float
    """Tokens a second of what it is sent."""
    spoken: float
    """Tokens a second of what it says."""
    least: float = 0.0
    """Seconds that a shorter piece counts as."""


PACES: Final = (
    ("qwen3.5-omni", Pace(7, 12.5, least=1)),
    ("qwen3-omni", Pace(12.5, 12.5, least=1)),
    ("qwen", Pace(25, 25, least=1)),
    ("gemini", Pace(32, 32)),
    ("", Pace(10, 20)),
)
"""Beginning of a model's name → its pace; the first that fits. Models of other vendors count as OpenAI's.

OpenAI: a token for 100 ms of a user's audio and one for 50 ms of an assistant's
(developers.openai.com/api/docs/guides/realtime-costs). Qwen: help.aliyun.com/zh/model-studio/user-guide/qwen-omni,
under the rules by which audio becomes tokens. Gemini: ai.google.dev/gemini-api/docs/tokens.
"""
MOST_HEARD: Final = max(pace.heard for _, pace in PACES)
"""Tokens a second that a recording is at most, whoever hears it."""

_PCM: Final = 48_000
"""Bytes a second of speech as vendors stream it: 24 kHz, 16 bits, mono."""
_SAMPLES: Final = {"pcm16": _PCM, "pcm": _PCM, "wav": _PCM}
_COMPRESSED: Final = {"flac": _PCM // 2}
_LOW: Final = 4_000
"""Bytes a second of any other format: 32 kbit/s, which mp3, aac and opus have for speech at the least."""
_ELSEWHERE: Final = 30.0
"""Seconds that a recording counts as that is at an address, or with the vendor: no more tokens than are reserved."""

_LONGEST_HEAD: Final = 1000
"""Characters of a `data:` URL before its data, at most."""
_HEAD: Final = 4096
"""Characters of base64 in which a `wav` file's format is looked for."""
_PLAIN: Final = (1, 3, 0xFFFE)
"""Kinds of `wav` file whose samples are as they are: whole numbers, fractions, and those told apart further down."""


def pace_of(model: str) -> Pace:
    """The pace for a model's name, whatever account (`org/`) or fine-tune (`ft:`) is written before it."""
    name = model.lower().rsplit("/", 1)[-1].removeprefix("ft:")
    return next(pace for start, pace in PACES if name.startswith(start))


# -- what is sent --------------------------------------------------------------------------------------------------


def sends_audio(request: ChatRequest) -> bool:
    """Whether there is audio in the prompt."""
    return any(True for _ in _recordings(request))


def heard(request: ChatRequest, model: str) -> tuple[int, bool]:
    """Tokens of the audio in the prompt, and whether all its lengths are known."""
    pace, tokens, known = pace_of(model), 0, True
    for part in _recordings(request):
        length = None if part is None else seconds(part)
        if length is None:
            known = False
            length = _ELSEWHERE if part is None else _guessed(part)
        tokens += ceil(max(length, pace.least) * pace.heard)
    return tokens, known


def seconds(part: Audio) -> float | None:
    """How long a recording is. None where its bytes do not tell."""
    begin, size = _inline(part.data)
    if not size:
        return None
    try:
        head = binascii.a2b_base64(part.data[begin : begin + _HEAD])
    except (ValueError, binascii.Error):
        return None
    if head[:4] in (b"RIFF", b"RF64"):
        rate = _rate(head)
        return None if rate is None else size / rate
    return size / _PCM if part.format.lower() in ("pcm", "pcm16") else None


def _recordings(request: ChatRequest) -> Iterator[Audio | None]:
    """The audio of the prompt; None for an earlier answer's, which is with the vendor."""
    for message in request.messages:
        if not isinstance(message.content, str):
            yield from (part for part in message.content or () if isinstance(part, Audio))
        if isinstance(message, Assistant) and message.extra.get("audio"):
            yield None


def _guessed(part: Audio) -> float:
    _, size = _inline(part.data)
    return size / _COMPRESSED.get(part.format.lower(), _LOW) if size else _ELSEWHERE


def _inline(data: str) -> tuple[int, int]:
    """Where base64 begins in a text that is that or a `data:` URL, and how many bytes it is; none of an address."""
    if data.startswith("data:"):
        begin = data.find(",", 0, _LONGEST_HEAD) + 1
    elif "://" in data[:16]:
        return 0, 0
    else:
        begin = 0
    return begin, (len(data) - begin) * 3 // 4


def _rate(head: bytes) -> int | None:
    """Bytes a second in a `wav` file. None where its header does not tell, or tells what no recording has."""
    at = 12
    while at + 24 <= len(head):
        size = int.from_bytes(head[at + 4 : at + 8], "little")
        if head[at : at + 4] == b"fmt ":
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", head, at + 8)
            usual = 1 <= channels <= 8 and 8_000 <= rate <= 192_000 and bits in (8, 16, 24, 32)
            return channels * rate * bits // 8 if kind in _PLAIN and usual else None
        at += 8 + size + (size & 1)
    return None


# -- what is said --------------------------------------------------------------------------------------------------


def asks_for_audio(request: ChatRequest) -> bool:
    """Whether the answer may be spoken."""
    modalities = request.extra.get("modalities")
    return isinstance(modalities, list | tuple) and "audio" in modalities


def sound_in(block: dict[str, Any]) -> tuple[int, str]:
    """Of a piece of an answer: how many characters of base64 are audio, and the words that are spoken.

    `block` holds the vendor's fields of a delta or message: OpenAI's `audio`, or the parts of DashScope's `content`.
    """
    audio, parts = block.get("audio"), block.get("content")
    if audio is None and isinstance(parts, list):
        audio = next((part["audio"] for part in parts if isinstance(part, dict) and "audio" in part), None)
    if not isinstance(audio, dict):
        return 0, ""
    data, words = audio.get("data"), audio.get("transcript")
    return len(data) if isinstance(data, str) else 0, words if isinstance(words, str) else ""


def spoken(request: ChatRequest, model: str, characters: int) -> int:
    """Tokens of so much base64 of speech in the answer's format."""
    if not characters:
        return 0
    form, pace = _form(request), pace_of(model)
    rate = _SAMPLES.get(form) or _COMPRESSED.get(form, _LOW)
    return ceil(max(characters * 3 / 4 / rate, pace.least) * pace.spoken)


def is_length_told(request: ChatRequest) -> bool:
    """Whether the answer's speech comes in a format whose bytes tell its length."""
    return _form(request) in _SAMPLES


def _form(request: ChatRequest) -> str:
    """The format of the answer's speech. Nobody streams another than PCM, so it is that where none is asked for."""
    asked = request.extra.get("audio")
    form = asked.get("format") if isinstance(asked, dict) else None
    return form.lower() if isinstance(form, str) else "pcm16"
