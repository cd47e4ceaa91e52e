# -*- test-case-name: tests.integration.test_desktop_service -*-
"""
The desktop service: L{DesktopOptions} become a listening port and what it shows.

Owns the life of everything: the port comes last at the start, so that whoever
connects is answered; at the stop the port goes first, then every program
that was started, then the connections.  It binds or says why it cannot.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial import __version__
from helix_revdial.desktop.capture import IScreen, SharedScreen, screenOf
from helix_revdial.desktop.clipboard import IClipboard, MemoryClipboard, clipboardOf
from helix_revdial.desktop.display import NoDisplayFound, findDisplay, probe
from helix_revdial.desktop.errors import CannotServe
from helix_revdial.desktop.operations import (
    DisplayDocument,
    HealthDocument,
    desktopOperations,
    desktopTable,
    guarded,
)
from helix_revdial.desktop.options import DesktopOptions, TCPAddress, UNIXAddress, parseListen
from helix_revdial.desktop.pictures import Picture
from helix_revdial.desktop.testcard import CardScreen
from helix_revdial.http.factory import HTTPFactory
from helix_revdial.programs import Programs

SOCKET_TIMEOUT = 2.0
"""How long whoever holds a unix socket may take to accept, in seconds."""

STOP_TIMEOUT = 2.0
"""How long answers under way may take at the stop, in seconds."""


class _Silent(Protocol):
    """Connected is all that we wanted to know."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()


async def removeStaleSocket(reactor: Any, path: str) -> None:
    """
    Remove what a service that was killed left behind.

    @raise CannotServe: Somebody answers there, or it is no socket.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as e:
        raise CannotServe(f"cannot listen on unix:{path}: {e.strerror}") from None
    if not stat.S_ISSOCK(found.st_mode):
        raise CannotServe(
            f"cannot listen on unix:{path}: there is something that is no socket; it was left alone"
        )
    endpoint = UNIXClientEndpoint(reactor, path, SOCKET_TIMEOUT)
    try:
        await endpoint.connect(Factory.forProtocol(_Silent))
    except Refused:
        # The one answer that proves that nobody listens.
        os.unlink(path)
    except Exception as e:
        raise CannotServe(
            f"cannot listen on unix:{path}: a socket is there, and whether somebody uses it"
            f" cannot be told ({e})"
        ) from None
    else:
        raise CannotServe(f"cannot listen on unix:{path}: another service answers there")


@implementer(IService)
class DesktopService(Service):
    """
    Shows one display over HTTP.

    @param reactor: The reactor.
    @param options: What to show, and where.
    @param wallClock: The time, in seconds since 1970, for the test card.
    @raise ValueError: C{options.listen} has no meaning.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        options: DesktopOptions,
        *,
        wallClock: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._options = options
        self._address = parseListen(options.listen)
        self._display = findDisplay(options.environment, options.display)
        environment = options.environment
        if not isinstance(self._display, NoDisplayFound):
            environment = self._display.environment(environment)
        self._programs = Programs(reactor, environment)
        screen: IScreen
        if options.testCard:
            session = options.session or options.environment.get("HELIX_SESSION_ID")
            screen = CardScreen(options.size, session, wallClock, self._inThread)
            self._clipboard: IClipboard = MemoryClipboard()
        else:
            screen = screenOf(
                self._display, self._programs, python=options.python, inThread=self._inThread
            )
            self._clipboard = clipboardOf(self._display, self._programs, reactor)
        self._screen = SharedScreen(screen)
        table = desktopTable(desktopOperations(self._screen, self._clipboard, self.health))
        self._factory = HTTPFactory(guarded(table), reactor)
        self._port: IListeningPort | None = None
        self._listening: Deferred[None] = succeed(None)
        self._outcome: str | Failure | None = None

    def _inThread(self, function: Callable[[], Picture]) -> Awaitable[Picture]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function)

    async def health(self) -> HealthDocument:
        """How the service is; asks the display whether it answers."""
        if self._options.testCard:
            width, height = self._options.size
            return HealthDocument(
                status="ok",
                display=DisplayDocument("test-card", f"{width}x{height}"),
                testCard=True,
                tools={},
                version=__version__,
            )
        tools = {**self._screen.tools(), **self._clipboard.tools()}
        reason = await probe(self._reactor, self._display)
        missing = [name for name, path in tools.items() if path is None]
        if reason is None and missing:
            reason = f"not installed: {', '.join(missing)}"
        name = None if isinstance(self._display, NoDisplayFound) else self._display.name
        return HealthDocument(
            status="ok" if reason is None else "unavailable",
            display=DisplayDocument(self._display.kind, name),
            testCard=False,
            tools=tools,
            version=__version__,
            reason=reason,
        )

    async def _listen(self) -> str:
        address = self._address
        try:
            if isinstance(address, UNIXAddress):
                await removeStaleSocket(self._reactor, address.path)
                # Only this user: whoever can connect sees the screen.  The
                # mode is set before the socket takes connections.
                port = self._reactor.listenUNIX(address.path, self._factory, mode=0o600)
            else:
                port = self._reactor.listenTCP(address.port, self._factory, interface=address.host)
        except CannotListenError as e:
            text = getattr(e.socketError, "strerror", None) or str(e.socketError)
            raise CannotServe(f"cannot listen on {address}: {text}") from None
        self._port = port
        if isinstance(address, TCPAddress):
            address = TCPAddress(address.host, port.getHost().port)
            if address.host != "::1" and not address.host.startswith("127."):
                self._log.warn(
                    "{address} can be reached from other machines: whoever connects sees the"
                    " screen and the clipboard",
                    address=address,
                )
        self._log.info(
            "the desktop service listens on {address} and shows {display}",
            address=address,
            display="a test card" if self._options.testCard else self._display,
        )
        return str(address)

    def startService(self) -> None:
        """Begin to listen; L{whenListening} tells how it went."""
        super().startService()
        self._listening = Deferred.fromCoroutine(self._listen()).addBoth(self._listened)

    def _listened(self, outcome: str | Failure) -> None:
        if isinstance(outcome, Failure):
            self._log.error("{reason}", reason=outcome.getErrorMessage())
        self._outcome = outcome

    def whenListening(self) -> Deferred[str]:
        """
        @return: Fires with the address, as C{--listen} takes it, with the real
            port; fails with L{CannotServe}.
        """

        async def wait() -> str:
            await self._settled()
            outcome = self._outcome
            if outcome is None:
                raise RuntimeError("the service was not started")
            if isinstance(outcome, Failure):
                outcome.raiseException()
            assert isinstance(outcome, str)
            return outcome

        return Deferred.fromCoroutine(wait())

    def _settled(self) -> Deferred[None]:
        """Fires when the start has ended, however; each caller gets its own."""
        result: Deferred[None] = Deferred()
        self._listening.addCallback(result.callback)
        return result

    async def _stop(self) -> None:
        await self._settled()
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        self._screen.stop()
        await self._clipboard.stop()
        await self._programs.stop()
        await self._factory.stop(STOP_TIMEOUT)

    def stopService(self) -> Deferred[None]:
        """
        Stop listening, and end everything that was started.

        @return: Fires when no program and no connection is left.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())


def desktopService(reactor: Any, options: DesktopOptions) -> DesktopService:
    """
    The desktop service, for an application or for L{serveDesktop}.

    @raise ValueError: C{options.listen} has no meaning.
    """
    return DesktopService(reactor, options)


def serveDesktop(
    reactor: Any, options: DesktopOptions, ready: Callable[[str], None] | None = None
) -> Deferred[None]:
    """
    Serve until the reactor stops: what C{helix desktop serve} hands to C{react}.

    @param ready: Called once with the address when the service listens.
    @return: Fires when the service was stopped, by the reactor's shutdown
        (which waits for it) or by cancelling; fails with L{CannotServe}
        when it cannot listen.
    @raise ValueError: C{options.listen} has no meaning.
    """
    service = desktopService(reactor, options)
    asked: Deferred[None] = Deferred()
    ended: Deferred[None] = Deferred()
    shuttingDown = False

    def shutdown() -> Deferred[None]:
        nonlocal shuttingDown
        shuttingDown = True
        if not asked.called:
            asked.callback(None)
        return ended

    async def serve() -> None:
        trigger = reactor.addSystemEventTrigger("before", "shutdown", shutdown)
        service.startService()
        try:
            address = await service.whenListening()
            if ready is not None:
                ready(address)
            await asked
        finally:
            try:
                await service.stopService()
            finally:
                ended.callback(None)
                if not shuttingDown:
                    reactor.removeSystemEventTrigger(trigger)

    return Deferred.fromCoroutine(serve())
