"""Route of logins with ``discard: true``: the old provider's test credentials, accepted and never sent."""

from proxy.inbound.commands import OK
from proxy.mail.reply import Reply
from proxy.route import About, Content, Sent


class DiscardTransaction:
    """Takes every recipient and sends to none."""

    def __init__(self, login: str) -> None:
        self._login = login

    async def recipient(self, _address: str) -> Reply:
        """Accept."""
        return Reply(250, "2.1.5", OK.text)

    async def send(self, _head: bytes, content: Content, _about: About) -> Sent:
        """Read the message to its end and forget it."""
        while not content.complete:
            await content.read()
        reply = Reply(250, "2.0.0", f"Discarded and not sent: login {self._login} is for tests")
        return Sent(reply, "discarded", "")

    def abandon(self) -> None:
        """Nothing to give up."""
