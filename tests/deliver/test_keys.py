"""Keys that change while the proxy runs: new mail has the new ones, and links in mail that is out keep working."""

import re
from email import message_from_bytes
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from attrs import evolve
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from proxy.compose.dkim import dns_record
from proxy.compose.tokens import TokenKeys, load_or_create_secret, rotate_secret
from proxy.deliver.keys import Keys
from proxy.settings import load
from tests.deliver.plant import IMPATIENT, Plant
from tests.deliver.site import DeliverSite
from tests.operation.program import write_settings
from tests.support.dkim_oracle import dkimpy
from tests.support.upstream import Upstream

HEAD = b"MIME-Version: 1.0\r\nContent-Type: text/html\r\n"
BODY = b'<p><a href="https://shop.example/orders">x</a></p>\r\n'


def write(path: Path, key: RSAPrivateKey) -> bytes:
    """Put a key into a file, and give what is published for it."""
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return dns_record(key).encode()


def sent(plant: Plant, upstream: Upstream) -> bytes:
    """Send a message with a link, and give what arrives."""
    before = len(upstream.taken)
    plant.settled(plant.send(head=HEAD, body=BODY), "received", "delivered")
    return upstream.taken[before].content


def verified(content: bytes, record: bytes) -> bool:
    """Whether another program finds the signature good."""
    return bool(dkimpy.verify(content, dnsfunc=lambda *_args, **_names: record))


def link(content: bytes) -> str:
    """The path of the tracked link in a message."""
    html = next(each for each in message_from_bytes(content).walk() if each.get_content_type() == "text/html")
    payload = html.get_payload(decode=True)
    assert isinstance(payload, bytes)
    found = re.search(rb'href="([^"]+)"', payload)
    assert found is not None
    return urlsplit(found[1].decode()).path


def leads(plant: Plant, path: str) -> bool:
    """Whether a link leads to its target."""
    port = plant.proxy.event("listening")["public"]["port"]
    answer = DeliverSite(plant.proxy, plant.data).get(f"http://127.0.0.1:{port}{path}")
    return answer.status == 302 and answer.fields["location"] == "https://shop.example/orders"


def test_changed_keys_are_taken_into_force_and_broken_ones_are_not(tmp_path: Path) -> None:
    """DKIM and tracking links: rotated without a restart; a damaged file changes nothing, and is told."""
    key = tmp_path / "key.pem"
    first = write(key, generate_private_key(65537, 2048))
    with Upstream() as upstream:
        deliver = {
            "via": "smarthost",
            "smarthost": {"host": "127.0.0.1", "port": upstream.port, "tls": "none"},
            "dkim": [{"domain": "example.com", "selector": "s1", "key_file": str(key)}],
        }
        tracking = {"base_url": "https://click.example.com", "opens": False}
        with Plant(tmp_path, deliver, first=IMPATIENT, tracking=tracking) as plant:
            old = sent(plant, upstream)
            assert verified(old, first)
            second = write(key, generate_private_key(65537, 2048))
            plant.proxy.event("keys_reloaded")
            rotate_secret(plant.data / "tracking-keys")
            plant.proxy.event("keys_reloaded", 2)
            new = sent(plant, upstream)
            assert verified(new, second)
            assert not verified(new, first)
            assert link(new)[:6] != link(old)[:6]  # they begin with the kind and the number of the key
            assert [leads(plant, link(each)) for each in (old, new)] == [True, True]
            whole = key.read_bytes()
            key.write_bytes(whole[:200])
            assert "key.pem" in plant.proxy.event("keys_reload_failed")["problem"]
            assert verified(sent(plant, upstream), second)
            key.write_bytes(whole)
            plant.proxy.event("keys_reloaded", 3)
            (plant.data / "tracking-keys").unlink()
            assert "tracking-keys: found no file" in plant.proxy.event("keys_reload_failed", 2)["problem"]
            assert leads(plant, link(sent(plant, upstream)))
            assert not (plant.data / "tracking-keys").exists()
            assert len(plant.proxy.events("keys_reload_failed")) == 2
            assert plant.proxy.stop() == 0


def test_key_of_another_kind_may_follow(tmp_path: Path) -> None:
    """Ed25519 behind RSA, as a rotation may go."""
    path = tmp_path / "key.pem"
    write(path, generate_private_key(65537, 2048))
    dkim = [{"domain": "example.com", "selector": "s1", "key_file": str(path)}]
    settings = load(write_settings(tmp_path / "settings.yaml", {"deliver": {"dkim": dkim}}), {})
    keys = Keys(evolve(settings, data_dir=tmp_path))
    assert not keys.reload()
    path.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    before = keys.signer
    assert keys.reload()
    assert keys.signer is not before
    assert not keys.reload()


def test_key_that_is_rotated_during_the_start_is_not_overlooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in force and what was looked at last must not differ: nothing would tell them apart any more."""

    def rotated_at_that_moment(path: Path) -> TokenKeys:
        keys = load_or_create_secret(path)
        if keys.current == 1:
            rotate_secret(path)
        return keys

    monkeypatch.setattr("proxy.deliver.keys.load_or_create_secret", rotated_at_that_moment)
    settings = load(write_settings(tmp_path / "settings.yaml", {}), {})
    keys = Keys(evolve(settings, data_dir=tmp_path))
    keys.reload()
    assert keys.tokens.current == 2
