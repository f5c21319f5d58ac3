"""
The environment, laid over the nodes of the settings file before they are read.

Trust: the operator sets the variables; Kubernetes and others may add some with our prefix.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin

import attrs

from proxy import strictyaml
from proxy.problems import Problem
from proxy.settings.fields import describe, is_scalar, is_section, keys_of, rows, secret_twin, without_none
from proxy.settings.model import LATER, LATER_KEYS, Settings
from proxy.settings.values import ENVIRONMENT, PREFIX, Findings, join, variable

CONFIG_VARIABLE = f"{PREFIX}CONFIG"
"""Names the settings file; the command line reads it."""
TEST_TOKEN_VARIABLE = f"{PREFIX}TEST_TOKEN"
"""The token of ``cmail-proxy send-test``, which may stand in the environment of a container beside the settings."""

_INDEX = re.compile(r"[0-9]{1,3}")

# Kubernetes gives these to every pod in a namespace that has a Service whose name begins with cmail-proxy.
_SERVICE_LINK = re.compile(r"\w+_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_\w+)?)")
_SERVICE_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://.*")


def lay_over(root: strictyaml.Node, environ: Mapping[str, str], findings: Findings) -> strictyaml.Node:
    """
    Put the values of variables where the file would have them.

    Args:
        root: The nodes of the file.
        environ: All environment variables; only those with our prefix are looked at.
        findings: Gets problems, and the variable of each key path.
    """
    for name in sorted((name for name in environ if name.startswith(PREFIX)), key=_natural):
        if not _is_foreign(name, environ[name]):
            root = _Variable(name, findings).lay_over(root, environ[name])
    return root


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort a list before its items, and item 2 before item 10."""
    return [(int(part), "") if _INDEX.fullmatch(part) else (-1, part) for part in name.split("__")]


def _is_foreign(name: str, value: str) -> bool:
    return (
        name in (CONFIG_VARIABLE, TEST_TOKEN_VARIABLE)
        or _SERVICE_LINK.fullmatch(name) is not None
        or (name.endswith("_PORT") and _SERVICE_ADDRESS.fullmatch(value) is not None)
    )


class _Variable:
    """One variable: the path its name means, and the way along it."""

    def __init__(self, name: str, findings: Findings) -> None:
        self.name = name
        self.findings = findings
        self.path: list[str | int] = []
        self.key = ""
        self.twin = ""
        self.annotation: Any = Settings

    def bad(self, found: str, expected: str, hint: str = "") -> None:
        self.findings.problems.append(Problem(ENVIRONMENT, 0, self.name, found, expected, hint))

    def lay_over(self, root: strictyaml.Node, text: str) -> strictyaml.Node:
        for part in self.name.removeprefix(PREFIX).split("__"):
            if not self._step(part):
                self._unknown(part)
                return root
        node = self._node(text)
        if node is None:
            return root
        covered = (f"{self.key}.", f"{self.key}[")
        for written in [path for path in self.findings.lines if path == self.key or path.startswith(covered)]:
            del self.findings.lines[written]
        self.findings.variables[self.key] = self.name
        return self._put(root, self.path, node)

    def _step(self, part: str) -> bool:
        """Follow one part of the name through the model; False if the model has nothing there."""
        step: str | int
        if is_section(self.annotation):
            known = {name.upper(): field for name, field in keys_of(self.annotation).items()}
            if part not in known:
                return False
            step = known[part].name
            self.twin = secret_twin(self.annotation, step)
            self.annotation = without_none(known[part].type)
        elif get_origin(self.annotation) is tuple and _INDEX.fullmatch(part):
            step = int(part)
            self.annotation = get_args(self.annotation)[0]
        else:
            return False
        self.path.append(step)
        self.key = join(self.key, step)
        return True

    def _unknown(self, part: str) -> None:
        if is_section(self.annotation):
            expected = "one of " + ", ".join(keys_of(self.annotation))
        elif get_origin(self.annotation) is tuple:
            expected = f"the number of an item after {variable(self.key)}__"
        else:
            expected = f"no key below {variable(self.key)}"
        later = join(self.key, part.lower()) in LATER_KEYS
        self.bad(f"unknown key {part.lower()!r}", expected, LATER if later else self._similar())

    def _similar(self) -> str:
        """Hint at the known variable that was probably meant, with the numbers that were given; empty for none."""
        numbers = iter(part for part in self.name.split("__") if _INDEX.fullmatch(part))
        name = "__".join("0" if _INDEX.fullmatch(part) else part for part in self.name.split("__"))
        known = [row.variable.removeprefix(PREFIX) for row in rows()]
        close = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1)
        if not close:
            return ""
        meant = "__".join(next(numbers, part) if part == "0" else part for part in close[0].split("__"))
        return f"did you mean {PREFIX}{meant}?"

    def _node(self, text: str) -> strictyaml.Node | None:
        """Read the value; YAML only where one word would not do, so that a password needs no quotes."""
        if is_scalar(self.annotation):
            return strictyaml.Scalar(text, 0)
        node, problems = strictyaml.parse(text, ENVIRONMENT)
        for problem in problems:
            key = f"{self.name}.{problem.key}" if problem.key else self.name
            self.findings.problems.append(attrs.evolve(problem, line=0, key=key))
        if node is None and not problems:
            self.bad("nothing", describe(self.annotation))
        return None if problems else node

    def _put(self, parent: strictyaml.Node | None, path: list[str | int], node: strictyaml.Node) -> strictyaml.Node:
        """Rebuild the nodes along the path; to change them in place would also change what shares them by an alias."""
        if not path:
            return node
        step, rest = path[0], path[1:]
        if parent is None or strictyaml.Scalar(None, parent.line) == parent:
            parent = strictyaml.Sequence((), 0) if isinstance(step, int) else strictyaml.Mapping({}, {}, 0)
        if isinstance(step, int) and isinstance(parent, strictyaml.Sequence):
            items = list(parent.items)
            if step > len(items):
                self.bad(f"item {step}", f"items counted from 0 without a gap; the next one is {len(items)}")
                return parent
            items[step : step + 1] = [self._put(items[step] if step < len(items) else None, rest, node)]
            return attrs.evolve(parent, items=tuple(items))
        if isinstance(step, str) and isinstance(parent, strictyaml.Mapping):
            entries = {**parent.entries, step: self._put(parent.entries.get(step), rest, node)}
            if not rest and self.key.removesuffix(step) + self.twin not in self.findings.variables:
                entries.pop(self.twin, None)  # the environment wins, whichever key of the secret the file uses
            return attrs.evolve(parent, entries=entries)
        return parent  # the file has the wrong shape there, which is a problem of its own
