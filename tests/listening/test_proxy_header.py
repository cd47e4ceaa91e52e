"""PROXY headers: what is one, what is none, at every split."""

from __future__ import annotations

import socket
import struct
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.listening.proxy_header import (
    MAX_BLOCK,
    MAX_LINE,
    SIGNATURE,
    BadProxyHeader,
    ProxyHeader,
    ProxyHeaderReader,
)

LINE4 = b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n"
LINE6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 443\r\n"
FROM4 = ProxyHeader(IPv4Address("TCP", "192.0.2.7", 50000), IPv4Address("TCP", "198.51.100.1", 443))
FROM6 = ProxyHeader(
    IPv6Address("TCP", "2001:db8::7", 50000), IPv6Address("TCP", "2001:db8::1", 443)
)
NOBODY = ProxyHeader(None, None)


def block(family: int, body: bytes, *, version: int = 2, command: int = 1) -> bytes:
    """A header of version 2."""
    return SIGNATURE + struct.pack("!BBH", version << 4 | command, family, len(body)) + body


BLOCK4 = block(
    0x11,
    socket.inet_aton("192.0.2.7")
    + socket.inet_aton("198.51.100.1")
    + struct.pack("!HH", 50000, 443),
)
BLOCK6 = block(
    0x21,
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + struct.pack("!HH", 50000, 443),
)
EXTENDED = block(0x11, BLOCK4[16:] + b"\x04\x00\x03abc")
UNIX = block(0x31, b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0"))

GOOD = {
    LINE4: FROM4,
    LINE6: FROM6,
    b"PROXY UNKNOWN\r\n": NOBODY,
    b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n": NOBODY,
    BLOCK4: FROM4,
    BLOCK6: FROM6,
    EXTENDED: FROM4,
    block(0x00, b""): NOBODY,
    block(0x00, b"whatever", command=0): NOBODY,
    block(0x11, b"", command=0): NOBODY,
    UNIX: ProxyHeader(UNIXAddress(b"/run/a"), UNIXAddress(b"/run/b")),
}

BAD = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"PROXX",
    b"proxy TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.999 198.51.100.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.07 198.51.100.1 1 2\r\n",
    b"PROXY TCP4 2001:db8::7 198.51.100.1 1 2\r\n",
    b"PROXY TCP6 192.0.2.7 2001:db8::1 1 2\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 2\r\n",
    b"PROXY TCP4 192.0.2.7  198.51.100.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n",
    b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n\r\n",
    b"PROXY UNKNOWN" + bytes(MAX_LINE),
    b"PROXY UNKNOWN " + b"x" * MAX_LINE + b"\r\n",
    block(0x11, BLOCK4[16:], version=1),
    block(0x11, BLOCK4[16:], command=2),
    block(0x11, BLOCK4[16:-1]),
    block(0x12, BLOCK4[16:]),
    block(0x22, BLOCK6[16:]),
    block(0x41, bytes(36)),
    block(0x11, bytes(MAX_BLOCK)),
)


def read(data: bytes, cuts: tuple[int, ...] = ()) -> tuple[ProxyHeader, bytes] | None:
    """Feed it in pieces; what came after the header is put together."""
    reader = ProxyHeaderReader()
    found: tuple[ProxyHeader, bytes] | None = None
    edges = sorted({0, len(data), *cuts})
    for start, end in pairwise(edges):
        piece = data[start:end]
        found = reader.feed(piece) if found is None else (found[0], found[1] + piece)
    return found


class ReaderTests(SynchronousTestCase):
    """L{ProxyHeaderReader}."""

    def test_good(self) -> None:
        """Every form, at every split, with what follows it."""
        for data, header in GOOD.items():
            for rest in (b"", b"GET / HTTP/1.1\r\n", b"PROXY TCP4 again\r\n"):
                whole = data + rest
                for cut in range(len(whole) + 1):
                    self.assertEqual(read(whole, (cut,)), (header, rest), (whole, cut))

    def test_byteByByte(self) -> None:
        """One byte at a time."""
        for data, header in GOOD.items():
            self.assertEqual(read(data + b"x", tuple(range(len(data) + 1))), (header, b"x"))

    def test_incomplete(self) -> None:
        """A header that ends early is waited for; nothing else is."""
        for data in GOOD:
            for end in range(len(data)):
                self.assertIsNone(read(data[:end]), data[:end])

    def test_bad(self) -> None:
        """What is none is refused, at every split."""
        for data in BAD:
            for cut in range(len(data)):
                with self.assertRaises(BadProxyHeader, msg=repr((data, cut))):
                    self.assertIsNone(read(data, (cut,)), (data, cut))

    def test_refusedEarly(self) -> None:
        """What can be no header any more is not waited for."""
        for data in (b"G", b"PROXYX", b"\r\n\r\nG", SIGNATURE + b"\x11"):
            with self.assertRaises(BadProxyHeader):
                ProxyHeaderReader().feed(data)
        with self.assertRaises(BadProxyHeader):
            ProxyHeaderReader().feed(SIGNATURE + struct.pack("!BBH", 0x21, 0x11, 0xFFFF))

    def test_limits(self) -> None:
        """The longest line and the largest block are taken, one byte more is not."""
        longest = b"PROXY UNKNOWN " + b"x" * (MAX_LINE - 16) + b"\r\n"
        self.assertEqual(len(longest), MAX_LINE)
        self.assertEqual(read(longest), (NOBODY, b""))
        largest = block(0x11, BLOCK4[16:].ljust(MAX_BLOCK - 16, b"\0"))
        self.assertEqual(read(largest), (FROM4, b""))

    @settings(deadline=None, max_examples=200)
    @given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE]), st.binary(max_size=300))
    def test_anything(self, start: bytes, rest: bytes) -> None:
        """Any bytes end in a header, a refusal, or the wish for more."""
        try:
            found = read(start + rest)
        except BadProxyHeader:
            return
        if found is not None:
            self.assertIsInstance(found[0], ProxyHeader)
