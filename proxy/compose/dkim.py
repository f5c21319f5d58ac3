"""
DKIM signatures: ``rsa-sha256`` and ``ed25519-sha256``, relaxed/relaxed, over fields that no hop may add to.

Each field that says who wrote what to whom is named once more than it occurs ("oversigned"), so that nobody can put a
second From or Subject in front of a signed message. There is no ``l=`` (RFC 6376, 8.2: what is appended would count
as signed) and no ``x=``.

A verifier sees what the last hop delivers. So a message with eight-bit content must not be re-encoded after it was
signed, and fields that hops add (Received, Return-Path) are not covered.

Source: RFC 6376; RFC 8301 (SHA-256 only, RSA of 1,024 bits or more); RFC 8463 (Ed25519).
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from attrs import field, frozen

from proxy.mail.fields import HeaderSection
from proxy.problems import Problem, ProblemsError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

# As text, because the library is loaded only where there are keys.
PrivateKey: TypeAlias = "RSAPrivateKey | Ed25519PrivateKey"

Unsigned = Literal["damaged", "no_from", "several_from", "no_address", "several_addresses", "no_key"]
"""Why a message is not signed: a closed list, fit for a metric."""

ALWAYS_OVERSIGNED = (b"From", b"Reply-To", b"Subject", b"To", b"Cc")
"""Named once more than they occur, also when they do not occur at all."""

OVERSIGNED = (
    b"Sender",
    b"Date",
    b"Message-ID",
    b"MIME-Version",
    b"Content-Type",
    b"Content-Transfer-Encoding",
    b"In-Reply-To",
    b"References",
    b"List-Unsubscribe",  # RFC 8058, 4: both must be covered, or mailbox providers offer no button
    b"List-Unsubscribe-Post",
)
"""Named once more than they occur, if they occur: some of them a hop may lawfully add when they are missing."""

SIGNED = (
    b"Content-ID",
    b"Content-Description",
    b"Resent-From",
    b"Resent-To",
    b"Resent-Cc",
    b"Resent-Date",
    b"Resent-Message-ID",
    b"List-ID",
    b"List-Help",
    b"List-Subscribe",
    b"List-Post",
    b"List-Owner",
    b"List-Archive",
    b"Auto-Submitted",
    b"Feedback-ID",
)
"""Named as often as they occur."""

# The split is that of rspamd's defaults, which millions of messages a day have tried out; RFC 6376, 5.4.1 has the
# list of what should be covered at all.

MIN_RSA_BITS = 1024  # RFC 8301, 3.2: verifiers must not accept less
GOOD_RSA_BITS = 2048  # RFC 8301, 3.2: signers should use at least this
MAX_RSA_BITS = 4096  # RFC 8301, 3.2: verifiers need not check more

_MAX_INSTANCES = 20  # of one field; a message with more is odd, and h= must not grow with it
_MAX_KEY_FILE_OCTETS = 65536
_MAX_DOMAIN_CHARACTERS = 253
_LINE_OCTETS = 76
_EXPECTED = "a private key in PEM form, RSA of 2048 bits or Ed25519, without a pass phrase"
_MAKE_KEY = "'openssl genrsa -out FILE 2048' makes one"

_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|\\.|[^"\\(),<>:;]++|.', re.DOTALL)
_COMMENT_PART = re.compile(r"\\.|[^\\()]++|.", re.DOTALL)


@lru_cache(1024)  # the same few senders all day
def domain_name(text: str) -> str | None:
    """
    Write a domain the one way in which it is compared and put into signatures.

    Args:
        text: Letters in any case, international ones included, with or without a final dot.

    Returns:
        ASCII, lower case (A-labels, RFC 5890); None when that is no domain name, but an address literal or worse.
    """
    name = text.removesuffix(".")
    if len(name) > _MAX_DOMAIN_CHARACTERS:  # before anything that costs more for longer names
        return None
    if not name.isascii():
        import idna  # IDNA 2008: Python's own codec would make 'strasse.example' of 'straße.example'

        try:
            name = idna.encode(name, uts46=True).decode()
        except UnicodeError:
            return None
    name = name.lower()
    return name if len(name) <= _MAX_DOMAIN_CHARACTERS and _NAME.fullmatch(name) else None


def _domain(text: str) -> str:
    name = domain_name(text)
    if name is None:
        raise ValueError(f"no domain name: {text!r}")
    return name


@frozen
class SigningKey:
    """
    A key, and where its public half is published.

    Args:
        domain: The domain that signs (``d=``); international names are written as A-labels.
        selector: Name of the key within the domain (``s=``).
        key: See :func:`load_key`.

    Raises:
        ValueError: Domain or selector is no domain name.
    """

    domain: str = field(converter=_domain)
    selector: str = field(converter=_domain)
    key: PrivateKey = field(repr=False)

    @property
    def dns_name(self) -> str:
        """Where the TXT record of :func:`dns_record` belongs (RFC 6376, 3.6.2.1)."""
        return f"{self.selector}._domainkey.{self.domain}"


@frozen
class Signed:
    """
    What came of signing a message.

    Args:
        fields: DKIM-Signature fields with CRLF, to put in front of the message; empty when there is none.
        domain: That of the author's address, as far as it could be found; for the log.
        unsigned: Why there is no signature; None when there is one.
    """

    fields: bytes
    domain: str
    unsigned: Unsigned | None


@frozen
class _Prepared:
    head: str  # the tags before t=
    sign: Callable[[bytes], bytes]


class Signer:
    """
    Signs messages by the domain of their author.

    Args:
        keys: Those of the same domain all sign, in their order.
    """

    def __init__(self, keys: Sequence[SigningKey]) -> None:
        self._keys: dict[str, list[_Prepared]] = {}
        for key in keys:
            self._keys.setdefault(key.domain, []).append(_prepared(key))

    def sign(self, content: bytes, now: datetime) -> bytes:
        """
        Give the DKIM-Signature fields alone; see :meth:`signed`.

        Returns:
            Whole fields with CRLF, to put in front of the message; empty when it is not to be signed.
        """
        return self.signed(content, now).fields

    def signed(self, content: bytes, now: datetime) -> Signed:
        """
        Sign a message with the keys of its author's domain, else of the nearest parent domain that has any.

        A signature by a parent domain is aligned for DMARC in its relaxed mode (RFC 7489, 3.1.1).

        Args:
            content: The whole message as it goes out, lines ending with CRLF. A last line without CRLF gets one on
                the wire, so it is signed as if it had it. Signatures that it already carries stay and are not covered.
            now: Aware.

        Source: RFC 6376, 3.4.2 and 3.4.4 (relaxed), 3.5 (the field), 5.4.2 (which instance of a field), 8.15.
        """
        section = HeaderSection.split(content)
        if (body_start := _body_start(content, section)) is None:
            return Signed(b"", "", "damaged")
        domain, unsigned = author_domain(section)
        if unsigned is not None:
            return Signed(b"", domain, unsigned)
        keys = self._for(domain)
        if not keys:
            return Signed(b"", domain, "no_key")
        names, covered = _covered(section)
        digest = b64encode(hashlib.sha256(relaxed_body(content[body_start:])).digest()).decode()
        tail = f"t={int(now.timestamp())};\r\n\th={names};\r\n\tbh={digest};\r\n\tb="
        written = b"".join(_field(key, tail, covered) for key in keys)
        return Signed(written, domain, None)

    def _for(self, domain: str) -> list[_Prepared]:
        while domain:
            if domain in self._keys:
                return self._keys[domain]
            domain = domain.partition(".")[2]
        return []


def author_domain(section: HeaderSection) -> tuple[str, Unsigned | None]:
    """
    Find the domain of the one address in the one From field.

    Lenient where mail programs are: a comma in an unquoted display name makes no second address as long as only one
    part holds an ``@``. Groups (RFC 6854) count by the addresses in them.

    Returns:
        The domain (empty if there is none), and why the message is not to be signed.
    """
    found = [index for index, name in enumerate(section.keys) if name == b"from"]
    if len(found) != 1:
        return "", "several_from" if found else "no_from"
    addresses = _addresses(section.value(found[0]).decode("utf-8", "replace"))  # a display name may be in Latin-1
    if len(addresses) > 1:
        return "", "several_addresses"
    domain = domain_name(addresses[0].rpartition("@")[2].strip(" \t")) if addresses else None
    return domain or "", None if domain else "no_address"


def relaxed_body(body: bytes) -> bytes:
    """
    Canonicalise a body. The work is linear: each pass over runs of blanks halves them.

    Args:
        body: Lines ending with CRLF, without any other CR or LF.

    Source: RFC 6376, 3.4.4.
    """
    body = body.replace(b"\t", b" ")
    while b"  " in body:  # twice as fast as a regular expression, and at most 25 times for 25 MB
        body = body.replace(b"  ", b" ")
    body = body.replace(b" \r\n", b"\r\n").removesuffix(b" ").rstrip(b"\r\n")
    return body + b"\r\n" if body else b""


def relaxed_field(name: bytes, value: bytes) -> bytes:
    """
    Canonicalise a field.

    Args:
        name: In lower case.
        value: Unfolded.

    Returns:
        The field without CRLF.

    Source: RFC 6376, 3.4.2.
    """
    return name + b":" + b" ".join(filter(None, value.replace(b"\t", b" ").split(b" ")))


def load_key(path: Path, setting: str = "") -> PrivateKey:
    """
    Read a private key.

    Args:
        setting: The key of the settings that names the file, for problems.

    Raises:
        ProblemsError: The file cannot be read, or holds no key that can sign.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        with path.open("rb") as file:
            pem = file.read(_MAX_KEY_FILE_OCTETS + 1)
    except FileNotFoundError as error:
        raise _problem(path, setting, "no file", _MAKE_KEY) from error
    except OSError as error:
        raise _problem(path, setting, f"a file that cannot be read: {error.strerror or error}") from error
    if len(pem) > _MAX_KEY_FILE_OCTETS:
        raise _problem(path, setting, f"a file of more than {_MAX_KEY_FILE_OCTETS} octets")
    if b"PRIVATE KEY-----" not in pem:
        found = "a public key" if b"PUBLIC KEY-----" in pem else "no private key in PEM form"
        raise _problem(path, setting, found, _MAKE_KEY)
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:  # a pass phrase is asked for
        raise _problem(
            path, setting, "a key with a pass phrase", "'openssl pkey -in FILE -out NEW' takes it off"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _problem(path, setting, "a private key that is damaged or of an unknown kind", _MAKE_KEY) from error
    if isinstance(key, Ed25519PrivateKey):
        return key
    if not isinstance(key, RSAPrivateKey):
        raise _problem(
            path, setting, f"a key of another kind ({type(key).__name__.removesuffix('PrivateKey')})", _MAKE_KEY
        )
    if key.key_size < MIN_RSA_BITS:
        raise _problem(path, setting, f"an RSA key of {key.key_size} bits", _MAKE_KEY)
    return key


def weakness(key: PrivateKey) -> str:
    """Say what an operator should know about a key that works; empty when there is nothing."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    if not isinstance(key, RSAPrivateKey):
        return ""
    if key.key_size < GOOD_RSA_BITS:
        return f"an RSA key of {key.key_size} bits is short; RFC 8301 asks for {GOOD_RSA_BITS}"
    if key.key_size > MAX_RSA_BITS:
        return f"an RSA key of {key.key_size} bits is more than receivers need to check ({MAX_RSA_BITS})"
    return ""


def dns_record(key: PrivateKey) -> str:
    """
    Write the TXT record to publish.

    Returns:
        One text, ASCII. It may be longer than 255 characters; a zone file then wants it in several quoted strings
        (RFC 6376, 3.6.2.2), which most DNS providers do themselves.

    Source: RFC 6376, 3.6.1; RFC 8463, 4.
    """
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if isinstance(key, RSAPrivateKey):
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"v=DKIM1; k=rsa; p={b64encode(public).decode()}"
    return f"v=DKIM1; k=ed25519; p={b64encode(key.public_key().public_bytes_raw()).decode()}"


def _prepared(key: SigningKey) -> _Prepared:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    private = key.key
    if isinstance(private, RSAPrivateKey):
        rsa, scheme, algorithm = private, padding.PKCS1v15(), hashes.SHA256()
        return _Prepared(_head("rsa-sha256", key), lambda data: rsa.sign(data, scheme, algorithm))
    edwards = private
    # RFC 8463, 3: what is signed is the SHA-256 digest, not the data.
    return _Prepared(_head("ed25519-sha256", key), lambda data: edwards.sign(hashlib.sha256(data).digest()))


def _head(algorithm: str, key: SigningKey) -> str:
    return f"v=1; a={algorithm}; c=relaxed/relaxed;\r\n\td={key.domain};\r\n\ts={key.selector}; "


def _body_start(content: bytes, section: HeaderSection) -> int | None:
    """Find where the body begins; None where verifiers would not agree on it, so that a signature is worth nothing."""
    line_ends = content.count(b"\r\n")
    if content.count(b"\n") != line_ends or content.count(b"\r") != line_ends or section.start:
        return None
    if content.startswith(b"\r\n", section.end):
        return section.end + 2
    return section.end if section.end == len(content) else None


def _covered(section: HeaderSection) -> tuple[str, bytes]:
    """Choose the fields to cover: the text of ``h=``, folded, and the fields canonicalised, each with CRLF."""
    places: dict[bytes, list[int]] = {}
    for index, name in enumerate(section.keys):
        places.setdefault(name, []).append(index)
    names: list[bytes] = []
    fields: list[bytes] = []
    for group, extra in ((ALWAYS_OVERSIGNED, 1), (OVERSIGNED, 1), (SIGNED, 0)):
        for name in group:
            key = name.lower()
            instances = places.get(key, [])[-_MAX_INSTANCES:]
            if instances or group is ALWAYS_OVERSIGNED:
                names += [name] * (len(instances) + extra)
                fields += [relaxed_field(key, section.value(index)) for index in reversed(instances)]
    return _folded(names), b"".join(each + b"\r\n" for each in fields)


def _folded(names: list[bytes]) -> str:
    lines = ["\th="]
    for name in names:
        word = f"{name.decode()}:"
        if len(lines[-1]) + len(word) > _LINE_OCTETS:
            lines.append("\t ")
        lines[-1] += word
    return "\r\n".join(lines)[len("\th=") : -1]


def _field(key: _Prepared, tail: str, covered: bytes) -> bytes:
    value = (key.head + tail).encode()
    # The field itself is covered too, with an empty b= and without a final CRLF (RFC 6376, 3.7).
    signature = b64encode(key.sign(covered + relaxed_field(b"dkim-signature", value.replace(b"\r\n", b""))))
    width = _LINE_OCTETS - len("\t b=")
    lines = [signature[at : at + width] for at in range(0, len(signature), width)]
    return b"DKIM-Signature: " + value + b"\r\n\t ".join(lines) + b"\r\n"


def _addresses(value: str) -> list[str]:
    """The parts of an address list that hold an ``@``, without display names and comments."""
    addresses: list[str] = []
    # Pieces, and joined at the end of an address only: a field of angle brackets would be copied once for each.
    bare: list[str] = []
    angle: list[str] | None = None
    closed = False
    position = 0
    while match := _TOKEN.match(value, position):
        word = match[0]
        position = match.end()
        if angle is not None and not closed:
            closed = word == ">"
            if not closed:
                angle.append(word)
        elif word == "(":
            position = _after_comment(value, position)
        elif word == "<":
            angle, closed = [], False
        elif word in ",;":
            addresses.append("".join(bare if angle is None else angle))
            bare, angle = [], None
        elif word == ":":  # what stood before it is the name of a group
            bare = []
        else:
            bare.append(word)
    addresses.append("".join(bare if angle is None else angle))
    return [address for address in addresses if "@" in address]


def _after_comment(value: str, position: int) -> int:
    depth = 1
    while depth and (match := _COMMENT_PART.match(value, position)):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        position = match.end()
    return position


def _problem(path: Path, setting: str, found: str, hint: str = "") -> ProblemsError:
    return ProblemsError([Problem(str(path), 0, setting, found, _EXPECTED, hint)])
