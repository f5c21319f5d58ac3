"""
YAML as settings and rule files use it: nodes that know their line, and no surprises.

Only ``true``, ``false`` and integers are resolved; every other scalar stays the word that was written, so ``no``,
``on`` and ``off`` are words. Duplicate keys, tags and several documents are problems. Aliases have a small budget, so a
file cannot unfold into more than it shows. Nothing here raises on bad text: problems are collected.

Source: YAML 1.1 as read by PyYAML's event parser.
"""

import re
from collections.abc import Iterator
from typing import TypeAlias

import yaml
from attrs import frozen

from proxy.problems import Problem

MAX_OCTETS = 262_144
MAX_DEPTH = 20
MAX_ALIASES = 8

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@frozen
class Scalar:
    """A word, a truth value, an integer, or nothing at all (``key:`` with no value)."""

    value: str | bool | int | None
    line: int

    def __str__(self) -> str:
        if self.value is None:
            return "nothing"
        if isinstance(self.value, bool):
            return "true" if self.value else "false"
        return repr(self.value)


@frozen
class Sequence:
    """A list of nodes."""

    items: tuple["Node", ...]
    line: int

    def __str__(self) -> str:
        return f"a list of {len(self.items)}"


@frozen
class Mapping:
    """Keys with their nodes, in file order; the line is the line of the first key."""

    entries: dict[str, "Node"]
    key_lines: dict[str, int]
    line: int

    def __str__(self) -> str:
        return "a mapping"


Node: TypeAlias = Scalar | Sequence | Mapping

_TAB_IN_FRONT = re.compile(r" *\t")


def parse(text: str, file: str) -> tuple[Node | None, list[Problem]]:
    """
    Turn YAML text into nodes.

    Args:
        text: The whole file.
        file: The name to put into problems.

    Returns:
        The root node, or None when the file is empty or cannot be read; and every problem found.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_OCTETS:
        return None, [Problem(file, 0, "", f"{len(text)} characters", f"a file of at most {MAX_OCTETS} octets")]
    builder = _Builder(file)
    try:
        root = builder.document(yaml.parse(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        found = " ".join(str(part) for part in (error.problem, error.context) if part)
        line = text.splitlines()[mark.line : mark.line + 1] if mark else []
        builder.add(
            mark.line + 1 if mark else 0,
            "",
            f"text that is not YAML: {found}".rstrip(": "),
            "valid YAML",
            "indent with blanks; a tab is none" if any(map(_TAB_IN_FRONT.match, line)) else "",
        )
        return None, builder.problems
    except yaml.YAMLError as error:  # a character YAML forbids (NUL, a lone surrogate): no mark
        builder.add(0, "", f"text that is not YAML: {str(error).splitlines()[0]}", "valid YAML")
        return None, builder.problems
    except UnicodeEncodeError:
        builder.add(0, "", "text that is not YAML: an unpaired surrogate", "valid YAML")
        return None, builder.problems
    except _TooMuchError:
        return None, builder.problems
    return root, builder.problems


class _TooMuchError(Exception):
    """Reading ends here: what is missing then is no problem of its own."""


class _Builder:
    """Walk PyYAML's events; one instance reads one document."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node] = {}
        self.aliases = 0

    def add(self, line: int, key: str, found: str, expected: str, hint: str = "") -> None:
        self.problems.append(Problem(self.file, line, key, found, expected, hint))

    def document(self, events: Iterator[yaml.Event]) -> Node | None:
        root = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self.add(_line(event), "", "a second document", "one document in a file")
                    break
                root = self.node(next(events), events, "", 0)
        return root

    def node(self, event: yaml.Event, stream: Iterator[yaml.Event], path: str, depth: int) -> Node:
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                self.add(line, path, f"more than {MAX_ALIASES} aliases", "the values written out")
                raise _TooMuchError
            known = self.anchors.get(event.anchor or "")
            if known is None:
                self.add(line, path, "an alias without an anchor", "a value; in quotes if it begins with *")
                return Scalar(None, line)
            return known
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", "tag:yaml.org,2002:str"):
            self.add(line, path, "a tag", "a value; in quotes if it begins with !")
        node = self._content(event, stream, path, depth, line)
        anchor = getattr(event, "anchor", None)
        if anchor:
            self.anchors[anchor] = node
        return node

    def _content(self, event: yaml.Event, stream: Iterator[yaml.Event], path: str, depth: int, line: int) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(_resolve(event.value) if event.implicit[0] else event.value, line)
        if depth == MAX_DEPTH:
            self.add(line, path, "nesting too deep to read", f"at most {MAX_DEPTH} levels")
            raise _TooMuchError
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            for child in stream:
                if isinstance(child, yaml.SequenceEndEvent):
                    break
                items.append(self.node(child, stream, f"{path}[{len(items)}]", depth + 1))
            return Sequence(tuple(items), line)
        return self._mapping(stream, path, depth, line)

    def _mapping(self, stream: Iterator[yaml.Event], path: str, depth: int, line: int) -> Mapping:
        entries: dict[str, Node] = {}
        key_lines: dict[str, int] = {}
        for child in stream:
            if isinstance(child, yaml.MappingEndEvent):
                break
            key_line = _line(child)
            if isinstance(child, yaml.ScalarEvent):
                key = child.value
            else:
                self.node(child, stream, path, depth + 1)
                self.add(key_line, path, "a key that is a list, a mapping or an alias", "a word as key")
                key = ""
            here = f"{path}.{key}" if path else key
            value = self.node(next(stream), stream, here, depth + 1)
            if key in entries:
                self.add(key_line, here, "the key a second time", f"each key once (first on line {key_lines[key]})")
            elif key == "<<":
                self.add(key_line, here, "a merge key", "the values written out")
            elif key:
                entries[key] = value
                key_lines[key] = key_line
        return Mapping(entries, key_lines, line)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _resolve(text: str) -> str | bool | int | None:
    if text == "":
        return None
    if text == "true":
        return True
    if text == "false":
        return False
    return int(text) if _INTEGER.fullmatch(text) else text
