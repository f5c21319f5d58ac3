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


def test_unknown_part_ends_with_a_usage_error() -> None:
    """A part that does not exist is refused before anything is started."""
    done = subprocess.run([*RUN, "relays"], capture_output=True, check=False, timeout=30, cwd=ROOT)
    assert done.returncode == 2
    assert b"'relays' is not one of 'translate', 'relay', 'large', 'wan', 'start'." in done.stderr
