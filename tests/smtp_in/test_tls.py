"""TLS on every kind of listener, what is forgotten when it begins, and certificates by name."""

import smtplib
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.smtp_in.dialogue import GREETING, QUEUED, START_MAIL, Client, plain, trusting
from tests.smtp_in.site import MESSAGE, Site, site
from tests.support.proxy_process import TOKEN, WAIT_SECONDS

STARTTLS, REQUIRED, NONE, IMPLICIT, AUTO, WITH_AUTH = range(6)
"""Listeners of the shared proxy, by their place in the settings."""

GO_AHEAD = "220 2.0.0 Ready to start TLS"
ACTIVE = "503 5.5.1 TLS is on already"
NOT_OFFERED = "502 5.5.1 STARTTLS is not offered here"
TLS_FIRST = "530 5.7.0 Send STARTTLS first"
NAMES = ["smtp.sendgrid.net", "smtp.mailgun.org"]


def listener(tls: str, **more: object) -> dict[str, object]:
    """Settings of a listener on loopback."""
    return {"address": "127.0.0.1", "port": 0, "tls": tls, "auth": "none", **more}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy with a listener of each kind and certificates of its own authority."""
    listeners = [
        *(listener(tls) for tls in ("starttls", "required", "none", "implicit", "auto")),
        listener("starttls", auth="required"),
    ]
    with site(
        tmp_path_factory.mktemp("tls"),
        listeners=listeners,
        tls={"self_signed": True, "names": NAMES},
        tokens=[{"name": "tests", "token": TOKEN}],
    ) as started:
        yield started


@pytest.fixture
def here(shared: Site) -> Site:
    """The shared proxy, with nothing received."""
    shared.forget()
    return shared


def ca_file(here: Site) -> str:
    """The file that clients of the local authority trust."""
    return str(here.proxy.folder / "var" / "tls" / "ca.pem")


def names_of(secured: ssl.SSLSocket | ssl.SSLObject) -> list[str]:
    """Host names of the certificate a server has shown."""
    certificate = secured.getpeercert()
    assert certificate
    names = certificate["subjectAltName"]
    assert isinstance(names, tuple)
    return [str(value) for kind, value in names if kind == "DNS"]


@pytest.mark.parametrize(
    ("version", "name"), [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")]
)
def test_starttls_with_each_version_carries_a_message(here: Site, version: ssl.TLSVersion, name: str) -> None:
    """STARTTLS is offered, works with TLS 1.2 and 1.3, is gone from EHLO afterwards, and Received names ESMTPS."""
    context = trusting(ca_file(here))
    context.minimum_version = context.maximum_version = version
    with here.client(STARTTLS) as client:
        assert "STARTTLS" in client.ehlo()
        assert client.say("STARTTLS") == GO_AHEAD
        assert client.start_tls(context, "localhost").version() == name
        assert client.ehlo() == ["SIZE 26214400", "8BITMIME", "PIPELINING", "ENHANCEDSTATUSCODES"]
        assert client.data(MESSAGE) == QUEUED
        assert client.say("QUIT") == "221 2.0.0 Bye"
    assert b"with ESMTPS id " in here.upstream.taken[0].content


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_starttls_with_an_old_version_is_refused_and_counted(here: Site) -> None:
    """TLS 1.1 gets no connection, the failure is counted, and the next client is served."""
    before = here.proxy.metric("cmail_proxy_tls_handshake_failures_total")
    context = trusting()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with here.client(STARTTLS) as client:
        assert client.say("STARTTLS") == GO_AHEAD
        with pytest.raises((ssl.SSLError, ConnectionError)):
            client.start_tls(context)
    here.upstream.wait_for(lambda: here.proxy.metric("cmail_proxy_tls_handshake_failures_total") == before + 1)
    here.serves()


def test_starttls_inside_tls_is_refused(here: Site) -> None:
    """A second STARTTLS is a mistake, however the first TLS came about, and the session goes on."""
    context = trusting()
    with here.client(STARTTLS) as client:
        assert client.say("STARTTLS") == GO_AHEAD
        client.start_tls(context)
        client.ehlo()
        assert client.say("STARTTLS") == ACTIVE
        assert client.data(MESSAGE) == QUEUED
    with here.client(IMPLICIT, context=context) as client:
        assert client.say("STARTTLS") == ACTIVE


def test_listener_that_requires_tls_takes_no_mail_before(here: Site) -> None:
    """530 until STARTTLS; what needs no trust is answered all the same."""
    with here.client(REQUIRED) as client:
        assert client.say("NOOP") == "250 2.0.0 OK"
        assert client.say("MAIL FROM:<app@example.com>") == TLS_FIRST
        assert client.say("RCPT TO:<ann@example.net>") == "503 5.5.1 Send MAIL first"
        assert client.say("STARTTLS") == GO_AHEAD
        client.start_tls(trusting())
        client.ehlo()
        assert client.data(MESSAGE) == QUEUED


def test_listener_without_tls_does_not_offer_it(here: Site) -> None:
    """`tls: none` offers no STARTTLS and refuses it, and takes mail in clear."""
    with here.client(NONE) as client:
        assert "STARTTLS" not in client.ehlo()
        assert client.say("STARTTLS") == NOT_OFFERED
        assert client.data(MESSAGE) == QUEUED
    assert b"with ESMTP id " in here.upstream.taken[0].content


def test_listener_with_implicit_tls_speaks_it_from_the_first_octet(here: Site) -> None:
    """`tls: implicit` is what smtplib.SMTP_SSL and port 465 mean."""
    with smtplib.SMTP_SSL(
        "localhost", here.ports[IMPLICIT], timeout=WAIT_SECONDS, context=trusting(ca_file(here))
    ) as client:
        client.sendmail("app@example.com", ["ann@example.net"], MESSAGE[:-3])
    assert here.content() == MESSAGE[:-3]
    assert b"with ESMTPS id " in here.upstream.taken[0].content


def test_client_without_tls_on_an_implicit_listener_gets_nothing_in_clear(here: Site) -> None:
    """A plain command on `tls: implicit` ends the connection without one octet of SMTP."""
    with here.client(IMPLICIT, greeted=False) as client:
        client.send(b"EHLO app.example.com\r\n")
        assert b"220" not in client.sock.recv(1000)  # an alert of TLS, or nothing
    here.serves()


def test_auto_listener_serves_clients_that_begin_with_tls_and_those_that_wait(here: Site) -> None:
    """`tls: auto` sees a ClientHello for what it is, and greets who says nothing; STARTTLS is offered then."""
    with here.client(AUTO, context=trusting(ca_file(here)), server_hostname="localhost") as client:
        assert "STARTTLS" not in client.ehlo()
        assert client.data(MESSAGE) == QUEUED
    with here.client(AUTO, greeted=False) as client:
        assert client.reply() == GREETING
        assert "STARTTLS" in client.ehlo()
        assert client.say("STARTTLS") == GO_AHEAD
        client.start_tls(trusting())
        client.ehlo()
        assert client.data(MESSAGE) == QUEUED
    assert len(here.upstream.taken) == 2


def test_auto_listener_greets_a_client_that_talks_first(here: Site) -> None:
    """An impatient plain client is greeted, and what it said is read."""
    with here.client(AUTO, greeted=False) as client:
        client.send(b"EHLO app.example.com\r\n")
        assert client.reply() == GREETING
        assert client.reply().startswith("250-proxy.example.com\n")


def test_auto_listener_survives_clients_that_leave_at_once(here: Site) -> None:
    """Connections that are closed or reset while they are looked at cost nothing."""
    for index in range(20):
        client = here.client(AUTO, greeted=False)
        if index % 2:
            client.reset()
        else:
            client.sock.close()
    with here.client(AUTO) as client:
        assert client.data(MESSAGE) == QUEUED


@pytest.mark.parametrize(
    "behind", [b"EHLO evil.example\r\n", b"RSET\r\nMAIL FROM:<evil@example.com>\r\n", b"\x00" * 50]
)
def test_commands_pipelined_behind_starttls_are_not_executed(here: Site, behind: bytes) -> None:
    """What came in clear behind STARTTLS, in the same segment, has no effect once TLS is on."""
    with here.client(STARTTLS) as client:
        client.send(b"STARTTLS\r\n" + behind)
        assert client.reply() == GO_AHEAD
        client.start_tls(trusting())
        assert client.say("NOOP") == "250 2.0.0 OK"  # no reply to anything else stands before it
        assert client.say("MAIL FROM:<app@example.com>") == "503 5.5.1 Send EHLO first"
        client.ehlo()
        assert client.data(MESSAGE) == QUEUED
    assert len(here.upstream.taken) == 1


def test_octets_in_clear_where_the_handshake_should_be_end_the_connection(here: Site) -> None:
    """A client that goes on in clear after the 220 gets no reply in clear."""
    with here.client(STARTTLS) as client:
        assert client.say("STARTTLS") == GO_AHEAD
        client.send(b"EHLO app.example.com\r\n")
        assert b"250" not in client.sock.recv(1000)
    here.serves()


def test_starttls_forgets_greeting_and_transaction(here: Site) -> None:
    """After the handshake EHLO is due again, and the transaction from before is gone (RFC 3207, 4.2)."""
    with here.client(STARTTLS) as client:
        assert client.say("MAIL FROM:<app@example.com>") == "250 2.1.0 OK"
        assert client.say("RCPT TO:<before@example.net>") == "250 2.1.5 recipient fine"
        assert client.say("STARTTLS") == GO_AHEAD
        client.start_tls(trusting())
        assert client.say("DATA") == "503 5.5.1 Send MAIL first"
        assert client.say("MAIL FROM:<app@example.com>") == "503 5.5.1 Send EHLO first"
        client.ehlo()
        assert client.data(MESSAGE) == QUEUED
    assert here.upstream.taken[0].recipients == ["RCPT TO:<ann@example.net>"]


def test_starttls_forgets_a_login(here: Site) -> None:
    """Who logged in before TLS must log in again: the octets of that AUTH could have been anybody's."""
    with here.client(WITH_AUTH) as client:
        login = f"AUTH PLAIN {plain(TOKEN, TOKEN)}"
        assert client.say(login) == "235 2.7.0 Authentication succeeded"
        assert client.say("STARTTLS") == GO_AHEAD
        client.start_tls(trusting())
        client.ehlo()
        assert client.say("MAIL FROM:<app@example.com>") == "530 5.7.0 Authentication required"
        assert client.say(login) == "235 2.7.0 Authentication succeeded"
        assert client.data(MESSAGE) == QUEUED
    assert b"with ESMTPSA id " in here.upstream.taken[0].content


def test_each_listener_of_several_keeps_its_own_mode_at_the_same_time(here: Site) -> None:
    """All listeners serve at once, each as it is set."""
    context = trusting()
    with (
        here.client(STARTTLS) as first,
        here.client(REQUIRED) as second,
        here.client(NONE) as third,
        here.client(IMPLICIT, context=context) as fourth,
        here.client(AUTO, context=context) as fifth,
    ):
        assert second.say("MAIL FROM:<app@example.com>") == TLS_FIRST
        for client in (first, third, fourth, fifth):
            client.envelope()
        for client in (first, third, fourth, fifth):
            client.send(MESSAGE)
        assert [client.reply() for client in (first, third, fourth, fifth)] == [QUEUED] * 4
    assert {line["listener"] for line in here.lines()} == {
        f"127.0.0.1:{here.ports[index]}" for index in (STARTTLS, NONE, IMPLICIT, AUTO)
    }


@pytest.mark.parametrize("name", [*NAMES, "localhost", "proxy.example.com"])
def test_host_name_asked_for_gets_a_certificate_of_the_local_authority(here: Site, name: str) -> None:
    """Hosts that apps have hard-coded are vouched for by the local authority, by STARTTLS and from the first octet."""
    context = trusting(ca_file(here))
    with here.client(STARTTLS) as client:
        assert client.say("STARTTLS") == GO_AHEAD
        assert name in names_of(client.start_tls(context, name))
    with here.client(IMPLICIT, context=context, server_hostname=name) as client:
        assert client.data(MESSAGE) == QUEUED


def test_host_name_of_nobody_fails_in_the_client_that_checks(here: Site) -> None:
    """A name that is not set gets a certificate that is not for it."""
    with here.client(STARTTLS) as client:
        assert client.say("STARTTLS") == GO_AHEAD
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            client.start_tls(trusting(ca_file(here)), "smtp.example.org")


def test_large_message_over_tls_arrives_whole(here: Site) -> None:
    """Flow control works through the TLS layer as well."""
    content = b"Subject: large\r\n\r\n" + b"0123456789abcdef" * 62 + b"\r\n"
    content += b"x" * 70 + b"\r\n"
    content += (b"y" * 990 + b"\r\n") * 5000
    with here.client(IMPLICIT, context=trusting()) as client:
        assert client.data(content + b".\r\n") == QUEUED
    assert here.content() == content


def connect(here: Site, context: ssl.SSLContext, name: str) -> list[str]:
    """Show the host names of the certificate a client of that name gets."""
    with here.client(extended=False) as client:
        client.ehlo()
        assert client.say("STARTTLS") == GO_AHEAD
        return names_of(client.start_tls(context, name))


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the proxy does in its own time."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_certificate_files_are_reloaded_while_connections_stay_up(tmp_path: Path) -> None:
    """
    A certificate that changes on disk is served to new clients, an open TLS session goes on, names by SNI keep their
    local certificate, and a broken file leaves the old one in force and is logged.
    """
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "public-ca.pem"))
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"

    def write(name: str) -> None:
        issued = ca.issue_cert(name, "localhost")
        # The key first: between the two the files do not belong together, and the old pair stays in force.
        key.write_bytes(issued.private_key_pem.bytes())
        chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    write("old.example.com")
    tls = {"certificate_file": str(chain), "key_file": str(key), "names": NAMES}
    with site(tmp_path / "proxy", tls=tls) as here:
        public = trusting(str(tmp_path / "public-ca.pem"))
        assert connect(here, public, "localhost") == ["old.example.com", "localhost"]
        with here.client() as open_before:
            assert open_before.say("STARTTLS") == GO_AHEAD
            open_before.start_tls(public, "localhost")
            open_before.ehlo()
            write("new.example.com")
            until(lambda: connect(here, public, "localhost") == ["new.example.com", "localhost"])
            here.proxy.event("certificate_reloaded")
            assert "smtp.sendgrid.net" in connect(here, trusting(ca_file(here)), "smtp.sendgrid.net")
            assert open_before.data(MESSAGE) == QUEUED
        chain.write_bytes(b"nothing of use")
        failed = here.proxy.event("certificate_reload_failed", len(here.proxy.events("certificate_reload_failed")) + 1)
        assert failed["problem"] == (
            f"{chain}: tls.certificate_file: found no certificate in PEM form; expected a certificate chain in PEM "
            "form, the server's own certificate first"
        )
        assert here.proxy.metric("cmail_proxy_certificate_last_reload_success") == 0
        assert connect(here, public, "localhost") == ["new.example.com", "localhost"]
        write("third.example.com")
        until(lambda: connect(here, public, "localhost") == ["third.example.com", "localhost"])
        assert here.proxy.metric("cmail_proxy_certificate_last_reload_success") == 1


def test_stalled_handshake_does_not_hold_up_others(here: Site) -> None:
    """A client that never begins its handshake costs nobody else anything."""
    with here.client(STARTTLS) as stalled, Client(here.ports[IMPLICIT], greeted=False):
        assert stalled.say("STARTTLS") == GO_AHEAD
        here.serves()


def test_message_in_two_parts_through_starttls_is_one_message(here: Site) -> None:
    """DATA and its content may come in any records of TLS."""
    with here.client(STARTTLS) as client:
        assert client.say("STARTTLS") == GO_AHEAD
        client.start_tls(trusting())
        client.ehlo()
        client.send(b"MAIL FROM:<app@example.com>\r\nRCPT TO:<ann@example.net>\r\nDATA\r\n" + MESSAGE[:30])
        client.send(MESSAGE[30:] + b"NOOP\r\n")
        expected = ["250 2.1.0 OK", "250 2.1.5 recipient fine", START_MAIL, QUEUED, "250 2.0.0 OK"]
        assert client.replies(5) == expected
    assert here.content() == MESSAGE[:-3]


def test_stop_does_not_wait_for_clients_that_never_begin_their_handshake(tmp_path: Path) -> None:
    """On SIGTERM only messages in flight are waited for: clients before or in their handshake are none."""
    listeners = [listener("implicit"), listener("auto"), listener("starttls")]
    with site(tmp_path, listeners=listeners, tls={"self_signed": True}) as here, ExitStack() as stack:
        for index in (0, 1):
            stack.enter_context(here.client(index, greeted=False))
            stack.enter_context(here.client(index, greeted=False)).send(b"\x16\x03\x01")
        asked = stack.enter_context(here.client(2))
        assert asked.say("STARTTLS") == GO_AHEAD
        assert here.proxy.stop() == 0
        assert here.proxy.events("drain_cut_off") == []


def test_failed_handshakes_leave_nothing_behind(tmp_path: Path) -> None:
    """Sessions whose handshake failed, for whatever reason, are over: the stop finds none of them left."""
    with site(tmp_path, listeners=[listener("starttls")], tls={"self_signed": True}) as here:
        for octets in (b"EHLO app.example.com\r\n", b"\x16\x03\x01\x00\x05hello", b"\x16\x03", b""):
            for ends in (Client.reset, lambda client: client.sock.close()):
                client = here.client()
                assert client.say("STARTTLS") == GO_AHEAD
                client.send(octets)
                ends(client)
        here.upstream.wait_for(lambda: here.proxy.metric("cmail_proxy_sessions_open") == 0)
        assert here.proxy.stop() == 0
        assert here.proxy.events("drain_cut_off") == []
