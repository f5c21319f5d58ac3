"""The page of promises: each promise has a test beside it, and every test it names is there."""

import ast
import re
from functools import cache

import pytest

from tests.docs.pages import DOCS, ROOT, coded, prose, spans

PAGE = DOCS / "promises.md"
TEST = re.compile(r"(tests/[\w./-]+\.py)::((?:[A-Z]\w*::)*)(test_\w+)")


@cache
def defined(path: str) -> frozenset[str]:
    """The tests of a file: functions, and methods behind the names of their classes."""
    found: set[str] = set()

    def look(body: list[ast.stmt], behind: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(f"{behind}{node.name}")
            elif isinstance(node, ast.ClassDef):
                look(node.body, f"{behind}{node.name}::")

    look(ast.parse((ROOT / path).read_text("utf-8")).body, "")
    return frozenset(found)


def rows() -> list[list[str]]:
    """The cells of every row of every table, heads left out."""
    tables = re.findall(r"^\|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", prose(PAGE), re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for each in tables for line in each.splitlines()]


def test_tests_named_beside_promises_exist() -> None:
    """Each names a file, and a test that is defined in it."""
    named = [span for span in spans(PAGE) if span.startswith("tests/")]
    assert named
    for span in named:
        match = TEST.fullmatch(span)
        assert match is not None, span
        path, classes, name = match.groups()
        assert (ROOT / path).is_file(), span
        assert f"{classes}{name}" in defined(path), span


def test_every_promise_has_a_test_beside_it() -> None:
    """Two columns, a promise in the first, and nothing but tests in the second."""
    found = rows()
    assert found
    for row in found:
        assert len(row) == 2, row
        promise, tests = row
        assert promise, row
        assert coded(tests), row
        assert all(TEST.fullmatch(span) for span in coded(tests)), row
        assert re.sub(r"`[^`]+`|,|<br>|\s", "", tests) == "", row


def test_every_line_of_a_table_is_read() -> None:
    """No row is missed because it is written in another way."""
    lines = [line for line in prose(PAGE).splitlines() if line.lstrip().startswith("|")]
    heads = sum(bool(re.fullmatch(r"\|[-| ]+\|", line)) for line in lines)
    assert len(rows()) == len(lines) - 2 * heads


@pytest.mark.parametrize(
    "section",
    [
        *("Relay", "Under fault", "Translation", "SMTP in", "Compose", "Spool and delivery", "Tracking and reports"),
        *("Operation", "Fixtures and documentation", "Kubernetes"),
    ],
)
def test_section_is_on_the_page(section: str) -> None:
    """Each part of the program has a table of its promises."""
    _, _, behind = prose(PAGE).partition(f"\n## {section}\n")
    assert behind.partition("\n## ")[0].count("\n| ") > 2
