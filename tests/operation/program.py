"""The program as an operator starts it: commands that end by themselves, and ``serve`` in every situation."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from proxy.rulebook import shipped_rules
from tests.support.proxy_process import WAIT_SECONDS, ProxyProcess

ROOT = Path(__file__).parents[2]
MODULE = (sys.executable, "-m", "proxy")
"""The program, however it was installed."""

RULE = re.compile(r"mappings/([a-z]+\.yaml):([0-9]+)")
"""A place in one of our rule files."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of this process without settings of ours, and *extra*."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CMAIL_PROXY_")}
    return {**clean, **(extra or {})}


def run(
    *arguments: str | Path,
    stdin: bytes = b"",
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    command: Sequence[str | Path] = MODULE,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command of the program to its end."""
    return subprocess.run(
        [*command, *arguments],
        input=stdin,
        capture_output=True,
        env=environment(environ),
        cwd=cwd,
        timeout=WAIT_SECONDS,
        check=False,
    )


def write_settings(path: Path, values: Mapping[str, Any]) -> Path:
    """Write settings with each section on a line of its own; JSON is YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()), "utf-8")
    return path


def eventually(condition: Callable[[], object], what: str = "", seconds: float = WAIT_SECONDS) -> None:
    """Wait until something is true."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.02)


def processes_with(mark: str) -> list[int]:
    """All processes whose environment holds *mark*."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    return found


def is_running(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("latin-1").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def taken_port() -> Iterator[int]:
    """A port on loopback that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def free_port() -> int:
    """
    Find a port on loopback where nobody listens, for a program that cannot choose one itself.

    It is none of those that the kernel gives out by itself: another test could have it by the time the program starts.
    """
    for port in random.sample(range(20_000, 32_768), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def rule_at(where: str) -> str:
    """The rule of one of our files that begins at ``mappings/FILE:LINE``."""
    place = RULE.fullmatch(where)
    if place is None:
        raise AssertionError(where)
    lines = (shipped_rules() / place[1]).read_text("utf-8").splitlines()[int(place[2]) - 1 :]
    if not lines[0].startswith("  - "):
        raise AssertionError(f"no rule begins at {where}: {lines[0]}")
    rule = [lines[0]]
    for line in lines[1:]:
        if not line.startswith("    "):
            break
        rule.append(line)
    return "\n".join(rule)


def line_with(path: Path, text: str) -> int:
    """The number of the only line of a file that holds a text, counted from 1."""
    lines = path.read_text("utf-8").splitlines()
    (number,) = (index for index, line in enumerate(lines, 1) if text in line)
    return number


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    """Read metrics as Prometheus does; every family stands there once, and every series."""
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    if len(set(names)) != len(names):
        raise AssertionError(f"a family twice: {names}")
    found: Samples = {}
    for family in families:
        for each in family.samples:
            key = (each.name, frozenset(each.labels.items()))
            if key in found:
                raise AssertionError(f"a series twice: {key}")
            found[key] = each.value
    return found


def interrupt(process: ProxyProcess, number: signal.Signals = signal.SIGTERM) -> None:
    """Ask a proxy to end, and wait until it knows."""
    process.process.send_signal(number)
    process.event("stopping")
