"""Who may log in, and what AUTH carries."""

import base64
import hashlib
import hmac
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import settings
from proxy.inbound.auth import Credentials, Login, decode_base64, decode_plain, fingerprint
from proxy.inbound.tokens import TokenStore
from proxy.settings import Secret

TOKENS = (
    settings.Token(name="billing", token=Secret("tok-billing")),
    settings.Token(name="shop", token=Secret("tok-shop-ü")),
)
LOGINS = (
    settings.Login(name="legacy", username="apikey", password=Secret("SG.old"), provider="sendgrid"),
    settings.Login(name="other", username="postmaster@mg.example.com", password=Secret("SG.old"), provider="mailgun"),
    settings.Login(name="mandrill", password=Secret("md-key"), provider="mandrill"),
    settings.Login(name="tests", username="TEST", password=Secret("TEST"), discard=True),
)
BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
BILLING = Login("billing", None, False, "token")


@pytest.mark.parametrize(
    ("username", "password", "expected"),
    [
        pytest.param("tok-billing", "tok-billing", BILLING, id="token-as-both"),
        pytest.param("tok-shop-ü", "tok-shop-ü", Login("shop", None, False, "token"), id="token-not-ascii"),
        pytest.param("tok-billing", "tok-shop-ü", None, id="two-different-tokens"),
        pytest.param("billing", "tok-billing", None, id="name-is-no-user-name"),
        pytest.param("", "tok-billing", None, id="token-without-user-name"),
        pytest.param("tok-billing", "", None, id="token-without-password"),
        pytest.param("tok-billin", "tok-billin", None, id="token-cut"),
        pytest.param("TOK-BILLING", "TOK-BILLING", None, id="token-in-other-case"),
        pytest.param("apikey", "SG.old", Login("legacy", "sendgrid", False, "login"), id="login"),
        pytest.param(
            "postmaster@mg.example.com", "SG.old", Login("other", "mailgun", False, "login"), id="same-password"
        ),
        pytest.param("apikey2", "SG.old", None, id="login-of-another-user"),
        pytest.param("apikey", "SG.new", None, id="login-with-wrong-password"),
        pytest.param("SG.old", "SG.old", None, id="login-is-no-token"),
        pytest.param("anybody", "md-key", Login("mandrill", "mandrill", False, "login"), id="any-user-name"),
        pytest.param("", "md-key", Login("mandrill", "mandrill", False, "login"), id="no-user-name"),
        pytest.param("md-key", "other", None, id="any-user-name-wrong-password"),
        pytest.param("TEST", "TEST", Login("tests", None, True, "login"), id="login-that-discards"),
        pytest.param("", "", None, id="nothing"),
    ],
)
def test_check_of_user_name_and_password_finds_whose_they_are(
    username: str, password: str, expected: Login | None
) -> None:
    """A token counts as user name and password at once; a login by its password, and its user name if it has one."""
    assert Credentials(TOKENS, LOGINS).check(username.encode(), password.encode()) == expected


def test_check_with_issued_token_follows_the_store(tmp_path: Path) -> None:
    """A token that was issued or revoked counts, or no longer counts, as soon as the store was read again."""
    issuing, serving = TokenStore(tmp_path / "tokens.json"), TokenStore(tmp_path / "tokens.json")
    credentials = Credentials(TOKENS, LOGINS, serving)
    token = issuing.add("ci").encode()
    assert credentials.check(token, token) is None
    serving.reload()
    assert credentials.check(token, token) == Login("ci", None, False, "issued")
    assert credentials.check(b"ci", token) is None
    assert credentials.check(b"tok-billing", b"tok-billing") == BILLING
    issuing.revoke("ci")
    serving.reload()
    assert credentials.check(token, token) is None


@pytest.mark.parametrize("given_octets", [b"tok-billing", b"TEST", b"nobody"], ids=["first", "last", "none"])
def test_check_compares_every_candidate_whatever_fits(given_octets: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a check takes does not tell which candidate was right: all are compared, on digests of one length."""
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    Credentials(TOKENS, LOGINS).check(given_octets, given_octets)
    assert compared == [(32, 32)] * 2 * (len(TOKENS) + len(LOGINS))


def test_credentials_keep_no_secret() -> None:
    """A dump of the process's memory shows digests, and a traceback not even those."""
    credentials = Credentials(TOKENS, LOGINS)
    kept = pickle.dumps(credentials)
    for secret in (b"tok-billing", b"SG.old", b"md-key", b"apikey"):
        assert secret not in kept
        assert hashlib.sha256(secret).digest() in kept
    shown = repr(vars(credentials))
    assert "billing" in shown
    assert repr(hashlib.sha256(b"tok-billing").digest()) not in shown


@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        pytest.param(b"\0user\0pass", (b"user", b"pass"), id="no-authzid"),
        pytest.param(b"user\0user\0pass", (b"user", b"pass"), id="authzid-is-user"),
        pytest.param(b"somebody else\0user\0pass", (b"user", b"pass"), id="authzid-is-anything"),
        pytest.param("\0ü\0pä ss".encode(), ("ü".encode(), "pä ss".encode()), id="utf-8"),
        pytest.param(b"\0\0key", (b"", b"key"), id="no-user-name"),
        pytest.param(b"\0user\0", (b"user", b""), id="no-password"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"user", None, id="one-part"),
        pytest.param(b"user\0pass", None, id="two-parts"),
        pytest.param(b"\0user\0pass\0", None, id="four-parts"),
        pytest.param(b"\0us\xe9r\0pass", None, id="latin-1-user"),
        pytest.param(b"\xe9\0user\0pass", None, id="latin-1-authzid"),
        pytest.param(b"\0user\0\xed\xa0\x80", None, id="surrogate"),
    ],
)
def test_decode_plain_takes_three_parts_in_utf8(blob: bytes, expected: tuple[bytes, bytes] | None) -> None:
    """A PLAIN response is three parts in UTF-8, of which the first may be anything; all else is malformed."""
    assert decode_plain(blob) == expected


@given(st.binary())
def test_decode_plain_of_any_octets_gives_parts_of_them_or_none(blob: bytes) -> None:
    """Nothing that a client sends raises, and nothing comes out that was not sent."""
    parts = decode_plain(blob)
    assert parts is None or blob.endswith(b"\0".join((b"", *parts)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(b"AHVzZXIAcGFzcw==", b"\0user\0pass", id="padded"),
        pytest.param(b"dXNlcm5h", b"userna", id="without-padding"),
        pytest.param(b"+/+/", b"\xfb\xff\xbf", id="whole-alphabet"),
        pytest.param(b"", b"", id="empty"),
        pytest.param(b"=", None, id="lone-equals"),
        pytest.param(b"dXNlcg", None, id="padding-missing"),
        pytest.param(b"dXNlcg=", None, id="padding-short"),
        pytest.param(b"dXNlcg===", None, id="padding-long"),
        pytest.param(b"dXNl=", None, id="padding-after-whole-group"),
        pytest.param(b"dXNl====", None, id="padding-as-a-group"),
        pytest.param(b"dXNl=cg=", None, id="padding-inside"),
        pytest.param(b"dXNlcg==dXNlcg==", None, id="two-texts"),
        pytest.param(b"dXNl cg==", None, id="blank"),
        pytest.param(b"dXNlcg==\r\n", None, id="line-end"),
        pytest.param(b"-_-_", None, id="url-alphabet"),
        pytest.param(b"dXNl\xffcg=", None, id="octet-over-127"),
        pytest.param(b"dXNl\0cg=", None, id="nul"),
    ],
)
def test_decode_base64_takes_nothing_that_is_not_base64(text: bytes, expected: bytes | None) -> None:
    """Only the alphabet of RFC 4648 with right padding is decoded; nothing is skipped or guessed."""
    assert decode_base64(text) == expected


@given(st.binary())
def test_decode_base64_reverses_encoding(octets: bytes) -> None:
    """Whatever a client encodes arrives."""
    assert decode_base64(base64.b64encode(octets)) == octets


@given(st.binary() | st.text("Ab1+/=", max_size=12).map(str.encode))
def test_decode_base64_of_any_octets_gives_octets_or_none(text: bytes) -> None:
    """Nothing that a client sends raises, and only whole groups of the alphabet are taken."""
    decoded = decode_base64(text)
    assert decoded is None or (len(text) == len(base64.b64encode(decoded)) and BASE64.fullmatch(text))


def test_fingerprint_names_a_secret_without_telling_it() -> None:
    """The same secret has the same 8 characters, another secret or another key others."""
    name = fingerprint(b"tok-billing", b"key of this installation")
    assert re.fullmatch("[0-9a-f]{8}", name)
    assert name == fingerprint(b"tok-billing", b"key of this installation")
    assert name != fingerprint(b"tok-billing", b"another key")
    assert name != fingerprint(b"tok-shop", b"key of this installation")
    assert not hashlib.sha256(b"tok-billing").hexdigest().startswith(name)
