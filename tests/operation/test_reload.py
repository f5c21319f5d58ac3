"""Files that change while the proxy runs: rules, certificates and issued tokens."""

import os
import shutil
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.operation.program import eventually, run
from tests.smtp_in.dialogue import Client, plain, trusting
from tests.smtp_in.site import Site, site

SUCCESS = "cmail_proxy_rules_last_reload_success"
COUNT = "cmail_proxy_rules"
CERTIFICATE_SUCCESS = "cmail_proxy_certificate_last_reload_success"
NAME = "mail.example.com"


def rules(field: str) -> str:
    """A rule file whose only field is the group."""
    return f"title: Acme\nfields: [X-Acme-*]\ntranslate:\n  - {{field: X-Acme-{field}, to: X-Cmail-GroupName}}\n"


def with_rules(folder: Path) -> dict[str, object]:
    """Settings with the rules of *folder* and a place for tokens."""
    return {"providers": ["acme"], "directories": [str(folder)], "when_absent": "provider"}


def group(here: Site, client: Client) -> str:
    """Send a message that labels itself in two ways, and give the group that came of it."""
    here.forget()
    assert client.data(b"X-Acme-One: one\r\nX-Acme-Two: two\r\n\r\nbody\r\n.\r\n") == "250 2.0.0 queued as PLATFORM1"
    return here.header().decode().partition("X-Cmail-GroupName: ")[2].partition("\r\n")[0]


def issue_token(here: Site, name: str) -> str:
    """Issue a token while the proxy runs, and wait until the proxy knows: then it has looked at the rules, too."""
    seen = len(here.proxy.events("tokens_reloaded"))
    done = run("token", "add", name, "--config", here.proxy.config)
    assert done.returncode == 0
    here.proxy.event("tokens_reloaded", seen + 1)
    return done.stdout.decode().strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a rule file."""
    made = tmp_path / "rules"
    made.mkdir()
    (made / "acme.yaml").write_text(rules("One"))
    return made


@pytest.fixture
def here(tmp_path: Path, folder: Path) -> Iterator[Site]:
    """A proxy with the rules in that folder."""
    with site(tmp_path, rules=with_rules(folder)) as started:
        yield started


def test_changed_rule_file_is_in_force_for_the_next_message(here: Site, folder: Path) -> None:
    """New content counts without a restart, also for a client that was connected before."""
    with here.client() as client:
        assert group(here, client) == "one"
        (folder / "acme.yaml").write_text(rules("Two") + "  - {field: X-Acme-One, to: X-Cmail-GroupName}\n")
        assert here.proxy.event("rules_reloaded")["rules"] == 2
        assert group(here, client) == "two"
    assert here.proxy.metric(SUCCESS) == 1
    assert here.proxy.metric(COUNT) == 2


def test_configmap_swap_is_a_change(tmp_path: Path) -> None:
    """Kubernetes turns one link (..data) to a new folder; the files themselves are never written to."""
    mounted = tmp_path / "rules"
    first, second = mounted / "..2026_11_23_08", mounted / "..2026_11_23_09"
    first.mkdir(parents=True)
    (first / "acme.yaml").write_text(rules("One"))
    (mounted / "..data").symlink_to(first.name)
    (mounted / "acme.yaml").symlink_to(Path("..data", "acme.yaml"))
    with site(tmp_path, rules=with_rules(mounted)) as here, here.client() as client:
        assert group(here, client) == "one"
        second.mkdir()
        (second / "acme.yaml").write_text(rules("Two"))
        age = (first / "acme.yaml").stat()
        os.utime(second / "acme.yaml", ns=(age.st_atime_ns, age.st_mtime_ns))  # of the same age and size
        (mounted / "..data_tmp").symlink_to(second.name)
        (mounted / "..data_tmp").rename(mounted / "..data")
        shutil.rmtree(first)
        here.proxy.event("rules_reloaded")
        assert group(here, client) == "two"
        assert here.proxy.events("rules_reload_failed") == []


def test_broken_rule_file_leaves_the_old_rules_in_force(here: Site, folder: Path) -> None:
    """What is wrong is logged with file, line and key and shown in a metric; a mended file ends that."""
    file = folder / "acme.yaml"
    with here.client() as client:
        file.write_text(rules("Two") + "  - {field: X-Acme-One, to: X-Cmail-Group}\nwhen_absent: nothing\n")
        here.proxy.wait_for_metric(SUCCESS, 0)
        here.proxy.event("rules_reload_failed", 2)  # lines are written a turn of the event loop later
        told = here.proxy.events("rules_reload_failed")
        assert sorted(each["problem"] for each in told) == [
            f"{file}:5: translate[1].to: found 'X-Cmail-Group'; expected one of X-Cmail-GroupName, X-Cmail-TrackOpens, "
            "X-Cmail-TrackClicks, X-Cmail-InlineCSS, deliver_at (did you mean 'X-Cmail-GroupName'?)",
            f"{file}:6: when_absent: found 'nothing'; expected a mapping",
        ]
        assert {each["level"] for each in told} == {"error"}
        assert here.proxy.metric(COUNT) == 1
        assert group(here, client) == "one"
        issue_token(here, "one-look-later")
        assert len(here.proxy.events("rules_reload_failed")) == 2  # told once, not at every look
        assert here.proxy.get("/readyz") == (200, "ready\n")
        file.write_text(rules("Two"))
        here.proxy.wait_for_metric(SUCCESS, 1)
        assert group(here, client) == "two"


@pytest.mark.parametrize("name", ["alias-bomb", "nesting-too-deep", "fields-name"])
def test_hostile_rule_file_is_a_broken_one(here: Site, folder: Path, name: str) -> None:
    """Aliases of aliases, nesting without end and odd patterns are told like any slip, and mail is served as before."""
    bad = Path(__file__).parents[1] / "bad_rules"
    expected = (bad / f"{name}.expected").read_text("utf-8").splitlines()
    with here.client() as client:
        assert group(here, client) == "one"
        (folder / "acme.yaml").write_bytes((bad / f"{name}.yaml").read_bytes())
        here.proxy.wait_for_metric(SUCCESS, 0)
        here.proxy.event("rules_reload_failed", len(expected))  # lines are written a turn of the event loop later
        told = [each["problem"].removeprefix(f"{folder}/") for each in here.proxy.events("rules_reload_failed")]
        assert told == [line.replace(f"{name}.yaml", "acme.yaml", 1) for line in expected]
        assert group(here, client) == "one"
    here.serves()


def test_rule_file_that_goes_leaves_the_old_rules_in_force(here: Site, folder: Path) -> None:
    """A file that is gone is a problem like any other, and the same file put back is no news."""
    file = folder / "acme.yaml"
    file.unlink()
    here.proxy.wait_for_metric(SUCCESS, 0)
    with here.client() as client:
        assert group(here, client) == "one"
        file.write_text(rules("One"))
        here.proxy.wait_for_metric(SUCCESS, 1)
        assert group(here, client) == "one"


def test_folder_of_rules_that_goes_leaves_the_old_rules_in_force(here: Site, folder: Path) -> None:
    """A volume that vanishes for a moment is told of, and changes nothing."""
    folder.rename(folder.with_name("away"))
    here.proxy.wait_for_metric(SUCCESS, 0)
    assert here.proxy.event("rules_reload_failed")["problem"].endswith(
        f"rules.directories[0]: found '{folder}', which does not exist; expected a folder with rule files (make it, or "
        "take it out of the list)"
    )
    with here.client() as client:
        assert group(here, client) == "one"
        folder.with_name("away").rename(folder)
        here.proxy.wait_for_metric(SUCCESS, 1)
        assert group(here, client) == "one"


def test_file_that_was_only_touched_is_no_change(here: Site, folder: Path) -> None:
    """The content counts: a new time on a file, or the same file written again, reloads nothing."""
    before = here.proxy.metric("cmail_proxy_rules_last_reload_timestamp_seconds")
    os.utime(folder / "acme.yaml")
    issue_token(here, "first")
    (folder / "acme.new").write_text(rules("One"))
    (folder / "acme.new").rename(folder / "acme.yaml")
    issue_token(here, "second")
    assert here.proxy.events("rules_reloaded") == []
    assert here.proxy.metric("cmail_proxy_rules_last_reload_timestamp_seconds") == before


def test_own_file_for_a_shipped_provider_counts_once_it_is_there(tmp_path: Path) -> None:
    """A folder that gets a file later replaces the shipped one at that moment, and gives it back when the file goes."""
    mounted = tmp_path / "rules"
    mounted.mkdir()
    with (
        site(tmp_path, rules={"providers": ["mailgun"], "directories": [str(mounted)]}) as here,
        here.client() as client,
    ):
        (mounted / "mailgun.yaml").write_text(rules("One").replace("Acme", "Mailgun"))
        here.proxy.event("rules_reloaded")
        client.data(b"X-Mailgun-One: mine\r\nX-Mailgun-Tag: theirs\r\n\r\nbody\r\n.\r\n")
        assert b"X-Cmail-GroupName: mine\r\n" in here.header()
        (mounted / "mailgun.yaml").unlink()
        here.proxy.event("rules_reloaded", 2)
        here.forget()
        client.data(b"X-Mailgun-One: mine\r\nX-Mailgun-Tag: theirs\r\n\r\nbody\r\n.\r\n")
        assert b"X-Cmail-GroupName: theirs\r\n" in here.header()


def issue(folder: Path, ca: trustme.CA) -> bytes:
    """Write a certificate and its key as a secret is mounted, and give the certificate as clients will see it."""
    folder.mkdir(parents=True)
    made = ca.issue_cert(NAME)
    made.private_key_pem.write_to_path(folder / "tls.key")
    made.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    return ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())


def shown(here: Site, context: ssl.SSLContext) -> bytes | None:
    """Connect, start TLS, and give the certificate that was shown."""
    with here.client() as client:
        assert client.say("STARTTLS") == "220 2.0.0 Ready to start TLS"
        return client.start_tls(context, NAME).getpeercert(binary_form=True)


def turn(mounted: Path, target: Path) -> None:
    """Let the link ..data point somewhere else, at one stroke."""
    (mounted / "..data_tmp").symlink_to(target.name)
    (mounted / "..data_tmp").rename(mounted / "..data")


def test_certificate_behind_a_turned_link_is_shown_to_new_clients(tmp_path: Path) -> None:
    """A renewed certificate needs no restart; a broken one changes nothing, is logged, and shown in a metric."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = trusting(str(tmp_path / "ca.pem"))
    mounted = tmp_path / "certificate"
    first = issue(mounted / "..first", ca)
    turn(mounted, mounted / "..first")
    for name in ("tls.crt", "tls.key"):
        (mounted / name).symlink_to(Path("..data", name))
    tls = {"certificate_file": str(mounted / "tls.crt"), "key_file": str(mounted / "tls.key")}
    with site(tmp_path, tls=tls) as here:
        assert shown(here, context) == first
        with here.client() as early:
            early.say("STARTTLS")
            early.start_tls(context, NAME)
            early.ehlo()
            second = issue(mounted / "..second", ca)
            turn(mounted, mounted / "..second")
            here.proxy.event("certificate_reloaded")
            assert shown(here, context) == second != first
            assert here.proxy.metric(CERTIFICATE_SUCCESS) == 1
            assert early.say("NOOP") == "250 2.0.0 OK"  # open connections are not touched
        issue(mounted / "..third", ca)
        (mounted / "..third" / "tls.key").write_text("no key\n")
        turn(mounted, mounted / "..third")
        here.proxy.wait_for_metric(CERTIFICATE_SUCCESS, 0)
        assert here.proxy.event("certificate_reload_failed")["problem"] == (
            f"{mounted}/tls.key: tls.key_file: found no private key in PEM form; expected the private key of the first "
            "certificate, in PEM form and without a passphrase"
        )
        assert shown(here, context) == second
        turn(mounted, mounted / "..second")
        here.proxy.wait_for_metric(CERTIFICATE_SUCCESS, 1)
        assert shown(here, context) == second


def test_issued_token_opens_the_door_and_a_revoked_one_does_not(tmp_path: Path) -> None:
    """Tokens issued and revoked while the proxy runs count within seconds; who is logged in stays so."""
    listener = {"address": "127.0.0.1", "port": 0, "tls": "none", "auth": "required"}
    tokens = [{"name": "from-the-settings", "token": "settings-token"}]
    with site(tmp_path, listeners=[listener], tokens=tokens) as here:
        issued = issue_token(here, "billing")
        with here.client() as client:
            assert client.say(f"AUTH PLAIN {plain(issued, issued)}") == "235 2.7.0 Authentication succeeded"
            done = run("token", "revoke", "billing", "--config", here.proxy.config)
            assert done.returncode == 0
            here.proxy.event("tokens_reloaded", 2)
            assert client.data(b"Subject: hi\r\n\r\nbody\r\n.\r\n") == "250 2.0.0 queued as PLATFORM1"
        assert here.proxy.event("message")["login"] == "billing"
        with here.client() as client:
            assert client.say(f"AUTH PLAIN {plain(issued, issued)}") == "535 5.7.8 Credentials not accepted"
            settled = plain("settings-token", "settings-token")
            assert client.say(f"AUTH PLAIN {settled}") == "235 2.7.0 Authentication succeeded"


def test_damaged_token_file_leaves_the_tokens_as_they_were(tmp_path: Path) -> None:
    """A slip of an editor locks nobody out: it is logged, and the tokens read before stay good."""
    listener = {"address": "127.0.0.1", "port": 0, "tls": "none", "auth": "required"}
    tokens = [{"name": "from-the-settings", "token": "settings-token"}]
    with site(tmp_path, listeners=[listener], tokens=tokens) as here:
        issued = issue_token(here, "billing")
        file = tmp_path / "var" / "tokens.json"
        file.write_text("[]")
        assert here.proxy.event("tokens_reload_failed")["problem"] == (
            f"{file}: found no mapping; expected tokens as cmail-proxy token add writes them"
        )
        with here.client() as client:
            assert client.say(f"AUTH PLAIN {plain(issued, issued)}") == "235 2.7.0 Authentication succeeded"


def test_hangup_is_no_end(here: Site) -> None:
    """SIGHUP, which asks other programs to read their files again, is not needed here and does no harm."""
    here.proxy.process.send_signal(signal.SIGHUP)
    eventually(lambda: here.proxy.get("/readyz") == (200, "ready\n"))
    here.serves()
