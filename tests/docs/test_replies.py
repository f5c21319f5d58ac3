"""The table of what the app hears: rows that show on the wire, one after the other."""

import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, coded, table
from tests.smtp_in.dialogue import Client, plain
from tests.smtp_in.site import Site, site
from tests.support.upstream import CLOSE

OPERATION = DOCS / "operation.md"
BODY = b"Subject: hi\r\n\r\nbody\r\n.\r\n"
OPEN, CLOSED, SECURE = 0, 1, 2


def heard(what: str) -> list[str]:
    """The replies in the row that begins so."""
    (row,) = (row for row in table(OPERATION, "What happens") if row[0].startswith(what))
    return [reply for reply in coded(row[2]) if reply[:3].isdecimal()]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy that refuses what it may refuse, with a listener for whoever comes, one with AUTH and one with TLS."""
    listeners = [
        {"address": "127.0.0.1", "port": 0, "tls": "none", "auth": "optional"},
        {"address": "127.0.0.1", "port": 0, "tls": "starttls", "auth_without_tls": "never"},
        {"address": "127.0.0.1", "port": 0, "tls": "required"},
    ]
    logins = [{"name": "tests", "username": "t", "password": "t", "discard": True}]
    rules = {"on_invalid": "refuse"}
    with site(
        tmp_path_factory.mktemp("replies"),
        listeners=listeners,
        logins=logins,
        rules=rules,
        smtp={"bare_newline": "refuse"},
        tls={"self_signed": True},
    ) as given:
        yield given


def message(fields: bytes) -> Callable[[Client], str]:
    """Send a message with these fields, and hear the reply to its dot."""
    return lambda client: client.data(fields.rstrip() + b"\r\n" + BODY)


def one_line(line: str) -> Callable[[Client], str]:
    """Say one command, and hear its reply."""
    return lambda client: client.say(line)


def many_recipients(client: Client) -> str:
    """Send to one recipient too many."""
    client.say("MAIL FROM:<app@example.com>")
    for number in range(26):
        client.say(f"RCPT TO:<ann{number}@example.net>")
    return client.say("DATA")


def discarded(client: Client) -> str:
    """Send by a login for tests."""
    client.say(f"AUTH PLAIN {plain('t', 't')}")
    return client.data(BODY)


@pytest.mark.parametrize(
    ("what", "listener", "act"),
    [
        ("No login where", CLOSED, one_line("MAIL FROM:<app@example.com>")),
        ("No TLS where", SECURE, one_line("MAIL FROM:<app@example.com>")),
        ("AUTH before TLS", CLOSED, one_line(f"AUTH PLAIN {plain('t', 't')}")),
        ("A mechanism other", OPEN, one_line("AUTH CRAM-MD5")),
        ("More recipients", OPEN, many_recipients),
        ("A larger message", OPEN, one_line("MAIL FROM:<app@example.com> SIZE=26214401")),
        ("A header section over", OPEN, message(b"X-A: b\r\n" * 1000)),
        ("More Received", OPEN, message(b"Received: by a\r\n" * 51)),
        ("A bare CR", OPEN, message(b"X-A: b\nX-C: d")),
        ("A field that has no counterpart", OPEN, message(b"X-Mailgun-Template-Name: a")),
        ("A value that cannot be read", OPEN, message(b"X-SMTPAPI: {bad")),
        ("Test mode", OPEN, message(b"X-Mailgun-Drop-Message: yes")),
        ("A login with", OPEN, discarded),
        ("A line that is too long", OPEN, one_line("NOOP " + "a" * 20_000)),
        ("MAIL asks for SMTPUTF8, and", OPEN, one_line("MAIL FROM:<app@example.com> SMTPUTF8")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_app_hears_what_the_docs_say(here: Site, what: str, listener: int, act: Callable[[Client], str]) -> None:
    """The reply in the table is the one on the wire, word for word."""
    with here.client(listener) as client:
        assert [act(client)] == heard(what)


def test_wrong_password_is_answered_as_the_docs_say(here: Site) -> None:
    """Four times one reply, and with the fifth the goodbye."""
    with here.client(OPEN) as client:
        replies = [client.say(f"AUTH PLAIN {plain('t', 'wrong')}") for _ in range(5)]
    refused, goodbye = heard("Wrong user name")
    assert replies == [refused] * 4 + [goodbye]


def test_app_that_never_ends_its_message_hears_what_the_docs_say(tmp_path: Path) -> None:
    """Far behind the limit the rest is read no more: one reply, and the connection is closed."""
    with site(tmp_path, limits={"message_octets": 1024}) as here, here.client() as client:
        client.envelope()
        client.send(b"Subject: hi\r\n\r\n")
        for _ in range(64):
            client.send(b"x" * (1 << 20))
        while not select.select([client.sock], [], [], 0.01)[0]:  # from here on it may come at any octet
            client.send(b"x" * 4096)
        assert [client.reply()] == heard("A message that goes on")
        assert client.closed()
        line = here.proxy.event("message")
        assert (line["outcome"], [line["reply"]]) == ("refused", heard("A message that goes on"))
        here.serves()


@pytest.mark.parametrize(
    ("what", "stage", "said"),
    [
        ("The platform cannot be reached", "banner", "554 platform.example no"),
        ("The platform cannot be reached", "EHLO", "421 platform.example busy"),
        ("The connection is lost", "RCPT", CLOSE),
        ("The connection is lost", "dot", CLOSE),
        ("The platform answers DATA", "DATA", "250 2.0.0 fine"),
    ],
)
def test_app_hears_of_the_platforms_failures_what_the_docs_say(
    tmp_path: Path, what: str, stage: str, said: str
) -> None:
    """A failure on the way to the platform is 451, in the words of the table."""
    with site(tmp_path) as here:
        # The connection made at start is in the way: wait until it rests in the pool, else it may miss the script.
        here.proxy.wait_for_metric("cmail_proxy_upstream_connections", 1, state="idle")
        here.upstream.hang_up()
        here.upstream.script({stage: said})
        with here.client() as client:
            replies = [client.say("MAIL FROM:<app@example.com>"), client.say("RCPT TO:<ann@example.net>")]
            replies.append(client.say("DATA"))
            if replies[-1].startswith("354"):
                client.send(BODY)
                replies.append(client.reply())
    (told,) = heard(what)
    assert told in replies
    assert all(reply[:3] != "250" for reply in replies[replies.index(told) :])
