"""
The command that sends one test message by SMTP, as an app would, and shows what the server says.

For operators where no mail client is at hand, and for checks of a whole installation.

Trust: the server may be anybody. Its replies are shown without control characters and without the secret of the login,
which crosses a network only encrypted, unless it is asked otherwise.
"""

import base64
import contextlib
import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from attrs import field, frozen

from proxy.cli_common import fail
from proxy.problems import Problem, ProblemsError
from proxy.settings import EXPECTED_IN_FILE, TEST_TOKEN_VARIABLE, Secret, read_secret

if TYPE_CHECKING:
    import smtplib
    import ssl

DEFAULT_PORT = 2525
DISCARD = ("X-Mailgun-Drop-Message", "yes")
"""The test mode of a provider, for which a rule is shipped: translated, then answered 250 and not sent."""
DISCARDED = "Discarded and not sent"
"""How the proxy says that it did so."""

_MAX_LINE_OCTETS = 998  # RFC 5322, 2.1.1
_NAME = re.compile(r"[!-9;-~]+")  # RFC 5322, 3.6.8
_ADDRESS = re.compile(r"[!-;=?-~]+@[!-;=?-~]+")  # what may stand between < and > of MAIL and RCPT, more or less
_BODY = "This is a test message of cmail-proxy.\r\nIf you can read it, it was taken and passed on.\r\n"


@frozen
class Server:
    """Where to send to: a host name or an IP address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen
class Login:
    """A user name, which may be as secret as the password."""

    username: Secret
    password: Secret

    @property
    def plain(self) -> str:
        """The initial response of AUTH PLAIN (RFC 4616)."""
        return base64.b64encode(f"\0{self.username.reveal()}\0{self.password.reveal()}".encode()).decode("ascii")


@frozen
class Errand:
    """
    What is to be done.

    Args:
        tls: ``auto``: STARTTLS where it is offered. ``starttls``: or nothing. ``implicit``: from the first octet.
        ca_file: Authorities to trust instead of the system's.
        insecure: Whether any certificate will do.
        fields: More fields of the message, name and value.
        discard: Whether the proxy is to throw the message away at the end.
        timeout: For each wait for the server, in seconds.
    """

    server: Server
    tls: str
    ca_file: Path | None
    insecure: bool
    login: Login | None = field(repr=False)
    sender: str
    recipients: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]
    discard: bool
    timeout: int


# What the options mean


def _server(_context: click.Context, _option: click.Parameter, text: str) -> Server:
    bracketed = re.fullmatch(r"\[([^]]+)\](?::([0-9]{1,5}))?", text)
    host, port = bracketed.groups() if bracketed else (text, None)
    if not bracketed and text.count(":") == 1:  # more of them are those of an IPv6 address
        host, _, port = text.partition(":")
    number = int(port) if port is not None and port.isdecimal() else (DEFAULT_PORT if port is None else 0)
    if not host or not host.isascii() or not host.isprintable() or " " in host or not 0 < number < 65536:
        raise click.BadParameter(f"found {text!r}; expected HOST or HOST:PORT, an IPv6 address with a port in brackets")
    return Server(host, number)


def _address(_context: click.Context, _option: click.Parameter, value: Any) -> Any:
    for text in value if isinstance(value, tuple) else (value,):
        if text is not None and not (_ADDRESS.fullmatch(text) and len(text) <= 254):
            raise click.BadParameter(f"found {text!r}; expected a mail address in ASCII, such as ann@example.net")
    return value


def _fields(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    fields = []
    for text in texts:
        name, colon, value = text.partition(":")
        value = value.strip(" ")
        if not (colon and _NAME.fullmatch(name) and value.replace("\t", "").isprintable()):
            raise click.BadParameter(
                f"found {text!r}; expected NAME: VALUE on one line, such as X-Mailgun-Tag: welcome"
            )
        if value.isascii() and len(name) + 2 + len(value) > _MAX_LINE_OCTETS:
            raise click.BadParameter(f"{name}: found {len(value)} characters; expected a line of {_MAX_LINE_OCTETS}")
        fields.append((name, value))
    return tuple(fields)


def _login(token_file: Path | None, username: str | None, password_file: Path | None) -> Login | None:
    """The login that options or the environment name; options count first."""
    if token_file and (username is not None or password_file):
        raise click.UsageError("give --token-file, or --username and --password-file")
    if (username is None) != (password_file is None):
        raise click.UsageError("--username and --password-file go together")
    if token_file:
        token = _from_file("--token-file", token_file)
        return Login(token, token)
    if username is not None and password_file:
        if not username or "\0" in username:
            raise click.UsageError("--username: found nothing; expected a user name")
        return Login(Secret(username), _from_file("--password-file", password_file))
    token = Secret(os.environ.get(TEST_TOKEN_VARIABLE, ""))
    return Login(token, token) if token.reveal() else None


def _from_file(option: str, path: Path) -> Secret:
    try:
        return read_secret(path)
    except ValueError as error:
        fail(ProblemsError([Problem(option, 0, "", str(error), EXPECTED_IN_FILE)]))


_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("send-test")
@click.option(
    "--server",
    default=f"127.0.0.1:{DEFAULT_PORT}",
    show_default=True,
    metavar="HOST[:PORT]",
    callback=_server,
    help="Where to send to.",
)
@click.option(
    "--tls",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "starttls", "implicit", "none"]),
    help="auto: STARTTLS where it is offered. starttls: or nothing is sent. implicit: TLS from the first octet. none: "
    "all in clear, the login too.",
)
@click.option("--ca-file", type=_FILE, help="Authorities to trust instead of the system's, in PEM form.")
@click.option("--insecure", is_flag=True, help="Take any certificate.")
@click.option("--token-file", type=_FILE, help=f"A file with a token to log in with. Or by {TEST_TOKEN_VARIABLE}.")
@click.option("--username", help="Log in with a user name of its own.")
@click.option("--password-file", type=_FILE, help="A file with the password to it.")
@click.option(
    "--from", "sender", metavar="ADDRESS", callback=_address, help="Sender; needed where the message is to be sent."
)
@click.option(
    "--to",
    "recipients",
    multiple=True,
    metavar="ADDRESS",
    callback=_address,
    help="Recipient; may be repeated; needed where the message is to be sent.",
)
@click.option(
    "--field",
    "fields",
    multiple=True,
    metavar="'NAME: VALUE'",
    callback=_fields,
    help="One more field; may be repeated.",
)
@click.option(
    "--discard",
    is_flag=True,
    help=f"Let the proxy throw the message away at the end, by {DISCARD[0]}. On route relay the platform is asked "
    "about sender and recipients all the same.",
)
@click.option(
    "--timeout",
    default=60,
    show_default=True,
    type=click.IntRange(1, 3600),
    help="Seconds for each wait for the server.",
)
def send_test(
    server: Server,
    tls: str,
    ca_file: Path | None,
    insecure: bool,
    token_file: Path | None,
    username: str | None,
    password_file: Path | None,
    sender: str | None,
    recipients: tuple[str, ...],
    fields: tuple[tuple[str, str], ...],
    discard: bool,
    timeout: int,
) -> None:
    """
    Send one test message, and show the dialogue.

    Certificates are checked, but for a server on this machine (loopback) where no --ca-file is given. A login crosses
    a network in clear only with `--tls none`.

    Exit code 0 when the message was answered 250, with --discard when it was discarded; else 1. It reads no settings.
    """
    if ca_file and insecure:
        raise click.UsageError("give --ca-file or --insecure")
    if not discard and not (sender and recipients):
        raise click.UsageError("give --from and --to, addresses that may really send and get mail; or --discard")
    errand = Errand(
        server=server,
        tls=tls,
        ca_file=ca_file,
        insecure=insecure,
        login=_login(token_file, username, password_file),
        sender=sender or "sender@example.com",
        recipients=recipients or ("recipient@example.com",),
        fields=(*fields, DISCARD) if discard else fields,
        discard=discard,
        timeout=timeout,
    )
    _Dialogue(errand).run()


COMMANDS = (send_test,)


# The dialogue


class _Dialogue:
    """One connection from greeting to QUIT; whatever goes otherwise than expected ends the program with 1."""

    def __init__(self, errand: Errand) -> None:
        self.errand = errand
        self.stage = "connecting"
        login = errand.login
        # Long ones first, so that no part of one stays.
        secrets = {login.plain, login.password.reveal(), login.username.reveal()} if login else set()
        self._secrets = sorted(secrets, key=len, reverse=True)

    def run(self) -> None:
        """Do it all."""
        import smtplib
        import ssl

        silence = f"silence for {self.errand.timeout} s"
        try:
            self._talk()
        except smtplib.SMTPServerDisconnected as error:
            if isinstance(error.__context__, TimeoutError):
                self._fail(silence, "a reply", f"{_TLS_PORT}; or give a longer --timeout")
            self._fail("an end of the connection", "a reply", _LOG)
        except smtplib.SMTPDataError as error:
            self._expect((error.smtp_code, _octets(error.smtp_error)), "354")
        except smtplib.SMTPException as error:
            self._fail(f"'{self._clean(str(error))}'", "a reply", _LOG)
        except ssl.SSLCertVerificationError as error:
            self._fail(f"a certificate that cannot be trusted: {error.verify_message}", "a valid one", _TRUST)
        except ssl.SSLError as error:
            self._fail(f"no TLS: {error.reason or error}", "a TLS handshake", _TLS_PORT)
        except socket.gaierror as error:
            self._fail(f"no address: {error.strerror}", "a host name that can be looked up, or an IP address")
        except TimeoutError:
            self._fail(silence, "a connection", _RUNNING)
        except OSError as error:
            self._fail(f"no connection: {error.strerror or error}", "a server that listens", _RUNNING)

    def _talk(self) -> None:
        errand = self.errand
        with contextlib.closing(self._connect()) as client:
            self._secure(client)
            self._log_in(client)
            self._say(client, "MAIL", f"FROM:<{errand.sender}>")
            for each in errand.recipients:
                self._say(client, "RCPT", f"TO:<{each}>")
            self.stage = "DATA"
            message = compose(errand)
            click.echo(f"> DATA, and {len(message)} octets")
            reply = client.data(message)
            last = self._expect(reply, "250")
            if errand.discard and DISCARDED not in _text(reply[1]):
                self._fail(f"'{last}', so it was passed on", f"'{DISCARDED}'", _NOT_DISCARDED)
            click.echo(f"{'discarded' if errand.discard else 'sent'}: {last}")
            with contextlib.suppress(OSError):  # as smtplib's own errors are
                client.putcmd("QUIT")

    def _connect(self) -> "smtplib.SMTP":
        import smtplib

        errand = self.errand
        click.echo(f"connecting to {errand.server}")
        sock = socket.create_connection((errand.server.host, errand.server.port), timeout=errand.timeout)
        address = sock.getsockname()[0]
        name = f"[IPv6:{address}]" if ":" in address else f"[{address}]"  # RFC 5321, 4.1.3
        # Without a name given, smtplib would look ours up, which takes long where no name server answers.
        client = smtplib.SMTP(local_hostname=name, timeout=errand.timeout)
        client.sock = sock
        if errand.tls == "implicit":
            self._encrypt(client)
        self._expect(client.getreply(), "220")
        self._hello(client)
        return client

    def _hello(self, client: "smtplib.SMTP") -> None:
        self.stage = "EHLO"
        click.echo(f"> EHLO {client.local_hostname}")
        self._expect(client.ehlo(), "250")

    def _secure(self, client: "smtplib.SMTP") -> None:
        if self.errand.tls not in ("auto", "starttls"):
            return
        if not client.has_extn("starttls"):
            if self.errand.tls == "starttls":
                self._fail("no STARTTLS among what is offered", "STARTTLS", "the listener's tls setting decides it")
            click.echo("not encrypted: STARTTLS is not offered")
            return
        self._say(client, "STARTTLS", "", "220")
        self._encrypt(client)
        self._hello(client)

    def _encrypt(self, client: "smtplib.SMTP") -> None:
        """Begin TLS; what came before it is forgotten (RFC 3207, 4.2)."""
        errand = self.errand
        if client.sock is None:
            raise ConnectionError
        unchecked = ""
        if errand.insecure:
            unchecked = ", as --insecure asks: it may be anybody's"
        elif errand.ca_file is None and _is_local(client):
            unchecked = ", since the server is on this machine; --ca-file checks it"
        context = self._context(check=not unchecked)
        client.sock = context.wrap_socket(client.sock, server_hostname=errand.server.host)
        client.file = None
        click.echo(f"encrypted: {client.sock.version()}; certificate {'not ' if unchecked else ''}checked{unchecked}")

    def _context(self, *, check: bool) -> "ssl.SSLContext":
        import ssl

        try:
            context = ssl.create_default_context(cafile=self.errand.ca_file)
        except OSError as error:  # an SSLError is one, too
            found = f"'{self.errand.ca_file}': {error.strerror or error}"
            fail(ProblemsError([Problem("--ca-file", 0, "", found, "certificates in PEM form")]))
        if not check:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _log_in(self, client: "smtplib.SMTP") -> None:
        import ssl

        login = self.errand.login
        if login is None:
            return
        self.stage = "AUTH"
        if not isinstance(client.sock, ssl.SSLSocket) and not _is_local(client):
            if self.errand.tls != "none":
                hint = "--tls implicit where the port is for that; --tls none sends it in clear"
                self._fail("no STARTTLS, so that the login would be sent in clear", "an encrypted connection", hint)
            click.echo("warning: the login is sent in clear, as --tls none asks", err=True)
        offered = client.esmtp_features.get("auth", "").split()
        if "PLAIN" not in [each.upper() for each in offered]:
            found = f"'{self._clean(' '.join(['AUTH', *offered]))}'" if offered else "no AUTH"
            self._fail(f"{found} among what is offered", "AUTH PLAIN", "it may be offered with TLS only, or not at all")
        self._say(client, "AUTH", f"PLAIN {login.plain}", "235")

    def _say(self, client: "smtplib.SMTP", verb: str, argument: str, expected: str = "250") -> None:
        self.stage = verb
        click.echo(self._clean(f"> {verb} {argument}".rstrip()))
        self._expect(client.docmd(verb, argument), expected)

    def _expect(self, reply: tuple[int, bytes], expected: str) -> str:
        """Show a reply; its last line, if the code is the one."""
        code, text = reply
        lines = [self._clean(f"{code} {line}".rstrip()) for line in _text(text).split("\n")]
        for line in lines:
            click.echo(f"< {line}")
        if str(code) != expected:
            hint = _HINTS.get(code, _LOG)
            if self.errand.discard and code == 554:
                hint = f"a login or listener of another provider refuses {DISCARD[0]}; {_LOG}"
            found = f"no SMTP reply: '…{self._clean(_text(text))}'" if code == -1 else f"'{lines[-1]}'"
            self._fail(found, expected, hint)
        return lines[-1]

    def _clean(self, text: str) -> str:
        """Make a text fit for a terminal: without secrets, on one line."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)

    def _fail(self, found: str, expected: str, hint: str = "") -> NoReturn:
        fail(ProblemsError([Problem(str(self.errand.server), 0, self.stage, found, expected, hint)]))


_LOG = "the log of the server says more"
_RUNNING = "is `cmail-proxy serve` running there, and is this the port of a listener?"
_TLS_PORT = "a port for TLS from the first octet needs --tls implicit, others --tls starttls or none"
_TRUST = "--ca-file with tls/ca.pem of data_dir where tls.self_signed is set; --insecure takes any"
_NOT_DISCARDED = f"{DISCARD[0]} means nothing there: name mailgun in rules.providers, and set no rules.strip: none"
_HINTS = {
    451: "what is behind the server cannot be had now, or not with its credentials; the log of the server says why",
    530: f"log in with --token-file, {TEST_TOKEN_VARIABLE}, or --username and --password-file; or use TLS",
    535: "is it one of tokens or logins in the settings, or listed by `cmail-proxy token list`?",
    538: "log in over TLS: --tls starttls",
}


def compose(errand: Errand) -> bytes:
    """The message, with line ends CRLF; a field that was asked for stands instead of ours with that name."""
    from datetime import UTC, datetime
    from email.header import Header
    from email.utils import format_datetime, make_msgid

    ours = (
        ("From", errand.sender),
        ("To", ", ".join(errand.recipients)),
        ("Subject", "Test message of cmail-proxy"),
        ("Date", format_datetime(datetime.now(UTC))),
        ("Message-ID", make_msgid(domain=errand.sender.rpartition("@")[2])),
        ("MIME-Version", "1.0"),
        ("Content-Type", "text/plain; charset=utf-8"),
    )
    asked_for = {name.lower() for name, _ in errand.fields}
    lines = []
    for name, value in (*(each for each in ours if each[0].lower() not in asked_for), *errand.fields):
        written = value if value.isascii() else Header(value, "utf-8", header_name=name).encode(linesep="\r\n")
        lines.append(f"{name}: {written}\r\n")
    return f"{''.join(lines)}\r\n{_BODY}".encode("ascii")


def _is_local(client: "smtplib.SMTP") -> bool:
    """Whether the server is on this machine, so that nobody stands between."""
    address = client.sock.getpeername()[0] if client.sock else ""
    return ipaddress.ip_address(address).is_loopback


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "replace")


def _octets(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode()
