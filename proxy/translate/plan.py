"""
What the names in a header section call for, before any value is looked at.

An app sends the same few sets of fields all day, with other values in them. So what the rules want of a set of names is
worked out once, and kept: which fields leave, which rules look where, which losses to watch for.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from attrs import frozen

from proxy.mail.fields import HeaderSection
from proxy.translate.model import (
    DELIVER_AT,
    NATIVE,
    TARGETS,
    JsonField,
    LossRule,
    Policy,
    RuleFile,
    Selector,
    Strip,
    TranslateRule,
    When,
)

_NATIVE_KEYS = frozenset(name.lower().encode() for name in NATIVE)
_DKIM = b"dkim-signature"
# Names are the sender's to choose: what is kept of them is bounded in number and size.
_MAX_NAMES = 4096
_MAX_NAME_OCTETS = 128
_MAX_PLANS = 512
_MAX_FIELDS_OF_A_PLAN = 64
_SHORT_OCTETS = 200
_SHORT_FIELDS = 1024

Places = tuple[tuple[bytes, tuple[int, ...]], ...]
"""Lower-case names in a rule's order of rank, each with the indices of its fields."""


@frozen(eq=False)
class Target:
    """
    One X-Cmail field (or ``deliver_at``), and who may set it.

    Args:
        native: Indices of the platform's own fields of that name.
        readers: For each provider with rules that apply: its name, and the rules with the places they read.
    """

    name: str
    native: tuple[int, ...]
    readers: tuple[tuple[str, tuple[tuple[TranslateRule, Places], ...]], ...]


@frozen(eq=False)
class Watch:
    """
    One rule about a loss, and one place that it looks at.

    Args:
        path: In a JSON document; empty for the whole value.
        label: Names the place, as the rule file does.
    """

    provider: str
    rule: LossRule
    path: tuple[str, ...]
    label: str


@frozen(eq=False)
class Watched:
    """
    The fields of one name, and all that watches them.

    Args:
        by_key: The same watches, each with the first key of its path; None for the whole value.
    """

    key: bytes
    indices: tuple[int, ...]
    watches: tuple[Watch, ...]
    by_key: tuple[tuple[str | None, Watch], ...]


@frozen(eq=False)
class Documents:
    """
    The fields of one name whose value is a JSON document.

    Args:
        spelled: The name as a rule file spells it.
    """

    indices: tuple[int, ...]
    field: JsonField
    provider: str
    spelled: str


@frozen(eq=False)
class Unknown:
    """A field that leaves only because of a pattern, of which no rule knows anything."""

    index: int
    provider: str
    pattern: str


@frozen(eq=False)
class Plan:
    """
    What to do with a header section that has these names.

    Args:
        providers: Those whose control fields are there, in field order.
        first_control: Index of the first control field, where new fields go; None without one.
        removable: Indices of the fields that leave.
        targets: Those that some field or rule has to do with; the others only a default can set.
        watched: Fields some rule about losses looks at.
        json: For each name whose value is a JSON document.
        signatures: Indices of DKIM signatures.
        unknown: Of the fields that leave, those no rule knows.
        read: Indices of all fields that anything here has to do with.
        asks_recipients: Whether some rule asks who gets the message.
        kept: Whether the next message with these names gets this same plan.
    """

    providers: tuple[str, ...]
    first_control: int | None
    removable: frozenset[int]
    targets: Mapping[str, Target]
    watched: tuple[Watched, ...]
    json: Mapping[bytes, Documents]
    signatures: tuple[int, ...]
    unknown: tuple[Unknown, ...]
    read: tuple[int, ...] = ()
    asks_recipients: bool = False
    kept: bool = True


@frozen(eq=False)
class _Compiled:
    """
    One provider's file with the optional rules settled.

    Args:
        read_names: Fields that some rule reads.
        translated_names: Those of them that this route can express, so that nothing is left to say for the field.
    """

    file: RuleFile
    by_target: dict[str, tuple[TranslateRule, ...]]
    read_names: frozenset[bytes]
    translated_names: frozenset[bytes]


@frozen(eq=False)
class _Interest:
    """
    What the rules want of one field name; worked out when the name is first met.

    Args:
        owners: Providers whose control field it is.
        translators: Providers with a rule that translates it.
        losses: Rules that watch it, with their provider and the spelling under which they name the field.
        json: Set where the value is a JSON document.
        pattern: A provider and the pattern of its file, where nothing but that is known of the field.
    """

    owners: tuple[str, ...]
    translators: tuple[_Compiled, ...]
    losses: tuple[tuple[str, LossRule, bytes], ...]
    json: JsonField | None
    pattern: tuple[str, str] | None


class Planner:
    """
    Makes plans for the active rule files.

    Args:
        files: Active rule files; their order decides nothing but the order of reports.
        deliver_later: As for the engine.
    """

    def __init__(self, files: Sequence[RuleFile], policy: Policy, *, deliver_later: bool) -> None:
        self._files = tuple(files)
        self._strip = policy.strip
        self._compiled = {file.provider: _compile(file, policy, deliver_later) for file in files}
        self._names_for = {
            target: frozenset(
                name
                for each in self._compiled.values()
                for rule in each.by_target[target]
                for name in rule.selector.names
            )
            | {target.lower().encode()}
            for target in TARGETS
        }
        # With those of rules that are off: a field that some setting would switch on is not unknown.
        self._translatable = frozenset(
            name for file in files for rule in file.translate for name in rule.selector.names
        )
        self._interests: dict[bytes, _Interest | None] = {}
        # Names of which nothing but ``contains`` conditions is asked (Content-Type), with the texts: the values of all
        # other messages need not be decoded.
        self._marked: dict[bytes, tuple[bytes, ...]] = {}
        self._plans: dict[tuple[bytes, ...], Plan | None] = {}

    def plan(self, section: HeaderSection) -> Plan | None:
        """Give the plan for the names of a section; None where no rule cares about any of them."""
        names = self._visible(section)
        try:
            return self._plans[names]
        except KeyError:
            pass
        if len(self._interests) > _MAX_NAMES:
            self._interests.clear()
            self._marked.clear()
            self._plans.clear()
        for key in section.keys:
            if key not in self._interests:
                self._remember(key)
        names = self._visible(section)  # with what is known of all of them by now
        long = [key for key in section.keys if len(key) > _MAX_NAME_OCTETS]
        kept = len(names) <= _MAX_FIELDS_OF_A_PLAN and not long
        plan = self._made(names, kept=kept)
        for key in long:
            self._interests.pop(key, None)
            self._marked.pop(key, None)
        if kept:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[names] = plan
        return plan

    def _visible(self, section: HeaderSection) -> tuple[bytes, ...]:
        """The names, without those that call for something only by a word in their value, and do not hold it."""
        keys = section.keys
        marked = self._marked
        if marked.keys().isdisjoint(keys):
            return tuple(keys)
        return tuple(
            [
                b"" if (marks := marked.get(key)) is not None and not _may_hold(section.field(index), marks) else key
                for index, key in enumerate(keys)
            ]
        )

    def _remember(self, key: bytes) -> None:
        """Work out what the rules want of a field name, and whether they care about it at all."""
        owners = tuple(file.provider for file in self._files if file.controls.match(key))
        translators = tuple(each for each in self._compiled.values() if key in each.read_names)
        losses = tuple(
            (file.provider, rule, name)
            for file in self._files
            for rule in file.untranslatable
            if (name := rule.selector.named_as(key))
        )
        texts = [rule.contains for _, rule, _ in losses]
        plain = not owners and not translators and all(text and text.isascii() for text in texts)
        marks = tuple(text.encode("ascii") for text in texts) if plain else ()
        json = next((file.json[key] for file in self._files if key in file.json), None)
        cared_for = owners or translators or losses or key in _NATIVE_KEYS or key == _DKIM
        pattern = None if losses or key in self._translatable else self._pattern(key, owners)
        self._interests[key] = _Interest(owners, translators, losses, json, pattern) if cared_for else None
        if cared_for and marks:
            self._marked[key] = marks

    def _pattern(self, key: bytes, owners: tuple[str, ...]) -> tuple[str, str] | None:
        """The first owner and its pattern, where no owner lists the name itself."""
        patterns = [self._compiled[owner].file.pattern_of(key) for owner in owners]
        return (owners[0], patterns[0]) if patterns and all(patterns) else None

    def _made(self, names: tuple[bytes, ...], *, kept: bool) -> Plan | None:
        found: dict[bytes, list[int]] = {}
        interests: dict[bytes, _Interest] = {}
        for index, key in enumerate(names):
            interest = self._interests[key] if key else None
            if interest is not None:
                found.setdefault(key, []).append(index)
                interests[key] = interest
        if not found:
            return None
        indices = {key: tuple(each) for key, each in found.items()}
        controls = sorted((index, interests[key].owners) for key, each in indices.items() for index in each)
        controls = [(index, owners) for index, owners in controls if owners]
        removable = self._removable(names, controls)
        return Plan(
            providers=tuple(dict.fromkeys(owner for _, owners in controls for owner in owners)),
            first_control=controls[0][0] if controls else None,
            removable=removable,
            targets={target: self._target(target, indices, interests) for target in self._concerned(indices)},
            watched=tuple(
                _watched(key, indices[key], interest) for key, interest in interests.items() if interest.losses
            ),
            json={
                key: Documents(indices[key], interest.json, next(iter(interest.owners), ""), self._spelled(key))
                for key, interest in interests.items()
                if interest.json is not None
            },
            signatures=indices.get(_DKIM, ()),
            unknown=tuple(
                Unknown(index, *pattern)
                for index in sorted(removable)
                if (pattern := interests[names[index]].pattern) is not None
            ),
            read=tuple(sorted(index for each in found.values() for index in each)),
            asks_recipients=any(
                rule.min_recipients or rule.when is When.OTHER_RECIPIENTS
                for interest in interests.values()
                for _, rule, _ in interest.losses
            ),
            kept=kept,
        )

    def _concerned(self, indices: Mapping[bytes, tuple[int, ...]]) -> list[str]:
        return [target for target in TARGETS if not self._names_for[target].isdisjoint(indices)]

    def _target(
        self, target: str, indices: Mapping[bytes, tuple[int, ...]], interests: Mapping[bytes, _Interest]
    ) -> Target:
        translators = dict.fromkeys(each for interest in interests.values() for each in interest.translators)
        readers = []
        for compiled in translators:
            rules = [(rule, _places(rule.selector, indices)) for rule in compiled.by_target[target]]
            rules = [(rule, places) for rule, places in rules if places]
            if rules:
                readers.append((compiled.file.provider, tuple(rules)))
        native = () if target == DELIVER_AT else indices.get(target.lower().encode(), ())
        return Target(target, native, tuple(readers))

    def _removable(self, names: tuple[bytes, ...], controls: list[tuple[int, tuple[str, ...]]]) -> frozenset[int]:
        if self._strip is Strip.NONE:
            return frozenset()
        if self._strip is Strip.ALL:
            return frozenset(index for index, _ in controls)
        return frozenset(
            index
            for index, owners in controls
            if any(names[index] in self._compiled[owner].translated_names for owner in owners)
        )

    def _spelled(self, key: bytes) -> str:
        """The name of a JSON field as a rule file spells it: remarks end up in metric labels."""
        for file in self._files:
            for rule in file.rules:
                if name := rule.selector.named_as(key):
                    return rule.selector.names[name]
        return ""


def _places(selector: Selector, indices: Mapping[bytes, tuple[int, ...]]) -> Places:
    return tuple((name, indices[name]) for name in selector.names if name in indices)


def _watched(key: bytes, indices: tuple[int, ...], interest: _Interest) -> Watched:
    watches: list[Watch] = []
    for provider, rule, name in interest.losses:
        for path in rule.selector.paths or ((),):
            label = " ".join(part for part in (rule.selector.label(name, path), rule.contains) if part)
            watches.append(Watch(provider, rule, path, label))
    by_key = tuple((watch.path[0] if watch.path else None, watch) for watch in watches)
    return Watched(key, indices, tuple(watches), by_key)


def _may_hold(field: bytes, marks: tuple[bytes, ...]) -> bool:
    return _short_may_hold(field, marks) if len(field) <= _SHORT_OCTETS else _holds(field, marks)


def _holds(field: bytes, marks: tuple[bytes, ...]) -> bool:
    text = field.partition(b":")[2].lower().replace(b"\r\n", b"")
    return b"=?" in text or any(mark in text for mark in marks)


_short_may_hold = lru_cache(_SHORT_FIELDS)(_holds)  # an app's few kinds of content


def _compile(file: RuleFile, policy: Policy, deliver_later: bool) -> _Compiled:
    rules = [rule for rule in file.translate if not rule.optional or rule.optional in policy.optional]
    return _Compiled(
        file,
        {target: tuple(rule for rule in rules if rule.target == target) for target in TARGETS},
        frozenset(name for rule in rules for name in rule.selector.names),
        frozenset(name for rule in rules if deliver_later or rule.target != DELIVER_AT for name in rule.selector.names),
    )
