"""Addresses of clients: whose a request is behind proxies, and what counts as one client."""

import ipaddress
import re
from collections.abc import Iterable, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_WITH_PORT = re.compile(r"\[(?P<six>[^\[\]]+)\](?::\d{1,5})?|(?P<four>[\d.]+):\d{1,5}")


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """The networks that ``Settings.trusted_proxies`` names."""
    return tuple(map(ipaddress.ip_network, texts))


def is_in(address: str, among: Sequence[Network]) -> bool:
    """Whether an address, written in any way, belongs to one of the networks."""
    if not among:
        return False
    parsed = _parse(address)
    return parsed is not None and _is_in(parsed, among)


def client_address(peer: str, forwarded_for: str | None, trusted: Sequence[Network]) -> str:
    """The address of the client whose request ``peer`` brought.

    That is the peer, unless it is a trusted proxy: then the rightmost address of its
    ``X-Forwarded-For`` that is not itself a trusted proxy's. Each proxy adds at the right the
    address that it saw, so what the client wrote there stands further left and is never reached. A
    part that is no address ends the walk, at the last proxy.
    """
    last = _parse(peer)
    if last is None or not _is_in(last, trusted):
        return peer
    for part in reversed((forwarded_for or "").split(",")):
        address = _parse(part)
        if address is None:
            break
        last = address
        if not _is_in(address, trusted):
            break
    return str(last)


def is_secure(forwarded_proto: str) -> bool:
    """Whether the ``X-Forwarded-Proto`` of a trusted proxy says that the client speaks TLS. Of
    several proxies the first, at the left, is the one that the client speaks to."""
    return forwarded_proto.partition(",")[0].strip().lower() == "https"


def one_client(address: str) -> str:
    """What is counted as one client: an IPv4 address, or the /64 of an IPv6 address, of which any
    client has all (RFC 6177, section 2). Anything else stays as it is."""
    parsed = _parse(address)
    if parsed is None:
        return address
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


def _parse(text: str) -> Address | None:
    """An address, alone or with a port: as itself where it is IPv4 within IPv6 (RFC 4291, section
    2.5.5.2), and without its zone."""
    text = text.strip()
    if match := _WITH_PORT.fullmatch(text):
        text = match["six"] or match["four"]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.version == 4:
        return address
    return address.ipv4_mapped or ipaddress.IPv6Address(int(address))


def _is_in(address: Address, among: Sequence[Network]) -> bool:
    return any(address in network for network in among)
