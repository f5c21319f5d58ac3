"""Hostile input: each kind gets a proper code or a close, and the same process serves the next client."""

import base64
import contextlib
import json
import socket
from collections.abc import Iterator
from email import message_from_bytes, policy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.smtp_in.dialogue import QUEUED, START_MAIL, base64_of, trusting
from tests.smtp_in.site import MESSAGE, Site, site
from tests.support.proxy_process import TOKEN

PLAIN, IMPLICIT, AUTO, WITH_AUTH = range(4)
"""Listeners of the shared proxy, by their place in the settings."""

BAD_LINE = "500 5.5.2 Commands are printable text and end with CRLF"
TOO_LONG = "500 5.5.2 Command line too long"
UNKNOWN = "500 5.5.1 Command not recognized"
HEADER_TOO_LARGE = "552 5.3.4 The header section is too large"
OK = "250 2.0.0 OK"
MEGABYTE = b"x" * 1_000_000


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy with default limits."""
    base = {"address": "127.0.0.1", "port": 0, "auth": "none"}
    with site(
        tmp_path_factory.mktemp("bad"),
        tls={"self_signed": True},
        listeners=[
            {**base, "tls": "starttls"},
            {**base, "tls": "implicit"},
            {**base, "tls": "auto"},
            {**base, "tls": "starttls", "auth": "required"},
        ],
        tokens=[{"name": "tests", "token": TOKEN}],
    ) as started:
        yield started


@pytest.fixture
def here(shared: Site) -> Iterator[Site]:
    """The shared proxy; whatever a test did to it, it serves the next client."""
    shared.forget()
    yield shared
    shared.serves()


def remark(here: Site) -> list[str]:
    """The remarks in the log line of the only message."""
    (line,) = here.lines()
    remarks = line["remarks"]
    assert isinstance(remarks, list)
    return remarks


# Commands


def test_megabyte_without_newline_as_command_is_refused_and_closed(here: Site) -> None:
    """500, and the end of the connection long before the megabyte was read."""
    with here.client() as client:
        with contextlib.suppress(ConnectionError):  # closed while the megabyte was on its way
            client.send(MEGABYTE)
        assert client.reply() == TOO_LONG
        assert client.closed()


def test_overlong_command_is_refused_before_its_end_came(here: Site) -> None:
    """500 comes as soon as the longest line of all is exceeded, then the connection is closed."""
    with here.client() as client:
        client.send(b"NOOP " + b"x" * 13_000)
        assert client.reply() == TOO_LONG
        assert client.closed()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param(b"NOOP\n", BAD_LINE, id="bare-lf"),
        pytest.param(b"RSET\r\r\n", BAD_LINE, id="two-crs"),
        pytest.param(b"NOOP a\rb\r\n", BAD_LINE, id="cr-inside"),
        pytest.param(b"NOOP\rNOOP\r\n", BAD_LINE, id="cr-between-commands"),
        pytest.param(b"NOOP a\0b\r\n", BAD_LINE, id="nul-in-argument"),
        pytest.param(b"NO\0OP\r\n", BAD_LINE, id="nul-in-verb"),
        pytest.param(b"\0\r\n", BAD_LINE, id="nul-alone"),
        pytest.param(b"NOOP \x1b[2J\r\n", BAD_LINE, id="terminal-escape"),
        pytest.param(b"NOOP a\tb\r\n", BAD_LINE, id="tab"),
        pytest.param(b"NOOP \xff\xfe\r\n", BAD_LINE, id="octets-that-are-no-utf8"),
        pytest.param("NOOP \u2028\r\n".encode(), BAD_LINE, id="line-separator"),
        pytest.param("NOOP \u202e\r\n".encode(), BAD_LINE, id="direction-override"),
        pytest.param(b"\xc3\xa4\r\n", UNKNOWN, id="verb-outside-ascii"),
        pytest.param(b"\r\n", UNKNOWN, id="empty"),
        pytest.param(b"MAIL FROM:<a@example.com\0>\r\n", BAD_LINE, id="nul-in-sender"),
        pytest.param(b"MAIL FROM:<a@example.com>\n", BAD_LINE, id="mail-with-bare-lf"),
    ],
)
def test_command_with_odd_octets_is_refused_without_echo(here: Site, line: bytes, expected: str) -> None:
    """What is no printable line with CRLF gets 500, nothing of it comes back, and the session stays in step."""
    with here.client() as client:
        client.send(line + b"NOOP\r\n")
        assert client.replies(2) == [expected, OK]


@pytest.mark.parametrize(
    "address",
    [
        pytest.param(b'"a\rRCPT TO:<x@evil.test>\r"@example.test', id="bare-cr-in-quotes"),
        pytest.param(b'"a\0"@example.test', id="nul-in-quotes"),
        pytest.param(b'"a\nRCPT TO:<x@evil.test>"@example.test', id="bare-lf-in-quotes"),
    ],
)
def test_recipient_with_control_octets_never_reaches_the_platform(here: Site, address: bytes) -> None:
    """No control character in an address is taken, so none can make a second command upstream."""
    with here.client() as client:
        assert client.say("MAIL FROM:<app@example.com>") == "250 2.1.0 OK"
        client.send(b"RCPT TO:<" + address + b">\r\n")
        assert client.reply() == BAD_LINE
    assert not [command for command in here.commands() if "evil.test" in command]


def test_answer_to_auth_with_bare_lf_is_refused(here: Site) -> None:
    """A line of AUTH ends with CRLF, as every other."""
    with here.client(WITH_AUTH) as client:
        assert client.say("AUTH PLAIN") == "334 "
        client.send(base64_of(f"\0{TOKEN}\0{TOKEN}").encode() + b"\n")
        assert client.reply() == BAD_LINE
        assert client.say("NOOP") == OK


@pytest.mark.parametrize("index", [PLAIN, IMPLICIT, AUTO])
@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), id="client-hello-of-nobody"),
        pytest.param(b"\x16", id="one-octet-of-tls"),
        pytest.param(b"\xff" * 3000, id="high-octets"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20, id="http"),
    ],
)
def test_other_protocols_cost_one_connection(here: Site, index: int, octets: bytes) -> None:
    """What is no SMTP, or no TLS, ends at worst its own connection."""
    with here.client(index, greeted=False) as client:
        with contextlib.suppress(OSError):  # the proxy may have closed before the last of it
            client.send(octets)
            client.sock.shutdown(socket.SHUT_WR)
        said = 0
        with contextlib.suppress(ConnectionError):
            while data := client.sock.recv(65536):
                said += len(data)
        assert said < 5000


# Header sections and bodies


def test_megabyte_without_newline_in_the_header_section_is_refused(here: Site) -> None:
    """552 at the dot; nothing goes upstream."""
    with here.client() as client:
        assert client.data(b"X-Long: " + MEGABYTE + b"\r\n\r\nbody\r\n.\r\n") == HEADER_TOO_LARGE
        assert client.data(MESSAGE) == QUEUED
    assert len(here.upstream.taken) == 1


def test_megabyte_without_newline_in_the_body_is_passed_on(here: Site) -> None:
    """Real mail has lines without end: it arrives as it is."""
    with here.client() as client:
        assert client.data(b"Subject: x\r\n\r\n" + MEGABYTE + b"\r\n.\r\n") == QUEUED
    assert here.content() == b"Subject: x\r\n\r\n" + MEGABYTE + b"\r\n"


def test_ten_thousand_fields_are_refused(here: Site) -> None:
    """A header section with more fields than mail has is refused, however small they are."""
    with here.client() as client:
        assert client.data(b"A: b\r\n" * 10_000 + b"\r\nbody\r\n.\r\n") == HEADER_TOO_LARGE
    assert here.upstream.taken == []


def test_thousand_control_fields_are_translated(here: Site) -> None:
    """As many fields as are allowed, all of them controls: the first counts, all are removed."""
    with here.client() as client:
        assert client.data(b"X-Mailgun-Tag: many\r\n" * 999 + b"Subject: x\r\n\r\nbody\r\n.\r\n") == QUEUED
    assert here.header() == b"X-Cmail-GroupName: many\r\nSubject: x\r\n"


def test_header_section_of_5_mb_is_refused(here: Site) -> None:
    """552, and the connection is good for the next message."""
    with here.client() as client:
        assert client.data((b"X-Filler: " + b"x" * 980 + b"\r\n") * 5000 + b"\r\nbody\r\n.\r\n") == HEADER_TOO_LARGE
        assert client.data(MESSAGE) == QUEUED
    assert len(here.upstream.taken) == 1


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\r\n", id="blank-line"),
        pytest.param(b"no field at all\r\n", id="no-field"),
        pytest.param(b": no name\r\n\r\nbody\r\n", id="no-name"),
        pytest.param(b" continuation first\r\nSubject: x\r\n\r\nbody\r\n", id="continuation-first"),
        pytest.param(b"Subject\r\n\r\nbody\r\n", id="no-colon"),
        pytest.param(b"S\xc3\xbcbject: x\r\n\r\nbody\r\n", id="name-outside-ascii"),
        pytest.param(b"X-Mailgun-Tag: \xff\xfe\r\n\r\n\xff\xfe\r\n", id="octets-of-no-charset"),
        pytest.param(b"X-Mailgun-Tag: =?idna?q?a?= =?zlib?b?eJw=?= =?utf-8?b?####?=\r\n\r\n", id="odd-encoded-words"),
        pytest.param(b"Subject: x\0y\r\n\r\nb\0dy\r\n", id="nul"),
        pytest.param(b"X-SMTPAPI:\r\nX-SMTPAPI: 5\r\nX-SMTPAPI: []\r\n\r\n", id="json-that-is-no-object"),
    ],
)
def test_message_that_is_hardly_one_is_passed_on(here: Site, content: bytes) -> None:
    """A damaged message is the platform's to judge: nothing in it stops the proxy."""
    with here.client() as client:
        assert client.data(content + b".\r\n") == QUEUED
    assert len(here.upstream.taken) == 1


# JSON and encoded words


def smtpapi(document: str) -> bytes:
    """A message with that X-SMTPAPI."""
    return b"X-SMTPAPI: " + document.encode() + b"\r\nSubject: x\r\n\r\nbody\r\n.\r\n"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(
            '{"category": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "invalid_value: X-SMTPAPI: JSON nested too deep; nothing in it is used",
            id="lists-nested-100000-deep",
        ),
        pytest.param(
            '{"a":' * 40_000 + "1" + "}" * 40_000,
            "invalid_value: X-SMTPAPI: JSON nested too deep; nothing in it is used",
            id="objects-nested-40000-deep",
        ),
        pytest.param("[" * 100_000, "invalid_value: X-SMTPAPI: JSON nested too deep; nothing in it is used", id="open"),
        pytest.param(
            '{"category": ' + "9" * 5000 + "}", "invalid_value: X-SMTPAPI: not JSON; nothing in it is used", id="number"
        ),
        pytest.param(
            '{"category": NaN}', "invalid_value: X-SMTPAPI: not JSON; nothing in it is used", id="not-a-number"
        ),
        pytest.param("{bad", "invalid_value: X-SMTPAPI: not JSON; nothing in it is used", id="cut"),
    ],
)
def test_json_that_cannot_be_read_sets_nothing_and_is_logged(here: Site, document: str, expected: str) -> None:
    """The message passes without the field, and the log says why."""
    with here.client() as client:
        assert client.data(smtpapi(document)) == QUEUED
    assert here.header() == b"Subject: x\r\n"
    assert remark(here) == [expected]


def test_json_with_a_key_twice_counts_the_last_one(here: Site) -> None:
    """The last one counts, as in every JSON library, and it is logged."""
    with here.client() as client:
        assert client.data(smtpapi('{"category": "first", "category": "last"}')) == QUEUED
    assert here.header() == b"X-Cmail-GroupName: last\r\nSubject: x\r\n"
    assert remark(here) == ["repeated_key: X-SMTPAPI: a key occurs twice in one object; the last one counts"]


def test_json_with_lone_surrogates_leaves_as_text(here: Site) -> None:
    """Half a surrogate pair becomes the replacement character, in the field and in the log."""
    with here.client() as client:
        assert client.data(smtpapi(r'{"category": "a\ud800b\udc00"}')) == QUEUED
    assert here.header() == b"X-Cmail-GroupName: =?utf-8?b?Ye+/vWLvv70=?=\r\nSubject: x\r\n"
    assert here.lines()[0]["group"] == "a\ufffdb\ufffd"


def word(octets: bytes, charset: str = "utf-8") -> str:
    """An RFC 2047 encoded word."""
    return f"=?{charset}?b?{base64.b64encode(octets).decode()}?="


INJECTIONS = [
    pytest.param("X-SMTPAPI", '{"category": "a\\r\\nBcc: evil@example.com"}', id="json-crlf"),
    pytest.param("X-SMTPAPI", '{"category": "a\\nBcc: evil@example.com"}', id="json-lf"),
    pytest.param("X-SMTPAPI", '{"category": "a\\rBcc: evil@example.com"}', id="json-cr"),
    pytest.param("X-SMTPAPI", '{"category": "a\\u000d\\u000aBcc: evil@example.com"}', id="json-unicode-escape"),
    pytest.param("X-SMTPAPI", '{"category": "a\\u0000\\r\\n\\r\\nBcc: evil@example.com"}', id="json-nul-and-end"),
    pytest.param("X-SMTPAPI", '{"category": "a\\u2028Bcc: evil@example.com"}', id="json-line-separator"),
    pytest.param("X-SMTPAPI", '{"category": "a\\u0085Bcc: evil@example.com"}', id="json-next-line"),
    pytest.param("X-SMTPAPI", word(b'{"category": "a\\r\\nBcc: evil@example.com"}'), id="json-in-encoded-word"),
    pytest.param("X-Mailgun-Tag", word(b"a\r\nBcc: evil@example.com"), id="word-crlf"),
    pytest.param("X-Mailgun-Tag", word(b"a\nBcc: evil@example.com"), id="word-lf"),
    pytest.param("X-PM-Tag", word(b"a\rBcc: evil@example.com"), id="word-cr"),
    pytest.param("X-MC-Tags", word(b"a\0\r\nBcc: evil@example.com"), id="word-nul"),
    pytest.param("X-MJ-Campaign", "=?utf-8?q?a=0D=0ABcc=3A_evil=40example.com?=", id="word-quoted"),
    pytest.param("X-Mailgun-Tag", word("a\r\nBcc: evil@example.com".encode("utf-16"), "utf-16"), id="word-utf16"),
    pytest.param(
        "X-Mailgun-Tag", "=?utf-8?b?YQ0=?= =?utf-8?b?CkJjYzogZXZpbEBleGFtcGxlLmNvbQ==?=", id="crlf-over-two-words"
    ),
]


@pytest.mark.parametrize(("name", "value"), INJECTIONS)
def test_line_end_inside_a_value_makes_no_field(here: Site, name: str, value: str) -> None:
    """However a CR, LF or NUL is wrapped, what leaves is one group field whose value has no control character."""
    content = f"{name}: {value}\r\nSubject: x\r\n\r\nbody\r\n.\r\n".encode()
    with here.client() as client:
        assert client.data(content) == QUEUED
    header = here.header()
    assert b"\0" not in header
    assert not [line for line in header.splitlines() if line.lower().startswith(b"bcc")]
    parsed = message_from_bytes(header + b"\r\n", policy=policy.default)
    assert parsed.keys() == ["X-Cmail-GroupName", "Subject"]
    group = str(parsed["X-Cmail-GroupName"])
    assert group.isprintable()
    assert group.startswith("a")
    assert group.endswith("Bcc: evil@example.com")


# Anything


WORDS = st.sampled_from(
    [
        b"EHLO a\r\n", b"HELO a\r\n", b"MAIL FROM:<a@example.com>\r\n", b"RCPT TO:<b@example.net>\r\n", b"DATA\r\n",
        b"STARTTLS\r\n", b"AUTH PLAIN\r\n", b"AUTH LOGIN\r\n", b"RSET\r\n", b"NOOP\r\n", b"QUIT\r\n", b"\r\n.\r\n",
        b".\r\n",
        b"X-SMTPAPI: {\"category\": \"x\"}\r\n", b"X-Mailgun-Tag: =?utf-8?q?=0D=0A?=\r\n", b"\r\n", b"\n", b"\r", b"\0",
        b"*\r\n", b"=\r\n", b".\n", b"\r.\r", b" ", b":", b"<", b">", b'"', b"\\",
    ]
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.one_of(WORDS, st.binary(max_size=40)), max_size=25))
def test_random_octets_as_a_session_end_in_replies_or_a_close(here: Site, pieces: list[bytes]) -> None:
    """Whatever a client sends, it hears well-formed replies until the end, and nothing breaks inside."""
    with here.client(greeted=False) as client:
        client.send(b"EHLO app.example.com\r\n")
        with contextlib.suppress(OSError):  # the proxy may have closed before the last of it
            client.send(b"".join(pieces))
            client.sock.shutdown(socket.SHUT_WR)
        while reply := client.reply():
            if reply.startswith("220 2.0.0"):  # STARTTLS worked: what comes is TLS, mostly an alert
                break
            assert reply[:3].isdecimal()
            assert 200 <= int(reply[:3]) < 600
            assert reply.isascii()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(octets=st.binary(max_size=300))
def test_random_octets_inside_tls_end_in_replies_or_a_close(here: Site, octets: bytes) -> None:
    """The same inside TLS."""
    with here.client(IMPLICIT, context=trusting()) as client:
        client.send(octets + b"\r\n.\r\nQUIT\r\n")
        while reply := client.reply():
            assert reply[:3].isdecimal()


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["X-SMTPAPI", "X-Mailgun-Tag", "X-MC-Track", "X-PM-Tag", "X-MJ-EventPayload", "Subject"]),
    value=st.one_of(
        st.binary(max_size=120), st.text(max_size=60).map(lambda text: json.dumps({"category": text}).encode())
    ),
)
def test_random_values_of_fields_get_an_answer(here: Site, name: str, value: bytes) -> None:
    """Whatever stands in a control field, the message is sent or refused for a reason, never lost."""
    here.forget()
    with here.client() as client:
        client.envelope()
        client.send(name.encode() + b": " + value + b"\r\n\r\nbody\r\n.\r\n")
        reply = client.reply()
        assert reply == QUEUED or reply.startswith("554 5.6.0 ")
        assert len(here.upstream.taken) == (reply == QUEUED)


def test_connections_broken_at_every_point_cost_nothing(here: Site) -> None:
    """A reset after any command, or in the middle of a message, leaves the proxy as it was."""
    script = [b"EHLO app\r\n", b"MAIL FROM:<a@example.com>\r\n", b"RCPT TO:<b@example.net>\r\n", b"DATA\r\n"]
    for count in range(len(script) + 1):
        client = here.client(extended=False)
        for line in script[:count]:
            client.send(line)
            client.reply()
        client.reset()
    client = here.client()
    client.envelope()
    client.send(b"Subject: half\r\n\r\nhalf a mes")
    client.reset()
    with here.client() as good:
        assert good.say("MAIL FROM:<app@example.com>") == "250 2.1.0 OK"
        assert good.say("RCPT TO:<ann@example.net>") == "250 2.1.5 recipient fine"
        assert good.say("DATA") == START_MAIL
        good.send(MESSAGE)
        assert good.reply() == QUEUED
    assert len(here.upstream.taken) == 1
