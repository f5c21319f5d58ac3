"""
What settings must have in common, and what an operator should know about them before they serve.

Single values were checked when they were read. The file system is looked at only for certificates and issued tokens;
what is in the certificates of listeners is for ``inbound.tls`` to say, which reads them again when they change.
"""

import ipaddress
import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from attrs import frozen

from proxy.problems import Problem
from proxy.settings.model import Listener, Login, Settings, Token
from proxy.settings.values import Network, is_loopback

TOKENS_FILE = "tokens.json"
"""Tokens issued by ``cmail-proxy token add``, in ``data_dir``."""


@frozen
class Warned:
    """Something lawful that may not be meant; place and key as in a Problem."""

    file: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.text}"


@frozen
class ProviderReference:
    """A place where settings name a provider; place and key as in a Problem."""

    provider: str
    file: str
    line: int
    key: str


Finding: TypeAlias = Problem | Warned


def check(settings: Settings) -> tuple[list[Problem], list[Warned]]:
    """
    Check what the keys mean together.

    Returns:
        Problems, with any of which the program must not serve; and warnings.
    """
    findings = [finding for part in _CHECKS for finding in part(settings)]
    return (
        [finding for finding in findings if isinstance(finding, Problem)],
        [finding for finding in findings if isinstance(finding, Warned)],
    )


def provider_references(settings: Settings) -> list[ProviderReference]:
    """List every place that names a provider, so that who loads the rule files can say where one does not exist."""
    rules = settings.rules
    named: list[tuple[str, str | None]] = [
        *((f"rules.providers[{index}]", provider) for index, provider in enumerate(rules.providers)),
        *((f"listeners[{index}].provider", listener.provider) for index, listener in enumerate(settings.listeners)),
        *((f"logins[{index}].provider", login.provider) for index, login in enumerate(settings.logins)),
        *((f"rules.actions.{provider}", provider) for provider in rules.actions.by_provider),
    ]
    if not isinstance(rules.when_absent, str):
        named += ((f"rules.when_absent.{provider}", provider) for provider in rules.when_absent)
    return [ProviderReference(provider, *settings.source.place(key)) for key, provider in named if provider is not None]


def _warned(settings: Settings, key: str, text: str) -> Warned:
    return Warned(*settings.source.place(key), text)


def _route(settings: Settings) -> Iterator[Finding]:
    written = [*settings.source.lines, *settings.source.variables]
    if settings.route is None and settings.relay.host is None and any(key.startswith("relay.") for key in written):
        expected = "the platform's SMTP host, or route: deliver"
        yield settings.source.problem("relay.host", "nothing, though relay has other keys", expected)
    if not settings.delivers and settings.relay.host is None:
        yield settings.source.problem("relay.host", "nothing", "the platform's SMTP host, for route relay")
    if settings.delivers and settings.relay.host is not None:
        yield _warned(settings, "route", "deliver, so relay.host and all of relay is not used")
    unused = [key for key in written if key.startswith(("deliver.", "tracking.", "http.public."))]
    if unused and not settings.delivers:
        yield _warned(settings, unused[0], "not used on route relay; route: deliver uses it")


def _deliver(settings: Settings) -> Iterator[Finding]:
    """What route ``deliver`` needs, before a message that cannot be sent, or tracked, is taken."""
    if not settings.delivers:
        return
    deliver, problem = settings.deliver, settings.source.problem
    smarthost = deliver.smarthost
    if deliver.via == "smarthost" and smarthost.host is None:
        yield problem("deliver.smarthost.host", "nothing", "the host that gets everything, for via: smarthost")
    if smarthost.username is not None and smarthost.password is None:
        expected = "deliver.smarthost.password or deliver.smarthost.password_file"
        yield problem("deliver.smarthost.username", "a user name without a password", expected)
    in_clear = smarthost.tls in ("none", "opportunistic") and not is_loopback(smarthost.host or "")
    if smarthost.username is not None and in_clear:
        yield _warned(settings, "deliver.smarthost.tls", "the password may cross the network in clear")
    tracking = settings.tracking
    if deliver.via == "mailbox" or not (tracking.opens or tracking.clicks):
        return
    reason = _unreachable(tracking.base_url)
    if reason:
        hint = "or tracking.opens: false and tracking.clicks: false"
        yield problem("tracking.base_url", reason, "the URL at which readers reach http.public", hint)


def _unreachable(url: str | None) -> str:
    """Why readers of mail cannot reach a URL; empty where nothing speaks against it."""
    if url is None:
        return "nothing, and tracking is on"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        return f"{url!r}, which is no URL of a site"
    name = parts.hostname.lower()
    try:
        address = ipaddress.ip_address(name)
        local = not address.is_global
    except ValueError:
        local = "." not in name or name.endswith((".local", ".localhost", ".internal", ".lan"))
    return f"{url!r}, which only this network reaches" if local else ""


def _listeners(settings: Settings) -> Iterator[Finding]:
    if not settings.listeners:
        yield settings.source.problem("listeners", "an empty list", "at least one listener")
    for index, listener in enumerate(settings.listeners):
        key = f"listeners[{index}]"
        yield from _open_relay(settings, listener, key)
        yield from _listener_tls(settings, listener, key)
        yield from _listener_auth(settings, listener, key)


def _open_relay(settings: Settings, listener: Listener, key: str) -> Iterator[Finding]:
    if listener.auth == "required":
        return
    if not listener.loopback and not listener.allow_networks:
        yield settings.source.problem(
            f"{key}.auth",
            f"{listener.auth!r} on {listener.address} without allow_networks",
            "auth required, or the networks whose mail is taken",
            "whoever reaches the port could send through it: an open relay",
        )
    v4 = [network for network in listener.allow_networks if isinstance(network, ipaddress.IPv4Network)]
    v6 = [network for network in listener.allow_networks if isinstance(network, ipaddress.IPv6Network)]
    # Collapsed, because two halves of the address space are as open as the whole.
    whole: list[Network] = [*ipaddress.collapse_addresses(v4), *ipaddress.collapse_addresses(v6)]
    for collapsed in whole:
        if collapsed.prefixlen == 0:
            text = f"{collapsed} is every address, and auth is {listener.auth!r}: an open relay"
            yield _warned(settings, f"{key}.allow_networks", text)


def _has_certificate(settings: Settings) -> bool:
    return settings.tls.self_signed or settings.tls.certificate_file is not None


def _listener_tls(settings: Settings, listener: Listener, key: str) -> Iterator[Finding]:
    if listener.tls == "none" or _has_certificate(settings):
        return
    if listener.tls == "starttls" and listener.loopback:
        yield _warned(settings, f"{key}.tls", "STARTTLS is not offered, because there is no certificate")
    else:
        yield settings.source.problem(
            f"{key}.tls",
            f"{listener.tls!r} without a certificate",
            "tls.certificate_file and tls.key_file, or tls.self_signed: true",
        )


def _listener_auth(settings: Settings, listener: Listener, key: str) -> Iterator[Finding]:
    if listener.auth == "none":
        return
    issued = settings.data_dir / TOKENS_FILE
    if not settings.tokens and not settings.logins and not issued.is_file():
        if listener.auth == "required":
            yield settings.source.problem(
                f"{key}.auth",
                f"'required', with no tokens, no logins and no file '{issued}'",
                "somebody who may send",
                "run cmail-proxy token add NAME",
            )
        else:
            yield _warned(settings, f"{key}.auth", "nobody can log in; cmail-proxy token add NAME issues a token")
    if listener.auth_without_tls == "always" and not listener.loopback and listener.tls not in ("required", "implicit"):
        yield _warned(settings, f"{key}.auth_without_tls", "passwords may cross the network in clear")
    has_tls = listener.tls != "none" and _has_certificate(settings)
    if listener.auth == "required" and not has_tls and listener.tls in ("none", "starttls"):
        if listener.auth_without_tls == "never":
            yield settings.source.problem(
                f"{key}.auth_without_tls",
                "'never' on a listener that requires auth and has no TLS",
                "TLS on this listener, or another word",
                "no client could log in",
            )
        elif listener.auth_without_tls == "loopback" and not listener.loopback and listener.tls == "none":
            yield _warned(
                settings, f"{key}.auth_without_tls", "only clients on this machine can log in: there is no TLS"
            )


def _certificate(settings: Settings) -> Iterator[Finding]:
    tls = settings.tls
    if tls.certificate_file and not tls.key_file:
        found = "a certificate without a key"
        yield settings.source.problem("tls.certificate_file", found, "tls.key_file", "it may be the same file")
    if tls.key_file and not tls.certificate_file:
        yield settings.source.problem("tls.key_file", "a key without a certificate", "tls.certificate_file")
    if tls.names and not _has_certificate(settings):
        expected = "tls.self_signed: true, or tls.certificate_file and tls.key_file"
        yield settings.source.problem("tls.names", "names without a certificate", expected)
    files = {
        "tls.certificate_file": tls.certificate_file,
        "tls.key_file": tls.key_file,
        "relay.ca_file": settings.relay.ca_file,
    }
    for key, path in files.items():
        reason = _unreadable(path) if path else ""
        if reason:
            yield settings.source.problem(key, f"'{path}', which cannot be read: {reason}", "a file in PEM form")
        elif path and key == "relay.ca_file" and not _vouches(path):
            found = f"'{path}', which holds no certificate that can be read"
            hint = "of the authority that signed the certificate of relay.host"
            yield settings.source.problem(key, found, "certificates in PEM form", hint)


def _data_dir(settings: Settings) -> Iterator[Finding]:
    """Find out whether a folder that has to be written to can be, without making it."""
    if not settings.tls.self_signed:
        return
    there = next((folder for folder in (settings.data_dir, *settings.data_dir.parents) if folder.exists()), None)
    if there is None or not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        found = f"'{settings.data_dir}', which cannot be written to"
        yield settings.source.problem("data_dir", found, "a folder for the certificates of tls.self_signed")


def _unreadable(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _vouches(ca_file: Path) -> bool:
    """Tell whether there is any certificate to check others against."""
    import ssl  # not for those who only read settings

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError):
        return False
    return context.cert_store_stats()["x509"] > 0  # a file of revocations alone is read without complaint


def _relay(settings: Settings) -> Iterator[Finding]:
    relay, problem = settings.relay, settings.source.problem
    if relay.username is not None and relay.password is None:
        yield problem("relay.username", "a user name without a password", "relay.password or relay.password_file")
    if relay.password is not None and relay.username is None:
        key = "relay.password_file" if relay.password_file else "relay.password"
        yield problem(key, "a password without a user name", "relay.username")
    if relay.host is None:
        return
    if relay.username is not None and relay.tls in ("none", "opportunistic") and not is_loopback(relay.host):
        clear = "crosses" if relay.tls == "none" else "may cross"
        yield _warned(settings, "relay.tls", f"the password {clear} the network in clear ({relay.tls})")
    # Not so for 465: this platform's documents ask for STARTTLS there, too.
    if relay.port == 587 and relay.tls == "implicit":
        yield _warned(settings, "relay.tls", "port 587 begins without TLS; 'implicit' will not be understood there")
    for index, listener in enumerate(settings.listeners):
        if relay.port == listener.port and _reaches(relay.host, listener.address, settings.hostname):
            yield problem(
                "relay.host",
                f"{relay.host!r} with port {relay.port}, which is listeners[{index}] of this program",
                "another server",
                "every message would come back",
            )


def _reaches(host: str, address: str, hostname: str) -> bool:
    """Tell whether a connection to *host* arrives at a listener on *address*."""
    listens = ipaddress.ip_address(address)
    if host.lower() == hostname.lower():
        return not listens.is_loopback
    if is_loopback(host) and listens.is_unspecified:
        return True
    targets = ("127.0.0.1", "::1") if host.lower().rstrip(".") == "localhost" else (host,)
    return str(listens) in targets


def _ports(settings: Settings) -> Iterator[Finding]:
    places = [(f"listeners[{i}]", listener.address, listener.port) for i, listener in enumerate(settings.listeners)]
    if settings.delivers:
        places.append(("http.public", settings.http.public.address, settings.http.public.port))
    places.append(("http.probes", settings.http.probes.address, settings.http.probes.port))
    for (first, address, port), (second, other_address, other_port) in combinations(places, 2):
        if port == other_port != 0 and _overlap(address, other_address):
            found = f"port {port} on {other_address}, which {first} has on {address}"
            yield settings.source.problem(f"{second}.port", found, "a port of its own")


def _overlap(one: str, other: str) -> bool:
    a, b = ipaddress.ip_address(one), ipaddress.ip_address(other)
    return a == b or (a.version == b.version and (a.is_unspecified or b.is_unspecified))


def _holders(settings: Settings) -> Iterator[Finding]:
    holders: list[tuple[str, Token | Login]] = [
        *((f"tokens[{index}]", token) for index, token in enumerate(settings.tokens)),
        *((f"logins[{index}]", login) for index, login in enumerate(settings.logins)),
    ]
    for index, (key, holder) in enumerate(holders):
        earlier = holders[:index]
        namesake = next((place for place, other in earlier if other.name == holder.name), "")
        if namesake:
            yield settings.source.problem(
                f"{key}.name", f"{holder.name!r}, the name of {namesake}", "a name of its own"
            )
        equal = next((f"{place} ({other.name})" for place, other in earlier if _same_secret(other, holder)), "")
        if equal:
            found = f"the same secret as {equal}"
            yield settings.source.problem(f"{key}.{_secret_key(holder)}", found, "a secret of its own")


def _secret_key(holder: Token | Login) -> str:
    key, file = ("token", holder.token_file) if isinstance(holder, Token) else ("password", holder.password_file)
    return f"{key}_file" if file else key


def _same_secret(holder: Token | Login, other: Token | Login) -> bool:
    one, two = (it.token if isinstance(it, Token) else it.password for it in (holder, other))
    if one != two:
        return False
    if isinstance(holder, Login) and isinstance(other, Login):
        # Two accounts of the old provider may have had one password; their user names tell them apart.
        return holder.username == other.username or holder.username is None or other.username is None
    return True


def _providers(settings: Settings) -> Iterator[Finding]:
    providers = settings.rules.providers
    for index, provider in enumerate(providers):
        if provider in providers[:index]:
            found = f"{provider!r} a second time"
            yield settings.source.problem(f"rules.providers[{index}]", found, "each provider once")


_CHECKS = (_route, _deliver, _listeners, _certificate, _data_dir, _relay, _ports, _holders, _providers)
