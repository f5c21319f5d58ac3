"""
Copies for recipients: what was worked out once for the message, with each recipient's own URLs, and signed.

A host without 8BITMIME gets a copy in seven-bit form. Only whoever talks to it knows that, so each copy says how to
make it; the signature is made anew, over what is sent.

Recipients whose copies are equal share one: without tracking that is all of them.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from proxy.compose import seven_bit, steps
from proxy.compose.dkim import Signer
from proxy.compose.tokens import TokenKeys, trackable
from proxy.outbound.transaction import Copy
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

    def use(self, keys: TokenKeys, signer: Signer | None) -> None:
        """Sign with other keys from now on."""
        self._keys, self._signer = keys, signer

    def of(self, item: Item, content: bytes, recipients: Sequence[Recipient]) -> list[Copy]:
        """Give the copies for some recipients."""
        layout = item.layout
        keys = self._keys
        if not layout.slots or keys is None:
            return [self._copy(recipients, content)]
        composed = steps.Composed(
            head=content[: layout.head_octets],
            html=content[layout.head_octets : layout.head_octets + layout.html_octets],
            encoding=layout.encoding,
            tail=content[layout.head_octets + layout.html_octets :],
            slots=tuple(steps.Slot(slot.position, slot.kind, slot.target) for slot in layout.slots),
            done=(),
            failed=(),
        )
        return [self._copy([each], composed.copy(self._urls(keys, item.id, each.number))) for each in recipients]

    def _copy(self, recipients: Sequence[Recipient], content: bytes) -> Copy:
        def in_seven_bits() -> bytes | None:
            written = seven_bit.converted(content)
            return None if written is None else self._signed(written)

        return Copy(tuple(each.address for each in recipients), self._signed(content), in_seven_bits)

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
