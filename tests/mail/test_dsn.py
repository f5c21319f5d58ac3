"""Delivery status notifications: what others read in ours, what we read in theirs, and what peers cannot do to it."""

import base64
import email
import email.policy
import quopri
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from proxy.mail.dsn import MAX_RECIPIENTS, RETURN_WHOLE_OCTETS, RecipientStatus, Report, compose, parse

GOLDEN = Path(__file__).parent / "dsn"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SMALL = (
    b"Received: from app ([192.0.2.1])\r\n\tby mail.example.com with ESMTP id 4f2a;\r\n"
    b"\tFri, 02 Jan 2026 03:04:00 +0000\r\n"
    b"From: Shop <shop@example.com>\r\nTo: joe@example.org\r\nSubject: Your order\r\nMessage-ID: <1@example.com>\r\n"
    b"\r\nThank you.\r\n"
)
FAILED = RecipientStatus(
    "joe@example.org", "failed", "5.1.1", "mx.example.org", "550 5.1.1 no such user here", last_attempt_at=NOW
)
DELAYED = RecipientStatus(
    "ann@example.net",
    "delayed",
    "4.4.1",
    diagnostic="connect to mx.example.net: timed out",
    diagnostic_type="X-Cmail-Proxy",
    last_attempt_at=NOW,
    will_retry_until=NOW + timedelta(days=5),
)
REPORT = Report(
    "shop@example.com",
    "mail.example.com",
    (FAILED,),
    "r1@mail.example.com",
    NOW,
    NOW - timedelta(hours=1),
    "4f2a",
    SMALL,
)
UMLAUT = "j\u00fcrgen+x=1\\y@b\u00fccher.example"

REPORTS = {
    "failed": REPORT,
    "delayed": evolve(REPORT, recipients=(DELAYED,)),
    "failed-and-delayed-large": evolve(
        REPORT, recipients=(FAILED, DELAYED), content=SMALL + b"x" * 70 + b"\r\n" * 30_000
    ),
    "international": evolve(REPORT, recipients=(evolve(FAILED, address=UMLAUT),)),
    "eight-bit": evolve(REPORT, content=SMALL + b"Gr\xc3\xbc\xc3\x9fe\r\n"),
    "eight-bit-header": evolve(REPORT, content=SMALL.replace(b"Your order", "Gr\u00fc\u00dfe =\u20ac ".encode())),
    "without-the-message": evolve(REPORT, content=b"", arrived_at=None, queue_id=""),
}


def read(content: bytes) -> EmailMessage:
    """Let Python's email package read a message, and see that it finds nothing wrong."""
    message = email.message_from_bytes(content, policy=email.policy.SMTP)
    assert isinstance(message, EmailMessage)
    for part in message.walk():
        assert not part.defects, part.defects
    return message


def text_of(content: bytes) -> str:
    """The part for people, lines ending with LF."""
    part = read(content).get_body()
    assert part is not None
    text: str = part.get_content()
    return text.replace("\r\n", "\n")


def blocks(message: EmailMessage) -> list[Any]:
    """The groups of fields in the part for programs, as the email package reads them."""
    part = message.get_payload(1)
    assert isinstance(part, EmailMessage)
    assert part.get_content_type() == "message/delivery-status"
    payload = part.get_payload()
    assert isinstance(payload, list)
    return payload


@pytest.mark.parametrize("name", REPORTS)
def test_report_is_written_as_before(name: str, request: pytest.FixtureRequest) -> None:
    """Each kind of report, octet for octet."""
    written = compose(REPORTS[name])
    file = GOLDEN / f"{name}.eml"
    if request.config.getoption("--write-expected"):
        file.write_bytes(written)
    assert written == file.read_bytes()


@pytest.mark.parametrize("name", REPORTS)
def test_report_is_lawful(name: str) -> None:
    """Lines end with CRLF and are short enough, and the fields that keep robots from answering are there."""
    written = compose(REPORTS[name])
    assert b"\r\n" not in written.replace(b"\r\n", b"")
    assert b"\n" not in written.replace(b"\r\n", b"")
    assert max(map(len, written.split(b"\r\n"))) <= 998
    assert written.isascii() == (name != "eight-bit")
    message = read(written)
    assert message["From"] == "Mail Delivery System <MAILER-DAEMON@mail.example.com>"
    assert message["To"] == "shop@example.com"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["Date"] == "Fri, 02 Jan 2026 03:04:05 +0000"
    assert message["Message-ID"] == "<r1@mail.example.com>"
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert len(list(message.iter_parts())) == (2 if name == "without-the-message" else 3)


def test_fields_are_those_of_the_rfc() -> None:
    """What RFC 3464 asks for, as another program reads it."""
    about, failed, delayed = blocks(read(compose(evolve(REPORT, recipients=(FAILED, DELAYED)))))
    assert dict(about.items()) == {
        "Reporting-MTA": "dns; mail.example.com",
        "X-Queue-ID": "4f2a",
        "Arrival-Date": "Fri, 02 Jan 2026 02:04:05 +0000",
    }
    assert dict(failed.items()) == {
        "Final-Recipient": "rfc822; joe@example.org",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mx.example.org",
        "Diagnostic-Code": "smtp; 550 5.1.1 no such user here",
        "Last-Attempt-Date": "Fri, 02 Jan 2026 03:04:05 +0000",
    }
    assert dict(delayed.items()) == {
        "Final-Recipient": "rfc822; ann@example.net",
        "Action": "delayed",
        "Status": "4.4.1",
        "Diagnostic-Code": "X-Cmail-Proxy; connect to mx.example.net: timed out",
        "Last-Attempt-Date": "Fri, 02 Jan 2026 03:04:05 +0000",
        "Will-Retry-Until": "Wed, 07 Jan 2026 03:04:05 +0000",
    }


def test_text_tells_people_what_happened() -> None:
    """Who was not reached, what the other side said, and whether there is anything to do."""
    written = compose(REPORT)
    assert read(written)["Subject"] == "Undelivered mail returned to sender"
    assert "<joe@example.org>\n    mx.example.org said: 550 5.1.1 no such user here\n" in text_of(written)
    written = compose(evolve(REPORT, recipients=(DELAYED,)))
    assert read(written)["Subject"] == "Delayed mail (still being retried)"
    assert "You do not need to send your message again." in text_of(written)
    assert "until Wed, 07 Jan 2026 03:04:05 +0000." in text_of(written)
    assert "<ann@example.net>\n    connect to mx.example.net: timed out\n" in text_of(written)
    delivered = RecipientStatus("joe@example.org", "relayed", "2.0.0")
    assert read(compose(evolve(REPORT, recipients=(delivered,))))["Subject"] == "Successful mail delivery report"


def test_small_message_comes_back_whole_and_a_large_one_as_its_header_section() -> None:
    """The limit is in octets; the report stays small whatever was sent."""
    body = b"x" * 78 + b"\r\n"
    whole = SMALL + body * ((RETURN_WHOLE_OCTETS - len(SMALL)) // len(body))
    part = list(read(compose(evolve(REPORT, content=whole))).iter_parts())[2]
    assert part.get_content_type() == "message/rfc822"
    returned = part.get_content()
    assert returned["Subject"] == "Your order"
    assert "Thank you." in returned.get_content()
    large = compose(evolve(REPORT, content=whole + body))
    part = list(read(large).iter_parts())[2]
    assert part.get_content_type() == "text/rfc822-headers"
    assert (
        part.get_content().replace("\r\n", "\n")
        == SMALL.partition(b"\r\n\r\n")[0].decode().replace("\r\n", "\n") + "\n"
    )
    assert len(large) < 3000


@pytest.mark.parametrize(
    "content",
    [
        SMALL + b"y" * 2000 + b"\r\n",
        SMALL + b"bare\nline\r\n",
        SMALL + b"bare\rreturn\r\n",
        SMALL + b"nul\0\r\n",
        SMALL.replace(b"Your", b"\xff\xfe"),
        SMALL.replace(b"Your", b"z" * 3000),
        SMALL.replace(b"Your", b"nul\0 and \rreturn"),
        b"no header section at all",
        b"\r\n\r\n",
        b"X: y\r\n" * 20_000 + b"\r\nbody",
    ],
)
def test_message_that_cannot_travel_as_it_is_comes_back_as_its_header_section(content: bytes) -> None:
    """Overlong lines, NUL, stray line ends and eight-bit fields are encoded, so that the report itself is lawful."""
    written = compose(evolve(REPORT, content=content))
    assert written.isascii()
    assert b"\0" not in written
    assert max(map(len, written.split(b"\r\n"))) <= 998
    assert written.count(b"\n") == written.count(b"\r\n") == written.count(b"\r")
    assert len(written) < 200_000
    part = list(read(written).iter_parts())[2]
    assert part.get_content_type() in ("text/rfc822-headers", "message/rfc822")


def test_international_address_needs_no_special_transport() -> None:
    """The form of RFC 6533 for seven-bit reports; people read the address itself."""
    written = compose(REPORTS["international"])
    assert b"Final-Recipient: utf-8; j\\x{FC}rgen\\x{2B}x\\x{3D}1\\x{5C}y@b\\x{FC}cher.example\r\n" in written
    assert f"<{UMLAUT}>" in text_of(written)
    parsed = parse(written)
    assert parsed is not None
    assert parsed.recipients[0].address == UMLAUT


def test_report_to_an_international_address_says_what_it_needs() -> None:
    """Only the To field of such a report cannot be ASCII, so only then SMTPUTF8 is called for."""
    assert not REPORTS["international"].needs_smtputf8
    report = evolve(REPORT, to="j\u00fcrgen@example.com")
    assert report.needs_smtputf8
    assert f"To: <{report.to}>\r\n".encode() in compose(report)


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (evolve(REPORT, to=""), "no report goes to the null reverse-path"),
        (evolve(REPORT, recipients=()), "a report is about 1 to 1000 recipients"),
        (evolve(REPORT, recipients=(FAILED,) * (MAX_RECIPIENTS + 1)), "a report is about 1 to 1000 recipients"),
        (evolve(REPORT, at=None), "a report has a time and a message id"),
        (evolve(REPORT, message_id=""), "a report has a time and a message id"),
    ],
)
def test_report_that_must_not_be_is_refused(report: Report, text: str) -> None:
    """Above all: no bounce of a bounce."""
    with pytest.raises(ValueError, match=text):
        compose(report)


HOSTILE = [
    "550 5.1.1 x\r\nBcc: victim@example.net",
    "550 x\n\nFinal-Recipient: rfc822; other@example.net\nAction: failed",
    "550 x\r\n\r\n--boundary\r\nContent-Type: text/html\r\n\r\n<script>",
    "550 \x00\x01\x1b[2J\x7f\x85\u2028\u2029 text",
    "550 " + "a" * 100_000,
    "550 " + "a b " * 50_000,
    "550 " + " " * 50_000 + "x",
    "550 \udcff\ud800 \U0001f600",
    "; ; ; rfc822;",
    "\n" * 1000,
    "",
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_that_comes_from_outside_starts_a_field_or_a_part(hostile: str) -> None:
    """Reply texts, host names, addresses and ids stay inside their field, whatever is in them."""
    recipient = RecipientStatus(f"joe{hostile}@example.org", "failed", hostile, hostile, hostile, hostile)
    report = evolve(REPORT, to=f"x{hostile}@example.com", recipients=(recipient, FAILED), queue_id=hostile)
    written = compose(report)
    assert written.count(b"\n") == written.count(b"\r\n") == written.count(b"\r")
    assert max(map(len, written.split(b"\r\n"))) <= 998
    assert len(written) < 20_000
    message = email.message_from_bytes(written, policy=email.policy.SMTP)
    assert [name.lower() for name in message] == [name.lower() for name in read(compose(REPORT))]
    assert [part.get_content_type() for part in message.walk()][:3] == [
        "multipart/report",
        "text/plain",
        "message/delivery-status",
    ]
    about, first, second = blocks(message)
    assert set(about) <= {"Reporting-MTA", "X-Queue-ID", "Arrival-Date"}
    assert set(first) <= {"Final-Recipient", "Action", "Status", "Remote-MTA", "Diagnostic-Code"}
    assert first["Status"] == "5.0.0"
    assert second["Final-Recipient"] == "rfc822; joe@example.org"


def test_message_that_holds_a_report_changes_nothing() -> None:
    """The boundary depends on all that is inside, so nothing inside can know it."""
    inner = compose(REPORT)
    outer = compose(evolve(REPORT, content=inner))
    message = read(outer)
    assert len(list(message.iter_parts())) == 3
    parsed = parse(outer)
    assert parsed is not None
    assert parsed.content == inner
    assert compose(evolve(REPORT, content=outer)) != outer


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=80)
_PLAIN = st.text("abcXYZ019.-_", min_size=1, max_size=20)
_WORDS = st.lists(st.text("ab;:<>()\"'\\@=%1", min_size=1, max_size=30), min_size=1, max_size=20).map(" ".join)
_TIME = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(
    lambda at: at.replace(microsecond=0)
)
_LOCAL = st.one_of(_PLAIN, st.just('"a  b; <x>"'), st.text("\u00fc\u20ac\U0001f600\\+=ab", min_size=1, max_size=40))


@st.composite
def recipients(draw: st.DrawFn) -> RecipientStatus:
    """What delivery knows of one recipient."""
    return RecipientStatus(
        address=f"{draw(_LOCAL)}@{draw(_PLAIN)}",
        action=draw(st.sampled_from(["failed", "delayed", "delivered", "relayed", "expanded"])),
        status=draw(st.sampled_from(["5.1.1", "4.4.7", "2.1.5", "5.999.123"])),
        remote_mta=draw(st.one_of(st.just(""), _PLAIN, st.just("[IPv6:2001:db8::1]"))),
        diagnostic=draw(st.one_of(st.just(""), _WORDS)),
        diagnostic_type=draw(st.sampled_from(["smtp", "X-Cmail-Proxy"])),
        last_attempt_at=draw(st.one_of(st.none(), _TIME)),
        will_retry_until=draw(st.one_of(st.none(), _TIME)),
    )


@given(st.lists(recipients(), min_size=1, max_size=5), _TIME, st.one_of(st.none(), _TIME), st.lists(_WORDS, max_size=5))
def test_what_is_written_is_read_back(
    each: list[RecipientStatus], at: datetime, arrived: datetime | None, lines: list[str]
) -> None:
    """Every value comes out as it went in; the text of a reply as one line."""
    content = SMALL + "".join(f"{line}\r\n" for line in lines).encode()
    report = evolve(REPORT, recipients=tuple(each), at=at, arrived_at=arrived, content=content)
    expected = [evolve(one, diagnostic_type=one.diagnostic_type if one.diagnostic else "smtp") for one in each]
    assert parse(compose(report)) == evolve(report, recipients=tuple(expected))


@given(_TEXT, _TEXT, _TEXT, st.binary(max_size=500))
def test_any_text_gives_a_lawful_report(reply: str, host: str, address: str, content: bytes) -> None:
    """No text makes a report that other programs read differently."""
    recipient = RecipientStatus(address, "failed", "5.1.1", host, reply)
    written = compose(evolve(REPORT, recipients=(recipient,), content=SMALL + content))
    assert written.count(b"\n") == written.count(b"\r\n") or b"\n" in content
    _about, first = blocks(email.message_from_bytes(written, policy=email.policy.SMTP))
    assert first["Status"] == "5.1.1"
    assert set(first) <= {"Final-Recipient", "Action", "Status", "Remote-MTA", "Diagnostic-Code"}
    parsed = parse(written)
    assert parsed is not None
    assert len(parsed.recipients) <= 1


@given(st.binary(max_size=400))
def test_any_octets_are_read_or_refused(content: bytes) -> None:
    """No message makes the reader fail."""
    parse(content)
    head = b"Content-Type: multipart/report; boundary=b\n\n--b\nContent-Type: message/delivery-status\n\n"
    parsed = parse(head + content)
    assert parsed is not None
    for each in parsed.recipients:
        assert not set(each.address + each.diagnostic + each.remote_mta) & set(map(chr, (*range(32), *range(127, 160))))


FOREIGN = """\
From: MAILER-DAEMON
To: Sender <sender@example.com>
Content-Type: Multipart/Report; REPORT-TYPE=delivery-status;
 Boundary = "=_b"

Ignored.
--=_b
Content-Type: text/plain

Sorry.
--=_b
Content-Type: message/delivery-status
Content-Transfer-Encoding: {encoding}

{status}
--=_b
Content-Type: text/rfc822-headers

Subject: hello

--=_b--
"""
STATUS = """\
reporting-mta: DNS;mx.example.org
Arrival-Date: Thu, 1 Jan 2026 12:00:00 +0100 (CET)

Original-Recipient: rfc822;first@example.org
Final-Recipient: RFC822;<First@Example.org>
Action: failed (bad destination)
Status: 5.1.1 (no such user)
Remote-MTA: dns;mx.example.org (192.0.2.1)
Diagnostic-Code: smtp;550
 5.1.1 No such
\tuser

Final-Recipient: second@example.org
Action: error

Final-Recipient: rfc822; third@example.org
Action: unheard-of

Action: failed
Status: 5.0.0
"""


def test_reports_of_others_are_read() -> None:
    """Odd case, LF alone, comments, folding, missing types, and recipients that cannot be used."""
    parsed = parse(FOREIGN.format(encoding="7bit", status=STATUS).encode())
    assert parsed is not None
    assert parsed.to == "sender@example.com"
    assert parsed.reporting_mta == "mx.example.org"
    assert parsed.arrived_at == datetime(2026, 1, 1, 11, 0, 0, tzinfo=UTC)
    assert parsed.at is None
    assert parsed.content == b"Subject: hello\r\n"
    assert parsed.recipients == (
        RecipientStatus("First@Example.org", "failed", "5.1.1", "mx.example.org (192.0.2.1)", "550 5.1.1 No such user"),
        RecipientStatus("second@example.org", "failed", ""),
    )


@pytest.mark.parametrize(
    ("encoding", "status"),
    [
        ("base64", base64.encodebytes(STATUS.encode()).decode()),
        ("quoted-printable", quopri.encodestring(STATUS.encode()).decode()),
        ("Quoted-Printable", quopri.encodestring(STATUS.encode()).decode()),
    ],
)
def test_encoded_status_is_read(encoding: str, status: str) -> None:
    """RFC 3464 forbids it and gateways do it."""
    plain = parse(FOREIGN.format(encoding="7bit", status=STATUS).encode())
    assert parse(FOREIGN.format(encoding=encoding, status=status).encode()) == plain


def test_report_inside_another_multipart_is_read() -> None:
    """Gateways that add a footer wrap the report; recipients are read without the fields about the whole, too."""
    status = STATUS.partition("\n\n")[2]
    inner = FOREIGN.format(encoding="7bit", status=status)
    wrapped = f"Content-Type: multipart/mixed; boundary=w\n\n--w\n{inner}\n--w\n\nfooter\n--w--\n"
    parsed = parse(wrapped.encode())
    assert parsed is not None
    assert [each.address for each in parsed.recipients] == ["First@Example.org", "second@example.org"]
    assert parsed.reporting_mta == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        SMALL,
        b"Content-Type: multipart/report; report-type=delivery-status\r\n\r\nno boundary\r\n",
        b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\n\r\nhuman text only\r\n--b--\r\n",
        b"Content-Type: multipart/report; report-type=disposition-notification; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: message/disposition-notification\r\n\r\nDisposition: displayed\r\n--b--\r\n",
    ],
)
def test_message_without_a_delivery_status_is_none(content: bytes) -> None:
    """Ordinary mail, and other kinds of report."""
    assert parse(content) is None


def _deep() -> bytes:
    head = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(2000))
    return head + b"Content-Type: message/delivery-status\n\nFinal-Recipient: rfc822; a@b\nAction: failed\n"


_STATUS_HEAD = b"Content-Type: multipart/report; boundary=b\n\n--b\nContent-Type: message/delivery-status\n\n"


@pytest.mark.parametrize(
    "content",
    [
        _deep(),
        b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\n" * 500_000,
        b"Content-Type: multipart/mixed; boundary=b\n\n"
        + b"--b\nContent-Type: multipart/mixed; boundary=b\n\n" * 50_000,
        _STATUS_HEAD + b"Final-Recipient: rfc822; a@b\nAction: failed\n\n" * 60_000,
        _STATUS_HEAD + b"\n \t" * 1_000_000,
        _STATUS_HEAD + b"Final-Recipient: rfc822; " + b"\\x{41}" * 500_000,
        b"Content-Type: multipart/mixed;" + b"; boundary " * 300_000 + b"\n\nx",
        b"\r" * 4_000_000 + b"\n",
        b"Date: " + b"1" * 1_000_000 + b"\n" + _STATUS_HEAD,
    ],
    ids=range(9),
)
def test_reading_is_bounded(content: bytes) -> None:
    """Deep, wide and endless reports cost no more than their length."""
    parsed = parse(content)
    assert parsed is None or len(parsed.recipients) <= MAX_RECIPIENTS


def test_failure_and_delay_are_found_by_mailman() -> None:
    """The detector of Mailman, not ours and made to find recipients in bounces, finds exactly ours."""
    bounce: Any = pytest.importorskip("flufl.bounce")
    for recipient, expected in ((FAILED, (set(), {b"joe@example.org"})), (DELAYED, ({b"ann@example.net"}, set()))):
        message = email.message_from_bytes(compose(evolve(REPORT, recipients=(recipient,))))
        temporary, permanent = bounce.all_failures(message)
        assert (set(temporary), set(permanent)) == expected
    both = email.message_from_bytes(compose(evolve(REPORT, recipients=(FAILED, DELAYED))))
    assert [set(found) for found in bounce.all_failures(both)] == [{b"ann@example.net"}, {b"joe@example.org"}]
