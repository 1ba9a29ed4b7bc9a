"""Which IP addresses media may be fetched from.

Knows address ranges. Does not resolve names and opens no connection.
"""

from __future__ import annotations

import ipaddress

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Ranges that the standard library calls global although they lead, or can be
# made to lead, to an address inside: translated and tunnelled IPv4, relays.
_INDIRECT = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.88.99.0/24",  # 6to4 relay anycast
        "::/96",  # IPv4-compatible
        "::ffff:0:0/96",  # IPv4-mapped
        "::ffff:0:0:0/96",  # IPv4-translated
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",  # NAT64, local use
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
        "fec0::/10",  # site-local, deprecated
        "5f00::/16",  # segment routing
    )
)


def is_public(address: IpAddress) -> bool:
    """Says whether an address is an ordinary one of the public network."""
    if address.is_multicast or address.is_reserved or address.is_unspecified or not address.is_global:
        return False
    return not any(address in network for network in _INDIRECT if network.version == address.version)
