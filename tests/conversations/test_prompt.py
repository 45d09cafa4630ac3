"""What a call on a conversation sends, and how summaries come about: written, reused, refused, too late."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from router.call import Attempt, Call, Credentials, new_trip
from router.conversation import ContextRules, Conversation, Item
from router.conversations.prompt import Prompts, rules_for
from router.conversations.summary import HOUR, Summariser, Summary
from router.errors import ProviderUnavailable
from router.events import Usage
from router.fold import Answer, Block, Choice, TextBlock
from router.messages import (
    Assistant,
    ChatRequest,
    FunctionTool,
    Message,
    Sampling,
    System,
    Text,
    ToolCall,
    ToolResult,
    User,
)
from router.provider import Target
from router.route import Route
from router.settings import Conversations
from router.store.away import StoreAway
from router.tokens import TokenCounter

CONVERSATION = Conversation(id="conv_1", owner="dw-key", created_at=1, updated_at=1)
TRUNCATE = ContextRules(strategy="truncate", window=1000, keep_turns=1)
SUMMARISE = ContextRules(strategy="summarise", window=2000, keep_turns=1, max_tokens=64)
WORDS = "word " * 300


class Kept:
    """Summaries in memory; `away` makes it fail."""

    def __init__(self) -> None:
        self.all: list[Summary] = []
        self.away = False

    def _check(self) -> None:
        if self.away:
            raise StoreAway("the store is away")

    async def latest_summary(self, conversation: str) -> Summary | None:
        self._check()
        return next((each for each in reversed(self.all) if each.conversation == conversation), None)

    async def keep_summary(self, summary: Summary) -> None:
        self._check()
        self.all.append(summary)

    async def summary_tokens_since(self, conversation: str, since: int) -> int:
        self._check()
        return sum(each.tokens for each in self.all if each.conversation == conversation and each.created_at >= since)


class Model:
    """Writes summaries: `S1`, `S2`, …; keeps the calls that asked for them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.does: Callable[[Call], Awaitable[str]] | None = None

    async def ask(self, call: Call) -> Answer:
        self.calls.append(call)
        text = f"S{len(self.calls)}" if self.does is None else await self.does(call)
        attempt = Attempt(n=1, target=Target("mock", "echo"), started=0.0, created_at=0)
        attempt.usage = Usage(input=500, output=20)
        call.trip.attempts = [attempt]
        return Answer(choices=[Choice(0, [Block(TextBlock(text))])])


def items(*messages: Message) -> list[Item]:
    return [Item(id=f"msg_{n}", message=message, protocol="openai", created_at=n) for n, message in enumerate(messages)]


def turns(count: int) -> list[Item]:
    """Each of 600 tokens and some."""
    return items(*(message for n in range(count) for message in (User(f"{n}: {WORDS}"), Assistant(f"{n}. {WORDS}"))))


def call(*new: Message, sampling: Sampling | None = None) -> Call:
    request = ChatRequest(model="chat", messages=new, protocol="openai", sampling=sampling or Sampling())
    return Call(
        id="req_1",
        request=request,
        dialect="openai.chat",
        trip=new_trip(),
        credentials=Credentials("secret"),
        user="u1",
        tags={"team": "a"},
        conversation="conv_1",
    )


HELLO = call(User("hello"))


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def prompts(kept: Kept) -> Prompts:
    return Prompts(None, Summariser(kept))


# -- without a summary -------------------------------------------------------------------------------------------------


async def test_without_rules_the_whole_history_is_sent_before_what_is_new() -> None:
    history = turns(50)
    prompt = await Prompts(None).prompt_for(HELLO, CONVERSATION, history, ContextRules(), 1000)
    assert prompt.messages == (*(item.message for item in history), User("hello"))
    turn = prompt.turn
    assert (turn.call, turn.conversation, turn.strategy) == ("req_1", "conv_1", "none")
    assert (turn.first, turn.left_out, turn.summary, turn.prompt_tokens) == ("msg_0", 0, None, None)
    assert prompt.headers == {}


async def test_an_empty_conversation_sends_what_is_new() -> None:
    prompt = await Prompts(None).prompt_for(HELLO, CONVERSATION, [], TRUNCATE, None)
    assert prompt.messages == (User("hello"),)
    assert prompt.turn.first is None


async def test_what_was_left_out_is_recorded_and_told() -> None:
    prompt = await Prompts(None).prompt_for(HELLO, CONVERSATION, turns(3), TRUNCATE, None)
    assert prompt.messages == (User("hello"),)
    assert prompt.headers == {"x-deltaway-context": "truncated; left_out=6"}
    turn = prompt.turn
    assert (turn.strategy, turn.first, turn.left_out, turn.summary) == ("truncate", None, 6, None)
    assert turn.prompt_tokens is not None


async def test_a_window_that_nobody_knows_leaves_nothing_out() -> None:
    rules = msgspec.structs.replace(TRUNCATE, window=None)
    prompt = await Prompts(None).prompt_for(HELLO, CONVERSATION, turns(3), rules, None)
    assert len(prompt.messages) == 7
    known = await Prompts(None).prompt_for(HELLO, CONVERSATION, turns(3), rules, 1000)
    assert len(known.messages) == 1


async def test_the_answers_room_is_what_the_request_says_else_a_share_of_the_window() -> None:
    rules = msgspec.structs.replace(TRUNCATE, at=1.0, window=2200)
    # two turns are 1520 tokens and some by their length, and 1650 may be sent
    assert (await Prompts(None).prompt_for(HELLO, CONVERSATION, turns(2), rules, None)).turn.left_out == 0
    wanting = call(User("hello"), sampling=Sampling(max_tokens=1000))
    assert (await Prompts(None).prompt_for(wanting, CONVERSATION, turns(2), rules, None)).turn.left_out == 2


async def test_tools_take_of_the_room() -> None:
    rules = msgspec.structs.replace(TRUNCATE, at=1.0, window=2200)
    request = msgspec.structs.replace(HELLO.request, tools=(FunctionTool("look", WORDS * 2),))
    prompt = await Prompts(None).prompt_for(HELLO.with_request(request), CONVERSATION, turns(2), rules, None)
    assert prompt.turn.left_out > 0


async def test_what_is_near_the_room_is_counted_by_the_models_vocabulary() -> None:
    # by length alone it would be 1250 tokens of 1500, the vocabulary makes it 1000 and some
    history = items(User("word " * 1000))
    rules = ContextRules(strategy="truncate", at=1.0, window=2000, keep_turns=1)
    prompt = await Prompts(TokenCounter()).prompt_for(HELLO, CONVERSATION, history, rules, None)
    assert prompt.turn.prompt_tokens is not None
    assert 1000 <= prompt.turn.prompt_tokens <= 1030
    assert (await Prompts(None).prompt_for(HELLO, CONVERSATION, history, rules, None)).turn.prompt_tokens >= 1250  # type: ignore[operator]


async def test_what_is_in_the_words_of_another_protocol_is_not_sent() -> None:
    foreign = Item(id="a", message=User((Text("x", {"y": 1}),), extra={"z": 2}), protocol="dashscope", created_at=1)
    prompt = await Prompts(None).prompt_for(HELLO, CONVERSATION, [foreign], ContextRules(), None)
    assert prompt.messages[0] == User((Text("x"),))


def test_rules_are_the_conversations_else_the_routes_else_those_of_all() -> None:
    defaults = Conversations(context=ContextRules(at=0.5))
    own = msgspec.structs.replace(CONVERSATION, context=TRUNCATE)
    route = Route("chat", (), context=SUMMARISE)
    assert rules_for(own, route, defaults) is TRUNCATE
    assert rules_for(CONVERSATION, route, defaults) is SUMMARISE
    assert rules_for(CONVERSATION, Route("chat", ()), defaults) is defaults.context
    assert rules_for(CONVERSATION, None, defaults) is defaults.context


# -- with one ----------------------------------------------------------------------------------------------------------


async def test_a_summary_takes_the_place_of_what_is_left_out(prompts: Prompts, kept: Kept, model: Model) -> None:
    history = turns(3)
    prompt = await prompts.prompt_for(HELLO, CONVERSATION, history, SUMMARISE, None, model.ask)
    left = prompt.turn.left_out
    assert left in (2, 4)
    told, *others = prompt.messages
    assert isinstance(told, System)
    assert told.role == "system"
    assert told.content.startswith("Summary of the earlier part of this conversation")  # type: ignore[union-attr]
    assert told.content.endswith("S1")  # type: ignore[union-attr]
    assert others == [*(item.message for item in history[left:]), User("hello")]
    assert prompt.headers == {"x-deltaway-context": f"summarised; left_out={left}"}
    assert (prompt.turn.strategy, prompt.turn.summary) == ("summarise", "S1")
    assert [(each.text, each.covers, each.tokens) for each in kept.all] == [("S1", f"msg_{left - 1}", 520)]


async def test_a_summary_comes_behind_the_instructions_and_in_their_role(prompts: Prompts, model: Model) -> None:
    rules = System("be brief", role="developer")
    history = items(rules, *(item.message for item in turns(3)))
    prompt = await prompts.prompt_for(HELLO, CONVERSATION, history, SUMMARISE, None, model.ask)
    assert prompt.messages[0] is rules
    told = prompt.messages[1]
    assert isinstance(told, System)
    assert told.role == "developer"
    assert "be brief" not in str(model.calls[0].request.messages)


async def test_the_call_that_writes_it_is_of_the_same_key_and_bears_a_tag(prompts: Prompts, model: Model) -> None:
    await prompts.prompt_for(HELLO, CONVERSATION, turns(3), SUMMARISE, None, model.ask)
    (asked,) = model.calls
    assert asked.id != HELLO.id
    assert asked.trip is not HELLO.trip
    assert asked.credentials is HELLO.credentials
    assert asked.user == "u1"
    assert asked.tags == {"team": "a", "deltaway.purpose": "summary"}
    assert (asked.request.model, asked.trip.asked) == ("chat", "chat")
    assert asked.request.sampling == Sampling(temperature=0.0, max_tokens=64)


async def test_the_rules_say_who_writes_it(prompts: Prompts, model: Model) -> None:
    rules = msgspec.structs.replace(SUMMARISE, model="mock/cheap")
    await prompts.prompt_for(HELLO, CONVERSATION, turns(3), rules, None, model.ask)
    assert model.calls[0].request.model == "mock/cheap"


async def test_tool_calls_and_their_results_are_told_in_words(prompts: Prompts, model: Model) -> None:
    history = items(
        User("weather?"),
        Assistant(tool_calls=(ToolCall("a", "look", '{"city": "Ulm"}'),)),
        ToolResult("a", "sunny"),
        Assistant("sunny " + WORDS),
        *(item.message for item in turns(3)),
    )
    await prompts.prompt_for(HELLO, CONVERSATION, history, SUMMARISE, None, model.ask)
    said = str(model.calls[0].request.messages[1].content)
    assert 'Assistant calls the tool look: {"city": "Ulm"}' in said
    assert "Result of a tool: sunny" in said


async def test_a_summary_is_sent_again_until_more_is_left_out(prompts: Prompts, kept: Kept, model: Model) -> None:
    rules = msgspec.structs.replace(SUMMARISE, window=4000)
    seen = []
    for count in range(1, 16):
        prompt = await prompts.prompt_for(HELLO, CONVERSATION, turns(count), rules, None, model.ask)
        seen.append((prompt.turn.left_out, prompt.turn.summary))
    lefts = sorted({left for left, _ in seen if left})
    # one summary for each place of the cut, the next of the one before and of what is between
    assert len(model.calls) == len(lefts) > 2
    assert [summary for _, summary in seen] == [None if not left else f"S{lefts.index(left) + 1}" for left, _ in seen]
    second = str(model.calls[1].request.messages[1].content)
    assert "Summary of what came before:\nS1\n" in second
    assert f"User: {lefts[0] // 2}: word" in second
    assert f"User: {lefts[0] // 2 - 1}: word" not in second


async def test_a_long_past_is_read_in_pieces(prompts: Prompts, kept: Kept, model: Model) -> None:
    rules = msgspec.structs.replace(SUMMARISE, budget=100_000)
    prompt = await prompts.prompt_for(HELLO, CONVERSATION, turns(60), rules, None, model.ask)
    assert len(model.calls) > 2
    assert prompt.turn.summary == f"S{len(model.calls)}"
    assert prompt.turn.strategy == "summarise"
    assert [each.covers for each in kept.all][-1] == f"msg_{prompt.turn.left_out - 1}"


async def test_a_budget_that_is_spent_leaves_older_turns_out(prompts: Prompts, kept: Kept, model: Model) -> None:
    now = int(time.time() * 1000)
    spent = Summary(conversation="conv_1", covers="msg_1", text="old", call="r", tokens=19_900, created_at=now - 60_000)
    kept.all.append(spent)
    prompt = await prompts.prompt_for(HELLO, CONVERSATION, turns(6), SUMMARISE, None, model.ask)
    assert model.calls == []
    left = prompt.turn.left_out
    assert left > 2
    assert prompt.headers == {"x-deltaway-context": f"truncated; left_out={left}"}
    # what there is, is sent all the same
    assert (prompt.turn.strategy, prompt.turn.summary) == ("truncate", "old")
    kept.all[0] = msgspec.structs.replace(spent, created_at=now - HOUR - 1000)
    again = await prompts.prompt_for(HELLO, CONVERSATION, turns(6), SUMMARISE, None, model.ask)
    assert again.turn.summary == "S1"


async def test_a_budget_smaller_than_a_piece_is_kept_to(prompts: Prompts, model: Model) -> None:
    rules = msgspec.structs.replace(SUMMARISE, budget=1500)
    await prompts.prompt_for(HELLO, CONVERSATION, turns(6), rules, None, model.ask)
    # the second piece would cost more than what is left
    assert 1 <= len(model.calls) <= 2
    assert sum(len(str(each.request.messages)) for each in model.calls) < 2 * 1500 * 4


async def test_a_summary_that_fails_fails_nothing_else_and_is_not_tried_at_once_again(
    prompts: Prompts, kept: Kept, model: Model
) -> None:
    async def refuses(asked: Call) -> str:
        raise ProviderUnavailable("no")

    model.does = refuses
    prompt = await prompts.prompt_for(HELLO, CONVERSATION, turns(3), SUMMARISE, None, model.ask)
    assert prompt.headers["x-deltaway-context"].startswith("truncated; left_out=")
    assert (prompt.turn.strategy, prompt.turn.summary) == ("truncate", None)
    await prompts.prompt_for(HELLO, CONVERSATION, turns(3), SUMMARISE, None, model.ask)
    assert len(model.calls) == 1
    eager = Prompts(None, Summariser(kept, rest=0.0))
    await eager.prompt_for(HELLO, CONVERSATION, turns(3), SUMMARISE, None, model.ask)
    assert len(model.calls) == 2


async def test_an_empty_summary_is_none(prompts: Prompts, kept: Kept, model: Model) -> None:
    async def empty(asked: Call) -> str:
        return "  \n"

    model.does = empty
    prompt = await prompts.prompt_for(HELLO, CONVERSATION, turns(3), SUMMARISE, None, model.ask)
    assert prompt.turn.strategy == "truncate"
    assert kept.all == []


async def test_a_summary_that_takes_too_long_is_ended(kept: Kept, model: Model) -> None:
    ended = asyncio.Event()

    async def slow(asked: Call) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert asked.trip.interruption is not None
            ended.set()
            raise
        raise AssertionError

    model.does = slow
    prompts = Prompts(None, Summariser(kept, patience=0.01))
    prompt = await prompts.prompt_for(HELLO, CONVERSATION, turns(3), SUMMARISE, None, model.ask)
    assert prompt.turn.strategy == "truncate"
    assert ended.is_set()


async def test_a_client_that_leaves_ends_the_summary(prompts: Prompts, model: Model) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def slow(asked: Call) -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    model.does = slow
    task = asyncio.create_task(prompts.prompt_for(HELLO, CONVERSATION, turns(3), SUMMARISE, None, model.ask))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_a_store_that_is_away_leaves_older_turns_out(prompts: Prompts, kept: Kept, model: Model) -> None:
    kept.away = True
    prompt = await prompts.prompt_for(HELLO, CONVERSATION, turns(3), SUMMARISE, None, model.ask)
    assert prompt.turn.strategy == "truncate"
    assert model.calls == []


async def test_a_summary_of_items_that_are_gone_is_not_used(prompts: Prompts, kept: Kept, model: Model) -> None:
    kept.all.append(Summary(conversation="conv_1", covers="msg_gone", text="secret", call="r", tokens=1, created_at=1))
    prompt = await prompts.prompt_for(HELLO, CONVERSATION, turns(3), SUMMARISE, None, model.ask)
    assert prompt.turn.summary == "S1"
    assert "secret" not in str(model.calls[0].request.messages)


async def test_without_anybody_to_ask_older_turns_are_left_out(prompts: Prompts) -> None:
    prompt = await prompts.prompt_for(HELLO, CONVERSATION, turns(3), SUMMARISE, None)
    assert prompt.turn.strategy == "truncate"
