"""Feedback as clients give it: on their own requests, in metrics that are defined, counted once; what is refused."""

import asyncio
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from router.commands.feedback import feedback as feedback_command
from router.commands.requests import _receipt
from router.experiment import Arm, Experiment, Metric
from router.ids import request_id
from router.ledger.rows import AttemptRow, Batch, CallRow, Exposure, Labels
from router.store.ledger import bring_in
from router.store.store import Store
from support.serving import application, served
from support.serving import client as serving_client
from tests.reports.routes import asking

ARMS = (Arm("control", 50.0), Arm("qwen", 50.0))
EXPERIMENTS = {
    "trial": Experiment(
        name="trial",
        route="chat",
        arms=ARMS,
        control="control",
        salt="trial",
        metrics={"thumbs": Metric("binary"), "stars": Metric("number")},
    ),
    "other": Experiment(
        name="other", route="fast", arms=ARMS, control="control", salt="other", metrics={"solved": Metric("binary")}
    ),
}
IN_TRIAL, ELSEWHERE, OF_TWO, GONE, SHADOW = (f"req_0{name}{'0' * 24}" for name in "ABCDE")
CONFIG = """
providers: {mock: {protocol: mock}}
models: {chat: {targets: [mock/echo]}}
experiments:
  trial:
    route: chat
    unit: request
    arms: {control: {share: 50}, other: {share: 50}}
    metrics: {thumbs: {kind: binary}}
ledger: {group_commit: 5s}
"""


def call(name: str, key: str | None, experiment: str | None = None, arm: str | None = None) -> CallRow:
    labels = Labels("chat", "chat", key, experiment=experiment, arm=arm)
    decision = {"why": "the first", "generation": "g7"}
    unit = {"experiment": {"unit": "user", "forced": True}} if experiment else {}
    return CallRow(name, 1_790_000_000_000, labels, "openai.chat", True, "jrn", {**decision, **unit})


@pytest.fixture
async def ledger(store: Store) -> Store:
    batch = Batch("jrn", 1)
    for row in (
        call(IN_TRIAL, "dw-one", "trial", "qwen"),
        call(ELSEWHERE, "dw-one"),
        call(OF_TWO, "dw-two", "trial", "control"),
        call(GONE, "dw-one", "bygone", "control"),
        call(SHADOW, None, "trial", "shadow"),
    ):
        batch.calls[row.id] = row
    labels = batch.calls[IN_TRIAL].labels
    batch.attempts[IN_TRIAL, 1] = AttemptRow(
        *(IN_TRIAL, 1, 1_790_000_000_000, labels, "mock", "echo", "jrn", None, "cut"), role="first"
    )
    batch.attempts[IN_TRIAL, 2] = AttemptRow(
        *(IN_TRIAL, 2, 1_790_000_000_000, labels, "mock", "two", "jrn"),
        role="continuation",
        why="`mock/echo` died",
        vendor_key="2 of 3",
        seam=1200,
    )
    batch.exposures[SHADOW] = Exposure(SHADOW, 1, "trial", "shadow", "u", "user", False, "", IN_TRIAL, "jrn")
    await bring_in(store, batch, 1)
    return store


async def give(client: httpx.AsyncClient, key: str = "one", **body: Any) -> httpx.Response:
    return await client.post("/v1/feedback", json=body, headers={"authorization": key})


async def receipt(client: httpx.AsyncClient, name: str, key: str = "admin") -> Any:
    return (await client.get(f"/v1/requests/{name}", headers={"authorization": key})).json()


# -- what is taken -----------------------------------------------------------------------------------------------------


async def test_the_same_said_twice_counts_once_and_another_value_takes_its_place(ledger: Store) -> None:
    said = {"request_id": IN_TRIAL, "metric": "thumbs"}
    async with asking(ledger, experiments=EXPERIMENTS) as client:
        first = (await give(client, **said, value=True, comment="good")).json()
        again = (await give(client, **said, value=1)).json()
        other = (await give(client, **said, value=False)).json()
        words = (await give(client, **said, value=0, comment="no, \x00 bad")).json()
        assert (await receipt(client, IN_TRIAL))["feedback"] == {"thumbs": False}
    told = [
        (each["value"], each["comment"], each["created"], each["replaced"]) for each in (first, again, other, words)
    ]
    assert told == [
        (True, "good", True, False),
        (True, "good", False, False),
        (False, None, False, True),
        (False, "no, \ufffd bad", False, True),
    ]
    assert first["object"] == "feedback"
    assert first["created_at"] == other["created_at"] <= other["updated_at"]


async def test_each_metric_of_a_request_is_its_own_and_says_its_kind(ledger: Store) -> None:
    async with asking(ledger, experiments=EXPERIMENTS) as client:
        for metric, value in (("stars", 4.5), ("thumbs", 0), ("stars", -3)):
            assert (await give(client, request_id=IN_TRIAL, metric=metric, value=value)).status_code == 200
        assert (await receipt(client, IN_TRIAL, "one"))["feedback"] == {"stars": -3.0, "thumbs": False}


async def test_a_request_in_no_experiment_takes_any_metric_that_there_is(ledger: Store) -> None:
    async with asking(ledger, experiments=EXPERIMENTS) as client:
        for metric, value in (("solved", True), ("stars", 1)):
            assert (await give(client, request_id=ELSEWHERE, metric=metric, value=value)).status_code == 200


async def test_an_admin_speaks_of_any_request_and_so_does_anybody_where_no_key_is_needed(ledger: Store) -> None:
    async with asking(ledger, experiments=EXPERIMENTS) as client:
        for key in ("admin", "open"):
            for name in (IN_TRIAL, OF_TWO, SHADOW):
                answer = await give(client, key, request_id=name, metric="thumbs", value=True)
                assert answer.status_code == 200, answer.text


async def test_many_at_once_leave_one_row(ledger: Store) -> None:
    async with asking(ledger, experiments=EXPERIMENTS) as client:
        said = [give(client, request_id=IN_TRIAL, metric="stars", value=value % 3 + 1.0) for value in range(12)]
        answers = [answer.json() for answer in await asyncio.gather(*said)]
        assert sum(answer["created"] for answer in answers) == 1
        last = (await receipt(client, IN_TRIAL))["feedback"]["stars"]
        assert last in (1.0, 2.0, 3.0)


async def test_feedback_right_after_the_answer_works() -> None:
    question = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}
    async with served(application(CONFIG)) as url, serving_client(url) as client:
        answer = await client.post("/v1/chat/completions", json=question)
        name = answer.headers["x-request-id"]
        given = await client.post("/v1/feedback", json={"request_id": name, "metric": "thumbs", "value": True})
        assert given.status_code == 200, given.text
        assert (await client.get(f"/v1/requests/{name}")).json()["feedback"] == {"thumbs": True}


async def test_a_call_that_another_process_has_just_served_is_waited_for(store: Store) -> None:
    name = request_id()

    async def a_moment_later() -> None:
        await asyncio.sleep(0.2)
        await bring_in(store, Batch("jrn", 1, {name: call(name, "dw-one")}), 1)

    async with asking(store, experiments=EXPERIMENTS) as client:
        answer, _ = await asyncio.gather(give(client, request_id=name, metric="thumbs", value=1), a_moment_later())
        assert answer.status_code == 200


# -- what is refused ---------------------------------------------------------------------------------------------------


async def refused(ledger: Store, status: int, code: str, param: str | None, key: str = "one", **body: Any) -> str:
    async with asking(ledger, experiments=EXPERIMENTS) as client:
        answer = await give(client, key, **body)
        assert (await receipt(client, IN_TRIAL))["feedback"] == {}
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    return str(error["message"])


async def test_an_unknown_request_and_another_keys_are_told_alike(ledger: Store) -> None:
    unknown = IN_TRIAL.replace("A", "Z")
    words = {
        await refused(ledger, 404, "not_found", "request_id", request_id=name, metric="thumbs", value=True)
        for name in (unknown, OF_TWO, SHADOW)
    }
    assert words == {
        f"no request `{name}` that this key has made: there is none of that id, or it is another key's"
        for name in (unknown, OF_TWO, SHADOW)
    }
    admin = await refused(ledger, 404, "not_found", "request_id", "admin", request_id=unknown, metric="thumbs", value=1)
    assert admin == f"no request `{unknown}`"


@pytest.mark.parametrize("name", ["", "x" * 500, "req_\x00'; DROP TABLE calls", "req_ü"])
async def test_what_is_no_id_is_no_request(ledger: Store, name: str) -> None:
    words = await refused(ledger, 404, "not_found", "request_id", request_id=name, metric="thumbs", value=True)
    assert len(words) < 200


async def test_an_unknown_metric_is_named_with_those_that_are_known(ledger: Store) -> None:
    words = await refused(ledger, 400, "unknown_metric", "metric", request_id=IN_TRIAL, metric="thumb", value=True)
    assert words == (
        "the experiment `trial` of this request does not define the metric `thumb`: did you mean `thumbs`? "
        "(known: stars, thumbs)"
    )
    words = await refused(ledger, 400, "unknown_metric", "metric", request_id=IN_TRIAL, metric="solved", value=True)
    assert "(known: stars, thumbs)" in words
    words = await refused(ledger, 400, "unknown_metric", "metric", request_id=ELSEWHERE, metric="errors", value=True)
    assert words == "no experiment defines the metric `errors` (known: solved, stars, thumbs)"
    words = await refused(ledger, 400, "unknown_metric", "metric", request_id=GONE, metric="thumbs", value=True)
    assert "the experiment `bygone` that the request was in is not configured any more" in words


BINARY = "is binary: it takes true or false (or 1 or 0)"
NUMBER = "is a number: it takes any finite one"
SIZE = "takes 0 and numbers from 1e-12 to 1e+12 in size: measure in another unit"


@pytest.mark.parametrize(
    ("metric", "value", "said", "takes"),
    [
        ("thumbs", 2, "2", BINARY),
        ("thumbs", 0.5, "0.5", BINARY),
        ("thumbs", "up", "the text 'up'", BINARY),
        ("thumbs", None, "null", BINARY),
        ("stars", True, "true", NUMBER),
        ("stars", "4", "the text '4'", NUMBER),
        ("stars", [1], "a list", NUMBER),
        ("stars", {}, "an object", NUMBER),
        ("stars", 10**300, "a very large number", SIZE),
        ("stars", -1e-300, "-1e-300", SIZE),
    ],
)
async def test_a_value_of_the_wrong_kind_is_told_the_kind_and_what_to_send(
    ledger: Store, metric: str, value: Any, said: str, takes: str
) -> None:
    body = {"request_id": IN_TRIAL, "metric": metric, "value": value}
    words = await refused(ledger, 400, "invalid_value", "value", **body)
    assert words == f"`value` is {said}, and the metric `{metric}` {takes}"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"metric": "thumbs", "value": True}, "request_id", "`request_id` is required"),
        ({"request_id": IN_TRIAL, "metric": "thumbs"}, "value", "`value` is required"),
        ({"request_id": IN_TRIAL, "value": True}, "metric", "`metric` is required"),
        ({"request_id": IN_TRIAL, "metric": "thumbs", "value": 1, "coment": ""}, "coment", "did you mean `comment`?"),
        ({"request_id": IN_TRIAL, "metric": "thumbs", "value": 1, "comment": "x" * 2001}, "comment", "2000"),
        ({"request_id": 7, "metric": "thumbs", "value": 1}, "request_id", "text"),
    ],
)
async def test_a_body_that_is_not_feedback_is_told_where(ledger: Store, body: Any, param: str, words: str) -> None:
    async with asking(ledger, experiments=EXPERIMENTS) as client:
        answer = await give(client, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("content", ["", "{", '{"value": NaN}', '{"value": 1e999}'])
async def test_what_is_no_json_is_refused(ledger: Store, content: str) -> None:
    async with asking(ledger, experiments=EXPERIMENTS) as client:
        answer = await client.post("/v1/feedback", content=content, headers={"authorization": "one"})
    assert answer.status_code == 400, answer.text


async def test_without_experiments_and_without_a_ledger_it_is_said_what_is_missing(ledger: Store) -> None:
    body = {"request_id": ELSEWHERE, "metric": "thumbs", "value": True}
    async with asking(ledger) as client:
        answer = await give(client, **body)
    assert answer.json()["error"]["message"] == (
        "no experiment defines the metric `thumbs`: metrics are named under `metrics` of an experiment"
    )
    async with asking(ledger, experiments=EXPERIMENTS, recorded=False) as client:
        answer = await give(client, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "ledger_disabled")
    assert "`ledger.enabled`" in answer.json()["error"]["message"]


async def test_a_wrong_key_learns_nothing(ledger: Store) -> None:
    async with asking(ledger, experiments=EXPERIMENTS) as client:
        answer = await give(client, "wrong", request_id=IN_TRIAL, metric="thumbs", value=True)
    assert answer.status_code == 401


async def test_while_the_store_is_away_a_client_is_told_to_send_it_again(ledger: Store) -> None:
    async with asking(ledger, experiments=EXPERIMENTS) as client:
        await ledger.close()
        answer = await give(client, request_id=IN_TRIAL, metric="thumbs", value=True)
        await ledger.open()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert int(answer.headers["retry-after"]) > 0


# -- receipts ----------------------------------------------------------------------------------------------------------


async def test_a_receipt_says_why_attempts_were_made_and_what_repeats_the_call(ledger: Store) -> None:
    async with asking(ledger, experiments=EXPERIMENTS) as client:
        whole, own = await receipt(client, IN_TRIAL), await receipt(client, IN_TRIAL, "one")
        listed = (await client.get("/v1/requests", headers={"authorization": "admin"})).json()["data"]
    told = [{name: each[name] for name in ("role", "why", "key", "seam")} for each in whole["attempts"]]
    assert told == [
        {"role": "first", "why": None, "key": None, "seam": None},
        {"role": "continuation", "why": "`mock/echo` died", "key": "2 of 3", "seam": 1200},
    ]
    assert whole["experiment"] == {"name": "trial", "arm": "qwen", "unit": "user", "forced": True, "shadow_of": None}
    assert whole["decision"] == {"why": "the first", "generation": "g7"}
    assert whole["shadows"] == [SHADOW]
    # a shadow is nobody's call: only an admin may look at it
    assert "shadows" not in own
    assert all("shadows" not in each and "feedback" not in each for each in listed)
    words = "\n".join(_receipt(whole))
    for said in (
        "trial=qwen, by user, forced",
        "continuation: `mock/echo` died, after 1,200 characters",
        "2 of 3",
        "g7",
    ):
        assert said in words


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "value"),
    [("true", True), ("0", 0), ("-1.5", -1.5), ("NaN", "NaN"), ("up", "up"), ("-Infinity", "-Infinity")],
)
def test_the_command_says_numbers_and_truths_as_such(monkeypatch: pytest.MonkeyPatch, word: str, value: object) -> None:
    asked: list[Any] = []

    class Client:
        def __init__(self, url: str, key: str | None) -> None:
            pass

        def call(self, method: str, path: str, body: Any) -> Any:
            asked.append((method, path, body))
            return {**body, "created": False, "replaced": True}

    monkeypatch.setattr("router.commands.gateway.Client", Client)
    answer = CliRunner().invoke(feedback_command, [IN_TRIAL, "stars", word, "--comment", "so"])
    assert answer.exit_code == 0, answer.output
    body = {"request_id": IN_TRIAL, "metric": "stars", "value": value, "comment": "so"}
    assert asked == [("POST", "/v1/feedback", body)]
    assert "kept in place of the last" in answer.stdout
