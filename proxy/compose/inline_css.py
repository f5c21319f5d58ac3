"""
Style sheets copied into style attributes.

css-inline is used for one thing only: which rules match which element, and in what order they count. It is given the
HTML with a number on each start tag, and a style sheet in which each rule has nothing but a property named after its
own number; what it writes into an element's style attribute is then the list of that element's rules. The declarations
are put together from their text (``cascade.py``) and go into the source text at the place of the start tag. An element
whose number is missing from the output, or there twice with different rules, is left alone.

No file and no network is read: links to style sheets are taken out of what css-inline is given, and it is told not to
follow any.
"""

import hashlib
import re
from collections import defaultdict
from html import escape, unescape

import css_inline

from proxy.compose.cascade import Sheet
from proxy.compose.edits import Edit
from proxy.compose.markup import Tag, attribute_text

_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_UNSTYLED = frozenset(b"head meta title link script style base noscript br wbr param source track template".split())
_ALWAYS = frozenset([b"", b"all", b"screen"])
_IGNORED_SHEET = frozenset([b"data-embed", b"data-css-inline", b"data-premailer", b"data-inline"])


class Unmatched(Exception):
    """css-inline did not do its part."""


def edits(html: bytes, view: bytes, codec: str, found: list[Tag]) -> list[Edit]:
    """
    Work out the style attributes.

    Args:
        html: The HTML as it came.
        view: The same with a character for each ASCII octet, as ``transfer.ascii_view``.
        codec: How to read it.
        found: The tags of *view*.

    Returns:
        Changes of style attributes, in order; none where no style sheet says anything.

    Raises:
        Unmatched: css-inline did not do its part.
    """
    texts = []
    for number, tag in enumerate(found):
        if tag.name != b"style" or tag.closing or (conditional := _condition(tag)) is None:
            continue
        if _is_foreign(view, tag):
            texts.append((_foreign_text(html, found, number, codec), True))
        else:
            texts.append((html[tag.end : tag.raw_end].decode(codec, "replace"), conditional))
    try:
        sheet = Sheet.read(tuple(texts))
    except ValueError:
        raise Unmatched from None
    if not sheet.selectors:
        return []
    matches = _matches(sheet, _mark(view), html, codec, found)
    changes = []
    for number, entries in sorted(matches.items()):
        edit = _edit(sheet, found[number], entries, codec)
        if edit is not None:
            changes.append(edit)
    return changes


def _is_foreign(view: bytes, tag: Tag) -> bool:
    """Tell whether a tag begins a style sheet in an SVG, which is text with entities like any other."""
    if tag.conditional or view.startswith(b"/>", tag.end - 2):
        return False
    return tag.raw_end == tag.end < len(view) and not view.startswith(b"</", tag.end)


def _foreign_text(html: bytes, found: list[Tag], number: int, codec: str) -> str:
    """
    Read a style sheet in an SVG.

    It holds for the whole message, in readers that show the SVG. Others leave it out with all that is in it, so it
    stays where it is, like one under a condition, and what it may override is not copied.

    Raises:
        Unmatched: There are elements in it, or it has no end: nobody knows what it says then.
    """
    tag = found[number]
    end = found[number + 1] if number + 1 < len(found) else None
    if end is None or not end.closing or end.name != b"style":
        raise Unmatched
    text = html[tag.end : end.start].decode(codec, "replace")
    pieces = _CDATA.split(text)  # text and sections in turn
    return "".join(piece if at % 2 else unescape(piece) for at, piece in enumerate(pieces))


def _condition(style: Tag) -> bool | None:
    """Tell whether a style sheet holds under a condition only; None for what is none."""
    conditional = style.conditional
    for attribute in style.attributes():
        value = attribute.raw.strip().lower()
        if attribute.name == b"type" and value not in (b"", b"text/css"):
            return None
        conditional |= attribute.name == b"media" and value not in _ALWAYS
        conditional |= attribute.name in _IGNORED_SHEET and value not in (b"false", b"inline")
    return conditional


def _mark(source: bytes) -> str:
    """Give a name that is nowhere in the message, so that nothing in it can be taken for ours."""
    return "cm0" if b"cm0" not in source else f"cm{hashlib.sha256(source).hexdigest()}"


def _matches(sheet: Sheet, mark: str, html: bytes, codec: str, found: list[Tag]) -> dict[int, tuple[int, ...]]:
    """Have css-inline match rules and elements; give the rules of each tag, by its place in *found*."""
    css = "\n".join([f"{selectors}{{--{mark}-{number}:1}}" for number, selectors in enumerate(sheet.selectors)])
    by_style = bool(sheet.style_tests)
    marked = _marked(mark, html, found, keep_styles=by_style).decode(codec, "replace")
    try:
        output = _inlined(marked, css)
    except css_inline.InlineError:
        # Style attributes with template leftovers are no CSS to it.
        if not by_style:
            raise Unmatched from None
        marked = _marked(mark, html, found, keep_styles=False).decode(codec, "replace")
        try:
            output = _inlined(marked, css)
        except css_inline.InlineError:
            raise Unmatched from None
    # A start tag as css-inline writes it, whatever its attributes are called: behind each name `="`, a value in which a
    # `"` is an entity, and `"`. In a text a `<` is an entity, so nothing there looks like a tag.
    start_tag = re.compile(rb'<[^\t\n\f\r />< ]++((?: =?[^\t\n\f\r />= ]*+="[^"]*+")++)>')
    number = re.compile(rf' {mark}="(\d+)"'.encode())
    entry = re.compile(rf"--{mark}-(\d+)".encode())
    copies: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    for attributes in start_tag.findall(output.encode("utf-8", "replace")):
        place = number.search(attributes)
        if place is not None:
            copies[int(place[1])].add(tuple(map(int, entry.findall(attributes))))
    # A parser repeats misnested elements; where the copies differ, the tag has no one style.
    return {place: entries.pop() for place, entries in copies.items() if len(entries) == 1}


def _inlined(html: str, css: str) -> str:
    return css_inline.CSSInliner(load_remote_stylesheets=False, inline_style_tags=False, extra_css=css).inline(html)


def _marked(mark: str, html: bytes, found: list[Tag], *, keep_styles: bool) -> bytes:
    """Write the HTML with a number on each start tag, without style sheets, links to them, and style attributes."""
    pieces: list[bytes] = []
    done = 0
    lower = html.lower()
    for index, tag in enumerate(found):
        if tag.conditional or tag.closing:
            continue
        if tag.name == b"link":
            pieces += (html[done : tag.start], b"<link>")
            done = tag.end
        elif tag.name == b"style":
            pieces += (html[done : tag.start], b"<style>")
            done = tag.raw_end
        elif tag.name not in _UNSTYLED:
            name_end = tag.name_end
            pieces += (html[done:name_end], f' {mark}="{index}"'.encode())
            done = name_end
            if keep_styles or lower.find(b"style", done, tag.end) < 0:
                continue
            for attribute in tag.attributes():
                if attribute.name == b"style":
                    pieces.append(html[done : attribute.start])
                    done = min(attribute.value_end + len(attribute.quote), tag.end - 1)
    pieces.append(html[done:])
    return b"".join(pieces)


def _edit(sheet: Sheet, tag: Tag, entries: tuple[int, ...], codec: str) -> Edit | None:
    """Write an element's style into its tag; None where there is nothing to write, or no safe place for it."""
    if not entries:
        return None
    attribute = tag.attribute(b"style")
    inline = attribute.raw.decode(codec, "replace") if attribute is not None else ""
    inline = attribute_text(inline)
    style = sheet.style(entries, inline)
    if not style or sheet.asks_otherwise(
        inline if attribute is not None else None, f"{style}; {inline}" if inline else style
    ):
        return None
    if attribute is None:
        text = b' style="' + _written(style, b'"') + b'"'
        return Edit(tag.name_end, b"", text, "inline_css")
    if attribute.quote:
        joint = b"; " if attribute.raw.strip() else b""
        text = _written(style, attribute.quote) + joint
        return Edit(attribute.value_start, b"", text, "inline_css")
    if not attribute.has_value or not attribute.raw.isascii() or b'"' in attribute.raw:
        return None
    text = b'"' + _written(style, b'"') + b"; " + attribute.raw + b'"'
    return Edit(attribute.value_start, attribute.raw, text, "inline_css")


def _written(style: str, quote: bytes) -> bytes:
    """Write CSS as the value of an attribute between such quotes, in ASCII."""
    # Some readers do not decode entities in style attributes, so quotes that need none are better.
    if quote == b'"' and '"' in style and "'" not in style:
        style = style.replace('"', "'")
    elif quote == b"'" and "'" in style and '"' not in style:
        style = style.replace("'", '"')
    text = escape(style, quote=False)
    text = text.replace('"', "&quot;") if quote == b'"' else text.replace("'", "&#39;")
    return text.encode("ascii", "xmlcharrefreplace")
