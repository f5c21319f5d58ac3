"""
Signed tokens for tracking links: what was opened or clicked, in the link itself.

A token carries the message, the number of the recipient in it (never an address) and, for a click, the whole target.
So a link keeps leading where it should even when the store is gone, and nobody but us can make one: a redirect goes
only where a message of ours linked to (OWASP: unvalidated redirects).

Layout, in octets, then base64url without padding (RFC 4648, 5)::

    1       version (high four bits) and kind (low four)
    1..3    key id, then 1..5 recipient number, each as LEB128
    1 + n   length and text of the message id, ASCII
    n       the target, UTF-8; clicks only
    16      HMAC-SHA-256 over all before, cut to half (RFC 2104, 5: no less)

Targets are http and https only, and checked both when a link is signed and when it is followed. What is not
:func:`trackable` is not to be rewritten: the link stays as it is. That holds for

- targets over 2,000 octets: with the signature they would pass what old mail programs and proxies take as a URL;
- user names in front of the host (``https://bank.example@evil.example/``): no honest mail has them;
- backslashes and control characters, which browsers and programs read differently, so that two of them can see two
  hosts; tabs and line ends, which browsers drop;
- hosts that are not ASCII or are percent-encoded. A path or query that is not ASCII is fine.

Trust: tokens come back from anybody. Before the signature is checked, nothing of one is used but its key id.
"""

import hmac
import json
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attrs import field, frozen

from proxy.private_file import locked, write_private
from proxy.problems import Problem, ProblemsError

MAX_TARGET_OCTETS = 2000
MAX_TOKEN_CHARACTERS = 2800
"""More than the token of the longest target has."""

MAX_KEYS = 100
SECRET_OCTETS = 32

FILE_VERSION = 1
EXPECTED = "keys for tracking links, as this program writes them"

_VERSION = 1
_OPEN = _VERSION << 4 | 1
_CLICK = _VERSION << 4 | 2
_MAC_OCTETS = 16
_CONTEXT = b"cmail-proxy tracking token\0"  # a secret that is used elsewhere, too, must not vouch for tokens
_MAX_KEY_ID = 9999
_MAX_RECIPIENT = 2**32 - 1
_MAX_FILE_OCTETS = 65536

_TOKEN = re.compile(rf"[A-Za-z0-9_-]{{24,{MAX_TOKEN_CHARACTERS}}}")
_MESSAGE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TARGET = re.compile(
    r"https?://"
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])"
    r"(?::[0-9]{0,5})?"
    r"(?:[/?#][^\x00-\x1f\x7f-\x9f\\]*)?",
    re.IGNORECASE,
)
_NOT_IN_A_FIELD = re.compile(r"[^\x21-\x7e]+")
_SECRET = re.compile(r"[0-9a-f]{64,128}")


@frozen
class Opened:
    """
    A beacon that was fetched.

    Args:
        message_id: Ours, as the store knows it.
        recipient: Number of the recipient in the message.
    """

    message_id: str
    recipient: int


@frozen
class Clicked:
    """
    A link that was followed.

    Args:
        message_id: Ours, as the store knows it.
        recipient: Number of the recipient in the message.
        target: Where it leads, as it stood in the message.
    """

    message_id: str
    recipient: int
    target: str

    @property
    def location(self) -> str:
        """
        The target as a Location field takes it: printable ASCII, everything else percent-encoded as UTF-8.

        A browser that follows the link itself encodes it in the same way (WHATWG URL, 1.3), in a page in UTF-8.
        """
        return _NOT_IN_A_FIELD.sub(lambda match: quote(match[0], safe=""), self.target)


def _fit(keys: "TokenKeys", _attribute: object, known: Mapping[int, bytes]) -> None:
    if keys.current not in known:
        raise ValueError("the current key is not among the keys")
    if len(known) > MAX_KEYS or not all(1 <= key_id <= _MAX_KEY_ID for key_id in known):
        raise ValueError(f"up to {MAX_KEYS} keys have ids from 1 to {_MAX_KEY_ID}")
    if any(len(secret) < SECRET_OCTETS for secret in known.values()):
        raise ValueError(f"a secret has at least {SECRET_OCTETS} octets")


@frozen
class TokenKeys:
    """
    The keys: one that signs, and those before it, whose links still work.

    Args:
        current: Id of the key that signs.
        secrets: Secret by id, 1 to 9999; at least 32 octets each.

    Raises:
        ValueError: There is no such key, or an id or secret is not fit.
    """

    current: int
    secrets: Mapping[int, bytes] = field(repr=False, validator=_fit)

    def sign_open(self, message_id: str, recipient: int) -> str:
        """
        Make the token of a beacon.

        Args:
            message_id: 1 to 64 letters, digits, ``.``, ``_`` and ``-``; an address does not fit.
            recipient: Number of the recipient in the message, from 0.

        Returns:
            Letters, digits, ``_`` and ``-`` only.

        Raises:
            ValueError: The message id or number has another form.
        """
        return self._signed(_OPEN, message_id, recipient, b"")

    def sign_click(self, message_id: str, recipient: int, target: str) -> str:
        """
        Make the token of a link.

        Args:
            message_id: As for :meth:`sign_open`, and so is *recipient*.
            target: What is :func:`trackable`.

        Raises:
            ValueError: The target is not trackable, or the message id or number has another form.
        """
        if not trackable(target):
            raise ValueError("such a target gets no token; the link stays as it is")
        return self._signed(_CLICK, message_id, recipient, target.encode())

    def read(self, token: str) -> Opened | Clicked | None:
        """
        Read a token of whatever origin.

        Returns:
            What it stands for; None unless one of the keys signed exactly this token.
        """
        if not _TOKEN.fullmatch(token) or len(token) % 4 == 1:  # no number of octets is written so
            return None
        data = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        if _base64(data) != token:  # spare bits in the last character: one link, one token
            return None
        signed, mac = data[:-_MAC_OCTETS], data[-_MAC_OCTETS:]
        key_id, position = _number(signed, 1)
        secret = self.secrets.get(key_id)
        if secret is None or not hmac.compare_digest(_mac(secret, signed), mac):
            return None
        recipient, position = _number(signed, position)
        try:
            end = position + 1 + signed[position]
            message_id, target = signed[position + 1 : end].decode("ascii"), signed[end:].decode()
        except (IndexError, UnicodeDecodeError):  # ours, but of a program that writes them otherwise
            return None
        if signed[0] == _OPEN and not target:
            return Opened(message_id, recipient)
        if signed[0] == _CLICK and trackable(target):  # again: what is a safe target may have been learned since
            return Clicked(message_id, recipient, target)
        return None

    def _signed(self, kind: int, message_id: str, recipient: int, target: bytes) -> str:
        if not _MESSAGE_ID.fullmatch(message_id):
            raise ValueError("a message id has 1 to 64 letters, digits, '.', '_' and '-'")
        if not 0 <= recipient <= _MAX_RECIPIENT:
            raise ValueError(f"a recipient number is from 0 to {_MAX_RECIPIENT}")
        name = message_id.encode("ascii")
        numbers = _written(self.current) + _written(recipient)
        signed = bytes([kind]) + numbers + bytes([len(name)]) + name + target
        return _base64(signed + _mac(self.secrets[self.current], signed))


def trackable(target: str) -> bool:
    """
    Tell whether a link may be rewritten; see the head of this module.

    Args:
        target: The link as a browser gets it: entities decoded, blanks around it cut.
    """
    if len(target) > MAX_TARGET_OCTETS or not _TARGET.fullmatch(target) or target.endswith(" "):
        return False
    try:
        return len(target.encode()) <= MAX_TARGET_OCTETS
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def load_or_create_secret(path: Path, random: Callable[[int], bytes] = secrets.token_bytes) -> TokenKeys:
    """
    Read the keys, or make the first one.

    A file that exists is only read, so it may lie where nothing can be written.

    Args:
        path: A file that only its owner reads; its folder is made when there is none.
        random: Gives that many random octets.

    Raises:
        ProblemsError: The file is damaged, or cannot be read or written.
    """
    return _read(path) or _change(path, lambda keys: keys or TokenKeys(1, {1: random(SECRET_OCTETS)}))


def rotate_secret(path: Path, random: Callable[[int], bytes] = secrets.token_bytes) -> TokenKeys:
    """
    Make a new key that signs from now on; links signed before keep working.

    To end the links of an old key, take it out of the file.

    Raises:
        ProblemsError: The file is damaged, full, or cannot be read or written.
    """

    def rotated(keys: TokenKeys | None) -> TokenKeys:
        known = {} if keys is None else keys.secrets
        new = max(known, default=0) + 1
        if len(known) >= MAX_KEYS or new > _MAX_KEY_ID:
            raise _problem(path, f"{len(known)} keys, the last with id {new - 1}", "take out the oldest ones")
        return TokenKeys(new, {**known, new: random(SECRET_OCTETS)})

    return _change(path, rotated)


def _change(path: Path, change: Callable[[TokenKeys | None], TokenKeys]) -> TokenKeys:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f"{path.name}.lock")):
            before = _read(path)  # another process may have been first
            keys = change(before)
            if keys is not before:
                write_private(path, _encode(keys))
            return keys
    except OSError as error:
        raise _problem(path, f"a file that cannot be written: {error.strerror or error}") from error


def _read(path: Path) -> TokenKeys | None:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_OCTETS + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _problem(path, f"a file that cannot be read: {error.strerror or error}") from error
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:  # the text of the error would hold part of the content
        raise _problem(path, "no JSON") from error
    if isinstance(document, dict) and document.get("version") not in (None, FILE_VERSION):
        raise _problem(path, f"version {str(document['version'])[:20]}", f"this program knows version {FILE_VERSION}")
    keys = _decode(document)
    if keys is None:
        raise _problem(path, "keys that are damaged", "put the file back; without it, links in mail already sent end")
    return keys


def _encode(keys: TokenKeys) -> bytes:
    items = {str(key_id): secret.hex() for key_id, secret in sorted(keys.secrets.items())}
    return (json.dumps({"version": FILE_VERSION, "current": keys.current, "keys": items}, indent=2) + "\n").encode()


def _decode(document: Any) -> TokenKeys | None:
    match document:
        case {"version": 1, "current": int(current), "keys": dict(items), **rest} if not rest:
            if not all(isinstance(text, str) and _SECRET.fullmatch(text) for text in items.values()):
                return None
            try:
                return TokenKeys(current, {int(key_id): bytes.fromhex(text) for key_id, text in items.items()})
            except ValueError:
                return None
        case _:
            return None


def _problem(path: Path, found: str, hint: str = "") -> ProblemsError:
    return ProblemsError([Problem(str(path), 0, "", found, EXPECTED, hint)])


def _mac(secret: bytes, signed: bytes) -> bytes:
    return hmac.digest(secret, _CONTEXT + signed, sha256)[:_MAC_OCTETS]


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _written(number: int) -> bytes:
    """Write a number as LEB128: seven bits an octet, low ones first, the high bit for more to come."""
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def _number(data: bytes, position: int) -> tuple[int, int]:
    """Read a number of at most five octets; give it, and where it ends."""
    number = 0
    for shift, octet in enumerate(data[position : position + 5]):
        number |= (octet & 0x7F) << (7 * shift)
        if octet < 0x80:
            return number, position + shift + 1
    return -1, position
