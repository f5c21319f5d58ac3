"""`cmail-proxy send-test`: one message by SMTP as an app sends it, and what is said where it fails."""

import base64
import email
import email.policy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from attrs import frozen
from click.testing import CliRunner

from proxy.cli import main
from tests.operation.program import MODULE, eventually, free_port, run
from tests.support.proxy_process import TOKEN, ProxyProcess, settings
from tests.support.upstream import CLOSE, EXTENSIONS, STALL, Reply, Upstream

ADDRESSES = ("--from", "app@example.com", "--to", "ann@example.net")
LOCAL, IMPLICIT, POSTMARK = range(3)
"""Listeners of the proxy below; the apps of the third were Postmark's."""
FAR = (
    sys.executable,
    "-c",
    "from proxy import cli, cli_send; cli_send._is_local = lambda client: False; cli.main()",
)
"""The program, for which the server on loopback is one on a network."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The platform."""
    with Upstream() as server:
        yield server


@pytest.fixture(scope="module")
def proxy(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """A proxy that wants a login and TLS; the token of the test is in its environment, too, and disturbs nothing."""
    listener = {"address": "127.0.0.1", "port": 0, "auth_without_tls": "never"}
    values = settings(
        upstream.port,
        listeners=[
            {**listener, "tls": "starttls"},
            {**listener, "tls": "implicit"},
            {**listener, "provider": "postmark"},
        ],
        tls={"self_signed": True, "names": ["localhost"]},
        tokens=[{"name": "shop", "token": TOKEN}],
    )
    environ = {"CMAIL_PROXY_TEST_TOKEN": TOKEN}
    with ProxyProcess(tmp_path_factory.mktemp("proxy"), values, environ) as process:
        yield process


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """The token, in a file as a mounted Secret has it."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n", "utf-8")
    return file


@frozen
class Done:
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


def send(
    port: int, *arguments: str | Path, environ: dict[str, str] | None = None, command: tuple[str, ...] | None = None
) -> Done:
    """
    Send a test message to a port here, and hold that the token is not shown.

    Args:
        command: To run in a process of its own; else it runs in this one, which takes no time to start.
    """
    line = ["send-test", "--server", f"127.0.0.1:{port}", *map(str, arguments)]
    if command is None:
        result = CliRunner(env={"CMAIL_PROXY_TEST_TOKEN": None, **(environ or {})}).invoke(main, line)
        done = Done(result.exit_code, result.stdout, result.stderr)
    else:
        process = run(*line, environ=environ, command=command)
        done = Done(process.returncode, process.stdout.decode(), process.stderr.decode())
    assert TOKEN not in done.stdout + done.stderr
    assert base64.b64encode(f"\0{TOKEN}\0{TOKEN}".encode()).decode() not in done.stdout + done.stderr
    return done


def told(done: Done, port: int) -> str:
    """The problem that ended the program."""
    assert done.returncode == 1, done.stdout
    error, count = done.stderr.splitlines()[-2:]
    assert count == "cmail-proxy: 1 problem"
    return error.removeprefix(f"error: 127.0.0.1:{port}: ")


# Through the proxy


def test_message_goes_through_the_proxy_translated(proxy: ProxyProcess, upstream: Upstream, token_file: Path) -> None:
    """With a token and a provider's field the platform has the translated message, and the dialogue is shown."""
    upstream.taken.clear()
    done = send(proxy.port, "--token-file", token_file, *ADDRESSES, "--field", "X-Mailgun-Tag: welcome", command=MODULE)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"connecting to 127.0.0.1:{proxy.port}"
    assert (
        "encrypted: TLSv1.3; certificate not checked, since the server is on this machine; --ca-file checks it" in lines
    )
    said = [line for line in lines if line.startswith(">")]
    assert [line for line in said if "octets" not in line] == [
        *("> EHLO [127.0.0.1]", "> STARTTLS", "> EHLO [127.0.0.1]", "> AUTH PLAIN ***"),
        *("> MAIL FROM:<app@example.com>", "> RCPT TO:<ann@example.net>"),
    ]
    assert "< 235 2.7.0 Authentication succeeded" in lines
    assert lines[-2:] == ["< 250 2.0.0 queued as PLATFORM1", "sent: 250 2.0.0 queued as PLATFORM1"]
    (taken,) = upstream.taken
    assert (taken.mail.split()[1], taken.recipients) == ("FROM:<app@example.com>", ["RCPT TO:<ann@example.net>"])
    for line in (b"From: app@example.com", b"To: ann@example.net", b"X-Cmail-GroupName: welcome"):
        assert b"\r\n" + line + b"\r\n" in taken.content
    assert b"X-Mailgun" not in taken.content


def test_discard_sends_nothing(proxy: ProxyProcess, upstream: Upstream) -> None:
    """The message is translated, answered 250 and thrown away; the token may come from the environment."""
    upstream.taken.clear()
    done = send(
        proxy.port, "--discard", "--field", "X-MC-Tags: a", environ={"CMAIL_PROXY_TEST_TOKEN": TOKEN}, command=MODULE
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == (
        "discarded: 250 2.0.0 Discarded and not sent: X-Mailgun-Drop-Message (test mode that delivers nothing)"
    )
    assert upstream.taken == []
    line = {"outcome": "discarded", "login": "shop", "group": "a", "reverse_path": "sender@example.com"}
    eventually(lambda: any(line.items() <= each.items() for each in proxy.events("message")), "the line of the message")


def test_discard_that_was_passed_on_is_a_failure(tmp_path: Path, upstream: Upstream) -> None:
    """Where the rule for the test mode is not in force, nobody is told that nothing was sent."""
    upstream.taken.clear()
    values = settings(upstream.port, rules={"providers": ["postmark"]})
    with ProxyProcess(tmp_path, values) as proxy:
        done = send(proxy.port, "--discard")
    assert told(done, proxy.port) == (
        "DATA: found '250 2.0.0 queued as PLATFORM1', so it was passed on; expected 'Discarded and not sent' "
        "(X-Mailgun-Drop-Message means nothing there: name mailgun in rules.providers, and set no rules.strip: none)"
    )
    assert len(upstream.taken) == 1


def test_discard_where_another_provider_is_named_says_so(
    proxy: ProxyProcess, upstream: Upstream, token_file: Path
) -> None:
    """A listener of another provider refuses the test mode; the hint says why."""
    upstream.taken.clear()
    done = send(proxy.ports[POSTMARK], "--discard", "--token-file", token_file)
    error = told(done, proxy.ports[POSTMARK])
    assert error.startswith("DATA: found '554 5.6.0 ")
    assert error.endswith(
        "; expected 250 (a login or listener of another provider refuses X-Mailgun-Drop-Message; "
        "the log of the server says more)"
    )
    assert upstream.taken == []


def test_value_that_is_not_ascii_and_a_field_of_ours_can_be_given(
    proxy: ProxyProcess, upstream: Upstream, token_file: Path
) -> None:
    """A group name in any language arrives; a Subject that was given stands instead of ours."""
    upstream.taken.clear()
    fields = ("--field", "X-PM-Tag: Grüße aus Köln", "--field", "Subject: hello")
    done = send(proxy.port, "--token-file", token_file, *ADDRESSES, *fields)
    assert done.returncode == 0, done.stderr
    content = upstream.taken[0].content
    assert content.lower().count(b"\r\nsubject:") == 1
    assert b"\r\nSubject: hello\r\n" in content
    assert email.message_from_bytes(content, policy=email.policy.default)["X-Cmail-GroupName"] == "Grüße aus Köln"


def test_login_with_a_user_name_is_used(tmp_path: Path, upstream: Upstream) -> None:
    """A login that an app has for its old provider works as it does for the app."""
    (tmp_path / "password").write_text("old-key-1234", "utf-8")
    login = {"name": "wiki", "username": "apikey", "password": "old-key-1234", "provider": "sendgrid"}
    values = settings(upstream.port, listeners=[{"port": 0, "tls": "none"}], logins=[login])
    with ProxyProcess(tmp_path / "proxy", values) as proxy:
        done = send(proxy.port, *ADDRESSES, "--username", "apikey", "--password-file", tmp_path / "password")
        assert done.returncode == 0, done.stderr
        assert "not encrypted: STARTTLS is not offered" in done.stdout.splitlines()
        assert "old-key-1234" not in done.stdout + done.stderr
        assert proxy.event("message")["login"] == "wiki"


# Certificates


def test_certificate_is_checked_with_its_authority(proxy: ProxyProcess, token_file: Path) -> None:
    """With --ca-file it is checked on this machine, too; by STARTTLS and with TLS from the first octet."""
    authority = proxy.folder / "var" / "tls" / "ca.pem"
    for index, tls in ((LOCAL, "starttls"), (IMPLICIT, "implicit")):
        server = f"localhost:{proxy.ports[index]}"
        arguments = ("--server", server, "--tls", tls, "--ca-file", authority, "--token-file", token_file, "--discard")
        done = run("send-test", *arguments)
        assert done.returncode == 0, done.stderr
        assert "encrypted: TLSv1.3; certificate checked" in done.stdout.decode().splitlines()


def test_certificate_of_somebody_else_gets_no_login(proxy: ProxyProcess, tmp_path: Path, token_file: Path) -> None:
    """Where the authority is another one nothing is sent, and the error says what to do."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    done = send(proxy.port, "--ca-file", tmp_path / "other.pem", "--token-file", token_file, "--discard")
    error = told(done, proxy.port)
    assert error.startswith("STARTTLS: found a certificate that cannot be trusted: ")
    assert error.endswith("; expected a valid one (--ca-file with tls/ca.pem of data_dir where tls.self_signed is set; "
                          "--insecure takes any)")  # fmt: skip
    assert "AUTH PLAIN ***" not in done.stdout


def test_certificate_off_this_machine_is_checked_unless_asked_otherwise(proxy: ProxyProcess, token_file: Path) -> None:
    """On a network a certificate made here is not trusted; --insecure takes it with a remark."""
    arguments = ("--token-file", token_file, "--discard")
    done = send(proxy.port, *arguments, command=FAR)
    assert told(done, proxy.port).startswith("STARTTLS: found a certificate that cannot be trusted: ")
    done = send(proxy.port, *arguments, "--insecure", command=FAR)
    assert done.returncode == 0, done.stderr
    assert "; certificate not checked, as --insecure asks: it may be anybody's\n" in done.stdout


def test_login_crosses_no_network_in_clear(tmp_path: Path, token_file: Path) -> None:
    """Without STARTTLS the token stays here, but where --tls none asks for it."""
    with Upstream(extensions=(*EXTENSIONS, "AUTH PLAIN LOGIN")) as server:
        done = send(server.port, *ADDRESSES, "--token-file", token_file, command=FAR)
        assert told(done, server.port) == (
            "AUTH: found no STARTTLS, so that the login would be sent in clear; expected an encrypted connection "
            "(--tls implicit where the port is for that; --tls none sends it in clear)"
        )
        assert server.dialogues[0].count("AUTH") == 0
        done = send(server.port, *ADDRESSES, "--token-file", token_file, "--tls", "none", command=FAR)
        assert (done.returncode, done.stderr) == (0, "warning: the login is sent in clear, as --tls none asks\n")


def test_file_without_certificates_is_told(proxy: ProxyProcess, token_file: Path, tmp_path: Path) -> None:
    """A --ca-file that is none is named."""
    for file in (token_file, tmp_path / "missing"):
        done = send(proxy.port, "--ca-file", file, "--discard")
        error = done.stderr.splitlines()[0]
        assert error.startswith(f"error: --ca-file: found '{file}': ")
        assert error.endswith("; expected certificates in PEM form")
        assert done.returncode == 1


# What fails


def test_wrong_token_is_told_and_not_shown(proxy: ProxyProcess, tmp_path: Path) -> None:
    """The reply is shown, and where to look; the token is not."""
    (tmp_path / "token").write_text("wrong-token-5678", "utf-8")
    done = send(proxy.port, *ADDRESSES, "--token-file", tmp_path / "token")
    assert told(done, proxy.port) == (
        "AUTH: found '535 5.7.8 Credentials not accepted'; expected 235 "
        "(is it one of tokens or logins in the settings, or listed by `cmail-proxy token list`?)"
    )
    assert "wrong-token-5678" not in done.stdout + done.stderr


def test_no_login_where_one_is_needed_is_told(proxy: ProxyProcess) -> None:
    """The hint names the ways to log in."""
    done = send(proxy.port, *ADDRESSES)
    assert told(done, proxy.port) == (
        "MAIL: found '530 5.7.0 Authentication required'; expected 250 "
        "(log in with --token-file, CMAIL_PROXY_TEST_TOKEN, or --username and --password-file; or use TLS)"
    )


def test_no_server_is_told() -> None:
    """Nobody listens there."""
    port = free_port()
    done = send(port, "--discard")
    assert told(done, port).startswith("connecting: found no connection: Connection refused; expected a server that")


def test_platform_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    """451 means what is behind the proxy."""
    with ProxyProcess(tmp_path, settings(free_port())) as proxy:
        done = send(proxy.port, "--discard")
    error = told(done, proxy.port)
    assert error.startswith("MAIL: found '451 4.4.1 The next hop cannot be reached at the moment, try again later'; ")
    assert "what is behind the server cannot be had now" in error


Answers = dict[str, Reply]
OTHERS: dict[str, tuple[Answers, tuple[str, ...], str]] = {
    "no STARTTLS": ({}, ("--tls", "starttls"), "EHLO: found no STARTTLS among what is offered; expected STARTTLS ("),
    "no AUTH": ({}, ("--username", "a", "--password-file"), "AUTH: found no AUTH among what is offered; expected "),
    "no TLS": ({}, ("--tls", "implicit"), "connecting: found no TLS: "),
    "greeting": ({"banner": "554 5.3.2 not here"}, (), "connecting: found '554 5.3.2 not here'; expected 220 ("),
    "no SMTP": ({"banner": "HTTP/1.1 400 Bad"}, (), "connecting: found no SMTP reply: '…/1.1 400 Bad'; expected 220 ("),
    "endless": ({"banner": "220 " + "a" * 9000}, (), "connecting: found '(500, 'Line too long.')'; expected a reply ("),
    "recipient": ({"RCPT": "550-5.1.1 nobody\n550 5.1.1 here"}, (), "RCPT: found '550 5.1.1 here'; expected 250 ("),
    "DATA": ({"DATA": "554 5.5.1 no"}, (), "DATA: found '554 5.5.1 no'; expected 354 ("),
    "the dot": ({"dot": "552 5.3.4 large"}, (), "DATA: found '552 5.3.4 large'; expected 250 ("),
    "closed": ({"MAIL": CLOSE}, (), "MAIL: found an end of the connection; expected a reply ("),
    "silent": ({"banner": STALL}, ("--timeout", "1"), "connecting: found silence for 1 s; expected a reply ("),
}


@pytest.mark.parametrize("what", OTHERS)
def test_server_that_does_otherwise_is_told(what: str, token_file: Path) -> None:
    """Whatever a server does instead of taking the message ends with 1 and a line that says where and what."""
    replies, arguments, error = OTHERS[what]
    if "--password-file" in arguments:
        arguments = (*arguments, str(token_file))
    with Upstream(replies) as server:
        done = send(server.port, *ADDRESSES, *arguments)
        assert told(done, server.port).startswith(error)
        assert len(server.taken) == (what == "the dot")


def test_replies_are_shown_without_secrets_and_control_characters(token_file: Path) -> None:
    """A server that writes back what it heard, or tries to write on the terminal, does not get through."""
    initial = base64.b64encode(f"\0{TOKEN}\0{TOKEN}".encode()).decode()
    reply = f"535 5.7.8 no {TOKEN} \x1b[31m{initial}\x07"
    with Upstream({"AUTH": reply}, extensions=("AUTH PLAIN",)) as server:
        done = send(server.port, *ADDRESSES, "--token-file", token_file)
    assert "< 535 5.7.8 no *** \ufffd[31m***\ufffd\n" in done.stdout
    assert told(done, server.port).startswith("AUTH: found '535 5.7.8 no *** \ufffd[31m***\ufffd'; expected 235 (")


def test_recipients_are_all_or_none() -> None:
    """One that is refused ends it before DATA."""
    with Upstream({"RCPT": lambda line: "550 5.1.1 nobody" if "bob" in line else "250 2.1.5 fine"}) as server:
        done = send(server.port, *ADDRESSES, "--to", "bob@example.net")
        assert told(done, server.port).startswith("RCPT: found '550 5.1.1 nobody'; expected 250")
        server.wait_for(lambda: server.dialogues[0].closed)
        assert (server.dialogues[0].count("RCPT"), server.dialogues[0].count("DATA")) == (2, 0)


def test_secret_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """The words are those of the settings."""
    done = send(free_port(), "--discard", "--token-file", tmp_path / "missing")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == (
        f"error: --token-file: found '{tmp_path}/missing', which cannot be read: No such file or directory; "
        "expected a file that holds the secret and nothing else"
    )


# Usage


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "give --from and --to, addresses that may really send and get mail; or --discard"),
        (["--from", "app@example.com"], "give --from and --to, "),
        (["--discard", "--ca-file", "a", "--insecure"], "give --ca-file or --insecure"),
        (["--discard", "--username", "a"], "--username and --password-file go together"),
        (["--discard", "--token-file", "a", "--username", "b"], "give --token-file, or --username and --password-file"),
        (["--discard", "--to", "ann@example.net>\r\nRCPT TO:<bob@example.net"], "'--to': found 'ann@example.net>"),
        (["--discard", "--from", "app"], "'--from': found 'app'; expected a mail address in ASCII, such as ann@"),
        (
            ["--discard", "--field", "X-Tag welcome"],
            "'--field': found 'X-Tag welcome'; expected NAME: VALUE on one line",
        ),
        (["--discard", "--field", "X-Tag: a\r\nBcc: b"], "'--field': found 'X-Tag: a\\r\\nBcc: b'; expected NAME: "),
        (
            ["--discard", "--field", "X-Tag: " + "a" * 1000],
            "'--field': X-Tag: found 1000 characters; expected a line of",
        ),
        (["--discard", "--server", "a:b"], "'--server': found 'a:b'; expected HOST or HOST:PORT, "),
        (["--discard", "--server", "a:65536"], "'--server': found 'a:65536'; "),
        (["--discard", "--server", ":25"], "'--server': found ':25'; "),
        (["--discard", "--tls", "perhaps"], "'--tls': 'perhaps' is not one of "),
    ],
    ids=lambda value: " ".join(value)[:40].strip() if isinstance(value, list) else "",
)
def test_wrong_usage_is_told_with_exit_code_2(arguments: list[str], error: str) -> None:
    """Nothing is sent, and the option is named."""
    done = CliRunner().invoke(main, ["send-test", *arguments])
    assert done.exit_code == 2
    assert error in " ".join(done.stderr.split("Error: ")[-1].split("\n"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [("[::1]:1", "[::1]:1"), ("::1", "[::1]:2525"), ("[::1]", "[::1]:2525"), ("127.0.0.2", "127.0.0.2:2525")],
)
def test_server_may_be_an_address_of_either_kind(text: str, shown: str) -> None:
    """An IPv6 address needs brackets only before a port; without a port it is the proxy's own."""
    done = CliRunner().invoke(main, ["send-test", "--discard", "--server", text])
    assert done.stdout.splitlines()[0] == f"connecting to {shown}"
