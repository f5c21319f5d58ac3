"""
SIGTERM and SIGINT: nobody new, whoever is in the middle of a message finishes, exit code 0.

SIGKILL: no 250 that the platform did not say.
"""

import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.operation.program import eventually, interrupt
from tests.smtp_in.dialogue import QUEUED, START_MAIL, Client
from tests.smtp_in.site import MESSAGE, Site, site
from tests.support.proxy_process import WAIT_SECONDS, ProxyProcess, settings
from tests.support.upstream import STALL, Upstream

CLOSING = "421 4.3.2 Shutting down, try again later"
HEAD = b"From: a@example.com\r\nX-Mailgun-Tag: orders\r\n\r\n"
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)


def refuses(here: Site) -> bool:
    """Whether nobody can connect any more."""
    try:
        here.proxy.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def everything(sock: socket.socket) -> bytes:
    """Read up to the end of a connection."""
    said = b""
    try:
        while data := sock.recv(4096):
            said += data
    except ConnectionResetError:
        pass
    return said


def exit_code(here: Site) -> int:
    """Wait for the end."""
    return here.proxy.process.wait(WAIT_SECONDS)


@SIGNALS
def test_message_in_flight_is_finished_and_nobody_new_is_taken(tmp_path: Path, number: signal.Signals) -> None:
    """In mid-body the message goes on to its 250; idle clients get 421, new ones find the port closed; exit code 0."""
    with site(tmp_path) as here, here.client() as client, here.client() as idle, here.client(extended=False) as silent:
        client.envelope()
        client.send(HEAD + b"first half\r\n")
        here.upstream.wait_for(lambda: any(dialogue.octets for dialogue in here.upstream.dialogues))
        interrupt(here.proxy, number)
        for each in (idle, silent):
            assert each.reply() == CLOSING
            assert each.closed()
        eventually(lambda: refuses(here), "the port is closed")
        assert here.proxy.get("/readyz") == (503, "stopping\n")
        assert here.proxy.get("/livez") == (200, "live\n")
        here.proxy.process.send_signal(number)  # an impatient second one changes nothing
        client.send(b"second half\r\n.\r\n")
        assert client.reply() == QUEUED
        assert client.reply() == CLOSING
        assert client.closed()
        assert exit_code(here) == 0
        assert here.content() == HEAD.replace(b"X-Mailgun-Tag", b"X-Cmail-GroupName") + b"first half\r\nsecond half\r\n"
        here.upstream.wait_for(lambda: not here.upstream.open)
        assert all(dialogue.ended_cleanly for dialogue in here.upstream.dialogues)
        (line,) = here.proxy.events("message")
        assert line["outcome"] == "accepted"
        assert [each["event"] for each in here.proxy.events()][-1] == "stopped"


def test_transaction_that_was_begun_may_be_completed(tmp_path: Path) -> None:
    """A client between MAIL and DATA is in the middle of a message, too."""
    with site(tmp_path) as here, here.client() as client:
        assert client.say("MAIL FROM:<a@example.com>").startswith("250 ")
        assert client.say("RCPT TO:<b@example.net>").startswith("250 ")
        interrupt(here.proxy)
        eventually(lambda: refuses(here), "the port is closed")
        assert client.say("RCPT TO:<c@example.net>").startswith("250 ")
        assert client.say("DATA") == START_MAIL
        client.send(MESSAGE)
        assert client.reply() == QUEUED
        assert client.reply() == CLOSING
        assert exit_code(here) == 0
        assert len(here.upstream.taken[0].recipients) == 2


def test_reply_of_the_platform_is_waited_for(tmp_path: Path) -> None:
    """A message whose dot was sent is not given up: what the platform says then reaches the app."""
    answer = threading.Event()

    def reply(_command: str) -> str:
        answer.wait(WAIT_SECONDS)
        return "250 2.0.0 taken late"

    with site(tmp_path, Upstream({"dot": reply})) as here, here.client() as client:
        client.envelope()
        client.send(MESSAGE)
        here.upstream.wait_for(lambda: bool(here.upstream.taken))
        interrupt(here.proxy)
        eventually(lambda: refuses(here), "the port is closed")
        assert here.proxy.process.poll() is None
        answer.set()
        assert client.reply() == "250 2.0.0 taken late"
        assert exit_code(here) == 0


def test_message_that_takes_too_long_is_cut_off(tmp_path: Path) -> None:
    """After shutdown.drain_seconds the rest is cut off, told to the app and logged: no 250, and exit code 0."""
    with site(tmp_path, shutdown={"drain_seconds": 1}) as here, here.client() as client:
        client.envelope()
        client.send(HEAD + b"first half\r\n")
        here.upstream.wait_for(lambda: any(dialogue.octets for dialogue in here.upstream.dialogues))
        interrupt(here.proxy)
        assert client.reply() == CLOSING
        assert client.closed()
        assert exit_code(here) == 0
        line = here.proxy.event("message")
        assert (line["level"], line["outcome"], line["reply"]) == ("warning", "failed", None)
        assert line["upstream"] == "cut off at shutdown, before the message was complete"
        told = here.proxy.event("drain_cut_off")
        assert (told["level"], told["sessions"], told["drain_seconds"]) == ("warning", 1, 1)
        here.upstream.wait_for(lambda: not here.upstream.open)
        assert here.upstream.taken == []


def test_message_cut_off_behind_its_dot_is_logged_as_perhaps_taken(tmp_path: Path) -> None:
    """The platform may have it and the app will send it again: then the operator needs the line most."""
    with site(tmp_path, Upstream({"dot": STALL}), shutdown={"drain_seconds": 1}) as here, here.client() as client:
        client.envelope()
        client.send(MESSAGE)
        here.upstream.wait_for(lambda: any(each.octets for each in here.upstream.dialogues))
        interrupt(here.proxy)
        assert client.reply() == CLOSING
        assert exit_code(here) == 0
        line = here.proxy.event("message")
        assert (line["outcome"], line["reply"]) == ("failed", None)
        assert line["upstream"] == "cut off at shutdown, waiting for the next hop, which may have taken the message"


def test_drain_of_no_seconds_cuts_off_at_once(tmp_path: Path) -> None:
    """Zero is a limit like any other."""
    with site(tmp_path, shutdown={"drain_seconds": 0}) as here, here.client() as client:
        client.envelope()
        client.send(HEAD)
        assert here.proxy.stop() == 0
        assert client.reply() == CLOSING
        assert client.closed()


def test_delay_keeps_accepting_while_readiness_says_no(tmp_path: Path) -> None:
    """For shutdown.delay_seconds load balancers may still send clients: they are served, yet /readyz fails at once."""
    with site(tmp_path, shutdown={"delay_seconds": 2}) as here, here.client() as early:
        interrupt(here.proxy)
        assert here.proxy.get("/readyz") == (503, "stopping\n")
        assert here.proxy.get("/livez") == (200, "live\n")
        with here.client() as late:
            assert late.data(MESSAGE) == QUEUED
            assert early.data(MESSAGE) == QUEUED
            assert here.proxy.process.poll() is None
            assert late.reply() == CLOSING
        assert early.reply() == CLOSING
        assert exit_code(here) == 0
        assert len(here.upstream.taken) == 2


def test_idle_proxy_with_an_unreachable_platform_ends_in_order(tmp_path: Path) -> None:
    """A platform that does not answer holds nothing up: not the attempt to reach it, and no client waiting for it."""
    with site(tmp_path, Upstream({"banner": STALL}), relay={"connect_seconds": 30}) as here, here.client() as client:
        client.send(b"MAIL FROM:<a@example.com>\r\n")
        here.upstream.wait_for(lambda: len(here.upstream.dialogues) >= 2)
        interrupt(here.proxy)
        eventually(lambda: refuses(here), "the port is closed")
        here.upstream.script()
        assert client.reply() == "451 4.4.1 The next hop cannot be reached at the moment, try again later"
        assert client.reply() == CLOSING
        assert exit_code(here) == 0


@pytest.mark.parametrize("tls", ["auto", "implicit"])
def test_every_kind_of_listener_is_closed(tmp_path: Path, tls: str) -> None:
    """Listeners that begin with TLS, or look whether they should, end as others do, whoever just sits there."""
    listener = {"address": "127.0.0.1", "port": 0, "tls": tls, "auth": "none"}
    with site(tmp_path, listeners=[listener], tls={"self_signed": True}) as here:
        with here.proxy.connect() as silent:
            # Where tls is auto, after half a second; where it is implicit, a session begins behind the handshake.
            here.proxy.wait_for_metric("cmail_proxy_sessions_open", 1 if tls == "auto" else 0)
            assert here.proxy.stop() == 0
            greeting = b"220 proxy.example.com ESMTP cmail-proxy\r\n" if tls == "auto" else b""
            assert everything(silent) == greeting + (f"{CLOSING}\r\n".encode() if tls == "auto" else b"")
        assert refuses(here)
        assert here.proxy.events("drain_cut_off") == []


def test_handshakes_that_failed_do_not_hold_up_the_end(tmp_path: Path) -> None:
    """Clients that left in the middle of STARTTLS are gone, and the end does not wait for them."""
    with site(tmp_path, tls={"self_signed": True}) as here:
        for _ in range(3):
            with here.client() as client:
                assert client.say("STARTTLS").startswith("220 ")
        here.proxy.wait_for_metric("cmail_proxy_tls_handshake_failures_total", 3)
        here.proxy.wait_for_metric("cmail_proxy_sessions_open", 0)
        assert here.proxy.stop() == 0
        assert here.proxy.events("drain_cut_off") == []


def test_port_is_free_for_the_next_start(tmp_path: Path) -> None:
    """Connections that linger from the last run are in nobody's way."""
    with site(tmp_path / "first") as here:
        with here.client() as client:
            assert client.data(MESSAGE) == QUEUED
        port = here.port
        assert here.proxy.stop() == 0
    listener = {"address": "127.0.0.1", "port": port, "tls": "none", "auth": "none"}
    with site(tmp_path / "second", listeners=[listener]) as here:
        assert here.port == port
        here.serves()


def test_kill_before_the_platform_has_answered_leaves_the_app_without_a_250(tmp_path: Path) -> None:
    """SIGKILL in the worst moment: the app hears nothing and keeps its message; a new process serves the next one."""
    with site(tmp_path / "first", Upstream({"dot": STALL})) as here, here.client() as client:
        client.envelope()
        client.send(MESSAGE)
        here.upstream.wait_for(lambda: bool(here.upstream.taken))
        here.proxy.kill()
        assert everything(client.sock) == b""
        assert here.proxy.process.returncode == -signal.SIGKILL
        here.upstream.script()
        listener = {"address": "127.0.0.1", "port": here.port, "tls": "none", "auth": "none"}
        values = settings(here.upstream.port, listeners=[listener], data_dir=str(tmp_path / "first" / "var"))
        with ProxyProcess(tmp_path / "second", values) as again, Client(again.port) as retry:
            assert retry.data(MESSAGE) == QUEUED
            assert again.stop() == 0
        assert len(here.upstream.taken) == 2


def test_pipelined_message_behind_the_end_is_not_lost_silently(tmp_path: Path) -> None:
    """A client that goes on pipelining after its message gets 421 for the next one, not a 250."""
    with site(tmp_path) as here, here.client() as client:
        client.envelope()
        client.send(HEAD)
        interrupt(here.proxy)
        eventually(lambda: refuses(here), "the port is closed")
        client.send(b".\r\n")
        assert client.reply() == QUEUED
        client.sock.settimeout(WAIT_SECONDS)
        assert client.reply() == CLOSING
        assert len(here.upstream.taken) == 1
        assert exit_code(here) == 0


def test_half_open_client_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """A client that has sent its last octet and goes on listening is no message in flight."""
    with site(tmp_path) as here, here.client() as client:
        client.sock.shutdown(socket.SHUT_WR)
        assert client.closed()
        assert here.proxy.stop() == 0
        assert here.proxy.events("drain_cut_off") == []
