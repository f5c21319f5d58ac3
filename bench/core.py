"""
What the parts about the sending core (route ``deliver``) share: its settings, one measurement, and its tables.

A message counts as accepted when its 250 came, and as delivered when the sink has taken it.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from bench import cpu
from bench.load import Load, LoadError, send
from bench.message import RECIPIENT, SMALL_OCTETS, message, on_the_wire
from bench.peers import Peer
from bench.table import Row, Table, median, number, percentile, share, spread

QUEUED = b"250 2.0.0 Message queued"
SESSIONS = 20
_LOOK_SECONDS = 0.01
_SETTLE_SECONDS = 0.3  # what is written behind a reply, or a delivery, costs CPU too
_DELIVERY_SECONDS = 60.0
_IN_MEMORY = ("tmpfs", "ramfs")
_ON_DISK = "/var/tmp"  # noqa: S108 - what is made there has a name of its own


@frozen
class Measured:
    """
    One measurement. CPU times in microseconds for each message, latencies in milliseconds.

    Args:
        accepted: Messages accepted in a second.
        delivered: Messages delivered in a second, from the first connection to the last message at the sink; None
            where nothing is delivered.
    """

    part: str
    peer: str
    round: int
    messages: int
    accepted: float
    delivered: float | None
    cpu_us: float
    generator_us: float
    p50_ms: float | None
    p99_ms: float | None
    other_cores: float

    def row(self) -> Row:
        """Give it for the JSON file."""
        return attrs.asdict(self)


def settings(folder: Path, deliver: dict[str, Any], workers: int = 1) -> dict[str, Any]:
    """
    Give settings of route ``deliver`` with everything on but tracking, which would need a public URL.

    Args:
        folder: For ``data_dir``.
        deliver: The section of that name.
    """
    return {
        "hostname": "proxy.example.com",
        "data_dir": str(folder),
        "workers": workers,
        "route": "deliver",
        "listeners": [{"address": "127.0.0.1", "port": 0, "tls": "none", "auth": "none"}],
        "deliver": deliver,
        "tracking": {"opens": False, "clicks": False},
        "shutdown": {"drain_seconds": 1},
        "http": {"probes": {"address": "127.0.0.1", "port": 0}, "public": {"address": "127.0.0.1", "port": 0}},
    }


def smarthost(port: int) -> dict[str, Any]:
    """Give a section ``deliver`` that sends everything to one port of this machine."""
    return {"via": "smarthost", "smarthost": {"host": "127.0.0.1", "port": port, "tls": "none"}}


@contextlib.contextmanager
def on_disk(folder: Path) -> Iterator[Path]:
    """
    Give a folder on a disk: a sync costs nothing in memory, and would flatter whoever syncs more.

    Args:
        folder: Is taken if it is on a disk; otherwise one is made in ``/var/tmp``.
    """
    if kind_of_disk(folder) not in _IN_MEMORY:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="cmail-proxy-bench-", dir=_ON_DISK) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def kind_of_disk(folder: Path) -> str:
    """Name the file system of a folder."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text("utf-8", "replace").splitlines()]
    path = os.path.realpath(folder)
    found = [(place, kind) for place, kind in mounts if path == place or path.startswith(place.rstrip("/") + "/")]
    return max(found, key=lambda each: len(each[0]))[1] if found else "unknown"


def disk_note(folder: Path) -> str:
    """Say where queues are kept."""
    kind = kind_of_disk(folder)
    return f"all queues are on one disk ({kind})" + (", which is none: syncs cost nothing" * (kind in _IN_MEMORY))


def measure(
    part: str, peer: Peer, count: int, round_: int, *, taken: Callable[[], int] | None = None, sink_pid: int = 0
) -> Measured:
    """
    Send messages of 5 KB over 20 connections that are kept, and wait until they are where they should be.

    Args:
        taken: Tells how many messages the sink has; None: they are to be accepted only.

    Raises:
        LoadError: Some were not taken, or not delivered.
    """
    load = Load(
        port=peer.port,
        sessions=SESSIONS,
        messages=count,
        kept=True,
        content=on_the_wire(message(SMALL_OCTETS)),
        taken=peer.taken,
        recipient=RECIPIENT,
    )
    before = _used(peer, sink_pid)
    already = taken() if taken else 0
    began = time.perf_counter()
    sent = send(load)
    delivered = None
    if taken is not None:
        _wait(taken, already + count, peer.name)
        delivered = count / (time.perf_counter() - began)
    time.sleep(_SETTLE_SECONDS)
    seconds = time.perf_counter() - began
    busy, peer_seconds, sink_seconds = (late - early for early, late in zip(before, _used(peer, sink_pid), strict=True))
    milliseconds = [latency * 1e3 for latency in sent.latencies]
    return Measured(
        part=part,
        peer=peer.name,
        round=round_,
        messages=count,
        accepted=count / sent.seconds,
        delivered=delivered,
        cpu_us=peer_seconds * 1e6 / count,
        generator_us=sent.generator_seconds * 1e6 / count,
        p50_ms=percentile(milliseconds, 0.5),
        p99_ms=percentile(milliseconds, 0.99),
        other_cores=max(0.0, busy - peer_seconds - sink_seconds - sent.generator_seconds) / seconds,
    )


def _wait(taken: Callable[[], int], wanted: int, name: str) -> None:
    until = time.monotonic() + _DELIVERY_SECONDS
    while (there := taken()) < wanted:
        if time.monotonic() > until:
            raise LoadError(f"{name}: {wanted - there} messages were not delivered in {_DELIVERY_SECONDS:g} s")
        time.sleep(_LOOK_SECONDS)


def _used(peer: Peer, sink_pid: int) -> tuple[float, float, float]:
    return cpu.busy_seconds(), cpu.cpu_seconds(peer.pid), cpu.cpu_seconds(sink_pid) if sink_pid else 0.0


def of(results: Sequence[Measured], peer: str) -> list[Measured]:
    """Pick the measurements of a peer."""
    return [each for each in results if each.peer == peer]


def table(title: str, results: Sequence[Measured]) -> Table:
    """Print measurements, a line for each peer."""
    rows: list[list[str]] = []
    for peer in dict.fromkeys(each.peer for each in results):
        found = of(results, peer)
        rows.append(
            [
                peer,
                number(median(each.accepted for each in found)),
                number(median(each.delivered for each in found)),
                number(median(each.cpu_us for each in found)),
                number(median(each.p50_ms for each in found), 2),
                number(median(each.p99_ms for each in found), 2),
                number(median(each.generator_us for each in found)),
                number(median(each.other_cores for each in found), 2),
            ]
        )
    columns = ("peer", "accepted/s", "delivered/s", "CPU µs", "p50 ms", "p99 ms", "generator µs", "other")
    return Table(f"{title} ({results[0].messages:,} messages)", columns, rows)


Goal = Callable[[float | None], str]


def ratio(
    results: Sequence[Measured], peer: str, other: str, what: str, value: Callable[[Measured], float | None], goal: Goal
) -> list[str]:
    """Give a line of ratios, paired within each round."""
    pairs = zip(of(results, peer), of(results, other), strict=False)
    values = [share(value(mine), value(theirs)) for mine, theirs in pairs]
    return [f"{what} / {other}", *spread(values), goal(median(values))]


def no_goal(_value: float | None) -> str:
    """Hold a value against nothing."""
    return ""
