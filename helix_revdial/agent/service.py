# -*- test-case-name: tests.agent.test_service -*-
"""
The agent as a service: one control connection, kept up for as long as it runs.

L{AgentService} owns the loop of connecting, being connected and waiting, the
log that tells an operator what is going on, and leaving in good order.  How a
connection is made and what is done on it belongs to C{revdial}; how long to
wait to L{ReconnectPolicy}; what is offered to L{LocalTarget}.

Invariants:

  - Nothing that goes wrong ends the loop, except being told to stop: a server
    that is not there yet, a name that does not resolve yet, a refused login, a
    token file that is missing.
  - There is at most one attempt or one control connection or one wait at a
    time, and none when C{stopService}'s Deferred has fired.
  - Each attempt has a time limit, and so has leaving.
  - Every failure is logged as one line that says why; no line has a secret.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Protocol, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, Logger, globalLogPublisher

from .. import __version__
from ..revdial.client import ControlSession, Refused, ServerURL
from ..revdial.exchange import MalformedAnswer
from ..revdial.listener import Listener
from ..revdial.relay import relayPair
from ..revdial.sockets import SocketRelays
from ..revdial.websocket import requireNVX
from ..systemd.signals import SecondSignal
from ..systemd.supervision import Supervision
from ..telemetry.logs import LoggingService
from .addresses import AddressWatch, isHere
from .failures import connectReason
from .network import serversOf
from .reconnect import ReconnectPolicy
from .servers import SERVER_LIMIT
from .settings import AgentSettings
from .targets import LocalTarget
from .token import TokenUnusable

if TYPE_CHECKING:
    from .observation import AgentObservation

LEAVING = ("goodbye", "shutdown")
"""Words for the end of a connection whose server goes away."""

CLOSE_LIMIT = 6.0
"""
Seconds that the control connection gets to close when the agent stops: a little
more than it takes to abort one whose server does not read.
"""


MAX_REASON = 200
"""Characters of a server's reason that are logged."""


class ControlPath(Protocol):
    """The way to the servers; L{Servers <helix_revdial.agent.servers.Servers>} is one."""

    @property
    def server(self) -> ServerURL:
        """The address that is used, or that was tried last."""

    def connectControl(self, listener: Listener) -> Awaitable[ControlSession]:
        """
        Log in and register.

        @raise Refused: The server does not want us.
        """


class Informed(Protocol):
    """
    Who wants to know how an agent is: L{Supervision
    <helix_revdial.systemd.supervision.Supervision>} is one.
    """

    def started(self) -> None:
        """It runs."""

    def changed(self) -> None:
        """It does something else now."""

    def stopping(self, limit: float) -> None:
        """It leaves, within so many seconds."""

    def ended(self) -> None:
        """It is done."""


class AgentService(LoggingService):
    """
    Keeps an agent connected.

    @ivar session: The control connection that is up, or C{None}.
    @ivar supervision: What keeps the service manager informed, if there is one; to
        be put here before the start.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        settings: AgentSettings,
        path: ControlPath,
        listener: Listener,
        policy: ReconnectPolicy,
        *,
        signals: SecondSignal | None = None,
        addresses: AddressWatch | None = None,
        forget: Callable[[], None] = lambda: None,
        attemptLimit: float = SERVER_LIMIT,
        closeLimit: float = CLOSE_LIMIT,
        oneOfSeveral: bool = False,
    ) -> None:
        """
        @param clock: Tells the time and calls later.
        @param settings: What to say about this agent.
        @param path: The way to the server.
        @param listener: Answers the server's dials.
        @param policy: How long to wait.
        @param signals: Says when somebody does not want to wait for the end of streams.
        @param addresses: Says when the host's addresses have changed.
        @param forget: What to do before the first attempt from another network.
        @param attemptLimit: Seconds that an attempt may take.
        @param closeLimit: Seconds that the connection gets to close on stop.
        @param oneOfSeveral: Whether the process has other runners: then each line of the
            log begins with this one's key.
        """
        self._log = runnerLog(self._log, settings.key, oneOfSeveral)
        self.session: ControlSession | None = None
        self.supervision: Informed | None = None
        self._clock = clock
        self._settings = settings
        self._path = path
        self._listener = listener
        self._policy = policy
        self._signals = signals
        self._attemptLimit = attemptLimit
        self._closeLimit = closeLimit
        self._addresses = addresses
        self._forget = forget
        self._loop: Deferred[None] | None = None
        self._pause: Deferred[None] | None = None

    def startService(self) -> None:
        """Begin to connect."""
        super().startService()
        self._log.info(
            "agent {version} of {key}: server {server}, {targets}",
            version=__version__,
            key=self._settings.key,
            server=", ".join(str(each) for each in self._settings.network.servers),
            targets=", ".join(
                f"{name} at {address}" for name, address in self._settings.targets.items()
            ),
        )
        for warning in self._settings.warnings:
            # Not "warning": Twisted's older observers take that key for their own.
            self._log.warn("{advice}", advice=warning)
        self._loop = Deferred.fromCoroutine(self._run())
        if self._addresses is not None:
            self._addresses.start(self.networkChanged)
        if self._signals is not None:
            self._signals.watch()
        if self.supervision is not None:
            self.supervision.started()

    def stopService(self) -> Deferred[None]:
        """
        Leave: goodbye, so that no new dials come; then the streams that run may
        finish within the limit of the settings, or until the next signal.

        @return: Fires when nothing is left.
        """
        super().stopService()
        if self._addresses is not None:
            self._addresses.stop()
        if self._signals is not None:
            self._signals.arm(self._listener.hurry)
        return Deferred.fromCoroutine(self._leave())

    def networkChanged(self) -> None:
        """
        The host's addresses have changed: give up a control connection whose own
        address is gone, and cut a wait short that nobody asked for.
        """
        pause, self._pause = self._pause, None
        if pause is not None:
            self._log.info("the network has changed: trying at once")
            self._forget()
            pause.callback(None)
        transport: Any = self.session.control.transport if self.session is not None else None
        if transport is None:
            return
        address = getattr(transport.getHost(), "host", None)
        if address is not None and not isHere(address):
            self._log.info("this host has lost the address {address}", address=address)
            self._forget()
            transport.abortConnection()

    @property
    def key(self) -> str:
        """The runner's key."""
        return self._settings.key

    def status(self) -> str:
        """What the agent is doing, in a line."""
        server, key = str(self._path.server), self._settings.key
        streams = self._listener.openStreams
        if not self.running:
            return f"leaving: {streams} streams"
        if self.session is None:
            return f"not connected to {server} as {key}, {streams} streams"
        return f"connected to {server} as {key} over {self.session.carrier}, {streams} streams"

    async def _run(self) -> None:
        while self.running:
            try:
                wait = await self._connectOnce()
                if not self.running:
                    return
                self._log.info("connecting again in {wait:.1f} s", wait=wait)
                await self._wait(wait)
            except CancelledError:
                return

    async def _wait(self, seconds: float) -> None:
        """Wait, at most until the network changes where the wait is our own idea."""
        waiting: Deferred[None] = Deferred()
        timer = self._clock.callLater(seconds, waiting.callback, None)
        self._pause = None if self._policy.asked else waiting
        try:
            await waiting
        finally:
            self._pause = None
            if timer.active():
                timer.cancel()

    async def _connectOnce(self) -> float:
        """
        One attempt and, if it succeeds, the life of the connection.

        @return: Seconds to wait before the next attempt.
        """
        attempt: Deferred[ControlSession] = Deferred.fromCoroutine(self._attempt())
        attempt.addTimeout(self._attemptLimit, self._clock)
        try:
            session = await attempt
        except CancelledError:
            raise
        except Refused as refused:
            self._log.warn(
                "refused by {server}: {why}",
                server=self._server,
                why=str(refused),
                status=refused.status,
            )
            return self._policy.attemptFailed(refused.retryAfter)
        except MalformedAnswer as answer:
            self._log.warn(
                "cannot connect to {server}: {why}",
                server=self._server,
                why=str(answer),
            )
            return self._policy.attemptFailed()
        except TokenUnusable as unusable:
            self._log.error("cannot log in: {why}", why=str(unusable))
            return self._policy.attemptFailed()
        except DeferredTimeoutError:
            self._log.warn(
                "cannot connect to {server}: no answer within {limit:g} s",
                server=self._server,
                limit=self._attemptLimit,
            )
            return self._policy.attemptFailed()
        except Exception as failed:
            if not self.running:
                # An attempt that was cancelled may fail in words of its own.
                raise CancelledError() from failed
            reason = connectReason(failed)
            if reason is None:
                self._log.failure("cannot connect to {server}", server=self._server)
            else:
                self._log.warn("cannot connect to {server}: {why}", server=self._server, why=reason)
            return self._policy.attemptFailed()

        self.session = session
        self._stateChanged()
        self._log.info(
            "connected as {key} to {server} over {carrier}",
            key=self._settings.key,
            server=self._server,
            carrier=session.carrier,
        )
        closed = await session.closed
        self.session = None
        self._stateChanged()
        self._log.info(
            "connection to {server} ended after {held:.0f} s: {why}",
            server=self._server,
            held=closed.held,
            # It may be the server's own text.
            why=closed.reason[:MAX_REASON],
        )
        return self._policy.connectionEnded(
            closed.held,
            leaving=closed.reason in LEAVING,
            superseded=closed.reason == "superseded",
            retryAfter=closed.retryAfter,
        )

    @property
    def _server(self) -> str:
        return str(self._path.server)

    async def _attempt(self) -> ControlSession:
        return await self._path.connectControl(self._listener)

    async def _leave(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None:
            return
        limit = self._settings.drain
        if self.supervision is not None:
            self.supervision.stopping(limit + self._closeLimit)
        if self._listener.openStreams:
            self._log.info(
                "leaving: {streams} streams may finish within {limit:g} s",
                streams=self._listener.openStreams,
                limit=limit,
            )
        if self.session is None:
            loop.cancel()
        leaving = Deferred.fromCoroutine(self._listener.stop(limit))
        leaving.addTimeout(limit + self._closeLimit, self._clock)
        try:
            await leaving
        except DeferredTimeoutError:
            self._log.warn("the control connection did not close in time")
            loop.cancel()
        await loop
        if self._listener.openStreams:
            # These were cut, which takes effect in the reactor's next turn. A process
            # that ends before it would close them in good order, and what was cut
            # off would look whole to the other side.
            await deferLater(self._clock, 0)
        self._log.info("stopped")
        if self.supervision is not None:
            self.supervision.ended()

    def _stateChanged(self) -> None:
        if self.supervision is not None:
            self.supervision.changed()


def runnerLog(log: Logger, key: str, oneOfSeveral: bool) -> Logger:
    """
    A log whose events have their runner in the field C{runner}.

    @param log: Whose name, and whose source, they keep.
    @param oneOfSeveral: Whether the lines say it, too: where others share the log.
    """

    def observe(event: LogEvent) -> None:
        event["runner"] = key
        form = event.get("log_format")
        if oneOfSeveral and form is not None:
            event["log_format"] = f"{{runner}}: {form}"
        globalLogPublisher(event)

    return Logger(log.namespace, log.source, cast(ILogObserver, observe))


def agentService(
    reactor: Any,
    settings: AgentSettings,
    environment: Mapping[str, str] | None = None,
    *,
    signals: SecondSignal | None = None,
    observation: AgentObservation | None = None,
    oneOfSeveral: bool = False,
) -> AgentService:
    """
    Put an agent together.

    @param reactor: Opens sockets, tells the time and resolves names.
    @param settings: What the agent is told.
    @param environment: Where a service manager says how to inform it; nobody is
        informed if it is not given.
    @param signals: What notices the second signal, where agents share a process.
    @param observation: What watches it, if anything does.
    @param oneOfSeveral: Whether the process has other agents, too.
    @raise RuntimeError: WebSocket would run without its native code.
    """
    requireNVX()
    # Where both sides of a stream are plain sockets, its bytes are moved between them.
    pair = partial(relayPair, sockets=SocketRelays(reactor))
    targets = {
        name: LocalTarget(reactor, address, pair=pair) for name, address in settings.targets.items()
    }
    path = serversOf(reactor, settings.network, settings.token, settings.key, settings.offered)
    path.log = runnerLog(path.log, settings.key, oneOfSeveral)
    clock = cast(IReactorTime, reactor)
    listener = Listener(
        reactor,
        path,
        targets,
        default=settings.default,
        maxDials=settings.maxDials,
        maxStreams=settings.maxStreams,
        maxParked=settings.maxParked,
        watching=observation,
        parking=path,
    )
    service = AgentService(
        clock,
        settings,
        path if observation is None else observation.observed(path),
        listener,
        ReconnectPolicy(SystemRandom().random, firstDelay=settings.reconnect),
        signals=signals or SecondSignal(reactor),
        addresses=AddressWatch(reactor),
        forget=path.forget,
        attemptLimit=path.attemptLimit,
        oneOfSeveral=oneOfSeveral,
    )
    service.supervision = Supervision.fromEnvironment(clock, environment or {}, service.status)
    if observation is not None:
        observation.watch(service, listener)
    return service


__all__ = ["AgentService", "agentService"]
