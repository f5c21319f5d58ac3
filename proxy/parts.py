"""What a route needs around it in a process: the contract of its parts with the composition root."""

from typing import Protocol

from proxy.route import Route
from proxy.settings import Settings


class Parts(Protocol):
    """A route with all that works for it in the background."""

    @property
    def route(self) -> Route:
        """Where sessions hand messages in."""

    @property
    def public_port(self) -> int:
        """The port at which readers are answered, once started; 0 where there is nothing for them."""

    async def start(self) -> None:
        """Get ready, before the first client is accepted."""

    async def tick(self) -> None:
        """Do what is to be done about once a second."""

    async def stop(self, seconds: float) -> None:
        """Finish, after the last client is gone; what takes longer than *seconds* is broken off."""


def share(limit: int, settings: Settings) -> int:
    """Give the part of a limit that each worker holds to, rounded up."""
    return -(-limit // settings.workers)
