"""The text part: readable, links kept, what is hidden left out."""

from pathlib import Path

import pytest

from tests.compose.support import TEMPLATES, TEXT_ONLY, copy, find, message, text_of

LAYOUT = '<table role="presentation"><tr><td>{}</td></tr></table>'


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>one</p><p>two</p>", "one\n\ntwo\n"),
        ("<p>one<br>two</p>", "one\ntwo\n"),
        ("<p>a   b\r\n c</p>", "a b c\n"),
        ("<h1>Head</h1><p>x</p>", "Head\n\nx\n"),
        ("<title>no</title><style>p{color:red}</style><script>no</script><p>x</p>", "x\n"),
        ("<p>&euro; &amp; &#8211; &nbsp;é</p>", "€ & \u2013  é\n"),
        ("<ul><li>a</li><li><p>b</p></li></ul><ol><li>c<li>d</ol>", "* a\n* b\n1. c\n2. d\n"),
        ('<a href="https://x.invalid/a?b=1&amp;c=2">Go</a>', "Go (https://x.invalid/a?b=1&c=2)\n"),
        ('<a href=" https://x.invalid/a\r\n\t/b\n">Go</a>', "Go (https://x.invalid/a/b)\n"),
        ('<a href="https://x.invalid/">https://x.invalid</a>', "https://x.invalid\n"),
        ('<a href="mailto:a@x.invalid">a@x.invalid</a>', "a@x.invalid\n"),
        ('<a href="mailto:a@x.invalid?subject=x">a@x.invalid</a>', "a@x.invalid\n"),
        ('<a href="mailto:a@x.invalid">write</a>', "write (mailto:a@x.invalid)\n"),
        ('<a href="#top">up</a> <a name="x">here</a> <a href="">there</a>', "up here there\n"),
        ('<a href="https://x.invalid/"><img src="x" alt="Logo"></a>', "Logo (https://x.invalid/)\n"),
        ('<p>x<img src="y" alt=""><img src="z"></p>', "x\n"),
        ('<img src="x" alt="A picture">', "A picture\n"),
        (LAYOUT.format("<h1>a</h1>" + LAYOUT.format("b") + LAYOUT.format("c")), "a\n\nb\n\nc\n"),
        (
            "<table><tr><th>Item<th>Price<tr><td>Shoes<td>$ 30<tr><td>Socks<td>$ 5</table>",
            "Item   Price\nShoes  $ 30\nSocks  $ 5\n",
        ),
        ("<table><tr><td colspan=10000000>a<td>b<tr><td>c<td>d</table>", "a\n\nb\n\nc\n\nd\n"),
        ('<div style="display:none">pre</div><p>x</p>', "x\n"),
        ('<div style="color:red; DISPLAY : none !important">pre</div><p>x</p>', "x\n"),
        ('<div style="mso-hide:all">pre</div><p style="visibility:hidden">no</p><p hidden>no</p>x', "x\n"),
        ('<div style="max-height:0px;overflow:hidden">pre</div><div style="opacity:0">no</div>x', "x\n"),
        ('<div style="height:0; overflow:hidden">pre</div>x', "x\n"),
        ('<div style="height:0">a</div>', "a\n"),
        ('<div style="max-height:0.5em">a</div><div style="opacity:0.9">b</div>', "a\n\nb\n"),
        ("<style>.preheader{display:none}</style><div class=preheader>pre</div><p>x</p>", "x\n"),
        ("<style>@media print{p{display:none}}</style><p>x</p>", "x\n"),
        ("<p>x</p><div>&zwnj;&nbsp;&#847;&zwnj;&nbsp;&#8199;&#65279;</div><p>y</p>", "x\n\ny\n"),
        ("<!--[if mso]><p>no</p><![endif]--><p>x</p>", "x\n"),
        ("<!--[if !mso]><!--><p>x</p><!--<![endif]-->", "x\n"),
        ("{{name}} *|NAME|*", "{{name}} *|NAME|*\n"),
    ],
)
def test_text_says_what_readers_of_the_html_see(html: str, expected: str) -> None:
    """Blocks, lists, tables, links and pictures in words; hidden preheaders and padding left out."""
    assert text_of(html) == expected


def test_html_with_nothing_to_read_gets_no_text() -> None:
    """An empty text part would be worse than none."""
    assert copy(message("<img src=x><div style='display:none'>x</div>"), TEXT_ONLY).get_content_type() == "text/html"


@pytest.mark.parametrize(
    ("html", "encoding"),
    [("<p>short</p>", "7bit"), ("<p>é</p>", "quoted-printable"), (f"<p>{'long ' * 60}</p>", "quoted-printable")],
)
def test_text_is_encoded_only_where_it_must_be(html: str, encoding: str) -> None:
    """Short ASCII lines go as they are, all else quoted-printable, always in UTF-8."""
    part = copy(message(html), TEXT_ONLY).get_payload(0)
    assert not isinstance(part, str)
    assert part["Content-Transfer-Encoding"] == encoding
    assert part.get_content_charset() == "utf-8"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_text_of_a_template_is_readable(path: Path) -> None:
    """Lines have no blanks at their ends, no more than one empty line stands together, preheaders are gone."""
    text = text_of(path.read_text())
    assert len(text) > 100
    assert "\n\n\n" not in text
    assert all(line == line.rstrip() for line in text.split("\n"))
    assert "preheader" not in text.lower()
    assert "\u200c" not in text
    assert max(map(len, text.split("\n"))) < 1200


def test_text_of_a_receipt_keeps_its_table() -> None:
    """What the customer paid stands in lines and columns."""
    path = next(path for path in TEMPLATES if path.stem == "mailgun-billing")
    assert "  Service 1    $ 19.99\n  Service 2    $ 9.99\n" in text_of(path.read_text())


def test_text_is_made_from_the_html_as_it_came() -> None:
    """Links in the text are the sender's own."""
    written = copy(message('<a href="https://x.invalid/">Go</a>'))
    assert find(written, "text/plain") == b"Go (https://x.invalid/)\r\n"
