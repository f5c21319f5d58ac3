"""What the engine gives back: what was written and by which rule, what was lost, what is worth a remark."""

from attrs import frozen

from proxy.translate.model import Action


@frozen
class Setting:
    """
    One X-Cmail field that was written.

    Args:
        value: As decoded text; the switches are ``true`` or ``false``.
        source: The field the value comes from, as the rule file spells it; empty for ``when_absent``.
        where: The rule, ``file:line``; for ``when_absent`` the file.
    """

    target: str
    value: str
    provider: str
    source: str
    where: str


@frozen
class Loss:
    """Something the message uses that has no counterpart."""

    provider: str
    source: str
    loss_class: str
    action: Action
    loses: str
    where: str


@frozen
class Remark:
    """
    Something an operator should know of, that changes nothing else.

    Args:
        kind: One of ``invalid_value``, ``two_providers``, ``repeated_field``, ``repeated_key``, ``name_cut``,
            ``signature_broken``, ``unknown_field``.
        source: The field, or for ``unknown_field`` the pattern, as the rule file spells it; empty where there is none.
    """

    kind: str
    provider: str
    source: str
    text: str
    where: str = ""


@frozen
class Translation:
    """
    What is to be done with a message.

    Args:
        section: The new header section (without our ``Received``), or None where nothing changes.
        providers: Providers whose control fields were found, in field order.
        group: The group the message ends up in, native field included; None for "Ungrouped emails".
        settings: X-Cmail fields written.
        removed: Names of removed fields, as the message spelled them.
        action: The strongest action of all losses and invalid values.
        deliver_at: ISO time before which the message is not to be sent; empty for at once.
        reason: For ``refuse`` and ``discard``: one line for the peer and the log, printable ASCII.
    """

    section: bytes | None = None
    providers: tuple[str, ...] = ()
    group: str | None = None
    settings: tuple[Setting, ...] = ()
    removed: tuple[str, ...] = ()
    losses: tuple[Loss, ...] = ()
    remarks: tuple[Remark, ...] = ()
    action: Action = Action.IGNORE
    reason: str = ""
    deliver_at: str = ""
