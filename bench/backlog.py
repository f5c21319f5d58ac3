"""Part ``backlog``: what 100,000 messages for a destination that is out of order cost those for others."""

import asyncio
import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.rrset
from attrs import frozen

from bench import core, cpu
from bench.message import SENDER, SMALL_OCTETS, message
from bench.options import Options
from bench.peers import Peer, Proxy, Sink
from bench.table import Report, Row, Table, at_least, at_most, number
from proxy.spool.item import Item, Layout, Recipient
from proxy.spool.sqlite import SPOOL_FOLDER, SqliteStore

_ROUNDS = 5
_MESSAGES, _QUICK_MESSAGES = 1000, 60
_QUEUED, _QUICK_QUEUED = 100_000, 2_000
_AT_ONCE = 500
_PAUSE_SECONDS = 0.3
_RATE_GOAL = 0.8
_MEMORY_GOAL_MB = 10.0

# Mail hosts listen on port 25, and name servers on port 53, so a run needs addresses of this machine for itself:
# the first network below 127.77.0.0/16 in which its name server may listen.
_NETWORKS = 256
_NAME_SERVER, _ALIVE, _REFUSES, _STALLS = ".53", ".25", ".26", ".27"
_HOSTS = {"example.net": _ALIVE, "refuses.example.org": _REFUSES, "stalls.example.org": _STALLS}
EMPTY, REFUSED, STALLED = "no backlog", "backlog, refused", "backlog, stalls"
_DESTINATIONS = {EMPTY: "", REFUSED: "refuses.example.org", STALLED: "stalls.example.org"}


@frozen
class _Memory:
    peer: str
    before: int
    after: int


def measure(options: Options, folder: Path, progress: Callable[[str], None]) -> Report:
    """
    Measure acceptance and delivery with and without a backlog, interleaved in each round.

    Args:
        folder: For what the programs write.
        progress: Is told what is being done.
    """
    heading = f"backlog: messages for others beside a destination out of order, {options.plural_workers}"
    if os.geteuid() != 0:
        note = "skipped: mail hosts and name servers have ports that only root may listen on"
        return Report(heading, options.command("backlog"), [], [], [note])
    queued = _QUICK_QUEUED if options.quick else _QUEUED
    count = options.count or (_QUICK_MESSAGES if options.quick else _MESSAGES)
    results: list[core.Measured] = []
    memory: list[_Memory] = []
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(core.on_disk(folder))
        network = stack.enter_context(_name_server())
        stack.enter_context(_stalling(network))
        sink = stack.enter_context(Sink(disk, None, network + _ALIVE, 25))
        taken = stack.enter_context(sink.counter())
        peers: list[Peer] = []
        for name, destination in _DESTINATIONS.items():
            data = disk / name.replace(", ", "-").replace(" ", "-")
            if destination:
                progress(f"backlog: {queued:,} messages for {destination}")
                data.mkdir(mode=0o700)
                asyncio.run(_fill(data, destination, queued))
            sections = core.settings(data, _by_mx(network), options.workers)
            peers.append(stack.enter_context(Proxy(name, disk, sections)).wait().peer(core.QUEUED))
        progress("backlog: to the domain of a working host, 20 connections, kept")
        for peer in peers:
            core.measure("backlog", peer, max(core.SESSIONS, count // 8), 0, taken=taken)
        before = [cpu.resident_octets(peer.pid) for peer in peers]
        for round_ in range(options.rounds_or(_ROUNDS)):
            for peer in peers:
                time.sleep(0 if options.quick else _PAUSE_SECONDS)
                results.append(core.measure("backlog", peer, count, round_, taken=taken, sink_pid=sink.pid))
        for peer, octets in zip(peers, before, strict=True):
            memory.append(_Memory(peer.name, octets, cpu.resident_octets(peer.pid)))
        note = core.disk_note(disk)
    tables = [core.table(f"{queued:,} messages wait", results), _ratios(results), _memory_table(memory)]
    rows: list[Row] = [each.row() for each in results]
    rows += [{"part": "backlog", "peer": it.peer, "rss_before": it.before, "rss_after": it.after} for it in memory]
    notes = [
        "refused: nobody listens there; stalls: the host takes connections, and never says a word",
        note,
    ]
    return Report(heading, options.command("backlog"), tables, rows, notes)


def _by_mx(network: str) -> dict[str, Any]:
    # As many connections as there are clients, so that the domain that works is no bottleneck.
    return {
        "via": "mx",
        "nameservers": [network + _NAME_SERVER],
        "allow_networks": [f"{network}.0/24"],
        "per_destination": core.SESSIONS,
    }


async def _fill(data: Path, destination: str, count: int) -> None:
    """Put messages into the store of a proxy that is not running."""
    store = SqliteStore(data / SPOOL_FOLDER)
    content = message(SMALL_OCTETS)
    now = time.time()

    def item(index: int) -> Item:
        recipient = Recipient(0, f"reader{index}@{destination}", destination, next_attempt_at=now)
        return Item(f"backlog{index:x}", now, SENDER, (recipient,), Layout(len(content)), len(content))

    try:
        for first in range(0, count, _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, count))
            await asyncio.gather(*(store.add(item(index), content, 0) for index in numbers))
    finally:
        await store.close()


@contextlib.contextmanager
def _stalling(network: str) -> Iterator[None]:
    """Listen, and leave it at that: the system takes the connections."""
    with socket.create_server((network + _STALLS, 25), backlog=512):
        yield


@contextlib.contextmanager
def _name_server() -> Iterator[str]:
    """Answer for the domains of this part, in a thread; the value is the network, as in ``127.77.0``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        network = _bind(server)
        server.settimeout(0.2)
        stop = threading.Event()
        thread = threading.Thread(target=_answer_all, args=(server, network, stop), daemon=True)
        thread.start()
        try:
            yield network
        finally:
            stop.set()
            thread.join()


def _bind(server: socket.socket) -> str:
    for index in range(_NETWORKS):
        network = f"127.77.{index}"
        try:
            server.bind((network + _NAME_SERVER, 53))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return network
    raise OSError(errno.EADDRINUSE, f"port 53 is taken in all {_NETWORKS} networks below 127.77.0.0/16")


def _answer_all(server: socket.socket, network: str, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(OSError, dns.exception.DNSException):
            data, client = server.recvfrom(4096)
            server.sendto(_answer(dns.message.from_wire(data), network).to_wire(), client)


def _answer(query: dns.message.Message, network: str) -> dns.message.Message:
    answer = dns.message.make_response(query)
    answer.flags |= dns.flags.AA
    question = query.question[0]
    name, kind = question.name.to_text(omit_final_dot=True).lower(), question.rdtype.name
    host = name.removeprefix("mail.")
    if kind == "MX" and name in _HOSTS:
        answer.answer.append(dns.rrset.from_text(question.name, 3600, "IN", "MX", f"10 mail.{name}."))
    elif kind == "A" and host in _HOSTS:
        answer.answer.append(dns.rrset.from_text(question.name, 3600, "IN", "A", network + _HOSTS[host]))
    return answer


def _ratios(results: list[core.Measured]) -> Table:
    rows = []
    goal = partial(at_least, goal=_RATE_GOAL)
    for peer in (REFUSED, STALLED):
        line = partial(core.ratio, results, peer, EMPTY)
        for what, *row in (
            line("accepted/s", lambda it: it.accepted, goal),
            line("delivered/s", lambda it: it.delivered, goal),
            line("CPU", lambda it: it.cpu_us, core.no_goal),
        ):
            rows.append([f"{peer}: {what}", *row])
    return Table("Ratios, paired within each round", ("with a backlog", "median", "lowest", "highest", "goal"), rows)


def _memory_table(memory: list[_Memory]) -> Table:
    base = next(it.after for it in memory if it.peer == EMPTY)
    rows = []
    for it in memory:
        more = (it.after - base) / 1e6
        goal = "" if it.peer == EMPTY else at_most(more, _MEMORY_GOAL_MB)
        rows.append([it.peer, number(it.before / 1e6, 1), number(it.after / 1e6, 1), number(more, 1), goal])
    columns = ("peer", "RSS before, MB", "after, MB", f"more than with {EMPTY}", "goal")
    return Table("Resident memory before and after the rounds", columns, rows)
