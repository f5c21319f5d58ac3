"""Part ``relay``: messages of 5 KB through the proxy, beside the direct way and Postfix's pass-through proxy."""

import contextlib
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
from attrs import frozen

from bench import certificate, cpu, postfix, sink
from bench.load import Load, Sent, send
from bench.message import SMALL_OCTETS, message, on_the_wire
from bench.options import Options
from bench.peers import Peer, Proxy, Sink, secured, settings
from bench.table import Report, Row, Table, at_least, at_most, median, number, percentile, share, spread

DIRECT, PROXY, BOTH = "direct", "proxy", "proxy, TLS both ways"
_ROUNDS = 5
_QUICK_SHARE = 10
_PAUSE_SECONDS = 0.15  # lets what the last measurement left behind settle


@frozen
class Scenario:
    """
    One kind of load.

    Args:
        tools: Send with Postfix's generator to Postfix's sink.
        cpu_goal: CPU of the proxy as a share of Postfix's.
        rate_goal: Messages per second as a multiple of Postfix's.
        delay_goal: Median latency added, as a multiple of what Postfix adds.
    """

    name: str
    title: str
    sessions: int
    messages: int
    kept: bool
    tls: bool = False
    tools: bool = False
    cpu_goal: float | None = None
    rate_goal: float | None = None
    delay_goal: float | None = None


SCENARIOS = (
    Scenario("kept", "20 connections, kept", 20, 2500, True, cpu_goal=0.5, rate_goal=1.6),
    Scenario("each", "20 connections, one message for each", 20, 1500, False, cpu_goal=0.6, rate_goal=1.5),
    Scenario("tls-kept", "STARTTLS, 20 connections, kept", 20, 2500, True, tls=True, cpu_goal=0.65),
    Scenario("tls-each", "STARTTLS, 20 connections, one message for each", 20, 600, False, tls=True, cpu_goal=0.9),
    Scenario("single", "a single connection, kept", 1, 800, True, delay_goal=1.0),
    Scenario(
        "source-kept", "as kept, by smtp-source to smtp-sink", 20, 2500, True, tools=True, cpu_goal=0.5, rate_goal=1.6
    ),
    Scenario(
        "source-each", "as each, by smtp-source to smtp-sink", 20, 1500, False, tools=True, cpu_goal=0.6, rate_goal=1.5
    ),
)


@frozen
class Measured:
    """One scenario with one peer, once. CPU times in microseconds for each message, latencies in milliseconds."""

    part: str
    scenario: str
    peer: str
    round: int
    messages: int
    seconds: float
    rate: float
    cpu_us: float | None
    sink_us: float
    generator_us: float
    p50_ms: float | None
    p99_ms: float | None
    other_cores: float

    def row(self) -> Row:
        """Give it for the JSON file."""
        return attrs.asdict(self)


@frozen
class Site:
    """Everything that runs while measurements are made: peers for our own tools, and for Postfix's."""

    peers: Sequence[Peer]
    tls_peers: Sequence[Peer]
    tools_peers: Sequence[Peer]
    sink_pid: int
    tools_sink_pid: int
    message_file: Path
    context: ssl.SSLContext
    skipped: Sequence[str]


@contextlib.contextmanager
def site(folder: Path, options: Options) -> Iterator[Site]:
    """Start sinks and peers."""
    made = certificate.make(folder)
    message_file = folder / "message.txt"
    message_file.write_bytes(message(SMALL_OCTETS).replace(b"\r\n", b"\n"))
    skipped = [f"source-kept, source-each skipped: {postfix.tools_missing()}"] if postfix.tools_missing() else []
    skipped += [f"{postfix.NAME} skipped: {postfix.missing()}"] if postfix.missing() else []
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(Sink(folder, made))
        sections = settings(folder, own.port, made, options.workers)
        proxy = stack.enter_context(Proxy(PROXY, folder, sections))
        both = stack.enter_context(Proxy(BOTH, folder, secured(sections, made)))
        peers = [own.peer, proxy.wait().peer()]
        tls_peers = [*peers, both.wait().peer()]
        tools_peers: list[Peer] = []
        upstreams = {own.port: sink.TAKEN}
        tools_sink_pid = 0
        if not postfix.tools_missing():
            tools_sink, tools_sink_pid = stack.enter_context(postfix.smtp_sink(folder))
            sections = settings(folder, tools_sink.port, made, options.workers)
            other = stack.enter_context(Proxy(f"{PROXY} of tools", folder, sections)).wait()
            tools_peers = [tools_sink, attrs.evolve(other.peer(tools_sink.taken), name=PROXY)]
            upstreams[tools_sink.port] = tools_sink.taken
        if not postfix.missing():
            first, *rest = stack.enter_context(postfix.running(folder, upstreams, made))
            peers.append(first)
            tls_peers.append(first)
            tools_peers.extend(rest)
        yield Site(peers, tls_peers, tools_peers, own.pid, tools_sink_pid, message_file, _unchecked_context(), skipped)


def _unchecked_context() -> ssl.SSLContext:
    """A client's context that skips checking the certificate, which is work of the generator's."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def measure(options: Options, folder: Path, progress: Callable[[str], None]) -> Report:
    """
    Measure all scenarios, peers interleaved in each round, so that ratios are of neighbours in time.

    Args:
        folder: For what the programs write; readable by everybody.
        progress: Is told what is being done.
    """
    results: list[Measured] = []
    with site(folder, options) as running:
        for scenario in SCENARIOS:
            peers = running.tools_peers if scenario.tools else running.tls_peers if scenario.tls else running.peers
            if not peers:
                continue
            count = options.count or scenario.messages // (_QUICK_SHARE if options.quick else 1)
            progress(f"relay: {scenario.title}")
            for peer in peers:
                _once(running, scenario, peer, max(1, count // 8))
            for number_ in range(options.rounds_or(_ROUNDS)):
                for peer in peers:
                    time.sleep(0 if options.quick else _PAUSE_SECONDS)
                    results.append(_measure(running, scenario, peer, count, number_))
        skipped = running.skipped
    tables = [_table(scenario, results) for scenario in SCENARIOS if _of(results, scenario.name)]
    heading = f"relay: messages of 5 KB, {options.plural_workers}"
    rows = [result.row() for result in results]
    notes = [
        "medians of the rounds; CPU is user and system time of all processes of the peer, in µs for each message",
        "other: cores that other programs kept busy meanwhile; above 0.1 or so, trust CPU and ratios more than msg/s",
        f"{postfix.NAME} changes no header section and has no TLS to the sink",
        *skipped,
    ]
    return Report(heading, options.command("relay"), [*tables, _ratios(results)], rows, notes)


def _once(running: Site, scenario: Scenario, peer: Peer, count: int) -> Sent:
    load = Load(
        port=peer.port,
        sessions=scenario.sessions,
        messages=count,
        kept=scenario.kept,
        content=on_the_wire(message(SMALL_OCTETS)),
        taken=peer.taken,
        context=running.context if scenario.tls else None,
    )
    if scenario.tools:
        return postfix.smtp_source(load, peer.port, running.message_file)
    return send(load)


def _measure(running: Site, scenario: Scenario, peer: Peer, count: int, number_: int) -> Measured:
    sink_pid = running.tools_sink_pid if scenario.tools else running.sink_pid
    before = _used(peer, sink_pid)
    sent = _once(running, scenario, peer, count)
    after = _used(peer, sink_pid)
    busy, peer_seconds, sink_seconds = (late - early for early, late in zip(before, after, strict=True))
    others = busy - peer_seconds - sink_seconds - sent.generator_seconds
    per_message = 1e6 / count
    milliseconds = [latency * 1e3 for latency in sent.latencies]
    return Measured(
        part="relay",
        scenario=scenario.name,
        peer=peer.name,
        round=number_,
        messages=count,
        seconds=sent.seconds,
        rate=count / sent.seconds,
        cpu_us=peer_seconds * per_message if peer.pid else None,
        sink_us=sink_seconds * per_message,
        generator_us=sent.generator_seconds * per_message,
        p50_ms=percentile(milliseconds, 0.5),
        p99_ms=percentile(milliseconds, 0.99),
        other_cores=max(0.0, others / sent.seconds),
    )


def _used(peer: Peer, sink_pid: int) -> tuple[float, float, float]:
    return cpu.busy_seconds(), cpu.cpu_seconds(peer.pid) if peer.pid else 0.0, cpu.cpu_seconds(sink_pid)


# What is printed


def _of(results: Sequence[Measured], scenario: str, peer: str = "") -> list[Measured]:
    return [each for each in results if each.scenario == scenario and peer in ("", each.peer)]


def _table(scenario: Scenario, results: Sequence[Measured]) -> Table:
    rows: list[list[str]] = []
    for peer in dict.fromkeys(each.peer for each in _of(results, scenario.name)):
        found = _of(results, scenario.name, peer)
        rows.append(
            [
                peer,
                number(median(each.rate for each in found)),
                number(median(each.cpu_us for each in found)),
                number(median(each.p50_ms for each in found), 2),
                number(median(each.p99_ms for each in found), 2),
                number(median(each.sink_us for each in found)),
                number(median(each.generator_us for each in found)),
                number(median(each.other_cores for each in found), 2),
            ]
        )
    columns = ("peer", "msg/s", "CPU µs", "p50 ms", "p99 ms", "sink µs", "generator µs", "other")
    count = _of(results, scenario.name)[0].messages
    return Table(f"{scenario.name}: {scenario.title} ({count:,} messages)", columns, rows)


def _ratios(results: Sequence[Measured]) -> Table:
    rows: list[list[str]] = []
    for scenario in SCENARIOS:
        found = {name: _of(results, scenario.name, name) for name in (DIRECT, PROXY, postfix.NAME)}
        direct, proxy, peer = found[DIRECT], found[PROXY], found[postfix.NAME]
        name = scenario.name
        if scenario.cpu_goal is not None:
            values = [share(mine.cpu_us, theirs.cpu_us) for mine, theirs in zip(proxy, peer, strict=False)]
            rows.append([f"{name}: CPU / {postfix.NAME}", *spread(values), at_most(median(values), scenario.cpu_goal)])
        if scenario.rate_goal is not None:
            values = [share(mine.rate, theirs.rate) for mine, theirs in zip(proxy, peer, strict=False)]
            goal = at_least(median(values), scenario.rate_goal)
            rows.append([f"{name}: msg/s / {postfix.NAME}", *spread(values), goal])
        if scenario.delay_goal is not None:
            values = [_delay_share(*three) for three in zip(direct, proxy, peer, strict=False)]
            goal = at_most(median(values), scenario.delay_goal)
            rows.append([f"{name}: latency added / {postfix.NAME}", *spread(values), goal])
        if proxy:
            values = [share(mine.rate, theirs.rate) for mine, theirs in zip(proxy, direct, strict=False)]
            rows.append([f"{name}: msg/s / direct", *spread(values), ""])
    columns = ("proxy against", "median", "lowest", "highest", "goal")
    return Table("Ratios, paired within each round", columns, rows)


def _delay_share(direct: Measured, proxy: Measured, peer: Measured) -> float | None:
    if direct.p50_ms is None or proxy.p50_ms is None or peer.p50_ms is None:
        return None
    return share(proxy.p50_ms - direct.p50_ms, peer.p50_ms - direct.p50_ms)
