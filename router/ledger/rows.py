"""What the ledger writes: a row a call and a row an attempt, and the records of the journal that carry them.

Times are Unix milliseconds. Rows hold no prompt, no answer and no key. As records they are MessagePack arrays: a new
field goes to the end and has a default, so that a journal written before an upgrade can be read after it.
"""

from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from router.call import Outcome, Role
from router.events import Usage, UsageSource
from router.experiment import Unit

TOKEN_CLASSES: Final = (
    "input",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "input_audio",
    "output",
    "reasoning",
    "output_audio",
)
"""The disjoint classes, as in `router.events.Usage`."""
LONGEST_NAME: Final = 256
"""Characters of a model, a user, a tag's name, … in a row."""
LONGEST_VALUE: Final = 512
"""Characters of a tag's value."""


def kept_text(text: str, longest: int = LONGEST_NAME) -> str:
    """A client's or vendor's words as any store can keep them: bounded, without NULs and lone surrogates."""
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


class Labels(Struct, frozen=True, gc=False, array_like=True):
    """What calls are filtered and summed by. Attempts repeat their call's."""

    model: str
    """The name that was asked for: a route, or provider/model."""
    route: str | None = None
    key: str | None = None
    user: str | None = None
    team: str | None = None
    tags: dict[str, str] = {}
    experiment: str | None = None
    arm: str | None = None


class CallRow(Struct, frozen=True, gc=False, array_like=True):
    id: str
    created_at: int
    labels: Labels
    dialect: str
    stream: bool
    journal: str
    """The journal of the process that runs the call."""
    decision: dict[str, Any] = {}
    """Why it went where it went, in words and names."""
    ended_at: int | None = None
    outcome: Outcome | None = None
    """None while it runs."""
    target: str | None = None
    """Of the last attempt."""
    error: dict[str, Any] | None = None
    """`status`, `kind`, `code` and the public message."""
    timing: dict[str, Any] = {}


class AttemptRow(Struct, frozen=True, gc=False, array_like=True):
    call_id: str
    n: int
    created_at: int
    labels: Labels
    provider: str
    model: str
    """The vendor's name of it."""
    journal: str
    settled_at: int | None = None
    outcome: Outcome | None = None
    """None while it runs."""
    error: dict[str, Any] | None = None
    timing: dict[str, Any] = {}
    vendor_request_id: str | None = None
    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    input_audio: int = 0
    output: int = 0
    reasoning: int = 0
    output_audio: int = 0
    source: UsageSource | None = None
    """None: no token is known of; nothing was used, or nothing can be said."""
    flag: str | None = None
    """Why the figures do not add up."""
    service_tier: str | None = None
    thinking: bool = False
    cost: int | None = None
    """Nano-units of `currency`; None: no price is known."""
    currency: str | None = None
    price: str | None = None
    role: Role | None = None
    """None: written by a version that did not say."""
    why: str | None = None
    """Why it was made, in words."""
    vendor_key: str | None = None
    """Which of the provider's keys, where it has several: `2 of 3`."""
    seam: int | None = None
    """Of a continuation: characters of text that had come before it."""


class Exposure(Struct, frozen=True, gc=False, array_like=True):
    """What an experiment has decided about a call: `router.experiment.Assigned`."""

    call_id: str
    created_at: int
    experiment: str
    arm: str
    unit: str
    """A hash of it."""
    kind: Unit
    forced: bool
    shares: str
    shadow_of: str | None
    journal: str


def usage_of(row: AttemptRow) -> Usage | None:
    """The row's tokens; None where none are known of."""
    if row.source is None:
        return None
    classes = {name: getattr(row, name) for name in TOKEN_CLASSES}
    return Usage(**classes, source=row.source, flag=row.flag)


class Opened(Struct, frozen=True, gc=False, array_like=True, tag="o"):
    """An attempt is about to be made. `call` comes with the first one, and so does what an experiment has decided."""

    attempt: AttemptRow
    call: CallRow | None = None
    exposure: Exposure | None = None


class Progress(Struct, frozen=True, gc=False, array_like=True, tag="p"):
    """The attempt as it stands in the middle of a long answer: its tokens so far, without an outcome."""

    attempt: AttemptRow


class Settled(Struct, frozen=True, gc=False, array_like=True, tag="s"):
    """The attempt has ended."""

    attempt: AttemptRow


class Closed(Struct, frozen=True, gc=False, array_like=True, tag="c"):
    """The call has ended. `exposure` comes with it where no attempt was made."""

    call: CallRow
    exposure: Exposure | None = None


class Audited(Struct, frozen=True, gc=False, array_like=True, tag="a"):
    """What our own tokenizer counts for an attempt whose vendor reported its usage."""

    call_id: str
    n: int
    counted_input: int
    counted_output: int


class Gap(Struct, frozen=True, gc=False, array_like=True, tag="g"):
    """Calls that could not be recorded one by one: served ones (`on_store_failure: continue`), and refused ones that
    found the journal full. How many, and what."""

    id: str
    journal: str
    began_at: int
    ended_at: int
    calls: int
    attempts: int
    input: int
    output: int
    costs: dict[str, int] = {}
    """Currency → nano-units."""


Record: TypeAlias = Opened | Progress | Settled | Closed | Audited | Gap

encode_record: Final = msgspec.msgpack.Encoder().encode
decode_record: Final = msgspec.msgpack.Decoder(Record).decode


class Batch(Struct):
    """What one transaction brings into the store: the last word on each row, from records up to `position`."""

    journal: str
    position: int = 0
    """Number of the last record in it."""
    calls: dict[str, CallRow] = {}
    attempts: dict[tuple[str, int], AttemptRow] = {}
    audits: list[Audited] = []
    gaps: list[Gap] = []
    exposures: dict[str, Exposure] = {}
    """By the id of the call."""

    def add(self, position: int, record: Record) -> None:
        self.position = position
        match record:
            case Opened(attempt, call, exposure):
                self.attempts[attempt.call_id, attempt.n] = attempt
                if call is not None:
                    self.calls[call.id] = call
                if exposure is not None:
                    self.exposures[exposure.call_id] = exposure
            case Progress(attempt) | Settled(attempt):
                self.attempts[attempt.call_id, attempt.n] = attempt
            case Closed(call, exposure):
                self.calls[call.id] = call
                if exposure is not None:
                    self.exposures[exposure.call_id] = exposure
            case Audited():
                self.audits.append(record)
            case Gap():
                self.gaps.append(record)
