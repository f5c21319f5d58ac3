"""
Delivery status notifications: what a sender is told about recipients that mail could not, or not yet, reach.

A report has three parts: text for people, fields for programs, and the message it is about, or its header section.
All of it is seven-bit, but for a small message with eight-bit lines that is given back whole.

Trust: reply texts come from peers, addresses and the message from clients. Whatever they hold, they end up inside one
field or one part: texts are reduced to printable ASCII and indented, and the boundary is a digest over all of it.

A report is sent with the null reverse-path, and there is none about a message that came with it; that is for the
caller, who sees a ``ValueError`` where nobody is to be told.

Source: RFC 3464 (fields), RFC 6522 (multipart/report), RFC 5321, 6.1 and RFC 3834 (who gets one, Auto-Submitted),
RFC 6533 (international addresses). RFC 3461 (NOTIFY, RET, ORCPT, ENVID) is not offered, so its fields are not written.
"""

import binascii
import hashlib
import re
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from itertools import islice
from typing import Literal, get_args

from attrs import frozen

from proxy.mail.fields import HeaderSection
from proxy.mail.reply import printable

Action = Literal["failed", "delayed", "delivered", "relayed", "expanded"]  # RFC 3464, 2.3.3

RETURN_WHOLE_OCTETS = 50_000
"""A message up to this size is given back whole (Postfix has the same figure); of a larger one, the header section."""

MAX_RECIPIENTS = 1000
MAX_TEXT_CHARACTERS = 2000
"""What is kept of a peer's text, or of any other value of a field."""

_RETURNED_HEADER_OCTETS = 65536
_PARSED_OCTETS = 4 * 1024 * 1024
_PARSED_PARTS = 100
_PARSED_DEPTH = 3
_LINE_OCTETS = 70  # with the indent of replies, short of where quoted-printable breaks a line
_LONGEST_LINE_OCTETS = 900  # RFC 5322, 2.1.1 has 998
_ADDRESS_OCTETS = 600  # an envelope has at most 512 octets

_STATUS = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_ATOM = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,40}")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MESSAGE_ID = re.compile(rb"<[\x21-\x3b\x3d\x3f-\x7e]{1,250}>")
# RFC 6533, 3: what stands for itself in a utf-8-addr-xtext is printable ASCII without '+', '=' and '\'.
_EMBEDDED = re.compile(r"[^\x21-\x2a\x2c-\x3c\x3e-\x5b\x5d-\x7e]")
_EMBEDDED_BACK = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_QUOTED = re.compile(rb"[^\t\x20-\x3c\x3e-\x7e]")
_QUOTED_LINE = re.compile(rb"(?:=[0-9A-F]{2}|[^=]){1,75}")
_PARAMETER = re.compile(r';\s*boundary\s*=\s*(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)
_BLANK_LINES = re.compile(rb"\r\n(?:[ \t]*\r\n)+")
_RETURNED_TYPES = {"message/rfc822", "message/global", "text/rfc822-headers", "message/global-headers"}


@frozen
class RecipientStatus:
    """
    What happened to one recipient.

    Args:
        address: The forward-path, any charset.
        action: What the sender is told.
        status: Enhanced status code such as ``5.1.1`` (RFC 3463); a ``failed`` with ``4.…`` has expired.
        remote_mta: Host that said so, a name or an address literal; empty where none was reached.
        diagnostic: The reply, or what else went wrong; lines parted by LF.
        diagnostic_type: ``smtp`` if *diagnostic* is an SMTP reply, else ``X-…``.
        last_attempt_at: Aware, UTC, as *will_retry_until* is.
    """

    address: str
    action: Action
    status: str
    remote_mta: str = ""
    diagnostic: str = ""
    diagnostic_type: str = "smtp"
    last_attempt_at: datetime | None = None
    will_retry_until: datetime | None = None


@frozen
class Report:
    """
    A delivery status notification.

    Args:
        to: The reverse-path of the message it is about.
        reporting_mta: Host name of who reports.
        recipients: At least one, at most ``MAX_RECIPIENTS``.
        message_id: Of the report itself, without angle brackets.
        at: When it is made. Aware, UTC, as *arrived_at* is.
        arrived_at: When the message was accepted.
        queue_id: What logs call the message.
        content: The message it is about, or its header section alone; lines end with CRLF.
    """

    to: str
    reporting_mta: str
    recipients: tuple[RecipientStatus, ...]
    message_id: str = ""
    at: datetime | None = None
    arrived_at: datetime | None = None
    queue_id: str = ""
    content: bytes = b""

    @property
    def needs_smtputf8(self) -> bool:
        """Whether the report can only go to a server that offers SMTPUTF8: the address in its To field is not ASCII."""
        return not self.to.isascii()


def compose(report: Report) -> bytes:
    """
    Write a report.

    Returns:
        A whole message, lines ending with CRLF and none over 998 octets. If it is not ASCII, BODY=8BITMIME is called
        for.

    Raises:
        ValueError: It has nobody to go to (the null reverse-path), no recipient, too many, or no time or message id.
    """
    if not report.to:
        raise ValueError("no report goes to the null reverse-path")
    if not 1 <= len(report.recipients) <= MAX_RECIPIENTS:
        raise ValueError(f"a report is about 1 to {MAX_RECIPIENTS} recipients")
    if report.at is None or not report.message_id:
        raise ValueError("a report has a time and a message id")
    text = _text(report)
    parts = [
        _part("Notification", "text/plain; charset=utf-8", *_encoded(text.encode())),
        _part("Delivery report", "message/delivery-status", _fields_for_programs(report), "7bit"),
    ]
    eight_bit = False
    if report.content:
        returned = _returned(report.content)
        eight_bit = not returned.isascii()
        parts.append(returned)
    boundary = (
        "=_" + hashlib.sha256(b"\0".join([report.message_id.encode("utf-8", "replace"), *parts])).hexdigest()[:40]
    )
    host = printable(report.reporting_mta)
    head = [
        _field("Date", format_datetime(report.at)),
        _field("From", f"Mail Delivery System <MAILER-DAEMON@{host}>"),
        f"To: <{_address(report.to)}>\r\n",
        _field("Subject", _subject(report)),
        _field("Message-ID", f"<{printable(report.message_id)}>"),
        *_thread(report.content),
        _field("Auto-Submitted", "auto-replied"),
        _field("MIME-Version", "1.0"),
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary="{boundary}"\r\n',
        *(["Content-Transfer-Encoding: 8bit\r\n"] if eight_bit else []),
        "\r\nThis is a report about a message, in MIME form (RFC 6522).\r\n",
    ]
    delimiter = f"\r\n--{boundary}\r\n".encode()
    body = b"".join(delimiter + part for part in parts)
    return "".join(head).encode() + body + f"\r\n--{boundary}--\r\n".encode()


def parse(content: bytes) -> Report | None:
    """
    Read a report of any origin.

    Lenient: line ends of any kind, transfer encodings, parts inside other multiparts, missing fields. Recipients
    without an address or with an unknown action are left out.

    Args:
        content: A message; what lies beyond its first 4 MiB is not looked at.

    Returns:
        The report, or None when there is no delivery status in the message. Nothing in it can be trusted, but its
        texts hold no control characters.
    """
    content = _line_ends(content[:_PARSED_OCTETS])
    section = HeaderSection.split(content)
    fields = _named(section)
    status: bytes | None = None
    returned = b""
    for kind, body in islice(_leaves(content, section, _PARSED_DEPTH), _PARSED_PARTS):
        if status is None and kind in ("message/delivery-status", "message/global-delivery-status"):
            status = body
        elif status is not None and kind in _RETURNED_TYPES:
            returned = body
            break
    if status is None:
        return None
    blocks = [
        _named(HeaderSection.split(block + b"\r\n"))
        for block in islice(_BLANK_LINES.split(status.strip(b"\r\n")), MAX_RECIPIENTS + 1)
    ]
    if blocks and "final-recipient" not in blocks[0]:
        about, *rest = blocks
    else:
        about, rest = {}, blocks
    recipients = tuple(each for each in map(_recipient, rest[:MAX_RECIPIENTS]) if each is not None)
    return Report(
        to=_bare(fields.get("to", "")),
        reporting_mta=_typed(about.get("reporting-mta", ""))[1],
        recipients=recipients,
        message_id=fields.get("message-id", "").strip("<> "),
        at=_date(fields.get("date", "")),
        arrived_at=_date(about.get("arrival-date", "")),
        queue_id=about.get("x-queue-id", ""),
        content=returned,
    )


def _subject(report: Report) -> str:
    if any(each.action == "failed" for each in report.recipients):
        return "Undelivered mail returned to sender"
    if any(each.action == "delayed" for each in report.recipients):
        return "Delayed mail (still being retried)"
    return "Successful mail delivery report"


def _text(report: Report) -> str:
    """Write the part for people."""
    pieces = [f"This is the mail system at {printable(report.reporting_mta)}.\n"]
    failed = [each for each in report.recipients if each.action == "failed"]
    delayed = [each for each in report.recipients if each.action == "delayed"]
    others = [each for each in report.recipients if each.action not in ("failed", "delayed")]
    if failed:
        pieces.append(
            "Your message could not be delivered to the recipients below,\nand will not be tried again for them.\n"
        )
        pieces.extend(map(_paragraph, failed))
    if delayed:
        until = max((each.will_retry_until for each in delayed if each.will_retry_until), default=None)
        end = f"\nuntil {format_datetime(until)}" if until else ""
        pieces.append(
            "THIS IS A WARNING ONLY. You do not need to send your message again.\n\n"
            f"It could not be delivered to the recipients below yet, and is tried again{end}.\n"
        )
        pieces.extend(map(_paragraph, delayed))
    if others:
        pieces.append("Your message was delivered to the recipients below.\n")
        pieces.extend(map(_paragraph, others))
    if report.content:
        pieces.append("Your message, or its header section, is attached.\n")
    return "\n".join(pieces)


def _paragraph(recipient: RecipientStatus) -> str:
    text = _one_line(recipient.diagnostic)
    if text and recipient.remote_mta and recipient.diagnostic_type == "smtp":
        text = _one_line(f"{recipient.remote_mta[:255]} said: {text}")
    return f"<{_address(recipient.address)}>\n" + "".join(f"    {line}\n" for line in _wrapped(text))


def _fields_for_programs(report: Report) -> bytes:
    """Write the part for programs (RFC 3464, 2)."""
    about = [_field("Reporting-MTA", f"dns; {report.reporting_mta}")]
    if report.queue_id:
        about.append(_field("X-Queue-ID", report.queue_id))
    if report.arrived_at is not None:
        about.append(_field("Arrival-Date", format_datetime(report.arrived_at)))
    return "\r\n".join(["".join(about), *map(_recipient_fields, report.recipients)]).encode()


def _recipient_fields(recipient: RecipientStatus) -> str:
    address = _address(recipient.address)
    if address.isascii():
        final = f"rfc822; {address}"
    else:  # this form needs no eight-bit transport, so the report can go where the message could not
        final = "utf-8; " + _EMBEDDED.sub(lambda match: f"\\x{{{ord(match[0]):X}}}", address)
    known = _STATUS.fullmatch(recipient.status)
    default = {"failed": "5.0.0", "delayed": "4.0.0"}.get(recipient.action, "2.0.0")
    fields = [
        f"Final-Recipient: {final[:_LONGEST_LINE_OCTETS]}\r\n",  # never folded: it may hold blanks, in quotes
        _field("Action", recipient.action),
        _field("Status", recipient.status if known else default),
    ]
    if recipient.remote_mta:
        fields.append(_field("Remote-MTA", f"dns; {recipient.remote_mta}"))
    if recipient.diagnostic:
        kind = recipient.diagnostic_type if _ATOM.fullmatch(recipient.diagnostic_type) else "X-Unknown"
        fields.append(_field("Diagnostic-Code", f"{kind}; {_one_line(recipient.diagnostic)}"))
    if recipient.last_attempt_at is not None:
        fields.append(_field("Last-Attempt-Date", format_datetime(recipient.last_attempt_at)))
    if recipient.will_retry_until is not None:
        fields.append(_field("Will-Retry-Until", format_datetime(recipient.will_retry_until)))
    return "".join(fields)


def _thread(content: bytes) -> list[str]:
    """Point to the message, so that mail programs show the report beside it."""
    section = HeaderSection.split(content)
    found = [section.value(index) for index, name in enumerate(section.keys) if name == b"message-id"]
    if len(found) == 1 and _MESSAGE_ID.fullmatch(found[0]):
        message_id = found[0].decode("ascii")
        return [f"In-Reply-To: {message_id}\r\n", f"References: {message_id}\r\n"]
    return []


def _returned(content: bytes) -> bytes:
    """
    Give the message back, whole if it is small and fit to travel as it is, else its header section.

    message/rfc822 may not be encoded (RFC 2046, 5.2.1), so a message with overlong lines, NUL, stray line ends or a
    header section that is damaged or not ASCII goes back as text/rfc822-headers, which may (RFC 6522, 4).
    """
    section = HeaderSection.split(content)
    if len(content) <= RETURN_WHOLE_OCTETS and content[: section.end].isascii() and _travels(content, section):
        encoding = "7bit" if content.isascii() else "8bit"
        return _part("Undelivered message", "message/rfc822", content, encoding)
    end = section.end
    if end - section.start > _RETURNED_HEADER_OCTETS:
        end = content.rfind(b"\n", 0, section.start + _RETURNED_HEADER_OCTETS) + 1
    return _part("Header section of the message", "text/rfc822-headers", *_encoded(content[section.start : end]))


def _travels(content: bytes, section: HeaderSection) -> bool:
    line_ends = content.count(b"\r\n")
    return (
        content.startswith(b"\r\n", section.end)
        and content.count(b"\n") == line_ends
        and content.count(b"\r") == line_ends
        and b"\0" not in content
        and max(map(len, content.split(b"\r\n"))) <= _LONGEST_LINE_OCTETS
    )


def _part(description: str, kind: str, body: bytes, encoding: str) -> bytes:
    head = (
        f"Content-Description: {description}\r\nContent-Type: {kind}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    )
    return head.encode() + body


def _encoded(text: bytes) -> tuple[bytes, str]:
    """Encode text as quoted-printable (RFC 2045, 6.7) where it needs that; give it, and the name of its encoding."""
    text = text.replace(b"\r\n", b"\n")
    lines = text.split(b"\n")
    if text.isascii() and not re.search(rb"[\0\r]", text) and max(map(len, lines)) <= _LONGEST_LINE_OCTETS:
        return b"\r\n".join(lines), "7bit"
    return b"\r\n".join(map(_quoted, lines)), "quoted-printable"


def _quoted(line: bytes) -> bytes:
    quoted = _QUOTED.sub(lambda match: b"=%02X" % match[0][0], line)
    if quoted.endswith((b" ", b"\t")):
        quoted = quoted[:-1] + b"=%02X" % quoted[-1]
    return b"=\r\n".join(_QUOTED_LINE.findall(quoted))


def _field(name: str, value: str) -> str:
    """Write a field that can hold nothing but one value: printable ASCII, folded at blanks."""
    lines = _wrapped(printable(value[:MAX_TEXT_CHARACTERS]), len(name) + 2)
    return f"{name}: " + "\r\n ".join(lines) + "\r\n"


def _wrapped(text: str, used: int = 0) -> list[str]:
    """Part a text into lines at blanks; a word that is longer than any line may be is cut."""
    lines = textwrap.wrap(text, _LINE_OCTETS, initial_indent=" " * used, break_long_words=False, break_on_hyphens=False)
    return [
        line[at : at + _LONGEST_LINE_OCTETS]
        for line in map(str.strip, lines)
        for at in range(0, len(line), _LONGEST_LINE_OCTETS)
    ]


def _one_line(text: str) -> str:
    """A reply as one line of printable ASCII."""
    return " ".join(printable(text[:MAX_TEXT_CHARACTERS].replace("\n", " ")).split())


def _address(address: str) -> str:
    return _UNSAFE.sub("?", address).encode()[:_ADDRESS_OCTETS].decode("utf-8", "ignore")


def _leaves(content: bytes, section: HeaderSection, depth: int) -> Iterator[tuple[str, bytes]]:
    """Give type and decoded body of each part that is no multipart."""
    fields = _named(section)
    content_type = fields.get("content-type", "text/plain")
    kind = content_type.partition(";")[0].strip().lower()
    body = content[section.end :].removeprefix(b"\r\n")
    boundary = _PARAMETER.search(content_type) if kind.startswith("multipart/") else None
    if boundary is None:
        yield kind, _decoded(body, fields.get("content-transfer-encoding", "").lower())
    elif depth > 0:
        for part in islice(_parts(body, (boundary[1] or boundary[2]).encode()), _PARSED_PARTS):
            yield from _leaves(part, HeaderSection.split(part), depth - 1)


def _parts(body: bytes, boundary: bytes) -> Iterator[bytes]:
    """Cut a multipart body (RFC 2046, 5.1.1); the last part may lack its end."""
    delimiter = re.compile(rb"(?:\A|\r\n)--" + re.escape(boundary) + rb"(--)?[ \t]*(?=\r\n|\Z)(?:\r\n)?")
    start: int | None = None
    for match in delimiter.finditer(body):
        if start is not None:
            yield body[start : max(start, match.start())]
        if match[1]:
            return
        start = match.end()
    if start is not None:
        yield body[start:]


def _decoded(body: bytes, encoding: str) -> bytes:
    try:
        if encoding == "base64":
            return _line_ends(binascii.a2b_base64(body))
        if encoding == "quoted-printable":
            return _line_ends(binascii.a2b_qp(body))
    except binascii.Error:
        return b""
    return body


def _line_ends(data: bytes) -> bytes:
    return data.replace(b"\r", b"").replace(b"\n", b"\r\n")


def _named(section: HeaderSection) -> dict[str, str]:
    """Read fields as text; of repeated ones the first counts."""
    fields: dict[str, str] = {}
    for index, name in enumerate(section.keys):
        key = name.decode("ascii")
        if key not in fields:
            fields[key] = _UNSAFE.sub("?", section.value(index).decode("utf-8", "replace").replace("\t", " ")).strip()
    return fields


def _recipient(fields: dict[str, str]) -> RecipientStatus | None:
    kind, address = _typed(fields.get("final-recipient") or fields.get("original-recipient", ""))
    if kind.lower() == "utf-8":
        address = _UNSAFE.sub("?", _EMBEDDED_BACK.sub(_character, address))
    action = next(iter(fields.get("action", "").lower().split()), "")
    action = {"error": "failed", "fail": "failed"}.get(action, action)  # OpenSMTPD, and others
    known = next((each for each in get_args(Action) if each == action), None)
    address = _bare(address)
    if not address or known is None:
        return None
    status = _STATUS.search(fields.get("status", ""))
    diagnostic_type, diagnostic = _typed(fields.get("diagnostic-code", ""))
    return RecipientStatus(
        address=address,
        action=known,
        status=status[0] if status else "",
        remote_mta=_typed(fields.get("remote-mta", ""))[1],
        diagnostic=diagnostic,
        diagnostic_type=diagnostic_type or "smtp",
        last_attempt_at=_date(fields.get("last-attempt-date", "")),
        will_retry_until=_date(fields.get("will-retry-until", "")),
    )


def _character(match: re.Match[str]) -> str:
    point = int(match[1], 16)
    return chr(point) if point <= 0x10FFFF else "?"


def _typed(value: str) -> tuple[str, str]:
    """Split ``type; value``; without a type, all of it is the value."""
    kind, semicolon, rest = value.partition(";")
    if semicolon and _ATOM.fullmatch(kind.strip()):
        return kind.strip(), rest.strip()
    return "", value.strip()


def _bare(address: str) -> str:
    """Take off angle brackets, and a display name in front of them."""
    if not address.endswith(">"):
        return address
    return address[1:-1].strip() if address.startswith("<") else address[:-1].rpartition("<")[2].strip()


def _date(value: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(value[:100])
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
