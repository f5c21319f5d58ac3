"""The relay keeps nothing: not on disk, and so nothing that a kill could lose."""

import signal
import threading
from pathlib import Path

import pytest

from tests.relay.site import Relay, relay
from tests.smtp_in.dialogue import QUEUED
from tests.smtp_in.site import MESSAGE

SUBJECT = b"Subject: "


def files(folder: Path) -> set[str]:
    """All there is below a folder."""
    return {str(each.relative_to(folder)) for each in folder.rglob("*")}


def test_relay_has_no_store(tmp_path: Path) -> None:
    """`relay.host` alone chooses the route, and whatever becomes of messages, nothing is written but the log."""
    with relay(tmp_path) as here:
        here.warm_up()
        assert "route" not in here.proxy.config.read_text("utf-8")
        here.serves()
        with here.client() as client:
            assert client.data(b"X-MC-Template: t\r\n\r\n.\r\n").startswith("554 5.6.0 ")
            assert client.data(b"X-Mailgun-Drop-Message: yes\r\n\r\n.\r\n").startswith("250 2.0.0 Discarded ")
            here.upstream.script({"dot": "452 4.3.1 full"})
            assert client.data(MESSAGE) == "452 4.3.1 full"
            client.envelope()
            client.send(b"Subject: half\r\n\r\nbo")
        here.proxy.event("message", 5)
        assert files(tmp_path) == {"settings.yaml", "proxy.log"}
        assert here.proxy.stop() == 0
        assert files(tmp_path) == {"settings.yaml", "proxy.log"}


def test_kill_under_load_leaves_no_250_that_the_platform_did_not_give(tmp_path: Path) -> None:
    """Apps that send as fast as they can, and SIGKILL in the middle: all that was told 250 is with the platform."""
    told: list[bytes] = []

    def send(here: Relay, app: int) -> None:
        try:
            with here.client() as client:
                for number in range(10_000):
                    subject = b"%d-%d" % (app, number)
                    if client.data(SUBJECT + subject + b"\r\n\r\nbody\r\n.\r\n") == QUEUED:
                        told.append(subject)
        except (OSError, AssertionError):  # the end, in the middle of anything
            return

    with relay(tmp_path) as here:
        here.warm_up()
        apps = [threading.Thread(target=send, args=(here, app), daemon=True) for app in range(4)]
        for app in apps:
            app.start()
        here.upstream.wait_for(lambda: len(here.upstream.taken) >= 100)
        here.proxy.kill()
        for app in apps:
            app.join(20)
        assert here.proxy.process.returncode == -signal.SIGKILL
        taken = [each.content.partition(SUBJECT)[2].partition(b"\r\n")[0] for each in here.upstream.taken]
        assert len(told) >= 100 - len(apps)
        assert set(told) <= set(taken)
        assert len(taken) == len(set(taken)) <= len(told) + len(apps)  # one for each app may be behind its dot


@pytest.mark.parametrize("stage", ["before-the-dot", "behind-the-dot"])
def test_kill_in_a_message_leaves_half_of_it_nowhere(tmp_path: Path, stage: str) -> None:
    """The platform gets a message with its dot, or none."""
    with relay(tmp_path) as here:
        here.warm_up()
        (dialogue,) = here.upstream.open
        with here.client() as client:
            client.envelope()
            client.send(b"Subject: x\r\n\r\nfirst line\r\nsecond")
            here.upstream.wait_for(lambda: dialogue.octets > 0)
            if stage == "behind-the-dot":
                client.send(b" line\r\n.\r\n")
                assert client.reply() == QUEUED
            here.proxy.kill()
            assert client.closed()
        here.upstream.wait_for(lambda: dialogue.closed)
        assert len(here.upstream.taken) == (stage == "behind-the-dot")
