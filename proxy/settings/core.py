"""The settings of the sending core, route ``deliver``."""

from pathlib import Path
from typing import Literal

from attrs import field, frozen

from proxy.settings.metadata import about, seconds
from proxy.settings.values import Address, Domain, Host, Network, Secret, Selector

Via = Literal["mailbox", "smarthost", "mx"]
SmarthostTls = Literal["required", "opportunistic", "implicit", "none"]

_DAY = 86_400


@frozen(kw_only=True)
class Smarthost:
    """The one server that gets everything with ``via: smarthost``."""

    host: Host | None = field(default=None, metadata=about("Its name or address. Needed for `via: smarthost`."))
    port: int = field(default=587, metadata=about("Its port.", minimum=1, maximum=65535))
    tls: SmarthostTls = field(
        default="required",
        metadata=about(
            "`required`: STARTTLS with a valid certificate. `opportunistic`: STARTTLS where offered. `implicit`: TLS "
            "from the first octet. `none`: no TLS."
        ),
    )
    username: str | None = field(default=None, metadata=about("User name for AUTH; without one there is no AUTH."))
    password: Secret | None = field(default=None, metadata=about("Password for AUTH."))
    password_file: Path | None = field(default=None, metadata=about("File with the password."))
    ca_file: Path | None = field(
        default=None, metadata=about("Authorities to trust instead of the system's, in PEM form.")
    )


@frozen(kw_only=True)
class Dkim:
    """A key that signs the mail of a domain."""

    domain: Domain = field(metadata=about("The domain of the From address; its subdomains, too."))
    selector: Selector = field(metadata=about("Where the public key is: `SELECTOR._domainkey.DOMAIN`."))
    key_file: Path = field(metadata=about("The private key, RSA or Ed25519, in PEM form."))


@frozen(kw_only=True)
class Retry:
    """When to try again, and when to give up."""

    first_seconds: int = field(default=60, metadata=seconds("From the first attempt to the second.", maximum=_DAY))
    factor: int = field(
        default=2,
        metadata=about("How much longer each pause is than the one before.", unit="times", minimum=1, maximum=10),
    )
    max_seconds: int = field(default=14_400, metadata=seconds("The longest pause.", maximum=_DAY))
    expire_seconds: int = field(
        default=432_000, metadata=seconds("From acceptance to giving up.", minimum=0, maximum=30 * _DAY)
    )
    warn_seconds: int = field(
        default=14_400,
        metadata=seconds(
            "From acceptance to the notice that tells the sender of a delay; 0 for none.", minimum=0, maximum=30 * _DAY
        ),
    )


@frozen(kw_only=True)
class Compose:
    """What is done to the HTML of messages, in processes of its own."""

    budget_seconds: int = field(
        default=2, metadata=seconds("Time for one message; one that takes longer goes on unchanged.", maximum=60)
    )
    processes: int = field(default=1, metadata=about("Processes at a time.", unit="processes", minimum=1, maximum=16))


@frozen(kw_only=True)
class Deliver:
    """How messages are composed and sent on route ``deliver``."""

    via: Via = field(
        default="mailbox",
        metadata=about(
            "`mailbox`: into a Maildir folder, so nothing leaves the machine. `smarthost`: to one server. `mx`: to the "
            "servers of each recipient's domain."
        ),
    )
    mailbox: Path | None = field(default=None, metadata=about("The Maildir folder.", shown="`mailbox` in `data_dir`"))
    smarthost: Smarthost = field(factory=Smarthost, metadata=about("The server of `via: smarthost`."))
    dkim: tuple[Dkim, ...] = field(default=(), metadata=about("Keys that sign, by the domain of the From address."))
    retry: Retry = field(factory=Retry, metadata=about("When to try again."))
    compose: Compose = field(factory=Compose, metadata=about("Work on HTML."))
    connections: int = field(
        default=50, metadata=about("Connections at a time, to all hosts.", unit="connections", minimum=1, maximum=1000)
    )
    per_destination: int = field(
        default=5,
        metadata=about("Connections at a time to one destination.", unit="connections", minimum=1, maximum=1000),
    )
    rate_per_destination: int = field(
        default=0,
        metadata=about(
            "Attempts begun in a second for one destination; 0 for any number.", unit="attempts", maximum=10_000
        ),
    )
    per_host: int = field(
        default=20,
        metadata=about(
            "Connections at a time to one MX host, for whatever domains, with `via: mx`.",
            unit="connections",
            minimum=1,
            maximum=1000,
        ),
    )
    require_tls: tuple[str, ...] = field(
        default=(), metadata=about("Domains that get mail over TLS only, with `via: mx`.")
    )
    allow_networks: tuple[Network, ...] = field(
        default=(),
        metadata=about(
            "Private or loopback networks to deliver to with `via: mx`; all others of that kind are refused.",
            example="[10.0.0.0/8]",
        ),
    )
    nameservers: tuple[Address, ...] = field(
        default=(), metadata=about("DNS servers to ask; those of the system where it is empty.")
    )
    keep_seconds: int = field(
        default=30 * _DAY,
        metadata=seconds(
            "How long the content and timeline of a finished message are kept. Figures are kept for ever.",
            minimum=0,
            maximum=3650 * _DAY,
        ),
    )


@frozen(kw_only=True)
class Tracking:
    """Opens and clicks."""

    opens: bool = field(default=True, metadata=about("Whether opens are tracked where a message does not say no."))
    clicks: bool = field(default=True, metadata=about("Whether clicks are tracked where a message does not say no."))
    base_url: str | None = field(
        default=None,
        metadata=about("Where readers reach `http.public`, such as `https://click.example.com`."),
    )
    secret_file: Path | None = field(
        default=None, metadata=about("Keys that sign tracking links.", shown="`tracking-keys` in `data_dir`")
    )


@frozen(kw_only=True)
class Public:
    """Where the beacon and the links of tracked mail are answered."""

    address: Address = field(default="127.0.0.1", metadata=about("Where to listen."))
    port: int = field(default=8080, metadata=about("The port; 0 takes any free one.", maximum=65535))
