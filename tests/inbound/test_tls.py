"""Certificates as real TLS clients see them, and what becomes of broken ones."""

import asyncio
import base64
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
import uvloop
from attrs import frozen
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

WAIT_SECONDS = 10
DAY = timedelta(days=1)
CHAIN = "expected a certificate chain in PEM form, the server's own certificate first"
KEY = "expected the private key of the first certificate, in PEM form and without a passphrase"
ECDSA, RSA = trustme.KeyType.ECDSA, trustme.KeyType.RSA
AUTHORITY = trustme.CA(key_type=ECDSA)

START = """
import sys
from pathlib import Path
from proxy.inbound.tls import Certificates
from proxy.settings import Tls

folder, certificate, key = map(Path, sys.argv[1:])
Certificates(Tls(certificate_file=certificate, key_file=key, names=("smtp.mailgun.org",)), folder, "mail.test")
Certificates(Tls(self_signed=True), folder, "mail.test")
print("cryptography" in sys.modules)
"""


@frozen
class Seen:
    """What a client saw of a handshake."""

    version: str
    cipher: str
    compression: str | None
    certificate: x509.Certificate
    session: ssl.SSLSession | None
    resumed: bool


@contextmanager
def serving(certificates: Certificates) -> Iterator[int]:
    """Shake hands with everybody on a loopback port, by the context of now; gives the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(WAIT_SECONDS)
    stopping = threading.Event()

    def serve() -> None:
        while True:
            client, _ = listener.accept()
            if stopping.is_set():
                client.close()
                return
            client.settimeout(WAIT_SECONDS)
            assert certificates.context is not None
            try:
                with certificates.context.wrap_socket(client, server_side=True) as secured:
                    secured.sendall(b"220 ready\r\n")
                    while secured.recv(1024):
                        pass
            except OSError:
                client.close()  # a client that broke off; the next one is served

    thread = threading.Thread(target=serve)
    thread.start()
    port = listener.getsockname()[1]
    try:
        yield port
    finally:
        stopping.set()
        socket.create_connection(("127.0.0.1", port), WAIT_SECONDS).close()
        thread.join(WAIT_SECONDS)
        listener.close()
        assert not thread.is_alive()


def client_context(trust: Path | None = None) -> ssl.SSLContext:
    """Make a client that trusts the test authority or the one in a file, and is as strict as Python 3.13."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if trust is None:
        AUTHORITY.configure_trust(context)
    else:
        context.load_verify_locations(trust)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def unchecked() -> ssl.SSLContext:
    """Make a client that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def shake(
    port: int, context: ssl.SSLContext, host: str | None = "mail.test", session: ssl.SSLSession | None = None
) -> Seen:
    """Shake hands as a client that asks for a host, or for none."""
    with (
        socket.create_connection(("127.0.0.1", port), WAIT_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host, session=session) as secured,
    ):
        assert secured.recv(1024) == b"220 ready\r\n"  # by now TLS 1.3 has sent its tickets, too
        der = secured.getpeercert(binary_form=True)
        version, cipher = secured.version(), secured.cipher()
        assert der is not None
        assert version is not None
        assert cipher is not None
        certificate = x509.load_der_x509_certificate(der)
        return Seen(
            version, cipher[0], secured.compression(), certificate, secured.session, bool(secured.session_reused)
        )


def write(folder: Path, issued: trustme.LeafCert) -> Tls:
    """Write a certificate and its key, and settings that name the files."""
    tls = Tls(certificate_file=folder / "tls.crt", key_file=folder / "tls.key")
    rewrite(tls, b"".join(blob.bytes() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes())
    return tls


def rewrite(tls: Tls, chain: bytes, key: bytes) -> None:
    """Replace what is in the files."""
    assert tls.certificate_file is not None
    assert tls.key_file is not None
    tls.certificate_file.write_bytes(chain)
    tls.key_file.write_bytes(key)


def issue(*names: str, key_type: trustme.KeyType = ECDSA, not_after: datetime | None = None) -> trustme.LeafCert:
    """Have the test authority issue a certificate."""
    return AUTHORITY.issue_cert(*names or ("mail.test",), key_type=key_type, not_after=not_after)


def leaf(issued: trustme.LeafCert) -> x509.Certificate:
    """Read the first certificate of a chain."""
    return x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())


def names_of(certificate: x509.Certificate) -> list[str]:
    """List the hosts and addresses a certificate is for."""
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in alternatives]


def texts(error: ProblemsError) -> list[str]:
    """Show problems as operators see them."""
    return [str(problem) for problem in error.problems]


class Clock:
    """Tell the time that a test sets."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


# What is shown


def test_certificates_without_settings_have_no_context(tmp_path: Path) -> None:
    """Without a certificate there is no TLS to offer, nothing to reload, and nothing is made."""
    certificates = Certificates(Tls(), tmp_path, "mail.test")
    assert certificates.context is None
    assert certificates.not_after is None
    assert certificates.ca_file is None
    assert certificates.reload() is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("key_type", [ECDSA, RSA])
def test_certificate_file_is_shown_to_everybody(
    tmp_path: Path, version: ssl.TLSVersion, key_type: trustme.KeyType
) -> None:
    """A client that trusts the authority of the file gets through, by TLS 1.2 or 1.3 and without compression."""
    issued = issue(key_type=key_type)
    certificates = Certificates(write(tmp_path, issued), tmp_path / "var", "mail.test")
    context = client_context()
    context.minimum_version = context.maximum_version = version
    with serving(certificates) as port:
        seen = shake(port, context)
    assert seen.certificate == leaf(issued)
    assert seen.version == version.name.replace("_", ".")
    assert seen.compression is None
    assert not (tmp_path / "var").exists()


def test_certificate_and_key_in_one_file_are_shown(tmp_path: Path) -> None:
    """A file with the key first and the whole chain after it will do for both."""
    issued = AUTHORITY.create_child_ca(key_type=ECDSA).issue_cert("mail.test", key_type=ECDSA)
    both = tmp_path / "both.pem"
    both.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    with serving(Certificates(Tls(certificate_file=both, key_file=both), tmp_path, "mail.test")) as port:
        assert shake(port, client_context()).certificate == leaf(issued)


def test_tls_1_1_is_refused(tmp_path: Path) -> None:
    """A client that knows no better than TLS 1.1 is told so by an alert, and the next client is served."""
    old = unchecked()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with serving(Certificates(write(tmp_path, issue()), tmp_path, "mail.test")) as port:
        with pytest.raises(ssl.SSLError) as caught:
            shake(port, old)
        assert caught.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"
        assert shake(port, client_context()).version == "TLSv1.3"


@pytest.mark.parametrize(
    ("key_type", "cipher"),
    [
        (ECDSA, "ECDHE-ECDSA-AES128-SHA256"),
        (ECDSA, "ECDHE-ECDSA-AES256-SHA"),
        (ECDSA, "ECDHE-ECDSA-AES128-CCM"),
        (RSA, "ECDHE-RSA-AES256-SHA384"),
        (RSA, "ECDHE-RSA-AES128-SHA"),
        (RSA, "AES128-GCM-SHA256"),
        (RSA, "AES256-SHA"),
        (RSA, "DHE-RSA-AES128-GCM-SHA256"),
    ],
)
def test_cipher_outside_the_profile_is_refused(tmp_path: Path, key_type: trustme.KeyType, cipher: str) -> None:
    """A TLS 1.2 client without a cipher that is both AEAD and forward secret finds nothing in common."""
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(cipher)
    certificates = Certificates(write(tmp_path, issue(key_type=key_type)), tmp_path, "mail.test")
    with serving(certificates) as port, pytest.raises(ssl.SSLError) as caught:
        shake(port, context)
    assert caught.value.reason in ("SSLV3_ALERT_HANDSHAKE_FAILURE", "SSL/TLS_ALERT_HANDSHAKE_FAILURE")


@pytest.mark.parametrize("key_type", [ECDSA, RSA])
@pytest.mark.parametrize("cipher", ["AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305"])
def test_cipher_of_the_profile_is_taken(tmp_path: Path, key_type: trustme.KeyType, cipher: str) -> None:
    """Each cipher of the profile is there for a TLS 1.2 client that knows no other."""
    name = f"ECDHE-{key_type.name}-{cipher}"
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(name)
    with serving(Certificates(write(tmp_path, issue(key_type=key_type)), tmp_path, "mail.test")) as port:
        assert shake(port, context).cipher == name


def test_renegotiation_is_refused(tmp_path: Path) -> None:
    """A TLS 1.2 client cannot have the server shake hands again and again on one connection."""
    openssl = require_tool("openssl")
    with serving(Certificates(write(tmp_path, issue()), tmp_path, "mail.test")) as port:
        client = subprocess.Popen(
            [openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert client.stdin is not None
        assert client.stdout is not None
        while client.stdout.readline() not in (b"220 ready\r\n", b""):
            pass
        client.stdin.write(b"R\n")
        client.stdin.flush()
        client.wait(WAIT_SECONDS)
        _, errors = client.communicate()
        assert b"RENEGOTIATING\n" in errors
        assert b"no renegotiation" in errors
        assert shake(port, client_context()).version == "TLSv1.3"


# Names


def test_name_that_apps_have_hard_coded_gets_a_local_certificate(tmp_path: Path) -> None:
    """Who asks for a host of tls.names gets a certificate of the local authority, everybody else the one from files."""
    issued = issue("mail.test", "other.test")
    names = ("smtp.mailgun.org", "IN.mailjet.com.", "bücher.example")
    files = write(tmp_path, issued)
    tls = Tls(certificate_file=files.certificate_file, key_file=files.key_file, names=names)
    certificates = Certificates(tls, tmp_path / "var", "mail.test")
    assert certificates.ca_file == tmp_path / "var" / "tls" / "ca.pem"
    with serving(certificates) as port:
        for context, host in (
            (client_context(certificates.ca_file), "smtp.mailgun.org"),
            (client_context(certificates.ca_file), "SMTP.MailGun.org"),
            (client_context(certificates.ca_file), "in.mailjet.com"),
            (client_context(certificates.ca_file), "bücher.example"),
            (unchecked(), "in.mailjet.com."),  # some clients send the dot, and compare without it
        ):
            shown = names_of(shake(port, context, host).certificate)
            assert shown == ["smtp.mailgun.org", "in.mailjet.com", "xn--bcher-kva.example"]
        for host in ("mail.test", "other.test"):
            assert shake(port, client_context(), host).certificate == leaf(issued)
        for other in ("mailgun.org", "x.smtp.mailgun.org", "127.0.0.1", None):
            assert shake(port, unchecked(), other).certificate == leaf(issued)


def test_self_signed_certificate_is_for_every_name_of_this_machine(tmp_path: Path) -> None:
    """Without a file, one certificate serves our own name, localhost, both loopback addresses and tls.names."""
    tls = Tls(self_signed=True, names=("smtp.sendgrid.net", "10.0.0.7", "localhost"))
    certificates = Certificates(tls, tmp_path, "Mail.example.com")
    assert certificates.ca_file is not None
    with serving(certificates) as port:
        local = client_context(certificates.ca_file)
        hosts = ("mail.example.com", "localhost", "127.0.0.1", "::1", "smtp.sendgrid.net", "10.0.0.7")
        for host in hosts:
            assert names_of(shake(port, local, host).certificate) == list(hosts)
        assert names_of(shake(port, unchecked(), None).certificate) == list(hosts)
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(port, local, "elsewhere.example.com")


def test_certificate_file_counts_before_self_signed(tmp_path: Path) -> None:
    """With both, the file is shown, and without names no authority is made."""
    issued = issue()
    files = write(tmp_path, issued)
    tls = Tls(certificate_file=files.certificate_file, key_file=files.key_file, self_signed=True)
    certificates = Certificates(tls, tmp_path / "var", "mail.test")
    assert certificates.ca_file is None
    with serving(certificates) as port:
        assert shake(port, client_context()).certificate == leaf(issued)
    assert not (tmp_path / "var").exists()


def test_name_without_ascii_form_is_told(tmp_path: Path) -> None:
    """A name that no client could ask for is a problem of the settings."""
    name = "ü" * 64
    with pytest.raises(ProblemsError) as caught:
        Certificates(Tls(self_signed=True, names=("ok.test", name)), tmp_path, "mail.test")
    assert texts(caught.value) == [
        f"settings: tls.names: found {name!r}; expected a host name that has an ASCII form (IDNA)"
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_client_that_asks_for_octets_does_no_harm(tmp_path: Path) -> None:
    """A host name that is not ASCII ends that handshake, and the next client is served."""
    openssl = require_tool("openssl")
    with serving(Certificates(write(tmp_path, issue()), tmp_path, "mail.test")) as port:
        client = subprocess.run(
            [openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "b\xfccher.example"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=WAIT_SECONDS,
            check=False,
        )
        assert client.returncode == 1
        assert b"alert" in client.stderr
        assert shake(port, client_context()).version == "TLSv1.3"


def test_valid_local_certificate_is_served_without_the_library_that_made_it(tmp_path: Path) -> None:
    """A start that finds its certificate, its own or from a file, does not load what would only make one."""
    tls = write(tmp_path, issue())
    command = [sys.executable, "-c", START, str(tmp_path), str(tls.certificate_file), str(tls.key_file)]
    loaded = [subprocess.run(command, capture_output=True, timeout=30, check=True).stdout for _ in range(2)]
    assert loaded == [b"True\n", b"False\n"]


# Reload


def test_reload_shows_new_content_and_only_that(tmp_path: Path) -> None:
    """What counts is the content: a file written again with the same is no change, whatever its times say."""
    first, second = issue(), issue()
    tls = write(tmp_path, first)
    certificates = Certificates(tls, tmp_path, "mail.test")
    context = certificates.context
    with serving(certificates) as port:
        assert certificates.reload() is False
        write(tmp_path, first)
        os.utime(tmp_path / "tls.crt", (1, 1))
        assert certificates.reload() is False
        assert shake(port, client_context()).certificate == leaf(first)
        write(tmp_path, second)
        assert certificates.reload() is True
        assert shake(port, client_context()).certificate == leaf(second)
        assert certificates.reload() is False
    assert certificates.context is context


def test_reload_after_a_mounted_secret_was_swapped_shows_the_new_one(tmp_path: Path) -> None:
    """Kubernetes turns a link in the path of unchanged file names; that is noticed, with another kind of key, too."""
    first, second = issue(), issue(key_type=RSA)
    for name, issued in (("..2026_1", first), ("..2026_2", second)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, issued)
    (tmp_path / "..data").symlink_to("..2026_1")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(Path("..data", name))
    tls = Tls(certificate_file=tmp_path / "tls.crt", key_file=tmp_path / "tls.key")
    certificates = Certificates(tls, tmp_path, "mail.test")
    with serving(certificates) as port:
        assert shake(port, client_context()).certificate == leaf(first)
        (tmp_path / "..data_tmp").symlink_to("..2026_2")
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")
        assert certificates.reload() is True
        assert shake(port, client_context()).certificate == leaf(second)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_reload_reaches_a_listener_that_kept_the_context(
    tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """A server that was started with the context shows what was loaded later; connections that are open live on."""
    first, second = issue(), issue()
    certificates = Certificates(write(tmp_path, first), tmp_path, "mail.test")

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, x509.Certificate]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client_context(), server_hostname="mail.test"
        )
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return reader, writer, x509.load_der_x509_certificate(der)

    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=certificates.context)
        port = server.sockets[0].getsockname()[1]
        reader, writer, shown = await connect(port)
        assert shown == leaf(first)
        write(tmp_path, second)
        assert certificates.reload() is True
        _, later, shown = await connect(port)
        assert shown == leaf(second)
        writer.write(b"still here\n")
        assert await reader.readline() == b"still here\n"
        for each in (writer, later):
            each.close()
        server.close()
        await server.wait_closed()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.wait_for(main(), WAIT_SECONDS))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_session_is_resumed_by_its_ticket_also_after_a_reload(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """A client that comes back is spared the full handshake, whether or not certificates were loaded in between."""
    first, second = issue(), issue()
    certificates = Certificates(write(tmp_path, first), tmp_path, "mail.test")
    context = client_context()
    context.minimum_version = context.maximum_version = version
    with serving(certificates) as port:
        fresh = shake(port, context)
        again = shake(port, context, session=fresh.session)
        write(tmp_path, second)
        assert certificates.reload() is True
        later = shake(port, context, session=again.session)
        unknown = shake(port, context)
    assert [seen.resumed for seen in (fresh, again, later, unknown)] == [False, True, True, False]
    assert unknown.certificate == leaf(second)


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
