"""``cmail-proxy dkim``: what to publish, for a mail administrator to paste into a zone."""

import datetime
import re
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from proxy.compose.dkim import Signer, SigningKey, load_key
from tests.operation.program import run
from tests.support.dkim_oracle import dkimpy


def written(path: Path, key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> Path:
    """Write a key as PEM."""
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings with two keys."""
    written(tmp_path / "rsa.pem", rsa.generate_private_key(65537, 2048))
    written(tmp_path / "ed.pem", ed25519.Ed25519PrivateKey.generate())
    path = tmp_path / "settings.yaml"
    path.write_text(
        "tls: {self_signed: true}\ntokens: [{name: shop, token: try-me}]\ndeliver:\n  dkim:\n"
        "    - {domain: example.com, selector: s1, key_file: rsa.pem}\n"
        "    - {domain: example.net, selector: ed, key_file: ed.pem}\n"
    )
    return path


def records(shown: str) -> dict[str, str]:
    """The records by name, their strings put together as DNS does."""
    found = re.findall(r'^(\S+) IN TXT ((?:"[^"]{1,255}" ?)+)$', shown, re.MULTILINE)
    return {name: "".join(re.findall(r'"([^"]*)"', strings)) for name, strings in found}


def test_records_verify_what_the_keys_sign(config: Path) -> None:
    """A receiver that looks up what was printed accepts a message signed with the key."""
    done = run("dkim", "--config", config)
    assert (done.returncode, done.stderr) == (0, b"")
    published = records(done.stdout.decode())
    assert set(published) == {"s1._domainkey.example.com.", "ed._domainkey.example.net."}
    assert published["ed._domainkey.example.net."].startswith("v=DKIM1; k=ed25519; p=")
    signer = Signer([SigningKey("example.com", "s1", load_key(config.parent / "rsa.pem"))])

    message = b"From: a@example.com\r\nSubject: hi\r\n\r\nbody\r\n"
    signed = signer.sign(message, datetime.datetime.now(datetime.UTC)) + message
    assert dkimpy.verify(signed, dnsfunc=lambda name, timeout=5: published[name.decode()].encode())


def test_without_keys_it_says_what_to_add(tmp_path: Path) -> None:
    """Nothing to show is no success."""
    path = tmp_path / "settings.yaml"
    path.write_text("tls: {self_signed: true}\n")
    done = run("dkim", "--config", path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == "cmail-proxy: deliver.dkim names no key; add domain, selector and key_file\n"


def test_key_that_cannot_be_used_is_told_here_and_by_check(config: Path) -> None:
    """A key that is none is found before the first message."""
    (config.parent / "rsa.pem").write_text("nonsense\n")
    for command in ("dkim", "check"):
        done: subprocess.CompletedProcess[bytes] = run(command, "--config", config)
        assert done.returncode == 1
        told = f"error: {config.parent / 'rsa.pem'}: deliver.dkim[0].key_file: found no private key in PEM form; "
        assert told in done.stderr.decode()


def test_short_key_is_warned_of_with_its_place(config: Path) -> None:
    """A key that works and is weak stops nothing; the warning says which one it is."""
    written(config.parent / "rsa.pem", rsa.generate_private_key(65537, 1024))  # noqa: S505 - the weakness is what is told
    done = run("check", "--config", config)
    assert done.returncode == 0
    told = f"warning: {config}:5: deliver.dkim[0].key_file: an RSA key of 1024 bits is short; RFC 8301 asks for 2048\n"
    assert told in done.stderr.decode()
