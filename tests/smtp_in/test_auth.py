"""AUTH: who may send, by which mechanism, where, and what a failure costs."""

import json
import os
import shutil
import smtplib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.smtp_in.dialogue import QUEUED, START_MAIL, TOO_MANY_ERRORS, Client, base64_of, plain, trusting
from tests.smtp_in.site import MESSAGE, Site, nobody, site
from tests.support.proxy_process import TOKEN, WAIT_SECONDS, settings

REQUIRED, OPTIONAL, ONLY_TLS, ALWAYS, NETWORK, OTHER_NETWORK = range(6)
"""Listeners of the shared proxy, by their place in the settings."""

ACCEPTED = "235 2.7.0 Authentication succeeded"
FAILED = "535 5.7.8 Credentials not accepted"
NO_BASE64 = "501 5.5.2 That is no base64 of credentials"
CANCELLED = "501 5.7.0 Authentication cancelled"
AGAIN = "503 5.5.1 Authenticated already"
IN_TRANSACTION = "503 5.5.1 A transaction is open already; RSET ends it"
MECHANISM = "504 5.5.4 AUTH takes PLAIN or LOGIN"
AUTH_FIRST = "530 5.7.0 Authentication required"
TLS_FIRST = "538 5.7.11 Authentication needs STARTTLS first"
TOO_LONG = "500 5.5.2 Command line too long"
USER, PASSWORD = "334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6"
GO_AHEAD = "220 2.0.0 Ready to start TLS"

SECRETS = {
    "token": TOKEN,
    "sendgrid": "SG.old-sendgrid-secret",
    "mandrill": "md-old-mandrill-secret",
    "postmark": "POSTMARK_API_TEST",
    "wrong": "some-wrong-secret-that-was-tried",
}


def listener(**more: object) -> dict[str, object]:
    """Settings of a listener on loopback."""
    return {"address": "127.0.0.1", "port": 0, "tls": "starttls", "auth": "required", **more}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy with all kinds of credentials and listeners."""
    with site(
        tmp_path_factory.mktemp("auth"),
        tls={"self_signed": True},
        listeners=[
            listener(),
            listener(auth="optional", allow_networks=["127.0.0.2/32"]),
            listener(auth_without_tls="never"),
            listener(auth_without_tls="always"),
            listener(auth="none", allow_networks=["127.0.0.2/32"]),
            listener(auth="none", allow_networks=["192.0.2.0/24", "2001:db8::/32"]),
        ],
        tokens=[{"name": "billing", "token": SECRETS["token"]}],
        logins=[
            {"name": "legacy", "username": "apikey", "password": SECRETS["sendgrid"], "provider": "sendgrid"},
            {"name": "mandrill", "password": SECRETS["mandrill"], "provider": "mandrill"},
            {
                "name": "tests",
                "username": SECRETS["postmark"],
                "password": SECRETS["postmark"],
                "discard": True,
            },
        ],
    ) as started:
        yield started
        log = started.proxy.log_file.read_text("utf-8")
        for secret in SECRETS.values():
            if secret != SECRETS["postmark"]:  # a word that providers print in their manuals
                assert secret not in log
            assert base64_of(secret) not in log
            assert plain(secret, secret) not in log


@pytest.fixture
def here(shared: Site) -> Site:
    """The shared proxy, with nothing received."""
    shared.forget()
    return shared


def test_auth_plain_with_initial_response_lets_send(here: Site) -> None:
    """The token is user name and password in one line, and the log names the holder."""
    with here.client() as client:
        assert "AUTH PLAIN LOGIN" in client.ehlo()
        assert client.say("MAIL FROM:<app@example.com>") == AUTH_FIRST
        assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}") == ACCEPTED
        assert client.data(MESSAGE) == QUEUED
    assert [line["login"] for line in here.lines()] == ["billing"]
    assert b"with ESMTPA id " in here.upstream.taken[0].content


def test_auth_plain_without_initial_response_is_asked_for_it(here: Site) -> None:
    """The challenge is empty, and the answer the same as in one line."""
    with here.client() as client:
        assert client.say("AUTH PLAIN") == "334 "
        assert client.say(plain(TOKEN, TOKEN)) == ACCEPTED
        assert client.data(MESSAGE) == QUEUED


@pytest.mark.parametrize("mechanism", ["LOGIN", "login"])
def test_auth_login_asks_for_both_parts(here: Site, mechanism: str) -> None:
    """LOGIN without initial response asks for user name and password."""
    with here.client() as client:
        assert client.say(f"AUTH {mechanism}") == USER
        assert client.say(base64_of("apikey")) == PASSWORD
        assert client.say(base64_of(SECRETS["sendgrid"])) == ACCEPTED
        assert client.data(MESSAGE) == QUEUED
    assert [line["login"] for line in here.lines()] == ["legacy"]


def test_auth_login_with_initial_response_asks_for_the_password_only(here: Site) -> None:
    """LOGIN may bring the user name along."""
    with here.client() as client:
        assert client.say(f"AUTH LOGIN {base64_of(TOKEN)}") == PASSWORD
        assert client.say(base64_of(TOKEN)) == ACCEPTED


@pytest.mark.parametrize(
    ("username", "password", "expected"),
    [
        pytest.param(TOKEN, TOKEN, ACCEPTED, id="token"),
        pytest.param("apikey", SECRETS["sendgrid"], ACCEPTED, id="login"),
        pytest.param("anybody at all", SECRETS["mandrill"], ACCEPTED, id="login-of-any-user"),
        pytest.param("", SECRETS["mandrill"], ACCEPTED, id="login-without-user"),
        pytest.param("ünïcode", SECRETS["mandrill"], ACCEPTED, id="login-of-user-outside-ascii"),
        pytest.param("billing", TOKEN, FAILED, id="name-of-the-token"),
        pytest.param(TOKEN, SECRETS["wrong"], FAILED, id="wrong-password"),
        pytest.param("apikey", SECRETS["mandrill"] + "x", FAILED, id="longer-password"),
        pytest.param("root", SECRETS["sendgrid"], FAILED, id="wrong-user"),
        pytest.param("", "", FAILED, id="nothing"),
    ],
)
def test_credentials_decide_and_the_session_goes_on(here: Site, username: str, password: str, expected: str) -> None:
    """What fits lets in, what does not is answered 535, and the client may try again."""
    with here.client() as client:
        assert client.say(f"AUTH PLAIN {plain(username, password)}") == expected
        if expected == FAILED:
            assert client.say("MAIL FROM:<app@example.com>") == AUTH_FIRST
            assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}") == ACCEPTED
        assert client.data(MESSAGE) == QUEUED


def test_provider_of_the_login_decides_which_field_counts(here: Site) -> None:
    """In a message with fields of two providers, those of the login's provider win, wherever they stand."""
    message = b"X-Mailgun-Tag: of mailgun\r\nX-MC-Tags: of mandrill\r\nSubject: x\r\n\r\nbody\r\n.\r\n"
    with here.client() as client:
        assert client.say(f"AUTH PLAIN {plain('me', SECRETS['mandrill'])}") == ACCEPTED
        assert client.data(message) == QUEUED
    assert here.header() == b"X-Cmail-GroupName: of mandrill\r\nSubject: x\r\n"


def test_discard_login_is_answered_as_sent_and_nothing_is(here: Site) -> None:
    """The old provider's test credentials work, the reply and the log say that nothing was sent, and nothing was."""
    before = len(here.commands())
    with here.client() as client:
        assert client.say(f"AUTH PLAIN {plain('POSTMARK_API_TEST', 'POSTMARK_API_TEST')}") == ACCEPTED
        assert client.say("MAIL FROM:<app@example.com>") == "250 2.1.0 OK"
        assert client.say("RCPT TO:<ann@example.net>") == "250 2.1.5 OK"
        assert client.say("DATA") == START_MAIL
        client.send(MESSAGE)
        assert client.reply() == "250 2.0.0 Discarded and not sent: login tests is for tests"
        assert client.say("QUIT") == "221 2.0.0 Bye"
    assert len(here.commands()) == before
    assert here.upstream.taken == []
    assert here.line(login="tests")["outcome"] == "discarded"


def test_discard_login_works_while_the_platform_is_down(tmp_path: Path) -> None:
    """Test mode needs no platform; every other login hears of its absence as 451."""
    with (
        nobody() as closed_port,
        site(
            tmp_path,
            relay={"port": closed_port},
            listeners=[listener()],
            tokens=[{"name": "billing", "token": TOKEN}],
            logins=[{"name": "tests", "username": "t", "password": "t-password", "discard": True}],
        ) as here,
    ):
        with here.client() as client:
            assert client.say(f"AUTH PLAIN {plain('t', 't-password')}") == ACCEPTED
            assert client.data(MESSAGE) == "250 2.0.0 Discarded and not sent: login tests is for tests"
        with here.client() as client:
            assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}") == ACCEPTED
            expected = "451 4.4.1 The next hop cannot be reached at the moment, try again later"
            assert client.say("MAIL FROM:<app@example.com>") == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param(["AUTH PLAIN ###"], NO_BASE64, id="plain-not-base64"),
        pytest.param(["AUTH PLAIN abc"], NO_BASE64, id="plain-padding"),
        pytest.param(["AUTH PLAIN " + base64_of("no parts")], NO_BASE64, id="plain-without-parts"),
        pytest.param(["AUTH PLAIN " + base64_of("\0a\0b\0c")], NO_BASE64, id="plain-with-too-many-parts"),
        pytest.param(["AUTH PLAIN /w=="], NO_BASE64, id="plain-not-utf8"),
        pytest.param(["AUTH PLAIN ="], NO_BASE64, id="plain-empty-initial-response"),
        pytest.param(["AUTH PLAIN", "###"], NO_BASE64, id="plain-answer-not-base64"),
        pytest.param(["AUTH PLAIN", "*"], CANCELLED, id="plain-cancelled"),
        pytest.param(["AUTH LOGIN", "*"], CANCELLED, id="login-cancelled"),
        pytest.param(["AUTH LOGIN", base64_of("apikey"), "*"], CANCELLED, id="login-cancelled-at-the-password"),
        pytest.param(["AUTH LOGIN", "???"], NO_BASE64, id="login-user-not-base64"),
        pytest.param(["AUTH LOGIN", base64_of("apikey"), "???"], NO_BASE64, id="login-password-not-base64"),
        pytest.param(["AUTH"], MECHANISM, id="no-mechanism"),
        pytest.param(["AUTH CRAM-MD5"], MECHANISM, id="other-mechanism"),
        pytest.param(["AUTH XOAUTH2 abc="], MECHANISM, id="other-mechanism-with-response"),
    ],
)
def test_auth_exchange_gone_wrong_ends_it_and_keeps_the_session_in_step(
    here: Site, lines: list[str], expected: str
) -> None:
    """What is no base64, no PLAIN, or cancelled is answered with its code, and the next AUTH is a fresh one."""
    with here.client() as client:
        replies = [client.say(line) for line in lines]
        assert all(reply.startswith("334 ") for reply in replies[:-1])
        assert replies[-1] == expected
        assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}") == ACCEPTED


def test_auth_twice_is_refused(here: Site) -> None:
    """There is one successful AUTH in a session (RFC 4954, 4)."""
    with here.client() as client:
        assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}") == ACCEPTED
        assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}") == AGAIN


def test_auth_in_a_transaction_is_refused(here: Site) -> None:
    """AUTH may not come between MAIL and the end of the message (RFC 4954, 4)."""
    with here.client(OPTIONAL, source="127.0.0.2") as client:
        assert client.say("MAIL FROM:<app@example.com>") == "250 2.1.0 OK"
        assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}") == IN_TRANSACTION
        assert client.say("RSET") == "250 2.0.0 OK"
        assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}") == ACCEPTED


def test_five_failures_end_the_session(here: Site) -> None:
    """The fifth failure closes the connection; each is counted and logged without the secret."""
    refused = here.proxy.metric("cmail_proxy_auth_attempts_total", result="refused")
    lines = len(here.proxy.events("auth_refused"))
    with here.client() as client:
        attempt = f"AUTH PLAIN {plain(SECRETS['wrong'], SECRETS['wrong'])}"
        assert [client.say(attempt) for _ in range(4)] == [FAILED] * 4
        assert client.say(attempt) == TOO_MANY_ERRORS
        assert client.closed()
    assert here.proxy.metric("cmail_proxy_auth_attempts_total", result="refused") == refused + 5
    assert here.proxy.metric("cmail_proxy_sessions_dropped_total", reason="auth_failures") >= 1
    here.proxy.event("auth_refused", lines + 5)


def test_overlong_auth_line_is_refused(here: Site) -> None:
    """A response of 12,288 octets is read, a longer one is not: neither as argument nor as an answer to 334."""
    with here.client() as client:
        assert client.say("AUTH PLAIN " + "A" * 12_260) == NO_BASE64
        assert client.say("AUTH PLAIN " + "A" * 12_400) == TOO_LONG
        assert client.say("AUTH PLAIN") == "334 "
        client.send(b"A" * 200_000)
        assert client.reply() == TOO_LONG
        assert client.closed()


def test_overlong_auth_answer_with_its_line_end_is_refused(here: Site) -> None:
    """It does not matter whether an overlong answer to 334 came in one segment with its line end."""
    with here.client() as client:
        assert client.say("AUTH PLAIN") == "334 "
        assert client.say("A" * 20_000) == TOO_LONG


def test_auth_in_clear_is_not_for_a_listener_that_says_never(here: Site) -> None:
    """`auth_without_tls: never` offers AUTH only inside TLS, answers 538 before it, and counts the attempt."""
    before = here.proxy.metric("cmail_proxy_auth_attempts_total", result="cleartext_refused")
    with here.client(ONLY_TLS) as client:
        assert not [offer for offer in client.ehlo() if offer.startswith("AUTH")]
        assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}") == TLS_FIRST
        assert client.say("AUTH LOGIN") == TLS_FIRST
        assert client.say("MAIL FROM:<app@example.com>") == AUTH_FIRST
        assert client.say("STARTTLS") == GO_AHEAD
        client.start_tls(trusting())
        assert "AUTH PLAIN LOGIN" in client.ehlo()
        assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}") == ACCEPTED
        assert client.data(MESSAGE) == QUEUED
    assert here.proxy.metric("cmail_proxy_auth_attempts_total", result="cleartext_refused") == before + 2


def test_auth_in_clear_where_always_allowed_works(here: Site) -> None:
    """`auth_without_tls: always` offers AUTH in clear."""
    with here.client(ALWAYS) as client:
        assert "AUTH PLAIN LOGIN" in client.ehlo()
        assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}") == ACCEPTED


def test_auth_optional_lets_the_network_send_and_others_log_in(here: Site) -> None:
    """With `auth: optional` the allowed network sends as it is; everybody else has to log in."""
    with here.client(OPTIONAL, source="127.0.0.2") as client:
        assert client.data(MESSAGE) == QUEUED
    with here.client(OPTIONAL) as client:
        assert client.say("MAIL FROM:<app@example.com>") == AUTH_FIRST
        assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}") == ACCEPTED
        assert client.data(MESSAGE) == QUEUED


def test_networks_that_may_send_without_auth_are_told_from_others(here: Site) -> None:
    """With `auth: none`, a client from elsewhere is refused for good, and AUTH is not offered."""
    refused = "550 5.7.1 Sending from this network is not allowed without authentication"
    with here.client(NETWORK, source="127.0.0.2") as client:
        assert not [offer for offer in client.ehlo() if offer.startswith("AUTH")]
        assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}") == "503 5.5.1 AUTH is not offered here"
        assert client.data(MESSAGE) == QUEUED
    for index in (NETWORK, OTHER_NETWORK):
        with here.client(index) as client:
            assert client.say("MAIL FROM:<app@example.com>") == refused


def test_smtplib_logs_in_by_each_mechanism(here: Site) -> None:
    """A real client's login works by PLAIN and by LOGIN."""
    for mechanism in ("auth_plain", "auth_login"):
        with smtplib.SMTP("127.0.0.1", here.port, timeout=WAIT_SECONDS) as client:
            client.ehlo()
            client.user = client.password = TOKEN
            name = mechanism.removeprefix("auth_").upper()
            assert client.auth(name, getattr(client, mechanism))[0] == 235


def token(here: Site, *arguments: str) -> str:
    """Run ``cmail-proxy token`` beside the server."""
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "token", arguments[0], "--config", str(here.proxy.config), *arguments[1:]],
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_SECONDS,
    )
    return done.stdout.strip()


def test_issued_token_works_within_seconds_and_stops_when_revoked(here: Site) -> None:
    """The command line issues and revokes tokens while the server runs; no restart is needed."""

    def log_in(secret: str) -> str:
        with here.client() as client:
            return client.say(f"AUTH PLAIN {plain(secret, secret)}")

    def until(expected: str) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while (reply := log_in(issued)) != expected:
            assert time.monotonic() < end, reply

    issued = token(here, "add", "cron")
    until(ACCEPTED)
    assert token(here, "list").split("\t")[0] == "cron"
    with here.client() as client:
        assert client.say(f"AUTH PLAIN {plain(issued, issued)}") == ACCEPTED
        assert client.data(MESSAGE) == QUEUED
    assert [line["login"] for line in here.lines()] == ["cron"]
    assert token(here, "revoke", "cron") == "revoked: cron"
    until(FAILED)
    assert issued not in here.proxy.log_file.read_text("utf-8")


OFF_LOOPBACK = """
import fcntl, json, socket, struct, sys
from pathlib import Path
sys.path.insert(0, ".")
from tests.smtp_in.dialogue import plain
from tests.support.proxy_process import ProxyProcess

with socket.socket() as any_socket:  # this network namespace is new: nothing in it is up
    for name, address in (("lo", None), ("lo:1", "192.0.2.7")):
        if address:
            request = struct.pack("16sH2s4s8s", name.encode(), socket.AF_INET, bytes(2), socket.inet_aton(address), b"")
            fcntl.ioctl(any_socket, 0x8916, request)  # SIOCSIFADDR
        else:
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14s", name.encode(), 0x41, b""))  # SIOCSIFFLAGS
values, folder, token = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
heard = []
with ProxyProcess(folder, values) as proxy:
    for port in proxy.ports:
        with socket.create_connection(("192.0.2.7", port), timeout=20) as client, client.makefile("rwb") as file:
            file.readline()
            for line in ("EHLO app", f"AUTH PLAIN {plain(token, token)}", "MAIL FROM:<a@example.com>"):
                file.write(line.encode() + b"\\r\\n")
                file.flush()
                while (reply := file.readline())[3:4] == b"-":
                    if reply[4:8] == b"AUTH":
                        heard.append("offered")
                heard.append(reply.decode().rstrip())
print(json.dumps(heard))
"""


def test_auth_in_clear_from_another_machine_is_refused_by_default(tmp_path: Path) -> None:
    """Off loopback a password in clear is neither offered nor taken, unless the setting says `always`."""
    unshare = shutil.which("unshare")
    prefix = [unshare or "", "--net", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    if unshare is None or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here")
    base = {"address": "192.0.2.7", "port": 0, "tls": "starttls", "auth": "required"}
    values = settings(
        9,
        data_dir=str(tmp_path / "var"),
        tls={"self_signed": True},
        listeners=[base, {**base, "auth_without_tls": "always"}],
        tokens=[{"name": "billing", "token": TOKEN}],
    )
    done = subprocess.run(
        [*prefix, sys.executable, "-c", OFF_LOOPBACK, json.dumps(values), str(tmp_path / "proxy"), TOKEN],
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    )
    assert done.returncode == 0, done.stderr
    unreachable = "451 4.4.1 The next hop cannot be reached at the moment, try again later"
    hello = "250 STARTTLS"
    assert json.loads(done.stdout) == [hello, TLS_FIRST, AUTH_FIRST, "250 AUTH PLAIN LOGIN", ACCEPTED, unreachable]


def test_silent_wait_for_a_response_is_part_of_the_session(here: Site) -> None:
    """A client that leaves in the middle of AUTH costs nothing."""
    with Client(here.port) as client:
        assert client.say("AUTH LOGIN") == USER
    with here.client() as client:
        assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}") == ACCEPTED
