"""
Settings from a YAML file and the environment, or every problem of both.

The environment is laid over the nodes of the file first, so that one walk over the model reads both. The walk knows
types and their metadata, not keys; a new setting needs no line here.

Trust: the operator writes both, and may be wrong about anything. A secret never gets into a problem, nor does a text
that stands where a mapping belongs: that is often a secret, too.
"""

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import attrs

from proxy import strictyaml
from proxy.problems import Problem, ProblemsError, did_you_mean
from proxy.settings.environment import lay_over
from proxy.settings.fields import alternatives, describe, form_of, is_scalar, is_section, keys_of, without_none
from proxy.settings.model import DATA_FOLDER, LATER, LATER_KEYS, Actions, Settings
from proxy.settings.values import ENVIRONMENT, Findings, Network, Secret, join

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
# A line break in a host name or user name would end an SMTP command early; a NUL would end a SASL PLAIN field.
_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_LONGEST_SHOWN = 80

EXPECTED_IN_FILE = "a file that holds the secret and nothing else"
"""Of a file that a setting or an option names."""


class _Bad:
    """Stands for a value that has a problem already."""


_BAD = _Bad()


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """
    Read the settings.

    Args:
        path: The settings file; None for the environment and defaults alone.
        environ: Environment variables; those that do not begin with ``CMAIL_PROXY_`` are not looked at.

    Returns:
        Settings whose single values are lawful; ``check`` says whether they are together. Paths are absolute: those in
        the file, and defaults where there is one, start at its folder; those in the environment at the working folder.

    Raises:
        ProblemsError: With every problem of file and environment.
    """
    findings = Findings(str(path) if path else "")
    root = _nodes(path, findings) if path else strictyaml.Mapping({}, {}, 0)
    root = lay_over(root, environ, findings)
    folder = path.parent if path else Path()
    settings = _Reader(folder.absolute(), findings).section(root, Settings, "")
    if findings.problems:
        raise ProblemsError(sorted(findings.problems, key=lambda problem: (problem.file == ENVIRONMENT, problem.line)))
    loaded: Settings = attrs.evolve(settings, source=findings.source)
    if path and not (isinstance(root, strictyaml.Mapping) and "data_dir" in root.entries):
        loaded = attrs.evolve(loaded, data_dir=folder.absolute() / DATA_FOLDER)  # wherever a command is run
    return loaded


def load_rules(path: Path | None, environ: Mapping[str, str]) -> Settings | None:
    """
    Read the section ``rules`` alone, when other sections cannot be read: so that rule files can still be checked.

    Returns:
        Settings with defaults for all else; None where that section, or the file, has problems itself.
    """
    findings = Findings(str(path) if path else "")
    try:
        root = _nodes(path, findings) if path else strictyaml.Mapping({}, {}, 0)
    except ProblemsError:
        return None
    root = lay_over(root, environ, Findings(""))
    rules = root.entries.get("rules") if isinstance(root, strictyaml.Mapping) else None
    only = strictyaml.Mapping({} if rules is None else {"rules": rules}, {}, 0)
    folder = path.parent if path else Path()
    settings = _Reader(folder.absolute(), findings).section(only, Settings, "")
    return None if findings.problems else attrs.evolve(settings, source=findings.source)


def read_secret(path: Path) -> Secret:
    """
    Read a password or token from a file of its own; a line end behind it does not belong to it.

    Raises:
        ValueError: Says what was found in place of what :data:`EXPECTED_IN_FILE` says.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ValueError(f"'{path}', which cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"'{path}', which is not UTF-8") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError(f"'{path}', which is empty")
    if _UNSAFE.search(text):
        raise ValueError(f"'{path}', which has several lines or control characters")
    return Secret(text)


def _nodes(path: Path, findings: Findings) -> strictyaml.Node:
    """Read the file, and note where each key stands."""
    root: strictyaml.Node | None = None
    try:
        root, problems = strictyaml.parse(path.read_bytes().decode("utf-8-sig"), str(path))
        findings.problems += problems
    except OSError as error:
        found = f"no file that can be read: {error.strerror}"
        findings.problems.append(Problem(str(path), 0, "", found, "a settings file"))
    except UnicodeDecodeError as error:
        found = f"octets that are not UTF-8, from octet {error.start + 1} on"
        findings.problems.append(Problem(str(path), 0, "", found, "a settings file in UTF-8"))
    if isinstance(root, strictyaml.Mapping):
        _note_lines(root, "", findings.lines)
        return root
    if root is not None and not _is_nothing(root):
        findings.problems.append(Problem(str(path), root.line, "", _kind(root), "a mapping of settings"))
    return strictyaml.Mapping({}, {}, 0)


def _note_lines(node: strictyaml.Node, path: str, lines: dict[str, int]) -> None:
    if isinstance(node, strictyaml.Mapping):
        for key, child in node.entries.items():
            lines[join(path, key)] = node.key_lines[key]
            _note_lines(child, join(path, key), lines)
    elif isinstance(node, strictyaml.Sequence):
        for index, item in enumerate(node.items):
            lines[join(path, index)] = item.line
            _note_lines(item, join(path, index), lines)


def _shown(node: strictyaml.Node) -> str:
    text = str(node)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _kind(node: strictyaml.Node) -> str:
    """Say what a node is without showing its value."""
    if not isinstance(node, strictyaml.Scalar) or node.value is None:
        return str(node)
    return {bool: "a truth value", int: "a number", str: "a text"}[type(node.value)]


def _is_nothing(node: strictyaml.Node) -> bool:
    return isinstance(node, strictyaml.Scalar) and node.value is None


class _Reader:
    """The walk over the model."""

    def __init__(self, folder: Path, findings: Findings) -> None:
        self.folder = folder
        self.source = findings.source
        self.problems = findings.problems

    def bad(self, key: str, found: str, expected: str, hint: str = "") -> _Bad:
        self.problems.append(self.source.problem(key, found, expected, hint))
        return _BAD

    def section(self, node: strictyaml.Node, cls: type, key: str) -> Any:
        """Read a mapping of known keys."""
        if _is_nothing(node):  # a section whose keys are all commented out
            node = strictyaml.Mapping({}, {}, node.line)
        if not isinstance(node, strictyaml.Mapping):
            return self.bad(key, _kind(node), "a mapping")
        fields = keys_of(cls)
        for name in node.entries:
            if name not in fields:
                here = join(key, name)
                hint = LATER if here in LATER_KEYS else did_you_mean(name, fields)
                self.bad(here, f"unknown key {name!r}", "one of " + ", ".join(fields), hint)
        values = {
            name: self.value(node.entries[name], field.type, join(key, name), field.metadata)
            for name, field in fields.items()
            if name in node.entries
        }
        for name, field in fields.items():
            if without_none(field.type) is Secret:
                self._secret(values, name, key, required=field.default is attrs.NOTHING)
            elif field.default is attrs.NOTHING and name not in values:
                values[name] = self.bad(join(key, name), "nothing", describe(field.type, field.metadata))
        return _BAD if any(value is _BAD for value in values.values()) else cls(**values)

    def _secret(self, values: dict[str, Any], name: str, key: str, required: bool) -> None:
        twin = f"{name}_file"
        if name in values and twin in values:
            self.bad(join(key, twin), f"both {name} and {twin}", "one of the two")
        elif isinstance(values.get(twin), Path):
            values[name] = self._secret_file(values[twin], join(key, twin))
        elif required and name not in values and twin not in values:
            values[name] = self.bad(join(key, name), f"neither {name} nor {twin}", "one of the two")

    def _secret_file(self, path: Path, key: str) -> Secret | _Bad:
        try:
            return read_secret(path)
        except ValueError as error:
            return self.bad(key, str(error), EXPECTED_IN_FILE)

    def value(self, node: strictyaml.Node, annotation: Any, key: str, metadata: Mapping[str, Any]) -> Any:
        """Read one value of any type; problems are collected and ``_BAD`` is returned."""
        options = alternatives(annotation)
        form = form_of(options[0])
        optional = without_none(annotation) is not annotation
        if optional and form and form.unset and isinstance(node, strictyaml.Scalar) and node.value == form.unset:
            return None
        if len(options) > 1:  # words, or a mapping
            mapping = isinstance(node, strictyaml.Mapping)
            option = next(option for option in options if (get_origin(option) is not Literal) == mapping)
        else:
            (option,) = options
        if is_section(option):
            return self.section(node, option, key)
        if option is Actions:
            return self._actions(node, key, metadata)
        if is_scalar(option):
            return self._scalar(node, option, key, describe(annotation, metadata), metadata)
        if get_origin(option) is tuple:
            return self._list(node, option, key, metadata)
        return self._mapping(node, option, key, metadata)

    def _list(self, node: strictyaml.Node, annotation: Any, key: str, metadata: Mapping[str, Any]) -> Any:
        item = get_args(annotation)[0]
        if not isinstance(node, strictyaml.Sequence):
            found = _kind(node) if is_section(item) else _shown(node)
            return self.bad(key, found, describe(annotation, metadata))
        values = tuple(self.value(child, item, join(key, i), metadata) for i, child in enumerate(node.items))
        return _BAD if any(value is _BAD for value in values) else values

    def _mapping(self, node: strictyaml.Node, annotation: Any, key: str, metadata: Mapping[str, Any]) -> Any:
        if not isinstance(node, strictyaml.Mapping):
            return self.bad(key, _shown(node), describe(annotation, metadata))
        key_type, item = get_args(annotation)
        values: dict[str, Any] = {}
        for name, child in node.entries.items():
            here = join(key, name)
            form = form_of(key_type)
            if form and not form.matches(name):
                values[name] = self.bad(here, f"key {name!r}", form.expected)
            elif not form and name not in get_args(key_type):
                known = get_args(key_type)
                values[name] = self.bad(
                    here, f"unknown key {name!r}", "one of " + ", ".join(known), did_you_mean(name, known)
                )
            else:
                values[name] = self.value(child, item, here, {**metadata, "example": ""})
        return _BAD if any(value is _BAD for value in values.values()) else values

    def _actions(self, node: strictyaml.Node, key: str, metadata: Mapping[str, Any]) -> Any:
        """Read one mapping with two kinds of key: a provider has a mapping as value, a class a word."""
        if not isinstance(node, strictyaml.Mapping):
            return self.bad(key, _shown(node), describe(Actions, metadata))
        by_class, by_provider = (
            attrs.evolve(
                node,
                entries={
                    name: child
                    for name, child in node.entries.items()
                    if isinstance(child, strictyaml.Mapping) is nested
                },
            )
            for nested in (False, True)
        )
        class_type, provider_type = (field.type for field in attrs.fields(Actions))
        parts = (
            self._mapping(by_class, class_type, key, metadata),
            self._mapping(by_provider, provider_type, key, metadata),
        )
        return _BAD if _BAD in parts else Actions(*parts)

    def _scalar(
        self, node: strictyaml.Node, annotation: Any, key: str, expected: str, metadata: Mapping[str, Any]
    ) -> Any:
        value = node.value if isinstance(node, strictyaml.Scalar) else node
        if value is None or value == "":
            return self.bad(key, "nothing", expected)
        if get_origin(annotation) is Literal:
            known = get_args(annotation)
            hint = did_you_mean(str(value), known)
            return value if value in known else self.bad(key, _shown(node), expected, hint)
        word = value.strip() if isinstance(value, str) else value
        if annotation is bool:
            truth = word if isinstance(word, bool) else {"true": True, "false": False}.get(str(word))
            return self.bad(key, _shown(node), expected) if truth is None else truth
        if annotation is int:
            number = int(word) if isinstance(word, str) and _INTEGER.fullmatch(word) else word
            lawful = type(number) is int and metadata["minimum"] <= number <= metadata["maximum"]
            unit = f" ({metadata['unit']})" if metadata["unit"] else ""
            return number if lawful else self.bad(key, _shown(node), expected + unit)
        if not isinstance(value, str):
            hint = "put it in quotes" if isinstance(value, bool | int) else ""
            return self.bad(key, _kind(node) if annotation is Secret else _shown(node), expected, hint)
        return self._text(value, annotation, key, expected)

    def _text(self, text: str, annotation: Any, key: str, expected: str) -> Any:
        if _UNSAFE.search(text):
            return self.bad(key, "text with a line break or control character", expected)
        if annotation is Secret:
            return Secret(text)
        if annotation is Path:
            return (Path() if self.source.place(key)[0] == ENVIRONMENT else self.folder).absolute() / text
        if annotation == Network:
            return self._network(text, key, expected)
        form = form_of(annotation)
        if form and not form.matches(text):
            return self.bad(key, _shown(strictyaml.Scalar(text, 0)), expected)
        return text

    def _network(self, text: str, key: str, expected: str) -> Any:
        try:
            return ipaddress.ip_network(text)
        except ValueError:
            pass
        try:
            hint = f"did you mean '{ipaddress.ip_network(text, strict=False)}'?"  # bits set behind the mask
        except ValueError:
            hint = ""
        return self.bad(key, _shown(strictyaml.Scalar(text, 0)), expected, hint)
