"""YAML as settings and rule files use it, and the problems that are told about it."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.problems import Problem, ProblemsError
from proxy.strictyaml import MAX_ALIASES, MAX_DEPTH, MAX_OCTETS, Mapping, Node, Scalar, Sequence, parse


def read(text: str) -> Node:
    root, problems = parse(text, "file.yaml")
    assert problems == []
    assert root is not None
    return root


def problems_of(text: str) -> list[str]:
    return [str(problem) for problem in parse(text, "f")[1]]


def entries(text: str) -> dict[str, Node]:
    root = read(text)
    assert isinstance(root, Mapping)
    return root.entries


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("word", "word"),
        ("true", True),
        ("false", False),
        ("0", 0),
        ("-25", -25),
        ("+7", 7),
        ("007", 7),
        ("9" * 18, int("9" * 18)),
        ("", None),
        ("9" * 19, "9" * 19),
        *((word, word) for word in ("yes", "no", "on", "off", "True", "FALSE", "null", "~", "None", "y", "n")),
        *(
            (word, word)
            for word in ("1.5", "1e3", "0x10", "0o7", "1_000", "10:30", "2026-11-23", ".inf", "=", "-x", "+")
        ),
        ('"true"', "true"),
        ("'25'", "25"),
        ('""', ""),
        ("''", ""),
        ('"a\\tb"', "a\tb"),
    ],
)
def test_scalar_is_a_word_but_for_true_false_and_integers(text: str, value: str | bool | int | None) -> None:
    """No word turns into a truth value, a number, a date or nothing behind the operator's back."""
    scalar = entries(f"key: {text}\n")["key"]
    assert isinstance(scalar, Scalar)
    assert (scalar.value, type(scalar.value)) == (value, type(value))


def test_nodes_know_their_lines() -> None:
    """Each value and each key has the line it stands on, for problems."""
    root = read("# comment\na: 1\nb:\n  - x\n  - c: {d: 2,\n      e: 3}\n'f': |\n  text\n")
    assert root == Mapping(
        {
            "a": Scalar(1, 2),
            "b": Sequence(
                (
                    Scalar("x", 4),
                    Mapping({"c": Mapping({"d": Scalar(2, 5), "e": Scalar(3, 6)}, {"d": 5, "e": 6}, 5)}, {"c": 5}, 5),
                ),
                4,
            ),
            "f": Scalar("text\n", 7),
        },
        {"a": 2, "b": 3, "f": 7},
        2,
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("word", "'word'"),
        ("it's", '"it\'s"'),
        ("true", "true"),
        ("false", "false"),
        ("25", "25"),
        ('"25"', "'25'"),
        ("", "nothing"),
        ("[]", "a list of 0"),
        ("[a, [b, c]]", "a list of 2"),
        ("{a: b}", "a mapping"),
    ],
)
def test_node_is_shown_in_problems_as_the_operator_wrote_it(text: str, shown: str) -> None:
    """What was found is named by its kind, or quoted if it is a word."""
    assert str(entries(f"key: {text}\n")["key"]) == shown


@pytest.mark.parametrize("text", ["", "\n\n", "# comment\n", "\ufeff"])
def test_file_without_a_document_is_nothing(text: str) -> None:
    """An empty file is no mistake of YAML; what it means is for the reader of the file."""
    assert parse(text, "file.yaml") == (None, [])


@pytest.mark.parametrize(
    "text", ["a: 1\n", "---\na: 1\n", "---\na: 1\n...\n", "%YAML 1.1\n---\na: 1\n", "\ufeffa: 1\r\n"]
)
def test_document_marks_and_byte_order_mark_make_no_difference(text: str) -> None:
    """What editors and tools put around a document is not part of it."""
    root = read(text)
    assert isinstance(root, Mapping)
    assert {key: str(node) for key, node in root.entries.items()} == {"a": "1"}


# Aliases


def test_alias_stands_for_the_value_of_its_anchor() -> None:
    """A few repeated values may be written once."""
    found = entries("a: &x [1, 2]\nb: *x\nc: &x word\nd: *x\n")
    assert (found["b"], found["d"]) == (found["a"], found["c"])


def test_aliases_have_a_budget() -> None:
    """The budget is told once, where it is exceeded, and nothing more of a file that was not read to its end."""
    text = "a: &x [1]\nb: [{}]\n"
    assert problems_of(text.format(", ".join(["*x"] * MAX_ALIASES))) == []
    over = text.format(", ".join(["*x"] * (MAX_ALIASES + 3)))
    assert problems_of(over) == ["f:2: b[8]: found more than 8 aliases; expected the values written out"]
    root, _ = parse(over, "f")
    assert root is None


def test_alias_bomb_is_refused_before_it_unfolds() -> None:
    """Ten lines that stand for a billion values are read as ten lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]" for number in range(1, 10)]
    assert problems_of("\n".join(lines)) == ["f:2: a1[8]: found more than 8 aliases; expected the values written out"]


@pytest.mark.parametrize("text", ["a: *x\n", "a: *x\nb: &x 1\n", "a: &x [*x]\n", "a: &x {b: *x}\n"])
def test_alias_without_an_anchor_above_it_is_told(text: str) -> None:
    """A value that begins with a star by mistake, or that contains itself, is found out."""
    [problem] = problems_of(text)
    assert problem.endswith("found an alias without an anchor; expected a value; in quotes if it begins with *")


# Problems


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("a: 1\nb: 2\na: 3\n", ["f:3: a: found the key a second time; expected each key once (first on line 1)"]),
        (
            "a: [{b: 1,\n  b: 2, 'b': 3}]\n",
            [
                "f:2: a[0].b: found the key a second time; expected each key once (first on line 1)",
                "f:2: a[0].b: found the key a second time; expected each key once (first on line 1)",
            ],
        ),
        ("a: {<<: {b: 1}}\n", ["f:1: a.<<: found a merge key; expected the values written out"]),
        ("a: !!int 1\n", ["f:1: a: found a tag; expected a value; in quotes if it begins with !"]),
        ("a:\n  - !x {b: 1}\n", ["f:2: a[0]: found a tag; expected a value; in quotes if it begins with !"]),
        (
            "a: !!python/object/apply:os.system [x]\n",
            ["f:1: a: found a tag; expected a value; in quotes if it begins with !"],
        ),
        ("a: 1\n---\nb: 2\n---\nc: 3\n", ["f:2: found a second document; expected one document in a file"]),
        ("? [a, b]\n: 1\n", ["f:1: found a key that is a list, a mapping or an alias; expected a word as key"]),
        ("a: {? {b: 1} : 2}\n", ["f:1: a: found a key that is a list, a mapping or an alias; expected a word as key"]),
        ("a: &x b\n*x : 1\n", ["f:2: found a key that is a list, a mapping or an alias; expected a word as key"]),
        (
            "a: [1\nb: 2\n",
            [
                "f:2: found text that is not YAML: did not find expected ',' or ']' while parsing a flow sequence;"
                " expected valid YAML"
            ],
        ),
        (
            "a: 1\n b: 2\n",
            ["f:2: found text that is not YAML: mapping values are not allowed in this context; expected valid YAML"],
        ),
        (
            "a: \x07\n",
            [
                "f: found text that is not YAML: unacceptable character #x0007: control characters are not allowed;"
                " expected valid YAML"
            ],
        ),
        ("a: \ud800\n", ["f: found text that is not YAML: an unpaired surrogate; expected valid YAML"]),
        ("x" * (MAX_OCTETS + 1), ["f: found 262145 characters; expected a file of at most 262144 octets"]),
        ("\u20ac" * 100_000, ["f: found 100000 characters; expected a file of at most 262144 octets"]),
    ],
)
def test_problem_of_yaml_is_told_word_for_word(text: str, problems: list[str]) -> None:
    """Every problem has its line and key, and none raises."""
    assert problems_of(text) == problems


def test_file_of_the_largest_size_is_read() -> None:
    """The bound itself is lawful."""
    assert str(read("x" * MAX_OCTETS)) == repr("x" * MAX_OCTETS)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}")])
def test_nesting_is_bounded(opening: str, closing: str) -> None:
    """As deep as allowed is read; deeper is told once, however deep it is."""
    assert problems_of(opening * MAX_DEPTH + "1" + closing * MAX_DEPTH) == []
    for depth in (MAX_DEPTH + 1, MAX_DEPTH + 2, 300, 1200, 10_000):
        [problem] = problems_of(opening * depth + "1" + closing * depth)
        assert problem.endswith("found nesting too deep to read; expected at most 20 levels")


@pytest.mark.parametrize(
    "text", ["[" * 250_000, "{" * 250_000, "- " * 100_000, "a: " * 80_000, "? " * 100_000, "&a " * 80_000]
)
def test_nesting_without_end_is_a_problem(text: str) -> None:
    """A file made to exhaust the parser costs itself, and nothing else."""
    root, problems = parse(text, "f")
    assert (root, len(problems)) == (None, 1)


PIECES = (
    *("a", "b: ", "- ", "\n", "\n  ", "[", "]", "{", "}", ",", ": ", "'", '"', "&x ", "*x ", "!t ", "! ", "? ", "|\n"),
    *(">\n", "#", "---\n", "...\n", "%YAML 1.1\n", "<<: ", "\t", "\x00", "\ufeff", "\u2028", "\U0001f600", "true", "1"),
)


@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=20).map("".join)))
@example("a: \udc80")
def test_any_text_gives_nodes_and_problems(text: str) -> None:
    """Nothing raises, and nothing is remembered from one file to the next."""
    root, problems = parse(text, "f")
    assert parse(text, "f") == (root, problems)
    assert all(re.match(r"f(:[1-9][0-9]*)?: .*found .+; expected .+", str(problem), re.DOTALL) for problem in problems)
    assert str(root)


# Problems as values


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("f.yaml", 3, "a[0].b", "'x'", "y", "try y"), "f.yaml:3: a[0].b: found 'x'; expected y (try y)"),
        (Problem("f.yaml", 3, "a", "'x'", "y"), "f.yaml:3: a: found 'x'; expected y"),
        (Problem("f.yaml", 3, "", "'x'", "y"), "f.yaml:3: found 'x'; expected y"),
        (Problem("environment", 0, "A_B", "'x'", "y"), "environment: A_B: found 'x'; expected y"),
        (Problem("f.yaml", 0, "", "nothing", "a file"), "f.yaml: found nothing; expected a file"),
    ],
)
def test_problem_is_one_line_with_what_is_known(problem: Problem, text: str) -> None:
    """File, line, key, found, expected, hint: what is missing leaves no trace."""
    assert str(problem) == text


def test_problems_error_carries_all_of_them() -> None:
    """One exception for one run of ``check``, a line for each problem."""
    problems = (Problem("a", 1, "k", "'x'", "y"), Problem("b", 0, "", "z", "w"))
    error = ProblemsError(iter(problems))
    assert error.problems == problems
    assert str(error) == "a:1: k: found 'x'; expected y\nb: found z; expected w"
