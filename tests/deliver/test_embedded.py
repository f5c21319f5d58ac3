"""``serve`` without any settings in an empty folder: it works at once, and nothing leaves the machine."""

import contextlib
import re
import signal
import smtplib
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.deliver.site import DeliverSite, html_message
from tests.operation.program import environment, eventually, run
from tests.support.proxy_process import WAIT_SECONDS, ProxyProcess

TOLD = re.compile(
    r"No settings, so these: listening on 127\.0\.0\.1:2525, delivering into a mailbox folder\.\n"
    r"Token for your app, user name and password in one, shown this once: (cmp_[A-Za-z0-9_-]{43})\n"
    r"Everything is kept in (\S+)\. For more: cmail-proxy serve --config FILE\n"
)
HTML = b'<html><body><p>Hello <a href="https://shop.example/orders">you</a></p></body></html>\r\n'

# The ports of the defaults may be somebody else's on the machine of the tests: others are taken, and what was asked for
# is written down.
ELSEWHERE = """
import sys
from proxy import listening
bind = listening.bind
def elsewhere(address, port):
    print("asked for", listening.place(address, port), file=sys.stderr, flush=True)
    return bind(address, 0)
listening.bind = elsewhere
from proxy.cli import main
main()
"""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[DeliverSite, Path]]:
    """Start ``serve`` in a folder, with nothing said; gives what it says to people, too."""
    proxy = ProxyProcess.__new__(ProxyProcess)
    proxy.folder, proxy.log_file, errors = folder, folder.parent / "proxy.log", folder.parent / "errors.txt"
    with proxy.log_file.open("wb") as log, errors.open("wb") as told:
        proxy.process = subprocess.Popen(
            [sys.executable, "-c", ELSEWHERE, "serve"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=told,
            env=environment(),
            cwd=folder,
        )
    try:
        listening = proxy.event("listening")
        proxy.ports = [each["port"] for each in listening["listeners"]]
        proxy.port, proxy.probes_port = proxy.ports[0], listening["probes"]["port"]
        yield DeliverSite(proxy, folder / "var" / "mailbox"), errors
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(WAIT_SECONDS) == 0
    finally:
        proxy.kill()


def send(here: DeliverSite, token: str) -> str:
    """Send mail as an app does that has the token: over TLS, with a library of its own. Gives the queue id."""
    before = len(here.proxy.events("message"))
    with smtplib.SMTP("127.0.0.1", here.proxy.port, timeout=WAIT_SECONDS) as client:
        assert client.starttls()[0] == 220
        client.login(token, token)
        client.sendmail("app@example.com", ["ann@example.net"], html_message(HTML, b"X-PM-Tag: first steps"))
    return str(here.proxy.event("message", before + 1)["id"])


def test_first_and_second_start(tmp_path: Path) -> None:
    """
    The token is shown at the first start and never again, mail lands in var/mailbox, readers and commands work, and all
    that is kept is private.
    """
    folder = tmp_path / "empty"
    folder.mkdir()
    with serving(folder) as (here, errors):
        lines = [line for line in errors.read_text().splitlines(keepends=True) if not line.startswith("asked for")]
        told = TOLD.fullmatch("".join(lines[:3]))
        assert told is not None, errors.read_text()
        assert lines[3:] == []
        token = told[1]
        assert Path(told[2]) == folder / "var"
        asked = re.findall(r"asked for (\S+)\n", errors.read_text())
        assert set(asked) == {"127.0.0.1:2525", "127.0.0.1:9025", "127.0.0.1:8080"}
        with smtplib.SMTP("127.0.0.1", here.proxy.port, timeout=WAIT_SECONDS) as client:
            client.ehlo()
            assert client.has_extn("starttls")
            assert client.mail("app@example.com")[0] == 530  # not without the token
        first = here.only(send(here, token))
        assert first.recipients == ("ann@example.net",)
        assert here.proxy.event("listening")["public"] == {
            "address": "127.0.0.1",
            "port": int(port_of(first.beacons[0])),
        }
        assert here.get(first.beacons[0]).status == 200
        assert here.get(first.clicks[0]).fields["location"] == "https://shop.example/orders"

        def report() -> bytes:
            return run("report", cwd=folder).stdout

        eventually(lambda: b" 1 (1)    1 (1)\n" in report(), "open and click in the report")
        assert report().splitlines()[1].startswith(b"first steps         1     1          1 ")
        assert token.encode() not in here.proxy.log_file.read_bytes()
    assert {each.name for each in folder.iterdir()} == {"var"}
    kept = [each for each in (folder / "var").rglob("*") if each.is_file()]
    assert not [each for each in kept if token.encode() in each.read_bytes()]
    readable = {each.name for each in kept if stat.S_IMODE(each.stat().st_mode) & 0o077}
    assert readable <= {"ca.pem"}
    with serving(folder) as (here, errors):
        assert [line for line in errors.read_text().splitlines() if not line.startswith("asked for")] == []
        second = here.only(send(here, token))
        assert second.id != first.id
        assert here.get(first.beacons[0].replace(port_of(first.beacons[0]), port_of(second.beacons[0]))).status == 200
        assert len(here.copies()) == 2


def port_of(url: str) -> str:
    """The port in a tracking link."""
    return str(urlsplit(url).port)


def test_token_is_not_made_where_the_start_fails(tmp_path: Path) -> None:
    """A port is somebody else's: a token that nobody looked for would be shown beside that, and then never again."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # somebody has it already
            stack.enter_context(socket.create_server(("127.0.0.1", 2525)))
        done = run("serve", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith("cmail-proxy: listeners[0].port: 127.0.0.1:2525: address already in use")
    assert b"oken" not in done.stderr
    assert not (tmp_path / "var" / "tokens.json").exists()


def test_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """There is nowhere to keep the token, so the start ends with what is wrong, and no trace of Python."""
    (tmp_path / "var").write_text("a file where a folder should be\n")
    done = run("serve", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines() == [
        f"error: {tmp_path}/var/tokens.json: found a file that cannot be read: Not a directory; expected tokens as "
        "cmail-proxy token add writes them",
        "cmail-proxy: 1 problem",
    ]
