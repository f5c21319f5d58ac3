"""What changes while the proxy runs, and several workers that are one program to apps, readers and operators."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.deliver.site import LISTENER, DeliverSite, html_message, message, send, site, values
from tests.operation.program import eventually, free_port, is_running, run, samples, taken_port, write_settings
from tests.smtp_in.dialogue import plain

CLIENTS = 16  # the system spreads them by their ports: that all get to one worker is as good as impossible
IN_USE = "address already in use; stop the program that listens there, or choose another port"
HTML = b'<html><body><p>Hello <a href="https://shop.example/orders">you</a></p></body></html>\r\n'


def rules(name: str) -> str:
    """A rule file in which one field makes the group."""
    return f"title: Acme\nfields: [X-Acme-*]\ntranslate:\n  - {{field: X-Acme-{name}, to: X-Cmail-GroupName}}\n"


@contextmanager
def crew(folder: Path, port: int) -> Iterator[DeliverSite]:
    """Start a proxy with two workers and public pages on a given port, and wait until both serve."""
    http = {"probes": {"address": "127.0.0.1", "port": 0}, "public": {"address": "127.0.0.1", "port": port}}
    with site(folder, workers=2, http=http) as here:
        here.proxy.event("worker_ready", 2)
        eventually(lambda: here.proxy.get("/readyz") == (200, "ready\n"), "ready")
        yield here


def send_many(here: DeliverSite, count: int, content: bytes) -> list[str]:
    """Send messages, each on a connection of its own, all of them open at a time."""
    clients = [here.client() for _ in range(count)]
    ids = [send(client, content) for client in clients]
    for client in clients:
        client.sock.close()
    return ids


def workers_of(ids: list[str]) -> set[str]:
    """What the ids of messages end with: something else in each worker."""
    return {each[-8:] for each in ids}


def children_of(pid: int) -> list[int]:
    """The processes that a process started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def sockets_of(pid: int) -> set[str]:
    """The sockets that a process has open and listens on."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text("ascii").splitlines()[1:]
    listening = {f"socket:[{each[9]}]" for each in map(str.split, lines) if each[3] == "0A"}
    return listening & {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()}


def test_changed_rules_and_tokens_count_for_the_next_message(tmp_path: Path) -> None:
    """A new rule file files the next message by it; a token issued while the proxy runs lets its holder send."""
    own = tmp_path / "rules"
    own.mkdir()
    (own / "acme.yaml").write_text(rules("One"))
    listener = {"address": "127.0.0.1", "port": 0, "tls": "none", "auth": "optional"}
    given = {"providers": ["acme"], "directories": [str(own)], "when_absent": "platform"}
    with site(tmp_path, listeners=[listener], rules=given) as here, here.client() as client:
        sent = message(b"X-Acme-One: one", b"X-Acme-Two: two")
        first = here.only(send(client, sent))
        (own / "acme.yaml").write_text(rules("Two"))
        here.proxy.event("rules_reloaded")
        second = here.only(send(client, sent))
        assert first.content == second.content == message()
        here.wait_for_figures("one", received=1)
        here.wait_for_figures("two", received=1)
        code, token, _ = here.command("token", "add", "billing")
        assert code == 0
        here.proxy.event("tokens_reloaded")
        assert client.say(f"AUTH PLAIN {plain(token.strip(), token.strip())}") == "235 2.7.0 Authentication succeeded"
        assert here.told("message", "show", here.only(send(client, sent)).id)["item"]["login"] == "billing"


def test_workers_are_one_program(tmp_path: Path) -> None:
    """Mail through both workers is delivered once each, links lead to either, and figures are of all."""
    port = free_port()
    with crew(tmp_path, port) as here:
        assert [each["port"] for each in here.proxy.event("listening")["listeners"]] == here.proxy.ports
        assert here.proxy.event("listening")["public"] == {"address": "127.0.0.1", "port": port}
        ids = send_many(here, CLIENTS, html_message(HTML, b"X-Cmail-GroupName: crew"))
        assert len(workers_of(ids)) == 2
        copies = [here.only(each) for each in ids]
        for copy in copies:
            assert [url.startswith(f"http://127.0.0.1:{port}/") for url in (*copy.beacons, *copy.clicks)] == [True] * 2
            assert here.get(copy.beacons[0]).status == 200
            assert here.get(copy.clicks[0]).fields["location"] == "https://shop.example/orders"
        figures = {"received": CLIENTS, "sent": CLIENTS, "delivered": CLIENTS, "opened": CLIENTS, "clicked": CLIENTS}
        here.wait_for_figures("crew", **figures)
        here.proxy.wait_for_metric("cmail_proxy_queued_total", CLIENTS)
        here.proxy.wait_for_metric("cmail_proxy_tracking_hits_total", 2 * CLIENTS)
        here.proxy.wait_for_metric("cmail_proxy_attempts_total", CLIENTS, outcome="delivered")
        assert here.proxy.stop() == 0


def test_worker_that_is_killed_takes_no_page_and_no_mail_with_it(tmp_path: Path) -> None:
    """The other worker answers readers and apps; what waits is one queue for both, counted once."""
    with crew(tmp_path, free_port()) as here:
        ids = send_many(here, CLIENTS, html_message(HTML))
        copies = [here.only(each) for each in ids]
        held = send_many(here, CLIENTS, message(b"X-MC-SendAt: 2100-01-01 00:00:00"))
        assert len(workers_of(held)) == 2
        here.proxy.wait_for_metric("cmail_proxy_queue_recipients", CLIENTS)
        first, second = (each["pid"] for each in here.proxy.events("worker_started"))
        mail_and_pages, children = sockets_of(first), children_of(first)
        assert len(mail_and_pages) == 2
        assert children
        for child in children:  # one that outlives its parent must not keep a port open
            assert not mail_and_pages & sockets_of(child)
        os.kill(first, signal.SIGKILL)
        here.proxy.event("worker_died")
        for copy in copies:
            assert here.get(copy.beacons[0]).status == 200
        here.only(here.send(message()))
        assert is_running(second)
        assert here.command("queue", "retry", "--all") == (0, f"due now: {CLIENTS} recipients\n", "")
        for each in held:
            here.only(each)
        here.proxy.event("worker_ready", 3)
        here.proxy.wait_for_metric("cmail_proxy_queue_recipients", 0)
        found = samples(here.proxy.get("/metrics")[1])
        assert found["cmail_proxy_queue_set_aside", frozenset()] == 0


def refuses_a_second(here: DeliverSite, workers: int) -> None:
    """Start another program on the same store and other ports; it is told why it cannot be, and ends."""
    folder = here.proxy.folder
    given = values(folder, workers=workers, listeners=[{**LISTENER, "tls": "none"}])
    config = write_settings(folder / "second.yaml", given)
    at_once = "import proxy.deliver_parts as p; p._ALONE_SECONDS = 0\nfrom proxy.cli import main\nmain()"
    done = run("serve", "--config", config, command=[sys.executable, "-c", at_once])
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines() == [
        f"error: {config}:2: data_dir: found a store in '{folder}/var/spool' on which another program works; expected "
        "a folder for this program alone",
        "cmail-proxy: 1 problem",
    ]


def test_second_program_on_the_same_store_is_refused(tmp_path: Path) -> None:
    """To a second one, what the first is keeping and sending would look left over from a crash; it is told and ends."""
    with site(tmp_path) as here:
        for workers in (1, 2):
            refuses_a_second(here, workers)
        here.only(here.send(message()))


def test_store_is_free_once_the_last_worker_has_ended(tmp_path: Path) -> None:
    """A parent that is killed leaves workers for a moment; the next program waits for their end, and loses nothing."""
    with site(tmp_path, workers=2) as here:
        held = here.send(message(b"X-MC-SendAt: 2100-01-01 00:00:00"))
        refuses_a_second(here, 1)
        pids = [each["pid"] for each in here.proxy.events("worker_started")]
        here.proxy.process.kill()
        here.proxy.process.wait(20)
    with site(tmp_path) as here:
        assert not any(is_running(pid) for pid in pids)
        assert list(here.waiting()) == [held]


def test_damaged_keys_are_told_before_any_worker_starts(tmp_path: Path) -> None:
    """What keeps every worker from starting is found once, by the parent."""
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "tracking-keys").write_text("{}")
    given = values(tmp_path, workers=2, listeners=[{**LISTENER, "tls": "none"}])
    done = run("serve", "--config", write_settings(tmp_path / "settings.yaml", given))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines() == [
        f"error: {tmp_path}/var/tracking-keys: found keys that are damaged; expected keys for tracking links, as this "
        "program writes them (put the file back; without it, links in mail already sent end)",
        "cmail-proxy: 1 problem",
    ]


def test_port_of_the_public_pages_in_use_is_told(tmp_path: Path) -> None:
    """Whether one process or several: the start ends with the setting, the place and what to do, before any mail."""
    with taken_port() as port:
        http = {"probes": {"address": "127.0.0.1", "port": 0}, "public": {"address": "127.0.0.1", "port": port}}
        for workers in (1, 2):
            given = values(tmp_path, http=http, workers=workers)
            given["listeners"] = [{**LISTENER, "tls": "none"}]
            done = run("serve", "--config", write_settings(tmp_path / "settings.yaml", given))
            assert (done.returncode, done.stdout) == (1, b"")
            assert done.stderr.decode() == f"cmail-proxy: http.public.port: 127.0.0.1:{port}: {IN_USE}\n"
