"""Certificates that are wrong, broken or at their end: what is told, and what is served meanwhile."""

import base64
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from proxy.inbound.tls import Certificates
from proxy.problems import ProblemsError
from proxy.settings import Tls
from tests.conftest import require_tool
from tests.inbound.tls_support import (
    AUTHORITY,
    CHAIN,
    DAY,
    KEY,
    RSA,
    Clock,
    client_context,
    issue,
    leaf,
    rewrite,
    serving,
    shake,
    texts,
    unchecked,
    write,
)

# What is wrong


def self_made(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, not_before: datetime, not_after: datetime
) -> tuple[bytes, bytes]:
    """Make a certificate that vouches for itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.test")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


GOOD, OTHER, OTHER_KIND = issue(), issue(), issue(key_type=RSA)
CERTIFICATE, PRIVATE_KEY = GOOD.cert_chain_pems[0].bytes(), GOOD.private_key_pem.bytes()
DER = ssl.PEM_cert_to_DER_cert(CERTIFICATE.decode())
NOW = datetime.now(UTC)
P256 = ec.generate_private_key(ec.SECP256R1())
RSA_1024 = rsa.generate_private_key(65537, 1024)  # noqa: S505 - too weak, which is what is tested


def encrypted(private_format: PrivateFormat) -> bytes:
    """Write the good key under a passphrase."""
    key = load_pem_private_key(PRIVATE_KEY, None)
    return key.private_bytes(Encoding.PEM, private_format, BestAvailableEncryption(b"passphrase"))


MARKS = b"-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n"
BROKEN = [
    pytest.param(b"", b"", [
        "{crt}: tls.certificate_file: found no certificate in PEM form; " + CHAIN,
        "{key}: tls.key_file: found no private key in PEM form; " + KEY,
    ], id="both-empty"),
    pytest.param(DER, PRIVATE_KEY, [
        "{crt}: tls.certificate_file: found no certificate in PEM form; " + CHAIN,
    ], id="certificate-in-der"),
    pytest.param(b"  " + CERTIFICATE, PRIVATE_KEY, [
        "{crt}: tls.certificate_file: found no certificate in PEM form; " + CHAIN,
    ], id="certificate-indented"),
    pytest.param(MARKS % b"MIIAAAAA", PRIVATE_KEY, [
        "{crt}: tls.certificate_file: found a damaged certificate (number 1 in the file); " + CHAIN,
    ], id="certificate-damaged"),
    pytest.param(MARKS % b"", PRIVATE_KEY, [
        "{crt}: tls.certificate_file: found a damaged certificate (number 1 in the file); " + CHAIN,
    ], id="certificate-hollow"),
    pytest.param(MARKS % base64.b64encode(b"\x30\x80" + DER[4:] + b"\0\0"), PRIVATE_KEY, [
        "{crt}: tls.certificate_file: found a damaged certificate (number 1 in the file); " + CHAIN,
    ], id="certificate-with-indefinite-length"),
    pytest.param(CERTIFICATE.replace(b"M", b"!"), PRIVATE_KEY, [
        "{crt}: tls.certificate_file: found a damaged certificate (number 1 in the file); " + CHAIN,
    ], id="certificate-not-base64"),
    pytest.param(CERTIFICATE + CERTIFICATE[:-26], PRIVATE_KEY, [
        "{crt}: tls.certificate_file: found a damaged certificate (number 2 in the file); " + CHAIN,
    ], id="certificate-cut"),
    pytest.param(CERTIFICATE, CERTIFICATE, [
        "{key}: tls.key_file: found no private key in PEM form; " + KEY,
    ], id="certificate-as-key"),
    pytest.param(CERTIFICATE, PRIVATE_KEY[:-60], [
        "{key}: tls.key_file: found a damaged private key; " + KEY,
    ], id="key-cut"),
    pytest.param(CERTIFICATE, encrypted(PrivateFormat.PKCS8), [
        "{key}: tls.key_file: found an encrypted private key; " + KEY,
    ], id="key-encrypted"),
    pytest.param(CERTIFICATE, encrypted(PrivateFormat.TraditionalOpenSSL), [
        "{key}: tls.key_file: found an encrypted private key; " + KEY,
    ], id="key-encrypted-the-old-way"),
    pytest.param(CERTIFICATE, OTHER.private_key_pem.bytes(), [
        "{key}: tls.key_file: found a key that does not belong to the first certificate in '{crt}'; " + KEY,
    ], id="key-of-another-certificate"),
    pytest.param(CERTIFICATE, OTHER_KIND.private_key_pem.bytes(), [
        "{key}: tls.key_file: found a key that does not belong to the first certificate in '{crt}'; " + KEY,
    ], id="key-of-another-kind"),
    pytest.param(AUTHORITY.cert_pem.bytes() + CERTIFICATE, PRIVATE_KEY, [
        "{key}: tls.key_file: found a key that does not belong to the first certificate in '{crt}'; " + KEY,
    ], id="chain-in-wrong-order"),
    pytest.param(*self_made(P256, datetime(2024, 1, 1), datetime(2026, 3, 4, 5, 6)), [
        "{crt}: tls.certificate_file: found a certificate that expired on 2026-03-04 05:06 UTC; "
        "expected a certificate that is valid now",
    ], id="expired"),
    pytest.param(*self_made(RSA_1024, NOW - DAY, NOW + DAY), [
        "{crt}: tls.certificate_file: found a certificate that is too easily forged (ee key too small); "
        "expected RSA keys of 2,048 bits or more, or ECDSA keys, and signatures with SHA-256 or better",
    ], id="weak"),
]  # fmt: skip


@pytest.mark.parametrize(("chain", "key", "expected"), BROKEN)
def test_broken_files_are_told_at_start_with_what_is_wrong(
    tmp_path: Path, chain: bytes, key: bytes, expected: list[str]
) -> None:
    """A certificate or key that cannot be used is named with its setting, what was found and what is needed."""
    tls = write(tmp_path, GOOD)
    rewrite(tls, chain, key)
    with pytest.raises(ProblemsError) as caught:
        Certificates(tls, tmp_path, "mail.test")
    assert texts(caught.value) == [text.format(crt=tls.certificate_file, key=tls.key_file) for text in expected]


def test_missing_files_are_told_both_at_once(tmp_path: Path) -> None:
    """One start shows every file that cannot be read, and why."""
    tls = Tls(certificate_file=tmp_path / "missing.crt", key_file=tmp_path)
    with pytest.raises(ProblemsError) as caught:
        Certificates(tls, tmp_path, "mail.test")
    assert texts(caught.value) == [
        f"{tmp_path}/missing.crt: tls.certificate_file: found a file that cannot be read: No such file or directory; "
        + CHAIN,
        f"{tmp_path}: tls.key_file: found a file that cannot be read: Is a directory; " + KEY,
    ]


def test_missing_file_for_both_is_told_once(tmp_path: Path) -> None:
    """Certificate and key in one file: that it is not there is one problem."""
    tls = Tls(certificate_file=tmp_path / "missing.pem", key_file=tmp_path / "missing.pem")
    with pytest.raises(ProblemsError) as caught:
        Certificates(tls, tmp_path, "mail.test")
    assert texts(caught.value) == [
        f"{tmp_path}/missing.pem: tls.certificate_file: found a file that cannot be read: No such file or directory; "
        + CHAIN,
    ]


def test_problems_of_file_and_local_authority_are_told_at_once(tmp_path: Path) -> None:
    """A broken file does not hide that the local authority cannot be used either."""
    (tmp_path / "tls").write_text("a file where the folder should be")
    tls = Tls(certificate_file=tmp_path / "missing.crt", key_file=tmp_path / "missing.key", names=("a.test",))
    with pytest.raises(ProblemsError) as caught:
        Certificates(tls, tmp_path, "mail.test")
    assert [problem.key for problem in caught.value.problems] == ["tls.certificate_file", "tls.key_file", "data_dir"]


@pytest.mark.parametrize(("chain", "key", "expected"), BROKEN)
def test_reload_of_broken_files_keeps_what_was_served(
    tmp_path: Path, chain: bytes, key: bytes, expected: list[str]
) -> None:
    """Broken content is told once and never served; the next good content is served again."""
    tls = write(tmp_path, GOOD)
    certificates = Certificates(tls, tmp_path, "mail.test")
    not_after = certificates.not_after
    with serving(certificates) as port:
        rewrite(tls, chain, key)
        with pytest.raises(ProblemsError) as caught:
            certificates.reload()
        assert texts(caught.value) == [text.format(crt=tls.certificate_file, key=tls.key_file) for text in expected]
        assert certificates.reload() is False
        assert shake(port, client_context()).certificate == leaf(GOOD)
        assert certificates.not_after == not_after
        write(tmp_path, OTHER)
        assert certificates.reload() is True
        assert shake(port, client_context()).certificate == leaf(OTHER)


def test_reload_after_the_files_are_gone_keeps_what_was_served(tmp_path: Path) -> None:
    """A volume that is taken away for a moment costs nobody TLS."""
    tls = write(tmp_path, GOOD)
    certificates = Certificates(tls, tmp_path, "mail.test")
    with serving(certificates) as port:
        (tmp_path / "tls.crt").unlink()
        with pytest.raises(ProblemsError):
            certificates.reload()
        assert certificates.reload() is False
        assert shake(port, client_context()).certificate == leaf(GOOD)
        write(tmp_path, GOOD)
        assert certificates.reload() is True


# When it ends


@pytest.mark.parametrize(
    "not_after",
    [
        datetime(2027, 2, 28, 23, 59, 59, tzinfo=UTC),
        datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2050, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ],
    ids=str,
)
def test_not_after_is_what_the_certificate_says(tmp_path: Path, not_after: datetime) -> None:
    """The end is read from the file in both forms that dates have, before and after 2050."""
    tls = write(tmp_path, GOOD)
    rewrite(tls, *self_made(P256, datetime(2026, 1, 1), not_after))
    clock = Clock(datetime(2026, 11, 23, tzinfo=UTC))
    assert Certificates(tls, tmp_path, "mail.test", clock).not_after == not_after


def test_not_after_of_a_certificate_of_version_1_is_read_too(tmp_path: Path) -> None:
    """Certificates made by hand long ago lack the version, and every field is one place further on."""
    openssl = require_tool("openssl")
    key, made = tmp_path / "v1.key", tmp_path / "v1.crt"
    for arguments in (
        "req -new -newkey rsa:2048 -nodes -subj /CN=v1 -keyout v1.key -out v1.csr",
        "x509 -req -in v1.csr -signkey v1.key -days 30 -out v1.crt",
    ):
        subprocess.run([openssl, *arguments.split()], cwd=tmp_path, capture_output=True, timeout=30, check=True)
    certificates = Certificates(Tls(certificate_file=made, key_file=key), tmp_path, "mail.test")
    assert certificates.not_after == x509.load_pem_x509_certificate(made.read_bytes()).not_valid_after_utc


def test_not_after_is_the_earliest_of_all_that_is_served(tmp_path: Path) -> None:
    """An intermediate that ends before the certificate counts, and so does the local certificate of tls.names."""
    early, late = datetime(2099, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
    tls = write(tmp_path, issue(not_after=late))
    certificates = Certificates(tls, tmp_path, "mail.test")
    assert certificates.not_after == late
    chain = issue(not_after=late).cert_chain_pems[0].bytes()
    both = issue(not_after=late)
    rewrite(
        tls,
        both.cert_chain_pems[0].bytes() + issue(not_after=early).cert_chain_pems[0].bytes() + chain,
        both.private_key_pem.bytes(),
    )
    assert certificates.reload() is True
    assert certificates.not_after == early
    clock = Clock(datetime(2026, 11, 23, 12, tzinfo=UTC))
    named = Tls(certificate_file=tls.certificate_file, key_file=tls.key_file, names=("smtp.mailgun.org",))
    not_after = Certificates(named, tmp_path, "mail.test", clock).not_after
    assert not_after == datetime(2026, 11, 23, 11, tzinfo=UTC) + 397 * DAY


def test_local_certificate_is_renewed_when_a_third_of_its_life_is_left(tmp_path: Path) -> None:
    """A reload replaces it in time, and clients that trust the local authority notice nothing."""
    clock = Clock(NOW - 300 * DAY)
    certificates = Certificates(Tls(self_signed=True), tmp_path, "mail.test", clock)
    assert certificates.ca_file is not None
    assert certificates.not_after is not None
    with serving(certificates) as port:
        first = shake(port, client_context(certificates.ca_file), "localhost").certificate
        assert certificates.not_after == first.not_valid_after_utc
        clock.now = certificates.not_after - 397 * DAY / 3 - timedelta(seconds=1)
        assert certificates.reload() is False
        clock.now = NOW
        assert certificates.reload() is True
        second = shake(port, client_context(certificates.ca_file), "localhost").certificate
        assert second.not_valid_before_utc > first.not_valid_before_utc
        assert certificates.not_after == second.not_valid_after_utc
        assert certificates.reload() is False


def test_local_certificate_renewed_by_one_process_is_shown_by_the_others(tmp_path: Path) -> None:
    """Workers that share a data_dir share its certificate, whichever of them renews it."""
    clock = Clock(NOW - 300 * DAY)
    one, other = (Certificates(Tls(self_signed=True), tmp_path, "mail.test", clock) for _ in range(2))
    clock.now = NOW
    assert one.reload() is True
    assert other.reload() is True
    with serving(one) as port, serving(other) as other_port:
        shown = [shake(each, unchecked(), "localhost").certificate for each in (port, other_port)]
    assert shown[0] == shown[1]


def test_local_certificate_that_cannot_be_renewed_is_served_on(tmp_path: Path) -> None:
    """A failed renewal is told, and tried again after an hour; until then everything goes on as before."""
    clock = Clock(NOW - 300 * DAY)
    files = write(tmp_path, GOOD)
    tls = Tls(certificate_file=files.certificate_file, key_file=files.key_file, names=("smtp.mailgun.org",))
    certificates = Certificates(tls, tmp_path, "mail.test", clock)
    key = tmp_path / "tls" / "ca.key"
    kept = key.read_bytes()
    key.unlink()
    with serving(certificates) as port:
        local = client_context(certificates.ca_file)
        first = shake(port, local, "smtp.mailgun.org").certificate
        clock.now = NOW - timedelta(hours=1)
        write(tmp_path, OTHER)
        with pytest.raises(ProblemsError) as caught:
            certificates.reload()
        assert texts(caught.value) == [
            f"{key}: data_dir: found no file; expected the private key of '{tmp_path}/tls/ca.pem' "
            "(without ca.pem and ca.key a new authority is made, which clients must then trust)"
        ]
        assert shake(port, client_context()).certificate == leaf(OTHER)  # the file was loaded nevertheless
        key.write_bytes(kept)
        clock.now = NOW - timedelta(seconds=1)
        assert certificates.reload() is False
        assert shake(port, local, "smtp.mailgun.org").certificate == first
        clock.now = NOW
        assert certificates.reload() is True
        assert shake(port, local, "smtp.mailgun.org").certificate != first
