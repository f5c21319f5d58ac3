"""The generated reference and schema."""

from collections.abc import Iterator
from typing import Any

import pytest

from proxy.settings.fields import rows
from proxy.settings.reference import json_schema, markdown


def test_reference_has_one_row_of_six_cells_for_each_key() -> None:
    """An operator finds every key path once, in the order of the model."""
    head, rule, *body = markdown().splitlines()
    assert head == "| Key | Value | Default | Unit | Meaning | Environment variable |"
    assert rule == "| --- | --- | --- | --- | --- | --- |"
    assert [line.split("`")[1] for line in body] == [row.key for row in rows()]
    assert {line.replace("\\|", "").count("|") for line in body} == {7}


@pytest.mark.parametrize(
    "line",
    [
        "| `hostname` | a host name | the machine's |  | The name this program gives itself in greeting, EHLO and "
        "Received. | `CMAIL_PROXY_HOSTNAME` |",
        "| `listeners[].port` | an integer from 0 to 65535 | `2525` |  | The port; 0 takes any free one. | "
        "`CMAIL_PROXY_LISTENERS__0__PORT` |",
        "| `listeners[].allow_networks` | a list, each item a network such as 10.0.0.0/8 or fd00::/8 | `[]` |  | "
        "Networks whose clients may send without logging in; empty, on loopback only, for all. | "
        "`CMAIL_PROXY_LISTENERS__0__ALLOW_NETWORKS` |",
        "| `tokens[].token` | text | required, here or as `token_file` |  | The token. | "
        "`CMAIL_PROXY_TOKENS__0__TOKEN` |",
        "| `log.level` | debug, info, warning or error | `info` |  | The least important lines that are written. | "
        "`CMAIL_PROXY_LOG__LEVEL` |",
        "| `relay.host` | a host name or an IP address, without a port | not set |  | The platform's SMTP host. "
        "Needed for route `relay`. | `CMAIL_PROXY_RELAY__HOST` |",
        "| `relay.wait_seconds` | an integer from 0 to 3600 | `10` | seconds | Longest wait for a pooled connection. | "
        "`CMAIL_PROXY_RELAY__WAIT_SECONDS` |",
        "| `tls.self_signed` | true or false | `false` |  | Make a certificate authority of our own in `data_dir`, and "
        "certificates from it. | `CMAIL_PROXY_TLS__SELF_SIGNED` |",
    ],
)
def test_reference_says_type_default_unit_help_and_variable(line: str) -> None:
    """A row has what an operator needs to set a key."""
    assert line in markdown().splitlines()


def schema_keys(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in schema.get("properties", {}).items():
        if "description" not in value:  # a class of loss in rules.actions: a word, not a key
            continue
        yield f"{path}{name}"
        yield from schema_keys(value, f"{path}{name}.")
        yield from schema_keys(value.get("items", {}), f"{path}{name}[].")


def test_schema_has_every_key_and_no_other() -> None:
    """The schema and the reference list the same keys."""
    schema = json_schema()
    assert list(schema_keys(schema)) == [row.key for row in rows()]
    assert schema["additionalProperties"] is False


def test_schema_says_words_ranges_and_what_is_required() -> None:
    """An editor can complete words, check ranges and miss a name."""
    schema = json_schema()["properties"]
    listener = schema["listeners"]["items"]["properties"]
    assert listener["tls"]["enum"] == ["starttls", "required", "none", "implicit", "auto"]
    assert (listener["port"]["minimum"], listener["port"]["maximum"]) == (0, 65535)
    token = schema["tokens"]["items"]
    assert token["required"] == ["name"]
    assert token["oneOf"] == [{"required": ["token"]}, {"required": ["token_file"]}]
    assert schema["relay"]["not"] == {"required": ["password", "password_file"]}
    assert schema["rules"]["properties"]["actions"]["properties"]["privacy"]["enum"] == [
        "ignore",
        "warn",
        "refuse",
        "discard",
    ]
    assert schema["rules"]["properties"]["when_absent"]["anyOf"][0] == {"enum": ["platform", "provider"]}
