"""A proxy with the platform on script behind it, and what every test of the relay asks of the two."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.smtp_in.dialogue import Client
from tests.smtp_in.site import MESSAGE, Site, site
from tests.support.upstream import EXTENSIONS, Reply, Upstream

MAIL = "MAIL FROM:<app@example.com>"
ANN, BOB = "RCPT TO:<ann@example.net>", "RCPT TO:<bob@example.net>"

MAIL_OK = "250 2.1.0 OK"
RCPT_OK = "250 2.1.5 recipient fine"
NO_RECIPIENTS_NOW = "451 4.3.0 No recipient was accepted, try again later"
NO_RECIPIENTS = "554 5.5.1 No valid recipients"
NO_CONNECTION = "451 4.4.1 The next hop cannot be reached at the moment, try again later"
MISCONFIGURED = "451 4.3.5 The next hop does not take our credentials, try again later"
POOL_BUSY = "451 4.3.2 All connections to the next hop are in use, try again later"
LOST = "451 4.4.2 The connection to the next hop was lost, try again later"
NONSENSE = "451 4.5.0 The next hop gave an unexpected answer, try again later"


class Relay(Site):
    """
    A running proxy and the platform behind it.

    Attributes:
        extensions: What the platform offers when it is as it should be.
    """

    extensions: tuple[str, ...] = EXTENSIONS

    def restore(self) -> None:
        """Begin a test: a platform as it should be, that has no message yet, and one connection to it at rest."""
        self.upstream.script(extensions=self.extensions)
        self.rest()
        if len(self.upstream.open) != 1:
            self.unpool()
            self.serves()
            self.rest()
        self.upstream.taken.clear()

    def rest(self) -> None:
        """Wait until all connections are back in the pool, those that need RSET included."""
        self.proxy.wait_for_metric("cmail_proxy_upstream_connections", 0, state="busy")

    def unpool(self) -> None:
        """Close the connections at rest, so that the next message needs a new one."""
        self.upstream.hang_up()

    def warm_up(self) -> None:
        """Wait until the connection made at start is at rest."""
        self.proxy.wait_for_metric("cmail_proxy_upstream_connections", 1, state="idle")

    def learn(self, *extensions: str) -> None:
        """Let the proxy see another EHLO of the platform."""
        self.unpool()
        self.upstream.script(extensions=extensions)
        self.serves()
        self.rest()
        self.upstream.taken.clear()

    def attempt(self, content: bytes = MESSAGE) -> list[str]:
        """Try to send to two recipients on a connection of its own; all replies up to the one that ends it."""
        with self.client() as client:
            return attempt(client, content)

    def last_line(self, before: int) -> dict[str, Any]:
        """The log line of the message that follows *before* others."""
        return self.proxy.event("message", before + 1)

    def logged(self) -> int:
        """How many messages were logged so far."""
        return len(self.proxy.events("message"))

    def serves_again(self) -> None:
        """Switch the script back, and require that a good message goes through."""
        self.upstream.script(extensions=self.extensions)
        self.serves()


def attempt(client: Client, content: bytes = MESSAGE) -> list[str]:
    """Send to two recipients as far as it goes, and give all replies."""
    replies = [client.say(MAIL)]
    if replies != [MAIL_OK]:
        return replies
    recipients = [client.say(ANN), client.say(BOB)]
    replies += recipients
    if not any(reply.startswith("2") for reply in recipients):
        return replies
    replies.append(client.say("DATA"))
    if replies[-1].startswith("354"):
        client.send(content)
        replies.append(client.reply())
    return replies


def in_turn(*replies: Reply) -> Callable[[str], str | bytes]:
    """Replies one after the other; the last one stays."""
    left = list(replies)

    def reply(line: str) -> str | bytes:
        words = left.pop(0) if len(left) > 1 else left[0]
        return words(line) if callable(words) else words

    return reply


@contextmanager
def relay(folder: Path, upstream: Upstream | None = None, **overrides: Any) -> Iterator[Relay]:
    """Start both; at the end nothing must have gone wrong inside the proxy."""
    with site(folder, upstream, **overrides) as started:
        yield Relay(started.proxy, started.upstream)
