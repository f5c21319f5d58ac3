"""
Rule files: YAML text to :class:`RuleFile`, or every problem with file, line and key.

Strict on purpose: a slip in a rule should surface before the first message, not in one of them.
"""

import enum
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from proxy import strictyaml
from proxy.problems import Problem, ProblemsError
from proxy.strictyaml import Mapping, Node, Scalar
from proxy.translate import values
from proxy.translate.model import (
    DEFAULT_ACTIONS,
    DELIVER_AT,
    GROUP,
    SWITCHES,
    TARGETS,
    TIMES,
    FieldPatterns,
    LossRule,
    Reading,
    Repeat,
    RuleFile,
    Selector,
    TranslateRule,
    When,
)

_PROVIDER = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_FIELD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,39}")

# What mail itself needs is never a provider's to remove, nor ours.
_PROTECTED = (
    *("bcc", "cc", "comments", "content-description", "content-disposition", "content-id", "content-transfer-encoding"),
    *("content-type", "date", "dkim-signature", "from", "in-reply-to", "keywords", "list-unsubscribe"),
    *("list-unsubscribe-post", "message-id", "mime-version", "received", "references", "reply-to", "resent-from"),
    *("return-path", "sender", "subject", "to", "x-cmail-groupname", "x-cmail-inlinecss", "x-cmail-trackclicks"),
    "x-cmail-trackopens",
)

_TOP_KEYS = ("title", "reference", "fields", "json", "translate", "when_absent", "untranslatable")
_SELECTOR_KEYS = ("field", "at", "list", "skip_prefix", "key")
_TRANSLATE_KEYS = (
    *_SELECTOR_KEYS,
    *("to", "as", "true_if", "false_if", "known", "optional", "class", "loses", "on_invalid"),
)
_LOSS_KEYS = (*_SELECTOR_KEYS, "when", "min_recipients", "is", "contains", "class", "loses")

T = TypeVar("T")
E = TypeVar("E", bound=enum.Enum)


def load(providers: Iterable[str], directories: Sequence[Path], shipped: Path) -> tuple[RuleFile, ...]:
    """
    Read the rule files of the named providers, in the order named.

    Args:
        providers: Names; the file is ``<name>.yaml``.
        directories: Folders looked through in order, before *shipped*, so that an operator's file replaces ours.

    Raises:
        ProblemsError: All problems of all files.
    """
    files: list[RuleFile] = []
    problems: list[Problem] = []
    for provider in providers:
        path = find(provider, directories, shipped)
        if path is None:
            known = ", ".join(known_providers(directories, shipped))
            problems.append(Problem("rules.providers", 0, "", repr(provider), f"one of {known}"))
            continue
        name = f"mappings/{path.name}" if path.parent == shipped else str(path)
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "octets that are not UTF-8"
            problems.append(Problem(name, 0, "", str(reason), "a readable rule file in UTF-8"))
            continue
        file, found = parse(text, name, provider)
        problems.extend(found)
        if file is not None:
            files.append(file)
    if problems:
        raise ProblemsError(problems)
    return tuple(files)


def known_providers(directories: Sequence[Path], shipped: Path) -> list[str]:
    """Name the providers that have a rule file."""
    return sorted({file.stem for folder in (*directories, shipped) for file in folder.glob("*.yaml")})


def find(provider: str, directories: Sequence[Path], shipped: Path) -> Path | None:
    """Give the file that holds the rules of *provider*, or None."""
    if not _PROVIDER.fullmatch(provider):
        return None
    candidates = (folder / f"{provider}.yaml" for folder in (*directories, shipped))
    return next((path for path in candidates if path.is_file()), None)


def parse(text: str, file: str, provider: str) -> tuple[RuleFile | None, list[Problem]]:
    """
    Read one rule file.

    Returns:
        The file, or None if there is any problem; and the problems.
    """
    root, problems = strictyaml.parse(text, file)
    reader = _Reader(file, problems)
    if not isinstance(root, Mapping):
        if root is not None or not problems:
            reader.add(root.line if root else 0, "", str(root or "an empty file"), "a mapping with title and fields")
        return None, problems
    parsed = reader.rule_file(root, provider)
    return (None if problems else parsed), problems


class _Reader:
    """Reads one file's nodes; problems are collected, and reading goes on with a harmless value."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems
        self.json: dict[bytes, Repeat] = {}

    def add(self, line: int, key: str, found: str, expected: str, hint: str = "") -> None:
        self.problems.append(Problem(self.file, line, key, found, expected, hint))

    def rule_file(self, root: Mapping, provider: str) -> RuleFile:
        self.keys(root, "", _TOP_KEYS, ("title", "fields"))
        spelled = self.words(root, "fields", "")
        controls = self.controls(spelled)
        self.json = self.json_fields(root)
        return RuleFile(
            provider=provider,
            title=self.text(root, "title", ""),
            reference=self.text(root, "reference", ""),
            controls=controls,
            spelled=tuple(word for word, _ in spelled),
            json=self.json,
            translate=tuple(self.each(root, "translate", self.translate_rule)),
            when_absent=self.when_absent(root),
            untranslatable=tuple(self.each(root, "untranslatable", self.loss_rule)),
            file=self.file,
        )

    # Parts of a file

    def controls(self, words: Sequence[tuple[str, int]]) -> FieldPatterns:
        names: set[bytes] = set()
        prefixes: list[bytes] = []
        excepted: set[bytes] = set()
        excepted_prefixes: list[bytes] = []
        for index, (word, line) in enumerate(words):
            key = f"fields[{index}]"
            pattern = word.removeprefix("!")
            stem = pattern.removesuffix("*")
            if not _FIELD_NAME.fullmatch(stem):
                self.add(line, key, repr(word), "a header field name; one * at its end, ! at its start to except it")
                continue
            lower = stem.lower()
            taken = [name for name in _PROTECTED if name == lower or (pattern != stem and name.startswith(lower))]
            if taken and not word.startswith("!"):
                self.add(line, key, repr(word), "fields of this provider", f"it would remove {taken[0]}")
            elif word.startswith("!") and pattern != stem:
                excepted_prefixes.append(lower.encode())
            elif word.startswith("!"):
                excepted.add(lower.encode())
            elif pattern == stem:
                names.add(lower.encode())
            else:
                prefixes.append(lower.encode())
        return FieldPatterns(frozenset(names), tuple(prefixes), frozenset(excepted), tuple(excepted_prefixes))

    def json_fields(self, root: Mapping) -> dict[bytes, Repeat]:
        found: dict[bytes, Repeat] = {}
        node = self.mapping(root, "json")
        for name, options in node.entries.items() if node else ():
            key = f"json.{name}"
            if not _FIELD_NAME.fullmatch(name):
                self.add(options.line, key, repr(name), "a header field name")
                continue
            repeat = Repeat.EACH
            if not isinstance(options, Mapping):
                self.add(options.line, key, str(options), "{} or {repeat: first}")
            else:
                self.keys(options, key, ("repeat",), ())
                repeat = self.choice(options, "repeat", key, Repeat, Repeat.EACH)
            found[name.lower().encode()] = repeat
        return found

    def when_absent(self, root: Mapping) -> dict[str, bool]:
        node = self.mapping(root, "when_absent")
        found: dict[str, bool] = {}
        for name, value in node.entries.items() if node else ():
            if name not in SWITCHES:
                self.add(value.line, f"when_absent.{name}", repr(name), f"one of {', '.join(SWITCHES)}")
            elif not isinstance(value, Scalar) or not isinstance(value.value, bool):
                self.add(value.line, f"when_absent.{name}", str(value), "true or false")
            else:
                found[name] = value.value
        return found

    def translate_rule(self, node: Mapping, key: str) -> TranslateRule:
        self.keys(node, key, _TRANSLATE_KEYS, ("field", "to"))
        target = self.word(node, "to", key, TARGETS, GROUP)
        reading = self.choice(node, "as", key, Reading, Reading.TEXT)
        fitting = TIMES if target == DELIVER_AT else {Reading.SWITCH, Reading.ALLOW_LIST}
        if target == GROUP:
            fitting = {Reading.TEXT}
        readable = "as" not in node.entries or self.scalar_quiet(node) in [each.value for each in Reading]
        if readable and reading not in fitting:
            words = [each.value for each in Reading if each in fitting]
            self.add(node.line, f"{key}.as", reading.value, f"{' or '.join(words)} for {target}")
        words_for = {name: self.lower_words(node, name, key) for name in ("true_if", "false_if", "known")}
        for name, found in words_for.items():
            if found and reading not in (Reading.SWITCH, Reading.ALLOW_LIST):
                self.add(
                    node.key_lines[name], f"{key}.{name}", "a list of words", "as: switch or as: allow_list with it"
                )
        if reading is Reading.ALLOW_LIST and not words_for["true_if"]:
            self.add(node.line, f"{key}.true_if", "nothing", "the words that switch it on, for as: allow_list")
        loss_class, loses = "", ""
        if target == DELIVER_AT:
            loss_class, loses = self.loss(node, key)
        else:
            for name in ("class", "loses"):
                if name in node.entries:
                    self.add(node.key_lines[name], f"{key}.{name}", "a loss", "it only with to: deliver_at")
        invalid = self.word(node, "on_invalid", key, ("pass", "refuse"), "")
        return TranslateRule(
            selector=self.selector(node, key, wildcard=False),
            target=target,
            reading=reading,
            where=f"{self.file}:{node.line}",
            true_words=words_for["true_if"],
            false_words=words_for["false_if"],
            known=words_for["known"],
            optional=self.matching(node, "optional", key, _WORD, "a name of lower-case letters, digits and _"),
            loss_class=loss_class,
            loses=loses,
            refuse_invalid={"pass": False, "refuse": True}.get(invalid),
        )

    def loss_rule(self, node: Mapping, key: str) -> LossRule:
        self.keys(node, key, _LOSS_KEYS, ("field", "class", "loses"))
        loss_class, loses = self.loss(node, key)
        recipients = self.scalar(node, "min_recipients", key)
        if recipients is not None and (
            isinstance(recipients, bool) or not isinstance(recipients, int) or recipients < 1
        ):
            shown = str(node.entries["min_recipients"])
            self.add(node.key_lines["min_recipients"], f"{key}.min_recipients", shown, "a number from 1 on")
            recipients = None
        return LossRule(
            selector=self.selector(node, key, wildcard=True),
            loss_class=loss_class,
            loses=loses,
            where=f"{self.file}:{node.line}",
            when=self.choice(node, "when", key, When, When.SET),
            min_recipients=int(recipients or 0),
            words=self.lower_words(node, "is", key),
            contains=self.text(node, "contains", key).lower(),
        )

    def loss(self, node: Mapping, key: str) -> tuple[str, str]:
        loss_class = self.word(node, "class", key, tuple(DEFAULT_ACTIONS), "")
        loses = self.text(node, "loses", key)
        if not loses and "loses" not in node.entries:
            self.add(node.line, f"{key}.loses", "nothing", "a few words on what is lost")
        if "class" not in node.entries:
            self.add(node.line, f"{key}.class", "nothing", f"one of {', '.join(DEFAULT_ACTIONS)}")
        if not (loses.isascii() and loses.isprintable()):
            self.add(
                node.line, f"{key}.loses", "characters outside printable ASCII", "text that fits into an SMTP reply"
            )
        return loss_class, loses

    def selector(self, node: Mapping, key: str, *, wildcard: bool) -> Selector:
        names: dict[bytes, str] = {}
        for word, line in self.words(node, "field", key):
            stem = word.removesuffix("*") if wildcard else word
            if not _FIELD_NAME.fullmatch(stem):
                expected = "a header field name" + (", one * at its end" if wildcard else " (no pattern here)")
                self.add(line, f"{key}.field", repr(word), expected)
            elif word.lower().encode() in names:
                self.add(line, f"{key}.field", f"{word!r} a second time", "each name once")
            else:
                names[word.lower().encode()] = word
        paths = tuple(tuple(word.split(".")) for word, _ in self.words(node, "at", key))
        if paths and not all(name in self.json for name in names):
            plain = next(spelled for name, spelled in names.items() if name not in self.json)
            self.add(node.key_lines["at"], f"{key}.at", "a path", f"{plain} under json:, if it holds JSON")
        if any("" in path for path in paths):
            self.add(node.key_lines["at"], f"{key}.at", "an empty step", "keys parted by single dots")
        separator = self.text(node, "list", key)
        if len(separator) > 1:
            self.add(node.key_lines["list"], f"{key}.list", repr(separator), "one character that parts items")
        return Selector(
            names, paths, separator, self.text(node, "skip_prefix", key), self.text(node, "key", key).lower()
        )

    # Kinds of values

    def scalar_quiet(self, node: Mapping) -> object:
        value = node.entries["as"]
        return value.value if isinstance(value, Scalar) else None

    def keys(self, node: Mapping, path: str, known: Sequence[str], needed: Sequence[str]) -> None:
        for name, line in node.key_lines.items():
            if name not in known:
                self.add(line, f"{path}.{name}".lstrip("."), f"unknown key {name!r}", f"one of {', '.join(known)}")
        for name in needed:
            if name not in node.entries and name not in ("class", "loses"):
                self.add(node.line, path, f"no key {name!r}", f"{', '.join(needed)}")

    def each(self, root: Mapping, name: str, read: Callable[[Mapping, str], T]) -> list[T]:
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

    def mapping(self, root: Mapping, name: str) -> Mapping | None:
        node = root.entries.get(name)
        if node is None or isinstance(node, Mapping):
            return node
        self.add(node.line, name, str(node), "a mapping")
        return None

    def scalar(self, node: Mapping, name: str, path: str) -> str | bool | int | None:
        value = node.entries.get(name)
        if value is None:
            return None
        if isinstance(value, Scalar) and value.value is not None and value.value != "":
            return value.value
        self.add(node.key_lines[name], f"{path}.{name}".lstrip("."), str(value), "a single value")
        return None

    def text(self, node: Mapping, name: str, path: str) -> str:
        value = self.scalar(node, name, path)
        return "" if value is None else _written(value)

    def matching(self, node: Mapping, name: str, path: str, pattern: re.Pattern[str], expected: str) -> str:
        value = self.text(node, name, path)
        if value and not pattern.fullmatch(value):
            self.add(node.key_lines[name], f"{path}.{name}", repr(value), expected)
        return value

    def word(self, node: Mapping, name: str, path: str, known: Sequence[str], default: str) -> str:
        value = self.text(node, name, path)
        if not value:
            return default
        if value not in known:
            self.add(node.key_lines[name], f"{path}.{name}", repr(value), f"one of {', '.join(known)}")
            return default
        return value

    def choice(self, node: Mapping, name: str, path: str, kind: type[E], default: E) -> E:
        known = {str(member.value): member for member in kind}
        word = self.word(node, name, path, tuple(known), "")
        return known.get(word, default)

    def words(self, node: Mapping, name: str, path: str) -> list[tuple[str, int]]:
        """One word or a list of words, each with its line."""
        value: Node | None = node.entries.get(name)
        key = f"{path}.{name}".lstrip(".")
        if value is None:
            return []
        items = value.items if isinstance(value, strictyaml.Sequence) else (value,)
        found: list[tuple[str, int]] = []
        for item in items:
            if isinstance(item, Scalar) and item.value is not None and item.value != "":
                found.append((_written(item.value), item.line))
            else:
                self.add(item.line, key, str(item), "a word, or a list of words")
        if not items:
            self.add(value.line, key, "an empty list", "a word, or a list of words")
        return found

    def lower_words(self, node: Mapping, name: str, path: str) -> frozenset[str]:
        return frozenset(values.switch_word(word) for word, _ in self.words(node, name, path))


def _written(value: str | bool | int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
