"""``check``: what is said of settings and rules, word for word."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.operation.program import run, write_settings

LISTENER = {"address": "127.0.0.1", "port": 2525, "tls": "none", "auth": "none"}
RELAY = {"host": "smtp.example.com"}
PROVIDERS = ["mailgun", "mailjet", "mandrill", "postmark", "sendgrid"]
KEEPS = "rules.when_absent: provider keeps what {0} did"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - only checked, never bound
LEFT_OFF = "{0} left {1} off where an app said nothing, and the platform does not"
WHEN_ABSENT = f"warning: rules.when_absent: platform: {LEFT_OFF}; {KEEPS}"
ALL_OFF = "X-Cmail-TrackOpens, X-Cmail-TrackClicks, X-Cmail-InlineCSS"
INLINING_OFF = "X-Cmail-InlineCSS"


def settings(folder: Path, **sections: Any) -> Path:
    """Write settings that serve without a warning, but for *sections*; each section has a line, in this order."""
    values = {"listeners": [LISTENER], "relay": RELAY, "rules": {"when_absent": "provider"}, **sections}
    return write_settings(folder / "settings.yaml", values)


def check(folder: Path, **sections: Any) -> tuple[int, list[str], list[str]]:
    """Check settings: exit code, standard output and standard error."""
    settings(folder, **sections)
    done = run("check", "--config", "settings.yaml", cwd=folder)
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode().splitlines()


def test_good_settings_are_summed_up_in_a_line(tmp_path: Path) -> None:
    """Settings that would serve: exit code 0, one line that tells what would run, and nothing to warn of."""
    code, out, errors = check(tmp_path)
    assert (code, errors) == (0, [])
    (line,) = out
    before, after = line.split(" rules of ")
    assert before.removeprefix("ok: ").isdecimal()
    where = "listening on 127.0.0.1:2525 (none); relaying to smtp.example.com:587"
    assert after == f"{', '.join(PROVIDERS)}; {where}"


def test_settings_by_environment_alone_are_checked() -> None:
    """Without a file the environment is all there is, and problems name its variables."""
    environ = {"CMAIL_PROXY_LISTENERS__0__AUTH": "none", "CMAIL_PROXY_LISTENERS__0__TLS": "none"}
    environ["CMAIL_PROXY_ROUTE"] = "relay"
    done = run("check", environ={**environ, "CMAIL_PROXY_RULES__PROVIDERS": "[mailgun]"})
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines() == [
        WHEN_ABSENT.format("Mailgun", ALL_OFF),
        "error: environment: CMAIL_PROXY_RELAY__HOST: found nothing; expected the platform's SMTP host, for route "
        "relay",
        "cmail-proxy: 1 problem",
    ]


def test_config_variable_names_the_file(tmp_path: Path) -> None:
    """CMAIL_PROXY_CONFIG stands for --config."""
    done = run("check", environ={"CMAIL_PROXY_CONFIG": str(settings(tmp_path))})
    assert (done.returncode, done.stderr) == (0, b"")


def test_warnings_go_to_standard_error_and_do_not_count(tmp_path: Path) -> None:
    """What is lawful but may not be meant is told, and the exit code stays 0."""
    code, out, errors = check(tmp_path, listeners=[{**LISTENER, "tls": "starttls", "auth": "optional"}])
    assert (code, len(out)) == (0, 1)
    assert errors == [
        "warning: settings.yaml:1: listeners[0].tls: STARTTLS is not offered, because there is no certificate",
        "warning: settings.yaml:1: listeners[0].auth: nobody can log in; cmail-proxy token add NAME issues a token",
    ]


def test_platform_defaults_that_change_a_provider_are_warned_of(tmp_path: Path) -> None:
    """By default nothing is said for an app that says nothing; what the provider did then is told for each."""
    code, _, errors = check(tmp_path, rules={"providers": PROVIDERS})
    assert code == 0
    assert errors == [
        WHEN_ABSENT.format("Mailgun", ALL_OFF),
        WHEN_ABSENT.format("Mailjet", INLINING_OFF),
        WHEN_ABSENT.format("Mandrill (Mailchimp Transactional)", INLINING_OFF),
        WHEN_ABSENT.format("Postmark", ALL_OFF),
        WHEN_ABSENT.format("SendGrid", INLINING_OFF),
    ]


ALL_SAID = {"X-Cmail-TrackOpens": True, "X-Cmail-TrackClicks": False, "X-Cmail-InlineCSS": False}


@pytest.mark.parametrize("when_absent", ["provider", {"mailgun": ALL_SAID}], ids=json.dumps)
def test_decision_on_absent_fields_silences_the_warning(tmp_path: Path, when_absent: object) -> None:
    """Who has decided what to write for silent apps is not asked again."""
    assert check(tmp_path, rules={"providers": ["mailgun"], "when_absent": when_absent})[::2] == (0, [])


def test_platform_defaults_that_a_list_of_the_operator_leaves_are_warned_of(tmp_path: Path) -> None:
    """Such a list counts alone, so what it does not name is told: one line for each provider."""
    table = {"mailgun": {"X-Cmail-TrackOpens": True}, "sendgrid": {"X-Cmail-InlineCSS": False}}
    providers = ["mailgun", "mandrill", "sendgrid", "symfony"]
    code, _, errors = check(tmp_path, rules={"providers": providers, "when_absent": table})
    assert code == 0
    left = [
        ("mailgun", "Mailgun", ["X-Cmail-TrackClicks", "X-Cmail-InlineCSS"]),
        ("mandrill", "Mandrill (Mailchimp Transactional)", ["X-Cmail-InlineCSS"]),
    ]
    assert errors == [
        f"warning: rules.when_absent.{provider}: {LEFT_OFF.format(title, ', '.join(off))}; "
        f"{{{', '.join(f'{name}: false' for name in off)}}} keeps what {title} did"
        for provider, title, off in left
    ]


def test_provider_named_twice_is_a_problem(tmp_path: Path) -> None:
    """The second time was meant to be another one."""
    code, _, errors = check(
        tmp_path, rules={"providers": ["mailgun", "postmark", "mailgun"], "when_absent": "provider"}
    )
    assert code == 1
    assert errors == [
        "error: settings.yaml:3: rules.providers[2]: found 'mailgun' a second time; expected each provider once",
        "cmail-proxy: 1 problem",
    ]


def test_folder_of_rules_that_does_not_exist_is_a_problem(tmp_path: Path) -> None:
    """Rules of one's own that are not found must not be missed in silence."""
    code, _, errors = check(tmp_path, rules={"directories": ["my-rules"], "when_absent": "provider"})
    assert code == 1
    assert errors == [
        f"error: settings.yaml:3: rules.directories[0]: found '{tmp_path}/my-rules', which does not exist; expected a "
        "folder with rule files (make it, or take it out of the list)",
        "cmail-proxy: 1 problem",
    ]


def test_problems_of_settings_and_rules_come_all_at_once(tmp_path: Path) -> None:
    """One run shows what is wrong with the settings and with every rule file, each with file, line and key."""
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "acme.yaml").write_text(
        "title: Acme\n"
        "fields: [X-Acme-*, Subject]\n"
        "translate:\n"
        "  - {field: X-Acme-Group, to: X-Cmail-Group}\n"
        "  - {field: X-Acme-Open, to: X-Cmail-TrackOpens, as: switch, true_iff: [sure]}\n"
    )
    (rules / "other.yaml").write_text("fields: [X-Other-*]\nuntranslatable: [{field: X-Other-Time, class: late}]\n")
    code, out, errors = check(
        tmp_path,
        listeners=[{**LISTENER, "address": EVERYWHERE}],
        relay={"port": 587},
        rules={"providers": ["acme", "other"], "directories": ["rules"], "when_absent": "provider"},
    )
    assert (code, out) == (1, [])
    keys = "field, at, list, skip_prefix, key, to, as, true_if, false_if, known, optional, class, loses, on_invalid"
    classes = (
        "test_mode, recipients, privacy, text, unsubscribe, time, duplicates, links, content, ambiguous, metadata, "
        "infrastructure"
    )
    assert errors == [
        "error: settings.yaml:2: relay.host: found nothing, though relay has other keys; expected the platform's SMTP "
        "host, or route: deliver",
        "error: settings.yaml:1: listeners[0].auth: found 'none' on 0.0.0.0 without allow_networks; expected auth "
        "required, or the networks whose mail is taken (whoever reaches the port could send through it: an open relay)",
        f"error: {rules}/acme.yaml:2: fields[1]: found 'Subject'; expected fields of this provider (it would remove "
        "subject)",
        f"error: {rules}/acme.yaml:4: translate[0].to: found 'X-Cmail-Group'; expected one of X-Cmail-GroupName, "
        "X-Cmail-TrackOpens, X-Cmail-TrackClicks, X-Cmail-InlineCSS, deliver_at (did you mean 'X-Cmail-GroupName'?)",
        f"error: {rules}/acme.yaml:5: translate[1].true_iff: found unknown key 'true_iff'; expected one of {keys} "
        "(did you mean 'true_if'?)",
        f"error: {rules}/other.yaml:1: title: found nothing; expected the provider's name as people know it (add a "
        "line such as title: Acme Mail)",
        f"error: {rules}/other.yaml:2: untranslatable[0].class: found 'late'; expected one of {classes}",
        f"error: {rules}/other.yaml:2: untranslatable[0].loses: found nothing; expected a few words on what is lost "
        "(such as: loses: webhook data)",
        "cmail-proxy: 8 problems",
    ]


def test_problems_of_single_values_do_not_hide_those_of_rules(tmp_path: Path) -> None:
    """A value that cannot be read in one section does not keep another section's rule files from being checked."""
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "acme.yaml").write_text("title: Acme\nfields: [X-Acme-*]\nuntranslatable: none\n")
    code, _, errors = check(
        tmp_path,
        listeners=[{**LISTENER, "port": 99999}],
        rules={"providers": ["acme"], "directories": ["rules"], "when_absent": "provider"},
    )
    assert code == 1
    assert errors == [
        "error: settings.yaml:1: listeners[0].port: found 99999; expected an integer from 0 to 65535",
        f"error: {rules}/acme.yaml:3: untranslatable: found 'none'; expected a list of rules",
        "cmail-proxy: 2 problems",
    ]


def test_provider_without_a_rule_file_is_named_with_its_place(tmp_path: Path) -> None:
    """A misspelled provider is a problem of the settings file: with its line, its key, and the names there are."""
    code, _, errors = check(tmp_path, rules={"providers": ["mailgun", "sendgird"], "when_absent": "provider"})
    assert code == 1
    assert errors == [
        "error: settings.yaml:3: rules.providers[1]: found 'sendgird'; expected one of mailgun, mailjet, mandrill, "
        "postmark, sendgrid, symfony (did you mean 'sendgrid'?)",
        "cmail-proxy: 1 problem",
    ]


def test_names_that_no_rule_file_knows_are_problems(tmp_path: Path) -> None:
    """A provider of a listener that has no active rules, and an optional rule that does not exist, are told."""
    code, _, errors = check(
        tmp_path,
        listeners=[{**LISTENER, "provider": "mandrill"}],
        logins=[{"name": "wiki", "password": "example", "provider": "sendgird"}],
        rules={"providers": ["mailgun", "sendgrid"], "optional": ["subaccount"], "when_absent": "provider"},
    )
    assert code == 1
    assert errors == [
        "error: settings.yaml:1: listeners[0].provider: found 'mandrill'; expected one of rules.providers: mailgun, "
        "sendgrid",
        "error: settings.yaml:4: logins[0].provider: found 'sendgird'; expected one of rules.providers: mailgun, "
        "sendgrid (did you mean 'sendgrid'?)",
        "error: settings.yaml:3: rules.optional[0]: found 'subaccount'; expected nothing: the active rule files have "
        "no optional rules",
        "cmail-proxy: 3 problems",
    ]


@pytest.mark.parametrize("auth", ["none", "optional"])
def test_open_relay_is_refused(tmp_path: Path, auth: str) -> None:
    """A listener that other machines reach and that takes mail from everybody does not start."""
    code, out, errors = check(tmp_path, listeners=[{**LISTENER, "address": EVERYWHERE, "auth": auth}])
    assert (code, out) == (1, [])
    error = (
        f"error: settings.yaml:1: listeners[0].auth: found '{auth}' on 0.0.0.0 without allow_networks; expected auth "
        "required, or the networks whose mail is taken (whoever reaches the port could send through it: an open relay)"
    )
    assert error in errors


def test_without_settings_it_says_what_serve_would_do(tmp_path: Path) -> None:
    """``serve`` makes a token at its first start; that nobody may send yet is no problem, and `check` makes no file."""
    done = run("check", cwd=tmp_path)
    assert done.returncode == 0
    where = f"listening on 127.0.0.1:2525 (starttls); delivering to the mailbox {tmp_path}/var/mailbox"
    assert done.stdout.decode().rstrip().endswith(where)
    told = done.stderr.decode().splitlines()
    assert told[-1] == "no settings, so these; serve makes a certificate and a token at its first start"
    assert not [line for line in told if "STARTTLS" in line]
    assert list(tmp_path.iterdir()) == []


def test_broken_certificate_hides_no_damaged_tokens(tmp_path: Path) -> None:
    """Each file that serve would read is looked at, whatever another one holds."""
    (tmp_path / "crt.pem").write_text("nothing yet\n")
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "tokens.json").write_text("nothing yet\n")
    code, _, errors = check(tmp_path, tls={"certificate_file": "crt.pem", "key_file": "crt.pem"})
    assert code == 1
    assert sum("tls." in line for line in errors) == 2
    assert sum("tokens.json" in line for line in errors) == 1


def test_missing_settings_file_is_a_problem(tmp_path: Path) -> None:
    """A file that was named and is not there does not mean the defaults."""
    done = run("check", "--config", "none.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines() == [
        "error: none.yaml: found no file that can be read: No such file or directory; expected a settings file",
        "cmail-proxy: 1 problem",
    ]


WITHOUT_KEY = (
    "error: settings.yaml:4: tls.certificate_file: found a certificate without a key; expected tls.key_file (it may be "
    "the same file)"
)
MISSING = "error: settings.yaml:4: tls.{0}: found '{1}/no.pem', which cannot be read: No such file or directory; {2}"
IN_PEM = "expected a file in PEM form"


def test_certificate_that_is_missing_is_one_problem_beside_the_key_that_was_not_named(tmp_path: Path) -> None:
    """A file that is not there is told once, where the settings name it, and not again for what it should hold."""
    code, _, errors = check(tmp_path, tls={"certificate_file": "no.pem"})
    assert code == 1
    assert errors == [WITHOUT_KEY, MISSING.format("certificate_file", tmp_path, IN_PEM), "cmail-proxy: 2 problems"]


def test_certificate_without_a_key_is_one_problem(tmp_path: Path) -> None:
    """Whether the key is in the same file is not guessed at, so nothing is said of what the file holds."""
    (tmp_path / "crt.pem").write_text("nothing yet\n")
    code, _, errors = check(tmp_path, tls={"certificate_file": "crt.pem"})
    assert (code, errors) == (1, [WITHOUT_KEY, "cmail-proxy: 1 problem"])


def test_file_that_is_missing_is_one_problem_for_each_key_that_names_it(tmp_path: Path) -> None:
    """Both keys have to be mended, so both are told; once each."""
    code, _, errors = check(tmp_path, tls={"certificate_file": "no.pem", "key_file": "no.pem"})
    assert code == 1
    assert errors == [
        MISSING.format("certificate_file", tmp_path, IN_PEM),
        MISSING.format("key_file", tmp_path, IN_PEM),
        "cmail-proxy: 2 problems",
    ]


def test_secrets_are_not_in_what_check_says(tmp_path: Path) -> None:
    """Problems with secrets name their key and not their value."""
    code, _, errors = check(
        tmp_path,
        relay={**RELAY, "username": "api", "password": "relay-secret", "port": "relay-secret"},
        tokens=[{"name": "one", "token": "shared-secret"}, {"name": "two", "token": "shared-secret"}],
        logins=[{"name": "three", "password": ["shared-secret"]}],
    )
    assert code == 1
    assert "shared-secret" not in "\n".join(errors)
    assert "error: settings.yaml:2: relay.port: found 'relay-secret'; expected an integer from 1 to 65535" in errors
