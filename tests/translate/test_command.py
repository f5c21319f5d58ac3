"""One whole message through the rules, as ``translate`` does it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.mail.data_stage import mend_line_ends
from proxy.translate.command import translate_octets
from proxy.translate.model import Strip
from tests.translate.drive import GROUP, engine

MESSAGE = b"From: a@example.com\r\nTo: b@example.com\r\nX-PM-Tag: t\r\nSubject: s\r\n\r\nX-PM-Tag: body\r\n.\r\n"


def test_message_is_translated_in_its_header_section_only() -> None:
    """The body stays, whatever stands in it."""
    found = translate_octets(MESSAGE, engine())
    assert found.message == MESSAGE.replace(b"X-PM-Tag: t\r\n", b"X-Cmail-GroupName: t\r\n")
    assert found.explanation.startswith("providers  postmark\nset        X-Cmail-GroupName: t\n")
    assert found.refused == ""


def test_message_with_bare_line_feeds_keeps_them() -> None:
    """A file as editors write it comes back as such a file."""
    found = translate_octets(MESSAGE.replace(b"\r\n", b"\n"), engine())
    assert found.message == MESSAGE.replace(b"X-PM-Tag: t\r", f"{GROUP}: t\r".encode(), 1).replace(b"\r\n", b"\n")


def test_message_with_mixed_line_ends_is_mended() -> None:
    """What is neither one nor the other leaves as it would on the wire."""
    found = translate_octets(b"X-PM-Tag: t\nSubject: s\r\n\r\na\rb\n", engine())
    assert found.message == b"X-Cmail-GroupName: t\r\nSubject: s\r\n\r\na b\r\n"


@pytest.mark.parametrize(
    ("fields", "recipients", "refused"),
    [
        (b"To: a@example.com\r\n", (), False),
        (b"To: a@example.com\r\nCc: B <b@example.com>\r\n", (), True),
        (b"to: a@example.com, b@example.com\r\n", (), True),
        (b"Bcc: a@example.com\r\nCC: =?utf-8?q?B?= <b@example.com>\r\n", (), True),
        (b"To: a@example.com, b@example.com\r\n", ("a@example.com",), False),
        (b"To: a@example.com\r\n", ("a@example.com", "b@example.com"), True),
        (b"To: undisclosed-recipients:;\r\n", (), False),
        (b"To: ,,\r\n", (), False),
        (b"", (), False),
    ],
)
def test_message_without_an_envelope_takes_recipients_from_its_fields(
    fields: bytes, recipients: tuple[str, ...], refused: bool
) -> None:
    """Conditions on recipients need some: those given, or else those of To, Cc and Bcc."""
    found = translate_octets(fields + b"X-MC-PreserveRecipients: no\r\n\r\n", engine(), recipients)
    reason = "No counterpart here for X-MC-PreserveRecipients (lost: recipients would see each other)"
    assert found.refused == (reason if refused else "")


def test_message_in_test_mode_is_not_called_refused() -> None:
    """Discarding is no refusal; the explanation tells it."""
    found = translate_octets(b"X-Mailgun-Drop-Message: yes\r\n\r\n", engine())
    assert found.refused == ""
    assert found.explanation.endswith(
        "decision   discarded, answered with 250: X-Mailgun-Drop-Message (test mode that delivers nothing)\n"
    )


def test_message_is_translated_for_the_provider_of_the_login() -> None:
    """The provider decides as it does in a session."""
    message = b"X-Mailgun-Tag: a\r\nX-MC-Tags: b\r\n\r\n"
    assert b"X-Cmail-GroupName: b\r\n" in translate_octets(message, engine(), provider="mandrill").message


@pytest.mark.parametrize("piece", [b"(", b"<", b'"', b",", b"a@b,", b"\\", b"[", b"(a)", b"=?utf-8?q?=28?= "])
def test_message_with_monstrous_recipients_ends(piece: bytes) -> None:
    """A To field made to stall or to exhaust an address parser costs a bounded time and no exception."""
    found = translate_octets(b"X-PM-Tag: t\r\nTo: " + piece * (1_000_000 // len(piece)) + b"\r\n\r\n", engine())
    assert found.message.startswith(b"X-Cmail-GroupName: t\r\nTo: ")


@given(st.binary(max_size=80))
def test_any_octets_come_back_translated(message: bytes) -> None:
    """No file makes the command fail; without control fields only line ends are mended."""
    found = translate_octets(message, engine(strip=Strip.NONE))
    mended = mend_line_ends(message)
    assert found.message == (mended if b"\r\n" in message else mended.replace(b"\r\n", b"\n"))
