"""Shared by all tests: what a test may ask of the machine, and the switch that rewrites expected files."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest

NODE_FOLDER = Path(__file__).parent / "node"

# Debian keeps postfix and its like where the PATH of a plain user does not look.
TOOL_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

# A deadline for each example would be a timed assertion, and fail where the machine is busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Measuring what a process executes makes its start twice as long, and the tests start a thousand. Those of these
# folders and files execute most of what the others do.
_MEASURED = {"deliver", "test_smoke.py", "test_supervisor.py"}
_MEASURES = "COVERAGE_PROCESS_CONFIG"
_setting = pytest.StashKey[str | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch that ``make expected`` uses."""
    parser.addoption("--write-expected", action="store_true", help="rewrite the expected files of the fixtures")


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest of the mark for tests that are not for every day."""
    config.addinivalue_line("markers", "long: takes long; runs where LONG_TESTS is 1, as .ci/run has it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the long tests out unless they are asked for: what takes more than five minutes is not run."""
    if os.environ.get("LONG_TESTS") != "1":
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long; LONG_TESTS=1 runs it, as .ci/run does"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the processes that this test starts be measured, or not."""
    setting = item.config.stash.setdefault(_setting, os.environ.get(_MEASURES))
    if setting is not None and _MEASURED.isdisjoint(item.path.relative_to(Path(__file__).parent).parts[:1]):
        os.environ.pop(_MEASURES, None)
    elif setting is not None:
        os.environ[_MEASURES] = setting


def require_tool(name: str) -> str:
    """
    Find a program that not every machine has.

    Returns:
        Its absolute path. Without it the test is skipped, or fails where ``TESTS_MAY_NOT_SKIP`` is 1.
    """
    return shutil.which(name, path=TOOL_PATH) or _without(f"{name} is not installed")


def require_node_module(name: str) -> Path:
    """
    Find a package of the npm registry.

    Returns:
        The folder that scripts which require the package must lie in or run below. Without the package, or without
        node, the test is skipped, or fails where ``TESTS_MAY_NOT_SKIP`` is 1.
    """
    require_tool("node")
    if not (NODE_FOLDER / "node_modules" / name / "package.json").is_file():
        _without(f"the node package {name} is not installed in tests/node")
    return NODE_FOLDER


def _without(reason: str) -> NoReturn:
    if os.environ.get("TESTS_MAY_NOT_SKIP") == "1":
        pytest.fail(f"{reason}, and TESTS_MAY_NOT_SKIP=1 forbids to skip")
    pytest.skip(reason)
