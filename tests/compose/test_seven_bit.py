"""Messages in seven-bit form: what they say stays, how it is written changes, and what must not be touched is not."""

from base64 import b64decode
from email import message_from_bytes
from email.message import Message

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.compose import seven_bit
from tests.compose.support import multipart, shape

HEAD = b"From: a@example.invalid\r\nMIME-Version: 1.0\r\nX-Odd:  kept \r\n\tfolded\r\n"
UMLAUTS = "Gr\u00fc\u00dfe,\r\n.dot \r\n=3D\r\n\r\n" + "\u00e9" * 600 + "\r\nend"
TEXT = f"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n{UMLAUTS}".encode()
HTML = "Content-Type: text/html; charset=iso-8859-1\r\nContent-transfer-ENCODING:8BIT\r\n\r\n<p>\u00e4".encode(
    "latin-1"
)
PLAIN = b"Content-Type: text/plain\r\nX-Odd:  as \r\n it is\r\n\r\nplain\r\n\r\n"
IMAGE = b"Content-Type: image/gif\r\nContent-Transfer-Encoding: binary\r\n\r\nGIF89a" + bytes(range(128, 256)) * 3
DECLARED_7BIT = "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\u00fc".encode()
NOT_DECLARED = "Content-Type: text/plain; charset=utf-8\r\n\r\n\u00fc\r\n".encode()
QUOTED = "Content-Type: text/plain\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=C3=BC \u00fc=\r\n!".encode()
NESTED = b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\nSubject: inner\r\n" + TEXT
GLOBAL = "Content-Type: message/global\r\nContent-Transfer-Encoding: 8bit\r\n\r\nSubject: \u00fc\r\n\r\nx\r\n".encode()
EIGHT = "; x=1\r\nContent-Transfer-Encoding: 8bit"


def leaves(message: Message) -> list[tuple[str, bytes]]:
    """The type and the decoded octets of everything that is no multipart, line ends at the end left out."""
    return [
        (part.get_content_type(), bytes(part.get_payload(decode=True) or b"").rstrip(b"\r\n"))
        for part in message.walk()
        if not part.is_multipart()
    ]


@pytest.mark.parametrize(
    "body",
    [
        TEXT, HTML, IMAGE, DECLARED_7BIT, NOT_DECLARED, QUOTED, NESTED,
        "\r\nno type at all: \u00fc\r\n".encode(),
        multipart("mixed", PLAIN, TEXT, IMAGE, NESTED),
        multipart("alternative", TEXT, HTML, parameters=EIGHT),
        multipart("mixed", multipart("related", HTML, IMAGE, boundary="r", parameters=EIGHT), PLAIN, boundary="outer"),
        multipart("mixed", b"Content-Type: message/rfc822\r\n\r\n" + multipart("mixed", TEXT, boundary="i"), PLAIN),
        multipart("digest", b"\r\nSubject: inner\r\n" + TEXT, b"Content-ID: <2@x>\r\n\r\nSubject: inner\r\n" + HTML),
    ],
)  # fmt: skip
def test_parts_say_the_same_in_ascii(body: bytes) -> None:
    """A parser that is not ours finds the same parts with the same octets; all is ASCII, short lines and 7bit."""
    content = HEAD + body
    written = seven_bit.converted(content)
    assert written is not None
    assert written.isascii()
    before, after = message_from_bytes(content), message_from_bytes(written)
    assert shape(after) == shape(before)
    assert leaves(after) == leaves(before)
    assert not any(part.defects for part in after.walk())
    assert not {str(part["Content-Transfer-Encoding"]).lower() for part in after.walk()} & {"8bit", "binary"}
    assert written.startswith(HEAD)
    assert max(map(len, written.split(b"\r\n"))) <= 100


def test_text_is_quoted_printable_and_anything_else_base64() -> None:
    """So text stays readable, and what is none stays small; parts that are ASCII keep every octet."""
    written = seven_bit.converted(HEAD + multipart("mixed", PLAIN, TEXT, HTML, IMAGE))
    assert written is not None
    assert PLAIN in written
    encodings = [str(part["Content-Transfer-Encoding"]) for part in message_from_bytes(written).walk()]
    assert encodings == ["None", "None", "quoted-printable", "quoted-printable", "base64"]


def test_seven_bit_message_stays_as_it_is() -> None:
    """Nothing is encoded that need not be, whatever it says of itself."""
    content = HEAD + multipart("mixed", PLAIN, parameters=EIGHT)
    assert seven_bit.converted(content) == content
    assert seven_bit.converted(b"") == b""


def test_international_message_is_encoded_as_a_whole() -> None:
    """message/global is the one kind of message that may be (RFC 6532, 3.7)."""
    written = seven_bit.converted(HEAD + multipart("mixed", GLOBAL))
    assert written is not None
    head, _, rest = written.partition(b"message/global\r\nContent-Transfer-Encoding: base64\r\n\r\n")
    assert head.startswith(HEAD)
    assert b64decode(rest.partition(b"\r\n--")[0]) == "Subject: \u00fc\r\n\r\nx\r\n".encode()


def test_encoding_without_mime_gets_its_version() -> None:
    """Without MIME-Version a reader would not look at the encoding."""
    written = seven_bit.converted("Subject: x\r\n\r\n\u00fc\r\n".encode())
    expected = b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=C3=BC\r\n"
    assert written == expected


SIGNATURE = b"Content-Type: application/pgp-signature\r\n\r\nx"


def test_what_is_signed_keeps_its_bytes_beside_what_is_encoded() -> None:
    """A signed part of ASCII is no reason to keep a message from going, nor one to change it."""
    signed = multipart("signed", PLAIN, SIGNATURE, boundary="s", parameters=EIGHT)
    written = seven_bit.converted(HEAD + multipart("mixed", signed, TEXT))
    assert written is not None
    assert signed in written


@pytest.mark.parametrize(
    "content",
    [
        HEAD + multipart("signed", TEXT, SIGNATURE),
        HEAD + multipart("mixed", multipart("signed", TEXT, SIGNATURE, boundary="s"), PLAIN),
        HEAD + multipart("mixed", multipart("signed", multipart("mixed", TEXT, boundary="t"), SIGNATURE, boundary="s")),
        HEAD + multipart("encrypted", b"Content-Type: application/pgp-encrypted\r\n\r\nVersion: 1", IMAGE),
        HEAD + b"Content-Type: application/pkcs7-mime; smime-type=signed-data\r\n\r\n\xff\r\n",
        HEAD + b"Content-Type: application/x-pkcs7-mime\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\xff\r\n",
        HEAD + b"Content-Type: message/rfc822\r\n\r\n" + multipart("signed", TEXT, SIGNATURE),
        "From: \u00fc <a@example.invalid>\r\n\r\nx\r\n".encode(),
        HEAD + "Subject: \u00fc\r\n".encode() + TEXT,
        HEAD + multipart("mixed", 'Content-Type: text/plain; name="\u00fc"\r\n\r\nx'),
        HEAD + "Content-Type: message/rfc822\r\n\r\nSubject: \u00fc\r\n\r\nx\r\n".encode(),
        HEAD + "Content-Type: message/delivery-status\r\n\r\nReporting-MTA: \u00fc\r\n".encode(),
        HEAD + b"Content-Type: text/plain\r\nContent-Transfer-Encoding: x-uuencode\r\n\r\n\xff\r\n",
        HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\nno part of it: \xff\r\n",
        HEAD + b"Content-Type: message/rfc822\r\n\r\n" * 30 + TEXT,
        HEAD + b"broken line\r\nContent-Type: text/plain\r\n\r\n\xff\r\n",
    ],
)  # fmt: skip
def test_what_has_no_such_form_is_said_to_have_none(content: bytes) -> None:
    """Signed and encrypted content, raw header fields, and what nobody can read for sure."""
    assert seven_bit.converted(content) is None


@given(st.binary(max_size=300), st.sampled_from(["8bit", "7bit", "binary"]), st.sampled_from(["text/x", "image/x"]))
def test_any_octets_are_given_back(octets: bytes, encoding: str, kind: str) -> None:
    """Whatever lines a body is made of, its octets are those that a reader decodes."""
    octets = octets.replace(b"\r", b"").replace(b"\n", b"\r\n").replace(b"--outer", b"") + b"\xff"
    part = f"Content-Type: {kind}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode() + octets
    written = seven_bit.converted(HEAD + multipart("mixed", part))
    assert written is not None
    assert written.isascii()
    inner = [each for each in message_from_bytes(written).walk() if not each.is_multipart()]
    assert [each.get_payload(decode=True) for each in inner] == [octets]


@given(st.binary(max_size=400))
def test_any_message_gives_ascii_or_nothing(content: bytes) -> None:
    """Whatever it is, nothing goes wrong."""
    written = seven_bit.converted(HEAD + content)
    assert written is None or written.isascii()
