"""
Tags of an HTML text with their places, in linear time.

A tokeniser and no parser: it says where tags, attributes and raw texts stand in the octets, as the tokeniser of the
standard would find them, and builds no tree. It works on octets, so every offset is one in the text as it came; the
charset must be a superset of ASCII in which no character's second octet is one of ``<>"'=/`` or a blank
(``charsets.py`` sees to that).

Every pattern is possessive and is tried once for each place. Where a comment, a tag or a raw text has no end, the
tokeniser stops: a browser, too, takes all that follows for a part of it.

Source: WHATWG HTML, 13.2.5 (tokenisation); conditional comments as Outlook reads them.
"""

import re
from collections.abc import Iterator
from html import unescape
from html.entities import html5

from attrs import frozen

_BLANK = rb"[\t\n\f\r /]"
# Name, then an optional value. A value whose quote never closes is no value: then the whole tag has no end.
_ATTRIBUTE = (
    rb"(?P<name>[^\t\n\f\r />][^\t\n\f\r />=]*+)"
    rb"(?:[\t\n\f\r ]*+=[\t\n\f\r ]*+(?P<value>\"[^\"]*+\"|'[^']*+'|(?=>)|[^\t\n\f\r >\"'][^\t\n\f\r >]*+)"
    rb"|(?![\t\n\f\r ]*+=))"
)
_UNNAMED = re.sub(rb"\?P<\w+>", rb"?:", _ATTRIBUTE)
_TAG = re.compile(rb"<(/?)([A-Za-z][^\t\n\f\r />]*+)(?:" + _BLANK + rb"++|" + _UNNAMED + rb")*+>")
_ATTRIBUTES = re.compile(_ATTRIBUTE)
_ENTITY = re.compile(
    r"&(#[0-9]{1,20}+(?![0-9]);?|#[xX][0-9A-Fa-f]{1,20}+(?![0-9A-Fa-f]);?|[A-Za-z][A-Za-z0-9]*+;?)(?=(=)?)"
)
_OPENING = re.compile(rb"<(?:(!--)|[!?]|/?(?P<name>[A-Za-z])|/)")
_COMMENT_END = re.compile(rb"--!?>")
_CONDITION = re.compile(rb"\[if\b[^\]\n]{0,200}\]>", re.IGNORECASE)
_CONDITION_END = b"<![endif]"

_RAW_TEXT = frozenset(
    [b"script", b"style", b"title", b"textarea", b"xmp", b"iframe", b"noembed", b"noframes", b"plaintext"]
)
_RAW_END = {
    name: re.compile(rb"</" + name + rb"(?=[\t\n\f\r />])", re.IGNORECASE) for name in _RAW_TEXT - {b"plaintext"}
}

VOID = frozenset(
    b"area base basefont bgsound br col command embed frame hr image img input keygen link meta param source"
    b" track wbr".split()
)
# A start tag that ends an open element of the same or a related name: not nested, however often it comes.
_ENDS_OPEN = {
    b"p": frozenset([b"p"]),
    b"li": frozenset([b"li"]),
    b"dt": frozenset([b"dt", b"dd"]),
    b"dd": frozenset([b"dt", b"dd"]),
    b"option": frozenset([b"option"]),
    b"td": frozenset([b"td", b"th"]),
    b"th": frozenset([b"td", b"th"]),
    b"tr": frozenset([b"td", b"th", b"tr"]),
    b"tbody": frozenset([b"td", b"th", b"tr", b"thead", b"tbody", b"tfoot"]),
}
_ENDS_OPEN[b"thead"] = _ENDS_OPEN[b"tfoot"] = _ENDS_OPEN[b"tbody"]
# What a browser opens again behind the end of the element around it, so that it nests deeper than the tags do.
FORMATTING = frozenset(b"a b big code em font i nobr s small strike strong tt u".split())


@frozen
class Attribute:
    """
    One attribute.

    Args:
        name: In lower case.
        start: Where the name begins.
        value_start: Where the value begins, behind a quote; where there is no value, the end of the name.
        value_end: Behind the value, before a quote.
        quote: ``"``, ``'``, or empty.
        raw: The value's octets, entities as they are.
        has_value: Whether there is an equals sign with a value.
    """

    name: bytes
    start: int
    value_start: int
    value_end: int
    quote: bytes
    raw: bytes
    has_value: bool


class Tag:
    """
    One tag.

    Attributes:
        name: In lower case.
        start: Offset of ``<``.
        end: Offset behind ``>``.
        closing: Whether it is an end tag.
        conditional: Whether it stands in a conditional comment, which only Outlook reads.
        raw_end: For an element of raw text (``style``, ``title``, …): where its text ends; else equal to *end*.
    """

    __slots__ = ("_source", "closing", "conditional", "end", "name", "raw_end", "start")

    def __init__(self, source: bytes, match: re.Match[bytes], name: bytes, conditional: bool) -> None:
        self._source = source
        self.name = name
        self.start, self.end = match.span()
        self.closing = bool(match[1])
        self.conditional = conditional
        self.raw_end = self.end

    @property
    def name_end(self) -> int:
        """Where the first attribute may go."""
        return self.start + 1 + self.closing + len(self.name)

    @property
    def text(self) -> bytes:
        """The tag as it is written."""
        return self._source[self.start : self.end]

    @property
    def raw_text(self) -> bytes:
        """The text of an element of raw text."""
        return self._source[self.end : self.raw_end]

    def attributes(self) -> Iterator[Attribute]:
        """Give the attributes as they stand; of a repeated name the first counts."""
        for match in _ATTRIBUTES.finditer(self._source, self.name_end, self.end):
            raw = match["value"]
            if not raw:  # no value, or an equals sign with nothing behind it
                end = match.end()
                yield Attribute(match["name"].lower(), match.start(), end, end, b"", b"", False)
                continue
            start, end = match.span("value")
            quote = raw[:1] if raw[:1] in (b'"', b"'") else b""
            if quote:
                start, end, raw = start + 1, end - 1, raw[1:-1]
            yield Attribute(match["name"].lower(), match.start(), start, end, quote, raw, True)

    def attribute(self, name: bytes) -> Attribute | None:
        """Give the attribute of a name, or None."""
        if name not in self._source[self.start : self.end].lower():
            return None
        return next((attribute for attribute in self.attributes() if attribute.name == name), None)


def attribute_text(value: str) -> str:
    """
    Decode the entities of an attribute's value.

    Not as in text: a name without its semicolon before an equals sign, a letter or a digit is none, so ``?a&copy=1``
    stays (WHATWG HTML, 13.2.5.73).
    """
    return _ENTITY.sub(_entity, value) if "&" in value else value


def _entity(match: re.Match[str]) -> str:
    name = match[1]
    if name.startswith("#"):
        return unescape(match[0])
    if name.endswith(";"):
        return html5.get(name, match[0])
    return match[0] if match[2] else html5.get(name, match[0])


def tags(source: bytes) -> list[Tag]:
    """
    Find the tags.

    Args:
        source: HTML.

    Returns:
        Start and end tags in order, those in conditional comments too; none from other comments and raw texts.
    """
    found: list[Tag] = []
    _scan(source, 0, len(source), False, found)
    return found


def _scan(source: bytes, position: int, end: int, conditional: bool, found: list[Tag]) -> None:
    """Find tags from *position* to *end*. Nests once: a conditional comment has no comment in it."""
    match_tag, opening = _TAG.match, _OPENING.search
    foreign = 0  # open svg and math elements: there, and only there, CDATA sections exist
    while (begin := opening(source, position, end)) is not None:
        start = begin.start()
        if begin["name"]:
            match = match_tag(source, start, end)
            if match is None:
                return  # the end of the text inside a tag
            name = match[2].lower()
            tag = Tag(source, match, name, conditional)
            found.append(tag)
            position = tag.end
            if name in (b"svg", b"math"):
                foreign = max(0, foreign - 1) if tag.closing else foreign + (source[tag.end - 2 : tag.end - 1] != b"/")
            elif name in _RAW_TEXT and not tag.closing and not foreign:
                closing = _RAW_END[name].search(source, position, end) if name in _RAW_END else None
                tag.raw_end = position = closing.start() if closing else end
        elif begin[1]:
            position = _comment(source, start + 4, end, conditional, found)
        elif foreign and source.startswith(b"<![CDATA[", start):
            position = _behind(source, b"]]>", start, end)
        else:
            position = _behind(source, b">", start, end)


def _comment(source: bytes, start: int, end: int, conditional: bool, found: list[Tag]) -> int:
    """Skip a comment whose text begins at *start*, or look into it if Outlook would; give the offset behind it."""
    if source.startswith((b">", b"->"), start):
        return source.index(b">", start) + 1
    closing = _COMMENT_END.search(source, start, end)
    if closing is None:
        return end
    condition = None if conditional else _CONDITION.match(source, start, closing.start())
    if condition is not None:
        inner_end = source.find(_CONDITION_END, condition.end(), closing.start())
        _scan(source, condition.end(), inner_end if inner_end >= 0 else closing.start(), True, found)
    return closing.end()


def _behind(source: bytes, text: bytes, start: int, end: int) -> int:
    place = source.find(text, start, end)
    return end if place < 0 else place + len(text)


def depth(found: list[Tag]) -> int:
    """
    Estimate how deep a parser would nest the elements.

    Counts what stays open, with the optional end tags of paragraphs, lists and table cells in mind, and counts
    formatting elements left open on, because a browser opens them again in every element that follows.

    Args:
        found: From :func:`tags`.

    Returns:
        The greatest depth; never less than that of the tree by more than what tables move about.
    """
    stack: list[bytes] = []
    open_by_name: dict[bytes, int] = {}
    left_open = deepest = 0
    for tag in found:
        name = tag.name
        if tag.conditional or name in VOID:
            continue
        if tag.closing:
            if not open_by_name.get(name):
                if name in FORMATTING and left_open:
                    left_open -= 1
                continue
            while (top := stack.pop()) != name:
                open_by_name[top] -= 1
                left_open += top in FORMATTING
            open_by_name[name] -= 1
            continue
        ends = _ENDS_OPEN.get(name)
        if ends is not None:
            while stack and stack[-1] in ends:
                open_by_name[stack.pop()] -= 1
        if name not in _RAW_TEXT:
            stack.append(name)
            open_by_name[name] = open_by_name.get(name, 0) + 1
        deepest = max(deepest, len(stack) + left_open)
    return deepest
