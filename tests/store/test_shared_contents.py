"""Whatever is added, forked, written and removed in whatever order: every conversation has what was said in it, and
the store has each content once and none that nobody refers to. Against a model in memory, on a SQLite file."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, rule, run_state_machine_as_test
from sqlalchemy import text

from router.store import conversations as kept
from router.store.store import Store
from support.kept import conversation, draft, said
from support.stores import opened_store, sqlite_url

WORDS = st.sampled_from(["yes", "no", "why 東京", "because"])
OWNERS = st.sampled_from(["key_1", "key_2"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A store that was opened once, to be copied."""

    async def make() -> None:
        async with opened_store(sqlite_url(tmp_path)):
            pass

    asyncio.run(make())
    return tmp_path / "deltaway.db"


def test_conversations_have_what_was_said_in_them_and_the_store_nothing_else(file: Path) -> None:
    class Machine(RuleBasedStateMachine):
        names = Bundle("names")

        def __init__(self) -> None:
            super().__init__()
            self.number = 0
            self.owners: dict[str, str] = {}
            self.said: dict[str, list[tuple[str, str]]] = {}
            """Conversation → ids and words of its items."""
            self.runner = asyncio.Runner()
            directory = file.parent / "used"
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            shutil.copy(file, directory)
            self.store = Store(sqlite_url(directory), durable=False)
            self.run(self.store.open())

        def run(self, doing: Any) -> Any:
            return self.runner.run(doing)

        def next(self, prefix: str) -> str:
            self.number += 1
            return f"{prefix}{self.number:03}"

        def new(self, words: list[str]) -> list[tuple[str, str]]:
            return [(self.next("msg_"), word) for word in words]

        @rule(target=names, owner=OWNERS, words=st.lists(WORDS, max_size=4))
        def create(self, owner: str, words: list[str]) -> str:
            name, new = self.next("c"), self.new(words)
            self.run(kept.create(self.store, conversation(name, owner), [said(*each) for each in new]))
            self.owners[f"conv_{name}"], self.said[f"conv_{name}"] = owner, new
            return f"conv_{name}"

        @rule(name=names, words=st.lists(WORDS, max_size=3))
        def add(self, name: str, words: list[str]) -> None:
            new = self.new(words)
            self.run(kept.add(self.store, name, [said(*each) for each in new], at=1))
            self.said[name] += new

        @rule(name=names, word=WORDS, status=st.sampled_from(["completed", "incomplete", "in_progress"]))
        def answer(self, name: str, word: str, status: Any) -> None:
            item = self.next("msg_")
            self.run(kept.save(self.store, [draft(item, "begun", conversation=name)]))
            self.run(kept.save(self.store, [draft(item, word, status, seq=2, conversation=name)]))
            # nobody has the conversation, so what is in progress is abandoned
            self.run(kept.settle_abandoned(self.store, at=1))
            self.said[name].append((item, word))

        @rule(target=names, name=names, at=st.integers(0, 5))
        def fork(self, name: str, at: int) -> Any:
            there = self.said[name]
            upto = there[min(at, len(there) - 1)][0] if there else None
            made = self.run(
                kept.fork(self.store, name, owner=None, new=conversation(self.next("c"), "other"), upto=upto)
            )
            self.owners[made.id], self.said[made.id] = self.owners[name], there[: at + 1]
            return made.id

        @rule(name=names, at=st.integers(0, 5))
        def remove_item(self, name: str, at: int) -> None:
            if at < len(self.said[name]):
                assert self.run(kept.remove_item(self.store, name, self.said[name].pop(at)[0])) is not None

        @rule(target=names, name=consumes(names))
        def remove(self, name: str) -> Any:
            assert self.run(kept.remove(self.store, name, owner=self.owners[name])) is not None
            del self.owners[name], self.said[name]
            return multiple()

        def teardown(self) -> None:
            try:
                self.run(self.compare())
            finally:
                self.run(self.store.close())
                self.runner.close()

        async def compare(self) -> None:
            referred = set()
            for name, expected in self.said.items():
                found = await kept.history(self.store, name)
                assert [(item.id, item.message.content) for item in found] == expected
                page = await kept.items(self.store, name, limit=100, order="asc")
                assert page.items == found
                referred |= {(item.content, self.owners[name]) for item in found}
            for word in ("yes", "東京"):
                hits = (await kept.search(self.store, owner=None, words=word, limit=1000)).hits
                expected_hits = {
                    (name, item) for name, items in self.said.items() for item, text in items if word in text
                }
                assert {(hit.conversation, hit.item.id) for hit in hits} == expected_hits
            async with self.store.writing() as connection:
                rows = (await connection.execute(text("SELECT address, owner FROM contents"))).all()
                await connection.execute(
                    text("INSERT INTO contents_search(contents_search) VALUES ('integrity-check')")
                )
            assert {tuple(row) for row in rows} == referred
            assert len(rows) == len(referred)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
