"""What the model promises to those who walk it, and what a secret keeps to itself."""

import copy
import pickle
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address
from typing import get_args

import attrs
import pytest

from proxy.settings import Listener, LossClass, Relay, Secret, Settings, load
from proxy.settings.fields import alternatives, keys_of, rows
from proxy.settings.model import Action, Strip, Switch
from proxy.settings.values import is_loopback
from proxy.translate import model as translate


@pytest.mark.parametrize("key", [row.key for row in rows()])
def test_key_has_help_that_is_a_sentence(key: str) -> None:
    """Every key says what it decides."""
    (row,) = (row for row in rows() if row.key == key)
    text = row.field.metadata["help"]
    assert text.endswith(".")
    assert text[0].isupper() or text[0] == "`"


@pytest.mark.parametrize("key", [row.key for row in rows() if row.field.type is int])
def test_number_has_a_range_around_its_default_and_a_unit(key: str) -> None:
    """Every number has a range that holds its default; all but ports say what they count, as their names do."""
    (row,) = (row for row in rows() if row.key == key)
    metadata = row.field.metadata
    assert metadata["minimum"] <= row.field.default <= metadata["maximum"]
    name = row.field.name
    if name == "port":
        assert metadata["unit"] == ""
    elif name.endswith(("_seconds", "_octets")):
        assert metadata["unit"] == name.rpartition("_")[2]
    else:
        assert metadata["unit"]


@pytest.mark.parametrize("key", [row.key for row in rows() if Secret in alternatives(row.field.type)])
def test_secret_has_a_key_for_a_file_beside_it(key: str) -> None:
    """Every secret can come from a file."""
    assert f"{key}_file" in [row.key for row in rows()]


def test_words_are_those_of_the_rule_engine() -> None:
    """Classes, actions and switches are the same closed lists in settings and in rules."""
    assert get_args(LossClass) == tuple(translate.DEFAULT_ACTIONS)
    assert get_args(Action) == tuple(action.value for action in translate.Action)
    assert get_args(Strip) == tuple(strip.value for strip in translate.Strip)
    assert get_args(Switch) == translate.SWITCHES


def test_settings_are_frozen() -> None:
    """No part of the program changes what the operator decided."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Settings().workers = 2  # type: ignore[misc]


def test_every_section_of_the_settings_is_frozen_and_takes_names_only() -> None:
    """A value is never given by position, so that a new key cannot shift the meaning of the others."""
    for name in keys_of(Settings):
        value = getattr(Settings(), name)
        if attrs.has(type(value)):
            with pytest.raises(TypeError):
                type(value)("a")
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                setattr(value, next(iter(keys_of(type(value)))), None)


@pytest.mark.parametrize("show", [repr, str, format, lambda relay: str(attrs.asdict(relay)), "{0.password}".format])
def test_secret_is_not_shown(show: object) -> None:
    """Neither logs nor tracebacks nor a dump of the settings contain a secret."""
    assert callable(show)
    shown = show(Relay(password=Secret("hunter2")))
    assert "hunter2" not in shown
    assert "Secret(…)" in shown


def test_secret_is_revealed_only_on_request() -> None:
    """The value comes out by ``reveal`` and in no other way that is a plain attribute."""
    secret = Secret("hunter2")
    assert secret.reveal() == "hunter2"
    assert not hasattr(secret, "__dict__")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        secret._value = "other"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        del secret._value


def test_secrets_are_equal_by_value() -> None:
    """Equal secrets are equal, also when they cannot be encoded; a text is never equal to a secret."""
    assert Secret("a") == Secret("a")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("\udc80") == Secret("\udc80")
    assert Secret("a") != "a"


def test_secret_survives_copies_and_pickles() -> None:
    """Worker processes get the settings by pickle."""
    loaded = load(None, {"CMAIL_PROXY_RELAY__PASSWORD": "hunter2"})
    pickled = pickle.loads(pickle.dumps(loaded))  # noqa: S301  # bytes made in this line
    assert pickled == copy.deepcopy(loaded) == loaded


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("LocalHost.", True),
        (str(IPv4Address(0)), False),
        (str(IPv6Address(0)), False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("localhost.example.com", False),
    ],
)
def test_loopback_is_recognised(host: str, loopback: bool) -> None:
    """Only what no other machine can reach is loopback."""
    assert is_loopback(host) is loopback


def test_listener_knows_whether_it_is_on_loopback() -> None:
    """The rules for listeners off loopback apply to any other address."""
    assert Listener().loopback
    assert not Listener(address="10.0.0.5").loopback


def test_import_needs_nothing_that_serving_needs() -> None:
    """Reading settings loads no network, TLS, SMTP or HTTP module."""
    # Against what was there before, because a coverage run starts inside the process.
    code = "import sys; had = set(sys.modules); import proxy.settings; print({*sys.argv[1:]} & ({*sys.modules} - had))"
    unwanted = ["asyncio", "ssl", "socket", "aiosmtpd", "aiohttp", "click", "email", "proxy.settings.reference"]
    command = [sys.executable, "-c", code, *unwanted]
    assert subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout == "set()\n"
