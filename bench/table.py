"""Tables of results, for a terminal and as Markdown."""

import statistics
from collections.abc import Iterable, Sequence

from attrs import field, frozen

Row = dict[str, str | int | float | None]
"""One measurement as it goes into the JSON file."""


@frozen
class Table:
    """
    What is printed of a part.

    Args:
        title: One line above it.
        columns: Headings; the first column is text, the others are numbers or short words.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Give it for a terminal."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[index]) for line in lines) for index in range(len(self.columns))]
        printed = [
            "  ".join(cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in enumerate(cells))
            for cells in (list(zip(line, widths, strict=True)) for line in lines)
        ]
        rule = "-" * len(printed[0])
        return "\n".join([self.title, rule, printed[0], rule, *printed[1:]])

    def markdown(self) -> str:
        """Give it as a Markdown table."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = ["| " + " | ".join(line) + " |" for line in (self.columns, rule, *self.rows)]
        return f"**{self.title}**\n\n" + "\n".join(lines)


@frozen
class Report:
    """
    What a part found.

    Args:
        heading: What was measured, in some words.
        repeat: The command that does it again.
        tables: For people.
        rows: Every single measurement, for machines.
        notes: What to know when reading the tables.
    """

    heading: str
    repeat: str
    tables: Sequence[Table]
    rows: Sequence[Row]
    notes: Sequence[str] = field(factory=tuple)

    def text(self) -> str:
        """Give it for a terminal."""
        blocks = [f"== {self.heading}", *(table.text() for table in self.tables)]
        tail = [*(f"note: {note}" for note in self.notes), f"repeat: {self.repeat}"]
        return "\n\n".join([*blocks, "\n".join(tail)])

    def markdown(self) -> str:
        """Give it as a section of a Markdown document."""
        blocks = [f"## {self.heading}", f"`{self.repeat}`", *(table.markdown() for table in self.tables)]
        if self.notes:
            blocks.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(blocks)


def median(values: Iterable[float | None]) -> float | None:
    """Give the median of those that are there."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def percentile(values: Sequence[float], share: float) -> float | None:
    """Give the value below which that share lies (nearest rank); None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def share(mine: float | None, theirs: float | None) -> float | None:
    """Give one value as a share of another."""
    return mine / theirs if mine is not None and theirs else None


def spread(values: Sequence[float | None]) -> list[str]:
    """Write median, lowest and highest."""
    found = [value for value in values if value is not None]
    if not found:
        return [number(None)] * 3
    return [number(median(found), 2), number(min(found), 2), number(max(found), 2)]


def number(value: float | None, digits: int = 0) -> str:
    """Write a number; a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def at_most(value: float | None, goal: float) -> str:
    """Hold a value against a goal that it should not exceed."""
    return _verdict("≤", goal, None if value is None else value <= goal)


def at_least(value: float | None, goal: float) -> str:
    """Hold a value against a goal that it should reach."""
    return _verdict("≥", goal, None if value is None else value >= goal)


def _verdict(sign: str, goal: float, met: bool | None) -> str:
    return f"{sign} {goal:.3g} {'not measured' if met is None else 'met' if met else 'missed'}"
