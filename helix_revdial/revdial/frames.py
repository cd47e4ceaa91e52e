# -*- test-case-name: tests.revdial.test_frames -*-
"""
WebSocket frames as ranges of memory, for relays that move bytes themselves.

Sans-I/O.  L{FrameReader} goes over what was received and says where payload
lies, after unmasking it in place; nothing is copied, held back or put
together: a fragment's first bytes are passed on before its last ones are
there, message boundaries mean nothing (C{docs/wire.md}).  L{frameHead} makes
the few bytes before a payload that goes out.

What the reader takes: binary messages in any fragments, empty frames, control
frames between fragments.  What it refuses ends the stream with the close code
of RFC 6455, 7.4.1: text (1003), a frame over the limit (1009), anything that
breaks the framing (1002).

The end mark of a direction (C{eof} agreed) is an empty binary message in one
frame; empty frames of a fragmented message are nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from helix_revdial.revdial.masks import Masker, PortableMasker, mask, newMasker

CONTINUATION = 0x0
TEXT = 0x1
BINARY = 0x2
CLOSE = 0x8
PING = 0x9
PONG = 0xA

MAX_HEAD = 14
"""Bytes before a payload, at most: two, a long length, a key."""

ZERO_KEY = bytes(4)
"""The masking key that changes nothing (C{docs/wire.md}, "zero-key")."""

MAX_CONTROL = 125
"""Payload bytes of a control frame (RFC 6455, 5.5)."""

MAX_FRAME = 16 * 1024 * 1024
"""Payload bytes that one frame may announce."""


class FrameError(Exception):
    """
    The peer broke the protocol.

    @ivar code: What a close frame is to say.
    @ivar before: What was found before that, where the reader met it.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.before: list[Found] = []


@dataclass(frozen=True, slots=True)
class Control:
    """A whole control frame, unmasked."""

    opcode: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class EndMark:
    """An empty binary message in one frame."""


END_MARK = EndMark()

Found = memoryview | Control | EndMark


class FrameReader:
    """
    Reads one direction of a WebSocket.

    @ivar whole: Whether nothing is half received: no frame and no message.
    @ivar between: Whether the next byte is the first of a frame's head.
    @ivar isPlain: Whether the last frame with payload needed no unmasking: it had no
        mask, or a zero key.
    @ivar plain: Payload bytes that are still to come of such a frame.
    @ivar headSize: Bytes of the head of a long frame.
    """

    __slots__ = (
        "_control",
        "_empty",
        "_head",
        "_inMessage",
        "_left",
        "_masked",
        "_masker",
        "_maxFrame",
        "_opcode",
        "_open",
        "isPlain",
    )

    def __init__(self, *, masked: bool, maxFrame: int = MAX_FRAME) -> None:
        """
        @param masked: Whether the peer is the client, whose frames are masked; a
            frame of the other kind breaks the protocol.
        @param maxFrame: Payload bytes that one frame may announce.
        """
        self._masked = masked
        self.isPlain = not masked
        self._maxFrame = maxFrame
        self._head = bytearray()
        self._open = False
        self._left = 0
        self._opcode = 0
        self._masker: Masker | PortableMasker | None = None
        self._control = bytearray()
        self._inMessage = False
        self._empty = False

    @property
    def whole(self) -> bool:
        return not (self._open or self._inMessage or self._head)

    @property
    def between(self) -> bool:
        return not (self._open or self._head)

    @property
    def plain(self) -> int:
        return self._left if self.isPlain and not self._opcode & 0x8 else 0

    @property
    def headSize(self) -> int:
        return MAX_HEAD if self._masked else MAX_HEAD - 4

    def passed(self, size: int) -> None:
        """So many bytes of the L{plain} ones went another way, past us."""
        self._left -= size
        if not self._left:
            self._open = False

    def single(self, received: memoryview) -> int:
        """
        Look whether what was received is one message in one frame, and nothing else:
        what a small message is.  It is unmasked where it lies.

        @return: The size of its head, behind which is the payload, and the frame is
            read; 0 for everything else, of which nothing is read.
        """
        size = len(received)
        if (
            size < 3
            or received[0] != 0x80 | BINARY
            or self._left
            or self._inMessage
            or self._open
            or self._head
        ):
            return 0
        length, head = received[1], 2
        if self._masked:
            # Without the bit it is too long for what follows.
            length, head = length ^ 0x80, 6
        if length == 126 and size > 4:
            length = received[2] << 8 | received[3]
            head += 2
            if length < 126:
                return 0
        elif length > 125:
            return 0
        if size != length + head or not 0 < length <= self._maxFrame:
            return 0
        if self._masked:
            key = bytes(received[head - 4 : head])
            self.isPlain = key == ZERO_KEY
            if not self.isPlain:
                mask(key, received[head:])
        return head

    def endsAlone(self, received: memoryview) -> bool:
        """Whether what was received is an end mark, and nothing else, which is read then."""
        head, second = (6, 0x80) if self._masked else (2, 0)
        return (
            len(received) == head
            and received[0] == 0x80 | BINARY
            and received[1] == second
            and not (self._left or self._inMessage or self._open or self._head)
        )

    def read(self, received: memoryview) -> list[Found]:
        """
        Go over bytes that were received.

        @param received: Writable; payload in it is unmasked where it lies.
        @return: In order: ranges of C{received} that are payload, whole control
            frames, end marks.
        @raise FrameError: The peer broke the protocol; it has what came before.
        """
        found: list[Found] = []
        try:
            self._read(received, found)
        except FrameError as broken:
            broken.before = found
            raise
        return found

    def _read(self, received: memoryview, found: list[Found]) -> None:
        at, end = 0, len(received)
        while True:
            if self._left:
                if at == end:
                    return
                stop = min(end, at + self._left)
                piece = received[at:stop]
                self._left -= stop - at
                at = stop
                if self._masker is not None:
                    self._masker.apply(piece)
                if self._opcode & 0x8:
                    self._control += piece
                else:
                    found.append(piece)
            if self._open and not self._left:
                self._frameEnd(found)
            if at == end:
                return
            at = self._readHead(received, at, end)

    def _readHead(self, received: memoryview, at: int, end: int) -> int:
        """Take a head's bytes; with the last of them the frame is open."""
        head = self._head
        if not head and end - at >= MAX_HEAD:
            # The usual case: a head that lies in one piece.
            size = _headSize(received[at + 1])
            self._frameBegin(received[at : at + size])
            return at + size
        while at < end:
            head.append(received[at])
            at += 1
            if len(head) >= 2 and len(head) == _headSize(head[1]):
                with memoryview(head) as view:
                    self._frameBegin(view)
                self._head = bytearray()
                return at
        return at

    def _frameBegin(self, head: memoryview) -> None:
        first, second = head[0], head[1]
        opcode = first & 0x0F
        length = second & 0x7F
        at = 2
        if length == 126:
            (length,) = struct.unpack_from("!H", head, 2)
            at = 4
            minimal = length >= 126
        elif length == 127:
            (length,) = struct.unpack_from("!Q", head, 2)
            at = 10
            minimal = length >= 65536
        else:
            minimal = True
        if first & 0x70:
            raise FrameError(1002, "a frame with an extension that nobody agreed on")
        if bool(second & 0x80) is not self._masked:
            raise FrameError(1002, "an unmasked frame" if self._masked else "a masked frame")
        if not minimal:
            raise FrameError(1002, "a length that is written longer than it is")
        fin = bool(first & 0x80)
        if opcode & 0x8:
            if opcode not in (CLOSE, PING, PONG):
                raise FrameError(1002, "an unknown control frame")
            if not fin or length > MAX_CONTROL:
                raise FrameError(1002, "a control frame that is fragmented or too long")
            self._control = bytearray()
        else:
            self._dataBegin(opcode, fin, length)
        self._opcode = opcode
        self._left = length
        self._open = True
        self._masker = None
        if second & 0x80 and length:
            key = bytes(head[at : at + 4])
            if key != ZERO_KEY:
                self._masker = newMasker(key)
            if not opcode & 0x8:
                self.isPlain = key == ZERO_KEY

    def _dataBegin(self, opcode: int, fin: bool, length: int) -> None:
        if opcode == CONTINUATION:
            if not self._inMessage:
                raise FrameError(1002, "a continuation of nothing")
        elif opcode == BINARY:
            if self._inMessage:
                raise FrameError(1002, "a message inside a message")
        elif opcode == TEXT:
            raise FrameError(1003, "binary messages only")
        else:
            raise FrameError(1002, "an unknown frame")
        if length > self._maxFrame:
            raise FrameError(1009, f"a frame of more than {self._maxFrame} bytes")
        self._empty = opcode == BINARY and fin and not length
        self._inMessage = not fin

    def _frameEnd(self, found: list[Found]) -> None:
        self._open = False
        self._masker = None
        if self._opcode & 0x8:
            found.append(Control(self._opcode, bytes(self._control)))
        elif self._empty:
            self._empty = False
            found.append(END_MARK)


def _headSize(second: int) -> int:
    length = second & 0x7F
    return 2 + (2 if length == 126 else 8 if length == 127 else 0) + (4 if second & 0x80 else 0)


def frameHead(length: int, key: bytes | None, opcode: int = BINARY) -> bytes:
    """
    The bytes before the payload of a frame that is a whole message.

    @param length: Of the payload.
    @param key: The masking key of a client's frame; C{None} for a server's.
    """
    mask = 0 if key is None else 0x80
    if length < 126:
        head = bytes((0x80 | opcode, mask | length))
    elif length < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, mask | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, mask | 127, length)
    return head if key is None else head + key


def frame(payload: bytes, key: bytes | None, opcode: int = BINARY) -> bytes:
    """A whole frame, for small ones: control frames and the end mark."""
    if key is None:
        return frameHead(len(payload), None, opcode) + payload
    body = bytearray(payload)
    if body:
        mask(key, memoryview(body))
    return frameHead(len(payload), key, opcode) + bytes(body)


def closePayload(code: int, reason: str) -> bytes:
    """The payload of a close frame; the reason is cut to what fits (RFC 6455, 5.5.1)."""
    text = reason.encode("utf-8")[: MAX_CONTROL - 2]
    return struct.pack("!H", code) + text.decode("utf-8", "ignore").encode("utf-8")


def readClose(payload: bytes) -> tuple[int, str]:
    """
    What a close frame says.

    @return: Code (1000 for an empty one) and reason.
    @raise FrameError: It cannot be read.
    """
    if not payload:
        return 1000, ""
    if len(payload) == 1:
        raise FrameError(1002, "a close frame with half a code")
    (code,) = struct.unpack_from("!H", payload)
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise FrameError(1002, "a close code that must not be sent")
    try:
        return code, payload[2:].decode("utf-8")
    except UnicodeDecodeError:
        raise FrameError(1007, "a close reason that is not UTF-8") from None
