"""Conversations in a store: who has which, their items, forks, answers under way, and whose turn it is."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import func, select, text

from router.conversation import ContextRules, Item, Turn
from router.conversations.summary import Summary
from router.messages import Assistant, Message, Reasoning, System, ToolCall, ToolResult, User
from router.messages import Text as TextPart
from router.store import conversations as kept
from router.store.store import Store, StoreAway
from router.store.summaries import StoredSummaries
from router.store.tables import contents, conversation_items, summaries, turns
from support.kept import conversation, draft, said
from support.reading import analyzed, counted, rows_read

MESSAGES: tuple[Message, ...] = (
    System("Be kind.", role="developer"),
    User((TextPart("look \x00 here", {"x": 1}),), name="Ann", extra={"b": 2, "a": [None, 1.5]}),
    Assistant(reasoning=(Reasoning("hm", signature="s"),)),
    Assistant(tool_calls=(ToolCall("call_1", "find", '{"q":"雪"}'),)),
    ToolResult("call_1", "👋 found", is_error=True),
    Assistant("", refusal="no"),
)


@pytest.fixture
def store(quick_store: Store) -> Store:
    return quick_store


async def rows_in(store: Store, table: Any) -> int:
    async with store.reading() as connection:
        return await connection.scalar(select(func.count()).select_from(table)) or 0


async def texts(store: Store, name: str = "conv_a") -> list[Any]:
    return [item.message.content for item in await kept.history(store, name)]


async def filled(store: Store, count: int, name: str = "a", **fields: Any) -> tuple[Item, ...]:
    new = [said(f"msg_{number}", f"text {number}") for number in range(count)]
    return await kept.create(store, conversation(name, **fields), new)


# -- whose it is -------------------------------------------------------------------------------------------------------


async def test_a_conversation_is_found_as_it_was_made(store: Store) -> None:
    made = conversation(metadata={"a": "\x00 ü \U0001f44b", "": "'; DROP"}, context=ContextRules(strategy="truncate"))
    await kept.create(store, made, ())
    assert await kept.find(store, made.id, owner="key_1") == made
    assert await kept.find(store, made.id, owner=None) == made


async def test_a_conversation_of_another_owner_is_not_found_changed_forked_or_removed(store: Store) -> None:
    await filled(store, 1)
    assert await kept.find(store, "conv_a", owner="key_2") is None
    assert await kept.change(store, "conv_a", owner="key_2", metadata={}, at=1) is None
    assert await kept.fork(store, "conv_a", owner="key_2", new=conversation("b"), upto=None) is None
    assert await kept.remove(store, "conv_a", owner="key_2") is None
    assert (await kept.listed(store, owner="key_2")).conversations == ()
    with pytest.raises(kept.UnknownCursor):
        await kept.listed(store, owner="key_2", after="conv_a")
    assert await texts(store) == ["text 0"]


async def test_what_is_changed_is_there_and_the_rest_stays(store: Store) -> None:
    rules = ContextRules(strategy="truncate", keep_turns=3)
    await kept.create(store, conversation(metadata={"a": "1"}, context=rules), ())
    changed = await kept.change(store, "conv_a", owner=None, metadata={"b": "2"}, at=3000)
    assert changed == conversation(metadata={"b": "2"}, context=rules, updated_at=3000)
    without = await kept.change(store, "conv_a", owner=None, metadata={"b": "2"}, at=2000, context=None)
    # a clock that is behind makes nothing older
    assert without == conversation(metadata={"b": "2"}, updated_at=3000)
    assert await kept.find(store, "conv_a", owner=None) == without


async def test_conversations_are_listed_in_pages_both_ways(store: Store) -> None:
    for name in "abcde":
        await kept.create(store, conversation(name), ())
    await kept.create(store, conversation("f", owner="key_2"), ())

    async def names(**given: Any) -> tuple[str, bool]:
        page = await kept.listed(store, owner="key_1", limit=2, **given)
        return "".join(each.id[-1] for each in page.conversations), page.more

    assert await names() == ("ed", True)
    assert await names(after="conv_d") == ("cb", True)
    assert await names(after="conv_b") == ("a", False)
    assert await names(before="conv_b") == ("dc", True)
    assert await names(order="asc") == ("ab", True)
    assert await names(order="asc", after="conv_d") == ("e", False)
    assert await names(order="asc", before="conv_c") == ("ab", False)
    assert len((await kept.listed(store, owner=None)).conversations) == 6


# -- items -------------------------------------------------------------------------------------------------------------


async def test_messages_of_every_kind_come_back_as_they_were(store: Store) -> None:
    added = await kept.create(store, conversation(), [said(f"i{n}", each) for n, each in enumerate(MESSAGES)])
    assert tuple(item.message for item in added) == MESSAGES
    assert await kept.history(store, "conv_a") == added
    assert [await kept.item(store, "conv_a", item.id) for item in added] == list(added)
    assert [item async for item in kept.exported(store, "conv_a")] == list(added)
    assert [item.parent for item in added] == ["", *(item.content for item in added[:-1])]


async def test_items_are_added_at_the_end(store: Store) -> None:
    first = await filled(store, 2)
    added = await kept.add(store, "conv_a", [said("new", "and", call="req_9")], at=5000, parent="msg_1")
    assert [(item.id, item.parent, item.call, item.status) for item in added] == [
        ("new", first[-1].content, "req_9", "completed")
    ]
    assert await kept.history(store, "conv_a") == (*first, *added)
    found = await kept.find(store, "conv_a", owner=None)
    assert found is not None
    assert found.updated_at == 5000
    assert await kept.add(store, "conv_a", [], at=5000) == ()


async def test_what_cannot_be_added_changes_nothing(store: Store) -> None:
    await filled(store, 2)
    new = [said("new", "x")]
    with pytest.raises(kept.ConversationMissing):
        await kept.add(store, "conv_none", new, at=1)
    with pytest.raises(kept.MissingItem):
        await kept.add(store, "conv_a", new, at=1, parent="msg_7")
    with pytest.raises(kept.StaleParent) as stale:
        await kept.add(store, "conv_a", new, at=1, parent="msg_0")
    assert stale.value.last == "msg_1"
    with pytest.raises(kept.ItemExists):
        await kept.add(store, "conv_a", [*new, said("msg_1", "x")], at=1)
    with pytest.raises(kept.ItemExists):
        await kept.add(store, "conv_a", [*new, *new], at=1)
    assert await texts(store) == ["text 0", "text 1"]
    assert await rows_in(store, contents) == 2


async def test_an_empty_conversation_has_no_parent_to_answer(store: Store) -> None:
    await filled(store, 0)
    with pytest.raises(kept.MissingItem):
        await kept.add(store, "conv_a", [said("new", "x")], at=1, parent="msg_0")


async def test_items_come_in_pages_both_ways(store: Store) -> None:
    await filled(store, 5)

    async def page(order: Any = "asc", **given: Any) -> tuple[str, bool]:
        found = await kept.items(store, "conv_a", limit=2, order=order, **given)
        return "".join(item.id[-1] for item in found.items), found.more

    assert await page() == ("01", True)
    assert await page(after="msg_1") == ("23", True)
    assert await page(after="msg_3") == ("4", False)
    assert await page(after="msg_4") == ("", False)
    assert await page(before="msg_4") == ("23", True)
    assert await page(before="msg_1") == ("0", False)
    assert await page(after="msg_0", before="msg_2") == ("1", False)
    assert await page("desc") == ("43", True)
    assert await page("desc", after="msg_3") == ("21", True)
    assert await page("desc", before="msg_1") == ("32", True)


async def test_a_cursor_of_another_conversation_is_unknown(store: Store) -> None:
    await filled(store, 1)
    await kept.create(store, conversation("b"), [said("other", "x")])
    for given in ({"after": "other"}, {"before": "other"}, {"after": "'; --"}):
        with pytest.raises(kept.UnknownCursor):
            await kept.items(store, "conv_a", limit=2, order="asc", **given)
    assert (await kept.items(store, "conv_none", limit=2, order="asc")).items == ()


async def test_the_history_can_be_cut_to_its_newest_part(store: Store) -> None:
    await kept.create(store, conversation(), [said(f"m{n}", "x" * 1000) for n in range(10)])
    cut = await kept.history(store, "conv_a", limit_bytes=3300)
    assert [item.id for item in cut] == ["m7", "m8", "m9"]
    assert [item.id for item in await kept.history(store, "conv_a", limit_bytes=1)] == ["m9"]
    assert await kept.history(store, "conv_none") == ()


async def test_a_long_history_is_whole_and_in_its_order(store: Store) -> None:
    await filled(store, 1203)
    expected = [f"text {number}" for number in range(1203)]
    assert await texts(store) == expected
    assert [item.message.content async for item in kept.exported(store, "conv_a")] == expected


async def test_an_item_can_be_removed(store: Store) -> None:
    await filled(store, 3)
    assert await kept.remove_item(store, "conv_a", "msg_1") == kept.Removed("conv_a", ())
    assert await kept.remove_item(store, "conv_a", "msg_1") is None
    assert await kept.remove_item(store, "conv_none", "msg_1") is None
    assert await kept.item(store, "conv_a", "msg_1") is None
    await kept.remove_item(store, "conv_a", "msg_2")
    # its place is nobody else's
    await kept.add(store, "conv_a", [said("new", "x")], at=1)
    assert await texts(store) == ["text 0", "x"]
    assert await rows_in(store, contents) == 2


async def test_an_item_that_is_being_written_is_not_removed(store: Store) -> None:
    await filled(store, 1)
    await kept.save(store, [draft("answer", "so far")])
    with pytest.raises(kept.ItemInProgress):
        await kept.remove_item(store, "conv_a", "answer")


# -- contents that are shared ------------------------------------------------------------------------------------------


async def test_a_fork_shares_its_past_and_goes_its_own_way(store: Store) -> None:
    first = await filled(store, 3)
    made = await kept.fork(store, "conv_a", owner="key_1", new=conversation("b", metadata={"x": "y"}), upto="msg_1")
    assert made == conversation("b", metadata={"x": "y"}, forked_from="conv_a")
    assert await kept.find(store, "conv_b", owner="key_1") == made
    assert await kept.history(store, "conv_b") == first[:2]
    assert await rows_in(store, contents) == 3
    await kept.add(store, "conv_b", [said("new", "else")], at=1, parent="msg_1")
    assert await texts(store, "conv_b") == ["text 0", "text 1", "else"]
    assert await texts(store) == ["text 0", "text 1", "text 2"]


async def test_a_fork_is_its_owner_s_whoever_asks_for_it(store: Store) -> None:
    await filled(store, 1)
    made = await kept.fork(store, "conv_a", owner=None, new=conversation("b", owner="key_admin"), upto=None)
    assert made is not None
    assert made.owner == "key_1"
    with pytest.raises(kept.MissingItem):
        await kept.fork(store, "conv_a", owner=None, new=conversation("c"), upto="msg_9")
    assert await kept.find(store, "conv_c", owner=None) is None


async def test_a_fork_leaves_out_what_is_being_written_and_has_no_streams(store: Store) -> None:
    await filled(store, 1)
    await kept.save(store, [draft("done", "done", "completed"), draft("going", "going")])
    await kept.fork(store, "conv_a", owner=None, new=conversation("b"), upto=None)
    assert [(item.id, item.stream) for item in await kept.history(store, "conv_b")] == [("msg_0", None), ("done", None)]
    removed = await kept.remove(store, "conv_b", owner=None)
    assert removed == kept.Removed("conv_b", ())
    assert len(await kept.history(store, "conv_a")) == 2


async def test_a_fork_outlives_what_it_was_forked_from(store: Store) -> None:
    await filled(store, 3)
    await kept.fork(store, "conv_a", owner=None, new=conversation("b"), upto="msg_1")
    await kept.remove(store, "conv_a", owner=None)
    assert await texts(store, "conv_b") == ["text 0", "text 1"]
    assert await rows_in(store, contents) == 2
    await kept.remove(store, "conv_b", owner=None)
    assert await rows_in(store, contents) == 0


async def test_owners_share_nothing(store: Store) -> None:
    mine = await filled(store, 1)
    theirs = await filled(store, 1, "b", owner="key_2")
    again = await filled(store, 1, "c")
    assert mine[0].content == again[0].content != theirs[0].content
    assert await rows_in(store, contents) == 2


async def test_the_same_words_after_others_are_another_content(store: Store) -> None:
    added = await kept.create(store, conversation(), [said("a", "x"), said("b", "x")])
    assert added[0].content != added[1].content


async def test_contents_survive_those_who_add_and_remove_them_at_once(store: Store) -> None:
    async def add_and_remove(name: str) -> None:
        for _ in range(5):
            await filled(store, 3, name)
            await kept.remove(store, f"conv_{name}", owner=None)
        await filled(store, 3, name)

    await asyncio.gather(*(add_and_remove(f"{number}") for number in range(4)))
    for number in range(4):
        assert await texts(store, f"conv_{number}") == ["text 0", "text 1", "text 2"]
    assert await rows_in(store, contents) == 3


# -- deletion ----------------------------------------------------------------------------------------------------------


def turn(call: str, **fields: Any) -> Turn:
    return Turn(call=call, conversation="conv_a", created_at=1, **fields)


def summary(call: str, covers: str = "msg_1", created_at: int = 1, tokens: int = 10) -> Summary:
    return Summary(
        conversation="conv_a", covers=covers, text=f"sum {call}", call=call, tokens=tokens, created_at=created_at
    )


async def test_a_removed_conversation_leaves_nothing(store: Store) -> None:
    await filled(store, 2)
    await kept.save(store, [draft("a", "x", "completed"), draft("b", "y", stream="strm_2"), draft("c", "z")])
    await kept.record_turn(store, turn("req_1"))
    await kept.keep_summary(store, summary("req_2"))
    await kept.take(store, "conv_a", call="req_1", writer="w", at=1, until=9)
    removed = await kept.remove(store, "conv_a", owner="key_1")
    assert removed == kept.Removed("conv_a", ("strm_1", "strm_2"), "req_1")
    for table in (contents, conversation_items, turns, summaries):
        assert await rows_in(store, table) == 0
    assert await kept.remove(store, "conv_a", owner="key_1") is None


async def test_what_comes_late_does_not_raise_a_removed_conversation(store: Store) -> None:
    await filled(store, 1)
    await filled(store, 1, "b")
    await kept.remove(store, "conv_a", owner=None)
    gone = await kept.save(store, [draft("x", "late", "completed"), draft("y", "in time", conversation="conv_b")])
    assert gone == {"conv_a"}
    await kept.record_turn(store, turn("req_1"))
    await kept.keep_summary(store, summary("req_1"))
    assert not await kept.take(store, "conv_a", call="req_1", writer="w", at=1, until=9)
    assert await rows_in(store, turns) == await rows_in(store, summaries) == 0
    assert await rows_in(store, conversation_items) == 2


async def test_old_conversations_expire_but_not_under_a_call(store: Store) -> None:
    for name, changed in (("a", 100), ("b", 200), ("c", 300), ("d", 5000)):
        await filled(store, 1, name, updated_at=changed)
    await kept.take(store, "conv_b", call="req_1", writer="w", at=1, until=6000)
    assert await kept.expired(store, before=1000, limit=1) == (kept.Removed("conv_a", ()),)
    assert await kept.expired(store, before=1000, limit=5) == (kept.Removed("conv_c", ()),)
    assert await kept.expired(store, before=1000, limit=5) == ()
    assert {each.id for each in (await kept.listed(store, owner=None)).conversations} == {"conv_b", "conv_d"}


async def test_a_removed_item_takes_the_summaries_that_are_of_it_along(store: Store) -> None:
    await filled(store, 4)
    for call, covers in (("req_1", "msg_0"), ("req_2", "msg_2"), ("req_3", "gone")):
        await kept.keep_summary(store, summary(call, covers))
    for call, first in (("req_1", "msg_1"), ("req_2", "msg_3"), ("req_3", None)):
        await kept.record_turn(store, turn(call, summary="of it", first=first, strategy="summarise"))
    await kept.remove_item(store, "conv_a", "msg_1")
    latest = await kept.latest_summary(store, "conv_a")
    assert latest is not None
    assert latest.call == "req_1"
    assert await rows_in(store, summaries) == 1
    assert [(each.call, each.summary) for each in (await kept.turns(store, "conv_a")).turns] == [
        ("req_3", None),
        ("req_2", None),
        ("req_1", "of it"),
    ]


async def test_turns_and_summaries_are_kept(store: Store) -> None:
    await filled(store, 2)
    for call in ("req_1", "req_2", "req_3"):
        await kept.record_turn(store, turn(call, left_out=2, prompt_tokens=7))
    await kept.record_turn(store, turn("req_2", left_out=3))
    page = await kept.turns(store, "conv_a", limit=2)
    assert ([each.call for each in page.turns], page.more) == (["req_3", "req_2"], True)
    assert page.turns == (turn("req_3", left_out=2, prompt_tokens=7), turn("req_2", left_out=3))
    assert (await kept.turns(store, "conv_a", limit=2, after="req_2")).turns[0].call == "req_1"

    of = StoredSummaries(store)
    assert await of.latest_summary("conv_a") is None
    assert await of.summary_tokens_since("conv_a", 0) == 0
    for at, call in ((10, "req_1"), (30, "req_2"), (20, "req_3")):
        await of.keep_summary(summary(call, created_at=at))
    assert await of.latest_summary("conv_a") == summary("req_2", created_at=30)
    assert await of.summary_tokens_since("conv_a", 20) == 20


# -- whose turn it is --------------------------------------------------------------------------------------------------


async def test_one_call_at_a_time_has_a_conversation(store: Store) -> None:
    await filled(store, 1)

    async def take(call: str, at: int) -> bool:
        return await kept.take(store, "conv_a", call=call, writer="w", at=at, until=at + 100)

    assert await take("req_1", 1000)
    assert not await take("req_2", 1050)
    # to ask again for what one has is no harm
    assert await take("req_1", 1050)
    await kept.renew(store, ["req_1", "req_other"], 2000)
    assert not await take("req_2", 1999)
    # its process gave no sign of life
    assert await take("req_2", 2001)
    await kept.release(store, "conv_a", call="req_1")
    assert not await take("req_3", 2002)
    await kept.release(store, "conv_a", call="req_2")
    assert await take("req_3", 2002)
    assert not await kept.take(store, "conv_none", call="req_1", writer="w", at=1, until=2)


async def test_of_many_that_ask_at_once_one_has_the_conversation(store: Store) -> None:
    await filled(store, 1)
    asked = [kept.take(store, "conv_a", call=f"req_{n}", writer="w", at=1, until=99) for n in range(8)]
    assert sorted(await asyncio.gather(*asked)) == [False] * 7 + [True]


# -- answers under way -------------------------------------------------------------------------------------------------


async def shown(store: Store, name: str = "conv_a") -> list[tuple[str, Any, str]]:
    page = await kept.items(store, name, limit=100, order="asc")
    return [(item.id, item.message.content, item.status) for item in page.items]


async def test_an_answer_grows_and_becomes_a_content(store: Store) -> None:
    asked = await filled(store, 1)
    assert await kept.save(store, [draft("m", "He", seq=2)]) == frozenset()
    item = await kept.item(store, "conv_a", "m")
    assert item is not None
    assert (item.status, item.seq, item.stream, item.call, item.content) == ("in_progress", 2, "strm_1", "req_1", "")
    assert await kept.history(store, "conv_a") == asked
    await kept.save(store, [draft("m", "Hello", seq=5)])
    assert await rows_in(store, contents) == 1
    await kept.save(store, [draft("m", "Hello!", "completed", seq=9)])
    item = await kept.item(store, "conv_a", "m")
    assert item is not None
    assert (item.message, item.status, item.seq, item.parent) == (
        Assistant("Hello!"),
        "completed",
        9,
        asked[0].content,
    )
    added = await kept.add(store, "conv_a", [said("next", "thanks")], at=1, parent="m")
    assert added[0].parent == item.content
    async with store.reading() as connection:
        kept_twice = select(conversation_items.c.message).where(conversation_items.c.message.is_not(None))
        assert (await connection.execute(kept_twice)).all() == []


async def test_the_items_of_an_answer_are_in_their_order(store: Store) -> None:
    asked = await filled(store, 1)
    thought, called = Assistant(reasoning=(Reasoning("hm"),)), Assistant(tool_calls=(ToolCall("c", "f", "{"),))
    await kept.save(store, [draft("rs", thought)])
    await kept.save(store, [draft("rs", thought, seq=2), draft("fc", called, seq=2)])
    await kept.save(store, [draft("rs", thought, "completed", 3), draft("fc", called, "completed", 3)])
    found = await kept.history(store, "conv_a")
    assert [item.id for item in found] == ["msg_0", "rs", "fc"]
    assert [item.parent for item in found] == ["", asked[0].content, found[1].content]


async def test_an_answer_that_ended_before_it_was_first_saved_is_one_content(store: Store) -> None:
    await filled(store, 1)
    await kept.save(store, [draft("a", "x", "completed"), draft("b", "y", "incomplete")])
    found = await kept.history(store, "conv_a")
    assert [item.id for item in found] == ["msg_0", "a", "b"]
    assert found[2].parent == found[1].content


LATE: list[tuple[tuple[Any, int], tuple[Any, int], bool]] = [
    (("in_progress", 5), ("in_progress", 4), False),
    (("in_progress", 5), ("in_progress", 6), True),
    (("in_progress", 5), ("completed", 5), True),
    (("in_progress", 5), ("completed", 4), False),
    (("completed", 5), ("in_progress", 9), False),
    (("completed", 5), ("incomplete", 9), False),
    (("completed", 5), ("completed", 5), False),
    (("incomplete", 5), ("in_progress", 5), False),
    (("incomplete", 5), ("completed", 5), True),
    (("incomplete", 5), ("in_progress", 6), True),
]
"""What is there, what comes, and whether it is taken."""


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "at once"])
async def test_a_late_draft_changes_nothing(store: Store, together: bool) -> None:
    await filled(store, 0)
    firsts = [draft(f"m{n}", f"first {n}", *there) for n, (there, _, _) in enumerate(LATE)]
    lasts = [draft(f"m{n}", f"last {n}", *late) for n, (_, late, _) in enumerate(LATE)]
    for drafts in [[*firsts, *lasts]] if together else [firsts, lasts]:
        await kept.save(store, drafts)
    expected = [
        (f"m{n}", f"last {n}", late[0]) if taken else (f"m{n}", f"first {n}", there[0])
        for n, (there, late, taken) in enumerate(LATE)
    ]
    assert await shown(store) == expected
    # nothing is left of what was replaced
    assert await rows_in(store, contents) == sum(status != "in_progress" for _, _, status in expected)


async def test_answers_in_many_conversations_are_saved_in_few_statements(store: Store) -> None:
    for number in range(60):
        await filled(store, 1, f"{number}")
        await kept.take(store, f"conv_{number}", call=f"req_{number}", writer="w", at=1, until=5)
    statements = counted(store)

    def drafts(status: Any, seq: int) -> list[Any]:
        return [
            draft("m", f"{seq}", status, seq, conversation=f"conv_{number}", call=f"req_{number}")
            for number in range(60)
        ]

    await kept.save(store, drafts("in_progress", 1), renew_until=5000)
    await kept.save(store, drafts("in_progress", 2), renew_until=6000)
    await kept.save(store, drafts("completed", 3))
    assert len(statements) < 30
    for number in (0, 59):
        assert await shown(store, f"conv_{number}") == [("msg_0", "text 0", "completed"), ("m", "3", "completed")]
    assert not await kept.take(store, "conv_7", call="req_x", writer="w", at=5999, until=7000)
    assert await kept.take(store, "conv_7", call="req_x", writer="w", at=6001, until=7000)


async def test_answers_whose_process_died_become_incomplete(store: Store) -> None:
    for name, until in (("a", 1000), ("b", 3000), ("c", 3000)):
        await filled(store, 1, name)
        await kept.take(store, f"conv_{name}", call=f"req_{name}", writer="w", at=1, until=until)
        for item_id in ("x", "y"):
            conv = {"conversation": f"conv_{name}", "call": f"req_{name}", "stream": f"strm_{name}"}
            await kept.save(store, [draft(item_id, f"part {item_id}", **conv)])
    await kept.release(store, "conv_c", call="req_c")
    settled = await kept.settle_abandoned(store, at=2000)
    assert [(each.conversation, each.item, each.stream) for each in settled] == [
        ("conv_a", "x", "strm_a"),
        ("conv_a", "y", "strm_a"),
        ("conv_c", "x", "strm_c"),
        ("conv_c", "y", "strm_c"),
    ]
    assert (await shown(store))[1:] == [("x", "part x", "incomplete"), ("y", "part y", "incomplete")]
    assert (await shown(store, "conv_b"))[1:] == [("x", "part x", "in_progress"), ("y", "part y", "in_progress")]
    assert len(await kept.history(store, "conv_a")) == 3
    assert await kept.settle_abandoned(store, at=2000) == ()


async def test_an_answer_of_a_call_whose_turn_is_over_is_settled_while_another_one_writes(store: Store) -> None:
    await filled(store, 1)
    await kept.save(store, [draft("old", "x", call="req_dead")])
    await kept.take(store, "conv_a", call="req_2", writer="w", at=1, until=9000)
    await kept.save(store, [draft("new", "y", call="req_2")])
    assert [each.item for each in await kept.settle_abandoned(store, at=2)] == ["old"]
    assert [(item_id, status) for item_id, _, status in await shown(store)] == [
        ("msg_0", "completed"),
        ("old", "incomplete"),
        ("new", "in_progress"),
    ]


async def test_two_who_settle_at_once_settle_once(store: Store) -> None:
    await filled(store, 1)
    await kept.save(store, [draft("x", "x"), draft("y", "y")])
    await asyncio.gather(*(kept.settle_abandoned(store, at=1) for _ in range(4)))
    assert [status for _, _, status in await shown(store)] == ["completed", "incomplete", "incomplete"]
    assert await rows_in(store, contents) == 3


async def test_those_who_add_at_once_have_a_place_each(store: Store) -> None:
    await filled(store, 1)
    adding = [kept.add(store, "conv_a", [said(f"add_{n}", f"{n}")], at=1) for n in range(6)]
    saving = [kept.save(store, [draft(f"answer_{n}", f"{n}", "completed")]) for n in range(6)]
    await asyncio.gather(*adding, *saving)
    found = await kept.history(store, "conv_a")
    assert len(found) == 13
    assert [item.parent for item in found] == ["", *(item.content for item in found[:-1])]


# -- what it costs, and a store that is away ---------------------------------------------------------------------------


async def test_the_first_middle_and_last_page_of_ten_thousand_items_read_as_much(store: Store) -> None:
    # other conversations, so that a table read from its beginning would show
    for name in ("0", "a", "z"):
        await kept.create(store, conversation(name), [])
        async with store.writing() as connection:
            await connection.execute(text(f"UPDATE conversations SET last_position = 10000 WHERE id = 'conv_{name}'"))
            await connection.execute(
                text(
                    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 10000) "
                    "INSERT INTO conversation_items (conversation, position, id, content, status, seq, created_at) "
                    f"SELECT 'conv_{name}', x, 'msg_' || x, '{name}_' || x, 'completed', 0, 1 FROM n"
                )
            )
            empty = "''" if store.dialect == "sqlite" else "''::tsvector"
            await connection.execute(
                text(
                    "INSERT INTO contents (address, owner, parent, protocol, message, words) "
                    f"""SELECT content, 'key_1', '', 'openai', '{{"type":"user","content":"x"}}', {empty} """
                    f"FROM conversation_items WHERE conversation = 'conv_{name}'"
                )
            )
    await analyzed(store)
    statements = counted(store)
    costs = []
    for after in (None, "msg_5000", "msg_9980"):
        statements.clear()
        page = await kept.items(store, "conv_a", after=after, limit=20, order="asc")
        assert (len(page.items), page.more) == (20, after != "msg_9980")
        costs.append(await rows_read(store, [each for each in statements if "LIMIT" in each[0]]))
    assert max(costs) - min(costs) <= 2 * max(1, min(costs) // 20), costs
    assert max(costs) < 2000, costs


async def test_no_table_is_read_from_its_beginning(store: Store) -> None:
    if store.dialect == "postgresql":
        # what it does with tables as small as these says nothing
        return
    statements = counted(store)
    await filled(store, 3)
    await kept.add(store, "conv_a", [said("x", "x")], at=1, parent="msg_2")
    await kept.take(store, "conv_a", call="req_1", writer="w", at=1, until=5)
    await kept.renew(store, ["req_1"], 5)
    await kept.save(store, [draft("m", "x"), draft("n", "x")], renew_until=5)
    await kept.save(store, [draft("m", "y", "incomplete", 2)])
    await kept.save(store, [draft("m", "y", "completed", 2)])
    await kept.settle_abandoned(store, at=99)
    await kept.history(store, "conv_a")
    await kept.items(store, "conv_a", before="msg_2", limit=2, order="desc")
    await kept.listed(store, owner="key_1")
    await kept.search(store, owner="key_1", words="x y")
    await kept.fork(store, "conv_a", owner="key_1", new=conversation("b"), upto="m")
    await kept.keep_summary(store, summary("req_1"))
    await kept.record_turn(store, turn("req_1", summary="x"))
    await kept.remove_item(store, "conv_a", "m")
    await kept.expired(store, before=1)
    await kept.remove(store, "conv_a", owner=None)
    seen = 0
    async with store.reading() as connection:
        for statement, parameters in list(statements):
            if statement.split()[0] in ("SELECT", "UPDATE", "DELETE"):
                one = parameters[0] if isinstance(parameters, list) else parameters
                plan = (await connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement, one)).all()
                read = [row[-1] for row in plan if row[-1].startswith("SCAN") and "VIRTUAL TABLE" not in row[-1]]
                # an index of few rows may be read from its beginning, and what is no table
                small = ("_drafts", "CONSTANT ROW", "SCAN page")
                read = [each for each in read if not any(name in each for name in small)]
                assert read == [], statement
                seen += 1
    assert seen > 30


CALLS: list[Callable[[Store], Awaitable[Any]]] = [
    lambda store: kept.create(store, conversation(), ()),
    lambda store: kept.find(store, "conv_a", owner=None),
    lambda store: kept.items(store, "conv_a", limit=1, order="asc"),
    lambda store: kept.history(store, "conv_a"),
    lambda store: kept.add(store, "conv_a", [said("x", "x")], at=1),
    lambda store: kept.take(store, "conv_a", call="c", writer="w", at=1, until=2),
    lambda store: kept.save(store, [draft("x", "x")]),
    lambda store: kept.settle_abandoned(store, at=1),
    lambda store: kept.search(store, owner=None, words="x", limit=1),
    lambda store: kept.remove(store, "conv_a", owner=None),
    lambda store: kept.expired(store, before=1, limit=1),
]


async def test_a_store_that_is_away_says_so(store: Store) -> None:
    await store.close()
    for call in CALLS:
        with pytest.raises(StoreAway):
            await call(store)
