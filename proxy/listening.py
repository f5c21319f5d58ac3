"""Listening sockets, and what to do when one cannot be had."""

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable

BACKLOG = 1024
"""Connections that may wait to be accepted; the system may allow fewer."""

_ADVICE = {
    errno.EADDRINUSE: "address already in use; stop the program that listens there, or choose another port",
    errno.EACCES: "permission denied; ports below 1024 need the capability CAP_NET_BIND_SERVICE, "
    "or choose a port from 1024 on",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose one it has, or 0.0.0.0 or :: for all",
    errno.EAFNOSUPPORT: "this machine has no IPv6; choose an IPv4 address",
}


class BindError(Exception):
    """Addresses that cannot be listened on: for each of them a line that says why, and what to do."""


def bind(address: str, port: int) -> socket.socket:
    """
    Take an address and port for this process alone.

    Args:
        address: An IP address.
        port: 0 for any free one.

    Raises:
        BindError: It cannot be had.
    """
    return _bind(address, port, shared=False)


def bind_shared(address: str, port: int) -> socket.socket:
    """
    Take an address and port that other processes of ours have, too; connections spread over those that listen.

    Raises:
        BindError: It cannot be had.
    """
    return _bind(address, port, shared=True)


def reserve(places: Iterable[tuple[str, int]]) -> list[socket.socket]:
    """
    Take addresses and ports for processes to come, which use :func:`bind_shared`.

    The sockets do not listen, so they get no connections; as long as they are open, the system hands the port to nobody
    who asks for a free one, and to no other user.

    Args:
        places: Addresses and ports, 0 for any free one.

    Raises:
        BindError: Some cannot be had; all of those are named.
    """
    reserved: list[socket.socket] = []
    problems: list[str] = []
    for address, port in places:
        try:
            # A shared bind would also join the port of another program of the same user, which is hardly ever meant.
            bind(address, port).close()
            reserved.append(bind_shared(address, port))
        except BindError as error:
            problems.append(str(error))
    if problems:
        for each in reserved:
            each.close()
        raise BindError("\n".join(problems))
    return reserved


def place(address: str, port: int) -> str:
    """Write an address and port as one word."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _bind(address: str, port: int, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    listener = None
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier run may linger
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(
                socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1
            )  # or :: and 0.0.0.0 would be in each other's way
        listener.bind((address, port))
    except OSError as error:
        if listener is not None:
            listener.close()
        code = error.errno or 0
        raise BindError(f"{place(address, port)}: {_ADVICE.get(code) or os.strerror(code)}") from None
    return listener
