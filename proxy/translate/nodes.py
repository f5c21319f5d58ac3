"""
Nodes of a rule file as values of known kinds; each that does not fit is a problem, and reading goes on without it.
"""

import enum
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from proxy import strictyaml
from proxy.problems import Problem, did_you_mean
from proxy.strictyaml import Mapping, Node, Scalar

T = TypeVar("T")
E = TypeVar("E", bound=enum.Enum)

SINGLE = "a single value"
NO_COLON = "leave out the colon"


class NodeReader:
    """Reads one file's nodes; problems are collected, and reading goes on with a harmless value."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems

    def add(self, line: int, key: str, found: str, expected: str, hint: str = "") -> None:
        """Note a problem."""
        self.problems.append(Problem(self.file, line, key, found, expected, hint))

    def keys(
        self, node: Mapping, path: str, known: Sequence[str], needed: Sequence[str] = (), also: Sequence[str] = ()
    ) -> None:
        """
        Hold the keys of a mapping against those there are, and those there must be.

        Args:
            needed: Keys that must be there.
            also: Keys that must be there and that somebody else looks for.
        """
        for name, line in node.key_lines.items():
            if name not in known:
                expected = f"one of {', '.join(known)}"
                self.add(line, join(path, name), f"unknown key {name!r}", expected, did_you_mean(name, known))
        for name in needed:
            if name not in node.entries:
                self.add(node.line, path, f"no key {name!r}", f"{', '.join((*needed, *also))}")

    def each(self, root: Mapping, name: str, read: Callable[[Mapping, str], T]) -> list[T]:
        """A list of rules."""
        node = root.entries.get(name)
        if node is None:
            return []
        if not isinstance(node, strictyaml.Sequence):
            self.add(node.line, name, str(node), "a list of rules")
            return []
        found: list[T] = []
        for index, item in enumerate(node.items):
            key = f"{name}[{index}]"
            if isinstance(item, Mapping):
                found.append(read(item, key))
            else:
                self.add(item.line, key, str(item), "a rule: {field: …}")
        return found

    def mapping(self, root: Mapping, name: str, expected: str = "a mapping", hint: str = "") -> Mapping | None:
        """A mapping, or None."""
        node = root.entries.get(name)
        if node is None or isinstance(node, Mapping):
            return node
        self.add(node.line, name, str(node), expected, hint)
        return None

    def scalar(
        self, node: Mapping, name: str, path: str, expected: str = SINGLE, hint: str = ""
    ) -> str | bool | int | None:
        """A word, a truth value or an integer; None where there is none."""
        value = node.entries.get(name)
        if value is None:
            return None
        if isinstance(value, Scalar) and value.value is not None and value.value != "":
            return value.value
        self.add(node.key_lines[name], join(path, name), str(value), expected, hint)
        return None

    def text(self, node: Mapping, name: str, path: str, expected: str = SINGLE, hint: str = "") -> str:
        """A text; empty where there is none."""
        value = self.scalar(node, name, path, expected, hint)
        return "" if value is None else written(value)

    def matching(self, node: Mapping, name: str, path: str, pattern: re.Pattern[str], expected: str) -> str:
        """A text of a known form; empty where there is none."""
        value = self.text(node, name, path)
        if value and not pattern.fullmatch(value):
            self.add(node.key_lines[name], join(path, name), repr(value), expected)
        return value

    def word(self, node: Mapping, name: str, path: str, known: Sequence[str], default: str) -> str:
        """One of the known words."""
        value = self.text(node, name, path)
        if not value:
            return default
        if value not in known:
            expected = f"one of {', '.join(known)}"
            self.add(node.key_lines[name], join(path, name), repr(value), expected, did_you_mean(value, known))
            return default
        return value

    def choice(self, node: Mapping, name: str, path: str, kind: type[E], default: E) -> E:
        """One of the words of an enumeration."""
        known = {str(member.value): member for member in kind}
        word = self.word(node, name, path, tuple(known), "")
        return known.get(word, default)

    def words(
        self, node: Mapping, name: str, path: str, expected: str = "a word, or a list of words", hint: str = ""
    ) -> list[tuple[str, int]]:
        """One word or a list of words, each with its line."""
        value: Node | None = node.entries.get(name)
        if value is None:
            return []
        key = join(path, name)
        items = value.items if isinstance(value, strictyaml.Sequence) else (value,)
        found: list[tuple[str, int]] = []
        for item in items:
            if isinstance(item, Scalar) and item.value is not None and item.value != "":
                found.append((written(item.value), item.line))
            elif isinstance(item, Mapping) and [str(child) for child in item.entries.values()] == ["nothing"]:
                self.add(item.line, key, f"'{next(iter(item.entries))}:'", expected, NO_COLON)
            else:
                self.add(item.line, key, str(item), expected, hint)
        if not items:
            self.add(value.line, key, "an empty list", expected, hint)
        return found


def join(path: str, name: str) -> str:
    """Lengthen a key path by a key."""
    return f"{path}.{name}" if path else name


def written(value: str | bool | int) -> str:
    """Give a value as the file writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
