"""
``via: mailbox``: each message becomes a file in a Maildir folder; nothing leaves the machine.

One file for each copy, not for each recipient: who looks into the folder wants to see what was sent, and three files
for one message to three people are a riddle. ``Delivered-To`` names each recipient of the copy, Bcc included; where
recipients have copies of their own (tracking), they have files of their own as well. The octets of the message stay
what they would be over SMTP, CRLF included, so that signatures can be checked and bytes compared.

Durable before it is told: written and synced in ``tmp``, renamed into ``new``, the directory synced. A file in ``new``
is whole, whatever happens.

Source: https://cr.yp.to/proto/maildir.html; RFC 5321, 4.4 (Return-Path); RFC 9228 (Delivered-To).
"""

import asyncio
import errno
import itertools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from proxy.mail.data_stage import mend_line_ends
from proxy.outbound.transaction import Copy, Mail
from proxy.policy import outcome
from proxy.policy.outcome import Result

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_STALE_SECONDS = 36 * 3600  # from the description of Maildir: nobody writes for so long
_THREADS = 4
_FOLDER_MODE = 0o700


class Mailbox:
    """
    A Maildir folder to write to; one for each process.

    Args:
        folder: Made when the first message comes.
        hostname: Part of file names, so that folders can be joined.
        now: Wall clock in nanoseconds.
    """

    def __init__(self, folder: Path, hostname: str, now: Callable[[], int] = time.time_ns) -> None:
        self.folder = folder
        self._hostname = hostname.replace("/", r"\057").replace(":", r"\072")
        self._now = now
        self._count = itertools.count(1)
        # Threads, because fsync takes milliseconds to seconds and has no other form that would not stop the event loop;
        # a few, because the file system writes several files in one go.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="mailbox")
        self._made = False

    async def deliver(self, mail: Mail) -> dict[str, Result]:
        """Write each copy; a result for each recipient. Never raises but for cancellation, and then what runs ends."""
        loop = asyncio.get_running_loop()
        writes = [loop.run_in_executor(self._threads, self._store, mail.reverse_path, copy) for copy in mail.copies]
        results: dict[str, Result] = {}
        for copy, result in zip(mail.copies, await asyncio.gather(*writes), strict=True):
            results.update(dict.fromkeys(copy.recipients, result))
        return results

    async def close(self) -> None:
        """Wait until everything is written."""
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)

    def _store(self, reverse_path: str, copy: Copy) -> Result:
        try:
            if not self._made:
                self._make()
                self._made = True
            try:
                name = self._write(reverse_path, copy)
            except FileNotFoundError:  # somebody emptied the folder by removing it
                self._make()
                name = self._write(reverse_path, copy)
        except OSError as error:
            where = f"{self.folder}: {os.strerror(error.errno or 0)}"
            return outcome.disk_full(where) if error.errno in _FULL else outcome.not_stored(where)
        return outcome.stored(f"written to {self.folder / 'new' / name}")

    def _make(self) -> None:
        made = [each for each in (self.folder, *self.folder.parents) if not each.exists()]
        for name in ("tmp", "new", "cur"):
            (self.folder / name).mkdir(_FOLDER_MODE, parents=True, exist_ok=True)
        for each in (self.folder, *(each.parent for each in made or [self.folder])):  # every new name
            _sync_directory(each)
        before = self._now() / 1e9 - _STALE_SECONDS
        for left in (self.folder / "tmp").iterdir():  # of a program that was killed while it wrote
            with suppress(OSError):
                if left.stat().st_mtime < before:
                    left.unlink()

    def _write(self, reverse_path: str, copy: Copy) -> str:
        seconds, nanoseconds = divmod(self._now(), 1_000_000_000)
        # Process number and counter are unique at a moment; random bits are for containers that all have process 1.
        unique = f"P{os.getpid()}Q{next(self._count)}R{os.urandom(4).hex()}"
        name = f"{seconds}.M{nanoseconds // 1000:06d}{unique}.{self._hostname}"
        temporary = self.folder / "tmp" / name
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                _write_all(descriptor, trace_fields(reverse_path, copy.recipients))
                _write_all(descriptor, copy.content)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.rename(self.folder / "new" / name)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_directory(self.folder / "new")
        return name


def trace_fields(reverse_path: str, recipients: Sequence[str]) -> bytes:
    """Write the fields that final delivery adds on top (RFC 5321, 4.4)."""
    fields = [f"Return-Path: <{reverse_path}>", *(f"Delivered-To: {recipient}" for recipient in recipients)]
    return mend_line_ends(
        "".join(f"{' '.join(each.splitlines())}\r\n" for each in fields).encode("utf-8", "surrogateescape")
    )


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
