"""What is wrong with a file an operator wrote: one value for settings and rule files alike."""

from collections.abc import Iterable, Sequence

from attrs import frozen


@frozen
class Problem:
    """
    Say what is wrong in a settings or rule file, and what to do about it.

    The text is interface: operators search for it and tests compare it word for word.

    Args:
        file: The file as the operator named it, or ``environment``.
        line: 1-based line; 0 where there is none (a missing file, an environment variable).
        key: Dotted path of the key, e.g. ``listeners[0].tls``.
        found: What stands there.
        expected: What could stand there.
        hint: What to do, where that is not plain from *expected*.
    """

    file: str
    line: int
    key: str
    found: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        key = f"{self.key}: " if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}: {key}found {self.found}; expected {self.expected}{hint}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Hint at the known word that was probably meant; empty for none."""
    import difflib  # only where something is wrong

    spelled = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(word.lower(), spelled, n=1)
    return f"did you mean {spelled[close[0]]!r}?" if close else ""


class ProblemsError(Exception):
    """Raised with every problem at once, so that one run of ``check`` shows them all."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: Sequence[Problem] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
