"""What stands behind the request path of one worker: store, ledger, keys, the state of limits and budgets.

Made from the first configuration, and outlives it. Nothing is touched before `opened`, which opens it all in order, and
closes it in the other.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog
from msgspec import Struct

from router.accounts import Account
from router.cache.steady import SteadyCache
from router.config import ConfigError, Loaded
from router.estimate import Estimator
from router.experiments.states import States
from router.ids import ulid
from router.keys import StoredKeys
from router.ledger.books import Books, NoLedger
from router.ledger.journal import Journal
from router.ledger.keeping import CannotKeep, kept
from router.ledger.ledger import Ledger
from router.ledger.recovery import rejected_path
from router.ledger.writer import Writer
from router.prices.live_rates import LiveRates
from router.routing.health_book import HealthBook
from router.settings import Config, Durability
from router.state.caches import cache_beside
from router.state.redis import Redis
from router.state.shared import State, StateUnavailable, shared_state
from router.state.stream_logs import stream_log
from router.store.spending import spent
from router.store.store import Store, StoreAway
from router.streams.log import StreamLog
from router.tokens import TokenCounter


class Backing(Struct, frozen=True):
    config: Config
    directory: Path
    """Of the journals, and of what the workers of this machine share."""
    store: Store
    state: State
    keys: StoredKeys
    rates: LiveRates
    tokens: TokenCounter
    estimator: Estimator
    books: Books
    journal: Journal
    writer: Writer
    health: HealthBook
    states: States
    """Of the experiments."""
    cache: SteadyCache
    """Of answers."""
    log: StreamLog
    """Of streams; used while the rest is open."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """For as long as the worker lives. Raises `CannotKeep`."""
        async with AsyncExitStack() as stack:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                await self.store.open()
            except StoreAway as error:
                raise CannotKeep(str(error)) from error
            except OSError as error:
                raise CannotKeep(
                    f"the directory `{self.directory}` cannot be made: {error.strerror or error}; name another with "
                    "`ledger.journal`"
                ) from error
            stack.push_async_callback(self.store.close)
            try:
                await stack.enter_async_context(self.state)
            except StateUnavailable as error:
                raise CannotKeep(str(error)) from error
            stack.push_async_callback(self.cache.close)
            if isinstance(self.books, Ledger):
                await stack.enter_async_context(
                    kept(
                        self.store,
                        self.directory,
                        self.journal,
                        self.writer,
                        self.books,
                        self.state.gates,
                        self.state.accounts,
                        self.rates.convert,
                    )
                )
            await stack.enter_async_context(self.keys.lifespan())
            yield


def backing(loaded: Loaded, environ: Mapping[str, str]) -> Backing:
    """Raises `ConfigError`."""
    config = loaded.config
    settings = config.ledger
    directory = Path(settings.journal)
    durability: Durability = settings.durability or ("process" if config.store.file is not None else "store")
    # a journal that was synced is removed once the store has what is in it: then the store must have it for good
    store = Store(config.store, durable=durability != "process")
    tokens, rates, name = TokenCounter(), LiveRates(), f"jrn_{ulid()}"
    journal = Journal(directory, name, settings.journal_limit)
    rejected = rejected_path(directory, name)
    writer = Writer(store, journal, settings.group_commit, rejected)
    books: Books = NoLedger()
    if settings.enabled:
        books = Ledger(settings, durability, journal, writer, tokens, rejected)

    async def opening(account: Account) -> int:
        # what has happened here and is not in the store yet counts too
        await books.flushed()
        found = await spent(store, account, rates.convert)
        if found.unconverted:
            structlog.get_logger("deltaway.ledger").warning(
                "a budget leaves out what cannot be converted: write a rate in `prices.rates`",
                account=str(account),
                currencies=found.unconverted,
            )
        return found.nano

    state = shared_state(config.shared, directory, name, store, opening, rates.convert)
    state.health.apply(config.health)
    try:
        keys = StoredKeys(store, environ)
    except ValueError as error:
        raise ConfigError((loaded.document.problem((), str(error)),)) from None
    return Backing(
        config,
        directory,
        store,
        state,
        keys,
        rates,
        tokens,
        Estimator(tokens if settings.tokenizer else None),
        books,
        journal,
        writer,
        state.health,
        States(),
        cache_beside(state.link, directory),
        stream_log(config.shared, directory, config.streams, state.link if isinstance(state.link, Redis) else None),
    )
