"""Certificates as real TLS clients see them, and what becomes of broken ones."""

import asyncio
import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
import uvloop
from cryptography import x509

from proxy.inbound.tls import Certificates
from proxy.problems import ProblemsError
from proxy.settings import Tls
from tests.conftest import require_tool
from tests.inbound.tls_support import (
    AUTHORITY,
    ECDSA,
    RSA,
    START,
    WAIT_SECONDS,
    client_context,
    issue,
    leaf,
    names_of,
    serving,
    shake,
    texts,
    unchecked,
    write,
)

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
