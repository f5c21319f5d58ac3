"""Part ``deliver``: messages of 5 KB to a smarthost, from the first connection to the last one at the sink."""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import core, postfix
from bench.options import Options
from bench.peers import Proxy, Sink
from bench.table import Report, Table, at_least

_ROUNDS = 5
_MESSAGES, _QUICK_MESSAGES = 2000, 100
_PAUSE_SECONDS = 0.3
_RATE_GOAL = 3.0
PROXY = "proxy"


def measure(options: Options, folder: Path, progress: Callable[[str], None]) -> Report:
    """
    Measure delivery, peers interleaved in each round; both accept, keep and deliver at the same time.

    Args:
        folder: For what the programs write; readable by everybody.
        progress: Is told what is being done.
    """
    count = options.count or (_QUICK_MESSAGES if options.quick else _MESSAGES)
    results: list[core.Measured] = []
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(core.on_disk(folder))
        sink = stack.enter_context(Sink(disk, None))
        taken = stack.enter_context(sink.counter())
        sections = core.settings(disk / "deliver", core.smarthost(sink.port), options.workers)
        peers = [stack.enter_context(Proxy(PROXY, disk, sections)).wait().peer(core.QUEUED)]
        if not postfix.missing():
            peers.append(stack.enter_context(postfix.queue(disk, sink.port)))
        progress("deliver: to a smarthost, 20 connections, kept")
        for peer in peers:
            core.measure("deliver", peer, max(core.SESSIONS, count // 8), 0, taken=taken)
        for round_ in range(options.rounds_or(_ROUNDS)):
            for peer in peers:
                time.sleep(0 if options.quick else _PAUSE_SECONDS)
                results.append(core.measure("deliver", peer, count, round_, taken=taken, sink_pid=sink.pid))
        note = core.disk_note(disk)
    tables = [core.table("20 connections, kept", results)]
    if len(peers) > 1:
        line = partial(core.ratio, results, PROXY, postfix.QUEUE)
        rows = [
            line("delivered/s", lambda it: it.delivered, partial(at_least, goal=_RATE_GOAL)),
            line("accepted/s", lambda it: it.accepted, core.no_goal),
            line("CPU", lambda it: it.cpu_us, core.no_goal),
        ]
        columns = ("proxy against", "median", "lowest", "highest", "goal")
        tables.append(Table("Ratios, paired within each round", columns, rows))
    notes = [
        "the messages are plain text and nothing is tracked, so there is nothing to compose",
        note,
        *([f"{postfix.QUEUE} skipped: {postfix.missing()}"] if postfix.missing() else []),
    ]
    heading = f"deliver: messages of 5 KB to a smarthost, {options.plural_workers}"
    return Report(heading, options.command("deliver"), tables, [each.row() for each in results], notes)
