"""What is an acceptable request head, and what is refused."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.http.head import BadRequest, Head, HeadReader, parseTarget
from helix_revdial.http.request import Request
from helix_revdial.http.response import Response
from tests.http.exchange import Exchange

# Each is refused with one answer of class 4xx (505 for other versions), closes the
# connection, and is never dispatched.  Names say what a lenient parser would do.
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"

REFUSED = {
    "length and coding": POST + b"Content-Length: 6\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "coding and length": POST + b"Transfer-Encoding: chunked\r\n"
    b"Content-Length: 4\r\n\r\n5c\r\nGPOST / HTTP/1.1\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "equal lengths": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "length list": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "length sign": POST + b"Content-Length: +3\r\n\r\nabc",
    "length negative": POST + b"Content-Length: -1\r\n\r\n",
    "length hex": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "length underscore": POST + b"Content-Length: 1_0\r\n\r\nabc",
    "length empty": POST + b"Content-Length: \r\n\r\nabc",
    "length huge": POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "length other digits": POST + b"Content-Length: \xd9\xa1\r\n\r\n",
    "coding gzip": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "coding twice": POST + b"Transfer-Encoding: chunked\r\n"
    b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "coding chunked twice": POST + b"Transfer-Encoding: chunked\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding list": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "coding prefixed": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding quoted": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "coding vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "coding parameter": POST + b"Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n",
    "coding empty": POST + b"Transfer-Encoding:\r\n\r\n",
    "coding in 1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "colon blank": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "colon tab": POST + b"Content-Length\t: 3\r\n\r\nabc",
    "no colon": b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\r\n\r\n",
    "no name": b"GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
    "fold": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "fold with tab": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb\r\n\r\n",
    "fold first": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "name with blank": b"GET / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n",
    "name with bracket": b"GET / HTTP/1.1\r\nHost: a\r\nX(Y): z\r\n\r\n",
    "name with 8 bits": b"GET / HTTP/1.1\r\nHost: a\r\nX\xe9: z\r\n\r\n",
    "name with NUL": b"GET / HTTP/1.1\r\nHost: a\r\nX\0: z\r\n\r\n",
    "bare LF everywhere": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare LF once": b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    "bare LF in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\nTransfer-Encoding: chunked\r\n\r\n",
    "bare CR": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n",
    "bare CR in the line": b"GET /\rX HTTP/1.1\r\nHost: a\r\n\r\n",
    "CR CR LF": b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "control in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n",
    "escape in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: \x1b[2J\r\n\r\n",
    "DEL in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x7f\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
    "no fields": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "equal hosts": b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
    "two hosts in 1.0": b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
    "empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "host with path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "host with user": b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "host list": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "host blank": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "absolute form": b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form elsewhere": b"GET http://169.254.169.254/latest HTTP/1.1\r\nHost: a\r\n\r\n",
    "other scheme": b"GET file:///etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
    "double slash": b"GET //evil.example/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "backslash": b"GET /\\evil.example HTTP/1.1\r\nHost: a\r\n\r\n",
    "no slash": b"GET a HTTP/1.1\r\nHost: a\r\n\r\n",
    "at sign": b"GET @evil.example/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "query only": b"GET ?a HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "authority form": b"CONNECT a:22 HTTP/1.1\r\nHost: a:22\r\n\r\n",
    "CONNECT with a path": b"CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n",
    "authority form, GET": b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "percent cut": b"GET /a% HTTP/1.1\r\nHost: a\r\n\r\n",
    "percent one digit": b"GET /a%2 HTTP/1.1\r\nHost: a\r\n\r\n",
    "percent no hex": b"GET /a%zz HTTP/1.1\r\nHost: a\r\n\r\n",
    "encoded NUL": b"GET /a%00.png HTTP/1.1\r\nHost: a\r\n\r\n",
    "encoded NUL in query": b"GET /?a=%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "encoded LF": b"GET /a%0d%0aX:%20y HTTP/1.1\r\nHost: a\r\n\r\n",
    "no UTF-8": b"GET /%ff HTTP/1.1\r\nHost: a\r\n\r\n",
    "overlong slash": b"GET /..%c0%af.. HTTP/1.1\r\nHost: a\r\n\r\n",
    "dot": b"GET /./a HTTP/1.1\r\nHost: a\r\n\r\n",
    "dot dot": b"GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n",
    "dot dot last": b"GET /a/.. HTTP/1.1\r\nHost: a\r\n\r\n",
    "dot dot encoded": b"GET /a/%2e%2E/b HTTP/1.1\r\nHost: a\r\n\r\n",
    "dot dot and encoded slash": b"GET /a/..%2fb HTTP/1.1\r\nHost: a\r\n\r\n",
    "dot dot and encoded backslash": b"GET /a/..%5cb HTTP/1.1\r\nHost: a\r\n\r\n",
    "dot dot with parameter": b"GET /a/..;x=y/b HTTP/1.1\r\nHost: a\r\n\r\n",
    "0.9": b"GET /\r\n",
    "0.9 with blank line": b"GET /\r\n\r\n",
    "1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "version letters": b"GET / HTTP/1.x\r\nHost: a\r\n\r\n",
    "version lower case": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "version digits": b"GET / HTTP/1.10\r\nHost: a\r\n\r\n",
    "version blank": b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "two blanks": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "tab for blank": b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "blank in target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "8 bits in target": b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "leading blank": b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "two empty lines": b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "method with colon": b"Host: a\r\n\r\n",
    "method too long": b"A" * 33 + b" / HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "NUL": b"\0",
    "expectation": POST + b"Expect: 200-ok\r\nContent-Length: 1\r\n\r\na",
    "many fields": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n",
    "huge field": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 16400 + b"\r\n\r\n",
    "huge target": b"GET /" + b"y" * 16400 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "endless line": b"GET /" + b"y" * 17000,
    "PROXY header": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
}

FOLLOW = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


class Recording:
    """A dispatch that remembers what it was given."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, request: Request) -> Response:
        self.paths.append(request.path)
        return Response(200)


class RefusedTests(SynchronousTestCase):
    """
    F5 and request smuggling: whatever two parties could read differently is refused.
    """

    def refuse(self, name: str, sent: list[bytes]) -> None:
        dispatch = Recording()
        exchange = Exchange(dispatch)
        for data in sent:
            exchange.send(data)
        answers = exchange.answers()
        self.assertEqual(len(answers), 1, (name, sent, answers))
        status, headers, body = answers[0]
        self.assertTrue(400 <= status < 500 or status == 505, (name, status))
        self.assertEqual(headers[b"connection"], b"close", name)
        self.assertEqual(headers[b"content-type"], b"application/problem+json", name)
        self.assertIn(b'"detail":"', body)
        self.assertTrue(exchange.closed, name)
        self.assertEqual(dispatch.paths, [], name)

    def test_whole(self) -> None:
        """One answer of class 400, the connection closed, the dispatch never called."""
        for name, data in REFUSED.items():
            self.refuse(name, [data + FOLLOW])

    def test_splitAtEveryByte(self) -> None:
        """The same wherever the bytes are split in two."""
        for name, data in REFUSED.items():
            for position in range(min(len(data), 200)):
                self.refuse(name, [data[:position], data[position:] + FOLLOW])

    def test_byteByByte(self) -> None:
        """The same for one byte at a time."""
        for name, data in REFUSED.items():
            if len(data) < 1000:
                whole = data + FOLLOW
                self.refuse(name, [whole[at : at + 1] for at in range(len(whole))])

    def test_afterAGoodRequest(self) -> None:
        """The same after a request on the same connection: that one is answered."""
        for name, data in REFUSED.items():
            if name == "two empty lines":
                continue
            dispatch = Recording()
            exchange = Exchange(dispatch)
            exchange.send(b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n" + data + FOLLOW)
            self.assertEqual(dispatch.paths, ["/good"], name)
            self.assertEqual(len(exchange.answers()), 2, name)
            self.assertTrue(exchange.closed, name)

    def test_theLogHasNoSecret(self) -> None:
        """F1: the answer to a bad head quotes nothing of it."""
        exchange = Exchange(Recording())
        exchange.send(b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer hush\0\r\n\r\n")
        self.assertNotIn(b"hush", exchange.written)


class AcceptedTests(SynchronousTestCase):
    """What must not fall victim to the strictness."""

    def read(self, data: bytes) -> Head:
        reader = HeadReader(maxBytes=16384, maxFields=100)
        reader.feed(data)
        head = reader.next()
        assert head is not None
        return head

    def test_fields(self) -> None:
        """Optional blanks, empty values, obs-text and repeated fields are fine."""
        head = self.read(
            b"GET /a?b HTTP/1.1\r\nHOST:a:80\r\nX-A: \t v \r\nX-B:\r\nX-C: \xe9\r\nX-A: w\r\n\r\n"
        )
        self.assertEqual(head.headers.get(b"host"), b"a:80")
        self.assertEqual(head.headers.getAll(b"x-a"), [b"v", b"w"])
        self.assertEqual(head.headers.get(b"X-b"), b"")
        self.assertEqual(head.headers.get(b"x-c"), b"\xe9")
        self.assertEqual(head.headers.raw[0][0], b"HOST")
        self.assertEqual(head.length, 0)

    def test_hosts(self) -> None:
        """Names, addresses and ports."""
        for host in (b"a", b"a.example:8080", b"[::1]:80", b"127.0.0.1", b"a_b:", b"a~b"):
            self.read(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")

    def test_emptyLineBefore(self) -> None:
        """RFC 9112, 2.2: one empty line before a request is ignored, at every split."""
        data = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"
        for position in range(len(data)):
            reader = HeadReader(maxBytes=16384, maxFields=100)
            reader.feed(data[:position])
            self.assertIsNone(reader.next())
            reader.feed(data[position:])
            self.assertIsNotNone(reader.next())

    def test_everythingAfterTheHeadIsLeft(self) -> None:
        """What follows the head is given back unchanged, at every split."""
        data = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + b"\n\0\r\nrest"
        for position in range(len(data)):
            reader = HeadReader(maxBytes=16384, maxFields=100)
            reader.feed(data[:position])
            first = reader.next()
            reader.feed(data[position:])
            self.assertIsNotNone(first or reader.next())
            self.assertEqual(reader.take(), b"\n\0\r\nrest")

    def test_exactlyTheLimit(self) -> None:
        """A head of exactly 16 KiB and 100 fields is taken."""
        start = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
        self.read(start + b"y" * (16384 - len(start) - 4) + b"\r\n\r\n")
        self.read(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 99 + b"\r\n")

    def test_version10(self) -> None:
        """HTTP/1.0 needs no Host, and knows no expectations."""
        head = self.read(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        self.assertFalse(head.expectsContinue)
        self.assertEqual(head.length, 3)

    def test_codingInAnyLetterCase(self) -> None:
        """Names of codings have no letter case (RFC 9112, 7)."""
        head = self.read(b"POST / HTTP/1.1\r\nHost: a\r\nTRANSFER-ENCODING: Chunked\r\n\r\n")
        self.assertIsNone(head.length)

    def test_upgradeInAnyLetterCase(self) -> None:
        """D17: Connection is a list, and its words have no letter case."""
        head = self.read(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n"
            b"Upgrade: WebSocket\r\n\r\n"
        )
        self.assertIn(b"upgrade", head.headers.tokens(b"connection"))
        self.assertEqual(head.headers.tokens(b"upgrade"), [b"websocket"])

    def test_targets(self) -> None:
        """Paths are decoded once; an encoded slash stays what it is."""
        for raw, path in (
            (b"/", "/"),
            (b"/a%20b", "/a b"),
            (b"/%C3%A9", "/é"),
            (b"/a%2Fb%2fc", "/a%2Fb%2Fc"),
            (b"/a%252e", "/a%2e"),
            (b"/...", "/..."),
            (b"/.well-known", "/.well-known"),
            (b"/a//b", "/a//b"),
            (b"/a;b=c", "/a;b=c"),
        ):
            self.assertEqual(parseTarget(b"GET", raw + b"?x=/../").path, path)

    def test_queries(self) -> None:
        """What browsers send as it was typed is left as it is."""
        for query in (b"q=100%", b"q=%g0&x=%1", b"a=b\\c", b"a='|^`{}[]", b"?/?"):
            self.assertEqual(parseTarget(b"GET", b"/a?" + query).rawQuery, query)


FRAGMENTS = [
    *(b"GET ", b"POST ", b"HEAD ", b"/", b" HTTP/1.1", b"\r\n", b"\n", b"\r\n\r\n", b": "),
    *(b"Host: a", b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Connection: close"),
    *(b"Expect: 100-continue", b"0", b"5", b"abc"),
]


class FuzzTests(SynchronousTestCase):
    """Bytes from anywhere."""

    @settings(deadline=None, max_examples=150)
    @given(
        st.lists(
            st.one_of(
                st.sampled_from(FRAGMENTS),
                st.binary(max_size=5),
            ),
            max_size=25,
        )
    )
    def test_neverCrashes(self, pieces: list[bytes]) -> None:
        """F10: whatever comes, the connection waits, answers, or closes; nothing raises."""

        async def dispatch(request: Request) -> Response:
            return Response(200, [], await request.body.read(100))

        exchange = Exchange(dispatch)
        for piece in pieces:
            exchange.send(piece)
        exchange.protocol.readConnectionLost()
        exchange.clock.advance(200)
        exchange.clock.advance(200)
        self.assertTrue(exchange.closed)
        exchange.lose()
        self.assertEqual(exchange.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    @settings(deadline=None, max_examples=300)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([b"X", b"Connection", b"Upgrade", b"Expect", b"Host", b"a!#$%"]),
                st.one_of(
                    st.binary(max_size=12), st.sampled_from([b"a", b"", b" \t", b"\xe9\xff"])
                ),
            ),
            max_size=5,
        ),
        st.sampled_from([b"GET / HTTP/1.1", b"OPTIONS /a?b HTTP/1.1", b"a!# / HTTP/1.0"]),
    )
    def test_whatIsTakenSuitsH11(self, fields: list[tuple[bytes, bytes]], line: bytes) -> None:
        """Such a head is given to h11 only when it is answered: it has to be fit for it."""
        lines = [line, b"Host: a", *(b"%s:%s" % field for field in fields)]
        reader = HeadReader(maxBytes=16384, maxFields=100)
        reader.feed(b"\r\n".join(lines) + b"\r\n\r\n")
        try:
            head = reader.next()
        except BadRequest:
            return
        if head is not None:
            self.assertIsNotNone(head.connection)

    @settings(deadline=None, max_examples=100)
    @given(st.binary(max_size=60), st.integers(0, 60))
    def test_sameVerdictAtEverySplit(self, data: bytes, position: int) -> None:
        """What is made of a head does not depend on how it was split."""
        head = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + data + b"\r\n\r\n"

        def verdict(*pieces: bytes) -> object:
            reader = HeadReader(maxBytes=16384, maxFields=100)
            try:
                for piece in pieces:
                    reader.feed(piece)
                    found = reader.next()
                    if found is not None:
                        return found.headers.raw
            except BadRequest:
                return "refused"
            return "more"

        cut = 28 + position
        self.assertEqual(verdict(head), verdict(head[:cut], head[cut:]))
