"""A self-signed certificate for 127.0.0.1, for a run."""

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID


@frozen
class Certificate:
    """A certificate that is its own authority, and its key, as files in PEM form."""

    certificate_file: Path
    key_file: Path

    def client_context(self) -> ssl.SSLContext:
        """A context that checks a server by this certificate."""
        return ssl.create_default_context(cafile=str(self.certificate_file))

    def server_context(self) -> ssl.SSLContext:
        """A context of a server that shows this certificate."""
        return server_context(self.certificate_file, self.key_file)


def server_context(certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    """A context of a server with that certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate_file, key_file)
    return context


def make(folder: Path) -> Certificate:
    """Make a certificate with an RSA key of 2,048 bits, still the most common kind, valid for some days."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench.example.com")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    made.certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made
