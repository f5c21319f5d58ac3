"""
A readable text from HTML.

turbohtml builds the tree and lays out the text; it stands behind one function, :func:`render`. Before that the tree is
made ready: what readers of the HTML do not see goes (hidden preheaders, parts for other screens), tables that only
hold the layout become blocks, and links keep their address once.

Runs native code on outside data, so only in a process that may be killed.
"""

import re

import turbohtml
from turbohtml import Element, Node, PlainText

_UNSEEN = "script, style, head, title, template, noscript, object, iframe, canvas, svg, [hidden]"
_HIDDEN = re.compile(
    r"(?:^|;)\s*+(?:display\s*+:\s*+none|visibility\s*+:\s*+hidden|mso-hide\s*+:\s*+all"
    r"|(?:opacity|max-height)\s*+:\s*+0*+(?:\.0++)?+(?:px|em|pt|%)?+\s*+(?:!|;|$))",
    re.IGNORECASE,
)
_NO_HEIGHT = re.compile(r"(?:^|;)\s*+(?:height|width)\s*+:\s*+0(?:px)?+\s*+(?:!|;|$)", re.IGNORECASE)
_TABLE_TAGS = "table, caption, colgroup, col, thead, tbody, tfoot, tr, td, th"
_MAX_TABLE_CELLS = 400
_MAX_CELL_CHARACTERS = 160
_BULLET = "* "
_LAYOUT = PlainText(links="inline", images=True, bullet=_BULLET)

# Preheaders are padded with characters that take no room; a run of them means nothing.
_NO_ROOM = "\u00ad\u034f\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_PADDING = re.compile(rf"[\s{_NO_ROOM}]{{2,}}")
_LONE_BULLET = re.compile(r"^([ ]*+(?:\*|\d{1,9}\.))[ ]*+\n\s*+(?=\S)", re.MULTILINE)
_STRAY_BLANK = re.compile(r"^ (?=\S)", re.MULTILINE)  # a lone one is no indentation
_EMPTY_LINES = re.compile(r"\n{3,}")
_NOT_READ = re.compile(r"^[\x00-\x20]++|[\x00-\x20]++$|[\t\n\r]++")  # in an address (WHATWG URL, 4.4)
_SCHEME = re.compile(r"^(?:https?://(?:www\.)?|mailto:|tel:|sms:)", re.IGNORECASE)


def render(html: str) -> str:
    """
    Write HTML as text.

    Args:
        html: A document, its style sheets copied into style attributes as far as they hide something.

    Returns:
        Lines ending in LF, not wrapped; empty if there is nothing to read.
    """
    document = turbohtml.parse(html, positions=False)
    document.remove(_UNSEEN)
    for element in document.select("[style]"):
        if _is_hidden(element.attr("style") or "") and element.tag not in ("html", "body"):
            element.decompose()
    for table in document.select("table"):
        if not _is_data(table):
            for part in (table, *_own(table, _TABLE_TAGS)):
                part.tag = "div"
    for link in document.select("a"):
        if not _is_telling(link):
            link.unwrap()
        elif (address := link.attr("href")) and (read := _NOT_READ.sub("", address)) != address:
            link.attrs["href"] = read
    return _tidy(document.to_text(_LAYOUT))


def _is_hidden(style: str) -> bool:
    if _HIDDEN.search(style) is not None:
        return True
    return "hidden" in style.lower() and _NO_HEIGHT.search(style) is not None


def _own(table: Element, selector: str) -> list[Element]:
    """The parts of a table, without those of tables in it."""
    return [part for part in table.select(selector) if part.tag != "table" and part.closest("table") == table]


def _is_data(table: Element) -> bool:
    """Tell whether a table has rows and columns to read, and is not there for the layout."""
    if table.select_one("table") is not None or table.select_one("h1, h2, h3, p > img, div, ul, ol") is not None:
        return False
    cells = table.select("td, th")
    if len(cells) > _MAX_TABLE_CELLS:
        return False
    filled: dict[Node, int] = {}
    for cell in cells:
        if not (cell.attr("colspan") or "1").isdigit() or len(cell.attr("colspan") or "1") > 2:
            return False
        text = cell.text.strip()
        if len(text) > _MAX_CELL_CHARACTERS:
            return False
        row = cell.parent
        if text and row is not None:
            filled[row] = filled.get(row, 0) + 1
    return sum(count > 1 for count in filled.values()) > 1


def _is_telling(link: Element) -> bool:
    """Tell whether an address says more than the text of its link."""
    address = (link.attr("href") or "").strip()
    if not address or address.startswith("#") or address.lower().startswith("javascript:"):
        return False
    bare = _bare(address)
    return bool(bare) and _bare(link.text.strip()) not in (bare, bare.partition("?")[0] if "@" in bare else bare)


def _bare(address: str) -> str:
    return _SCHEME.sub("", address).rstrip("/").lower()


def _tidy(text: str) -> str:
    # Each of these is looked for before a pattern is: the patterns would stop at every blank of the text.
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ")
    if any(character in text for character in _NO_ROOM):
        text = _PADDING.sub(_run, text)
    if text.startswith(" ") or "\n " in text:
        text = _STRAY_BLANK.sub("", text)
    text = _LONE_BULLET.sub(r"\1 ", text)
    text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    if "\n\n\n" in text:
        text = _EMPTY_LINES.sub("\n\n", text)
    text = text.strip("\n")
    return f"{text}\n" if text.strip() else ""


def _run(run: re.Match[str]) -> str:
    """Give a run of blanks without characters that take no room; what is left of padding is its line ends."""
    if not any(character in run[0] for character in _NO_ROOM):
        return run[0]
    rest = "".join([character for character in run[0] if character == "\n"])
    return rest or " "
