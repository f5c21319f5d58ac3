"""
What is kept of a message: envelope, state of each recipient, and what the reports need.

Values only; how they are kept is ``store.py``'s to say. Times are seconds since the epoch, UTC, as the clock given to
the sending core tells them.
"""

import enum
from typing import Literal

from attrs import frozen


class State(enum.Enum):
    """Where a recipient stands; all but ``pending`` are final."""

    PENDING = "pending"
    DELIVERED = "delivered"
    BOUNCED = "bounced"
    SUPPRESSED = "suppressed"
    REMOVED = "removed"


EventKind = Literal[
    "received",
    "held",
    "step_failed",
    "suppressed",
    "deferred",
    "delivered",
    "bounced",
    "removed",
    "retried",
    "delay_told",
    "bounce_told",
    "opened",
    "clicked",
    "set_aside",
]
"""The closed list of what can happen in a message's life."""


@frozen
class Slot:
    """
    A place in the HTML where each recipient's copy has a URL of its own.

    Args:
        position: Offset in the HTML, in octets.
        kind: A beacon or a link.
        target: Where the link leads; empty for a beacon.
    """

    position: int
    kind: Literal["open", "click"]
    target: str = ""


@frozen
class Layout:
    """
    How the content kept for a message becomes a copy for a recipient.

    Args:
        head_octets: Length of what stands before the HTML; the whole content where there are no slots.
        html_octets: Length of the HTML, not yet encoded for transfer.
        encoding: Its transfer encoding.
        slots: In order of position; empty: every copy is the content as it is.
    """

    head_octets: int
    html_octets: int = 0
    encoding: str = ""
    slots: tuple[Slot, ...] = ()


@frozen
class Recipient:
    """
    One recipient of a message.

    Args:
        number: Its place in the envelope, from 0 on; tracking tokens carry it instead of the address.
        destination: What is connected to for it: a domain, or the one name of a smarthost or mailbox.
        attempts: Begun so far.
        reply: What the last attempt brought: reply code, enhanced status code and text, or why there was none.
        leased: Whether somebody attempts it, or has it in line for that; ``next_attempt_at`` is for the case that
            nothing is heard of that any more.
    """

    number: int
    address: str
    destination: str
    state: State = State.PENDING
    attempts: int = 0
    next_attempt_at: float = 0.0
    reply: str = ""
    remote_host: str = ""
    leased: bool = False


@frozen
class Item:
    """
    A message as it was accepted.

    Args:
        id: The queue id; also in the Received field.
        received_at: When it was made durable.
        reverse_path: Empty for the null reverse-path.
        group: None for "Ungrouped emails".
        provider: Whose fields it came with; empty for none.
        not_before: When it may first be attempted; 0 for at once.
        size_octets: Of the content kept.
        failed_steps: Content steps that were not done, each with the reason.
        notice: Whether it is a notice of ours about another message: it must never bounce.
        set_aside: Why it is damaged, and so is not attempted; empty for one that is in order.
    """

    id: str
    received_at: float
    reverse_path: str
    recipients: tuple[Recipient, ...]
    layout: Layout
    size_octets: int
    group: str | None = None
    login: str = ""
    provider: str = ""
    subject: str = ""
    eight_bit: bool = False
    smtputf8: bool = False
    not_before: float = 0.0
    failed_steps: tuple[tuple[str, str], ...] = ()
    notice: bool = False
    set_aside: str = ""


@frozen
class Event:
    """
    Something that happened to a message.

    Args:
        recipient: The number of the recipient it is about; None for all of them.
        detail: Short text: a reply, an address that was clicked, a reason.
    """

    at: float
    kind: EventKind
    recipient: int | None = None
    detail: str = ""


@frozen
class Change:
    """
    What an attempt, or an operator, changed about a recipient.

    Args:
        next_attempt_at: For one that stays pending.
        event: What the timeline and the figures say of it; None for nothing.
        attempted: Whether an attempt was made. If not, the one that began with the lease does not count.
    """

    message_id: str
    number: int
    state: State
    event: Event | None
    next_attempt_at: float = 0.0
    reply: str = ""
    remote_host: str = ""
    attempted: bool = True


@frozen
class Removal:
    """
    What giving a message up came to.

    Args:
        recipients: How many do not get it any more, unless they are getting it at this moment.
        under_way: How many of them were leased, so that whoever has them must hear of it first.
    """

    recipients: int
    under_way: int


@frozen
class Notice:
    """
    A message of ours about another one.

    Args:
        item: Under which it is kept.
        about: The id of the message it is about.
        event: What the timeline of that message says: ``bounce_told`` or ``delay_told``.
    """

    item: Item
    content: bytes
    about: str
    event: Event


@frozen
class Figures:
    """
    One line of the report: a group on a day.

    Args:
        day: ISO date, UTC.
        group: Its name; "Ungrouped emails" for messages without one.
        received: Messages accepted.
        sent: Recipients to whom a copy was to go, suppressed ones not counted.
        deferred: Attempts that are to be made again.
        opened, clicked: Recipients who did so at least once; ``…_total`` counts each time.
    """

    day: str
    group: str
    received: int = 0
    sent: int = 0
    delivered: int = 0
    deferred: int = 0
    bounced: int = 0
    suppressed: int = 0
    opened: int = 0
    opened_total: int = 0
    clicked: int = 0
    clicked_total: int = 0


@frozen
class Suppression:
    """An address that gets no more mail, since when, and why."""

    address: str
    since: float
    reason: str


UNGROUPED = "Ungrouped emails"
"""What the platform calls messages without a group."""
