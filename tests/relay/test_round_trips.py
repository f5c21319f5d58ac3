"""What a message costs on the way to the platform: nothing but its own three round trips."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from tests.relay.site import Relay, relay
from tests.relay.wire import APPLICATION_DATA, Wire, records
from tests.support.upstream import EXTENSIONS, Upstream

MESSAGES = 3


@contextmanager
def wired(folder: Path, upstream: Upstream, **values: object) -> Iterator[tuple[Relay, Wire]]:
    """A proxy, a wire, and the platform behind it; the connection made at start is at rest."""
    with Wire(upstream.port) as wire, relay(folder, upstream, relay={"port": wire.port, **values}) as here:
        here.warm_up()
        yield here, wire


def test_message_costs_three_round_trips(tmp_path: Path) -> None:
    """MAIL with RCPT, DATA, the message: no greeting, no RSET, no NOOP, for the first message and for the others."""
    with wired(tmp_path, Upstream()) as (here, wire):
        before = len(wire.passed)
        for _ in range(MESSAGES):
            here.serves()
        trips = wire.round_trips(before)
        envelope = b"MAIL FROM:<app@example.com>\r\nRCPT TO:<ann@example.net>\r\n"
        assert [trips[0::3], trips[1::3]] == [[envelope] * MESSAGES, [b"DATA\r\n"] * MESSAGES]
        assert all(content.endswith(b"\r\nbody\r\n.\r\n") for content in trips[2::3])
        assert len(trips) == 3 * MESSAGES
        assert len(here.upstream.dialogues) == 1


@pytest.mark.parametrize("tls", ["required", "implicit"])
def test_connection_is_authenticated_and_has_tls_before_the_first_message(tmp_path: Path, tls: str) -> None:
    """What an app that sends by itself would wait for each time is paid once; MAIL and RCPT leave by one write."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    upstream = Upstream(
        context=context, implicit_tls=tls == "implicit", extensions=(*EXTENSIONS, "AUTH PLAIN", "AUTH LOGIN")
    )
    login = {"username": "user", "password": "secret"}
    with wired(tmp_path, upstream, tls=tls, ca_file=str(tmp_path / "ca.pem"), **login) as (here, wire):
        before = len(wire.passed)
        for _ in range(MESSAGES):
            here.serves()
        trips = wire.round_trips(before)
        assert len(trips) == 3 * MESSAGES
        # Two writes would be two records, even where TCP joins them.
        assert [records(trip) for trip in trips[0::3]] == [[APPLICATION_DATA]] * MESSAGES
        assert [records(trip) for trip in trips[1::3]] == [[APPLICATION_DATA]] * MESSAGES
        (dialogue,) = upstream.dialogues
        assert dialogue.tls
        assert (dialogue.count("AUTH"), dialogue.count("MAIL"), dialogue.count("RSET")) == (1, MESSAGES, 0)


def test_platform_without_pipelining_costs_one_round_trip_more(tmp_path: Path) -> None:
    """MAIL alone, then RCPT: no more than that."""
    with wired(tmp_path, Upstream(extensions=("8BITMIME",))) as (here, wire):
        before = len(wire.passed)
        here.serves()
        assert len(wire.round_trips(before)) == 4
