"""``token``: issue, list and revoke; the token itself is kept nowhere."""

import hashlib
import json
import re
import stat
from pathlib import Path

import pytest

from tests.operation.program import run, write_settings

NO_NAME = "a name has 1 to 64 letters, digits, '.', '_' and '-'"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings whose data_dir does not exist yet."""
    return write_settings(tmp_path / "settings.yaml", {"data_dir": "data", "relay": {"host": "smtp.example.com"}})


def token(*arguments: str | Path, config: Path) -> tuple[int, str, str]:
    """Run a token command: exit code, standard output and standard error."""
    command, *rest = arguments
    done = run("token", command, "--config", config, *rest)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_token_is_shown_once_and_kept_as_a_hash(config: Path) -> None:
    """What is printed is the token and nothing else; on disk is its digest, for the owner's eyes."""
    code, out, errors = token("add", "billing", config=config)
    kept = config.parent / "data" / "tokens.json"
    assert (code, errors) == (0, f"It is user name and password in one; kept as a hash in {kept}\n")
    assert re.fullmatch(r"cmp_[A-Za-z0-9_-]{43}\n", out)
    issued = out.strip()
    folder = config.parent / "data"
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert all(issued.encode() not in file.read_bytes() for file in files)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    (kept,) = json.loads((folder / "tokens.json").read_text())["tokens"]
    assert (kept["name"], kept["sha256"]) == ("billing", hashlib.sha256(issued.encode()).hexdigest())
    code, out, errors = token("list", config=config)
    assert (code, errors) == (0, "")
    assert re.fullmatch(r"billing\t2[0-9-]{9}T[0-9:]{8}\+00:00\n", out)


def test_every_token_is_another(config: Path) -> None:
    """Names are listed in the order of issue, and no two tokens are the same."""
    issued = [token("add", name, config=config)[1] for name in ("shop", "billing")]
    assert len(set(issued)) == 2
    listed = token("list", config=config)[1].splitlines()
    assert [line.partition("\t")[0] for line in listed] == ["shop", "billing"]


@pytest.mark.parametrize("name", ["", "two words", "a/b", "ä", "x" * 65], ids=ascii)
def test_name_of_another_form_is_refused(config: Path, name: str) -> None:
    """A name that logs could not show as it is gets no token, and nothing is written."""
    done = token("add", "--", name, config=config)
    assert done == (1, "", f"cmail-proxy: {name!r} cannot name a token; {NO_NAME}\n")
    assert not (config.parent / "data").exists()


def test_name_in_use_is_refused_and_keeps_its_token(config: Path) -> None:
    """A second token under a name would make the first one impossible to revoke."""
    token("add", "billing", config=config)
    before = (config.parent / "data" / "tokens.json").read_bytes()
    error = "cmail-proxy: there is a token named 'billing' already; choose another name, or revoke it first\n"
    assert token("add", "billing", config=config) == (1, "", error)
    assert (config.parent / "data" / "tokens.json").read_bytes() == before


def test_revoked_token_is_gone_and_its_name_is_free(config: Path) -> None:
    """Revoking takes one token back and leaves the others."""
    token("add", "billing", config=config)
    token("add", "shop", config=config)
    assert token("revoke", "billing", config=config) == (0, "revoked: billing\n", "")
    assert token("list", config=config)[1].partition("\t")[0] == "shop"
    assert token("add", "billing", config=config)[0] == 0


def test_unknown_name_cannot_be_revoked(config: Path) -> None:
    """A slip in the name is told, since somebody's token is still good."""
    assert token("revoke", "biling", config=config) == (1, "", "cmail-proxy: there is no token named 'biling'\n")


def test_list_without_tokens_is_empty(config: Path) -> None:
    """No tokens is no problem, and looking makes no files."""
    told = f"none was issued in {config.parent}/data/tokens.json; those in the settings are not listed here\n"
    assert token("list", config=config) == (0, "", told)
    assert not (config.parent / "data").exists()


@pytest.mark.parametrize("command", [("add", "shop"), ("list",), ("revoke", "billing")], ids=lambda command: command[0])
def test_damaged_file_is_told_and_left_as_it_is(config: Path, command: tuple[str, ...]) -> None:
    """A file that is no list of tokens is a problem, and no reason to begin a new one."""
    file = config.parent / "data" / "tokens.json"
    file.parent.mkdir()
    file.write_text('{"version": 1,\n "tokens": [')
    code, out, errors = token(*command, config=config)
    assert (code, out) == (1, "")
    assert errors.splitlines() == [
        f"error: {file}:2: found no JSON: Expecting value; expected tokens as cmail-proxy token add writes them",
        "cmail-proxy: 1 problem",
    ]
    assert file.read_text() == '{"version": 1,\n "tokens": ['


@pytest.mark.parametrize("command", ["add", "revoke"])
def test_file_that_cannot_be_written_is_told(config: Path, command: str) -> None:
    """A folder that takes no lock file is a problem in a line, and no trace of Python."""
    (config.parent / "data" / "tokens.json.lock").mkdir(parents=True)
    code, out, errors = token(command, "billing", config=config)
    assert (code, out) == (1, "")
    assert errors.splitlines() == [
        f"error: {config.parent}/data/tokens.json: found a file that cannot be written: Is a directory; expected "
        "tokens as cmail-proxy token add writes them",
        "cmail-proxy: 1 problem",
    ]
