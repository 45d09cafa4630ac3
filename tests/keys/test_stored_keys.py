"""What a process remembers of the keys, and when it sees that they have changed."""

import asyncio
import hmac
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from router.access import Budget, Key, Limits, Owner
from router.call import Credentials, Principal
from router.errors import AuthenticationFailed, StoreUnavailable
from router.key_text import mint
from router.keyring import Issued, Keyring, first_admin_key
from router.keys import PEPPER_VARIABLE, POLL, StoredKeys
from router.money import Money
from router.store.store import Store, StoreAway
from support.stores import BACKENDS, Backend, opened_store, store_url

NOW = 1_790_000_000.0
WEB = Key(
    id="",
    name="web",
    models=("openai/*",),
    routes=("chat",),
    tags={"team": "a"},
    user="u1",
    team="t1",
    limits=Limits(rpm=5),
    budgets=(Budget(Money.parse("10 USD"), "day"),),
    on_disconnect="finish",
)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Breakable:
    """A store that can be away, and counts how often it is read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away = False
        self.reads = 0

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        if self.away:
            raise StoreAway("the store is away")
        self.reads += 1
        async with self._store.reading() as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Any]:
        if self.away:
            raise StoreAway("the store is away")
        async with self._store.writing() as connection:
            yield connection


class Process:
    """What one process of the gateway has of the keys."""

    def __init__(self, store: Any, environ: Mapping[str, str], clock: Callable[[], float], **options: Any) -> None:
        self.store = Breakable(store)
        lent: Any = self.store
        self.book = StoredKeys(lent, environ, clock=clock, **options)
        self.ring = Keyring(lent, self.book, other_admin=lambda: True, clock=clock)

    async def who(self, text: str) -> Principal | None:
        """As `auth` asks."""
        credentials = Credentials(text)
        return self.book.known(credentials) or await self.book.find(credentials)

    async def refuses(self, text: str) -> bool:
        try:
            return await self.who(text) is None
        except AuthenticationFailed:
            return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def start(store: Store, clock: Clock) -> AsyncIterator[Any]:
    """Starts another process on the same store."""
    async with AsyncExitStack() as stack:

        async def started(environ: Mapping[str, str] | None = None, **options: Any) -> Process:
            process = Process(store, environ or {}, clock, **options)
            await stack.enter_async_context(process.book.lifespan())
            return process

        yield started


async def eventually(condition: Callable[[], Any], within: float = 2 * POLL) -> None:
    """Within a second, as users are promised."""
    async with asyncio.timeout(within):
        while not (await found if asyncio.iscoroutine(found := condition()) else found):
            await asyncio.sleep(0.01)


# -- who that is -----------------------------------------------------------------------------------------------------


async def test_a_key_is_known_with_all_that_it_may_do(start: Any) -> None:
    one = await start()
    issued = await one.ring.create(WEB)
    credentials = Credentials(issued.text)
    # nobody has asked for it yet, so it cannot be said without waiting
    assert one.book.known(credentials) is None
    principal = await one.book.find(credentials)
    assert principal == Principal(
        key=issued.key.id,
        name="web",
        models=WEB.models,
        routes=WEB.routes,
        tags=WEB.tags,
        user="u1",
        team="t1",
        limits=WEB.limits,
        budgets=WEB.budgets,
        on_disconnect="finish",
    )
    before = one.store.reads
    assert one.book.known(credentials) is principal
    assert one.store.reads == before


async def test_a_new_key_works_at_once_in_every_process(start: Any) -> None:
    one, two = await start(), await start()
    issued = await one.ring.create(Key(id="", name="web"))
    assert (await two.who(issued.text)).key == issued.key.id


@pytest.mark.parametrize("text", ["", "sk-1", "dw-short-x", "dw-ABCDEFGH-" + "x" * 43, "dw-abcdefgh-" + "x" * 44])
async def test_what_is_no_key_of_ours_asks_nobody(start: Any, text: str) -> None:
    one = await start(poll=3600)
    before = one.store.reads
    assert one.book.known(Credentials(text)) is None
    assert await one.book.find(Credentials(text)) is None
    assert one.store.reads == before


async def test_guesses_of_one_id_ask_the_store_once(start: Any) -> None:
    one = await start(poll=3600)
    before = one.store.reads
    guesses = [f"dw-guessed0-{n:0>43}" for n in range(50)]
    assert await asyncio.gather(*map(one.who, guesses)) == [None] * 50
    assert await one.who(guesses[0]) is None
    assert one.store.reads == before + 1


async def test_guesses_of_a_keys_secret_ask_the_store_not_at_all(start: Any) -> None:
    one = await start(poll=0.02)
    issued = await one.ring.create(WEB)
    await one.who(issued.text)
    lookups: list[str] = []
    one.book._ask = lookups.append
    assert await asyncio.gather(*(one.who(f"{issued.key.id}-{n:0>43}") for n in range(50))) == [None] * 50
    assert lookups == []
    assert (await one.who(issued.text)).name == "web"


async def test_many_calls_with_a_key_that_nobody_knows_yet_ask_once(start: Any) -> None:
    one = await start(poll=3600)
    issued = await one.ring.create(WEB)
    before = one.store.reads
    found = await asyncio.gather(*(one.who(issued.text) for _ in range(50)))
    assert {principal.name for principal in found} == {"web"}
    assert one.store.reads == before + 1


async def test_a_caller_that_leaves_does_not_take_the_answer_from_the_others(start: Any) -> None:
    one = await start(poll=3600)
    issued = await one.ring.create(WEB)
    leaving, staying = (asyncio.ensure_future(one.who(issued.text)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).name == "web"


async def test_digests_are_compared_in_constant_time(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await start(poll=0.02)
    issued = await one.ring.create(WEB)
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac_compare(one, other)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert (await one.who(issued.text)).name == "web"
    assert await one.who(issued.text[:-1] + ("A" if issued.text[-1] != "A" else "B")) is None
    assert all(len(digest) == 32 for pair in compared for digest in pair)
    # the right secret, and then the wrong one: in memory, in what was remembered, after a look at the store
    assert [one == other for one, other in compared] == [True, False, False, False]


async def test_of_very_many_keys_those_used_last_are_remembered(start: Any) -> None:
    one = await start(most=3, poll=3600)
    issued = [await one.ring.create(Key(id="", name=str(n))) for n in range(4)]
    for key in issued[:3]:
        await one.who(key.text)
    await one.who(issued[0].text)
    await one.who(issued[3].text)
    remembered = [one.book.known(Credentials(key.text)) is not None for key in issued]
    assert remembered == [True, False, True, True]


# -- what changes ----------------------------------------------------------------------------------------------------


async def test_a_revoked_key_is_refused_within_a_second_in_every_process(start: Any) -> None:
    one, two = await start(), await start()
    issued = await one.ring.create(WEB)
    assert await one.who(issued.text)
    assert await two.who(issued.text)
    await one.ring.revoke(issued.key.id)
    # where it was done, at once
    assert await one.refuses(issued.text)
    await eventually(lambda: two.refuses(issued.text))
    with pytest.raises(AuthenticationFailed, match="revoked"):
        await two.who(issued.text)


async def test_changed_limits_hold_within_a_second_in_every_process(start: Any) -> None:
    one, two = await start(), await start()
    issued = await one.ring.create(WEB)
    await two.who(issued.text)
    await one.ring.change(issued.key.id, {"limits": Limits(rpm=1), "models": ()})

    async def seen() -> bool:
        principal = await two.who(issued.text)
        return bool(principal.limits == Limits(rpm=1) and principal.models == ())

    await eventually(seen)


async def test_limits_of_owners_are_seen_within_a_second_in_every_process(start: Any) -> None:
    one, two = await start(), await start()
    owner = Owner("team", "t1", "A team", Limits(tpm=5))
    assert two.book.owner("team", "t1") is None
    await one.ring.put_owner(owner)
    assert one.book.owner("team", "t1") == owner
    await eventually(lambda: two.book.owner("team", "t1") == owner)
    assert two.book.owner("user", "t1") is None
    # whoever starts later knows at once
    assert (await start()).book.owner("team", "t1") == owner
    await one.ring.remove_owner("team", "t1")
    await eventually(lambda: two.book.owner("team", "t1") is None)
    await one.ring.put_owner(Owner("team", "t1", "a name alone"))
    await one.ring.put_owner(Owner("team", "t2", "", Limits(), WEB.budgets))
    await eventually(lambda: two.book.owner("team", "t2") is not None)
    assert two.book.owner("team", "t1") is None


async def test_a_key_that_is_changed_while_it_is_read_is_not_remembered_as_it_was(start: Any) -> None:
    one, two = await start(), await start()
    issued = await one.ring.create(WEB)
    read = two.book._rows.get
    halfway, go_on = asyncio.Event(), asyncio.Event()

    async def slow(key_id: str) -> Any:
        row = await read(key_id)
        halfway.set()
        await go_on.wait()
        return row

    two.book._rows.get = slow
    asking = asyncio.ensure_future(two.refuses(issued.text))
    await halfway.wait()
    await one.ring.revoke(issued.key.id)
    await two.book.refresh()
    go_on.set()
    assert await asking
    assert await two.refuses(issued.text)


# -- rotation and expiry ---------------------------------------------------------------------------------------------


async def test_after_a_rotation_both_secrets_work_until_the_overlap_is_over(start: Any, clock: Clock) -> None:
    one, two = await start(poll=0.05), await start(poll=0.05)
    first = await one.ring.create(WEB)
    assert await two.who(first.text)
    second = await one.ring.rotate(first.key.id, 60)
    assert second.text != first.text
    # the new one at once, where the old one is remembered too
    for process in (one, two):
        assert (await process.who(second.text)).key == first.key.id
        assert (await process.who(first.text)).key == first.key.id
    clock.now += 59
    assert await two.who(first.text)
    clock.now += 2
    for process in (one, two):
        assert await process.refuses(first.text)
        assert await process.who(second.text)


async def test_a_rotation_without_overlap_ends_the_old_secret(start: Any) -> None:
    one, two = await start(), await start()
    first = await one.ring.create(WEB)
    await two.who(first.text)
    second = await one.ring.rotate(first.key.id, 0)
    assert await one.refuses(first.text)
    await eventually(lambda: two.refuses(first.text))
    assert await two.who(second.text)


async def test_only_the_secret_before_is_good_beside_the_new_one(start: Any) -> None:
    one = await start(poll=0.05)
    first = await one.ring.create(WEB)
    rotated = [await one.ring.rotate(first.key.id, 60) for _ in range(2)]
    assert [await one.refuses(issued.text) for issued in (first, *rotated)] == [True, False, False]


async def test_an_expired_key_is_refused_from_its_second_on(start: Any, clock: Clock) -> None:
    one = await start(poll=3600)
    issued = await one.ring.create(Key(id="", name="web", expires_at=int(NOW) + 60))
    clock.now = NOW + 59.9
    assert await one.who(issued.text)
    clock.now = NOW + 60
    with pytest.raises(AuthenticationFailed, match="expired") as refused:
        await one.who(issued.text)
    assert refused.value.code == "api_key_expired"


# -- the store away --------------------------------------------------------------------------------------------------


async def test_while_the_store_is_away_known_keys_work_and_others_get_503(start: Any) -> None:
    one = await start(poll=0.02)
    known, other = await one.ring.create(WEB), await one.ring.create(WEB)
    await one.who(known.text)
    one.store.away = True
    await eventually(lambda: one.book._away)
    assert (await one.who(known.text)).name == "web"
    for text in (other.text, known.text[:-4] + "xxxx"):
        with pytest.raises(StoreUnavailable) as refused:
            await one.who(text)
        assert refused.value.status == 503
    assert one.book.owner("user", "u1") is None
    one.store.away = False
    await eventually(lambda: not one.book._away)
    assert (await one.who(other.text)).name == "web"


async def test_what_changed_while_the_store_was_away_is_seen_when_it_is_back(start: Any) -> None:
    one, two = await start(), await start(poll=0.02)
    issued = await one.ring.create(WEB)
    await two.who(issued.text)
    two.store.away = True
    await eventually(lambda: two.book._away)
    await one.ring.revoke(issued.key.id)
    two.store.away = False
    await eventually(lambda: two.refuses(issued.text))


async def test_a_process_that_starts_without_the_store_knows_no_limits_and_says_so(store: Store, clock: Clock) -> None:
    process = Process(store, {}, clock, poll=0.02)
    issued = await process.ring.create(WEB)
    await process.ring.put_owner(Owner("user", "u1", "", Limits(rpm=1)))
    later = Process(store, {}, clock, poll=0.02)
    later.store.away = True
    async with later.book.lifespan():
        with pytest.raises(StoreUnavailable):
            later.book.owner("user", "u1")
        with pytest.raises(StoreUnavailable):
            await later.who(issued.text)
        later.store.away = False
        assert (await later.who(issued.text)).name == "web"
        await eventually(lambda: later.book.owner("user", "u1") == Owner("user", "u1", "", Limits(rpm=1)))


async def test_who_waits_for_news_when_the_process_ends_is_told(store: Store, clock: Clock) -> None:
    process = Process(store, {}, clock, poll=3600)
    issued = await process.ring.create(WEB)
    async with process.book.lifespan():
        await process.who(issued.text)
        waiting = asyncio.ensure_future(process.who(issued.text[:-4] + "xxxx"))
        await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable):
        await waiting


# -- peppers ---------------------------------------------------------------------------------------------------------

CHOSEN = {PEPPER_VARIABLE: "a pepper of sixteen characters and more"}


async def test_a_pepper_of_the_environment_is_not_kept_in_the_store(start: Any, store: Store) -> None:
    one, two = await start(CHOSEN), await start(CHOSEN)
    issued = await one.ring.create(WEB)
    assert (await two.who(issued.text)).name == "web"
    async with store.reading() as connection:
        assert (await connection.exec_driver_sql("SELECT count(*) FROM secrets")).scalar_one() == 0


async def test_a_key_of_another_pepper_is_refused_and_the_log_says_why(start: Any) -> None:
    one = await start(CHOSEN, poll=0.02)
    issued = await one.ring.create(WEB)
    with structlog.testing.capture_logs() as logs:
        two = await start(poll=0.02)
        assert await two.who(issued.text) is None
        assert await two.who(issued.text) is None
    told = [line for line in logs if "pepper" in line["event"]]
    assert [line["key"] for line in told] == [issued.key.id]
    assert PEPPER_VARIABLE in told[0]["event"]
    assert issued.text not in str(logs)
    # rotated, it works again
    renewed = await two.ring.rotate(issued.key.id, 60)
    assert (await two.who(renewed.text)).name == "web"


async def test_a_pepper_too_short_to_be_one_is_refused_at_start(store: Store) -> None:
    with pytest.raises(ValueError, match=f"{PEPPER_VARIABLE} must have 16"):
        StoredKeys(store, {PEPPER_VARIABLE: "short"})


# -- several processes, really ---------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
FIRST_KEY = """
import asyncio, sys
from router.keyring import first_admin_key
from router.settings import StoreUrl
from router.store.store import Store

async def main():
    store = Store(StoreUrl.parse(sys.argv[1]))
    await store.open()
    print(flush=True)
    sys.stdin.readline()
    print(await first_admin_key(store, {}) or "", flush=True)
    await store.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("backend", BACKENDS)
async def test_of_two_processes_that_start_first_one_makes_the_admin_key(backend: Backend, tmp_path: Path) -> None:
    async with store_url(backend, tmp_path) as url:
        both = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", FIRST_KEY, url, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for _ in range(2)
        ]
        try:
            for process in both:
                assert process.stdout is not None
                # its store is open
                assert await process.stdout.readline() == b"\n"
            said = await asyncio.gather(*(process.communicate(b"go\n") for process in both))
        finally:
            for process in both:
                if process.returncode is None:
                    process.kill()
        (text,) = [line for out, _ in said if (line := out.decode().strip())]
        # both have ended with the same pepper: a third process checks the key with what the store keeps
        async with opened_store(url) as store:
            assert await first_admin_key(store, {}) is None
            principal = await StoredKeys(store, {}).find(Credentials(text))
            assert principal is not None
            assert (principal.admin, principal.name) == (True, "admin")


async def test_no_admin_key_is_made_where_one_is_set_or_could_be_used(store: Store, clock: Clock) -> None:
    assert await first_admin_key(store, {"DELTAWAY_ADMIN_KEY": "x"}, clock=clock) is None
    text = await first_admin_key(store, {}, clock=clock)
    assert text is not None
    assert await first_admin_key(store, {}, clock=clock) is None
    # whoever changes the pepper can use no key of the store: without a new one nobody could administer it
    assert await first_admin_key(store, CHOSEN, clock=clock) is not None
    assert await first_admin_key(store, CHOSEN, clock=clock) is None


# -- secrets stay secret ---------------------------------------------------------------------------------------------


async def test_no_text_of_a_key_is_shown_kept_or_logged(start: Any) -> None:
    with structlog.testing.capture_logs() as logs:
        one = await start(poll=0.02)
        issued: Issued = await one.ring.create(WEB)
        await one.who(issued.text)
        await one.refuses(issued.text[:-4] + "xxxx")
        one.store.away = True
        await eventually(lambda: one.book._away)
    pepper = await one.book.pepper()
    secret = issued.text.removeprefix(issued.key.id)
    shown = [repr(issued), repr(mint(pepper)), repr(pepper), repr(Credentials(issued.text)), repr(vars(one.book)), logs]
    assert not [one for one in shown if secret in str(one) or str(pepper._secret) in str(one)]
