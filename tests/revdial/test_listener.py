"""Tests for L{helix_revdial.revdial.listener}."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import (
    CannotListenError,
    ConnectError,
    ConnectionDone,
    ConnectionLost,
)
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from helix_revdial.revdial.carrier import ClosedByPeer
from helix_revdial.revdial.errors import (
    NotAllowed,
    TargetRefused,
    TargetTimeout,
    UnknownDial,
)
from helix_revdial.revdial.features import ALL, FEATURES_HEADER, formatFeatures
from helix_revdial.revdial.interfaces import ITarget
from helix_revdial.revdial.listener import AgentControl, Closed, Listener
from helix_revdial.revdial.messages import (
    MAX_LINE,
    Closing,
    ConnReady,
    Echo,
    Goodbye,
    KeepAlive,
    PickupFailed,
    encode,
)
from tests.revdial.carriers import MemoryCarrier

ASK = ConnReady("/revdial", "d" * 32, "ticket")
OLD = ConnReady("/revdial?revdial.dialer=" + "a" * 32 + "&revdial.req=" + "b" * 32)


class Local(Protocol):
    """The protocol that a target gives: what it heard."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def connectionMade(self) -> None:
        self.heard.append("made")

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.heard.append("lost")


@implementer(ITarget)
class Target:
    """A target whose connection the test makes."""

    def __init__(self) -> None:
        self.opens: list[Deferred[IProtocol]] = []
        self.cancelled = 0

    def open(self) -> Deferred[IProtocol]:
        def cancelled(_: object) -> None:
            self.cancelled += 1

        self.opens.append(Deferred(cancelled))
        return self.opens[-1]

    def accept(self) -> Local:
        """The oldest attempt succeeds."""
        local = Local()
        self.opens.pop(0).callback(local)
        return local


@implementer(IStreamClientEndpoint)
class DataEndpoint:
    """A data connection that the test makes."""

    def __init__(self, ready: ConnReady, features: frozenset[str], target: Deferred[float]):
        self.asked = ready
        self.features = features
        self.target = target
        self.cancelled = 0
        self.factory: IProtocolFactory | None = None
        self.result: Deferred[IProtocol] = Deferred(self._cancel)

    def _cancel(self, _: object) -> None:
        self.cancelled += 1

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        self.factory = protocolFactory
        return self.result

    def carry(self) -> MemoryCarrier:
        """The server said 101."""
        assert self.target.called, "the agent picks up only when its target is connected"
        assert self.factory is not None
        protocol = self.factory.buildProtocol(None)  # type: ignore[arg-type]
        assert protocol is not None
        carrier = MemoryCarrier().connect(protocol)
        self.result.callback(protocol)
        return carrier


class Path:
    """Gives L{DataEndpoint}s."""

    def __init__(self) -> None:
        self.endpoints: list[DataEndpoint] = []

    def dataEndpoint(
        self, connReady: ConnReady, features: frozenset[str], ready: Deferred[float]
    ) -> IStreamClientEndpoint:
        if "evil" in connReady.connPath:
            raise ValueError("the path leads elsewhere")
        self.endpoints.append(DataEndpoint(connReady, features, ready))
        endpoint: IStreamClientEndpoint = self.endpoints[-1]
        return endpoint


class ListenerCase(SynchronousTestCase):
    """A listener with two targets, connected with every feature."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.path = Path()
        self.api, self.ssh = Target(), Target()
        self.listener = self.make()
        self.carrier = self.connect()

    def make(self, **options: Any) -> Listener:
        return Listener(self.clock, self.path, {"api": self.api, "ssh": self.ssh}, **options)

    def connect(self, features: frozenset[str] = ALL, **options: Any) -> MemoryCarrier:
        protocol = self.listener.controlFactory().buildProtocol(None)  # type: ignore[arg-type]
        headers = ((FEATURES_HEADER.lower(), formatFeatures(features)),) if features else ()
        self.carrier = MemoryCarrier(responseHeaders=headers, **options).connect(protocol)
        return self.carrier

    def ask(self, message: ConnReady = ASK) -> DataEndpoint:
        known = len(self.path.endpoints)
        self.carrier.deliver(encode(message))
        self.assertEqual(len(self.path.endpoints), known + 1)
        return self.path.endpoints[-1]

    def pass_(self, seconds: float) -> None:
        self.clock.pump([0.5] * int(seconds * 2))

    def onlyControlTimers(self) -> None:
        """No timer is left but the two of the control connection."""
        self.assertEqual(len(self.clock.getDelayedCalls()), 2)
        self.assertEqual(self.listener.dialsUnderWay, 0)


class DialBackTests(ListenerCase):
    def test_targetAndDataConnectionTogether(self) -> None:
        """Both are opened at once; the target's bytes and the caller's are joined."""
        endpoint = self.ask()
        self.assertEqual(endpoint.features, ALL)
        self.assertEqual(len(self.api.opens), 1)
        self.clock.advance(0.25)
        local = self.api.accept()
        self.assertEqual(self.successResultOf(endpoint.target), 0.25)
        data = endpoint.carry()
        data.deliver(b"hello")
        self.assertEqual(local.heard, ["made", b"hello"])
        self.assertEqual(self.listener.openStreams, 1)
        self.onlyControlTimers()
        data.lose()
        self.assertEqual(local.heard, ["made", b"hello", "lost"])
        self.assertEqual(self.listener.openStreams, 0)

    def test_theNamedTarget(self) -> None:
        """A named dial reaches its target; one without a name the default."""
        self.ask(ConnReady("/revdial", "d" * 32, "t", "ssh"))
        self.assertEqual((len(self.api.opens), len(self.ssh.opens)), (0, 1))
        self.listener = self.make(default="ssh")
        self.connect()
        self.ask()
        self.assertEqual((len(self.api.opens), len(self.ssh.opens)), (0, 2))
        self.assertRaises(ValueError, self.make, default="nothing")

    def test_anUnknownTarget(self) -> None:
        """It never falls to another target."""
        self.listener = Listener(self.clock, self.path, {"api": self.api})
        self.connect()
        self.carrier.deliver(encode(ConnReady("/revdial", "d" * 32, "t", "vnc")))
        self.assertEqual(
            self.carrier.messages(),
            [PickupFailed("/revdial", "no target is named vnc", "d" * 32, "unknown-target")],
        )
        self.assertEqual((self.api.opens, self.path.endpoints), ([], []))

    def test_targetFails(self) -> None:
        """The server hears the reason that people understand; the socket is closed."""
        for failure, err, reason in (
            (
                TargetRefused("127.0.0.1:9876: connection refused"),
                "127.0.0.1:9876: connection refused",
                "target-refused",
            ),
            (TargetTimeout("127.0.0.1:9876: no answer"), "127.0.0.1:9876: no answer", None),
        ):
            endpoint = self.ask()
            self.api.opens.pop().errback(Failure(failure))
            self.assertEqual(
                self.carrier.messages(),
                [PickupFailed("/revdial", err, "d" * 32, reason or "target-timed-out")],
            )
            self.assertEqual(endpoint.cancelled, 1)
            self.onlyControlTimers()

    def test_theOldWire(self) -> None:
        """An old server gets the same line, its path back verbatim."""
        self.connect(frozenset())
        endpoint = self.ask(OLD)
        self.assertEqual(endpoint.asked.connPath, OLD.connPath)
        self.api.opens.pop().errback(Failure(TargetRefused("no")))
        [said] = self.carrier.messages()
        assert isinstance(said, PickupFailed)
        self.assertEqual((said.connPath, said.err, said.dial), (OLD.connPath, "no", None))

    def test_anErrThatIsTooLong(self) -> None:
        """C11: a reason of any length fits into a line."""
        self.ask(OLD)
        self.api.opens.pop().errback(Failure(TargetRefused("\u2603" * 5000)))
        self.assertLessEqual(len(self.carrier.value()), MAX_LINE)
        self.assertEqual(len(self.carrier.messages()), 1)

    def test_theServerCannotBeReached(self) -> None:
        """The target's connection is given back, and the server hears why."""
        endpoint = self.ask()
        local = self.api.accept()
        endpoint.result.errback(Failure(ConnectError(string="no route")))
        self.assertEqual(local.heard, ["lost"])
        [said] = self.carrier.messages()
        assert isinstance(said, PickupFailed)
        self.assertEqual(said.reason, "unreachable")
        self.assertIn("no route", said.err)
        self.onlyControlTimers()

    def test_theServerCannotBeReachedWhileTheTargetOpens(self) -> None:
        """Then the target is not waited for."""
        endpoint = self.ask()
        endpoint.result.errback(Failure(ConnectError(string="no route")))
        self.assertEqual(self.api.cancelled, 1)
        self.assertEqual(len(self.carrier.messages()), 1)
        self.onlyControlTimers()

    def test_theDialIsOver(self) -> None:
        """C4: the server's 404 or 403 is its own word; nothing is said back."""
        for error in (UnknownDial(), NotAllowed()):
            endpoint = self.ask()
            local = self.api.accept()
            endpoint.result.errback(Failure(error))
            self.assertEqual(local.heard, ["lost"])
            self.assertEqual(self.carrier.messages(), [])
            self.onlyControlTimers()

    def test_aSlowTargetDelaysNobody(self) -> None:
        """C8: the control loop and other dials go on beside a target that hangs."""
        self.ask()
        endpoint = self.ask(ConnReady("/revdial", "e" * 32, "t", "ssh"))
        self.ssh.accept()
        endpoint.carry()
        self.carrier.deliver(encode(KeepAlive("x")))
        self.assertEqual(self.carrier.messages(), [Echo("x")])
        self.assertEqual(self.listener.openStreams, 1)

    def test_theWholeDialBackIsBounded(self) -> None:
        """After 20 s it is over, whichever half hangs."""
        for accept, reason in ((False, "target-timed-out"), (True, "unreachable")):
            endpoint = self.ask()
            local = self.api.accept() if accept else None
            self.pass_(20)
            messages = self.carrier.messages()
            for asked in messages:
                if isinstance(asked, KeepAlive) and asked.echo is not None:
                    self.carrier.deliver(encode(Echo(asked.echo)))
            [said] = [m for m in messages if isinstance(m, PickupFailed)]
            self.assertEqual(said.reason, reason)
            self.assertEqual(endpoint.cancelled, 1)
            if local is not None:
                self.assertEqual(local.heard, ["lost"])
            self.api.opens.clear()
            self.onlyControlTimers()

    def test_dialBacksAreBounded(self) -> None:
        """Beyond the limit the answer is busy, at once."""
        self.listener = self.make(maxDials=2)
        self.connect()
        endpoints = [self.ask(), self.ask()]
        self.carrier.deliver(encode(ASK))
        [said] = self.carrier.messages()
        assert isinstance(said, PickupFailed)
        self.assertEqual(said.reason, "busy")
        self.api.accept()
        endpoints[0].carry()
        self.ask()

    def test_streamsAreBounded(self) -> None:
        """So it is beyond the limit of open streams."""
        self.listener = self.make(maxStreams=1)
        self.connect()
        endpoint = self.ask()
        self.api.accept()
        endpoint.carry()
        self.carrier.deliver(encode(ASK))
        [said] = self.carrier.messages()
        assert isinstance(said, PickupFailed)
        self.assertEqual(said.reason, "busy")

    def test_aPathThatLeadsElsewhere(self) -> None:
        """F4: it is refused, and the connection goes on."""
        self.carrier.deliver(encode(ConnReady("/evil")))
        [said] = self.carrier.messages()
        assert isinstance(said, PickupFailed)
        self.assertEqual(said.reason, "unreachable")
        self.assertEqual(self.api.opens, [])
        self.onlyControlTimers()

    def test_aTargetThatRaises(self) -> None:
        """D13, F10: a bug in one target fails one dial."""
        self.api.open = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        endpoint = self.ask()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(endpoint.cancelled, 1)
        self.assertEqual(len(self.carrier.messages()), 1)
        self.onlyControlTimers()

    def test_aLocalProtocolThatRaises(self) -> None:
        """D13: its stream is cut; the others and the control connection are not."""
        endpoint = self.ask()
        local = self.api.accept()
        local.dataReceived = lambda data: 1 / 0  # type: ignore[method-assign,assignment]
        data = endpoint.carry()
        data.deliver(b"x")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(data.aborted)
        self.assertFalse(self.carrier.ended)

    def test_aHundredAtOnce(self) -> None:
        """C2: each dial-back carries its own target connection."""
        endpoints = [self.ask(ConnReady("/revdial", f"{n:032x}", f"t{n}")) for n in range(100)]
        locals_ = [self.api.accept() for _ in endpoints]
        for endpoint in reversed(endpoints):
            assert endpoint.asked.dial is not None
            endpoint.carry().deliver(endpoint.asked.dial.encode())
        for number, local in enumerate(locals_):
            self.assertEqual(local.heard, ["made", f"{number:032x}".encode()])


class ControlTests(ListenerCase):
    def test_signsOfLife(self) -> None:
        """With echo agreed, one each 15 s."""
        self.pass_(15)
        [asked] = self.carrier.messages()
        assert isinstance(asked, KeepAlive)
        assert asked.echo is not None
        self.carrier.deliver(encode(Echo(asked.echo)))
        assert self.listener.control is not None
        self.assertEqual(self.listener.control.roundTrip, 0.0)

    def test_withoutEchoPings(self) -> None:
        """An old server over WebSocket is pinged; a hijacked one is told nothing."""
        self.connect(frozenset(), carrier="websocket", canPing=True)
        self.pass_(15)
        self.assertEqual(len(self.carrier.pings), 1)
        self.assertEqual(self.carrier.messages(), [])
        self.carrier.lose()
        self.connect(frozenset(), carrier="hijack")
        self.pass_(45)
        self.assertEqual(self.carrier.messages(), [])

    def test_aSilentServer(self) -> None:
        """Upstream 7, B1: forty seconds of silence end the connection."""
        closed = self.listener.whenClosed()
        self.pass_(39)
        self.assertNoResult(closed)
        self.pass_(2)
        self.assertEqual(self.successResultOf(closed), Closed("silent server", None, 40.0))
        self.assertTrue(self.carrier.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_anyByteOfAnOldServerIsLife(self) -> None:
        """Without echo, half a line counts."""
        self.carrier.lose()
        self.connect(frozenset())
        self.pass_(39)
        self.carrier.deliver(b"{")
        self.pass_(39)
        self.assertFalse(self.carrier.ended)

    def test_onlyTheAnswerToOurQuestionIsLife(self) -> None:
        """B2, B3: lines of a server that does not hear us prove nothing."""
        for second in range(40):
            self.assertFalse(self.carrier.ended, f"given up after {second} s")
            self.pass_(1)
            if not self.carrier.ended:
                self.carrier.deliver(encode(KeepAlive(f"q{second}")))
        self.pass_(1)
        self.assertTrue(self.carrier.aborted)

    def test_closing(self) -> None:
        """The server's reason and its wish to be left alone for a while."""
        closed = self.listener.whenClosed()
        self.pass_(5)
        self.carrier.deliver(encode(Closing("superseded", 60.0)))
        self.assertEqual(self.successResultOf(closed), Closed("superseded", 60.0, 5.0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aCloseCodeAlone(self) -> None:
        """A WebSocket close code says the same as the line."""
        closed = self.listener.whenClosed()
        self.carrier.lose(ClosedByPeer(4001, "revoked"))
        self.assertEqual(self.successResultOf(closed), Closed("revoked", None, 0.0))

    def test_closedAndLost(self) -> None:
        """Without a word: an orderly end and a broken one."""
        for error, reason in ((ConnectionDone(), "closed"), (ConnectionLost(), "lost")):
            self.connect()
            closed = self.listener.whenClosed()
            self.carrier.lose(error)
            self.assertEqual(self.successResultOf(closed).reason, reason)
            self.assertIsNone(self.listener.control)

    def test_goodbye(self) -> None:
        """G1: it leaves after the delay; till then dials are answered, streams go on."""
        closed = self.listener.whenClosed()
        self.carrier.deliver(encode(Goodbye(5.0)) + encode(Goodbye(5.0)))
        endpoint = self.ask()
        self.api.accept()
        data = endpoint.carry()
        self.pass_(4)
        self.assertNoResult(closed)
        self.pass_(1)
        self.assertEqual(self.successResultOf(closed).reason, "goodbye")
        self.assertFalse(data.ended)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_controlLost(self) -> None:
        """C7: dial-backs under way are given up; streams go on; nothing crashes."""
        streaming, opening, dialling = self.ask(), self.ask(), self.ask()
        joined = self.api.accept()
        data = streaming.carry()
        target = self.api.opens[1]
        self.api.opens.pop(1)
        picked = Local()
        target.callback(picked)
        self.carrier.lose(ConnectionLost())
        self.assertEqual((opening.cancelled, dialling.cancelled), (1, 1))
        self.assertEqual(picked.heard, ["lost"])
        self.assertEqual(self.api.cancelled, 1)
        data.deliver(b"still")
        self.assertEqual(joined.heard, ["made", b"still"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_badLines(self) -> None:
        """C11: a server that breaks the rules is left, with a reason."""
        closed = self.listener.whenClosed()
        self.carrier.deliver(b"no json\n" + encode(ASK))
        self.assertEqual(self.successResultOf(closed).reason, "protocol-error")
        self.assertEqual(self.path.endpoints, [])

    def test_featuresThatWereNotOffered(self) -> None:
        """What a server agrees to beyond our offer does not hold."""
        protocol = self.listener.controlFactory(frozenset({"raw"})).buildProtocol(
            None  # type: ignore[arg-type]
        )
        headers = ((b"revdial-features", b"raw, echo, unheard-of"),)
        MemoryCarrier(responseHeaders=headers).connect(protocol)
        assert isinstance(protocol, AgentControl)
        self.assertEqual(protocol.features, frozenset({"raw"}))

    def test_stop(self) -> None:
        """The agent leaves: goodbye, streams get their time, then all is closed."""
        endpoint, pending = self.ask(), self.ask()
        local = self.api.accept()
        data = endpoint.carry()
        stopping = Deferred.fromCoroutine(self.listener.stop(5.0))
        self.assertEqual(self.carrier.messages(), [Goodbye()])
        self.carrier.deliver(encode(ASK))
        [said] = self.carrier.messages()
        assert isinstance(said, PickupFailed)
        self.assertEqual(said.reason, "busy")
        self.assertNoResult(stopping)
        self.pass_(5)
        self.successResultOf(stopping)
        self.assertTrue(data.aborted)
        self.assertEqual(pending.cancelled, 1)
        self.assertIn("lost", local.heard)
        self.assertTrue(self.carrier.ended)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopEndsEarly(self) -> None:
        """When the last stream ends, so does the wait."""
        endpoint = self.ask()
        self.api.accept()
        data = endpoint.carry()
        stopping = Deferred.fromCoroutine(self.listener.stop(60.0))
        data.lose()
        self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class EndpointTests(ListenerCase):
    def test_listen(self) -> None:
        """A factory behind a target's name serves its dials."""
        factory = Factory.forProtocol(Local)
        factory.noisy = False
        built: list[Any] = []
        original = factory.buildProtocol
        factory.buildProtocol = (  # type: ignore[method-assign]
            lambda addr: built.append((addr, original(addr))) or built[-1][1]  # type: ignore[func-returns-value]
        )
        port = self.successResultOf(self.listener.endpoint("web").listen(factory))
        self.assertEqual(factory.numPorts, 1)
        endpoint = self.ask(ConnReady("/revdial", "d" * 32, "t", "web"))
        endpoint.carry().deliver(b"x")
        [(address, protocol)] = built
        self.assertEqual(address, port.getHost())
        self.assertEqual(protocol.heard, ["made", b"x"])
        self.failureResultOf(self.listener.endpoint("web").listen(factory), CannotListenError)
        self.successResultOf(port.stopListening() or succeed(None))
        self.assertEqual(factory.numPorts, 0)
        self.assertNotIn("web", self.listener.targets)
        self.carrier.messages()
        self.carrier.deliver(encode(ConnReady("/revdial", "d" * 32, "t", "web")))
        [said] = self.carrier.messages()
        assert isinstance(said, PickupFailed)
        self.assertEqual(said.reason, "unknown-target")

    def test_aFactoryThatDeclines(self) -> None:
        """buildProtocol may return None, as for any endpoint: the dial is refused."""
        factory = Factory()
        factory.buildProtocol = lambda addr: None  # type: ignore[method-assign]
        self.successResultOf(self.listener.endpoint("web").listen(factory))
        self.carrier.deliver(encode(ConnReady("/revdial", "d" * 32, "t", "web")))
        [said] = self.carrier.messages()
        assert isinstance(said, PickupFailed)
        self.assertEqual(said.reason, "target-refused")

    def test_theEndOfTheStreamReachesAnOrdinaryProtocol(self) -> None:
        """D1: a protocol without half-close hears connectionLost at the caller's EOF."""
        local = Local()
        factory = Factory()
        factory.buildProtocol = lambda addr: local  # type: ignore[method-assign]
        self.successResultOf(self.listener.endpoint("web").listen(factory))
        data = self.ask(ConnReady("/revdial", "d" * 32, "t", "web")).carry()
        data.protocol.readConnectionLost()
        self.assertEqual(local.heard, ["made", "lost"])
        self.assertTrue(data.ended)
        self.assertFalse(data.aborted)
