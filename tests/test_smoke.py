"""The thinnest path: one message through a running proxy."""

import smtplib
from pathlib import Path

from tests.support.proxy_process import ProxyProcess, settings
from tests.support.upstream import Upstream


def test_message_with_a_tag_arrives_translated(tmp_path: Path) -> None:
    """What the platform receives has the X-Cmail field instead of the provider's, and nothing else changed."""
    with Upstream() as upstream, ProxyProcess(tmp_path, settings(upstream.port)) as proxy:
        message = b"From: a@example.com\r\nX-Mailgun-Tag: welcome\r\nSubject: hi\r\n\r\nbody\r\n"
        with smtplib.SMTP("127.0.0.1", proxy.port, timeout=20) as client:
            client.sendmail("a@example.com", ["b@example.net"], message)
        assert upstream.taken[0].recipients == ["RCPT TO:<b@example.net>"]
        trace, _, rest = upstream.taken[0].content.partition(b"From:")
        assert trace.startswith(b"Received: from ")
        assert rest == b" a@example.com\r\nX-Cmail-GroupName: welcome\r\nSubject: hi\r\n\r\nbody\r\n"
        line = proxy.event("message")
        assert line["group"] == "welcome"
        assert line["outcome"] == "accepted"
        assert line["reply"] == "250 2.0.0 queued as PLATFORM1"
        assert proxy.stop() == 0
