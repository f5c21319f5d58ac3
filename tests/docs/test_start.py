"""The README's way from nothing to a translated message, as it is written there."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from tests.conftest import require_tool
from tests.docs.pages import README, ROOT, block, spans
from tests.operation.program import environment, run
from tests.support.proxy_process import WAIT_SECONDS

PROGRAMS = {".venv/bin/cmail-proxy": "proxy", ".venv/bin/aiosmtpd": "aiosmtpd"}


@frozen
class Running:
    """The proxy and the stand-in of the README, on ports that are free."""

    port: int
    log: Path
    printed: Path

    def here(self, text: str) -> str:
        """A block of the README, with our port."""
        return text.replace("2525", str(self.port))


def command(line: str) -> list[str]:
    """A command line of the README, for the Python that runs the tests."""
    program, *arguments = line.split()
    return [sys.executable, "-m", PROGRAMS[program], *arguments]


@contextmanager
def started(line: str, folder: Path, output: Path, **environ: str) -> Iterator[None]:
    """Run a command line of the README in *folder* for a while."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            command(line), cwd=folder, env=environment({"PYTHONUNBUFFERED": "1", **environ}), stdout=file, stderr=file
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(WAIT_SECONDS)


def wait_for(file: Path, text: str) -> str:
    """Wait until a file has a text in it, and give all it has."""
    until = time.monotonic() + WAIT_SECONDS
    while text not in (written := file.read_text("utf-8")):
        if time.monotonic() > until:
            raise AssertionError(f"no {text!r} in {written}")
        time.sleep(0.02)
    return written


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Do what the README says up to the message."""
    folder = tmp_path_factory.mktemp("first")
    sink_port = str(free_port())
    settings = block(README, "yaml", "first.yaml")
    assert len(settings.splitlines()) == 5  # "five lines of settings"
    (folder / "first.yaml").write_text(settings.replace("2525", "0").replace("2526", sink_port), "utf-8")
    printed, log = folder / "printed", folder / "log"
    stand_in = block(README, "sh", "stand-in").replace("2526", sink_port)
    with ExitStack() as stack:
        stack.enter_context(started(stand_in, folder, printed))
        proxy = started(block(README, "sh", "serve"), folder, log, CMAIL_PROXY_HTTP__PROBES__PORT="0")
        stack.enter_context(proxy)
        wait_for(log, '"listening"')
        (port,) = (each["port"] for each in _events(log, "listening")[0]["listeners"])
        yield Running(port, log, printed)


def _events(log: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def arrived(running: Running, before: int) -> str:
    """The message that the stand-in printed after *before* others."""
    until = time.monotonic() + WAIT_SECONDS
    while (printed := running.printed.read_text("utf-8")).count("END MESSAGE") <= before:
        assert time.monotonic() < until, printed
        time.sleep(0.02)
    return printed.split("MESSAGE FOLLOWS")[before + 1]


def require_translated(message: str) -> None:
    """Require what the README promises of the message."""
    assert "\nX-Cmail-GroupName: welcome\n" in message
    assert "\nX-Cmail-TrackClicks: false\n" in message
    assert "X-Mailgun" not in message


def test_first_message_by_python_arrives_translated(running: Running) -> None:
    """The README's settings, stand-in and Python lines give a translated message and a log line that explains it."""
    before = running.printed.read_text("utf-8").count("END MESSAGE")
    script = running.here(block(README, "python", "send"))
    subprocess.run([sys.executable, "-c", script], check=True, timeout=WAIT_SECONDS)
    require_translated(arrived(running, before))
    wait_for(running.log, '"message"')
    line = _events(running.log, "message")[-1]
    assert line["login"] == "shop"
    assert [(each["field"], each["source"]) for each in line["set"]] == [
        ("X-Cmail-GroupName", "X-Mailgun-Tag"),
        ("X-Cmail-TrackClicks", "X-Mailgun-Track-Clicks"),
    ]


def test_first_message_by_swaks_arrives_translated(running: Running) -> None:
    """The README's swaks line works as it stands."""
    folder = Path(require_tool("swaks")).parent
    before = running.printed.read_text("utf-8").count("END MESSAGE")
    script = running.here(block(README, "sh", "swaks"))
    path = os.pathsep.join([str(folder), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        ["sh", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    require_translated(arrived(running, before))


def test_explanation_in_the_readme_is_what_the_command_prints() -> None:
    """The README shows the output of a command on a fixture of this repository, word for word."""
    line = block(README, "sh", "explain").split()
    assert line[0] == ".venv/bin/cmail-proxy"
    done = run(*line[1:], cwd=ROOT)
    assert done.stdout.decode() == block(README, "text", "explain")
    assert done.returncode == 0


def test_check_before_the_first_start_warns_of_the_platforms_defaults(tmp_path: Path) -> None:
    """What the README runs first says ok and names each default that changes; its advice works; no file is made."""
    config = tmp_path / "first.yaml"
    config.write_text(block(README, "yaml", "first.yaml"), "utf-8")
    line = command(block(README, "sh", "check"))
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("ok: ")
    warned = done.stderr.splitlines()
    assert [each for each in warned if "X-Cmail-TrackOpens, X-Cmail-TrackClicks, X-Cmail-InlineCSS" in each]
    assert [each for each in warned if not each.startswith("warning: rules.when_absent: platform: ")] == []
    (advice,) = [span for span in spans(README) if span.startswith("rules: {when_absent")]
    config.write_text(f"{config.read_text('utf-8')}{advice}\n", "utf-8")
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    assert [each.name for each in tmp_path.iterdir()] == ["first.yaml"]


def test_programs_of_the_readme_come_with_the_installation() -> None:
    """What the README runs from `.venv/bin` is installed by what the proxy needs to run."""
    scripts = {script.name for script in entry_points(group="console_scripts")}
    assert {program.rpartition("/")[2] for program in PROGRAMS} <= scripts
