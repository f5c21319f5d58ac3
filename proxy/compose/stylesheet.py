"""
Style sheets cut into rules and declarations, in linear time, each with its text as written.

Only what an inliner must know: which declarations a rule has, whether it holds always or under a condition (a media
query, a state such as ``:hover``), and what would override what. Selectors are not understood here.

Source: CSS Syntax 3, 5.4; CSS Cascade 4, 6.
"""

import re
from collections.abc import Iterator

from attrs import frozen

# One piece of a style sheet: comment, string, escape, url(…), bracket, or a run of anything else.
_PIECE = re.compile(
    r"/\*(?:[^*]++|\*(?!/))*(?:\*/)?"
    r"|\"(?:[^\"\\\n]++|\\.)*+\"?|'(?:[^'\\\n]++|\\.)*+'?"
    r"|\\.|url\([ \t\n\r\f]*+[^\"'() \t\n\r\f\\][^\"'()\\\n]*+\)"
    r"|<!--|-->"
    r"|[{}()\[\];:]"
    r"|[^\"'\\{}()\[\];:/<uU-]++|.",
    re.DOTALL | re.IGNORECASE,
)
_PARTING = " \t\r\n\f{}();:,"
_OPENS = {"{": "}", "(": ")", "[": "]"}
_MAX_NESTING = 64
_AT_WORD = re.compile(r"@([A-Za-z-]++)")
# Groups of rules that hold under a condition. Others (@font-face, @keyframes, @page, …) style no element.
_CONDITIONAL = frozenset(["media", "supports", "container", "layer", "scope", "document", "-moz-document"])
# Those that also change the order in which rules count.
_REORDERING = frozenset(["layer", "scope"])
_PROPERTY = re.compile(r"[ \t\r\n\f]*+(--[^ \t\r\n\f:]++|[*_]?-?[A-Za-z][A-Za-z0-9-]*+)[ \t\r\n\f]*+:")
_NAME_IN_BLOCK = re.compile(r"[{;\s]([A-Za-z-]++)\s*+:")
_IMPORTANT = re.compile(r"[ \t\r\n\f]*+![ \t\r\n\f]*+important[ \t\r\n\f]*+$", re.IGNORECASE)
_BLANKS = re.compile(r"[ \t\r\n\f]++")


@frozen
class Declaration:
    """
    One declaration.

    Args:
        name: Of the property, lower case unless it is a custom one.
        value: As written, comments and outer blanks cut, without ``!important``.
        important: Whether it is.
    """

    name: str
    value: str
    important: bool


@frozen
class Rule:
    """
    One style rule.

    Args:
        selectors: As written, comments cut.
        declarations: In order.
        conditional: Whether it stands in a group that holds under a condition.
        elsewhere: Properties set by rules nested in it, or by itself out of the usual order: nobody knows for what.
    """

    selectors: str
    declarations: tuple[Declaration, ...]
    conditional: bool = False
    elsewhere: tuple[str, ...] = ()


def rules(css: str) -> Iterator[Rule]:
    """
    Read a style sheet.

    Args:
        css: Its text. What is broken is skipped as browsers skip it.
    """
    return _rules(_split(css), False)


def declarations(text: str) -> tuple[Declaration, ...]:
    """Read the value of a style attribute; template leftovers and other broken pieces give nothing."""
    return _block(_split(text))[0]


def _split(css: str) -> list[str]:
    """Cut text into pieces, without the comments that part nothing: one between two letters keeps them apart."""
    pieces: list[str] = _PIECE.findall(css)
    if "/*" not in css:
        return pieces
    kept: list[str] = []
    for at, piece in enumerate(pieces):
        if piece.startswith("/*"):
            before = kept[-1][-1] if kept else " "
            behind = pieces[at + 1][0] if at + 1 < len(pieces) else " "
            if before in _PARTING or behind in _PARTING:
                continue
        kept.append(piece)
    return kept


def _rules(pieces: list[str], conditional: bool) -> Iterator[Rule]:
    """Read rules from pieces; groups nest, but their depth is bounded, and each level looks at its own pieces once."""
    # Work still to be done, so that nesting needs no recursion: a group's content comes before what follows it.
    stack: list[tuple[list[str], int, bool, bool]] = [(pieces, 0, conditional, False)]
    while stack:
        level, position, inside, reordered = stack.pop()
        prelude_start = position
        while position < len(level):
            piece = level[position]
            if piece == "{":
                end = _block_end(level, position)
                prelude = "".join(level[prelude_start:position])
                block = level[position + 1 : end]
                word = _AT_WORD.match(prelude.lstrip())
                position = prelude_start = end + 1
                if word is None:
                    found, nested = _block(block)
                    names = (*nested, *[each.name for each in found]) if reordered else nested
                    yield Rule(prelude.strip(), found, inside, names)
                elif word[1].lower() in _CONDITIONAL and len(stack) < _MAX_NESTING:
                    stack.append((level, position, inside, reordered))
                    stack.append((block, 0, True, reordered or word[1].lower() in _REORDERING))
                    break
                continue
            if piece in _OPENS:
                position = _block_end(level, position)
            elif (piece == ";" and level[prelude_start].lstrip().startswith("@")) or piece in ("<!--", "-->"):
                prelude_start = position + 1
            elif not piece.strip() and position == prelude_start:
                prelude_start += 1
            position += 1


def _block_end(pieces: list[str], position: int) -> int:
    """Find the piece that closes the bracket at *position*, or the end."""
    closers = [_OPENS[pieces[position]]]
    for at in range(position + 1, len(pieces)):
        piece = pieces[at]
        if piece in _OPENS:
            closers.append(_OPENS[piece])
        elif piece == closers[-1]:
            closers.pop()
            if not closers:
                return at
    return len(pieces)


def _block(pieces: list[str]) -> tuple[tuple[Declaration, ...], tuple[str, ...]]:
    """Read a rule's block: its declarations, and the names of properties that rules nested in it may set."""
    found: list[Declaration] = []
    nested: list[str] = []
    for chunk in _chunks(pieces, nested):
        declaration = _declaration(chunk)
        if declaration is not None:
            found.append(declaration)
    return tuple(found), tuple(nested)


def _chunks(pieces: list[str], nested: list[str]) -> Iterator[str]:
    """Cut at semicolons; brackets hold together. A block in it ends a chunk, which then is none."""
    start = position = 0
    while position < len(pieces):
        piece = pieces[position]
        if piece in _OPENS:
            end = _block_end(pieces, position)
            if piece == "{":
                nested.extend(_NAME_IN_BLOCK.findall("".join(pieces[position:end])))
                start = end + 1
            position = end + 1
            continue
        if piece == ";":
            yield "".join(pieces[start:position])
            start = position + 1
        position += 1
    if start < len(pieces):
        yield "".join(pieces[start:])


def _declaration(text: str) -> Declaration | None:
    name = _PROPERTY.match(text)
    if name is None:
        return None
    value = text[name.end() :]
    important = _IMPORTANT.search(value) if "!" in value else None
    if important is not None:
        value = value[: important.start()]
    value = _BLANKS.sub(" ", value).strip(" ") if "\n" in value or "\r" in value else value.strip(" \t\f")
    if not value or not _is_whole(value):
        return None
    word = name[1]
    return Declaration(word if word.startswith("--") else word.lower(), value, important is not None)


def _is_whole(value: str) -> bool:
    """Tell whether a value ends all that it begins, so that what is written behind it stays behind it."""
    if value.isascii() and value.replace("-", "").replace(" ", "").replace("#", "").replace(".", "").isalnum():
        return True
    closers: list[str] = []
    for piece in _PIECE.findall(value):
        if piece in _OPENS:
            closers.append(_OPENS[piece])
        elif piece in (")", "]", "}"):
            if not closers or closers.pop() != piece:
                return False
        elif piece[0] in "\"'" and (len(piece) < 2 or piece[-1] != piece[0] or "\\" in piece):
            return False
    return not closers and not value.endswith("\\")


_PREFIX = re.compile(r"^-(?:webkit|moz|ms|o)-")
_SIDES = ("top", "right", "bottom", "left")
_ASPECTS = ("width", "style", "color")
# Boxes whose sides also have names that depend on the direction of writing.
_BOXES = ("margin", "padding", "border", "scroll-margin", "scroll-padding")
_BY_DIRECTION = re.compile(r"-(?:inline|block|start|end)(?:-|$)|-radius$")
# Shorthands that do not begin like their parts; within a group anything may set anything.
_GROUPS = {
    name: group
    for group, names in enumerate(
        (
            ("font", "line-height"),
            ("inset", "inset-inline", "inset-block", *_SIDES),
            ("gap", "row-gap", "column-gap", "grid-gap", "grid-row-gap", "grid-column-gap"),
            ("flex-flow", "flex-direction", "flex-wrap"),
            ("place-content", "align-content", "justify-content"),
            ("place-items", "align-items", "justify-items"),
            ("place-self", "align-self", "justify-self"),
            ("columns", "column-width", "column-count"),
            ("width", "height", "inline-size", "block-size"),
            ("max-width", "max-height", "max-inline-size", "max-block-size"),
            ("min-width", "min-height", "min-inline-size", "min-block-size"),
            ("overflow-wrap", "word-wrap"),
            ("white-space", "white-space-collapse", "text-wrap", "text-wrap-mode"),
        )
    )
    for name in names
}
_APART = frozenset([*_SIDES, *[name for name in _GROUPS if name.endswith(("width", "height"))]])


def overlap(one: str, other: str) -> bool:
    """Tell whether setting one property may change what the other sets: equal, or shorthand and part of it."""
    if one == other:
        return True
    one, other = _PREFIX.sub("", one), _PREFIX.sub("", other)
    if one == other or one.startswith(f"{other}-") or other.startswith(f"{one}-") or "all" in (one, other):
        return True
    group = _GROUPS.get(one, -1)
    if group == _GROUPS.get(other, -2):
        # Two sides, and width and height, are in one group only for the sake of others.
        return not (one in _APART and other in _APART)
    return any(_same_box(box, one, other) for box in _BOXES) or (one.startswith("grid-") and other.startswith("grid-"))


def _same_box(box: str, one: str, other: str) -> bool:
    if not (one.startswith(f"{box}-") and other.startswith(f"{box}-")):
        return False
    if _BY_DIRECTION.search(one) is not None or _BY_DIRECTION.search(other) is not None:
        return True
    first, second = [name.removeprefix(f"{box}-").partition("-")[0] for name in (one, other)]
    return (first in _SIDES and second in _ASPECTS) or (second in _SIDES and first in _ASPECTS)
