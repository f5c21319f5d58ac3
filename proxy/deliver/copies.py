"""
Copies for recipients: what was worked out once for the message, with each recipient's own URLs, and signed.

Recipients whose copies are equal share one: without tracking that is all of them.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from proxy.compose import steps
from proxy.compose.dkim import Signer
from proxy.compose.tokens import TokenKeys, trackable
from proxy.spool.item import Item, Recipient


class Copies:
    """
    Makes copies.

    Args:
        base_url: Where readers reach the public pages, without a slash at its end.
        keys: Sign the tokens; None where nothing is tracked.
        signer: Signs messages with DKIM; None where nothing is signed.
    """

    def __init__(
        self, base_url: str, keys: TokenKeys | None, signer: Signer | None, clock: Callable[[], float]
    ) -> None:
        self._base_url = base_url
        self._keys = keys
        self._signer = signer
        self._clock = clock

    def of(self, item: Item, content: bytes, recipients: Sequence[Recipient]) -> list[tuple[list[Recipient], bytes]]:
        """Give the copies for some recipients, each with who gets it."""
        layout = item.layout
        keys = self._keys
        if not layout.slots or keys is None:
            return [(list(recipients), self._signed(content))]
        composed = steps.Composed(
            head=content[: layout.head_octets],
            html=content[layout.head_octets : layout.head_octets + layout.html_octets],
            encoding=layout.encoding,
            tail=content[layout.head_octets + layout.html_octets :],
            slots=tuple(steps.Slot(slot.position, slot.kind, slot.target) for slot in layout.slots),
            done=(),
            failed=(),
        )
        copies = []
        for recipient in recipients:
            copies.append(([recipient], self._signed(composed.copy(self._urls(keys, item.id, recipient.number)))))
        return copies

    def _urls(self, keys: TokenKeys, message_id: str, number: int) -> Callable[[steps.Slot], str]:
        def url(slot: steps.Slot) -> str:
            if slot.kind == "open":
                return f"{self._base_url}/o/{keys.sign_open(message_id, number)}"
            if not trackable(slot.target):  # too long, or of a kind that the redirect would refuse: the link stays
                return slot.target
            return f"{self._base_url}/c/{keys.sign_click(message_id, number, slot.target)}"

        return url

    def _signed(self, content: bytes) -> bytes:
        if self._signer is None:
            return content
        return self._signer.sign(content, datetime.fromtimestamp(self._clock(), UTC)) + content
