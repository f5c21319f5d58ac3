"""Which addresses mail may be sent to: those on the Internet, and those that the operator allows."""

import ipaddress

import pytest

from proxy.outbound.networks import Networks


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_address_on_the_internet_is_permitted(address: str) -> None:
    """Plain ones, and those that only wrap one."""
    assert Networks().permit(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",  # noqa: S104
        "0.1.2.3",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.8",
        "192.0.0.192",
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%lo",
        "fc00::1",
        "fd12:3456::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "3fff::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a00:1",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "100::1",
        "4000::1",
        "example.net",
        "127.1",
        "0x7f000001",
        "2130706433",
        "",
    ],
)
def test_address_off_the_internet_is_refused(address: str) -> None:
    """Private, loopback, link-local, multicast, unspecified, reserved, documentation, however it is wrapped."""
    assert not Networks().permit(address)


def test_network_that_is_allowed_is_permitted_and_no_other() -> None:
    """The operator's own networks, also where an address is wrapped."""
    networks = Networks([ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("fd00::/8")])
    assert networks.permit("127.0.0.2")
    assert networks.permit("::ffff:127.0.0.2")
    assert networks.permit("fd00::1")
    assert not networks.permit("10.0.0.1")
    assert not networks.permit("::1")
