"""Sockets that listen, and the advice for those that cannot be had."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.listening import BindError, bind, bind_shared, place, reserve

ROOT = Path(__file__).parent.parent


def test_bind_to_port_0_takes_a_free_one() -> None:
    """The socket is bound, ready to listen, and its port is known."""
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname(), timeout=10) as client:
            assert client.getpeername() == listener.getsockname()


def test_bind_to_ipv6_leaves_ipv4_alone() -> None:
    """``::`` and ``0.0.0.0`` can be listened on with the same port, by two sockets."""
    for attempt in range(10):
        with bind("::", 0) as six:
            six.listen()
            try:
                with bind("0.0.0.0", six.getsockname()[1]) as four:  # noqa: S104 - what is tested
                    four.listen()
                    return
            except BindError:  # another program may have that very port on IPv4, but hardly ten of them in a row
                if attempt == 9:
                    raise


def test_bind_port_in_use_says_so() -> None:
    """A port that somebody listens on is refused with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError) as caught:
            bind("127.0.0.1", port)
    assert str(caught.value) == (
        f"127.0.0.1:{port}: address already in use; stop the program that listens there, or choose another port"
    )


def test_bind_address_of_another_machine_says_so() -> None:
    """An address that this machine does not have is refused with what to do."""
    with pytest.raises(BindError) as caught:
        bind("192.0.2.1", 2525)
    assert str(caught.value) == (
        "192.0.2.1:2525: this machine has no such address; choose one it has, or 0.0.0.0 or :: for all"
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ports below 1024 are open to all elsewhere")
def test_bind_low_port_without_right_says_so() -> None:
    """A port that needs a right the process lacks is refused with what to do."""
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 25:
        pytest.skip("this machine gives port 25 to anybody")
    code = (
        "import os; from proxy.listening import *\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: bind('127.0.0.1', 25)\n"
        "except BindError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout == (
        "127.0.0.1:25: permission denied; ports below 1024 need the capability CAP_NET_BIND_SERVICE, "
        "or choose a port from 1024 on\n"
    )


def test_reserve_gives_ports_that_several_sockets_can_share() -> None:
    """What is reserved gets no connections itself, and sockets bound to it later share them."""
    (reserved,) = reserve([("127.0.0.1", 0)])
    port = reserved.getsockname()[1]
    with reserved, bind_shared("127.0.0.1", port) as first, bind_shared("127.0.0.1", port) as second:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)
        first.listen()
        second.listen()
        socket.create_connection(("127.0.0.1", port), timeout=10).close()


def test_reserve_names_every_problem_and_keeps_nothing() -> None:
    """All addresses that cannot be had are told at once, and those that could be had are free again."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as freed:
        port, free = taken.getsockname()[1], freed.getsockname()[1]
        freed.close()
        with pytest.raises(BindError) as caught:
            reserve([("127.0.0.1", port), ("127.0.0.1", free), ("192.0.2.1", 25)])
        assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [f"127.0.0.1:{port}", "192.0.2.1:25"]
        bind("127.0.0.1", free).close()


def test_place_puts_ipv6_in_brackets() -> None:
    """An address and port read as one word in which the port is plain."""
    assert (place("::1", 25), place("127.0.0.1", 25)) == ("[::1]:25", "127.0.0.1:25")
