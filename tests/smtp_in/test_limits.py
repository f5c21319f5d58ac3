"""What one client may ask for: recipients, sizes, hops, connections, time and errors."""

import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.smtp_in.dialogue import GREETING, QUEUED, START_MAIL, Client
from tests.smtp_in.site import MESSAGE, Site, site
from tests.support.proxy_process import WAIT_SECONDS, ProxyProcess, settings
from tests.support.upstream import Upstream

SURPLUS = "452 4.5.3 Too many recipients"
HEADER_TOO_LARGE = "552 5.3.4 The header section is too large"
IN_A_LOOP = "554 5.4.6 Too many hops, this message is in a loop"
MESSAGE_OCTETS = 200_000
HEADER_OCTETS = 20_000
TOO_LARGE = f"552 5.3.4 The message is larger than {MESSAGE_OCTETS} octets"
CROWDED = "421 4.3.2 Too many connections, try again later"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy with small limits for messages."""
    limits = {"message_octets": MESSAGE_OCTETS, "header_octets": HEADER_OCTETS, "header_fields": 100}
    with site(tmp_path_factory.mktemp("limits"), limits=limits) as started:
        yield started


@pytest.fixture
def here(shared: Site) -> Site:
    """The shared proxy, with nothing received."""
    shared.forget()
    return shared


def refused(here: Site, reason: str) -> float:
    """Messages refused so far for that reason."""
    return here.proxy.metric("cmail_proxy_messages_refused_total", reason=reason)


def rcpts(client: Client, count: int) -> list[str]:
    """Ask for that many recipients in one segment, and give the replies' codes."""
    assert client.say("MAIL FROM:<app@example.com>") == "250 2.1.0 OK"
    client.send(b"".join(f"RCPT TO:<r{index}@example.net>\r\n".encode() for index in range(count)))
    return client.replies(count)


# Recipients


def test_25_recipients_are_served(here: Site) -> None:
    """The limit itself is within the limit."""
    with here.client() as client:
        assert all(reply == "250 2.1.5 recipient fine" for reply in rcpts(client, 25))
        assert client.say("DATA") == START_MAIL
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    assert len(here.upstream.taken[0].recipients) == 25


@pytest.mark.parametrize("count", [26, 100])
def test_row_28_surplus_recipients_refuse_the_message_as_a_whole(here: Site, count: int) -> None:
    """`excess: refuse_message`: all RCPTs are taken, DATA is refused, nobody gets anything, the next message passes."""
    before = refused(here, "recipients")
    with here.client() as client:
        assert all(reply.startswith("250 2.1.5 ") for reply in rcpts(client, count))
        expected = f"550 5.5.3 {count} recipients; at most 25 are possible, so nothing was sent"
        assert client.say("DATA") == expected
        assert client.data(MESSAGE) == QUEUED
    assert [taken.recipients for taken in here.upstream.taken] == [["RCPT TO:<ann@example.net>"]]
    assert refused(here, "recipients") == before + 1


def test_row_28_surplus_recipients_are_refused_when_pipelined_with_data_too(here: Site) -> None:
    """The refusal at DATA keeps a pipeline in step."""
    with here.client() as client:
        client.send(
            b"MAIL FROM:<app@example.com>\r\n"
            + b"".join(f"RCPT TO:<r{index}@example.net>\r\n".encode() for index in range(26))
            + b"DATA\r\nNOOP\r\n"
        )
        *_, data, noop = client.replies(29)
        assert data == "550 5.5.3 26 recipients; at most 25 are possible, so nothing was sent"
        assert noop == "250 2.0.0 OK"
    assert here.upstream.taken == []


def test_101st_recipient_is_not_even_taken_down(here: Site) -> None:
    """A hundred recipients are remembered for the refusal; whoever asks for more hears 452."""
    with here.client() as client:
        replies = rcpts(client, 102)
        assert all(reply.startswith("250 ") for reply in replies[:100])
        assert replies[100:] == [SURPLUS] * 2
        assert client.say("DATA") == "550 5.5.3 100 recipients; at most 25 are possible, so nothing was sent"
    assert here.upstream.taken == []


@pytest.fixture(scope="module")
def deferring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy that defers surplus recipients."""
    with site(tmp_path_factory.mktemp("defer"), limits={"excess": "defer", "recipients": 3}) as started:
        yield started


def test_row_28_surplus_recipients_are_deferred_where_so_set(deferring: Site) -> None:
    """`excess: defer`: each surplus RCPT gets 452, and the message goes to the others."""
    deferring.forget()
    with deferring.client() as client:
        replies = rcpts(client, 5)
        assert replies == ["250 2.1.5 recipient fine"] * 3 + [SURPLUS] * 2
        assert client.say("DATA") == START_MAIL
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    assert deferring.upstream.taken[0].recipients == [f"RCPT TO:<r{index}@example.net>" for index in range(3)]


# Size, header section, hops


def body_of(octets: int) -> bytes:
    """A message of exactly that size, without its end."""
    head = b"Subject: large\r\n\r\n"
    lines = b"x" * 62 + b"\r\n"
    count, rest = divmod(octets - len(head), 64)
    return head + lines * (count - 1) + b"y" * (62 + rest) + b"\r\n"


def test_message_of_the_largest_size_passes_whole(here: Site) -> None:
    """The limit itself is within the limit, and every octet arrives."""
    content = body_of(MESSAGE_OCTETS)
    assert len(content) == MESSAGE_OCTETS
    with here.client() as client:
        assert client.data(content + b".\r\n") == QUEUED
    assert here.content() == content


@pytest.mark.parametrize("octets", [MESSAGE_OCTETS + 1, MESSAGE_OCTETS + 5_000_000])
def test_message_over_the_limit_is_refused_while_it_streams(here: Site, octets: int) -> None:
    """Without SIZE the limit is found out on the way: 552, nothing sent, and the connection goes on."""
    before = refused(here, "size")
    with here.client() as client:
        assert client.data(body_of(octets) + b".\r\n") == TOO_LARGE
        assert client.data(MESSAGE) == QUEUED
    assert len(here.upstream.taken) == 1
    assert refused(here, "size") == before + 1


def test_size_announced_over_the_limit_is_refused_at_mail(here: Site) -> None:
    """SIZE= spares both sides the transfer."""
    with here.client() as client:
        assert f"SIZE {MESSAGE_OCTETS}" in client.ehlo()
        assert client.say(f"MAIL FROM:<app@example.com> SIZE={MESSAGE_OCTETS + 1}") == TOO_LARGE
        assert client.say(f"MAIL FROM:<app@example.com> SIZE={MESSAGE_OCTETS}") == "250 2.1.0 OK"


def test_size_offered_is_the_smaller_of_ours_and_the_platforms(tmp_path: Path) -> None:
    """EHLO offers no more than the platform takes."""
    with site(tmp_path, Upstream(extensions=("SIZE 5000", "PIPELINING"))) as here:
        until = time.monotonic() + WAIT_SECONDS
        with here.client(extended=False) as client:
            while "SIZE 5000" not in (offers := client.ehlo()):
                assert time.monotonic() < until
                time.sleep(0.3)
            assert offers == ["SIZE 5000", "PIPELINING", "ENHANCEDSTATUSCODES"]
            expected = "552 5.3.4 The message is larger than 5000 octets"
            assert client.say("MAIL FROM:<app@example.com> SIZE=5001") == expected


def section_of(octets: int) -> bytes:
    """A header section of that size."""
    fields = b"X-Filler: " + b"x" * 988 + b"\r\n"
    count, rest = divmod(octets, len(fields))
    return fields * (count - 1) + b"X-Last: " + b"y" * (len(fields) + rest - 10) + b"\r\n"


def test_header_section_of_the_largest_size_passes(here: Site) -> None:
    """The limit itself is within the limit."""
    section = section_of(HEADER_OCTETS)
    assert len(section) == HEADER_OCTETS
    with here.client() as client:
        assert client.data(section + b"\r\nbody\r\n.\r\n") == QUEUED
    assert here.header() == section


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(section_of(HEADER_OCTETS + 1) + b"\r\nbody\r\n", id="one-octet-over"),
        pytest.param(b"X-Long: " + b"x" * (HEADER_OCTETS + 70_000) + b"\r\n\r\nbody\r\n", id="one-long-field"),
        pytest.param(b"X-Long: " + b"x" * (HEADER_OCTETS + 70_000) + b"\r\n", id="no-end-of-the-section"),
        pytest.param(b"X-Folded: a\r\n" + b" b\r\n" * 20_000 + b"\r\nbody\r\n", id="folding"),
        pytest.param(b"A: 1\r\n" * 101 + b"\r\nbody\r\n", id="one-field-too-many"),
    ],
)
def test_header_section_over_its_limits_is_refused(here: Site, content: bytes) -> None:
    """A header section with too many octets or fields gets 552, and nothing goes upstream."""
    before = refused(here, "header_section")
    with here.client() as client:
        assert client.data(content + b".\r\n") == HEADER_TOO_LARGE
        assert client.data(MESSAGE) == QUEUED
    assert len(here.upstream.taken) == 1
    assert refused(here, "header_section") == before + 1


def test_as_many_fields_as_allowed_pass(here: Site) -> None:
    """The limit itself is within the limit."""
    with here.client() as client:
        assert client.data(b"A: 1\r\n" * 100 + b"\r\nbody\r\n.\r\n") == QUEUED
    assert here.header() == b"A: 1\r\n" * 100


def test_message_that_came_50_hops_passes_and_after_51_it_is_in_a_loop(here: Site) -> None:
    """Received fields are counted (RFC 5321, 6.3), in any case."""
    hop = b"Received: from a by b; Mon, 23 Nov 2026 09:00:00 +0000\r\n"
    rest = b"Subject: x\r\n\r\nReceived: in the body\r\n.\r\n"
    with here.client() as client:
        assert client.data(hop * 50 + rest) == QUEUED
        before = refused(here, "hops")
        assert client.data(hop * 50 + hop.upper() + rest) == IN_A_LOOP
        assert client.data(MESSAGE) == QUEUED
    assert len(here.upstream.taken) == 2
    assert refused(here, "hops") == before + 1


# Connections and time


def test_one_client_too_many_is_told_to_come_back(tmp_path: Path) -> None:
    """Above `limits.connections` a client hears 421; when somebody leaves, there is room again."""
    with site(tmp_path, limits={"connections": 3}) as here, ExitStack() as stack:
        clients = [stack.enter_context(here.client()) for _ in range(3)]
        with here.client(greeted=False) as surplus:
            assert surplus.reply() == CROWDED
            assert surplus.closed()
        assert here.proxy.metric("cmail_proxy_sessions_refused_total", reason="too_many_connections") == 1
        assert clients[0].data(MESSAGE) == QUEUED
        assert clients[0].say("QUIT") == "221 2.0.0 Bye"
        assert clients[0].closed()
        here.serves()


def test_silent_client_is_dropped_and_the_others_are_not(tmp_path: Path) -> None:
    """After `limits.idle_seconds` of silence comes 421, wherever the client fell silent; who talks may stay."""
    timeout = "421 4.4.2 Timeout, closing"
    with site(tmp_path, limits={"idle_seconds": 1}) as here:
        with (
            here.client(greeted=False) as mute,
            here.client() as greeted,
            here.client() as half_a_line,
            here.client() as in_transaction,
            here.client() as busy,
        ):
            half_a_line.send(b"NOO")
            in_transaction.say("MAIL FROM:<app@example.com>")
            in_transaction.say("RCPT TO:<ann@example.net>")
            assert mute.reply() == GREETING
            silent = [mute, greeted, half_a_line, in_transaction]
            replies: list[str] = []
            threads = [threading.Thread(target=lambda each=each: replies.append(each.reply())) for each in silent]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                assert busy.say("HELO app.example.com") == "250 proxy.example.com"
                time.sleep(0.1)
            assert replies == [timeout] * 4
            assert all(client.closed() for client in silent)
            assert busy.data(MESSAGE) == QUEUED
        assert here.proxy.metric("cmail_proxy_sessions_dropped_total", reason="idle") == 4


IMPATIENT = """
from proxy.inbound import listeners
listeners._CROWDED_IDLE_SECONDS = 1.0
listeners._SWEEP_SECONDS = 0.05
"""
"""So that a test need not wait for ten seconds of silence."""


def test_idle_client_makes_room_when_the_server_is_crowded(tmp_path: Path) -> None:
    """
    While `limits.connections` is reached, clients that only sit there are dropped, long before `limits.idle_seconds`;
    those in a message stay, and where there is room so does everybody.
    """
    with Upstream() as platform:
        values = settings(platform.port, limits={"connections": 2})
        with ProxyProcess(tmp_path, values, first=IMPATIENT) as proxy, Client(proxy.port) as idle:
            time.sleep(1.5)
            assert idle.say("NOOP") == "250 2.0.0 OK"
            assert proxy.metric("cmail_proxy_sessions_dropped_total") == 0
            with Client(proxy.port, greeted=False) as busy:
                busy.send(b"EHLO app.example.com\r\nMAIL FROM:<app@example.com>\r\n")
                assert idle.reply() == "421 4.4.2 Timeout, closing"
                assert idle.closed()
                assert [busy.reply()[:4] for _ in range(3)] == ["220 ", "250-", "250 "]
                with Client(proxy.port, greeted=False) as newcomer:
                    assert newcomer.reply() == GREETING
                    assert newcomer.reply() == "421 4.4.2 Timeout, closing"
                assert busy.say("RCPT TO:<ann@example.net>") == "250 2.1.5 recipient fine"
                assert busy.say("DATA") == START_MAIL
                busy.send(MESSAGE)
                assert busy.reply() == QUEUED
            assert proxy.metric("cmail_proxy_sessions_dropped_total", reason="idle") == 2


def test_500_idle_clients_stay_while_a_good_one_is_served(tmp_path: Path) -> None:
    """Idle connections take nobody's turn; none of them is dropped as long as there is room."""
    with descriptors(2000), site(tmp_path) as here, ExitStack() as stack:
        idle = [stack.enter_context(here.client(greeted=False)) for _ in range(500)]
        assert all(client.reply() == GREETING for client in idle)
        for _ in range(5):
            here.serves()
        assert here.proxy.metric("cmail_proxy_sessions_open") == 500
        for client in idle:
            client.send(b"NOOP\r\n")
        assert all(client.reply() == "250 2.0.0 OK" for client in idle)


@contextmanager
def descriptors(soft: int) -> Iterator[None]:
    """Run with this soft limit of open files, and give it to what is started meanwhile."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


def test_1000_clients_are_served_though_the_soft_limit_of_files_is_low(tmp_path: Path) -> None:
    """The proxy raises its limit of file descriptors itself, to what `limits.connections` needs."""
    with ExitStack() as stack:
        with descriptors(256):
            here = stack.enter_context(site(tmp_path))
        stack.enter_context(descriptors(3000))
        clients = [stack.enter_context(here.client(greeted=False)) for _ in range(999)]
        assert all(client.reply() == GREETING for client in clients)
        here.serves()
        last = stack.enter_context(here.client())
        with here.client(greeted=False) as surplus:
            assert surplus.reply() == CROWDED
        assert last.data(MESSAGE) == QUEUED


HELPS = 95  # idle commands have an end
TALK = b"HELP\r\n" * HELPS + b"MAIL FROM:<app@example.com>\r\nRCPT TO:<ann@example.net>\r\nDATA\r\n"


@contextmanager
def deaf_client(here: Site) -> Iterator[socket.socket]:
    """A client that takes no replies, so that they wait once the system has no more room; closing says RST."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # set before connecting, so that it does not grow
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.connect(("127.0.0.1", here.port))
        sock.settimeout(1)
        sock.sendall(b"EHLO app.example.com\r\n")
        yield sock


def taken_from(deaf: socket.socket, content: bytes, messages: int, here: Site) -> int:
    """Have messages sent one by one, and tell how many were taken before one was not."""
    for sent in range(1, messages + 1):
        try:
            deaf.sendall(content)
        except TimeoutError:
            break
        until = time.monotonic() + 1
        while len(here.upstream.taken) < sent and time.monotonic() < until:
            time.sleep(0.0005)
        if len(here.upstream.taken) < sent:
            break
        time.sleep(0.002)  # alone on the event loop, it is answered at once
    return len(here.upstream.taken)


def test_client_that_reads_no_replies_is_not_served_for_ever(here: Site) -> None:
    """Message after message, each answered, and no answer taken: what waits for it is bounded by its connection."""
    messages = 2000  # 15 MB of replies; the system's buffers take about 4
    with deaf_client(here) as deaf:
        assert taken_from(deaf, TALK + MESSAGE, messages, here) < messages


def test_client_that_reads_no_replies_and_breaks_off_in_a_message_is_in_the_log(here: Site) -> None:
    """Held back by its own connection or not, each message that was begun has its line."""
    before = len(here.proxy.events("message"))
    with deaf_client(here) as deaf:
        deaf.sendall(TALK + MESSAGE[:-3])
        taken = taken_from(deaf, MESSAGE[-3:] + TALK + MESSAGE[:-3], 2000, here)
    line = here.proxy.event("message", before + taken + 1)
    assert (line["outcome"], line["reply"]) == ("client_gone", None)


def test_client_that_reads_no_replies_stalls_nobody_else(here: Site) -> None:
    """A client that asks and never reads is held back by its own connection, and others are served."""
    with here.client() as deaf:
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sock.settimeout(0.5)
        try:
            for _ in range(200):
                deaf.send(b"MAIL FROM:<app@example.com>\r\n" + b"RCPT TO:<ann@example.net>\r\n" * 3000 + b"RSET\r\n")
        except (TimeoutError, ConnectionError):
            pass  # as it should be: it does not get rid of more
        for _ in range(3):
            here.serves()


def test_message_that_takes_longer_than_idle_seconds_is_not_cut_off(tmp_path: Path) -> None:
    """`idle_seconds` is about silence between commands, not about a slow message."""
    with site(tmp_path, limits={"idle_seconds": 1}) as here, here.client() as client:
        client.envelope()
        for line in MESSAGE.splitlines(keepends=True):
            time.sleep(0.4)
            client.send(line)
        assert client.reply() == QUEUED
