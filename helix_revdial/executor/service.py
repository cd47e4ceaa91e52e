# -*- test-case-name: tests.integration.test_executor -*-
"""
The executor as a service: L{ExecutorSettings} become a unix socket behind which sessions
run.

At the start the sessions of before are taken up first, and the socket comes last, so that
whoever connects is told the truth.  At the stop the socket goes first; the sessions go on,
each with its supervisor, and the next start finds them.
"""

from __future__ import annotations

import fcntl
import grp
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.error import ConnectionRefusedError as NobodyThere
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from helix_revdial.cannot_start import CannotStart
from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.limits import HTTPLimits
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver, Response
from helix_revdial.systemd.supervision import Supervision

from .control_groups import ControlGroup, GroupUnusable, findControlGroups
from .filesystems import detect
from .host import canRunPython, canSeparateMounts, hostOf
from .operations import executorOperations, executorTable
from .passage import closedDirectory, needed, shownBelow
from .sessions import LocalSessions
from .settings import ExecutorSettings

STOP_TIMEOUT = 2.0
"""How long answers under way may take at the stop, in seconds."""

TEMPORARY = ("/tmp/", "/var/tmp/")  # noqa: S108 - where they are is what is meant

LIMITS = HTTPLimits(
    # Streams of reports say nothing for longer than that, and it is no upload.
    stallTimeout=120.0,
    maxConnections=4096,
    maxUnauthenticated=4096,
)


class _AccessLog(Logger):
    """All that is asked, but for how the host is, which the server asks every few seconds."""

    def info(self, format: str | None = None, **fields: object) -> None:  # noqa: A002 - as Logger's
        """A line for each request."""
        if (fields.get("path"), fields.get("status")) != ("/v1/host", 200):
            super().info(format, **fields)


class ExecutorService(Service):
    """
    Runs sessions for whoever reaches its socket.

    @ivar sessions: The sessions, once started.
    """

    _log = Logger()

    sessions: LocalSessions

    def __init__(
        self,
        reactor: Any,
        settings: ExecutorSettings,
        environment: Mapping[str, str],
        wallClock: Callable[[], float] = time.time,
    ) -> None:
        """
        @param environment: Where a service manager says how to inform it.
        """
        self._reactor = reactor
        self._settings = settings
        self._wallClock = wallClock
        self._port: IListeningPort | None = None
        self._factory: HTTPFactory | None = None
        self._lock = -1
        self.supervision = Supervision.fromEnvironment(reactor, environment, self._describe)

    def _describe(self) -> str:
        if self._factory is None:
            return "starting"
        return f"{self.sessions.running} of {self._settings.slots} slots taken"

    def startService(self) -> None:
        """
        Take up the sessions of before, and listen.

        @raise CannotStart: That cannot be.
        """
        super().startService()
        settings = self._settings
        state = Path(settings.stateDirectory)
        try:
            state.mkdir(mode=0o711, parents=True, exist_ok=True)
            # The sessions' users pass through it, and see nothing of it.
            os.chmod(state, 0o711)  # noqa: S103 - passed through, not listed
            self._lockState(state)
            capabilities = detect(state)
            ownUsers = settings.separateUsers and os.geteuid() == 0
            # Root would see the others' processes all the same.
            mounts = settings.mounts and ownUsers and canSeparateMounts()
        except OSError as error:
            raise CannotStart(f"cannot start: {error}") from None
        closed = closedDirectory(f"{state}/sessions/") if ownUsers else None
        if closed is not None:
            raise CannotStart(
                f"cannot start: state_directory: the sessions' users cannot pass through {closed}"
            )
        groups = self._groups()
        places = needed(settings.python) if ownUsers else []
        shown = shownBelow(places) if mounts else {}
        self.sessions = LocalSessions(
            self._reactor,
            settings,
            capabilities,
            groups,
            self._wallClock,
            ownUsers=ownUsers,
            mounts=mounts,
            shown=shown,
            # What lies below it would be hidden by a session's own.
            keepTmp=any(
                f"{place}/".startswith(TEMPORARY) for place in (os.path.realpath(state), *places)
            ),
        )
        if not ownUsers:
            self._log.warn(
                "sessions have no users of their own: all run as {user}, and can reach each"
                " other's files and the executor's",
                user="root" if os.geteuid() == 0 else f"user {os.geteuid()}",
            )
        elif not canRunPython(settings.firstUser, settings.python, shown):
            self._log.warn(
                "{python} with what this program needs is not to be had by the sessions' users: the"
                " demonstration agent and the sessions' screens will fail (see the key python)",
                python=settings.python,
            )
        self.sessions.start()
        operations = executorOperations(
            self.sessions,
            hostOf(settings, self.sessions, capabilities),
            uploads=state / "uploads",
            uploadBytes=settings.uploadBytes,
            reactor=self._reactor,
        )
        table = executorTable(operations)

        async def dispatch(request: Request) -> Response | HandedOver:
            # All come by one socket, from one agent.
            request.authenticated()
            return await table(request)

        log = _AccessLog(namespace="helix_revdial.http.access")
        self._factory = HTTPFactory(
            dispatch, self._reactor, LIMITS, log=log, wallClock=self._wallClock
        )
        Deferred.fromCoroutine(self._listen(self._factory)).addErrback(self._failed)

    def _failed(self, failure: Any) -> None:
        self._log.critical("{reason}", reason=failure.getErrorMessage())
        self._reactor.stop()

    def _lockState(self, state: Path) -> None:
        self._lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CannotStart(f"cannot start: another executor has {state}") from None

    def _groups(self) -> ControlGroup | None:
        try:
            found = findControlGroups(self._settings.controlGroup)
        except GroupUnusable as error:
            if self._settings.controlGroup is not None:
                raise CannotStart(f"cannot start: control_group: {error}") from None
            self._log.warn("sessions have no control groups: {reason}", reason=error)
            return None
        return found

    async def _listen(self, factory: HTTPFactory) -> None:
        path = self._settings.listen
        await self._removeStale(path)
        Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        before = os.umask(0o177)
        try:
            self._port = self._reactor.listenUNIX(path, factory, mode=0o600)
        except CannotListenError as error:
            raise RuntimeError(f"cannot listen on unix:{path}: {error.socketError}") from None
        finally:
            os.umask(before)
        group = self._settings.socketGroup
        if group is not None:
            try:
                number = group if isinstance(group, int) else grp.getgrnam(group).gr_gid
            except KeyError:
                raise RuntimeError(f"socket_group: there is no group {group!r}") from None
            os.chown(path, -1, number)
        os.chmod(path, 0o660)
        self._log.info(
            "The executor listens on unix:{path}; snapshots by {snapshots}; sessions are kept"
            " apart by {isolation}",
            path=path,
            snapshots=", ".join(self.sessions.capabilities.snapshots),
            isolation=", ".join(self.sessions.isolation) or "nothing",
        )
        self.supervision.started()

    async def _removeStale(self, path: str) -> None:
        """Remove what an executor that was killed left behind."""
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise RuntimeError(
                f"cannot listen on unix:{path}: there is something that is no socket"
            )
        try:
            connected = await UNIXClientEndpoint(self._reactor, path, 2).connect(
                Factory.forProtocol(Protocol)
            )
        except NobodyThere:
            os.unlink(path)
            return
        except Exception as error:
            raise RuntimeError(f"cannot listen on unix:{path}: {error}") from None
        transport: Any = connected.transport
        transport.loseConnection()
        raise RuntimeError(f"cannot listen on unix:{path}: another service answers there")

    def stopService(self) -> Deferred[None]:
        """
        Stop listening, and leave the sessions to their supervisors.

        @return: Fires when no connection is left.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self.supervision.stopping(STOP_TIMEOUT + 5)
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        if self._factory is not None:
            self.sessions.stop()
            await self._factory.stop(STOP_TIMEOUT)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        self.supervision.ended()
