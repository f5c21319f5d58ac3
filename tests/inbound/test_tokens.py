"""Issued tokens: the file, its changes, and what happens to it on the way."""

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from proxy.inbound.tokens import IssuedToken, TokenError, TokenStore
from proxy.private_file import locked, write_private
from proxy.problems import ProblemsError

NOON = datetime(2026, 11, 23, 12, 0, 5, 250, tzinfo=UTC)
EXPECTED = "tokens as cmail-proxy token add writes them"
DIGEST = hashlib.sha256(b"cmp_x").hexdigest()
ITEM = {"name": "ci", "sha256": DIGEST, "created_at": "2026-11-23T12:00:05+00:00"}

ADD_MANY = """
import sys
from pathlib import Path
from proxy.inbound.tokens import TokenStore

store = TokenStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    store.add(f"{sys.argv[2]}-{number}")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name the file; it does not exist, and neither does its folder."""
    return tmp_path / "var" / "tokens.json"


def texts(error: ProblemsError) -> list[str]:
    """Show problems as operators see them."""
    return [str(problem) for problem in error.problems]


def document(*items: object, version: object = 1) -> str:
    """Write a file by hand."""
    return json.dumps({"version": version, "tokens": items})


def test_add_issues_a_token_that_nobody_can_guess_and_keeps_its_digest(path: Path) -> None:
    """A token begins with cmp_ and has over 32 random characters; the file has its digest and not the token."""
    token = TokenStore(path, lambda: NOON).add("billing")
    assert token.startswith("cmp_")
    assert len(token) >= 4 + 32
    assert token[4:].replace("-", "a").replace("_", "a").isalnum()
    digest = hashlib.sha256(token.encode()).hexdigest()
    assert json.loads(path.read_text()) == {
        "version": 1,
        "tokens": [{"name": "billing", "sha256": digest, "created_at": "2026-11-23T12:00:05+00:00"}],
    }
    assert token not in path.read_text()
    assert token != TokenStore(path).add("another")


def test_add_makes_a_file_that_only_its_owner_reads(path: Path) -> None:
    """The file has mode 0600 from the first moment, also when it is written again over one that was open to others."""
    store = TokenStore(path)
    store.add("one")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    store.add("two")
    assert path.stat().st_mode & 0o777 == 0o600


def test_list_and_digests_show_tokens_in_the_order_of_issue(path: Path) -> None:
    """What was added can be listed, by the store that added it and by one that reads the file later."""
    store = TokenStore(path, lambda: NOON)
    assert store.list() == ()
    assert store.digests() == ()
    tokens = [store.add(name) for name in ("zeta", "Alpha.1_-")]
    digests = [hashlib.sha256(token.encode()).digest() for token in tokens]
    expected = tuple(
        IssuedToken(name, digest, NOON.replace(microsecond=0))
        for name, digest in zip(("zeta", "Alpha.1_-"), digests, strict=True)
    )
    assert store.list() == TokenStore(path).list() == expected
    assert store.digests() == TokenStore(path).digests() == (("zeta", digests[0]), ("Alpha.1_-", digests[1]))
    assert digests[0].hex() not in repr(store.list())


def test_created_at_in_another_zone_is_read_as_utc(path: Path) -> None:
    """A time with an offset, as an operator's editor may leave it, is the same moment."""
    path.parent.mkdir()
    path.write_text(document({**ITEM, "created_at": "2026-11-23T13:00:05+01:00"}))
    (token,) = TokenStore(path).list()
    assert token.created_at == datetime(2026, 11, 23, 13, 0, 5, tzinfo=timezone(timedelta(hours=1)))
    assert token.created_at.tzinfo is UTC


def test_add_of_a_name_in_use_is_refused(path: Path) -> None:
    """A second token of the same name is not issued, also when another process issued the first."""
    store, other = TokenStore(path), TokenStore(path)
    other.add("billing")
    before = path.read_bytes()
    with pytest.raises(TokenError) as caught:
        store.add("billing")
    assert str(caught.value) == ("there is a token named 'billing' already; choose another name, or revoke it first")
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "a b", "ü", "a/b", "a\n", "x" * 65])
def test_add_of_a_name_with_another_form_is_refused(path: Path, name: str) -> None:
    """Names go into logs and metrics, so they have a simple form; the error says which."""
    with pytest.raises(TokenError) as caught:
        TokenStore(path).add(name)
    assert str(caught.value) == (f"{name!r} cannot name a token; a name has 1 to 64 letters, digits, '.', '_' and '-'")
    assert not path.exists()


def test_revoke_forgets_one_token(path: Path) -> None:
    """The others stay, and the name is free again."""
    store = TokenStore(path)
    store.add("one")
    store.add("two")
    store.revoke("one")
    assert [token.name for token in store.list()] == [token.name for token in TokenStore(path).list()] == ["two"]
    store.add("one")
    assert [token.name for token in store.list()] == ["two", "one"]


def test_revoke_of_an_unknown_name_is_an_error(path: Path) -> None:
    """A slip in the name does not look like success, with a file and without one."""
    store = TokenStore(path)
    with pytest.raises(TokenError) as caught:
        store.revoke("bilings")
    assert str(caught.value) == "there is no token named 'bilings'"
    store.add("billing")
    with pytest.raises(TokenError) as caught:
        store.revoke("bilings")
    assert str(caught.value) == "there is no token named 'bilings'"
    assert [token.name for token in TokenStore(path).list()] == ["billing"]


def test_reload_sees_what_another_process_changed(path: Path) -> None:
    """Reload tells whether the content changed, and an unchanged file, even if it was written again, is no change."""
    serving, issuing = TokenStore(path), TokenStore(path)
    assert serving.reload() is False
    issuing.add("one")
    assert serving.list() == ()
    assert serving.reload() is True
    assert serving.list() == issuing.list()
    assert serving.reload() is False
    path.write_bytes(path.read_bytes())
    assert serving.reload() is False
    assert issuing.reload() is False
    issuing.revoke("one")
    assert serving.reload() is True
    assert serving.list() == ()


DAMAGED = [
    pytest.param("", [":1: found no JSON: Expecting value"], id="empty"),
    pytest.param('{\n"version": 1,\n"tok', [":3: found no JSON: Unterminated string starting at"], id="cut"),
    pytest.param("\udcff", [": found no JSON"], id="not-utf-8"),
    pytest.param("[" * 200_000, [": found no JSON"], id="nested"),
    pytest.param("[]", [": found no mapping"], id="list"),
    pytest.param('{"version": 1}', [": found no list of tokens"], id="no-tokens"),
    pytest.param('{"version": 1, "tokens": {}}', [": found no list of tokens"], id="tokens-no-list"),
    pytest.param(document("ci"), [": tokens[0]: found an item that is damaged"], id="item-no-mapping"),
    pytest.param(
        document(
            {**ITEM, "name": "a b"},
            {**ITEM, "sha256": DIGEST[:-1]},
            {**ITEM, "sha256": DIGEST.upper()},
            {**ITEM, "created_at": "yesterday"},
            {**ITEM, "created_at": "2026-11-23T12:00:05"},
            {**ITEM, "token": "cmp_x"},
            {"name": "ci"},
            {**ITEM, "name": 7},
        ),
        [f": tokens[{index}]: found an item that is damaged" for index in range(8)],
        id="every-item-is-named",
    ),
    pytest.param(document(ITEM, ITEM), [": tokens[1]: found a second token named 'ci'"], id="name-twice"),
]


@pytest.mark.parametrize(("content", "found"), DAMAGED)
def test_store_with_a_damaged_file_names_it(path: Path, content: str, found: list[str]) -> None:
    """A damaged file is never taken for one without tokens: each problem names the file and what is wrong."""
    path.parent.mkdir()
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ProblemsError) as caught:
        TokenStore(path)
    assert texts(caught.value) == [f"{path}{text}; expected {EXPECTED}" for text in found]


def test_store_with_a_file_of_a_later_version_says_so(path: Path) -> None:
    """A file that a newer program wrote is not guessed at."""
    path.parent.mkdir()
    path.write_text(document(ITEM, version=2))
    with pytest.raises(ProblemsError) as caught:
        TokenStore(path)
    assert texts(caught.value) == [f"{path}: found version 2; expected {EXPECTED} (this program knows version 1)"]


def test_store_whose_file_cannot_be_read_says_why(path: Path) -> None:
    """A file that is there and cannot be read is a problem, not an empty list."""
    path.mkdir(parents=True)
    with pytest.raises(ProblemsError) as caught:
        TokenStore(path)
    assert texts(caught.value) == [f"{path}: found a file that cannot be read: Is a directory; expected {EXPECTED}"]


def test_add_whose_folder_cannot_be_made_says_why(tmp_path: Path) -> None:
    """A data_dir that cannot be written is told as a problem of the file."""
    path = tmp_path / "var" / "sub" / "tokens.json"
    store = TokenStore(path)
    (tmp_path / "var").write_text("a file where the folder should be")
    with pytest.raises(ProblemsError) as caught:
        store.add("ci")
    assert texts(caught.value) == [f"{path}: found a file that cannot be written: Not a directory; expected {EXPECTED}"]


def test_reload_of_a_damaged_file_keeps_the_tokens_and_says_so_once(path: Path) -> None:
    """What was in force stays in force; the same damage is not told again, and a whole file is taken again."""
    store = TokenStore(path)
    store.add("one")
    tokens, whole = store.list(), path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ProblemsError):
        store.reload()
    assert store.reload() is False
    assert store.list() == tokens
    path.write_bytes(b"{}")
    with pytest.raises(ProblemsError):
        store.reload()
    path.write_bytes(whole)
    assert store.reload() is True
    assert store.list() == tokens


def test_reload_after_the_file_is_gone_keeps_the_tokens(path: Path) -> None:
    """A file that vanished does not lock out every app; that it vanished is told, once."""
    store = TokenStore(path)
    store.add("one")
    tokens = store.list()
    path.unlink()
    with pytest.raises(ProblemsError) as caught:
        store.reload()
    assert texts(caught.value) == [
        f"{path}: found no file, though there was one; expected {EXPECTED} "
        "(put it back, or revoke tokens by their names)"
    ]
    assert store.reload() is False
    assert store.list() == tokens


def test_add_to_a_damaged_file_leaves_it_alone(path: Path) -> None:
    """A damaged file is not written over, so what is in it can be mended; not even by a store that knows the rest."""
    store = TokenStore(path)
    store.add("one")
    path.write_bytes(b"{")
    for _ in range(2):
        with pytest.raises(ProblemsError) as caught:
            store.add("two")
        assert texts(caught.value) == [
            f"{path}:1: found no JSON: Expecting property name enclosed in double quotes; expected {EXPECTED}"
        ]
    assert path.read_bytes() == b"{"


def test_add_in_several_processes_at_once_loses_no_token(path: Path) -> None:
    """Four processes that issue tokens at the same time all find theirs in the file."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", ADD_MANY, str(path), name, "8"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "abcd"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=30)
        assert writer.returncode == 0
    names = [token.name for token in TokenStore(path).list()]
    assert sorted(names) == sorted(f"{writer}-{number}" for writer in "abcd" for number in range(8))


def test_add_after_a_crash_in_the_middle_works(path: Path) -> None:
    """The half-written file of a process that died is no obstacle, and does not stay."""
    store = TokenStore(path)
    store.add("one")
    (path.parent / ".tokens.json.new").write_text("half")
    store.add("two")
    assert [token.name for token in TokenStore(path).list()] == ["one", "two"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["tokens.json", "tokens.json.lock"]


def test_write_private_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    """Where the new content cannot take the place of the old, the old is untouched and nothing is left behind."""
    target = tmp_path / "target"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="target"):
        write_private(target, b"new")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["target"]
    assert (target / "inside").is_dir()


def test_locked_while_another_holds_it_gives_up(tmp_path: Path) -> None:
    """A lock is never shared, a wait for it ends, and it is free again after its holder."""
    lock = tmp_path / "lock"
    with locked(lock), pytest.raises(TimeoutError) as caught, locked(lock, wait_seconds=0):
        pass
    assert str(caught.value) == f"another process holds '{lock}'"
    with locked(lock, wait_seconds=0):
        assert lock.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_add_by_root_gives_the_file_to_the_owner_of_the_folder(path: Path) -> None:
    """After `sudo cmail-proxy token add`, the server that owns the folder can read the file and take the lock."""
    path.parent.mkdir()
    os.chown(path.parent, 4711, 4712)
    TokenStore(path).add("one")
    for file in path.parent.iterdir():
        assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o777) == (4711, 4712, 0o600)
