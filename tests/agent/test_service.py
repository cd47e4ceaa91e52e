"""Tests for L{helix_revdial.agent.service}."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import (
    ConnectingCancelledError,
    ConnectionDone,
    DNSLookupError,
    getConnectError,
)
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver, StringTransport
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from helix_revdial.agent.reconnect import ReconnectPolicy
from helix_revdial.agent.servers import SERVER_LIMIT
from helix_revdial.agent.service import CLOSE_LIMIT, AgentService
from helix_revdial.agent.settings import AgentSettings, readSettings
from helix_revdial.agent.token import TokenUnusable
from helix_revdial.agent.vocabulary import DRAIN
from helix_revdial.revdial.client import ControlSession, Refused, ServerURL
from helix_revdial.revdial.exchange import MalformedAnswer
from helix_revdial.revdial.features import ALL, formatFeatures
from helix_revdial.revdial.interfaces import ITarget
from helix_revdial.revdial.listener import AgentControl, Listener
from helix_revdial.systemd.supervision import Supervision
from tests.systemd.manager import ManagerSocket

TOKEN = "hl-very-secret-0123456789"


class Carrier(StringTransport):
    """A carrier in memory, whose server answers C{close} by closing."""

    carrier = "raw"
    bytesReceived = 0
    bytesSent = 0
    halfClose = True
    responseHeaders = ((b"revdial-features", formatFeatures(ALL)),)
    stuck = False

    def __init__(self, protocol: IProtocol) -> None:
        super().__init__()
        self.on = protocol

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        super().registerProducer(producer, streaming)
        producer.resumeProducing()

    def unregisterProducer(self) -> None:
        if self.producer is not None:
            super().unregisterProducer()

    def ping(self) -> Deferred[float] | None:
        return None

    def closeWith(self, code: int, reason: str) -> None:
        self.loseConnection()

    def loseConnection(self) -> None:
        if not self.stuck:
            self.lose()

    def abortConnection(self) -> None:
        if not self.stuck:
            self.lose()

    def lose(self) -> None:
        """The connection is gone."""
        if not self.disconnected:
            self.disconnected = True
            self.on.connectionLost(Failure(ConnectionDone()))


class Path:
    """A way to a server, whose attempts end as a test says."""

    server = ServerURL.parse("http://cp.example:8080")

    def __init__(self) -> None:
        self.attempts: list[Deferred[ControlSession]] = []
        self.cancelled = 0
        self.cancelError: Exception | None = None
        self._listener: Listener | None = None

    async def connectControl(self, listener: Listener) -> ControlSession:
        self._listener = listener

        def cancelled(attempt: Deferred[ControlSession]) -> None:
            self.cancelled += 1
            if self.cancelError is not None:
                attempt.errback(Failure(self.cancelError))

        attempt: Deferred[ControlSession] = Deferred(cancelled)
        self.attempts.append(attempt)
        return await attempt

    def accept(self) -> Carrier:
        """The attempt under way succeeds."""
        assert self._listener is not None
        control = self._listener.controlFactory().buildProtocol(cast(Any, None))
        assert isinstance(control, AgentControl)
        carrier = Carrier(control)
        control.makeConnection(carrier)
        self.attempts.pop().callback(
            ControlSession(control.features, "raw", control.whenClosed(), control)
        )
        return carrier

    def refuse(self, error: Exception) -> None:
        """The attempt under way fails."""
        self.attempts.pop().errback(Failure(error))


class Stream(Protocol):
    """A data connection's or a target's end."""


@implementer(ITarget)
class Target:
    """A target that is always there."""

    def open(self) -> Deferred[IProtocol]:
        return succeed(cast(IProtocol, Stream()))


class DialBack:
    """Data connections in memory."""

    def __init__(self) -> None:
        self.carriers: list[Carrier] = []

    def dataEndpoint(self, connReady: Any, features: Any, ready: Deferred[float]) -> Any:
        return self

    def connect(self, factory: Any) -> Deferred[IProtocol]:
        connected: Deferred[IProtocol] = Deferred()

        def join() -> None:
            protocol = factory.buildProtocol(None)
            carrier = Carrier(protocol)
            self.carriers.append(carrier)
            protocol.makeConnection(carrier)
            connected.callback(protocol)

        self.join = join
        return connected


class Signals:
    """Takes the place of the process's signals."""

    def __init__(self) -> None:
        self.hurry: list[Callable[[], None]] = []

    def watch(self) -> None:
        pass

    def arm(self, hurry: Callable[[], None]) -> None:
        self.hurry.append(hurry)

    def again(self) -> None:
        """A second signal comes."""
        for hurry in self.hurry:
            hurry()


class Addresses:
    """The host's addresses, which a test changes."""

    changed: Callable[[], None] | None = None

    def start(self, changed: Callable[[], None]) -> None:
        self.changed = changed

    def stop(self) -> None:
        self.changed = None

    def announce(self) -> None:
        """They have changed."""
        assert self.changed is not None
        self.changed()


def someSettings(**flags: str) -> AgentSettings:
    """Settings of a host's agent."""
    return readSettings(
        {name.replace("_", "-"): value for name, value in flags.items()},
        {"HELIX_API_URL": "http://cp.example:8080", "WOLF_ID": "gpu7", "RUNNER_TOKEN": TOKEN},
    )


class AgentServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.path = Path()
        self.dialBack = DialBack()
        self.draw = 1.0
        self.signals = Signals()
        self.observer: Any = EventLoggingObserver.createWithCleanup(
            cast(Any, self), globalLogPublisher
        )

    def service(
        self, settings: AgentSettings | None = None, supervision: Supervision | None = None
    ) -> AgentService:
        """An agent that is started."""
        service = AgentService(
            self.clock,
            settings or someSettings(),
            self.path,
            Listener(self.clock, cast(Any, self.dialBack), {"default": Target()}),
            ReconnectPolicy(lambda: self.draw),
            signals=cast(Any, self.signals),
        )
        service.supervision = supervision
        service.startService()
        return service

    def lines(self) -> list[str]:
        """What was logged by now."""
        return [formatEvent(event) for event in self.observer]

    def assertLogged(self, words: str) -> None:
        self.assertTrue(any(words in line for line in self.lines()), (words, self.lines()))

    def waits(self, seconds: float) -> None:
        """No attempt is made before C{seconds} are over, and one then."""
        self.assertEqual(self.path.attempts, [])
        self.clock.advance(seconds - 0.01)
        self.assertEqual(self.path.attempts, [], f"sooner than {seconds} s")
        self.clock.advance(0.02)
        self.assertEqual(len(self.path.attempts), 1, f"not after {seconds} s")

    def test_connects(self) -> None:
        """An attempt is made at once; the log says who is connected where, and how."""
        service = self.service()
        self.assertEqual(len(self.path.attempts), 1)
        self.path.accept()
        assert service.session is not None
        self.assertLogged("connected as wolf-gpu7 to http://cp.example:8080 over raw")

    def roaming(self) -> None:
        """What the service is told of addresses, and asked to forget, is counted."""
        self.forgotten = 0

        def forget() -> None:
            self.forgotten += 1

        self.watch = Addresses()
        service = AgentService(
            self.clock,
            someSettings(),
            self.path,
            Listener(self.clock, cast(Any, self.dialBack), {"default": Target()}),
            ReconnectPolicy(lambda: self.draw),
            addresses=cast(Any, self.watch),
            forget=forget,
        )
        service.startService()
        self.addCleanup(service.stopService)

    def test_losesItsAddress(self) -> None:
        """
        B4: a control connection whose own address is gone is given up at once, and
        what was learned about the way is forgotten; one that is not goes on.
        """
        self.roaming()
        carrier = self.path.accept()
        self.assertIsNotNone(self.watch.changed)
        carrier.hostAddr = IPv4Address("TCP", "127.0.0.1", 1)
        self.watch.announce()
        self.assertFalse(carrier.disconnected)
        carrier.hostAddr = IPv4Address("TCP", "192.0.2.7", 1)
        self.watch.announce()
        self.assertTrue(carrier.disconnected)
        self.assertEqual(self.forgotten, 1)
        self.assertLogged("this host has lost the address 192.0.2.7")
        self.waits(1)

    def test_networkComesBack(self) -> None:
        """B4: a wait of the agent's own is cut short when the network changes."""
        self.roaming()
        for wait in (1, 2, 4):
            self.path.refuse(getConnectError((111, "")))
            self.waits(wait)
        self.path.refuse(getConnectError((111, "")))
        self.clock.advance(1)
        self.assertEqual(len(self.path.attempts), 0)
        self.watch.announce()
        self.assertEqual(len(self.path.attempts), 1)
        self.assertEqual(self.forgotten, 1)
        self.clock.advance(10)
        self.assertEqual(len(self.path.attempts), 1)

    def test_askedToWait(self) -> None:
        """E2: a wait that the server asked for is not cut short."""
        self.roaming()
        self.path.refuse(Refused(503, "later", 30.0))
        self.watch.announce()
        self.assertEqual(len(self.path.attempts), 0)

    def test_startedBeforeTheServer(self) -> None:
        """G3: neither a server nor a name that is not there yet ends the agent."""
        self.service()
        for error, words in (
            (DNSLookupError("no results"), "the host name does not resolve"),
            (getConnectError((111, "x")), "connection refused"),
        ):
            self.path.refuse(error)
            self.assertLogged(f"cannot connect to http://cp.example:8080: {words}")
            self.clock.advance(60)
        self.path.accept()
        self.assertLogged("connected as wolf-gpu7")

    def test_backsOff(self) -> None:
        """Attempts that fail come at growing distances, which the log tells."""
        self.service()
        for wait in (1.0, 2.0, 4.0, 8.0):
            self.path.refuse(getConnectError((111, "x")))
            self.assertLogged(f"connecting again in {wait:.1f} s")
            self.waits(wait)

    def test_refusedLoginBacksOff(self) -> None:
        """A refused login says why, and backs off like every failure."""
        self.service()
        for wait in (1.0, 2.0, 4.0):
            self.path.refuse(Refused(401, "401 Unauthorized: the token is not valid"))
            self.waits(wait)
        self.assertLogged(
            "refused by http://cp.example:8080: 401 Unauthorized: the token is not valid"
        )

    def test_retryAfter(self) -> None:
        """E2: an answer's Retry-After is kept to."""
        self.draw = 0.0
        self.service()
        self.path.refuse(Refused(409, "409 Conflict: held", 42.0))
        self.waits(42.0)

    def test_acceptThenSlam(self) -> None:
        """E3: logins that pass and end at once are ever further apart."""
        self.service()
        for wait in (1.0, 2.0, 4.0):
            carrier = self.path.accept()
            self.clock.advance(0.5)
            carrier.lose()
            self.waits(wait)

    def test_reconnectsSoonAfterALongConnection(self) -> None:
        """What held for a while is connected again after the first delay."""
        self.service()
        for _ in range(4):
            self.path.refuse(getConnectError((111, "x")))
            self.clock.advance(60)
        carrier = self.path.accept()
        self.clock.advance(31)
        carrier.lose()
        self.assertLogged("connection to http://cp.example:8080 ended after 31 s: closed")
        self.waits(1.0)

    def test_superseded(self) -> None:
        """A5: who was superseded stays away for half a minute."""
        self.draw = 0.0
        self.service()
        carrier = self.path.accept()
        carrier.on.dataReceived(b'{"command":"closing","err":"superseded"}\n')
        self.assertLogged(": superseded")
        self.waits(30.0)

    def test_serversReasonIsOneLine(self) -> None:
        """What a server says cannot forge lines of the log, nor fill it."""
        self.service()
        carrier = self.path.accept()
        reason = "x\\n2026 [root] all is well" + "y" * 500
        carrier.on.dataReceived(b'{"command":"closing","err":"%s"}\n' % reason.encode())
        [line] = [line for line in self.lines() if "ended after" in line]
        self.assertIn(": x 2026 [root] all is well", line)
        self.assertLess(len(line), 300)

    def test_serverLeaves(self) -> None:
        """A server that drains names its delay; then the agent connects again."""
        self.service()
        carrier = self.path.accept()
        carrier.on.dataReceived(b'{"command":"goodbye","delay":3}\n')
        self.clock.advance(3.1)
        self.assertTrue(carrier.disconnected)
        self.waits(1.0)

    def test_tokenFileMissing(self) -> None:
        """A token that is missing is said, and looked for again."""
        service = self.service()
        self.path.refuse(TokenUnusable("--token-file /x: no such file or directory"))
        self.assertLogged("cannot log in: --token-file /x: no such file or directory")
        self.waits(1.0)
        self.assertTrue(service.running)

    def test_faultOfOurs(self) -> None:
        """An error that is no failure of a connection is logged whole, and survived."""
        self.service()
        self.path.refuse(ZeroDivisionError("x"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.waits(1.0)

    def test_noHTTP(self) -> None:
        """What answers in another protocol is said, and tried again."""
        self.service()
        self.path.refuse(MalformedAnswer("the answer to the upgrade is not HTTP/1.1"))
        self.assertLogged(
            "cannot connect to http://cp.example:8080: the answer to the upgrade is not HTTP/1.1"
        )
        self.waits(1.0)

    def test_longOutage(self) -> None:
        """G9: after very many attempts that failed, one timer is left, and then one attempt."""
        self.service()
        for _ in range(500):
            self.path.refuse(getConnectError((111, "x")))
            self.assertEqual(len(self.clock.getDelayedCalls()), 1)
            self.clock.advance(60)
            self.assertEqual(len(self.path.attempts), 1)
        self.path.accept()
        self.assertLogged("connected as wolf-gpu7")

    def test_attemptThatHangs(self) -> None:
        """An attempt without an end is given up."""
        self.service()
        self.path.attempts.clear()
        self.clock.advance(SERVER_LIMIT)
        self.assertEqual(self.path.cancelled, 1)
        self.assertLogged("no answer within 45 s")
        self.waits(1.0)

    def test_stopWhileWaiting(self) -> None:
        """Stopping during a wait leaves at once, with no timer."""
        service = self.service()
        self.path.refuse(getConnectError((111, "x")))
        self.successResultOf(service.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopDuringAnAttempt(self) -> None:
        """Stopping gives up the attempt under way, and says nothing of an error."""
        service = self.service()
        self.successResultOf(service.stopService())
        self.assertEqual(self.path.cancelled, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertNotIn("cannot connect", " ".join(self.lines()))

    def test_stopDuringAnAttemptWithWordsOfItsOwn(self) -> None:
        """A cancelled connection may fail with another error than CancelledError."""
        service = self.service()
        self.path.cancelError = ConnectingCancelledError(IPv4Address("TCP", "127.0.0.1", 1))
        self.successResultOf(service.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertNotIn("cannot connect", " ".join(self.lines()))

    def test_stopWhileConnected(self) -> None:
        """Stopping says goodbye and closes."""
        service = self.service()
        carrier = self.path.accept()
        self.successResultOf(service.stopService())
        self.assertIn(b'{"command":"goodbye"}\n', carrier.value())
        self.assertTrue(carrier.disconnected)
        self.assertIsNone(service.session)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def streaming(self, control: Carrier) -> Carrier:
        """A stream is opened over C{control}: its data connection."""
        control.on.dataReceived(
            b'{"command":"conn-ready","connPath":"/revdial","dial":"d","ticket":"t"}\n'
        )
        self.dialBack.join()
        return self.dialBack.carriers[-1]

    def test_stopLetsStreamsFinish(self) -> None:
        """G1: goodbye goes out at once; a stream that ends in time is not cut."""
        service = self.service()
        control = self.path.accept()
        stream = self.streaming(control)
        stopping = service.stopService()
        self.assertIn(b'{"command":"goodbye"}\n', control.value())
        self.assertNoResult(stopping)
        self.assertFalse(control.disconnected)
        self.clock.advance(DRAIN - 1)
        self.assertFalse(stream.disconnected)
        stream.lose()
        self.successResultOf(stopping)
        self.assertTrue(control.disconnected)

    def test_stopCutsStreamsInTheEnd(self) -> None:
        """G2: a stream that does not end is cut after the limit."""
        service = self.service()
        stream = self.streaming(self.path.accept())
        stopping = service.stopService()
        self.clock.advance(DRAIN + 0.1)
        self.assertTrue(stream.disconnected)
        self.successResultOf(stopping)

    def test_drainOfNothing(self) -> None:
        """G2: with a limit of zero streams are cut at once."""
        service = self.service(someSettings(drain="0"))
        stream = self.streaming(self.path.accept())
        stopping = service.stopService()
        self.clock.advance(0)
        self.assertTrue(stream.disconnected)
        self.successResultOf(stopping)

    def test_secondSignal(self) -> None:
        """G2: a second signal ends the wait for streams; what is cut is cut at once."""
        service = self.service()
        control = self.path.accept()
        stream = self.streaming(control)
        stopping = service.stopService()
        self.clock.advance(1)
        self.assertFalse(stream.disconnected)
        self.signals.again()
        self.clock.advance(0)
        self.assertTrue(stream.disconnected)
        self.assertTrue(control.disconnected)
        self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_secondSignalWhileClosing(self) -> None:
        """G2: nor does it wait for a server that does not close."""
        service = self.service()
        control = self.path.accept()
        aborted: list[bool] = []
        control.stuck = True
        control.abortConnection = lambda: aborted.append(True)  # type: ignore[method-assign]
        self.assertNoResult(service.stopService())
        self.signals.again()
        self.assertEqual(aborted, [True])
        control.stuck = False
        control.lose()

    def test_serverLeavesForALongTime(self) -> None:
        """A server that said that it leaves is looked for often, for about a minute."""
        self.service()
        carrier = self.path.accept()
        self.clock.advance(31)
        carrier.on.dataReceived(b'{"command":"goodbye","delay":0}\n')
        self.clock.advance(0)
        self.assertLogged(": goodbye")
        for wait in (1.0, 2.0, *[4.0] * 28):
            self.waits(wait)
            self.path.refuse(getConnectError((111, "x")))
        self.waits(60.0)

    def test_tellsTheServiceManager(self) -> None:
        """systemd is told that the agent is ready, where it is connected, and that it leaves."""
        manager = ManagerSocket(f"@helix-revdial-agent-{os.getpid()}-{id(self)}")
        self.addCleanup(manager.close)
        services: list[AgentService] = []
        service = self.service(
            supervision=Supervision.fromEnvironment(
                self.clock, {"NOTIFY_SOCKET": manager.address}, lambda: services[0].status()
            )
        )
        services.append(service)
        self.clock.advance(0)
        [first] = manager.messages()
        self.assertEqual(
            first,
            {
                "READY": "1",
                "STATUS": "not connected to http://cp.example:8080 as wolf-gpu7, 0 streams",
            },
        )
        control = self.path.accept()
        self.assertEqual(
            manager.messages(),
            [{"STATUS": "connected to http://cp.example:8080 as wolf-gpu7 over raw, 0 streams"}],
        )
        stream = self.streaming(control)
        stopping = service.stopService()
        [leaving] = manager.messages()
        self.assertEqual(
            (leaving["STOPPING"], leaving["STATUS"]), ("1", "leaving: 1 streams"), leaving
        )
        self.assertIn("EXTEND_TIMEOUT_USEC", leaving)
        stream.lose()
        self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopWithAServerThatDoesNotClose(self) -> None:
        """A control connection that will not end does not hold the process."""
        service = self.service()
        carrier = self.path.accept()
        carrier.stuck = True
        stopping = service.stopService()
        self.assertNoResult(stopping)
        self.clock.advance(DRAIN + CLOSE_LIMIT + 0.1)
        self.successResultOf(stopping)
        self.assertLogged("did not close in time")

    def test_restart(self) -> None:
        """A stopped agent can be started again."""
        service = self.service()
        self.path.accept()
        self.successResultOf(service.stopService())
        service.startService()
        self.path.accept()
        assert service.session is not None

    def test_stopTwice(self) -> None:
        """Stopping what is stopped, or was never started, is nothing."""
        service = self.service()
        self.successResultOf(service.stopService())
        self.successResultOf(service.stopService())

    def test_warningsAreLogged(self) -> None:
        """What should be changed about the settings is said once, at the start."""
        self.service(someSettings(wolf_id="wolf-1"))
        self.assertLogged("wolf-wolf-1")

    def test_noSecretInTheLog(self) -> None:
        """F1: through a whole life of connecting, failing and stopping."""
        service = self.service(someSettings(token=TOKEN))
        self.path.refuse(Refused(401, "401 Unauthorized"))
        self.clock.advance(60)
        self.path.refuse(getConnectError((111, "x")))
        self.clock.advance(60)
        self.path.accept().lose()
        self.clock.advance(60)
        self.path.accept()
        self.successResultOf(service.stopService())
        for event in self.observer:
            self.assertNotIn(TOKEN, formatEvent(event))
            self.assertNotIn(TOKEN, repr(event))
