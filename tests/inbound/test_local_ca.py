"""The local certificate authority: what it makes, what it keeps, and what it refuses to replace."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from proxy.inbound.local_ca import LocalCa, canonical_name
from proxy.problems import ProblemsError

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
NAMES = ("mail.example.com", "localhost", "127.0.0.1", "::1")
NEW_AUTHORITY = "(without ca.pem and ca.key a new authority is made, which clients must then trust)"

MAKE = """
import hashlib, sys
from datetime import UTC, datetime
from pathlib import Path
from proxy.inbound.local_ca import LocalCa

ca = LocalCa(Path(sys.argv[1]), "mail.example.com")
print("ready", flush=True)
sys.stdin.readline()
leaf = ca.leaf("default", ["localhost"], datetime(2026, 11, 23, tzinfo=UTC))
for file in (ca.ca_file, leaf.file):
    print(hashlib.sha256(file.read_bytes()).hexdigest())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Name the folder; it does not exist."""
    return tmp_path / "var" / "tls"


@pytest.fixture
def ca(folder: Path) -> LocalCa:
    """Give an authority that was not used yet."""
    return LocalCa(folder, "mail.example.com")


def certificate(file: Path) -> x509.Certificate:
    """Read the certificate in a file."""
    return x509.load_pem_x509_certificate(file.read_bytes())


def verify(leaf: x509.Certificate, authority: x509.Certificate, name: x509.DNSName, at: datetime) -> None:
    """Let a strict client's rules judge a certificate."""
    PolicyBuilder().store(Store([authority])).time(at).build_server_verifier(name).verify(leaf, [])


def test_authority_is_made_once_with_the_least_power(ca: LocalCa, folder: Path) -> None:
    """The authority may sign server certificates for ten years and no further authority; it says whose it is."""
    ca.leaf("default", NAMES, NOW)
    made = certificate(ca.ca_file)
    assert made.subject == made.issuer
    assert made.subject.rfc4514_string() == "CN=cmail-proxy local CA (mail.example.com)"
    assert made.not_valid_before_utc == NOW - timedelta(hours=1)
    assert made.not_valid_after_utc == NOW - timedelta(hours=1) + 3650 * DAY
    constraints = made.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(ca=True, path_length=0))
    usage = made.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)
    key = made.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    made.verify_directly_issued_by(made)
    before = ca.ca_file.read_bytes()
    LocalCa(folder, "renamed.example.com").leaf("other", ("other",), NOW + 400 * DAY)
    assert ca.ca_file.read_bytes() == before


def test_leaf_is_for_its_names_and_nothing_else(ca: LocalCa) -> None:
    """A leaf serves the names asked for during 397 days, with a key of its own, and satisfies strict clients."""
    leaf = ca.leaf("default", NAMES, NOW)
    made, authority = certificate(leaf.file), certificate(ca.ca_file)
    assert made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "mail.example.com"
    alternatives = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == ["mail.example.com", "localhost"]
    assert [str(address) for address in alternatives.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    usages = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert made.not_valid_after_utc - made.not_valid_before_utc == 397 * DAY
    assert leaf.not_after == made.not_valid_after_utc == NOW - timedelta(hours=1) + 397 * DAY
    key = load_pem_private_key(leaf.file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    assert key.public_key() == made.public_key() != authority.public_key()
    verify(made, authority, x509.DNSName("localhost"), NOW)
    with pytest.raises(x509.verification.VerificationError):
        verify(made, authority, x509.DNSName("elsewhere.example.com"), NOW)


def test_keys_are_for_their_owner_and_the_authority_for_everybody(ca: LocalCa, folder: Path) -> None:
    """Everything is 0600 but ca.pem, which apps of other users are to trust; nothing temporary stays."""
    ca.leaf("default", NAMES, NOW)
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert modes == {"ca.pem": 0o644, "ca.key": 0o600, "default.pem": 0o600, "default.json": 0o600, "lock": 0o600}
    assert (b"PRIVATE" in ca.ca_file.read_bytes(), b"PRIVATE" in (folder / "ca.key").read_bytes()) == (False, True)


def test_long_or_odd_host_names_fit(folder: Path) -> None:
    """A host name that is too long for a common name is cut there, and whole where clients look."""
    name = f"{'a' * 60}.{'b' * 60}.example.com"
    ca = LocalCa(folder, name)
    leaf = ca.leaf("default", (name,), NOW)
    subject = certificate(ca.ca_file).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    assert subject == f"cmail-proxy local CA ({name[:41]})"
    made = certificate(leaf.file)
    assert made.subject.rfc4514_string() == "CN=cmail-proxy"
    verify(made, certificate(ca.ca_file), x509.DNSName(name), NOW)


def test_leaf_that_will_do_is_kept(ca: LocalCa, folder: Path) -> None:
    """As long as names and authority are the same and a third of its life is left, a leaf stays as it is."""
    first = ca.leaf("default", NAMES, NOW)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    assert first.renew_at == first.not_after - 397 * DAY / 3
    again = LocalCa(folder, "mail.example.com")
    assert again.leaf("default", NAMES, first.renew_at - timedelta(seconds=1)) == first
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_leaf_that_is_due_is_made_anew(ca: LocalCa) -> None:
    """With less than a third of its life left, a leaf is replaced by one of the same authority with a new key."""
    first = ca.leaf("default", NAMES, NOW)
    old, authority = certificate(first.file), certificate(ca.ca_file)
    second = ca.leaf("default", NAMES, first.renew_at)
    new = certificate(second.file)
    assert second.not_after == first.renew_at - timedelta(hours=1) + 397 * DAY
    assert new.public_key() != old.public_key()
    verify(new, authority, x509.DNSName("localhost"), first.renew_at)


def test_leaf_for_other_names_is_made_anew(ca: LocalCa) -> None:
    """Names that were added or removed since are noticed; another label is another leaf."""
    first = ca.leaf("default", NAMES, NOW)
    before = first.file.read_bytes()
    other = ca.leaf("names", ("smtp.mailgun.org",), NOW)
    assert first.file.read_bytes() == before
    assert other.file != first.file
    ca.leaf("default", (*NAMES, "smtp.sendgrid.net"), NOW)
    verify(certificate(first.file), certificate(ca.ca_file), x509.DNSName("smtp.sendgrid.net"), NOW)


def change_record(folder: Path, **changes: object) -> None:
    """Alter what the record says."""
    file = folder / "default.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


SPOILED: list[tuple[str, Callable[[Path], object]]] = [
    ("record-gone", lambda folder: (folder / "default.json").unlink()),
    ("record-empty", lambda folder: (folder / "default.json").write_text("")),
    ("record-not-a-mapping", lambda folder: (folder / "default.json").write_text("[1]")),
    ("record-without-end", lambda folder: change_record(folder, not_after=None)),
    ("record-with-no-date", lambda folder: change_record(folder, not_after="soon")),
    ("record-without-zone", lambda folder: change_record(folder, not_after="2027-01-01", not_before="2026-01-01")),
    ("leaf-gone", lambda folder: (folder / "default.pem").unlink()),
    ("leaf-cut", lambda folder: (folder / "default.pem").write_bytes((folder / "default.pem").read_bytes()[:-40])),
]


@pytest.mark.parametrize("spoil", [pytest.param(spoil, id=name) for name, spoil in SPOILED])
def test_leaf_that_is_not_whole_is_made_anew(ca: LocalCa, folder: Path, spoil: Callable[[Path], object]) -> None:
    """Whatever happened to a leaf or to its record, the next one is whole, from the same authority."""
    first = ca.leaf("default", NAMES, NOW)
    authority, old = ca.ca_file.read_bytes(), first.file.read_bytes()
    spoil(folder)
    second = ca.leaf("default", NAMES, NOW)
    assert second == first
    assert second.file.read_bytes() != old
    assert ca.ca_file.read_bytes() == authority
    verify(certificate(second.file), certificate(ca.ca_file), x509.DNSName("localhost"), NOW)
    kept = second.file.read_bytes()
    ca.leaf("default", NAMES, NOW)
    assert second.file.read_bytes() == kept


def test_authority_that_was_removed_is_made_anew_with_its_leaves(ca: LocalCa, folder: Path) -> None:
    """An operator who removes both files gets a new authority, and no leaf of the old one stays."""
    leaf = ca.leaf("default", NAMES, NOW)
    old = certificate(ca.ca_file)
    ca.ca_file.unlink()
    (folder / "ca.key").unlink()
    ca.leaf("default", NAMES, NOW)
    new = certificate(ca.ca_file)
    assert new.public_key() != old.public_key()
    verify(certificate(leaf.file), new, x509.DNSName("localhost"), NOW)


def test_authority_of_which_only_the_key_is_left_keeps_it(ca: LocalCa) -> None:
    """Clients that trust the old ca.pem trust what is signed after it was lost, or after a crash between two writes."""
    leaf = ca.leaf("default", NAMES, NOW)
    old = certificate(ca.ca_file)
    ca.ca_file.unlink()
    ca.leaf("default", NAMES, NOW)
    verify(certificate(leaf.file), old, x509.DNSName("localhost"), NOW)
    verify(certificate(leaf.file), certificate(ca.ca_file), x509.DNSName("localhost"), NOW)


def test_leaf_does_not_outlive_its_authority(ca: LocalCa) -> None:
    """Near the authority's end a leaf is as short as what is left, and renewed in time for that."""
    ca.leaf("default", NAMES, NOW)
    end = certificate(ca.ca_file).not_valid_after_utc
    leaf = ca.leaf("default", NAMES, end - 30 * DAY)
    assert leaf.not_after == end
    assert leaf.renew_at == end - (30 * DAY + timedelta(hours=1)) / 3


def pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, password: bytes = b"") -> bytes:
    """Write a key."""
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


P256 = ec.generate_private_key(ec.SECP256R1())
MADE_HERE = "expected the one that was made here"
REFUSED: list[tuple[str, str, bytes | None, str]] = [
    ("certificate-damaged", "ca.pem", b"-----BEGIN", f"no certificate in PEM form; {MADE_HERE}"),
    ("key-gone", "ca.key", None, "no file; expected the private key of '{folder}/ca.pem'"),
    ("key-damaged", "ca.key", b"", f"no private key that can be read; {MADE_HERE}"),
    ("key-encrypted", "ca.key", pem(P256, b"x"), f"no private key that can be read; {MADE_HERE}"),
    ("key-of-another-kind", "ca.key", pem(ed25519.Ed25519PrivateKey.generate()), f"a key of another kind; {MADE_HERE}"),
    (
        "key-of-another-authority",
        "ca.key",
        pem(P256),
        "a key that does not belong to '{folder}/ca.pem'; expected the one that was made with it",
    ),
]


@pytest.mark.parametrize(("file", "content", "text"), [pytest.param(*rest, id=name) for name, *rest in REFUSED])
def test_authority_that_is_damaged_is_never_replaced(
    ca: LocalCa, folder: Path, file: str, content: bytes | None, text: str
) -> None:
    """Clients may trust the authority, so a damaged one is told; what it signed before is served until it is due."""
    first = ca.leaf("default", NAMES, NOW)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ProblemsError) as caught:
        ca.leaf("default", NAMES, first.renew_at)
    found = text.format(folder=folder)
    assert [str(it) for it in caught.value.problems] == [f"{folder / file}: data_dir: found {found} {NEW_AUTHORITY}"]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    if file == "ca.key":
        assert ca.leaf("default", NAMES, NOW) == first


def test_authority_that_expired_is_not_replaced_either(ca: LocalCa, folder: Path) -> None:
    """After ten years the operator decides, because clients must be told to trust another one."""
    ca.leaf("default", NAMES, NOW)
    with pytest.raises(ProblemsError) as caught:
        ca.leaf("default", NAMES, NOW + 3650 * DAY)
    assert [str(it) for it in caught.value.problems] == [
        f"{folder / 'ca.pem'}: data_dir: found a certificate that expired on 2036-11-20 11:00 UTC; "
        f"expected one that is valid now {NEW_AUTHORITY}"
    ]


def test_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """A data_dir in which nothing can be made is a problem with its reason."""
    (tmp_path / "var").write_text("a file where the folder should be")
    with pytest.raises(ProblemsError) as caught:
        LocalCa(tmp_path / "var" / "tls", "mail.example.com").leaf("default", NAMES, NOW)
    assert [str(it) for it in caught.value.problems] == [
        f"{tmp_path / 'var' / 'tls'}: data_dir: found a folder that cannot be used: Not a directory; "
        "expected a folder to keep the local certificate authority in"
    ]


def test_processes_that_start_at_once_share_one_authority_and_leaf(folder: Path) -> None:
    """Four processes that need a certificate at the same time end up with the same authority and the same leaf."""
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for maker in makers:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "ready\n"
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("go\n")
        maker.stdin.flush()
    digests = [maker.communicate(timeout=30)[0].split() for maker in makers]
    assert [maker.returncode for maker in makers] == [0, 0, 0, 0]
    on_disk = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("ca.pem", "default.pem")]
    assert digests == [on_disk] * 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localhost", "localhost"),
        ("SMTP.Mailgun.ORG.", "smtp.mailgun.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example.", "xn--bcher-kva.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("[127.0.0.1]", "127.0.0.1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("[IPv6:2001:DB8::1]", "2001:db8::1"),
        ("under_score", "under_score"),
    ],
)
def test_canonical_name_writes_every_form_the_same_way(name: str, expected: str) -> None:
    """However a host name or an address is written, it is found again by the form that certificates and SNI use."""
    assert canonical_name(name) == expected


def test_canonical_name_without_ascii_form_is_an_error() -> None:
    """A name that no client could ask for is not made into another one."""
    with pytest.raises(UnicodeError):
        canonical_name("ü" * 64 + ".example")
