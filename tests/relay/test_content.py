"""Octets through the proxy: what is no control field leaves as it came, however TCP cut it up."""

import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as how
from hypothesis import strategies as st

from tests.relay.site import MAIL_OK, RCPT_OK, Relay
from tests.smtp_in.dialogue import QUEUED, START_MAIL, Client

END = b".\r\n"
ENVELOPE = b"MAIL FROM:<app@example.com>\r\nRCPT TO:<ann@example.net>\r\nDATA\r\n"


@pytest.fixture(scope="module")
def session(shared: Relay) -> Iterator[Client]:
    """One session for all messages of this module: each must leave it in step."""
    with shared.client() as client:
        yield client


def passed(here: Relay, client: Client, pieces: list[bytes], pause: float = 0.0) -> bytes:
    """
    Send a message in pieces, its end included.

    Returns:
        What the platform received, without our Received field; transparency dots as on the wire.
    """
    client.send(ENVELOPE)
    assert client.replies(3) == [MAIL_OK, RCPT_OK, START_MAIL]
    here.upstream.taken.clear()
    for piece in pieces:
        client.send(piece)
        if pause:
            time.sleep(pause)
    assert client.reply() == QUEUED
    (taken,) = here.upstream.taken
    return without_received(taken.octets)


def without_received(octets: bytes) -> bytes:
    """Take our field out, from where it must be: in front, or behind an mbox line."""
    start = octets.index(b"\n") + 1 if octets.startswith((b"From ", b">From ")) else 0
    assert octets.startswith(
        b"Received: from app.example.com ([127.0.0.1])\r\n\tby proxy.example.com with ESMTP id ", start
    )
    end = octets.index(b"\r\n", start) + 2
    while octets[end : end + 1] in (b" ", b"\t"):
        end = octets.index(b"\r\n", end) + 2
    return octets[:start] + octets[end:]


SAME = [
    pytest.param(b"Subject: hi\r\n\r\nbody\r\n", id="plain"),
    pytest.param(b"", id="empty"),
    pytest.param(b"\r\n", id="blank-line-only"),
    pytest.param(b"\r\nbody\r\n", id="no-header-section"),
    pytest.param(b"\r\n\r\n\r\n", id="blank-lines-only"),
    pytest.param(b"Subject: hi\r\n", id="no-blank-line"),
    pytest.param(b"Subject: hi\r\n\r\n", id="header-section-only"),
    pytest.param(b"Subject: hi\r\n\r\n\r\n\r\nbody\r\n\r\n\r\n", id="blank-lines-around-the-body"),
    pytest.param(b"Subject: hi\r\n\r\n body\r\n", id="body-begins-with-a-blank"),
    pytest.param(b"hello\r\nthis is no field\r\n", id="body-without-header-section"),
    pytest.param(b"Subject: hi\r\nno field here\r\nTo: x\r\n\r\nbody\r\n", id="line-that-is-no-field"),
    pytest.param(b"Subject: hi\r\n: no name\r\n\r\nbody\r\n", id="field-without-a-name"),
    pytest.param(b"From app@example.com Mon Nov 23 10:00:00 2026\r\nSubject: hi\r\n\r\nbody\r\n", id="mbox-line"),
    pytest.param(b">From app@example.com Mon Nov 23 10:00:00 2026\r\nSubject: hi\r\n\r\n", id="quoted-mbox-line"),
    pytest.param(b"From app@example.com\r\n", id="mbox-line-only"),
    pytest.param(
        b"SUBJECT :\t odd \r\n\t \r\n  folded\t\r\nsubject:again\r\nX-Empty:\r\n\r\nbody \t\r\n", id="odd-spacing"
    ),
    pytest.param(b"Received: from a by b\r\nReceived: from c by d\r\n\r\nbody\r\n", id="received-before"),
    pytest.param(b"Subject: caf\xe9 \xc3\xa9\r\nX-Raw: \x80\xff\r\n\r\n\x80\xfe\xff\r\n", id="eight-bit"),
    pytest.param(b"Subject: a\0b\r\n\r\nc\0d\r\n\x01\x02\x7f\x1b\x0b\x0c\r\n", id="controls"),
    pytest.param(b"Subject: hi\r\n\r\n..\r\n...\r\n..dot\r\n. \r\n.x\r\n", id="dots"),
    pytest.param(b"..Subject: hi\r\n..\r\n\r\nbody\r\n", id="dots-in-front"),
    pytest.param(b"..\r\n", id="lone-dot-only"),
    pytest.param(b"Subject: " + b"s" * 5000 + b"\r\n\r\n" + b"b" * 5000 + b"\r\n", id="lines-over-998"),
    pytest.param(b"Subject: hi\r\n\r\n" + b"b" * 1_000_000 + b"\r\n", id="one-megabyte-line"),
    pytest.param(b"X-Fill: " + b"f" * 200_000 + b"\r\n\r\nbody\r\n", id="field-of-200-kilobytes"),
    pytest.param(b"".join(b"X-Field-%d: v\r\n" % number for number in range(900)) + b"\r\nbody\r\n", id="900-fields"),
    pytest.param(b"b" * 300_000 + b"\r\n" + b"and: more\r\n" * 40_000, id="large-body-without-header-section"),
    pytest.param(
        b"X-Cmail-GroupName: mine\r\nX-Cmail-TrackOpens: false\r\nSubject: hi\r\n\r\nbody\r\n", id="native-fields"
    ),
]


@pytest.mark.parametrize("message", SAME)
def test_message_without_control_fields_leaves_as_it_came(here: Relay, session: Client, message: bytes) -> None:
    """All octets are the same on the wire behind us, apart from our Received field."""
    assert passed(here, session, [message + END]) == message


@pytest.mark.parametrize("blank", [b" ", b"\t"])
def test_body_without_header_section_that_begins_with_a_blank_is_no_part_of_our_field(
    here: Relay, session: Client, blank: bytes
) -> None:
    """A blank line parts it from our Received field, which it would else continue."""
    message = blank + b"indented\r\nmore\r\n"
    assert passed(here, session, [message + END]) == b"\r\n" + message


FIELD_NAMES = st.text("ABCDEFGHabcdefgh0123456789-_!#", min_size=1, max_size=20).map(lambda name: f"X-Own-{name}")
OCTETS = st.binary(max_size=60).map(lambda octets: octets.replace(b"\r", b"").replace(b"\n", b""))
LINES = st.one_of(
    OCTETS, st.sampled_from([b"", b".", b"..", b".x", b" ", b"\t", b"--boundary", b"From x", b"a" * 1200])
)


def _field(name: str, values: list[bytes]) -> bytes:
    return name.encode() + b":" + b"\r\n ".join(values) + b"\r\n"


FIELDS = st.builds(_field, FIELD_NAMES, st.lists(OCTETS, min_size=1, max_size=3))


def _message(fields: list[bytes], separated: bool, body: list[bytes]) -> bytes:
    return b"".join(fields) + (b"\r\n" if separated else b"") + b"".join(line + b"\r\n" for line in body)


MESSAGES = st.builds(_message, st.lists(FIELDS, max_size=5), st.booleans(), st.lists(LINES, max_size=8))


def _begins_with_blank_and_no_field(message: bytes) -> bool:
    first = message.partition(b"\n")[0]
    rest = message[len(first) + 1 :] if first.startswith((b"From ", b">From ")) else message
    return rest[:1] in (b" ", b"\t")


def _has_lone_dot_among_nuls(message: bytes) -> bool:
    return any(b"\0" in line and line.replace(b"\0", b"") == b"." for line in message.split(b"\r\n"))


@given(message=MESSAGES, cuts=st.lists(st.integers(0, 400), max_size=6))
@example(message=b"X-Own-A: 1\r\n" + b".\r\n", cuts=[12, 13, 14])
@how(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_message_in_any_pieces_leaves_as_it_came(
    here: Relay, session: Client, message: bytes, cuts: list[int]
) -> None:
    """Whatever the octets, and wherever TCP cuts them, the platform gets what an undisturbed app sent."""
    if _begins_with_blank_and_no_field(message) or _has_lone_dot_among_nuls(message):
        return  # the two cases where an octet is added, tested on their own
    wire = b"\r\n".join(b"." + line if line.startswith(b".") else line for line in message.split(b"\r\n"))
    stream = wire + END
    points = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    pieces = [stream[start:end] for start, end in pairwise(points)]
    assert passed(here, session, pieces) == wire


REST = b"Subject: hi\r\n\r\nfirst\r\n..dot\r\nlast\r\n"


def controlled(fields: bytes) -> bytes:
    """A message with these control fields, or with what becomes of them."""
    return b"From: App <app@example.com>\r\n" + fields + REST


BEFORE = {
    "mailgun": (b"X-Mailgun-Tag: spring\r\n sale\r\n", b"x-mailgun-track-opens:no\r\n"),
    "mailjet": (b"X-Mailjet-Campaign: spring-sale\r\n", b"X-MAILJET-TRACKOPEN: 1\r\n"),
    "mandrill": (b"X-MC-Tags: spring sale,\r\n\tshop\r\n", b"X-MC-Track: opens\r\n"),
    "postmark": (b"X-PM-Tag: =?utf-8?q?Fr=C3=BChling?=\r\n =?utf-8?b?c2FsZQ==?=\r\n", b"X-PM-TrackOpens: true\r\n"),
    "sendgrid": (
        b'X-SMTPAPI: {"category": ["spring sale"],\r\n "filters": {"opentrack": {"settings": {"enable": 0}}}}\r\n',
    ),
}
"""Control fields of each provider: folded, in odd case, encoded, JSON."""
AFTER = {
    "mailgun": b"X-Cmail-GroupName: spring sale\r\nX-Cmail-TrackOpens: false\r\n",
    "mailjet": b"X-Cmail-GroupName: spring-sale\r\nX-Cmail-TrackOpens: true\r\n",
    "mandrill": b"X-Cmail-GroupName: spring sale\r\nX-Cmail-TrackOpens: true\r\nX-Cmail-TrackClicks: false\r\n",
    "postmark": b"X-Cmail-GroupName: =?utf-8?b?RnLDvGhsaW5nc2FsZQ==?=\r\nX-Cmail-TrackOpens: true\r\n",
    "sendgrid": b"X-Cmail-GroupName: spring sale\r\nX-Cmail-TrackOpens: false\r\n",
}
CONTROLLED = controlled(b"".join(BEFORE["mailgun"]))
TRANSLATED = controlled(AFTER["mailgun"])
TURN = 0.002
"""Enough for the proxy to read what has arrived; where it is not, the same octets arrive in fewer pieces."""


@pytest.mark.parametrize("provider", BEFORE)
def test_message_in_segments_of_one_octet_is_translated_all_the_same(
    here: Relay, session: Client, provider: str
) -> None:
    """Octet by octet, header section, body and end."""
    stream = controlled(b"".join(BEFORE[provider])) + END
    pieces = [stream[index : index + 1] for index in range(len(stream))]
    assert passed(here, session, pieces, TURN) == controlled(AFTER[provider])


def splits(stream: bytes, where: bytes) -> Iterator[list[bytes]]:
    """Cut a stream in two at every point of a part of it, both ends of the part included."""
    start = stream.index(where)
    for cut in range(start, start + len(where) + 1):
        yield [stream[:cut], stream[cut:]]


@pytest.mark.parametrize("provider", BEFORE)
def test_message_split_in_a_control_field_is_translated_all_the_same(
    here: Relay, session: Client, provider: str
) -> None:
    """Each split of each control field: inside its name, its fold, its encoded word, its JSON."""
    fields = b"".join(BEFORE[provider])
    for pieces in splits(controlled(fields) + END, fields):
        assert passed(here, session, pieces, TURN) == controlled(AFTER[provider]), pieces


@pytest.mark.parametrize(
    "where",
    [
        pytest.param(b"hi\r\n\r\nfirst", id="blank-line"),
        pytest.param(b"\r\n..dot\r\n", id="dots"),
        pytest.param(b"last\r\n.\r", id="end"),
    ],
)
def test_message_split_at_every_point_is_translated_all_the_same(here: Relay, session: Client, where: bytes) -> None:
    """Each split of the blank line, of a dotted line and of the terminator."""
    for pieces in splits(CONTROLLED + END, where):
        assert passed(here, session, pieces, TURN) == TRANSLATED, pieces


def test_end_split_in_three_is_found(here: Relay, session: Client) -> None:
    """Every way to cut the terminator twice."""
    stream = CONTROLLED + END
    tail = len(stream) - 5
    for first in range(tail, len(stream)):
        for second in range(first + 1, len(stream)):
            pieces = [stream[:first], stream[first:second], stream[second:]]
            assert passed(here, session, pieces, TURN) == TRANSLATED, (first, second)


def test_messages_in_a_row_in_one_piece_are_told_apart(here: Relay, session: Client) -> None:
    """The next transaction may begin in the segment that ends the message: a pipeline over the dot."""
    session.send(ENVELOPE)
    assert session.replies(3) == [MAIL_OK, RCPT_OK, START_MAIL]
    session.send(CONTROLLED + END + ENVELOPE)
    assert session.replies(4) == [QUEUED, MAIL_OK, RCPT_OK, START_MAIL]
    session.send(b"Subject: two\r\n\r\n" + END)
    assert session.reply() == QUEUED
    assert [without_received(taken.octets) for taken in here.upstream.taken] == [TRANSLATED, b"Subject: two\r\n\r\n"]
