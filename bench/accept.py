"""Part ``accept``: messages of 5 KB made durable before their 250, beside Postfix's queue on the same disk."""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import core, postfix
from bench.options import Options
from bench.peers import Proxy, free_port
from bench.table import Report, Table, at_least, at_most

_ROUNDS = 5
_MESSAGES, _QUICK_MESSAGES = 2000, 100
_PAUSE_SECONDS = 0.3
_RATE_GOAL = 4.0
_CPU_GOAL = 1 / 6
PROXY, UNBRAKED = "proxy", f"{postfix.QUEUE}, no brake"
_HELD = "defer_transports = smtp\n"


def measure(options: Options, folder: Path, progress: Callable[[str], None]) -> Report:
    """
    Measure acceptance, peers interleaved in each round. Nothing is delivered: nobody listens where it would go.

    Args:
        folder: For what the programs write; readable by everybody.
        progress: Is told what is being done.
    """
    count = options.count or (_QUICK_MESSAGES if options.quick else _MESSAGES)
    results: list[core.Measured] = []
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(core.on_disk(folder))
        nobody = free_port()
        sections = core.settings(disk / "accept", core.smarthost(nobody), options.workers)
        peers = [stack.enter_context(Proxy(PROXY, disk, sections)).wait().peer(core.QUEUED)]
        if not postfix.missing():
            peers.append(stack.enter_context(postfix.queue(disk, nobody, more=_HELD)))
            unbraked = postfix.queue(disk, nobody, name=UNBRAKED, more=_HELD + "in_flow_delay = 0\n")
            peers.append(stack.enter_context(unbraked))
        progress("accept: durable acceptance, 20 connections, kept")
        for peer in peers:
            core.measure("accept", peer, max(core.SESSIONS, count // 8), 0)
        for round_ in range(options.rounds_or(_ROUNDS)):
            for peer in peers:
                time.sleep(0 if options.quick else _PAUSE_SECONDS)
                results.append(core.measure("accept", peer, count, round_))
        note = core.disk_note(disk)
    ratios = Table("Ratios, paired within each round", ("proxy against", "median", "lowest", "highest", "goal"), [])
    if len(peers) > 1:
        line = partial(core.ratio, results, PROXY)
        ratio_rows = [
            line(postfix.QUEUE, "accepted/s", lambda it: it.accepted, partial(at_least, goal=_RATE_GOAL)),
            line(postfix.QUEUE, "CPU", lambda it: it.cpu_us, partial(at_most, goal=_CPU_GOAL)),
            line(UNBRAKED, "accepted/s", lambda it: it.accepted, core.no_goal),
            line(UNBRAKED, "CPU", lambda it: it.cpu_us, core.no_goal),
        ]
        ratios = Table(ratios.title, ratios.columns, ratio_rows)
    tables = [core.table("20 connections, kept; deliveries held back", results), *([ratios] if ratios.rows else [])]
    notes = [
        "medians of the rounds; CPU is user and system time of all processes of the peer, in µs for each message",
        f"{UNBRAKED}: in_flow_delay = 0; Postfix waits by default for its queue manager when messages come faster",
        note,
        *([f"{postfix.QUEUE} skipped: {postfix.missing()}"] if postfix.missing() else []),
    ]
    heading = f"accept: messages of 5 KB, durable before their 250, {options.plural_workers}"
    return Report(heading, options.command("accept"), tables, [each.row() for each in results], notes)
