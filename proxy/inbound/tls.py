"""
The certificates that clients see, and the TLS they are offered.

Trust: certificate files are the operator's; the host name a client asks for (SNI) is only looked up.
Source: Mozilla's Server Side TLS guidelines, "intermediate"; RFC 6066, 3 (SNI); RFC 5280, 4.1 (certificates).
"""

import base64
import hashlib
import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from proxy import settings
from proxy.inbound.local_ca import LocalCa, canonical_name
from proxy.inbound.tokens import utc_now
from proxy.problems import Problem, ProblemsError

# For TLS 1.2; those of TLS 1.3 are all good. The DHE ciphers that were once part of the profile are left out, as in its
# proposed next version: clients of TLS 1.2 do not need them, and they make it cheap to keep a server busy.
CIPHERS = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    )
)

RENEWAL_RETRY = timedelta(hours=1)
"""A certificate of our own that could not be renewed serves on for months; once a second is too often to say so."""

_CHAIN_EXPECTED = "a certificate chain in PEM form, the server's own certificate first"
_KEY_EXPECTED = "the private key of the first certificate, in PEM form and without a passphrase"

# OpenSSL, too, wants the marks at the beginning of a line.
_PEM_CERTIFICATE = re.compile(rb"^-----BEGIN CERTIFICATE-----(.*?)(^-----END CERTIFICATE-----|\Z)", re.DOTALL | re.M)
_PEM_KEY = re.compile(rb"^-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----", re.M)
_ENCRYPTED_KEY = re.compile(rb"^(?:-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: 4,ENCRYPTED)", re.M)

_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


class Certificates:
    """
    What listeners show, kept up to date.

    Hosts in ``tls.names`` that a client asks for get a certificate of the local authority; every other client gets the
    one from the files or, where there are none, the same local one.

    Args:
        tls: The settings.
        data_dir: The local authority lives in its folder ``tls``.
        hostname: Our own name.
        clock: Tells the time; aware, UTC.

    Attributes:
        context: For every handshake; None when there is nothing to show. It stays the same object when certificates are
            loaded anew, so a listener may hold on to it, and sessions can be resumed.
        ca_file: What clients of the local authority must trust; None where it is not used.

    Raises:
        ProblemsError: A certificate cannot be used; all problems at once.
    """

    def __init__(
        self, tls: settings.Tls, data_dir: Path, hostname: str, clock: Callable[[], datetime] = utc_now
    ) -> None:
        names = _canonical("tls.names", tls.names)
        local_ca = LocalCa(data_dir / "tls", hostname)
        self._default: _Served | None = None
        self._local: _Served | None = None
        self._names: frozenset[str] = frozenset()
        if tls.certificate_file is not None:
            self._default = _Served(tls.certificate_file, tls.key_file or tls.certificate_file, clock)
            if names:
                self._local = _LocallyIssued(local_ca, "names", names, clock)
                self._names = frozenset(names)
        elif tls.self_signed:
            own = _canonical("hostname", [hostname])
            everybody = tuple(dict.fromkeys([*own, "localhost", "127.0.0.1", "::1", *names]))
            self._default = _LocallyIssued(local_ca, "default", everybody, clock)
        issued_here = isinstance(self._default, _LocallyIssued) or self._local is not None
        self.ca_file = local_ca.ca_file if issued_here else None
        self.context = None if self._default is None else self._switching_context()
        self.reload()

    @property
    def not_after(self) -> datetime | None:
        """When the first of all certificates that are served expires; aware, UTC."""
        return min((served.not_after for served in self._served() if served.not_after), default=None)

    def reload(self) -> bool:
        """
        Load again what changed since the last look, whatever came of that, and renew what is due.

        The content of the files is what counts, so it does not matter whether a file was written anew or a link in its
        path was turned. Connections that are open are not touched.

        Returns:
            Whether another certificate is served than before.

        Raises:
            ProblemsError: New content cannot be used. What was served before still is, and nothing is tried again until
                the content has changed once more (or, for a certificate of our own, for an hour).
        """
        changed = False
        problems: list[Problem] = []
        for served in self._served():
            try:
                changed = served.reload() or changed
            except ProblemsError as error:
                problems += error.problems
        if problems:
            raise ProblemsError(problems)
        return changed

    def _served(self) -> list["_Served"]:
        return [served for served in (self._default, self._local) if served is not None]

    def _switching_context(self) -> ssl.SSLContext:
        """Make the context that holds no certificate and hands each handshake to the one that counts now."""
        context = server_context()
        context.sni_callback = self._choose
        return context

    def _choose(self, handshake: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        asked_for_local = name is not None and name.lower().rstrip(".") in self._names
        served = self._local if asked_for_local else self._default
        if served is not None:
            handshake.context = served.context


class _Served:
    """One certificate and its key, from files."""

    def __init__(self, certificate_file: Path, key_file: Path, clock: Callable[[], datetime]) -> None:
        self._certificate_file = certificate_file
        self._key_file = key_file
        self._clock = clock
        self._seen: tuple[bytes, ...] = ()
        self.context = server_context()
        self.not_after: datetime | None = None

    def reload(self) -> bool:
        """Load the files if their content is not what was last looked at; raises ProblemsError."""
        chain, key = _read(self._certificate_file), _read(self._key_file)
        # Digests, so that no copy of the key is kept.
        seen = tuple(hashlib.sha256(it if isinstance(it, bytes) else it.encode()).digest() for it in (chain, key))
        if seen == self._seen:
            return False
        self._seen = seen
        ends = self._check(chain, key)
        context = server_context()
        self._load(context)
        now = self._clock()
        if ends[0] <= now:
            found = f"a certificate that expired on {ends[0]:%Y-%m-%d %H:%M} UTC"
            raise ProblemsError([self._chain_problem(found, "a certificate that is valid now")])
        self.context, self.not_after = context, min(ends)
        return True

    def _check(self, chain: bytes | str, key: bytes | str) -> list[datetime]:
        """Look at each file by itself; returns when each certificate ends."""
        problems: list[Problem] = []
        ends: list[datetime] = []
        try:
            ends = list(_ends(chain))
        except ValueError as error:
            problems.append(self._chain_problem(str(error)))
        try:
            _check_key(key)
        except ValueError as error:
            # A file for both that is not there is one mistake.
            if not (isinstance(key, str) and problems and self._key_file == self._certificate_file):
                problems.append(self._key_problem(str(error)))
        if problems:
            raise ProblemsError(problems)
        return ends

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            # Without a passphrase given, OpenSSL would ask for one on the terminal and wait.
            context.load_cert_chain(self._certificate_file, self._key_file, password="")
        except ssl.SSLError as error:
            reason = error.reason or ""
            if reason in _MISMATCHES:
                found = f"a key that does not belong to the first certificate in '{self._certificate_file}'"
                problem = self._key_problem(found)
            elif reason.endswith(("_TOO_SMALL", "_TOO_WEAK")):
                weakness = reason.lower().replace("_", " ")
                expected = "RSA keys of 2,048 bits or more, or ECDSA keys, and signatures with SHA-256 or better"
                problem = self._chain_problem(f"a certificate that is too easily forged ({weakness})", expected)
            else:  # the certificates were read before
                problem = self._key_problem("a damaged private key")
            raise ProblemsError([problem]) from error
        except OSError as error:  # gone since it was read
            raise ProblemsError([self._chain_problem(_unreadable(error))]) from error

    def _chain_problem(self, found: str, expected: str = _CHAIN_EXPECTED) -> Problem:
        return Problem(str(self._certificate_file), 0, "tls.certificate_file", found, expected)

    def _key_problem(self, found: str) -> Problem:
        return Problem(str(self._key_file), 0, "tls.key_file", found, _KEY_EXPECTED)


class _LocallyIssued(_Served):
    """A certificate of the local authority, made and renewed as needed."""

    def __init__(self, ca: LocalCa, label: str, names: Sequence[str], clock: Callable[[], datetime]) -> None:
        super().__init__(ca.file(label), ca.file(label), clock)
        self._ca = ca
        self._label = label
        self._for_names = names
        self._look_again_at: datetime | None = None

    def reload(self) -> bool:
        """Renew the certificate if it is due, and load it if it is new; raises ProblemsError."""
        now = self._clock()
        if self._look_again_at is not None and now < self._look_again_at:
            return False
        try:
            self._ca.leaf(self._label, self._for_names, now)
        except ProblemsError:
            self._look_again_at = now + RENEWAL_RETRY
            raise
        return super().reload()


def server_context() -> ssl.SSLContext:
    """
    Make a context with the TLS that is offered, and no certificate.

    Key exchange is left to OpenSSL, whose own choice (X25519, P-256, P-384 and what newer versions put before them) is
    the profile's; Python could only narrow it down to one curve.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def _canonical(key: str, names: Iterable[str]) -> list[str]:
    canonical: list[str] = []
    problems: list[Problem] = []
    for name in names:
        try:
            canonical.append(canonical_name(name))
        except UnicodeError:
            problems.append(Problem("settings", 0, key, repr(name), "a host name that has an ASCII form (IDNA)"))
    if problems:
        raise ProblemsError(problems)
    return canonical


def _read(file: Path) -> bytes | str:
    """Return the content, or what was found instead."""
    try:
        return file.read_bytes()
    except OSError as error:
        return _unreadable(error)


def _unreadable(error: OSError) -> str:
    return f"a file that cannot be read: {error.strerror or error}"


def _check_key(key: bytes | str) -> None:
    """Raise ValueError, with what was found instead, unless a private key seems to be there."""
    if isinstance(key, str):
        raise ValueError(key)
    if not _PEM_KEY.search(key):
        raise ValueError("no private key in PEM form")
    if _ENCRYPTED_KEY.search(key):
        raise ValueError("an encrypted private key")


def _ends(chain: bytes | str) -> Iterator[datetime]:
    """Tell when each certificate ends; raises ValueError with what was found instead."""
    if isinstance(chain, str):
        raise ValueError(chain)
    certificates = _PEM_CERTIFICATE.findall(chain)
    if not certificates:
        raise ValueError("no certificate in PEM form")
    for number, (text, end) in enumerate(certificates, 1):
        try:
            yield _not_after(base64.b64decode(b"".join(text.split()) if end else b"", validate=True))
        except ValueError:
            raise ValueError(f"a damaged certificate (number {number} in the file)") from None


def _not_after(certificate: bytes) -> datetime:
    """
    Read when a certificate ends.

    The ssl module tells it only of certificates that a peer showed, and the library that could read any costs 10 MB and
    90 ms, for one field at a fixed place.

    Args:
        certificate: In DER form.

    Raises:
        ValueError: It is no certificate.

    Source: RFC 5280, 4.1 and 4.1.2.5; X.690, 8.1 (tag, length, content).
    """
    try:
        # Nearly all that may be wrong is found by OpenSSL. (It is told to trust it, in a context made for that.)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificate)
    except ssl.SSLError as error:
        raise ValueError(error.reason) from error
    _, to_be_signed, _ = _element(certificate)
    _, fields, _ = _element(to_be_signed)
    tag, _, after_first = _element(fields)
    if tag == 0xA0:  # the version, which those of version 1 lack
        fields = after_first
    for _ in range(3):  # serial number, signature algorithm, issuer
        _, _, fields = _element(fields)
    _, validity, _ = _element(fields)
    _, _, validity = _element(validity)  # not before
    tag, text, _ = _element(validity)
    if tag == 0x17:  # UTCTime, for years up to 2049: two digits, and below 50 means 20yy
        text = (b"20" if text[:2] < b"50" else b"19") + text
    return datetime.strptime(text.decode("ascii"), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Split off the first element: its tag, its content, and what follows it."""
    if len(der) < 2:
        raise ValueError("no element")
    tag, length, start = der[0], der[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[2:start])
    return tag, der[start : start + length], der[start + length :]
