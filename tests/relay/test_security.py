"""TLS and AUTH towards the platform: what is required, what is checked, and that failures here are ours to mend."""

import base64
import datetime
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.relay.site import MISCONFIGURED, NO_CONNECTION, Relay, in_turn, relay
from tests.smtp_in.dialogue import plain
from tests.support.upstream import CLOSE, EXTENSIONS, RESET, STALL, Reply, Upstream

USER, PASSWORD = "api-user", "p\u00e4ss w\u00f6rd\\\"'{}"
HELLO = "EHLO proxy.example.com"
SENT = ["MAIL FROM:<app@example.com>", "RCPT TO:<ann@example.net>", "DATA"]


@dataclass
class Authority:
    """
    A certificate authority, and what a proxy needs to trust it.

    Attributes:
        file: Its certificate.
    """

    ca: trustme.CA
    file: Path

    def server(self, *names: str, not_after: datetime.datetime | None = None) -> ssl.SSLContext:
        """Give a server's TLS with a certificate for these names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names, not_after=not_after).configure_cert(context)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority for this module."""
    ca = trustme.CA()
    file = tmp_path_factory.mktemp("authority") / "ca.pem"
    ca.cert_pem.write_to_path(str(file))
    return Authority(ca, file)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Relay]:
    """A proxy that requires STARTTLS, before a platform that offers it."""
    upstream = Upstream(context=authority.server("127.0.0.1"))
    limits = {"tls": "required", "ca_file": str(authority.file), "connect_seconds": 2}
    with relay(tmp_path_factory.mktemp("tls"), upstream, relay=limits) as started:
        started.warm_up()
        yield started


@pytest.fixture(scope="module")
def shared_login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A proxy that logs in, before a platform that offers AUTH without TLS."""
    folder = tmp_path_factory.mktemp("auth")
    upstream = Upstream(extensions=(*EXTENSIONS, "AUTH PLAIN"))
    with relay(folder, upstream, relay={"username": USER, "password": PASSWORD, "reply_seconds": 2}) as started:
        started.extensions = (*EXTENSIONS, "AUTH PLAIN")
        started.warm_up()
        yield started


@pytest.fixture
def known(shared_login: Relay) -> Relay:
    """The proxy that logs in, before a platform as it should be that has received nothing."""
    shared_login.restore()
    return shared_login


def failure(here: Relay, before: int) -> tuple[str, str]:
    """Stage and reason of the first failure behind *before* others, from the log."""
    line = here.proxy.event("upstream_failed", before + 1)
    return line["stage"], line["reason"]


def failures(here: Relay) -> int:
    """How many failures were logged so far."""
    return len(here.proxy.events("upstream_failed"))


def test_required_tls_is_on_before_anything_is_said(here: Relay) -> None:
    """EHLO, STARTTLS, and EHLO again inside TLS; the message follows there."""
    here.unpool()
    here.serves()
    dialogue = here.upstream.dialogues[-1]
    assert dialogue.tls
    assert dialogue.commands == [HELLO, "STARTTLS", HELLO, *SENT]


def test_what_was_offered_before_tls_does_not_count(here: Relay) -> None:
    """Only EHLO inside TLS says what the platform can (RFC 3207, 4.2)."""
    here.unpool()
    outside = "250-platform.example\n250-SIZE 99\n250-SMTPUTF8\n250 STARTTLS"
    inside = "250-platform.example\n250-SIZE 7000\n250 PIPELINING"
    here.upstream.script({"EHLO": in_turn(outside, inside)})
    here.serves()
    with here.client(extended=False) as client:
        assert client.ehlo() == ["SIZE 7000", "PIPELINING", "ENHANCEDSTATUSCODES"]
    here.unpool()
    here.serves_again()


NOT_OFFERED = "STARTTLS is not offered, and relay.tls is required"
BEHIND = "octets behind the reply to STARTTLS"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param({"EHLO": "250-platform.example\n250 PIPELINING"}, NOT_OFFERED, id="not-offered"),
        pytest.param({"STARTTLS": "454 4.7.0 not now"}, "the next hop said 454 4.7.0 not now", id="454"),
        pytest.param({"STARTTLS": "502 5.5.1 what"}, "the next hop said 502 5.5.1 what", id="502"),
        pytest.param({"STARTTLS": "421 4.3.2 closing"}, "the next hop said 421 4.3.2 closing", id="421"),
        pytest.param({"STARTTLS": "250 2.0.0 fine"}, "the next hop said 250 2.0.0 fine", id="250"),
        pytest.param({"STARTTLS": CLOSE}, "closed by the next hop", id="closed"),
        pytest.param({"STARTTLS": STALL}, "no reply within 2 s", id="stall"),
        pytest.param({"STARTTLS": "999 what"}, "no SMTP reply: b'999 what\\r\\n'", id="nonsense"),
    ],
)
def test_starttls_that_cannot_be_had_is_451(here: Relay, script: dict[str, Reply], reason: str) -> None:
    """Without TLS nothing is sent, and the log says why."""
    here.unpool()
    before = failures(here)
    here.upstream.script(script)
    assert here.attempt() == [NO_CONNECTION]
    assert failure(here, before) == ("starttls", reason)
    assert not any(command.startswith(("MAIL", "AUTH")) for command in here.upstream.dialogues[-1].commands)
    here.serves_again()


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"220 go\r\n250 injected\r\n", id="reply"),
        pytest.param(b"220 go\r\n250-injected\r\n250-AUTH PLAIN\r\n", id="lines-of-a-reply"),
        pytest.param(b"220 go\r\n250-", id="half-a-line"),
        pytest.param(b"220 go\r\n2", id="one-octet"),
        pytest.param(b"220 go\r\n\x16\x03\x03\x00\x00", id="tls-record"),
    ],
)
def test_octets_behind_the_reply_to_starttls_end_the_connection(here: Relay, octets: bytes) -> None:
    """Whatever stands there in the clear could be anybody's word, and must not become part of what TLS protects."""
    here.unpool()
    before = failures(here)
    here.upstream.script({"STARTTLS": octets})
    assert here.attempt() == [NO_CONNECTION]
    stage, reason = failure(here, before)
    assert stage == "starttls"
    assert reason == BEHIND or reason.startswith(("unasked reply 250 injected", "no SMTP reply: "))
    here.serves_again()


@pytest.mark.parametrize(
    ("handshake", "reason"),
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", "wrong version number", id="another-protocol"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x28", "handshake failure", id="alert"),
        pytest.param(b"\x16\x03\x03\xff\xff" + bytes(70_000), "packet length too long", id="record-too-long"),
        pytest.param(CLOSE, "connectionreseterror", id="closed"),
        pytest.param(RESET, "connection reset by peer", id="reset"),
        pytest.param(STALL, "no tls within 2 s", id="stall"),
        pytest.param(b"\x16", "no tls within 2 s", id="stall-in-a-record"),
    ],
)
def test_handshake_that_fails_is_451(here: Relay, handshake: Reply, reason: str) -> None:
    """What answers ClientHello with anything else, or not at all, is not reached; the log names the reason."""
    here.unpool()
    before = failures(here)
    here.upstream.script({"TLS": handshake})
    assert here.attempt() == [NO_CONNECTION]
    stage, logged = failure(here, before)
    assert stage == "starttls"
    assert reason in logged.lower()  # of OpenSSL's texts only the words: it numbers its source lines in them
    here.serves_again()


YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


@pytest.mark.parametrize("tls", ["required", "implicit"])
@pytest.mark.parametrize(
    ("names", "not_after", "trusted", "reason"),
    [
        pytest.param(
            ["mail.example.org"],
            None,
            True,
            "certificate not trusted: IP address mismatch, certificate is not valid for '127.0.0.1'.",
            id="wrong-name",
        ),
        pytest.param(["127.0.0.1"], YESTERDAY, True, "certificate not trusted: certificate has expired", id="expired"),
        pytest.param(
            ["127.0.0.1"],
            None,
            False,
            "certificate not trusted: unable to get local issuer certificate",
            id="unknown-ca",
        ),
    ],
)
def test_certificate_that_is_not_good_is_451(
    tmp_path: Path,
    authority: Authority,
    tls: str,
    names: list[str],
    not_after: datetime.datetime | None,
    trusted: bool,
    reason: str,
) -> None:
    """The platform's name, the dates and the authority are checked; no credentials go to a stranger."""
    context = authority.server(*names, not_after=not_after)
    upstream = Upstream(context=context, implicit_tls=tls == "implicit", extensions=(*EXTENSIONS, "AUTH PLAIN"))
    values = {"tls": tls, "username": USER, "password": PASSWORD}
    with relay(tmp_path, upstream, relay={**values, "ca_file": str(authority.file)} if trusted else {**values}) as here:
        assert here.attempt() == [NO_CONNECTION]
        assert failure(here, 0) == ("connect" if tls == "implicit" else "starttls", reason)
        assert not any(command.startswith("AUTH") for each in upstream.dialogues for command in each.commands)


def test_opportunistic_tls_is_used_where_it_is_offered(tmp_path: Path, authority: Authority) -> None:
    """Any certificate will do, because whoever could forge one could hide STARTTLS, too."""
    upstream = Upstream(context=authority.server("mail.example.org"))
    with relay(tmp_path, upstream, relay={"tls": "opportunistic"}) as here:
        here.serves()
        assert all(dialogue.tls for dialogue in upstream.dialogues)
        assert upstream.dialogues[0].commands[:3] == [HELLO, "STARTTLS", HELLO]


def test_opportunistic_tls_does_without_where_it_is_not_offered(tmp_path: Path) -> None:
    """A platform without STARTTLS gets the message in the clear."""
    with relay(tmp_path, relay={"tls": "opportunistic"}) as here:
        here.warm_up()
        here.serves()
        assert here.upstream.dialogues[0].commands == [HELLO, *SENT]


def test_implicit_tls_begins_with_the_first_octet(tmp_path: Path, authority: Authority) -> None:
    """No STARTTLS, though the certificate is checked all the same."""
    upstream = Upstream(context=authority.server("127.0.0.1"), implicit_tls=True)
    with relay(tmp_path, upstream, relay={"tls": "implicit", "ca_file": str(authority.file)}) as here:
        here.warm_up()
        here.serves()
        assert upstream.dialogues[0].tls
        assert upstream.dialogues[0].commands == [HELLO, *SENT]


def test_implicit_tls_to_a_platform_in_the_clear_is_451(tmp_path: Path) -> None:
    """A greeting is no TLS."""
    with relay(tmp_path, relay={"tls": "implicit", "connect_seconds": 2}) as here:
        assert here.attempt() == [NO_CONNECTION]
        assert failure(here, 0)[0] == "connect"


def test_no_tls_does_not_ask_for_it(tmp_path: Path, authority: Authority) -> None:
    """STARTTLS is offered and left alone."""
    with relay(tmp_path, Upstream(context=authority.server("127.0.0.1")), relay={"tls": "none"}) as here:
        here.warm_up()
        here.serves()
        assert here.upstream.dialogues[0].commands == [HELLO, *SENT]


def base64_of(text: str) -> str:
    """Text as AUTH LOGIN carries it."""
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("offer", "commands"),
    [
        pytest.param("AUTH PLAIN", [f"AUTH PLAIN {plain(USER, PASSWORD)}"], id="plain"),
        pytest.param("AUTH LOGIN", ["AUTH LOGIN", base64_of(USER), base64_of(PASSWORD)], id="login"),
        pytest.param("AUTH CRAM-MD5 LOGIN PLAIN", [f"AUTH PLAIN {plain(USER, PASSWORD)}"], id="plain-first"),
        pytest.param("auth xoauth2 login", ["AUTH LOGIN", base64_of(USER), base64_of(PASSWORD)], id="odd-case"),
    ],
)
def test_credentials_are_given_once_for_each_connection(known: Relay, offer: str, commands: list[str]) -> None:
    """PLAIN where offered, else LOGIN; then message after message without another AUTH."""
    known.learn(*EXTENSIONS, offer)
    (dialogue,) = known.upstream.open
    known.serves()
    assert dialogue.commands == [HELLO, *commands, *SENT, *SENT]


def test_credentials_follow_tls(tmp_path: Path, authority: Authority) -> None:
    """The password from its file crosses the wire inside TLS only, though AUTH was offered before."""
    secret = tmp_path / "password"
    secret.write_text(f"{PASSWORD}\n", encoding="utf-8")
    upstream = Upstream(context=authority.server("127.0.0.1"), extensions=(*EXTENSIONS, "AUTH PLAIN"))
    values = {"tls": "required", "ca_file": str(authority.file), "username": USER, "password_file": str(secret)}
    with relay(tmp_path, upstream, relay=values) as here:
        here.warm_up()
        here.serves()
        assert upstream.dialogues[0].commands == [
            HELLO,
            "STARTTLS",
            HELLO,
            f"AUTH PLAIN {plain(USER, PASSWORD)}",
            *SENT,
        ]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        pytest.param("535 5.7.8 wrong", "the next hop said 535 5.7.8 wrong", id="535"),
        pytest.param("454 4.7.0 later", "the next hop said 454 4.7.0 later", id="454"),
        pytest.param("421 4.7.0 too many", "the next hop said 421 4.7.0 too many", id="421"),
        pytest.param("504 5.5.4 mechanism", "the next hop said 504 5.5.4 mechanism", id="504"),
        pytest.param("530 5.7.0 TLS first", "the next hop said 530 5.7.0 TLS first", id="530"),
        pytest.param("538 5.7.11 TLS first", "the next hop said 538 5.7.11 TLS first", id="538"),
        pytest.param("334 ", "the next hop said 334", id="334"),
        pytest.param("250 2.0.0 fine", "the next hop said 250 2.0.0 fine", id="250"),
        pytest.param(CLOSE, "closed by the next hop", id="closed"),
        pytest.param(STALL, "no reply within 2 s", id="stall"),
        pytest.param("999 what", "no SMTP reply: b'999 what\\r\\n'", id="nonsense"),
    ],
)
def test_auth_that_fails_is_451_and_logged(known: Relay, reply: str, reason: str) -> None:
    """A wrong password here must not bounce the app's mail: never 5yz, and the log says what is to be mended. Only a
    platform that says no for good is said not to take the credentials."""
    known.unpool()
    before = failures(known)
    known.upstream.script({"AUTH": reply}, extensions=(*EXTENSIONS, "AUTH PLAIN"))
    assert known.attempt() == [MISCONFIGURED if reply.startswith("5") else NO_CONNECTION]
    assert failure(known, before) == ("auth", reason)
    assert not any(command.startswith("MAIL") for command in known.upstream.dialogues[-1].commands)
    known.serves_again()


@pytest.mark.parametrize("reply", ["504 5.5.4 mechanism", "454 4.7.0 later", CLOSE])
@pytest.mark.parametrize("stage", ["username", "password"])
def test_auth_login_that_fails_on_its_way_is_451_and_logged(known: Relay, stage: str, reply: str) -> None:
    """What the platform says in place of asking for user name or password is no success, and no 5yz to the app."""
    known.unpool()
    before = failures(known)
    known.upstream.script({stage: reply}, extensions=(*EXTENSIONS, "AUTH LOGIN"))
    assert known.attempt() == [MISCONFIGURED if reply.startswith("5") else NO_CONNECTION]
    assert failure(known, before)[0] == "auth"
    said = known.upstream.dialogues[-1].commands
    assert said == [HELLO, "AUTH LOGIN", base64_of(USER)][: 2 if stage == "username" else 3]
    known.serves_again()


@pytest.mark.parametrize(
    ("offers", "reason"),
    [
        pytest.param((), "AUTH offers nothing; needed is PLAIN or LOGIN", id="not-offered"),
        pytest.param(("AUTH",), "AUTH offers nothing; needed is PLAIN or LOGIN", id="no-mechanism"),
        pytest.param(
            ("AUTH CRAM-MD5 XOAUTH2",), "AUTH offers CRAM-MD5 XOAUTH2; needed is PLAIN or LOGIN", id="other-mechanisms"
        ),
    ],
)
def test_auth_that_is_not_offered_is_451_and_logged(known: Relay, offers: tuple[str, ...], reason: str) -> None:
    """A platform that takes no credentials is not sent to without them."""
    known.unpool()
    before = failures(known)
    known.upstream.script(extensions=(*EXTENSIONS, *offers))
    assert known.attempt() == [MISCONFIGURED]
    assert failure(known, before) == ("auth", reason)
    known.serves_again()


@pytest.mark.parametrize("offer", ["AUTH PLAIN", "AUTH LOGIN"])
def test_password_is_never_logged(known: Relay, offer: str) -> None:
    """Not even when the platform repeats in its reply what it was sent."""
    known.unpool()
    before = failures(known)

    def echo(line: str) -> str:
        said = known.upstream.dialogues[-1].commands
        return f"535-5.7.8 {line} refused\n535 5.7.8 {said[-1]} {PASSWORD} refused"

    known.upstream.script({"AUTH": echo}, extensions=(*EXTENSIONS, offer))
    assert known.attempt() == [MISCONFIGURED]
    assert failure(known, before)[0] == "auth"
    log = known.proxy.log_file.read_text("utf-8")
    for secret in (PASSWORD, PASSWORD.replace("\u00e4", "?"), base64_of(PASSWORD), plain(USER, PASSWORD), "rd\\"):
        assert secret not in log
    known.serves_again()
