"""``serve`` from its start: what keeps it from starting is told at once, and little is needed for it to run."""

import os
import resource
import shlex
import smtplib
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.operation.program import MODULE, environment, line_with, run, taken_port, write_settings
from tests.support.proxy_process import WAIT_SECONDS, ProxyProcess, settings
from tests.support.upstream import Upstream

IN_USE = "address already in use; stop the program that listens there, or choose another port"
UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


def refusal(config: Path) -> list[str]:
    """Start what cannot start: exit code 1, nothing on standard output; gives the lines on standard error."""
    done = run("serve", "--config", config, cwd=config.parent)
    if (done.returncode, done.stdout) != (1, b""):
        raise AssertionError(done)
    return done.stderr.decode().splitlines()


def config_of(folder: Path, **sections: object) -> Path:
    """Write settings that would serve, but for *sections*."""
    quiet = {"listeners": [{"address": "127.0.0.1", "port": 0, "tls": "none", "auth": "none"}], **sections}
    return write_settings(folder / "settings.yaml", settings(2, **quiet))


@contextmanager
def started(
    command: Sequence[str], folder: Path, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[ProxyProcess]:
    """Start ``serve`` some other way than with a settings file, and require that it ends in order."""
    proxy = ProxyProcess.__new__(ProxyProcess)
    proxy.folder, proxy.log_file = folder, folder / "proxy.log"
    with proxy.log_file.open("wb") as log:
        proxy.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(environ), cwd=cwd
        )
    try:
        listening = proxy.event("listening")
        proxy.ports = [each["port"] for each in listening["listeners"]]
        proxy.port, proxy.probes_port = proxy.ports[0], listening["probes"]["port"]
        yield proxy
        assert proxy.stop() == 0
    finally:
        proxy.kill()


def test_port_in_use_is_told(tmp_path: Path) -> None:
    """A port that another program has ends the start with what to do about it."""
    with taken_port() as port:
        listener = {"address": "127.0.0.1", "port": port, "tls": "none", "auth": "none"}
        assert refusal(config_of(tmp_path, listeners=[listener])) == [
            f"cmail-proxy: listeners[0].port: 127.0.0.1:{port}: {IN_USE}"
        ]


@pytest.mark.parametrize("workers", [1, 2])
def test_authority_without_a_certificate_is_told(tmp_path: Path, workers: int) -> None:
    """A relay.ca_file that vouches for nobody ends the start as any mistake in the settings does, workers or not."""
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
    config = config_of(tmp_path, workers=workers, relay={"tls": "required", "ca_file": "ca.pem"})
    assert refusal(config) == [
        f"error: {config}:{line_with(config, 'ca_file')}: relay.ca_file: found '{tmp_path}/ca.pem', which holds no "
        "certificate that can be read; expected certificates in PEM form (of the authority that signed the "
        "certificate of relay.host)",
        "cmail-proxy: 1 problem",
    ]


def test_all_ports_in_use_are_told_at_once(tmp_path: Path) -> None:
    """Each address that cannot be had is named, that of the probes included."""
    with taken_port() as first, taken_port() as second, taken_port() as third:
        listeners = [
            {"address": "127.0.0.1", "port": port, "tls": "none", "auth": "none"} for port in (first, 0, second)
        ]
        http = {"probes": {"address": "127.0.0.1", "port": third}}
        assert refusal(config_of(tmp_path, listeners=listeners, http=http)) == [
            f"cmail-proxy: listeners[0].port: 127.0.0.1:{first}: {IN_USE}",
            f"cmail-proxy: listeners[2].port: 127.0.0.1:{second}: {IN_USE}",
            f"cmail-proxy: http.probes.port: 127.0.0.1:{third}: {IN_USE}",
        ]


def test_address_of_another_machine_is_told(tmp_path: Path) -> None:
    """An address this machine does not have (RFC 5737 keeps it from having one) is no reason to listen elsewhere."""
    listener = {"address": "192.0.2.1", "port": 0, "tls": "none", "auth": "none", "allow_networks": ["192.0.2.0/24"]}
    assert refusal(config_of(tmp_path, listeners=[listener])) == [
        "cmail-proxy: listeners[0].port: 192.0.2.1:0: this machine has no such address; choose one it has, "
        "or 0.0.0.0 or :: for all"
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may listen on any port")
@pytest.mark.skipif(
    not UNPRIVILEGED.exists() or int(UNPRIVILEGED.read_text()) <= 25, reason="here everybody may listen on any port"
)
def test_privileged_port_is_told(tmp_path: Path) -> None:
    """Port 25 without the right to it ends the start with what gives the right."""
    listener = {"address": "127.0.0.1", "port": 25, "tls": "none", "auth": "none"}
    assert refusal(config_of(tmp_path, listeners=[listener])) == [
        "cmail-proxy: listeners[0].port: 127.0.0.1:25: permission denied; ports below 1024 need the capability "
        "CAP_NET_BIND_SERVICE, or choose a port from 1024 on"
    ]


def test_problems_of_settings_end_the_start_all_at_once(tmp_path: Path) -> None:
    """All problems of the settings are told, and nothing runs with some of them."""
    config = config_of(tmp_path, limits={"hops": 0}, log={"level": "loud"}, smpt={})
    keys = (
        "hostname, data_dir, workers, log, listeners, tls, tokens, logins, rules, smtp, limits, route, shutdown, "
        "relay, deliver, tracking, store, http"
    )
    assert refusal(config) == [
        f"error: {config}:5: limits.hops: found 0; expected an integer from 1 to 1000 (fields)",
        f"error: {config}:6: log.level: found 'loud'; expected debug, info, warning or error",
        f"error: {config}:7: smpt: found unknown key 'smpt'; expected one of {keys} (did you mean 'smtp'?)",
        "cmail-proxy: 3 problems",
    ]


def test_problems_of_rules_end_the_start(tmp_path: Path) -> None:
    """There are no old rules to fall back to: a broken rule file ends the start with file, line and key."""
    (tmp_path / "acme.yaml").write_text("title: Acme\nfields: X-Acme-*\nuntranslatable:\n  - {field: X-Acme-Now}\n")
    config = config_of(tmp_path, rules={"providers": ["acme"], "directories": ["."], "when_absent": "provider"})
    classes = (
        "test_mode, recipients, privacy, text, unsubscribe, time, duplicates, links, content, ambiguous, metadata, "
        "infrastructure"
    )
    assert refusal(config) == [
        f"error: {tmp_path}/acme.yaml:4: untranslatable[0].loses: found nothing; expected a few words on what is lost "
        "(such as: loses: webhook data)",
        f"error: {tmp_path}/acme.yaml:4: untranslatable[0].class: found nothing; expected one of {classes}",
        "cmail-proxy: 2 problems",
    ]


def test_open_relay_ends_the_start(tmp_path: Path) -> None:
    """Nobody has to run `check` first: what it refuses does not serve either."""
    listener = {"address": "0.0.0.0", "port": 0, "tls": "none", "auth": "none"}  # noqa: S104 - refused, never bound
    config = config_of(tmp_path, listeners=[listener])
    assert refusal(config) == [
        f"error: {config}:{line_with(config, 'listeners')}: listeners[0].auth: found 'none' on 0.0.0.0 without "
        "allow_networks; expected auth required, or the networks whose mail is taken (whoever reaches the port could "
        "send through it: an open relay)",
        "cmail-proxy: 1 problem",
    ]


def test_damaged_certificate_ends_the_start(tmp_path: Path) -> None:
    """Listeners that promise TLS do not start without it."""
    (tmp_path / "server.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
    config = config_of(tmp_path, tls={"certificate_file": "server.pem", "key_file": "server.pem"})
    assert refusal(config) == [
        f"error: {tmp_path}/server.pem: tls.certificate_file: found a damaged certificate (number 1 in the file); "
        "expected a certificate chain in PEM form, the server's own certificate first",
        f"error: {tmp_path}/server.pem: tls.key_file: found no private key in PEM form; expected the private key of "
        "the first certificate, in PEM form and without a passphrase",
        "cmail-proxy: 2 problems",
    ]


def test_environment_alone_is_enough(tmp_path: Path) -> None:
    """In a container there may be no settings file: every setting has a variable, secrets from files included."""
    (tmp_path / "token").write_text("token-of-the-test\n")
    with Upstream() as upstream:
        environ = {
            "CMAIL_PROXY_HOSTNAME": "proxy.example.com",
            "CMAIL_PROXY_DATA_DIR": str(tmp_path / "data"),
            "CMAIL_PROXY_LISTENERS__0__PORT": "0",
            "CMAIL_PROXY_TOKENS__0__NAME": "tests",
            "CMAIL_PROXY_TOKENS__0__TOKEN_FILE": str(tmp_path / "token"),
            "CMAIL_PROXY_RELAY__HOST": "127.0.0.1",
            "CMAIL_PROXY_RELAY__PORT": str(upstream.port),
            "CMAIL_PROXY_RELAY__TLS": "none",
            "CMAIL_PROXY_RULES__PROVIDERS": "[postmark]",
            "CMAIL_PROXY_HTTP__PROBES__PORT": "0",
        }
        with started([*MODULE, "serve"], tmp_path, environ) as proxy:
            with smtplib.SMTP("127.0.0.1", proxy.port, timeout=WAIT_SECONDS) as client:
                client.login("token-of-the-test", "token-of-the-test")
                client.sendmail("a@example.com", ["b@example.net"], "X-PM-Tag: orders\r\n\r\nbody\r\n")
            assert b"X-Cmail-GroupName: orders\r\n" in upstream.taken[0].content
            assert proxy.event("message")["login"] == "tests"


def test_certificates_of_our_own_are_private(tmp_path: Path) -> None:
    """self_signed makes what it needs in data_dir: keys for the owner alone, the authority's certificate for all."""
    with ProxyProcess(tmp_path, settings(2, data_dir="data", tls={"self_signed": True})) as proxy:
        folder = tmp_path / "data" / "tls"
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
        assert modes.pop("ca.pem") == 0o644
        assert "ca.key" in modes
        assert set(modes.values()) == {0o600}
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert proxy.stop() == 0
    with ProxyProcess(tmp_path, settings(2, data_dir="data", tls={"self_signed": True})):
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_working_folder_that_cannot_be_written_is_enough(tmp_path: Path) -> None:
    """Only data_dir is written to, so the rest of a container's file system may be read-only."""
    nowhere = Path("/proc")
    with pytest.raises(OSError, match="var"):
        (nowhere / "var").mkdir()
    config = write_settings(
        tmp_path / "settings.yaml", settings(2, data_dir=str(tmp_path / "data"), tls={"self_signed": True})
    )
    with (
        started([*MODULE, "serve", "--config", str(config)], tmp_path, cwd=nowhere) as proxy,
        smtplib.SMTP("127.0.0.1", proxy.port, timeout=WAIT_SECONDS) as client,
    ):
        assert client.starttls()[0] == 220
    assert {each.name for each in tmp_path.iterdir()} == {"settings.yaml", "proxy.log", "data"}


def shell(limits: str, config: Path) -> list[str]:
    """Start ``serve`` under limits of the shell."""
    return ["sh", "-c", f"{limits}; exec {shlex.join(MODULE)} serve --config {shlex.quote(str(config))}"]


def open_files(proxy: ProxyProcess) -> tuple[int, int]:
    """The limit of open files that a process has: soft and hard."""
    return resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE)


def test_limit_of_open_files_is_raised_for_the_connections_allowed(tmp_path: Path) -> None:
    """A low soft limit is raised to what limits.connections and relay.connections need, and nothing is said of it."""
    config = config_of(tmp_path, limits={"connections": 300}, relay={"connections": 20})
    with started(shell("ulimit -Sn 128", config), tmp_path) as proxy:
        assert open_files(proxy)[0] >= 320
        assert proxy.events("descriptor_limit") == []


def test_limit_of_open_files_that_is_too_low_is_told(tmp_path: Path) -> None:
    """Where the system allows too few, it is said how many are needed, and mail is taken all the same."""
    config = config_of(tmp_path, limits={"connections": 300}, relay={"connections": 20})
    with started(shell("ulimit -Sn 100; ulimit -Hn 200", config), tmp_path) as proxy:
        assert open_files(proxy) == (200, 200)
        (told,) = proxy.events("descriptor_limit")
        assert (told["level"], told["hard_limit"]) == ("warning", 200)
        assert told["needed"] > 320
        assert told["hint"] == "raise it, or lower limits.connections"
        assert proxy.get("/readyz")[0] == 200
