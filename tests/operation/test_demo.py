"""``demo``: what a new user runs first."""

import os
import re
import signal
import smtplib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import click
import pytest

from tests.operation.program import MODULE, environment, eventually, processes_with, run, taken_port
from tests.support.proxy_process import WAIT_SECONDS

AFTER = {
    "Mailgun": ["X-Cmail-GroupName: order confirmation", "X-Cmail-TrackClicks: false"],
    "Mailjet": ["X-Cmail-GroupName: order-confirmation", "X-Cmail-TrackOpens: false"],
    "Mandrill": [
        "X-Cmail-GroupName: order confirmation",
        "X-Cmail-TrackOpens: true",
        "X-Cmail-TrackClicks: false",
        "X-Cmail-InlineCSS: true",
    ],
    "Postmark": ["X-Cmail-GroupName: order confirmation", "X-Cmail-TrackOpens: true", "X-Cmail-TrackClicks: false"],
    "SendGrid": ["X-Cmail-GroupName: order confirmation", "X-Cmail-TrackOpens: true", "X-Cmail-TrackClicks: false"],
}
BEFORE = {
    "Mailgun": "X-Mailgun-Tag: order confirmation X-Mailgun-Tag: shop X-Mailgun-Track-Clicks: no "
    'X-Mailgun-Variables: {"order": "1"}',
    "Mailjet": "X-Mailjet-Campaign: order-confirmation X-Mailjet-TrackOpen: 0",
    "Mandrill": "X-MC-Tags: order confirmation, shop X-MC-Track: opens X-MC-InlineCSS: true",
    "Postmark": "X-PM-Tag: order confirmation X-PM-TrackOpens: true X-PM-TrackLinks: None",
    "SendGrid": 'X-SMTPAPI: {"category": ["order confirmation", "shop"], "unique_args": {"order": "1"}, '
    '"filters": {"opentrack": {"settings": {"enable": 1}}, "clicktrack": {"settings": {"enable": 0}}}}',
}

LOST = {"Mailgun": "X-Mailgun-Variables (webhook data)", "SendGrid": "X-SMTPAPI unique_args (webhook data)"}
"""What is told below the fields, where there is anything to tell."""

# Gives the program a terminal of its own, as a login shell would: Ctrl-C there reaches all its processes, whatever this
# process was told to ignore (nohup and background jobs ignore SIGINT, and children inherit that).
ON_TERMINAL = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.login_tty(int(sys.argv[1])); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


class Place:
    """Where a demo runs: what it leaves behind shows here."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.mark = f"CMAIL_TEST_MARK={uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.environ = {"TMPDIR": str(folder), name: value, "PYTHONUNBUFFERED": "1"}

    def require_tidy(self) -> None:
        """Require that no process and no file is left."""
        eventually(lambda: not processes_with(self.mark), "no process of the demo is left", seconds=5)
        left = [str(file) for file in self.folder.iterdir() if file.name.startswith("cmail-proxy-demo-")]
        if left:
            raise AssertionError(left)


class Terminal:
    """A demo on a terminal."""

    def __init__(self, place: Place) -> None:
        self.shown = ""
        self._ours, theirs = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, str(theirs), *MODULE, "demo"],
            pass_fds=[theirs],
            env=environment({**place.environ, "TERM": "dumb"}),
        )
        os.close(theirs)
        os.set_blocking(self._ours, False)

    def read(self) -> str:
        """Read what is on the screen by now."""
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # nothing more at the moment, or nobody at the other end
                return self.shown
            self.shown += data.decode()

    def wait_for(self, text: str) -> None:
        """Wait until a text is on the screen."""
        until = time.monotonic() + WAIT_SECONDS
        while text not in self.read():
            if time.monotonic() > until or self.process.poll() is not None:
                raise AssertionError(self.shown)
            time.sleep(0.02)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._ours, keys)

    def end(self) -> int:
        """Wait for the end, reading on, and give the exit code."""
        eventually(lambda: (self.read(), self.process.poll() is not None)[1], "the demo ends")
        return self.process.returncode

    def close(self) -> None:
        """End what has not ended."""
        self.process.kill()
        self.process.wait(WAIT_SECONDS)
        os.close(self._ours)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A folder for temporary files, and a mark for processes; those that a failed test leaves are ended."""
    given = Place(tmp_path / "tmp")
    yield given
    for pid in processes_with(given.mark):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def terminal(place: Place) -> Iterator[Terminal]:
    """A demo on a terminal that says it is still running."""
    started = Terminal(place)
    try:
        started.wait_for("Ctrl-C ends it.")
        yield started
    finally:
        started.close()


def parts(shown: str) -> dict[str, str]:
    """Split the output by provider."""
    found: dict[str, str] = {}
    for title in AFTER:
        head, _, rest = shown.partition(f"\n{title}\n")
        assert head != shown, f"no {title}: {shown}"
        found[title] = rest.partition("\n\n")[0]
    return found


def words_of(pid: int) -> list[bytes]:
    """The command line of a process; empty when it has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def test_demo_without_a_terminal_shows_all_and_ends(place: Place) -> None:
    """Each provider's message is shown before and after; then the demo ends by itself, and leaves nothing behind."""
    done = run("demo", environ=place.environ)
    assert (done.returncode, done.stderr) == (0, b"")
    for title, text in parts(done.stdout.decode()).items():
        head, *lines = text.splitlines()
        if title in LOST:
            assert lines.pop() == f"  not passed on: {LOST[title]}"
        assert head.split("  ") == ["", "before (what the app sent)", *[""] * 11, "after (what the platform received)"]
        assert " ".join(" ".join(line[2:50] for line in lines).split()) == BEFORE[title]
        assert [line[52:].rstrip() for line in lines if line[52:]] == AFTER[title]
    look = done.stdout.decode().partition("Where to look next:\n")[2]
    assert "cmail-proxy translate --explain MESSAGE.eml" in look
    assert "README.md, “Switching from …” for your provider" in look
    place.require_tidy()


def test_demo_shows_the_sending_core_with_an_open_and_a_click_in_its_report(place: Place) -> None:
    """Five messages into a mailbox folder, one beacon fetched, one link followed, and both in the report by group."""
    shown = run("demo", environ=place.environ).stdout.decode()
    half = shown.partition("Without a platform: the sending core\n")[2]
    assert re.search(r"delivered +5 mails into \S+/core/mailbox\n", half)
    assert "opened       a beacon was fetched: 200, 43 octets of GIF\n" in half
    assert "clicked      a link was followed, to https://example.com/orders/1\n" in half
    rows = [re.split(r"  +", line.strip()) for line in half.splitlines() if line.startswith("    order")]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("order confirmation", "4", "4"),
        ("order-confirmation", "1", "1"),
    ]
    assert sorted(row[7] for row in rows) == sorted(row[8] for row in rows) == ["0 (0)", "1 (1)"]
    place.require_tidy()


def test_demo_on_a_terminal_takes_mail_until_it_is_interrupted(place: Place, terminal: Terminal) -> None:
    """It stays up for mail of the user's own; Ctrl-C ends it with exit code 0 and no word of Python."""
    port = re.search(r"SMTP to 127\.0\.0\.1:([0-9]+), user and password (\S+)", terminal.shown)
    received = re.search(r"what the sink received +(\S+)", terminal.shown)
    assert port is not None
    assert received is not None
    programs = [words_of(pid) for pid in processes_with(place.mark)]
    assert len([words for words in programs if b"proxy.demo.sink" in words]) == 1  # what stands for the platform
    assert len([words for words in programs if b"serve" in words]) >= 1
    for path in re.findall(r"(?:one line for each message|the settings used) +(\S+)", terminal.shown):
        assert Path(path).is_file()
    shown = parts(click.unstyle(terminal.shown).replace("\r\n", "\n"))
    assert {title for title, text in shown.items() if "not passed on: " in text} == set(LOST)
    assert shown["Mailgun"].endswith(f"\n  not passed on: {LOST['Mailgun']}")
    with smtplib.SMTP("127.0.0.1", int(port[1]), timeout=WAIT_SECONDS) as client:
        client.login(port[2], port[2])
        client.sendmail("me@example.com", ["you@example.com"], "X-PM-Tag: mine\r\n\r\nhello\r\n")
    arrived = Path(received[1]) / "06.eml"
    eventually(arrived.exists)
    assert b"X-Cmail-GroupName: mine\r\n" in arrived.read_bytes()
    terminal.type(b"\x03")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.shown
    place.require_tidy()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_demo_that_is_ended_from_outside_leaves_nothing_behind(
    place: Place, terminal: Terminal, number: signal.Signals
) -> None:
    """A closed window or a time limit ends the demo's processes too, and removes its files."""
    terminal.process.send_signal(number)
    terminal.end()
    assert "Traceback" not in terminal.shown
    place.require_tidy()


def test_demo_on_a_port_in_use_says_so(place: Place) -> None:
    """What keeps the proxy from starting is told, and the sink that was started goes again."""
    with taken_port() as port:
        done = run("demo", "--port", str(port), environ=place.environ)
    assert done.returncode == 1
    lines = [line for line in done.stderr.decode().splitlines() if line]
    assert lines[0] == "demo: the proxy did not start:"
    assert lines[-1] == (
        f"cmail-proxy: listeners[0].port: 127.0.0.1:{port}: address already in use; stop the program that "
        "listens there, or choose another port"
    )
    place.require_tidy()


def test_demo_takes_no_settings_from_the_environment(place: Place) -> None:
    """What the user has set for the real thing does not get into the demo."""
    environ = {**place.environ, "CMAIL_PROXY_RELAY__HOST": "smtp.example.com", "CMAIL_PROXY_WORKERS": "many"}
    assert run("demo", environ=environ).returncode == 0
    place.require_tidy()
