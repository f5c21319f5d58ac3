"""The messages that are sent: a header section with a tag of Mailgun, and a body of the wanted size."""

SENDER = "app@example.com"
RECIPIENT = "reader@example.net"
STALLED_RECIPIENT = "stalled@example.net"  # our sink stops reading a message for it for a while

SMALL_OCTETS = 5_000
LARGE_OCTETS = 10_000_000

_FIELDS = (
    ("From", "Example App <app@example.com>"),
    ("To", "A Reader <reader@example.net>"),
    ("Subject", "Your weekly summary of what happened"),
    ("Date", "Mon, 02 Mar 2026 08:15:00 +0000"),
    ("Message-ID", "<20260302081500.4711@app.example.com>"),
    ("MIME-Version", "1.0"),
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Content-Transfer-Encoding", "7bit"),
    ("Reply-To", "help@example.com"),
    ("X-Mailgun-Tag", "weekly-summary"),
    ("List-Unsubscribe", "<mailto:unsubscribe@example.com?subject=unsubscribe>"),
    ("X-Mailer", "example-app 4.2"),
)
_LINE = b"It was a quiet week on the coast, and the numbers below say much the same.\r\n"


def message(octets: int) -> bytes:
    """
    Make a message of about that size.

    Returns:
        With CRLF; one line begins with a dot, which is not doubled yet.
    """
    head = "".join(f"{name}: {value}\r\n" for name, value in _FIELDS).encode("ascii") + b"\r\n.a line with a dot\r\n"
    return head + _LINE * max(1, round((octets - len(head)) / len(_LINE)))


def on_the_wire(content: bytes) -> bytes:
    """Give a message as it goes over SMTP: dots doubled, and the final dot (RFC 5321, 4.5.2)."""
    return content.replace(b"\r\n.", b"\r\n..") + b".\r\n"
