"""
CPU time and memory of a process and everything below it, from /proc (Linux).

Living processes are counted in nanoseconds (``schedstat``) where the kernel tells them: ticks of 10 ms, rounded down
for each of twenty servers, would flatter whoever forks. Children that have ended count with their parent as soon as it
has waited for them, so programs that start a process for each client are measured in full.
"""

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE_SECONDS = 0.02


def cpu_seconds(pid: int) -> float:
    """User and system time so far of the process, its living descendants, and those already waited for."""
    seconds = 0.0
    for each in tree(pid):
        if fields := _stat(each):
            user, system, *ended_children = (int(field) / _TICKS for field in fields[11:15])
            exact = _run_seconds(each)
            seconds += (user + system if exact is None else exact) + sum(ended_children)
    return seconds


def resident_octets(pid: int) -> int:
    """Resident memory of the process and its descendants; pages that they share count for each."""
    return _resident_octets(tree(pid))


def _resident_octets(pids: Iterable[int]) -> int:
    total = 0
    for each in pids:
        try:
            status = (_PROC / str(each) / "status").read_text("ascii", "replace")
        except OSError:
            continue  # ended meanwhile
        total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
    return total


def tree(pid: int) -> list[int]:
    """The process and its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found.extend(children.get(each, ()))
    return found


def busy_seconds() -> float:
    """CPU time that the whole machine has used since it was started; what a hypervisor took away counts too."""
    line = (_PROC / "stat").read_text("ascii").partition("\n")[0]
    user, nice, system, _idle, _waiting, *others = (int(field) for field in line.split()[1:9])
    return (user + nice + system + sum(others)) / _TICKS


def model() -> str:
    """What the CPU calls itself, and how many there are for us."""
    name = "unknown CPU"
    for line in (_PROC / "cpuinfo").read_text("utf-8", "replace").splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{len(os.sched_getaffinity(0))} x {name}"


class PeakMemory:
    """
    Watches the memory of a process and its descendants of the beginning; use it as a context manager.

    Attributes:
        before: Resident octets at the start.
        peak: The most that was seen.
    """

    def __init__(self, pid: int) -> None:
        self._pids = tree(pid)  # looking for new ones each time would cost more than the rest
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before = self.peak = _resident_octets(self._pids)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self.peak = max(self.peak, _resident_octets(self._pids))


def _stat(pid: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` from the third on (state, parent, …); empty when the process is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _run_seconds(pid: int) -> float | None:
    """Time that the living threads of a process ran; None where the kernel does not tell."""
    try:
        threads = list((_PROC / str(pid) / "task").iterdir())
        return sum(int((each / "schedstat").read_text("ascii").split()[0]) for each in threads) / 1e9
    except (OSError, ValueError, IndexError):
        return None
