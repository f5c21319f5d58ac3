"""
Measure the proxy on this machine: ``python bench/run.py [PART…]``, or ``make bench``. Loopback only; needs Linux.

Exit codes: 0 done, 1 something did not work, 2 wrong usage. Goals that are missed are shown, and are no error.
"""

import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from bench import accept, backlog, compose, cpu, deliver, large, load, postfix, relay, start, translate, wan
from bench.options import Options
from bench.peers import PeerError
from bench.table import Report, Row
from proxy import __version__

Part = Callable[[Options, Path, Callable[[str], None]], Report]

PARTS: dict[str, Part] = {
    "translate": lambda options, _folder, _progress: translate.measure(options),
    "relay": relay.measure,
    "large": large.measure,
    "wan": wan.measure,
    "start": start.measure,
    "accept": accept.measure,
    "deliver": deliver.measure,
    "compose": lambda options, _folder, _progress: compose.measure(options),
    "backlog": backlog.measure,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)), metavar="[PART]...")
@click.option("--quick", is_flag=True, help="Few and small measurements: to see that it works, not for figures.")
@click.option("--rounds", type=click.IntRange(1, 100), help="Times each measurement is made.  [default: 5, in large 3]")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes of the proxy.")
@click.option(
    "--count",
    type=click.IntRange(1, 100_000),
    help="Messages of each measurement, where many are sent.",
)
@click.option("--markdown", is_flag=True, help="Print Markdown, with what is known of the machine.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every measurement.")
def main(
    parts: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    workers: int,
    count: int | None,
    markdown: bool,
    json_file: Path | None,
) -> None:
    """
    Measure speed and memory: translate, relay, large, wan and start for the relay, accept, deliver, compose and backlog
    for the sending core; all of them when no PART is named.

    README.md beside this file says what each part does, and how to read it.
    """
    if sys.platform != "linux":
        raise click.ClickException("CPU and memory are read from /proc, which only Linux has")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything that was started is stopped
    load.reserve_descriptors()
    options = Options(quick=quick, rounds=rounds or 0, workers=workers, count=count or 0)
    facts = _facts()
    reports: list[Report] = []
    click.echo(_header(facts, markdown=markdown))
    if quick:
        click.echo("\n--quick: this shows that the benchmark works; the figures mean nothing")
    started = time.monotonic()
    for name in dict.fromkeys(parts or PARTS):
        reports.append(_measure(PARTS[name], options))
        click.echo("\n" + (reports[-1].markdown() if markdown else reports[-1].text()))
    click.echo(f"done in {time.monotonic() - started:.0f} s", err=True)
    if json_file is not None:
        rows: Sequence[Row] = [row for report in reports for row in report.rows]
        document: dict[str, Any] = {"machine": facts, "command": sys.argv[1:], "measurements": rows}
        json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _measure(part: Part, options: Options) -> Report:
    with tempfile.TemporaryDirectory(prefix="cmail-proxy-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers of Postfix run as another user
        try:
            return part(options, folder, lambda text: click.echo(f"… {text}", err=True))
        except (PeerError, load.LoadError) as error:
            raise click.ClickException(str(error)) from None


def _facts() -> dict[str, str]:
    """Say what the figures depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cmail-proxy": __version__,
        "CPU": cpu.model(),
        "memory": f"{memory:.0f} GB",
        "load average before": f"{os.getloadavg()[0]:.2f}",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "uvloop": _uvloop_version(),
        "Postfix": postfix.version() or "not installed",
    }


def _uvloop_version() -> str:
    try:
        return version("uvloop")
    except PackageNotFoundError:
        return "not installed"


def _header(facts: dict[str, str], *, markdown: bool) -> str:
    if markdown:
        return "\n".join(["# Results", "", *(f"- {name}: {value}" for name, value in facts.items())])
    return "; ".join(f"{name} {value}" for name, value in facts.items())


if __name__ == "__main__":
    main()
