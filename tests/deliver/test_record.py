"""What is told and kept of a message beside its delivery: steps left undone, what readers did, and for how long."""

import json
import shutil
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.deliver.plant import Load, Plant, eventually
from tests.deliver.site import html_message, send, site

NOT_BY_THEMSELVES = """
import proxy.record.log as log
log._FEW_LINES = 0
log._BUSY_SECONDS = log._LATER_SECONDS = 3600
log._MOST_PUT_OFF = 1 << 30
"""
"""To be run first in the proxy: behind the first message, lines are put off until something else has them written."""

LINK = b'<a href="https://shop.example/orders">x</a>'
CASES = [
    pytest.param(html_message(b"<b>" * 300 + LINK + b"\r\n"), "too_deep", id="too-deep"),
    pytest.param(html_message(LINK + b"\r\n").replace(b"utf-8", b"x-unknown"), "charset", id="charset"),
    pytest.param(
        html_message(b"!!!\r\n").replace(b"Encoding: 8bit", b"Encoding: x-uuencode"), "malformed", id="malformed"
    ),
]
STEPS = ["text_part", "inline_css", "track_clicks", "track_opens"]


@pytest.mark.parametrize(("content", "reason"), CASES)
def test_steps_left_undone_are_counted_logged_and_in_the_record(tmp_path: Path, content: bytes, reason: str) -> None:
    """The message goes on as it came, and everybody who looks sees what was not done to it, and why."""
    with site(tmp_path) as here:
        message_id = here.send(content)
        assert here.only(message_id).content == content
        (queued,) = here.logged("queued", message_id)
        assert queued["steps_failed"] == [f"{step}: {reason}" for step in STEPS]
        for step in STEPS:
            assert here.proxy.metric("cmail_proxy_compose_failures_total", step=step, reason=reason) == 1
        assert here.proxy.metric("cmail_proxy_compose_failures_total") == 4
        events = here.told("message", "show", message_id)["events"]
        assert [each["detail"] for each in events if each["kind"] == "step_failed"] == queued["steps_failed"]


def test_limits_of_html_work_are_those_of_the_settings(tmp_path: Path) -> None:
    """The time for a message, and how many processes there are for it."""
    noted = tmp_path / "noted"
    first = f"""
import json, pathlib, proxy.deliver_parts as parts
made = parts.ComposePool
def noting(**how):
    pathlib.Path({str(noted)!r}).write_text(json.dumps(how))
    return made(**how)
parts.ComposePool = noting
"""
    deliver = {"via": "mailbox", "compose": {"budget_seconds": 7, "processes": 3}}
    with Plant(tmp_path, deliver, first=first) as plant:
        plant.settled(plant.send(), "received", "delivered")
    assert json.loads(noted.read_text()) == {"budget_seconds": 7, "processes": 3}


def test_under_load_each_message_has_its_lines_and_in_order(tmp_path: Path) -> None:
    """Lines that are put off are written while the disk works for a commit, or at the end, and none is left out."""
    with Plant(tmp_path, {"via": "mailbox"}, first=NOT_BY_THEMSELVES) as plant:
        load = Load(plant.port, 20)
        eventually(lambda: len(load.told) >= 300 and plant.proxy.events("attempt"), "load")
        load.stop()
        eventually(lambda: not plant.pending(), "all delivered")
        assert plant.proxy.stop() == 0
        names = ("message", "attempt")
        lines = [(each["event"], each["id"]) for each in plant.proxy.events() if each["event"] in names]
    ids = {each for name, each in lines if name == "message"}
    assert len(ids) == len(load.told)
    assert sorted(lines) == sorted((name, each) for name in names for each in ids)
    assert all(lines.index(("message", each)) < lines.index(("attempt", each)) for each in ids)


def test_lines_put_off_tell_how_long_it_took_and_not_when_they_were_written(tmp_path: Path) -> None:
    """Of messages and attempts alike: the durations are those of the event."""
    with Plant(tmp_path, {"via": "mailbox"}, first=NOT_BY_THEMSELVES) as plant:
        began = time.monotonic()
        for _ in range(5):
            plant.settled(plant.send(), "received", "delivered")
        took = time.monotonic() - began
        assert len(plant.proxy.events("message")) < 5
        assert len(plant.proxy.events("attempt")) < 5
        time.sleep(took + 0.1)
        assert plant.proxy.stop() == 0
        messages, attempts = plant.proxy.events("message"), plant.proxy.events("attempt")
    assert (len(messages), len(attempts)) == (5, 5)
    assert all(sum(each["seconds"].values()) <= took for each in messages)
    assert all(each["seconds"] <= took for each in attempts)


def test_no_address_of_a_reader_is_kept(tmp_path: Path) -> None:
    """Opens and clicks have a time and a recipient; from where they came is in no file and in no log line."""
    with site(tmp_path) as here:
        message_id = here.send(html_message(b"<body>" + LINK + b"</body>\r\n", b"X-Cmail-GroupName: read"))
        copy = here.only(message_id)
        for url in (*copy.beacons, *copy.clicks):
            parts = urlsplit(url)
            with socket.create_connection(("127.0.0.1", parts.port or 0), 20, ("127.0.0.77", 0)) as reader:
                fields = "Host: x\r\nUser-Agent: reader/1.0\r\nX-Forwarded-For: 192.0.2.77\r\nConnection: close\r\n"
                reader.sendall(f"GET {parts.path} HTTP/1.1\r\n{fields}\r\n".encode())
                assert reader.recv(12) in (b"HTTP/1.1 200", b"HTTP/1.1 302")
        here.wait_for_figures("read", opened=1, clicked=1)
        events = here.told("message", "show", message_id)["events"]
        assert [each["recipient"] for each in events if each["kind"] in ("opened", "clicked")] == [0, 0]
        assert all(each["at"] > 0 for each in events)
        kept = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert here.proxy.log_file in kept
        for path in kept:
            octets = path.read_bytes()
            assert not any(trace in octets for trace in (b"127.0.0.77", b"192.0.2.77", b"reader/1.0")), path


def test_links_lead_on_when_the_store_is_gone(tmp_path: Path) -> None:
    """They are signed and carry their target; a message that nobody knows of any more is counted as such."""
    with site(tmp_path) as here, here.client() as client:
        copy = here.only(send(client, html_message(b"<body>" + LINK + b"</body>\r\n")))
    shutil.rmtree(tmp_path / "var" / "spool")
    with site(tmp_path) as here:
        port = here.proxy.event("listening")["public"]["port"]
        (beacon,), (click,) = copy.beacons, copy.clicks
        answer = here.get(f"http://127.0.0.1:{port}{urlsplit(click).path}")
        assert (answer.status, answer.fields["location"]) == (302, "https://shop.example/orders")
        assert here.get(f"http://127.0.0.1:{port}{urlsplit(beacon).path}").status == 200
        here.proxy.wait_for_metric("cmail_proxy_tracking_hits_total", 2, kind="unknown")


def test_finished_message_is_forgotten_after_its_time_and_its_figures_are_not(tmp_path: Path) -> None:
    """deliver.keep_seconds: content and timeline go, what waits stays, and the report says the same as before."""
    deliver: dict[str, object] = {"via": "mailbox"}
    with Plant(tmp_path, deliver) as plant:
        done, waits = plant.send(), plant.send(head=b"X-MC-SendAt: 2100-01-01 00:00:00\r\n")
        plant.settled(done, "received", "delivered")
        plant.proxy.wait_for_metric("cmail_proxy_queue_recipients", 1)
        assert plant.kinds(done) == ["received", "delivered"]  # kept for 30 days, by default
        assert plant.proxy.stop() == 0
        deliver["keep_seconds"] = 0
        plant.start()
        eventually(lambda: plant.store(lambda store: store.history(done)) is None, "forgotten")
        assert plant.kinds(waits) == ["received", "held"]
        (figures,) = plant.store(lambda store: store.report())
        assert (figures.received, figures.delivered) == (2, 1)
        assert plant.proxy.stop() == 0
