"""
A certificate authority of our own, for hosts that no public one would vouch for: localhost, and names that apps have
hard-coded.

It lives in one folder: ``ca.pem`` (for clients to trust) and ``ca.key``, made once; and for each label a file with a
key and its certificate, made anew when the names change or the end comes near, with a record beside it. The record
tells whether the file will do without reading a certificate: the library that makes them costs 10 MB and 90 ms, which
a normal start is spared.

Trust: who can read the folder can pose as any server towards clients that trust ``ca.pem``.
Source: RFC 5280.
"""

import hashlib
import ipaddress
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from proxy.private_file import locked, write_private
from proxy.problems import Problem, ProblemsError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

CA_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=397)
"""The longest that common TLS clients put up with."""

CLOCK_SKEW = timedelta(hours=1)
"""A client whose clock is late must not find a certificate that is not valid yet."""

_COMMON_NAME_CHARACTERS = 64  # RFC 5280, A.1: ub-common-name
_SETTING = "data_dir"


@frozen
class Leaf:
    """
    A server certificate with its key, both in one PEM file.

    Args:
        renew_at: When less than a third of its life is left. Aware, UTC, as *not_after* is.
    """

    file: Path
    not_after: datetime
    renew_at: datetime


def canonical_name(name: str) -> str:
    """
    Write a host name or IP address the one way in which it is compared and put into certificates.

    Args:
        name: A name, also with a trailing dot or in Unicode; an address, also as the literal that EHLO takes.

    Raises:
        UnicodeError: The name has no ASCII form.

    Source: RFC 5890 (A-labels), RFC 5321, 4.1.3 (address literals).
    """
    bare = name.removeprefix("[").removesuffix("]")
    bare = bare[5:] if bare[:5].lower() == "ipv6:" else bare
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        pass
    name = name.lower().rstrip(".")
    return name if name.isascii() else name.encode("idna").decode("ascii")


class LocalCa:
    """
    The authority in one folder; nothing is made before the first certificate is asked for.

    Args:
        folder: Where it lives; made when there is none.
        hostname: Named in the authority's own certificate, so that people can tell two installations apart.
    """

    def __init__(self, folder: Path, hostname: str) -> None:
        self._folder = folder
        self._hostname = hostname
        self.ca_file = folder / "ca.pem"
        self._key_file = folder / "ca.key"

    def leaf(self, label: str, names: Sequence[str], now: datetime) -> Leaf:
        """
        Find the certificate kept under a label, or make one.

        Args:
            label: Name of its file, without suffix.
            names: Host names and addresses it is for, in canonical form.
            now: Aware, UTC.

        Raises:
            ProblemsError: The folder cannot be used, or the authority in it is damaged or expired.
        """
        try:
            kept = self._kept(label, names, now)
            if kept is not None:
                return kept
            self._folder.mkdir(parents=True, exist_ok=True)
            with locked(self._folder / "lock"):
                # Another process may have made it while this one waited.
                return self._kept(label, names, now) or self._issue(label, names, now)
        except OSError as error:
            found = f"a folder that cannot be used: {error.strerror or error}"
            expected = "a folder to keep the local certificate authority in"
            raise ProblemsError([Problem(str(self._folder), 0, _SETTING, found, expected)]) from error

    def file(self, label: str) -> Path:
        """Name the file with the key and certificate kept under a label."""
        return self._folder / f"{label}.pem"

    def _kept(self, label: str, names: Sequence[str], now: datetime) -> Leaf | None:
        """Return the certificate on disk if it is whole, from this authority, for these names and not due."""
        pem = self.file(label)
        try:
            record = json.loads(pem.with_suffix(".json").read_bytes())
            found = {key: record[key] for key in ("names", "authority", "content")}
            if found != {"names": list(names), "authority": _digest(self.ca_file), "content": _digest(pem)}:
                return None
            leaf = _leaf(pem, *(datetime.fromisoformat(record[key]) for key in ("not_before", "not_after")))
            return leaf if now < leaf.renew_at else None
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None  # nothing but a record of what is in another file: with that one it is made again

    def _issue(self, label: str, names: Sequence[str], now: datetime) -> Leaf:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        authority, authority_key = self._authority(now)
        key = ec.generate_private_key(ec.SECP256R1())
        not_before = (now - CLOCK_SKEW).replace(microsecond=0)
        # Where the authority ends, so does all it vouches for.
        not_after = min(not_before + LEAF_LIFE, authority.not_valid_after_utc)
        # Very old clients know only the common name; a longer one than may stand there is no use to them anyway.
        common_name = names[0] if len(names[0]) <= _COMMON_NAME_CHARACTERS else "cmail-proxy"
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
            .sign(authority_key, hashes.SHA256())
        )
        pem = self.file(label)
        # One file, so that key and certificate always belong together; the record last, so that it never promises
        # what is not there.
        write_private(pem, _key_pem(key) + _certificate_pem(certificate))
        record = {
            "names": list(names),
            "not_before": not_before.isoformat(),
            "not_after": not_after.isoformat(),
            "authority": _digest(self.ca_file),
            "content": _digest(pem),
        }
        write_private(pem.with_suffix(".json"), (json.dumps(record, indent=2) + "\n").encode())
        return _leaf(pem, not_before, not_after)

    def _authority(self, now: datetime) -> tuple["x509.Certificate", "ec.EllipticCurvePrivateKey"]:
        """Load the authority, or make it; one that clients may trust is never replaced."""
        from cryptography import x509

        if not self.ca_file.exists():
            return self._make_authority(now)
        try:
            certificate = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
        except ValueError as error:
            raise self._problem(self.ca_file, "no certificate in PEM form", "the one that was made here") from error
        if not self._key_file.exists():
            raise self._problem(self._key_file, "no file", f"the private key of '{self.ca_file}'")
        key = self._load_key()
        if key.public_key() != certificate.public_key():
            found = f"a key that does not belong to '{self.ca_file}'"
            raise self._problem(self._key_file, found, "the one that was made with it")
        if certificate.not_valid_after_utc <= now:
            found = f"a certificate that expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            raise self._problem(self.ca_file, found, "one that is valid now")
        return certificate, key

    def _make_authority(self, now: datetime) -> tuple["x509.Certificate", "ec.EllipticCurvePrivateKey"]:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        # A key alone is what a crash between the two files leaves, or somebody who removed the wrong one: clients that
        # trust the certificate trust one with the same key and name, too.
        key = self._load_key() if self._key_file.exists() else ec.generate_private_key(ec.SECP256R1())
        room = _COMMON_NAME_CHARACTERS - len("cmail-proxy local CA ()")
        name = _name(f"cmail-proxy local CA ({self._hostname[:room]})")
        not_before = (now - CLOCK_SKEW).replace(microsecond=0)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_before + CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        if not self._key_file.exists():
            write_private(self._key_file, _key_pem(key))
        write_private(self.ca_file, _certificate_pem(certificate), mode=0o644)  # apps of other users are to trust it
        return certificate, key

    def _load_key(self) -> "ec.EllipticCurvePrivateKey":
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(self._key_file.read_bytes(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise self._problem(
                self._key_file, "no private key that can be read", "the one that was made here"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise self._problem(self._key_file, "a key of another kind", "the one that was made here")
        return key

    def _problem(self, file: Path, found: str, expected: str) -> ProblemsError:
        names = f"{self.ca_file.name} and {self._key_file.name}"
        hint = f"without {names} a new authority is made, which clients must then trust"
        return ProblemsError([Problem(str(file), 0, _SETTING, found, expected, hint)])


def _leaf(pem: Path, not_before: datetime, not_after: datetime) -> Leaf:
    return Leaf(pem, not_after, not_after - (not_after - not_before) / 3)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _name(common_name: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: "ec.EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _certificate_pem(certificate: "x509.Certificate") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)
