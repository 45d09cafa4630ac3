"""A small client of a running gateway, for the command line: standard library only, no async."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from router.sse import SseParser

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class GatewayError(Exception):
    """The gateway cannot be reached or refused; the message says what to do."""


class Client:
    """Talks to the gateway at `url` with `key`, if it wants one."""

    def __init__(self, url: str, key: str | None) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
            if parts.scheme not in ("http", "https") or not self._host:
                raise ValueError
        except ValueError:
            message = f"`{url}` is not the address of a gateway: write it like http://127.0.0.1:8080"
            raise GatewayError(message) from None
        self._url = url
        self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        # the address that other clients are given ends in /v1
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._key = key

    def models(self) -> list[dict[str, Any]]:
        with self._understood():
            response = self._request("GET", "/v1/models", None)
            models: list[dict[str, Any]] = json.loads(response.read())["data"]
            return models

    def chat(
        self, model: str, messages: list[dict[str, str]], conversation: str | None = None
    ) -> Iterator[tuple[str, str]]:
        """The answer as it comes: pairs of `reasoning`, `text` or `note`, and the words. `conversation`: the id of the
        kept one that it goes on with."""
        body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        said = {} if conversation is None else {"x-deltaway-conversation": conversation}
        with self._understood(), self._request("POST", "/v1/chat/completions", body, said) as response:
            parser, done = SseParser(salvage=True), False
            while not done and (data := response.read1(65536)):
                for frame in parser.feed(data):
                    if frame.data == b"[DONE]":
                        done = True
                        break
                    yield from _pieces(json.loads(frame.data))
            if not done:
                raise GatewayError("the answer was cut: the stream ended before its end")

    def call(self, method: str, path: str, body: Any | None = None) -> Any:
        """One request that sends and answers JSON; `path` begins with a slash. None: the answer has no body."""
        with self._understood():
            content = self._content(method, path, body)
            return json.loads(content) if content else None

    def text(self, path: str) -> str:
        """What a GET answers, as it is: CSV, for one."""
        with self._understood():
            return self._content("GET", path, None).decode("utf-8")

    def _content(self, method: str, path: str, body: Any | None) -> bytes:
        with self._request(method, path, body) as response:
            return response.read()

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """What breaks while an answer is read becomes words."""
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            raise GatewayError(f"the connection to {self._url} broke in the middle of the answer ({error})") from None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise GatewayError(f"what answers at {self._url} does not speak as a gateway does ({error})") from None

    def _request(
        self, method: str, path: str, body: Any | None, said: Mapping[str, str] = _NOTHING
    ) -> http.client.HTTPResponse:
        """`said`: headers of this request alone."""
        connection = self._connection(self._host, self._port, timeout=600)
        # one request a connection: nothing is left open
        headers = {"content-type": "application/json", "connection": "close", **said}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        try:
            connection.request(method, self._path + path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise GatewayError(
                f"no gateway answers at {self._url} ({error}); start one with `deltaway serve`"
            ) from None
        if not 200 <= response.status < 300:
            raise GatewayError(_refusal(response.status, response.read()))
        return response


def _pieces(chunk: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "error" in chunk:
        raise GatewayError(str(chunk["error"].get("message", chunk["error"])))
    for choice in chunk.get("choices", ()):
        delta = choice["delta"]
        if delta.get("reasoning_content"):
            yield "reasoning", delta["reasoning_content"]
        if delta.get("content"):
            yield "text", delta["content"]
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            if function.get("name"):
                yield "note", f"\n[calls {function['name']}] "
            if function.get("arguments"):
                yield "note", function["arguments"]
    usage = chunk.get("usage")
    if usage:
        yield "note", f"\n[{usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out]"


def _refusal(status: int, body: bytes) -> str:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode("utf-8", "replace")[:300]
    hint = " Give a key with --key, DELTAWAY_API_KEY or DELTAWAY_ADMIN_KEY." if status == 401 else ""
    return f"{message} (HTTP {status}).{hint}" if not message.endswith(".") else f"{message} (HTTP {status}){hint}"
