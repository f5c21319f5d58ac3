"""Part ``start``: how soon the proxy is ready, and how much memory it takes when idle."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import certificate, cpu
from bench.options import Options
from bench.peers import PeerError, Proxy, Sink, deadline, free_port, greeting, ready, settings
from bench.table import Report, Row, Table, at_most, median, number

_ROUNDS = 5
_IDLE_SECONDS = 1.0
_LOOK_SECONDS = 0.002
_READY_GOAL_SECONDS = 1.0
_MEMORY_GOAL_MB = 60.0


def measure(options: Options, folder: Path, progress: Callable[[str], None]) -> Report:
    """
    Start the proxy several times.

    Args:
        folder: For what the programs write.
        progress: Is told what is being done.
    """
    made = certificate.make(folder)
    rows: list[Row] = []
    progress("start: from exec to ready")
    greeted: list[float] = []
    was_ready: list[float] = []
    idle: list[float] = []
    with Sink(folder, made) as sink:
        for number_ in range(-1, options.rounds_or(_ROUNDS)):
            sections = settings(folder, sink.port, made, options.workers)
            # Known ports, so that nothing has to be read from the log: the first look may find nobody there yet.
            port = sections["listeners"][0]["port"] = free_port()
            probes_port = sections["http"]["probes"]["port"] = free_port()
            started = time.perf_counter()
            with Proxy("proxy", folder, sections) as proxy:
                first = _wait(proxy, started, partial(_greeted, port))
                second = _wait(proxy, started, partial(ready, probes_port))
                time.sleep(_IDLE_SECONDS)
                megas = cpu.resident_octets(proxy.pid) / 1e6
            if number_ < 0:
                continue  # the first start reads from disk and may compile
            greeted.append(first)
            was_ready.append(second)
            idle.append(megas)
            rows.append(
                {"part": "start", "round": number_, "greeting_s": first, "ready_s": second, "idle_rss_mb": megas}
            )
    soon, small = median(was_ready), median(idle)
    printed = [
        _line("first 220, s", greeted, 3, ""),
        _line("/readyz says 200, s", was_ready, 3, at_most(soon, _READY_GOAL_SECONDS)),
        _line("resident when idle, MB", idle, 1, at_most(small, _MEMORY_GOAL_MB)),
    ]
    table = Table(
        "From exec, and one second after it was ready", ("what", "median", "lowest", "highest", "goal"), printed
    )
    return Report("start: time to ready, memory when idle", options.command("start"), [table], rows)


def _line(what: str, values: list[float], digits: int, goal: str) -> list[str]:
    return [what, *(number(each, digits) for each in (median(values), min(values), max(values))), goal]


def _wait(proxy: Proxy, started: float, arrived: Callable[[], bool]) -> float:
    """Look again and again, and give the time since *started*."""
    until = deadline()
    while not arrived():
        proxy.require_alive()
        if time.monotonic() > until:
            raise PeerError("the proxy did not start")
        time.sleep(_LOOK_SECONDS)
    return time.perf_counter() - started


def _greeted(port: int) -> bool:
    return greeting(port) is not None
