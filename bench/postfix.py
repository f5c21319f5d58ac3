"""
Postfix as a peer: its pass-through proxy (``smtpd_proxy_filter``), its queue, and its own load generator and sink.

The pass-through proxy cannot change a header section, speaks no TLS to its next hop and keeps no connection to it
beyond a client's session; it is here as a well-known program that passes mail on without a queue.
Its log goes to syslog, which few containers have, so it mostly logs to nowhere.
"""

import contextlib
import os
import pwd
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

from bench.certificate import Certificate
from bench.load import Load, LoadError, Sent
from bench.message import RECIPIENT, SENDER
from bench.peers import Peer, Program, free_port, tool

NAME = "postfix-proxy"
QUEUE = "postfix-queue"
_USER = "postfix"

# Name look-ups of clients are off, and so is every queue: as little as Postfix can do.
_MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/spool
data_directory = {folder}/data
myhostname = postfix.example.com
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions =
disable_dns_lookups = yes
default_process_limit = 200
message_size_limit = 52428800
smtpd_tls_security_level = may
smtpd_tls_cert_file = {certificate.certificate_file}
smtpd_tls_key_file = {certificate.key_file}
smtpd_tls_session_cache_database =
"""
_LISTENER = """\
127.0.0.1:{port} inet n - n - - smtpd
  -o smtpd_proxy_filter=127.0.0.1:{upstream}
"""
# A queue: smtpd, cleanup (which syncs), qmgr, smtp. Debian's defaults, but for what keeps it on this machine.
_QUEUE = """\
compatibility_level = 3.6
queue_directory = {folder}/spool
data_directory = {folder}/data
myhostname = postfix.example.com
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions =
relayhost = [127.0.0.1]:{upstream}
header_checks = regexp:{folder}/etc/header_checks
message_size_limit = 52428800
smtp_tls_security_level = none
smtp_host_lookup = native
disable_dns_lookups = yes
"""
_QUEUE_LISTENER = """\
127.0.0.1:{port} inet n - n - - smtpd
"""
_HEADER_CHECKS = "/^X-Mailgun-Tag:(.*)$/ REPLACE X-Cmail-GroupName:$1\n"
_SERVICES = """\
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
smtp unix - - n - - smtp
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
scache unix - - n - 1 scache
"""


def missing() -> str:
    """Say why Postfix cannot take part as a peer; empty when it can."""
    if tool("postfix") is None:
        return "postfix is not installed"
    if os.geteuid() != 0:
        return "postfix starts as root only"
    return ""


def tools_missing() -> str:
    """Say why Postfix's generator and sink cannot be used; empty when they can."""
    absent = [name for name in ("smtp-source", "smtp-sink") if tool(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


@contextlib.contextmanager
def running(folder: Path, upstreams: dict[int, bytes], certificate: Certificate) -> Iterator[list[Peer]]:
    """
    Run one instance with a listener for each next hop.

    Args:
        folder: For its configuration and data; readable by everybody.
        upstreams: Port of each next hop, and what its reply to a message begins with.

    Yields:
        A peer for each next hop, in the same order.
    """
    ports = [free_port() for _ in upstreams]
    listeners = [
        _LISTENER.format(port=port, upstream=upstream) for port, upstream in zip(ports, upstreams, strict=True)
    ]
    main = _MAIN.format(folder=folder / NAME, certificate=certificate)
    with _instance(NAME, folder, main, "".join(listeners), ports) as pid:
        yield [Peer(NAME, port, pid, taken) for port, taken in zip(ports, upstreams.values(), strict=True)]


@contextlib.contextmanager
def queue(folder: Path, upstream: int, *, name: str = QUEUE, more: str = "") -> Iterator[Peer]:
    """
    Run one instance that queues and delivers.

    Args:
        folder: For its configuration, queue and data; readable by everybody.
        upstream: Port of the next hop.
        more: Lines for its ``main.cf``.
    """
    port = free_port()
    file_name = "-".join(name.replace(",", "").split())
    main = _QUEUE.format(folder=folder / file_name, upstream=upstream) + more
    with _instance(file_name, folder, main, _QUEUE_LISTENER.format(port=port), [port]) as pid:
        yield Peer(name, port, pid, b"250 2.0.0")


@contextlib.contextmanager
def _instance(name: str, folder: Path, main: str, listeners: str, ports: Sequence[int]) -> Iterator[int]:
    """Run an instance in a folder of its own; gives its process id."""
    base = folder / name
    for each in ("etc", "spool", "data"):
        (base / each).mkdir(parents=True)
    shutil.chown(base / "data", _USER)
    (base / "etc" / "main.cf").write_text(main, encoding="ascii")
    (base / "etc" / "master.cf").write_text(listeners + _SERVICES, encoding="ascii")
    (base / "etc" / "header_checks").write_text(_HEADER_CHECKS, encoding="ascii")
    command = tool("postfix") or ""
    with Program(name, [command, "-c", str(base / "etc"), "start-fg"], folder) as program:
        try:
            for port in ports:
                program.wait_for_greeting(port)
            yield program.pid
        finally:
            # SIGTERM to the script in front would leave the servers behind it running.
            subprocess.run(  # noqa: S603
                [command, "-c", str(base / "etc"), "stop"], capture_output=True, check=False, timeout=30
            )


@contextlib.contextmanager
def smtp_sink(folder: Path) -> Iterator[tuple[Peer, int]]:
    """Run Postfix's sink, which takes everything; give it as a peer, with its process id."""
    port = free_port()
    user = ["-u", _USER if _has_user() else "nobody"] if os.geteuid() == 0 else []
    command = [tool("smtp-sink") or "", "-4", *user, "-m", "500", f"127.0.0.1:{port}", "512"]
    with Program("smtp-sink", command, folder) as program:
        program.wait_for_greeting(port)
        yield Peer("direct", port, 0, b"250"), program.pid


def smtp_source(load: Load, port: int, message_file: Path) -> Sent:
    """
    Send all messages of a load with Postfix's generator, which does no TLS and times nothing.

    Args:
        message_file: The message with bare LF and single dots; the content of *load* is not used.

    Raises:
        LoadError: It did not get through.
    """
    command = [tool("smtp-source") or "", "-4", *(["-d"] if load.kept else [])]
    command += ["-s", str(min(load.sessions, load.messages)), "-m", str(load.messages), "-F", str(message_file)]
    command += ["-f", SENDER, "-t", RECIPIENT, "-M", "app.example.com", f"127.0.0.1:{port}"]
    before = _children_seconds()
    started = perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=load.seconds)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise LoadError(f"smtp-source was not done in {load.seconds:g} s") from None
    seconds = perf_counter() - started
    if done.returncode:
        raise LoadError(f"smtp-source: {done.stderr.decode('utf-8', 'replace').strip()}")
    return Sent(seconds, [], _children_seconds() - before, 0)


def version() -> str:
    """Give the version of Postfix; empty where there is none."""
    command = tool("postconf")
    if command is None:
        return ""
    done = subprocess.run([command, "-d", "-h", "mail_version"], capture_output=True, check=False, timeout=10)  # noqa: S603
    return done.stdout.decode("ascii", "replace").strip()


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _has_user() -> bool:
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        return False
    return True
