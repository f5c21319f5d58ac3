"""A mail transaction through the relay: what is answered here, what by the platform, and what goes upstream when."""

import select
import socket
import threading

import pytest

from tests.relay.site import (
    ANN,
    BOB,
    LOST,
    MAIL,
    MAIL_OK,
    NO_RECIPIENTS,
    NO_RECIPIENTS_NOW,
    RCPT_OK,
    Relay,
    attempt,
    in_turn,
)
from tests.smtp_in.dialogue import QUEUED, START_MAIL
from tests.smtp_in.site import MESSAGE
from tests.support.upstream import CLOSE, EXTENSIONS

REFUSED = b"X-MC-Template: welcome\r\nSubject: hi\r\n\r\n"
REFUSAL = "554 5.6.0 No counterpart here for X-MC-Template (lost: layout of the stored template); not sent"
DISCARDED = b"X-Mailgun-Drop-Message: yes\r\nSubject: hi\r\n\r\n"
DISCARD = "250 2.0.0 Discarded and not sent: X-Mailgun-Drop-Message (test mode that delivers nothing)"


def silent(sock: socket.socket) -> bool:
    """Whether nothing has come to read, given a little time."""
    return not select.select([sock], [], [], 0.1)[0]


def test_mail_is_answered_before_the_platform_hears_of_it(here: Relay) -> None:
    """MAIL that no RCPT follows is answered, and never goes upstream."""
    with here.client() as client:
        assert client.say("MAIL FROM:<nobody@example.com>") == MAIL_OK
        assert client.say("RSET") == "250 2.0.0 OK"
        assert attempt(client) == [MAIL_OK, RCPT_OK, RCPT_OK, START_MAIL, QUEUED]
    (dialogue,) = here.upstream.open
    assert dialogue.commands[-4:] == [MAIL, ANN, BOB, "DATA"]
    assert not any("nobody" in command or command == "RSET" for command in dialogue.commands)


def test_mail_and_first_recipient_go_upstream_in_one_write(here: Relay) -> None:
    """The first RCPT is there with MAIL, unasked; a client that waits for each reply sees no difference."""
    with here.client() as client:
        assert attempt(client) == [MAIL_OK, RCPT_OK, RCPT_OK, START_MAIL, QUEUED]
    (dialogue,) = here.upstream.open
    assert dialogue.commands[-4:] == [MAIL, ANN, BOB, "DATA"]
    assert dialogue.ahead[-4:] == [f"{ANN}\r\n".encode(), b"", b"", b""]


def test_data_goes_upstream_on_its_own(here: Relay) -> None:
    """Of an app's pipeline the platform gets DATA only when every recipient was answered."""
    here.upstream.pause = 0.05
    with here.client() as client:
        client.send(f"{MAIL}\r\n{ANN}\r\n{BOB}\r\nDATA\r\n".encode())
        assert client.replies(4) == [MAIL_OK, RCPT_OK, RCPT_OK, START_MAIL]
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    (dialogue,) = here.upstream.open
    assert dialogue.commands[-4:] == [MAIL, ANN, BOB, "DATA"]
    assert dialogue.ahead[-4:] == [f"{ANN}\r\n".encode(), b"", b"", b""]


def test_platform_without_pipelining_gets_one_command_at_a_time(here: Relay) -> None:
    """A platform that does not announce PIPELINING never has a second command to read before it answered the first."""
    here.learn("SIZE 1000000", "8BITMIME")
    here.upstream.pause = 0.1
    with here.client() as client:
        client.send(f"{MAIL}\r\n{ANN}\r\n{BOB}\r\nDATA\r\n".encode())
        assert client.replies(4) == [MAIL_OK, RCPT_OK, RCPT_OK, START_MAIL]
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    (dialogue,) = here.upstream.open
    assert dialogue.commands[-4:] == [MAIL, ANN, BOB, "DATA"]
    assert dialogue.ahead[-4:] == [b"", b"", b"", b""]
    here.learn(*EXTENSIONS)


REPLIES = [
    pytest.param("250 2.1.5 <ann@example.net> fine", "250 2.1.5 <ann@example.net> fine", id="as-it-is"),
    pytest.param("250 ok", "250 2.0.0 ok", id="without-enhanced-code"),
    pytest.param("250", "250 2.0.0 ", id="bare-code"),
    pytest.param("251 2.1.5 will forward", "251 2.1.5 will forward", id="other-success"),
    pytest.param("450 4.2.1 grey", "450 4.2.1 grey", id="transient"),
    pytest.param("452 full", "452 4.0.0 full", id="transient-without-enhanced-code"),
    pytest.param("550 5.1.1 no such user", "550 5.1.1 no such user", id="permanent"),
    pytest.param("554 no", "554 5.0.0 no", id="permanent-without-enhanced-code"),
    pytest.param("550 4.1.1 two classes", "550 5.0.0 two classes", id="codes-of-two-classes"),
    pytest.param(
        "550-5.1.1 no such user\n550-5.1.1\n550 5.1.1 see https://platform.example/help",
        "550-5.1.1 no such user\n550-5.1.1 \n550 5.1.1 see https://platform.example/help",
        id="several-lines",
    ),
    pytest.param("250-2.1.5 one\n250 two", "250-2.1.5 one\n250 2.1.5 two", id="enhanced-code-on-one-line"),
    pytest.param("550-no\n550 reason", "550-5.0.0 no\n550 5.0.0 reason", id="several-lines-without-enhanced-code"),
    pytest.param("550 5.1.1 caf\u00e9\tbar\x00", "550 5.1.1 caf?bar?", id="not-printable-ascii"),
    pytest.param(f"550 5.1.1 {'x' * 2000}", f"550 5.1.1 {'x' * 480}", id="overlong-line"),
]


@pytest.mark.parametrize(("said", "heard"), REPLIES)
def test_reply_to_recipient_is_the_platforms_own(here: Relay, said: str, heard: str) -> None:
    """Code, enhanced status code and every line of text reach the app; an enhanced code is added where it lacks."""
    here.upstream.script({"RCPT": lambda line: said if line == ANN else RCPT_OK})
    with here.client() as client:
        assert [client.say(MAIL), client.say(ANN), client.say(BOB)] == [MAIL_OK, heard, RCPT_OK]
        assert client.say("DATA") == START_MAIL
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    assert here.upstream.taken[0].recipients == ([ANN, BOB] if said.startswith("2") else [BOB])
    here.serves_again()


@pytest.mark.parametrize(("said", "heard"), REPLIES)
def test_reply_to_final_dot_is_the_platforms_own(here: Relay, said: str, heard: str) -> None:
    """What the platform says to the dot is what the app hears, whole."""
    here.upstream.script({"dot": said})
    assert here.attempt() == [MAIL_OK, RCPT_OK, RCPT_OK, START_MAIL, heard]
    here.serves_again()


@pytest.mark.parametrize("extensions", [EXTENSIONS, ("8BITMIME",)], ids=["pipelining", "no-pipelining"])
@pytest.mark.parametrize(
    "refusal", ["550 5.7.1 sender unknown", "451 4.7.1 come back later", "552-5.3.4 a\n552 5.3.4 b"]
)
def test_refused_mail_answers_every_recipient(here: Relay, refusal: str, extensions: tuple[str, ...]) -> None:
    """The platform's no to MAIL is the reply to each RCPT, and the connection serves the next transaction."""
    here.learn(*extensions)
    here.upstream.script({"MAIL": refusal, "RCPT": "503 5.5.1 no sender"}, extensions)
    with here.client() as client:
        assert [client.say(MAIL), client.say(ANN), client.say(BOB)] == [MAIL_OK, refusal, refusal]
        assert client.say("DATA") == (NO_RECIPIENTS_NOW if refusal.startswith("4") else NO_RECIPIENTS)
        here.upstream.script(extensions=extensions)
        assert client.say("RSET") == "250 2.0.0 OK"
        here.rest()
        assert attempt(client) == [MAIL_OK, RCPT_OK, RCPT_OK, START_MAIL, QUEUED]
    (dialogue,) = here.upstream.open
    assert dialogue.count("MAIL") == 3
    assert dialogue.commands[-5:] == ["RSET", MAIL, ANN, BOB, "DATA"]
    here.learn(*EXTENSIONS)


def test_mail_refused_by_a_platform_that_hangs_up_answers_every_recipient(here: Relay) -> None:
    """A permanent no to MAIL stays permanent, even if the platform closes before it answers the RCPT behind it."""
    here.upstream.script({"MAIL": "550 5.7.1 sender blocked", "RCPT": CLOSE})
    assert here.attempt() == [MAIL_OK, "550 5.7.1 sender blocked", "550 5.7.1 sender blocked"]
    here.serves_again()


def test_mixed_recipients_are_answered_one_by_one(here: Relay) -> None:
    """The message goes to those that the platform took, and to no other."""
    replies = {"a": "250 2.1.5 a fine", "b": "550 5.1.1 b unknown", "c": "452 4.2.2 c full", "d": "250 2.1.5 d fine"}
    here.upstream.script({"RCPT": lambda line: replies[line[9]]})
    with here.client() as client:
        assert client.say(MAIL) == MAIL_OK
        assert [client.say(f"RCPT TO:<{each}@example.net>") for each in replies] == list(replies.values())
        assert client.say("DATA") == START_MAIL
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    assert here.upstream.taken[0].recipients == ["RCPT TO:<a@example.net>", "RCPT TO:<d@example.net>"]
    here.serves_again()


@pytest.mark.parametrize("reply", ["550 5.1.1 unknown", "451 4.2.1 later"])
def test_all_recipients_refused_in_a_pipeline_stays_in_step(here: Relay, reply: str) -> None:
    """DATA behind refused recipients gets no 354 but 554, or 451 where trying again is of use; the next transaction of
    the pipeline is understood."""
    here.upstream.script({"RCPT": lambda line: reply if "ann" in line or "bob" in line else RCPT_OK})
    with here.client() as client:
        client.send(
            f"{MAIL}\r\n{ANN}\r\n{BOB}\r\nDATA\r\nRSET\r\n{MAIL}\r\nRCPT TO:<eve@example.net>\r\nDATA\r\n".encode()
        )
        none = NO_RECIPIENTS if reply.startswith("5") else NO_RECIPIENTS_NOW
        assert client.replies(5) == [MAIL_OK, reply, reply, none, "250 2.0.0 OK"]
        assert client.replies(3) == [MAIL_OK, RCPT_OK, START_MAIL]
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    assert [taken.recipients for taken in here.upstream.taken] == [["RCPT TO:<eve@example.net>"]]
    here.serves_again()


def test_refused_recipients_are_no_mistake_of_the_app(here: Relay) -> None:
    """An app that always pipelines DATA meets one refusal after the other, and may still go on in its session."""
    here.upstream.script({"RCPT": lambda line: "550 5.1.1 unknown" if line == BOB else RCPT_OK})
    with here.client() as client:
        for _ in range(12):
            client.send(f"{MAIL}\r\n{BOB}\r\nDATA\r\nRSET\r\n".encode())
            assert client.replies(4) == [MAIL_OK, "550 5.1.1 unknown", NO_RECIPIENTS, "250 2.0.0 OK"]
        assert client.data(MESSAGE) == QUEUED
    here.serves_again()


def test_nothing_goes_upstream_before_the_header_section_is_complete(here: Relay) -> None:
    """The app gets 354 at DATA; the platform hears of it only with the blank line, however slowly that comes."""
    head = b"Subject: hi\r\nX-Mailgun-Tag: welcome\r\n"
    (dialogue,) = here.upstream.open
    data = dialogue.count("DATA")
    with here.client() as client:
        client.envelope()
        for octet in head + b"\r":
            client.send(bytes([octet]))
            here.proxy.get("/livez")  # the proxy has had a turn in between
            assert dialogue.count("DATA") == data
        here.serves()  # even another message may pass meanwhile
        assert dialogue.count("DATA") == data
        client.send(b"\nb")  # a line end on its own could still become the end of the message
        here.upstream.wait_for(lambda: dialogue.count("DATA") > data and dialogue.octets > len(head))
        assert silent(client.sock)
        client.send(b"ody\r\n.\r\n")
        assert client.reply() == QUEUED
    assert here.upstream.taken[1].content.endswith(b"\r\nSubject: hi\r\nX-Cmail-GroupName: welcome\r\n\r\nbody\r\n")


def test_refused_message_is_swallowed_and_the_connection_reused(here: Relay) -> None:
    """What cannot be translated is answered at the dot, after RSET in place of DATA upstream."""
    before = len(here.upstream.dialogues)
    with here.client() as client:
        client.envelope()
        client.send(REFUSED + b"body\r\n" * 50_000)
        assert silent(client.sock)
        client.send(b".\r\n")
        assert client.reply() == REFUSAL
        here.rest()
        assert attempt(client) == [MAIL_OK, RCPT_OK, RCPT_OK, START_MAIL, QUEUED]
    (dialogue,) = here.upstream.open
    assert dialogue.commands[-6:] == ["RCPT TO:<ann@example.net>", "RSET", MAIL, ANN, BOB, "DATA"]
    assert len(here.upstream.dialogues) == before
    assert len(here.upstream.taken) == 1


def test_discarded_message_is_answered_with_250_and_says_so(here: Relay) -> None:
    """A message in the old provider's test mode is taken and not sent; reply and log tell."""
    lines = here.logged()
    before = len(here.upstream.dialogues)
    with here.client() as client:
        client.envelope()
        client.send(DISCARDED + b"body\r\n" * 50_000)
        assert silent(client.sock)
        client.send(b".\r\n")
        assert client.reply() == DISCARD
        line = here.last_line(lines)
        assert (line["outcome"], line["reply"], line["upstream"]) == ("discarded", DISCARD, None)
        here.rest()
        assert attempt(client) == [MAIL_OK, RCPT_OK, RCPT_OK, START_MAIL, QUEUED]
    (dialogue,) = here.upstream.open
    assert dialogue.commands[-6:] == ["RCPT TO:<ann@example.net>", "RSET", MAIL, ANN, BOB, "DATA"]
    assert len(here.upstream.dialogues) == before
    assert len(here.upstream.taken) == 1


def test_app_hears_250_only_after_the_platform_said_it(here: Relay) -> None:
    """While the platform thinks about the dot, the app waits."""
    decided = threading.Event()

    def decide(_line: str) -> str:
        decided.wait(20)
        return QUEUED

    here.upstream.script({"dot": decide})
    with here.client() as client:
        client.envelope()
        client.send(MESSAGE)
        here.upstream.wait_for(lambda: len(here.upstream.taken) == 1)
        assert silent(client.sock)
        decided.set()
        assert client.reply() == QUEUED


@pytest.mark.parametrize("behind", [b"", b"QUIT\r\n"], ids=["dot-last", "quit-behind-the-dot"])
def test_half_close_after_the_dot_still_delivers_and_answers(here: Relay, behind: bytes) -> None:
    """An app that shuts down its side once it has sent everything gets every answer."""
    decided = threading.Event()

    def decide(_line: str) -> str:
        decided.wait(20)
        return QUEUED

    here.upstream.script({"dot": decide})
    with here.client() as client:
        client.envelope()
        client.send(MESSAGE + behind)
        client.sock.shutdown(socket.SHUT_WR)
        here.upstream.wait_for(lambda: len(here.upstream.taken) == 1)
        decided.set()
        assert client.reply() == QUEUED
        if behind:
            assert client.reply() == "221 2.0.0 Bye"
        assert client.closed()
    here.serves_again()


def test_app_that_closes_after_the_dot_has_sent_its_message(here: Relay) -> None:
    """The dot came, so the message goes; the log knows what became of it though nobody hears the answer."""
    lines = here.logged()
    decided = threading.Event()

    def decide(_line: str) -> str:
        decided.wait(20)
        return QUEUED

    here.upstream.script({"dot": decide})
    with here.client() as client:
        client.envelope()
        client.send(MESSAGE)
        here.upstream.wait_for(lambda: len(here.upstream.taken) == 1)
    decided.set()
    line = here.last_line(lines)
    assert (line["outcome"], line["reply"]) == ("accepted", QUEUED)
    here.serves_again()


@pytest.mark.parametrize(
    "end", [b"RSET\r\n", b"EHLO again.example.com\r\n", b"QUIT\r\n", b""], ids=["rset", "ehlo", "quit", "close"]
)
def test_transaction_given_up_before_data_is_reset_upstream(here: Relay, end: bytes) -> None:
    """The platform hears RSET, no DATA, and the connection serves the next app."""
    before = len(here.upstream.dialogues)
    with here.client() as client:
        assert [client.say(MAIL), client.say(ANN)] == [MAIL_OK, RCPT_OK]
        if end:
            client.send(end)
            client.reply()
    (dialogue,) = here.upstream.open
    here.upstream.wait_for(lambda: dialogue.commands[-1] == "RSET")
    assert dialogue.commands[-3:] == [MAIL, ANN, "RSET"]
    here.rest()
    here.serves()
    assert len(here.upstream.dialogues) == before


def test_messages_of_one_session_share_a_connection(here: Relay) -> None:
    """Message after message, each with its own reply and its own envelope."""
    before = len(here.upstream.dialogues)
    here.upstream.script({"dot": in_turn("250 2.0.0 one", "554 5.6.0 two", "451 4.3.0 three", "250 2.0.0 four")})
    with here.client() as client:
        replies = [client.data(MESSAGE) for _ in range(4)]
    assert replies == ["250 2.0.0 one", "554 5.6.0 two", "451 4.3.0 three", "250 2.0.0 four"]
    assert len(here.upstream.dialogues) == before
    assert [taken.recipients for taken in here.upstream.taken] == [["RCPT TO:<ann@example.net>"]] * 4
    assert here.upstream.open[0].count("RSET") <= here.upstream.open[0].count("MAIL")


def test_connection_lost_between_recipients_fails_the_message_and_not_the_session(here: Relay) -> None:
    """A recipient was accepted, then the connection went: DATA is taken, the dot answered with 451, nothing is sent."""
    here.upstream.script({"RCPT": lambda line: CLOSE if line == BOB else RCPT_OK})
    with here.client() as client:
        assert attempt(client) == [MAIL_OK, RCPT_OK, LOST, START_MAIL, LOST]
        here.upstream.script()
        assert client.data(MESSAGE) == QUEUED
    assert len(here.upstream.taken) == 1
