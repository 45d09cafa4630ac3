"""The command as a person uses it: in a process of its own, over real sockets."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from router.server import command

COMMAND = [sys.executable, "-m", "router"]
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "PYTHONDONTWRITEBYTECODE")
}


def deltaway(*words: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words],
        cwd=cwd,
        env={**ENVIRONMENT, **more},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


class Server:
    def __init__(self, process: "subprocess.Popen[str]", url: str, greeting: str) -> None:
        self.process = process
        self.url = url
        self.greeting = greeting

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    @contextmanager
    def chat(self, model: str) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        body = {
            "model": model,
            "stream": True,
            "max_tokens": 4,
            "messages": [{"role": "user", "content": "one two three"}],
        }
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            yield connection.getresponse()
        finally:
            connection.close()

    def answer(self, model: str) -> bytes:
        with self.chat(model) as response:
            return response.read()


@contextmanager
def serving(cwd: Path, *words: str, **more: str) -> Iterator[Server]:
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", *words],
        cwd=cwd,
        env={**ENVIRONMENT, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        greeting = ""
        while "deltaway chat" not in greeting:
            line = process.stdout.readline()
            assert line, f"the server ended: {greeting}"
            greeting += line
        found = re.search(r"http://[\d.]+:\d+", greeting)
        assert found is not None
        server = Server(process, found[0], greeting)
        for _ in range(200):
            try:
                if server.get("/health/live")[0] == 200:
                    break
            except OSError:
                time.sleep(0.05)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_serve_without_any_file_or_key_answers_with_mock_and_says_what_to_try(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert "curl -N" in server.greeting
        body = server.answer("mock/echo")
        assert b'"content":" three"' in body
        assert body.endswith(b"data: [DONE]\n\n")
        assert server.get("/health/ready")[0] == 200
        assert json.loads(server.get("/v1/models")[1])["data"][0]["id"] == "mock/echo"
        schema = json.loads(server.get("/schema/openapi.json")[1])
        assert {"/v1/chat/completions", "/v1/models", "/health/ready"} <= set(schema["paths"])


def test_two_workers_share_the_socket(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as server:
        for _ in range(10):
            assert server.answer("mock/echo").endswith(b"data: [DONE]\n\n")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(20)


def test_chat_and_models_talk_to_the_server(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        answer = deltaway("chat", "--url", server.url, "-m", "mock/echo", "hello", "there", cwd=tmp_path)
        assert answer.stdout == "hello there\n"
        assert answer.returncode == 0
        wrong = deltaway("chat", "--url", server.url, "-m", "mock/ehco", "hello", cwd=tmp_path)
        assert wrong.returncode == 1
        assert "ehco" in wrong.stderr
        cut = deltaway("chat", "--url", server.url, "-m", "mock/cut-2", "hello", cwd=tmp_path)
        assert cut.returncode == 1
        # what came stands in a line of its own, before the error
        assert cut.stdout == "lorem ipsum\n"
        listed = deltaway("models", "--url", server.url, cwd=tmp_path, COLUMNS="120")
        assert "mock/echo" in listed.stdout


def test_chat_reads_standard_input(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        asked = subprocess.run(
            [*COMMAND, "chat", "--url", server.url], input="piped in", capture_output=True, text=True, timeout=30,
            env=ENVIRONMENT, check=False,
        )  # fmt: skip
        assert asked.stdout == "piped in\n"


def test_chat_without_a_server_says_how_to_start_one(tmp_path: Path) -> None:
    answer = deltaway("chat", "--url", "http://127.0.0.1:9", "hello", cwd=tmp_path)
    assert answer.returncode == 1
    assert "deltaway serve" in answer.stderr


def test_a_taken_port_is_told_in_one_line(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        second = deltaway("serve", "--port", str(server.port), cwd=tmp_path)
        assert second.returncode == 1
        assert "--port" in second.stderr
        assert "Traceback" not in second.stderr


def test_check_prints_what_a_configuration_amounts_to(tmp_path: Path) -> None:
    (tmp_path / "providers.yaml").write_text(
        "providers:\n  openai: {protocol: openai, api_key: '${OPENAI_API_KEY}'}\n  mock: {protocol: mock}\n"
        "models:\n  chat: {targets: [openai/gpt-5-mini]}\n"
    )
    good = deltaway("check", cwd=tmp_path)
    assert good.returncode == 0
    assert "set OPENAI_API_KEY" in good.stdout
    assert "chat" in good.stdout


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("providers:\n  x: {protocol: opnai}\n", "2:17", "openai"),
        ("providers:\n  x: {protocol: openai, options: {max_tokens_feild: auto}}\n", "2:", "max_tokens_field"),
        ("providers: {mock: {protocol: mock}}\nplugins: [usage, logging]\n", "2:", "before"),
        ("plugins: [{limits: {tokeniser: true}}]\n", "1:", "tokenizer"),
        ("plugins: [nosuch.module:Thing]\n", "1:", "nosuch.module"),
        ("plugins: [budget]\nledger: {enabled: false}\n", "1:", "needs the ledger"),
    ],
    ids=["protocol", "option", "order", "setting", "module", "ledger"],
)
@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_mistake_is_told_with_file_line_and_column(
    tmp_path: Path, command: str, text: str, place: str, words: str
) -> None:
    (tmp_path / "providers.yaml").write_text(text)
    told = deltaway(command, cwd=tmp_path)
    assert told.returncode == 1
    assert f"providers.yaml:{place}" in told.stderr
    assert words in told.stderr
    assert "Traceback" not in told.stderr


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    told = deltaway("serve", "--config", "nowhere.yaml", cwd=tmp_path)
    assert told.returncode == 1
    assert "nowhere.yaml" in told.stderr


def test_without_keys_only_loopback_is_served(tmp_path: Path) -> None:
    told = deltaway("serve", "--host", "0.0.0.0", "--port", "0", cwd=tmp_path)
    assert told.returncode == 1
    assert "--insecure" in told.stderr


def test_sigterm_turns_readiness_off_at_once_and_lets_open_streams_finish(tmp_path: Path) -> None:
    (tmp_path / "providers.yaml").write_text("server: {shutdown: {delay: 500ms, grace: 10s}}\n")
    with serving(tmp_path) as server:
        # four words and 300 ms between them
        with server.chat("mock/slow-300") as stream:
            assert stream.status == 200
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            assert server.get("/health/ready")[0] == 503
            assert server.get("/health/live")[0] == 200
            assert stream.read().endswith(b"data: [DONE]\n\n")
        assert server.process.wait(10) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)


def test_a_stream_that_outlives_the_grace_ends_with_an_error_event(tmp_path: Path) -> None:
    (tmp_path / "providers.yaml").write_text("server: {shutdown: {delay: 0s, grace: 500ms}}\n")
    with serving(tmp_path) as server:
        with server.chat("mock/stall-2") as stream:
            server.process.send_signal(signal.SIGTERM)
            body = stream.read()
        assert b'"shutting_down"' in body
        assert b"[DONE]" not in body
        server.process.wait(10)


def test_help_is_there_for_every_command(tmp_path: Path) -> None:
    for words in ((), ("serve",), ("check",), ("chat",), ("models",)):
        helped = deltaway(*words, "--help", cwd=tmp_path)
        assert helped.returncode == 0
        assert "Usage" in helped.stdout


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """A server that is no gateway: gives each connection the next of these answers, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for answer in answers:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.join(10)


PAGE = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 13\r\n\r\n<html></html>"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "half"}}]}\n\n'


@pytest.mark.parametrize("url", ["localhost:8080", "127.0.0.1", "http://", "http://[", "http://x:port", "ftp://x"])
def test_an_address_that_is_none_is_told(tmp_path: Path, url: str) -> None:
    told = deltaway("models", "--url", url, cwd=tmp_path)
    assert told.returncode == 1
    assert "http://127.0.0.1:8080" in told.stderr
    assert "Traceback" not in told.stderr


def test_the_address_that_other_clients_are_given_will_do(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        answer = deltaway("chat", "hello", cwd=tmp_path, DELTAWAY_URL=f"{server.url}/v1/")
        assert answer.stdout == "hello\n"


def test_a_server_that_is_no_gateway_is_told(tmp_path: Path) -> None:
    with answering(PAGE, PAGE, STREAM + b"%x\r\n%s\r\n0\r\n\r\n" % (9, b"data: 1\n\n")) as url:
        for words in (("models",), ("chat", "hello"), ("chat", "hello")):
            told = deltaway(*words, "--url", url, cwd=tmp_path)
            assert told.returncode == 1
            assert "Traceback" not in told.stderr
            assert "Error" in told.stderr


def test_a_gateway_that_dies_in_the_middle_of_an_answer_is_told(tmp_path: Path) -> None:
    with answering(STREAM + b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK)) as url:
        told = deltaway("chat", "--url", url, "hello", cwd=tmp_path)
    assert told.returncode == 1
    assert told.stdout == "half\n"
    assert "in the middle" in " ".join(told.stderr.split())
    assert "Traceback" not in told.stderr


def test_ctrl_c_ends_the_server_in_good_order(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.process.send_signal(signal.SIGINT)
        said = server.process.communicate(timeout=10)[0]
        assert server.process.returncode == 0
        assert "Aborted" not in said
        assert "Traceback" not in said


def test_the_greeting_names_a_command_that_the_shell_finds(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    found = tmp_path / "bin" / "deltaway"
    found.touch(0o755)
    here, elsewhere = str(found.parent), str(tmp_path)
    assert command(".venv/bin/deltaway", elsewhere) == ".venv/bin/deltaway"
    assert command("/a b/deltaway", elsewhere) == "'/a b/deltaway'"
    assert command(str(found), here) == "deltaway"
    # started as a module: there is no better name
    assert command("router/__main__.py", elsewhere) == "deltaway"


@pytest.mark.parametrize("variable", ["DELTAWAY_ADMIN_KEY", "DELTAWAY_API_KEY"])
def test_with_auth_the_greeting_shows_where_the_key_goes(tmp_path: Path, variable: str) -> None:
    key = "a-key-of-this-test-0123456789"
    (tmp_path / "providers.yaml").write_text(f"plugins: [{{auth: {{keys: [{{key: {key}, name: me}}]}}}}]\n")
    with serving(tmp_path, **{variable: f"{key}-of-the-environment"}) as server:
        assert f'-H "Authorization: Bearer ${variable}"' in server.greeting
        assert f'--key "${variable}"' in server.greeting
        assert key not in server.greeting
        assert deltaway("chat", "--url", server.url, "hi", cwd=tmp_path).returncode == 1
        assert deltaway("chat", "--url", server.url, "--key", key, "hi", cwd=tmp_path).stdout == "hi\n"


def test_ctrl_c_lets_open_streams_end_in_words_too(tmp_path: Path) -> None:
    (tmp_path / "providers.yaml").write_text("server: {shutdown: {delay: 10s, grace: 500ms}}\n")
    with serving(tmp_path) as server:
        with server.chat("mock/stall-2") as stream:
            server.process.send_signal(signal.SIGINT)
            assert b'"shutting_down"' in stream.read()
        assert server.process.wait(10) in (0, -signal.SIGINT, 128 + signal.SIGINT)


def test_a_request_that_is_still_being_sent_when_the_grace_ends_is_refused_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "providers.yaml").write_text("server: {shutdown: {delay: 0s, grace: 500ms}}\n")
    with serving(tmp_path) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"shutting_down"' in answer
        server.process.wait(10)
        assert server.process.stdout is not None
        told = server.process.stdout.read()
        assert "exception" not in told.lower()
