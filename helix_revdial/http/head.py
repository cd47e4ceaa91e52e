# -*- test-case-name: tests.http.test_head -*-
"""
Heads of requests: found, checked, then parsed by h11 where that is needed.

h11 is lenient where old peers are careless: bare LF line ends, folded lines,
control characters in values.  Between a frontend and us every such kindness is a
way to make the two see different requests, so L{HeadReader} refuses whatever RFC
9112 and RFC 9110 do not allow before h11 sees it, and what they allow but no
honest client of ours sends (more than one C{Content-Length}, targets that are
not in origin form, dot segments).  Sans-I/O; the verdict does not depend on how
the bytes are split.

What passes these checks and announces no body passes h11's too, which a test holds.  So
h11, which costs more than all of them, sees such a head only once an answer is to be
framed: what is handed over never gets there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import h11

from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Headers

_TCHAR = rb"!#$%&'*+.^_`|~0-9A-Za-z-"
_METHOD_PREFIX = re.compile(rb"[" + _TCHAR + rb"]{0,32}(?: |\Z)")
_REQUEST_LINE = re.compile(rb"([" + _TCHAR + rb"]{1,32}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_FIELD = re.compile(rb"[" + _TCHAR + rb"]+:[\t \x21-\x7e\x80-\xff]*")
_BAD_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_PLAIN_PATH = re.compile(rb"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
_ENCODED_SLASH = re.compile(rb"%2[Ff]")


class BadRequest(Problem):
    """A head that is refused; the connection is of no more use."""

    def __init__(self, detail: str, status: int = 400, **more: object) -> None:
        super().__init__(status, detail, **more)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Target:
    """A request target in origin form."""

    path: str
    rawQuery: bytes


@dataclass(slots=True)
class Head:
    """
    One request's head.

    @ivar raw: Its bytes.
    @ivar rawTarget: The target exactly as sent.
    @ivar httpVersion: C{b"1.1"} or C{b"1.0"}.
    @ivar length: The body's length: 0 for none, C{None} for chunks.
    """

    raw: bytes
    method: bytes
    rawTarget: bytes
    httpVersion: bytes
    headers: Headers
    target: Target
    length: int | None
    expectsContinue: bool
    _connection: h11.Connection | None = None

    @property
    def connection(self) -> h11.Connection:
        """
        The h11 connection that has seen this head, which frames the answer.

        @raise BadRequest: h11 does not take it.
        """
        if self._connection is None:
            connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(self.raw) + 1)
            connection.receive_data(self.raw)
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                # h11's text may quote the head, and with it a credential.
                raise BadRequest("The request head is not acceptable.") from error
            if not isinstance(event, h11.Request):
                raise BadRequest("The request head is not acceptable.")
            self._connection = connection
        return self._connection


class HeadReader:
    """Finds and checks one head after another in the bytes of a connection."""

    def __init__(self, *, maxBytes: int, maxFields: int) -> None:
        self._maxBytes = maxBytes
        self._maxFields = maxFields
        self._buffer = bytearray()
        self._scanned = 0
        self._lineChecked = False
        self._blankTaken = False

    def feed(self, data: bytes) -> None:
        """Take bytes, which may belong to this head, its body or later requests."""
        self._buffer += data

    def __len__(self) -> int:
        return len(self._buffer)

    def take(self) -> bytes:
        """All bytes that no head has used, which are no longer held here."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def next(self) -> Head | None:
        """
        The next head, once it is whole.

        @raise BadRequest: as soon as the bytes cannot become an acceptable head.
        """
        buffer = self._buffer
        if not self._blankTaken and buffer[:1] == b"\r":
            # RFC 9112, 2.2: an empty line before a request is to be ignored (old
            # clients end a POST with one).  One, not many.
            if len(buffer) < 2:
                return None
            if buffer[:2] == b"\r\n":
                del buffer[:2]
                self._blankTaken = True
        if not buffer:
            return None
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
        stop = len(buffer) if end < 0 else end + 4
        if _BAD_LINE_END.search(buffer, max(0, self._scanned - 1), min(stop, self._maxBytes)):
            raise BadRequest("A line of the request head does not end with CR LF.")
        if not self._lineChecked:
            self._checkRequestLine(stop)
        if stop > self._maxBytes:
            raise BadRequest(f"The request head is larger than {self._maxBytes} bytes.", status=431)
        if end < 0:
            self._scanned = len(buffer)
            return None
        raw = bytes(buffer[:stop])
        del buffer[:stop]
        self._scanned = 0
        self._lineChecked = self._blankTaken = False
        return self._parse(raw)

    def _checkRequestLine(self, stop: int) -> None:
        """Refuse what is no HTTP/1 as early as can be: it may never send a blank line."""
        end = self._buffer.find(b"\r\n", 0, stop)
        if end < 0:
            if _METHOD_PREFIX.match(self._buffer[:33]) is None:
                raise BadRequest("This is not HTTP: the request does not begin with a method.")
            return
        matched = _REQUEST_LINE.fullmatch(self._buffer, 0, end)
        if matched is None:
            raise BadRequest("The request line is not: method, target, HTTP version.")
        if matched[3] != b"1" or matched[4] not in (b"0", b"1"):
            raise BadRequest("Only HTTP/1.1 and HTTP/1.0 are spoken here.", status=505)
        self._lineChecked = True

    def _parse(self, raw: bytes) -> Head:
        requestLine, *lines = raw[:-4].split(b"\r\n")
        if len(lines) > self._maxFields:
            raise BadRequest(
                f"The request has more than {self._maxFields} header fields.", status=431
            )
        fields = []
        for line in lines:
            if _FIELD.fullmatch(line) is None:
                raise BadRequest("A header field is not: name, colon, value.")
            name, _, value = line.partition(b":")
            fields.append((name, value.strip(b" \t")))
        headers = Headers(fields)
        method, rawTarget, version = requestLine.split(b" ")
        target = parseTarget(method, rawTarget)
        _checkHost(version, headers)
        length = _bodyLength(version, headers)
        expectsContinue = _expectation(version, headers)
        head = Head(raw, method, rawTarget, version[5:], headers, target, length, expectsContinue)
        if length != 0 or b"content-length" in headers:
            head.connection  # noqa: B018 (it refuses at once what it does not take)
        return head


def _checkHost(version: bytes, headers: Headers) -> None:
    hosts = headers.getAll(b"host")
    if len(hosts) > 1 or (not hosts and version == b"HTTP/1.1"):
        raise BadRequest("A request carries exactly one Host header field.")
    if hosts and _HOST.fullmatch(hosts[0]) is None:
        raise BadRequest("The Host header field names no host.")


def _bodyLength(version: bytes, headers: Headers) -> int | None:
    lengths = headers.getAll(b"content-length")
    codings = headers.getAll(b"transfer-encoding")
    if codings:
        if lengths or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise BadRequest(
                "The body's framing is ambiguous: Transfer-Encoding must be chunked, "
                "alone, and without a Content-Length."
            )
        if version == b"HTTP/1.0":
            raise BadRequest("HTTP/1.0 knows no Transfer-Encoding.")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise BadRequest("Content-Length must be one decimal number.")
    return int(lengths[0])


def _expectation(version: bytes, headers: Headers) -> bool:
    expected = headers.tokens(b"expect")
    if not expected or version == b"HTTP/1.0":
        return False
    if expected != [b"100-continue"]:
        raise BadRequest("The only expectation met here is 100-continue.", status=417)
    return True


def parseTarget(method: bytes, target: bytes) -> Target:
    """
    Take apart a target in origin form (RFC 9112, 3.2.1).

    @raise BadRequest: for any other form, and for paths that a frontend and a
        backend may read as different places.
    """
    if method == b"CONNECT":
        raise BadRequest("CONNECT is not served here.", status=405, headers=[(b"Allow", b"GET")])
    if not target.startswith(b"/") or target.startswith(b"//"):
        raise BadRequest("The request target must be a path that begins with one slash.")
    rawPath, _, rawQuery = target.partition(b"?")
    # In a query browsers send both as they were typed (the URL standard, 4.4), and nobody
    # finds another place by it.
    if b"#" in target or b"\\" in rawPath:
        raise BadRequest("The request target contains a character that no URL has.")
    if _BAD_ESCAPE.search(rawPath):
        raise BadRequest("The request target contains a % that begins no escape.")
    if not rawQuery and _PLAIN_PATH.fullmatch(rawPath):
        return Target(rawPath.decode("ascii"), rawQuery)
    if b"\0" in unquote_to_bytes(rawQuery):
        raise BadRequest("The request target contains an encoded NUL.")
    try:
        whole = unquote_to_bytes(rawPath).decode("utf-8")
        path = unquote_to_bytes(_ENCODED_SLASH.sub(b"%252F", rawPath)).decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("The path is not UTF-8.") from None
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in whole):
        raise BadRequest("The path contains an encoded control character.")
    for segment in whole.replace("\\", "/").split("/"):
        if segment.partition(";")[0] in (".", ".."):
            raise BadRequest("The path contains a dot segment.")
    return Target(path, rawQuery)
