"""What EHLO offers on behalf of the platform, and what MAIL passes on to it."""

from pathlib import Path

import pytest

from tests.relay.site import ANN, MAIL_OK, RCPT_OK, Relay, in_turn, relay
from tests.smtp_in.dialogue import QUEUED
from tests.smtp_in.site import MESSAGE
from tests.support.upstream import EXTENSIONS, Upstream

LIMIT = 26_214_400
OURS = ["PIPELINING", "ENHANCEDSTATUSCODES"]
NO_EIGHT_BIT = "554 5.6.3 The next hop does not take 8BITMIME"
NO_SMTPUTF8 = "550 5.6.7 The next hop does not take SMTPUTF8"
NO_SMTPUTF8_HERE = "550 5.6.7 SMTPUTF8 is not offered here"


@pytest.mark.parametrize(
    ("platform", "offered"),
    [
        pytest.param(("SIZE 1000000",), ["SIZE 1000000"], id="size-smaller-than-ours"),
        pytest.param(("SIZE 99000000",), [f"SIZE {LIMIT}"], id="size-larger-than-ours"),
        pytest.param(("SIZE",), [f"SIZE {LIMIT}"], id="size-without-a-number"),
        pytest.param(("SIZE 0",), [f"SIZE {LIMIT}"], id="size-without-a-limit"),
        pytest.param(("SIZE many",), [f"SIZE {LIMIT}"], id="size-that-is-no-number"),
        pytest.param((f"SIZE {10**30}",), [f"SIZE {LIMIT}"], id="size-beyond-all-numbers"),
        pytest.param(("VRFY",), [f"SIZE {LIMIT}"], id="no-size"),
        pytest.param(("8BITMIME",), [f"SIZE {LIMIT}", "8BITMIME"], id="8bitmime"),
        pytest.param(("SMTPUTF8",), [f"SIZE {LIMIT}", "SMTPUTF8"], id="smtputf8"),
        pytest.param(("size 2000", "8bitmime", "SmtpUtf8"), ["SIZE 2000", "8BITMIME", "SMTPUTF8"], id="odd-case"),
        pytest.param(
            ("CHUNKING", "BINARYMIME", "DSN", "DELIVERBY", "MT-PRIORITY", "XCLIENT NAME", "AUTH PLAIN", "ETRN", "HELP"),
            [f"SIZE {LIMIT}"],
            id="what-is-never-passed-on",
        ),
    ],
)
def test_ehlo_offers_what_the_platform_offered_last(here: Relay, platform: tuple[str, ...], offered: list[str]) -> None:
    """SIZE is the smaller of both, 8BITMIME and SMTPUTF8 are the platform's, two are ours; CHUNKING and DSN never."""
    here.learn(*platform)
    with here.client(extended=False) as client:
        assert client.ehlo() == [*offered, *OURS]
    here.learn(*EXTENSIONS)


def test_ehlo_is_right_before_the_first_message(tmp_path: Path) -> None:
    """The probe at start has learned what the platform offers."""
    with relay(tmp_path, Upstream(extensions=("SIZE 12345", "SMTPUTF8"))) as started:
        started.warm_up()
        with started.client(extended=False) as client:
            assert client.ehlo() == ["SIZE 12345", "SMTPUTF8", *OURS]


def test_ehlo_before_the_platform_was_reached_offers_what_is_safe(tmp_path: Path) -> None:
    """While nothing is known, neither 8BITMIME nor SMTPUTF8 is promised: the promise would have to be kept."""
    with relay(tmp_path, Upstream({"banner": "421 4.3.2 later"})) as started:
        started.proxy.event("upstream_failed")
        with started.client(extended=False) as client:
            assert client.ehlo() == [f"SIZE {LIMIT}", *OURS]


ALL = ("SIZE 1000000", "8BITMIME", "SMTPUTF8", "PIPELINING")
JOE = "MAIL FROM:<joe@example.com>"


@pytest.mark.parametrize(
    ("platform", "said", "passed_on"),
    [
        pytest.param(ALL, JOE, JOE, id="nothing"),
        pytest.param(ALL, f"{JOE} SIZE=500", f"{JOE} SIZE=500", id="size"),
        pytest.param(ALL, f"{JOE} BODY=8BITMIME", f"{JOE} BODY=8BITMIME", id="8bitmime"),
        pytest.param(ALL, f"{JOE} BODY=7BIT", JOE, id="7bit"),
        pytest.param(ALL, f"{JOE} SMTPUTF8", f"{JOE} SMTPUTF8", id="smtputf8"),
        pytest.param(
            ALL,
            f"{JOE} smtputf8 body=8bitmime size=500",
            f"{JOE} SIZE=500 BODY=8BITMIME SMTPUTF8",
            id="all-in-odd-case",
        ),
        pytest.param(
            ALL, "MAIL FROM:<jö@exämple.com> SMTPUTF8", "MAIL FROM:<jö@exämple.com> SMTPUTF8", id="address-beyond-ascii"
        ),
        pytest.param(ALL, "MAIL FROM:<> SIZE=500", "MAIL FROM:<> SIZE=500", id="null-reverse-path"),
        pytest.param(ALL, f"{JOE} AUTH=<>", JOE, id="auth-is-believed-of-nobody"),
        pytest.param(("8BITMIME",), f"{JOE} SIZE=500", JOE, id="size-to-a-platform-without"),
        pytest.param((), f"{JOE} SIZE=500 BODY=7BIT", JOE, id="platform-without-anything"),
    ],
)
def test_parameters_of_mail_go_to_a_platform_that_knows_them(
    here: Relay, platform: tuple[str, ...], said: str, passed_on: str
) -> None:
    """SIZE, BODY and SMTPUTF8 are passed on where the platform offered them."""
    here.learn(*platform)
    with here.client() as client:
        assert [client.say(said), client.say(ANN)] == [MAIL_OK, RCPT_OK]
        client.say("DATA")
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    assert here.upstream.taken[0].mail == passed_on
    here.learn(*EXTENSIONS)


def test_recipient_beyond_ascii_goes_to_a_platform_with_smtputf8(here: Relay) -> None:
    """The address leaves as it came, octet for octet."""
    here.learn(*ALL)
    with here.client() as client:
        assert client.say(f"{JOE} SMTPUTF8") == MAIL_OK
        assert client.say("RCPT TO:<用户@例え.jp>") == RCPT_OK
        client.say("DATA")
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    assert here.upstream.taken[0].recipients == ["RCPT TO:<用户@例え.jp>"]
    here.learn(*EXTENSIONS)


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        pytest.param(f"{JOE} BODY=8BITMIME", NO_EIGHT_BIT, id="8bitmime"),
        pytest.param(f"{JOE} SMTPUTF8", NO_SMTPUTF8_HERE, id="smtputf8"),
    ],
)
def test_message_that_the_platform_cannot_take_is_refused_at_mail(here: Relay, said: str, heard: str) -> None:
    """What was not offered and is asked for all the same is refused before anything went upstream."""
    here.learn("SIZE 1000000", "PIPELINING")
    (dialogue,) = here.upstream.open
    heard_before = len(dialogue.commands)
    with here.client() as client:
        assert client.say(said) == heard
        assert len(dialogue.commands) == heard_before
        assert client.data(MESSAGE) == QUEUED  # on the connection that was given back
    assert here.upstream.open == [dialogue]
    here.learn(*EXTENSIONS)


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        pytest.param(f"{JOE} BODY=8BITMIME", NO_EIGHT_BIT, id="8bitmime"),
        pytest.param(f"{JOE} SMTPUTF8", NO_SMTPUTF8, id="smtputf8"),
    ],
)
def test_connection_that_lacks_what_was_offered_refuses_the_message(here: Relay, said: str, heard: str) -> None:
    """EHLO promised what the platform could last time; where the connection obtained cannot, MAIL says so."""
    here.learn(*ALL)
    with here.client(extended=False) as client:
        assert client.ehlo() == ["SIZE 1000000", "8BITMIME", "SMTPUTF8", *OURS]
        here.unpool()
        here.upstream.script(extensions=("PIPELINING",))
        assert client.say(said) == heard
        assert client.ehlo() == [f"SIZE {LIMIT}", *OURS]
        assert client.data(MESSAGE) == QUEUED
    here.learn(*EXTENSIONS)


def test_message_larger_than_the_platform_takes_is_refused_before_it_is_sent(here: Relay) -> None:
    """SIZE= above the platform's limit and below ours is refused at MAIL, and nothing goes upstream."""
    here.learn("SIZE 1000", "PIPELINING")
    here.upstream.script(extensions=("SIZE 1000", "PIPELINING"))
    with here.client() as client:
        assert client.say(f"{JOE} SIZE=2000") == "552 5.3.4 The message is larger than 1000 octets"
    here.learn(*EXTENSIONS)


def test_what_was_learned_in_the_last_ehlo_counts(here: Relay) -> None:
    """A platform that changes what it offers is believed anew with each connection."""
    here.unpool()
    here.upstream.script(
        {"EHLO": in_turn("250-platform.example\n250 SIZE 1000", "250-platform.example\n250 SIZE 2000")}
    )
    with here.client(extended=False) as client:
        for size in (1000, 2000):
            here.serves()
            assert client.ehlo()[0] == f"SIZE {size}"
            here.rest()
            here.unpool()
    here.learn(*EXTENSIONS)
