"""Full-text search over what was said: both databases find the same, whatever is looked for."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from router.messages import Assistant, File, Message, Reasoning, Refusal, ToolCall, ToolResult, User
from router.messages import Text as TextPart
from router.store import conversations as kept
from router.store.store import Store
from router.store.words import has, searchable, snippet, wanted
from support.kept import conversation, draft, on_disk, said


@pytest.fixture
def store(quick_store: Store) -> Store:
    return quick_store


async def filled(store: Store, *messages: str | Message, name: str = "a", **fields: Any) -> None:
    new = [said(f"{name}{n}", message, created_at=1000 + n) for n, message in enumerate(messages)]
    await kept.create(store, conversation(name, **fields), new)


async def found(store: Store, words: str, **given: Any) -> list[str]:
    hits = (await kept.search(store, **{"owner": "key_1", "words": words, **given})).hits
    return [hit.item.id for hit in hits]


SAID: Sequence[str] = (
    "The quick brown fox, jumped over the LAZY dog's back",
    "Straße und Café; naïve façade",
    "我在東京大学学习人工智能。大学很好,东京也很好",
    "ｆｕｌｌ　ｗｉｄｔｈ ﬁne ｶﾞｷﾞｸﾞ",
    "error_code=E42 at https://example.com/path?q=1 (see x.y.z)",
    "한국어를 공부합니다",
    "สวัสดีครับ ยินดีต้อนรับ",
    "नमस्ते दुनिया",
    "emoji 👩‍💻 and \x00 nul and it's 3.14",
    "",
    "AND OR NOT NEAR",
)
LOOKED_FOR = {
    "fox": [0],
    "FOX quick": [0],
    "fox cat": [],
    "fo": [],
    "lazy dog": [0],
    "strasse": [1],
    "CAFÉ": [1],
    "cafe\u0301": [1],
    "cafe": [],
    "東京大学": [2],
    "京大": [2],
    "学": [2],
    "人工智能": [2],
    "大学东京": [],
    "东京大学": [],
    "很好,": [2],
    "東京 fox": [],
    "full width": [3],
    "FINE": [3],
    "ガギグ": [3],
    "ｷﾞｸﾞ": [3],
    "E42": [4],
    "error code": [4],
    "example.com": [4],
    "x.y": [4],
    "국어를": [5],
    "ดีครับ": [6],
    "नमस्ते": [7],
    "3.14": [8],
    "nul\x00and": [8],
    "and": [8, 10],
    "": [],
    "   ": [],
    "!?*": [],
}


async def test_what_is_looked_for_is_found(store: Store) -> None:
    await filled(store, *SAID)
    for words, expected in LOOKED_FOR.items():
        assert sorted(await found(store, words)) == sorted(f"a{n}" for n in expected), words


@pytest.mark.parametrize(
    "words",
    [
        *(
            '"',
            "'",
            '"fox',
            "fox'",
            "fox*",
            "fo*",
            "-fox",
            "fox AND",
            "NEAR(fox, 2)",
            "words:fox",
            "^fox",
            "(fox",
            "fox)",
        ),
        *(
            "fox & | !",
            "fox:*",
            "fox <-> quick",
            "\\",
            "%",
            "a" * 5000,
            "学" * 5000,
            "\ufffd\U0010ffff",
            "qq\u0000yy",
            "{fox}",
        ),
        *("; DROP TABLE contents; --", "fox + quick", '""', "rank MATCH 'x'", " ".join(f"w{n}" for n in range(1000))),
    ],
)
async def test_nothing_in_the_words_is_an_operator(store: Store, words: str) -> None:
    await filled(store, *SAID)
    expected = ["a0"] if wanted(words).words in (("fox",), ("fox", "quick")) else []
    assert await found(store, words) == expected


@given(st.text(), st.text())
def test_words_are_made_of_nothing_that_a_database_could_misread(one: str, other: str) -> None:
    for word in (*searchable(one), *wanted(other).words):
        assert word
        assert not {" ", '"', "'", "\\", "\x00"} & set(word)
        assert len(word.encode()) <= 2046


@given(st.text(), st.text(), st.text())
def test_any_part_between_spaces_is_found_and_seen(before: str, said: str, after: str) -> None:
    text = f"{before} {said} {after}"
    looked_for = wanted(said)
    assert set(looked_for.words) <= set(searchable(text))
    assert has(text, looked_for)
    snippet(text, looked_for)


def test_any_characters_in_a_row_of_a_text_without_spaces_are_found() -> None:
    text = "吾輩は猫である。名前はまだ無い"
    words = set(searchable(text))
    for start in range(8):
        for end in range(start + 1, 8):
            looked_for = wanted(text[start:end])
            assert set(looked_for.words) <= words
            assert has(text, looked_for)
    apart = wanted("猫名前")
    assert not set(apart.words) <= words


def test_a_text_of_any_length_has_room_in_the_index() -> None:
    many = " ".join(f"word{n}" for n in range(200_000))
    assert sum(len(word.encode()) + 1 for word in searchable(many)) <= 1_000_000
    assert searchable("x" * 100_000) == ("x" * 100,)
    assert wanted("x" * 100_000).words == ("x" * 100,)


async def test_long_texts_are_found_by_their_last_words(store: Store) -> None:
    await filled(store, "的" * 60_000 + "终于", "word " * 30_000 + "needle", " ".join(f"w{n}" for n in range(100_000)))
    assert await found(store, "终于") == ["a0"]
    assert await found(store, "needle word") == ["a1"]
    assert await found(store, "w0") == ["a2"]


@pytest.mark.parametrize(
    ("text", "words", "shown"),
    [
        ("The quick brown fox", "BROWN", "The quick ‹brown› fox"),
        ("one two one", "one", "‹one› two ‹one›"),
        ("我在東京大学学习", "東京", "我在‹東京›大学学习"),
        ("a\n\n  b", "b", "a ‹b›"),
        ("say ‹this› now", "now", "say <this> ‹now›"),
        ("nothing", "other", "nothing"),
    ],
)
def test_a_snippet_marks_what_was_looked_for(text: str, words: str, shown: str) -> None:
    assert snippet(text, wanted(words)) == shown


def test_a_snippet_is_short_and_says_where_it_was_cut() -> None:
    shown = snippet("x " * 500 + "needle" + " y" * 500, wanted("needle"))
    assert shown.startswith("…x")
    assert "‹needle›" in shown
    assert shown.endswith("y…")
    assert len(shown) < 250
    assert len(snippet("z" * 100_000, wanted("z" * 100_000))) < 250


async def test_all_that_was_said_is_found_but_not_what_was_thought(store: Store) -> None:
    await filled(
        store,
        User((TextPart("alpha"), File(filename="report.pdf"), Refusal("beta"))),
        Assistant(tool_calls=(ToolCall("call_x", "get_weather", '{"city":"Oslo"}'),)),
        ToolResult("call_x", "gamma"),
        Assistant(refusal="delta"),
        Assistant(reasoning=(Reasoning("epsilon"),)),
    )
    for words, expected in (
        *(("alpha", ["a0"]), ("report pdf", ["a0"]), ("beta", ["a0"]), ("oslo weather", ["a1"])),
        *(("gamma", ["a2"]), ("delta", ["a3"]), ("epsilon", []), ("call_x", [])),
    ):
        assert await found(store, words) == expected


async def test_only_one_s_own_is_found(store: Store) -> None:
    await filled(store, "secret plan")
    await filled(store, "secret plan", name="b", owner="key_2")
    assert await found(store, "secret") == ["a0"]
    assert await found(store, "secret", owner="key_2") == ["b0"]
    assert sorted(await found(store, "secret", owner=None)) == ["a0", "b0"]
    assert await found(store, "secret", owner="key_3") == []
    with pytest.raises(kept.UnknownCursor):
        await found(store, "secret", after=("conv_b", "b0"))


async def test_hits_come_in_pages_the_newest_first(store: Store) -> None:
    await filled(store, *[f"needle {n}" for n in range(5)])
    await filled(store, "needle too", name="b")
    seen: list[tuple[str, str]] = []
    after: tuple[str, str] | None = None
    for expected in (True, True, False):
        page = await kept.search(store, owner="key_1", words="needle", limit=2, after=after)
        assert page.more == expected
        seen += [(hit.conversation, hit.item.id) for hit in page.hits]
        after = seen[-1]
    assert [item for _, item in seen] == ["a4", "a3", "a2", "a1", "b0", "a0"]
    assert await found(store, "needle", conversation="conv_b") == ["b0"]
    with pytest.raises(kept.UnknownCursor):
        await found(store, "needle", after=("conv_a", "gone"))


async def test_what_only_looks_alike_costs_no_page(store: Store) -> None:
    await filled(store, "東京大学", *["東京と京大の大学"] * 30, "東京大学")
    page = await kept.search(store, owner="key_1", words="東京大学", limit=1)
    assert ([hit.item.id for hit in page.hits], page.more) == (["a31"], True)
    page = await kept.search(store, owner="key_1", words="東京大学", limit=1, after=("conv_a", "a31"))
    assert ([hit.item.id for hit in page.hits], page.more) == (["a0"], False)


async def test_an_answer_is_found_when_it_has_ended(store: Store) -> None:
    await filled(store, "hello")
    await kept.save(store, [draft("m", "needle")])
    assert await found(store, "needle") == []
    await kept.settle_abandoned(store, at=1)
    assert await found(store, "needle") == ["m"]
    await kept.save(store, [draft("m", "other", "completed", seq=9)])
    assert await found(store, "needle") == []
    assert await found(store, "other") == ["m"]


async def test_what_was_removed_is_not_found_and_a_fork_s_is(store: Store) -> None:
    await filled(store, "needle one", "needle two")
    await kept.fork(store, "conv_a", owner=None, new=conversation("b"), upto="a0")
    assert await found(store, "needle") == ["a1", "a0", "a0"]
    await kept.remove_item(store, "conv_a", "a1")
    assert await found(store, "needle") == ["a0", "a0"]
    await kept.remove(store, "conv_a", owner=None)
    assert await found(store, "needle") == ["a0"]
    await kept.remove(store, "conv_b", owner=None)
    assert await found(store, "needle") == []


async def test_the_index_is_used(store: Store) -> None:
    await filled(store, *[f"word{n}" for n in range(50)])
    async with store.writing() as connection:
        await connection.execute(text("ANALYZE"))
        if store.dialect == "postgresql":
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
            query = "EXPLAIN SELECT 1 FROM contents WHERE words @@ '''word7'''::tsquery"
            assert "contents_by_words" in str((await connection.execute(text(query))).all())
        else:
            await connection.execute(text("INSERT INTO contents_search(contents_search) VALUES ('integrity-check')"))


# -- deletion that deletes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False], ids=["the conversation", "its items"])
async def test_what_is_deleted_is_not_in_the_file_any_more(store: Store, whole: bool) -> None:
    if store.dialect == "postgresql":
        # its own vacuum does that
        assert await kept.clear(store)
        return
    secret = "xylophonesecret"
    for number in range(50):
        await filled(store, f"some words {number}", name=f"n{number}")
    await filled(store, f"my {secret}", "又一個祕密", "z" * 20_000 + secret, metadata={"k": "x"})
    for seq in range(1, 20):
        await kept.save(store, [draft("m", f"{secret} in a draft " * seq, seq=seq)])
    await kept.save(store, [draft("m", f"no {secret}", "completed", seq=99)])
    for number in range(50, 60):
        await filled(store, f"some words {number}", name=f"n{number}")
    assert secret.encode() in on_disk(store)
    if whole:
        await kept.remove(store, "conv_a", owner="key_1")
    else:
        for item in ("a0", "a1", "a2", "m"):
            await kept.remove_item(store, "conv_a", item)
    while not await kept.clear(store):
        pass
    left = on_disk(store)
    assert secret.encode() not in left
    assert "祕密".encode() not in left
    assert b"zzzzzzzz" not in left
    assert len(await found(store, "some words", limit=100)) == 60


async def test_a_large_index_is_cleared_in_pieces(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    if store.dialect == "postgresql":
        return
    monkeypatch.setattr("router.store.remains._PIECE", 1)
    for number in range(8):
        said_there = [" ".join(f"w{number}x{n}y{m}" for m in range(300)) for n in range(10)]
        await filled(store, *said_there, name=f"n{number}")
    await filled(store, "xylophonesecret")
    await kept.remove(store, "conv_a", owner=None)
    rounds = 0
    while not await kept.clear(store, pieces=1):
        rounds += 1
        assert rounds < 1000
    assert rounds > 1
    assert b"xylophonesecret" not in on_disk(store)
    assert await found(store, "w3x7y1") == ["n37"]
