"""The message on its way through: memory, back-pressure, and ends that come too early."""

import contextlib
import hashlib
import random
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.relay.site import LOST, NONSENSE, Relay, relay
from tests.smtp_in.dialogue import QUEUED, Client, trusting
from tests.smtp_in.site import MESSAGE
from tests.support.upstream import CLOSE, NOTHING, RESET, Reply, Upstream

MEGABYTE = 1_000_000
HEAD = b"From: App <app@example.com>\r\nSubject: large\r\n\r\n"
LARGE = 48 * MEGABYTE
GIVEN_UP = "552 5.3.4 The message is far too large, closing"


def lines(octets: int) -> bytes:
    """Text of so many octets, in lines that are all different."""
    noise = random.Random(5321).randbytes(octets // 2).hex().encode()  # noqa: S311 - no secret
    return b"\r\n".join(noise[start : start + 76] for start in range(0, octets * 76 // 78, 76)) + b"\r\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A proxy for large messages, before a platform whose kernel buffers little."""
    folder = tmp_path_factory.mktemp("streaming")
    settings = {"relay": {"reply_seconds": 20}, "limits": {"message_octets": 2 * LARGE}}
    with relay(folder, Upstream(receive_buffer=65_536), **settings) as started:
        started.warm_up()
        yield started


class Sender(threading.Thread):
    """Sends octets, and counts what the kernel took."""

    def __init__(self, client: Client, data: bytes) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self._client = client
        self._data = data

    def run(self) -> None:
        view = memoryview(self._data)
        with contextlib.suppress(ConnectionError):
            while self.sent < len(view):
                self.sent += self._client.sock.send(view[self.sent : self.sent + 65_536])

    def wait_until_stuck(self) -> int:
        """Wait until no more goes out, and give how much did."""
        seen = -1
        while seen != self.sent:
            seen = self.sent
            self.join(0.5)
        return seen


def test_large_message_to_a_slow_platform_slows_the_app_and_costs_no_memory(here: Relay) -> None:
    """While the platform reads nothing, the app cannot send on; what is held here does not grow with the message."""
    go_on = threading.Event()

    def hold(_line: str) -> str:
        go_on.wait(30)
        return NOTHING

    here.upstream.script({"after:1000": hold})
    body = lines(LARGE)
    before = here.proxy.resident_octets(peak=True)
    with here.client() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        client.envelope()
        sender = Sender(client, HEAD + body)
        sender.start()
        stuck = sender.wait_until_stuck()
        assert stuck < len(body) * 3 // 4
        go_on.set()
        sender.join(30)
        client.send(b".\r\n")
        assert client.reply() == QUEUED
    assert here.proxy.resident_octets(peak=True) - before < 8 * MEGABYTE
    arrived = here.upstream.taken[0].octets
    assert len(arrived) > len(body)
    assert hashlib.sha256(arrived[-len(body) :]).digest() == hashlib.sha256(body).digest()


def test_large_message_by_tls_costs_no_memory_either(tmp_path: Path) -> None:
    """Back-pressure goes through both TLS connections: the app's, and the one to the platform."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    go_on = threading.Event()

    def hold(_line: str) -> str:
        go_on.wait(30)
        return NOTHING

    listener = {"address": "127.0.0.1", "port": 0, "tls": "implicit", "auth": "none"}
    with relay(
        tmp_path,
        Upstream(context=context, receive_buffer=65_536),
        relay={"tls": "required", "ca_file": str(tmp_path / "ca.pem"), "reply_seconds": 20},
        limits={"message_octets": LARGE},
        listeners=[listener],
        tls={"self_signed": True},
    ) as here:
        here.warm_up()
        here.upstream.script({"after:1000": hold})
        body = lines(LARGE // 2)
        before = here.proxy.resident_octets(peak=True)
        with here.client(context=trusting()) as client:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
            client.envelope()
            sender = Sender(client, HEAD + body)
            sender.start()
            assert sender.wait_until_stuck() < len(body) * 3 // 4
            go_on.set()
            sender.join(30)
            client.send(b".\r\n")
            assert client.reply() == QUEUED
        assert here.proxy.resident_octets(peak=True) - before < 8 * MEGABYTE
        assert here.upstream.dialogues[0].tls
        assert here.upstream.taken[0].octets.endswith(body)


def test_app_that_reads_no_replies_cannot_send_on_and_costs_no_memory(here: Relay) -> None:
    """The other direction: replies that nobody takes hold up the commands, here and at the platform."""
    transaction = b"MAIL FROM:<app@example.com>\r\n" + b"RCPT TO:<ann@example.net>\r\n" * 3000 + b"RSET\r\n"
    commands = transaction * 200
    before = here.proxy.resident_octets(peak=True)
    with here.client() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sender = Sender(client, commands)
        sender.start()
        assert sender.wait_until_stuck() < len(commands) * 3 // 4
        here.proxy.wait_for_metric("cmail_proxy_sessions_open", 1)  # held up, and not sent away
        here.serves()
        client.sock.shutdown(socket.SHUT_RDWR)
        sender.join(20)
    assert here.proxy.resident_octets(peak=True) - before < 8 * MEGABYTE
    here.rest()
    here.serves_again()


def test_large_message_that_is_refused_costs_no_memory(here: Relay) -> None:
    """What is swallowed is not kept."""
    before = here.proxy.resident_octets(peak=True)
    with here.client() as client:
        client.envelope()
        client.send(b"X-MC-Template: welcome\r\n" + HEAD)
        client.send(lines(LARGE // 2) + b".\r\n")
        assert client.reply().startswith("554 5.6.0 No counterpart here for X-MC-Template ")
    assert here.proxy.resident_octets(peak=True) - before < 8 * MEGABYTE
    here.serves_again()


@pytest.mark.parametrize("how", ["close", "reset", "half-close", "quit"])
@pytest.mark.parametrize("sent", [HEAD, HEAD + b"one line\r\n", HEAD + lines(300_000), HEAD + b"line\r\n."])
def test_app_that_breaks_off_in_the_body_sends_nothing(here: Relay, sent: bytes, how: str) -> None:
    """The platform never sees a dot that the app did not send; its connection ends in the middle."""
    (dialogue,) = here.upstream.open
    data = dialogue.count("DATA")
    before = here.logged()
    client = here.client()
    client.envelope()
    client.send(sent + b"and a bit more")
    here.upstream.wait_for(lambda: dialogue.count("DATA") > data)
    if how == "quit":
        client.send(b"\r\nQUIT\r\n")
    if how == "reset":
        client.reset()
    elif how == "half-close":
        client.sock.shutdown(socket.SHUT_WR)
        assert client.closed()
    client.sock.close()
    here.upstream.wait_for(lambda: dialogue.closed)
    assert not dialogue.ended_cleanly
    line = here.last_line(before)
    assert (line["outcome"], line["reply"]) == ("client_gone", None)
    here.rest()
    assert not here.upstream.taken
    here.serves_again()


def test_app_that_breaks_off_in_the_header_section_leaves_the_connection_in_use(here: Relay) -> None:
    """Upstream heard only of the envelope, so RSET is enough."""
    (dialogue,) = here.upstream.open
    with here.client() as client:
        client.envelope()
        client.send(b"Subject: half a head")
    here.upstream.wait_for(lambda: dialogue.commands[-1] == "RSET")
    here.rest()
    here.serves_again()
    assert not dialogue.closed


def test_message_that_grows_too_large_is_refused_and_not_sent(here: Relay) -> None:
    """The limit is held while the message streams: 552 at the dot, and the platform gets no dot."""
    (dialogue,) = here.upstream.open
    body = lines(LARGE) + lines(LARGE + MEGABYTE)
    with here.client() as client:
        client.envelope()
        client.send(HEAD + body + b".\r\n")
        assert client.reply() == f"552 5.3.4 The message is larger than {2 * LARGE} octets"
        here.upstream.wait_for(lambda: dialogue.closed)
        assert not here.upstream.taken
        assert client.data(MESSAGE) == QUEUED


EARLY = [
    pytest.param("552 5.3.4 too large", "552 5.3.4 too large", id="552"),
    pytest.param("452 4.3.1 disk full", "452 4.3.1 disk full", id="452"),
    pytest.param("554-5.6.0 a\n554 5.6.0 b", "554-5.6.0 a\n554 5.6.0 b", id="554-two-lines"),
    pytest.param("554 5.6.0 no\nclose", "554 5.6.0 no", id="554-and-close"),
    pytest.param("421 4.3.2 closing", "451 4.3.2 closing", id="421"),
    pytest.param("250 2.0.0 queued as EARLY", NONSENSE, id="250"),
    pytest.param("250 2.0.0 queued as EARLY\nclose", NONSENSE, id="250-and-close"),
    pytest.param("354 more", NONSENSE, id="354"),
    pytest.param("999 what", LOST, id="nonsense"),
    pytest.param(CLOSE, LOST, id="closed"),
    pytest.param(RESET, LOST, id="reset"),
]


@pytest.mark.parametrize(("reply", "heard"), EARLY)
def test_early_end_while_the_app_sends_is_answered_at_its_dot(here: Relay, reply: Reply, heard: str) -> None:
    """The rest of the app's data is swallowed; then it hears what the platform said, or 451. Never 250."""
    before = len(here.upstream.dialogues)
    here.upstream.script({"after:1000": reply})
    with here.client() as client:
        client.envelope()
        client.send(HEAD + lines(2000))
        assert wait_until_dropped(here)
        client.send(lines(3 * MEGABYTE))
        assert not select.select([client.sock], [], [], 0.05)[0]
        client.send(b".\r\n")
        assert client.reply() == heard
        assert not here.upstream.taken
        here.upstream.script()
        assert client.data(MESSAGE) == QUEUED  # still in step
    assert len(here.upstream.dialogues) == before + 1
    here.serves_again()


@pytest.mark.parametrize(("reply", "heard"), EARLY)
def test_early_end_before_the_last_piece_is_no_success(here: Relay, reply: Reply, heard: str) -> None:
    """The same where all the app has left to send comes in one piece with its dot."""
    here.upstream.script({"after:1000": reply})
    with here.client() as client:
        client.envelope()
        client.send(HEAD + lines(2000))
        assert wait_until_dropped(here)
        client.send(b"the last line\r\n.\r\n")
        assert client.reply() == heard
        assert not here.upstream.taken
        here.upstream.script()
        assert client.data(MESSAGE) == QUEUED
    here.serves_again()


def test_app_that_never_ends_behind_an_early_refusal_is_hung_up_on(tmp_path: Path) -> None:
    """
    What is swallowed is bounded: 64 MiB behind what a message may have, then the connection ends, and is logged.

    The rest is no command, whatever it looks like.
    """
    with relay(tmp_path, limits={"message_octets": MEGABYTE}) as here:
        here.warm_up()
        here.upstream.script({"after:1000": "452 4.3.1 disk full"})
        piece = b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<evil@example.net>\r\n" * 20_000
        sent = 0
        with here.client() as client:
            client.envelope()
            client.send(HEAD + lines(2000))
            assert wait_until_dropped(here)
            with contextlib.suppress(ConnectionError):
                while sent < 128 << 20:
                    client.send(piece)
                    sent += len(piece)
        assert 64 << 20 < sent < 96 << 20
        line = here.last_line(0)
        assert (line["reply"], line["upstream"]) == (GIVEN_UP, "452 4.3.1 disk full")
        assert 64 << 20 < line["octets"] < 67 << 20
        assert not any("evil" in command for command in here.commands())
        here.serves_again()


def wait_until_dropped(here: Relay) -> bool:
    """Wait until the proxy has seen the early end, and closed its side of the connection."""
    here.upstream.wait_for(lambda: not here.upstream.open)
    return True


@pytest.mark.parametrize(
    ("reply", "heard"),
    [
        pytest.param(b"354 go ahead\r\n250 2.0.0 queued as EARLY\r\n", NONSENSE, id="250"),
        pytest.param(b"354 go ahead\r\n554 5.6.0 no\r\n", "554 5.6.0 no", id="554"),
        pytest.param(b"354 go ahead\r\n421 4.3.2 closing\r\n", "451 4.3.2 closing", id="421"),
        pytest.param(b"354 go ahead\r\n354 go ahead\r\n", NONSENSE, id="354"),
    ],
)
def test_end_that_comes_with_354_is_no_success(here: Relay, reply: bytes, heard: str) -> None:
    """What the platform says before it has seen one octet of the message does not answer the dot."""
    here.upstream.script({"DATA": reply})
    with here.client() as client:
        client.envelope()
        client.send(MESSAGE)
        assert client.reply() == heard
    here.serves_again()


def test_early_refusal_of_a_whole_message_at_once_is_passed_on(here: Relay) -> None:
    """A small message, sent in one piece and refused while the platform reads it."""
    here.upstream.script({"after:100": "554 5.6.0 no", "dot": NOTHING})
    with here.client() as client:
        assert client.data(MESSAGE) == "554 5.6.0 no"
    here.upstream.wait_for(lambda: bool(here.upstream.taken))  # the refusal is ahead of the platform's own books
    here.serves_again()
