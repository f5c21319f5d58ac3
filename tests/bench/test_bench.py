"""The benchmark runs; what it measures is nobody's promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
RUN = [sys.executable, str(ROOT / "bench" / "run.py")]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, object]]]:
    """What a tiny run of two parts prints, and the measurements it writes."""
    file = tmp_path_factory.mktemp("bench") / "measurements.json"
    done = subprocess.run(
        [*RUN, "translate", "relay", "--quick", "--count", "20", "--json", str(file)],
        capture_output=True,
        check=False,
        timeout=55,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(), json.loads(file.read_text("utf-8"))["measurements"]


def test_translate_prints_a_row_for_each_header_section(measured: tuple[str, list[dict[str, object]]]) -> None:
    """The table of the engine alone has a row for each kind of header section, in the table and in the JSON file."""
    text, rows = measured
    cases = ["no control fields", "Mailgun, 4 fields", "Postmark, 5 fields", "X-SMTPAPI of 1 KB"]
    assert [row["case"] for row in rows if row["part"] == "translate"] == cases
    assert all(f"\n{case} " in text for case in cases)


def test_relay_prints_a_row_for_each_scenario_and_peer(measured: tuple[str, list[dict[str, object]]]) -> None:
    """Each kind of load is measured direct and through the proxy, and every message was taken and translated."""
    text, rows = measured
    found = {(row["scenario"], row["peer"]) for row in rows if row["part"] == "relay"}
    own = ["kept", "each", "tls-kept", "tls-each", "single"]
    assert {(scenario, peer) for scenario in own for peer in ("direct", "proxy")} <= found
    assert ("tls-kept", "proxy, TLS both ways") in found
    assert all(row["messages"] == 20 for row in rows if row["part"] == "relay")
    assert "kept: 20 connections, kept (20 messages)" in text
    assert "Ratios, paired within each round" in text


def test_report_ends_with_the_command_that_repeats_it(measured: tuple[str, list[dict[str, object]]]) -> None:
    """Below the tables of a part stands the command that measures it again in the same way."""
    text, _ = measured
    assert "repeat: .venv/bin/python bench/run.py translate --quick --count 20" in text
    assert "repeat: .venv/bin/python bench/run.py relay --quick --count 20" in text


@pytest.fixture(scope="module")
def core_measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, object]]]:
    """What a tiny run of the parts about the sending core prints, and the measurements it writes."""
    file = tmp_path_factory.mktemp("bench") / "measurements.json"
    parts = ["accept", "deliver", "compose", "backlog"]
    done = subprocess.run(
        [*RUN, *parts, "--quick", "--count", "20", "--json", str(file)],
        capture_output=True,
        check=False,
        timeout=110,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(), json.loads(file.read_text("utf-8"))["measurements"]


@pytest.mark.timeout(120)
def test_accept_and_deliver_measure_the_proxy(core_measured: tuple[str, list[dict[str, object]]]) -> None:
    """Messages are accepted and held back in one part, and in the other all of them reach the sink."""
    text, rows = core_measured
    (accepted,) = [row for row in rows if row["part"] == "accept" and row["peer"] == "proxy"]
    (delivered,) = [row for row in rows if row["part"] == "deliver" and row["peer"] == "proxy"]
    assert accepted["messages"] == delivered["messages"] == 20
    assert accepted["delivered"] is None
    assert delivered["delivered"]
    assert "note: all queues are on one disk" in text


@pytest.mark.timeout(120)
def test_compose_prints_each_step_of_both_messages(core_measured: tuple[str, list[dict[str, object]]]) -> None:
    """The content steps are timed one by one, and held against the goal together."""
    text, rows = core_measured
    steps = ["plan", "html_work", "finish", "copy for a recipient", "all content steps", "DKIM, RSA of 2,048 bits"]
    assert [row["step"] for row in rows if row["part"] == "compose"] == steps * 2
    assert "\ntemplate postmark-receipt.html: " in text


@pytest.mark.timeout(120)
def test_backlog_measures_with_and_without(core_measured: tuple[str, list[dict[str, object]]]) -> None:
    """Messages for others are delivered beside a backlog, for hosts that refuse and for hosts that stall."""
    text, rows = core_measured
    found = [row["peer"] for row in rows if row["part"] == "backlog" and "delivered" in row]
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
