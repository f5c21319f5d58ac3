"""
End-of-data variants: only CRLF.CRLF ends a message here, and no next hop, however loosely it reads, sees another end.

Source: RFC 5321, 2.3.8 and 4.1.1.4.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.smtp_in.dialogue import QUEUED, Client
from tests.smtp_in.lenient import READINGS, LenientHop
from tests.smtp_in.site import MESSAGE, Site, site
from tests.support.proxy_process import ProxyProcess, settings

REFUSED = "554 5.6.0 The message has a bare CR or LF; lines must end with CRLF"

VARIANTS = [
    pytest.param(b"\n.\n", True, id="LF.LF"),
    pytest.param(b"\n.\r\n", True, id="LF.CRLF"),
    pytest.param(b"\r\n.\n", True, id="CRLF.LF"),
    pytest.param(b"\r.\r", True, id="CR.CR"),
    pytest.param(b"\r\n.\r", True, id="CRLF.CR"),
    pytest.param(b"\r.\r\n", True, id="CR.CRLF"),
    pytest.param(b"\r.\n", True, id="CR.LF"),
    pytest.param(b"\n.\r", True, id="LF.CR"),
    pytest.param(b"\r\r\n.\r\r\n", True, id="CRCRLF.CRCRLF"),
    pytest.param(b"\r\n.\r\r\n", True, id="CRLF.CRCRLF"),
    pytest.param(b"\n\r.\n\r", True, id="LFCR.LFCR"),
    pytest.param(b"\r\n\0.\r\n", False, id="CRLF-NUL.CRLF"),
    pytest.param(b"\r\n.\0\r\n", False, id="CRLF.NUL-CRLF"),
    pytest.param(b"\r\n\0.\0\r\n", False, id="CRLF-NUL.NUL-CRLF"),
    pytest.param(b"\r\0\n.\r\0\n", True, id="CR-NUL-LF.CR-NUL-LF"),
    pytest.param(b"\n\0.\n", True, id="LF-NUL.LF"),
    pytest.param(b"\r\n. \r\n", False, id="CRLF.SP-CRLF"),
    pytest.param(b"\r\n..\r\n", False, id="CRLF..CRLF"),
]
SMUGGLED = (
    b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<victim@example.net>\r\nDATA\r\nSubject: smuggled\r\n\r\nevil\r\n.\r\n"
)
HEAD = b"Subject: one\r\n\r\nfirst line"


@pytest.fixture(scope="module")
def hop() -> Iterator[LenientHop]:
    """A next hop that reads as it is told to."""
    with LenientHop() as started:
        yield started


@pytest.fixture(scope="module")
def proxy(hop: LenientHop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """The proxy before it, with default settings."""
    with ProxyProcess(tmp_path_factory.mktemp("smuggling"), settings(hop.port)) as started:
        yield started


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy that refuses bare line ends."""
    with site(tmp_path_factory.mktemp("refusing"), smtp={"bare_newline": "refuse"}) as started:
        yield started


def pieces_of(variant: bytes) -> list[tuple[bytes, ...]]:
    """The whole transaction in one segment, and cut in two at every place in and around the variant."""
    # A strict end: the commands behind it are the client's own, so here it stands only at the very end.
    whole = HEAD + variant + SMUGGLED
    begin = len(HEAD)
    cuts = range(begin, begin + len(variant) + 1)
    return [(whole,), *((whole[:cut], whole[cut:]) for cut in cuts)]


def send(client: Client, pieces: tuple[bytes, ...]) -> None:
    """Send each piece in a segment of its own."""
    first, *rest = pieces
    client.send(first)
    for piece in rest:
        time.sleep(0.003)  # time for the first piece to be read alone; the outcome must be the same if it is not
        client.send(piece)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(("variant", "_bare"), VARIANTS)
def test_no_variant_of_the_end_smuggles_a_message(
    proxy: ProxyProcess, hop: LenientHop, variant: bytes, _bare: bool, reading: str
) -> None:
    """
    One message comes in, one leaves, and the next hop finds one, whole or split, however loosely it reads; what was to
    be smuggled is text in its body.
    """
    hop.reading = reading
    with Client(proxy.port) as client:
        for pieces in pieces_of(variant):
            hop.messages.clear()
            hop.commands.clear()
            client.envelope()
            send(client, pieces)
            assert client.reply() == QUEUED
            assert client.say("NOOP") == "250 2.0.0 OK"
            (message,) = hop.messages
            assert b"evil" in message
            assert [command[:4] for command in hop.commands if command[:4] not in (b"EHLO", b"QUIT")] == [
                b"MAIL",
                b"RCPT",
                b"DATA",
            ]


@pytest.mark.parametrize("reading", READINGS)
def test_strict_end_with_commands_behind_it_makes_two_messages(
    proxy: ProxyProcess, hop: LenientHop, reading: str
) -> None:
    """The one true end is seen, so a client may pipeline its own next message behind it."""
    hop.reading = reading
    hop.messages.clear()
    with Client(proxy.port) as client:
        client.envelope()
        client.send(HEAD + b"\r\n.\r\n" + SMUGGLED)
        replies = client.replies(5)
        assert [reply[:3] for reply in replies] == ["250", "250", "250", "354", "250"]
    assert [message[-1] for message in hop.messages] == [b"first line", b"evil"]


@pytest.mark.parametrize(("variant", "bare"), VARIANTS)
def test_bare_line_ends_are_refused_where_so_set(refusing: Site, variant: bytes, bare: bool) -> None:
    """`smtp.bare_newline: refuse`: 554 and nothing is sent; what only looks odd, with CRLF everywhere, passes."""
    for pieces in pieces_of(variant):
        refusing.forget()
        with refusing.client() as client:
            client.envelope()
            send(client, pieces)
            assert client.reply() == (REFUSED if bare else QUEUED)
            assert client.say("NOOP") == "250 2.0.0 OK"
        assert len(refusing.upstream.taken) == (not bare)


def test_bare_line_end_late_in_a_large_message_is_refused_without_sending_it(refusing: Site) -> None:
    """When it shows up after the message began to stream, the platform never gets its end."""
    refusing.forget()
    before = refusing.proxy.metric("cmail_proxy_messages_refused_total", reason="bare_newline")
    with refusing.client() as client:
        assert client.data(HEAD + b"\r\n" + b"line\r\n" * 100_000 + b"bare\nline\r\n.\r\n") == REFUSED
        assert refusing.upstream.taken == []
        assert client.data(MESSAGE) == QUEUED
    assert len(refusing.upstream.taken) == 1
    assert refusing.proxy.metric("cmail_proxy_messages_refused_total", reason="bare_newline") == before + 1


def test_bare_line_ends_in_the_header_section_make_the_same_fields_for_all(
    proxy: ProxyProcess, hop: LenientHop
) -> None:
    """A control field after a bare LF is one for us, as it would be for a lenient hop; a bare CR begins no field."""
    content = b"Subject: x\nX-Mailgun-Tag: after-lf\r\nX-Other: a\rX-PM-Tag: after-cr\r\n\r\nbody\r\n.\r\n"
    for reading in READINGS:
        hop.reading = reading
        hop.messages.clear()
        with Client(proxy.port) as client:
            assert client.data(content) == QUEUED
        (message,) = hop.messages
        assert message[3:] == [
            b"Subject: x",
            b"X-Cmail-GroupName: after-lf",
            b"X-Other: a X-PM-Tag: after-cr",
            b"",
            b"body",
        ]


def test_mended_message_is_logged_as_such(refusing: Site, tmp_path: Path) -> None:
    """The log line says when line ends had to be mended, so an operator finds the app that writes them."""
    with site(tmp_path) as here, here.client() as client:
        assert client.data(b"Subject: x\n\nbody\n\r\n.\r\n") == QUEUED
        assert here.content() == b"Subject: x\r\n\r\nbody\r\n\r\n"
        assert here.lines()[0]["line_ends_mended"] is True
        here.forget()
        assert client.data(MESSAGE) == QUEUED
        assert here.lines()[0]["line_ends_mended"] is False
