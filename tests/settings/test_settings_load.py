"""Reading settings from a file and the environment.

Longer than other modules: the table of what every single key takes is best read in one place.
"""

import json
import socket
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.problems import ProblemsError
from proxy.settings import Actions, Listener, Secret, Settings, load
from proxy.settings.fields import keys_of, rows
from proxy.settings.values import variable

LAWFUL = {
    "hostname": "mail.example.com",
    "data_dir": "/srv/cmail",
    "workers": "4",
    "log.level": "debug",
    "log.format": "text",
    "listeners[].address": "10.0.0.5",
    "listeners[].port": "25",
    "listeners[].tls": "auto",
    "listeners[].auth": "optional",
    "listeners[].auth_without_tls": "never",
    "listeners[].provider": "mailgun",
    "listeners[].allow_networks": "[10.0.0.0/8, fd00::/8]",
    "tls.certificate_file": "/etc/cmail/tls.crt",
    "tls.key_file": "/etc/cmail/tls.key",
    "tls.self_signed": "true",
    "tls.names": "[smtp.mailgun.org]",
    "tokens[].name": "shop",
    "tokens[].token": "example: {token",
    "logins[].name": "shop",
    "logins[].username": "apikey",
    "logins[].password": "- example # password",
    "logins[].provider": "sendgrid",
    "logins[].discard": "true",
    "rules.providers": "[mailgun]",
    "rules.directories": "[/etc/cmail/rules]",
    "rules.optional": "[subaccount]",
    "rules.when_absent": "{mailgun: {X-Cmail-TrackOpens: false}}",
    "rules.on_invalid": "refuse",
    "rules.untranslatable": "warn",
    "rules.actions": "{privacy: warn, mailgun: {time: refuse}}",
    "rules.strip": "none",
    "smtp.bare_newline": "refuse",
    "limits.recipients": "50",
    "limits.excess": "defer",
    "limits.hops": "100",
    "limits.message_octets": "1024",
    "limits.header_octets": "1024",
    "limits.header_fields": "10",
    "limits.connections": "10",
    "limits.idle_seconds": "5",
    "route": "relay",
    "shutdown.delay_seconds": "5",
    "shutdown.drain_seconds": "0",
    "relay.host": "smtp.example.com",
    "relay.port": "25",
    "relay.tls": "implicit",
    "relay.username": "true",
    "relay.password": "0123",
    "relay.ca_file": "/etc/cmail/ca.pem",
    "relay.connections": "5",
    "relay.wait_seconds": "0",
    "relay.connect_seconds": "1",
    "relay.reply_seconds": "1",
    "relay.final_reply_seconds": "1",
    "relay.idle_seconds": "1",
    "relay.pause_seconds": "0",
    "relay.required_for_readiness": "true",
    "deliver.via": "mx",
    "deliver.mailbox": "/srv/mailbox",
    "deliver.smarthost.host": "smtp.example.com",
    "deliver.smarthost.port": "25",
    "deliver.smarthost.tls": "implicit",
    "deliver.smarthost.username": "true",
    "deliver.smarthost.password": "0123",
    "deliver.smarthost.ca_file": "/etc/cmail/ca.pem",
    "deliver.dkim[].domain": "example.com",
    "deliver.dkim[].selector": "s1",
    "deliver.dkim[].key_file": "/etc/cmail/dkim.pem",
    "deliver.retry.first_seconds": "5",
    "deliver.retry.factor": "3",
    "deliver.retry.max_seconds": "60",
    "deliver.retry.expire_seconds": "0",
    "deliver.retry.warn_seconds": "0",
    "deliver.compose.budget_seconds": "5",
    "deliver.compose.processes": "2",
    "deliver.connections": "5",
    "deliver.per_destination": "1",
    "deliver.rate_per_destination": "3",
    "deliver.per_host": "2",
    "deliver.require_tls": "[example.com]",
    "deliver.allow_networks": "[10.0.0.0/8, fd00::/8]",
    "deliver.nameservers": "[127.0.0.1, '::1']",
    "deliver.keep_seconds": "0",
    "tracking.opens": "false",
    "tracking.clicks": "false",
    "tracking.base_url": "https://click.example.com",
    "tracking.secret_file": "/etc/cmail/keys",
    "store": "sqlite",
    "http.public.address": "::1",
    "http.public.port": "0",
    "http.probes.address": "::1",
    "http.probes.port": "0",
}
"""A value for each key that is not its default, as an environment variable would have it."""

NEEDED = {
    "tokens": ("name", "token"),
    "logins": ("name", "password"),
    "deliver.dkim": ("domain", "selector", "key_file"),
}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return path


def problems(path: Path | None, environ: dict[str, str]) -> list[str]:
    with pytest.raises(ProblemsError) as caught:
        load(path, environ)
    return [str(problem) for problem in caught.value.problems]


def at(loaded: Any, key: str) -> Any:
    for step in key.split("."):
        name, is_list, _ = step.partition("[]")
        loaded = getattr(loaded, name)
        if is_list:
            loaded = loaded[0]
    return loaded


def in_file(key: str, value: str) -> str:
    """Write a key path as YAML, with what the item it may be in needs besides."""
    text = value if value.startswith(("[", "{")) and not is_secret(key) else json.dumps(value)
    name, in_item, item_key = key.partition("[].")
    if in_item:
        entries = {each: example(each) for each in NEEDED.get(name, ())} | {item_key: text}
        text = f"[{{{', '.join(f'{each}: {entry}' for each, entry in entries.items())}}}]"
        key = name
    for step in reversed(key.split(".")):
        text = f"{{{step}: {text}}}"
    return text


def is_secret(key: str) -> bool:
    return key.endswith((".token", ".password"))


def needed(key: str) -> dict[str, str]:
    """Set what the item that a key may be in needs, by environment."""
    name = key.partition("[].")[0]
    return {variable(f"{name}[0].{each}"): example(each) for each in NEEDED.get(name, ())}


def example(key: str) -> str:
    """A lawful value; a path is absolute, since relative ones start at other folders in file and environment."""
    return "/example" if key.endswith("_file") else "example"


def leaves() -> Iterator[str]:
    """Every key path that is a value, except the files of secrets, which must exist."""
    sections = {row.key.rpartition(".")[0].removesuffix("[]") for row in rows()}
    files = {f"{row.key}_file" for row in rows() if "Secret" in str(row.field.type)}
    yield from (row.key for row in rows() if row.key not in sections | files)


def test_table_of_lawful_values_has_every_key() -> None:
    """A new setting comes with a lawful value here, so the tests below cover it."""
    assert list(LAWFUL) == list(leaves())


@pytest.mark.parametrize("key", LAWFUL)
def test_key_from_environment_means_the_same_as_in_the_file(key: str, tmp_path: Path) -> None:
    """Every key can be set both ways, with one meaning, and it is not the default."""
    from_file = load(written(tmp_path, in_file(key, LAWFUL[key])), {})
    if key != "data_dir":  # whose default is beside the file
        assert from_file.data_dir == tmp_path / "var"
        from_file = attrs.evolve(from_file, data_dir=Settings().data_dir)
    from_environment = load(None, needed(key) | {variable(key.replace("[]", "[0]")): LAWFUL[key]})
    assert from_file == from_environment
    assert key == "store" or at(from_file, key) != at(load(None, needed(key)), key)  # store has one word so far


def test_load_without_anything_gives_the_defaults() -> None:
    """No file and no variable is lawful: one listener on loopback, and nothing to relay to."""
    loaded = load(None, {"PATH": "/bin", "HOME": "/"})
    assert loaded == Settings()
    assert loaded.hostname == socket.gethostname()
    assert loaded.data_dir == Path.cwd() / "var"
    assert loaded.listeners == (Listener(address="127.0.0.1", port=2525, tls="starttls", auth="required"),)
    assert loaded.relay.host is None


@pytest.mark.parametrize(
    ("text", "delivers"),
    [
        ("{}", True),
        ("relay: {host: smtp.example.com}", False),
        ("relay: {host: smtp.example.com}\nroute: deliver", True),
        ("route: relay", False),
        ("route: deliver", True),
    ],
)
def test_route_follows_the_relay_unless_it_is_named(text: str, delivers: bool, tmp_path: Path) -> None:
    """With a host to relay to it is ``relay``, else ``deliver``; the word itself counts before both."""
    assert load(written(tmp_path, text), {}).delivers is delivers


DOCUMENTED_DEFAULTS = {
    **{"workers": 1, "log.level": "info", "log.format": "json", "smtp.bare_newline": "normalize", "store": "sqlite"},
    **{"listeners[].address": "127.0.0.1", "listeners[].port": 2525, "listeners[].tls": "starttls"},
    **{"listeners[].auth": "required", "listeners[].auth_without_tls": "loopback", "tls.self_signed": False},
    **{"rules.providers": ("mailgun", "mailjet", "mandrill", "postmark", "sendgrid"), "rules.optional": ()},
    **{"rules.when_absent": "platform", "rules.on_invalid": "pass", "rules.untranslatable": "act"},
    **{"rules.strip": "all", "rules.actions": Actions(), "rules.directories": ()},
    **{"limits.recipients": 25, "limits.excess": "refuse_message", "limits.hops": 50, "limits.connections": 1000},
    **{"limits.message_octets": 26_214_400, "limits.header_octets": 262_144, "limits.idle_seconds": 300},
    **{"shutdown.delay_seconds": 0, "shutdown.drain_seconds": 30, "relay.port": 587, "relay.tls": "required"},
    **{"relay.connections": 50, "relay.required_for_readiness": False, "deliver.via": "mailbox"},
    **{"deliver.retry.first_seconds": 60, "deliver.retry.factor": 2, "deliver.retry.max_seconds": 14_400},
    **{"deliver.retry.expire_seconds": 432_000, "http.probes.address": "127.0.0.1", "http.probes.port": 9025},
    **{"http.public.address": "127.0.0.1", "http.public.port": 8080},
}
"""What operators rely on without naming it."""


@pytest.mark.parametrize("key", DOCUMENTED_DEFAULTS)
def test_default_is_the_documented_one(key: str) -> None:
    """A default that changes changes what a settings file means."""
    assert at(Settings(), key) == DOCUMENTED_DEFAULTS[key]


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "relay:\nlimits:\n  # recipients: 25\n", "\ufeffworkers: 1\n"]
)
def test_load_with_empty_sections_gives_the_defaults(text: str, tmp_path: Path) -> None:
    """A file or section whose keys are all commented out is lawful."""
    assert load(written(tmp_path, text), {}) == Settings(data_dir=tmp_path / "var")


def test_load_reads_the_documented_example(tmp_path: Path) -> None:
    """The example of the design, without the keys of the sending core, means what it says."""
    for name in ("billing", "old-sendgrid-key"):
        (tmp_path / name).write_text(f"example-{name}\n")
    loaded = load(
        written(
            tmp_path,
            """\
hostname: mail.example.com
data_dir: ./var
workers: 1
log: {level: info, format: json}
listeners:
  - {address: 127.0.0.1, port: 2525, tls: starttls, auth: required, auth_without_tls: loopback, provider: mailgun}
tls: {self_signed: true, names: [smtp.mailgun.org]}
tokens:
  - {name: billing, token_file: billing}
logins:
  - {name: legacy, username: apikey, password_file: old-sendgrid-key, provider: sendgrid}
  - {name: tests, username: POSTMARK_API_TEST, password: POSTMARK_API_TEST, discard: true}
rules: {providers: [mailgun, sendgrid], directories: [./my-mappings], optional: [], when_absent: platform,
        on_invalid: pass, untranslatable: act, actions: {}, strip: all}
smtp: {bare_newline: normalize}
limits: {recipients: 25, excess: refuse_message, hops: 50, message_octets: 26214400, header_octets: 262144,
         connections: 1000, idle_seconds: 300}
route: relay
shutdown: {delay_seconds: 0, drain_seconds: 30}
relay: {host: smtp.example.com, port: 587, tls: required, username: user, password: example, connections: 50}
http:
  probes: {address: 127.0.0.1, port: 9025}
""",
        ),
        {},
    )
    assert loaded.data_dir == tmp_path / "var"
    assert loaded.listeners == (Listener(provider="mailgun"),)
    assert [(token.name, token.token.reveal(), token.token_file) for token in loaded.tokens] == [
        ("billing", "example-billing", tmp_path / "billing")
    ]
    assert [(login.username, login.password.reveal(), login.provider, login.discard) for login in loaded.logins] == [
        ("apikey", "example-old-sendgrid-key", "sendgrid", False),
        ("POSTMARK_API_TEST", "POSTMARK_API_TEST", None, True),
    ]
    assert loaded.rules.directories == (tmp_path / "my-mappings",)
    assert loaded.relay.password == Secret("example")
    assert loaded.route == "relay"


def test_actions_keep_classes_and_providers_apart(tmp_path: Path) -> None:
    """One mapping holds classes and providers; the values tell which is which."""
    text = "rules: {actions: {privacy: warn, mailgun: {time: refuse}, test_mode: ignore}}"
    assert load(written(tmp_path, text), {}).rules.actions == Actions(
        by_class={"privacy": "warn", "test_mode": "ignore"}, by_provider={"mailgun": {"time": "refuse"}}
    )


def test_networks_are_values_of_their_family() -> None:
    """Networks come out ready to compare with an address; one address is a network of its own."""
    listeners = load(None, {"CMAIL_PROXY_LISTENERS": "[{allow_networks: [10.0.0.0/8, 192.0.2.1, fd00::/8]}]"}).listeners
    assert listeners[0].allow_networks == (ip_network("10.0.0.0/8"), ip_network("192.0.2.1"), ip_network("fd00::/8"))


@pytest.mark.parametrize("text", ["25", '"25"', "' 25 '", "+25", "025"])
def test_number_is_read_however_it_is_quoted(text: str, tmp_path: Path) -> None:
    """A number in quotes, as templates write it, is a number."""
    assert load(written(tmp_path, f"limits: {{hops: {text}}}"), {}).limits.hops == 25


@pytest.mark.parametrize(("text", "truth"), [("true", True), ('"true"', True), ("false", False), ("' false'", False)])
def test_truth_value_is_read_however_it_is_quoted(text: str, truth: bool, tmp_path: Path) -> None:
    """The two words are truth values with and without quotes."""
    assert load(written(tmp_path, f"tls: {{self_signed: {text}}}"), {}).tls.self_signed is truth


def test_provider_none_takes_back_the_provider_of_the_file(tmp_path: Path) -> None:
    """The word ``none`` stands for no provider, so the environment can take one back."""
    path = written(tmp_path, "listeners: [{provider: mailgun}]")
    assert load(path, {"CMAIL_PROXY_LISTENERS__0__PROVIDER": "none"}).listeners == (Listener(provider=None),)


# Paths


def test_relative_paths_start_at_the_folder_they_were_written_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path in the file, and a default where there is a file, starts at its folder; one in a variable at the working
    folder."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "etc" / "settings.yaml").write_text(
        "tls: {certificate_file: tls.crt, key_file: ../tls.key}\nrules: {directories: [a, /b]}\n"
    )
    monkeypatch.chdir(tmp_path / "work")
    loaded = load(
        Path("../etc/settings.yaml"), {"CMAIL_PROXY_RULES__DIRECTORIES__1": "c", "CMAIL_PROXY_TLS__KEY_FILE": "k"}
    )
    etc = tmp_path / "work" / ".." / "etc"
    assert loaded.tls.certificate_file == etc / "tls.crt"
    assert loaded.tls.key_file == tmp_path / "work" / "k"
    assert loaded.rules.directories == (etc / "a", tmp_path / "work" / "c")
    assert loaded.data_dir == etc / "var"
    assert load(None, {}).data_dir == tmp_path / "work" / "var"


def test_path_in_a_yaml_variable_starts_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is where a path was written, also when the variable held a whole list of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "etc").mkdir()
    path = written(tmp_path / "etc", "rules: {directories: [a]}")
    loaded = load(path, {"CMAIL_PROXY_RULES__DIRECTORIES": "[b]"})
    assert loaded.rules.directories == (tmp_path / "b",)


# Secrets


@pytest.mark.parametrize(
    ("octets", "secret"),
    [
        (b"example", "example"),
        (b"example\n", "example"),
        (b"example\r\n", "example"),
        (b" example \n", " example "),
        (b"ex\tample", "ex\tample"),
        ("ex\u00e4mple\n".encode(), "ex\u00e4mple"),
    ],
)
def test_secret_file_loses_one_line_end_and_nothing_else(octets: bytes, secret: str, tmp_path: Path) -> None:
    """A secret may begin or end with blanks; only the line end that editors add is not part of it."""
    (tmp_path / "password").write_bytes(octets)
    path = written(tmp_path, "relay: {password_file: password}")
    relay = load(path, {}).relay
    assert relay.password is not None
    assert relay.password.reveal() == secret
    assert relay.password_file == tmp_path / "password"


@pytest.mark.parametrize("key", [key for key in LAWFUL if is_secret(key)])
def test_every_secret_is_read_from_a_file_named_in_settings_or_environment(key: str, tmp_path: Path) -> None:
    """Both ways give the secret that stands in the file, and what names it."""
    (tmp_path / "secret").write_text("example-from-a-file\n")
    name, in_item, item_key = key.partition("[].")
    besides = {each: "example" for each in NEEDED.get(name, ()) if each != item_key}
    document: Any = (
        {**besides, f"{item_key}_file": "secret"} if in_item else {f"{key.rpartition('.')[2]}_file": "secret"}
    )
    for step in reversed((f"{name}.list" if in_item else key).split(".")[:-1]):
        document = {step: [document] if in_item else document}
    from_file = load(written(tmp_path, json.dumps(document)), {})
    variables = {variable(f"{name}[0].{each}"): text for each, text in besides.items()}
    file = {variable(f"{key.replace('[]', '[0]')}_file"): str(tmp_path / "secret")}
    for loaded in (from_file, load(None, variables | file)):
        assert at(loaded, key) == Secret("example-from-a-file")
        assert at(loaded, f"{key}_file") == tmp_path / "secret"


@pytest.mark.parametrize(
    "text", ["a: {b", "- x # y", "*alias", "!tag", "'", "no", "true", "0123", " x ", "[", "%", "@"]
)
def test_secret_from_environment_is_taken_as_it_is(text: str) -> None:
    """A password in a variable needs no quotes, whatever YAML would make of it."""
    relay = load(None, {"CMAIL_PROXY_RELAY__PASSWORD": text}).relay
    assert relay.password is not None
    assert relay.password.reveal() == text


def test_secret_from_environment_replaces_the_file_named_in_the_settings(tmp_path: Path) -> None:
    """The environment wins over the settings file even where that names a secret's file, which then need not exist."""
    path = written(tmp_path, "relay: {password_file: no-such-file}\ntokens: [{name: a, token: example}]")
    (tmp_path / "token").write_text("example-two")
    loaded = load(
        path,
        {"CMAIL_PROXY_RELAY__PASSWORD": "example", "CMAIL_PROXY_TOKENS__0__TOKEN_FILE": str(tmp_path / "token")},
    )
    assert (loaded.relay.password, loaded.relay.password_file) == (Secret("example"), None)
    assert (loaded.tokens[0].token, loaded.tokens[0].token_file) == (Secret("example-two"), tmp_path / "token")


def test_secret_with_undecodable_octets_in_environment_is_a_problem() -> None:
    """Octets that are not UTF-8 arrive as lone surrogates and could never be sent."""
    assert problems(None, {"CMAIL_PROXY_RELAY__PASSWORD": "pa\udcdfword"}) == [
        "environment: CMAIL_PROXY_RELAY__PASSWORD: found text with a line break or control character; expected text"
    ]


# The environment


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    """A variable replaces what it names and leaves the keys beside it."""
    path = written(tmp_path, "relay: {host: smtp.example.com, port: 25}\nlog: {level: debug}")
    loaded = load(path, {"CMAIL_PROXY_RELAY__PORT": "2587", "CMAIL_PROXY_LOG": "{format: text}"})
    assert (loaded.relay.host, loaded.relay.port) == ("smtp.example.com", 2587)
    assert (loaded.log.level, loaded.log.format) == ("info", "text")


def test_environment_changes_one_item_and_adds_the_next(tmp_path: Path) -> None:
    """Items are named by index; the first free index makes a new item."""
    path = written(tmp_path, "listeners: [{port: 25}, {port: 587, tls: required}]")
    loaded = load(
        path, {"CMAIL_PROXY_LISTENERS__1__PORT": "588", "CMAIL_PROXY_LISTENERS__2": "{port: 465, tls: implicit}"}
    )
    assert [(listener.port, listener.tls) for listener in loaded.listeners] == [
        (25, "starttls"),
        (588, "required"),
        (465, "implicit"),
    ]


def test_environment_changes_one_of_two_items_that_share_an_anchor(tmp_path: Path) -> None:
    """An alias is a copy: what the environment changes in one item does not change the other."""
    path = written(tmp_path, "listeners: [&first {port: 25, auth: optional}, *first]")
    loaded = load(path, {"CMAIL_PROXY_LISTENERS__1__PORT": "26"})
    assert [(listener.port, listener.auth) for listener in loaded.listeners] == [(25, "optional"), (26, "optional")]


def test_environment_takes_a_list_and_then_its_items() -> None:
    """A whole list and single items of it can be set together; twelve items come in the order of their numbers."""
    ports = {f"CMAIL_PROXY_LISTENERS__{index}__PORT": str(9000 + index) for index in range(1, 12)}
    loaded = load(None, {**ports, "CMAIL_PROXY_LISTENERS": "[{port: 9000}]"})
    assert [listener.port for listener in loaded.listeners] == list(range(9000, 9012))


def test_environment_of_others_is_left_alone() -> None:
    """Other prefixes, the name of the settings file, and what Kubernetes sets for a Service are not settings."""
    environ = {
        "CMAIL_PROXYX_WORKERS": "2",
        "cmail_proxy_workers": "2",
        "CMAIL_PROXY_CONFIG": "/etc/cmail/settings.yaml",
        "CMAIL_PROXY_PORT": "tcp://10.96.0.7:2525",
        "CMAIL_PROXY_PORT_2525_TCP": "tcp://10.96.0.7:2525",
        "CMAIL_PROXY_PORT_2525_TCP_ADDR": "10.96.0.7",
        "CMAIL_PROXY_PORT_2525_TCP_PORT": "2525",
        "CMAIL_PROXY_PORT_2525_TCP_PROTO": "tcp",
        "CMAIL_PROXY_SERVICE_HOST": "10.96.0.7",
        "CMAIL_PROXY_SERVICE_PORT": "2525",
        "CMAIL_PROXY_SERVICE_PORT_SMTP": "2525",
        "CMAIL_PROXY_PROBES_PORT": "tcp://10.96.0.8:9025",
        "CMAIL_PROXY_PROBES_SERVICE_HOST": "10.96.0.8",
    }
    assert load(None, environ) == Settings()


def test_environment_variable_in_odd_case_is_a_problem() -> None:
    """A variable that is nearly right is not silently without effect."""
    (problem,) = problems(None, {"CMAIL_PROXY_Workers": "2"})
    assert problem.startswith(
        "environment: CMAIL_PROXY_Workers: found unknown key 'workers'; expected one of hostname, "
    )


# Places


def test_source_names_the_line_of_each_key(tmp_path: Path) -> None:
    """What a later check says about a key names file and line, or the variable it came from."""
    path = written(tmp_path, "workers: 2\nlisteners:\n  - port: 25\n\n  - address: 127.0.0.1\n    port: 26\n")
    source = load(path, {"CMAIL_PROXY_RELAY__HOST": "smtp.example.com", "CMAIL_PROXY_LOG": "{level: debug}"}).source
    assert source.file == str(path)
    places = {
        "workers": (str(path), 1, "workers"),
        "listeners": (str(path), 2, "listeners"),
        "listeners[1]": (str(path), 5, "listeners[1]"),
        "listeners[1].port": (str(path), 6, "listeners[1].port"),
        "listeners[1].tls": (str(path), 5, "listeners[1].tls"),
        "tls.names": (str(path), 0, "tls.names"),
        "relay.host": ("environment", 0, "CMAIL_PROXY_RELAY__HOST"),
        "relay.port": ("environment", 0, "CMAIL_PROXY_RELAY__PORT"),
        "log.level": ("environment", 0, "CMAIL_PROXY_LOG.level"),
    }
    assert {key: source.place(key) for key in places} == places


def test_source_without_a_file_names_the_variable_to_set() -> None:
    """Who uses the environment alone is told the name of a variable, not of a file that does not exist."""
    assert load(None, {}).source.place("tokens[0].name") == ("environment", 0, "CMAIL_PROXY_TOKENS__0__NAME")


def test_problems_of_file_come_first_and_in_order_of_lines(tmp_path: Path) -> None:
    """All problems come at once, as one reads the file, those of the environment last."""
    path = written(tmp_path, "workers: x\nrelay: {prot: 1, port: x}\nlog: {level: x}\nlimits: {hops: x}\n")
    told = problems(path, {"CMAIL_PROXY_HTTP__PROBES__PORT": "x", "CMAIL_PROXY_DATA": "x"})
    assert [line.partition(": ")[0].removeprefix(str(path)) for line in told] == [
        *(":1", ":2", ":2", ":3", ":4"),
        *("environment", "environment"),
    ]


def test_missing_file_is_a_problem_with_its_name(tmp_path: Path) -> None:
    """A settings file that was named must exist."""
    path = tmp_path / "no.yaml"
    assert problems(path, {}) == [
        f"{path}: found no file that can be read: No such file or directory; expected a settings file"
    ]


def test_file_over_the_limit_is_a_problem(tmp_path: Path) -> None:
    """A file that cannot be settings is not walked."""
    path = written(tmp_path, "#" * 300_000)
    assert problems(path, {}) == [f"{path}: found 300000 characters; expected a file of at most 262144 octets"]


# Anything at all

NAMES = sorted({step for row in rows() for step in row.key.replace("[]", "").split(".")})
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 70_000),
    st.text(max_size=8),
    st.sampled_from(["none", "loopback", "10.0.0.0/8", "mailgun", "no", *LAWFUL.values()]),
)
KEYS = st.one_of(st.sampled_from([*NAMES, "privacy", "mailgun", "X-Cmail-TrackOpens"]), st.text(max_size=5))
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
FILES_ONLY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def outcome(path: Path | None, environ: dict[str, str]) -> list[str]:
    try:
        assert isinstance(load(path, environ), Settings)
    except ProblemsError as error:
        assert error.problems
        assert all(problem.file and problem.found and problem.expected for problem in error.problems)
        return [str(problem) for problem in error.problems]
    return []


@FILES_ONLY
@given(text=st.text())
def test_any_text_as_file_gives_settings_or_problems(tmp_path: Path, text: str) -> None:
    """Whatever an operator saves, the answer is settings or a list of problems, never another exception."""
    outcome(written(tmp_path, text), {})


@FILES_ONLY
@given(document=st.dictionaries(st.sampled_from(list(keys_of(Settings))), DOCUMENTS))
def test_any_values_at_known_keys_give_settings_or_problems(tmp_path: Path, document: dict[str, Any]) -> None:
    """Every key meets every shape of value."""
    outcome(written(tmp_path, json.dumps(document)), {})


@FILES_ONLY
@given(
    document=st.dictionaries(st.sampled_from(list(keys_of(Settings))), DOCUMENTS),
    environ=st.dictionaries(
        st.lists(
            st.sampled_from([*(name.upper() for name in NAMES), "0", "1", "7", "", "X"]), min_size=1, max_size=4
        ).map(lambda parts: "CMAIL_PROXY_" + "__".join(parts)),
        st.one_of(st.text(max_size=10), DOCUMENTS.map(json.dumps), st.sampled_from(list(LAWFUL.values()))),
    ),
)
def test_any_environment_over_any_file_gives_settings_or_problems(
    tmp_path: Path, document: dict[str, Any], environ: dict[str, str]
) -> None:
    """Variables of any name and value, over a file of any shape, give settings or problems."""
    outcome(written(tmp_path, json.dumps(document)), environ)


def wrapped(secret: str) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.just(secret), lambda inner: st.lists(inner, min_size=1) | st.dictionaries(st.just("x"), inner), max_leaves=3
    )


@FILES_ONLY
@given(value=wrapped("hunter2-hunter2"), place=st.sampled_from(["tokens", "logins", "relay", "token", "password"]))
def test_problems_never_show_a_secret_in_any_shape(tmp_path: Path, value: Any, place: str) -> None:
    """A secret that stands in the wrong place, or in a list or mapping, is not repeated."""
    document = {
        "token": {"tokens": [{"name": "a", "token": value}]},
        "password": {"relay": {"password": value}, "logins": [{"name": "a", "password": value}]},
    }.get(place, {place: value})
    assert "hunter2" not in "".join(outcome(written(tmp_path, json.dumps(document)), {}))


def test_loaded_settings_survive_a_copy() -> None:
    """Settings can be changed by attrs.evolve and still know where they came from."""
    loaded = load(None, {"CMAIL_PROXY_WORKERS": "2"})
    assert attrs.evolve(loaded, workers=3).source is loaded.source
