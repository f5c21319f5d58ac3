"""What a hostile app, a tired platform or a log that nobody reads must not do to the other apps."""

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.outbound.client import without_secrets
from tests.relay.site import (
    ANN,
    BOB,
    MAIL,
    MAIL_OK,
    NO_RECIPIENTS,
    POOL_BUSY,
    RCPT_OK,
    Relay,
    in_turn,
    relay,
)
from tests.smtp_in.dialogue import QUEUED, START_MAIL, plain
from tests.smtp_in.site import MESSAGE
from tests.support.proxy_process import WAIT_SECONDS, settings
from tests.support.upstream import EXTENSIONS, RESET, STALL, Upstream

USER, PASSWORD = "relay-user-19e2ab", "relay-password-8e8ecd"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A proxy with one connection to the platform, for three seconds' wait."""
    values = {"connections": 1, "wait_seconds": 3, "reply_seconds": 5}
    with relay(tmp_path_factory.mktemp("narrow"), relay=values) as started:
        started.warm_up()
        yield started


def test_taken_message_is_told_before_the_next_command_in_the_pipeline_is_asked_about(narrow: Relay) -> None:
    """The 250 must not wait for the platform's answer to what comes behind the message."""
    narrow.restore()
    release = threading.Event()

    def slow(_line: str) -> str:
        release.wait(WAIT_SECONDS)
        return RCPT_OK

    narrow.upstream.script({"RCPT": in_turn(RCPT_OK, slow)})
    with narrow.client() as client:
        client.envelope()
        client.send(MESSAGE + f"{MAIL}\r\n{ANN}\r\n".encode())
        assert client.reply() == QUEUED
        release.set()
        assert client.replies(2) == [MAIL_OK, RCPT_OK]


def test_app_that_waits_is_served_before_one_that_goes_on_and_on(narrow: Relay) -> None:
    """Who gives the only connection back and asks for it at once stands behind those that wait."""
    narrow.restore()
    transaction = f"{MAIL}\r\n{ANN}\r\nDATA\r\n".encode()
    with narrow.client() as greedy, narrow.client() as waiting:
        greedy.send(transaction)
        assert greedy.replies(3) == [MAIL_OK, RCPT_OK, START_MAIL]
        waiting.send(f"{MAIL}\r\n".encode())
        for _ in range(5):
            greedy.send(MESSAGE + transaction)
        assert waiting.reply() == MAIL_OK
        waiting.send(f"{ANN}\r\nDATA\r\n".encode())
        assert waiting.replies(2) == [RCPT_OK, START_MAIL]
        waiting.send(MESSAGE)
        assert waiting.reply() == QUEUED
    narrow.rest()


@pytest.mark.parametrize(
    ("field", "heard"),
    [
        pytest.param(b"X-MC-Template: welcome\r\n", "554 5.6.0 No counterpart here for X-MC-Template ", id="refused"),
        pytest.param(b"X-Mailgun-Drop-Message: yes\r\n", "250 2.0.0 Discarded and not sent: ", id="discarded"),
    ],
)
def test_connection_goes_back_to_the_pool_while_the_rest_is_swallowed(narrow: Relay, field: bytes, heard: str) -> None:
    """A message that is not sent on holds the only connection no longer than its header section takes."""
    narrow.restore()
    (dialogue,) = narrow.upstream.open
    with narrow.client() as client:
        client.envelope()
        client.send(field + b"\r\nfirst line\r\n")
        narrow.upstream.wait_for(lambda: dialogue.commands[-1] == "RSET")
        narrow.serves()
        client.send(b"last line\r\n.\r\n")
        assert client.reply().startswith(heard)
    assert narrow.upstream.open == [dialogue]
    assert dialogue.commands[-4:] == ["RSET", MAIL, ANN, "DATA"]


def test_connections_that_all_died_at_rest_cost_no_message(tmp_path: Path) -> None:
    """After one that is found dead the others at rest are not tried either: a new one is opened."""
    with relay(tmp_path) as here:
        here.warm_up()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(here.client()) for _ in range(4)]
            assert [client.say(MAIL) for client in clients] == [MAIL_OK] * 4
            assert [client.say(ANN) for client in clients] == [RCPT_OK] * 4
            assert [client.say("RSET")[:3] for client in clients] == ["250"] * 4
        here.rest()
        assert len(here.upstream.open) == 4
        here.upstream.script({"MAIL": in_turn(RESET, MAIL_OK)})
        assert here.attempt()[-1] == QUEUED
        here.upstream.wait_for(lambda: len(here.upstream.open) == 1)
        assert len(here.upstream.dialogues) == 5
        assert here.upstream.dialogues[4].commands[1:] == [MAIL, ANN, BOB, "DATA"]


def test_client_that_left_does_not_keep_the_connection_it_waited_for(narrow: Relay) -> None:
    """Apps that give up and come again would use up the pool while the platform thinks about a recipient."""
    narrow.restore()
    narrow.upstream.script({"RCPT": STALL})
    with narrow.client() as client:
        assert client.say(MAIL) == MAIL_OK
        client.send(f"{ANN}\r\n".encode())
        narrow.upstream.wait_for(lambda: any(ANN in each.commands[-1:] for each in narrow.upstream.open))
        client.reset()
    narrow.rest()
    narrow.upstream.script()
    narrow.serves()


def test_credentials_the_platform_asks_for_are_no_reason_to_bounce_mail(narrow: Relay) -> None:
    """530 to MAIL is about our session; and DATA behind it can be tried again, too."""
    narrow.restore()
    narrow.upstream.script({"MAIL": "530 5.7.0 log in first", "RCPT": "503 5.5.1 no sender"})
    with narrow.client() as client:
        client.send(f"{MAIL}\r\n{ANN}\r\nDATA\r\n".encode())
        assert [reply[:9] for reply in client.replies(3)] == ["250 2.1.0", "451 4.3.5", "451 4.3.0"]
    narrow.upstream.script()


def test_client_that_only_tries_addresses_is_sent_away(narrow: Relay) -> None:
    """The platform's account is not for finding out which addresses exist; a message in between begins anew."""
    narrow.restore()
    narrow.upstream.script({"RCPT": lambda line: RCPT_OK if line == ANN else "550 5.1.1 unknown"})
    with narrow.client() as client:
        assert client.say(MAIL) == MAIL_OK
        for number in range(90):
            assert client.say(f"RCPT TO:<{number}@example.net>") == "550 5.1.1 unknown"
        assert client.say("DATA") == NO_RECIPIENTS
        assert client.say("RSET")[:3] == "250"
        assert client.data(MESSAGE) == QUEUED
        assert client.say(MAIL) == MAIL_OK
        for number in range(100):
            assert client.say(f"RCPT TO:<{number}@example.net>") == "550 5.1.1 unknown"
        assert client.say("RCPT TO:<more@example.net>") == "421 4.7.0 Too many errors, closing"
        assert client.closed()
    narrow.upstream.script()


def test_next_hop_that_failed_is_left_alone_for_a_moment(tmp_path: Path) -> None:
    """A wrong password is not tried anew for each message: accounts are locked for that."""
    upstream = Upstream({"AUTH": "535 5.7.8 wrong"}, extensions=(*EXTENSIONS, "AUTH PLAIN"))
    values = {"username": USER, "password": PASSWORD, "pause_seconds": 30}
    with relay(tmp_path, upstream, relay=values) as here:
        here.proxy.event("upstream_failed")
        with here.client() as client:
            heard = {client.say(MAIL) for _ in range(50)}
        assert {reply[:9] for reply in heard} == {"451 4.3.5"}
        assert sum(dialogue.count("AUTH") for dialogue in upstream.dialogues) <= 2


def test_probe_asks_a_connection_at_rest(tmp_path: Path) -> None:
    """Where readiness depends on it, a platform that went silent is noticed though nobody sends."""
    with relay(tmp_path, relay={"required_for_readiness": True, "reply_seconds": 1, "connect_seconds": 1}) as here:
        here.warm_up()
        here.upstream.script({"NOOP": STALL, "banner": STALL})
        (dialogue,) = here.upstream.open
        here.upstream.wait_for(lambda: "NOOP" in dialogue.commands)
        here.proxy.event("upstream_failed")
        assert here.proxy.get("/readyz")[0] == 503


def test_trickle_of_octets_buys_no_time(tmp_path: Path) -> None:
    """A command has limits.idle_seconds from its beginning, however it is spread out."""
    with relay(tmp_path, limits={"idle_seconds": 2}) as here, here.client() as client:
        stop = threading.Event()

        def trickle() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.3):
                    client.send(b"E")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert client.reply() in ("421 4.4.2 Timeout, closing", "")
        finally:
            stop.set()
            thread.join(WAIT_SECONDS)


def test_clients_in_a_handshake_count_as_connections(tmp_path: Path) -> None:
    """Silence before TLS takes places like any other, so file descriptors never run out."""
    listeners = [
        {"address": "127.0.0.1", "port": 0, "tls": "implicit", "auth": "none"},
        {"address": "127.0.0.1", "port": 0, "tls": "starttls", "auth": "none"},
    ]
    values: dict[str, Any] = {"listeners": listeners, "tls": {"self_signed": True}, "limits": {"connections": 5}}
    with relay(tmp_path, **values) as here, contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(socket.create_connection(("127.0.0.1", here.ports[0]), WAIT_SECONDS))
        here.proxy.wait_for_metric("cmail_proxy_sessions_refused_total", 3, reason="too_many_connections")
        with here.client(1, greeted=False) as client:
            assert client.reply() == "421 4.3.2 Too many connections, try again later"


def test_app_between_two_commands_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    """After SIGTERM a transaction without a message has a moment, not all of shutdown.drain_seconds."""
    with relay(tmp_path, shutdown={"drain_seconds": 50}) as here, here.client() as client:
        assert [client.say(MAIL), client.say(ANN)] == [MAIL_OK, RCPT_OK]
        here.proxy.process.terminate()
        assert client.reply() == "421 4.3.2 Shutting down, try again later"
        assert here.proxy.process.wait(20) == 0


def test_log_that_nobody_reads_stops_no_mail(tmp_path: Path) -> None:
    """Standard output is a pipe that blocks; when its reader stalls, messages go on and lines are counted as lost."""
    with Upstream() as upstream:
        values = settings(upstream.port, data_dir=str(tmp_path / "var"))
        config = tmp_path / "settings.yaml"
        config.write_text(json.dumps(values))
        command = [sys.executable, "-m", "proxy", "serve", "--config", str(config)]
        reading, writing = os.pipe()
        with subprocess.Popen(command, cwd=ROOT, stdout=writing, stderr=subprocess.DEVNULL) as process:
            os.close(writing)
            try:
                line = b""
                while not line.endswith(b"\n"):
                    line += os.read(reading, 1)
                port = json.loads(line)["listeners"][0]["port"]
                here = Relay(_Started(port), upstream)  # type: ignore[arg-type]
                with here.client() as client:
                    for _ in range(200):
                        assert client.data(MESSAGE) == QUEUED
                    process.terminate()
                assert process.wait(WAIT_SECONDS) == 0
            finally:
                process.kill()
                os.close(reading)
        assert len(upstream.taken) == 200


class _Started:
    """A proxy of which nothing but its port is known."""

    def __init__(self, port: int) -> None:
        self.ports = [port]


@pytest.mark.parametrize(
    "said",
    [
        f"the next hop said 535 5.7.8 wrong: {PASSWORD}",
        f"the next hop said 334 {base64.b64encode(USER.encode()).decode()}",
        f"the next hop said 535 5.7.8 you said AUTH PLAIN {plain(USER, PASSWORD)}",
        f"no SMTP reply: b'AUTH PLAIN {plain(USER, PASSWORD)}\\r\\n'",
        f"the next hop said 535 5.7.8 {PASSWORD[:9]} / {PASSWORD[9:]}",
        f"the next hop said 535 {PASSWORD[3:14]}",
    ],
)
def test_nothing_a_platform_repeats_of_our_credentials_is_logged(said: str) -> None:
    """As it was or in base64, whole or in part, on one line or two, as a reply or as nonsense."""
    told = without_secrets(said, (USER, PASSWORD))
    assert told in (
        f"{said[:21]}{said[21:24]}"[: len("the next hop said 535")] + " (its text repeats the credentials)",
        "the next hop said something (its text repeats the credentials)",
    )
    assert not any(PASSWORD[start : start + 6] in told for start in range(len(PASSWORD) - 5))


def test_what_a_platform_says_without_our_credentials_is_logged() -> None:
    """The reason why a login was refused is for the operator to read."""
    said = "the next hop said 535 5.7.8 account suspended, call support"
    assert without_secrets(said, (USER, PASSWORD)) == said
    assert without_secrets(said, ("", "")) == said


def test_platform_is_reached_at_the_address_that_works(tmp_path: Path) -> None:
    """Of a host's addresses the one that answers is taken; here localhost, of which only IPv4 listens."""
    with relay(tmp_path, relay={"host": "localhost"}) as here:
        here.serves()


def test_pool_busy_is_counted_with_its_reason(narrow: Relay) -> None:
    """What ends before DATA is in a counter, too."""
    narrow.restore()
    with narrow.client() as one, narrow.client() as two:
        assert one.say(MAIL) == MAIL_OK
        before = narrow.proxy.metric("cmail_proxy_mail_refused_total", reason="pool_busy")
        assert two.say(MAIL) == POOL_BUSY
        narrow.proxy.wait_for_metric("cmail_proxy_mail_refused_total", before + 1, reason="pool_busy")
