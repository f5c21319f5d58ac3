"""The pages of the documentation, taken apart: code spans, blocks of code, tables, links."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).parents[2]
README, DOCS = ROOT / "README.md", ROOT / "docs"
CHART_README = ROOT / "charts" / "cmail-proxy" / "README.md"
PAGES = (README, *sorted(DOCS.glob("*.md")), CHART_README)

_BLOCK = re.compile(r"^```(\w*) ?([\w.-]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@frozen
class Block:
    """A fenced block; its name is the second word of the fence."""

    page: Path
    language: str
    name: str
    text: str

    @property
    def id(self) -> str:
        """Page and line, for test ids."""
        before = self.page.read_text("utf-8").partition(self.text)[0]
        return f"{self.page.name}:{before.count(chr(10))}"


def blocks(page: Path, language: str, name: str) -> list[Block]:
    """All blocks of a page with that language and name."""
    found = [Block(page, *match.groups()) for match in _BLOCK.finditer(page.read_text("utf-8"))]
    return [block for block in found if (block.language, block.name) == (language, name)]


def block(page: Path, language: str, name: str) -> str:
    """The text of the only such block."""
    (found,) = blocks(page, language, name)
    return found.text


def prose(page: Path) -> str:
    """A page without its blocks."""
    return _BLOCK.sub("", page.read_text("utf-8"))


def spans(*pages: Path) -> list[str]:
    """All code spans; a line break inside one is a blank."""
    return [span.replace("\n", " ") for page in pages or PAGES for span in _SPAN.findall(prose(page))]


def links(page: Path) -> list[str]:
    """The targets of all links that lead to no other host."""
    return [target for target in _LINK.findall(prose(page)) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def table(page: Path, head: str) -> list[list[str]]:
    """The cells of the only table whose first column has that heading."""
    parts = re.split(rf"^\| {re.escape(head)} \|.*\n\|[-| ]+\|\n", prose(page), flags=re.MULTILINE)
    if len(parts) != 2:
        raise AssertionError(f"{len(parts) - 1} tables with {head!r} in {page.name}")
    rows = re.match(r"(?:\|.*\n)+", parts[1])
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows[0].splitlines()] if rows else []


def coded(text: str) -> list[str]:
    """The code spans in a text."""
    return _SPAN.findall(text)


def sources() -> Iterator[ast.Module]:
    """The program, parsed."""
    for path in sorted((ROOT / "proxy").rglob("*.py")):
        yield ast.parse(path.read_text("utf-8"))


def calls() -> Iterator[ast.Call]:
    """Every call in the program."""
    for module in sources():
        yield from (node for node in ast.walk(module) if isinstance(node, ast.Call))
