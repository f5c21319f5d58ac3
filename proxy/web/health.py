"""What the probes tell: whether the process has started, and what keeps it from taking mail."""

from attrs import define, field


@define
class Health:
    """
    The state of the program, kept up by its parts.

    Args:
        started: All listeners take connections.
        stopping: The end was asked for.
        reasons: Why no mail should come at the moment: a line for each part that has a reason.
    """

    started: bool = False
    stopping: bool = False
    reasons: dict[str, str] = field(factory=dict)

    def obstacles(self) -> list[str]:
        """List what keeps the program from being ready, a line each; nothing when it is ready."""
        lines = [f"{part}: {reason}" for part, reason in self.reasons.items()]
        if self.stopping:
            lines.insert(0, "stopping")
        elif not self.started:
            lines.insert(0, "not started yet")
        return lines
