"""
The settings as typed values, each key with its default, unit and help.

These classes are the only list of keys: loader, reference and schema walk their fields. A field without help is not a
setting. Nothing here looks at the value of a field: forms and ranges are checked where text is read, and what several
keys must have in common is the business of ``checks``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from attrs import field, frozen

from proxy.settings.core import Deliver, Public, Tracking
from proxy.settings.metadata import about, seconds
from proxy.settings.values import Address, Host, Network, OwnName, Provider, Secret, Source, is_loopback

LATER = "comes with a later version"
LATER_KEYS = frozenset({"http.admin"})
DATA_FOLDER = "var"

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
Route = Literal["relay", "deliver"]
Store = Literal["sqlite"]
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

    by_class: ActionByClass = field(factory=dict)
    by_provider: Mapping[Provider, ActionByClass] = field(factory=dict)


@frozen(kw_only=True)
class Log:
    """What is logged, and how."""

    level: LogLevel = field(default="info", metadata=about("The least important lines that are written."))
    format: LogFormat = field(default="json", metadata=about("`json`: an object for each line. `text`: for people."))


@frozen(kw_only=True)
class Listener:
    """One address and port where apps hand in mail."""

    address: Address = field(
        default="127.0.0.1", metadata=about("Where to listen. Off loopback, other machines reach the port.")
    )
    port: int = field(default=2525, metadata=about("The port; 0 takes any free one.", maximum=65535))
    tls: ListenerTls = field(
        default="starttls",
        metadata=about(
            "`starttls`: offered. `required`: offered, and no mail is taken before it. `none`: not offered. "
            "`implicit`: TLS from the first octet. `auto`: implicit if the client begins so, else `starttls`."
        ),
    )
    auth: ListenerAuth = field(
        default="required", metadata=about("Whether a client must, may or cannot log in before it sends.")
    )
    auth_without_tls: AuthWithoutTls = field(
        default="loopback", metadata=about("To which clients AUTH is offered on a connection without TLS.")
    )
    provider: Provider | None = field(
        default=None,
        metadata=about(
            "The provider that the apps here were written for: its fields count first where a message has those of "
            "two. The provider of a login counts before it."
        ),
    )
    allow_networks: tuple[Network, ...] = field(
        default=(),
        metadata=about("Networks whose clients may send without logging in; empty, on loopback only, for all."),
    )

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.address)


@frozen(kw_only=True)
class Tls:
    """The certificate that listeners show."""

    certificate_file: Path | None = field(default=None, metadata=about("Certificate chain in PEM form."))
    key_file: Path | None = field(
        default=None, metadata=about("Private key of the certificate in PEM form; may be the same file.")
    )
    self_signed: bool = field(
        default=False,
        metadata=about("Make a certificate authority of our own in `data_dir`, and certificates from it."),
    )
    names: tuple[Host, ...] = field(
        default=(),
        metadata=about("Host names that apps have hard-coded: who asks for one by SNI gets a certificate for it."),
    )


@frozen(kw_only=True)
class Token:
    """One token: whoever has it may send; user name and password are both the token."""

    name: str = field(metadata=about("What logs and metrics call the holder."))
    token: Secret = field(metadata=about("The token."))
    token_file: Path | None = field(default=None, metadata=about("A file that holds the token instead."))


@frozen(kw_only=True)
class Login:
    """A user name and password that an app already has for its old provider."""

    name: str = field(metadata=about("What logs and metrics call the holder."))
    username: str | None = field(default=None, metadata=about("The user name; without one, any is taken."))
    password: Secret = field(metadata=about("The password."))
    password_file: Path | None = field(default=None, metadata=about("A file that holds the password instead."))
    provider: Provider | None = field(
        default=None, metadata=about("The provider this login belonged to: its fields count first.")
    )
    discard: bool = field(default=False, metadata=about("Accept the messages of this login and send none of them."))


@frozen(kw_only=True)
class Rules:
    """How provider fields become X-Cmail fields, and what happens to what cannot be expressed."""

    providers: tuple[Provider, ...] = field(
        default=("mailgun", "mailjet", "mandrill", "postmark", "sendgrid"), metadata=about("Rule files in force.")
    )
    directories: tuple[Path, ...] = field(default=(), metadata=about("Folders with rule files of your own."))
    optional: tuple[str, ...] = field(default=(), metadata=about("Names of optional rules that are on."))
    when_absent: WhenAbsent | Mapping[Provider, Mapping[Switch, bool]] = field(
        default="platform",
        metadata=about(
            "What to write where an app says nothing. `platform`: nothing, so the platform's defaults hold. "
            "`provider`: what the provider did by default. Or the values, for each provider.",
            example="{mailgun: {X-Cmail-TrackOpens: false}}",
        ),
    )
    on_invalid: OnInvalid = field(
        default="pass", metadata=about("A value that does not parse: `pass` the message without it, or `refuse` it.")
    )
    untranslatable: Untranslatable = field(
        default="act",
        metadata=about(
            "What cannot be expressed: `act` as its class says, or `warn` where that would be a refusal, but for test "
            "mode."
        ),
    )
    actions: Actions = field(
        factory=Actions,
        metadata=about(
            "The action for a class of loss, or for classes of one provider: `ignore`, `warn`, `refuse` or `discard`.",
            example="{privacy: warn, mailgun: {time: refuse}}",
        ),
    )
    strip: Strip = field(
        default="all",
        metadata=about("Which provider fields leave the message: `all`, only the `translated` ones, or `none`."),
    )


@frozen(kw_only=True)
class Smtp:
    """How the SMTP dialogue treats doubtful input."""

    bare_newline: BareNewline = field(
        default="normalize",
        metadata=about("CR or LF on its own in a message: `normalize` it, or `refuse` the message."),
    )


@frozen(kw_only=True)
class Limits:
    """What one client may ask for."""

    recipients: int = field(
        default=25, metadata=about("Recipients of one message.", unit="recipients", minimum=1, maximum=1000)
    )
    excess: Excess = field(
        default="refuse_message",
        metadata=about(
            "More recipients than that: `refuse_message` refuses it as a whole, because half a send is worse; `defer` "
            "answers 452 to each surplus recipient."
        ),
    )
    hops: int = field(
        default=50,
        metadata=about("Received fields of a message; more mean a loop.", unit="fields", minimum=1, maximum=1000),
    )
    message_octets: int = field(
        default=26_214_400, metadata=about("Size of a message.", unit="octets", minimum=1024, maximum=1_073_741_824)
    )
    header_octets: int = field(
        default=262_144, metadata=about("Size of a header section.", unit="octets", minimum=1024, maximum=16_777_216)
    )
    header_fields: int = field(
        default=1000, metadata=about("Fields of a header section.", unit="fields", minimum=10, maximum=100_000)
    )
    connections: int = field(
        default=1000, metadata=about("Clients connected at a time.", unit="connections", minimum=1, maximum=100_000)
    )
    idle_seconds: int = field(default=300, metadata=seconds("How long a client may be silent.", maximum=86_400))


@frozen(kw_only=True)
class Shutdown:
    """How the program ends on SIGTERM."""

    delay_seconds: int = field(
        default=0, metadata=seconds("Time to go on accepting, until load balancers have noticed.", minimum=0)
    )
    drain_seconds: int = field(default=30, metadata=seconds("Time for messages in flight to finish.", minimum=0))


@frozen(kw_only=True)
class Relay:
    """The platform that gets the translated messages."""

    host: Host | None = field(default=None, metadata=about("The platform's SMTP host. Needed for route `relay`."))
    port: int = field(default=587, metadata=about("Its port.", minimum=1, maximum=65535))
    tls: RelayTls = field(
        default="required",
        metadata=about(
            "`required`: STARTTLS with a valid certificate. `opportunistic`: STARTTLS where offered. `implicit`: TLS "
            "from the first octet. `none`: no TLS."
        ),
    )
    username: str | None = field(default=None, metadata=about("User name for AUTH; without one there is no AUTH."))
    password: Secret | None = field(default=None, metadata=about("Password for AUTH."))
    password_file: Path | None = field(default=None, metadata=about("A file that holds the password instead."))
    ca_file: Path | None = field(
        default=None, metadata=about("Certificate authorities to trust in PEM form, instead of the system's.")
    )
    connections: int = field(
        default=50,
        metadata=about("Connections to the platform at a time.", unit="connections", minimum=1, maximum=10_000),
    )
    wait_seconds: int = field(default=10, metadata=seconds("Longest wait for a pooled connection.", minimum=0))
    connect_seconds: int = field(default=30, metadata=seconds("Longest wait until a connection is open."))
    reply_seconds: int = field(default=300, metadata=seconds("Longest wait for a reply."))
    final_reply_seconds: int = field(default=600, metadata=seconds("Longest wait for the reply to a whole message."))
    idle_seconds: int = field(
        default=60, metadata=seconds("A pooled connection that was not used for so long is closed.")
    )
    pause_seconds: int = field(
        default=1,
        metadata=seconds(
            "After a failed attempt to connect: how long messages are answered 451 without another one.", minimum=0
        ),
    )
    required_for_readiness: bool = field(
        default=False, metadata=about("Whether an unreachable platform makes `/readyz` fail.")
    )


@frozen(kw_only=True)
class Probes:
    """Where ``/metrics``, ``/livez``, ``/readyz`` and ``/startupz`` are."""

    address: Address = field(default="127.0.0.1", metadata=about("Where to listen."))
    port: int = field(default=9025, metadata=about("The port; 0 takes any free one.", maximum=65535))


@frozen(kw_only=True)
class Http:
    """What is served by HTTP."""

    public: Public = field(factory=Public, metadata=about("The beacon and the links of tracked mail, for its readers."))
    probes: Probes = field(
        factory=Probes, metadata=about("`/metrics`, `/livez`, `/readyz` and `/startupz`, for Prometheus and kubelet.")
    )


def _machine_name() -> str:
    import socket  # only where no hostname is written: settings are also read by commands that open no socket

    return socket.gethostname()


@frozen(kw_only=True)
class Settings:
    """Everything an operator decides, and where it was written."""

    hostname: OwnName = field(
        factory=_machine_name,
        metadata=about("The name this program gives itself in greeting, EHLO and Received.", shown="the machine's"),
    )
    data_dir: Path = field(
        factory=lambda: Path(DATA_FOLDER).absolute(),
        metadata=about(
            "Where the program keeps what must outlast it: issued tokens, self-signed certificates.",
            shown="`./var` beside the settings file",
        ),
    )
    workers: int = field(
        default=1,
        metadata=about("Processes that share the listeners.", unit="processes", minimum=1, maximum=64),
    )
    log: Log = field(factory=Log, metadata=about("What is logged, and how."))
    listeners: tuple[Listener, ...] = field(
        factory=lambda: (Listener(),),
        metadata=about("Addresses and ports where apps hand in mail.", shown="one, with the defaults below"),
    )
    tls: Tls = field(factory=Tls, metadata=about("The certificate that listeners show."))
    tokens: tuple[Token, ...] = field(
        default=(), metadata=about("Who may send; user name and password are both the token.")
    )
    logins: tuple[Login, ...] = field(
        default=(), metadata=about("User names and passwords that apps already have for their old provider.")
    )
    rules: Rules = field(factory=Rules, metadata=about("How provider fields become X-Cmail fields."))
    smtp: Smtp = field(factory=Smtp, metadata=about("How the SMTP dialogue treats doubtful input."))
    limits: Limits = field(factory=Limits, metadata=about("What one client may ask for."))
    route: Route | None = field(
        default=None,
        metadata=about(
            "Where messages go. `relay`: streamed to `relay.host`. `deliver`: kept here, and sent as `deliver` says. "
            "Not set: `relay` if `relay.host` is set, else `deliver`."
        ),
    )
    shutdown: Shutdown = field(factory=Shutdown, metadata=about("How the program ends on SIGTERM."))
    relay: Relay = field(factory=Relay, metadata=about("The platform that gets the translated messages."))
    deliver: Deliver = field(factory=Deliver, metadata=about("Route `deliver`: how messages are composed and sent."))
    tracking: Tracking = field(factory=Tracking, metadata=about("Opens and clicks, in route `deliver`."))
    store: Store = field(
        default="sqlite", metadata=about("Where route `deliver` keeps messages: `sqlite` is a file in `data_dir`.")
    )
    http: Http = field(factory=Http, metadata=about("What is served by HTTP."))
    source: Source = field(factory=Source, eq=False, repr=False)

    @property
    def delivers(self) -> bool:
        """Whether the route is ``deliver``."""
        return (self.route or ("relay" if self.relay.host else "deliver")) == "deliver"

    @property
    def onward(self) -> str:
        """Say where messages go, in a few words."""
        if not self.delivers:
            return f"relaying to {self.relay.host}:{self.relay.port}"
        if self.deliver.via == "mailbox":
            return f"delivering to the mailbox {self.deliver.mailbox or self.data_dir / 'mailbox'}"
        if self.deliver.via == "smarthost":
            return f"delivering by {self.deliver.smarthost.host}:{self.deliver.smarthost.port}"
        return "delivering by the MX hosts of each domain"
