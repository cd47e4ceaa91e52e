# -*- test-case-name: tests.listening.test_door -*-
"""
One door of the server: an endpoint, perhaps behind proxies, perhaps with TLS.

The layers, from the socket up: the endpoint, the PROXY header, TLS, what
serves.  (PROXY inside TLS, as Twisted's C{haproxy:ssl:} has it, is what no
proxy sends.)

A door opens whole or says why not, at once: an endpoint that cannot be bound is
an error of the start, not a line in the log of a server that nobody reaches.
What can be replaced while it is open (certificates, authorities, proxies) is
prepared first, with all that can fail, and then put in place, which cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial.listening import unix_socket
from helix_revdial.listening.errors import ListenError, NeedsRestart
from helix_revdial.listening.proxied import ProxiedEndpoint, ProxiedFactory, Strangers
from helix_revdial.listening.sources import ProxySources
from helix_revdial.listening.tls import LoadedTLS, ServerTLS, TLSSettings, load
from helix_revdial.revdial.endpoint_syntax import checkSyntax
from helix_revdial.revdial.tls_endpoints import TLSServerEndpoint

_OTHERS_WORK = {
    "ssl": "use tcp: and the door's tls settings, which can be reloaded",
    "tls": "use tcp: and the door's tls settings",
    "haproxy": "use the door's proxy_protocol setting, which says who may send such headers",
}
"""Endpoints that do, with less care, what a door does itself."""

BACKLOG = 1024
"""Connections that wait to be accepted, unless the endpoint says otherwise."""


@dataclass(frozen=True)
class DoorSettings:
    """
    What a door is to be.

    @ivar endpoint: A server endpoint description.
    @ivar tls: L{None} for none.
    @ivar proxies: Who sends PROXY headers; L{None} when there are none.
    """

    endpoint: str
    tls: TLSSettings | None = None
    proxies: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Prepared:
    """What was read for a door and can be put in place."""

    tls: LoadedTLS | None
    sources: ProxySources | None


def prepare(settings: DoorSettings) -> Prepared:
    """
    Read and check what a door needs, and open nothing.

    @raise ListenError: With the door and what is wrong with it.
    """
    kind = settings.endpoint.partition(":")[0]
    if kind in _OTHERS_WORK:
        raise ListenError(f"listen endpoint {settings.endpoint!r}: {_OTHERS_WORK[kind]}")
    try:
        checkDescription(settings.endpoint)
        return Prepared(
            None if settings.tls is None else load(settings.tls),
            None if settings.proxies is None else ProxySources(settings.proxies),
        )
    except ListenError as error:
        raise ListenError(f"listen endpoint {settings.endpoint!r}: {error}") from None


class Door(Service):
    """
    Listens while it runs.

    @ivar settings: What it is.
    @ivar port: Where it listens; L{None} while it does not.
    """

    _log = Logger()

    port: IListeningPort | None = None

    def __init__(
        self,
        reactor: Any,
        settings: DoorSettings,
        factory: IProtocolFactory,
        strangers: Strangers,
        patience: Callable[[], float],
    ) -> None:
        """
        @param reactor: Sockets and time.
        @param factory: Builds what serves.
        @param strangers: Counts connections that wait for their PROXY header.
        @param patience: Gives the seconds that such a header may take.
        @raise ListenError: The door cannot be so.
        """
        self.settings = settings
        self._reactor = reactor
        self._factory = factory
        self._strangers = strangers
        self._patience = patience
        self._proxied: ProxiedFactory | None = None
        prepared = prepare(settings)
        self._tls = None if prepared.tls is None else ServerTLS(prepared.tls)
        self._sources = prepared.sources
        self._complain(prepared)
        self._endpoint = self._compose()
        self._opening: Deferred[Any] | None = None

    def _compose(self) -> IStreamServerEndpoint:
        description = self.settings.endpoint
        if unix_socket.addressOf(description) is not None:
            description = unix_socket.withoutLock(description)
        try:
            endpoint: Any = serverFromString(self._reactor, _withBacklog(description))
        except Exception as error:
            # Whatever a parser, perhaps of a plugin, makes of a description.
            raise ListenError(
                f"listen endpoint {self.settings.endpoint!r}: {_explained(error, description)}"
            ) from None
        if self._sources is not None:
            endpoint = ProxiedEndpoint(endpoint, self._behindProxies)
        if self._tls is not None:
            endpoint = TLSServerEndpoint(self._reactor, self._tls, endpoint)
        return endpoint  # type: ignore[no-any-return]

    def _behindProxies(self, factory: IProtocolFactory) -> ProxiedFactory:
        assert self._sources is not None
        self._proxied = ProxiedFactory(
            factory, self._sources, self._reactor, self._strangers, self._patience
        )
        return self._proxied

    # Opening and closing

    def privilegedStartService(self) -> None:
        """
        Open it, while privileged ports can be had.

        @raise ListenError: It cannot be.
        """
        super().privilegedStartService()
        self._open()

    def startService(self) -> None:
        """
        Open it, unless it is.

        @raise ListenError: It cannot be.
        """
        super().startService()
        self._open()

    def _open(self) -> None:
        if self._opening is not None:
            return
        path = unix_socket.addressOf(self.settings.endpoint)
        try:
            if path is not None and unix_socket.clearStale(path):
                self._log.info("Removed {path}, a socket that nobody listened on", path=path)
        except ListenError as error:
            raise self._cannot(error) from None
        failures: list[Failure] = []
        self._opening = maybeDeferred(self._endpoint.listen, self._factory)
        self._opening.addCallbacks(self._opened, failures.append)
        if failures:
            self._opening = None
            raise self._cannot(failures[0].value) from None
        # An endpoint that takes its time can only be reported.
        self._opening.addErrback(lambda failure: self._failedLater(failure))

    def _opened(self, port: IListeningPort) -> None:
        self.port = port

    def _failedLater(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure(
                "Cannot listen on {endpoint}", failure, endpoint=self.settings.endpoint
            )

    def _cannot(self, error: BaseException | None) -> ListenError:
        why = _bindError(error)
        return ListenError(f"cannot listen on {self.settings.endpoint}: {why}")

    def stopService(self) -> Deferred[None]:
        """Take no more connections; those that there are live on."""
        super().stopService()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
        port, self.port = self.port, None
        if port is not None:
            stopped = port.stopListening()
            if stopped is not None:
                await stopped

    # Reloading

    def prepare(self, settings: DoorSettings) -> Callable[[], None]:
        """
        Read and check what this door is to be from now on.

        @return: Puts it in place; it cannot fail.
        @raise NeedsRestart: An open door cannot become that.
        @raise ListenError: It is wrong.
        """
        for what, was, wanted in (
            ("endpoint", self.settings.endpoint, settings.endpoint),
            ("tls (whether there is any)", self.settings.tls is None, settings.tls is None),
            (
                "proxy_protocol (whether there is any)",
                self.settings.proxies is None,
                settings.proxies is None,
            ),
        ):
            if was != wanted:
                raise NeedsRestart(
                    f"listen endpoint {self.settings.endpoint!r}: its {what} cannot change while "
                    "the server runs"
                )
        prepared = prepare(settings)

        def put() -> None:
            self.settings = settings
            if self._tls is not None and prepared.tls is not None:
                self._tls.current = prepared.tls
            if prepared.sources is not None:
                self._sources = prepared.sources
                if self._proxied is not None:
                    self._proxied.sources = prepared.sources
            self._complain(prepared)

        return put

    def _complain(self, prepared: Prepared) -> None:
        for complaint in () if prepared.tls is None else prepared.tls.complaints:
            self._log.warn("{complaint}", complaint=complaint)


def checkDescription(description: str) -> None:
    """
    Check the description of a server endpoint, as far as that can be done and open nothing:
    what systemd or a plugin makes of its own is seen when it is opened.

    @raise ListenError: With what is wrong with it.
    """
    kind = description.partition(":")[0]
    try:
        checkSyntax(description)
        path = unix_socket.addressOf(description)
    except Exception as error:
        if kind in ("tcp", "tcp6", "unix"):
            raise ListenError(
                f"{_explained(error, description)}; write for example "
                "tcp:8080:interface=127.0.0.1, or unix:/run/x.sock:mode=660"
            ) from None
        if str(error).startswith("Unknown endpoint type"):
            raise ListenError(str(error)) from None
        return
    if path is not None:
        unix_socket.checkPath(path)


def _withBacklog(description: str) -> str:
    """
    A description with room for a crowd that connects at once.

    Where the queue is full the kernel drops a newcomer's SYN, and he tries again
    a second later: with Twisted's 50 places one address's storm delays everybody.
    """
    kind, _, rest = description.partition(":")
    if kind not in ("tcp", "tcp6", "unix") or ":backlog=" in rest:
        return description
    return f"{description}:backlog={BACKLOG}"


def _explained(error: Exception, description: str) -> str:
    """What is wrong with a description, in words."""
    if description.startswith("systemd:") and isinstance(error, LookupError):
        return (
            "systemd passed no such socket (LISTEN_FDS); is the .socket unit started, and does "
            "its FileDescriptorName agree?"
        )
    return f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _bindError(error: BaseException | None) -> str:
    cause = error.socketError if isinstance(error, CannotListenError) else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause)
