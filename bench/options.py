"""What the user asked for on the command line, as every part wants it."""

from attrs import frozen


@frozen
class Options:
    """
    Options of a run.

    Args:
        quick: Few and small measurements: to see that it works, not for figures.
        rounds: Times each measurement is made; 0 for the part's own number.
        workers: Processes of the proxy that share its listener.
        count: Messages of one measurement in the parts that send many; 0 for each one's own number.
    """

    quick: bool = False
    rounds: int = 0
    workers: int = 1
    count: int = 0

    def rounds_or(self, usual: int) -> int:
        """The number of rounds."""
        return self.rounds or (1 if self.quick else usual)

    @property
    def plural_workers(self) -> str:
        """Say how many workers there are."""
        return f"{self.workers} worker{'s' if self.workers > 1 else ''}"

    def command(self, part: str) -> str:
        """The command that repeats a part with these options."""
        words = [".venv/bin/python bench/run.py", part]
        words += ["--quick"] if self.quick else []
        words += [f"--rounds {self.rounds}"] if self.rounds else []
        words += [f"--workers {self.workers}"] if self.workers != 1 else []
        words += [f"--count {self.count}"] if self.count else []
        return " ".join(words)
