"""
Each mistake in tests/bad_rules has its own exact text.

``NAME.yaml`` is a rule file, ``NAME.expected`` every problem of it, a line each.
"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.translate.parse import parse
from tests.translate.drive import MAPPINGS, SHIPPED

FOLDER = Path(__file__).parent.parent / "bad_rules"
CASES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", CASES)
def test_problems_of_a_bad_rule_file_are_told_word_for_word(name: str) -> None:
    """All mistakes of a file at once, each with line, key, what was found and what was expected; and no rules."""
    file, problems = parse((FOLDER / f"{name}.yaml").read_text("utf-8"), f"{name}.yaml", "acme")
    assert "".join(f"{problem}\n" for problem in problems) == (FOLDER / f"{name}.expected").read_text("utf-8")
    assert file is None


def test_bad_rules_folder_has_no_file_without_a_case() -> None:
    """Every expectation belongs to a rule file, and every rule file has one."""
    assert {path.name for path in FOLDER.iterdir()} == {f"{n}{e}" for n in CASES for e in (".yaml", ".expected")}


PIECES = [
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ": ",
        "- ",
        "\n",
        "\n  ",
        ",",
        "'",
        '"',
        "#",
        "&a ",
        "*a",
        "!x ",
        "!",
        "? ",
        "|\n",
        ">\n",
    ),
    *("%", "---\n", "\t", "\x00", "\u00e9", "\ufeff", "<<: ", "*", "null", "~", "true", "0", "-1", "''", "text", "X-A"),
    *(
        "field: ",
        "to: ",
        "as: ",
        "at: ",
        "list: ",
        "json: ",
        "fields: ",
        "class: ",
        "loses: ",
        "when: ",
        "is: ",
        "key: ",
    ),
]


@given(st.sampled_from(SHIPPED), st.data())
def test_any_damage_to_a_rule_file_gives_rules_or_problems(provider: str, data: st.DataObject) -> None:
    """A slip of any kind never raises: there is a rule file, or there is at least one problem."""
    text = (MAPPINGS / f"{provider}.yaml").read_text()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(st.sampled_from(PIECES)) + text[end:]
    file, problems = parse(text, f"{provider}.yaml", provider)
    assert (file is None) == bool(problems)
    assert all(str(problem).startswith(f"{provider}.yaml") for problem in problems)
