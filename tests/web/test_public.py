"""The public port over real HTTP: what mail programs, link checkers and attackers get."""

import asyncio
import logging
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime

import aiohttp
import pytest
import pytest_asyncio
from attrs import define, field

from proxy.compose.tokens import MAX_TARGET_OCTETS, TokenKeys
from proxy.listening import BindError
from proxy.web.public import BEACON, MAX_REQUEST_OCTETS, PublicPages

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEYS = TokenKeys(1, {1: b"k" * 32})
TARGET = "https://shop.example/order?id=1#top"
OPEN = "/o/" + KEYS.sign_open("m1", 3)
CLICK = "/c/" + KEYS.sign_click("m1", 3, TARGET)
WAIT_SECONDS = 10.0


@define
class Kept:
    """Hits in memory; with *broken*, a store that is away."""

    hits: list[tuple[object, ...]] = field(factory=list)
    broken: bool = False

    def opened(self, message_id: str, recipient: int, at: datetime) -> None:
        """Keep it."""
        self._keep("opened", message_id, recipient, at)

    def clicked(self, message_id: str, recipient: int, target: str, at: datetime) -> None:
        """Keep it."""
        self._keep("clicked", message_id, recipient, target, at)

    def _keep(self, *hit: object) -> None:
        if self.broken:
            raise OSError("no store")
        self.hits.append(hit)


@pytest.fixture
def kept() -> Kept:
    """Make a place for hits."""
    return Kept()


@pytest_asyncio.fixture
async def pages(kept: Kept) -> AsyncIterator[PublicPages]:
    """Serve the pages on a free port, with short patience."""
    served = PublicPages("127.0.0.1", 0, KEYS, kept, lambda: NOW, idle_seconds=0.5, life_seconds=2.0, connections=20)
    await served.start()
    yield served
    await served.stop()


@pytest_asyncio.fixture
async def client(pages: PublicPages) -> AsyncIterator[aiohttp.ClientSession]:
    """Make a client that follows nothing."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{pages.port}") as session:
        yield session


async def raw(port: int, data: bytes, *, end: bool = False) -> bytes:
    """Send octets, and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(data)
        if end:
            writer.write_eof()
        async with asyncio.timeout(WAIT_SECONDS):
            with suppress(ConnectionError):
                while data := await reader.read(65536):
                    answer += data
    finally:
        writer.close()
    return answer


async def test_open_gets_the_beacon_and_counts(client: aiohttp.ClientSession, kept: Kept) -> None:
    """43 octets of GIF that nobody keeps, and one open in the store."""
    async with client.get(OPEN) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "image/gif"
        assert response.headers["Content-Length"] == "43"
        assert response.headers["Cache-Control"] == "no-store, private"
        assert await response.read() == BEACON
    assert kept.hits == [("opened", "m1", 3, NOW)]


def test_beacon_is_one_transparent_pixel() -> None:
    """The GIF is what GIF89a asks for: 1 x 1, its only pixel of the transparent colour."""
    assert len(BEACON) == 43
    assert BEACON.startswith(b"GIF89a")
    width, height, packed = struct.unpack("<HHB", BEACON[6:11])
    assert (width, height) == (1, 1)
    colours = BEACON[13 : 13 + 3 * 2 ** ((packed & 7) + 1)]
    control = BEACON[13 + len(colours) :][:8]
    assert control[:4] == b"!\xf9\x04\x01"  # the last bit: there is a transparent colour
    assert control[6] == 0
    assert BEACON.endswith(b";")


async def test_click_is_led_to_the_target_and_counts(client: aiohttp.ClientSession, kept: Kept) -> None:
    """302 with the target and nothing else, which nobody keeps, and one click in the store."""
    async with client.get(CLICK, allow_redirects=False) as response:
        assert response.status == 302
        assert response.headers["Location"] == TARGET
        assert response.headers["Cache-Control"] == "no-store, private"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["Server"] == "cmail-proxy"
        assert await response.read() == b""
    assert kept.hits == [("clicked", "m1", 3, TARGET, NOW)]


async def test_head_is_answered_and_does_not_count(client: aiohttp.ClientSession, kept: Kept) -> None:
    """Link checkers see what a reader would, and nobody is said to have read anything."""
    for path, status in ((OPEN, 200), (CLICK, 302), ("/x", 404)):
        async with client.head(path, allow_redirects=False) as response:
            assert response.status == status
            assert response.headers.get("Location") == (TARGET if status == 302 else None)
            assert response.headers.get("Content-Length", "0") == ("43" if status == 200 else "0")
            assert await response.read() == b""
    assert kept.hits == []


@pytest.mark.parametrize(
    ("name", "value"), [("Sec-Purpose", "prefetch;prerender"), ("Purpose", "prefetch"), ("X-Moz", "Prefetch")]
)
async def test_fetching_ahead_does_not_count(client: aiohttp.ClientSession, kept: Kept, name: str, value: str) -> None:
    """A browser that loads a page in case somebody wants it says so."""
    async with client.get(CLICK, headers={name: value}, allow_redirects=False) as response:
        assert response.status == 302
    assert kept.hits == []


async def test_every_get_counts(client: aiohttp.ClientSession, kept: Kept) -> None:
    """What is unique is for the report to say."""
    for _ in range(3):
        async with client.get(OPEN) as response:
            assert response.status == 200
    assert len(kept.hits) == 3


async def test_parameters_that_others_add_do_no_harm(client: aiohttp.ClientSession, kept: Kept) -> None:
    """Web mail and virus filters hang things onto links; the target stays as it was signed."""
    async with client.get(f"{CLICK}?fbclid=x&next=https://evil.example/", allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (302, TARGET)
    assert len(kept.hits) == 1


async def test_target_that_is_not_ascii_is_encoded(client: aiohttp.ClientSession) -> None:
    """The field holds ASCII only, and the longest target there may be fits."""
    for target, location in (
        ("https://shop.example/gr\u00f6\u00dfe a", "https://shop.example/gr%C3%B6%C3%9Fe%20a"),
        (
            "https://a/" + "\u00e9" * (MAX_TARGET_OCTETS // 2 - 5),
            "https://a/" + "%C3%A9" * (MAX_TARGET_OCTETS // 2 - 5),
        ),
        ("https://a/" + "x" * (MAX_TARGET_OCTETS - 10), "https://a/" + "x" * (MAX_TARGET_OCTETS - 10)),
    ):
        async with client.get("/c/" + KEYS.sign_click("m" * 64, 2**32 - 1, target), allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (302, location)


NOTHING = [
    "/",
    "/o/",
    "/c/",
    "/o",
    "/favicon.ico",
    "/robots.txt",
    "/metrics",
    "/o/x",
    "/c/https://evil.example/",
    "/c/?next=https://evil.example/",
    "/c/" + OPEN[3:],
    "/o/" + CLICK[3:],
    OPEN + "A",
    OPEN[:-1],
    OPEN + "/",
    OPEN + ".gif",
    OPEN + "%00",
    OPEN.replace("/o/", "//o/"),
    OPEN.replace("/o/", "/O/"),
    "/../.." + OPEN,
    "/x/.." + OPEN,
    CLICK + "%0d%0aSet-Cookie:%20a=b",
    CLICK.replace("/c/", "/%63/"),
    "/c/" + TokenKeys(1, {1: b"s" * 32}).sign_click("m1", 3, "https://evil.example/"),
    "/<script>alert(1)</script>",
]


@pytest.mark.parametrize("path", NOTHING, ids=range(len(NOTHING)))
async def test_anything_else_is_not_found(pages: PublicPages, kept: Kept, path: str) -> None:
    """404, no body, no word of what was asked for, and nothing counted."""
    answer = await raw(pages.port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert body == b""
    assert b"evil" not in answer
    assert b"script" not in answer
    assert kept.hits == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND"])
async def test_other_methods_are_not_found(client: aiohttp.ClientSession, kept: Kept, method: str) -> None:
    """There are no other methods; a body is not read."""
    for path in (OPEN, CLICK):
        async with client.request(method, path, data=b"x" * 1000, allow_redirects=False) as response:
            assert (response.status, await response.read()) == (404, b"")
            assert "Location" not in response.headers
    assert kept.hits == []


async def test_store_that_fails_costs_no_answer(
    client: aiohttp.ClientSession, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    """Links lead on while nothing can be recorded; the log says so once, and again only after it worked between."""
    for broken in (True, True, False, True):
        kept.broken = broken
        async with client.get(CLICK, allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (302, TARGET)
        async with client.get(OPEN) as response:
            assert (response.status, await response.read()) == (200, BEACON)
    assert len(kept.hits) == 2
    assert [record.message for record in caplog.records] == [
        "opens and clicks cannot be recorded; their links still work"
    ] * 2
    assert "no store" in caplog.text
    assert OPEN[3:] not in caplog.text
    assert "127.0.0.1" not in caplog.text


async def test_failure_of_our_own_tells_nothing(
    client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even then there is no body, and no address in the log."""

    def fail(*_: object) -> None:
        raise RuntimeError("a slip")

    monkeypatch.setattr(TokenKeys, "read", fail)
    async with client.get(OPEN) as response:
        assert (response.status, await response.read()) == (500, b"")
    assert "a slip" in caplog.text
    assert "127.0.0.1" not in caplog.text


HOSTILE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
    b"EHLO mail.example.com\r\n\r\n",
    b"GET /<script>alert(1)</script> HTTP/9.9\r\n\r\n",
    b"<script>alert(1)</script>\r\n\r\n",
    b"GET " + b"/o/" + b"A" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-<script>: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"script" * 3000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: script\r\n" * 200 + b"\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: script\0\r\n\r\n",
    b"\r\n\r\n\r\n\0\0\0\r\n\r\n",
]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
async def test_what_is_no_request_gets_nothing_back(
    pages: PublicPages, kept: Kept, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    """Broken and oversized requests end the connection, without body, echo or a line in the log."""
    caplog.set_level(logging.DEBUG)
    answer = await raw(pages.port, data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert not answer or head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ", b"HTTP/1.0 400 "))
    assert body == b""
    assert b"script" not in answer
    assert kept.hits == []
    assert not [record for record in caplog.records if record.name.startswith(("proxy", "aiohttp"))]


async def test_response_cannot_be_split(pages: PublicPages) -> None:
    """No line end of a request or a target comes back as one."""
    for path in (CLICK + "?a\rSet-Cookie: x=y", CLICK + "?a\nSet-Cookie: x=y", CLICK + "?a%0d%0aSet-Cookie:x"):
        answer = await raw(pages.port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert b"Set-Cookie" not in answer


async def test_several_requests_share_a_connection(pages: PublicPages, kept: Kept) -> None:
    """A reverse proxy in front of us keeps its connection, and may send ahead."""
    one = f"GET {OPEN} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    answer = await raw(pages.port, one * 4 + one.replace(b"Host: x", b"Host: x\r\nConnection: close"))
    assert answer.count(b"HTTP/1.1 200 OK") == 5
    assert answer.count(BEACON) == 5
    assert len(kept.hits) == 5


@pytest.mark.parametrize(
    "data",
    [b"", b"GET", f"GET {OPEN} HTTP/1.1\r\nHost: x".encode(), f"GET {OPEN} HTTP/1.1\r\nHost: x\r\n\r\nGET /".encode()],
)
async def test_unfinished_request_ends_the_connection(kept: Kept, data: bytes) -> None:
    """A client that sends nothing, or half a request, is left after the idle time, however long connections live."""
    served = PublicPages("127.0.0.1", 0, KEYS, kept, lambda: NOW, idle_seconds=0.5, life_seconds=3600.0)
    await served.start()
    try:
        await raw(served.port, data)  # which waits for the end of the connection, and fails without
    finally:
        await served.stop()


async def test_trickle_ends_the_connection(pages: PublicPages) -> None:
    """An octet now and then does not hold a connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", pages.port)
    ended = False
    try:
        for octet in b"GET /o/" + b"A" * 400:
            writer.write(bytes([octet]))
            await writer.drain()
            await asyncio.sleep(0.05)
            if ended := reader.at_eof():
                break
    except ConnectionError:
        ended = True
    assert ended
    writer.close()


async def test_endless_body_ends_the_connection(pages: PublicPages) -> None:
    """Nobody can send us more than a request may have."""
    reader, writer = await asyncio.open_connection("127.0.0.1", pages.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
    sent = 0
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(WAIT_SECONDS):
            while sent < 100_000_000:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536
    assert sent < 50_000_000  # what buffers of the system take
    with suppress(ConnectionError):
        assert b"404" in (await reader.read() or b"404")
    writer.close()


async def test_endless_header_section_ends_the_connection(pages: PublicPages) -> None:
    """Short fields without end are cut off, too."""
    answer = await raw(pages.port, b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * (MAX_REQUEST_OCTETS // 5 + 1))
    assert b"200" not in answer


@pytest.mark.parametrize("octets", [MAX_REQUEST_OCTETS, 10**12])
async def test_client_that_reads_no_answers_is_left(
    pages: PublicPages, monkeypatch: pytest.MonkeyPatch, octets: int
) -> None:
    """Requests without end whose answers nobody reads hold neither memory nor a connection: by size, else by time."""
    monkeypatch.setattr("proxy.web.public.MAX_REQUEST_OCTETS", octets)
    receiver = socket.socket()
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    receiver.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(receiver, ("127.0.0.1", pages.port))
    one = f"GET {OPEN} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    try:
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(WAIT_SECONDS):
                for _ in range(100_000):
                    await loop.sock_sendall(receiver, one * 200)  # less than one request may have
                    await asyncio.sleep(0.01)
    finally:
        receiver.close()


async def test_old_connection_is_ended_with_an_answer(pages: PublicPages) -> None:
    """From half of its life on, an answer says that it is the last, so that no request is lost."""
    reader, writer = await asyncio.open_connection("127.0.0.1", pages.port)
    one = f"GET {OPEN} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    heads: list[bytes] = []
    async with asyncio.timeout(WAIT_SECONDS):
        while not heads or b"Connection: close" not in heads[-1]:
            writer.write(one)
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            await reader.readexactly(len(BEACON))
            await asyncio.sleep(0.1)
        assert await reader.read() == b""
    assert len(heads) > 5
    writer.close()


async def test_connections_are_limited(pages: PublicPages) -> None:
    """Above the limit a connection ends at once; when others are gone, there is room again."""
    held = [await asyncio.open_connection("127.0.0.1", pages.port) for _ in range(20)]
    request = f"GET {OPEN} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    assert await raw(pages.port, request) == b""
    for _, writer in held:
        writer.close()
    for _ in range(50):
        if b"200 OK" in await raw(pages.port, request):
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("no room again")


async def test_old_http_is_answered(pages: PublicPages) -> None:
    """HTTP/1.0 without a host, as simple health checks of balancers speak it."""
    answer = await raw(pages.port, f"GET {OPEN} HTTP/1.0\r\n\r\n".encode())
    assert re.match(rb"HTTP/1\.[01] 200 OK\r\n", answer)
    assert answer.endswith(BEACON)


async def test_port_in_use_is_told(pages: PublicPages, kept: Kept) -> None:
    """Starting fails with words for the operator; stopping what never started does nothing."""
    other = PublicPages("127.0.0.1", pages.port, KEYS, kept, lambda: NOW)
    with pytest.raises(BindError, match="address already in use"):
        await other.start()
    await other.stop()


async def test_after_stop_nobody_is_served(kept: Kept) -> None:
    """The port is free again."""
    pages = PublicPages("127.0.0.1", 0, KEYS, kept, lambda: NOW)
    await pages.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", pages.port)
    await pages.stop()
    async with asyncio.timeout(WAIT_SECONDS):
        assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", pages.port)
