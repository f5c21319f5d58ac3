"""How the program is put together: what is pure stays so, and what may be caught."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROXY = Path(__file__).parents[1] / "proxy"
PURE = ("mail", "translate", "policy")
EDGES = {"asyncio", "socket", "ssl", "threading", "subprocess", "selectors", "sqlite3", "aiosmtpd", "aiohttp", "uvloop"}


def trees(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """Every module below these folders of the program."""
    for folder in folders:
        for path in sorted((PROXY / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text("utf-8"))


def imported(tree: ast.AST) -> Iterator[str]:
    """All modules that are imported, at the top or where they are needed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)


@pytest.mark.parametrize("package", PURE)
def test_pure_package_imports_nothing_that_does_io(package: str) -> None:
    """Values of the field, translation and policy know no socket, no loop, no thread and no store."""
    found = list(trees(package))
    assert len(found) > 1
    for path, tree in found:
        names = set(imported(tree))
        assert {name.partition(".")[0] for name in names}.isdisjoint(EDGES), path
        own = {name.split(".")[1] for name in names if name.startswith("proxy.")}
        assert own <= {"mail", "translate", "policy", "problems", "strictyaml"}, path


@pytest.mark.parametrize("package", PURE)
def test_pure_package_catches_no_broad_exception(package: str) -> None:
    """Any octets give a result or an error of ours because the code is right, not because everything is caught."""
    for path, tree in trees(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert "Exception" not in caught, path
                assert caught != "everything", path


def test_smtp_library_is_subclassed_in_one_module() -> None:
    """The front end's library is known there alone; the demo's sink uses the stock server as it is."""
    users = {
        path.relative_to(PROXY).as_posix(): {
            ast.unparse(base) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases
        }
        for path, tree in trees(".")
        if any(name.partition(".")[0] == "aiosmtpd" for name in imported(tree))
    }
    assert set(users) == {"inbound/server.py", "demo/sink.py"}
    assert "SMTP" in users["inbound/server.py"]
    assert "SMTP" not in users["demo/sink.py"]


def test_rules_bring_no_regular_expressions() -> None:
    """Patterns are made of the program's own constants: no text of a rule file can become a slow one."""
    for path, tree in trees("translate"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re."):
                assert ast.unparse(node.func) == "re.compile", path
                assert isinstance(node.args[0], ast.Constant), path


def test_every_reply_has_an_enhanced_code_of_its_class() -> None:
    """No 2yz, 4yz or 5yz that is written in the program lacks one; greeting, HELO and EHLO are not made this way."""
    replies = [
        node.args
        for _, tree in trees("inbound", "outbound", "deliver")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Reply" and len(node.args) == 3
    ]
    literal = [
        (args[0].value, args[1].value)
        for args in replies
        if isinstance(args[0], ast.Constant) and isinstance(args[1], ast.Constant)
    ]
    assert len(literal) > 50
    assert [
        each for each in literal if str(each[0])[0] in "245" and not str(each[1]).startswith(f"{str(each[0])[0]}.")
    ] == []
