"""What is sent of a conversation that is too long. Every test counts a message by a number written in its text."""

from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.conversation import ContextRules, Item, ItemStatus
from router.conversations.fitting import Fitted, fit
from router.conversations.said import in_words_of, said
from router.messages import (
    Assistant,
    Image,
    Message,
    OtherPart,
    Reasoning,
    System,
    Text,
    ToolCall,
    ToolResult,
    User,
)

TRUNCATE = ContextRules(strategy="truncate", at=1.0, window=256, keep_turns=1)


def items(*messages: Message, call: str | None = None, status: ItemStatus = "completed") -> tuple[Item, ...]:
    return tuple(
        Item(id=f"msg_{n}", message=message, protocol="openai", created_at=n, call=call, status=status)
        for n, message in enumerate(messages)
    )


def tool_call(identity: str) -> Assistant:
    return Assistant(tool_calls=(ToolCall(identity, "look", "{}"),))


def tokens_of(message: Message) -> int:
    """Ten, or what is written behind the last `#`."""
    content = message.content if isinstance(message.content, str) else ""
    return int(content.rpartition("#")[2]) if "#" in content else 10


def sized(user: int, answer: int) -> tuple[Message, Message]:
    return User(f"#{user}"), Assistant(f"#{answer}")


def cut(history: tuple[Item, ...], *new: Message, rules: ContextRules = TRUNCATE, reserve: int = 0) -> Fitted:
    return fit(history, new, rules, None, tokens_of, reserve)


# -- what vendors refuse -----------------------------------------------------------------------------------------------


def messages_of(history: tuple[Item, ...], *new: Message) -> list[Message]:
    return [each.message for each in said(history, new)]


def test_a_call_without_its_result_is_left_out() -> None:
    history = items(User("hi"), tool_call("a"), User("never mind"))
    assert messages_of(history, User("go on")) == [User("hi"), User("never mind"), User("go on")]


def test_a_call_whose_result_comes_with_the_request_stays() -> None:
    history = items(User("hi"), tool_call("a"))
    assert messages_of(history, ToolResult("a", "sun")) == [User("hi"), tool_call("a"), ToolResult("a", "sun")]


def test_of_parallel_calls_only_those_with_results_stay() -> None:
    history = items(User("hi"), Assistant("let me see"), tool_call("a"), tool_call("b"), call="req_1")
    both = (ToolCall("b", "look", "{}"),)
    assert messages_of(history, ToolResult("b", "sun")) == [
        User("hi"),
        Assistant("let me see", tool_calls=both),
        ToolResult("b", "sun"),
    ]


def test_a_result_without_its_call_is_left_out() -> None:
    history = items(ToolResult("x", "1"), User("hi"), ToolResult("a", "sun"), Assistant("ok"))
    assert messages_of(history) == [User("hi"), Assistant("ok")]


def test_a_result_that_comes_again_replaces_the_one_before() -> None:
    history = items(User("hi"), tool_call("a"), ToolResult("a", "rain"))
    assert messages_of(history, ToolResult("a", "sun")) == [User("hi"), tool_call("a"), ToolResult("a", "sun")]


def test_a_call_whose_arguments_were_broken_off_is_left_out_with_its_reasoning() -> None:
    history = (
        *items(User("hi"), call="req_1"),
        *items(Assistant(reasoning=(Reasoning("hm"),)), call="req_1"),
        *items(tool_call("a"), call="req_1", status="incomplete"),
        *items(ToolResult("a", "sun")),
    )
    assert messages_of(history, User("and?")) == [User("hi"), User("and?")]


def test_an_answer_that_was_broken_off_is_sent_as_it_is() -> None:
    history = (*items(User("hi")), *items(Assistant("I am"), status="incomplete"))
    assert messages_of(history, User("go on")) == [User("hi"), Assistant("I am"), User("go on")]


def test_an_answer_of_which_nothing_came_is_left_out() -> None:
    history = (*items(User("hi")), *items(Assistant(""), status="incomplete"))
    assert messages_of(history, User("hello?")) == [User("hi"), User("hello?")]


def test_the_pieces_of_one_answer_are_one_message() -> None:
    history = items(
        User("hi"),
        Assistant(reasoning=(Reasoning("hm", signature="s"),)),
        Assistant("let me see"),
        tool_call("a"),
        tool_call("b"),
        ToolResult("a", "1"),
        ToolResult("b", "2"),
    )
    calls = (ToolCall("a", "look", "{}"), ToolCall("b", "look", "{}"))
    assert messages_of(history)[1] == Assistant("let me see", calls, (Reasoning("hm", signature="s"),))
    assert len(messages_of(history)) == 4


def test_two_answers_side_by_side_stay_two() -> None:
    history = (*items(Assistant("one"), call="req_1"), *items(Assistant("two"), call="req_2"))
    assert messages_of(history) == [Assistant("one"), Assistant("two")]
    assert messages_of(items(Assistant("one"), Assistant("two"))) == [Assistant("one"), Assistant("two")]


def test_a_deprecated_call_stays_with_its_result_alone() -> None:
    legacy = Assistant(extra={"function_call": {"name": "look", "arguments": "{}"}})
    result = ToolResult(None, "sun", "look")
    assert messages_of(items(User("hi"), legacy, result)) == [User("hi"), legacy, result]
    assert messages_of(items(User("hi"), legacy), User("no")) == [User("hi"), User("no")]
    assert messages_of(items(User("hi"), result), User("no")) == [User("hi"), User("no")]


def test_what_comes_with_the_call_is_sent_as_it_is() -> None:
    new = (ToolResult("x", "1"), User("hi"), tool_call("a"), User("no"), Assistant(""))
    assert messages_of(items(User("before")), *new) == [User("before"), *new]


def test_the_words_of_another_protocol_are_not_sent() -> None:
    foreign = User(
        (Text("hi", {"mark": 1}), OtherPart({"type": "x"}), Image("http://i", extra={"y": 1})), extra={"z": 1}
    )
    assert in_words_of(foreign, "dashscope", "openai") == User((Text("hi"), Image("http://i")))
    assert in_words_of(foreign, "openai", "openai") is foreign
    answer = Assistant("x", (ToolCall("a", "f", "{}", extra={"p": 1}),), (Reasoning("r", "sig", extra={"q": 1}),))
    assert in_words_of(answer, "dashscope", "openai") == Assistant(
        "x", (ToolCall("a", "f", "{}"),), (Reasoning("r", "sig"),)
    )


# -- what is left out --------------------------------------------------------------------------------------------------


def test_what_fits_is_sent_whole() -> None:
    history = items(*sized(100, 100))
    fitted = cut(history, User("#56"))
    assert fitted.messages == (*(item.message for item in history), User("#56"))
    assert (fitted.first, fitted.left_out, fitted.tokens) == ("msg_0", (), 256)


@pytest.mark.parametrize("strategy", ["none", "truncate"])
def test_nothing_is_left_out_where_no_window_is_known_or_no_rule(strategy: Literal["none", "truncate"]) -> None:
    history = items(*sized(1000, 1000) * 3)
    window = 256 if strategy == "none" else None
    fitted = fit(history, [User("x")], ContextRules(strategy=strategy), window, tokens_of, 0)
    assert len(fitted.messages) == 7
    assert fitted.left_out == ()


def test_the_oldest_turns_go_first_and_a_quarter_of_the_room_at_once() -> None:
    # 257 tokens of 256: a turn of 20 would do, four go
    history = items(*sized(10, 10) * 12)
    fitted = cut(history, User("#17"))
    assert len(fitted.left_out) == 8
    assert fitted.first == "msg_8"
    assert fitted.tokens == 257 - 80


def test_the_cut_stays_while_the_conversation_grows_by_a_quarter_of_the_room() -> None:
    firsts = [cut(items(*sized(10, 10) * turns), User("#10")).first for turns in range(1, 40)]
    changes = sum(before != after for before, after in pairwise(firsts))
    # 640 tokens are left out at the end, in pieces of 64
    assert 8 <= changes <= 10


def test_instructions_at_the_beginning_stay() -> None:
    rules = (System("#50"), System("#50", role="developer"))
    fitted = cut(items(*rules, *sized(100, 100), *sized(10, 10)), User("#10"))
    assert fitted.messages[:2] == rules
    assert fitted.instructions == 2
    assert [item.id for item in fitted.left_out] == ["msg_2", "msg_3"]
    assert fitted.first == "msg_4"


def test_instructions_before_a_users_words_are_in_the_same_turn() -> None:
    history = items(*sized(100, 100), System("#5"), *sized(20, 20))
    fitted = cut(history, User("#20"))
    assert fitted.messages[0] == System("#5")
    assert fitted.instructions == 0


def test_the_latest_turns_stay_even_if_they_are_too_long() -> None:
    history = items(*sized(10, 10), *sized(500, 500))
    fitted = cut(history, User("#10"), rules=ContextRules(strategy="truncate", window=256, keep_turns=2))
    assert fitted.first == "msg_2"
    assert fitted.tokens == 1010


def test_a_turn_that_waits_for_tools_is_the_latest() -> None:
    history = items(*sized(100, 100), User("#10"), tool_call("a"))
    fitted = cut(history, ToolResult("a", "#100"))
    assert fitted.messages == (User("#10"), tool_call("a"), ToolResult("a", "#100"))


def test_what_comes_with_the_call_is_never_left_out() -> None:
    fitted = cut(items(*sized(10, 10)), *sized(300, 300), User("#10"))
    assert fitted.messages == (*sized(300, 300), User("#10"))
    assert fitted.first is None
    assert len(fitted.left_out) == 2


def test_the_answers_room_and_what_is_beside_the_messages_are_kept_free() -> None:
    history, rules = items(*sized(50, 50), *sized(50, 50)), TRUNCATE
    assert fit(history, [], rules, None, tokens_of, reserve=56).left_out == ()
    assert len(fit(history, [], rules, None, tokens_of, reserve=57).left_out) == 2
    assert len(fit(history, [], rules, None, tokens_of, reserve=56, beside=1).left_out) == 2


def test_the_rules_window_wins_over_what_is_known() -> None:
    history = items(*sized(100, 100), *sized(100, 100))
    assert len(fit(history, [], TRUNCATE, 100_000, tokens_of, 0).left_out) == 2


def test_a_summary_has_room_of_its_own() -> None:
    rules = ContextRules(strategy="summarise", at=1.0, window=256, keep_turns=1, max_tokens=512)
    fitted = cut(items(*sized(10, 10) * 12), User("#17"), rules=rules)
    assert fitted.for_summary == 64
    assert fitted.tokens + fitted.for_summary <= 256
    assert cut(items(*sized(10, 10)), User("#17"), rules=rules).for_summary == 0


# -- whatever was said -------------------------------------------------------------------------------------------------

SIZE = st.integers(1, 120)
IDS = st.sampled_from(["a", "b", "c"])
MESSAGE: st.SearchStrategy[Message] = st.one_of(
    st.builds(lambda n: System(f"#{n}"), SIZE),
    st.builds(lambda n: User(f"#{n}"), SIZE),
    st.builds(lambda n: Assistant(f"#{n}"), SIZE),
    st.builds(tool_call, IDS),
    st.builds(lambda i, n: ToolResult(i, f"#{n}"), IDS, SIZE),
)
TURN: st.SearchStrategy[tuple[Message, ...]] = st.one_of(
    st.builds(sized, SIZE, SIZE),
    st.builds(
        lambda n, m, k: (User(f"#{n}"), tool_call("a"), ToolResult("a", f"#{m}"), Assistant(f"#{k}")), SIZE, SIZE, SIZE
    ),
    st.builds(lambda n: (User(f"#{n}"),), SIZE),
)
ITEM = st.builds(
    lambda message, status, call: Item(
        id="", message=message, protocol="openai", created_at=0, status=status, call=call
    ),
    MESSAGE,
    st.sampled_from(["completed", "completed", "incomplete"]),
    st.sampled_from([None, "req_1", "req_2"]),
)


def numbered(found: list[Item]) -> tuple[Item, ...]:
    return tuple(
        Item(id=f"msg_{n}", message=i.message, protocol=i.protocol, created_at=n, status=i.status, call=i.call)
        for n, i in enumerate(found)
    )


HISTORY = st.one_of(
    st.lists(ITEM, max_size=25).map(numbered),
    st.lists(TURN, max_size=12).map(lambda turns: items(*(message for turn in turns for message in turn))),
)
RULES = st.builds(
    lambda strategy, at, window, keep: ContextRules(strategy=strategy, at=at, window=window, keep_turns=keep),
    st.sampled_from(["truncate", "summarise"]),
    st.sampled_from([0.5, 0.8, 1.0]),
    st.integers(256, 1500),
    st.integers(1, 4),
)


def calls_without_partner(messages: tuple[Message, ...]) -> list[str]:
    """Calls whose result is not right behind them, and results whose call is not right before."""
    wrong: list[str] = []
    open_calls: set[str] = set()
    for message in messages:
        if isinstance(message, ToolResult):
            if message.call_id not in open_calls:
                wrong.append(f"result {message.call_id}")
            open_calls.discard(message.call_id or "")
            continue
        wrong += open_calls
        open_calls = {call.id for call in message.tool_calls} if isinstance(message, Assistant) else set()
    return [*wrong, *open_calls]


@settings(max_examples=200)
@given(HISTORY, RULES)
def test_no_call_is_ever_sent_without_its_result(history: tuple[Item, ...], rules: ContextRules) -> None:
    fitted = fit(history, [User("#10")], rules, None, tokens_of, 0)
    assert calls_without_partner(fitted.messages) == []


@settings(max_examples=200)
@given(HISTORY, RULES, st.integers(0, 300))
def test_the_room_is_kept_to_where_the_latest_turns_alone_do(
    history: tuple[Item, ...], rules: ContextRules, reserve: int
) -> None:
    fitted = fit(history, [User("#10")], rules, None, tokens_of, reserve)
    most = fit(history, [User("#10")], ContextRules("truncate", 0.0001, 256, rules.keep_turns), None, tokens_of, 0)
    assert fitted.room is not None
    assert fitted.tokens + fitted.for_summary <= fitted.room or fitted.messages == most.messages


@settings(max_examples=200)
@given(HISTORY, RULES)
def test_what_is_sent_is_in_order_and_new_things_are_last(history: tuple[Item, ...], rules: ContextRules) -> None:
    new = (User("#10"), Assistant("#20"), User("#30"))
    fitted = fit(history, new, rules, None, tokens_of, 0)
    everything = [each.message for each in said(history, new)]
    kept = everything[len(everything) - (len(fitted.messages) - fitted.instructions) :]
    assert [*everything[: fitted.instructions], *kept] == list(fitted.messages)
    assert fitted.messages[-3:] == new
    assert fitted.tokens == sum(map(tokens_of, fitted.messages))


@settings(max_examples=200)
@given(st.lists(TURN, min_size=1, max_size=30), RULES)
def test_what_was_left_out_does_not_come_back(turns: list[tuple[Message, ...]], rules: ContextRules) -> None:
    before = 0
    said_so_far: list[Message] = []
    for turn in turns:
        left = len(fit(items(*said_so_far), turn[:1], rules, None, tokens_of, 0).left_out)
        assert left >= before
        before = left
        said_so_far += turn


@settings(max_examples=200)
@given(HISTORY, RULES)
def test_what_was_sent_fits_again(history: tuple[Item, ...], rules: ContextRules) -> None:
    fitted = fit(history, [User("#10")], rules, None, tokens_of, 0)
    sent = tuple(
        Item(id=str(n), message=message, protocol="openai", created_at=n, call=str(n))
        for n, message in enumerate(fitted.messages[:-1])
    )
    again = fit(sent, [User("#10")], rules, None, tokens_of, 0)
    assert again.messages == fitted.messages
