"""
Faults of the platform at every point of the dialogue, and what the app is told of them.

In none is a 250 given for what the platform did not accept. The platform's class reaches the app at MAIL, RCPT, DATA
and the dot; whatever else goes wrong is 451. After each fault the same proxy serves a good message.
"""

import contextlib
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st

from tests.relay.site import (
    ANN,
    BOB,
    LOST,
    MAIL,
    MAIL_OK,
    MISCONFIGURED,
    NO_CONNECTION,
    NO_RECIPIENTS,
    NO_RECIPIENTS_NOW,
    NONSENSE,
    RCPT_OK,
    Relay,
    in_turn,
    relay,
)
from tests.smtp_in.dialogue import QUEUED, START_MAIL
from tests.smtp_in.site import MESSAGE
from tests.support.upstream import CLOSE, EXTENSIONS, NOTHING, RESET, Reply, Upstream, Words

OPENED = [MAIL_OK, RCPT_OK, RCPT_OK, START_MAIL]
NEED_MAIL = "503 5.5.1 Send MAIL first"

NO_REPLY_AT_ALL: dict[str, Reply] = {
    "closed": CLOSE,
    "reset": RESET,
    "half-a-reply": "250-and then\nclose",
    "code-out-of-range": "999 what",
    "code-too-short": "25 what",
    "code-of-letters": "OK fine",
    "two-codes": "250-one\n550 two",
    "binary": b"\x00\x16\x03\xff\r\n",
    "another-protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "endless-line": b"2" * 1_000_000,
    "thousand-lines": "\n".join(["250-more"] * 1000 + ["250 done"]),
}
"""What no SMTP server says."""

nonsense = pytest.mark.parametrize("reply", [pytest.param(reply, id=name) for name, reply in NO_REPLY_AT_ALL.items()])


@pytest.mark.parametrize("stage", ["banner", "EHLO"])
@nonsense
def test_nonsense_before_the_transaction_is_no_connection(here: Relay, stage: str, reply: Reply) -> None:
    """A platform that cannot be talked to is one that cannot be reached: 451 at MAIL."""
    here.unpool()
    here.upstream.script({stage: reply})
    assert here.attempt() == [NO_CONNECTION]
    here.serves_again()


@pytest.mark.parametrize("stage", ["banner", "EHLO"])
@pytest.mark.parametrize(
    "reply",
    [
        "421 4.3.2 too busy",
        "450 4.7.1 not now",
        "451 4.7.1 not now",
        "500 5.5.1 what",
        "521 5.3.2 no mail here",
        "550 5.7.1 go away",
        "554-5.7.1 blocked\n554 5.7.1 for ever",
        "354 go ahead",
        "221 2.0.0 bye",
    ],
)
def test_refusal_before_the_transaction_is_ours_to_mend(here: Relay, stage: str, reply: str) -> None:
    """However permanently the platform refuses us as a client, the app's mail waits: 451."""
    here.unpool()
    here.upstream.script({stage: reply})
    assert here.attempt() == [NO_CONNECTION]
    assert not here.upstream.taken
    here.serves_again()


def test_platform_that_does_not_listen_is_451_until_it_is_back(tmp_path: Path) -> None:
    """A refused connection is 451 at MAIL; the first message after the platform's return goes through."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        placeholder = Upstream()
        with contextlib.ExitStack() as stack:
            started = stack.enter_context(relay(tmp_path, placeholder, relay={"port": port}))
            started.proxy.event("upstream_failed")
            assert started.attempt() == [NO_CONNECTION]
            failed = started.proxy.event("upstream_failed", 2)
            assert (failed["stage"], failed["reason"]) == ("connect", "Connection refused")
            taken.close()
            back = stack.enter_context(Upstream(port=port))
            assert started.attempt() == [*OPENED, QUEUED]
            assert len(back.taken) == 1


def test_what_stands_behind_mail_without_a_connection_hears_451_too(here: Relay) -> None:
    """An app with PIPELINING is told in the same words, never 503, and however often: it made no mistake."""
    here.unpool()
    here.upstream.script({"banner": "554 5.3.2 no mail here"})
    with here.client() as client:
        for _ in range(5):
            client.send(f"{MAIL}\r\n{ANN}\r\n{BOB}\r\nDATA\r\n".encode())
            assert client.replies(4) == [NO_CONNECTION] * 4
        assert client.say("RSET") == "250 2.0.0 OK"
        assert client.say(ANN) == NEED_MAIL
        here.upstream.script()
        assert client.data(MESSAGE) == QUEUED
        assert client.say("DATA") == NEED_MAIL
    here.serves_again()


@pytest.mark.parametrize(
    ("reply", "heard"),
    [
        pytest.param("421 4.3.2 closing", ["451 4.3.2 closing", "451 4.3.2 closing"], id="421"),
        pytest.param("421 closing", ["451 4.4.2 closing", "451 4.4.2 closing"], id="421-without-enhanced-code"),
        pytest.param("421 5.3.2 closing", ["451 4.4.2 closing", "451 4.4.2 closing"], id="421-codes-of-two-classes"),
        pytest.param("450 4.7.1 grey", ["450 4.7.1 grey"] * 2, id="450"),
        pytest.param("452 4.3.1 full", ["452 4.3.1 full"] * 2, id="452"),
        pytest.param("501 5.1.7 bad sender", ["501 5.1.7 bad sender"] * 2, id="501"),
        pytest.param("530 5.7.0 log in first", [MISCONFIGURED] * 2, id="530"),
        pytest.param("550 5.7.1 no", ["550 5.7.1 no"] * 2, id="550"),
        pytest.param("552 5.3.4 too large", ["552 5.3.4 too large"] * 2, id="552"),
        pytest.param("354 go ahead", [NONSENSE] * 2, id="354"),
    ],
)
def test_refusal_of_mail_keeps_its_class_but_421(here: Relay, reply: str, heard: list[str]) -> None:
    """The platform's no to MAIL reaches the app with its class; its 421 is about our session, so 451."""
    here.upstream.script({"MAIL": reply})
    assert here.attempt() == [MAIL_OK, *heard]
    assert not here.upstream.taken
    here.serves_again()


@nonsense
def test_nonsense_to_mail_is_451_and_the_transaction_is_not_repeated_for_ever(here: Relay, reply: Reply) -> None:
    """One new connection for one that may have died at rest, and no third."""
    before = len(here.upstream.dialogues)
    here.upstream.script({"MAIL": reply})
    assert here.attempt() == [MAIL_OK, LOST, LOST]
    assert len(here.upstream.dialogues) <= before + 1
    here.serves_again()


@pytest.mark.parametrize(
    ("reply", "heard"),
    [
        pytest.param("421 4.3.2 closing", ["451 4.3.2 closing", LOST], id="421"),
        pytest.param("421 closing", ["451 4.4.2 closing", LOST], id="421-without-enhanced-code"),
        pytest.param("450 4.2.1 grey", ["450 4.2.1 grey"] * 2, id="450"),
        pytest.param("452 4.5.3 too many", ["452 4.5.3 too many"] * 2, id="452"),
        pytest.param("550 5.1.1 unknown", ["550 5.1.1 unknown"] * 2, id="550"),
        pytest.param("551 5.1.6 moved", ["551 5.1.6 moved"] * 2, id="551"),
        pytest.param("354 go ahead", [NONSENSE, LOST], id="354"),
    ],
)
def test_refusal_of_every_recipient_keeps_its_class_but_421(here: Relay, reply: str, heard: list[str]) -> None:
    """The platform's no to RCPT reaches the app with its class; after its 421 there is no connection any more."""
    here.upstream.script({"RCPT": reply})
    assert here.attempt() == [MAIL_OK, *heard]
    assert not here.upstream.taken
    here.serves_again()


@pytest.mark.parametrize(
    ("reply", "heard", "end"),
    [
        pytest.param("421 4.3.2 closing", "451 4.3.2 closing", LOST, id="421"),
        pytest.param("450 4.2.1 grey", "450 4.2.1 grey", QUEUED, id="450"),
        pytest.param("550 5.1.1 unknown", "550 5.1.1 unknown", QUEUED, id="550"),
        pytest.param("354 go ahead", NONSENSE, LOST, id="354"),
        pytest.param("999 what", LOST, LOST, id="999"),
        pytest.param(CLOSE, LOST, LOST, id="closed"),
        pytest.param(RESET, LOST, LOST, id="reset"),
    ],
)
def test_fault_at_the_second_recipient_leaves_the_first_its_due(here: Relay, reply: str, heard: str, end: str) -> None:
    """A message goes to the first recipient where the connection lives, and is 451 as a whole where it does not."""
    here.upstream.script({"RCPT": lambda line: reply if line == BOB else RCPT_OK})
    assert here.attempt() == [MAIL_OK, RCPT_OK, heard, START_MAIL, end]
    assert [taken.recipients for taken in here.upstream.taken] == ([[ANN]] if end == QUEUED else [])
    here.serves_again()


@nonsense
def test_nonsense_to_recipient_is_451_and_nothing_is_retried(here: Relay, reply: Reply) -> None:
    """The platform answered MAIL on this connection, so the transaction is over with it."""
    before = len(here.upstream.dialogues)
    (dialogue,) = here.upstream.open
    mails = dialogue.count("MAIL")
    here.upstream.script({"RCPT": reply})
    assert here.attempt() == [MAIL_OK, LOST, LOST]
    assert dialogue.count("MAIL") == mails + 1
    assert len(here.upstream.dialogues) == before
    here.serves_again()


def test_nonsense_right_behind_a_reply_does_not_undo_it(here: Relay) -> None:
    """A reply to MAIL was given, so the transaction is over, even if the next reply comes with it and is none."""
    before = len(here.upstream.dialogues)
    here.upstream.script({"MAIL": NOTHING, "RCPT": b"250 2.1.0 sender fine\r\n999 what\r\n"})
    assert here.attempt() == [MAIL_OK, LOST, LOST]
    assert len(here.upstream.dialogues) == before
    here.serves_again()


def test_nonsense_right_behind_the_platforms_yes_does_not_undo_it(here: Relay) -> None:
    """The platform took the message; an app that heard 451 would send it again."""
    here.upstream.script({"dot": b"250 2.0.0 queued as PLATFORM1\r\n999 what\r\n"})
    assert here.attempt() == [*OPENED, QUEUED]
    here.serves_again()


@pytest.mark.parametrize("behind", ["close", "421 4.3.2 closing", "250 2.0.0 and one more"])
def test_yes_of_a_platform_that_then_hangs_up_counts(here: Relay, behind: str) -> None:
    """The platform took the message, whatever becomes of the connection."""
    here.upstream.script({"dot": f"{QUEUED}\n{behind}"})
    assert here.attempt() == [*OPENED, QUEUED]
    here.serves_again()


FINAL = [
    pytest.param("421 4.3.2 closing", "451 4.3.2 closing", id="421"),
    pytest.param("421 closing", "451 4.4.2 closing", id="421-without-enhanced-code"),
    pytest.param("450 4.7.1 grey", "450 4.7.1 grey", id="450"),
    pytest.param("451 4.3.0 sorry", "451 4.3.0 sorry", id="451"),
    pytest.param("452 disk full", "452 4.0.0 disk full", id="452-without-enhanced-code"),
    pytest.param("503 5.5.1 bad sequence", "503 5.5.1 bad sequence", id="503"),
    pytest.param("552 5.3.4 too large", "552 5.3.4 too large", id="552"),
    pytest.param("554-5.6.0 bad\n554 5.6.0 content", "554-5.6.0 bad\n554 5.6.0 content", id="554"),
]


@pytest.mark.parametrize(("reply", "heard"), FINAL)
@pytest.mark.parametrize("stage", ["DATA", "dot"])
def test_refusal_of_the_message_keeps_its_class_but_421(here: Relay, stage: str, reply: str, heard: str) -> None:
    """The platform's no to DATA or the dot is the app's answer to its dot."""
    here.upstream.script({stage: reply})
    assert here.attempt() == [*OPENED, heard]
    here.serves_again()


@pytest.mark.parametrize("reply", ["250 2.0.0 fine", "220 hello", "221 2.0.0 bye", "334 VXNlcm5hbWU6"])
def test_data_answered_with_something_else_is_not_taken_for_success(here: Relay, reply: str) -> None:
    """Only 354 asks for the message (RFC 5321, 4.1.1.4); to anything else it would be a list of commands."""
    here.upstream.script({"DATA": reply})
    assert here.attempt() == [*OPENED, NONSENSE]
    assert not here.upstream.taken
    here.serves_again()


@pytest.mark.parametrize("reply", ["354 more", "334 VXNlcm5hbWU6"])
def test_dot_answered_with_3yz_is_not_taken_for_success(here: Relay, reply: str) -> None:
    """A platform that asks for more behind the dot has not taken the message."""
    here.upstream.script({"dot": reply})
    assert here.attempt() == [*OPENED, NONSENSE]
    here.serves_again()


@pytest.mark.parametrize("stage", ["DATA", "dot"])
@nonsense
def test_nonsense_to_the_message_is_451_and_nothing_is_retried(here: Relay, stage: str, reply: Reply) -> None:
    """No reply, or none that can be read, is never success, and the message is not sent a second time."""
    before = len(here.upstream.dialogues)
    here.upstream.script({stage: reply})
    assert here.attempt() == [*OPENED, LOST]
    assert len(here.upstream.taken) == (stage == "dot")
    assert len(here.upstream.dialogues) == before
    here.serves_again()


@pytest.mark.parametrize("reply", ["421 4.3.2 closing", "450 4.7.1 not now", "550 5.7.1 no"])
@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "dot"])
def test_what_the_platform_answered_is_not_tried_again(here: Relay, stage: str, reply: str) -> None:
    """
    Though a second try would succeed: neither on the same connection, nor on another one.

    That holds for 421 to MAIL, too, with which a platform says goodbye to a connection that was at rest.
    """
    before = len(here.upstream.dialogues)
    (dialogue,) = here.upstream.open
    verbs = ("MAIL", "RCPT", "DATA")
    counts = [dialogue.count(verb) for verb in verbs]
    here.upstream.script({stage: in_turn(reply, {"DATA": "354 go on", "dot": QUEUED}.get(stage, RCPT_OK))})
    heard = "451" if reply.startswith("421") else reply[:3]
    with here.client() as client:
        replies = [client.say(MAIL), client.say(ANN), client.say("DATA")]
        if stage in ("DATA", "dot"):
            client.send(MESSAGE)
            replies.append(client.reply())
            assert replies[:3] == [MAIL_OK, RCPT_OK, START_MAIL]
        assert replies[1 if len(replies) == 3 else 3][:3] == heard
        assert not any(each == QUEUED for each in replies)
    here.rest()
    mail, rcpt, data = (dialogue.count(verb) - count for verb, count in zip(verbs, counts, strict=True))
    assert (mail, data) == (1, stage in ("DATA", "dot"))
    assert rcpt <= 1  # behind a 421 to MAIL it is not even read
    assert len(here.upstream.dialogues) == before
    assert len(here.upstream.taken) == (stage == "dot")
    here.serves_again()


@pytest.mark.parametrize("stage", ["DATA", "dot"])
def test_refused_message_leaves_the_connection_in_use(here: Relay, stage: str) -> None:
    """A platform that refuses one message gets the next one on the same connection."""
    before = len(here.upstream.dialogues)
    here.upstream.script({stage: "554 5.6.0 no"})
    assert here.attempt() == [*OPENED, "554 5.6.0 no"]
    here.rest()
    here.serves_again()
    assert len(here.upstream.dialogues) == before


@pytest.mark.parametrize(
    "reply", ["421 4.3.2 closing", "500 5.5.2 what", "250 2.0.0 reset\nclose", CLOSE, RESET, "999 what"]
)
def test_fault_at_rset_costs_the_connection_and_no_message(here: Relay, reply: str) -> None:
    """The app that gave its transaction up hears nothing of it, and the next message goes through."""
    here.upstream.script({"RSET": reply})
    with here.client() as client:
        assert [client.say("MAIL FROM:<app@example.com>"), client.say(ANN)] == [MAIL_OK, RCPT_OK]
        assert client.say("RSET") == "250 2.0.0 OK"
        here.rest()
        assert client.data(MESSAGE) == QUEUED
    here.serves_again()


def test_platform_without_any_extension_takes_a_message(here: Relay) -> None:
    """EHLO answered with one line only, as the oldest servers do."""
    here.unpool()
    here.upstream.script({"EHLO": "250 platform.example"})
    assert here.attempt() == [*OPENED, QUEUED]
    assert here.upstream.taken[0].mail == "MAIL FROM:<app@example.com>"
    here.learn(*EXTENSIONS)


REFUSALS = [
    "421 4.3.2 closing",
    "450 4.7.1 grey",
    "452 4.3.1 full",
    "530 5.7.0 log in first",
    "550 5.7.1 no",
    "554 5.6.0 no",
]
ODD = ["220 2.0.0 hello", "334 VXNlcm5hbWU6", "354 more", CLOSE, RESET, b"999 what\r\n", "250-half\nclose"]
PASSED_ON = {reply for reply in REFUSALS if reply.startswith("5") and not reply.startswith("530")}


def often(good: str) -> st.SearchStrategy[Words]:
    """A reply that is as it should be every other time."""
    return st.one_of(st.just(good), st.sampled_from([*REFUSALS, *ODD]))


@given(
    mail=often(MAIL_OK),
    recipients=st.tuples(often(RCPT_OK), often(RCPT_OK)),
    data=often("354 go ahead"),
    dot=often(QUEUED),
    together=st.booleans(),
)
@how(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_platform_says_a_250_is_its_own_and_so_is_a_5yz(
    here: Relay, mail: Words, recipients: tuple[Words, Words], data: Words, dot: Words, together: bool
) -> None:
    """Any faults one after the other: success needs the platform's, a bounce needs the platform's, all else is 4yz."""
    here.restore()
    here.upstream.script({"MAIL": mail, "RCPT": lambda line: recipients[line == BOB], "DATA": data, "dot": dot})
    with here.client() as client:
        if together:
            client.send(f"{MAIL}\r\n{ANN}\r\n{BOB}\r\nDATA\r\n".encode())
            heard = client.replies(4)
        else:
            heard = [client.say(MAIL), client.say(ANN), client.say(BOB), client.say("DATA")]
        if heard[3] == START_MAIL:
            client.send(MESSAGE)
            heard.append(client.reply())
        assert client.say("NOOP") == "250 2.0.0 OK"  # in step
    assert heard[0] == MAIL_OK
    for reply, said in zip(heard[1:3], recipients, strict=True):
        assert reply[0] in "45" or (reply == said and str(mail).startswith("2"))
        assert reply[0] != "5" or reply in PASSED_ON
    accepted = [to for to, reply in zip((ANN, BOB), heard[1:3], strict=True) if reply[0] == "2"]
    assert (heard[3] == START_MAIL) == bool(accepted)
    if not accepted:
        assert heard[3] in (NO_RECIPIENTS, NO_RECIPIENTS_NOW)
        assert heard[3] != NO_RECIPIENTS or all(reply[0] == "5" for reply in heard[1:3])
    elif heard[4][0] == "2":
        assert heard[4] == dot
        assert [taken.recipients for taken in here.upstream.taken] == [accepted]
    else:
        assert heard[4][0] == "4" or heard[4] in PASSED_ON
    assert len(here.upstream.taken) <= 1
