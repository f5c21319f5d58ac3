"""Part ``large``: messages of 10 MB through the proxy, and the memory that 100 of them in flight take."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import attrs
from attrs import frozen

from bench import certificate, cpu, postfix, sink
from bench.load import Load, send
from bench.message import LARGE_OCTETS, RECIPIENT, SMALL_OCTETS, STALLED_RECIPIENT, message, on_the_wire
from bench.options import Options
from bench.peers import Peer, Proxy, Sink, settings
from bench.table import Report, Row, Table, at_least, at_most, median, number

_ROUNDS = 3
_PAUSE_SECONDS = 0.2
_IN_FLIGHT = 100
_MEGA = 1e6
_CPU_GOAL_MS = 2.5
_RATE_GOAL = 0.6
_MEMORY_GOAL_MB = 1.0


@frozen
class _Case:
    """Messages at once, in one measurement, and with ``--quick``; and the sink that they go to."""

    sink: str
    sessions: int
    messages: int
    quick_messages: int


_CASES = (
    _Case("sink", 4, 24, 4),
    _Case("sink", 1, 12, 1),
    _Case("smtp-sink", 4, 16, 4),
    _Case("smtp-sink", 1, 8, 1),
)


@frozen
class _Throughput:
    case: _Case
    peer: str
    rate: float
    cpu_ms: float | None


def measure(options: Options, folder: Path, progress: Callable[[str], None]) -> Report:
    """
    Measure throughput, interleaved with the direct way and Postfix, then memory on a proxy of its own.

    Args:
        folder: For what the programs write; readable by everybody.
        progress: Is told what is being done.
    """
    made = certificate.make(folder)
    content = on_the_wire(message(LARGE_OCTETS))
    rows: list[Row] = []
    results: list[_Throughput] = []
    with contextlib.ExitStack() as stack:
        peers_of = _peers(stack, options, folder, made)
        for case in _CASES:
            peers = peers_of.get(case.sink, [])
            if peers:
                progress(f"large: {case.sessions} at once to {case.sink}")
            for peer in peers:
                _throughput(case, peer, content, case.sessions)
            for number_ in range(options.rounds_or(_ROUNDS)):
                for peer in peers:
                    time.sleep(_PAUSE_SECONDS)
                    count = case.quick_messages if options.quick else case.messages
                    results.append(_throughput(case, peer, content, count))
                    rows.append(_row(results[-1], number_, count))
    memory, memory_rows = _memory_table(options, folder, certificate_=made, content=content, progress=progress)
    notes = [
        "MB: a million octets",
        "our sink looks at the last octets of each read only, so direct to it is the speed of copying; smtp-sink reads "
        "every octet, as a platform would, and the goal for the rate is about that",
        *([f"smtp-sink skipped: {postfix.tools_missing()}"] if postfix.tools_missing() else []),
        *([f"{postfix.NAME} skipped: {postfix.missing()}"] if postfix.missing() else []),
    ]
    tables = [_throughput_table(results), memory]
    return Report("large: messages of 10 MB", options.command("large"), tables, [*rows, *memory_rows], notes)


def _peers(
    stack: contextlib.ExitStack, options: Options, folder: Path, made: certificate.Certificate
) -> dict[str, list[Peer]]:
    """Start what the cases need: peers for each sink."""
    own = stack.enter_context(Sink(folder, made))
    proxy = stack.enter_context(Proxy("proxy", folder, settings(folder, own.port, made, options.workers))).wait()
    peers_of = {"sink": [own.peer, proxy.peer()]}
    upstreams = {own.port: sink.TAKEN}
    if not postfix.tools_missing():
        theirs, _ = stack.enter_context(postfix.smtp_sink(folder))
        sections = settings(folder, theirs.port, made, options.workers)
        other = stack.enter_context(Proxy("proxy to smtp-sink", folder, sections)).wait().peer(theirs.taken)
        peers_of["smtp-sink"] = [theirs, attrs.evolve(other, name="proxy")]
        upstreams[theirs.port] = theirs.taken
    if not postfix.missing():
        for peers, peer in zip(
            peers_of.values(), stack.enter_context(postfix.running(folder, upstreams, made)), strict=True
        ):
            peers.append(peer)
    return peers_of


def _throughput(case: _Case, peer: Peer, content: bytes, count: int) -> _Throughput:
    load = Load(
        port=peer.port,
        sessions=case.sessions,
        messages=count,
        kept=True,
        content=content,
        taken=peer.taken,
        seconds=120,
    )
    before = cpu.cpu_seconds(peer.pid) if peer.pid else 0.0
    sent = send(load)
    used = cpu.cpu_seconds(peer.pid) - before if peer.pid else None
    megas = count * len(content) / _MEGA
    return _Throughput(case, peer.name, megas / sent.seconds, None if used is None else used * 1e3 / megas)


def _row(result: _Throughput, number_: int, count: int) -> Row:
    return {
        "part": "large",
        "sink": result.case.sink,
        "sessions": result.case.sessions,
        "peer": result.peer,
        "round": number_,
        "messages": count,
        "mb_per_second": result.rate,
        "cpu_ms_per_mb": result.cpu_ms,
    }


def _throughput_table(results: list[_Throughput]) -> Table:
    rows: list[list[str]] = []
    for case, peer in dict.fromkeys((each.case, each.peer) for each in results):
        found = [each for each in results if (each.case, each.peer) == (case, peer)]
        direct = [each for each in results if (each.case, each.peer) == (case, "direct")]
        share = median(mine.rate / theirs.rate for mine, theirs in zip(found, direct, strict=True))
        used = median(each.cpu_ms for each in found)
        ours = peer == "proxy"
        rows.append(
            [
                f"{case.sessions} at once to {case.sink}: {peer}",
                number(median(each.rate for each in found)),
                number(used, 2),
                at_most(used, _CPU_GOAL_MS) if ours else "",
                number(share, 2),
                at_least(share, _RATE_GOAL) if ours and case.sink == "smtp-sink" else "",
            ]
        )
    columns = ("peer", "MB/s", "CPU ms / MB", "goal", "MB/s / direct", "goal")
    return Table("Throughput", columns, rows)


def _memory_table(
    options: Options,
    folder: Path,
    certificate_: certificate.Certificate,
    content: bytes,
    progress: Callable[[str], None],
) -> tuple[Table, list[Row]]:
    """Send 100 messages at once: to a sink that reads, and to one that stops reading for some seconds."""
    rows: list[Row] = []
    printed: list[list[str]] = []
    in_flight = 10 if options.quick else _IN_FLIGHT
    for title, recipient in (("the sink reads", RECIPIENT), ("the sink stalls for 3 s", STALLED_RECIPIENT)):
        progress(f"large: {in_flight} messages in flight, {title}")
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(Sink(folder, certificate_))
            sections = settings(folder, own.port, certificate_, options.workers)
            proxy = stack.enter_context(Proxy("proxy for memory", folder, sections)).wait()
            small = on_the_wire(message(SMALL_OCTETS))
            send(Load(proxy.port, in_flight, in_flight * 2, True, small, sink.TRANSLATED))  # warms pool and code
            with cpu.PeakMemory(proxy.pid) as memory:
                sent = send(
                    Load(
                        port=proxy.port,
                        sessions=in_flight,
                        messages=in_flight,
                        kept=False,
                        content=content,
                        taken=sink.TRANSLATED,
                        recipient=recipient,
                        seconds=180,
                    )
                )
        grown = (memory.peak - memory.before) / _MEGA / in_flight
        rows.append(
            {
                "part": "large",
                "memory": title,
                "in_flight": sent.at_once,
                "before_mb": memory.before / _MEGA,
                "peak_mb": memory.peak / _MEGA,
                "grown_mb_per_message": grown,
            }
        )
        megas = [number(memory.before / _MEGA, 1), number(memory.peak / _MEGA, 1), number(grown, 3)]
        printed.append([title, str(sent.at_once), *megas, at_most(grown, _MEMORY_GOAL_MB)])
    columns = ("case", "in flight", "RSS before, MB", "peak, MB", "MB / message", "goal")
    return Table(f"Resident memory of the proxy, {in_flight} messages of 10 MB at once", columns, printed), rows
