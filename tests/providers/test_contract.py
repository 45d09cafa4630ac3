"""One suite for every provider: recorded transcripts, cut everywhere, must give the same events.

A case is a folder `transcripts/<protocol>/<case>/`:

* `upstream.sse`, `upstream.json` or `upstream.bin`: the bytes of the vendor's response body;
* `response.json`: `{"status": 200, "headers": {"content-type": …}}`; by default 200 with the content type of the
  upstream file's ending (`.bin` has none);
* `request.json`: the `ChatRequest` that was asked, as msgspec writes it; by default a streamed "Hi" in the protocol;
* `target.json`: `{"provider": …, "model": …}`; by default provider and model are `<protocol>` and `model-1`;
* `options.json`: the provider row's `options`;
* `events.json`: for a 2xx, the events that must come, as msgspec writes them (fields with their default value may be
  left out). The last item may be `{"raises": "StreamCut", "code": …, "message_contains": …, "retry_after": …}`,
  of which only `raises` is needed;
* `error.json`: for any other status, `{"raises": "RateLimited", …}` with the same keys, plus `vendor_code`,
  `vendor_status` and `vendor_request_id`;
* `whole.json`: optionally the body of the same answer, not streamed: it must fold to the same answer.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from providers import BUILT_IN, load_provider
from router.errors import ProviderError
from router.events import Completed, Event, OrderCheck, check_order
from router.fold import Answer, Fold, merge
from router.messages import ChatRequest, User
from router.provider import Decoder, HttpError, HttpHead, Provider, ProviderSettings, Target

TRANSCRIPTS = Path(__file__).parent / "transcripts"
CONTENT_TYPES = {".sse": "text/event-stream", ".json": "application/json"}
MAX_CUTS = 400


class Response(Struct):
    status: int = 200
    headers: dict[str, str] = {}


class Case:
    """One recorded exchange and what must become of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.protocol = folder.parent.name
        (self.upstream,) = folder.glob("upstream.*")
        self.body = self.upstream.read_bytes()
        self.target = self._read("target.json", Target) or Target(self.protocol, "model-1")
        self.request = self._read("request.json", ChatRequest) or ChatRequest(
            model=self.target.model, messages=(User("Hi"),), protocol=self.protocol, stream=True
        )
        content_type = CONTENT_TYPES.get(self.upstream.suffix)
        self.response = self._read("response.json", Response) or Response(
            headers={"content-type": content_type} if content_type else {}
        )

    def _read(self, name: str, kind: Any) -> Any:
        path = self.folder / name
        return msgspec.json.decode(path.read_bytes(), type=kind) if path.exists() else None

    def provider(self) -> Provider:
        provider = load_provider(self.protocol)
        options = self._read("options.json", provider.Options)
        settings = ProviderSettings(
            name=self.target.provider, base_url="http://vendor.invalid/v1", api_key="key-1", options=options
        )
        return provider(settings)  # type: ignore[call-arg]

    def decoder(self, *, whole: bool = False) -> Decoder:
        provider = self.provider()
        request = msgspec.structs.replace(self.request, stream=False) if whole else self.request
        sent = provider.encode(request, self.target)
        headers = {"content-type": "application/json"} if whole else self.response.headers
        return provider.decoder(request, self.target, sent, HttpHead(self.response.status, headers))

    def expected(self) -> tuple[list[Event], dict[str, Any] | None]:
        written = self._read("events.json", list[Any])
        assert written, f"{self.folder} says nothing of its events"
        raises = written.pop() if "raises" in written[-1] else None
        events = [msgspec.convert(item, Event) for item in written]
        for event, item in zip(events, written, strict=True):
            assert said_by(msgspec.to_builtins(event), item), "a field that no event has"
        return events, raises


def said_by(event: Any, item: Any) -> bool:
    """Whether the event has all that is written down of it; what is not written has its default."""
    if isinstance(event, dict) and isinstance(item, dict):
        return all(key in event and said_by(event[key], item[key]) for key in item)
    return bool(event == item)


def cases(*, failed: bool) -> list[Any]:
    folders = sorted(path.parent for path in TRANSCRIPTS.glob("*/*/upstream.*"))
    return [
        pytest.param(Case(folder), id=f"{folder.parent.name}/{folder.name}")
        for folder in folders
        if (folder / "error.json").exists() is failed
    ]


def play(decoder: Decoder, pieces: Iterable[bytes]) -> tuple[list[Event], ProviderError | None]:
    """The events of a body that comes in these pieces, and the error that ends them."""
    events: list[Event] = []
    try:
        # extending keeps the events that came before an error
        events.extend(stream(decoder, pieces))
    except ProviderError as error:
        return events, error
    return events, None


def stream(decoder: Decoder, pieces: Iterable[bytes]) -> Iterator[Event]:
    for piece in pieces:
        yield from decoder.feed(piece)
    yield from decoder.finish()


def described(error: ProviderError | None) -> Any:
    return None if error is None else (type(error).__name__, error.code, error.message, error.retry_after)


def assert_raised(error: ProviderError | None, wanted: dict[str, Any] | None) -> None:
    if wanted is None:
        assert error is None, f"{type(error).__name__}: {error}"
        return
    assert error is not None, f"{wanted['raises']} was not raised"
    wanted = dict(wanted)
    assert type(error).__name__ == wanted.pop("raises"), error.message
    assert wanted.pop("message_contains", "") in error.message
    assert wanted == {key: getattr(error, key) for key in wanted}


def cuts(body: bytes) -> list[int]:
    """Where to cut a body in two: everywhere, or for a long one at places spread over it and at line ends."""
    if len(body) <= MAX_CUTS:
        return list(range(1, len(body)))
    spread = {round(i * len(body) / MAX_CUTS) for i in range(1, MAX_CUTS)}
    tricky = [i for i in range(1, len(body)) if body[i - 1] in b"\r\n" or body[i] > 0x7F]
    return sorted(spread | set(tricky[:MAX_CUTS]))


def answer(events: Iterable[Event]) -> Answer:
    fold = Fold()
    for event in events:
        fold.add(event)
    return fold.result()


def summary(answer: Answer) -> Any:
    """What a whole answer and a streamed one must agree in: all but the ids and how the content was interleaved."""
    choices = []
    for choice in answer.choices:
        inside: dict[str, Any] = {}
        for extra in (choice.message_extra, *(block.extra for block in choice.blocks)):
            merge(inside, extra)
        choices.append(
            {
                "index": choice.index,
                "text": choice.text(),
                "reasoning": choice.reasoning(),
                "refusal": choice.refusal(),
                "calls": [(call.name, call.kind, call.arguments) for call in choice.tool_calls()],
                "finish": (choice.finish_reason, choice.native_reason, choice.stop_sequence),
                "extra": choice.extra,
                "inside": inside,
            }
        )
    return {"choices": choices, "usage": answer.usage, "extra": answer.extra, "complete": answer.complete}


@pytest.mark.parametrize("protocol", sorted(BUILT_IN))
def test_every_protocol_has_transcripts(protocol: str) -> None:
    assert list((TRANSCRIPTS / protocol).glob("*/upstream.*"))


@pytest.mark.parametrize("case", cases(failed=False))
def test_transcript_gives_its_events(case: Case) -> None:
    expected, raises = case.expected()
    events, error = play(case.decoder(), [case.body])
    assert events == expected
    assert_raised(error, raises)


@pytest.mark.parametrize("case", cases(failed=False))
def test_events_come_in_legal_order(case: Case) -> None:
    events, error = play(case.decoder(), [case.body])
    if error is None:
        assert check_order(events) == events
        return
    check = OrderCheck()
    for event in events:
        check.see(event)
    assert check.state != "end"


@pytest.mark.parametrize("case", cases(failed=False))
def test_cuts_do_not_change_the_events(case: Case) -> None:
    events, error = play(case.decoder(), [case.body])
    reference = events, described(error)
    bytewise, error = play(case.decoder(), [case.body[i : i + 1] for i in range(len(case.body))])
    assert (bytewise, described(error)) == reference
    for cut in cuts(case.body):
        halves, error = play(case.decoder(), [case.body[:cut], case.body[cut:]])
        assert (halves, described(error)) == reference, f"cut at byte {cut}"


@pytest.mark.parametrize("case", cases(failed=False))
def test_nothing_follows_the_end(case: Case) -> None:
    decoder = case.decoder()
    events, _ = play(decoder, [case.body])
    ends = [i for i, event in enumerate(events) if isinstance(event, Completed)]
    assert ends in ([], [len(events) - 1])
    if ends:
        assert [*decoder.feed(case.body), *decoder.finish()] == []


WHOLE = [case for case in cases(failed=False) if (case.values[0].folder / "whole.json").exists()]


@pytest.mark.parametrize("case", WHOLE)
def test_whole_answer_is_the_fold_of_the_stream(case: Case) -> None:
    streamed, error = play(case.decoder(), [case.body])
    assert error is None
    body = (case.folder / "whole.json").read_bytes()
    whole, error = play(case.decoder(whole=True), [body])
    assert error is None
    assert check_order(whole) == whole
    assert summary(answer(whole)) == summary(answer(streamed))
    bytewise, error = play(case.decoder(whole=True), [body[i : i + 1] for i in range(len(body))])
    assert (bytewise, error) == (whole, None)


@pytest.mark.parametrize("case", cases(failed=True))
def test_error_response_becomes_its_error(case: Case) -> None:
    assert not 200 <= case.response.status < 300
    error = case.provider().error(HttpError(case.response.status, case.response.headers, case.body), case.target)
    assert_raised(error, case._read("error.json", dict[str, Any]))
    assert "key-1" not in error.message
