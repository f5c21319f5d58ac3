"""
The engine: a header section and an envelope in, the edits and their reasons out.

What the names of the fields call for is in a plan (``plan.py``); here the values are read: only those that some rule
names are unfolded and decoded, each once. Order of precedence for each target: a native field in the message, the
provider of the login or listener, then field order in the message (README, "What counts").
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from operator import attrgetter
from typing import TypeAlias

from attrs import frozen

from proxy.mail import encoded_words
from proxy.mail.envelope import Envelope
from proxy.mail.fields import HeaderSection
from proxy.translate import conditions, values
from proxy.translate.model import (
    DELIVER_AT,
    GROUP,
    NATIVE,
    Action,
    LossRule,
    Policy,
    Repeat,
    RuleFile,
    TranslateRule,
    When,
)
from proxy.translate.outcome import Loss, Remark, Setting, Translation
from proxy.translate.plan import Documents, Places, Plan, Planner, Target, Watch, Watched
from proxy.translate.values import Invalid, JsonValue, NoDocument, TooMany

_DKIM_FIELDS = re.compile(rb"(?:^|;)\s*h\s*=([^;]*)")
_MAX_NOTES = 50
_MAX_SHOWN_CHARACTERS = 100
# Switches and groups repeat from message to message. A longer text is read anew each time, so what is kept is bounded.
_CACHED_VALUES = 2048
_CACHED_CHARACTERS = 200
# So do whole sets of them: what one app says of its messages, where it says nothing of a single message.
_KEPT_MESSAGES = 512
_KEPT_OCTETS = 1000

_UNTOUCHED = Translation()

Document: TypeAlias = "dict[str, JsonValue] | Invalid"


@frozen
class _Outcome:
    """What a rule found for its target: what to write, or why the value cannot be read."""

    provider: str
    rule: TranslateRule
    index: int
    label: str
    setting: Setting | None = None
    cut: bool = False
    invalid: Invalid | None = None


@frozen
class _Found:
    """
    What is to be done with every message that has the same control fields at the same places.

    Args:
        what: With no section as yet.
        remove: Indices of the fields that leave.
        added: Whole fields to write.
        at: Index of the field before which they go; None for the end.
    """

    what: Translation
    remove: frozenset[int]
    added: bytes
    at: int | None

    def of(self, section: HeaderSection) -> Translation:
        """Give it with the new section of one of those messages."""
        if not self.remove and not self.added:
            return self.what
        what = self.what
        return Translation(
            section.edited(self.remove, self.added, self.at),
            what.providers,
            what.group,
            what.settings,
            what.removed,
            what.losses,
            what.remarks,
            what.action,
            what.reason,
            what.deliver_at,
        )


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
        self.planner = Planner(files, policy, deliver_later=deliver_later)
        self.rule_files = {file.provider: file for file in files}
        self._found: dict[tuple[Plan, str, tuple[str, ...], tuple[bytes, ...]], _Found] = {}
        self._read_short = lru_cache(_CACHED_VALUES)(_read)
        self._uses_short = lru_cache(_CACHED_VALUES)(partial(conditions.use, recipients=()))
        self._written_short = lru_cache(_CACHED_VALUES)(_written)

    def translate(self, section: HeaderSection, envelope: Envelope, provider: str = "") -> Translation:
        """
        Decide on one message.

        Args:
            section: The header section as it came.
            envelope: Its accepted recipients decide conditions such as ``min_recipients``.
            provider: The provider of the login or listener; empty where none is set.
        """
        plan = self.planner.plan(section)
        if plan is None:
            if not provider:
                return _UNTOUCHED
            plan = _EMPTY
        recipients = envelope.recipients if plan.asks_recipients else ()
        fields = tuple([section.field(index) for index in plan.read])
        # No two messages have the same signature.
        if plan.signatures or not plan.kept or sum(map(len, (*fields, *recipients))) > _KEPT_OCTETS:
            return _Run(self, plan, section, envelope, provider).found().of(section)
        key = (plan, provider, recipients, fields)
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= _KEPT_MESSAGES:
                self._found.clear()
            found = self._found[key] = _Run(self, plan, section, envelope, provider).found()
        return found.of(section)

    def read(self, rule: TranslateRule, provider: str, label: str, text: str) -> "tuple[Setting, bool] | None":
        """Read one text by a rule; as :func:`_read`."""
        read = self._read_short if len(text) <= _CACHED_CHARACTERS else _read
        return read(rule, provider, label, text)

    def uses(self, rule: LossRule, text: str, recipients: tuple[str, ...]) -> bool:
        """Tell whether a text is in use as a rule about losses means it; raises as ``conditions.hold``."""
        if len(text) > _CACHED_CHARACTERS or rule.when is When.OTHER_RECIPIENTS:
            return conditions.use(rule, text, recipients)
        return self._uses_short(rule, text)

    def written(self, setting: Setting) -> bytes:
        """Write the field of a setting."""
        if len(setting.value) > _CACHED_CHARACTERS:
            return _written(setting.target, setting.value)
        return self._written_short(setting.target, setting.value)


def _read(rule: TranslateRule, provider: str, label: str, text: str) -> tuple[Setting, bool] | None:
    """Give what a rule makes of a text, and whether a name had to be cut; None for nothing; raises Invalid."""
    return _setting(rule, provider, label, [text])


def _setting(rule: TranslateRule, provider: str, label: str, texts: list[str]) -> tuple[Setting, bool] | None:
    value = values.read(rule, values.items(rule.selector, texts))
    if not value:
        return None
    name = values.fit_name(value) if rule.target == GROUP else value
    return Setting(rule.target, name, provider, label, rule.where), name != value


def _written(target: str, value: str) -> bytes:
    return values.write_name(target, value)


_EMPTY = Plan((), None, frozenset(), {}, (), {}, (), ())


class _Run:
    """One message on its way through the rules; what is decoded is decoded once."""

    def __init__(self, engine: Engine, plan: Plan, section: HeaderSection, envelope: Envelope, provider: str) -> None:
        self.engine = engine
        self.plan = plan
        self.section = section
        self.envelope = envelope
        self.login_provider = provider
        self.remarks: list[Remark] = []
        self.losses: list[Loss] = []
        self.texts: dict[int, str] = {}
        self.documents: dict[bytes, list[tuple[int, Document]]] = {}
        self.refusals: list[tuple[Action, str]] = []
        self.deliver_at = ""

    def found(self) -> _Found:
        plan = self.plan
        if len(plan.providers) > 1:
            self.remark("two_providers", "", "", f"fields of {', '.join(plan.providers)} in one message")
        settings, group, replaced = self.settings()
        if plan.watched:
            self.lose()
        removed = plan.removable.union(replaced) if replaced else plan.removable
        if plan.signatures:
            self.check_signatures(removed, settings)
        if plan.unknown:  # behind all others, of which there is a limited number
            self.tell_unknown()
        action, reason = self.decision()
        what = Translation(
            None,
            plan.providers,
            group,
            tuple(settings),
            tuple([self.section.name(index) for index in sorted(removed)]),
            tuple(self.losses),
            tuple(self.remarks),
            action,
            reason,
            self.deliver_at,
        )
        added = b"".join([self.engine.written(setting) for setting in settings])
        return _Found(what, removed, added, plan.first_control)

    # What the fields say

    def settings(self) -> tuple[list[Setting], str | None, list[int]]:
        """Settle each target; give also the group and the empty native fields that a setting replaces."""
        settings: list[Setting] = []
        replaced: list[int] = []
        group: str | None = None
        defaults_of, defaults = self.defaults()
        targets = self.plan.targets
        for name in NATIVE:
            target = targets.get(name)
            outcome = None
            if target is not None:
                # Asked in any case: what cannot be read is told even where something else counts.
                outcome = self.outcome(target) if target.readers else None
                native = self.native(target) if target.native else None
                if native is not None:
                    group = native if name == GROUP else group
                    continue
            setting = None
            if outcome is not None:
                setting = outcome.setting
                if outcome.cut:
                    text = f"a name of over {values.MAX_NAME_CHARACTERS} characters was cut"
                    self.remark("name_cut", outcome.provider, outcome.label, text, outcome.rule.where)
            elif name in defaults:
                setting = Setting(name, values.flag(defaults[name]), defaults_of, "", "when_absent")
            if setting is not None:
                settings.append(setting)
                replaced.extend(target.native if target is not None else ())
                group = setting.value if name == GROUP else group
        if DELIVER_AT in targets:
            outcome = self.outcome(targets[DELIVER_AT])
            if outcome is not None and outcome.setting is not None and self.engine.deliver_later:
                self.deliver_at = outcome.setting.value
        return settings, group, replaced

    def defaults(self) -> tuple[str, Mapping[str, bool]]:
        """What to write where the app says nothing: the operator's word on the provider in question."""
        provider = self.login_provider or next(iter(self.plan.providers), "")
        tables = self.engine.policy.when_absent
        if tables is None:
            file = self.engine.rule_files.get(provider)
            return provider, file.when_absent if file else {}
        return provider, tables.get(provider, {})

    def native(self, target: Target) -> str | None:
        """The value of the platform's own field; None where all of them are empty."""
        for index in target.native:
            text = values.clean_name(self.text(index))
            if text:
                return text
        return None

    def outcome(self, target: Target) -> _Outcome | None:
        """Ask every provider found, and let the one that has the say decide: nothing is guessed from a second."""
        outcomes: dict[str, _Outcome] = {}
        for name, rules in target.readers:
            for rule, places in rules:
                outcome = self.evaluate(name, rule, places)
                if outcome is not None:
                    outcomes[name] = outcome
                    break
        for name, outcome in outcomes.items():
            if outcome.invalid is not None:
                self.invalid(target, outcome, outcome.invalid)
            # A time that cannot be read is lost as well; only what a broken document says cannot be known.
            if target.name == DELIVER_AT and not self.engine.deliver_later:
                rule = outcome.rule
                if not isinstance(outcome.invalid, NoDocument):
                    self.lost(name, outcome.label, rule.loss_class, rule.loses, rule.where)
        if self.login_provider in outcomes:
            return outcomes[self.login_provider]
        return min(outcomes.values(), key=attrgetter("index"), default=None)

    def invalid(self, target: Target, outcome: _Outcome, problem: Invalid) -> None:
        """Tell of a value that cannot be read, unless that was said of the whole document, and refuse it if so set."""
        rule = outcome.rule
        if isinstance(problem, NoDocument):
            # Said and decided when it was parsed; a rule can only be stricter.
            if rule.refuse_invalid:
                self.refuse_invalid(True, outcome.label, problem)
            return
        text = f"{target.name} not set: {problem}"
        self.remark("invalid_value", outcome.provider, outcome.label, text, rule.where)
        self.refuse_invalid(rule.refuse_invalid, outcome.label, problem)

    def refuse_invalid(self, decided: bool | None, label: str, problem: Invalid) -> None:
        """Refuse the message for a value that cannot be read: as a rule file decided, else as the operator did."""
        if self.engine.policy.refuse_invalid if decided is None else decided:
            self.refusals.append((Action.REFUSE, f"{label} cannot be read: {problem}"))

    def evaluate(self, provider: str, rule: TranslateRule, places: Places) -> _Outcome | None:
        """The first value the rule yields: names by rank, repeated fields in message order, then paths by rank."""
        selector = rule.selector
        for key, indices in places:
            label = selector.names[key]
            index = indices[0]
            try:
                if not selector.paths:
                    for index in indices:
                        read = self.engine.read(rule, provider, label, self.text(index))
                        if read is not None:
                            return _Outcome(provider, rule, index, label, *read)
                    continue
                for index, document in self.documents_of(key):
                    if isinstance(document, Invalid):
                        return _Outcome(provider, rule, index, label, invalid=document)
                    for path in selector.paths:
                        nodes = values.at_path(document, path)
                        if not nodes:
                            continue
                        label = selector.label(key, path)
                        read = _setting(rule, provider, label, values.texts(nodes, rule.reading))
                        if read is not None:
                            return _Outcome(provider, rule, index, label, *read)
            except Invalid as problem:
                return _Outcome(provider, rule, index, label, invalid=problem)
        return None

    # What cannot be expressed

    def lose(self) -> None:
        """Find what is really in use and has no counterpart; each place is told once."""
        told: set[tuple[str, str, str, str]] = set()
        for watched in self.plan.watched:
            found = self.in_documents(watched) if watched.key in self.plan.json else self.in_texts(watched)
            for watch in found:
                rule = watch.rule
                fact = (watch.provider, watch.label, rule.loss_class, rule.loses)
                if fact not in told:
                    told.add(fact)
                    self.lost(watch.provider, watch.label, rule.loss_class, rule.loses, rule.where)

    def in_texts(self, watched: Watched) -> Iterator[Watch]:
        """What is in use of the plain fields of a name."""
        recipients, uses = self.envelope.recipients, self.engine.uses
        for watch in watched.watches:
            rule = watch.rule
            if len(recipients) < rule.min_recipients:
                continue
            for index in watched.indices:
                try:
                    if uses(rule, self.text(index), recipients):
                        yield watch
                except Invalid as problem:
                    if self.in_use_unread(watch, problem):
                        yield watch

    def in_documents(self, watched: Watched) -> Iterator[Watch]:
        """What is in use of the JSON fields of a name."""
        recipients = self.envelope.recipients
        for index, document in self.documents_of(watched.key):
            if isinstance(document, Invalid):
                # What stands in it cannot be known, but that the app wanted something is plain.
                watches = [watch for watch in watched.watches if not watch.path]
            else:  # most watches end here: a document has few of the keys there are
                watches = [watch for key, watch in watched.by_key if key is None or key in document]
            for watch in watches:
                if len(recipients) < watch.rule.min_recipients:
                    continue
                found: JsonValue = self.text(index) if isinstance(document, Invalid) else document
                nodes = values.at_path(found, watch.path)
                try:
                    if nodes and conditions.hold(watch.rule, nodes, recipients):
                        yield watch
                except Invalid as problem:
                    if self.in_use_unread(watch, problem):
                        yield watch

    def in_use_unread(self, watch: Watch, problem: Invalid) -> bool:
        """Whether a place counts although it cannot be read; that is told, and refused if so set."""
        in_use = isinstance(problem, TooMany)
        text = f"{problem}; taken as {'in use' if in_use else 'not in use'}"
        self.remark("invalid_value", watch.provider, watch.label, text, watch.rule.where)
        self.refuse_invalid(None, watch.label, problem)
        return in_use

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

    def documents_of(self, key: bytes) -> list[tuple[int, Document]]:
        """The JSON objects of the fields of one name that count; empty fields have none."""
        known = self.documents.get(key)
        if known is not None:
            return known
        documents = self.documents[key] = []
        fields = self.plan.json[key]
        for index in fields.indices:
            text = self.text(index)
            if not text:
                continue
            if documents and fields.field.repeat is Repeat.FIRST:
                self.remark("repeated_field", fields.provider, fields.spelled, "only the first one counts")
                continue
            documents.append((index, self.parsed(fields, text)))
        return documents

    def parsed(self, fields: Documents, text: str) -> Document:
        provider, spelled = fields.provider, fields.spelled
        try:
            document, repeated = values.parse_json(text)
        except Invalid as problem:
            self.remark("invalid_value", provider, spelled, f"{problem}; nothing in it is used")
            self.refuse_invalid(fields.field.refuse_invalid, spelled, problem)
            return problem
        if repeated:
            self.remark("repeated_key", provider, spelled, "a key occurs twice in one object; the last one counts")
        return document

    def text(self, index: int) -> str:
        """The value of a field, unfolded, decoded and trimmed."""
        text = self.texts.get(index)
        if text is None:
            text = self.texts[index] = encoded_words.decode(self.section.value(index)).strip(" \t\r\n")
        return text

    # What leaves

    def check_signatures(self, removed: Collection[int], settings: Sequence[Setting]) -> None:
        gone = {self.section.keys[index] for index in removed}
        new = {setting.target.lower().encode() for setting in settings}
        if not (gone or new):
            return
        for index in self.plan.signatures:
            match = _DKIM_FIELDS.search(self.section.value(index))
            signed = {name.strip(b" \t\r\n").lower() for name in match[1].split(b":")} if match else set()
            if gone & signed:
                self.remark("signature_broken", "", "DKIM-Signature", "it covers a field that was removed")
            elif new & signed:  # a name without a field: signed so that nobody adds one
                self.remark("signature_broken", "", "DKIM-Signature", "it covers a field that was added")

    def tell_unknown(self) -> None:
        """Tell of fields that are removed without anybody knowing what they ask for; each name once."""
        told: set[bytes] = set()
        for unknown in self.plan.unknown:
            key = self.section.keys[unknown.index]
            if key not in told:
                told.add(key)
                name = self.section.name(unknown.index)[:_MAX_SHOWN_CHARACTERS]
                self.remark("unknown_field", unknown.provider, unknown.pattern, f"no rule knows {name}; it was removed")

    def remark(self, kind: str, provider: str, source: str, text: str, where: str = "") -> None:
        remark = Remark(kind, provider, source, text, where)
        if len(self.remarks) < _MAX_NOTES and remark not in self.remarks:
            self.remarks.append(remark)
