"""
Rule files: YAML text to :class:`RuleFile`, or every problem with file, line and key.

Strict on purpose: a slip in a rule should surface before the first message, not in one of them.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

from proxy import strictyaml
from proxy.problems import Problem, ProblemsError, did_you_mean
from proxy.strictyaml import Mapping, Scalar
from proxy.translate import values
from proxy.translate.model import (
    DEFAULT_ACTIONS,
    DELIVER_AT,
    GROUP,
    SWITCHES,
    TARGETS,
    TIMES,
    FieldPatterns,
    JsonField,
    LossRule,
    Reading,
    Repeat,
    RuleFile,
    Selector,
    TranslateRule,
    When,
)
from proxy.translate.nodes import NO_COLON, NodeReader

_PROVIDER = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_FIELD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,39}")

# What mail itself needs is never a provider's to remove, nor ours.
_PROTECTED = (
    *(
        "authentication-results",
        "auto-submitted",
        "bcc",
        "cc",
        "comments",
        "content-description",
        "content-disposition",
        "content-id",
        "content-transfer-encoding",
    ),
    *("content-type", "date", "dkim-signature", "from", "in-reply-to", "keywords", "list-unsubscribe"),
    *(
        "list-unsubscribe-post",
        "message-id",
        "mime-version",
        "precedence",
        "received",
        "references",
        "reply-to",
        "resent-from",
    ),
    *("return-path", "sender", "subject", "to", "x-cmail-groupname", "x-cmail-inlinecss", "x-cmail-trackclicks"),
    "x-cmail-trackopens",
)
_PROTECTED_PREFIXES = ("arc-", "list-", "resent-")

_EXCEPT = "a header field name; one * at its end, ! at its start to except it"
_CONTROL_FIELDS = "the names of the provider's control fields"
_LOSES = ("a few words on what is lost", "such as: loses: webhook data")

_TOP_KEYS = ("title", "reference", "fields", "json", "translate", "when_absent", "untranslatable")
_SELECTOR_KEYS = ("field", "at", "list", "skip_prefix", "key")
_TRANSLATE_KEYS = (
    *_SELECTOR_KEYS,
    *("to", "as", "true_if", "false_if", "known", "optional", "class", "loses", "on_invalid"),
)
_LOSS_KEYS = (*_SELECTOR_KEYS, "when", "min_recipients", "is", "contains", "class", "loses")


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


class _Reader(NodeReader):
    """Reads the parts of one file."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        super().__init__(file, problems)
        self.json: dict[bytes, JsonField] = {}
        self.controls: FieldPatterns | None = None  # while they are not known, nothing can be said of what they cover
        self.rules: dict[tuple[object, ...], tuple[str, int]] = {}

    def rule_file(self, root: Mapping, provider: str) -> RuleFile:
        self.keys(root, "", _TOP_KEYS)
        before = len(self.problems)
        if "fields" not in root.entries:
            self.add(root.line, "fields", "nothing", _CONTROL_FIELDS, "add a line such as fields: [X-Acme-*]")
        spelled = self.words(root, "fields", "", _CONTROL_FIELDS, "such as fields: [X-Acme-*]")
        controls = self.patterns(spelled)
        if len(self.problems) == before:
            self.controls = controls
        before = len(self.problems)
        self.json = self.json_fields(root)
        title = "the provider's name as people know it"
        if "title" not in root.entries:
            self.add(root.line, "title", "nothing", title, "add a line such as title: Acme Mail")
        title = self.text(root, "title", "", title, "such as title: Acme Mail")
        reference = self.text(root, "reference", "")
        translate = self.each(root, "translate", self.translate_rule)
        when_absent = self.when_absent(root)
        untranslatable = self.each(root, "untranslatable", self.loss_rule)
        if len(self.problems) == before:
            self.json_is_used(root, [*translate, *untranslatable])
        return RuleFile(
            provider=provider,
            title=title,
            reference=reference,
            controls=controls,
            spelled=tuple(word for word, _ in spelled),
            json=self.json,
            translate=tuple(translate),
            when_absent=when_absent,
            untranslatable=tuple(untranslatable),
            file=self.file,
        )

    # Parts of a file

    def patterns(self, words: Sequence[tuple[str, int]]) -> FieldPatterns:
        names: set[bytes] = set()
        prefixes: list[bytes] = []
        excepted: set[bytes] = set()
        excepted_prefixes: list[bytes] = []
        for index, (word, line) in enumerate(words):
            key = f"fields[{index}]"
            pattern = word.removeprefix("!")
            stem = pattern.removesuffix("*")
            if not _FIELD_NAME.fullmatch(stem):
                self.add(line, key, repr(word), _EXCEPT, _no_colon(word))
                continue
            lower = stem.lower()
            taken = _taken(lower, pattern != stem)
            if taken and not word.startswith("!"):
                self.add(line, key, repr(word), "fields of this provider", f"it would remove {taken}")
            elif word.startswith("!") and pattern != stem:
                excepted_prefixes.append(lower.encode())
            elif word.startswith("!"):
                excepted.add(lower.encode())
            elif pattern == stem:
                names.add(lower.encode())
            else:
                prefixes.append(lower.encode())
        return FieldPatterns(frozenset(names), tuple(prefixes), frozenset(excepted), tuple(excepted_prefixes))

    def json_fields(self, root: Mapping) -> dict[bytes, JsonField]:
        found: dict[bytes, JsonField] = {}
        node = self.mapping(root, "json", "a mapping of field names", _as_json(root.entries.get("json")))
        for name, options in node.entries.items() if node else ():
            key = f"json.{name}"
            if not _FIELD_NAME.fullmatch(name):
                self.add(options.line, key, repr(name), "a header field name", _no_colon(name))
                continue
            field = JsonField()
            if not isinstance(options, Mapping):
                self.add(options.line, key, str(options), "{} or {repeat: first}")
            else:
                self.keys(options, key, ("repeat", "on_invalid"))
                repeat = self.choice(options, "repeat", key, Repeat, Repeat.EACH)
                field = JsonField(repeat, self.on_invalid(options, key))
            found[name.lower().encode()] = field
        return found

    def json_is_used(self, root: Mapping, rules: Sequence[TranslateRule | LossRule]) -> None:
        """A field under ``json:`` of which no rule wants anything is most likely misspelt."""
        node = self.mapping(root, "json")
        named = [name for rule in rules for name in rule.selector.names.values()]
        for name, options in node.entries.items() if node else ():
            if name.lower().encode() in self.json and not any(
                rule.selector.named_as(name.lower().encode()) for rule in rules
            ):
                hint = did_you_mean(name, named) or "take it out"
                self.add(options.line, f"json.{name}", "a field that no rule names", "fields of rules", hint)

    def when_absent(self, root: Mapping) -> dict[str, bool]:
        node = self.mapping(root, "when_absent")
        found: dict[str, bool] = {}
        for name, value in node.entries.items() if node else ():
            if name not in SWITCHES:
                expected = f"one of {', '.join(SWITCHES)}"
                hint = "" if name == GROUP else did_you_mean(name, SWITCHES)
                self.add(value.line, f"when_absent.{name}", repr(name), expected, hint)
            elif not isinstance(value, Scalar) or not isinstance(value.value, bool):
                self.add(value.line, f"when_absent.{name}", str(value), "true or false")
            else:
                found[name] = value.value
        return found

    def translate_rule(self, node: Mapping, key: str) -> TranslateRule:
        before = len(self.problems)
        self.keys(node, key, _TRANSLATE_KEYS, ("field", "to"))
        target = self.word(node, "to", key, TARGETS, "")
        reading = self.choice(node, "as", key, Reading, Reading.TEXT)
        fitting = TIMES if target == DELIVER_AT else {Reading.SWITCH, Reading.ALLOW_LIST}
        if target == GROUP:
            fitting = {Reading.TEXT}
        readable = "as" not in node.entries or self.scalar_quiet(node) in [each.value for each in Reading]
        if target and readable and reading not in fitting:
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
        if both := sorted(words_for["true_if"] & words_for["false_if"]):
            self.add(
                node.key_lines["false_if"],
                f"{key}.false_if",
                f"{both[0]!r}, in true_if too",
                "each word in one of the two",
            )
        loss_class, loses = "", ""
        if target == DELIVER_AT:
            loss_class, loses = self.loss(node, key)
        elif target:
            for name in ("class", "loses"):
                if name in node.entries:
                    self.add(node.key_lines[name], f"{key}.{name}", "a loss", "it only with to: deliver_at")
        refuse_invalid = self.on_invalid(node, key)
        selector = self.selector(node, key, wildcard=False)
        self.covered(node, key, selector)
        rule = TranslateRule(
            selector=selector,
            target=target or GROUP,
            reading=reading,
            where=f"{self.file}:{node.line}",
            true_words=words_for["true_if"],
            false_words=words_for["false_if"],
            known=words_for["known"],
            optional=self.matching(node, "optional", key, _WORD, "a name of lower-case letters, digits and _"),
            loss_class=loss_class,
            loses=loses,
            refuse_invalid=refuse_invalid,
        )
        if len(self.problems) == before:
            self.once(rule, node, key)
        return rule

    def covered(self, node: Mapping, key: str, selector: Selector) -> None:
        """What is translated is a control field: else it would stay in the message, and decide unseen."""
        for name, spelled in selector.names.items():
            if self.controls is None or self.controls.match(name):
                continue
            excepted = self.controls.excepts(name)
            self.add(
                node.key_lines["field"],
                f"{key}.field",
                f"{spelled!r}, which fields {'excepts' if excepted else 'does not cover'}",
                "a control field of this provider",
                "take the exception or this rule away" if excepted else f"add {spelled} under fields",
            )
        inside = [spelled for name, spelled in selector.names.items() if name in self.json]
        if inside and "at" not in node.entries:
            hint = "the keys on the way to the value, joined by dots"
            self.add(node.line, f"{key}.at", "nothing", f"a path, because {inside[0]} holds JSON", hint)

    def once(self, rule: TranslateRule | LossRule, node: Mapping, key: str) -> None:
        """A rule that stands there twice was meant to say something else the second time."""
        selector = rule.selector
        sense = (
            key.partition("[")[0],
            *(tuple(selector.names), selector.paths, selector.separator, selector.skip_prefix, selector.key),
            *(getattr(rule, each.name) for each in attrs.fields(type(rule)) if each.name not in ("selector", "where")),
        )
        first, line = self.rules.setdefault(sense, (key, node.line))
        if first != key:
            self.add(node.line, key, f"the same rule as {first} (line {line})", "each rule once")

    def loss_rule(self, node: Mapping, key: str) -> LossRule:
        before = len(self.problems)
        self.keys(node, key, _LOSS_KEYS, ("field",), ("class", "loses"))
        loss_class, loses = self.loss(node, key)
        recipients = self.scalar(node, "min_recipients", key)
        if recipients is not None and (
            isinstance(recipients, bool) or not isinstance(recipients, int) or recipients < 1
        ):
            shown = str(node.entries["min_recipients"])
            self.add(node.key_lines["min_recipients"], f"{key}.min_recipients", shown, "a number from 1 on")
            recipients = None
        rule = LossRule(
            selector=self.selector(node, key, wildcard=True),
            loss_class=loss_class,
            loses=loses,
            where=f"{self.file}:{node.line}",
            when=self.choice(node, "when", key, When, When.SET),
            min_recipients=int(recipients or 0),
            words=self.lower_words(node, "is", key),
            contains=self.text(node, "contains", key).lower(),
        )
        if len(self.problems) == before:
            self.once(rule, node, key)
        return rule

    def loss(self, node: Mapping, key: str) -> tuple[str, str]:
        loss_class = self.word(node, "class", key, tuple(DEFAULT_ACTIONS), "")
        loses = self.text(node, "loses", key, *_LOSES)
        if not loses and "loses" not in node.entries:
            self.add(node.line, f"{key}.loses", "nothing", *_LOSES)
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
                self.add(line, f"{key}.field", repr(word), expected, _no_colon(word))
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

    def scalar_quiet(self, node: Mapping) -> object:
        value = node.entries["as"]
        return value.value if isinstance(value, Scalar) else None

    def on_invalid(self, node: Mapping, key: str) -> bool | None:
        """Whether to refuse what cannot be read; None where the file leaves it to the operator."""
        return {"pass": False, "refuse": True}.get(self.word(node, "on_invalid", key, ("pass", "refuse"), ""))

    def lower_words(self, node: Mapping, name: str, path: str) -> frozenset[str]:
        return frozenset(values.switch_word(word) for word, _ in self.words(node, name, path))


def _taken(lower: str, wildcard: bool) -> str:
    """Give the field of mail itself that a pattern would remove; empty for none."""
    for name in _PROTECTED:
        if name == lower or (wildcard and name.startswith(lower)):
            return name
    for prefix in _PROTECTED_PREFIXES:
        if lower.startswith(prefix):
            return f"{lower}*" if wildcard else lower
        if wildcard and prefix.startswith(lower):
            return f"{prefix}*"
    return ""


def _no_colon(name: str) -> str:
    return NO_COLON if name.endswith(":") else ""


def _as_json(node: strictyaml.Node | None) -> str:
    """Show how a field is written under ``json:``, with the name that stands there if one does."""
    first = node.items[0] if isinstance(node, strictyaml.Sequence) and node.items else node
    name = str(first.value) if isinstance(first, Scalar) and isinstance(first.value, str) else ""
    return f"write json: {{{name if _FIELD_NAME.fullmatch(name) else 'X-Acme-Data'}: {{}}}}"
