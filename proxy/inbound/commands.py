"""
What commands say and what they are answered, apart from any connection. Pure.

Source: RFC 5321, 4.1.1 (commands) and 4.5.3.1 (limits); RFC 1870, RFC 6152, RFC 6531, RFC 4954 (parameters of MAIL);
RFC 2034 (an enhanced status code on every 2yz, 4yz and 5yz but the greeting and HELO/EHLO).
"""

import re
from functools import lru_cache

from proxy.mail.envelope import Envelope, parse_path
from proxy.mail.reply import Reply
from proxy.route import Capabilities

MAX_LINE_OCTETS = {"MAIL": 2048, "RCPT": 2048, "AUTH": 12_288}
DEFAULT_LINE_OCTETS = 1024  # the RFC's 512, and room for clients that are wordy in EHLO

OK = Reply(250, "2.0.0", "OK")
MAIL_OK = Reply(250, "2.1.0", "OK")
BYE = Reply(221, "2.0.0", "Bye")
START_MAIL = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
START_TLS = Reply(220, "2.0.0", "Ready to start TLS")
AUTHENTICATED = Reply(235, "2.7.0", "Authentication succeeded")

LINE_TOO_LONG = Reply(500, "5.5.2", "Command line too long")
BAD_LINE = Reply(500, "5.5.2", "Commands are printable text and end with CRLF")
UNKNOWN = Reply(500, "5.5.1", "Command not recognized")
NO_ARGUMENT = Reply(501, "5.5.4", "This command takes no argument")
HELO_SYNTAX = Reply(501, "5.5.4", "Syntax: EHLO hostname")
MAIL_SYNTAX = Reply(501, "5.5.4", "Syntax: MAIL FROM:<address> [parameters]; the address in angle brackets")
RCPT_SYNTAX = Reply(501, "5.5.4", "Syntax: RCPT TO:<address>; the address in angle brackets")
BAD_SENDER = Reply(553, "5.1.7", "This is no address a message can come from")
BAD_RECIPIENT = Reply(553, "5.1.3", "This is no address a message can go to")
NEEDS_SMTPUTF8 = Reply(553, "5.6.7", "An address with characters outside ASCII needs MAIL with SMTPUTF8")
BAD_PARAMETER = Reply(501, "5.5.4", "A parameter is malformed")
UNKNOWN_PARAMETER = Reply(555, "5.5.4", "A parameter is not known here")
NO_SMTPUTF8_HERE = Reply(550, "5.6.7", "SMTPUTF8 is not offered here")

SEND_HELO_FIRST = Reply(503, "5.5.1", "Send EHLO first")
NESTED_MAIL = Reply(503, "5.5.1", "A transaction is open already; RSET ends it")
NEED_MAIL = Reply(503, "5.5.1", "Send MAIL first")
NEED_RCPT = Reply(503, "5.5.1", "Send RCPT first")
NO_RECIPIENTS = Reply(554, "5.5.1", "No valid recipients")
NO_RECIPIENTS_NOW = Reply(451, "4.3.0", "No recipient was accepted, try again later")
IN_TRANSACTION = Reply(503, "5.5.1", "Not inside a transaction")
AUTH_REQUIRED = Reply(530, "5.7.0", "Authentication required")
TLS_REQUIRED = Reply(530, "5.7.0", "Send STARTTLS first")
TLS_ACTIVE = Reply(503, "5.5.1", "TLS is on already")
NO_TLS = Reply(502, "5.5.1", "STARTTLS is not offered here")
NO_AUTH = Reply(503, "5.5.1", "AUTH is not offered here")
AUTH_AGAIN = Reply(503, "5.5.1", "Authenticated already")
AUTH_NEEDS_TLS = Reply(538, "5.7.11", "Authentication needs STARTTLS first")
AUTH_MECHANISM = Reply(504, "5.5.4", "AUTH takes PLAIN or LOGIN")
AUTH_SYNTAX = Reply(501, "5.5.2", "That is no base64 of credentials")
AUTH_CANCELLED = Reply(501, "5.7.0", "Authentication cancelled")
AUTH_FAILED = Reply(535, "5.7.8", "Credentials not accepted")
CANNOT_VERIFY = Reply(252, "2.5.0", "Cannot verify, send the message and see")
NOT_ALLOWED_FROM = Reply(550, "5.7.1", "Sending from this network is not allowed without authentication")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients")

TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors, closing")
TIMEOUT = Reply(421, "4.4.2", "Timeout, closing")
TOO_MANY_CONNECTIONS = Reply(421, "4.3.2", "Too many connections, try again later")
SHUTTING_DOWN = Reply(421, "4.3.2", "Shutting down, try again later")
INTERNAL_ERROR = Reply(451, "4.3.0", "Internal error, try again later")

_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([\x21-\x3c\x3e-\x7e]+))?")
_NAME = re.compile(r"[\x21-\x7e]{1,255}")


def ehlo(hostname: str, offers: list[str]) -> bytes:
    """Write the reply to EHLO."""
    *first, last = (hostname, *offers)
    return "".join((*(f"250-{line}\r\n" for line in first), f"250 {last}\r\n")).encode("ascii")


def offers(capabilities: Capabilities, size_octets: int, *, tls: bool, auth: bool) -> list[str]:
    """
    List what EHLO offers.

    CHUNKING is left out because its content is counted, not dotted, and would have to be made safe for DATA; DSN,
    because success and delay reports are not passed back.
    """
    return [
        f"SIZE {size_octets}",
        *(["8BITMIME"] if capabilities.eight_bit else []),
        *(["SMTPUTF8"] if capabilities.smtputf8 else []),
        "PIPELINING",
        "ENHANCEDSTATUSCODES",
        *(["STARTTLS"] if tls else []),
        *(["AUTH PLAIN LOGIN"] if auth else []),
    ]


def client_name(argument: str) -> str | None:
    """The name of HELO/EHLO; None when it is none. Lenient: clients say all kinds of things."""
    name = argument.strip()
    return name if _NAME.fullmatch(name) else None


@lru_cache(512)  # senders repeat
def mail(argument: str, limit_octets: int, *, smtputf8: bool) -> Envelope | Reply:
    """
    Read the argument of MAIL.

    Args:
        limit_octets: Largest message; ``SIZE=`` above it is refused before the message is sent.
        smtputf8: Whether SMTPUTF8 is offered.
    """
    if argument[:5].upper() != "FROM:":
        return MAIL_SYNTAX
    path = parse_path(argument[5:])
    if path is None:
        return MAIL_SYNTAX if "<" not in argument else BAD_SENDER
    address, rest = path
    values: dict[str, str] = {}
    for word in rest.split():
        match = _PARAMETER.fullmatch(word)
        if match is None or match[1].upper() in values:
            return BAD_PARAMETER
        values[match[1].upper()] = match[2] or ""
    size = values.pop("SIZE", "0")
    body = values.pop("BODY", "7BIT").upper()
    utf8 = values.pop("SMTPUTF8", None)
    values.pop("AUTH", None)  # RFC 4954, 5: who submitted it elsewhere; believed of nobody, so it goes no further
    if values:
        return UNKNOWN_PARAMETER
    if not (size.isdecimal() and size.isascii() and len(size) <= 20) or body not in ("7BIT", "8BITMIME") or utf8:
        return BAD_PARAMETER
    if int(size) > limit_octets:
        return Reply(552, "5.3.4", f"The message is larger than {limit_octets} octets")
    if utf8 is not None and not smtputf8:
        return NO_SMTPUTF8_HERE
    if not address.isascii() and utf8 is None:
        return NEEDS_SMTPUTF8
    return Envelope(address, eight_bit=body == "8BITMIME", smtputf8=utf8 is not None, size_octets=int(size))


def recipient(argument: str, envelope: Envelope) -> str | Reply:
    """Read the argument of RCPT."""
    if argument[:3].upper() != "TO:":
        return RCPT_SYNTAX
    path = parse_path(argument[3:])
    if path is None:
        return RCPT_SYNTAX if "<" not in argument else BAD_RECIPIENT
    address, rest = path
    if not address:
        return BAD_RECIPIENT
    if rest.strip():
        return UNKNOWN_PARAMETER
    if not address.isascii() and not envelope.smtputf8:
        return NEEDS_SMTPUTF8
    return address
