"""
How providers write booleans, lists, JSON, times and names; and how a group name is written for the platform.

Nothing here guesses: a value is read, is absent, or is :class:`Invalid`.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeAlias

from proxy.mail import encoded_words
from proxy.translate.model import TIMES, Reading, Selector, TranslateRule

JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None"

TRUE_WORDS = frozenset({"true", "yes", "y", "on", "1", "enabled"})
FALSE_WORDS = frozenset({"false", "no", "n", "off", "0", "disabled", "none"})
SWITCH_WORDS = TRUE_WORDS | FALSE_WORDS
UNKNOWN_WORD = "an unknown word"

MAX_JSON_NODES = 20_000
MAX_NAME_CHARACTERS = 900
_READ_CHARACTERS = 4 * MAX_NAME_CHARACTERS  # NFC takes the square of a run of combining marks
_CUT_CHARACTERS = 100
_MAX_WHOLE = 2**53  # beyond it a float is no exact number
_QUOTES = " \t\"'"
_ANGLE_ADDRESS = re.compile(r"<([^<>]*)>")
_BLANKS = re.compile(r"[ \t\r\n\u00a0]+")


class Invalid(ValueError):
    """A value that does not parse. The text says why in a few words, without quoting the value (it may be private)."""


class NoDocument(Invalid):
    """Not a value, but the JSON document around it does not parse."""


class TooMany(Invalid):
    """A value with more in it than is looked at: that the app wants something with it is plain all the same."""


class _RepeatedKeyError(Exception):
    """Reading ends here, to begin anew."""


def parse_json(text: str) -> tuple[dict[str, JsonValue], bool]:
    """
    Read a JSON object as mail clients send it: raw line breaks inside strings are allowed.

    Returns:
        The object, and whether a key occurred twice in one object (the last one counts).

    Raises:
        NoDocument: It is no JSON object, is nested too deep, or holds a number no provider sends.
    """
    repeated = False
    try:
        try:
            value = _STRICT.decode(text)
        except _RepeatedKeyError:
            repeated = True
            value = _LENIENT.decode(text)
    except RecursionError:
        raise NoDocument("JSON nested too deep") from None
    except ValueError:  # JSONDecodeError, and integers of more digits than Python converts
        raise NoDocument("not JSON") from None
    if not isinstance(value, dict):
        raise NoDocument("JSON, but not an object")
    return value, repeated


def _no_constant(name: str) -> JsonValue:
    raise ValueError(name)  # NaN and Infinity are Python's, not JSON's


def _each_once(items: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(items)
    if len(found) < len(items):
        raise _RepeatedKeyError
    return found


_STRICT = json.JSONDecoder(strict=False, object_pairs_hook=_each_once, parse_constant=_no_constant)
_LENIENT = json.JSONDecoder(strict=False, parse_constant=_no_constant)


def at_path(document: JsonValue, path: tuple[str, ...]) -> list[JsonValue]:
    """Follow a path of keys; an array on the way gives its items. Nothing there: an empty list."""
    node: JsonValue = document
    for depth, key in enumerate(path):
        if isinstance(node, dict):
            if key not in node:
                return []
            node = node[key]
        elif isinstance(node, list):
            return [found for item in node if isinstance(item, dict) for found in at_path(item, path[depth:])]
        else:
            return []
    return [node]


def leaves(nodes: list[JsonValue]) -> Iterator[JsonValue]:
    """
    Give every value below *nodes* that is no container, in document order.

    Raises:
        TooMany: There are more than ``MAX_JSON_NODES``.
    """
    stack = nodes[::-1]
    budget = MAX_JSON_NODES
    while stack:
        if not budget:
            raise TooMany(f"more than {MAX_JSON_NODES} values")
        budget -= 1
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(reversed(node))
        elif isinstance(node, dict):
            stack.extend(reversed(node.values()))
        else:
            yield node


def texts(nodes: list[JsonValue], reading: Reading) -> list[str]:
    """
    Give the words of *nodes*: strings, numbers as their text, items of lists; null counts for nothing.

    Raises:
        Invalid: There is an object, or, where a name is wanted, a truth value.
    """
    found: list[str] = []
    for node in nodes:
        for item in node if isinstance(node, list) else (node,):
            if isinstance(item, str):
                found.append(item)
            elif isinstance(item, bool):
                if reading is Reading.TEXT:
                    raise Invalid("a truth value where a name is expected")
                found.append("true" if item else "false")
            elif isinstance(item, int | float):
                found.append(_number(item))
            elif item is not None:
                raise Invalid("a list or an object where a single value is expected")
    return found


def _number(value: int | float) -> str:
    """Write a number; 1.0 is what some encoders make of 1."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_WHOLE:
        return str(int(value))
    return str(value)


def switch_word(text: str) -> str:
    """Bring a word into the form in which switch words are compared."""
    return text.strip(_QUOTES).lower()


def read_switch(text: str, rule: TranslateRule) -> bool | None:
    """
    Read one switch word; None for a word that is lawful and decides nothing.

    Raises:
        Invalid: The word is not known.
    """
    word = switch_word(text)
    if word in rule.true_words:
        return True
    if word in rule.false_words:
        return False
    if word in rule.known:
        return None
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    if not word:  # nothing but quotes
        return None
    raise Invalid(UNKNOWN_WORD)


def read_allow_list(words: list[str], rule: TranslateRule) -> bool:
    """
    Read a list that names what is on; what it does not name is off, so an empty list switches off.

    Raises:
        Invalid: A word is not known: whether it meant this switch cannot be told.
    """
    found = {switch_word(word) for word in words} - {""}
    if not found <= rule.true_words | rule.false_words | rule.known | FALSE_WORDS:  # "none", "False": nothing is on
        raise Invalid(UNKNOWN_WORD)
    return not found.isdisjoint(rule.true_words)


def read_time(text: str, reading: Reading) -> datetime:
    """
    Read a time as providers write it.

    Returns:
        An aware moment, UTC.

    Raises:
        Invalid: It is no such time.
    """
    try:
        if reading is Reading.UNIX_TIME:
            return datetime.fromtimestamp(int(text), UTC)
        if reading is Reading.UTC_TIME:
            return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        moment = parsedate_to_datetime(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError, OSError, TypeError, IndexError):
        raise Invalid("not a time") from None


def clean_name(text: str) -> str:
    """
    Make a group name safe: no control characters, line or paragraph separators or lone surrogates; runs of blanks to
    one; NFC. Empty where nothing is left.
    """
    if text.isascii() and text.isprintable():
        return text.strip() if "  " not in text else _BLANKS.sub(" ", text).strip()
    text = text[:_READ_CHARACTERS]
    kept = "".join(
        "\ufffd" if "\ud800" <= character <= "\udfff" else character
        for character in text
        if character in "\t\r\n" or unicodedata.category(character) not in ("Cc", "Zl", "Zp")
    )
    return unicodedata.normalize("NFC", _BLANKS.sub(" ", kept)).strip()


def fit_name(name: str) -> str:
    """Cut a name that is too long for one line, or for any report: at a blank, if there is one near the end."""
    if len(name) <= MAX_NAME_CHARACTERS:
        return name
    blank = name.rfind(" ", MAX_NAME_CHARACTERS - _CUT_CHARACTERS, MAX_NAME_CHARACTERS + 1)
    return name[: blank if blank > 0 else MAX_NAME_CHARACTERS]


def write_name(field_name: str, name: str) -> bytes:
    """
    Write a field with a group name, for any next hop.

    ASCII stays as it is, on one line; anything else, and text that a reader would take for an encoded word, leaves as
    RFC 2047 words, since the next hop need not know UTF-8 header fields.

    Args:
        name: What :func:`fit_name` gave, not empty: its line stays below 998 octets (RFC 5322, 2.1.1).

    Returns:
        The whole field with its CRLF.
    """
    head = f"{field_name}: ".encode("ascii")
    encoded = not name.isascii() or "=?" in name
    return head + (encoded_words.encode(name, len(head)) if encoded else name.encode("ascii")) + b"\r\n"


def items(selector: Selector, texts: list[str]) -> list[str]:
    """
    Apply ``list``, ``key`` and ``skip_prefix``; blanks around items go, empty items too.

    Raises:
        Invalid: The key stands there without ``=``, or nothing there has one.
    """
    if selector.separator:
        texts = [part for text in texts for part in text.split(selector.separator)]
    found = [item for text in texts if (item := text.strip(" \t\r\n"))]
    if selector.key:
        pairs = [item.partition("=") for item in found]
        if pairs and not any(equals for _, equals, _ in pairs):
            raise Invalid("no item of the form name=value")
        named = [(equals, value.strip()) for key, equals, value in pairs if key.strip().lower() == selector.key]
        if not all(equals for equals, _ in named):
            raise Invalid("a key without a value")
        found = [value for _, value in named if value]
    if selector.skip_prefix:
        found = [item for item in found if not item.startswith(selector.skip_prefix)]
    return found


def read(rule: TranslateRule, words: list[str]) -> str:
    """Read the words a rule selected: its value as text, or empty where they decide nothing; raises Invalid."""
    if rule.reading is Reading.ALLOW_LIST:
        return flag(read_allow_list(words, rule))
    for word in words:
        if rule.reading is Reading.TEXT:
            name = clean_name(word)
            if name:
                return name
        elif rule.reading in TIMES and word == "0":
            continue
        elif rule.reading in TIMES:
            return read_time(word, rule.reading).isoformat()
        elif (on := read_switch(word, rule)) is not None:
            return flag(on)
    return ""


def flag(value: bool) -> str:
    """Write a switch as the platform wants it."""
    return "true" if value else "false"


def word(leaf: JsonValue) -> str:
    """Write a leaf as a header field would have it."""
    if isinstance(leaf, str):
        return leaf
    if isinstance(leaf, bool):
        return flag(leaf)
    return _number(leaf) if isinstance(leaf, int | float) else str(leaf)


def is_set(leaf: JsonValue) -> bool:
    """Tell whether a leaf is more than null, false, 0 (also as text) or empty."""
    return leaf.strip() not in ("", "0") if isinstance(leaf, str) else bool(leaf)


def bare_address(text: str) -> str:
    """The bare address of a mailbox, for comparison."""
    found = _ANGLE_ADDRESS.search(text)
    return (found[1] if found else text).strip().lower()


def bare_addresses(text: str) -> set[str]:
    """
    The bare addresses of all mailboxes in a text, for comparison.

    A comma may stand inside a quoted display name, so a piece without ``@`` is taken for a part of one, unless no piece
    has an ``@``. Whoever gets past this with a stranger address is told of, which is the safe way to be wrong.
    """
    found: set[str] = set()
    for piece in text.split(","):
        angles = _ANGLE_ADDRESS.findall(piece)
        found.update(address.strip().lower() for address in angles or (piece,))
    found.discard("")
    return {address for address in found if "@" in address} or found
