"""
The header section of a message that is kept: X-Cmail fields are read and leave, what a submission server adds is added.

Source: RFC 6409, 8 (Date and Message-ID may be added), RFC 5322, 3.6.3 and 3.6.6 (Bcc and Resent-Bcc leave). Pure.
"""

import re
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache

from attrs import frozen

from proxy.mail import encoded_words
from proxy.mail.fields import value
from proxy.translate.model import GROUP, INLINE_CSS, SWITCHES, TRACK_CLICKS, TRACK_OPENS
from proxy.translate.values import FALSE_WORDS, TRUE_WORDS, clean_name, fit_name, switch_word

_LOOKED_AT = re.compile(
    rb"^(x-cmail-[\x21-\x39\x3b-\x7e]*+|(?:resent-)?bcc|date|message-id|subject)[ \t]*+:[^\n]*+\n(?:[ \t][^\n]*+\n)*",
    re.MULTILINE | re.IGNORECASE,
)
_READ = frozenset(name.lower().encode() for name in (GROUP, *SWITCHES))
_STAYS = frozenset([b"date", b"message-id", b"subject"])
_SUBJECT_CHARACTERS = 200
_KEPT_WISHES = 512
_KEPT_OCTETS = 500


@frozen
class Wishes:
    """
    What the X-Cmail fields ask for.

    Args:
        group: None for "Ungrouped emails".
        malformed: Names of fields whose value is no switch word; their defaults hold.
    """

    group: str | None = None
    track_opens: bool = True
    track_clicks: bool = True
    inline_css: bool = True
    malformed: tuple[str, ...] = ()


@frozen
class Prepared:
    """
    A header section ready to be kept.

    Args:
        head: The section, mbox line left out, without the separating blank line.
        subject: Decoded and cut, for people to find the message by.
    """

    head: bytes
    wishes: Wishes
    subject: str


def prepare(section: bytes, message_id: str, now: datetime) -> Prepared:
    """
    Read the X-Cmail fields and take them out, with Bcc; add Date and Message-ID where they are missing.

    Of each X-Cmail field the first that is not empty counts.

    Args:
        section: A header section without transparency dots: whole fields and nothing else among them, but for an mbox
            line in front.
        message_id: For a Message-ID, ``left@right`` without brackets.
        now: For a Date. Aware.
    """
    kept_from = section.find(b"\n") + 1 if section.startswith((b"From ", b">From ")) else 0
    pieces: list[bytes] = []
    asked: list[tuple[bytes, bytes]] = []
    others: list[bytes] = []
    subject = ""
    for found in _LOOKED_AT.finditer(section, kept_from):
        key = found[1].lower()
        if key in _STAYS:
            others.append(key)
            if key == b"subject":
                subject = subject or _subject(found[0])
            continue
        if key in _READ:  # by its name: what else begins so is the sender's to choose
            asked.append((key, value(found[0])))
        pieces.append(section[kept_from : found.start()])
        kept_from = found.end()
    pieces.append(section[kept_from:])
    if b"date" not in others:
        pieces.append(f"Date: {format_datetime(now)}\r\n".encode("ascii"))
    if b"message-id" not in others:
        pieces.append(f"Message-ID: <{message_id}>\r\n".encode("ascii"))
    short = sum([len(key) + len(text) for key, text in asked]) <= _KEPT_OCTETS
    wishes = (_known_wishes if short else _wishes)(tuple(asked))
    return Prepared(b"".join(pieces), wishes, subject)


def _subject(field: bytes) -> str:
    return clean_name(encoded_words.decode(value(field)))[:_SUBJECT_CHARACTERS]


def _wishes(asked: tuple[tuple[bytes, bytes], ...]) -> Wishes:
    """Read X-Cmail fields, each with its name in lower case and its value."""
    values: dict[bytes, str] = {}
    for key, raw in asked:
        text = encoded_words.decode(raw).strip()
        if text and key not in values:
            values[key] = text
    switches: dict[str, bool] = {}
    malformed: list[str] = []
    for name in SWITCHES:
        word = switch_word(values.get(name.lower().encode(), "true"))
        switches[name] = word not in FALSE_WORDS
        if word not in TRUE_WORDS | FALSE_WORDS:
            malformed.append(name)
    group = fit_name(clean_name(values.get(GROUP.lower().encode(), "")))
    return Wishes(group or None, switches[TRACK_OPENS], switches[TRACK_CLICKS], switches[INLINE_CSS], tuple(malformed))


_known_wishes = lru_cache(_KEPT_WISHES)(_wishes)  # an app asks for the same few things all day


def without_dots(content: bytes) -> bytes:
    """Take the transparency dots off content as DATA carries it (RFC 5321, 4.5.2)."""
    if content.startswith(b"."):
        content = content[1:]
    return content.replace(b"\r\n.", b"\r\n")
