"""Files that only their owner reads, written so that neither a crash nor another process ever sees half of one."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path, wait_seconds: float = 10) -> Iterator[None]:
    """
    Keep out every other process and thread that asks for the same lock.

    The file stays: to remove it would let two in, one with the old file and one with a new one. The lock itself ends
    with the process, so a crash leaves nothing to clean up.

    Args:
        path: The lock file; made when there is none.
        wait_seconds: Changes are a matter of milliseconds, so who holds the lock for longer has stopped.

    Raises:
        TimeoutError: It was not to be had.
    """
    try:
        descriptor = _create(path)
    except FileExistsError:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        give_up_at = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    raise TimeoutError(f"another process holds '{path}'") from None
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def write_private(path: Path, content: bytes, mode: int = 0o600) -> None:
    """
    Write a whole file so that readers, and a crash, see the old or the new content and nothing between.

    The caller holds a lock: the name of the temporary file is always the same, so that crashes cannot pile them up.

    Args:
        mode: Who may read it once it is there.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = _create(temporary)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # only then does the new name outlast a power cut
    finally:
        os.close(folder)


def _create(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    # A command run by root would else leave a file that the server cannot read. Root without the capability goes on.
    with suppress(PermissionError):
        if os.geteuid() == 0:
            folder = path.parent.stat()
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
    return descriptor
