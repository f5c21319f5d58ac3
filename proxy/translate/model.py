"""What a rule file says, as values; and the closed lists of words it may use."""

import enum
from collections.abc import Mapping

from attrs import field, frozen

GROUP = "X-Cmail-GroupName"
TRACK_OPENS = "X-Cmail-TrackOpens"
TRACK_CLICKS = "X-Cmail-TrackClicks"
INLINE_CSS = "X-Cmail-InlineCSS"
SWITCHES = (TRACK_OPENS, TRACK_CLICKS, INLINE_CSS)
NATIVE = (GROUP, *SWITCHES)
"""The fields of the platform, in the order in which they are written."""

DELIVER_AT = "deliver_at"
TARGETS = (*NATIVE, DELIVER_AT)


class Reading(enum.Enum):
    """How the text of a value is read (``as:`` in a rule)."""

    TEXT = "text"
    SWITCH = "switch"
    ALLOW_LIST = "allow_list"
    UNIX_TIME = "unix_time"
    UTC_TIME = "utc_time"
    DATE_TIME = "date_time"


TIMES = frozenset({Reading.UNIX_TIME, Reading.UTC_TIME, Reading.DATE_TIME})


class When(enum.Enum):
    """
    When a field that cannot be translated counts as being in use.

    ``set`` asks for a value that is more than null, false, 0 or empty; ``filled`` for any but null: a place-holder that
    was to become nothing, or 0, is a place-holder all the same.
    """

    SET = "set"
    PRESENT = "present"
    ENABLED = "enabled"
    DISABLED = "disabled"
    OTHER_RECIPIENTS = "other_recipients"
    FILLED = "filled"


class Action(enum.Enum):
    """What happens to a message that uses something without a counterpart; later ones outrank earlier ones."""

    IGNORE = "ignore"
    WARN = "warn"
    REFUSE = "refuse"
    DISCARD = "discard"

    @property
    def rank(self) -> int:
        """Position in the order of precedence: what one field decides, a weaker action of another cannot undo."""
        return _ACTION_RANK[self]


_ACTION_RANK = {action: rank for rank, action in enumerate(Action)}

DEFAULT_ACTIONS: Mapping[str, Action] = {
    "test_mode": Action.DISCARD,
    "recipients": Action.REFUSE,
    "privacy": Action.REFUSE,
    "text": Action.REFUSE,
    "unsubscribe": Action.WARN,
    "time": Action.WARN,
    "duplicates": Action.WARN,
    "links": Action.WARN,
    "content": Action.WARN,
    "ambiguous": Action.WARN,
    "metadata": Action.IGNORE,
    "infrastructure": Action.IGNORE,
}
"""The classes of loss, and the action each has unless ``rules.actions`` says otherwise."""


class Strip(enum.Enum):
    """Which control fields leave the message."""

    ALL = "all"
    TRANSLATED = "translated"
    NONE = "none"


class Repeat(enum.Enum):
    """What a repeated JSON field means: each stands for itself, or only the first counts."""

    EACH = "each"
    FIRST = "first"


@frozen
class JsonField:
    """
    What a file says of a field that holds a JSON object.

    Args:
        refuse_invalid: Refuse a document that does not parse; None for the setting ``rules.on_invalid``.
    """

    repeat: Repeat = Repeat.EACH
    refuse_invalid: bool | None = None


@frozen(eq=False)
class Selector:
    """
    Where in a message a rule looks.

    Args:
        names: Lower-case field names in order of rank, each with the spelling of the rule file. A name that ends
            with ``*`` stands for every field that begins so.
        paths: JSON paths as tuples of keys, in order of rank; empty for the whole value.
        separator: Splits a text into items; empty for one item.
        skip_prefix: Items that begin so do not count.
        key: Only the value of ``key=value`` items with this key.
    """

    names: Mapping[bytes, str]
    paths: tuple[tuple[str, ...], ...] = ()
    separator: str = ""
    skip_prefix: str = ""
    key: str = ""

    def label(self, name: bytes, path: tuple[str, ...]) -> str:
        """Name the place as the rule file does, never as the message does: for logs and metric labels."""
        return " ".join((self.names[name], ".".join(path))) if path else self.names[name]

    def named_as(self, key: bytes) -> bytes:
        """The name that stands for *key* (lower case), with its ``*``; empty where none does."""
        if key in self.names:
            return key
        return next((name for name in self.names if name.endswith(b"*") and key.startswith(name[:-1])), b"")


@frozen(eq=False)
class TranslateRule:
    """
    One line under ``translate:``.

    Args:
        target: One of ``TARGETS``.
        true_words, false_words: Lower-case words in addition to those every switch knows.
        known: Lower-case words that are lawful and decide nothing.
        optional: Name that switches the rule on; empty for always on.
        loss_class, loses: What it means that *target* cannot be expressed; only for ``deliver_at``.
        refuse_invalid: Refuse a value that does not parse; None for the setting ``rules.on_invalid``.
        where: ``file:line``.
    """

    selector: Selector
    target: str
    reading: Reading
    where: str
    true_words: frozenset[str] = frozenset()
    false_words: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()
    optional: str = ""
    loss_class: str = ""
    loses: str = ""
    refuse_invalid: bool | None = None


@frozen(eq=False)
class LossRule:
    """
    One line under ``untranslatable:``; all of its conditions must hold.

    Args:
        min_recipients: Holds from this number of envelope recipients on; 0 for any.
        words: Lower-case words one of which the value must be; empty for any.
        contains: Lower-case text that must occur in the value; empty for any.
    """

    selector: Selector
    loss_class: str
    loses: str
    where: str
    when: When = When.SET
    min_recipients: int = 0
    words: frozenset[str] = frozenset()
    contains: str = ""


@frozen
class FieldPatterns:
    """Which field names are control fields of a provider: exact names, prefixes, and exceptions; lower case."""

    names: frozenset[bytes] = frozenset()
    prefixes: tuple[bytes, ...] = ()
    excepted: frozenset[bytes] = frozenset()
    excepted_prefixes: tuple[bytes, ...] = ()

    def excepts(self, name: bytes) -> bool:
        """Tell whether *name* (lower case) was named as no control field."""
        return name in self.excepted or name.startswith(self.excepted_prefixes)

    def match(self, name: bytes) -> bool:
        """Tell whether *name* (lower case) is a control field."""
        return not self.excepts(name) and (name in self.names or name.startswith(self.prefixes))


@frozen(eq=False)
class RuleFile:
    """One provider's file."""

    provider: str
    title: str
    reference: str
    controls: FieldPatterns
    spelled: tuple[str, ...]
    json: Mapping[bytes, JsonField]
    translate: tuple[TranslateRule, ...]
    when_absent: Mapping[str, bool]
    untranslatable: tuple[LossRule, ...]
    file: str

    def pattern_of(self, name: bytes) -> str:
        """Give the pattern of ``fields:`` that has *name* (lower case); empty where it is listed by its exact name."""
        if name in self.controls.names:
            return ""
        patterns = (word for word in self.spelled if word.endswith("*") and not word.startswith("!"))
        return next((word for word in patterns if name.startswith(word[:-1].lower().encode())), "")

    @property
    def rules(self) -> "tuple[TranslateRule | LossRule, ...]":
        """All rules, in the order of the file."""
        return (*self.translate, *self.untranslatable)


@frozen
class Policy:
    """
    What the operator decided about rules (``rules:`` in the settings).

    Args:
        optional: Names of optional rules that are on.
        when_absent: Values to write where an app says nothing, by provider and target; None for each file's own
            ``when_absent``; empty for the platform's defaults.
        refuse_invalid: Refuse a message with a value that does not parse.
        soften: Turn every refuse into a warning, but for test mode.
        actions_by_class: Overrides for a class of loss.
        actions_by_provider: Overrides for a class of one provider; these win.
        strip: Which control fields leave the message.
    """

    optional: frozenset[str] = frozenset()
    when_absent: Mapping[str, Mapping[str, bool]] | None = field(factory=dict)
    refuse_invalid: bool = False
    soften: bool = False
    actions_by_class: Mapping[str, Action] = field(factory=dict)
    actions_by_provider: Mapping[str, Mapping[str, Action]] = field(factory=dict)
    strip: Strip = Strip.ALL

    def action(self, provider: str, loss_class: str) -> Action:
        """Decide what a loss of this class does, softening included."""
        action = self.actions_by_provider.get(provider, {}).get(loss_class)
        if action is None:
            action = self.actions_by_class.get(loss_class, DEFAULT_ACTIONS[loss_class])
        if not self.soften or action.rank <= Action.WARN.rank:
            return action
        # A message sent in test mode must never reach a person, unless the old provider, who would drop it, is still
        # behind us and gets its own field. So it is whatever the operator put in the place of a discard.
        if (action is Action.DISCARD or loss_class == "test_mode") and self.strip is not Strip.NONE:
            return action
        return Action.WARN
