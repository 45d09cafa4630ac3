"""Token counts: the right vocabulary, unchanged, offline, and in bounded time."""

import asyncio
import base64
import gzip
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiktoken_ext.openai_public as openai_public
from dashscope.tokenizers import qwen_tokenizer

import router.tokens as tokens_module
from router.messages import (
    Assistant,
    Audio,
    ChatRequest,
    File,
    FunctionTool,
    Image,
    JsonSchema,
    OtherPart,
    OtherTool,
    Part,
    Reasoning,
    System,
    Text,
    ToolCall,
    ToolResult,
    User,
)
from router.tokens import (
    INLINE,
    PER_FILE,
    PER_IMAGE,
    PER_IMAGE_LOW,
    PIECE,
    VOCABULARIES,
    BrokenVocabulary,
    TokenCounter,
    measured,
    rough_count,
    vocabulary_of,
)

PACKED = Path(tokens_module.__file__).parent / "vocabularies"


@pytest.fixture(scope="module")
def counter() -> TokenCounter:
    return TokenCounter()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a token count went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        ("gpt-4", "cl100k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
        ("ft:gpt-3.5-turbo:acme", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-4.1", "o200k_base"),
        ("gpt-5-mini", "o200k_base"),
        ("gpt-6", "o200k_base"),
        ("o1", "o200k_base"),
        ("o4-mini", "o200k_base"),
        ("qwen-plus", "qwen"),
        ("Qwen/Qwen3-32B", "qwen"),
        ("qwq-32b", "qwen"),
        ("claude-opus-5", "o200k_base"),
        ("", "o200k_base"),
    ],
)
def test_vocabulary_by_model_name(model: str, vocabulary: str) -> None:
    assert vocabulary_of(model).name == vocabulary


@pytest.mark.parametrize("name", ["o200k_base", "cl100k_base"])
def test_sums_and_patterns_are_those_that_tiktoken_pins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[str] = []
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda _, expected_hash: pinned.append(expected_hash))
    definition: dict[str, Any] = getattr(openai_public, name)()
    assert pinned == [VOCABULARIES[name].sha256]
    assert VOCABULARIES[name].pattern == definition["pat_str"]


def test_qwen_pattern_is_the_one_of_its_sdk() -> None:
    assert VOCABULARIES["qwen"].pattern == qwen_tokenizer.PAT_STR


def test_every_packed_file_is_named_in_the_readme_with_its_sum() -> None:
    readme = (PACKED / "README.md").read_text()
    assert {path.name for path in PACKED.glob("*.gz")} == {v.file for v in VOCABULARIES.values()}
    for vocabulary in VOCABULARIES.values():
        assert f"`{vocabulary.file}`" in readme
        assert vocabulary.sha256 in readme


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("model", "text", "count"),
    [
        # the examples of OpenAI's cookbook
        ("gpt-4", "antidisestablishmentarianism", 6),
        ("gpt-4o", "antidisestablishmentarianism", 6),
        ("gpt-4", "2 + 2 = 4", 7),
        ("gpt-4o", "2 + 2 = 4", 7),
        ("gpt-4", "お誕生日おめでとう", 9),
        ("gpt-4o", "お誕生日おめでとう", 8),
        ("qwen-plus", "hello world", 2),
        ("qwen-plus", "12345", 5),
        ("gpt-5", "", 0),
    ],
)
async def test_known_counts(counter: TokenCounter, model: str, text: str, count: int) -> None:
    assert await counter.count([text], model) == count


@pytest.mark.parametrize("model", ["gpt-4", "gpt-5", "qwen-plus"])
async def test_special_tokens_in_text_are_plain_text(counter: TokenCounter, model: str) -> None:
    assert await counter.count(["<|endoftext|><|im_start|>"], model) > 2


async def test_texts_are_counted_each_and_added(counter: TokenCounter) -> None:
    assert await counter.count(["hello", " world"], "gpt-5") == 2


async def test_lone_surrogates_are_counted(counter: TokenCounter) -> None:
    assert await counter.count(["\ud83d"], "gpt-5") > 0


@pytest.mark.parametrize("pattern", ["a", " ", "\n", "!", "~-", "1", "你", "😀", "\u0301", " \t"])
async def test_pathological_texts_take_bounded_time(counter: TokenCounter, pattern: str) -> None:
    await counter.count(["warm"], "gpt-5")
    text = pattern * (3 * PIECE // len(pattern))
    started = time.perf_counter()
    assert await counter.count([text], "gpt-5") > 0
    assert time.perf_counter() - started < 2


def test_a_long_text_is_cut_and_costs_two_tokens_a_cut_at_most(counter: TokenCounter) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 5000
    whole = counter._encoding(vocabulary_of("gpt-5")).encode_ordinary(text)
    assert len(text) > 2 * PIECE
    assert abs(counter.count_blocking([text], "gpt-5") - len(whole)) <= 4


def test_nothing_is_loaded_or_imported_before_the_first_count() -> None:
    counter = TokenCounter()
    assert counter.count_now(["hello"], "gpt-5") is None
    assert counter._encodings == {}


async def test_short_texts_are_counted_at_once_when_the_vocabulary_is_loaded(counter: TokenCounter) -> None:
    await counter.count(["warm"], "gpt-5")
    assert counter.count_now(["hello world"], "gpt-5") == 2
    assert counter.count_now(["a" * INLINE, "a"], "gpt-5") is None


async def test_long_texts_leave_the_event_loop(counter: TokenCounter, monkeypatch: pytest.MonkeyPatch) -> None:
    await counter.count(["warm"], "gpt-5")
    threads: list[threading.Thread] = []
    blocking = counter.count_blocking

    def spy(texts: list[str], model: str) -> int:
        threads.append(threading.current_thread())
        return blocking(texts, model)

    monkeypatch.setattr(counter, "count_blocking", spy)
    await counter.count(["hello " * INLINE], "gpt-5")
    assert threads
    assert threads[0] is not threading.main_thread()


async def test_a_vocabulary_is_loaded_once_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = tokens_module.load

    def spy(vocabulary: Any, directory: Any) -> Any:
        loads.append(vocabulary.name)
        return load(vocabulary, directory)

    monkeypatch.setattr(tokens_module, "load", spy)
    counter = TokenCounter()
    counts = await asyncio.gather(*(counter.count(["hello world"], "gpt-4") for _ in range(8)))
    assert counts == [2] * 8
    assert loads == ["cl100k_base"]


def test_a_changed_vocabulary_is_refused(tmp_path: Path) -> None:
    shutil.copytree(PACKED, tmp_path / "v")
    path = tmp_path / "v" / "qwen.tiktoken.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"AAAA 151643\n"))
    with pytest.raises(BrokenVocabulary, match="has been changed"):
        TokenCounter(tmp_path / "v").count_blocking(["a"], "qwen-plus")


@pytest.mark.parametrize("content", [b"", b"no gzip", None])
def test_an_unreadable_vocabulary_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "qwen.tiktoken.gz").write_bytes(content)
    with pytest.raises(BrokenVocabulary):
        TokenCounter(tmp_path).count_blocking(["a"], "qwen-plus")


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog.",
        "敏捷的棕色狐狸跳过了懒狗。",
        "def add(a, b):\n    return a + b\n",
    ],
)
def test_the_rough_count_is_within_a_factor_of_two(counter: TokenCounter, text: str) -> None:
    exact = counter.count_blocking([text], "gpt-5")
    assert exact / 2 <= rough_count([text]) <= exact * 2


def request(*messages: Any, **fields: Any) -> ChatRequest:
    return ChatRequest(model="gpt-5", protocol="openai", messages=messages, **fields)


async def test_a_request_counts_as_in_the_cookbook(counter: TokenCounter) -> None:
    # 3 a message, its text, 3 before the answer
    assert await counter.count_request(request(System("hello world"), User("hello")), "gpt-5") == 3 + 2 + 3 + 1 + 3


def test_all_that_a_model_reads_is_counted() -> None:
    call = ToolCall("c1", "weather", '{"city":"Rome"}')
    texts, _ = measured(
        request(
            User((Text("part one"), Text("part two")), name="ada"),
            Assistant("said", tool_calls=(call,), reasoning=(Reasoning("thought"),), refusal="no"),
            ToolResult("c1", "rain"),
            tools=(FunctionTool("weather", "Looks", {"type": "object"}), OtherTool({"type": "web_search"})),
            response_format=JsonSchema("point", {"title": "Point"}),
        )
    )
    read = "\n".join(texts)
    for text in ("part one", "part two", "ada", "said", "thought", "no", "weather", '{"city":"Rome"}', "rain", "Looks"):
        assert text in read
    assert {'{"type":"web_search"}', '{"title":"Point"}'} <= set(texts)


def test_images_and_files_count_flat() -> None:
    _, none = measured(request(User(())))
    _, fixed = measured(request(User((Image("data:x"), Image("data:x", detail="low"), Audio("UklGRg==", "wav")))))
    assert fixed - none == PER_IMAGE + PER_IMAGE_LOW + PER_FILE


BYTES = b"Hello, file. " * 80_000
BASE64 = base64.b64encode(BYTES).decode()


@pytest.mark.parametrize(
    ("part", "each"),
    [
        (File(data=BASE64), 4),
        (File(data=f"data:text/plain;base64,{BASE64}", filename="a.txt"), 4),
        (File(url=f"data:application/pdf;base64,{BASE64}"), 4),
        (File(url=f"data:text/plain,{BYTES.decode()}"), 4),
        (File(data="data:text/plain,{}".format("é" * (len(BYTES) // 2))), 4),
        (OtherPart({"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{BASE64}"}}), 4),
        (OtherPart({"type": "video", "video": ["data:,a", f"data:text/plain,{BYTES.decode()}"]}), 4),
        (Audio(BASE64, "wav"), 16),
    ],
)
def test_what_is_sent_along_counts_by_its_bytes_and_is_not_tokenized(part: Part, each: int) -> None:
    _, none = measured(request(User(())))
    texts, fixed = measured(request(User((part,))))
    assert fixed - none == pytest.approx(len(BYTES) / each, abs=3)
    assert sum(map(len, texts)) < 200


@pytest.mark.parametrize(
    "part",
    [
        File(file_id="file-1"),
        File(url="https://example.com/" + "a" * 10_000),
        Audio("https://example.com/" + "a" * 100_000, "mp3"),
        File(data=BASE64[:400]),
        OtherPart({"type": "input_file", "file_id": "file-1"}),
    ],
)
def test_a_file_that_is_elsewhere_or_small_counts_flat(part: Part) -> None:
    assert measured(request(User((part,))))[1] - measured(request(User(())))[1] == PER_FILE


def test_a_part_of_an_unknown_kind_counts_as_its_text() -> None:
    texts, fixed = measured(request(ToolResult("c1", (OtherPart({"type": "input_text", "text": "long " * 1000}),))))
    assert rough_count(texts) + fixed > 1000 + PER_FILE
    assert "long long" in texts[0]


def test_a_part_of_any_depth_is_counted() -> None:
    deep: Any = "bottom"
    for _ in range(900):
        deep = [deep]
    assert "bottom" in measured(request(User((OtherPart({"type": "nest", "in": deep}),))))[0][0]


def test_tiktoken_is_not_imported_by_importing_the_module() -> None:

    code = "import sys, router.tokens; sys.exit('tiktoken' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
