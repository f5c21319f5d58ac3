"""Connections to the platform: warm, few, shared by all apps, and replaced when they die at rest."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.relay.site import ANN, LOST, MAIL, MAIL_OK, POOL_BUSY, RCPT_OK, Relay, in_turn, relay
from tests.smtp_in.dialogue import QUEUED, START_MAIL
from tests.smtp_in.site import MESSAGE
from tests.support.upstream import CLOSE, EXTENSIONS, RESET, Reply

NO_EIGHT_BIT = "554 5.6.3 The next hop does not take 8BITMIME"
LIMIT = 2


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A proxy with two connections at most, for one second's wait."""
    settings = {"connections": LIMIT, "wait_seconds": 1}
    with relay(tmp_path_factory.mktemp("pool"), relay=settings) as started:
        started.warm_up()
        yield started


def test_connection_is_warm_before_the_first_message(tmp_path: Path) -> None:
    """A start reaches out to the platform, and the first message uses that connection."""
    with relay(tmp_path) as started:
        started.warm_up()
        (dialogue,) = started.upstream.dialogues
        assert dialogue.commands == ["EHLO proxy.example.com"]
        started.serves()
        assert dialogue.commands == ["EHLO proxy.example.com", MAIL, ANN, "DATA"]
        assert len(started.upstream.dialogues) == 1


def test_app_after_app_uses_the_same_connection(here: Relay) -> None:
    """Sessions come and go, the connection to the platform stays."""
    before = len(here.upstream.dialogues)
    for _ in range(10):
        here.serves()
    assert len(here.upstream.dialogues) == before
    (dialogue,) = here.upstream.open
    assert dialogue.count("EHLO") == 1


def test_app_that_finds_no_connection_free_hears_451_after_the_wait(here: Relay) -> None:
    """MAIL of one app too many waits for relay.wait_seconds, then is 451 4.3.2; it may try again at once."""
    with here.client() as one, here.client() as two, here.client() as three:
        assert [one.say(MAIL), two.say(MAIL)] == [MAIL_OK] * LIMIT
        assert three.say(MAIL) == POOL_BUSY
        assert len(here.upstream.open) == LIMIT
        assert two.say("RSET") == "250 2.0.0 OK"
        assert three.data(MESSAGE) == QUEUED
        assert one.say("RSET") == "250 2.0.0 OK"
    here.serves_again()


def test_app_that_waits_gets_the_connection_that_gets_free(here: Relay) -> None:
    """An app in the queue goes on as soon as another one is done."""
    with here.client() as one, here.client() as two, here.client() as three:
        assert [one.say(MAIL), two.say(MAIL)] == [MAIL_OK] * LIMIT
        three.send(f"{MAIL}\r\n".encode())
        here.proxy.get("/livez")  # the proxy has had a turn
        assert one.say("RSET") == "250 2.0.0 OK"
        assert three.reply() == MAIL_OK
        assert three.say(ANN) == RCPT_OK
        assert three.say("DATA") == START_MAIL
        three.send(MESSAGE)
        assert three.reply() == QUEUED


def test_app_that_leaves_the_queue_takes_nobodys_place(here: Relay) -> None:
    """Apps that hang up while they wait leave all connections to the others."""
    with here.client() as one, here.client() as two:
        assert [one.say(MAIL), two.say(MAIL)] == [MAIL_OK] * LIMIT
        for _ in range(5):
            with here.client() as leaving:
                leaving.send(f"{MAIL}\r\n".encode())
                here.proxy.get("/livez")
        assert [one.say("RSET"), two.say("RSET")] == ["250 2.0.0 OK"] * LIMIT
    here.rest()
    with here.client() as one, here.client() as two:
        assert [one.data(MESSAGE), two.data(MESSAGE)] == [QUEUED] * LIMIT


def test_crowd_of_apps_shares_few_connections(here: Relay) -> None:
    """However many apps send at once, the platform sees relay.connections and no more; every message arrives once."""
    replies: list[str] = []

    def send(number: int) -> None:
        with here.client() as client:
            for part in range(4):
                message = f"Subject: {number} {part}\r\n\r\n.\r\n".encode()
                reply = POOL_BUSY
                while reply == POOL_BUSY:
                    reply = client.say(MAIL)
                assert [reply, client.say(ANN), client.say("DATA")] == [MAIL_OK, RCPT_OK, START_MAIL]
                client.send(message)
                replies.append(client.reply())

    here.upstream.most_open = 0
    apps = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(12)]
    for app in apps:
        app.start()
    for app in apps:
        app.join(30)
    assert replies == [QUEUED] * 48
    assert here.upstream.most_open <= LIMIT
    assert len({taken.content.partition(b"Subject: ")[2] for taken in here.upstream.taken}) == 48
    here.serves_again()


def test_connection_at_rest_for_long_is_closed_politely(tmp_path: Path) -> None:
    """After relay.idle_seconds the platform hears QUIT; the next message opens another connection."""
    with relay(tmp_path, relay={"idle_seconds": 1}) as started:
        started.warm_up()
        started.serves()
        (dialogue,) = started.upstream.dialogues
        started.upstream.wait_for(lambda: dialogue.closed)
        assert dialogue.commands[-1] == "QUIT"
        started.proxy.wait_for_metric("cmail_proxy_upstream_connections", 0, state="idle")
        started.serves()
        assert len(started.upstream.dialogues) == 2


def test_connections_at_rest_are_closed_politely_at_the_end(tmp_path: Path) -> None:
    """SIGTERM ends the program with QUIT to the platform and exit code 0."""
    with relay(tmp_path) as started:
        started.warm_up()
        assert started.proxy.stop() == 0
        (dialogue,) = started.upstream.dialogues
        started.upstream.wait_for(lambda: dialogue.closed)
        assert dialogue.commands == ["EHLO proxy.example.com", "QUIT"]


@pytest.mark.parametrize(
    "words",
    [
        b"421 4.4.2 idle for too long, closing\r\n",
        b"421-4.3.2 closing\r\n421 4.3.2 now\r\n",
        b"250 2.0.0 nobody asked\r\n",
        b"\x00\x01\x02\r\n",
    ],
    ids=["421", "421-two-lines", "250", "nonsense"],
)
def test_platform_that_speaks_on_a_connection_at_rest_costs_no_message(here: Relay, words: bytes) -> None:
    """What nobody asked for ends the connection at once: no later command could be matched with its reply."""
    (dialogue,) = here.upstream.open
    here.upstream.announce(words)
    here.upstream.wait_for(lambda: dialogue.closed)
    here.serves()
    assert len(here.upstream.open) == 1


def test_platform_that_closes_connections_at_rest_costs_no_message(here: Relay) -> None:
    """A connection that ended while at rest is not tried."""
    mails = sum(dialogue.count("MAIL") for dialogue in here.upstream.dialogues)
    here.upstream.hang_up()
    here.serves()
    assert sum(dialogue.count("MAIL") for dialogue in here.upstream.dialogues) == mails + 1


@pytest.mark.parametrize("death", [CLOSE, RESET, "half-a-reply"])
def test_connection_that_died_at_rest_is_replaced_once(here: Relay, death: str) -> None:
    """A death that shows only at MAIL costs no message: it goes on a new connection, once."""
    reply: Reply = "250-2.1.0\nclose" if death == "half-a-reply" else death
    before = len(here.upstream.dialogues)
    here.upstream.script({"MAIL": in_turn(reply, "250 2.1.0 sender fine")})
    with here.client() as client:
        assert [client.say(MAIL), client.say(ANN), client.say("DATA")] == [MAIL_OK, RCPT_OK, START_MAIL]
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    assert len(here.upstream.dialogues) == before + 1
    assert [taken.recipients for taken in here.upstream.taken] == [[ANN]]


def test_connection_that_died_before_its_first_message_is_replaced_once(tmp_path: Path) -> None:
    """The connection made at start may rest for long before its first message: its death costs none either."""
    with relay(tmp_path) as started:
        started.warm_up()
        started.upstream.script({"MAIL": in_turn(RESET, "250 2.1.0 sender fine")})
        started.serves()
        assert len(started.upstream.dialogues) == 2


@pytest.mark.parametrize("death", [CLOSE, RESET])
def test_connection_that_died_at_rest_is_replaced_no_second_time(here: Relay, death: str) -> None:
    """The replacement's death is 451: a platform in trouble is not asked again and again."""
    before = len(here.upstream.dialogues)
    mails = sum(dialogue.count("MAIL") for dialogue in here.upstream.dialogues)
    here.upstream.script({"MAIL": death})
    with here.client() as client:
        assert [client.say(MAIL), client.say(ANN), client.say(ANN)] == [MAIL_OK, LOST, LOST]
    assert len(here.upstream.dialogues) == before + 1
    assert sum(dialogue.count("MAIL") for dialogue in here.upstream.dialogues) == mails + 2
    here.serves_again()


@pytest.mark.parametrize("death", [CLOSE, RESET])
def test_new_connection_that_dies_is_not_replaced(here: Relay, death: str) -> None:
    """Nothing was at rest, so nothing died at rest: 451."""
    here.unpool()
    before = len(here.upstream.dialogues)
    here.upstream.script({"MAIL": death})
    with here.client() as client:
        assert [client.say(MAIL), client.say(ANN)] == [MAIL_OK, LOST]
    assert len(here.upstream.dialogues) == before + 1
    here.serves_again()


def test_replacement_that_cannot_be_had_is_451(here: Relay) -> None:
    """The connection died at rest, and there is no other."""
    here.upstream.script({"MAIL": RESET, "banner": "554 5.3.2 closed for today"})
    with here.client() as client:
        assert [client.say(MAIL), client.say(ANN)] == [MAIL_OK, LOST]
    here.serves_again()


def test_replacement_that_cannot_carry_the_message_refuses_it(here: Relay) -> None:
    """The platform changed meanwhile: a connection without 8BITMIME gets no BODY=8BITMIME, and the app hears 5.6.3."""
    here.upstream.script({"MAIL": in_turn(RESET, "250 2.1.0 sender fine")}, extensions=("PIPELINING",))
    with here.client() as client:
        assert client.say(f"{MAIL} BODY=8BITMIME") == MAIL_OK
        assert client.say(ANN) == NO_EIGHT_BIT
    assert not any("BODY" in command for command in here.upstream.dialogues[-1].commands)
    here.learn(*EXTENSIONS)


def test_proxy_without_a_wait_answers_at_once_and_still_reuses_connections(tmp_path: Path) -> None:
    """relay.wait_seconds: 0 is no wait for a free connection; RSET still has time to be answered."""
    with relay(tmp_path, relay={"connections": 1, "wait_seconds": 0}) as started:
        started.warm_up()
        with started.client() as one, started.client() as two:
            assert [one.say(MAIL), two.say(MAIL), one.say(ANN)] == [MAIL_OK, POOL_BUSY, RCPT_OK]
            assert one.say("RSET") == "250 2.0.0 OK"
            started.rest()
            assert two.data(MESSAGE) == QUEUED
        assert len(started.upstream.dialogues) == 1


def test_workers_share_the_number_of_connections(tmp_path: Path) -> None:
    """With several workers the platform still sees relay.connections, and no more."""
    with relay(tmp_path, workers=2, relay={"connections": LIMIT, "wait_seconds": 0}) as started:
        started.proxy.wait_for_metric("cmail_proxy_upstream_connections", LIMIT, state="idle")
        with contextlib.ExitStack() as stack:
            apps = [stack.enter_context(started.client()) for _ in range(16)]  # the system spreads them by their ports
            replies = sorted(app.say(MAIL) for app in apps)
            assert replies == [MAIL_OK] * LIMIT + [POOL_BUSY] * (len(apps) - LIMIT)
        assert started.upstream.most_open == LIMIT
