"""A platform that stops talking, at each point: the app gets 451 within the set limit, and the next message goes."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.relay.site import ANN, BOB, LOST, MAIL, MAIL_OK, NO_CONNECTION, RCPT_OK, Relay, relay
from tests.smtp_in.dialogue import QUEUED, START_MAIL
from tests.smtp_in.site import MESSAGE
from tests.support.upstream import STALL, Upstream

SECONDS = 2
"""As short as a busy machine allows: a good message must never take so long."""

OPENED = [MAIL_OK, RCPT_OK, RCPT_OK, START_MAIL]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A proxy with little patience."""
    limits = {
        "connect_seconds": SECONDS,
        "reply_seconds": SECONDS,
        "final_reply_seconds": SECONDS,
        "wait_seconds": SECONDS,
    }
    with relay(tmp_path_factory.mktemp("stalls"), Upstream(receive_buffer=65_536), relay=limits) as started:
        started.warm_up()
        yield started


@pytest.mark.parametrize(
    ("stage", "heard", "label"),
    [
        pytest.param("banner", [NO_CONNECTION], "banner", id="banner"),
        pytest.param("EHLO", [NO_CONNECTION], "ehlo", id="ehlo"),
        pytest.param("MAIL", [MAIL_OK, LOST, LOST], "transaction", id="mail"),
        pytest.param("RCPT", [MAIL_OK, LOST, LOST], "transaction", id="rcpt"),
        pytest.param("DATA", [*OPENED, LOST], "transaction", id="data"),
        pytest.param("dot", [*OPENED, LOST], "transaction", id="dot"),
    ],
)
def test_stall_of_the_platform_is_451(here: Relay, stage: str, heard: list[str], label: str) -> None:
    """Every wait for a reply ends; the log says where, and the same proxy serves the next message."""
    if stage in ("banner", "EHLO", "MAIL"):
        here.unpool()  # at MAIL, a connection that rested would be replaced first
    failures = len(here.proxy.events("upstream_failed"))
    here.upstream.script({stage: STALL})
    assert here.attempt() == heard
    failed = here.proxy.event("upstream_failed", failures + 1)
    assert (failed["stage"], failed["reason"]) == (label, "no reply within 2 s")
    here.serves_again()


def test_stall_before_the_connection_is_there_is_451(tmp_path: Path) -> None:
    """A platform that answers no SYN: its queue of connections is full, and nobody takes any out."""
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        values = {"port": deaf.getsockname()[1], "connect_seconds": 1}
        here = stack.enter_context(relay(tmp_path, relay=values))
        with here.client() as client:
            assert client.say(MAIL) == NO_CONNECTION
        failed = here.proxy.event("upstream_failed")
        assert (failed["stage"], failed["reason"]) == ("connect", "no connection within 1 s")


def test_stall_at_the_second_recipient_is_451(here: Relay) -> None:
    """The recipient before it was accepted, so the message as a whole is 451 at the dot."""
    here.upstream.script({"RCPT": lambda line: STALL if line == BOB else RCPT_OK})
    assert here.attempt() == [MAIL_OK, RCPT_OK, LOST, START_MAIL, LOST]
    assert not here.upstream.taken
    here.serves_again()


def test_reply_that_trickles_buys_no_time(here: Relay) -> None:
    """The limit is for a reply as a whole, not for each octet of it."""
    here.upstream.script({"RCPT": b"250-"})
    heard = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while not heard.wait(SECONDS / 8):
                here.upstream.announce(b"x")

    thread = threading.Thread(target=trickle, daemon=True)
    with here.client() as client:
        assert client.say(MAIL) == MAIL_OK
        thread.start()
        assert client.say(ANN) == LOST
        heard.set()
        thread.join(5)
    here.serves_again()


def test_slow_replies_each_have_their_time(here: Relay) -> None:
    """Two replies that together take longer than one may: the time of the first is not taken off the second's."""

    def slow(_line: str) -> str:
        time.sleep(SECONDS * 0.6)
        return RCPT_OK

    here.upstream.script({"RCPT": slow})
    assert here.attempt() == [*OPENED, QUEUED]


def test_stall_in_the_body_is_451(here: Relay) -> None:
    """A platform that reads no more is given up; the rest of the app's data is swallowed."""
    here.upstream.script({"after:1000": STALL})
    with here.client() as client:
        client.envelope()
        client.send(b"Subject: large\r\n\r\n" + b"0123456789abcdef\r\n" * 1_200_000 + b".\r\n")
        assert client.reply() == LOST
        here.upstream.script()
        assert client.data(MESSAGE) == QUEUED
    here.serves_again()


def test_stall_at_rset_keeps_no_app_waiting(here: Relay) -> None:
    """The app's RSET is answered at once; the connection that stalls is never used again."""
    (dialogue,) = here.upstream.open
    here.upstream.script({"RSET": STALL})
    with here.client() as client:
        assert [client.say(MAIL), client.say(ANN)] == [MAIL_OK, RCPT_OK]
        assert client.say("RSET") == "250 2.0.0 OK"
        here.upstream.wait_for(lambda: dialogue.commands[-1] == "RSET")
        assert client.data(MESSAGE) == QUEUED
    here.rest()  # the proxy gave the stalled one up
    here.serves_again()
    assert dialogue.commands[-1] == "RSET"


def test_platform_that_stalls_for_one_app_serves_the_others(here: Relay) -> None:
    """While one transaction waits for its reply, messages of other apps pass."""
    here.upstream.script({"RCPT": lambda line: STALL if line == BOB else RCPT_OK})
    with here.client() as waiting:
        assert [waiting.say(MAIL), waiting.say(ANN)] == [MAIL_OK, RCPT_OK]
        waiting.send(f"{BOB}\r\n".encode())
        for _ in range(3):
            here.serves()
        assert waiting.reply() == LOST
    here.serves_again()
