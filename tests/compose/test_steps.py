"""A message in, a message out: which parts are found, where the text goes, and what keeps its bytes."""

from base64 import b64encode
from email import message_from_bytes
from pathlib import Path

import pytest

from proxy.compose import edits as editing
from proxy.compose.mime import parts
from proxy.compose.steps import Composed, Job, Options, plan
from tests.compose.support import (
    ALL,
    NOTHING,
    TEMPLATES,
    TEXT_ONLY,
    compose,
    copy,
    find,
    html_part,
    message,
    multipart,
    only,
    shape,
    template,
    url,
)

TEXT = "Content-Type: text/plain; charset=utf-8\r\n\r\nmine"
IMAGE = "Content-Type: image/png\r\nContent-ID: <i@x>\r\nContent-Transfer-Encoding: base64\r\n\r\naWk="
FILE = 'Content-Type: text/html; name="a.html"\r\nContent-Disposition: attachment\r\n\r\n<a href="https://x.invalid">'
HEAD = b"From: a@example.invalid\r\nMIME-Version: 1.0\r\nX-Odd:  kept \r\n\tfolded\r\n"
HTML = '<style>p{color:red}</style><body><p>Hi <a href="https://x.invalid/">you</a></p></body>'


def same(content: bytes, options: Options = ALL) -> bool:
    """Whether a message leaves exactly as it came, and nothing is said to have failed."""
    composed = compose(content, options)
    return composed.copy(url) == content and not composed.slots and not composed.done and not composed.failed


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\r\n", b"no fields", b"From: a@example.invalid\r\n\r\n", b"From: a@example.invalid\r\n",
        HEAD + b"\r\n<p>not declared</p>\r\n",
        HEAD + b"Content-Type: text/plain\r\n\r\n<p>text</p>\r\n",
        HEAD + b"Content-Type: text/plain\r\n\r\n.\r\n..\r\n",
        HEAD + multipart("mixed", TEXT, IMAGE),
        HEAD + multipart("mixed", TEXT, FILE),
        HEAD + multipart("mixed", TEXT, "Content-Type: message/rfc822\r\n\r\n" + html_part()),
        HEAD + b"Content-Type: text/html; name=report.html\r\n\r\n<p>a</p>\r\n",
        HEAD + multipart("signed", html_part(), "Content-Type: application/pgp-signature\r\n\r\nx"),
        HEAD + multipart("mixed", multipart("signed", html_part(), IMAGE, boundary="b"), IMAGE),
        HEAD + multipart("encrypted", "Content-Type: application/pgp-encrypted\r\n\r\nVersion: 1", html_part()),
        HEAD + multipart("mixed", html_part(), "Content-Type: application/pkcs7-mime; smime-type=signed-data\r\n\r\nx"),
        HEAD + b"Content-Type: application/x-pkcs7-mime\r\n\r\nx",
        HEAD + multipart("alternative", "\r\n-----BEGIN PGP SIGNED MESSAGE-----\r\nx", html_part()),
        message("<pre>-----BEGIN PGP MESSAGE-----\r\nx</pre>", "base64"),
        HEAD + b"broken line\r\nContent-Type: text/html\r\n\r\n<p>a</p>\r\n",
        HEAD + b"Content-Type: text/html;\r\n\r\n",
        HEAD + b"Content-Type: text/html;\r\n\r\n \r\n",
    ],
)  # fmt: skip
def test_messages_without_html_work_leave_as_they_came(content: bytes) -> None:
    """No HTML, attached HTML, signed and encrypted content: not one byte changes."""
    assert same(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (message("<p>a</p>", charset="utf-7"), "charset"),
        (message("<p>a</p>".encode("utf-16"), "base64", "utf-16"), "charset"),
        (message("<p>a</p>", charset="x-unknown"), "charset"),
        (message("<p>a</p>", "7bit").replace(b": 7bit", b": x-uuencode"), "malformed"),
        (HEAD + b"Content-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\nabcde\r\n", "malformed"),
        (
            message(b64encode(b"<p>a</p>") + b"\r\n" + b64encode(b"<p>b</p>"), "7bit").replace(
                b": 7b", b": base64\r\nX: "
            ),
            "malformed",
        ),
        (message("<p>a</p>".encode("utf-16"), "base64", None), "charset"),
        (message("<p>a</p>".encode("utf-16"), "base64", "utf-8"), "charset"),
        (message("<p>" + "a" * 2_100_000, "8bit"), "too_large"),
        (message("<b>" * 300, "8bit"), "too_deep"),
        (message("<a href=http://x.invalid>" * 10_001, "8bit").replace(b"<a", b"</a><a"), "too_large"),
        (HEAD + multipart("mixed", *[html_part()] * 1001), "too_large"),
        (HEAD + multipart("mixed", html_part(), *["A: b\r\n" * 10_000 + "\r\n"] * 20), "too_large"),
        (HEAD + multipart("mixed", multipart("mixed", html_part())), "malformed"),
    ],
)
def test_html_that_cannot_be_worked_on_leaves_as_it_came_and_says_why(content: bytes, reason: str) -> None:
    """Each step that was wanted is named, with a reason from the closed list."""
    composed = compose(content)
    assert composed.copy(url) == content
    steps = ("text_part", "inline_css", "track_clicks", "track_opens")
    assert composed.failed == tuple((step, reason) for step in steps)
    assert composed.done == ()


def test_mime_deeper_than_a_hundred_leaves_as_it_came() -> None:
    """Two thousand levels are found out at the hundred-and-first."""
    levels = [f"Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n" for level in range(2000)]
    content = HEAD + "".join(levels).encode() + html_part().encode()
    composed = compose(content)
    assert composed.copy(url) == content
    assert {reason for _, reason in composed.failed} == {"too_deep"}


def test_mime_as_deep_as_a_hundred_is_worked_on() -> None:
    """The limit is where it is said to be."""
    part: str | bytes = html_part()
    for level in range(100):
        part = multipart("mixed", part, boundary=f"b{level}x")
    assert isinstance(part, bytes)
    assert compose(HEAD + part).done == ("text_part", "track_opens")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (html_part().encode(), ("alternative", "text/plain", "text/html")),
        (multipart("mixed", html_part(), IMAGE), ("mixed", ("alternative", "text/plain", "text/html"), "image/png")),
        (multipart("alternative", html_part()), ("alternative", "text/plain", "text/html")),
        (
            multipart("alternative", "Content-Type: text/x-amp-html\r\n\r\n<html>", html_part()),
            ("alternative", "text/plain", "text/x-amp-html", "text/html"),
        ),
        (
            multipart("related", html_part(), IMAGE),
            ("alternative", "text/plain", ("related", "text/html", "image/png")),
        ),
        (
            multipart("mixed", multipart("related", html_part(), IMAGE, boundary="b"), FILE),
            ("mixed", ("alternative", "text/plain", ("related", "text/html", "image/png")), "text/html"),
        ),
        (
            multipart(
                "mixed", multipart("alternative", multipart("related", html_part(), IMAGE, boundary="r"), boundary="a")
            ),
            ("mixed", ("alternative", "text/plain", ("related", "text/html", "image/png"))),
        ),
        (
            multipart("related", multipart("alternative", html_part(), boundary="a"), IMAGE),
            ("related", ("alternative", "text/plain", "text/html"), "image/png"),
        ),
        (multipart("alternative", TEXT, html_part()), ("alternative", "text/plain", "text/html")),
        (
            multipart("mixed", multipart("alternative", TEXT, html_part(), boundary="a"), FILE),
            ("mixed", ("alternative", "text/plain", "text/html"), "text/html"),
        ),
        (multipart("mixed", FILE, html_part()), ("mixed", "text/html", ("alternative", "text/plain", "text/html"))),
    ],
)
def test_text_goes_where_it_is_the_alternative_to_the_html(body: bytes, expected: object) -> None:
    """Into an alternative that is there, or into a new one around the HTML and what belongs to it."""
    for options in (ALL, TEXT_ONLY):
        written = copy(HEAD + body, options)
        assert shape(written) == expected
        assert not any(part.defects for part in written.walk())
        assert written["X-Odd"].startswith("kept")


def test_root_of_related_parts_may_be_named() -> None:
    """Where the HTML is not the first of the parts that belong together, its number says that it is the one."""
    named = html_part().replace("\r\n\r\n", "\r\nContent-ID: <r@x>\r\n\r\n")
    body = multipart("related", IMAGE, named, parameters='; start="<r@x>"')
    assert shape(copy(HEAD + body)) == ("alternative", "text/plain", ("related", "image/png", "text/html"))


def test_message_ends_with_a_line_end_where_its_text_does_not() -> None:
    """A soft line break at the end stays one; the HTML is not longer by a line end."""
    content = message("x", "8bit").replace(b": 8bit", b": quoted-printable")[:-1] + b"<p>=C3=A9</p>=\r\n"
    written = compose(content, only("track_opens")).copy(url)
    assert written.endswith(b"=\r\n")
    assert find(message_from_bytes(written), "text/html").endswith(b">")


def test_fields_of_a_message_that_gets_a_text_keep_their_bytes() -> None:
    """What describes the content goes to the HTML part, byte for byte; all others stay in their order."""
    moved = (
        b'CONTENT-type:\r\n\ttext/html;  charset="utf-8"\r\n',
        b"Content-Transfer-Encoding:quoted-printable\r\n",
        b"Content-Language: de\r\n",
    )
    content = (
        b"From: a@x.invalid\r\n"
        + moved[0]
        + b"Subject: x\r\n"
        + moved[1]
        + moved[2]
        + b"X-Last: y\r\n\r\n<p>=C3=A9</p>\r\n"
    )
    composed = compose(content, TEXT_ONLY)
    head, _, rest = composed.copy(url).partition(b"\r\n\r\n")
    assert head.startswith(
        b"From: a@x.invalid\r\nMIME-Version: 1.0\r\nContent-Type: multipart/alternative;\r\n boundary="
    )
    assert head.endswith(b'"\r\nSubject: x\r\nX-Last: y')
    assert b"".join(moved) + b"\r\n<p>=C3=A9</p>\r\n" in rest
    assert composed.done == ("text_part",)


def test_outermost_part_says_that_eight_bit_octets_are_inside() -> None:
    """A composite may not claim less than its parts (RFC 2045, 6.4)."""
    content = message("<p>é</p>\r\n", "8bit")
    written = compose(content, TEXT_ONLY).copy(url)
    assert written.partition(b"\r\n\r\n")[0].endswith(b"Content-Transfer-Encoding: 8bit")
    assert "<p>é</p>".encode() in written


@pytest.mark.parametrize("encoding", ["7bit", "8bit", "quoted-printable", "base64", "binary"])
@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "windows-1252", None])
def test_transfer_encodings_and_charsets_are_handled(encoding: str, charset: str | None) -> None:
    """The text is what the HTML says, and the HTML, once decoded, differs by the edits only."""
    html = HTML.replace("Hi", "Hi" if encoding == "7bit" else "Hí").encode(charset or "cp1252")
    content = message(html, encoding, charset)
    composed = compose(content)
    assert composed.done == ("text_part", "inline_css", "track_clicks", "track_opens")
    assert editing.undo(composed.html, composed.edits) == html
    written = message_from_bytes(composed.copy(url))
    assert find(written, "text/html").rstrip(b"\r\n") == message_from_bytes(
        message(filled(composed), encoding, charset)
    ).get_payload(decode=True)
    assert (
        find(written, "text/plain").decode() == f"{'Hi' if encoding == '7bit' else 'Hí'} you (https://x.invalid/)\r\n"
    )


def filled(composed: Composed) -> bytes:
    pieces, done = [], 0
    for slot in composed.slots:
        pieces += [composed.html[done : slot.position], url(slot).replace("&", "&amp;").encode()]
        done = slot.position
    return b"".join([*pieces, composed.html[done:]])


def test_lines_too_long_for_the_wire_are_written_quoted_printable() -> None:
    """An edit may make a line of 7bit or 8bit text longer than 998 octets; then the encoding changes, and says so."""
    html = "<style>p{color:red}</style>" + "<p>x</p>" * 60
    content = message(html, "8bit", extra="X-First: y\r\n")
    written = compose(content, only("inline_css")).copy(url)
    assert max(map(len, written.split(b"\r\n"))) <= 76
    assert written.count(b"Content-Transfer-Encoding: quoted-printable\r\n") == 1
    assert b"Content-Transfer-Encoding: 8bit" not in written
    assert find(message_from_bytes(written), "text/html").count(b'<p style="color: red">') == 60
    short = compose(message("<style>p{color:red}</style>\r\n<p>x</p>\r\n", "8bit"), only("inline_css"))
    assert b"Content-Transfer-Encoding: 8bit" in short.copy(url)


@pytest.mark.parametrize("before", range(65_536 - 12, 65_536 + 3))
def test_html_is_found_wherever_it_stands_in_a_large_message(before: int) -> None:
    """The message is looked through a piece at a time, and the word may lie across two."""
    head = HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n"
    line = b"\r\n--b\r\nContent-Type: "
    content = (
        head + b"x" * (before - len(head) - len(line)) + line + b"TEXT/html\r\n\r\n" + HTML.encode() + b"\r\n--b--\r\n"
    )
    assert content.index(b"TEXT/html") == before
    assert isinstance(plan(content, ALL), Job)


def test_finding_the_parts_is_linear() -> None:
    """It is done where all connections are served: five megabytes of anything come to an end, unchanged."""
    start = HEAD + b"Content-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\nContent-Type: text/html\r\n\r\n<p>x\r\n"
    fields = b"--y\r\n" + b"A: b\r\n" * 9_000 + b"\r\n"
    for rest in (b"--x\r\n", b"--y\r\n", b"-----BEGIN PGP \r\n", fields, b"a: b\r\n", b"\r\n"):
        content = start + rest * (5_000_000 // len(rest))
        planned = plan(content, ALL)
        assert planned.content == content if isinstance(planned, Job) else planned.copy(url) == content


def test_reading_the_parameters_is_linear() -> None:
    """It is done where all connections are served: a header section has room for a quarter of a million octets."""
    for rest in (b";", b" ", b"; ", b";a", b";a =", b';a="', b';a="\\"', b"=;"):
        field = b"Content-Type: text/html" + rest * (250_000 // len(rest)) + b"x"
        content = HEAD + field + b"\r\n\r\n<p>x</p>\r\n"
        assert compose(content, only("track_opens")).done == ("track_opens",)
    content = HEAD + b"Content-Type: text/html ; ; charset =iso-8859-1;;\t;name=a\r\n\r\n<p>x</p>\r\n"
    assert parts(content)[0].parameters == {"charset": "iso-8859-1", "name": "a"}


@pytest.mark.parametrize("named", ["iso-2022-jp", "shift_jis", "windows-1251", "utf-8"])
def test_charset_that_html_names_itself_counts_where_the_field_names_none(named: str) -> None:
    """Readers go by it, so the text does, and what looks like markup in the second octet of a character is none."""
    word = "Привет" if "1251" in named else "彼は日本語"
    html = f'<meta http-equiv="Content-Type" content="text/html; charset={named}"><p>{word}</p>'.encode(named)
    written = copy(message(html, "8bit", None), TEXT_ONLY)
    assert find(written, "text/plain").decode() == f"{word}\r\n"
    assert find(written, "text/html").rstrip(b"\r\n") == html


@pytest.mark.parametrize("named", ["unicode", "utf-16", "x-unknown", "{{charset}}"])
def test_charset_that_html_names_and_nobody_knows_counts_for_nothing(named: str) -> None:
    """Word names itself in such ways, and what it writes is read all the same."""
    written = copy(message(f'<meta charset="{named}"><p>é</p>', charset=None), TEXT_ONLY)
    assert find(written, "text/plain").decode() == "é\r\n"


def test_boundaries_are_unique() -> None:
    """A boundary that is in the message already is not taken."""
    first = compose(message(HTML), TEXT_ONLY).copy(url)
    boundary = message_from_bytes(first).get_boundary()
    assert boundary is not None
    again = compose(message(HTML, extra=f"X-Seen: {boundary}\r\n"), TEXT_ONLY).copy(url)
    assert message_from_bytes(again).get_boundary() != boundary
    assert shape(message_from_bytes(again)) == ("alternative", "text/plain", "text/html")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
@pytest.mark.parametrize("encoding", ["quoted-printable", "base64", "8bit"])
def test_template_with_tracking_and_inlining_off_is_byte_identical(path: Path, encoding: str) -> None:
    """With a text part added or without, the HTML part leaves as it came."""
    content = message(template(path), encoding)
    assert same(content, NOTHING)
    written = compose(content, TEXT_ONLY).copy(url)
    assert content.partition(b"\r\n\r\n")[2] in written
    assert find(message_from_bytes(written), "text/html").rstrip() == template(path).rstrip()


def test_steps_are_on_or_off_each_by_itself() -> None:
    """Each option takes its own step only, and what is off is not named."""
    for step in ("text_part", "inline_css", "track_clicks", "track_opens"):
        composed = compose(message(HTML), only(step))
        assert composed.done == (step,)
        assert {edit.step for edit in composed.edits} == {step} - {"text_part"}
    assert isinstance(plan(message(HTML), ALL), Job)
    assert isinstance(plan(message(HTML), NOTHING), Composed)


def test_html_without_anything_to_change_is_not_encoded_anew() -> None:
    """Odd but lawful quoted-printable stays as it came where no step changes the HTML."""
    content = message("x", "8bit").replace(b": 8bit", b": quoted-printable") + b"=3d=\r\n <p>plain</p> =20\r\n"
    assert same(content, Options(True, False, True, False))


@pytest.mark.parametrize(
    "body",
    [
        multipart("alternative", html_part("<p>old</p>"), html_part(HTML)),
        multipart("alternative", TEXT, html_part("<p>old</p>"), html_part(HTML)),
        multipart(
            "alternative",
            html_part("<p>old</p>"),
            multipart("mixed", html_part(HTML), IMAGE, html_part("<p>rest</p>"), boundary="m"),
        ),
        multipart("alternative", html_part(HTML), FILE),
    ],
)
def test_of_alternatives_the_last_html_is_the_one(body: bytes) -> None:
    """Readers show the last alternative that they can; a file beside it is none."""
    composed = compose(HEAD + body, only("track_clicks"))
    assert editing.undo(composed.html, composed.edits) == HTML.encode()


def test_first_html_that_is_shown_is_the_one() -> None:
    """Of several HTML parts the first gets the steps; the others keep their bytes."""
    content = HEAD + multipart("mixed", html_part(HTML), IMAGE, html_part(HTML))
    composed = compose(content)
    assert composed.tail.count(HTML.encode()) == 1
    assert b64encode(b"ii") in composed.tail
