"""
Addresses that mail from outside may not choose as a destination.

Whoever writes a recipient decides which name is looked up, and whoever owns that name decides what address comes back.
So only addresses on the Internet are spoken to: otherwise a message could be made to talk to a database on this
machine, or to a cloud's metadata service.

Source: RFC 6890 and the IANA special-purpose registries, by way of Python's ipaddress.
"""

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# What ipaddress knows of the registries depends on its version, and before 3.11.10 it lacks most of the first of these:
# IETF protocol assignments, where a cloud has its metadata service, and documentation (RFC 9637).
_SPECIAL = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv6Network("3fff::/20"))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in its last 32 bits


class Networks:
    """
    What may be spoken to.

    Args:
        allowed: Networks that are allowed though they are not on the Internet.
    """

    def __init__(self, allowed: Sequence[IpNetwork] = ()) -> None:
        self._allowed = tuple(allowed)

    def permit(self, text: str) -> bool:
        """Whether this IP address may be connected to; what is no IP address may not."""
        address = plain(text)
        if address is None:
            return False
        return _on_the_internet(address) or any(
            address in network for network in self._allowed if network.version == address.version
        )


@lru_cache(4096)
def plain(text: str) -> IpAddress | None:
    """
    Read an IP address, and unwrap an IPv4 address that is written as an IPv6 one; None for anything else.

    What is wrapped is where the packets go: ``::ffff:127.0.0.1`` is loopback, ``2002:7f00:1::`` (6to4) leads there.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id:
            return None  # only link-local addresses have a zone
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _on_the_internet(address: IpAddress) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (address.is_site_local or address.teredo is not None):
        return False
    if any(address in network for network in _SPECIAL if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)
