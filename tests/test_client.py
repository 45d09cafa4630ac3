"""The command line's client: any JSON request, and every way it can go wrong in words."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from router.cli import main
from router.client import Client, GatewayError


@contextmanager
def answering(status: int, body: bytes, of: list[str | None] | None = None) -> Iterator[tuple[str, list[Any]]]:
    """A server that gives every request this answer; its URL, and what it was asked. `of`: gets the conversations."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            sent = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked.append((self.command, self.path, self.headers.get("authorization"), sent))
            if of is not None:
                of.append(self.headers.get("x-deltaway-conversation"))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    for method in ("GET", "POST", "PUT", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.answer)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("status", [200, 201])
def test_a_request_sends_and_gives_json(method: str, status: int) -> None:
    with answering(status, b'{"a": [1]}') as (url, asked):
        assert Client(url, "dw-1").call(method, "/admin/keys?limit=2", {"name": "ü"}) == {"a": [1]}
    ((sent_method, path, key, body),) = asked
    assert (sent_method, path, key, json.loads(body)) == (method, "/admin/keys?limit=2", "Bearer dw-1", {"name": "ü"})


def test_no_body_is_none() -> None:
    with answering(204, b"") as (url, asked):
        assert Client(url, None).call("DELETE", "/admin/keys/dw-1") is None
    assert asked == [("DELETE", "/admin/keys/dw-1", None, b"")]


def test_text_is_given_as_it_is() -> None:
    with answering(200, "a,ü\r\n".encode()) as (url, _):
        assert Client(url, None).text("/v1/usage?format=csv") == "a,ü\r\n"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, b'{"error": {"message": "it takes an admin key"}}', r"it takes an admin key \(HTTP 403\)"),
        (401, b'{"error": {"message": "no key."}}', "DELTAWAY_API_KEY"),
        (502, b"<html>bad gateway</html>", "bad gateway"),
        (302, b"", "HTTP 302"),
        (400, b'{"error": {"message": 7}}', "7"),
        (200, b"<html>", "does not speak as a gateway does"),
        (200, b"\xff\xfe", "does not speak as a gateway does"),
    ],
)
def test_what_goes_wrong_is_told_in_words(status: int, body: bytes, words: str) -> None:
    with answering(status, body) as (url, _), pytest.raises(GatewayError, match=words):
        Client(url, None).call("GET", "/v1/requests")


def test_no_gateway_is_told_with_how_to_start_one() -> None:
    with pytest.raises(GatewayError, match="deltaway serve"):
        Client("http://127.0.0.1:9", None).call("GET", "/v1/usage")


ANSWER = b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\ndata: [DONE]\n\n'


def test_chat_names_the_conversation_that_it_goes_on_with() -> None:
    conversations: list[str | None] = []
    with answering(200, ANSWER, conversations) as (url, _):
        client = Client(url, None)
        said = [{"role": "user", "content": "hello"}]
        assert list(client.chat("chat", said, "conv_1")) == [("text", "hi")]
        assert list(client.chat("chat", said)) == [("text", "hi")]
    assert conversations == ["conv_1", None]


def test_the_command_goes_on_with_a_conversation_and_sends_what_is_new() -> None:
    conversations: list[str | None] = []
    with answering(200, ANSWER, conversations) as (url, asked):
        ran = CliRunner().invoke(main, ["chat", "--url", url, "-c", "conv_1", "hello"])
    assert (ran.exit_code, ran.stdout) == (0, "hi\n")
    assert conversations == ["conv_1"]
    assert json.loads(asked[0][3])["messages"] == [{"role": "user", "content": "hello"}]


def test_the_command_makes_a_conversation_and_prints_its_id_apart_from_the_answer() -> None:
    # the one answer of this server is a conversation, and no answer to a chat
    with answering(200, b'{"id": "conv_2"}') as (url, asked):
        ran = CliRunner().invoke(main, ["chat", "--url", url, "-c", "new", "hello"])
    assert [(method, path) for method, path, *_ in asked] == [
        ("POST", "/v1/conversations"),
        ("POST", "/v1/chat/completions"),
    ]
    assert "conversation conv_2" in ran.stderr
    assert "conv_2" not in ran.stdout


@pytest.mark.parametrize("identity", ["", "resp_1", "conv_", "conv_1/../x", "conv_1\r\nx: y"])
def test_the_command_refuses_what_is_no_conversations_id(identity: str) -> None:
    with answering(200, ANSWER) as (url, asked):
        ran = CliRunner().invoke(main, ["chat", "--url", url, "-c", identity, "hello"])
    assert ran.exit_code == 2
    assert "conv_…" in ran.output
    assert asked == []
