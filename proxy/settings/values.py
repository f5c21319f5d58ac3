"""The kinds of value that settings have besides words and numbers, and where each was written."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from hmac import compare_digest
from typing import Annotated

import attrs
from attrs import field, frozen

from proxy.problems import Problem

PREFIX = "CMAIL_PROXY_"
ENVIRONMENT = "environment"
"""Stands for the file in problems with environment variables."""


class Secret:
    """
    Hold a password or token so that it does not slip into a log.

    Not an attrs class, because ``attrs.asdict`` would unfold one.
    """

    __slots__ = ("_value",)
    _value: str

    def __init__(self, value: str) -> None:
        object.__setattr__(self, "_value", value)

    def reveal(self) -> str:
        """Return the value itself."""
        return self._value

    def __setattr__(self, name: str, value: object) -> None:
        raise attrs.exceptions.FrozenInstanceError

    def __delattr__(self, name: str) -> None:
        raise attrs.exceptions.FrozenInstanceError

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        """Compare in constant time."""
        if not isinstance(other, Secret):
            return NotImplemented
        return compare_digest(
            self._value.encode("utf-8", "surrogatepass"), other._value.encode("utf-8", "surrogatepass")
        )

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[type["Secret"], tuple[str]]:
        """Let copies and worker processes have it; the default would go through ``__setattr__``."""
        return Secret, (self._value,)


@frozen
class Form:
    """
    What a text must look like.

    Args:
        expected: In words, for problems and for the reference.
        matches: Whether a text has the form.
        unset: The word that stands for no value where the setting may have none.
    """

    expected: str
    matches: Callable[[str], object]
    unset: str = ""


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Tell whether *host*, a name or an IP address, is this machine and reachable from nowhere else."""
    if not _is_address(host):
        return host.lower().rstrip(".") == "localhost"
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


_HOST_NAME = re.compile(r"(?!-)[\w-]{1,63}(?:\.(?!-)[\w-]{1,63})*\.?")
_OWN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}|\[[0-9A-Fa-f:.]{2,45}\]|\[IPv6:[0-9A-Fa-f:.]{2,45}\]")
_PROVIDER = re.compile(r"(?!none\Z)[a-z][a-z0-9_-]{0,39}")

OwnName = Annotated[str, Form("a host name", _OWN_NAME.fullmatch)]
Host = Annotated[
    str,
    Form("a host name or an IP address, without a port", lambda text: _is_address(text) or _HOST_NAME.fullmatch(text)),
]
Domain = Annotated[str, Form("a domain name such as example.com", _HOST_NAME.fullmatch)]
Selector = Annotated[str, Form("a selector such as s1", _HOST_NAME.fullmatch)]
Address = Annotated[str, Form("an IP address such as 127.0.0.1, 0.0.0.0 or ::1", _is_address)]
Provider = Annotated[
    str, Form("the name of a provider: lower-case letters, digits, - and _", _PROVIDER.fullmatch, unset="none")
]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@frozen
class Source:
    """
    Where the settings came from, so that a problem found later can still name the place.

    Args:
        file: The settings file as the operator named it; empty for none.
        lines: 1-based line of each key path that stands in the file, e.g. ``listeners[0].tls``.
        variables: Environment variable of each key path that came from the environment.
    """

    file: str = ""
    lines: Mapping[str, int] = field(factory=dict)
    variables: Mapping[str, str] = field(factory=dict)

    def place(self, key: str) -> tuple[str, int, str]:
        """
        Find the file, line and key to name for a key path.

        A key that was not written has the place of the section or item it would stand in; a key from the environment
        has its variable as key.
        """
        path = key
        while path:
            if path in self.variables:
                return ENVIRONMENT, 0, self.variables[path] + key.removeprefix(path)
            if path in self.lines:
                return self.file, self.lines[path], key
            if any(written.startswith((f"{path}.", f"{path}[")) for written in self.variables):
                return ENVIRONMENT, 0, variable(key)
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return (self.file, 0, key) if self.file else (ENVIRONMENT, 0, variable(key))

    def problem(self, key: str, found: str, expected: str, hint: str = "") -> Problem:
        """Say what is wrong at a key path."""
        file, line, name = self.place(key)
        return Problem(file, line, name, found, expected, hint)


class Findings:
    """Problems and places, collected while settings are read."""

    def __init__(self, file: str) -> None:
        self.lines: dict[str, int] = {}
        self.variables: dict[str, str] = {}
        self.problems: list[Problem] = []
        self.source = Source(file, self.lines, self.variables)


def join(path: str, step: str | int) -> str:
    """Lengthen a key path by a key or by the index of an item."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    return f"{path}.{step}" if path else step


def variable(key: str) -> str:
    """Name the environment variable of a key path: ``listeners[0].port`` is ``CMAIL_PROXY_LISTENERS__0__PORT``."""
    return PREFIX + key.replace("[", ".").replace("]", "").replace(".", "__").upper()
