"""
Notices to senders: what failed, and what is late. Values in, a message of our own out; it never bounces.

Source: RFC 3464; RFC 5321, 6.1 (to the reverse-path, from the null one).
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from proxy.mail import dsn
from proxy.policy.outcome import Result
from proxy.spool.item import Item, Layout, Recipient


class Notices:
    """
    Composes notices.

    Args:
        hostname: Ours, as reporting MTA.
        new_id: Gives queue ids.
        destination: Gives what is connected to for an address, or None.
        expire_seconds: How long a message is tried.
    """

    def __init__(
        self,
        hostname: str,
        new_id: Callable[[], str],
        destination: Callable[[str], str | None],
        expire_seconds: float,
    ) -> None:
        self._hostname = hostname
        self._new_id = new_id
        self._destination = destination
        self._expire_seconds = expire_seconds

    def compose(
        self, item: Item, content: bytes, about: Sequence[tuple[Recipient, Result]], now: float, *, delayed: bool
    ) -> tuple[Item, bytes]:
        """
        Write the notice, and the item under which it is kept.

        Args:
            about: Recipients with what their last attempt brought; all failed, or all late.
        """
        notice_id = self._new_id()
        until = datetime.fromtimestamp(max(item.received_at, item.not_before) + self._expire_seconds, UTC)
        report = dsn.Report(
            to=item.reverse_path,
            reporting_mta=self._hostname,
            recipients=tuple(self._status(each, result, now, until if delayed else None) for each, result in about),
            message_id=f"{notice_id}@{self._hostname}",
            at=datetime.fromtimestamp(now, UTC),
            arrived_at=datetime.fromtimestamp(item.received_at, UTC),
            queue_id=item.id,
            content=_returned(item, content),
        )
        octets = dsn.compose(report)
        # An address that leads nowhere is attempted all the same, and fails in the log.
        destination = self._destination(item.reverse_path) or item.recipients[0].destination
        notice = Item(
            id=notice_id,
            received_at=now,
            reverse_path="",
            recipients=(Recipient(0, item.reverse_path, destination, next_attempt_at=now),),
            layout=Layout(len(octets)),
            size_octets=len(octets),
            subject="Delayed mail" if delayed else "Undelivered mail",
            smtputf8=report.needs_smtputf8,
            notice=True,
        )
        return notice, octets

    def _status(self, recipient: Recipient, result: Result, now: float, until: datetime | None) -> dsn.RecipientStatus:
        """Say of one recipient what its last attempt brought; *until* when it is tried, if it still is."""
        return dsn.RecipientStatus(
            address=recipient.address,
            action="failed" if until is None else "delayed",
            status=result.enhanced,
            remote_mta=result.host,
            diagnostic=str(result.reply) if result.reply else result.detail,
            diagnostic_type="smtp" if result.reply else "X-cmail-proxy",
            last_attempt_at=datetime.fromtimestamp(now, UTC),
            will_retry_until=until,
        )


def _returned(item: Item, content: bytes) -> bytes:
    """What of a message goes back with the notice; of one whose copies differ only the header section."""
    return content if not item.layout.slots else content[: content.find(b"\r\n\r\n") + 4]
