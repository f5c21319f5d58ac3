"""The benchmark runs; what it measures is nobody's promise."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
RUN = [sys.executable, str(ROOT / "bench" / "run.py")]


Rows = list[dict[str, Any]]


def measure(part: str, folder: Path) -> tuple[str, Rows]:
    """What a tiny run of a part prints, and the measurements it writes."""
    file = folder / "measurements.json"
    done = subprocess.run(
        [*RUN, part, "--quick", "--count", "20", "--json", str(file)],
        capture_output=True,
        check=False,
        timeout=55,
        cwd=ROOT,
    )
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr.decode()
    assert f"repeat: .venv/bin/python bench/run.py {part} --quick --count 20" in text
    return text, json.loads(file.read_text("utf-8"))["measurements"]


def test_translate_prints_a_row_for_each_header_section(tmp_path: Path) -> None:
    """The table of the engine alone has a row for each kind of header section, in the table and in the JSON file."""
    text, rows = measure("translate", tmp_path)
    cases = ["no control fields", "Mailgun, 4 fields", "Postmark, 5 fields", "X-SMTPAPI of 1 KB"]
    assert [row["case"] for row in rows] == cases
    assert all(f"\n{case} " in text for case in cases)


@pytest.mark.long
def test_relay_prints_a_row_for_each_scenario_and_peer(tmp_path: Path) -> None:
    """Each kind of load is measured direct and through the proxy, and every message was taken and translated."""
    text, rows = measure("relay", tmp_path)
    found = {(row["scenario"], row["peer"]) for row in rows}
    own = ["kept", "each", "tls-kept", "tls-each", "single"]
    assert {(scenario, peer) for scenario in own for peer in ("direct", "proxy")} <= found
    assert ("tls-kept", "proxy, TLS both ways") in found
    assert all(row["messages"] == 20 for row in rows)
    assert "kept: 20 connections, kept (20 messages)" in text
    assert "Ratios, paired within each round" in text


@pytest.mark.long
def test_accept_measures_the_proxy(tmp_path: Path) -> None:
    """Messages are accepted, and held back."""
    text, rows = measure("accept", tmp_path)
    (accepted,) = [row for row in rows if row["peer"] == "proxy"]
    assert accepted["messages"] == 20
    assert accepted["delivered"] is None
    assert "note: all queues are on one disk" in text


@pytest.mark.long
def test_deliver_measures_the_proxy(tmp_path: Path) -> None:
    """All messages that are accepted reach the sink."""
    _, rows = measure("deliver", tmp_path)
    (delivered,) = [row for row in rows if row["peer"] == "proxy"]
    assert delivered["messages"] == 20
    assert delivered["delivered"]


def test_compose_prints_each_step_of_both_messages(tmp_path: Path) -> None:
    """The content steps are timed one by one, and held against the goal together."""
    text, rows = measure("compose", tmp_path)
    steps = ["plan", "html_work", "finish", "copy for a recipient", "all content steps", "DKIM, RSA of 2,048 bits"]
    assert [row["step"] for row in rows] == steps * 2
    assert "\ntemplate postmark-receipt.html: " in text


@pytest.mark.long
def test_backlog_measures_with_and_without(tmp_path: Path) -> None:
    """Messages for others are delivered beside a backlog, for hosts that refuse and for hosts that stall."""
    text, rows = measure("backlog", tmp_path)
    found = [row["peer"] for row in rows if "delivered" in row]
    if not found:
        assert "note: skipped: mail hosts and name servers have ports that only root may listen on" in text
        pytest.skip("only root may listen on port 25")
    assert found == ["no backlog", "backlog, refused", "backlog, stalls"]
    assert "2,000 messages wait (20 messages)" in text


def test_unknown_part_ends_with_a_usage_error() -> None:
    """A part that does not exist is refused before anything is started."""
    done = subprocess.run([*RUN, "relays"], capture_output=True, check=False, timeout=30, cwd=ROOT)
    assert done.returncode == 2
    assert b"'relays' is not one of 'translate', 'relay', 'large', 'wan', 'start', 'accept'," in done.stderr
