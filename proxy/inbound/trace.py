"""
The Received field.

Source: RFC 5321, 4.4 and 4.1.1.1; RFC 3848 and RFC 6531, 4.3 (the ``with`` types).
"""

import re
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache

_UNSAFE = re.compile(r"[^A-Za-z0-9.:_\[\]-]")


@lru_cache(maxsize=256)
def _from(client: str, address: str, hostname: str) -> str:
    name = _UNSAFE.sub("", client)[:100] or "unknown"
    literal = f"[IPv6:{address}]" if ":" in address else f"[{address}]"
    return f"Received: from {name} ({literal})\r\n\tby {hostname} with "


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return format_datetime(datetime.fromtimestamp(second, UTC))


def received(*, client: str, address: str, hostname: str, protocol: str, message_id: str, at: float) -> bytes:
    """
    Write the field.

    Args:
        client: What the client called itself; anything that is no host name is left out.
        address: Its IP address.
        protocol: See :func:`protocol`.
        at: Seconds since the epoch.
    """
    text = f"{_from(client, address, hostname)}{protocol} id {message_id};\r\n\t{_date(int(at))}\r\n"
    return text.encode("ascii")


def protocol(*, extended: bool, tls: bool, authenticated: bool, smtputf8: bool) -> str:
    """Name the protocol as registered: ESMTPSA and its like."""
    if not extended:
        return "SMTP"
    base = "UTF8SMTP" if smtputf8 else "ESMTP"
    return base + ("S" if tls else "") + ("A" if authenticated else "")
