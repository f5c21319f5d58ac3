"""The rules in force: where rule files are looked for, what is said of folders, and what a change of them does."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from proxy.problems import ProblemsError
from proxy.rulebook import RuleBook
from proxy.settings import Settings, load

GOOD = "title: Acme\nfields: [X-Acme-*]\ntranslate:\n  - {field: X-Acme-Tag, to: X-Cmail-GroupName}\n"


def settings(folder: Path, directories: Sequence[str], providers: str = "[acme]") -> Settings:
    """Settings with these folders, of a file in *folder*."""
    file = folder / "settings.yaml"
    file.write_text(f"rules:\n  providers: {providers}\n  directories: [{', '.join(directories)}]\n")
    return load(file, {})


def problems(folder: Path, directories: Sequence[str], providers: str = "[acme]") -> list[str]:
    """What is wrong with these folders."""
    with pytest.raises(ProblemsError) as error:
        RuleBook(settings(folder, directories, providers))
    return str(error.value).splitlines()


def test_folder_that_does_not_exist_or_is_none_is_a_problem(tmp_path: Path) -> None:
    """Each with its place; a provider that may be in one of them is not said to be unknown."""
    (tmp_path / "good").mkdir()
    (tmp_path / "acme.yaml").write_text(GOOD)
    place = f"{tmp_path}/settings.yaml:3"
    assert problems(tmp_path, ["missing", "good", "acme.yaml"]) == [
        f"{place}: rules.directories[0]: found '{tmp_path}/missing', which does not exist; expected a folder with rule "
        "files (make it, or take it out of the list)",
        f"{place}: rules.directories[2]: found '{tmp_path}/acme.yaml', which is no folder; expected a folder with rule "
        "files (name the folder it is in)",
    ]


def test_folder_that_may_not_be_read_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files nobody can see are not the same as no files."""
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr("os.access", lambda *_: False)  # a test may run as root, whom no file mode stops
    assert problems(tmp_path, ["mine"], "[mailgun]") == [
        f"{tmp_path}/settings.yaml:3: rules.directories[0]: found '{tmp_path}/mine', which this program may not read; "
        "expected a folder with rule files",
    ]


@pytest.mark.parametrize("provider", ["acme", "mailgun"])
def test_file_with_the_other_ending_is_a_problem_with_a_hint(tmp_path: Path, provider: str) -> None:
    """Left alone, it would be passed over in silence, and a shipped file would count in its place."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / f"{provider}.yml").write_text(GOOD)
    (folder / "other.yml").write_text("not asked for")
    assert problems(tmp_path, ["mine"], f"[{provider}]") == [
        f"{tmp_path}/settings.yaml:3: rules.directories[0]: found '{provider}.yml' in '{folder}'; expected "
        f"'{provider}.yaml' (rename it to {provider}.yaml)",
    ]
    (folder / f"{provider}.yaml").write_text(GOOD)
    assert RuleBook(settings(tmp_path, ["mine"], f"[{provider}]")).count == 1


def test_folder_that_vanishes_leaves_the_old_rules_and_is_told_once(tmp_path: Path) -> None:
    """Not even the shipped file of the name counts in the meantime; when the folder is back, so is all else."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mailgun.yaml").write_text(GOOD)
    book = RuleBook(settings(tmp_path, ["mine"], "[mailgun]"))
    before = book.engine
    folder.rename(tmp_path / "away")
    with pytest.raises(ProblemsError, match=r"rules\.directories\[0\]: found '.*/mine', which does not exist"):
        book.reload()
    assert (book.engine, book.reload()) == (before, False)
    (tmp_path / "away").rename(folder)
    assert book.reload()
    assert [file.title for file in book.engine.files] == ["Acme"]


def test_folder_that_vanishes_is_told_though_no_rule_came_from_it(tmp_path: Path) -> None:
    """A mount that went may come back with a file in it."""
    (tmp_path / "mine").mkdir()
    book = RuleBook(settings(tmp_path, ["mine"], "[mailgun]"))
    (tmp_path / "mine").rmdir()
    with pytest.raises(ProblemsError):
        book.reload()


def test_misspelt_provider_and_optional_rule_get_a_hint(tmp_path: Path) -> None:
    """What was probably meant stands in the problem."""
    assert problems(tmp_path, [], "[mailgum]")[0].endswith("symfony (did you mean 'mailgun'?)")
    file = tmp_path / "settings.yaml"
    file.write_text("rules: {optional: [subacount]}\n")
    with pytest.raises(ProblemsError) as error:
        RuleBook(load(file, {}))
    assert str(error.value).endswith("expected customid, message_stream, subaccount (did you mean 'subaccount'?)")
