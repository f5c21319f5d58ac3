"""What the tests of TLS share: certificates of every kind, and clients that look at what is shown."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import trustme
from attrs import frozen
from cryptography import x509

from proxy.inbound.tls import Certificates
from proxy.problems import ProblemsError
from proxy.settings import Tls

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
