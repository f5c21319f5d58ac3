"""
``kill -9`` at any moment, and what must not be lost by it.

``CRASH_RUNS`` says how often the proxy is killed under load; 5 times where it is not set.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import require_tool
from tests.deliver.plant import IMPATIENT, Load, Plant, Sink, eventually, unsettled
from tests.support.upstream import Upstream

RUNS = int(os.environ.get("CRASH_RUNS", "5"))
CLIENTS = 20
PATIENT = IMPATIENT.replace("final_reply_seconds=2", "final_reply_seconds=20")


def kill_under_load(plant: Plant, load: Load, runs: int, scratch: Path, seen: "Sink | MailboxCounter") -> set[str]:
    """
    Kill the proxy at random moments, and start it again.

    Returns:
        Messages whose final dot had come when a kill came, and whose delivery was not written by then.
    """
    window: set[str] = set()
    for run in range(runs):
        before = len(load.told)
        eventually(lambda before=before: len(load.told) > before, "load")  # type: ignore[misc]
        time.sleep(random.random() * 0.8)  # noqa: S311 - any moment
        plant.proxy.kill()
        window |= unsettled(plant.data, scratch / str(run)) & seen.names()
        shutil.rmtree(scratch / str(run))
        plant.start()
    return window


class MailboxCounter:
    """How often each message lies in a Maildir folder, by its ``X-Id``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, str] = {}

    @property
    def seen(self) -> Counter[str]:
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name not in self._known:
                    found = re.search(rb"^X-Id: (\S+)", path.read_bytes(), re.MULTILINE)
                    self._known[path.name] = found[1].decode() if found else ""
        return Counter(self._known.values())

    def names(self) -> set[str]:
        return set(self.seen)


@pytest.mark.timeout(60 + 10 * RUNS)
def test_kill_under_load_loses_nothing_and_repeats_only_what_was_behind_its_dot(tmp_path: Path) -> None:
    """Every message that got 250 arrives; one arrives twice only if its first dot was there and not yet written."""
    sink = Sink()
    smarthost = {"host": "127.0.0.1", "port": sink.port, "tls": "none"}
    with Plant(tmp_path, {"via": "smarthost", "smarthost": smarthost, "connections": 10}) as plant:
        load = Load(plant.port, CLIENTS, lambda: len(sink.seen))
        window = kill_under_load(plant, load, RUNS, tmp_path / "scratch", sink)
        load.stop()
        eventually(lambda: not plant.pending(), "all delivered", 60)
        told, seen = set(load.told), Counter(sink.seen)
        assert plant.proxy.stop() == 0
    sink.close()
    assert told - set(seen) == set()
    twice = {name for name, number in seen.items() if number > 1}
    assert twice <= window
    assert max(seen.values()) <= 1 + RUNS
    print(f"\n{len(told)} messages got 250, {len(seen)} arrived, {len(twice)} twice in {RUNS} kills")
    assert len(told) > 10 * RUNS


@pytest.mark.timeout(120)
def test_kill_under_load_loses_nothing_that_goes_to_the_mailbox(tmp_path: Path) -> None:
    """The same with files for destination: what is in ``new`` is whole, and nothing told is missing."""
    with Plant(tmp_path, {"via": "mailbox"}) as plant:
        new = plant.data / "mailbox" / "new"
        counter = MailboxCounter(new)
        load = Load(plant.port, CLIENTS)
        window = kill_under_load(plant, load, 2, tmp_path / "scratch", counter)
        load.stop()
        eventually(lambda: not plant.pending(), "all delivered", 60)
        assert plant.proxy.stop() == 0
        seen = counter.seen
        assert load.told - set(seen) == set()
        assert {name for name, number in seen.items() if number > 1} <= window
        for path in new.iterdir():
            assert path.read_bytes().endswith(b"line of a body\r\n")


def test_data_is_synced_between_the_dot_and_the_250(tmp_path: Path) -> None:
    """Seen from outside, for contents in the database and in a file of their own: nothing is told before its sync."""
    strace = require_tool("strace")
    trace, told = tmp_path / "trace", tmp_path / "strace.log"
    with Plant(tmp_path, {"via": "mailbox"}) as plant:
        plant.send()
        calls = "trace=fsync,fdatasync,write,writev,sendto,sendmsg"
        pid = str(plant.proxy.process.pid)
        command = [strace, "-f", "-yy", "-s", "400", "-o", str(trace), "-e", calls, "-p", pid]
        with told.open("wb") as log:
            process = subprocess.Popen(command, stderr=log)
        try:
            eventually(lambda: "attached" in told.read_text() or process.poll() is not None, "strace")
            if process.poll() is not None:
                pytest.skip(f"strace may not attach: {told.read_text()[:200]}")
            time.sleep(0.2)  # it attaches to one thread after another
            ids = [plant.send(body=b"x" * 70 + b"\r\n"), plant.send(body=(b"y" * 70 + b"\r\n") * 5000)]
            ids.append(plant.send())
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(10)
    assert [name for name, _ in syncs_before_replies(trace)] == ids
    found = [[Path(each).name for each in synced] for _, synced in syncs_before_replies(trace)]
    assert all("spool.db-wal" in names for names in found)
    names = found[1]  # first the file and its folder, then the row that names it
    assert names.index(ids[1]) < names.index("content") < len(names) - 1 - names[::-1].index("spool.db-wal")


def syncs_before_replies(trace: Path) -> list[tuple[str, list[str]]]:
    """For each 250 to a message: its id, and the files whose sync had ended since the 354."""
    synced: list[str] = []
    begun: dict[str, str] = {}
    found = []
    for line in trace.read_text(errors="replace").splitlines():
        thread = line.split()[0]
        if "354 End data" in line and "TCP" in line:
            synced = []
        elif match := re.search(r"f(?:data)?sync\(\d+<([^>]*)>(\) += 0| <unfinished)", line):
            if "unfinished" in match[2]:
                begun[thread] = match[1]
            else:
                synced.append(match[1])
        elif re.search(r"<\.\.\. f(?:data)?sync resumed>.*= 0", line) and thread in begun:
            synced.append(begun.pop(thread))
        elif "TCP" in line and (match := re.search(r"250 2\.0\.0 Message queued as ([\w.]+)", line)):
            found.append((match[1], [*synced]))
    return found


def test_stop_with_attempts_under_way_ends_in_time_and_goes_on_at_the_next_start(tmp_path: Path) -> None:
    """SIGTERM: who cannot finish in the time to drain is broken off, exit code 0; all of it is due again at once."""
    with Upstream({"MAIL": "stall"}) as upstream:
        smarthost = {"host": "127.0.0.1", "port": upstream.port, "tls": "none"}
        deliver = {"via": "smarthost", "smarthost": smarthost, "connections": 2, "retry": {"first_seconds": 3600}}
        with Plant(tmp_path, deliver, shutdown={"drain_seconds": 1}) as plant:
            ids = [plant.send(f"r{number}@example.net") for number in range(8)]
            upstream.wait_for(lambda: sum(each.count("MAIL") for each in upstream.dialogues) == 2)
            assert plant.proxy.stop() == 0
            attempts = [plant.recipient(each).attempts for each in ids]
            assert sorted(attempts) == [0] * 6 + [1] * 2  # what had no turn was given back
            upstream.script()
            plant.start()
            opened = plant.proxy.event("queue_opened")
            assert (opened["pending"], opened["released"]) == (8, 2)
            eventually(lambda: not plant.pending(), "all delivered")
            assert sorted(plant.recipient(each).attempts for each in ids) == [1] * 6 + [2] * 2
            upstream.wait_for(lambda: len(upstream.taken) == 8)


def test_attempts_of_a_worker_that_is_killed_go_on_in_another(tmp_path: Path) -> None:
    """Its leases end with it: nobody waits for their time, which is hours."""
    with Upstream() as upstream:
        smarthost = {"host": "127.0.0.1", "port": upstream.port, "tls": "none"}
        deliver = {"via": "smarthost", "smarthost": smarthost, "connections": 4, "retry": {"first_seconds": 3600}}
        upstream.pause = 2.0
        with Plant(tmp_path, deliver, workers=2) as plant:
            eventually(lambda: plant.proxy.get("/readyz") == (200, "ready\n"), "ready")
            ids = [plant.send(f"r{number}@example.net") for number in range(30)]
            pids = [each["pid"] for each in plant.proxy.events("worker_started")]
            upstream.wait_for(lambda: len(upstream.open) == 4)
            os.kill(pids[0], signal.SIGKILL)
            plant.proxy.event("worker_died")
            upstream.pause = 0.0
            eventually(lambda: not plant.pending(), "all delivered", 40)
            assert all(plant.recipient(each).state.value == "delivered" for each in ids)
            assert plant.proxy.event("leases_released")["recipients"] > 0
            seen = Counter(each.recipients[0] for each in upstream.taken)
            assert len(seen) == 30
            assert plant.proxy.stop() == 0
