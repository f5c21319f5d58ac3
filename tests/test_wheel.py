"""The wheel: what is built for installation has all that the program needs, and finds it there."""

import subprocess
import sys
import sysconfig
from email.parser import BytesParser
from email.policy import compat32
from pathlib import Path

import pytest

from tests.operation.program import environment, write_settings
from tests.support.proxy_process import settings

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel brings, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    python = [sys.executable, "-m"]
    built = [*python, "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(built, check=True, capture_output=True, timeout=50)
    (wheel,) = folder.glob("*.whl")
    target = folder / "installed"
    pip = [*python, "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, capture_output=True, timeout=50)
    return target


def run(installed: Path, *arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """
    Run Python on the installed files.

    Without ``site`` (``-S``) nobody reads the file by which an editable installation puts this checkout on the path.
    """
    path = f"{installed}:{sysconfig.get_path('purelib')}"
    if sysconfig.get_path("platlib") != sysconfig.get_path("purelib"):
        path += f":{sysconfig.get_path('platlib')}"
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        input=stdin,
        capture_output=True,
        cwd="/",
        env=environment({"PYTHONPATH": path}),
        timeout=50,
        check=False,
    )


def test_installed_program_finds_the_rule_files_inside_itself(installed: Path) -> None:
    """The shipped rules are read from the installed package, not from a checkout that happens to be near."""
    code = "import proxy.rulebook as it; print(it.__file__); print(it.shipped_rules())"
    done = run(installed, "-c", code)
    assert done.stdout.decode().split() == [
        str(installed / "proxy" / "rulebook.py"),
        str(installed / "proxy" / "mappings"),
    ]
    assert sorted(file.name for file in (installed / "proxy" / "mappings").iterdir()) == sorted(
        file.name for file in (ROOT / "mappings").iterdir()
    )


def test_installed_program_checks_and_translates(installed: Path, tmp_path: Path) -> None:
    """`check` and `translate` work from any folder, with the wheel and its dependencies alone."""
    config = write_settings(tmp_path / "settings.yaml", settings(2526))
    done = run(installed, "-m", "proxy", "check", "--config", config)
    assert (done.returncode, done.stderr.decode().count("error")) == (0, 0), done.stderr
    assert done.stdout.startswith(b"ok: ")
    message = b"X-PM-Tag: orders\r\nSubject: hi\r\n\r\nbody\r\n"
    done = run(installed, "-m", "proxy", "translate", stdin=message)
    assert done.stdout == b"X-Cmail-GroupName: orders\r\nSubject: hi\r\n\r\nbody\r\n", done.stderr


def test_wheel_brings_the_program_and_nothing_else(installed: Path) -> None:
    """No tests, no fixtures, no tools: one package, its metadata and its command."""
    assert {each.name.partition("-")[0] for each in installed.iterdir()} == {"proxy", "cmail_proxy", "bin"}
    assert (installed / "bin" / "cmail-proxy").is_file()


def test_wheel_says_what_it_is(installed: Path) -> None:
    """Name, Python from 3.11 on, licence, and one command."""
    (metadata,) = installed.glob("cmail_proxy-*.dist-info/METADATA")
    told = BytesParser(policy=compat32).parsebytes(metadata.read_bytes())
    assert (told["Name"], told["Requires-Python"], told["License-Expression"]) == (
        "cmail-proxy",
        ">=3.11",
        "Apache-2.0",
    )
    commands = (metadata.parent / "entry_points.txt").read_text("utf-8").split()
    assert commands == ["[console_scripts]", "cmail-proxy", "=", "proxy.cli:main"]
