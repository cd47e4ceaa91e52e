# -*- test-case-name: tests.revdial.test_messages -*-
"""
The lines of the control connection.

This module owns the text form of every control message, in both directions,
and the limits on it.  It sees bytes and values only: no transport, no clock,
no table.  What a message I{does} belongs to the two ends (L{dialer
<helix_revdial.revdial.dialer>} and L{listener
<helix_revdial.revdial.listener>}).

Invariants:

  - One message is one JSON object on one line that ends in C{\\n} and has at
    most L{MAX_LINE} bytes with it.  The existing Go programs read with a buffer
    of just that size and drop the connection at a longer line.

  - A reader holds at most one incomplete line.  The first fault ends it: no
    message behind a fault is ever delivered.

  - Whatever a peer sends that later stands in a request (C{connPath},
    C{ticket}, C{target}) has been checked here: it cannot name another host or
    add a header field.

  - No C{repr} shows a ticket, or the ids in a path's query.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import parse_qsl

MAX_LINE = 4096
"""Bytes of one control line, its newline included, in either direction."""

MAX_ECHO = 64
"""Characters of an echo's content."""

MAX_DELAY = 3600.0
"""Seconds; a longer C{delay} or C{retryAfter} is read as this."""

REASONS = frozenset({"target-refused", "target-timed-out", "unknown-target", "busy", "unreachable"})
"""What our agents say in a C{pickup-failed}; an unknown word is no fault."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")
_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REASON = re.compile(r"[a-z][a-z-]{0,31}")
_PATH = re.compile(r"/(?!/)[!-\"$-\[\]-~]*")
_SIMPLE = re.compile(
    rb'\{"command":"(?:'
    rb'dial","dial":"([A-Za-z0-9_-]{1,128})"(?:,"target":"([A-Za-z0-9][A-Za-z0-9._-]{0,127})")?'
    rb'|connected","dial":"([A-Za-z0-9_-]{1,128})","seconds":'
    rb"((?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,9})?(?:e-[0-9]{1,2})?)"
    rb")\}"
)
"""The lines of a dial on a parked connection, as both of our ends write them."""

_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), " ")
# Go's encoder writes these as escapes; the agents of 2025 have seen no other form.
_GO_ESCAPES = str.maketrans(
    {character: f"\\u{ord(character):04x}" for character in "&<>\u2028\u2029"}
)


class ControlError(Exception):
    """
    The peer broke the rules of the control connection, which has to be closed.

    C{str} of it is a short reason, without any byte that the peer sent.
    """


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """A sign of life; with C{echo}, one that asks for an L{Echo}."""

    echo: str | None = None


@dataclass(frozen=True, slots=True)
class Echo:
    """The answer to a L{KeepAlive} that carried C{echo}."""

    echo: str


@dataclass(frozen=True, slots=True, repr=False)
class ConnReady:
    """
    Server to agent: a caller waits; dial back.

    @ivar connPath: Where to dial back, relative to the server; on the old wire
        with both ids in its query.
    @ivar dial: The dial's id, where the peer knows our features.
    @ivar ticket: The one-use secret that picks the dial up.
    @ivar target: The named service, C{None} for the agent's default.
    """

    connPath: str
    dial: str | None = None
    ticket: str | None = None
    target: str | None = None

    def __repr__(self) -> str:
        return (
            f"ConnReady(connPath={_withoutQuery(self.connPath)!r}, dial={self.dial!r}, "
            f"ticket={'<hidden>' if self.ticket is not None else None}, target={self.target!r})"
        )


@dataclass(frozen=True, slots=True, repr=False)
class PickupFailed:
    """
    Agent to server: the dial cannot be answered.

    @ivar connPath: As the L{ConnReady} had it, unchanged.
    @ivar err: Why, for people.
    @ivar dial: As the L{ConnReady} had it.
    @ivar reason: Why, for programs: one of L{REASONS}, or a word of a later
        version.
    """

    connPath: str
    err: str
    dial: str | None = None
    reason: str | None = None

    def __repr__(self) -> str:
        return (
            f"PickupFailed(connPath={_withoutQuery(self.connPath)!r}, err={self.err!r}, "
            f"dial={self.dial!r}, reason={self.reason!r})"
        )


@dataclass(frozen=True, slots=True, repr=False)
class Park:
    """
    Server to agent: open a data connection that waits for a dial.

    @ivar ticket: The one-use secret that it presents.
    """

    ticket: str

    def __repr__(self) -> str:
        return "Park(ticket=<hidden>)"


@dataclass(frozen=True, slots=True)
class Assign:
    """
    Server to agent, on a parked connection: this is a dial's now.

    @ivar dial: The dial's id.
    @ivar target: The named service, C{None} for the agent's default.
    """

    dial: str
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Connected:
    """
    Agent to server, on a parked connection: the target is connected.

    @ivar dial: As the L{Assign} had it.
    @ivar seconds: How long the target took.
    """

    dial: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Goodbye:
    """
    The sender is going away.

    @ivar delay: From the server: seconds after which the agent is to leave and
        connect again.
    """

    delay: float | None = None


@dataclass(frozen=True, slots=True)
class Closing:
    """
    Server to agent: why this connection closes now.

    @ivar err: C{superseded}, C{revoked}, C{protocol-error}, C{shutdown} or
        C{held}.
    @ivar retryAfter: Seconds before another attempt makes sense.
    """

    err: str
    retryAfter: float | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """A command of another version: to be ignored."""

    command: str


Message = (
    KeepAlive
    | Echo
    | ConnReady
    | PickupFailed
    | Park
    | Assign
    | Connected
    | Goodbye
    | Closing
    | Unknown
)


def encode(message: Message) -> bytes:
    """
    Write a message.

    The text of a L{PickupFailed} is cut so that the line fits.

    @return: One line, at most L{MAX_LINE} bytes with its newline.
    @raise ValueError: The message does not fit into a line, or may not be sent.
    """
    match message:
        case KeepAlive(echo):
            return _line({"command": "keep-alive", "echo": _checkedEcho(echo)})
        case Echo(echo):
            return _line({"command": "echo", "echo": _checkedEcho(echo)})
        case ConnReady():
            return _line(
                {
                    "command": "conn-ready",
                    "connPath": message.connPath,
                    "dial": message.dial,
                    "ticket": message.ticket,
                    "target": message.target,
                }
            )
        case PickupFailed():
            return _encodePickupFailed(message)
        case Park(ticket):
            return _line({"command": "park", "ticket": ticket})
        case Assign(dial, target):
            if _TOKEN.fullmatch(dial) and target is None:
                # One for each dial, of which nothing needs an escape.
                return b'{"command":"dial","dial":"%b"}\n' % dial.encode()
            return _line({"command": "dial", "dial": dial, "target": target})
        case Connected(dial, seconds):
            if _TOKEN.fullmatch(dial) and type(seconds) is float and 0 <= seconds < math.inf:
                found = b'{"command":"connected","dial":"%b","seconds":%b}\n'
                return found % (dial.encode(), repr(seconds).encode())
            return _line({"command": "connected", "dial": dial, "seconds": seconds})
        case Goodbye(delay):
            return _line({"command": "goodbye", "delay": delay})
        case Closing(err, retryAfter):
            return _line({"command": "closing", "err": err, "retryAfter": retryAfter})
        case Unknown():
            raise ValueError("an unknown command is for reading only")


class MessageReader:
    """
    Turns the bytes of a control connection into messages, at every split.
    """

    def __init__(self, limit: int = MAX_LINE) -> None:
        """
        @param limit: Bytes of a line, its newline included.
        """
        self._limit = limit
        self._buffer = bytearray()
        self._fault: str | None = None

    @property
    def pending(self) -> bytes:
        """The bytes of a line that is not whole yet."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> Iterator[Message]:
        """
        Take the next bytes.

        The result has to be used up before the next call; a caller that stops
        in the middle (because a message made it close) throws the reader away.

        @return: The messages that are complete now, in order.
        @raise ControlError: From the iteration, behind the last good message;
            and at once from every later call.
        """
        if self._fault is not None:
            raise ControlError(self._fault)
        self._buffer += data
        return self._messages()

    def _messages(self) -> Iterator[Message]:
        buffer = self._buffer
        while True:
            end = buffer.find(b"\n", 0, self._limit)
            if end < 0:
                if len(buffer) >= self._limit:
                    self._fail(f"a control line is longer than {self._limit} bytes")
                return
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            try:
                message = decode(line)
            except ControlError as fault:
                self._fail(str(fault))
            yield message

    def _fail(self, reason: str) -> NoReturn:
        self._fault = reason
        self._buffer.clear()
        raise ControlError(reason) from None


def decode(line: bytes) -> Message:
    """
    Read one line.

    @param line: Without its newline.
    @raise ControlError: The line is no JSON object in UTF-8, or a field that its
        command needs is missing or has the wrong form.
    """
    simple = _SIMPLE.fullmatch(line)
    if simple is not None:
        # What we write ourselves for each dial; the rest says the same of it.
        dialled, target, connected, seconds = simple.groups()
        if connected is None:
            return Assign(dialled.decode(), None if target is None else target.decode())
        return Connected(connected.decode(), min(float(seconds), MAX_DELAY))
    fields = _jsonObject(line)
    command = _text(fields, "command") or ""
    match command:
        case "keep-alive":
            return KeepAlive(_echo(fields))
        case "echo":
            echo = _echo(fields)
            if echo is None:
                raise ControlError("an echo without its content")
            return Echo(echo)
        case "conn-ready":
            return _decodeConnReady(fields)
        case "pickup-failed":
            return _decodePickupFailed(fields)
        case "park":
            return Park(_needed(fields, "ticket", _TOKEN))
        case "dial":
            dial = _needed(fields, "dial", _TOKEN)
            return Assign(dial, _matching(fields, "target", _TARGET))
        case "connected":
            return Connected(_needed(fields, "dial", _TOKEN), _seconds(fields, "seconds"))
        case "goodbye":
            return Goodbye(_seconds(fields, "delay"))
        case "closing":
            reason = (_text(fields, "err") or "").translate(_CONTROLS)
            return Closing(reason, _seconds(fields, "retryAfter"))
        case _:
            return Unknown(command[:64].translate(_CONTROLS))


def dialIds(connPath: str) -> tuple[str | None, str | None]:
    """
    The two ids of the old wire.

    @param connPath: A path with a query, as conn-ready carries it.
    @return: C{revdial.dialer} and C{revdial.req}; each C{None} where it is
        missing, empty or given more than once.
    """
    _, _, query = connPath.partition("?")
    query = query.partition("#")[0]
    found: dict[str, str | None] = {}
    try:
        for name, value in parse_qsl(query, max_num_fields=32):
            found[name] = None if name in found else value
    except ValueError:
        return None, None
    return found.get("revdial.dialer"), found.get("revdial.req")


def _withoutQuery(path: str) -> str:
    bare, mark, _ = path.partition("?")
    return bare + ("?<hidden>" if mark else "")


# Writing


def _checkedEcho(echo: str | None) -> str | None:
    if echo is not None and len(echo) > MAX_ECHO:
        raise ValueError(f"an echo has at most {MAX_ECHO} characters")
    return echo


def _line(fields: dict[str, object]) -> bytes:
    present = {name: value for name, value in fields.items() if value is not None}
    text = json.dumps(present, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    line = text.translate(_GO_ESCAPES).encode("utf-8", "replace") + b"\n"
    if len(line) > MAX_LINE:
        raise ValueError(f"the {fields['command']} line would be longer than {MAX_LINE} bytes")
    return line


def _encodePickupFailed(message: PickupFailed) -> bytes:
    def lineWith(err: str) -> bytes:
        return _line(
            {
                "command": "pickup-failed",
                "connPath": message.connPath,
                "err": err,
                "dial": message.dial,
                "reason": message.reason,
            }
        )

    # A character costs one to twelve bytes, so the length that fits is found by halving.
    fits, tooLong = 0, min(len(message.err), MAX_LINE) + 1
    line = lineWith("")
    while tooLong - fits > 1:
        middle = (fits + tooLong) // 2
        try:
            line = lineWith(message.err[:middle])
            fits = middle
        except ValueError:
            tooLong = middle
    return line


# Reading


def _refuseConstant(name: str) -> NoReturn:
    raise ValueError(name)


def _jsonObject(line: bytes) -> dict[str, Any]:
    try:
        # Decoded here, since json.loads would also take UTF-16 and UTF-32.
        value = json.loads(line.decode("utf-8"), parse_constant=_refuseConstant)
    except UnicodeDecodeError:
        raise ControlError("a control line is not UTF-8") from None
    except (ValueError, RecursionError):
        raise ControlError("a control line is not JSON") from None
    if not isinstance(value, dict):
        raise ControlError("a control line is not a JSON object")
    return value


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ControlError(f"{name} is not a string")
    # Half of a surrogate pair is legal in JSON, but cannot be written again.
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _matching(fields: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str | None:
    value = _text(fields, name)
    if value is not None and pattern.fullmatch(value) is None:
        raise ControlError(f"{name} has a form that is not allowed")
    return value


def _needed(fields: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = _matching(fields, name, pattern)
    if value is None:
        raise ControlError(f"a {fields['command']} without {name}")
    return value


def _echo(fields: dict[str, Any]) -> str | None:
    echo = _text(fields, "echo")
    if echo is not None and len(echo) > MAX_ECHO:
        raise ControlError(f"an echo is longer than {MAX_ECHO} characters")
    return echo


def _seconds(fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ControlError(f"{name} is not a number")
    if value < 0 or value == math.inf:
        raise ControlError(f"{name} is out of range")
    return float(min(value, MAX_DELAY))


def _decodeConnReady(fields: dict[str, Any]) -> ConnReady:
    connPath = _matching(fields, "connPath", _PATH)
    if connPath is None:
        raise ControlError("a conn-ready without connPath")
    return ConnReady(
        connPath,
        _matching(fields, "dial", _TOKEN),
        _matching(fields, "ticket", _TOKEN),
        _matching(fields, "target", _TARGET),
    )


def _decodePickupFailed(fields: dict[str, Any]) -> PickupFailed:
    reason = _text(fields, "reason")
    if reason is not None and _REASON.fullmatch(reason) is None:
        reason = None
    return PickupFailed(
        _text(fields, "connPath") or "",
        (_text(fields, "err") or "").translate(_CONTROLS),
        _matching(fields, "dial", _TOKEN),
        reason,
    )
