"""Every example of settings and rules in the documentation is taken by the program, and does what the text says."""

import json
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from tests.conftest import require_node_module, require_tool
from tests.docs.pages import DOCS, PAGES, README, ROOT, Block, block, blocks, prose, spans
from tests.operation.program import environment, run
from tests.smtp_in.dialogue import QUEUED, Client, plain
from tests.support.proxy_process import ProxyProcess
from tests.support.upstream import Upstream

SWITCHING, RULES, SETTINGS, OPERATION, DELIVERY = (
    DOCS / f"{name}.md" for name in ("switching", "rules", "settings", "operation", "delivery")
)
EXAMPLE = ROOT / "examples" / "cmail-proxy.yaml"
FOLDERS = ("/etc/cmail-proxy", "/run/secrets", "/var/lib/cmail-proxy")
ALL = [each for page in PAGES for each in blocks(page, "yaml", "settings")]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder that stands for the file system of the examples, with the files they name."""
    for folder in FOLDERS:
        (tmp_path / folder[1:]).mkdir(parents=True)
    certificate = trustme.CA().issue_cert("mail.example.com")
    certificate.private_key_pem.write_to_path(tmp_path / "etc/cmail-proxy/tls.key")
    for chain in certificate.cert_chain_pems:
        chain.write_to_path(tmp_path / "etc/cmail-proxy/tls.crt", append=True)
    for each in ALL:
        for name in re.findall(r"_file: /run/secrets/([\w-]+)", each.text):
            (tmp_path / "run/secrets" / name).write_text(f"secret-{name}\n", "utf-8")
    rules = tmp_path / "etc/cmail-proxy/my-rules"
    rules.mkdir()
    (rules / "acme.yaml").write_text(block(RULES, "yaml", "rules"), "utf-8")
    return tmp_path


def moved(text: str, folder: Path) -> str:
    """An example with its folders below *folder*."""
    for each in FOLDERS:
        text = text.replace(each, f"{folder}{each}")
    return text


# Settings


@pytest.mark.parametrize("example", ALL, ids=lambda example: example.id)
def test_settings_example_passes_check_without_a_warning(example: Block, elsewhere: Path) -> None:
    """What an operator copies from the docs is complete: `check` says ok, and has nothing to warn of."""
    config = elsewhere / "etc/cmail-proxy/settings.yaml"
    config.write_text(moved(example.text, elsewhere), "utf-8")
    done = run("check", "--config", config)
    assert done.stderr.decode() == ""
    assert done.stdout.startswith(b"ok: ")
    assert done.returncode == 0


def test_example_file_passes_check_without_a_warning() -> None:
    """The example can be tried where it lies, and all four ports are in it."""
    done = run("check", "--config", EXAMPLE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().partition("listening on ")[2] == (
        "127.0.0.1:25 (starttls), 127.0.0.1:587 (starttls), 127.0.0.1:465 (auto), 127.0.0.1:2525 (none); "
        "relaying to smtp.example.com:587\n"
    )


def test_first_settings_pass_check(tmp_path: Path) -> None:
    """The five lines of the README are enough; what the platform does otherwise is warned of."""
    config = tmp_path / "first.yaml"
    config.write_text(block(README, "yaml", "first.yaml"), "utf-8")
    line = block(SETTINGS, "sh", "check").split()
    assert line == [".venv/bin/cmail-proxy", "check", "--config", "first.yaml"]
    done = run(*line[1:], cwd=tmp_path)
    assert done.returncode == 0
    assert all(line.startswith("warning: rules.when_absent: platform: ") for line in done.stderr.decode().splitlines())


def test_delivery_settings_pass_check(tmp_path: Path) -> None:
    """What the page on delivery shows for a server that takes everything needs nothing else."""
    config = tmp_path / "delivery.yaml"
    config.write_text(block(DELIVERY, "yaml", "delivery"), "utf-8")
    done = run("check", "--config", config, cwd=tmp_path)
    assert done.returncode == 0
    assert all(line.startswith("warning: rules.when_absent: platform: ") for line in done.stderr.decode().splitlines())
    assert done.stdout.decode().endswith("; delivering by smtp.example.com:587\n")


def test_environment_examples_are_taken(tmp_path: Path) -> None:
    """Variables of the text lay themselves over a file."""
    config = tmp_path / "first.yaml"
    config.write_text(block(README, "yaml", "first.yaml"), "utf-8")
    given = dict(span.split("=", 1) for span in spans(SETTINGS) if re.match(r"CMAIL_PROXY_\w+=", span))
    assert list(given) == ["CMAIL_PROXY_LISTENERS__0__PORT", "CMAIL_PROXY_RULES__PROVIDERS"]
    given = {name: value.strip("'") for name, value in given.items()}
    done = run("check", environ={**given, "CMAIL_PROXY_CONFIG": str(config)})
    assert done.stdout.decode().partition(" rules of ")[2] == (
        "mailgun, postmark; listening on 127.0.0.1:2525 (starttls); relaying to 127.0.0.1:2526\n"
    )


# Running them


def serving(text: str, folder: Path, upstream: Upstream, **overrides: Any) -> ProxyProcess:
    """Start the proxy with an example, on free ports and with the platform on script behind it."""
    values = yaml.safe_load(text)
    values["listeners"] = [{**listener, "port": 0} for listener in values["listeners"]]
    values["relay"] = {"host": "127.0.0.1", "port": upstream.port, "tls": "none"}
    values["http"] = {"probes": {"address": "127.0.0.1", "port": 0}}
    values |= {"hostname": "proxy.example.com", "data_dir": str(folder / "var"), **overrides}
    return ProxyProcess(folder, values)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """The platform."""
    with Upstream() as server:
        yield server


def test_logins_of_the_switching_page_let_each_app_in(tmp_path: Path, upstream: Upstream) -> None:
    """Each old login of the example works, Mandrill's with any user name; that for tests sends nothing."""
    text = next(each.text for each in blocks(SWITCHING, "yaml", "settings") if "any is taken" in each.text)
    with serving(text, tmp_path, upstream) as proxy:
        for login in yaml.safe_load(text)["logins"]:
            with Client(proxy.port) as client:
                reply = client.say(f"AUTH PLAIN {plain(login.get('username', 'whatever'), login['password'])}")
                assert reply == "235 2.7.0 Authentication succeeded"
                answer = client.data(b"Subject: hi\r\n\r\nbody\r\n.\r\n")
                assert answer == (
                    "250 2.0.0 Discarded and not sent: login tests is for tests" if login.get("discard") else QUEUED
                )
        # Each provider's own defaults, since its login says which one it is.
        assert [b"X-Cmail-InlineCSS: false\r\n" in taken.content for taken in upstream.taken] == [True] * 5


def test_hard_coded_hosts_get_a_certificate_on_both_ports(tmp_path: Path, upstream: Upstream) -> None:
    """Who trusts the authority reaches every host by STARTTLS, and on 465 by TLS from the first octet, too."""
    text = next(each.text for each in blocks(SWITCHING, "yaml", "settings") if "names:" in each.text)
    names = yaml.safe_load(text)["tls"]["names"]
    assert block(SWITCHING, "text", "hosts").split() == ["127.0.0.1", *names]
    with serving(text, tmp_path, upstream) as proxy:
        trusting = ssl.create_default_context(cafile=str(tmp_path / "var" / "tls" / "ca.pem"))
        for name in names:
            with Client(proxy.ports[0]) as client:
                assert client.say("STARTTLS") == "220 2.0.0 Ready to start TLS"
                client.start_tls(trusting, name)
                assert client.ehlo()
            with Client(proxy.ports[1], context=trusting, server_hostname=name) as client:
                assert client.say("NOOP") == "250 2.0.0 OK"
        with Client(proxy.ports[1]) as client:  # and by STARTTLS there, too
            assert client.say("STARTTLS") == "220 2.0.0 Ready to start TLS"


def test_symfony_example_translates_the_neutral_fields(tmp_path: Path) -> None:
    """An app that left its bridge keeps group and tracking."""
    text = next(each.text for each in blocks(SWITCHING, "yaml", "settings") if "symfony" in each.text)
    (tmp_path / "settings.yaml").write_text(text, "utf-8")
    message = (
        b"X-Tag: orders\nX-Tag: shop\nX-Track: opens=false; clicks=default\nX-Metadata-Order: 1\nSubject: hi\n\nbody\n"
    )
    assert "`opens=false; clicks=default`" in prose(SWITCHING)
    done = run("translate", "--config", tmp_path / "settings.yaml", stdin=message)
    assert done.stdout == b"X-Cmail-GroupName: orders\nX-Cmail-TrackOpens: false\nSubject: hi\n\nbody\n"


SECURED = """
import os, smtplib, ssl, sys
with smtplib.SMTP("localhost", int(sys.argv[1])) as client:
    client.starttls(context=ssl.create_default_context())
    print(client.noop()[0])
"""


def test_variables_for_trust_make_python_and_node_check_the_certificate(tmp_path: Path, upstream: Upstream) -> None:
    """`SSL_CERT_FILE` and `NODE_EXTRA_CA_CERTS` with ca.pem are all that a client which checks certificates needs."""
    folder = require_node_module("nodemailer")
    with serving(EXAMPLE.read_text("utf-8"), tmp_path, upstream) as proxy:
        authority = str(tmp_path / "var" / "tls" / "ca.pem")
        port = str(proxy.ports[1])
        python = [sys.executable, "-c", SECURED, port]
        trusted = subprocess.run(
            python, env=environment({"SSL_CERT_FILE": authority}), capture_output=True, timeout=30, check=False
        )
        assert trusted.stdout == b"250\n", trusted.stderr
        untrusted = subprocess.run(python, env=environment(), capture_output=True, timeout=30, check=False)
        assert b"CERTIFICATE_VERIFY_FAILED" in untrusted.stderr
        login = {"user": "change-me-newsletter", "pass": "change-me-newsletter"}
        transport = {"host": "localhost", "port": int(port), "requireTLS": True, "auth": login}
        message = {"from": "app@example.com", "to": "ann@example.net", "text": "hi", "headers": {"X-PM-Tag": "welcome"}}
        given = json.dumps({"transport": transport, "messages": [message]})
        node = [require_tool("node"), str(folder / "send.mjs")]
        sent = subprocess.run(
            node,
            env=environment({"NODE_EXTRA_CA_CERTS": authority}),
            input=given.encode(),
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert sent.stdout.decode() == f"{QUEUED}\n", sent.stderr
        refused = subprocess.run(
            node, env=environment(), input=given.encode(), capture_output=True, timeout=30, check=False
        )
        assert refused.returncode == 1
        assert len(upstream.taken) == 1


# Rules


def test_invented_provider_gives_the_explanation_in_the_docs(elsewhere: Path) -> None:
    """The rule file, settings and message of the rules page give word for word the explanation that stands there."""
    folder = elsewhere / "etc/cmail-proxy"
    (settings,) = blocks(RULES, "yaml", "settings")
    (folder / "acme.yaml").write_text(settings.text, "utf-8")
    (elsewhere / "message.eml").write_text(block(RULES, "text", "message"), "utf-8")
    line = moved(block(RULES, "sh", "explain"), elsewhere).split()
    done = run(*line[1:], cwd=elsewhere)
    assert done.stdout.decode() == moved(block(RULES, "text", "explain"), elsewhere)
    assert done.returncode == 0


def test_invented_provider_keeps_the_other_promises_of_its_page(elsewhere: Path) -> None:
    """Test mode, default and exception of the invented provider do what the comments in its file say."""
    folder = elsewhere / "etc/cmail-proxy"
    (folder / "acme.yaml").write_text(blocks(RULES, "yaml", "settings")[0].text, "utf-8")

    def explained(fields: bytes) -> str:
        return run("translate", "--config", folder / "acme.yaml", "--explain", stdin=fields + b"\n\n").stdout.decode()

    assert explained(b"X-Acme-Sandbox: on").splitlines()[-1] == (
        "decision   discarded, answered with 250: X-Acme-Sandbox (test mode that delivers nothing)"
    )
    silent = explained(b"X-Acme-Labels: a\nX-Acme-Received: b")
    assert "set        X-Cmail-TrackOpens: false\n" in silent
    assert "X-Acme-Received" not in silent


# The message line


def test_message_line_of_the_docs_is_what_a_message_gives(tmp_path: Path, upstream: Upstream) -> None:
    """The example of the log line has the keys, in their order, and the values that such a message really gives."""
    text = block(README, "yaml", "first.yaml")
    told = json.loads(block(OPERATION, "json", "message"))
    with serving(text, tmp_path, upstream) as proxy:
        with Client(proxy.port) as client:
            client.say(f"AUTH PLAIN {plain('try-me', 'try-me')}")
            client.data(
                b"From: app@example.com\r\nTo: ann@example.net\r\nSubject: Welcome\r\nX-Mailgun-Tag: welcome\r\n"
                b'X-Mailgun-Track-Clicks: no\r\nX-Mailgun-Variables: {"order": "1"}\r\n\r\nHello\r\n.\r\n'
            )
        line = proxy.event("message")
    assert list(line) == list(told)
    assert list(line["seconds"]) == list(told["seconds"])
    for name in ("ts", "id", "session", "listener", "seconds"):
        assert type(line[name]) is type(told[name])
        line[name] = told[name]
    assert line == told
