"""Clients that people really use send through the proxy, in clear and by TLS, with and without AUTH."""

import asyncio
import json
import smtplib
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

import aiosmtplib
import pytest

from tests.conftest import require_node_module, require_tool
from tests.smtp_in.dialogue import trusting
from tests.smtp_in.site import Site, site
from tests.support.proxy_process import TOKEN, WAIT_SECONDS

OPEN, WITH_AUTH, IMPLICIT, AUTO = range(4)
"""Listeners of the shared proxy, by their place in the settings."""


@dataclass(frozen=True)
class Mode:
    """A way to send: which listener, and what the client does there."""

    name: str
    listener: int
    starttls: bool = False
    implicit: bool = False
    auth: str = ""

    @property
    def protocol(self) -> str:
        """What our Received field must say."""
        return "ESMTP" + "S" * (self.starttls or self.implicit) + "A" * bool(self.auth)


MODES = [
    Mode("clear", OPEN),
    Mode("starttls", OPEN, starttls=True),
    Mode("plain", WITH_AUTH, auth="PLAIN"),
    Mode("login", WITH_AUTH, auth="LOGIN"),
    Mode("starttls-plain", WITH_AUTH, starttls=True, auth="PLAIN"),
    Mode("starttls-login", WITH_AUTH, starttls=True, auth="LOGIN"),
    Mode("implicit-plain", IMPLICIT, implicit=True, auth="PLAIN"),
    Mode("auto-plain", AUTO, implicit=True, auth="PLAIN"),
]

PROVIDERS = {
    "mailgun": {"X-Mailgun-Tag": "welcome", "X-Mailgun-Track-Opens": "no"},
    "mailjet": {"X-Mailjet-Campaign": "welcome", "X-Mailjet-TrackOpen": "0"},
    "mandrill": {"X-MC-Tags": "welcome,other", "X-MC-Track": "clicks_all"},
    "postmark": {"X-PM-Tag": "welcome", "X-PM-TrackOpens": "false"},
    "sendgrid": {
        "X-SMTPAPI": '{"category": ["welcome"], "filters": {"opentrack": {"settings": {"enable": 0}}}}',
    },
}
"""What an app sets for each provider: group ``welcome`` and no tracking of opens."""

Send = Callable[[Site, Mode, dict[str, str]], None]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy for all clients, with a certificate they can check."""
    base = {"address": "127.0.0.1", "port": 0, "auth": "required"}
    with site(
        tmp_path_factory.mktemp("clients"),
        tls={"self_signed": True},
        listeners=[
            {**base, "tls": "starttls", "auth": "none"},
            {**base, "tls": "starttls"},
            {**base, "tls": "implicit"},
            {**base, "tls": "auto"},
        ],
        tokens=[{"name": "app", "token": TOKEN}],
    ) as started:
        yield started


@pytest.fixture
def here(shared: Site) -> Site:
    """The shared proxy, with nothing received."""
    shared.forget()
    return shared


def ca_file(here: Site) -> Path:
    """What the clients trust."""
    return here.proxy.folder / "var" / "tls" / "ca.pem"


def message_with(fields: dict[str, str]) -> EmailMessage:
    """A message as an app makes it."""
    message = EmailMessage()
    message["From"] = "App <app@example.com>"
    message["To"] = "Ann <ann@example.net>"
    message["Subject"] = "Welcome"
    for name, value in fields.items():
        message[name] = value
    message.set_content("Hello Ann,\n\n.hidden dot\n.\nwelcome.\n")
    return message


def run(command: list[str], given: bytes = b"") -> str:
    """Run a client to its good end."""
    done = subprocess.run(command, input=given, capture_output=True, check=False, timeout=WAIT_SECONDS)
    assert done.returncode == 0, (done.stdout + done.stderr).decode("utf-8", "replace")
    return done.stdout.decode("utf-8", "replace")


def by_smtplib(here: Site, mode: Mode, fields: dict[str, str]) -> None:
    """Python's own client."""
    context = trusting(str(ca_file(here)))
    port = here.ports[mode.listener]
    client = (
        smtplib.SMTP_SSL("127.0.0.1", port, timeout=WAIT_SECONDS, context=context)
        if mode.implicit
        else smtplib.SMTP("127.0.0.1", port, timeout=WAIT_SECONDS)
    )
    with client:
        if mode.starttls:
            client.starttls(context=context)
        if mode.auth:
            client.ehlo()
            client.user = client.password = TOKEN
            client.auth(mode.auth, {"PLAIN": client.auth_plain, "LOGIN": client.auth_login}[mode.auth])
        assert client.send_message(message_with(fields)) == {}


def by_aiosmtplib(here: Site, mode: Mode, fields: dict[str, str]) -> None:
    """The asyncio client."""
    context = ssl.create_default_context(cafile=str(ca_file(here)))

    async def send() -> None:
        client = aiosmtplib.SMTP(
            hostname="127.0.0.1",
            port=here.ports[mode.listener],
            use_tls=mode.implicit,
            start_tls=mode.starttls,
            tls_context=context,
            timeout=WAIT_SECONDS,
        )
        async with client:
            await client.ehlo()
            if mode.auth == "PLAIN":
                await client.auth_plain(TOKEN, TOKEN)
            elif mode.auth == "LOGIN":
                await client.auth_login(TOKEN, TOKEN)
            refused, reply = await client.send_message(message_with(fields))
            assert refused == {}
            assert reply == "2.0.0 queued as PLATFORM1"

    asyncio.run(send())


def by_nodemailer(here: Site, mode: Mode, fields: dict[str, str]) -> None:
    """The client of most Node apps."""
    folder = require_node_module("nodemailer")
    transport: dict[str, object] = {
        "host": "127.0.0.1",
        "port": here.ports[mode.listener],
        "secure": mode.implicit,
        "tls": {"ca": ca_file(here).read_text("ascii")},
    }
    if not mode.implicit:
        transport["requireTLS" if mode.starttls else "ignoreTLS"] = True
    if mode.auth:
        transport |= {"auth": {"user": TOKEN, "pass": TOKEN}, "authMethod": mode.auth}
    message = message_with(fields)
    mail = {
        "from": message["From"],
        "to": message["To"],
        "subject": "Welcome",
        "text": message.get_content(),
        "headers": {name: {"prepared": True, "value": value} for name, value in fields.items()},
    }
    given = json.dumps({"transport": transport, "messages": [mail]}).encode()
    assert run([require_tool("node"), str(folder / "send.mjs")], given) == "250 2.0.0 queued as PLATFORM1\n"


def swaks(here: Site, mode: Mode, fields: dict[str, str], *more: str) -> str:
    """Run the testers' client, and give its transcript."""
    command = [require_tool("swaks"), "--server", "127.0.0.1", "--port", str(here.ports[mode.listener])]
    command += [
        "--from",
        "app@example.com",
        "--to",
        "ann@example.net",
        "--helo",
        "app.example.com",
        "--data",
        "-",
        *more,
    ]
    if mode.starttls or mode.implicit:
        command += [
            "--tls" if mode.starttls else "--tls-on-connect",
            "--tls-verify",
            "--tls-ca-path",
            str(ca_file(here)),
        ]
    if mode.auth:
        command += ["--auth", mode.auth, "--auth-user", TOKEN, "--auth-password", TOKEN]
    return run(command, message_with(fields).as_bytes())


def by_swaks(here: Site, mode: Mode, fields: dict[str, str]) -> None:
    """The testers' client, one command at a time."""
    assert "<~  250 2.0.0 queued as PLATFORM1" in swaks(here, mode, fields).replace("<- ", "<~ ")


def by_swaks_in_a_pipeline(here: Site, mode: Mode, fields: dict[str, str]) -> None:
    """The testers' client, with PIPELINING."""
    transcript = swaks(here, mode, fields, "--pipeline").replace("~>", "->")
    sent = [line[4:8] for line in transcript.splitlines() if line.startswith(" -> ")]
    assert [verb for verb in sent if verb in ("MAIL", "RCPT", "DATA")] == ["MAIL", "RCPT", "DATA"]
    mail = transcript.index(" -> MAIL")
    assert "<" not in transcript[mail : transcript.index(" -> DATA")].replace("<app@example.com>", "").replace(
        "<ann@example.net>", ""
    )  # no reply between them


def by_curl(here: Site, mode: Mode, fields: dict[str, str]) -> None:
    """curl, as shell scripts send mail."""
    scheme = "smtps" if mode.implicit else "smtp"
    command = [require_tool("curl"), "--silent", "--show-error", "--upload-file", "-"]
    command += ["--url", f"{scheme}://127.0.0.1:{here.ports[mode.listener]}/app.example.com"]
    command += ["--mail-from", "app@example.com", "--mail-rcpt", "ann@example.net", "--crlf"]
    if mode.starttls or mode.implicit:
        command += ["--ssl-reqd", "--cacert", str(ca_file(here))]
    if mode.auth:
        command += ["--user", f"{TOKEN}:{TOKEN}", "--login-options", f"AUTH={mode.auth}"]
    run(command, message_with(fields).as_bytes())


CLIENTS: list[tuple[Send, str]] = [
    (by_smtplib, "mailgun"),
    (by_aiosmtplib, "mandrill"),
    (by_nodemailer, "sendgrid"),
    (by_swaks, "postmark"),
    (by_swaks_in_a_pipeline, "postmark"),
    (by_curl, "mailjet"),
]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize(("send", "provider"), CLIENTS, ids=[each.__name__ for each, _ in CLIENTS])
def test_client_sends_and_the_platform_gets_it_translated(here: Site, send: Send, provider: str, mode: Mode) -> None:
    """The app's message arrives once, with the X-Cmail fields in place of the provider's, and its text unchanged."""
    send(here, mode, PROVIDERS[provider])
    (taken,) = here.upstream.taken
    assert taken.mail.split(" ")[1] == "FROM:<app@example.com>"
    assert taken.recipients == ["RCPT TO:<ann@example.net>"]
    assert f" with {mode.protocol} id ".encode() in taken.content
    header = here.header()
    assert b"X-Cmail-GroupName: welcome\r\nX-Cmail-TrackOpens: false\r\n" in header
    for name in PROVIDERS[provider]:
        assert name.lower() not in header.decode().lower()
    body = taken.content.partition(b"\r\n\r\n")[2]
    assert body.replace(b"\r\n", b"\n").strip() == b"Hello Ann,\n\n.hidden dot\n.\nwelcome."


def test_nodemailer_pool_sends_many_on_one_connection(here: Site) -> None:
    """A pooled transport sends one message after the other; each is translated by itself."""
    folder = require_node_module("nodemailer")
    transport = {"host": "127.0.0.1", "port": here.port, "pool": True, "maxConnections": 1, "ignoreTLS": True}
    messages = [
        {
            "from": "app@example.com",
            "to": "ann@example.net",
            "subject": f"{index}",
            "text": "hi",
            "headers": {"X-MC-Tags": f"tag {index}"},
        }
        for index in range(10)
    ]
    given = json.dumps({"transport": transport, "messages": messages}).encode()
    run([require_tool("node"), str(folder / "send.mjs")], given)
    groups = [line["group"] for line in here.lines()]
    assert groups == [f"tag {index}" for index in range(10)]
    assert len({line["session"] for line in here.lines()}) == 1


def test_refusal_reaches_the_caller_of_each_client(here: Site) -> None:
    """What cannot be translated is refused, and the app hears why in its own library's error."""
    fields = {"X-MC-Template": "welcome"}
    reason = "5.6.0 No counterpart here for X-MC-Template (lost: layout of the stored template); not sent"
    with smtplib.SMTP("127.0.0.1", here.port, timeout=WAIT_SECONDS) as client:
        with pytest.raises(smtplib.SMTPDataError) as told:
            client.send_message(message_with(fields))
        assert told.value.smtp_code == 554
        assert isinstance(told.value.smtp_error, bytes)
        assert told.value.smtp_error.decode() == reason
    with pytest.raises(aiosmtplib.SMTPDataError) as told_async:
        asyncio.run(
            aiosmtplib.send(message_with(fields), hostname="127.0.0.1", port=here.port, start_tls=False, timeout=20)
        )
    assert told_async.value.code == 554
    assert told_async.value.message == reason
    assert here.upstream.taken == []


def test_wrong_password_reaches_the_caller_of_each_client(here: Site) -> None:
    """A wrong token is an authentication error in the app's own library."""
    port = here.ports[WITH_AUTH]
    with smtplib.SMTP("127.0.0.1", port, timeout=WAIT_SECONDS) as client:
        with pytest.raises(smtplib.SMTPAuthenticationError) as told:
            client.login("wrong", "wrong")
        assert told.value.smtp_code == 535
    command = [require_tool("curl"), "--silent", "--url", f"smtp://127.0.0.1:{port}", "--user", "wrong:wrong"]
    command += ["--mail-from", "app@example.com", "--mail-rcpt", "ann@example.net", "--upload-file", "-"]
    done = subprocess.run(command, input=b"Subject: x\n\n", capture_output=True, check=False, timeout=WAIT_SECONDS)
    assert done.returncode == 67  # CURLE_LOGIN_DENIED
    assert here.upstream.taken == []
