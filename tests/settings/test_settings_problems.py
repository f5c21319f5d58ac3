"""
Each mistake in tests/bad_settings has its own exact text.

``NAME.yaml`` is the file, ``NAME.environ`` (where there is one) the environment, ``NAME.expected`` every line that the
operator sees: the problems of reading, or else those of the checks and the warnings. ``{folder}`` stands for the
folder.
"""

from pathlib import Path

import pytest

from proxy.problems import ProblemsError
from proxy.settings import check, load

FOLDER = Path(__file__).parent.parent / "bad_settings"
CASES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def environment(name: str) -> dict[str, str]:
    path = FOLDER / f"{name}.environ"
    return dict(line.split("=", 1) for line in path.read_text().splitlines()) if path.exists() else {}


def report(name: str) -> str:
    try:
        problems, warnings = check(load(Path(f"{name}.yaml"), environment(name)))
    except ProblemsError as error:
        lines = [str(problem) for problem in error.problems]
    else:
        lines = [*map(str, problems), *(f"warning: {warning}" for warning in warnings)]
    return "".join(f"{line}\n" for line in lines).replace(str(FOLDER), "{folder}")


@pytest.mark.parametrize("name", CASES)
def test_problems_of_a_bad_file_are_told_word_for_word(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text for a mistake names file, line, key, what was found, what was expected and a hint, and nothing else."""
    monkeypatch.chdir(FOLDER)
    assert report(name) == (FOLDER / f"{name}.expected").read_text()


def test_bad_settings_folder_has_no_file_without_a_case() -> None:
    """Every expectation and environment belongs to a file, so none goes stale unseen."""
    parallel = {path.stem for path in FOLDER.iterdir() if path.suffix in (".expected", ".environ")}
    assert parallel == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_problems_never_show_a_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets in the cases begin with ``example-``; none of them may come back, whatever is wrong with it."""
    monkeypatch.chdir(FOLDER)
    assert "example-" not in report(name)
