"""The Makefile, where it has to say why it cannot go on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require_tool

ROOT = Path(__file__).parents[1]


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
