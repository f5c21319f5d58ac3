"""
The engine: a header section and an envelope in, the edits and their reasons out.

Rules are compiled once. For a message, fields are found by name; only those that some rule names are unfolded and
decoded. Order of precedence for each target: a native field in the message, the provider of the login or listener,
then field order in the message (README, "A message's life").
"""

import re
from collections.abc import Iterator, Sequence
from operator import attrgetter

from attrs import frozen

from proxy.mail import encoded_words
from proxy.mail.envelope import Envelope
from proxy.mail.fields import HeaderSection
from proxy.translate import values
from proxy.translate.model import (
    DELIVER_AT,
    GROUP,
    NATIVE,
    TARGETS,
    Action,
    LossRule,
    Policy,
    Repeat,
    RuleFile,
    Selector,
    Strip,
    TranslateRule,
    When,
)
from proxy.translate.outcome import Loss, Remark, Setting, Translation
from proxy.translate.values import Invalid, JsonValue

_NATIVE_KEYS = {name.lower().encode(): name for name in NATIVE}
_DKIM = b"dkim-signature"
_DKIM_FIELDS = re.compile(rb"(?:^|;)\s*h\s*=([^;]*)")
_MAX_KNOWN_NAMES = 4096
_MAX_NOTES = 50


_UNTOUCHED = Translation()


@frozen
class _Outcome:
    """What a rule found for its target: a value, or why the value cannot be read."""

    provider: str
    rule: TranslateRule
    index: int
    label: str
    value: str = ""
    invalid: str = ""


@frozen(eq=False)
class _Compiled:
    """One provider's file with the optional rules settled."""

    file: RuleFile
    by_target: dict[str, tuple[TranslateRule, ...]]
    translated_names: frozenset[bytes]


@frozen
class _Interest:
    """
    What the rules want of one field name; worked out when the name is first met.

    Args:
        owners: Providers whose control field it is.
        translators: Providers with a rule that translates it.
        losses: Rules that watch it, with their provider and the spelling under which they name the field.
        json: Set where the value is a JSON document.
        marks: Where nothing but ``contains`` conditions is asked of the field (``Content-Type``): their texts, so that
            the value of every other message need not be decoded.
    """

    owners: tuple[str, ...]
    translators: tuple[_Compiled, ...]
    losses: tuple[tuple[str, LossRule, bytes], ...]
    json: Repeat | None
    marks: tuple[bytes, ...]


class Engine:
    """
    Rule files and policy, compiled.

    Args:
        files: Active rule files; their order decides nothing but the order of reports.
        deliver_later: Whether this route can hold a message until a time (``to: deliver_at``).
    """

    def __init__(self, files: Sequence[RuleFile], policy: Policy, *, deliver_later: bool = False) -> None:
        self.files = tuple(files)
        self.policy = policy
        self.deliver_later = deliver_later
        self.compiled = {file.provider: _compile(file, policy) for file in files}
        self.names_for = {
            target: frozenset(
                name
                for each in self.compiled.values()
                for rule in each.by_target[target]
                for name in rule.selector.names
            )
            | {target.lower().encode()}
            for target in TARGETS
        }
        self._known: dict[bytes, _Interest | None] = {}

    def translate(self, section: HeaderSection, envelope: Envelope, provider: str = "") -> Translation:
        """
        Decide on one message.

        Args:
            section: The header section as it came.
            envelope: Its accepted recipients decide conditions such as ``min_recipients``.
            provider: The provider of the login or listener; empty where none is set.
        """
        known = self._known
        found: dict[bytes, list[int]] = {}
        interests: dict[bytes, _Interest] = {}
        for index, key in enumerate(section.keys):
            try:
                interest = known[key]
            except KeyError:
                interest = self._remember(key)
            if interest is not None and (not interest.marks or _may_hold(section[index].raw, interest.marks)):
                found.setdefault(key, []).append(index)
                interests[key] = interest
        if not found and not provider:
            return _UNTOUCHED
        return _Run(self, section, envelope, provider, found, interests).translation()

    def _remember(self, key: bytes) -> _Interest | None:
        """Work out what the rules want of a field name; None where none of them cares about it."""
        files = self.files
        owners = tuple(file.provider for file in files if file.controls.match(key))
        translators = tuple(each for each in self.compiled.values() if key in each.translated_names)
        losses = tuple(
            (file.provider, rule, name)
            for file in files
            for rule in file.untranslatable
            if (name := _named_as(rule.selector, key))
        )
        texts = [rule.contains for _, rule, _ in losses]
        plain = not owners and not translators and all(text and text.isascii() for text in texts)
        marks = tuple(text.encode("ascii") for text in texts) if plain else ()
        json = next((file.json[key] for file in files if key in file.json), None)
        interest = _Interest(owners, translators, losses, json, marks)
        cared_for = interest.owners or interest.translators or interest.losses or key in _NATIVE_KEYS or key == _DKIM
        if len(self._known) >= _MAX_KNOWN_NAMES:  # names are the sender's to choose
            self._known.clear()
        self._known[key] = interest if cared_for else None
        return self._known[key]


def _may_hold(raw: bytes, marks: tuple[bytes, ...]) -> bool:
    text = raw.replace(b"\r\n", b"").lower()
    return b"=?" in text or any(mark in text for mark in marks)


def _named_as(selector: Selector, key: bytes) -> bytes:
    """The name in the selector that stands for *key*, with its ``*``; empty where none does."""
    if key in selector.names:
        return key
    return next((name for name in selector.names if name.endswith(b"*") and key.startswith(name[:-1])), b"")


def _compile(file: RuleFile, policy: Policy) -> _Compiled:
    rules = [rule for rule in file.translate if not rule.optional or rule.optional in policy.optional]
    return _Compiled(
        file,
        {target: tuple(rule for rule in rules if rule.target == target) for target in TARGETS},
        frozenset(name for rule in rules for name in rule.selector.names),
    )


class _Run:
    """One message on its way through the rules; what is decoded is decoded once."""

    def __init__(
        self,
        engine: Engine,
        section: HeaderSection,
        envelope: Envelope,
        provider: str,
        found: dict[bytes, list[int]],
        interests: dict[bytes, _Interest],
    ) -> None:
        self.engine = engine
        self.section = section
        self.envelope = envelope
        self.login_provider = provider
        self.found = found
        self.interests = interests
        self.translators = dict.fromkeys(each for interest in interests.values() for each in interest.translators)
        self.remarks: list[Remark] = []
        self.losses: list[Loss] = []
        self.texts: dict[int, str] = {}
        self.documents: dict[int, dict[str, JsonValue] | Invalid | None] = {}
        self.refusals: list[tuple[Action, str]] = []
        self.controls = sorted(
            (index, interests[key].owners)
            for key, indices in found.items()
            if interests[key].owners
            for index in indices
        )
        self.providers = tuple(dict.fromkeys(owner for _, owners in self.controls for owner in owners))

    def translation(self) -> Translation:
        if len(self.providers) > 1:
            self.remark("two_providers", "", "", f"fields of {', '.join(self.providers)} in one message")
        settings, group, replaced = self.settings()
        self.lose()
        removed = self.removed() | replaced
        self.check_signatures(removed)
        added = b"".join(self.written(setting) for setting in settings)
        section = None
        if removed or added:
            section = self.section.edited(removed, added, self.controls[0][0] if self.controls else None)
        action, reason = self.decision()
        return Translation(
            section,
            self.providers,
            group,
            tuple(settings),
            tuple(self.section[index].name for index in sorted(removed)),
            tuple(self.losses),
            tuple(self.remarks),
            action,
            reason,
        )

    # What the fields say

    def settings(self) -> tuple[list[Setting], str | None, set[int]]:
        """Settle each target; give also the group and the empty native fields that a setting replaces."""
        settings: list[Setting] = []
        replaced: set[int] = set()
        group: str | None = None
        defaults_of, defaults = self.defaults()
        for target in NATIVE:
            if target not in defaults and self.engine.names_for[target].isdisjoint(self.found):
                continue
            native, empty = self.native(target)
            outcome = self.outcome(target)
            if native is not None:
                group = native if target == GROUP else group
                continue
            setting = None
            if outcome is not None:
                if not outcome.invalid:
                    setting = Setting(
                        target, self.fitting(outcome), outcome.provider, outcome.label, outcome.rule.where
                    )
            elif target in defaults:
                setting = Setting(target, values.flag(defaults[target]), defaults_of, "", "when_absent")
            if setting is not None:
                settings.append(setting)
                replaced.update(empty)
                group = setting.value if target == GROUP else group
        if not self.engine.names_for[DELIVER_AT].isdisjoint(self.found):
            self.outcome(DELIVER_AT)
        return settings, group, replaced

    def defaults(self) -> tuple[str, dict[str, bool]]:
        """What to write where the app says nothing: the operator's word on the provider in question."""
        provider = self.login_provider or next(iter(self.providers), "")
        tables = self.engine.policy.when_absent
        if tables is None:
            compiled = self.engine.compiled.get(provider)
            return provider, dict(compiled.file.when_absent) if compiled else {}
        return provider, dict(tables.get(provider, {}))

    def native(self, target: str) -> tuple[str | None, list[int]]:
        """The value of the platform's own field, None without one; and the fields of that name that are empty."""
        empty: list[int] = []
        for index in self.found.get(target.lower().encode(), ()):
            text = values.clean_name(self.text(index))
            if text:
                return text, []
            empty.append(index)
        return None, empty

    def outcome(self, target: str) -> _Outcome | None:
        """Ask every provider found, and let the one that has the say decide: nothing is guessed from a second."""
        outcomes: dict[str, _Outcome] = {}
        for compiled in self.translators:
            name = compiled.file.provider
            for rule in compiled.by_target[target]:
                outcome = self.evaluate(name, rule)
                if outcome is not None:
                    outcomes[name] = outcome
                    break
        for name, outcome in outcomes.items():
            if outcome.invalid:
                if not isinstance(self.documents.get(outcome.index), Invalid):
                    text = f"{target} not set: {outcome.invalid}"
                    self.remark("invalid_value", name, outcome.label, text, outcome.rule.where)
                refuse = outcome.rule.refuse_invalid
                if self.engine.policy.refuse_invalid if refuse is None else refuse:
                    self.refusals.append((Action.REFUSE, f"{outcome.label} cannot be read: {outcome.invalid}"))
            elif target == DELIVER_AT and not self.engine.deliver_later:
                rule = outcome.rule
                self.lost(name, outcome.label, rule.loss_class, rule.loses, rule.where)
        if self.login_provider in outcomes:
            return outcomes[self.login_provider]
        return min(outcomes.values(), key=attrgetter("index"), default=None)

    def evaluate(self, provider: str, rule: TranslateRule) -> _Outcome | None:
        """The first value the rule yields: names by rank, repeated fields in message order, then paths by rank."""
        for key, index in self.occurrences(rule.selector):
            label = rule.selector.names[key]
            try:
                for path, nodes in self.nodes(rule.selector, key, index):
                    label = rule.selector.label(key, path)
                    value = values.read(rule, values.items(rule.selector, values.texts(nodes, rule.reading)))
                    if value:
                        return _Outcome(provider, rule, index, label, value)
            except Invalid as problem:
                return _Outcome(provider, rule, index, label, invalid=str(problem))
        return None

    # What cannot be expressed

    def lose(self) -> None:
        """Find what is really in use and has no counterpart; each place is told once."""
        recipients = len(self.envelope.recipients)
        told: set[str] = set()
        for key, interest in self.interests.items():
            for provider, rule, name in interest.losses:
                if recipients < rule.min_recipients:
                    continue
                for path in self.places_in_use(rule, key):
                    label = " ".join(part for part in (rule.selector.label(name, path), rule.contains) if part)
                    if (fact := f"{provider} {label} {rule.loss_class} {rule.loses}") not in told:
                        told.add(fact)
                        self.lost(provider, label, rule.loss_class, rule.loses, rule.where)

    def places_in_use(self, rule: LossRule, key: bytes) -> Iterator[tuple[str, ...]]:
        """The paths at which the conditions hold (empty for the whole value)."""
        for index in self.found[key]:
            try:
                places = self.nodes(rule.selector, key, index)
            except Invalid:  # of the document, which has its remark
                # What stands in it cannot be known, but that the app wanted something is plain.
                places = [] if rule.selector.paths else [((), [self.text(index)])]
            for path, nodes in places:
                if self.holds(rule, nodes):
                    yield path

    def holds(self, rule: LossRule, nodes: list[JsonValue]) -> bool:
        selector = rule.selector
        found = list(values.leaves(nodes))
        written = [values.word(leaf) for leaf in found if leaf is not None]
        try:
            words = values.items(selector, written)
        except Invalid:
            words = written  # malformed, yet in use
        plain = not (selector.separator or selector.key or selector.skip_prefix)
        if rule.words and not any(values.switch_word(word) in rule.words for word in words):
            return False
        if rule.contains and not any(rule.contains in word.lower() for word in words):
            return False
        if rule.when is When.PRESENT:
            return True
        if rule.when is When.FILLED:
            return any(leaf is not None for leaf in found)
        if rule.when is When.ENABLED:
            return any(values.switch_word(word) in values.TRUE_WORDS for word in words)
        if rule.when is When.DISABLED:
            return any(values.switch_word(word) in values.FALSE_WORDS for word in words)
        if rule.when is When.OTHER_RECIPIENTS:
            named = {values.bare_address(word) for word in words} - {""}
            return bool(named) and named != {values.bare_address(recipient) for recipient in self.envelope.recipients}
        return any(values.is_set(leaf) for leaf in found) if plain else bool(words)

    def lost(self, provider: str, label: str, loss_class: str, loses: str, where: str) -> None:
        action = self.engine.policy.action(provider, loss_class)
        if action is Action.DISCARD and self.login_provider not in ("", provider):
            # Its own provider would deliver this message. To lose it in silence is worse than to say no.
            action = Action.REFUSE
        if len(self.losses) < _MAX_NOTES:
            self.losses.append(Loss(provider, label, loss_class, action, loses, where))
        if action is Action.REFUSE:
            self.refusals.append((action, f"No counterpart here for {label} (lost: {loses})"))
        elif action is Action.DISCARD:
            self.refusals.append((action, f"{label} ({loses})"))

    def decision(self) -> tuple[Action, str]:
        if self.refusals:
            return max(self.refusals, key=lambda refusal: refusal[0].rank)
        return (Action.WARN if any(loss.action is Action.WARN for loss in self.losses) else Action.IGNORE), ""

    # Where values stand

    def occurrences(self, selector: Selector) -> Iterator[tuple[bytes, int]]:
        for name in selector.names:
            for index in self.found.get(name, ()):
                yield name, index

    def nodes(self, selector: Selector, key: bytes, index: int) -> list[tuple[tuple[str, ...], list[JsonValue]]]:
        """The places the selector names inside one field, in order of rank; raises Invalid for a broken document."""
        repeat = self.interests[key].json
        if repeat is None:
            return [((), [self.text(index)])]
        if repeat is Repeat.FIRST and index != next((each for each in self.found[key] if self.text(each)), index):
            if self.text(index):
                self.remark("repeated_field", self.owner(key), self.spelled(key), "only the first one counts")
            return []
        document = self.document(key, index)
        if document is None:
            return []
        if not selector.paths:
            return [((), [document])]
        return [(path, nodes) for path in selector.paths if (nodes := values.at_path(document, path))]

    def document(self, key: bytes, index: int) -> dict[str, JsonValue] | None:
        """The JSON object of a field; None for an empty field; raises Invalid."""
        if index not in self.documents:
            self.documents[index] = self.parsed(key, self.text(index))
        document = self.documents[index]
        if isinstance(document, Invalid):
            raise document
        return document

    def parsed(self, key: bytes, text: str) -> dict[str, JsonValue] | Invalid | None:
        if not text:
            return None
        try:
            document, repeated = values.parse_json(text)
        except Invalid as problem:
            self.remark("invalid_value", self.owner(key), self.spelled(key), f"{problem}; nothing in it is used")
            return problem
        if repeated:
            text = "a key occurs twice in one object; the last one counts"
            self.remark("repeated_key", self.owner(key), self.spelled(key), text)
        return document

    def owner(self, key: bytes) -> str:
        return next(iter(self.interests[key].owners), "")

    def spelled(self, key: bytes) -> str:
        """The name of a JSON field as a rule file spells it: remarks end up in metric labels."""
        for file in self.engine.files:
            rules: tuple[TranslateRule | LossRule, ...] = (*file.translate, *file.untranslatable)
            for rule in rules:
                if name := _named_as(rule.selector, key):
                    return rule.selector.names[name]
        return ""

    def text(self, index: int) -> str:
        """The value of a field, unfolded, decoded and trimmed."""
        text = self.texts.get(index)
        if text is None:
            text = self.texts[index] = encoded_words.decode(self.section[index].value).strip(" \t\r\n")
        return text

    # What leaves

    def removed(self) -> set[int]:
        strip = self.engine.policy.strip
        if strip is Strip.NONE:
            return set()
        if strip is Strip.ALL:
            return {index for index, _ in self.controls}
        return {
            index
            for index, owners in self.controls
            if any(self.section.keys[index] in self.engine.compiled[owner].translated_names for owner in owners)
        }

    def fitting(self, outcome: _Outcome) -> str:
        name = values.fit_name(outcome.value)
        if name != outcome.value:
            text = f"a word of over {values.MAX_BLANK_FREE_OCTETS} octets was cut"
            self.remark("name_cut", outcome.provider, outcome.label, text, outcome.rule.where)
        return name

    def written(self, setting: Setting) -> bytes:
        return values.write_name(setting.target, setting.value)[0]

    def check_signatures(self, removed: set[int]) -> None:
        gone = {self.section.keys[index] for index in removed}
        for index in self.found.get(_DKIM, ()) if gone else ():
            match = _DKIM_FIELDS.search(self.section[index].value)
            if match and gone & {name.strip(b" \t\r\n").lower() for name in match[1].split(b":")}:
                self.remark("signature_broken", "", "DKIM-Signature", "it covers a field that was removed")

    def remark(self, kind: str, provider: str, source: str, text: str, where: str = "") -> None:
        remark = Remark(kind, provider, source, text, where)
        if len(self.remarks) < _MAX_NOTES and remark not in self.remarks:
            self.remarks.append(remark)
