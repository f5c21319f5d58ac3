"""
The SMTP envelope: where a message comes from and goes to, apart from what its header section says.

Source: RFC 5321, 2.3.1 and 4.1.2 (paths); RFC 6531 (SMTPUTF8); RFC 6152 (8BITMIME); RFC 1870 (SIZE).
"""

import re
from functools import lru_cache

from attrs import frozen

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]"
_UTF8 = r"[^\x00-\x9f]"
_QUOTED = r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\[\x20-\x7e])*"'
_LITERAL = r"\[[A-Za-z0-9:.-]+\]"


def _mailbox(extra: str) -> str:
    atom = f"(?:{_ATOM}|{extra})" if extra else _ATOM
    label = f"(?:[A-Za-z0-9._-]|{extra})" if extra else "[A-Za-z0-9._-]"
    quoted = _QUOTED.replace("(?:[", f"(?:{extra}|[", 1) if extra else _QUOTED
    return f"(?:(?:{atom}+|{quoted})(?:@(?:{label}+|{_LITERAL}))?)"


# A source route (RFC 5321, 4.1.1.3) is taken and left out, as the RFC asks. A local part is passed on exactly as
# written: decoding or re-quoting it has sent mail to other domains.
_ROUTE = r"(?:@[A-Za-z0-9._,@-]+:)?"
_PATH = re.compile(rf"[ \t]*<(?:{_ROUTE}({_mailbox('')}))?>(?:[ \t]+(.*))?", re.DOTALL)
_PATH_UTF8 = re.compile(rf"[ \t]*<(?:{_ROUTE}({_mailbox(_UTF8)}))?>(?:[ \t]+(.*))?", re.DOTALL)
MAX_PATH_OCTETS = 512


@frozen
class Envelope:
    """
    What MAIL and RCPT said.

    Args:
        reverse_path: Address of MAIL FROM; empty for the null reverse-path.
        recipients: Accepted forward-paths in the order of RCPT.
        eight_bit: ``BODY=8BITMIME`` was given.
        smtputf8: ``SMTPUTF8`` was given.
        size_octets: What ``SIZE=`` announced; 0 where it was not given.
    """

    reverse_path: str
    recipients: tuple[str, ...] = ()
    eight_bit: bool = False
    smtputf8: bool = False
    size_octets: int = 0


@lru_cache(512)  # senders, and the people who test them, repeat
def parse_path(text: str) -> tuple[str, str] | None:
    """
    Read ``<address> parameters`` as it follows ``FROM:`` or ``TO:``.

    Args:
        text: The rest of the command line; octets outside ASCII decoded as UTF-8.

    Returns:
        Address (empty for ``<>``) and the parameters as written; None when that is no path in angle brackets. No
        control character, and outside a quoted local part no blank or bracket, is ever part of an address.

    Source: RFC 5321, 4.1.2; RFC 6531, 3.3.
    """
    match = (_PATH if text.isascii() else _PATH_UTF8).fullmatch(text)
    address = (match[1] or "") if match is not None else ""
    if match is None or len(address.encode("utf-8", "surrogateescape")) > MAX_PATH_OCTETS:
        return None
    return address, match[2] or ""
