"""
DKIM signatures, read by dkimpy: what we sign, others verify, and what is changed on the way, they do not.

Longer than other modules: all ways of signing share the same keys, zone and verifier.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from proxy.compose import dkim as ours
from proxy.compose.dkim import PrivateKey, Signer, SigningKey, author_domain, dns_record, domain_name, load_key
from proxy.mail.fields import HeaderSection
from proxy.problems import ProblemsError
from tests.support.dkim_oracle import dkimpy

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RSA = rsa.generate_private_key(65537, 2048)
ED25519 = Ed25519PrivateKey.from_private_bytes(b64decode("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="))
RSA_KEY = SigningKey("example.com", "r1", RSA)
ED25519_KEY = SigningKey("example.com", "e1", ED25519)

PLAIN = (
    b"From: Jane Smith <jane@example.com>\r\n"
    b"To: joe@example.org\r\n"
    b"Subject: Is dinner ready?\r\n"
    b"Date: Fri, 11 Jul 2003 21:00:37 -0700\r\n"
    b"Message-ID: <1@example.com>\r\n"
    b"\r\n"
    b"Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n"
)

# RFC 8463, appendix A.3, with the Ed25519 signature of A.2 alone.
RFC_8463 = (
    b"DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n"
    b" d=football.example.com; i=@football.example.com;\r\n"
    b" q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n"
    b" subject : date : message-id : from : subject : date;\r\n"
    b" bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n"
    b" b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus\r\n"
    b" Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==\r\n"
    b"From: Joe SixPack <joe@football.example.com>\r\n"
    b"To: Suzie Q <suzie@shopping.example.net>\r\n"
    b"Subject: Is dinner ready?\r\n"
    b"Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n"
    b"Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n"
    b"\r\n"
    b"Hi.\r\n\r\nWe lost the game. Are you hungry yet?\r\n\r\nJoe.\r\n"
)


def _zone(keys: Sequence[SigningKey]) -> Callable[..., bytes | None]:
    records = {f"{key.dns_name}.".encode(): dns_record(key.key).encode() for key in keys}
    return lambda name, timeout=5: records.get(name)


def verified(message: bytes, *keys: SigningKey, index: int = 0) -> bool:
    """Ask dkimpy whether signature *index* of a message holds."""
    try:
        return bool(dkimpy.DKIM(message).verify(idx=index, dnsfunc=_zone(keys)))
    except dkimpy.DKIMException:
        return False


def signed(content: bytes, *keys: SigningKey) -> bytes:
    """Sign a message, and put the signatures in front of it."""
    fields = Signer(keys).sign(content, NOW)
    assert fields
    return fields + content


@pytest.mark.parametrize("key", [RSA_KEY, ED25519_KEY], ids=["rsa", "ed25519"])
def test_signature_is_verified_by_another_program(key: SigningKey) -> None:
    """Both algorithms hold for a verifier that is not ours, with the record we say to publish."""
    assert verified(signed(PLAIN, key), key)


def test_example_of_the_rfc_is_verified_by_the_oracle() -> None:
    """The oracle agrees with RFC 8463, so what it says about ours can be trusted."""
    key = SigningKey("football.example.com", "brisbane", ED25519)
    assert dns_record(ED25519) == "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    assert verified(RFC_8463, key)
    assert not verified(RFC_8463.replace(b"game", b"war"), key)


def test_digest_of_the_body_is_that_of_the_rfc() -> None:
    """The body of RFC 8463's example has the digest printed there."""
    content = RFC_8463.partition(b"\r\nFrom:")[2]
    fields = Signer([SigningKey("football.example.com", "brisbane", ED25519)]).sign(b"From:" + content, NOW)
    assert b"bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;" in fields


def test_field_is_folded_and_says_what_was_done() -> None:
    """The tags are those of RFC 6376, time is the given one, no line is over 78, and there is no length tag."""
    fields = Signer([RSA_KEY]).sign(PLAIN, NOW)
    assert fields.startswith(
        b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;\r\n\td=example.com;\r\n\ts=r1; t=1767323045;\r\n\th="
    )
    assert fields.endswith(b"\r\n")
    assert not fields.endswith(b"\r\n\r\n")
    assert max(map(len, fields.split(b"\r\n"))) <= 78
    tags = dkimpy.parse_tag_value(fields.partition(b":")[2])
    assert sorted(tags) == sorted([b"v", b"a", b"c", b"d", b"s", b"t", b"h", b"bh", b"b"])


def _covered(content: bytes) -> list[str]:
    fields = Signer([ED25519_KEY]).sign(content, NOW).decode()
    tags = "".join(fields.split()).split(";")
    return next(tag[2:] for tag in tags if tag.startswith("h=")).lower().split(":")


def test_fields_that_say_who_and_what_are_oversigned() -> None:
    """From and its like are named once more than they occur, whether they occur or not; others only if they do."""
    names = _covered(PLAIN)
    for name, count in {"from": 2, "to": 2, "subject": 2, "cc": 1, "reply-to": 1, "date": 2, "message-id": 2}.items():
        assert names.count(name) == count, name
    assert "mime-version" not in names


def test_usual_fields_are_covered_and_transit_fields_are_not() -> None:
    """What a reader or a mailbox provider acts on is covered; what hops add and remove is not."""
    usual = ["MIME-Version", "Content-Type", "Content-Transfer-Encoding", "List-Unsubscribe", "List-Unsubscribe-Post"]
    usual += ["In-Reply-To", "References", "Sender", "List-ID", "Auto-Submitted"]
    transit = [
        "Received",
        "Return-Path",
        "Bcc",
        "X-Spam-Status",
        "Authentication-Results",
        "DKIM-Signature",
        "Comments",
    ]
    content = "".join(f"{name}: x\r\n" for name in usual + transit).encode() + PLAIN
    names = _covered(content)
    assert {name.lower() for name in usual} <= set(names)
    assert not {name.lower() for name in transit} & set(names)
    assert verified(signed(content, ED25519_KEY), ED25519_KEY, index=0)


@pytest.mark.parametrize("key", [RSA_KEY, ED25519_KEY], ids=["rsa", "ed25519"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"game", b"gam3"),
        (b"Joe.\r\n", b"Joe.\r\n\r\nP.S. more\r\n"),
        (b"Subject: Is", b"Subject: Was"),
        (b"From: Jane", b"From: June"),
        (b"To: joe@example.org\r\n", b""),
        (b"\r\nFrom:", b"\r\nFrom: other@example.com\r\nFrom:"),
        (b"\r\nTo:", b"\r\nSubject: another\r\nTo:"),
        (b"\r\n\r\nHi", b"\r\nReply-To: thief@example.net\r\n\r\nHi"),
        (b"\r\n\r\nHi", b"\r\nCc: thief@example.net\r\n\r\nHi"),
        (b"t=1767323045", b"t=1767323046"),
    ],
)
def test_change_on_the_way_breaks_the_signature(key: SigningKey, before: bytes, after: bytes) -> None:
    """A changed, added or removed field, another body, more body and another time are all noticed."""
    message = signed(PLAIN, key)
    assert before in message
    changed = message.replace(before, after, 1)
    assert not verified(changed, key)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"Subject: Is dinner ready?", b"SUBJECT:  Is\r\n\t dinner   ready? "),
        (b"game.  Are", b"game.\tAre"),
        (b"Joe.\r\n", b"Joe. \t\r\n\r\n\r\n"),
        (b"DKIM-Signature:", b"Received: from x by y\r\nDKIM-Signature:"),
    ],
)
def test_lawful_change_on_the_way_keeps_the_signature(before: bytes, after: bytes) -> None:
    """Relaxed: folding, case of names, runs of blanks and blank lines at the end may change."""
    assert verified(signed(PLAIN, RSA_KEY).replace(before, after, 1), RSA_KEY)


def test_all_keys_of_a_domain_sign() -> None:
    """Two algorithms side by side, so that verifiers take the one they know (RFC 8463, 3)."""
    message = signed(PLAIN, RSA_KEY, SigningKey("example.net", "x", RSA), ED25519_KEY)
    assert message.count(b"DKIM-Signature:") == 2
    for index in (0, 1):
        assert verified(message, RSA_KEY, ED25519_KEY, index=index)


def test_message_that_is_signed_already_gets_one_more() -> None:
    """A signature of the app stays, and still holds; ours stands in front of it and does not cover it."""
    app = SigningKey("app.example", "a", ED25519)
    content = PLAIN.replace(b"example.com>\r\nTo", b"app.example>\r\nTo", 1)
    first = signed(content, app)
    message = signed(first, SigningKey("app.example", "p", RSA))
    keys = (app, SigningKey("app.example", "p", RSA))
    assert verified(message, *keys, index=0)
    assert verified(message, *keys, index=1)
    without = message.replace(signed(content, app)[: -len(content)], b"")
    assert without.count(b"DKIM-Signature:") == 1
    assert verified(without, *keys)


@pytest.mark.parametrize(
    ("sender", "domain"),
    [
        ("jane@mail.example.com", "mail.example.com"),
        ("jane@EXAMPLE.COM", "example.com"),
        ("jane@other.example.com", "example.com"),
        ("jane@a.b.other.example.com", "example.com"),
        ("jane@deep.mail.example.com", "mail.example.com"),
        ("jane@example.com.", "example.com"),
        ("jane@m\u00fcller.example", "xn--mller-kva.example"),
        ("jane@xn--mller-kva.example", "xn--mller-kva.example"),
    ],
)
def test_key_is_that_of_the_domain_or_the_nearest_parent(sender: str, domain: str) -> None:
    """The exact domain counts before a parent domain; international names are compared in their ASCII form."""
    keys = [SigningKey(name, "s", ED25519) for name in ("example.com", "mail.example.com", "M\u00dcLLER.example")]
    content = PLAIN.replace(b"jane@example.com", sender.encode())
    message = signed(content, *keys)
    assert f"d={domain};".encode() in message
    assert verified(message, *keys)


@pytest.mark.parametrize("sender", ["jane@example.org", "jane@notexample.com", "jane@com", "jane@example.com.evil.org"])
def test_without_a_key_for_the_domain_nothing_is_signed(sender: str) -> None:
    """A name that only looks like ours gets no signature."""
    outcome = Signer([RSA_KEY]).signed(PLAIN.replace(b"jane@example.com", sender.encode()), NOW)
    assert (outcome.fields, outcome.domain, outcome.unsigned) == (b"", sender.partition("@")[2], "no_key")


@pytest.mark.parametrize(
    ("field", "unsigned"),
    [
        (b"", "no_from"),
        (b"From: a@example.com\r\nFrom: a@example.com\r\n", "several_from"),
        (b"From: a@example.com, b@example.com\r\n", "several_addresses"),
        (b"From: A <a@example.com>,\r\n B <b@example.org>\r\n", "several_addresses"),
        (b"From: team: a@example.com, b@example.com;\r\n", "several_addresses"),
        (b"From:\r\n", "no_address"),
        (b"From: Jane\r\n", "no_address"),
        (b"From: <>\r\n", "no_address"),
        (b"From: undisclosed:;\r\n", "no_address"),
        (b"From: jane@[192.0.2.1]\r\n", "no_address"),
        (b"From: jane@exa mple.com\r\n", "no_address"),
        (b"From: jane@" + b"a." * 200 + b"example.com\r\n", "no_address"),
        (b"From: jane@example.com;d=evil.org\r\n", ""),
        (b"From: jane@ex\xe4mple.com\r\n", "no_address"),
        (b'From: "jane@example.com\r\n', ""),
        (b"From: J\xfcrgen <jane@example.com>\r\n", ""),
    ],
)
def test_from_that_names_no_one_author_is_not_signed(field: bytes, unsigned: str) -> None:
    """No author, or more than one, and there is no domain to answer for the message; the reason is told."""
    content = field + b"Subject: x\r\n\r\nbody\r\n"
    outcome = Signer([RSA_KEY]).signed(content, NOW)
    assert (outcome.unsigned or "") == unsigned
    assert bool(outcome.fields) == (not unsigned)
    assert Signer([RSA_KEY]).sign(content, NOW) == outcome.fields


@pytest.mark.parametrize(
    ("value", "domain"),
    [
        ('"Smith, Jane (a@b.c)" <jane@example.com>', "example.com"),
        ("Smith, Jane <jane@example.com>", "example.com"),
        ("jane@example.com (Jane, <x@y.z>, \\) (nested) it's)", "example.com"),
        ('"very@odd"@example.com', "example.com"),
        ('"a > b" <"x>y"@example.com>', "example.com"),
        ("=?utf-8?q?J=C3=BCrgen?= <jane@example.com>", "example.com"),
        ("J\u00fcrgen <jane@example.com>", "example.com"),
        ("support@old.example <jane@example.com>", "example.com"),
        ("<@relay.example:jane@example.com>", "example.com"),
        ("Team: jane@example.com;", "example.com"),
        ("jane@example.com,", "example.com"),
        ("Jane <jane@example.com", "example.com"),
        ("Jane\r\n\t<jane\r\n @example.com>", "example.com"),
        ("(" * 5000 + "jane@example.com", ""),
        ('"' * 5001 + "<jane@example.com>", "example.com"),
    ],
)
def test_author_is_found_in_what_mail_programs_write(value: str, domain: str) -> None:
    """Display names, comments, quoted local parts, groups and folding do not hide the address, nor pose as one."""
    section = HeaderSection.split(f"From: {value}\r\n\r\n".encode())
    assert author_domain(section)[0] == domain


@pytest.mark.parametrize(
    "content",
    [
        b"From: a@example.com\nSubject: x\n\nbody\n",
        PLAIN + b"bare\nline",
        PLAIN + b"bare\rreturn\r\n",
        b"From a@example.com Thu Jan 1\r\n" + PLAIN,
        b"From: a@example.com\r\nno field at all\r\n\r\nbody\r\n",
    ],
)
def test_message_that_verifiers_read_differently_is_not_signed(content: bytes) -> None:
    """A signature that cannot be relied on is worse than none: mailbox providers count it as forged."""
    assert Signer([RSA_KEY]).signed(content, NOW).unsigned == "damaged"


@pytest.mark.parametrize("body", [b"", b"\r\n", b"\r\n\r\n", b" \t\r\n \r\n", b"no line end", b"blanks at the end  \t"])
def test_empty_and_unfinished_bodies_are_signed_as_they_arrive(body: bytes) -> None:
    """An empty body has the digest of nothing; a last line without CRLF is signed with the one it gets on the wire."""
    content = PLAIN.partition(b"Hi.")[0] + body
    message = signed(content, ED25519_KEY)
    arrived = message if message.endswith(b"\r\n") else message + b"\r\n"
    assert verified(arrived, ED25519_KEY)


def test_header_section_without_a_body_is_signed() -> None:
    """Without the separating line, too, nothing is the body."""
    content = b"From: a@example.com\r\nSubject: x\r\n"
    assert verified(signed(content, ED25519_KEY), ED25519_KEY)


def test_blank_before_the_colon_is_left_out() -> None:
    """An obsolete blank there does not count (RFC 6376, 3.4.2)."""
    lawful, obsolete = (Signer([ED25519_KEY]).sign(PLAIN.replace(b"To:", to, 1), NOW) for to in (b"To:", b"To \t:"))
    assert lawful == obsolete


# dkimpy also strips vertical tabs and form feeds, which RFC 6376 does not count as blanks; NUL is in no real field.
_VALUE = st.text(
    st.one_of(
        st.sampled_from(' \tab:;,="<@\u00e9\u20ac'), st.characters(codec="utf-8", exclude_categories=["Cc", "Zs"])
    ),
    max_size=40,
)
_OTHER = [
    "To",
    "Cc",
    "Subject",
    "Date",
    "Message-ID",
    "MIME-Version",
    "Content-Type",
    "References",
    "List-Unsubscribe",
    "X-Other",
    "Received",
]


@st.composite
def _field_lines(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from([*_OTHER, *map(str.lower, _OTHER)]))
    pieces = [piece.encode() for piece in draw(st.lists(_VALUE, min_size=1, max_size=4))]
    return name.encode() + b":" + b"\r\n ".join(pieces) + b"\r\n"


_LINE = st.one_of(
    st.sampled_from([b"", b" ", b"\t", b"  \t ", b".", b"..", b"a  b\t\tc \t", b"\xff\x80 8 bit", b" leading"]),
    st.binary(max_size=60).map(lambda line: line.replace(b"\r", b"").replace(b"\n", b"")),
)


@given(st.lists(_field_lines(), max_size=8), st.lists(_field_lines(), max_size=4), st.lists(_LINE, max_size=12))
def test_any_message_is_verified(before: list[bytes], after: list[bytes], lines: list[bytes]) -> None:
    """Whatever the fields and the body are, another program comes to the same digest."""
    content = b"".join([*before, b"From: jane@example.com\r\n", *after, b"\r\n", *(line + b"\r\n" for line in lines)])
    assert verified(signed(content, ED25519_KEY), ED25519_KEY)


@given(st.lists(_LINE, max_size=12), st.data())
def test_any_visible_change_of_a_body_is_noticed(lines: list[bytes], data: st.DataObject) -> None:
    """No octet but a blank can change without breaking the signature."""
    body = b"".join(line + b"\r\n" for line in [*lines, b"end"])
    content = b"From: jane@example.com\r\n\r\n" + body
    message = signed(content, ED25519_KEY)
    places = [at for at in range(len(message) - len(body), len(message)) if message[at] not in b" \t\r\n"]
    at = data.draw(st.sampled_from(places))
    changed = message[:at] + bytes([message[at] ^ 0x80]) + message[at + 1 :]
    assert not verified(changed, ED25519_KEY)


@given(st.binary(max_size=300))
def test_any_octets_give_a_result(content: bytes) -> None:
    """No message makes the signer fail."""
    for head in (b"", b"From: jane@example.com\r\n", b"From: "):
        outcome = Signer([ED25519_KEY]).signed(head + content, NOW)
        assert bool(outcome.fields) != bool(outcome.unsigned)


@pytest.mark.parametrize(
    "body", [b" " * 5_000_000, b"\r\n" * 2_500_000, b" \r\n" * 1_700_000, b"\t \t" * 1_700_000, b"x" * 5_000_000]
)
def test_canonicalisation_is_linear(body: bytes) -> None:
    """Five megabytes of whatever is worst come to an end: quadratic work would outlive any test."""
    assert ours.relaxed_body(body) == (body + b"\r\n" if body.startswith(b"x") else b"")


def test_header_section_of_a_thousand_fields_is_signed_at_once() -> None:
    """Neither many fields nor many addresses and comments cost more than their length, and h= stays short."""
    content = b"To: a@example.org\r\n" * 1000 + b"From: " + b"(" * 60_000 + b")" * 60_000 + b" a@example.com\r\n\r\n"
    fields = Signer([ED25519_KEY]).sign(content, NOW)
    assert 0 < len(fields) < 2000


@pytest.mark.parametrize("piece", ["<", "<a", "a<", "\\<", '"" ', ":<", "((", "(a)"])
def test_reading_the_sender_is_linear(piece: str) -> None:
    """It is done for each copy, where all connections are served: a megabyte comes to an end."""
    section = HeaderSection.split(f"From: {piece * (1_000_000 // len(piece))}\r\n\r\n".encode())
    assert author_domain(section) == ("", "no_address")


@pytest.mark.parametrize(
    "text", ["", "exa mple.com", "-a.example", "a..example", "a\r\nb.example", "a;b", "\u3002", "a" * 300]
)
def test_what_is_no_domain_is_refused(text: str) -> None:
    """Neither settings nor messages can put anything but a domain name into the field."""
    assert domain_name(text) is None
    with pytest.raises(ValueError, match="no domain name"):
        SigningKey(text, "s", ED25519)
    with pytest.raises(ValueError, match="no domain name"):
        SigningKey("example.com", text, ED25519)


def test_key_does_not_show_in_logs() -> None:
    """The private half is in no representation."""
    assert "key=" not in repr(RSA_KEY)


def _pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8, secret: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(secret) if secret else NoEncryption()
    written: bytes = key.private_bytes(Encoding.PEM, form, encryption)
    return written


@pytest.mark.parametrize(
    "pem", [_pem(RSA), _pem(RSA, PrivateFormat.TraditionalOpenSSL), _pem(ED25519)], ids=["pkcs8", "pkcs1", "ed25519"]
)
def test_key_file_is_read(tmp_path: Path, pem: bytes) -> None:
    """RSA in both of its forms, and Ed25519."""
    file = tmp_path / "key.pem"
    file.write_bytes(pem)
    key = load_key(file)
    assert ours.weakness(key) == ""
    assert verified(signed(PLAIN, SigningKey("example.com", "s", key)), SigningKey("example.com", "s", key))


# Made once with OpenSSL: the library makes none so short.
RSA_512 = b"""-----BEGIN RSA PRIVATE KEY-----
MIIBPAIBAAJBAOEx5WFa5PtMrKOT2a6P5cl/JdjhKZVle134zL5K5eT8Ovqs3dZ4
l1HkVA0NRGfQSdIpi/SfsvEZbRZDy7wCDS8CAwEAAQJBAKJCJmmoaXbcf0P5ww4x
Jruxvp5vVlwL3AEQxM2T/+Ols3sCLWY6idbr8CMDbi9SaWI/Wa+QUzAA0GRnnap8
eSECIQD90bZDOtXgp9dEUxL4QaL2Ol1lVXcK0cGQ4xMPpq18sQIhAOMhOTgHqqDX
SaZWGmgmzX12sOBnwL4F1Jo+N5/zmR/fAiEAqyHpTJzvtYAUwSlt4dqHYJLrg7ZD
BBV2+BRSNrw/vpECIBtRAZq1gVX6zobM0Dw6fnhacAdtMwcnmFw8o1//YiktAiEA
nwA/m7ZECZvpAApE9sIyzNuh1YG/6H5oUPIk7aYJYMA=
-----END RSA PRIVATE KEY-----
"""
_PUBLIC = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
EXPECTED = "expected a private key in PEM form, RSA of 2048 bits or Ed25519, without a pass phrase"
MAKE = " ('openssl genrsa -out FILE 2048' makes one)"


@pytest.mark.parametrize(
    ("content", "found", "hint"),
    [
        (None, "no file", MAKE),
        (b"", "no private key in PEM form", MAKE),
        (b"secret", "no private key in PEM form", MAKE),
        (_PUBLIC, "a public key", MAKE),
        (
            _pem(RSA)[:400] + b"\n-----END PRIVATE KEY-----\n",
            "a private key that is damaged or of an unknown kind",
            MAKE,
        ),
        (_pem(RSA, secret=b"x"), "a key with a pass phrase", " ('openssl pkey -in FILE -out NEW' takes it off)"),
        (_pem(RSA, PrivateFormat.TraditionalOpenSSL, b"x"), "a key with a pass phrase", None),
        (RSA_512, "an RSA key of 512 bits", MAKE),
        (_pem(ec.generate_private_key(ec.SECP256R1())), "a key of another kind (EC)", MAKE),
        (_pem(dsa.generate_private_key(2048)), "a key of another kind (DSA)", MAKE),
        (b"x" * 70_000, "a file of more than 65536 octets", ""),
    ],
)
def test_key_file_that_will_not_do_is_told(tmp_path: Path, content: bytes | None, found: str, hint: str | None) -> None:
    """Each way to get it wrong has its own words."""
    file = tmp_path / "key.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ProblemsError) as caught:
        load_key(file)
    hint = " ('openssl pkey -in FILE -out NEW' takes it off)" if hint is None else hint
    assert str(caught.value) == f"{file}: found {found}; {EXPECTED}{hint}"


def test_folder_in_place_of_a_key_file_is_told(tmp_path: Path) -> None:
    """The system's own reason is passed on."""
    with pytest.raises(ProblemsError, match="found a file that cannot be read: Is a directory; expected a private key"):
        load_key(tmp_path)


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        (1024, "an RSA key of 1024 bits is short; RFC 8301 asks for 2048"),
        (2048, ""),
        (8192, "an RSA key of 8192 bits is more than receivers need to check (4096)"),
    ],
)
def test_weak_key_is_worth_a_warning(monkeypatch: pytest.MonkeyPatch, bits: int, text: str) -> None:
    """Short keys still sign, but an operator should know."""
    if bits == 8192:  # takes minutes to make

        class Long(rsa.RSAPrivateKey):
            key_size = 8192

        monkeypatch.setattr(Long, "__abstractmethods__", frozenset())
        assert ours.weakness(Long()) == text  # type: ignore[abstract]
        return
    key: PrivateKey = rsa.generate_private_key(65537, bits)
    assert ours.weakness(key) == text
    assert verified(signed(PLAIN, SigningKey("example.com", "s", key)), SigningKey("example.com", "s", key))


def test_record_is_what_goes_into_dns() -> None:
    """Its name and text are those of RFC 6376, 3.6."""
    assert RSA_KEY.dns_name == "r1._domainkey.example.com"
    public = RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert dns_record(RSA) == f"v=DKIM1; k=rsa; p={b64encode(public).decode()}"


def test_clock_decides_nothing_but_the_time_tag() -> None:
    """Two moments, two values of t=, the same everything else but b=."""
    later = datetime(2027, 1, 2, 3, 4, 5, 999, tzinfo=UTC)
    first, second = (Signer([ED25519_KEY]).sign(PLAIN, at).split(b"b=")[0] for at in (NOW, later))
    assert first.replace(b"t=1767323045", b"t=1798859045") == second
