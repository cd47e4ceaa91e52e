# -*- test-case-name: tests.revdial.test_masks -*-
"""
Masking of WebSocket payload in place (RFC 6455, 5.3), and keys for it.

Autobahn brings compiled code for the XOR; its own call copies, which costs
more than the XOR.  Here the same code works on the memory that holds the
payload.  Where the compiled code is missing a portable way does the same,
slower.

Small payload is masked as one number: what the compiled code needs to begin costs more.

Keys come from the system's strong randomness, some at a time: RFC 6455, 10.3
asks for keys that nobody can predict, since a tunnel carries bytes that
somebody else chose.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

KEY_BATCH = 4096
"""Bytes of randomness that are drawn at a time: 1,024 keys."""

SMALL = 512
"""Bytes up to which one number is the faster way; measured: 0.6 us for 64, not 1.4."""

SIMD = 2
"""The number of the compiled code's vector implementation."""

_BLOCK = 64 * 1024

try:
    from _nvx_xormasker import ffi as _ffi
    from _nvx_xormasker import lib as _lib
except ImportError:  # a platform without the compiled code
    _ffi = _lib = None


class Masker:
    """
    Masks, or unmasks, the payload of one frame, piece by piece.
    """

    __slots__ = ("_buffer", "_masker")

    def __init__(self, key: bytes) -> None:
        """@param key: The frame's four bytes."""
        self._buffer: Any = _ffi.new("uint8_t[4]", key)
        self._masker: Any = _ffi.gc(_lib.nvx_xormask_new(self._buffer), _lib.nvx_xormask_free)
        _lib.nvx_xormask_set_impl(self._masker, SIMD)

    def apply(self, view: memoryview) -> None:
        """Change the payload's next bytes, where they are."""
        _lib.nvx_xormask_process(self._masker, _ffi.from_buffer(view), len(view))


class PortableMasker:
    """The same without compiled code: one long number XOR another, in blocks."""

    __slots__ = ("_key", "_phase")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._phase = 0

    def apply(self, view: memoryview) -> None:
        """Change the payload's next bytes, where they are."""
        for start in range(0, len(view), _BLOCK):
            block = view[start : start + _BLOCK]
            size = len(block)
            turned = self._key[self._phase :] + self._key[: self._phase]
            mask = (turned * (size // 4 + 1))[:size]
            plain = int.from_bytes(block, "little") ^ int.from_bytes(mask, "little")
            block[:] = plain.to_bytes(size, "little")
            self._phase = (self._phase + size) % 4


newMasker: Callable[[bytes], Masker | PortableMasker] = PortableMasker if _lib is None else Masker
"""Makes the fastest masker there is."""


def mask(key: bytes, payload: memoryview) -> None:
    """Mask, or unmask, the whole payload of a frame, where it is."""
    size = len(payload)
    if size > SMALL:
        newMasker(key).apply(payload)
        return
    keys = int.from_bytes((key * (size + 3 >> 2))[:size], "little")
    payload[:] = (int.from_bytes(payload, "little") ^ keys).to_bytes(size, "little")


class Keys:
    """Strong random masking keys."""

    def __init__(self, random: Callable[[int], bytes] = os.urandom) -> None:
        """@param random: Gives so many random bytes."""
        self._random = random
        self._batch = b""
        self._next = 0

    def key(self) -> bytes:
        """Four bytes that nobody has seen."""
        start = self._next
        if start == len(self._batch):
            self._batch = self._random(KEY_BATCH)
            start = 0
        self._next = start + 4
        return self._batch[start : start + 4]
