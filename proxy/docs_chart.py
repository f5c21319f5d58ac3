"""
What the Helm chart says that is written elsewhere already: its README from the comments in values.yaml, and the part of
its schema that is the settings' own.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from attrs import frozen

from proxy.settings import reference

_MARK = "# -- "


@frozen
class Value:
    """
    One value of the chart.

    Attributes:
        key: Its path, with dots.
        default: The default as JSON; empty for a group of values.
        text: What the comment says; empty where there is none.
    """

    key: str
    default: str
    text: str


def values(text: str) -> list[Value]:
    """
    List the values of a values.yaml, in its order.

    A comment above a key whose first line begins with ``# --`` explains the key with all that is in it. Keys without
    one are groups, and their keys follow.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return list(_values(root, "", text.splitlines())) if isinstance(root, yaml.MappingNode) else []


def _values(node: yaml.MappingNode, path: str, lines: list[str]) -> Iterator[Value]:
    for key, value in node.value:
        name = f"{path}.{key.value}" if path else key.value
        comment = _comment(lines, key.start_mark.line)
        if not comment and isinstance(value, yaml.MappingNode) and value.value:
            yield from _values(value, name, lines)
        else:
            default = yaml.safe_load(yaml.serialize(value))
            yield Value(name, json.dumps(default, ensure_ascii=False), comment)


def _comment(lines: list[str], line: int) -> str:
    """Take the comment that ends right above a line."""
    first = line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
        if lines[first].lstrip().startswith(_MARK):
            found = (each.strip().removeprefix(_MARK).removeprefix("# ") for each in lines[first:line])
            return " ".join(found)
    return ""


def values_table(text: str) -> str:
    """Write the values as a Markdown table."""
    rows = [("Value", "Default", "Meaning"), ("---", "---", "---")]
    rows += [(f"`{value.key}`", f"`{_short(value.default)}`", value.text) for value in values(text)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def _short(default: str) -> str:
    """Leave long defaults to values.yaml."""
    return default if len(default) <= 60 else f"{default[0]}…{default[-1]}"


def schema(text: str) -> str:
    """Put the schema of the settings into that of the values, at ``definitions.settings``."""
    whole: dict[str, Any] = json.loads(text)
    settings = {name: part for name, part in reference.json_schema().items() if name not in ("$schema", "title")}
    whole["definitions"]["settings"] = settings
    lines = json.dumps(whole, indent=2, ensure_ascii=False)
    # Lists of words on one line each: half the length, and a change shows as one line.
    return re.sub(r"\[\s+((?:\"[^\"]*\",?\s+)+)\]", lambda found: f"[{' '.join(found[1].split())}]", lines) + "\n"
