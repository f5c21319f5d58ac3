"""
What style sheets come to for one element, with nothing of it changed for readers who know style sheets.

Rules are numbered; which of them match an element, and in what order they count, is found out elsewhere. Here it is
decided which declarations go into its style attribute:

* Rules under a condition (``@media``, ``media=``, Outlook's conditional comments) stay where they are. A declaration
  that such a rule would override is not copied, because as an inline style it would override the rule.
* The same goes for rules of a state (``:hover``, ``:checked``), but not for what only colours or underlines: links
  would lose their colour in readers without style sheets, to save a change of colour under the mouse.
* Nor is a declaration copied that a rule may override which css-inline cannot match.
* What is in a style attribute comes last.

Source: CSS Cascade 4, 6.1; Selectors 4.
"""

import re
from functools import lru_cache

from proxy.compose.stylesheet import Declaration, Rule, declarations, overlap, rules

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
_COSMETIC = frozenset([
    "color", "background", "background-color", "border-color", "outline", "outline-color", "box-shadow", "text-shadow",
    "text-decoration", "text-decoration-color", "text-decoration-line", "cursor", "transition",
])  # fmt: skip

_MAX_RULES = 5000
_MAX_CHARACTERS = 512 * 1024
# Messages of one app have the same style sheets and style attributes; what is kept for the next is bounded.
_CACHED_SHEETS = 32
_CACHED_CHARACTERS = 65536
_KEPT_STYLES = 1000
_KEPT_CHARACTERS = 400


class Sheet:
    """
    The rules of a message, numbered, and what they come to for an element.

    Attributes:
        selectors: Of each rule in the order of their numbers; a rule of two kinds has two.
        style_tests: What selectors ask of style attributes: the comparison and the text.
    """

    def __init__(self) -> None:
        self.selectors: list[str] = []
        self.style_tests: set[tuple[str, str]] = set()
        self._entries: list[tuple[Rule, bool, bool]] = []  # rule; copied or only overriding; because of a state
        self._unmatched: set[str] = set()  # properties that some rule sets, nobody knows where
        self._styles: dict[tuple[tuple[int, ...], str], str] = {}

    @classmethod
    def read(cls, texts: tuple[tuple[str, bool], ...]) -> "Sheet":
        """
        Read style sheets.

        Args:
            texts: Each with whether it holds under a condition only, in order.

        Raises:
            ValueError: More rules than any message has.
        """
        characters = sum(len(css) for css, _ in texts)
        if characters > _MAX_CHARACTERS:
            raise ValueError("style sheets too large")
        return _short(texts) if characters <= _CACHED_CHARACTERS else _read(texts)

    def add(self, rule: Rule, conditional: bool) -> None:
        """Take in one rule."""
        selectors = rule.selectors
        self._unmatched.update(rule.elsewhere)
        if not rule.declarations or not selectors:
            return
        if "style" in selectors.lower():
            for comparison, *texts in _STYLE_TEST.findall(selectors):
                self.style_tests.add((comparison, "".join(texts)))
        bare = _QUOTED.sub('""', selectors)
        if any(mark in bare for mark in "{};<@\\"):
            if "}" not in bare and "<" not in bare and ";" not in bare:  # else browsers drop the rule
                self._unmatched.update(declaration.name for declaration in rule.declarations)
            return
        for element in _PSEUDO_ELEMENT.findall(bare):
            if _KNOWN_ELEMENT.fullmatch(element.partition("(")[0]) is None:
                return  # browsers drop the whole rule, css-inline only the one selector
        if ":" in bare:
            rest = _MATCHED.sub("", _PSEUDO_ELEMENT.sub("", _STATE.sub("", bare)))
            if ":" in rest:
                self._unmatched.update(declaration.name for declaration in rule.declarations)
                return
            if _STATE.search(bare) is not None:
                if not conditional:
                    self.put(selectors, rule, True, False)
                self.put(_EMPTY_COMPOUND.sub(r"\1*", _STATE.sub("", selectors)), rule, False, not conditional)
                return
        self.put(selectors, rule, not conditional, False)

    def put(self, selectors: str, rule: Rule, copied: bool, state: bool) -> None:
        """Number a rule."""
        if len(self.selectors) >= _MAX_RULES:
            raise ValueError("too many rules")
        self.selectors.append(selectors)
        self._entries.append((rule, copied, state))

    def style(self, entries: tuple[int, ...], inline: str) -> str:
        """
        Put together the declarations for an element.

        Args:
            entries: Numbers of its rules; of two that override each other the later counts.
            inline: The value of its style attribute, entities decoded.
        """
        key = (entries, inline)
        known = self._styles.get(key)
        if known is not None:
            return known
        own = declarations(inline) if inline else ()
        strong = self.kept(entries, True, {each.name for each in own if each.important})
        names = {each.name for each in own}.union(each.name for each in strong)
        weak = self.kept(entries, False, names)
        style = "; ".join(
            [
                *[f"{each.name}: {each.value}" for each in weak],
                *[f"{each.name}: {each.value} !important" for each in strong],
            ]
        )
        if len(self._styles) < _KEPT_STYLES and len(inline) <= _KEPT_CHARACTERS:
            self._styles[key] = style
        return style

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
        held = set(self._unmatched)
        taken: dict[str, int] = {}
        kept: list[Declaration] = []
        for number in reversed(entries):
            rule, copied, state = self._entries[number]
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


def _read(texts: tuple[tuple[str, bool], ...]) -> Sheet:
    sheet = Sheet()
    for css, conditional in texts:
        for rule in rules(css):
            sheet.add(rule, conditional or rule.conditional)
    return sheet


_short = lru_cache(_CACHED_SHEETS)(_read)


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
