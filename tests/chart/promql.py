"""PromQL as far as tests need it: which series an expression selects, and by which labels it groups and joins."""

import re
from collections.abc import Iterator

from attrs import field, frozen

_TOKEN = re.compile(
    r"""
    (?P<text>"(?:[^"\\]|\\.)*")
    | (?P<number>\d[\w.:]*)  # durations, and the two of a subquery, too
    | (?P<grouping>\b(?:by|without|on|ignoring|group_left|group_right)\b\s*\((?P<labels>[^)]*)\))
    | (?P<name>[A-Za-z_:][\w:]*)\s*
      (?: (?P<function>(?=\(|by\b|without\b)) | \{(?P<matchers>(?:[^"}]|"(?:[^"\\]|\\.)*")*)\} )?
    """,
    re.VERBOSE,
)
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
_KEYWORDS = frozenset({"and", "or", "unless", "offset", "bool", "atan2", "inf", "nan"})


@frozen
class Selector:
    """
    Series that an expression selects.

    Attributes:
        matchers: Label, operator and value of each.
    """

    metric: str
    matchers: tuple[tuple[str, str, str], ...] = ()

    def literals(self) -> Iterator[tuple[str, str]]:
        """Each label with each value that it is compared with; a regular expression may only list words."""
        for label, operator, value in self.matchers:
            if value.startswith("$"):  # a variable of the dashboard
                continue
            values = value.split("|") if operator.endswith("~") else [value]
            yield from ((label, each) for each in values)


@frozen
class Expression:
    """
    An expression, taken apart.

    Attributes:
        groupings: Labels in ``by``, ``without``, ``on`` and their like.
    """

    text: str
    selectors: tuple[Selector, ...] = field(init=False)
    groupings: frozenset[str] = field(init=False)

    @selectors.default
    def _selectors(self) -> tuple[Selector, ...]:
        found = []
        for token in _TOKEN.finditer(self.text):
            name = token["name"]
            if name and token["function"] is None and name.lower() not in _KEYWORDS:
                found.append(Selector(name, tuple(_MATCHER.findall(token["matchers"] or ""))))
        return tuple(found)

    @groupings.default
    def _groupings(self) -> frozenset[str]:
        lists = [token["labels"] for token in _TOKEN.finditer(self.text) if token["grouping"]]
        return frozenset(label.strip() for labels in lists for label in labels.split(",") if label.strip())

    @property
    def metrics(self) -> frozenset[str]:
        """Names of all metrics."""
        return frozenset(selector.metric for selector in self.selectors)


def series(text: str) -> Selector:
    """Read a series as promtool's test files write it."""
    (selector,) = Expression(text).selectors
    return selector
