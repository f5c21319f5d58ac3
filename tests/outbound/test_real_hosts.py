"""Real servers as destinations: a stock aiosmtpd, and Postfix with TLS, its own replies and what it delivers."""

import asyncio
import os
import shutil
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Mailbox as AiosmtpdMailbox

from proxy.outbound.client import NextHop
from proxy.outbound.delivery import Hosts
from proxy.outbound.destinations import DestinationLimits, Destinations, destination_of
from proxy.outbound.hosts import MxHosts, MxSettings, Smarthost
from proxy.outbound.mx import Resolver, ResolverSettings
from proxy.outbound.networks import Networks
from proxy.outbound.transaction import Copy, Mail
from proxy.policy.outcome import Result
from tests.conftest import require_tool
from tests.operation.program import free_port
from tests.outbound.site import CHANCE, LOOPBACK, PATIENCE, SENDER
from tests.smtp_in.test_postfix import delivered, running_postfix
from tests.support.nameserver import NameServer

ANN, BOB, NOBODY, BUSY = (f"{name}@example.net" for name in ("ann", "bob", "nobody", "busy"))
CONTENT = b"From: app@example.com\r\nSubject: hi\r\n\r\nbody\r\n.\r\n..dots\r\n"


async def send(hosts: Hosts, *recipients: str, content: bytes = CONTENT) -> dict[str, Result]:
    """Send one copy to everybody in one domain."""
    where = Destinations(lambda _: hosts, DestinationLimits(), PATIENCE, CHANCE)

    async def load() -> Mail:
        return Mail(SENDER, (Copy(recipients, content),))

    try:
        return await where.deliver(destination_of(recipients[0]), recipients, load)
    finally:
        await where.close()


def by_mx(names: NameServer, port: int) -> Hosts:
    """The hosts of example.net, as its name server tells them."""
    networks = Networks(LOOPBACK)
    resolver = Resolver(ResolverSettings(("127.0.0.1",), names.port), networks, CHANCE)
    return MxHosts(MxSettings("out.example.com", port), resolver, networks, PATIENCE).of("example.net")


ZONE = ("example.net 300 MX 10 mx.example.net.", "mx.example.net 300 A 127.0.0.1")


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """An aiosmtpd as it comes: no PIPELINING, lines of at most 1,000 octets, a Maildir."""
    # Its start() makes a connection of its own to the port, which it has to know before.
    controller = Controller(AiosmtpdMailbox(tmp_path / "mail"), hostname="127.0.0.1", port=free_port())
    controller.start()
    try:
        yield controller.port, tmp_path / "mail"
    finally:
        controller.stop()


async def test_stock_aiosmtpd_takes_messages(stock: tuple[int, Path]) -> None:
    """One by one over one connection, with every dot where it was."""
    port, folder = stock
    with NameServer(ZONE) as names:
        results = await send(by_mx(names, port), ANN, BOB)
    assert {each.outcome for each in results.values()} == {"delivered"}
    (message,) = delivered(folder)
    assert message["X-RcptTo"] == f"{ANN}, {BOB}"
    assert message.get_payload() == "body\n.\n..dots\n"


async def test_stock_aiosmtpd_that_refuses_a_message_is_understood(stock: tuple[int, Path]) -> None:
    """It takes no line over 1,000 octets, and says so at the end."""
    port, _ = stock
    with NameServer(ZONE) as names:
        results = await send(by_mx(names, port), ANN, content=b"Subject: long\r\n\r\n" + b"x" * 2000 + b"\r\n")
    assert (results[ANN].outcome, results[ANN].scope) == ("failed", "message")
    assert "Line too long" in results[ANN].detail


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


async def test_postfix_as_mx_host_gives_each_recipient_a_result(postfix: tuple[int, Path]) -> None:
    """By opportunistic TLS and PIPELINING: one delivered, one unknown, one to try later."""
    port, mailboxes = postfix
    with NameServer(ZONE) as names:
        results = await send(by_mx(names, port), ANN, NOBODY, BUSY)
    assert [(results[each].outcome, results[each].enhanced) for each in (ANN, NOBODY, BUSY)] == [
        ("delivered", "2.0.0"),
        ("failed", "5.1.1"),
        ("deferred", "4.2.1"),
    ]
    assert all(each.tls and each.host == "mx.example.net" for each in results.values())
    (message,) = delivered(mailboxes / "ann")
    assert message.get_payload() == "body\n.\n..dots\n"
    assert " with ESMTPS id " in str(message["Received"])


async def test_postfix_as_smarthost_checks_out_and_refuses_in_its_words(postfix: tuple[int, Path]) -> None:
    """With the certificate checked; a relay that is not allowed, and a message that is too large."""
    port, mailboxes = postfix
    context = ssl.create_default_context(cafile=str(mailboxes.parent / "ca.pem"))
    smarthost = Smarthost(NextHop("127.0.0.1", port, "required", context, "out.example.com"), PATIENCE)
    results = await send(smarthost, BOB, "x@example.org")
    assert results[BOB].outcome == "delivered"
    assert (results["x@example.org"].outcome, results["x@example.org"].enhanced) == ("failed", "5.7.1")
    assert len(delivered(mailboxes / "bob")) == 1
    results = await send(smarthost, BOB, content=b"x" * 150_000)
    assert (results[BOB].outcome, results[BOB].enhanced) == ("failed", "5.3.4")


async def test_postfix_gets_a_series_over_few_connections(postfix: tuple[int, Path]) -> None:
    """Thirty messages at once, each taken exactly once."""
    port, mailboxes = postfix
    with NameServer(ZONE) as names:
        hosts = by_mx(names, port)
        where = Destinations(lambda _: hosts, DestinationLimits(), PATIENCE, CHANCE)

        async def one(number: int) -> Result:
            async def load() -> Mail:
                return Mail(SENDER, (Copy((BOB,), f"Subject: {number}\r\n\r\nbody\r\n".encode()),))

            return (await where.deliver("example.net", [BOB], load))[BOB]

        results = await asyncio.gather(*(one(number) for number in range(30)))
        await where.close()
    assert {each.outcome for each in results} == {"delivered"}
    subjects = sorted(int(str(each["Subject"])) for each in delivered(mailboxes / "bob", 30))
    assert subjects == list(range(30))
