"""A day in the life of a proxy: one message of every kind, for the tests of log and metrics."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.smtp_in.dialogue import Client, base64_of, plain, trusting
from tests.smtp_in.site import Site, site
from tests.support.upstream import CLOSE, EXTENSIONS, Upstream

TOKEN = "scenario-token-5d1f"
PASSWORD = "scenario-password-77aa"
SANDBOX = "scenario-sandbox-c0de"
WRONG = "scenario-wrong-password-4b1d"
RELAY_USER = "scenario-relay-user-19e2"
RELAY_PASSWORD = "scenario-relay-password-8e8e"
BODY = "scenario-body-text-3141"

OPEN, GUARDED = range(2)
"""Listeners: one for everybody, one for who has logged in over TLS; the apps of the second were Postmark's."""


@dataclass
class Story:
    """
    What was done.

    Attributes:
        replies: The last reply to each message that was answered, in order.
        octets: Size of each message as sent, without its end.
    """

    here: Site
    replies: list[str] = field(default_factory=list)
    octets: list[int] = field(default_factory=list)

    def send(self, client: Client, fields: bytes, body: bytes = b"") -> str:
        """Send one message, and note its reply."""
        content = fields + b"\r\n" + body + BODY.encode() + b"\r\n"
        reply = client.data(content + b".\r\n")
        self.replies.append(reply)
        self.octets.append(len(content))
        return reply

    def on(self, listener: int, fields: bytes, body: bytes = b"") -> str:
        """Send one message on a connection of its own."""
        with self.here.client(listener) as client:
            return self.send(client, fields, body)


@contextmanager
def scenario(folder: Path, level: str = "info") -> Iterator[Story]:
    """Start a proxy and a platform that wants a login, and play it all."""
    listener = {"address": "127.0.0.1", "port": 0, "tls": "starttls"}
    upstream = Upstream(extensions=(*EXTENSIONS, "AUTH PLAIN LOGIN"))
    with site(
        folder,
        upstream,
        log={"level": level},
        listeners=[
            {**listener, "auth": "none"},
            {**listener, "auth": "required", "auth_without_tls": "never", "provider": "postmark"},
        ],
        tls={"self_signed": True},
        tokens=[{"name": "billing", "token": TOKEN}],
        logins=[
            {"name": "legacy", "username": "apikey", "password": PASSWORD, "provider": "sendgrid"},
            {"name": "sandbox", "username": SANDBOX, "password": SANDBOX, "discard": True},
        ],
        rules={"on_invalid": "refuse"},
        smtp={"bare_newline": "refuse"},
        limits={"recipients": 3, "hops": 2, "header_octets": 2048, "message_octets": 4096},
        relay={"username": RELAY_USER, "password": RELAY_PASSWORD},
    ) as here:
        upstream.wait_for(lambda: bool(upstream.dialogues) and upstream.dialogues[0].count("AUTH") == 1)
        here.proxy.wait_for_metric("cmail_proxy_upstream_connections", 1, state="idle")
        story = Story(here)
        _accepted(story)
        _refused_here(story)
        _refused_there(story)
        _gone(story)
        _logged_in(story)
        _not_logged_in(story)
        here.proxy.wait_for_metric("cmail_proxy_sessions_open", 0)
        here.proxy.wait_for_metric("cmail_proxy_upstream_connections", 0, state="busy")
        here.proxy.event("message", len(story.replies) + 1)
        yield story


def _accepted(story: Story) -> None:
    story.on(OPEN, b"From: a@example.com\r\n")
    story.on(
        OPEN,
        b"X-Mailgun-Tag: orders\r\nX-Mailgun-Tag: shop\r\nX-Mailgun-Track-Clicks: no\r\n"
        b'X-Mailgun-Variables: {"a": 1}\r\nX-Mailgun-Deliver-By: Fri, 27 Nov 2026 09:00:00 +0000\r\n',
    )
    story.on(OPEN, b'X-SMTPAPI: {"category": "orders", "filters": {"opentrack": {"settings": {"enable": 1}}}}\r\n')
    story.on(OPEN, b"X-Mailgun-Drop-Message: yes\r\n")


def _refused_here(story: Story) -> None:
    story.on(OPEN, b'X-SMTPAPI: {"category": "promo", "sub": {"-n-": ["Ann"]}}\r\n')
    story.on(OPEN, b"X-Mailgun-Track: perhaps\r\n")
    story.on(OPEN, b"From: a@example.com\r\n", b"x" * 100 * 50)
    story.on(OPEN, b"X-Long: " + b"x" * 3000 + b"\r\n")
    story.on(OPEN, b"Received: from a\r\n" * 3)
    story.on(OPEN, b"From: a@example.com\r\n", b"bare\nnewline\r\n")
    with story.here.client(OPEN) as client:  # DATA itself is refused
        client.say("MAIL FROM:<app@example.com>")
        for number in range(4):
            client.say(f"RCPT TO:<r{number}@example.net>")
        reply = client.say("DATA")
        assert reply == "550 5.5.3 4 recipients; at most 3 are possible, so nothing was sent"


def _refused_there(story: Story) -> None:
    upstream = story.here.upstream
    extensions = upstream.extensions
    for reply in ("550 5.7.1 not like this", "452 4.2.2 mailbox full", CLOSE):
        upstream.script({"dot": reply}, extensions)
        story.on(OPEN, b"X-PM-Tag: orders\r\n")
    upstream.script(None, extensions)


def _logged_in(story: Story) -> None:
    for username, secret in ((TOKEN, TOKEN), ("apikey", PASSWORD), (SANDBOX, SANDBOX)):
        with story.here.client(GUARDED) as client:
            client.say("STARTTLS")
            client.start_tls(trusting())
            client.ehlo()
            assert client.say(f"AUTH PLAIN {plain(username, secret)}").startswith("235 ")
            fields = b'X-Mailgun-Tag: mailgun\r\nX-PM-Tag: postmark\r\nX-SMTPAPI: {"category": "sendgrid"}\r\n'
            story.send(client, fields)


def _not_logged_in(story: Story) -> None:
    with story.here.client(GUARDED) as client:
        assert client.say(f"AUTH PLAIN {plain('apikey', PASSWORD)}").startswith("538 ")
        client.say("STARTTLS")
        client.start_tls(trusting())
        client.ehlo()
        assert client.say(f"AUTH PLAIN {base64_of(PASSWORD)}").startswith("501 ")  # no NUL in it
        assert client.say(f"AUTH PLAIN {plain('apikey', WRONG)}").startswith("535 ")
        assert client.say(f"AUTH {plain('apikey', PASSWORD)}").startswith("504 ")
        assert client.say(plain("apikey", PASSWORD)).startswith("500 ")  # an app that is out of step
    with story.here.client(GUARDED) as client:
        client.say("STARTTLS")
        client.send(b"EHLO this is no TLS\r\n")
        assert client.sock.recv(4096)[:1] in (b"", b"\x15")  # an alert, or the end
    story.here.proxy.wait_for_metric("cmail_proxy_tls_handshake_failures_total", 1)


def _gone(story: Story) -> None:
    with story.here.client(OPEN) as client:
        client.envelope()
        client.send(b"X-MC-Tags: lost\r\n\r\nhalf of " + BODY.encode())
        story.here.upstream.wait_for(lambda: any(each.octets for each in story.here.upstream.open))
    story.here.upstream.wait_for(lambda: not story.here.upstream.open)
