"""Completions that are kept: each with its request, listed by model and metadata, and gone when they are deleted."""

from typing import Any

import pytest
from msgspec import Raw

from router.store import completions as kept
from router.store.completions import Completion
from router.store.items import UnknownCursor
from router.store.store import Store, StoreAway
from support.kept import on_disk


@pytest.fixture
def store(quick_store: Store) -> Store:
    return quick_store


def completion(name: str = "a", **fields: Any) -> Completion:
    given: dict[str, Any] = {
        "id": f"chatcmpl-{name}",
        "owner": "key_1",
        "created_at": 1000,
        "model": "gpt",
        "request": Raw(b'{"messages": [1.50, "\\u0000 \\ud83d\\udc4b"]}'),
        "answer": Raw('{"id":"chatcmpl-a","text":"ü"}'.encode()),
        "metadata": {"k": "v"},
        "call": "req_1",
    }
    return Completion(**{**given, **fields})


async def names(store: Store, **given: Any) -> tuple[str, bool]:
    page = await kept.completions(store, **{"owner": "key_1", "limit": 2, **given})
    return "".join(each.id[-1] for each in page.completions), page.more


async def test_a_completion_comes_back_byte_for_byte(store: Store) -> None:
    await kept.keep(store, completion())
    assert await kept.completion(store, "chatcmpl-a", owner="key_1") == completion()
    # a call that is written down twice
    await kept.keep(store, completion(answer=Raw(b"{}")))
    assert await kept.completion(store, "chatcmpl-a", owner=None) == completion()


async def test_a_completion_of_another_owner_is_not_found(store: Store) -> None:
    await kept.keep(store, completion())
    assert await kept.completion(store, "chatcmpl-a", owner="key_2") is None
    assert await kept.change_metadata(store, "chatcmpl-a", owner="key_2", metadata={}) is None
    assert not await kept.remove(store, "chatcmpl-a", owner="key_2")
    assert await names(store, owner="key_2") == ("", False)
    with pytest.raises(UnknownCursor):
        await names(store, owner="key_2", after="chatcmpl-a")
    assert await names(store, owner=None) == ("a", False)


async def test_completions_are_listed_in_pages_in_the_order_of_their_time(store: Store) -> None:
    for at, name in ((3, "c"), (1, "a"), (2, "b"), (2, "d")):
        await kept.keep(store, completion(name, created_at=at))
    assert await names(store) == ("ab", True)
    assert await names(store, after="chatcmpl-b") == ("dc", False)
    assert await names(store, order="desc") == ("cd", True)
    assert await names(store, order="desc", after="chatcmpl-d") == ("ba", False)
    with pytest.raises(UnknownCursor):
        await names(store, after="chatcmpl-x")


ODD = ('"', "\\", "'", "%", "_", "\x00", "ü\U0001f44b", ",", ":", "", "a\\", 'x"k":"v"y', "}")


async def test_completions_are_found_by_model_and_metadata_whatever_is_in_it(store: Store) -> None:
    await kept.keep(store, completion("z", model="other", metadata={}))
    for at, odd in enumerate(ODD):
        await kept.keep(store, completion(chr(97 + at), created_at=at, metadata={odd: "x", "odd": odd}))
    assert await names(store, model="other") == ("z", False)
    for at, odd in enumerate(ODD):
        found = chr(97 + at)
        assert await names(store, metadata={odd: "x"}, limit=5) == (found, False), odd
        assert await names(store, metadata={"odd": odd, odd: "x"}, model="gpt") == (found, False), odd
    assert await names(store, metadata={"odd": "nothing"}) == ("", False)


async def test_what_only_looks_like_the_metadata_is_passed_over(store: Store) -> None:
    for name, at in (("b", 1), ("c", 2), ("d", 3)):
        await kept.keep(store, completion(name, created_at=at, metadata={"x,": ":", "y": "z"}))
    for name, at in (("a", 0), ("e", 9)):
        await kept.keep(store, completion(name, created_at=at, metadata={":": ","}))
    assert await names(store, metadata={":": ","}, limit=1) == ("a", True)
    assert await names(store, metadata={":": ","}, limit=1, after="chatcmpl-a") == ("e", False)


async def test_metadata_can_be_changed_and_nothing_else(store: Store) -> None:
    await kept.keep(store, completion())
    changed = await kept.change_metadata(store, "chatcmpl-a", owner="key_1", metadata={"new": "1"})
    assert changed == completion(metadata={"new": "1"})
    assert await kept.completion(store, "chatcmpl-a", owner=None) == changed
    assert await kept.change_metadata(store, "chatcmpl-x", owner=None, metadata={}) is None


async def test_a_removed_completion_is_gone_from_the_file(store: Store) -> None:
    await kept.keep(store, completion(answer=Raw(b'"xylophonesecret"')))
    assert await kept.remove(store, "chatcmpl-a", owner="key_1")
    assert not await kept.remove(store, "chatcmpl-a", owner="key_1")
    assert await kept.completion(store, "chatcmpl-a", owner=None) is None
    if store.dialect == "sqlite":
        await store.empty_log()
        assert b"xylophonesecret" not in on_disk(store)


async def test_old_completions_expire_the_oldest_first(store: Store) -> None:
    for name, at in (("a", 1), ("b", 2), ("c", 3), ("d", 10)):
        await kept.keep(store, completion(name, created_at=at))
    assert await kept.expire(store, before=10, limit=2) == ("chatcmpl-a", "chatcmpl-b")
    assert await kept.expire(store, before=10, limit=2) == ("chatcmpl-c",)
    assert await kept.expire(store, before=10, limit=2) == ()
    assert await names(store) == ("d", False)


async def test_a_store_that_is_away_says_so(store: Store) -> None:
    await store.close()
    for call in (
        kept.keep(store, completion()),
        kept.completion(store, "x", owner=None),
        kept.completions(store, owner=None),
        kept.change_metadata(store, "x", owner=None, metadata={}),
        kept.remove(store, "x", owner=None),
        kept.expire(store, before=1),
    ):
        with pytest.raises(StoreAway):
            await call
