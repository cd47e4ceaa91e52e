# -*- test-case-name: tests.gateways.test_tcp_forward -*-
"""
The PROXY header that a target gets before the bytes of a connection, to know where that
came from: version 2, binary (HAProxy's C{doc/proxy-protocol.txt}, 2.2).
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Any

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_PROXY = 0x21
_LOCAL = 0x20
_TCP4 = 0x11
_TCP6 = 0x21


def proxyHeader(source: Any, destination: Any) -> bytes:
    """
    @param source: The address of who connected.
    @param destination: The address that was connected to.
    @return: The header; one that says nothing (C{LOCAL}) where an address is no TCP's.
    """
    try:
        ends = [ip_address(str(one.host).partition("%")[0]) for one in (source, destination)]
        ports = struct.pack("!HH", source.port, destination.port)
    except (AttributeError, ValueError):
        return _SIGNATURE + struct.pack("!BBH", _LOCAL, 0, 0)
    if all(one.version == 4 for one in ends):
        family, block = _TCP4, b"".join(one.packed for one in ends) + ports
    else:
        family, block = _TCP6, b"".join(_six(one) for one in ends) + ports
    return _SIGNATURE + struct.pack("!BBH", _PROXY, family, len(block)) + block


def _six(address: Any) -> bytes:
    """Sixteen bytes; an IPv4 address is mapped (RFC 4291, 2.5.5.2)."""
    packed: bytes = address.packed
    return packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + packed


__all__ = ["proxyHeader"]
