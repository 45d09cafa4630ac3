"""The configuration as values: what the rest of the gateway is built from. `docs/configuration.md` is its reference.

Knows nothing of files; the defaults here are the defaults of the product. The `…Entry` Structs are shaped like the
file, the others are what a checked file becomes.
"""

import re
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from router.access import OnDisconnect
from router.conversation import ContextRules
from router.experiment import Experiment, ExperimentEntry
from router.money import checked_currency
from router.quantities import Duration, Size
from router.route import Can, HealthRules, Region, Route, RouteEntry, Timeouts, TimeoutsEntry

Transport: TypeAlias = Literal["native", "aiohttp", "httpx"]
Missing: TypeAlias = tuple[str, ...]
"""Environment variables that are not set."""


# -- text of a certain form ----------------------------------------------------------------------------------------


class BaseUrl(str):
    """The address of a vendor's API, without a slash at its end."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if not isinstance(value, str) or not value:
            raise ValueError("must be a URL such as https://api.example.com/v1")
        if re.search(r"[\s\x00-\x1f\x7f]", value):
            raise ValueError("must be a URL: this one holds white space or a control character")
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError(
                "must be a URL such as https://api.example.com/v1: its host or port is not valid"
            ) from None
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("must be a URL that begins with https:// or http:// and a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("may not hold a user or password: write `api_key` or `headers` instead")
        if parts.query or parts.fragment:
            raise ValueError("may not have a `?` or `#` part: paths are added at its end")
        return cls(value.rstrip("/"))


class Origin(str):
    """Who may call from a browser: `https://chat.example.com`, or `*` for everybody."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if value == "*":
            return cls(value)
        if not isinstance(value, str) or not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#@]+", value):
            raise ValueError('must be an origin such as https://chat.example.com, without a path or a slash, or "*"')
        return cls(value)


class HeaderName(str):
    """An HTTP header's name in lower case (RFC 9110, section 5.6.2)."""

    FRAMING: Final = ("connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade")

    @classmethod
    def parse(cls, value: object) -> Self:
        if not isinstance(value, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", value):
            raise ValueError("is not a header name: it may hold letters, digits and -")
        if value.lower() in cls.FRAMING:
            raise ValueError("is a header that the connection sets itself: remove it")
        return cls(value.lower())


class HeaderValue(str):
    """An HTTP header's value: printable ASCII."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if not isinstance(value, str):
            raise ValueError("must be text: put it in quotes")
        if not re.fullmatch(r"[\t\x20-\x7e]*", value):
            raise ValueError("must be text of printable ASCII characters")
        return cls(value.strip())


class Secret(str):
    """A key as it is sent in a header. A line break at its end, which files often have, is a problem of its own."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if not isinstance(value, str):
            raise ValueError("must be text: put it in quotes")
        if not re.fullmatch(r"[\x21-\x7e]*", value):
            raise ValueError("must be text of printable ASCII characters, without white space or a line break")
        return cls(value)


class ModelName(str):
    """A vendor's name of a model."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError("must be text, not a number: put it in quotes")
        if not isinstance(value, str) or not re.fullmatch(r"\S+", value):
            raise ValueError("must be a model's name, without white space")
        return cls(value)


class Currency(str):
    """An ISO 4217 code."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if not isinstance(value, str):
            raise ValueError("must be a currency's code such as USD")
        try:
            return cls(checked_currency(value))
        except ValueError as error:
            raise ValueError(f"is no currency: {error}") from None


class Rate(Decimal):
    """How many units of one currency are one unit of another."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError("must be a number such as 7.1")
        try:
            rate = cls(str(value))
        except InvalidOperation:
            raise ValueError("must be a number such as 7.1") from None
        if not rate.is_finite() or not Decimal("0.000001") <= rate <= 10**9:
            raise ValueError("must be a number above zero, such as 7.1")
        return rate


# -- the server ----------------------------------------------------------------------------------------------------


class Cors(Struct, frozen=True, forbid_unknown_fields=True):
    """Which web pages may call from a browser (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

    allow_origins: tuple[Origin, ...]
    allow_credentials: bool = False
    max_age: Duration = Duration(600)

    def __post_init__(self) -> None:
        if not self.allow_origins:
            raise ValueError("`allow_origins` is empty: list an origin, or remove `cors`")
        if self.allow_credentials and "*" in self.allow_origins:
            raise ValueError('browsers refuse `allow_credentials` together with "*": list the origins one by one')


class Shutdown(Struct, frozen=True, forbid_unknown_fields=True):
    """`delay`: how long to go on accepting after the signal, `grace`: how long running answers may then take."""

    delay: Duration = Duration(2)
    grace: Duration = Duration(30)


class Server(Struct, frozen=True, forbid_unknown_fields=True):
    heartbeat: Duration = Duration(15)
    """Seconds of silence before a comment is sent on a stream; 0 sends none."""
    body_limit: Size = Size(32 * 1024 * 1024)
    """Bytes of a request's body."""
    cors: Cors | None = None
    shutdown: Shutdown = Shutdown()
    watch: bool = False
    """Whether a change of the file is taken up without being told."""
    region: Region | None = None
    """Where this gateway runs: targets of this region come first."""
    on_disconnect: OnDisconnect = "cancel"
    """What becomes of a call whose client leaves, unless the call, its key or its route says otherwise."""

    def __post_init__(self) -> None:
        if not 1024 <= self.body_limit <= 1024**3:
            raise ValueError("`body_limit` must be from 1KiB to 1GiB")


# -- what is kept --------------------------------------------------------------------------------------------------


class StoreUrl(str):
    """Where calls, attempts and keys are kept: `sqlite:///file.db` or `postgresql://user@host/database`."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if not isinstance(value, str) or not value:
            raise ValueError("must be sqlite:///file.db or postgresql://user@host/database")
        scheme, separator, rest = value.partition("://")
        if not separator or scheme not in ("sqlite", "postgresql", "postgres"):
            raise ValueError("must begin with sqlite:/// (then a file) or postgresql:// (then user@host/database)")
        if scheme == "sqlite" and rest == "/:memory:":
            raise ValueError("must name a file after sqlite:///: what is only in memory is no record")
        if scheme == "sqlite" and (not rest.startswith("/") or len(rest) < 2):
            raise ValueError("must name a file after sqlite:///, such as sqlite:///deltaway.db")
        if scheme != "sqlite":
            try:
                parts = urlsplit(value)
                host, _ = parts.hostname, parts.port
            except ValueError:
                raise ValueError("must be a URL: its host or port is not valid") from None
            if not host or parts.path in ("", "/"):
                raise ValueError("must name a host and a database: postgresql://user@host/database")
        return cls(value)

    @property
    def file(self) -> str | None:
        """The path of the SQLite file; None for Postgres."""
        return self.removeprefix("sqlite:///") if self.startswith("sqlite:") else None


class SharedUrl(str):
    """Where limits and budgets are counted: `auto`, `memory` or `redis://host:port/0`."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if value in ("auto", "memory"):
            return cls(value)
        if not isinstance(value, str) or not re.match(r"rediss?://", value):
            raise ValueError("must be auto, memory or redis://host:6379/0")
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError("must be a URL such as redis://host:6379/0: its host or port is not valid") from None
        if not host:
            raise ValueError("must name a host: redis://host:6379/0")
        return cls(value)


Durability: TypeAlias = Literal["process", "disk", "store"]


class Ledger(Struct, frozen=True, forbid_unknown_fields=True):
    """How calls are recorded. What each key means is in `docs/ledger.md`."""

    enabled: bool = True
    durability: Durability | None = None
    """What the vendor's call and the answer's last bytes wait for; None: `process` on SQLite, `store` on Postgres."""
    journal: str = "deltaway.journal"
    """The directory of the journals."""
    journal_limit: Size = Size(256 * 1024 * 1024)
    """Bytes that the journal of one process may hold while the store is away."""
    on_store_failure: Literal["refuse", "continue"] = "refuse"
    """What happens to new calls when the journal is full."""
    group_commit: Duration = Duration(0.05)
    """How long rows gather before they are brought into the store together."""
    checkpoint: Duration = Duration(5)
    """How often the tokens of a long answer are written down while it runs; 0: never."""
    audit: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """The share of calls whose reported tokens are counted anew, to compare."""
    tokenizer: bool = True
    """False: what a vendor does not report is estimated by length alone (a token is four bytes), nothing audited."""

    def __post_init__(self) -> None:
        if self.journal_limit < 8 * 1024 * 1024:
            raise ValueError("`journal_limit` must be at least 8MiB")
        if self.group_commit > 5:
            raise ValueError("`group_commit` must be at most 5s")
        if not self.journal:
            raise ValueError("`journal` is empty: name a directory")


class Streams(Struct, frozen=True, forbid_unknown_fields=True):
    """Streams that can be come back to. Their log is where `shared` says."""

    keep: Duration = Duration(600)
    """How long after its end a stream can be read again."""
    limit: Size = Size(4 * 1024 * 1024)
    """Bytes of one stream that are kept; what is older is evicted."""
    linger: Duration = Duration(15)
    """How long a stream that nobody reads waits for its reader to come back, before `on_disconnect: cancel` ends it."""
    retry: Duration = Duration(1)
    """How long a browser waits before it opens a stream again whose connection broke."""

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= 30 * 86400:
            raise ValueError("`keep` must be from 1s to 30d")
        if not 64 * 1024 <= self.limit <= 1024**3:
            raise ValueError("`limit` must be from 64KiB to 1GiB")
        if not 0.01 <= self.retry <= 600:
            raise ValueError("`retry` must be from 10ms to 10m")


class Conversations(Struct, frozen=True, forbid_unknown_fields=True):
    """Conversations and completions that are kept in the store."""

    busy: Literal["wait", "refuse"] = "wait"
    """What becomes of a call on a conversation in which another call is writing its answer."""
    wait: Duration = Duration(60)
    """The longest that it waits for its turn."""
    keep: Duration | None = None
    """How long after its last change a conversation is kept, and a stored completion after it was made; None: until it
    is deleted."""
    context: ContextRules = ContextRules()
    """What is sent of a long conversation, unless it or its route says otherwise."""

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep < 60:
            raise ValueError("`keep` must be at least 1m")


class Prices(Struct, frozen=True, forbid_unknown_fields=True):
    """Prices beside those of the package."""

    file: str | None = None
    """A file of your own prices, which win over the package's; relative to the configuration."""
    currency: Currency = Currency("USD")
    """What sums over several currencies are in."""
    rates: dict[Currency, Rate] = {}
    """Units of another currency for one unit of `currency`, from the day the book ends on."""
    unknown: Literal["flag", "refuse"] = "flag"
    """A call whose price is not known: made and flagged, or refused."""


# -- providers -----------------------------------------------------------------------------------------------------


class ProviderEntry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    protocol: str
    base_url: BaseUrl | None = None
    api_key: Secret | None = None
    api_keys: tuple[Secret, ...] = ()
    headers: dict[HeaderName, HeaderValue] = {}
    max_parallel: Annotated[int, Meta(ge=1)] = 1000
    transport: Transport = "native"
    timeouts: TimeoutsEntry | None = None
    models: tuple[ModelName, ...] = ()
    can: dict[str, Can] = {}
    region: Region | None = None
    price_list: str | None = None
    options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.api_key is not None and self.api_keys:
            raise ValueError("write either `api_key` or `api_keys`")


class ProviderRow(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One vendor account. A row that needs a variable which is not set is unavailable; `missing` names it."""

    name: str
    protocol: str
    """A name that `providers` knows, or `package.module:Class`."""
    base_url: str | None = None
    """Without a slash at its end; None: the protocol's own."""
    api_keys: tuple[str, ...] = ()
    """Used in turns. A key whose variable is not set is left out; without any that is set the row is unavailable."""
    headers: dict[str, str] = {}
    """Names are in lower case."""
    max_parallel: int = 1000
    transport: Transport = "native"
    timeouts: Timeouts | None = None
    models: tuple[str, ...] = ()
    """Models to list; others can be called all the same."""
    can: dict[str, Can] = {}
    """A shell pattern of models' names → what these are able to do. The first that matches counts."""
    region: str | None = None
    """Where it answers, unless a route's target says otherwise; None: nowhere that a call may be bound to."""
    price_list: str | None = None
    """Whose prices hold, by their name in the price book; None: those that `base_url` or the protocol tell."""
    options: dict[str, Any] = {}
    """As written; `Loaded.document` reads them as the protocol's `Options`."""
    missing: Missing = ()

    def __repr__(self) -> str:
        # keys stand in `api_keys`, `headers` and `options`: none of them belongs into a log
        return f"ProviderRow(name={self.name!r}, protocol={self.protocol!r}, missing={self.missing!r}, …)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("name", self.name), ("protocol", self.protocol), ("missing", self.missing)]


# -- plugins and the whole -----------------------------------------------------------------------------------------


class PluginRow(Struct, frozen=True, forbid_unknown_fields=True):
    """One layer of the onion. `path` is where its settings stand in the document, for `Loaded.document`."""

    name: str
    """A name that `plugins` knows, or `package.module:Class`."""
    settings: dict[str, Any] = {}
    path: tuple[str | int, ...] = ("plugins",)

    def __repr__(self) -> str:
        return f"PluginRow(name={self.name!r}, …)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("name", self.name)]


STORE: Final = StoreUrl("sqlite:///deltaway.db")
SHARED: Final = SharedUrl("auto")


class ConfigEntry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The top level of the file."""

    server: Server = Server()
    store: StoreUrl = STORE
    shared: SharedUrl = SHARED
    ledger: Ledger = Ledger()
    streams: Streams = Streams()
    conversations: Conversations = Conversations()
    prices: Prices = Prices()
    providers: dict[str, ProviderEntry] = {}
    models: dict[str, RouteEntry] = {}
    health: HealthRules = HealthRules()
    experiments: dict[str, ExperimentEntry] = {}
    plugins: tuple[str | dict[str, Any], ...] = ()


MOCK: Final = ProviderRow(
    name="mock",
    protocol="mock",
    models=("echo", "lorem-200", "slow-50", "tools", "reasoning", "error-429", "cut-10", "stall-10"),
)
"""What answers when no provider is configured."""
PLUGINS: Final = (
    PluginRow("logging", path=("plugins", 0, "logging")),
    PluginRow("usage", path=("plugins", 1, "usage")),
)
"""The layers when the file lists none: without `auth`, which `serve` then allows on a loopback address only."""


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    server: Server = Server()
    store: StoreUrl = STORE
    shared: SharedUrl = SHARED
    ledger: Ledger = Ledger()
    streams: Streams = Streams()
    conversations: Conversations = Conversations()
    prices: Prices = Prices()
    providers: dict[str, ProviderRow] = msgspec.field(default_factory=lambda: {MOCK.name: MOCK})
    models: dict[str, Route] = {}
    health: HealthRules = HealthRules()
    experiments: dict[str, Experiment] = {}
    plugins: tuple[PluginRow, ...] = PLUGINS
