"""Tracking tokens: only we can make one, it says what we put in, and it leads nowhere else."""

import hmac
import json
import os
import re
import stat
import subprocess
import sys
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.compose.tokens import (
    MAX_KEYS,
    MAX_TARGET_OCTETS,
    MAX_TOKEN_CHARACTERS,
    Clicked,
    Opened,
    TokenKeys,
    load_or_create_secret,
    rotate_secret,
    trackable,
)
from proxy.problems import ProblemsError

OLD, NEW, STRANGE = b"o" * 32, b"n" * 32, b"s" * 32
KEYS = TokenKeys(2, {1: OLD, 2: NEW})
TARGET = "https://shop.example/order?id=1&utm=x#top"
MESSAGE_ID = "01JQ7Z3V9N8K"

_IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
_NUMBERS = st.integers(0, 2**32 - 1)
_REST = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="\\"), max_size=300).map(
    lambda rest: rest.rstrip(" ")
)
_TARGETS = st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(["http", "https", "HTTPS"]),
    st.sampled_from(["shop.example", "a", "127.0.0.1:8080", "[2001:db8::1]", "xn--mller-kva.example", "_a-b.c:"]),
    st.sampled_from(["/", "?", "#", "/a/b?"]),
    _REST,
)


@given(_IDS, _NUMBERS)
def test_open_is_read_as_it_was_signed(message_id: str, recipient: int) -> None:
    """A beacon says which message, and which of its recipients."""
    token = KEYS.sign_open(message_id, recipient)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", token)
    assert KEYS.read(token) == Opened(message_id, recipient)


@given(_IDS, _NUMBERS, _TARGETS)
def test_click_is_read_as_it_was_signed(message_id: str, recipient: int, target: str) -> None:
    """A link says so too, and carries its target whole."""
    token = KEYS.sign_click(message_id, recipient, target)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", token)
    assert len(token) <= MAX_TOKEN_CHARACTERS
    assert KEYS.read(token) == Clicked(message_id, recipient, target)


@given(_TARGETS)
def test_location_is_the_target_and_fits_into_a_field(target: str) -> None:
    """Nothing but printable ASCII goes into the field, it means the same, and the host is untouched."""
    location = Clicked(MESSAGE_ID, 0, target).location
    assert re.fullmatch(r"[\x21-\x7e]+", location)
    assert unquote(location) == unquote(target)
    assert urlsplit(location).netloc == urlsplit(target).netloc
    assert location == target or not re.fullmatch(r"[\x21-\x7e]+", target)


def test_tokens_are_short() -> None:
    """A beacon of an ordinary message has fewer than 50 characters, and a link, beside that, 4/3 of its target."""
    assert len(KEYS.sign_open(MESSAGE_ID, 24)) < 50
    assert len(KEYS.sign_click(MESSAGE_ID, 24, TARGET)) < 50 + len(TARGET) * 4 / 3 + 1


def test_token_of_the_longest_target_can_be_read() -> None:
    """The bounds for targets and for tokens fit each other."""
    keys = TokenKeys(9999, {9999: NEW})
    target = "https://a/" + "\u20ac" * ((MAX_TARGET_OCTETS - 10) // 3)
    token = keys.sign_click("m" * 64, 2**32 - 1, target)
    assert keys.read(token) == Clicked("m" * 64, 2**32 - 1, target)
    assert len(token) <= MAX_TOKEN_CHARACTERS


@pytest.mark.parametrize("token", [KEYS.sign_open(MESSAGE_ID, 3), KEYS.sign_click(MESSAGE_ID, 3, TARGET)])
def test_changed_token_is_refused(token: str) -> None:
    """Whatever single character is changed, left out, doubled or added, the token is worth nothing."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for at, was in enumerate(token):
        for character in alphabet:
            if character != was:
                assert KEYS.read(token[:at] + character + token[at + 1 :]) is None
        assert KEYS.read(token[:at] + token[at + 1 :]) is None or token[at : at + 1] * 2 in token
        assert KEYS.read(token[:at] + was + token[at:]) is None
        assert KEYS.read(token[:at]) is None
    for around in ("=", "==", " ", "\n", "\0", "A", "\u0661"):
        assert KEYS.read(token + around) is None
        assert KEYS.read(around + token) is None


@given(st.text(max_size=200))
def test_any_text_is_refused(token: str) -> None:
    """Nothing that comes over the network makes the reader fail."""
    assert KEYS.read(token) is None


@given(st.binary(max_size=200))
def test_any_octets_are_refused(data: bytes) -> None:
    """Nor does anything that is base64, or ends with somebody's signature."""
    for each in (data, bytes([0x11, 1]) + data, bytes([0x12, 2]) + data, b"\x11" + b"\xff" * 20 + data):
        assert KEYS.read(urlsafe_b64encode(each).rstrip(b"=").decode()) is None


def test_huge_token_costs_nothing() -> None:
    """The length is looked at first."""
    assert KEYS.read("A" * 50_000_000) is None


def test_token_of_another_key_is_refused() -> None:
    """A key of the same id elsewhere signs nothing for us."""
    strange = TokenKeys(2, {2: STRANGE})
    assert KEYS.read(strange.sign_click(MESSAGE_ID, 0, "https://evil.example/")) is None
    assert strange.read(KEYS.sign_open(MESSAGE_ID, 0)) is None


def test_token_of_an_unknown_key_is_refused() -> None:
    """A key that was taken out ends its links."""
    assert TokenKeys(2, {2: NEW}).read(TokenKeys(1, {1: OLD}).sign_open(MESSAGE_ID, 0)) is None


def test_links_of_earlier_keys_keep_working() -> None:
    """Rotation changes what signs, not what is read."""
    old = TokenKeys(1, {1: OLD})
    assert KEYS.read(old.sign_click(MESSAGE_ID, 1, TARGET)) == Clicked(MESSAGE_ID, 1, TARGET)
    assert old.read(KEYS.sign_open(MESSAGE_ID, 1)) is None


def _resigned(
    token: str, change: Callable[[bytes], bytes], secret: bytes = NEW, context: str = "tracking token"
) -> str:
    """Change what a token says, and sign it as the program would."""
    data = change(urlsafe_b64decode(token + "=" * (-len(token) % 4))[:-16])
    mac = hmac.digest(secret, f"cmail-proxy {context}\0".encode() + data, sha256)[:16]
    return urlsafe_b64encode(data + mac).rstrip(b"=").decode()


def test_signature_covers_everything() -> None:
    """The helper of the next tests signs as the program does; with any other secret or purpose it does not."""
    token = KEYS.sign_click(MESSAGE_ID, 1, TARGET)
    assert _resigned(token, lambda data: data) == token
    assert KEYS.read(_resigned(token, lambda data: data, STRANGE)) is None
    assert KEYS.read(_resigned(token, lambda data: data, OLD)) is None
    assert KEYS.read(_resigned(token, lambda data: data, context="session")) is None
    moved = _resigned(token, lambda data: data.replace(b"shop.example", b"evil.example"))
    assert KEYS.read(moved) == Clicked(MESSAGE_ID, 1, TARGET.replace("shop.example", "evil.example"))


def test_kinds_and_versions_are_not_interchangeable() -> None:
    """A beacon is no link and a link no beacon, even with a signature of ours; nor is another version's token."""
    link, beacon = KEYS.sign_click(MESSAGE_ID, 1, TARGET), KEYS.sign_open(MESSAGE_ID, 1)
    assert KEYS.read(_resigned(link, lambda data: b"\x11" + data[1:])) is None
    assert KEYS.read(_resigned(beacon, lambda data: b"\x12" + data[1:])) is None
    assert KEYS.read(_resigned(beacon, lambda data: data[:3])) is None
    for first in (b"\x21", b"\x22", b"\x01", b"\x13", b"\x00"):
        assert KEYS.read(_resigned(beacon, lambda data, first=first: first + data[1:])) is None  # type: ignore[misc]


UNSAFE = [
    "",
    "javascript:alert(1)",
    "JaVaScRiPt://shop.example/%0aalert(1)",
    "data:text/html,<script>alert(1)</script>",
    "vbscript:x",
    "file:///etc/passwd",
    "ftp://shop.example/",
    "mailto:joe@example.org",
    "//evil.example",
    "/\\evil.example",
    "https:evil.example",
    "https:/evil.example",
    "https:///evil.example",
    "https://",
    "https:// evil.example",
    "https://\u3002evil.example",
    "https://user@evil.example/",
    "https://shop.example@evil.example/",
    "https://shop.example:443@evil.example/",
    "https://shop.example\\@evil.example/",
    "https://shop.example\\.evil.example/",
    "https://evil.example\\/x",
    "https://shop.example%2fevil.example/",
    "https://shop.example/\r\nLocation: https://evil.example/",
    "https://shop.example/\n",
    "https://shop.example\n",
    "https://shop.example/\t",
    "https://shop.example/\0",
    "https://shop.example\0.evil.example/",
    "https://shop.example/\x85",
    "https://shop.example/ ",
    " https://shop.example/",
    "\x01https://shop.example/",
    "https\t://shop.example/",
    "https://m\u00fcller.example/",
    "https://[::1",
    "https://[evil.example]/",
    "https://shop.example:port/",
    "https://shop.example:123456/",
    "https://shop.example/\ud800",
    "https://shop.example/" + "x" * MAX_TARGET_OCTETS,
    "https://shop.example/" + "\u20ac" * 700,
    "https://" + "a" * 254,
]


@pytest.mark.parametrize("target", UNSAFE, ids=range(len(UNSAFE)))
def test_unsafe_target_is_neither_signed_nor_followed(target: str) -> None:
    """Only http and https, to a host that every program reads alike; checked again at the click."""
    assert not trackable(target)
    with pytest.raises(ValueError, match="such a target gets no token; the link stays as it is"):
        KEYS.sign_click(MESSAGE_ID, 1, target)
    octets = target.encode("utf-8", "surrogatepass")
    link = KEYS.sign_click(MESSAGE_ID, 1, "https://a/")
    assert KEYS.read(_resigned(link, lambda data: data[: -len("https://a/")] + octets)) is None


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("https://shop.example", "https://shop.example"),
        ("HTTP://SHOP.example:80/a%20b?c={d}|^\"<'>`#e", "HTTP://SHOP.example:80/a%20b?c={d}|^\"<'>`#e"),
        ("https://shop.example/a b", "https://shop.example/a%20b"),
        (
            "https://shop.example/gr\u00f6\u00dfe?x=\u20ac\u2028",
            "https://shop.example/gr%C3%B6%C3%9Fe?x=%E2%82%AC%E2%80%A8",
        ),
        ("https://shop.example/?next=https://other.example/@x", "https://shop.example/?next=https://other.example/@x"),
        ("https://shop.example/?email=joe@example.org", "https://shop.example/?email=joe@example.org"),
    ],
)
def test_ordinary_target_is_followed_as_it_stands(target: str, location: str) -> None:
    """Template leftovers, escapes and odd characters stay; what a field cannot hold is encoded as browsers do."""
    read = KEYS.read(KEYS.sign_click(MESSAGE_ID, 1, target))
    assert isinstance(read, Clicked)
    assert (read.target, read.location) == (target, location)


@pytest.mark.parametrize("message_id", ["", "joe@example.org", "a b", "a/b", "<1>", "m" * 65, "\u00e9", "-a", "a\n"])
def test_message_id_that_could_be_an_address_is_refused(message_id: str) -> None:
    """No address can get into a token of ours by mistake."""
    with pytest.raises(ValueError, match="a message id has 1 to 64 letters, digits"):
        KEYS.sign_open(message_id, 1)
    with pytest.raises(ValueError, match="a message id has 1 to 64 letters, digits"):
        KEYS.sign_click(message_id, 1, TARGET)


@given(_IDS, _NUMBERS)
def test_no_address_is_in_a_token(message_id: str, recipient: int) -> None:
    """The decoded octets of a beacon hold the message id and no at sign beside numbers and signature."""
    token = KEYS.sign_open(message_id, recipient)
    data = urlsafe_b64decode(token + "=" * (-len(token) % 4))[:-16]
    assert data.endswith(message_id.encode())
    assert len(data) - len(message_id) <= 8


@pytest.mark.parametrize("recipient", [-1, 2**32])
def test_recipient_number_is_bounded(recipient: int) -> None:
    """It is a place in a list of at most 25."""
    with pytest.raises(ValueError, match="a recipient number is from 0 to 4294967295"):
        KEYS.sign_open(MESSAGE_ID, recipient)


@pytest.mark.parametrize(
    ("current", "secrets", "text"),
    [
        (3, {1: OLD, 2: NEW}, "the current key is not among the keys"),
        (1, {}, "the current key is not among the keys"),
        (0, {0: OLD}, "up to 100 keys have ids from 1 to 9999"),
        (10_000, {10_000: OLD}, "up to 100 keys have ids from 1 to 9999"),
        (1, dict.fromkeys(range(1, MAX_KEYS + 2), OLD), "up to 100 keys have ids from 1 to 9999"),
        (1, {1: OLD, 2: b"short"}, "a secret has at least 32 octets"),
    ],
)
def test_keys_that_are_not_fit_are_refused(current: int, secrets: dict[int, bytes], text: str) -> None:
    """A key that signs, lawful ids, and secrets nobody can guess."""
    with pytest.raises(ValueError, match=text):
        TokenKeys(current, secrets)


def test_secrets_do_not_show_in_logs() -> None:
    """The representation holds none."""
    assert repr(KEYS) == "TokenKeys(current=2)"


def test_secret_is_made_once(tmp_path: Path) -> None:
    """The first start makes it, for its owner only; every later one reads it, and links survive."""
    file = tmp_path / "new" / "tracking.json"
    keys = load_or_create_secret(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_or_create_secret(file) == keys
    assert len(keys.secrets[keys.current]) == 32
    assert json.loads(file.read_bytes()) == {"version": 1, "current": 1, "keys": {"1": keys.secrets[1].hex()}}
    assert sorted(path.name for path in file.parent.iterdir()) == ["tracking.json", "tracking.json.lock"]


def test_randomness_is_given() -> None:
    """Nothing else decides the secret."""
    asked: list[int] = []

    def random(octets: int) -> bytes:
        asked.append(octets)
        return b"r" * octets

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        assert load_or_create_secret(Path(folder) / "s", random).secrets == {1: b"r" * 32}
    assert asked == [32]


def test_rotation_keeps_old_links_alive(tmp_path: Path) -> None:
    """A new key signs, the old ones still read, and all of that is on disk."""
    file = tmp_path / "tracking.json"
    first = load_or_create_secret(file)
    token = first.sign_click(MESSAGE_ID, 1, TARGET)
    second = rotate_secret(file)
    assert (second.current, set(second.secrets)) == (2, {1, 2})
    assert second.secrets[1] == first.secrets[1] != second.secrets[2]
    assert load_or_create_secret(file) == second
    assert second.read(token) == Clicked(MESSAGE_ID, 1, TARGET)
    assert first.read(second.sign_open(MESSAGE_ID, 1)) is None
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_rotation_without_a_file_makes_the_first_key(tmp_path: Path) -> None:
    """The command may come before the first start."""
    assert rotate_secret(tmp_path / "s").current == 1


def test_rotation_ends_when_the_file_is_full(tmp_path: Path) -> None:
    """No key is dropped silently, since links depend on it."""
    file = tmp_path / "s"
    for _ in range(MAX_KEYS):
        rotate_secret(file)
    before = file.read_bytes()
    with pytest.raises(ProblemsError, match=r"found 100 keys, the last with id 100; .* \(take out the oldest"):
        rotate_secret(file)
    assert file.read_bytes() == before


def test_workers_that_start_together_share_one_secret(tmp_path: Path) -> None:
    """Several processes and threads, one file, one secret."""
    file = tmp_path / "s"
    code = "import sys, pathlib; from proxy.compose.tokens import *; "
    code += "print(load_or_create_secret(pathlib.Path(sys.argv[1])).secrets[1].hex())"
    command = [sys.executable, "-c", code, str(file)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) for _ in range(4)
    ]
    found: set[str] = set()
    threads = [
        threading.Thread(target=lambda: found.add(load_or_create_secret(file).secrets[1].hex())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for process in processes:
        found.add(process.communicate(timeout=30)[0].strip())
    assert len(found) == 1


def test_file_that_cannot_be_written_beside_is_read(tmp_path: Path) -> None:
    """A mounted secret is read without a lock file or a change."""
    file = tmp_path / "s"
    keys = load_or_create_secret(file)
    (tmp_path / "s.lock").unlink()
    before = os.stat(tmp_path).st_mtime_ns  # noqa: PTH116
    assert load_or_create_secret(file) == keys
    assert os.stat(tmp_path).st_mtime_ns == before  # noqa: PTH116


SECRET = "ab" * 32
DAMAGED = "keys that are damaged"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "no JSON"),
        ("\udcff", "no JSON"),
        ("[" * 50_000, "no JSON"),
        ("[]", DAMAGED),
        ("{}", DAMAGED),
        ('{"version": 2}', "version 2"),
        (f'{{"version": 1, "current": 2, "keys": {{"1": "{SECRET}"}}}}', DAMAGED),
        (f'{{"version": 1, "current": 1, "keys": {{"1": "{SECRET[2:]}"}}}}', DAMAGED),
        (f'{{"version": 1, "current": 1, "keys": {{"1": "{SECRET}", "x": "{SECRET}"}}}}', DAMAGED),
        ('{"version": 1, "current": 1, "keys": {"1": 5}}', DAMAGED),
        (f'{{"version": 1, "current": 1, "keys": {{"1": "{SECRET}"}}, "more": 1}}', DAMAGED),
        (" " * 70_000 + f'{{"version": 1, "current": 1, "keys": {{"1": "{SECRET}"}}}}', "no JSON"),
    ],
    ids=range(12),
)
def test_damaged_file_is_told_and_kept(tmp_path: Path, content: str, found: str) -> None:
    """A damaged file is never replaced, for links in mail already sent depend on it; its content is not shown."""
    file = tmp_path / "s"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    for action in (load_or_create_secret, rotate_secret):
        with pytest.raises(ProblemsError) as caught:
            action(file)
        assert str(caught.value).startswith(f"{file}: found {found}; expected keys for tracking links, as this program")
        assert SECRET[:20] not in str(caught.value)
    assert file.read_bytes() == content.encode("utf-8", "surrogateescape")


def test_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """The system's own reason is passed on, for reading and for writing."""
    with pytest.raises(ProblemsError, match="found a file that cannot be read: Is a directory"):
        load_or_create_secret(tmp_path)
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(ProblemsError, match=r"found a file that cannot be (read: Not a directory|written: )"):
        load_or_create_secret(tmp_path / "plain" / "s")
    (tmp_path / "s.lock").mkdir()
    with pytest.raises(ProblemsError, match="found a file that cannot be written: "):
        load_or_create_secret(tmp_path / "s")
