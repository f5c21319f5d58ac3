"""A real Postfix as the platform: STARTTLS towards it, its own replies back to the app, and what it delivers."""

import os
import pwd
import shutil
import smtplib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
import trustme

from tests.conftest import require_tool
from tests.operation.program import free_port
from tests.smtp_in.dialogue import START_MAIL, Client
from tests.support.proxy_process import WAIT_SECONDS, ProxyProcess, settings

MAIN_CF = """
compatibility_level = 3.6
queue_directory = {folder}/spool
data_directory = {folder}/data
maillog_file = {folder}/log/mail.log
maillog_file_prefixes = {folder}/log
myhostname = postfix.example.com
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
disable_dns_lookups = yes
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions = check_recipient_access texthash:{folder}/etc/access
smtpd_tls_security_level = encrypt
smtpd_tls_cert_file = {folder}/etc/chain.pem
smtpd_tls_key_file = {folder}/etc/key.pem
smtpd_tls_session_cache_database =
smtpd_peername_lookup = no
message_size_limit = 100000
virtual_mailbox_domains = example.net
virtual_mailbox_base = {folder}/mailboxes
virtual_mailbox_maps = texthash:{folder}/etc/mailboxes
virtual_minimum_uid = 1
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
"""

MASTER_CF = """
127.0.0.1:{port} inet n - n - - smtpd
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
proxymap  unix  -       -       n       -       -       proxymap
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
virtual   unix  -       n       n       -       -       virtual
anvil     unix  -       -       n       -       1       anvil
postlog   unix-dgram n  -       n       -       1       postlogd
"""

PROVIDERS = {
    "mailgun": (b"X-Mailgun-Tag: welcome\r\nX-Mailgun-Track: no\r\n", "false", "false"),
    "mailjet": (b"X-Mailjet-Campaign: welcome\r\nX-Mailjet-TrackClick: 1\r\n", None, "true"),
    "mandrill": (b"X-MC-Tags: welcome, other\r\nX-MC-Track: opens\r\n", "true", "false"),
    "postmark": (b"X-PM-Tag: welcome\r\nX-PM-TrackLinks: HtmlOnly\r\n", None, "true"),
    "sendgrid": (
        b'X-SMTPAPI: {"category": "welcome",\r\n "filters": {"opentrack": {"settings": {"enable": 0}}}}\r\n',
        "false",
        None,
    ),
}
"""By provider: what the app sets, and what must arrive as X-Cmail-TrackOpens and X-Cmail-TrackClicks."""


@contextmanager
def running_postfix(folder: Path) -> Iterator[tuple[int, Path]]:
    """Run Postfix in the foreground with configuration, queue and data of its own; give its port and mailboxes."""
    postfix = require_tool("postfix")
    owner = pwd.getpwnam("postfix")
    nobody = pwd.getpwnam("nobody")
    for name in ("etc", "spool", "data", "mailboxes", "log"):
        (folder / name).mkdir()
    os.chown(folder / "data", owner.pw_uid, owner.pw_gid)
    os.chown(folder / "mailboxes", nobody.pw_uid, nobody.pw_gid)
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    (folder / "etc" / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(folder / "etc" / "key.pem"))
    port = free_port()
    main = MAIN_CF.format(folder=folder, uid=nobody.pw_uid, gid=nobody.pw_gid)
    (folder / "etc" / "main.cf").write_text(main, encoding="ascii")
    (folder / "etc" / "master.cf").write_text(MASTER_CF.format(port=port), encoding="ascii")
    command = [postfix, "-c", str(folder / "etc")]
    (folder / "etc" / "access").write_text("busy@example.net 450 4.2.1 mailbox is busy\n", encoding="ascii")
    mailboxes = "".join(f"{name}@example.net {name}/\n" for name in ("ann", "bob", "busy"))
    (folder / "etc" / "mailboxes").write_text(mailboxes, encoding="ascii")
    with (folder / "start.log").open("wb") as log:
        process = subprocess.Popen([*command, "start-fg"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for_banner(folder, process, port)
        yield port, folder / "mailboxes"
    finally:
        subprocess.run([*command, "stop"], capture_output=True, check=False, timeout=WAIT_SECONDS)
        process.wait(WAIT_SECONDS)


def wait_for_banner(folder: Path, process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until Postfix greets."""
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                if sock.recv(100).startswith(b"220 "):
                    return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > until:
            logs = [log.read_text("utf-8", "replace") for log in (folder / "start.log", *folder.glob("log/*"))]
            raise AssertionError("\n".join(logs))
        time.sleep(0.05)


@pytest.fixture(scope="module")
def postfix() -> Iterator[tuple[int, Path]]:
    """Postfix for this module; not below pytest's own folder, which only its owner may enter."""
    require_tool("postfix")
    if os.geteuid() != 0:
        pytest.skip("Postfix starts as root only")
    folder = Path(tempfile.mkdtemp(prefix="cmail-proxy-postfix-"))
    folder.chmod(0o755)
    try:
        with running_postfix(folder) as started:
            yield started
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def here(postfix: tuple[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """A proxy that relays to Postfix by STARTTLS, and checks its certificate."""
    port, mailboxes = postfix
    relay = {"tls": "required", "ca_file": str(mailboxes.parent / "ca.pem")}
    with ProxyProcess(tmp_path_factory.mktemp("proxy"), settings(port, relay=relay)) as proxy:
        yield proxy


def delivered(mailbox: Path, count: int = 1) -> list[Message]:
    """Wait for messages in a Maildir, take them out, and give them."""
    until = time.monotonic() + WAIT_SECONDS
    while len(files := sorted(mailbox.glob("new/*"))) < count:
        assert time.monotonic() < until, files
        time.sleep(0.05)
    messages = [message_from_bytes(file.read_bytes()) for file in files]
    for file in files:
        file.unlink()
    return messages


@pytest.mark.parametrize("provider", PROVIDERS)
def test_message_of_each_provider_is_delivered_by_postfix_with_our_fields(
    here: ProxyProcess, postfix: tuple[int, Path], provider: str
) -> None:
    """The delivered file has the X-Cmail fields in place of the provider's, and came to Postfix by TLS."""
    fields, opens, clicks = PROVIDERS[provider]
    content = b"From: app@example.com\r\nTo: ann@example.net\r\n" + fields + b"Subject: hi\r\n\r\nbody\r\n..\r\n"
    with Client(here.port) as client:
        assert client.data(content + b".\r\n").startswith("250 2.0.0 Ok: queued as ")
    (message,) = delivered(postfix[1] / "ann")
    assert message["X-Cmail-GroupName"] == "welcome"
    assert message["X-Cmail-TrackOpens"] == opens
    assert message["X-Cmail-TrackClicks"] == clicks
    assert not [name for name in message if name.startswith(("X-M", "X-PM", "X-SMTPAPI"))]
    assert message.get_payload() == "body\n.\n"
    by_postfix, by_proxy = message.get_all("Received", [])
    assert " with ESMTPS id " in by_postfix  # TLS on the way in
    assert "by proxy.example.com with ESMTP id " in by_proxy


def test_recipient_that_postfix_rejects_is_answered_in_its_words(here: ProxyProcess, postfix: tuple[int, Path]) -> None:
    """Postfix's own reply to each RCPT, permanent and transient, reaches the client, and the others get the message."""
    with Client(here.port) as client:
        assert client.say("MAIL FROM:<app@example.com>") == "250 2.1.0 OK"
        assert client.say("RCPT TO:<nobody@example.net>") == (
            "550 5.1.1 <nobody@example.net>: Recipient address rejected: User unknown in virtual mailbox table"
        )
        assert client.say("RCPT TO:<busy@example.net>") == (
            "450 4.2.1 <busy@example.net>: Recipient address rejected: mailbox is busy"
        )
        assert client.say("RCPT TO:<x@example.org>") == ("554 5.7.1 <x@example.org>: Relay access denied")
        assert client.say("RCPT TO:<bob@example.net>") == "250 2.1.5 Ok"
        assert client.say("DATA") == START_MAIL
        client.send(b"Subject: rest\r\n\r\nbody\r\n.\r\n")
        assert client.reply().startswith("250 2.0.0 Ok: queued as ")
    (message,) = delivered(postfix[1] / "bob")
    assert message["Subject"] == "rest"


def test_size_that_postfix_refuses_is_known_before_sending(here: ProxyProcess) -> None:
    """EHLO offers Postfix's own SIZE, once it was learned."""
    until = time.monotonic() + WAIT_SECONDS
    while True:
        with Client(here.port, extended=False) as client:
            if "SIZE 100000" in client.ehlo():
                break
        assert time.monotonic() < until


def test_messages_over_pooled_connections_are_all_delivered(here: ProxyProcess, postfix: tuple[int, Path]) -> None:
    """Ten messages of smtplib, each on a connection of its own, share those to Postfix; all of them are delivered."""
    for index in range(10):
        with smtplib.SMTP("127.0.0.1", here.port, timeout=WAIT_SECONDS) as client:
            client.sendmail(
                "app@example.com", ["bob@example.net"], f"Subject: {index}\r\nX-PM-Tag: tag {index}\r\n\r\nbody\r\n"
            )
    messages = delivered(postfix[1] / "bob", 10)
    assert sorted(str(message["X-Cmail-GroupName"]) for message in messages) == [f"tag {index}" for index in range(10)]
