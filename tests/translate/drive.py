"""Drive the engine: shipped or written-out rule files, and a message given as its fields."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from proxy.mail.envelope import Envelope
from proxy.mail.fields import HeaderSection
from proxy.translate.engine import Engine
from proxy.translate.model import LossRule, Policy, RuleFile, TranslateRule
from proxy.translate.outcome import Translation
from proxy.translate.parse import load, parse

MAPPINGS = Path(__file__).parents[2] / "mappings"
FIVE = ("mailgun", "mailjet", "mandrill", "postmark", "sendgrid")
SHIPPED = (*FIVE, "symfony")

GROUP = "X-Cmail-GroupName"
OPENS = "X-Cmail-TrackOpens"
CLICKS = "X-Cmail-TrackClicks"
CSS = "X-Cmail-InlineCSS"

PROVIDER_DEFAULTS: Mapping[str, Any] = {"when_absent": None}
"""Policy: write each provider's own defaults where an app says nothing."""


@cache
def shipped(*providers: str) -> tuple[RuleFile, ...]:
    """The shipped rule files of the named providers."""
    return load(providers, (), MAPPINGS)


def engine(*providers: str, deliver_later: bool = False, **policy: Any) -> Engine:
    """An engine with shipped files, the five without names, and a policy of the named decisions."""
    return Engine(shipped(*(providers or FIVE)), Policy(**policy), deliver_later=deliver_later)


def rules_of(file: RuleFile) -> list[TranslateRule | LossRule]:
    """All rules of a file, in its order."""
    return [*file.translate, *file.untranslatable]


def written_out(text: str, provider: str = "acme") -> RuleFile:
    """The rule file with this text, which must be right."""
    file, problems = parse(text, f"{provider}.yaml", provider)
    assert file is not None, "\n".join(map(str, problems))
    return file


def own(*texts: str, deliver_later: bool = False, **policy: Any) -> Engine:
    """An engine with invented rule files: the first is of provider ``acme``, further ones of ``b``, ``c`` …"""
    names = ("acme", *"bcdef")
    files = [written_out(text, name) for name, text in zip(names, texts, strict=False)]
    return Engine(files, Policy(**policy), deliver_later=deliver_later)


def octets(*fields: str | bytes) -> bytes:
    """A header section: fields without their last CRLF."""
    return b"".join((field if isinstance(field, bytes) else field.encode()) + b"\r\n" for field in fields)


def run(rules: Engine, *fields: str | bytes, to: int | tuple[str, ...] = 1, provider: str = "") -> Translation:
    """
    Translate a message.

    Args:
        to: Its recipients, or their number.
    """
    recipients = tuple(f"r{number}@example.com" for number in range(to)) if isinstance(to, int) else to
    section = HeaderSection.split(octets(*fields) + b"\r\n")
    assert section.end == len(octets(*fields)), "one of the fields is none"
    return rules.translate(section, Envelope("s@example.com", recipients), provider)


def values(translation: Translation) -> dict[str, str]:
    """What was set: target and value."""
    return {setting.target: setting.value for setting in translation.settings}


def kinds(translation: Translation) -> list[str]:
    """The kinds of remarks, in order."""
    return [remark.kind for remark in translation.remarks]


def written(translation: Translation) -> dict[str, bytes]:
    """The fields of the new section by name, unfolded; the last one where a name repeats."""
    assert translation.section is not None
    return {field.name: field.value for field in HeaderSection.split(translation.section)}
