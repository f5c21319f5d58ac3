"""
The settings as typed values, each key with its default, unit and help.

These classes are the only list of keys: the loader, the reference and the schema walk their fields. A field without help
is not a setting. Nothing here looks at the value of a field: forms and ranges are checked where text is read, and what
several keys must have in common is the business of ``checks``.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import attrs
from attrs import frozen

from proxy.problems import Problem

PREFIX = "CMAIL_PROXY_"
ENVIRONMENT = "environment"

SENDING_CORE = "comes with the sending core (route deliver), which this version does not have yet"
LATER_KEYS = frozenset({"deliver", "tracking", "store", "http.admin", "http.public"})


class Secret:
    """
    Hold a password or token so that it does not slip into a log.

    Not an attrs class, because ``attrs.asdict`` would unfold one.
    """

    __slots__ = ("_value",)
    _value: str

    def __init__(self, value: str) -> None:
        object.__setattr__(self, "_value", value)

    def reveal(self) -> str:
        """Return the value itself."""
        return self._value

    def __setattr__(self, name: str, value: object) -> None:
        raise attrs.exceptions.FrozenInstanceError

    def __delattr__(self, name: str) -> None:
        raise attrs.exceptions.FrozenInstanceError

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        """Compare in constant time."""
        if not isinstance(other, Secret):
            return NotImplemented
        return compare_digest(self._value.encode("utf-8", "surrogatepass"), other._value.encode("utf-8", "surrogatepass"))

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[type["Secret"], tuple[str]]:
        """Let copies and worker processes have it; the default would go through ``__setattr__``."""
        return Secret, (self._value,)


@frozen
class Form:
    """
    What a text must look like.

    Args:
        expected: In words, for problems and for the reference.
        matches: Whether a text has the form.
        unset: The word that stands for no value where the setting may have none.
    """

    expected: str
    matches: Callable[[str], object]
    unset: str = ""


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Tell whether *host*, a name or an IP address, is this machine and reachable from nowhere else."""
    if not _is_address(host):
        return host.lower().rstrip(".") == "localhost"
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


_HOST_NAME = re.compile(r"(?!-)[\w-]{1,63}(?:\.(?!-)[\w-]{1,63})*\.?")
_OWN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}|\[[0-9A-Fa-f:.]{2,45}\]|\[IPv6:[0-9A-Fa-f:.]{2,45}\]")
_PROVIDER = re.compile(r"(?!none\Z)[a-z][a-z0-9_-]{0,39}")

OwnName = Annotated[str, Form("a host name", _OWN_NAME.fullmatch)]
Host = Annotated[
    str,
    Form("a host name or an IP address, without a port", lambda text: _is_address(text) or _HOST_NAME.fullmatch(text)),
]
Address = Annotated[str, Form("an IP address such as 127.0.0.1, 0.0.0.0 or ::1", _is_address)]
Provider = Annotated[
    str, Form("the name of a provider: lower-case letters, digits, - and _", _PROVIDER.fullmatch, unset="none")
]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "text"]
ListenerTls = Literal["starttls", "required", "none", "implicit", "auto"]
ListenerAuth = Literal["required", "optional", "none"]
AuthWithoutTls = Literal["loopback", "never", "always"]
WhenAbsent = Literal["platform", "provider"]
Switch = Literal["X-Cmail-TrackOpens", "X-Cmail-TrackClicks", "X-Cmail-InlineCSS"]
OnInvalid = Literal["pass", "refuse"]
Untranslatable = Literal["act", "warn"]
Action = Literal["ignore", "warn", "refuse", "discard"]
LossClass = Literal[
    "test_mode",
    "recipients",
    "privacy",
    "text",
    "unsubscribe",
    "time",
    "duplicates",
    "links",
    "content",
    "ambiguous",
    "metadata",
    "infrastructure",
]
Strip = Literal["all", "translated", "none"]
BareNewline = Literal["normalize", "refuse"]
Excess = Literal["refuse_message", "defer"]
Route = Literal["relay"]
RelayTls = Literal["required", "opportunistic", "implicit", "none"]

ActionByClass: TypeAlias = Mapping[LossClass, Action]


@frozen
class Actions:
    """
    What the operator decided about classes of loss.

    Args:
        by_class: For a class, whatever the provider.
        by_provider: For a class of one provider; these win.
    """

    by_class: ActionByClass = attrs.field(factory=dict)
    by_provider: Mapping[Provider, ActionByClass] = attrs.field(factory=dict)


@frozen
class Source:
    """
    Where the settings came from, so that a problem found later can still name the place.

    Args:
        file: The settings file as the operator named it; empty for none.
        lines: 1-based line of each key path that stands in the file, e.g. ``listeners[0].tls``.
        variables: Environment variable of each key path that came from the environment.
    """

    file: str = ""
    lines: Mapping[str, int] = attrs.field(factory=dict)
    variables: Mapping[str, str] = attrs.field(factory=dict)

    def place(self, key: str) -> tuple[str, int, str]:
        """
        Find the file, line and key to name for a key path.

        A key that was not written has the place of the section or item it would stand in; a key from the environment
        has its variable as key.
        """
        path = key
        while path:
            if path in self.variables:
                return ENVIRONMENT, 0, self.variables[path] + key.removeprefix(path)
            if path in self.lines:
                return self.file, self.lines[path], key
            if any(written.startswith((f"{path}.", f"{path}[")) for written in self.variables):
                return ENVIRONMENT, 0, variable(key)
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return (self.file, 0, key) if self.file else (ENVIRONMENT, 0, variable(key))

    def problem(self, key: str, found: str, expected: str, hint: str = "") -> Problem:
        """Say what is wrong at a key path."""
        file, line, name = self.place(key)
        return Problem(file, line, name, found, expected, hint)


def variable(key: str) -> str:
    """Name the environment variable of a key path: ``listeners[0].port`` is ``CMAIL_PROXY_LISTENERS__0__PORT``."""
    return PREFIX + key.replace("[", ".").replace("]", "").replace(".", "__").upper()


def setting(
    text: str,
    default: Any = attrs.NOTHING,
    *,
    factory: Callable[[], Any] | None = None,
    shown: str = "",
    unit: str = "",
    minimum: int = 0,
    maximum: int = 0,
    example: str = "",
) -> Any:
    """
    Declare one key.

    Args:
        text: The help: what the key decides.
        default: The value when the key is not written; without one (and without *factory*) the key is required.
        factory: Makes the default, where it depends on the machine or is a value of its own.
        shown: The default in words, where it depends on the machine.
        unit: What a number counts.
        minimum, maximum: The range of a number, both included.
        example: A mapping as it could be written.
    """
    metadata = {
        "help": text,
        "shown": shown,
        "unit": unit,
        "minimum": minimum,
        "maximum": maximum,
        "example": example,
    }
    if factory is not None:
        return attrs.field(factory=factory, metadata=metadata)
    return attrs.field(default=default, metadata=metadata)


def _port(text: str, default: int, minimum: int = 0) -> Any:
    """Declare a TCP port."""
    return setting(text, default, minimum=minimum, maximum=65535)


def _count(text: str, default: int, unit: str, minimum: int, maximum: int) -> Any:
    """Declare a number of something."""
    return setting(text, default, unit=unit, minimum=minimum, maximum=maximum)


def _seconds(text: str, default: int, minimum: int = 1, maximum: int = 3600) -> Any:
    """Declare a time in seconds."""
    return setting(text, default, unit="seconds", minimum=minimum, maximum=maximum)


def _machine_name() -> str:
    import socket  # only where no hostname is written: settings are also read by commands that open no socket

    return socket.gethostname()


@frozen(kw_only=True)
class Log:
    """What is logged, and how."""

    level: LogLevel = setting("The least important lines that are written.", "info")
    format: LogFormat = setting("`json` for machines, one object a line; `text` for people.", "json")


@frozen(kw_only=True)
class Listener:
    """One address and port where apps hand in mail."""

    address: Address = setting("Where to listen. Off loopback, other machines reach the port.", "127.0.0.1")
    port: int = _port("The port; 0 takes any free one.", 2525)
    tls: ListenerTls = setting(
        "`starttls`: offered. `required`: offered, and nothing is accepted before it. `none`: not offered. `implicit`: "
        "TLS from the first octet. `auto`: implicit if the client begins so, else `starttls`.",
        "starttls",
    )
    auth: ListenerAuth = setting("Whether a client must, may or cannot log in before it sends.", "required")
    auth_without_tls: AuthWithoutTls = setting("For which clients AUTH is offered on a connection without TLS.", "loopback")
    provider: Provider | None = setting(
        "The provider that apps on this listener were written for: its fields count first where a message has those of "
        "two. The provider of a login counts before it.",
        None,
    )
    allow_networks: tuple[Network, ...] = setting("Only clients from these networks may connect; empty for all.", ())

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.address)


@frozen(kw_only=True)
class Tls:
    """The certificate that listeners show."""

    certificate_file: Path | None = setting("Certificate chain in PEM form.", None)
    key_file: Path | None = setting("Private key of the certificate in PEM form; may be the same file.", None)
    self_signed: bool = setting("Make a local certificate authority in `data_dir` and certificates from it.", False)
    names: tuple[Host, ...] = setting(
        "Host names that apps have hard-coded: clients that ask for one by SNI get a certificate with that name.", ()
    )


@frozen(kw_only=True)
class Token:
    """One token: whoever has it may send; user name and password are both the token."""

    name: str = setting("What logs and metrics call the holder.")
    token: Secret = setting("The token.")
    token_file: Path | None = setting("A file that holds the token instead.", None)


@frozen(kw_only=True)
class Login:
    """A user name and password that an app already has for its old provider."""

    name: str = setting("What logs and metrics call the holder.")
    username: str | None = setting("The user name; without one, any is taken.", None)
    password: Secret = setting("The password.")
    password_file: Path | None = setting("A file that holds the password instead.", None)
    provider: Provider | None = setting("The provider this login belonged to: its fields count first.", None)
    discard: bool = setting("Accept the messages of this login and send none of them.", False)


@frozen(kw_only=True)
class Rules:
    """How provider fields become X-Cmail fields, and what happens to what cannot be expressed."""

    providers: tuple[Provider, ...] = setting(
        "Rule files in force.", ("mailgun", "mailjet", "mandrill", "postmark", "sendgrid")
    )
    directories: tuple[Path, ...] = setting("Folders with further rule files; a file here replaces one of the same name.", ())
    optional: tuple[str, ...] = setting("Names of optional rules that are on.", ())
    when_absent: WhenAbsent | Mapping[Provider, Mapping[Switch, bool]] = setting(
        "What to write where an app says nothing. `platform`: nothing, so the platform's defaults hold. `provider`: what "
        "the provider did by default. Or the values, for each provider.",
        "platform",
        example="{mailgun: {X-Cmail-TrackOpens: false}}",
    )
    on_invalid: OnInvalid = setting("A value that does not parse: pass the message without it, or refuse the message.", "pass")
    untranslatable: Untranslatable = setting(
        "What cannot be expressed: `act` as its class says, or only `warn` where that would refuse the message.", "act"
    )
    actions: Actions = setting(
        "The action for a class of loss, or for the classes of one provider: `ignore`, `warn`, `refuse` or `discard`.",
        factory=Actions,
        example="{privacy: warn, mailgun: {time: refuse}}",
    )
    strip: Strip = setting(
        "Which provider fields leave the message: all, only those with a translation, or none.", "all"
    )


@frozen(kw_only=True)
class Smtp:
    """How the SMTP dialogue treats doubtful input."""

    bare_newline: BareNewline = setting("CR or LF on its own in a message: make it a line end or blank, or refuse.", "normalize")


@frozen(kw_only=True)
class Limits:
    """What one client may ask for."""

    recipients: int = _count("Recipients of one message.", 25, "recipients", 1, 1000)
    excess: Excess = setting(
        "More recipients than that: `refuse_message` refuses the whole message, because half a send is worse; `defer` "
        "answers 452 to each surplus recipient.",
        "refuse_message",
    )
    hops: int = _count("Received fields of a message; more mean a loop.", 50, "fields", 1, 1000)
    message_octets: int = _count("Size of a message.", 26_214_400, "octets", 1024, 1_073_741_824)
    header_octets: int = _count("Size of a header section.", 262_144, "octets", 1024, 16_777_216)
    header_fields: int = _count("Fields of a header section.", 1000, "fields", 10, 100_000)
    connections: int = _count("Clients connected at a time.", 1000, "connections", 1, 100_000)
    idle_seconds: int = _seconds("How long a client may be silent.", 300, maximum=86_400)


@frozen(kw_only=True)
class Shutdown:
    """How the program ends on SIGTERM."""

    delay_seconds: int = _seconds("Time to go on accepting, until load balancers have noticed.", 0, minimum=0)
    drain_seconds: int = _seconds("Time for messages in flight to finish.", 30, minimum=0)


@frozen(kw_only=True)
class Relay:
    """The platform that gets the translated messages."""

    host: Host | None = setting("Host of the platform's SMTP server. Needed to serve.", None)
    port: int = _port("Its port.", 587, minimum=1)
    tls: RelayTls = setting(
        "`required`: STARTTLS with a valid certificate. `opportunistic`: STARTTLS where offered. `implicit`: TLS from the "
        "first octet. `none`: no TLS.",
        "required",
    )
    username: str | None = setting("User name for AUTH; without one, nobody logs in.", None)
    password: Secret | None = setting("Password for AUTH.", None)
    password_file: Path | None = setting("A file that holds the password instead.", None)
    ca_file: Path | None = setting("Certificate authorities to trust in PEM form, instead of the system's.", None)
    connections: int = _count("Connections to the platform at a time.", 50, "connections", 1, 10_000)
    wait_seconds: int = _seconds("Longest wait for one of them.", 10, minimum=0)
    connect_seconds: int = _seconds("Longest wait until a connection is open.", 30)
    reply_seconds: int = _seconds("Longest wait for a reply.", 300)
    final_reply_seconds: int = _seconds("Longest wait for the reply to a whole message.", 600)
    idle_seconds: int = _seconds("An unused connection is closed after this time.", 60)
    required_for_readiness: bool = setting("Whether an unreachable platform makes `/readyz` fail.", False)


@frozen(kw_only=True)
class Probes:
    """Where `/metrics`, `/livez`, `/readyz` and `/startupz` are."""

    address: Address = setting("Where to listen.", "127.0.0.1")
    port: int = _port("The port; 0 takes any free one.", 9025)


@frozen(kw_only=True)
class Http:
    """What is served by HTTP."""

    probes: Probes = setting("Metrics and health, for Prometheus and kubelet.", factory=Probes)


@frozen(kw_only=True)
class Settings:
    """Everything an operator decides."""

    hostname: OwnName = setting(
        "The name this program gives itself in greeting, EHLO and Received.", factory=_machine_name, shown="the machine's"
    )
    data_dir: Path = setting(
        "Where the program keeps what must outlast it: issued tokens, self-signed certificates.",
        factory=lambda: Path("var").absolute(),
        shown="./var in the working folder",
    )
    workers: int = _count("Processes that share the listeners.", 1, "processes", 1, 64)
    log: Log = setting("What is logged, and how.", factory=Log)
    listeners: tuple[Listener, ...] = setting(
        "Addresses and ports where apps hand in mail.",
        factory=lambda: (Listener(),),
        shown="one, with the defaults below",
    )
    tls: Tls = setting("The certificate that listeners show.", factory=Tls)
    tokens: tuple[Token, ...] = setting("Who may send; user name and password are both the token.", ())
    logins: tuple[Login, ...] = setting("User names and passwords that apps already have for their old provider.", ())
    rules: Rules = setting("How provider fields become X-Cmail fields.", factory=Rules)
    smtp: Smtp = setting("How the SMTP dialogue treats doubtful input.", factory=Smtp)
    limits: Limits = setting("What one client may ask for.", factory=Limits)
    route: Route | None = setting("Where messages go: `relay`, to `relay.host`; also when not set.", None)
    shutdown: Shutdown = setting("How the program ends on SIGTERM.", factory=Shutdown)
    relay: Relay = setting("The platform that gets the translated messages.", factory=Relay)
    http: Http = setting("What is served by HTTP.", factory=Http)
    source: Source = attrs.field(factory=Source, eq=False, repr=False)


def settings_of(section: type) -> Iterable["attrs.Attribute[Any]"]:
    """List the keys of a section in the order in which they are declared."""
    return (attribute for attribute in attrs.fields(section) if "help" in attribute.metadata)
