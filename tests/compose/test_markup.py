"""Tags and attributes found where they stand, in time that grows with the text and no faster."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.compose.markup import depth, tags


def names(html: bytes) -> list[str]:
    return [("/" if tag.closing else "") + tag.name.decode() for tag in tags(html)]


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        (b"<p>a</p>", ["p", "/p"]),
        (b"<P CLASS=x>a</P >", ["p", "/p"]),
        (b"a < b <3 <p", []),
        (b"<br/><br /><img src=a/>", ["br", "br", "img"]),
        (b"<!DOCTYPE html><?xml version='1'?><p>", ["p"]),
        (b"<!-- <a> --><b>", ["b"]),
        (b"<!--><b><!---><i>", ["b", "i"]),
        (b"<!-- a --!><b>", ["b"]),
        (b"<!-- a <b>", []),
        (b"</ a><b></><i>", ["b", "i"]),
        (b"<style>a > b {} <p> </styles> </style ><i>", ["style", "/style", "i"]),
        (b"<script>'<a href=x>'</script><title><b></title>", ["script", "/script", "title", "/title"]),
        (b"<textarea><a></textarea><plaintext><a>", ["textarea", "/textarea", "plaintext"]),
        (b"<style>p{} <a>", ["style"]),
        (b"<![CDATA[ <a> ]]>", []),
        (b"<svg><![CDATA[ <a> ]]><path/></svg><![CDATA[ <a> ]]>", ["svg", "path", "/svg"]),
        (b"<!--[if mso]><v:rect href='x'></v:rect><![endif]--><b>", ["v:rect", "/v:rect", "b"]),
        (b"<!--[if !mso]><!--><b><!--<![endif]--><i>", ["b", "i"]),
        (b"<![if !mso]><b><![endif]><i>", ["b", "i"]),
        (b"<!--[if mso]><b><!-- <i> --> <u>", ["b", "u"]),
        (b'<a title=\'it"s>\' href="x>y">z</a>', ["a", "/a"]),
        (b"<a title=it's>z</a>", ["a", "/a"]),
        (b"<a href='x>z</a>", []),
        (b"<a =x>z", ["a"]),
        (b"<a/href=x/>z", ["a"]),
        (b"<o:p>&nbsp;</o:p>", ["o:p", "/o:p"]),
    ],
)
def test_tags_are_those_a_browser_finds(html: bytes, expected: list[str]) -> None:
    """Comments, raw texts and quotes hide what looks like a tag; conditional comments do not."""
    assert names(html) == expected


def test_tags_in_conditional_comments_are_marked() -> None:
    """Only Outlook reads them, so they are told from the others."""
    assert [tag.conditional for tag in tags(b"<a><!--[if mso]><b><![endif]--><i>")] == [False, True, False]


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        (b"<a href=x>", [(b"href", b"x", b"")]),
        (b"<a href='x'>", [(b"href", b"x", b"'")]),
        (b'<a HREF = "x y">', [(b"href", b"x y", b'"')]),
        (b"<a href=x/>", [(b"href", b"x/", b"")]),
        (b"<a href/>", [(b"href", b"", b"")]),
        (b"<a href=>", [(b"href", b"", b"")]),
        (b"<a href=''>", [(b"href", b"", b"'")]),
        (b"<a\r\n\thref\n=\n'x'\ntitle=y>", [(b"href", b"x", b"'"), (b"title", b"y", b"")]),
        (b"<a a='1'b='2'>", [(b"a", b"1", b"'"), (b"b", b"2", b"'")]),
        (b"<a a=x'y\">", [(b"a", b"x'y\"", b"")]),
        (b"<a x=1 x=2>", [(b"x", b"1", b""), (b"x", b"2", b"")]),
        (b"<a mc:disable-tracking>", [(b"mc:disable-tracking", b"", b"")]),
    ],
)
def test_attributes_have_name_value_and_quote(html: bytes, expected: list[tuple[bytes, bytes, bytes]]) -> None:
    """All ways to write an attribute are read, and the place of the value is where it stands."""
    tag = tags(html)[0]
    found = list(tag.attributes())
    assert [(each.name, each.raw, each.quote) for each in found] == expected
    for each in found:
        assert html[each.value_start : each.value_end] == each.raw


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        (b"<div><p><b>x</b></p></div>", 3),
        (b"<p>a" * 300, 1),
        (b"<ul>" + b"<li>a" * 300, 2),
        (b"<table>" + b"<tr><td>a<td>b" * 300, 3),
        (b"<br><img><hr>" * 300, 0),
        (b"<b>" * 300, 300),
        (b"<p><b></p>" * 300, 301),
        (b"<!--[if mso]>" + b"<div>" * 300 + b"<![endif]-->", 0),
        (b"</div>" * 300, 0),
        (b"<table><tr><td>" * 90, 270),
    ],
)
def test_depth_counts_what_a_parser_would_nest(html: bytes, expected: int) -> None:
    """End tags that may be left out do not count; formatting that a browser opens again does."""
    assert depth(tags(html)) == expected


@pytest.mark.parametrize(
    "piece",
    [
        b"<a ", b'<a href="', b"<a b='", b"<!--", b"<![CDATA[", b"<svg><![CDATA[", b"<style>", b"<!--[if mso]>", b"<",
        b"</", b"<a =", b"<a b", b"<p x='y", b"\"'", b"<p><b></p>", b"<a b c=d>", b"<!", b"<a\n", b"<title>",
    ],
)  # fmt: skip
def test_time_grows_no_faster_than_the_text(piece: bytes) -> None:
    """A megabyte of whatever never closes are read to the end: quadratic work would outlive any test."""
    count = 1_000_000 // len(piece)
    found = tags(piece * count)
    assert len(found) <= 3 * count
    assert depth(found) <= len(found)


@given(st.binary(max_size=200))
def test_any_octets_give_tags_in_order(html: bytes) -> None:
    """Tags lie in the text, one behind the other, and so do their attributes."""
    position = 0
    for tag in tags(html):
        assert position <= tag.start < tag.end <= tag.raw_end <= len(html)
        position = tag.end
        assert html[tag.start : tag.start + 1] == b"<"
        for attribute in tag.attributes():
            assert tag.start < attribute.start <= attribute.value_start <= attribute.value_end < tag.end


@given(st.text(alphabet="<>/a='\" !-[]if\n", max_size=60))
def test_markup_of_any_kind_gives_tags_in_order(text: str) -> None:
    """The same, where nearly every octet means something."""
    test_any_octets_give_tags_in_order.hypothesis.inner_test(text.encode())  # type: ignore[attr-defined]
