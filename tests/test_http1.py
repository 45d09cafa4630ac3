"""Our HTTP/1.1 towards the vendors, held to RFC 9110 and 9112 where servers differ, fail and misbehave."""

import asyncio
import datetime
import gzip
import ipaddress
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from router.http1 import HIGH_WATER, CannotConnect, ConnectTimeout, Http1, NotHttp, StaleConnection, parse_origin
from router.provider import HttpRequest
from router.route import Timeouts

LIMITS = Timeouts(connect=2)
HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;ext=1\r\nlo\r\n0\r\ntrailer: x\r\n\r\n"

Answers = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One accepted connection; `asked` waits for the next request and gives its head."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def asked(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        await self.reader.readexactly(length)
        return head

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


class Listening:
    def __init__(self) -> None:
        self.url = ""
        self.accepted = 0
        self.heads: list[bytes] = []


@asynccontextmanager
async def server(answers: Answers, context: ssl.SSLContext | None = None) -> AsyncIterator[Listening]:
    listening, running = Listening(), set[asyncio.Task[None]]()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        listening.accepted += 1
        try:
            await answers(Peer(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, TimeoutError):
            pass
        finally:
            writer.close()

    opened = await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=context)
    scheme = "http" if context is None else "https"
    listening.url = f"{scheme}://127.0.0.1:{opened.sockets[0].getsockname()[1]}/v1/chat?x=1"
    try:
        yield listening
    finally:
        opened.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@pytest.fixture
async def http() -> AsyncIterator[Http1]:
    carrier = Http1(ssl.create_default_context())
    yield carrier
    await carrier.aclose()
    await asyncio.sleep(0.01)


def posting(url: str, body: bytes = b"{}", **headers: str) -> HttpRequest:
    return HttpRequest(url, {"content-type": "application/json", **headers}, body, streamed=True)


async def fetched(http: Http1, url: str) -> tuple[int, bytes]:
    response = await http.send(posting(url), LIMITS)
    try:
        body = b""
        while data := await response.read():
            body += data
        return response.head.status, body
    finally:
        await response.aclose()


def always(answer: bytes) -> Answers:
    async def answers(peer: Peer) -> None:
        while True:
            await peer.asked()
            await peer.say(answer)

    return answers


@pytest.mark.parametrize("answer", [HELLO, CHUNKED], ids=["by length", "in chunks"])
async def test_a_connection_carries_one_exchange_after_the_other(http: Http1, answer: bytes) -> None:
    async with server(always(answer)) as listening:
        for _ in range(3):
            assert await fetched(http, listening.url) == (200, b"hello")
        assert listening.accepted == 1


async def test_the_request_says_host_length_and_that_no_compression_is_wanted(http: Http1) -> None:
    heads: list[bytes] = []

    async def answers(peer: Peer) -> None:
        heads.append(await peer.asked())
        await peer.say(HELLO)

    async with server(answers) as listening:
        response = await http.send(posting(listening.url, b'{"a": 1}', authorization="Bearer k"), LIMITS)
        await response.aclose()
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == "POST /v1/chat?x=1 HTTP/1.1"
    authority = listening.url.split("/")[2]
    assert {f"host: {authority}", "content-length: 8", "authorization: Bearer k", "accept-encoding: identity"} <= {
        *lines
    }


@pytest.mark.parametrize("answer", [HELLO, CHUNKED], ids=["by length", "in chunks"])
async def test_an_answer_cut_anywhere_on_the_way_is_the_same(http: Http1, answer: bytes) -> None:
    cut = 0

    async def answers(peer: Peer) -> None:
        while True:
            await peer.asked()
            await peer.say(answer[:cut])
            await asyncio.sleep(0.001)
            await peer.say(answer[cut:])

    async with server(answers) as listening:
        for cut in range(len(answer)):  # noqa: B007  # the server reads it
            assert await fetched(http, listening.url) == (200, b"hello")


async def test_interim_responses_are_passed_over(http: Http1) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    async with server(always(interim + HELLO)) as listening:
        response = await http.send(posting(listening.url), LIMITS)
        assert response.head.status == 200
        assert "link" not in response.head.headers
        await response.aclose()


async def test_a_body_without_a_length_ends_with_the_connection(http: Http1) -> None:
    async def answers(peer: Peer) -> None:
        await peer.asked()
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\nhel")
        await asyncio.sleep(0.01)
        await peer.say(b"lo")

    async with server(answers) as listening:
        assert await fetched(http, listening.url) == (200, b"hello")
        assert await fetched(http, listening.url) == (200, b"hello")
        assert listening.accepted == 2


async def test_a_204_has_no_body(http: Http1) -> None:
    async with server(always(b"HTTP/1.1 204 No Content\r\n\r\n")) as listening:
        assert await fetched(http, listening.url) == (204, b"")


@pytest.mark.parametrize(
    "answer",
    [HELLO[:-2], CHUNKED[:-20], b"HTTP/1.1 200 OK\r\ncontent-le", b""],
    ids=["body", "chunks", "head", "nothing"],
)
async def test_an_answer_that_breaks_off_is_a_connection_error(http: Http1, answer: bytes) -> None:
    async def answers(peer: Peer) -> None:
        await peer.asked()
        await peer.say(answer)

    async with server(answers) as listening:
        with pytest.raises(ConnectionError):
            await fetched(http, listening.url)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 300_000,
        b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello",
    ],
    ids=["not http", "two lengths", "bad chunk", "endless header", "brotli", "not gzip"],
)
async def test_what_is_not_http_is_told_so(http: Http1, answer: bytes) -> None:
    async with server(always(answer)) as listening:
        with pytest.raises(NotHttp):
            await fetched(http, listening.url)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
async def test_a_compressed_body_is_unpacked(http: Http1, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(b"hello")
    encoding = b"gzip" if pack is gzip.compress else b"deflate"
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: %b\r\ncontent-length: %d\r\n\r\n" % (encoding, len(packed))
    async with server(always(head + packed)) as listening:
        assert await fetched(http, listening.url) == (200, b"hello")


async def test_a_compressed_body_that_breaks_off_is_not_taken_for_whole(http: Http1) -> None:
    packed = gzip.compress(b"hello" * 100)[:-12]
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed)
    async with server(always(head + packed)) as listening:
        with pytest.raises(NotHttp, match="before its end"):
            await fetched(http, listening.url)


async def test_a_body_that_unpacks_to_too_much_is_refused(http: Http1) -> None:
    packed = gzip.compress(bytes(64 * 1024 * 1024))
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed)
    async with server(always(head + packed)) as listening:
        with pytest.raises(NotHttp, match="unpacks"):
            await fetched(http, listening.url)


async def test_a_connection_that_the_server_wants_closed_is_not_used_again(http: Http1) -> None:
    async with server(always(HELLO.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))) as listening:
        for _ in range(2):
            assert await fetched(http, listening.url) == (200, b"hello")
        assert listening.accepted == 2


async def test_bytes_that_nobody_asked_for_never_become_an_answer(http: Http1) -> None:
    async with server(always(HELLO + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")) as listening:
        for _ in range(2):
            assert await fetched(http, listening.url) == (200, b"hello")
        assert listening.accepted == 2


async def test_a_connection_closed_while_idle_is_replaced_unseen(http: Http1) -> None:
    async def answers(peer: Peer) -> None:
        await peer.asked()
        await peer.say(HELLO)

    async with server(answers) as listening:
        for _ in range(3):
            assert await fetched(http, listening.url) == (200, b"hello")
            await asyncio.sleep(0.02)


async def test_a_used_connection_that_dies_without_a_byte_is_told_apart_and_the_next_request_has_a_new_one(
    http: Http1,
) -> None:
    first = True

    async def answers(peer: Peer) -> None:
        nonlocal first
        await peer.asked()
        await peer.say(HELLO)
        if first:
            first = False
            await peer.asked()
            return
        await peer.asked()
        await peer.say(HELLO)

    async with server(answers) as listening:
        assert await fetched(http, listening.url) == (200, b"hello")
        with pytest.raises(StaleConnection):
            await fetched(http, listening.url)
        assert await fetched(http, listening.url) == (200, b"hello")
        assert listening.accepted == 2


async def test_a_request_on_a_new_connection_is_never_sent_twice(http: Http1) -> None:
    async def answers(peer: Peer) -> None:
        await peer.asked()

    async with server(answers) as listening:
        with pytest.raises(ConnectionError):
            await fetched(http, listening.url)
        assert listening.accepted == 1


async def test_idle_connections_grow_old() -> None:
    http = Http1(ssl.create_default_context(), keepalive=0.02)
    async with server(always(HELLO)) as listening:
        await fetched(http, listening.url)
        await asyncio.sleep(0.05)
        await fetched(http, listening.url)
        assert listening.accepted == 2
        await http.aclose()


async def test_leaving_a_body_unread_ends_the_connection(http: Http1) -> None:
    ended = asyncio.Event()

    async def answers(peer: Peer) -> None:
        await peer.asked()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello")
        assert await peer.reader.read() == b""
        ended.set()

    async with server(answers) as listening:
        response = await http.send(posting(listening.url), LIMITS)
        assert await response.read() == b"hello"
        await response.aclose()
        await response.aclose()
        assert await response.read() == b""
        await asyncio.wait_for(ended.wait(), 2)


async def test_a_reader_that_pauses_makes_the_server_wait(http: Http1) -> None:
    sent = 0

    async def answers(peer: Peer) -> None:
        nonlocal sent
        await peer.asked()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
        for _ in range(1000):
            await peer.say(bytes(100_000))
            sent += 100_000

    async with server(answers) as listening:
        response = await http.send(posting(listening.url), LIMITS)
        await asyncio.sleep(0.3)
        assert sent < HIGH_WATER + 20_000_000
        received = 0
        while data := await response.read():
            received += len(data)
        assert received == 100_000_000
        await response.aclose()


async def test_refused_and_unknown_hosts_cannot_be_connected_to(http: Http1) -> None:
    for url in ("http://127.0.0.1:9/v1", "http://no-such-host.invalid/v1"):
        with pytest.raises(CannotConnect):
            await http.send(posting(url), LIMITS)


async def test_a_connect_that_takes_too_long_times_out(http: Http1, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(*args: object, **kwargs: object) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", slow)
    with pytest.raises(ConnectTimeout, match=r"within 0\.05 s"):
        await http.send(posting("http://127.0.0.1:9/v1"), Timeouts(connect=0.05))


@pytest.mark.parametrize("header", ["a\r\nx: y", "a\nx: y", "a\rb", "a\0"])
async def test_a_header_with_a_line_break_is_never_sent(http: Http1, header: str) -> None:
    async with server(always(HELLO)) as listening:
        with pytest.raises(ValueError, match="line break"):
            await http.send(posting(listening.url, authorization=header), LIMITS)


@pytest.mark.parametrize("url", ["ftp://x/v1", "http:///v1", "http://x/a b", "http://x/ü"])
def test_an_address_that_no_request_can_go_to_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"no request|percent-encoded"):
        parse_origin(url)


def test_addresses_are_read_as_they_are_written() -> None:
    assert parse_origin("https://[::1]/v1").authority == "[::1]"
    assert parse_origin("https://example.com:8443/v1").authority == "example.com:8443"
    assert parse_origin("https://example.com").target == "/"
    assert parse_origin("https://bücher.example/v1").host == "xn--bcher-kva.example"


# -- TLS -------------------------------------------------------------------------------------------------------------


class Certified:
    """A certificate for 127.0.0.1: what the server shows, and who trusts it."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        plain = serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        (folder / "server.pem").write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.server.load_cert_chain(folder / "server.pem")
        self.client = ssl.create_default_context(cafile=str(folder / "server.pem"))


async def test_tls_is_spoken_with_a_server_whose_certificate_is_trusted(tmp_path: Path) -> None:
    certified = Certified(tmp_path)
    http = Http1(certified.client)
    async with server(always(CHUNKED), certified.server) as listening:
        for _ in range(3):
            assert await fetched(http, listening.url) == (200, b"hello")
        assert listening.accepted == 1
        await http.aclose()


async def test_a_large_body_goes_out_and_comes_in_over_tls(tmp_path: Path) -> None:
    certified = Certified(tmp_path)
    http = Http1(certified.client)
    big = bytes(5_000_000)

    async def answers(peer: Peer) -> None:
        await peer.asked()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(big) + big)

    async with server(answers, certified.server) as listening:
        response = await http.send(posting(listening.url, big), LIMITS)
        received = 0
        while data := await response.read():
            received += len(data)
        assert received == len(big)
        await response.aclose()
        await http.aclose()


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path, http: Http1) -> None:
    async with server(always(HELLO), Certified(tmp_path).server) as listening:
        with pytest.raises(CannotConnect, match=r"(?i)certificate"):
            await http.send(posting(listening.url), LIMITS)


# -- what must not be left behind ------------------------------------------------------------------------------------


async def test_an_answer_that_cannot_be_unpacked_leaves_no_connection_open(http: Http1) -> None:
    gone = asyncio.Event()

    async def answers(peer: Peer) -> None:
        await peer.asked()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 9\r\n\r\nx")
        # a reset, or the end
        with suppress(ConnectionError):
            await peer.reader.read()
        gone.set()

    async with server(answers) as listening:
        with pytest.raises(NotHttp, match="br"):
            await http.send(posting(listening.url), LIMITS)
        await asyncio.wait_for(gone.wait(), 2)


async def test_a_used_connection_that_dies_late_may_have_been_billed_and_nothing_is_sent_twice(
    http: Http1, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.http1.RESEND_WITHIN", 0.05)
    asked = 0

    async def answers(peer: Peer) -> None:
        nonlocal asked
        await peer.asked()
        await peer.say(HELLO)
        await peer.asked()
        asked += 1
        await asyncio.sleep(0.1)

    async with server(answers) as listening:
        await fetched(http, listening.url)
        with pytest.raises(ConnectionError):
            await fetched(http, listening.url)
        assert (asked, listening.accepted) == (1, 1)


async def test_a_connection_whose_request_was_answered_before_it_was_read_is_not_used_again(http: Http1) -> None:
    async def answers(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge")
        await asyncio.sleep(3600)

    async with server(answers) as listening:
        for _ in range(2):
            response = await http.send(posting(listening.url, bytes(30_000_000)), LIMITS)
            assert (response.head.status, await response.read()) == (413, b"large")
            await response.aclose()
        assert listening.accepted == 2


@pytest.mark.parametrize(
    "flood",
    [b"0\r\nx-trailer: ", b"0\r\n" + b"x: " + b"y" * 50 + b"\r\n"],
    ids=["one trailer", "many trailers"],
)
async def test_endless_trailers_are_refused(http: Http1, flood: bytes) -> None:
    async def answers(peer: Peer) -> None:
        await peer.asked()
        await peer.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n" + flood)
        while True:
            await peer.say(b"y" * 10_000 if flood.endswith(b" ") else b"x: y\r\n" * 2000)

    async with server(answers) as listening:
        with pytest.raises(NotHttp, match="trailers"):
            await asyncio.wait_for(fetched(http, listening.url), 5)


async def test_what_follows_a_compressed_body_is_not_gathered(http: Http1) -> None:
    packed = gzip.compress(b"hello")
    tail = bytes(5_000_000)
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % (len(packed) + len(tail))
    async with server(always(head + packed + tail)) as listening:
        response = await http.send(posting(listening.url), LIMITS)
        body = b""
        while data := await response.read():
            body += data
        assert body == b"hello"
        assert response._inflate is not None
        assert len(response._inflate.unused_data) < 1_000_000
        await response.aclose()
