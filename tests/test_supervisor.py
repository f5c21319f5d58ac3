"""Several workers for one port: real processes, real sockets, real signals."""

import asyncio
import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.supervisor import WorkerChannel, WorkerPlace
from proxy.web.health import Health

HERE = Path(__file__).parent
WAIT_SECONDS = 20.0


class Parent:
    """A parent process under test, and what it logged so far."""

    def __init__(self, workers: int = 2, words: str = "", **asked: Any) -> None:
        patience = {"look_seconds": 0.05, **asked.pop("patience", {})}
        asked = {"workers": workers, "listeners": [["127.0.0.1", 0]], "patience": patience, **asked}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "crew_parent.py"), json.dumps(asked)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(HERE.parent), "CREW_WORKER": words},
        )
        self.events: list[dict[str, Any]] = []
        self._queue: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(json.loads(line))

    def event(self, name: str, **fields: object) -> dict[str, Any]:
        """Wait for a log line with these fields that nobody waited for yet."""
        while True:
            found = self._queue.get(timeout=WAIT_SECONDS)
            self.events.append(found)
            if found["event"] == name and fields.items() <= found.items():
                return found

    def ready(self) -> "Parent":
        """Wait until all workers serve."""
        started = self.event("supervisor_started")
        self.port = int(started["listeners"][0].rpartition(":")[2])
        self.probes_port = int(started["probes"].rpartition(":")[2])
        eventually(lambda: self.get("/startupz")[0] == 200)
        return self

    def get(self, path: str) -> tuple[int, str]:
        """Ask the probes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.probes_port, timeout=WAIT_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Fetch all metrics, and read them as Prometheus would."""
        status, text = self.get("/metrics")
        assert status == 200
        families = list(text_string_to_metric_families(text))
        assert len({family.name for family in families}) == len(families)
        return {
            (each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples
        }

    def sample(self, name: str, **labels: str) -> float | None:
        """Fetch one sample."""
        return self.samples().get((f"cmail_proxy_{name}", frozenset(labels.items())))

    def end(self) -> int:
        """Ask for the end, and wait for it."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_SECONDS)

    def refusal(self) -> list[str]:
        """Wait for the end of a parent that never started anything, and give what it wrote to standard error."""
        assert self.process.wait(WAIT_SECONDS) == 1
        self._reading.join(WAIT_SECONDS)
        assert self._queue.empty()
        assert self.process.stderr is not None
        return self.process.stderr.read().decode().splitlines()

    def close(self) -> None:
        """Close the pipes of a parent that has ended."""
        self._reading.join(WAIT_SECONDS)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


class Client:
    """A connection to some worker."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
        self.file = self.socket.makefile("rb")
        number, pid = self.file.readline().split()
        self.worker, self.pid = int(number), int(pid)

    def count(self) -> None:
        """Send a line, which the worker counts."""
        self.socket.sendall(b"line\n")
        assert self.file.readline() == b"counted\n"

    def close(self) -> "Client":
        """Go away."""
        self.file.close()
        self.socket.close()
        return self


@pytest.fixture
def parents() -> Iterator[Callable[..., Parent]]:
    """Make parents that do not outlive the test; their workers go with them."""
    made: list[Parent] = []

    def make(*arguments: Any, **asked: Any) -> Parent:
        made.append(Parent(*arguments, **asked))
        return made[-1]

    yield make
    for parent in made:
        if parent.process.poll() is None:
            parent.end()
        parent.close()


def eventually(holds: Callable[[], object]) -> None:
    """Wait until something holds."""
    end = monotonic() + WAIT_SECONDS
    while not holds():
        assert monotonic() < end, "it never came to hold"
        sleep(0.02)


def clients_of_all(port: int, workers: int) -> dict[int, Client]:
    """Connect until every worker has a client; the system chooses by the client's port."""
    found: dict[int, Client] = {}
    end = monotonic() + WAIT_SECONDS
    while len(found) < workers:
        assert monotonic() < end, f"only workers {sorted(found)} got connections"
        client = Client(port)
        if client.worker in found:
            client.close()
        else:
            found[client.worker] = client
    return found


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("uvloop", [False, True])
def test_workers_share_the_port_and_end_together_on_sigterm(parents: Callable[..., Parent], uvloop: bool) -> None:
    """Every worker gets connections on the one port that was found, and SIGTERM ends all of them with exit code 0."""
    parent = parents(uvloop=uvloop).ready()
    clients = clients_of_all(parent.port, 2)
    assert parent.get("/readyz") == (200, "ready\n")
    assert parent.end() == 0
    assert parent.event("supervisor_stopping")["reason"] == "SIGTERM"
    assert parent.event("worker_stopped")["how"] == "exit code 0"
    assert parent.event("worker_stopped")["how"] == "exit code 0"
    assert parent.event("supervisor_stopped")["exit_code"] == 0
    assert not any(alive(client.pid) for client in clients.values())


def test_sigint_ends_and_sighup_does_not(parents: Callable[..., Parent]) -> None:
    """SIGHUP changes nothing; SIGINT ends the program as SIGTERM does."""
    parent = parents(1).ready()
    parent.process.send_signal(signal.SIGHUP)
    assert Client(parent.port).close().worker == 1
    parent.process.send_signal(signal.SIGINT)
    assert parent.process.wait(WAIT_SECONDS) == 0
    assert parent.event("supervisor_stopping")["reason"] == "SIGINT"


def test_metrics_of_all_workers_are_summed(parents: Callable[..., Parent]) -> None:
    """The parent serves counters and gauges of all workers as one, and what describes a process for each of them."""
    parent = parents().ready()
    clients = clients_of_all(parent.port, 2)
    clients[1].count()
    clients[2].count()
    clients[2].count()
    eventually(lambda: parent.sample("sessions_open", listener="test") == 2)
    samples = parent.samples()
    assert samples["cmail_proxy_messages_received_total", frozenset({("listener", "test")})] == 3
    assert samples["cmail_proxy_workers_running", frozenset()] == 2
    assert [value for (name, _), value in samples.items() if name == "cmail_proxy_build_info"] == [1]
    workers = {dict(labels)["worker"] for name, labels in samples if name == "process_resident_memory_bytes"}
    assert workers == {"1", "2", "parent"}


def test_worker_that_dies_is_restarted_and_its_counters_are_kept(parents: Callable[..., Parent]) -> None:
    """A crash costs the connections of one worker; its place is filled again, and no counter goes back."""
    parent = parents(patience={"first_pause_seconds": 0.05}).ready()
    clients = clients_of_all(parent.port, 2)
    clients[1].count()
    clients[2].count()
    assert parent.sample("messages_received_total", listener="test") == 2
    clients[1].socket.sendall(b"crash\n")
    died = parent.event("worker_died", worker=1)
    assert (died["level"], died["how"], died["restart_in_seconds"]) == ("error", "exit code 9", 0.05)
    parent.event("worker_started", worker=1)
    eventually(lambda: parent.get("/readyz") == (200, "ready\n"))
    again = clients_of_all(parent.port, 2)
    assert again[1].pid != clients[1].pid
    assert again[2].pid == clients[2].pid
    again[1].count()
    clients[2].count()
    assert parent.sample("messages_received_total", listener="test") == 4
    assert parent.sample("worker_deaths_total") == 1
    assert parent.sample("workers_running") == 2


def test_connections_go_to_the_other_worker_while_one_is_down(parents: Callable[..., Parent]) -> None:
    """Between death and restart of a worker no client waits for it; the program is ready, and a metric shows one."""
    parent = parents(patience={"first_pause_seconds": 60}).ready()
    victim = clients_of_all(parent.port, 2)[1]
    victim.socket.sendall(b"crash\n")
    parent.event("worker_died", worker=1)
    assert parent.get("/readyz") == (200, "ready\n")
    assert parent.get("/livez") == (200, "live\n")
    assert parent.sample("workers_running") == 1
    assert {Client(parent.port).close().worker for _ in range(30)} == {2}
    assert parent.end() == 0


def test_program_is_not_ready_when_no_worker_is(parents: Callable[..., Parent]) -> None:
    """When the last worker dies, readiness says so of each; the program lives on and fills their places."""
    parent = parents(patience={"first_pause_seconds": 60}).ready()
    for number, client in clients_of_all(parent.port, 2).items():
        client.socket.sendall(b"crash\n")
        parent.event("worker_died", worker=number)
    assert parent.get("/readyz") == (503, "worker 1: not running\nworker 2: not running\n")
    assert parent.get("/livez") == (200, "live\n")
    assert parent.end() == 0


def test_worker_that_cannot_restart_is_tried_for_ever_while_the_others_serve(
    parents: Callable[..., Parent], tmp_path: Path
) -> None:
    """
    Once mail was taken, no number of deaths at start ends the program: pauses grow to the longest and stay there, the
    other worker serves on, and when the cause is mended the place is filled.
    """
    broken = tmp_path / "broken"
    patience = {"quick_deaths": 1, "first_pause_seconds": 0.01, "longest_pause_seconds": 0.03}
    parent = parents(2, str(broken), patience=patience).ready()
    clients = clients_of_all(parent.port, 2)
    broken.touch()
    clients[1].socket.sendall(b"crash\n")
    deaths = [parent.event("worker_died", worker=1) for _ in range(6)]
    assert [death["restart_in_seconds"] for death in deaths] == [0.01, 0.02, 0.03, 0.03, 0.03, 0.03]
    assert [death["how"] for death in deaths] == ["exit code 9", *["exit code 3"] * 5]
    assert parent.get("/readyz") == (200, "ready\n")
    clients[2].count()
    broken.unlink()
    again = clients_of_all(parent.port, 2)
    assert again[2].pid == clients[2].pid
    assert parent.end() == 0
    assert "worker_given_up" not in [event["event"] for event in parent.events]


def test_pauses_are_counted_for_ever(parents: Callable[..., Parent]) -> None:
    """A place that is tried for days costs no more than one tried for minutes: the doubling of its pauses ends."""
    patience = {"quick_deaths": 10**9, "first_pause_seconds": 1e-4, "longest_pause_seconds": 1e-4}
    parent = parents(1, command=["/nonexistent/program"], patience=patience)
    for _ in range(1100):  # 2.0 ** 1024 is no number any more
        assert parent.event("worker_died")["restart_in_seconds"] == 1e-4
    assert parent.end() == 0


def test_program_is_up_with_the_workers_that_can_start(parents: Callable[..., Parent]) -> None:
    """A worker that never starts is not waited for: with the other one mail is taken, and its place is tried on."""
    patience = {"quick_deaths": 3, "first_pause_seconds": 0.2, "longest_pause_seconds": 0.8}
    parent = parents(2, "die:2", patience=patience).ready()
    assert parent.event("listening")["workers"] == 1
    assert parent.get("/readyz") == (200, "ready\n")
    for _ in range(5):
        parent.event("worker_died", worker=2)
    assert Client(parent.port).close().worker == 1
    assert parent.end() == 0


def test_worker_that_dies_at_start_too_often_ends_a_program_that_never_served(parents: Callable[..., Parent]) -> None:
    """Restarts are paused for longer each time, and after so many deaths at start the program ends with exit code 1."""
    patience = {"quick_deaths": 3, "first_pause_seconds": 0.01, "longest_pause_seconds": 0.03}
    parent = parents(1, "die", patience=patience)
    pauses = [parent.event("worker_died", how="exit code 3")["restart_in_seconds"] for _ in range(3)]
    assert pauses == [0.01, 0.02, 0.03]
    assert parent.event("worker_given_up")["deaths_at_start"] == 4
    assert parent.event("supervisor_stopping")["reason"] == "worker 1 dies at start"
    assert parent.process.wait(WAIT_SECONDS) == 1


def test_worker_that_cannot_be_started_ends_a_program_that_never_served(parents: Callable[..., Parent]) -> None:
    """A command that does not exist is a death at start, told with its reason."""
    patience = {"quick_deaths": 1, "first_pause_seconds": 0.01}
    parent = parents(1, command=["/nonexistent/program"], patience=patience)
    given_up = parent.event("worker_given_up")
    assert given_up["how"] == "not started: [Errno 2] No such file or directory: '/nonexistent/program'"
    assert parent.process.wait(WAIT_SECONDS) == 1


def test_no_ready_worker_makes_the_whole_not_ready(parents: Callable[..., Parent]) -> None:
    """Readiness gives the reasons of each worker; liveness and start do not depend on them."""
    parent = parents(2, "sick").ready()
    reasons = "worker 1: upstream: no connection\nworker 2: upstream: no connection\n"
    eventually(lambda: parent.get("/readyz") == (503, reasons))
    assert parent.get("/startupz") == (200, "started\n")
    assert parent.get("/livez") == (200, "live\n")


def test_deaf_worker_is_killed_after_its_time(parents: Callable[..., Parent]) -> None:
    """A worker that does not stop within its limit and some grace is killed, and the exit code is 1."""
    parent = parents(1, "deaf", stop_seconds=0.3, patience={"grace_seconds": 0.2}).ready()
    pid = Client(parent.port).close().pid
    assert parent.end() == 1
    killed = parent.event("worker_killed")
    assert (killed["pid"], killed["after_seconds"]) == (pid, 0.5)
    assert parent.event("worker_stopped")["how"] == "SIGKILL"
    assert not alive(pid)


def test_mute_worker_is_killed_and_replaced(parents: Callable[..., Parent]) -> None:
    """A worker that leaves question after question unanswered counts as hung."""
    parent = parents(1, "mute", patience={"unanswered": 1, "first_pause_seconds": 0.01})
    pid = parent.event("worker_started")["pid"]
    hung = parent.event("worker_hung")
    assert (hung["worker"], hung["pid"], hung["unanswered"]) == (1, pid, 1)
    assert parent.event("worker_died")["how"] == "SIGKILL"
    assert parent.event("worker_started")["pid"] != pid


def test_worker_that_stops_answering_is_not_ready_and_then_replaced(parents: Callable[..., Parent]) -> None:
    """Readiness names a worker that hangs, metrics still show what it said last, and in the end another takes over."""
    parent = parents(1, patience={"unanswered": 2, "first_pause_seconds": 0.01}).ready()
    client = Client(parent.port)
    client.count()
    assert parent.sample("messages_received_total", listener="test") == 1
    os.kill(client.pid, signal.SIGSTOP)
    eventually(lambda: parent.get("/readyz") == (503, "worker 1: does not answer\n"))
    assert parent.sample("messages_received_total", listener="test") == 1
    assert parent.event("worker_hung")["pid"] == client.pid
    eventually(lambda: parent.get("/readyz") == (200, "ready\n"))
    assert Client(parent.port).close().pid != client.pid


def test_workers_end_when_the_parent_is_killed(parents: Callable[..., Parent]) -> None:
    """No worker outlives its parent, however that ended."""
    parent = parents().ready()
    pids = [client.pid for client in clients_of_all(parent.port, 2).values()]
    parent.process.kill()
    eventually(lambda: not any(alive(pid) for pid in pids))


def test_ports_in_use_are_all_named_before_any_worker_starts(parents: Callable[..., Parent]) -> None:
    """Whatever cannot be bound is reported at once, with what to do, and nothing is started."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [first.getsockname()[1], second.getsockname()[1]]
        refusal = parents(listeners=[["127.0.0.1", 0], *(["127.0.0.1", port] for port in ports)]).refusal()
    why = "address already in use; stop the program that listens there, or choose another port"
    assert refusal == ["cannot listen:", *(f"127.0.0.1:{port}: {why}" for port in ports)]


def test_port_of_another_crew_of_the_same_user_is_in_use(parents: Callable[..., Parent]) -> None:
    """Starting the program twice is an error, although both share their ports among their own workers."""
    first = parents().ready()
    refusal = parents(listeners=[["127.0.0.1", first.port]]).refusal()
    assert refusal[1].startswith(f"127.0.0.1:{first.port}: address already in use; ")


def test_probes_port_in_use_is_named_before_any_worker_starts(parents: Callable[..., Parent]) -> None:
    """The port of the probes is checked as well as those of the listeners."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refusal = parents(probes=port).refusal()
    assert refusal[1].startswith(f"127.0.0.1:{port}: address already in use; ")


def test_worker_place_is_taken_out_of_the_environment() -> None:
    """The variable is no setting: who read it has removed it, and a process without it is no worker."""
    environ = {"CMAIL_PROXY_WORKER": '{"number": 2, "control": 7, "listeners": [8, 9]}', "HOME": "/"}
    assert WorkerPlace.take(environ) == WorkerPlace(2, 7, (8, 9))
    assert environ == {"HOME": "/"}
    assert WorkerPlace.take(environ) is None


async def test_channel_answers_in_order_and_tells_that_the_parent_is_gone() -> None:
    """Questions that pile up are answered one by one, each with its id; the end of the connection is told once."""
    ours, theirs = socket.socketpair()
    gone = asyncio.Event()
    told = 0

    def parent_gone() -> None:
        nonlocal told
        told += 1
        gone.set()

    health = Health(started=True, reasons={"upstream": "no connection"})
    channel = WorkerChannel(theirs.detach(), health, lambda: [["name", "help", "counter", []]], parent_gone)
    await channel.start()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    writer.write(b'{"id": 1, "ask": "health"}\n{"id": 2, "ask": "snap')
    writer.write(b'shot"}\n')
    async with asyncio.timeout(WAIT_SECONDS):
        first, second = json.loads(await reader.readline()), json.loads(await reader.readline())
    assert first == {"id": 1, "started": True, "obstacles": ["upstream: no connection"]}
    assert second == {**first, "id": 2, "metrics": [["name", "help", "counter", []]]}
    assert told == 0
    writer.close()
    async with asyncio.timeout(WAIT_SECONDS):
        await gone.wait()
    await channel.stop()
    assert told == 1
