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
    r"/\*(?:[^*]++|\*(?!/))*+(?:\*/)?"
    r"|\"(?:[^\"\\\n]++|\\.)*+\"?|'(?:[^'\\\n]++|\\.)*+'?"
    r"|\\.|url\([ \t\n\r\f]*+[^\"'() \t\n\r\f\\][^\"'()\\\n]*+\)"
    r"|<!--|-->"
    r"|[{}()\[\];:]"
    r"|[^\"'\\{}()\[\];:/<uU-]++|.",
    re.DOTALL | re.IGNORECASE,
)
_OPENS = {"{": "}", "(": ")", "[": "]"}
_MAX_NESTING = 64
_AT_WORD = re.compile(r"@([A-Za-z-]++)")
# Groups of rules that hold under a condition. Others (@font-face, @keyframes, @page, …) style no element.
_CONDITIONAL = frozenset(["media", "supports", "container", "layer", "scope", "document", "-moz-document"])
_PROPERTY = re.compile(r"[ \t\r\n\f]*+(--[^ \t\r\n\f:]++|[*_]?-?[A-Za-z][A-Za-z0-9-]*+)[ \t\r\n\f]*+:")
_IMPORTANT = re.compile(r"[ \t\r\n\f]*+![ \t\r\n\f]*+important[ \t\r\n\f]*+$", re.IGNORECASE)
_COMMENT = re.compile(r"/\*(?:[^*]++|\*(?!/))*+(?:\*/)?")
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
    """

    selectors: str
    declarations: tuple[Declaration, ...]
    conditional: bool = False


def rules(css: str) -> Iterator[Rule]:
    """
    Read a style sheet.

    Args:
        css: Its text. What is broken is skipped as browsers skip it.
    """
    return _rules(_split(css), False)


def declarations(text: str) -> tuple[Declaration, ...]:
    """Read the value of a style attribute; template leftovers and other broken pieces give nothing."""
    found = []
    for chunk in _chunks(_split(text)):
        declaration = _declaration(chunk)
        if declaration is not None:
            found.append(declaration)
    return tuple(found)


def _split(css: str) -> list[str]:
    return [piece for piece in _PIECE.findall(css) if not piece.startswith("/*")]


def _rules(pieces: list[str], conditional: bool) -> Iterator[Rule]:
    """Read rules from pieces; groups nest, but their depth is bounded, and each level looks at its own pieces once."""
    # Work still to be done, so that nesting needs no recursion: a group's content comes before what follows it.
    stack: list[tuple[list[str], int, bool]] = [(pieces, 0, conditional)]
    while stack:
        level, position, inside = stack.pop()
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
                    yield Rule(prelude.strip(), _block(block), inside)
                elif word[1].lower() in _CONDITIONAL and len(stack) < _MAX_NESTING:
                    stack.append((level, position, inside))
                    stack.append((block, 0, True))
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


def _block(pieces: list[str]) -> tuple[Declaration, ...]:
    return tuple([each for chunk in _chunks(pieces) if (each := _declaration(chunk)) is not None])


def _chunks(pieces: list[str]) -> Iterator[str]:
    """Cut at semicolons; brackets hold together, and a nested block drops the chunk it stands in."""
    start = position = 0
    broken = False
    while position < len(pieces):
        piece = pieces[position]
        if piece in _OPENS:
            end = _block_end(pieces, position)
            if piece == "{":
                broken = True
            position = end + 1
            continue
        if piece == ";":
            if not broken:
                yield "".join(pieces[start:position])
            start, broken = position + 1, False
        position += 1
    if not broken and start < len(pieces):
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


_SIDES = ("top", "right", "bottom", "left")
_BORDER_ASPECTS = ("width", "style", "color")


def overlap(one: str, other: str) -> bool:
    """Tell whether setting one property may change what the other sets: equal, or shorthand and part of it."""
    if one == other or one.startswith(f"{other}-") or other.startswith(f"{one}-") or "all" in (one, other):
        return True
    if one.startswith("border-") and other.startswith("border-"):
        first, second = one.split("-")[1], other.split("-")[1]
        return (first in _SIDES and second in _BORDER_ASPECTS) or (second in _SIDES and first in _BORDER_ASPECTS)
    return {one, other} == {"font", "line-height"}
