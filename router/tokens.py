"""Counts tokens, offline, where a vendor did not: estimates for bills, limits and budgets.

The vocabularies are data of this package, checked by their sha256, loaded on first use in a thread and kept by the
`TokenCounter` that loaded them. Which model uses which is a table. A count is an estimate all the same: vendors wrap
messages and tools in tokens of their own. This module knows requests and texts, no event and no provider.
"""

import asyncio
import binascii
import gzip
import threading
from collections.abc import Iterable, Sequence
from hashlib import sha256
from importlib.resources import files
from math import ceil
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from router.audio import MOST_HEARD, seconds
from router.messages import (
    Assistant,
    Audio,
    ChatRequest,
    Content,
    CustomTool,
    File,
    FunctionTool,
    Image,
    JsonSchema,
    OtherPart,
    OtherTool,
    Reasoning,
    Refusal,
    Text,
    Tool,
    ToolResult,
)

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from tiktoken import Encoding

INLINE: Final = 4_000
"""Characters counted on the event loop at most: 0.1 ms, at worst some. A thread costs 0.1 ms more."""
PIECE: Final = 100_000
"""Characters given to tiktoken at once. Longer ones have overflowed its stack; a cut costs a token or two."""

PER_MESSAGE: Final = 3
"""Tokens around each message, and once more before the answer, as OpenAI's cookbook counts chat completions."""
PER_IMAGE: Final = 765
"""An image of 1024 × 1024 in high detail at OpenAI (85 + 4 tiles × 170). Sizes are not looked at."""
PER_IMAGE_LOW: Final = 85
"""An image with `detail: low` there."""
PER_FILE: Final = 1000
"""A document or a recording of which we know neither pages nor seconds; where its bytes are there, at least."""
BYTES_OF_FILE: Final = 4
"""Bytes to a token of a document that is sent along: what it would be if all of it were text."""
BYTES_OF_AUDIO: Final = 16
"""The same of a recording of unknown length: the most tokens a second that we know of, of speech at 4 kbit/s."""
_LONGEST_HEAD: Final = 1000
"""Characters of a `data:` URL before its data, at most."""
_DEEPEST: Final = 20
"""Levels of a JSON value in which `data:` URLs are looked for."""


class Vocabulary(Struct, frozen=True):
    """One tokenizer: the file of its ranks, the sum of the uncompressed file, and how text is split before it."""

    name: str
    sha256: str
    pattern: str

    @property
    def file(self) -> str:
        return f"{self.name}.tiktoken.gz"


VOCABULARIES: Final = {
    vocabulary.name: vocabulary
    for vocabulary in (
        Vocabulary(
            "o200k_base",
            "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        Vocabulary(
            "cl100k_base",
            "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
            r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        ),
        Vocabulary(
            "qwen",
            "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    )
}

MODELS: Final = (
    ("gpt-4o", "o200k_base"),
    ("gpt-4.1", "o200k_base"),
    ("gpt-4.5", "o200k_base"),
    ("gpt-4", "cl100k_base"),
    ("gpt-3.5", "cl100k_base"),
    ("gpt-35", "cl100k_base"),
    ("text-embedding-", "cl100k_base"),
    ("qwen", "qwen"),
    ("qwq", "qwen"),
    ("qvq", "qwen"),
    ("", "o200k_base"),
)
"""Beginning of a model's name → vocabulary; the first that fits. Models of other vendors count as OpenAI's newest."""


def vocabulary_of(model: str) -> Vocabulary:
    """The vocabulary for a model's name, whatever account (`org/`) or fine-tune (`ft:`) is written before it."""
    name = model.lower().rsplit("/", 1)[-1].removeprefix("ft:")
    return VOCABULARIES[next(vocabulary for start, vocabulary in MODELS if name.startswith(start))]


class BrokenVocabulary(RuntimeError):
    """A vocabulary file is not the one that was packed: the installation is damaged."""


class TokenCounter:
    """The vocabularies that have been needed so far. One for the whole process: each takes 30 to 80 MB."""

    def __init__(self, directory: "Traversable | None" = None) -> None:
        """`directory` holds the vocabularies; by default those of this package."""
        self._directory = directory or files("router") / "vocabularies"
        self._encodings: dict[str, Encoding] = {}
        self._lock = threading.Lock()

    async def count(self, texts: Sequence[str], model: str) -> int:
        """Tokens of `texts` for `model`. Leaves the event loop for long texts and for the first load (0.3 s)."""
        counted = self.count_now(texts, model)
        return counted if counted is not None else await asyncio.to_thread(self.count_blocking, texts, model)

    def count_now(self, texts: Sequence[str], model: str) -> int | None:
        """The same without waiting; None if that would hold up the event loop."""
        encoding = self._encodings.get(vocabulary_of(model).name)
        if encoding is None or sum(map(len, texts)) > INLINE:
            return None
        return _count(encoding, texts)

    def count_blocking(self, texts: Sequence[str], model: str) -> int:
        """The same, taking the time it takes."""
        return _count(self._encoding(vocabulary_of(model)), texts)

    async def count_request(self, request: ChatRequest, model: str) -> int:
        """Tokens that `request` is to `model`, an estimate: see `measured`."""
        texts, fixed = measured(request)
        return await self.count(texts, model) + fixed

    def _encoding(self, vocabulary: Vocabulary) -> "Encoding":
        with self._lock:
            encoding = self._encodings.get(vocabulary.name)
            if encoding is None:
                encoding = self._encodings[vocabulary.name] = load(vocabulary, self._directory)
            return encoding


def rough_count(texts: Iterable[str]) -> int:
    """Tokens without a vocabulary: a quarter of the UTF-8 bytes, which suits English and Chinese alike."""
    return -(-sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) // 4)


def measured(request: ChatRequest, *, recordings: bool = True) -> tuple[list[str], int]:
    """What of a request is to be counted: its texts, and tokens that are there whatever the vocabulary.

    Tools, a JSON Schema and parts of unknown kinds count as their JSON text, messages as in OpenAI's cookbook, images
    flat, files by their bytes and recordings by their length, at the most that any model counts: what is sent along is
    not decoded. `recordings` False: without those, for whoever counts them as the model does (see `router.audio`).
    """
    texts: list[str] = []
    fixed = PER_MESSAGE
    for message in request.messages:
        fixed += PER_MESSAGE
        if not isinstance(message, ToolResult) and message.name:
            fixed += 1
            texts.append(message.name)
        fixed += _measure(message.content, texts, recordings=recordings)
        if isinstance(message, Assistant):
            fixed += _measure(message.reasoning, texts)
            if recordings and message.extra.get("audio"):
                # what an earlier answer said, which is with the vendor
                fixed += PER_FILE
            texts += [message.refusal] if message.refusal else []
            for call in message.tool_calls:
                fixed += PER_MESSAGE
                texts += call.name, call.arguments
    for tool in request.tools:
        texts.append(_tool_text(tool))
    if isinstance(request.response_format, JsonSchema):
        texts.append(msgspec.json.encode(request.response_format.schema).decode())
    return texts, fixed


def _measure(content: Content | None, texts: list[str], *, recordings: bool = True) -> int:
    """Adds the texts of `content` and returns the tokens of what is no text."""
    fixed = 0
    for part in (content,) if isinstance(content, str) else content or ():
        match part:
            case str():
                texts.append(part)
            case Text() | Refusal() | Reasoning():
                texts.append(part.text)
            case Image():
                fixed += PER_IMAGE_LOW if part.detail == "low" else PER_IMAGE
            case Audio():
                fixed += _heard(part) if recordings else 0
            case File():
                inline = inline_bytes(part.data or "") + inline_bytes(part.url or "")
                fixed += max(PER_FILE, -(-inline // BYTES_OF_FILE))
            case OtherPart():
                data: list[str] = []
                texts.append(msgspec.json.encode(_without_data(part.fields, data)).decode())
                fixed += max(PER_FILE, -(-sum(map(inline_bytes, data)) // BYTES_OF_FILE))
    return fixed


def _heard(part: Audio) -> int:
    """Tokens of a recording at most, whoever hears it."""
    length = seconds(part)
    if length is None:
        return max(PER_FILE, -(-inline_bytes(part.data) // BYTES_OF_AUDIO))
    return ceil(max(length, 1.0) * MOST_HEARD)


def inline_bytes(data: str) -> int:
    """Bytes of a `data:` URL or of base64, within a few; none of an address."""
    if data.startswith(("http://", "https://")):
        return 0
    begin = data.find(",", 0, _LONGEST_HEAD) + 1 if data.startswith("data:") else 0
    if begin and ";base64" not in data[:begin]:
        return len(data) - begin if data.isascii() else len(data.encode("utf-8", "surrogatepass")) - begin
    return (len(data) - begin) * 3 // 4


def _without_data(value: Any, data: list[str], depth: int = _DEEPEST) -> Any:
    """A JSON value without its `data:` URLs, which go into `data`: no tokenizer need read a film."""
    if not depth:
        return value
    match value:
        case str() if value.startswith("data:"):
            data.append(value)
            return ""
        case dict():
            return {name: _without_data(one, data, depth - 1) for name, one in value.items()}
        case list() | tuple():
            return [_without_data(one, data, depth - 1) for one in value]
    return value


def _tool_text(tool: Tool) -> str:
    match tool:
        case FunctionTool():
            shown: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        case CustomTool():
            shown = {"name": tool.name, "description": tool.description, "format": tool.format}
        case OtherTool():
            shown = tool.fields
    return msgspec.json.encode({key: value for key, value in shown.items() if value is not None}).decode()


def _count(encoding: "Encoding", texts: Iterable[str]) -> int:
    # `encode` would raise on special tokens such as <|endoftext|>, which users may well write about
    encode = encoding.encode_ordinary
    return sum(len(encode(text[i : i + PIECE])) for text in texts for i in range(0, len(text), PIECE))


def load(vocabulary: Vocabulary, directory: "Traversable") -> "Encoding":
    """Read one vocabulary: about 0.3 s. Raises `BrokenVocabulary`."""
    # a gateway that never estimates need not pay for it
    from tiktoken import Encoding

    try:
        text = gzip.decompress((directory / vocabulary.file).read_bytes())
    except (OSError, EOFError) as error:
        raise BrokenVocabulary(f"the vocabulary {vocabulary.file} cannot be read; reinstall deltaway") from error
    if sha256(text).hexdigest() != vocabulary.sha256:
        raise BrokenVocabulary(f"the vocabulary {vocabulary.file} has been changed; reinstall deltaway")
    decode = binascii.a2b_base64
    ranks = {decode(token): int(rank) for token, _, rank in (line.partition(b" ") for line in text.splitlines())}
    return Encoding(vocabulary.name, pat_str=vocabulary.pattern, mergeable_ranks=ranks, special_tokens={})
