"""Several workers behind the same ports: to apps and operators they are one program."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.operation.program import eventually, is_running, run, samples, taken_port, write_settings
from tests.smtp_in.dialogue import QUEUED, Client
from tests.smtp_in.site import MESSAGE, Site, site
from tests.support.proxy_process import settings

CLIENTS = 16  # the system spreads them by their ports: that all get to one worker is as good as impossible
RECEIVED = "cmail_proxy_messages_received_total"
CLOSING = "421 4.3.2 Shutting down, try again later"
IN_USE = "address already in use; stop the program that listens there, or choose another port"


@contextmanager
def crew(folder: Path) -> Iterator[Site]:
    """Start a proxy with two workers, and wait until it is ready."""
    with site(folder, workers=2) as here:
        eventually(lambda: here.proxy.get("/readyz") == (200, "ready\n"), "ready")
        yield here


def pids(here: Site) -> list[int]:
    """Processes of all workers so far, in the order they were started."""
    return [each["pid"] for each in here.proxy.events("worker_started")]


def workers_of(here: Site) -> set[str]:
    """What the ids of messages end with: something else in each worker."""
    return {each["id"][-8:] for each in here.proxy.events("message")}


def send(here: Site, count: int) -> None:
    """Send messages, each on a connection of its own, all of them open at a time."""
    clients = [here.client() for _ in range(count)]
    for client in clients:
        assert client.data(MESSAGE.replace(b"Subject", b"X-PM-Tag: orders\r\nSubject")) == QUEUED
    for client in clients:
        client.sock.close()


def test_messages_go_through_all_workers_and_count_as_one(tmp_path: Path) -> None:
    """Both workers serve the port; one /metrics has the sums, one /readyz speaks for all."""
    with crew(tmp_path) as here:
        assert here.proxy.event("listening")["workers"] == 2
        send(here, CLIENTS)
        here.proxy.event("message", CLIENTS)
        assert len(workers_of(here)) == 2
        assert len(here.upstream.taken) == CLIENTS
        eventually(lambda: here.proxy.metric("cmail_proxy_sessions_open") == 0)
        found = samples(here.proxy.get("/metrics")[1])
        listener = ("listener", f"127.0.0.1:{here.port}")
        assert found[RECEIVED, frozenset({listener})] == CLIENTS
        assert found["cmail_proxy_sessions_total", frozenset({listener})] == CLIENTS
        assert found["cmail_proxy_relayed_total", frozenset({("outcome", "accepted")})] == CLIENTS
        assert found["cmail_proxy_messages_by_group_total", frozenset({("group", "orders")})] == CLIENTS
        assert found["cmail_proxy_relay_seconds_count", frozenset()] == CLIENTS
        assert found["cmail_proxy_workers_running", frozenset()] == 2
        assert found["cmail_proxy_rules_last_reload_success", frozenset()] == 1
        connections = sum(
            found["cmail_proxy_upstream_connections", frozenset({("state", s)})] for s in ("busy", "idle")
        )
        assert connections == len(here.upstream.open)
        assert {dict(labels)["worker"] for name, labels in found if name == "process_resident_memory_bytes"} == {
            "1",
            "2",
            "parent",
        }
        for path, body in (("/livez", "live\n"), ("/readyz", "ready\n"), ("/startupz", "started\n")):
            assert here.proxy.get(path) == (200, body)
        assert here.proxy.get("/other")[0] == 404


def test_worker_that_is_killed_is_replaced_while_the_other_serves(tmp_path: Path) -> None:
    """A crash costs what was in flight in one worker: the service goes on, and no counter goes back."""
    with crew(tmp_path) as here:
        send(here, CLIENTS)
        assert here.proxy.metric(RECEIVED) == CLIENTS
        first, second = pids(here)
        os.kill(first, signal.SIGKILL)
        died = here.proxy.event("worker_died")
        assert (died["level"], died["worker"], died["how"]) == ("error", 1, "SIGKILL")
        assert here.proxy.get("/livez") == (200, "live\n")
        assert here.proxy.get("/readyz") == (200, "ready\n")
        send(here, 4)  # by the one that is left
        here.proxy.event("worker_ready", 3)
        assert is_running(second)
        send(here, CLIENTS)
        here.proxy.event("message", 2 * CLIENTS + 4)
        assert len(workers_of(here)) == 3
        assert here.proxy.metric(RECEIVED) == 2 * CLIENTS + 4
        assert here.proxy.metric("cmail_proxy_worker_deaths_total") == 1
        assert here.proxy.metric("cmail_proxy_workers_running") == 2
        assert here.proxy.stop() == 0


def test_all_workers_finish_what_is_in_flight(tmp_path: Path) -> None:
    """SIGTERM to the parent: every message in every worker gets its 250, idle clients 421; exit code 0, nobody left."""
    with crew(tmp_path) as here, here.client() as idle:
        clients = [here.client() for _ in range(CLIENTS)]
        for client in clients:
            client.envelope()
            client.send(MESSAGE[:-5])
        here.proxy.process.send_signal(signal.SIGTERM)
        assert idle.reply() == CLOSING
        assert idle.closed()
        assert here.proxy.get("/readyz")[0] == 503
        assert here.proxy.get("/livez") == (200, "live\n")
        for client in clients:
            client.send(MESSAGE[-5:])
        for client in clients:
            assert client.reply() == QUEUED
            assert client.reply() == CLOSING
            client.sock.close()
        assert here.proxy.stop() == 0
        assert len(here.upstream.taken) == CLIENTS
        assert len(workers_of(here)) == 2
        assert not any(is_running(pid) for pid in pids(here))
        assert here.proxy.events("worker_killed") == []


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """A parent that is killed leaves no workers behind that would hold its ports."""
    with crew(tmp_path) as here:
        here.proxy.process.kill()
        here.proxy.process.wait(20)
        eventually(lambda: not any(is_running(pid) for pid in pids(here)), "no worker is left")


def test_worker_that_cannot_restart_takes_nobody_down(tmp_path: Path) -> None:
    """A rule file broken while all serve, and one crash: the other worker takes mail, until the file is mended."""
    file = tmp_path / "rules" / "acme.yaml"
    file.parent.mkdir()
    text = "title: Acme\nfields: [X-Acme-*]\ntranslate:\n  - {field: X-Acme-One, to: X-Cmail-GroupName}\n"
    file.write_text(text)
    rules = {"providers": ["acme"], "directories": [str(file.parent)], "when_absent": "provider"}
    with site(tmp_path, workers=2, rules=rules) as here:
        here.proxy.event("worker_ready", 2)
        first, _ = pids(here)
        file.write_text("title: Acme\n")
        here.proxy.event("rules_reload_failed", 2)
        os.kill(first, signal.SIGKILL)
        assert here.proxy.event("worker_died", 2)["how"] == "exit code 1"
        assert here.proxy.get("/readyz") == (200, "ready\n")
        send(here, 4)
        here.proxy.event("message", 4)
        assert len(workers_of(here)) == 1
        file.write_text(text)
        here.proxy.event("worker_ready", 3)
        assert here.proxy.stop() == 0


def test_changed_rules_are_in_force_in_every_worker(tmp_path: Path) -> None:
    """Each worker takes a new rule file by itself, and the parent's metrics tell when all have."""
    file = tmp_path / "rules" / "acme.yaml"
    file.parent.mkdir()
    text = "title: Acme\nfields: [X-Acme-*]\ntranslate:\n  - {field: X-Acme-One, to: X-Cmail-GroupName}\n"
    file.write_text(text)
    rules = {"providers": ["acme"], "directories": [str(file.parent)], "when_absent": "provider"}
    with site(tmp_path, workers=2, rules=rules) as here:
        file.write_text(text.replace("X-Acme-One", "[X-Acme-Two, X-Acme-One]") + "when_absent: {}\n")
        here.proxy.event("rules_reloaded", 2)
        clients: list[Client] = [here.client() for _ in range(CLIENTS)]
        for client in clients:
            assert client.data(b"X-Acme-One: one\r\nX-Acme-Two: two\r\n\r\n.\r\n") == QUEUED
            client.sock.close()
        here.proxy.event("message", CLIENTS)
        assert len(workers_of(here)) == 2
        assert {each["group"] for each in here.proxy.events("message")} == {"two"}
        file.write_text("title: Acme\n")
        here.proxy.event("rules_reload_failed", 2)
        here.proxy.wait_for_metric("cmail_proxy_rules_last_reload_success", 0)


def test_port_in_use_is_told_before_any_worker_starts(tmp_path: Path) -> None:
    """The parent finds out and says so once, with exit code 1; listeners and probes alike."""
    with taken_port() as first, taken_port() as second:
        listener = {"address": "127.0.0.1", "tls": "none", "auth": "none"}
        values = settings(
            2,
            workers=2,
            listeners=[{**listener, "port": first}, {**listener, "port": 0}],
            http={"probes": {"address": "127.0.0.1", "port": second}},
        )
        done = run("serve", "--config", write_settings(tmp_path / "settings.yaml", values))
    assert done.returncode == 1
    assert b"worker_started" not in done.stdout
    told = done.stderr.decode().splitlines()
    assert told[0] == f"cmail-proxy: listeners[0].port: 127.0.0.1:{first}: {IN_USE}"
    assert told[1:] == [f"cmail-proxy: http.probes.port: 127.0.0.1:{second}: {IN_USE}"]


def test_broken_rules_are_told_before_any_worker_starts(tmp_path: Path) -> None:
    """What keeps every worker from starting is found once, by the parent, and ends the program at once."""
    (tmp_path / "acme.yaml").write_text("title: Acme\n")
    rules = {"providers": ["acme"], "directories": [str(tmp_path)], "when_absent": "provider"}
    listeners = [{"address": "127.0.0.1", "port": 0, "tls": "none", "auth": "none"}]
    config = write_settings(tmp_path / "settings.yaml", settings(2, workers=2, rules=rules, listeners=listeners))
    done = run("serve", "--config", config)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines() == [
        f"error: {tmp_path}/acme.yaml:1: fields: found nothing; expected the names of the provider's control fields "
        "(add a line such as fields: [X-Acme-*])",
        "cmail-proxy: 1 problem",
    ]
