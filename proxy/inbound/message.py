"""
One message, from 354 to its reply: read the header section, translate, decide, send on, write the log line.

Order of the checks: header section (size, number of fields, hops), then what the rules decide, then the route. Nothing
goes upstream before the header section is complete and decided. Source: RFC 5321, 4.1.1.4, 4.4 and 6.3.
"""

import asyncio
from functools import partial
from time import monotonic, time

from attrs import define, field

from proxy.inbound import trace
from proxy.inbound.auth import Login
from proxy.inbound.content import BARE_NEWLINE, StreamedContent
from proxy.inbound.service import MessageLimits, Service
from proxy.mail.envelope import Envelope
from proxy.mail.fields import HeaderSection
from proxy.mail.reply import Reply
from proxy.route import About, ClientGoneError, ContentRefusedError, Sent, Transaction
from proxy.translate.model import Action
from proxy.translate.outcome import Translation

HEADER_TOO_LARGE = Reply(552, "5.3.4", "The header section is too large")
TOO_MANY_HOPS = Reply(554, "5.4.6", "Too many hops, this message is in a loop")
_AS_IT_SHOULD_BE = ("accepted", "queued", "discarded")
_CUT_OFF = "cut off at shutdown, before the message was complete"
_CUT_OFF_WHOLE = "cut off at shutdown, waiting for the next hop, which may have taken the message"
_UNTRANSLATED = Translation()
GIVEN_UP = Reply(552, "5.3.4", "The message is far too large, closing")


@define(eq=False)
class Submission:
    """
    What is known of a message and its way here; filled in as it goes.

    Args:
        protocol: The ``with`` type of the Received field.
        provider: The provider of login or listener; empty for none.
        began: When MAIL was taken (monotonic seconds).
    """

    id: str
    session_id: str
    address: str
    client: str
    listener: str
    protocol: str
    login: Login | None
    provider: str
    envelope: Envelope
    began: float
    translation: Translation = _UNTRANSLATED
    outcome: str = ""
    upstream: str = ""
    data_began: float = field(factory=monotonic)
    send_began: float = 0.0


async def receive(
    service: Service, submission: Submission, transaction: Transaction, content: StreamedContent
) -> Reply:
    """
    Take the message and answer its final dot.

    Returns:
        The reply; with 421 or :data:`GIVEN_UP` the connection is to be closed behind it.

    Raises:
        ClientGoneError: There is nobody to answer; the message was not sent on.
    """
    try:
        reply = await _receive(service, submission, transaction, content)
        transaction.abandon()  # before the rest is read: the next hop's connection is of use to others
        if not content.complete and not await content.discard():
            reply = GIVEN_UP
    except ClientGoneError:
        if not submission.outcome:
            submission.outcome = "client_gone"
            service.metrics.message_abandoned("client_gone")
        _tell(service, submission, content, None)
        raise
    except asyncio.CancelledError:
        submission.outcome = "failed"
        submission.upstream = _CUT_OFF_WHOLE if content.complete else _CUT_OFF
        service.metrics.message_abandoned("shutdown")
        _tell(service, submission, content, None)
        raise
    finally:
        transaction.abandon()
    _tell(service, submission, content, reply)
    return reply


async def _receive(
    service: Service, submission: Submission, transaction: Transaction, content: StreamedContent
) -> Reply:
    metrics = service.metrics
    try:
        head = await _read_head(content, service.limits)
        if isinstance(head, Reply):
            metrics.message_refused("header_section" if head is HEADER_TOO_LARGE else "hops")
            return _refused(submission, head)
        data, section = head
        translation = service.engine.translate(section, submission.envelope, submission.provider)
        submission.translation = translation
        metrics.translation(translation)
        if translation.action is Action.REFUSE:
            refused = any(loss.action is Action.REFUSE for loss in translation.losses)
            metrics.message_refused("untranslatable" if refused else "invalid_value")
            return _refused(submission, Reply(554, "5.6.0", f"{translation.reason}; not sent"))
        if translation.action is Action.DISCARD:
            metrics.message_discarded("test_mode")
            submission.outcome = "discarded"
            return Reply(250, "2.0.0", f"Discarded and not sent: {translation.reason}")
        submission.send_began = monotonic()
        section_octets, to_send = _head_to_send(service, submission, data, section)
        about = About(
            submission.id,
            section_octets,
            submission.login.name if submission.login else "",
            next(iter(translation.providers), ""),
            translation.deliver_at,
        )
        sent = await transaction.send(to_send, content, about)
    except ContentRefusedError as refused:
        metrics.message_refused("bare_newline" if refused.reply is BARE_NEWLINE else "size")
        return _refused(submission, refused.reply)
    return _judged(service, submission, sent)


def _refused(submission: Submission, reply: Reply) -> Reply:
    submission.outcome = "refused"
    return reply


def _judged(service: Service, submission: Submission, sent: Sent) -> Reply:
    submission.outcome = sent.outcome
    submission.upstream = sent.detail
    if sent.outcome == "discarded":
        service.metrics.message_discarded("login")
    else:
        service.metrics.relayed(sent.outcome, monotonic() - submission.began)
        if sent.outcome not in _AS_IT_SHOULD_BE:
            service.metrics.message_refused("next_hop")
    return sent.reply


async def _read_head(content: StreamedContent, limits: MessageLimits) -> tuple[bytes, HeaderSection] | Reply:
    """Read until the header section is whole: the octets read so far and the section at their head."""
    data = b""
    while True:
        seen = max(0, len(data) - 3)
        chunk = await content.read()
        data = data + chunk if data else chunk
        if content.complete or data.startswith(b"\r\n") or data.find(b"\r\n\r\n", seen) >= 0:
            break
        if len(data) > limits.header_octets:
            # A message without a blank line is lawful as far as the first line that is no field: that is its body.
            section = HeaderSection.split(data)
            if section.end > limits.header_octets or data.find(b"\n", section.end) < 0:
                return HEADER_TOO_LARGE
            break
    section = HeaderSection.split(data)
    if section.end > limits.header_octets or len(section) > limits.header_fields:
        return HEADER_TOO_LARGE
    if section.keys.count(b"received") > limits.hops:
        return TOO_MANY_HOPS
    return data, section


def _head_to_send(service: Service, submission: Submission, data: bytes, section: HeaderSection) -> tuple[int, bytes]:
    """Give the length of the header section to send, and that section with what was read behind it."""
    received = trace.received(
        client=submission.client,
        address=submission.address,
        hostname=service.hostname,
        protocol=submission.protocol,
        message_id=submission.id,
        at=time(),
    )
    translated = submission.translation.section
    if translated is None:
        translated = data[: section.end]
    rest = data[section.end :]
    if section.start == section.end and rest[:1] in (b" ", b"\t"):
        rest = b"\r\n" + rest  # a body that starts with a blank must not become a continuation of our field
    head = translated[: section.start] + received + translated[section.start :] + rest
    return len(translated) + len(received), head


def _tell(service: Service, submission: Submission, content: StreamedContent, reply: Reply | None) -> None:
    service.metrics.message_bytes(content.octets)
    service.log.later(partial(_write_log, service, submission, content, reply, monotonic()))


def _write_log(
    service: Service, submission: Submission, content: StreamedContent, reply: Reply | None, now: float
) -> None:
    """Write the one line of this message, which ended *now*: never a secret, never a body."""
    translation = submission.translation
    envelope = submission.envelope
    tell = service.log.info if submission.outcome in _AS_IT_SHOULD_BE else service.log.warning
    tell(
        "message",
        id=submission.id,
        session=submission.session_id,
        listener=submission.listener,
        client=submission.address,
        login=submission.login.name if submission.login else None,
        reverse_path=envelope.reverse_path,
        recipients=envelope.recipients,
        octets=content.octets,
        providers=translation.providers,
        group=translation.group,
        set=[
            {"field": each.target, "value": each.value, "source": each.source or "when_absent", "rule": each.where}
            for each in translation.settings
        ],
        removed=translation.removed,
        lost=[
            {"source": each.source, "class": each.loss_class, "action": each.action.value, "loses": each.loses}
            for each in translation.losses
        ],
        remarks=[
            ": ".join(part for part in (each.kind, each.source, each.text) if part) for each in translation.remarks
        ],
        line_ends_mended=content.irregular,
        outcome=submission.outcome,
        reply=str(reply) if reply else None,
        upstream=submission.upstream or None,
        seconds={
            "envelope": round(submission.data_began - submission.began, 6),
            "receive": round((submission.send_began or now) - submission.data_began, 6),
            "send": round(now - submission.send_began, 6) if submission.send_began else 0,
        },
    )
