"""Delivery to a Maildir: whole files, synced, unique, and what happens when the disk does not want them."""

import asyncio
import errno
import mailbox as reader
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy.outbound.mailbox import Mailbox
from proxy.outbound.transaction import Copy, Mail
from proxy.policy.outcome import Outcome
from tests.outbound.site import ANN, BOB, CONTENT, SENDER


def files(folder: Path) -> list[bytes]:
    """What lies in ``new``, in order of its names."""
    return [each.read_bytes() for each in sorted((folder / "new").iterdir())]


async def test_message_becomes_a_file_with_trace_fields(tmp_path: Path) -> None:
    """Return-Path, a Delivered-To for each recipient, and the octets as they are."""
    box = Mailbox(tmp_path / "a" / "mailbox", "proxy.example.com")
    results = await box.deliver(Mail(SENDER, (Copy((ANN, BOB), CONTENT),)))
    await box.close()
    head = f"Return-Path: <{SENDER}>\r\nDelivered-To: {ANN}\r\nDelivered-To: {BOB}\r\n".encode()
    assert files(tmp_path / "a" / "mailbox") == [head + CONTENT]
    assert not list((tmp_path / "a" / "mailbox" / "tmp").iterdir())
    (path,) = (tmp_path / "a" / "mailbox" / "new").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    for result in results.values():
        assert (result.outcome, result.enhanced, result.stage) == ("delivered", "2.0.0", "store")
        assert str(path) in result.detail


async def test_copies_become_files_of_their_own(tmp_path: Path) -> None:
    """Each with its own recipients; a reader that is not ours sees them all."""
    box = Mailbox(tmp_path, "proxy.example.com")
    await box.deliver(Mail("", (Copy((ANN,), CONTENT), Copy((BOB,), CONTENT + b"other\r\n"))))
    await box.close()
    messages = list(reader.Maildir(tmp_path, create=False))
    assert sorted(message["Delivered-To"] for message in messages) == [ANN, BOB]
    assert {message["Return-Path"] for message in messages} == {"<>"}
    assert {message["Subject"] for message in messages} == {"hi"}


async def test_names_are_unique_even_at_one_moment(tmp_path: Path) -> None:
    """A thousand messages within one microsecond."""
    box = Mailbox(tmp_path, "host/with:odd name", now=lambda: 1_700_000_000_000_000_000)
    await asyncio.gather(*(box.deliver(Mail(SENDER, (Copy((ANN,), CONTENT),))) for _ in range(300)))
    await box.close()
    names = [each.name for each in (tmp_path / "new").iterdir()]
    assert len(names) == 300
    assert all(name.startswith("1700000000.M000000P") and ":" not in name for name in names)


async def test_folders_above_that_are_made_too_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut may take a folder that nobody synced, with all the mail in it."""
    synced: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    box = Mailbox(tmp_path / "a" / "b" / "mailbox", "h")
    result = (await box.deliver(Mail(SENDER, (Copy((ANN,), CONTENT),))))[ANN]
    await box.close()
    assert result.outcome is Outcome.DELIVERED
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b", box.folder, box.folder / "new"} <= set(synced)


async def test_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    """Who wants an empty mailbox removes it while the program runs."""
    box = Mailbox(tmp_path / "box", "h")
    await box.deliver(Mail(SENDER, (Copy((ANN,), CONTENT),)))
    for name in ("tmp", "new", "cur"):
        for each in (tmp_path / "box" / name).iterdir():
            each.unlink()
        (tmp_path / "box" / name).rmdir()
    (tmp_path / "box").rmdir()
    assert (await box.deliver(Mail(SENDER, (Copy((ANN,), CONTENT),))))[ANN].outcome is Outcome.DELIVERED
    assert len(files(tmp_path / "box")) == 1
    await box.close()


async def test_leftovers_of_a_killed_program_are_removed_when_they_are_old(tmp_path: Path) -> None:
    """After 36 hours; a younger one may be under way."""
    (tmp_path / "tmp").mkdir()
    old, young = tmp_path / "tmp" / "old", tmp_path / "tmp" / "young"
    for each in (old, young):
        each.write_bytes(b"half")
    os.utime(old, (1, 1))
    box = Mailbox(tmp_path, "h")
    await box.deliver(Mail(SENDER, (Copy((ANN,), CONTENT),)))
    await box.close()
    assert not old.exists()
    assert young.exists()


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> Iterator[None]:
    """Let a system call fail."""

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        yield


@pytest.mark.parametrize("call", ["write", "fsync", "open"])
@pytest.mark.parametrize(
    ("code", "enhanced"),
    [(errno.ENOSPC, "4.3.1"), (errno.EDQUOT, "4.3.1"), (errno.EIO, "4.3.0"), (errno.EACCES, "4.3.0")],
)
async def test_disk_that_does_not_take_it_defers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, enhanced: str
) -> None:
    """Nothing is left behind, and the next message is taken when the disk is well again."""
    box = Mailbox(tmp_path, "h")
    await box.deliver(Mail(SENDER, (Copy((BOB,), CONTENT),)))
    with failing(monkeypatch, call, code):
        result = (await box.deliver(Mail(SENDER, (Copy((ANN,), CONTENT),))))[ANN]
    assert (result.outcome, result.scope, result.enhanced) == ("deferred", "host", enhanced)
    assert os.strerror(code) in result.detail
    assert not list((tmp_path / "tmp").iterdir())
    assert len(files(tmp_path)) == 1
    assert (await box.deliver(Mail(SENDER, (Copy((ANN,), CONTENT),))))[ANN].outcome is Outcome.DELIVERED
    await box.close()


async def test_real_disk_that_is_full_defers(tmp_path: Path) -> None:
    """/dev/full stands for a file on it, and the kernel itself says that there is no room."""
    box = Mailbox(tmp_path, "h")
    await box.deliver(Mail(SENDER, (Copy((BOB,), CONTENT),)))
    real_open = os.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", lambda path, flags, *mode: real_open("/dev/full", os.O_WRONLY))
        result = (await box.deliver(Mail(SENDER, (Copy((ANN,), CONTENT),))))[ANN]
    assert (result.outcome, result.enhanced) == ("deferred", "4.3.1")
    await box.close()


async def test_file_and_directory_are_synced_before_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before it is renamed, the directory behind."""
    box = Mailbox(tmp_path, "h")
    await box.deliver(Mail(SENDER, (Copy((BOB,), CONTENT),)))
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path)))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    await box.deliver(Mail(SENDER, (Copy((ANN,), CONTENT),)))
    assert [each.split("/")[0] for each in synced] == ["tmp", "new"]
    await box.close()
