"""STARTTLS towards MX hosts and smarthosts: taken where offered, done without where it fails and may, or required."""

import ssl

import pytest
import trustme

from proxy.outbound.client import NextHop
from proxy.outbound.hosts import Smarthost, unverified_context
from proxy.outbound.transaction import Copy
from proxy.policy.outcome import Outcome
from tests.outbound.site import ANN, BOB, CONTENT, DOMAIN, PATIENCE, lab
from tests.support.upstream import CLOSE, EXTENSIONS, RESET, Reply, Upstream

REQUIRED = frozenset({"EXAMPLE.net."})

NO_TLS: dict[str, dict[str, Reply]] = {
    "refused": {"STARTTLS": "454 4.7.0 TLS not available"},
    "unknown": {"STARTTLS": "502 5.5.1 what"},
    "closed": {"STARTTLS": CLOSE},
    "said-too-much": {"STARTTLS": b"220 go ahead\r\n250 and more\r\n"},
    "no-handshake": {"TLS": b"this is no TLS\r\n"},
    "handshake-closed": {"TLS": CLOSE},
    "handshake-reset": {"TLS": RESET},
}
fails = pytest.mark.parametrize("script", [pytest.param(script, id=name) for name, script in NO_TLS.items()])


async def test_starttls_is_taken_where_it_is_offered() -> None:
    """The certificate need not be one that we trust."""
    with lab(tls=True) as here:
        result = (await here.send())[ANN]
        assert (result.outcome, result.tls) == (Outcome.DELIVERED, True)
        assert here.servers[0].dialogues[0].tls
        assert here.connections() == [1]


@fails
async def test_starttls_that_fails_is_done_without(script: dict[str, Reply]) -> None:
    """On a new connection to the same host; the next one of an hour does not try again."""
    with lab(script, {}, tls=True) as here:
        mx = here.mx_hosts()
        result = (await here.send(hosts=mx.of(DOMAIN)))[ANN]
        assert (result.outcome, result.tls, result.host) == (Outcome.DELIVERED, False, "mx1.example.net")
        assert here.connections() == [2, 0]
        assert (await here.send(Copy((BOB,), CONTENT), hosts=mx.of(DOMAIN)))[BOB].outcome is Outcome.DELIVERED
        assert here.connections() == [3, 0]
        assert not here.servers[0].dialogues[2].count("STARTTLS")
        here.now += 3601
        assert (await here.send(hosts=mx.of(DOMAIN)))[ANN].outcome is Outcome.DELIVERED
        assert here.servers[0].dialogues[3].count("STARTTLS")


@fails
async def test_starttls_that_fails_defers_where_it_is_required(script: dict[str, Reply]) -> None:
    """Nothing of the message goes out in clear."""
    with lab(script, tls=True) as here:
        result = (await here.send(tls_required=REQUIRED))[ANN]
        assert (result.outcome, result.scope, result.enhanced[0]) == ("deferred", "host", "4")
        assert result.stage == "starttls"
        assert not any(each.count("MAIL") for each in here.servers[0].dialogues)


async def test_required_tls_that_is_not_offered_defers() -> None:
    """4.7.4; another host may offer it."""
    with lab() as here:
        result = (await here.send(tls_required=REQUIRED))[ANN]
        assert (result.outcome, result.enhanced) == ("deferred", "4.7.4")
    with lab({}, {}, tls=True) as here:
        here.servers[0].context = None
        result = (await here.send(tls_required=REQUIRED))[ANN]
        assert (result.outcome, result.host, result.tls) == ("delivered", "mx2.example.net", True)


async def test_required_tls_needs_a_certificate_for_the_host() -> None:
    """One that we trust and that has the host's name; 4.7.5 otherwise."""
    with lab(tls=True) as here:
        assert (await here.send(tls_required=REQUIRED))[ANN].tls
        for ca, name in ((trustme.CA(), "mx1.example.net"), (here.ca, "mx1.example.org")):
            here.servers[0].context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            ca.issue_cert(name).configure_cert(here.servers[0].context)
            result = (await here.send(tls_required=REQUIRED))[ANN]
            assert (result.outcome, result.enhanced) == ("deferred", "4.7.5")
            assert "certificate not trusted" in result.detail
            assert (await here.send())[ANN].tls  # for other domains it will do


@pytest.mark.parametrize(
    ("tls", "username", "outcome", "connections"),
    [("opportunistic", "", "delivered", 2), ("opportunistic", "user", "deferred", 1), ("required", "", "deferred", 1)],
)
async def test_smarthost_falls_back_only_where_that_gives_nothing_away(
    tls: str, username: str, outcome: str, connections: int
) -> None:
    """Never with required TLS, and never with credentials."""
    with lab({"TLS": CLOSE}, tls=True, extensions=(*EXTENSIONS, "AUTH PLAIN")) as here:
        server = here.servers[0]
        hop = NextHop("127.0.0.2", server.port, tls, unverified_context(), "out.example.com", username, "secret")
        result = (await here.send(hosts=Smarthost(hop, PATIENCE)))[ANN]
        assert result.outcome == outcome
        assert len(server.dialogues) == connections
        assert not any(each.count("AUTH") for each in server.dialogues)


async def test_smarthost_with_required_tls_delivers_by_it() -> None:
    """STARTTLS, then AUTH, with the certificate checked."""
    with lab(tls=True, extensions=(*EXTENSIONS, "AUTH LOGIN")) as here:
        context = ssl.create_default_context()
        here.ca.configure_trust(context)
        here.servers[0].context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        here.ca.issue_cert("127.0.0.2").configure_cert(here.servers[0].context)
        hop = NextHop("127.0.0.2", here.servers[0].port, "required", context, "out.example.com", "user", "secret")
        result = (await here.send(hosts=Smarthost(hop, PATIENCE)))[ANN]
        assert (result.outcome, result.tls) == (Outcome.DELIVERED, True)
        assert here.servers[0].dialogues[0].count("AUTH") == 1


@pytest.mark.parametrize("trusted", [True, False])
async def test_smarthost_with_implicit_tls_delivers_by_it_or_not_at_all(trusted: bool) -> None:
    """TLS from the first octet, with the certificate checked."""
    ca = trustme.CA()
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(own)
    context = ssl.create_default_context()
    if trusted:
        ca.configure_trust(context)
    with lab() as here, Upstream({}, context=own, implicit_tls=True) as server:
        hop = NextHop("127.0.0.1", server.port, "implicit", context, "out.example.com")
        result = (await here.send(hosts=Smarthost(hop, PATIENCE)))[ANN]
        if trusted:
            assert (result.outcome, result.tls) == (Outcome.DELIVERED, True)
        else:
            assert (result.outcome, result.enhanced) == (Outcome.DEFERRED, "4.7.5")
            assert "certificate not trusted" in result.detail
