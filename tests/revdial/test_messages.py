"""
Tests for L{helix_revdial.revdial.messages}.
"""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.messages import (
    MAX_DELAY,
    MAX_LINE,
    Assign,
    Closing,
    Connected,
    ConnReady,
    ControlError,
    Echo,
    Goodbye,
    KeepAlive,
    Message,
    MessageReader,
    PickupFailed,
    Unknown,
    decode,
    dialIds,
    encode,
)

TICKET = "t1ck3t-" * 4

_words = st.text(alphabet="abcdefghijklmnopqrstuvwxyzABCDEFG0123456789_-", min_size=1, max_size=60)
_plain = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=200)
_delays = st.none() | st.floats(0, MAX_DELAY)
_messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(KeepAlive, st.none() | _plain.map(lambda text: text[:64])),
    st.builds(Echo, _plain.map(lambda text: text[:64])),
    st.builds(
        ConnReady,
        _words.map(lambda word: f"/revdial?revdial.dialer={word}&revdial.req={word}"),
        st.none() | _words,
        st.none() | _words,
        st.none() | _words.map(lambda word: "t" + word),
    ),
    st.builds(
        PickupFailed, _plain, _plain, st.none() | _words, st.sampled_from([None, "busy", "later"])
    ),
    st.builds(Goodbye, _delays),
    st.builds(Closing, _plain, _delays),
)


def readAll(data: bytes, limit: int = MAX_LINE) -> list[Message]:
    return list(MessageReader(limit).feed(data))


class DialLineTests(SynchronousTestCase):
    """The two lines that each pooled dial has are written and read in a shorter way."""

    @settings(deadline=None, max_examples=200)
    @given(
        st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True),
        st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        st.none() | st.floats(0, MAX_DELAY),
    )
    def test_theSameAsAnyJSON(self, dial: str, target: str | None, seconds: float | None) -> None:
        """What is written is what the encoder would write; what is read is what it says."""
        fields: dict[str, object] = {"command": "dial", "dial": dial, "target": target}
        for message, said in (
            (Assign(dial, target), fields),
            (
                Connected(dial, seconds),
                {"command": "connected", "dial": dial, "seconds": seconds},
            ),
        ):
            present = {name: value for name, value in said.items() if value is not None}
            line = json.dumps(present, separators=(",", ":")).encode()
            self.assertEqual(encode(message), line + b"\n")
            self.assertEqual(decode(line), message)
            # Not the form that is known: the long way says the same.
            self.assertEqual(decode(line.replace(b":", b": ", 1)), message)


class EncodeTests(SynchronousTestCase):
    """L{encode}."""

    def test_keepAliveIsTheOldLine(self) -> None:
        """A plain keep-alive is byte for byte what the Go server writes."""
        self.assertEqual(encode(KeepAlive()), b'{"command":"keep-alive"}\n')

    def test_connReadyIsTheOldLine(self) -> None:
        """Field order and the escaped ampersand are those of the Go server."""
        message = ConnReady("/revdial?revdial.dialer=aa&revdial.req=bb")
        self.assertEqual(
            encode(message),
            b'{"command":"conn-ready","connPath":'
            b'"/revdial?revdial.dialer=aa\\u0026revdial.req=bb"}\n',
        )

    def test_newLines(self) -> None:
        """Absent fields are left out."""
        self.assertEqual(encode(KeepAlive("e1")), b'{"command":"keep-alive","echo":"e1"}\n')
        self.assertEqual(encode(Echo("e1")), b'{"command":"echo","echo":"e1"}\n')
        self.assertEqual(
            encode(ConnReady("/revdial", "d1", TICKET, "api")),
            b'{"command":"conn-ready","connPath":"/revdial","dial":"d1","ticket":"'
            + TICKET.encode()
            + b'","target":"api"}\n',
        )
        self.assertEqual(
            encode(PickupFailed("/revdial", "no", "d1", "busy")),
            b'{"command":"pickup-failed","connPath":"/revdial","err":"no","dial":"d1",'
            b'"reason":"busy"}\n',
        )
        self.assertEqual(encode(Goodbye()), b'{"command":"goodbye"}\n')
        self.assertEqual(encode(Goodbye(2.5)), b'{"command":"goodbye","delay":2.5}\n')
        self.assertEqual(
            encode(Closing("superseded", 5)),
            b'{"command":"closing","err":"superseded","retryAfter":5}\n',
        )

    def test_longErrorIsCutToFit(self) -> None:
        """The text of a pickup-failed is cut; the line fills the limit as well as it can."""
        for text in ("x" * 5000, "é" * 5000, "&" * 5000, "\U0001f600" * 5000, "\x00" * 5000):
            line = encode(PickupFailed("/revdial", text, "d1", "unreachable"))
            self.assertLessEqual(len(line), MAX_LINE)
            self.assertGreater(len(line), MAX_LINE - 7)
            err = json.loads(line)["err"]
            self.assertTrue(text.startswith(err) and err)

    def test_errorThatJustFitsIsKept(self) -> None:
        """Not a character is lost that has room."""
        room = MAX_LINE - len(encode(PickupFailed("/revdial", "")))
        exact = PickupFailed("/revdial", "x" * room)
        self.assertEqual(readAll(encode(exact)), [exact])
        self.assertEqual(len(encode(PickupFailed("/revdial", "x" * (room + 1)))), MAX_LINE)

    def test_whatCannotFitIsAnError(self) -> None:
        """A line that would be too long is never written."""
        for message in (
            ConnReady("/" + "x" * MAX_LINE),
            PickupFailed("/" + "x" * MAX_LINE, ""),
            Closing("x" * MAX_LINE),
            KeepAlive("x" * 65),
            Echo("x" * 65),
            Goodbye(float("nan")),
            Unknown("x"),
        ):
            with self.assertRaises(ValueError):
                encode(message)

    def test_halfASurrogateIsReplaced(self) -> None:
        """Text that has no UTF-8 form does not stop the line."""
        self.assertEqual(json.loads(encode(PickupFailed("/", "a\ud800b")))["err"], "a?b")


class ReaderTests(SynchronousTestCase):
    """L{MessageReader}."""

    def assertFault(self, data: bytes, reason: str) -> None:
        reader = MessageReader()
        with self.assertRaises(ControlError) as caught:
            list(reader.feed(data))
        self.assertEqual(str(caught.exception), reason)
        with self.assertRaises(ControlError) as again:
            reader.feed(b'{"command":"keep-alive"}\n')
        self.assertEqual(str(again.exception), reason)

    def test_everySplit(self) -> None:
        """Wherever the bytes are cut in two, the same messages come out."""
        messages: list[Message] = [
            KeepAlive(),
            ConnReady("/revdial?revdial.dialer=aa&revdial.req=bb", "d", TICKET, "api"),
            PickupFailed("/revdial", "schön \U0001f600", "d", "busy"),
            Goodbye(1.0),
        ]
        data = b"".join(encode(message) for message in messages)
        for cut in range(len(data) + 1):
            reader = MessageReader()
            found = [*reader.feed(data[:cut]), *reader.feed(data[cut:])]
            self.assertEqual(found, messages, f"cut at {cut}")

    def test_oneByteAtATime(self) -> None:
        """A message comes with its last byte, not before and not later."""
        reader = MessageReader()
        line = encode(KeepAlive("e"))
        for byte in line[:-1]:
            self.assertEqual(list(reader.feed(bytes([byte]))), [])
        self.assertEqual(list(reader.feed(b"\n")), [KeepAlive("e")])

    def test_roundTrip(self) -> None:
        """What L{encode} writes the reader reads, in any pieces."""

        @settings(deadline=None, max_examples=60)
        @given(st.lists(_messages, max_size=6), st.data())
        def check(messages: list[Message], draw: st.DataObject) -> None:
            data = b"".join(encode(message) for message in messages)
            reader = MessageReader()
            found: list[Message] = []
            while data:
                size = draw.draw(st.integers(1, len(data)))
                found += reader.feed(data[:size])
                data = data[size:]
            self.assertEqual(found, messages)

        check()

    def test_arbitraryBytes(self) -> None:
        """C11: any bytes at all give messages or one L{ControlError}, nothing else."""

        @settings(deadline=None, max_examples=150)
        @given(st.binary(max_size=300))
        def check(data: bytes) -> None:
            try:
                readAll(data + b"\n")
            except ControlError:
                pass

        check()

    def test_arbitraryObjects(self) -> None:
        """C11: any JSON in any field gives a message or one L{ControlError}."""
        anything = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=5,
        )
        commands = ["keep-alive", "echo", "conn-ready", "pickup-failed", "goodbye", "closing", "?"]
        names = st.sampled_from(
            ["connPath", "err", "dial", "ticket", "target", "reason", "delay", "retryAfter", "echo"]
        )

        @settings(deadline=None, max_examples=150)
        @given(st.sampled_from(commands), st.dictionaries(names, anything))
        def check(command: str, fields: dict[str, object]) -> None:
            line = json.dumps({"command": command, **fields}).encode() + b"\n"
            try:
                for message in readAll(line, limit=100_000):
                    repr(message).encode()
            except ControlError:
                pass

        check()

    def test_lineAtTheLimit(self) -> None:
        """C11: 4,096 bytes with the newline are a line, one more is a fault."""
        frame = len(b'{"command":"x","y":""}\n')
        fits = b'{"command":"x","y":"' + b"y" * (MAX_LINE - frame) + b'"}\n'
        self.assertEqual(len(fits), MAX_LINE)
        self.assertEqual(readAll(fits), [Unknown("x")])
        over = b'{"command":"x","y":"' + b"y" * (MAX_LINE - frame + 1) + b'"}\n'
        self.assertFault(over, "a control line is longer than 4096 bytes")

    def test_lineWithoutEnd(self) -> None:
        """C11: a line that never ends is a fault at its 4,096th byte."""
        reader = MessageReader()
        self.assertEqual(list(reader.feed(b"x" * (MAX_LINE - 1))), [])
        with self.assertRaises(ControlError):
            list(reader.feed(b"x"))

    def test_messagesBeforeAFaultCount(self) -> None:
        """C11: what was whole before the fault is delivered, nothing behind it."""
        reader = MessageReader()
        found: list[Message] = []
        with self.assertRaises(ControlError):
            for message in reader.feed(b'{"command":"echo","echo":"1"}\n{\n{"command":"x"}\n'):
                found.append(message)
        self.assertEqual(found, [Echo("1")])

    def test_notJSON(self) -> None:
        """C11: what is not JSON closes the connection."""
        for data in (
            b"\n",
            b"{\n",
            b"hello\n",
            b'{"command":"x"\0}\n',
            b"NaN\n",
            b"[" * 4000 + b"\n",
        ):
            self.assertFault(data, "a control line is not JSON")
        self.assertFault(b'{"command":"goodbye","delay":Infinity}\n', "a control line is not JSON")

    def test_notUTF8(self) -> None:
        """C11: only UTF-8 is read, whatever JSON libraries guess."""
        self.assertFault(b'{"command":"\xff"}\n', "a control line is not UTF-8")
        self.assertFault(
            '{"command":"x"}\n'.encode("utf-16-le") + b"\n", "a control line is not JSON"
        )

    def test_notAnObject(self) -> None:
        """C11: JSON that is no object closes the connection."""
        for data in (b"null\n", b"1\n", b'"keep-alive"\n', b"[]\n"):
            self.assertFault(data, "a control line is not a JSON object")

    def test_unknownCommandsAndFields(self) -> None:
        """C11: what a later version may add is no fault."""
        self.assertEqual(
            readAll(b'{"command":"new","connPath":[1]}\n{}\n{"command":"keep-alive","x":{}}\r\n'),
            [Unknown("new"), Unknown(""), KeepAlive()],
        )

    def test_unknownCommandIsShortAndPrintable(self) -> None:
        """An unknown command cannot break or flood a log."""
        (message,) = readAll(json.dumps({"command": "a\n" * 500}).encode() + b"\n")
        self.assertEqual(message, Unknown("a " * 32))

    def test_wrongTypes(self) -> None:
        """A field of the wrong type in a known command closes the connection."""
        for line, reason in (
            (b'{"command":1}', "command is not a string"),
            (b'{"command":"conn-ready","connPath":1}', "connPath is not a string"),
            (b'{"command":"conn-ready"}', "a conn-ready without connPath"),
            (b'{"command":"echo"}', "an echo without its content"),
            (b'{"command":"keep-alive","echo":true}', "echo is not a string"),
            (b'{"command":"goodbye","delay":"1"}', "delay is not a number"),
            (b'{"command":"goodbye","delay":true}', "delay is not a number"),
            (b'{"command":"goodbye","delay":-1}', "delay is out of range"),
            (b'{"command":"goodbye","delay":1e999}', "delay is out of range"),
        ):
            self.assertFault(line + b"\n", reason)

    def test_longDelayIsCut(self) -> None:
        """A server cannot send an agent away for ever."""
        digits = b"9" * 4000
        for delay in (b"3601", b"1e300", digits):
            line = b'{"command":"goodbye","delay":' + delay + b"}\n"
            self.assertEqual(readAll(line), [Goodbye(MAX_DELAY)])

    def test_hugeIds(self) -> None:
        """C11: an id longer than any of ours closes the connection."""
        for name in ("dial", "ticket", "target"):
            line = json.dumps({"command": "conn-ready", "connPath": "/r", name: "a" * 129}).encode()
            self.assertFault(line + b"\n", f"{name} has a form that is not allowed")

    def test_nothingCanBeAddedToARequest(self) -> None:
        """F4: what goes into the agent's request cannot carry another header or host."""
        for name in ("dial", "ticket", "target"):
            for bad in ("a\r\nEvil: 1", "a b", "", "a/b", "ä"):
                line = json.dumps({"command": "conn-ready", "connPath": "/r", name: bad}).encode()
                self.assertFault(line + b"\n", f"{name} has a form that is not allowed")
        for bad in (
            "",
            "revdial",
            "http://evil/",
            "//evil/",
            "/a b",
            "/a\r\nEvil: 1",
            "/a#b",
            "/a\\b",
            "/ä",
        ):
            line = json.dumps({"command": "conn-ready", "connPath": bad}).encode()
            self.assertFault(line + b"\n", "connPath has a form that is not allowed")

    def test_textForPeopleIsPrintable(self) -> None:
        """Control characters of a peer do not reach a terminal or a log."""
        line = rb'{"command":"pickup-failed","connPath":"/r","err":"a\u0000\u001b[1m\u009b\ud800"}'
        self.assertEqual(decode(line), PickupFailed("/r", "a  [1m \ufffd"))

    def test_oddReasonIsNone(self) -> None:
        """A reason that is no word is as good as none; an unknown word stays."""
        for raw, read in (("Not A Word", None), ("x" * 33, None), ("new-word", "new-word")):
            line = json.dumps({"command": "pickup-failed", "reason": raw}).encode()
            self.assertEqual(decode(line), PickupFailed("", "", None, read))

    def test_memoryIsBounded(self) -> None:
        """However much comes, only an unfinished line is kept."""
        reader = MessageReader()
        line = encode(KeepAlive())
        for _ in range(100):
            list(reader.feed(line * 500 + line[:5]))
            list(reader.feed(line[5:]))
        self.assertLess(len(reader._buffer), MAX_LINE)

    def test_faultQuotesNothing(self) -> None:
        """F1: a fault's reason holds no byte of the line, which may hold a ticket."""
        for line in (
            b'{"command":"conn-ready","connPath":"/r","ticket":"se cret"}',
            b'{"command":"conn-ready","connPath":"secret"}',
            b'{"secret',
        ):
            with self.assertRaises(ControlError) as caught:
                decode(line)
            self.assertNotIn("secret", str(caught.exception))
            self.assertNotIn("se cret", str(caught.exception))
            self.assertIsNone(caught.exception.__cause__)


class SecrecyTests(SynchronousTestCase):
    """No C{repr} tells what picks a dial up."""

    def test_connReady(self) -> None:
        """F1: neither the ticket nor the ids of the old wire."""
        shown = repr(ConnReady("/revdial?revdial.dialer=s3cret", "d1", "s3cret", "api"))
        self.assertEqual(
            shown,
            "ConnReady(connPath='/revdial?<hidden>', dial='d1', ticket=<hidden>, target='api')",
        )

    def test_pickupFailed(self) -> None:
        """F1: the path comes back in a pickup-failed."""
        shown = repr(PickupFailed("/revdial?revdial.req=s3cret", "no"))
        self.assertEqual(
            shown,
            "PickupFailed(connPath='/revdial?<hidden>', err='no', dial=None, reason=None)",
        )


class DialIdsTests(SynchronousTestCase):
    """L{dialIds}."""

    def test_both(self) -> None:
        """The order and further parameters do not matter; escapes are read."""
        for path in (
            "/revdial?revdial.dialer=aa&revdial.req=bb",
            "/api/v1/revdial?x=1&revdial.req=bb&revdial.dialer=aa",
            "?revdial%2Edialer=a%61&revdial.req=bb#revdial.req=cc",
        ):
            self.assertEqual(dialIds(path), ("aa", "bb"))

    def test_missing(self) -> None:
        """A server of 2025 gives no request id."""
        self.assertEqual(dialIds("/revdial?revdial.dialer=aa"), ("aa", None))
        self.assertEqual(dialIds("/revdial?revdial.dialer=&revdial.req=bb"), (None, "bb"))
        self.assertEqual(dialIds("/revdial"), (None, None))
        self.assertEqual(dialIds(""), (None, None))

    def test_ambiguous(self) -> None:
        """An id that is given twice is none, however often."""
        self.assertEqual(dialIds("?revdial.dialer=aa&revdial.dialer=aa"), (None, None))
        thrice = "&".join(["revdial.req=bb"] * 3)
        self.assertEqual(dialIds(f"?revdial.dialer=aa&{thrice}"), ("aa", None))

    def test_tooMany(self) -> None:
        """A flood of parameters is not worked through."""
        self.assertEqual(dialIds("?" + "&".join(["a=1"] * 33 + ["revdial.req=b"])), (None, None))
