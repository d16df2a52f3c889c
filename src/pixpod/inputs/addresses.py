"""Addresses that a caller may reach without a setting: public unicast ones.

CPython's `is_global` is not used: it lets 6to4, site-local and some metadata addresses through.
Sources: the IANA special-purpose registries of IPv4 and IPv6.
"""

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_CLOSED_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)

_UNICAST_V6 = IPv6Network("2000::/3")
_CLOSED_V6 = tuple(
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
"""Inside 2000::/3. Mapped, compatible, translated (NAT64) and local addresses are outside it."""

_LITERAL_ONLY = tuple(
    ip_network(network)
    for network in (
        "169.254.0.0/16",
        "fe80::/10",
        "168.63.129.16/32",
        "100.100.100.200/32",
        "192.0.0.192/32",
        "fd00:42::42/128",
        "fd00:c1::a9fe:a9fe/128",
        "fd00:ec2::254/128",
        "fd20:ce::254/128",
    )
)
"""Link-local addresses, and those where clouds serve metadata and credentials."""


def parse_address(text: str) -> Address:
    """Return the address in a socket's form; the scope of an IPv6 address is dropped."""
    return ip_address(text.partition("%")[0])


def is_public(address: Address) -> bool:
    """Return whether an address is public unicast and carries no IPv4 address inside."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _CLOSED_V4)
    if address not in _UNICAST_V6 or any(address in network for network in _CLOSED_V6):
        return False
    interface = (int(address) >> 32) & 0xFFFF_FFFF
    return interface & ~0x0200_0000 != 0x0000_5EFE  # ISATAP: the last 32 bits are IPv4


def is_literal_only(address: Address) -> bool:
    """Return whether only a setting that names this very address opens it."""
    return any(address in network for network in _LITERAL_ONLY)


def has_literal_only(network: Network) -> bool:
    """Return whether a network lies within those addresses."""
    return is_literal_only(network.network_address) and is_literal_only(network.broadcast_address)
