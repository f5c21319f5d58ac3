"""A stream for a log that takes what it is told to take."""

import json
from typing import Any


class PickyStream:
    """A stream that does what a script says: takes so many octets, or raises."""

    def __init__(self, *script: int | Exception | None) -> None:
        self.script = list(script)
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> int | None:
        step = self.script.pop(0) if self.script else len(data)
        if isinstance(step, Exception):
            raise step
        self.writes.append(data[: step or 0])
        return step

    def events(self) -> list[dict[str, Any]]:
        """Read what was taken."""
        return [json.loads(line) for line in b"".join(self.writes).splitlines()]
