"""
Style sheets copied into style attributes.

css-inline is used for one thing only: which rules match which element, and in what order they count. It is given the
HTML with a number on each start tag, and a style sheet in which each rule has nothing but a property named after its
own number; what it writes into an element's style attribute is then the list of that element's rules. The declarations
are put together here, with their values as written, and go into the source text at the place of the start tag. An
element whose number is missing from the output, or there twice with different rules, is left alone.

Nothing that a reader who knows style sheets sees may change:

* Rules under a condition (``@media``, ``media=``, Outlook's conditional comments) stay where they are. A declaration
  that such a rule would override is not copied, because as an inline style it would override the rule.
* The same goes for rules of a state (``:hover``, ``:checked``), but not for what only colours or underlines: links
  would lose their colour in readers without style sheets, to save a change of colour under the mouse.
* Nor is a declaration copied that a rule which css-inline cannot match may override.
* What is in a style attribute keeps its bytes and comes last.

No file and no network is read: links to style sheets are taken out of what css-inline is given, and it is told not to
follow any.

Source: CSS Cascade 4, 6.1; CSS Style Attributes.
"""

import re
from collections import defaultdict
from functools import lru_cache
from html import escape

import css_inline

from proxy.compose.edits import Edit
from proxy.compose.markup import Tag, attribute_text, tags
from proxy.compose.stylesheet import Declaration, Rule, declarations, overlap, rules

_UNSTYLED = frozenset(b"head meta title link script style base noscript br wbr param source track template".split())
_ALWAYS = frozenset([b"", b"all", b"screen"])
_IGNORED_SHEET = frozenset([b"data-embed", b"data-css-inline", b"data-premailer", b"data-inline"])

_STATE = re.compile(
    r":(?:hover|active|focus(?:-within|-visible)?|visited|target|checked|disabled|enabled|default|indeterminate"
    r"|valid|invalid|required|optional|in-range|out-of-range|read-only|read-write|placeholder-shown|autofill)(?![\w-])",
    re.IGNORECASE,
)
_EMPTY_COMPOUND = re.compile(r"(^|[\s>+~,(])(?=[\s>+~,)]|$)")
_PSEUDO_ELEMENT = re.compile(
    r"::[\w-]+(?:\([^)]*\))?|:(?:before|after|first-line|first-letter)(?![\w-])", re.IGNORECASE
)
_KNOWN_ELEMENT = re.compile(
    r"::?(?:-webkit-[\w-]+|before|after|first-line|first-letter|selection|placeholder|marker|backdrop)", re.IGNORECASE
)
_MATCHED = re.compile(
    r":(?:first-child|last-child|only-child|first-of-type|last-of-type|only-of-type|root|empty|link"
    r"|nth-(?:last-)?(?:child|of-type)\([\w\s+-]*\)|not\([^():]*\))",
    re.IGNORECASE,
)
_STYLE_TEST = re.compile(
    r"\[\s*style\s*(?:([*^$~|]?=)\s*(?:\"([^\"]*)\"|'([^']*)'|([^\]\s\"']+)))?[^\]]*\]", re.IGNORECASE
)
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_COSMETIC = frozenset(
    [
        "color",
        "background",
        "background-color",
        "border-color",
        "outline",
        "outline-color",
        "text-decoration",
        "text-decoration-color",
        "text-decoration-line",
        "box-shadow",
        "text-shadow",
        "cursor",
        "transition",
    ]
)

_MAX_RULES = 5000
_MAX_SHEET_CHARACTERS = 512 * 1024
# Messages of one app have the same style sheets; what is kept is bounded.
_CACHED_SHEETS = 32
_CACHED_CHARACTERS = 65536


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
    sheet = _Sheet(view)
    for tag in found:
        if tag.name == b"style" and not tag.closing:
            sheet.read(tag, html[tag.end : tag.raw_end].decode(codec, "replace"))
    if not sheet.selectors:
        return []
    matches = _matches(sheet, html, codec, found)
    changes = []
    for number, entries in sorted(matches.items()):
        edit = _edit(sheet, found[number], entries, codec)
        if edit is not None:
            changes.append(edit)
    return changes


@lru_cache(_CACHED_SHEETS)
def _short_sheet(css: str) -> tuple[Rule, ...]:
    return tuple(rules(css))


class _Sheet:
    """The rules of a message, numbered."""

    def __init__(self, source: bytes) -> None:
        # A name that is nowhere in the message, so that nothing in it can be taken for ours.
        self.mark = "cm0"
        while self.mark.encode() in source.lower():
            self.mark = f"cm{int(self.mark[2:]) + 1}"
        self.selectors: list[str] = []
        self.entries: list[tuple[Rule, bool, bool]] = []  # rule; copied or only overriding; because of a state
        self.unmatched: set[str] = set()  # properties that some rule sets, nobody knows where
        self.style_tests: set[tuple[str, str]] = set()  # what selectors ask of style attributes
        self.characters = 0
        self.styles: dict[tuple[tuple[int, ...], str], str] = {}

    def read(self, tag: Tag, css: str) -> None:
        """Take in one style element."""
        conditional = tag.conditional
        for attribute in tag.attributes():
            value = attribute.raw.strip().lower()
            if attribute.name == b"type" and value not in (b"", b"text/css"):
                return
            conditional |= attribute.name == b"media" and value not in _ALWAYS
            conditional |= attribute.name in _IGNORED_SHEET and value not in (b"false", b"inline")
        self.characters += len(css)
        if self.characters > _MAX_SHEET_CHARACTERS:
            raise Unmatched
        for rule in _short_sheet(css) if len(css) <= _CACHED_CHARACTERS else rules(css):
            self.add(rule, conditional or rule.conditional)
            if len(self.entries) > _MAX_RULES:
                raise Unmatched

    def add(self, rule: Rule, conditional: bool) -> None:
        """Take in one rule."""
        selectors = rule.selectors
        if not rule.declarations or not selectors:
            return
        if "style" in selectors.lower():
            for comparison, *texts in _STYLE_TEST.findall(selectors):
                self.style_tests.add((comparison, "".join(texts)))
        bare = _QUOTED.sub('""', selectors)
        if any(mark in bare for mark in "{};<@\\"):
            if "}" not in bare and "<" not in bare and ";" not in bare:  # else browsers drop the rule
                self.unmatched.update(declaration.name for declaration in rule.declarations)
            return
        for element in _PSEUDO_ELEMENT.findall(bare):
            if _KNOWN_ELEMENT.fullmatch(element.partition("(")[0]) is None:
                return  # browsers drop the whole rule, css-inline only the one selector
        if ":" in bare:
            rest = _MATCHED.sub("", _PSEUDO_ELEMENT.sub("", _STATE.sub("", bare)))
            if ":" in rest:
                self.unmatched.update(declaration.name for declaration in rule.declarations)
                return
            if _STATE.search(bare) is not None:
                if not conditional:
                    self.put(selectors, rule, True, False)
                self.put(_EMPTY_COMPOUND.sub(r"\1*", _STATE.sub("", selectors)), rule, False, not conditional)
                return
        self.put(selectors, rule, not conditional, False)

    def put(self, selectors: str, rule: Rule, copied: bool, state: bool) -> None:
        """Number a rule."""
        self.selectors.append(f"{selectors}{{--{self.mark}-{len(self.entries)}:1}}")
        self.entries.append((rule, copied, state))

    def style(self, entries: tuple[int, ...], inline: str) -> str:
        """
        Put together the declarations for an element.

        Args:
            entries: Numbers of its rules; of two that override each other the later counts.
            inline: The value of its style attribute, entities decoded.
        """
        key = (entries, inline)
        if key not in self.styles:
            own = declarations(inline) if inline else ()
            strong = self.kept(entries, True, {each.name for each in own if each.important})
            names = {each.name for each in own}.union(each.name for each in strong)
            self.styles[key] = "; ".join(
                [
                    *[f"{each.name}: {each.value}" for each in self.kept(entries, False, names)],
                    *[f"{each.name}: {each.value} !important" for each in strong],
                ]
            )
        return self.styles[key]

    def asks_otherwise(self, before: str | None, after: str) -> bool:
        """Tell whether a selector that asks for a style attribute would get another answer than before."""
        return any(
            _answer(comparison, text, before) != _answer(comparison, text, after)
            or _answer(comparison, text.lower(), before and before.lower())
            != _answer(comparison, text.lower(), after.lower())
            for comparison, text in self.style_tests
        )

    def kept(self, entries: tuple[int, ...], important: bool, overridden: set[str]) -> list[Declaration]:
        """
        Choose what is copied, from the last to count to the first.

        What a rule that stays in the style sheet may override is not copied, nor is what lies below such a
        declaration and overlaps it, because it would come to the top.
        """
        held = set(self.unmatched)
        taken: dict[str, int] = {}
        kept: list[Declaration] = []
        for number in reversed(entries):
            rule, copied, state = self.entries[number]
            for each in reversed(rule.declarations):
                name = each.name
                if each.important is not important or (state and name in _COSMETIC):
                    continue
                if not copied or (held and any(overlap(name, other) for other in held)):
                    held.add(name)
                elif name not in overridden and taken.setdefault(name, number) == number and name[0] not in "*_":
                    kept.append(each)  # a property twice in one rule is a fall-back for older readers
        kept.reverse()
        return kept


def _answer(comparison: str, text: str, value: str | None) -> bool:
    """Answer as selectors do (Selectors 4, 6)."""
    if value is None:
        return False
    match comparison:
        case "*=":
            return text in value
        case "^=":
            return value.startswith(text)
        case "$=":
            return value.endswith(text)
        case "~=":
            return text in value.split()
        case "|=":
            return value == text or value.startswith(f"{text}-")
        case "=":
            return value == text
    return True


def _matches(sheet: _Sheet, html: bytes, codec: str, found: list[Tag]) -> dict[int, tuple[int, ...]]:
    """Have css-inline match rules and elements; give the rules of each tag, by its place in *found*."""
    css = "\n".join(sheet.selectors)
    by_style = bool(sheet.style_tests)
    marked = _marked(sheet.mark, html, found, keep_styles=by_style).decode(codec, "replace")
    try:
        output = _inlined(marked, css)
    except css_inline.InlineError:
        # Style attributes with template leftovers are no CSS to it.
        if not by_style:
            raise Unmatched from None
        marked = _marked(sheet.mark, html, found, keep_styles=False).decode(codec, "replace")
        try:
            output = _inlined(marked, css)
        except css_inline.InlineError:
            raise Unmatched from None
    number = re.compile(rf' {sheet.mark}="(\d+)"'.encode())
    entry = re.compile(rf"--{sheet.mark}-(\d+)".encode())
    copies: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    for tag in tags(output.encode("utf-8", "replace")):
        text = tag.text
        place = number.search(text)
        if place is not None:
            copies[int(place[1])].add(tuple(map(int, entry.findall(text))))
    # A parser repeats misnested elements; where the copies differ, the tag has no one style.
    return {place: entries.pop() for place, entries in copies.items() if len(entries) == 1}


def _inlined(html: str, css: str) -> str:
    return css_inline.CSSInliner(load_remote_stylesheets=False, inline_style_tags=False, extra_css=css).inline(html)


def _marked(mark: str, html: bytes, found: list[Tag], *, keep_styles: bool) -> bytes:
    """Write the HTML with a number on each start tag, without style sheets, links to them, and style attributes."""
    pieces: list[bytes] = []
    done = 0
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
            pieces += (html[done : tag.name_end], f' {mark}="{index}"'.encode())
            done = tag.name_end
            if keep_styles or b"style" not in tag.text.lower():
                continue
            for attribute in tag.attributes():
                if attribute.name == b"style":
                    pieces.append(html[done : attribute.start])
                    done = min(attribute.value_end + len(attribute.quote), tag.end - 1)
    pieces.append(html[done:])
    return b"".join(pieces)


def _edit(sheet: _Sheet, tag: Tag, entries: tuple[int, ...], codec: str) -> Edit | None:
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
