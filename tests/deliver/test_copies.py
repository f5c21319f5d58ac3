"""What goes over the wire for each recipient: own links, signed as it is sent, in the form that the host takes."""

from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from proxy.compose.dkim import dns_record
from tests.deliver.plant import IMPATIENT, Plant, eventually
from tests.support.dkim_oracle import dkimpy
from tests.support.upstream import EXTENSIONS, Taken, Upstream

HTML = '<html><body><p>Grüße <a href="https://shop.example/">x</a></p></body></html>\r\n'.encode()
KIND = b"MIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
TEXT = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
SEVEN_BIT = tuple(each for each in EXTENSIONS if each != "8BITMIME")
RECIPIENTS = ("ann@example.net", "bob@example.net")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A smarthost."""
    with Upstream() as server:
        yield server


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A key to sign with, and what is published for it."""
    key = generate_private_key(65537, 2048)
    path = tmp_path_factory.mktemp("key") / "key.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path, dns_record(key).encode()


@pytest.fixture(scope="module")
def plant(upstream: Upstream, record: tuple[Path, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """A proxy in front of it that signs and tracks."""
    deliver = {
        "via": "smarthost",
        "smarthost": {"host": "127.0.0.1", "port": upstream.port, "tls": "none"},
        "dkim": [{"domain": "example.com", "selector": "s1", "key_file": str(record[0])}],
    }
    folder = tmp_path_factory.mktemp("copies")
    tracking = {"base_url": "https://click.example.com"}
    with Plant(folder, deliver, first=IMPATIENT, tracking=tracking) as started:
        yield started


def sent(plant: Plant, upstream: Upstream, head: bytes, body: bytes, *recipients: str) -> list[Taken]:
    """Send a message, wait until nobody waits for it any more, and give what the smarthost took."""
    upstream.hang_up()
    before = len(upstream.taken)
    message_id = plant.send(*recipients, head=head, body=body)
    eventually(lambda: all(each.state.value != "pending" for each in plant.history(message_id).item.recipients))
    return [each for each in upstream.taken[before:] if "<>" not in each.mail]


def verified(content: bytes, record: bytes) -> bool:
    """Whether another program finds the signature good."""
    return bool(dkimpy.verify(content, dnsfunc=lambda *_args, **_names: record))


def part(message: Message, kind: str) -> bytes:
    """The decoded octets of a part."""
    payload = next(each for each in message.walk() if each.get_content_type() == kind).get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload


def test_each_recipients_copy_has_own_links_and_a_good_signature(
    plant: Plant, upstream: Upstream, record: tuple[Path, bytes]
) -> None:
    """Tokens and signature are put in at the attempt, recipient by recipient; nothing else differs."""
    upstream.script()
    found = sent(plant, upstream, KIND, HTML, *RECIPIENTS)
    assert sorted(each.recipients[0] for each in found) == [f"RCPT TO:<{each}>" for each in RECIPIENTS]
    assert all(verified(each.content, record[1]) for each in found)
    first, second = (part(message_from_bytes(each.content), "text/html") for each in found)
    assert first != second
    assert first.count(b"https://click.example.com/") == second.count(b"https://click.example.com/") == 2
    assert not verified(found[0].content.replace(b"/c/", b"/C/", 1), record[1])


def test_untracked_message_is_one_copy_in_one_transaction(
    plant: Plant, upstream: Upstream, record: tuple[Path, bytes]
) -> None:
    """Where nothing differs, the recipients share it, signature and all."""
    upstream.script()
    (only,) = sent(plant, upstream, TEXT, "Grüße\r\n".encode(), *RECIPIENTS)
    assert only.recipients == [f"RCPT TO:<{each}>" for each in RECIPIENTS]
    assert only.mail.endswith(" BODY=8BITMIME")
    assert verified(only.content, record[1])


@pytest.mark.parametrize(("head", "body", "copies"), [(KIND, HTML, 2), (TEXT, "Grüße\r\n".encode(), 1)])
def test_host_without_eight_bit_gets_a_signed_seven_bit_message(
    plant: Plant, upstream: Upstream, record: tuple[Path, bytes], head: bytes, body: bytes, copies: int
) -> None:
    """RFC 6152, 3: encoded first and signed behind that, so the signature is over what is sent."""
    upstream.script({}, SEVEN_BIT)
    found = sent(plant, upstream, head, body, *RECIPIENTS)
    assert len(found) == copies
    for each in found:
        assert each.octets.isascii()
        assert "BODY=" not in each.mail
        assert verified(each.content, record[1])
        text = part(message_from_bytes(each.content), "text/html" if head is KIND else "text/plain")
        assert "Grüße".encode() in text


def test_notice_about_an_eight_bit_message_goes_to_such_a_host(plant: Plant, upstream: Upstream) -> None:
    """It gives the message back, which is encoded inside it; the notice itself is ASCII from its first octet."""
    upstream.hang_up()
    upstream.script({"RCPT": lambda line: "550 5.7.1 no" if "ann" in line else "250 2.1.5 fine"}, SEVEN_BIT)
    before = len(upstream.taken)
    message_id = plant.send("ann@example.net", head=TEXT, body="Grüße\r\n".encode())
    eventually(lambda: not plant.pending(), "all final")
    (notice,) = [each for each in upstream.taken[before:] if each.recipients]
    assert notice.octets.isascii()
    assert notice.mail.startswith("MAIL FROM:<>")
    assert "Grüße".encode() in part(message_from_bytes(notice.content).get_payload(2), "text/plain")  # type: ignore[arg-type]
    assert plant.kinds(message_id) == ["received", "bounced", "bounce_told"]


def test_signed_message_bounces_rather_than_being_broken(plant: Plant, upstream: Upstream) -> None:
    """What an app has signed by S/MIME or PGP, and in eight bits, such a host cannot take at all."""
    upstream.script({}, SEVEN_BIT)
    head = (
        b'MIME-Version: 1.0\r\nContent-Type: multipart/signed; boundary="b"; protocol="application/pgp-signature"\r\n'
    )
    body = "--b\r\n\r\nGrüße\r\n--b\r\nContent-Type: application/pgp-signature\r\n\r\nx\r\n--b--\r\n".encode()
    before = len(upstream.taken)
    message_id = plant.send(head=head, body=body, reverse_path="")
    plant.settled(message_id, "received", "bounced")
    assert "8BITMIME" in plant.recipient(message_id).reply
    assert len(upstream.taken) == before
