# -*- test-case-name: tests.listening.test_proxy_header -*-
"""
The PROXY header, which a proxy sends before the bytes of a connection that it
passes on, to say where that came from.  Both versions, bytes in, a header out;
no sockets.

The rules are those of HAProxy's C{doc/proxy-protocol.txt}: version 1 is a line
of at most 107 bytes (2.1), version 2 a binary block (2.2).  What it leaves
open is refused here: other spellings of an address or a port, addresses that
are no stream's, and a block of more than L{MAX_BLOCK} bytes.

Twisted's own parser (C{twisted.protocols.haproxy}) would not do: it takes a
line up to the end of the first read, whatever its length, takes no header that
comes in two pieces of which the first is short, takes C{1.2.3.999}, and leaves
the connection waiting for ever.

Invariants:

  - Whatever the split of the input, the same header and the same rest.
  - At most L{MAX_BLOCK} bytes are held.
  - Any input ends in a header, L{BadProxyHeader}, or the wish for more.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address as IPv4
from ipaddress import IPv6Address as IPv6
from ipaddress import ip_address

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""How a header of version 2 begins."""

MAX_LINE = 107
"""Bytes of a header of version 1, its CRLF included."""

MAX_BLOCK = 4096
"""Bytes of a header of version 2, extensions (which are not read) included."""

_FIXED = len(SIGNATURE) + 4
_LINE = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) ([0-9]+) ([0-9]+)")
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")


class BadProxyHeader(ValueError):
    """What came is no PROXY header.  The text holds nothing of it."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """
    Where a connection came from, and where to.

    @ivar source: C{None} where the proxy speaks for itself (a health check) or
        does not know.
    """

    source: IAddress | None
    destination: IAddress | None


class ProxyHeaderReader:
    """Takes bytes until a header is complete."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> tuple[ProxyHeader, bytes] | None:
        """
        @return: The header and what follows it; C{None} while there is not enough.
        @raise BadProxyHeader: It is none.
        """
        self._buffer += data
        buffer = self._buffer
        size = None
        if buffer.startswith(b"PROXY "):
            size = _lineSize(buffer)
        elif buffer.startswith(SIGNATURE):
            size = _blockSize(buffer)
        elif not (b"PROXY ".startswith(buffer) or SIGNATURE.startswith(buffer)):
            raise BadProxyHeader("the connection does not begin with a PROXY header")
        if size is None or len(buffer) < size:
            return None
        self._buffer = b""
        header = buffer[:size]
        parse = _parseLine if header.startswith(b"PROXY ") else _parseBlock
        return parse(header), buffer[size:]


def _lineSize(buffer: bytes) -> int | None:
    end = buffer.find(b"\r\n", 0, MAX_LINE)
    if end >= 0:
        return end + 2
    if len(buffer) >= MAX_LINE:
        raise BadProxyHeader(f"a PROXY line has at most {MAX_LINE} bytes")
    return None


def _parseLine(line: bytes) -> ProxyHeader:
    if line == b"PROXY UNKNOWN\r\n" or line.startswith(b"PROXY UNKNOWN "):
        return ProxyHeader(None, None)
    match = _LINE.fullmatch(line[:-2])
    if match is None:
        raise BadProxyHeader("a PROXY line that is malformed")
    family, source, destination, sourcePort, destinationPort = match.groups()
    return ProxyHeader(
        _textAddress(family, source, sourcePort),
        _textAddress(family, destination, destinationPort),
    )


def _textAddress(family: bytes, text: bytes, port: bytes) -> IAddress:
    if _PORT.fullmatch(port) is None or int(port) > 0xFFFF:
        raise BadProxyHeader("a PROXY line with a port that is none")
    try:
        parsed = ip_address(text.decode("ascii"))
    except ValueError:
        raise BadProxyHeader("a PROXY line with an address that is none") from None
    if parsed.version != (4 if family == b"TCP4" else 6):
        raise BadProxyHeader("a PROXY line with an address of another family")
    return _address(parsed, int(port))


def _address(parsed: IPv4 | IPv6, port: int) -> IAddress:
    if isinstance(parsed, IPv4):
        return IPv4Address("TCP", str(parsed), port)
    return IPv6Address("TCP", str(parsed), port)


def _blockSize(buffer: bytes) -> int | None:
    if len(buffer) > len(SIGNATURE) and buffer[12] >> 4 != 2:
        raise BadProxyHeader("a PROXY header of a version that is not known")
    if len(buffer) < _FIXED:
        return None
    (length,) = struct.unpack_from("!H", buffer, 14)
    if _FIXED + length > MAX_BLOCK:
        raise BadProxyHeader(f"a PROXY header of more than {MAX_BLOCK} bytes")
    return _FIXED + int(length)


def _parseBlock(block: bytes) -> ProxyHeader:
    command, family, rest = block[12] & 15, block[13], block[_FIXED:]
    if command == 0:
        # LOCAL: the proxy's own connection; whatever else stands there is not read.
        return ProxyHeader(None, None)
    if command != 1:
        raise BadProxyHeader("a PROXY header with a command that is not known")
    try:
        match family:
            case 0x00:
                return ProxyHeader(None, None)
            case 0x11:
                source, destination, *ports = struct.unpack_from("!4s4sHH", rest)
                return ProxyHeader(
                    _address(IPv4(source), ports[0]), _address(IPv4(destination), ports[1])
                )
            case 0x21:
                source, destination, *ports = struct.unpack_from("!16s16sHH", rest)
                return ProxyHeader(
                    _address(IPv6(source), ports[0]), _address(IPv6(destination), ports[1])
                )
            case 0x31:
                source, destination = struct.unpack_from("!108s108s", rest)
                return ProxyHeader(_path(source), _path(destination))
    except struct.error:
        raise BadProxyHeader("a PROXY header that is too short for its addresses") from None
    raise BadProxyHeader("a PROXY header of something that is no stream")


def _path(field: bytes) -> UNIXAddress:
    return UNIXAddress(field.rstrip(b"\x00") or None)
