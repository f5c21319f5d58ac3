"""The Makefile, where it has to say why it cannot go on."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import require_tool

ROOT = Path(__file__).parents[1]


def planned(target: str, folder: Path) -> list[str]:
    """The commands that make would run for a target where nothing was set up yet."""
    line = [require_tool("make"), "--dry-run", "--no-print-directory", f"VENV={folder}/new", target]
    environ = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    done = subprocess.run(line, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("target", "pins", "last"),
    [("demo", "constraints.txt", "bin/cmail-proxy demo"), ("test", "constraints-dev.txt", "bin/python -m pytest")],
)
def test_target_sets_itself_up_from_pins_whose_hashes_are_checked(
    tmp_path: Path, target: str, pins: str, last: str
) -> None:
    """A fresh checkout needs nothing done before: virtual environment, then pinned packages, then the work."""
    commands = planned(target, tmp_path)
    (environment,) = [index for index, line in enumerate(commands) if "-m venv " in line]
    (install,) = [index for index, line in enumerate(commands) if f"--require-hashes -r {pins}" in line]
    assert environment < install < len(commands) - 1
    assert last in commands[-1]
    installs = [line for line in commands if "pip" in line.split() and "install" in line.split()]
    assert all("--require-hashes" in line or "--no-deps" in line for line in installs)


def test_tests_check_style_types_and_coverage(tmp_path: Path) -> None:
    """`make test` is the one gate, and what checks the project calls it."""
    commands = "\n".join(planned("test", tmp_path))
    for tool in ("bin/ruff check ", "bin/ruff format --quiet --check ", "bin/mypy", "--cov"):
        assert tool in commands
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    assert project["mypy"]["strict"] is True
    assert project["coverage"]["report"]["fail_under"] >= 90
    checks = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "make test" in checks.splitlines()  # at the beginning of a line: in any case
    assert "postfix" in checks
    assert "export TESTS_MAY_NOT_SKIP=1" in checks


@pytest.mark.parametrize("what", ["missing", "too-old", "without-venv"])
def test_python_that_cannot_be_used_is_named(tmp_path: Path, what: str) -> None:
    """Whoever chose an interpreter with PYTHON= hears that this one will not do, and what would."""
    python = tmp_path / "python"
    if what == "too-old":
        python.write_text("#!/bin/sh\nexit 1\n")  # as one does that is asked whether it is new enough
        python.chmod(0o755)
    elif what == "without-venv":
        (tmp_path / "venv.py").write_text("raise ImportError\n")  # Debian has venv in a package of its own
        python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
    line = [require_tool("make"), "--no-print-directory", f"PYTHON={python}", f"VENV={tmp_path}/new", "venv"]
    # An outer make would hand its own settings on.
    environ = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    done = subprocess.run(line, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    told = f"make: {python} is no Python 3.11 or newer with venv and ensurepip; name another with PYTHON="
    assert done.stderr.splitlines()[0] == told
    assert not (tmp_path / "new").exists()
