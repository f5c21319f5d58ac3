"""What lawful settings pass the checks; what does not is in tests/bad_settings."""

from pathlib import Path

import pytest
import trustme

from proxy.settings import TOKENS_FILE, ProviderReference, check, load, provider_references

BASE = "relay: {host: smtp.example.com}\ntls: {self_signed: true}\n"
TOKEN = "tokens: [{name: billing, token: example}]\n"


def findings(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    problems, warnings = check(load(path, environ or {}))
    return [str(finding) for finding in (*problems, *warnings)]


@pytest.mark.parametrize(
    "text",
    [
        "listeners: [{port: 25}, {port: 587, tls: required}, {port: 465, tls: implicit}, {port: 466, tls: auto}]",
        "listeners: [{port: 0}, {port: 0}]\nhttp: {probes: {port: 0}}",
        "listeners: [{address: 127.0.0.1, port: 25}, {address: 127.0.0.2, port: 25}, {address: '::', port: 25}]",
        "listeners: [{address: 0.0.0.0, port: 25}, {address: '::', port: 25}]",
        "listeners: [{address: 0.0.0.0, auth: none, allow_networks: [10.0.0.0/8, fd00::/8]}]",
        "listeners: [{address: 127.0.0.1, auth: none}, {address: '::1', auth: optional}]",
        "listeners: [{address: 0.0.0.0, auth: required, allow_networks: [0.0.0.0/0, '::/0']}]",
        "listeners: [{address: 0.0.0.0, tls: required, auth_without_tls: always}]",
        "listeners: [{auth_without_tls: never}]",
        "listeners: [{tls: none, auth: none, auth_without_tls: never}]",
        "logins: [{name: a, username: x, password: same}, {name: b, username: y, password: same}]",
    ],
)
def test_lawful_listeners_and_holders_pass_without_a_word(text: str, tmp_path: Path) -> None:
    """What is safe is not complained about."""
    assert findings(tmp_path, f"{BASE}{TOKEN}{text}\n") == []


@pytest.mark.parametrize(
    "relay",
    [
        "{host: 127.0.0.1, port: 25, username: u, password: example, tls: none}",
        "{host: localhost, port: 25, username: u, password: example, tls: opportunistic}",
        "{host: smtp.example.com, tls: none}",
        "{host: smtp.example.com, port: 465, tls: implicit, username: u, password: example}",
        "{host: smtp.example.com, port: 2525}",
        "{host: 127.0.0.2, port: 2525}",
        "{host: 127.0.0.1, port: 2526}",
        "{host: mail.example.com, port: 2525}",
    ],
)
def test_lawful_relays_pass_without_a_word(relay: str, tmp_path: Path) -> None:
    """A relay on this machine, one without a password and one that only looks like us give no warning."""
    text = f"hostname: mail.example.com\nrelay: {relay}\ntls: {{self_signed: true}}\n{TOKEN}"
    assert findings(tmp_path, text) == []


def test_issued_tokens_are_enough(tmp_path: Path) -> None:
    """With a file of issued tokens, no token needs to stand in the settings."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / TOKENS_FILE).write_text("[]")
    assert findings(tmp_path, f"{BASE}data_dir: data\n") == []


def test_certificate_in_one_file_with_its_key_passes(tmp_path: Path) -> None:
    """One PEM file may hold certificate and key."""
    (tmp_path / "both.pem").write_text("PEM")
    text = f"{TOKEN}relay: {{host: smtp.example.com}}\n"
    assert (
        findings(tmp_path, f"{text}tls: {{certificate_file: both.pem, key_file: both.pem, names: [a.example]}}\n") == []
    )


def test_authority_of_the_relay_passes(tmp_path: Path) -> None:
    """A file with certificates is what relay.ca_file should be, whatever else is written around them."""
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "ca.pem").write_text("Our own authority:\n" + (tmp_path / "ca.pem").read_text())
    assert (
        findings(tmp_path, f"{TOKEN}relay: {{host: smtp.example.com, ca_file: ca.pem}}\ntls: {{self_signed: true}}\n")
        == []
    )


def test_problem_with_a_value_from_environment_names_the_variable(tmp_path: Path) -> None:
    """A check points at where the value was written."""
    environ = {"CMAIL_PROXY_LISTENERS__0__ADDRESS": "10.0.0.5", "CMAIL_PROXY_LISTENERS__0__AUTH": "none"}
    assert findings(tmp_path, BASE, environ) == [
        "environment: CMAIL_PROXY_LISTENERS__0__AUTH: found 'none' on 10.0.0.5 without allow_networks; expected auth "
        "required, or the networks whose mail is taken (whoever reaches the port could send through it: an open relay)"
    ]


def test_provider_references_name_every_place(tmp_path: Path) -> None:
    """Who loads the rule files can say where a provider is named that has none."""
    path = tmp_path / "settings.yaml"
    path.write_text(
        """\
listeners:
  - {port: 25}
  - {port: 26, provider: mailgun}
logins:
  - {name: old, password: example, provider: sendgrid}
rules:
  providers: [mailgun,
              acme]
  actions: {privacy: warn, postmark: {time: warn}}
  when_absent:
    mandrill: {X-Cmail-TrackOpens: false}
"""
    )
    file = str(path)
    assert provider_references(load(path, {"CMAIL_PROXY_RULES__PROVIDERS__2": "other"})) == [
        ProviderReference("mailgun", file, 7, "rules.providers[0]"),
        ProviderReference("acme", file, 8, "rules.providers[1]"),
        ProviderReference("other", "environment", 0, "CMAIL_PROXY_RULES__PROVIDERS__2"),
        ProviderReference("mailgun", file, 3, "listeners[1].provider"),
        ProviderReference("sendgrid", file, 5, "logins[0].provider"),
        ProviderReference("postmark", file, 9, "rules.actions.postmark"),
        ProviderReference("mandrill", file, 11, "rules.when_absent.mandrill"),
    ]


def test_provider_references_without_settings_are_the_five_of_the_defaults() -> None:
    """Defaults are references, too: a shipped rule file that is missing must be noticed."""
    assert [(reference.provider, reference.key) for reference in provider_references(load(None, {}))] == [
        ("mailgun", "CMAIL_PROXY_RULES__PROVIDERS__0"),
        ("mailjet", "CMAIL_PROXY_RULES__PROVIDERS__1"),
        ("mandrill", "CMAIL_PROXY_RULES__PROVIDERS__2"),
        ("postmark", "CMAIL_PROXY_RULES__PROVIDERS__3"),
        ("sendgrid", "CMAIL_PROXY_RULES__PROVIDERS__4"),
    ]
