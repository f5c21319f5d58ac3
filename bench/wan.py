"""Part ``wan``: an app's whole send over a long line, direct and through the proxy with its warm connections."""

import smtplib
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

from bench import certificate
from bench.forwarder import Forwarder
from bench.message import RECIPIENT, SENDER, SMALL_OCTETS, message
from bench.options import Options
from bench.peers import Proxy, Sink, secured, settings
from bench.table import Report, Row, Table, at_most, median, number

_ONE_WAY_SECONDS = 0.025
_ROUNDS = 5
_SENDS = 3
_GOAL = 0.4
_TOKEN = "bench-token-0123456789"  # noqa: S105 - of a listener on loopback that lives as long as the run
DIRECT, PLAIN, STARTTLS = "direct, STARTTLS and AUTH", "proxy, plain on loopback", "proxy, STARTTLS on loopback"


def measure(options: Options, folder: Path, progress: Callable[[str], None]) -> Report:
    """
    Time whole sends, each way in turn.

    Args:
        folder: For what the programs write.
        progress: Is told what is being done.
    """
    made = certificate.make(folder)
    context = made.client_context()
    rows: list[Row] = []
    times: dict[str, list[float]] = {DIRECT: [], PLAIN: [], STARTTLS: []}
    progress("wan: sends over a line with 25 ms each way")
    with ExitStack() as stack:
        own = stack.enter_context(Sink(folder, made))
        line = stack.enter_context(Forwarder(own.port, _ONE_WAY_SECONDS))
        sections = secured(settings(folder, line.port, made, options.workers), made)
        sections["relay"] |= {"username": _TOKEN, "password": _TOKEN}
        sections["listeners"][0] |= {"auth": "required"}
        sections["tokens"] = [{"name": "app", "token": _TOKEN}]
        proxy = stack.enter_context(Proxy("proxy", folder, sections)).wait()
        ways: tuple[tuple[str, int, ssl.SSLContext | None], ...] = (
            (DIRECT, line.port, context),
            (PLAIN, proxy.port, None),
            (STARTTLS, proxy.port, context),
        )
        content = message(SMALL_OCTETS)
        for _ in range(max(1, options.workers) * 2):
            _send(proxy.port, None, content)  # warms the pool, of every worker if there are more
        for number_ in range(options.rounds_or(_ROUNDS) * _SENDS):
            for name, port, way_context in ways:
                seconds = _send(port, way_context, content)
                times[name].append(seconds)
                rows.append({"part": "wan", "way": name, "round": number_, "ms": seconds * 1e3})
    round_trip_ms = _ONE_WAY_SECONDS * 2e3
    printed: list[list[str]] = []
    for name, found in times.items():
        middle = (median(found) or 0.0) * 1e3
        share = median(mine / theirs for mine, theirs in zip(found, times[DIRECT], strict=True))
        row = [name, number(middle, 1), number(middle / round_trip_ms, 1), number(share, 2)]
        printed.append([*row, at_most(share, _GOAL) if name != DIRECT else ""])
    columns = ("way", "ms, median", "round trips", "of direct", "goal")
    title = "An app's whole send: connect, EHLO, (STARTTLS,) AUTH, MAIL, RCPT, DATA, QUIT; smtplib, 5 KB"
    heading = f"wan: a line with a round trip of {round_trip_ms:g} ms, TLS and AUTH at the platform"
    notes = ["the line has no limit on bandwidth and no slow start; with either, both ways to send take longer"]
    return Report(heading, options.command("wan"), [Table(title, columns, printed)], rows, notes)


def _send(port: int, context: ssl.SSLContext | None, content: bytes) -> float:
    """Send one message as an app does that connects for each, and give the time."""
    started = perf_counter()
    with smtplib.SMTP("127.0.0.1", port, local_hostname="app.example.com", timeout=20) as client:
        if context is not None:
            client.starttls(context=context)
        client.login(_TOKEN, _TOKEN)
        client.sendmail(SENDER, [RECIPIENT], content)
    return perf_counter() - started
