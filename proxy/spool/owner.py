"""
Who leases: a file with a lock for each open store, which the system gives up when its process ends, however it ends.

A lock says more than a process number: numbers are used again, and mean nothing in another container that has the same
volume. ``flock`` is held by the open file, so two stores in one process are two owners.

All of it is called inside a transaction of the store, which is what keeps two processes from looking at the same file
at a time. Source: flock(2).
"""

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path


class Owners:
    """
    The owners of a store, of which this is one from the moment it asks for its name.

    Args:
        folder: Where their files are; made when the first one comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = ""
        self._descriptor = -1

    @property
    def name(self) -> str:
        """Our own name; empty as long as nobody asked for one."""
        return self._name

    def own(self) -> str:
        """
        Give our own name.

        Raises:
            OSError: The file cannot be made.
        """
        if not self._name:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            name = f"{os.getpid()}-{os.urandom(6).hex()}"
            descriptor = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                raise
            self._name, self._descriptor = name, descriptor
        return self._name

    def gone(self, known: Iterable[str]) -> list[str]:
        """Name those that are gone, of those *known*; their files are removed, and those of others that are gone."""
        gone = {name for name in known if name != self._name and not (self._folder / name).is_file()}
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if path.name != self._name and _is_free(path):
                gone.add(path.name)
                path.unlink(missing_ok=True)
        return sorted(gone)

    def close(self) -> None:
        """Be gone."""
        if self._name:
            (self._folder / self._name).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._name = ""


def _is_free(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
