"""Reading the settings again (a whole server: tests.integration.test_listening_server)."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.config import ConfigError, ListenSection, ServerConfig, load
from helix_revdial.reload import (
    RELOADABLE,
    HangupSignal,
    Reload,
    Reloaded,
    Unreloadable,
    changedSettings,
)


def settings(*flags: str, listen: tuple[str, ...] = ()) -> ServerConfig:
    """Settings of a server."""
    return load(None, {}, flags, listen)


class ChangedTests(SynchronousTestCase):
    """L{changedSettings} and L{RELOADABLE}."""

    def test_changed(self) -> None:
        """Each setting that differs, by the name that it has in the file."""
        before = settings()
        self.assertEqual(list(changedSettings(before, settings())), [])
        after = settings("tunnel.grace_period=1", "server.database=sqlite:///x", listen=("tcp:1",))
        self.assertEqual(
            list(changedSettings(before, after)),
            ["server.database", "listen.endpoint", "tunnel.grace_period"],
        )
        more = settings(listen=("tcp:1", "tcp:2"))
        self.assertEqual(list(changedSettings(settings(listen=("tcp:1",)), more)), ["listen"])

    def test_namesExist(self) -> None:
        """What may change is a setting; a misspelt one would be of no use."""
        names = {
            f"{section.encode_name}.{field.encode_name}"
            for section in msgspec.structs.fields(ServerConfig)
            for field in msgspec.structs.fields(
                ListenSection if section.name == "listen" else section.type
            )
        }
        self.assertEqual(RELOADABLE - names, set())


class ReloadTests(SynchronousTestCase):
    """L{Reload}."""

    def setUp(self) -> None:
        self.file: ServerConfig | Exception = settings()
        self.done: list[str] = []
        self.failing: Exception | None = None
        self.wait: Deferred[None] | None = None
        self.before = settings()
        self.reload = Reload(self.before, self.read, (self.part("a"), self.part("b", last=True)))
        self.log = EventLoggingObserver.createWithCleanup(cast(Any, self), globalLogPublisher)

    def read(self) -> ServerConfig:
        if isinstance(self.file, Exception):
            raise self.file
        return self.file

    def part(
        self, name: str, last: bool = False
    ) -> Callable[[ServerConfig], Awaitable[Callable[[], None]]]:
        async def prepare(config: ServerConfig) -> Callable[[], None]:
            self.done.append(f"prepared {name}")
            if last and self.wait is not None:
                await self.wait
            if last and self.failing is not None:
                raise self.failing
            return lambda: self.done.append(f"put {name}")

        return prepare

    def run_(self) -> Deferred[Reloaded]:
        return Deferred.fromCoroutine(self.reload.run("SIGHUP"))

    def test_allIsPreparedFirst(self) -> None:
        """What can fail comes before what takes effect."""
        self.file = settings("tunnel.grace_period=1")
        self.assertEqual(self.successResultOf(self.run_()), Reloaded(("tunnel.grace_period",)))
        self.assertEqual(self.done, ["prepared a", "prepared b", "put a", "put b"])
        self.assertIs(self.reload.current, self.file)
        self.assertEqual(self.log[-1]["what"], "tunnel.grace_period")
        self.assertEqual(self.log[-1]["by"], "SIGHUP")

    def test_partsRunWithoutAChange(self) -> None:
        """Certificates are read again, although the file is the same."""
        self.assertEqual(self.successResultOf(self.run_()), Reloaded(()))
        self.assertEqual(self.done[-2:], ["put a", "put b"])

    def test_nothingOfARefusedOne(self) -> None:
        """G4: if one thing is wrong, nothing takes effect; the log says what."""
        for error in (ConfigError("x.pem: broken"), Unreloadable("no"), RuntimeError("fault")):
            self.file = settings("tunnel.grace_period=1")
            self.failing = error
            self.assertIs(self.failureResultOf(self.run_()).value, error)
            self.assertEqual(self.log[-1]["why"], str(error))
        self.file = ConfigError("server.toml, line 3: unknown key")
        self.failureResultOf(self.run_(), ConfigError)
        self.assertNotIn("put a", self.done)
        self.assertIs(self.reload.current, self.before)
        self.file, self.failing = settings("tunnel.grace_period=2"), None
        self.assertEqual(self.successResultOf(self.run_()).changed, ("tunnel.grace_period",))

    def test_fixed(self) -> None:
        """
        What cannot change is named, with what to do, before anything is prepared;
        values are not shown: a database's has a password.
        """
        self.file = settings(
            "server.database=postgresql+psycopg://u:hunter2@h/d",
            "tunnel.grace_period=1",
            listen=("tcp:1",),
        )
        text = str(self.failureResultOf(self.run_(), Unreloadable).value)
        self.assertEqual(
            text,
            "server.database, listen.endpoint cannot change while the server runs: restart it, "
            "or put back what was there",
        )
        self.assertEqual(self.done, [])
        self.assertNotIn("hunter2", str(list(self.log)))

    def test_oneAfterAnother(self) -> None:
        """A reload that comes while one is under way waits for it, then reads for itself."""
        self.wait = Deferred()
        self.file = settings("tunnel.grace_period=1")
        first = self.run_()
        self.file = settings("tunnel.grace_period=2")
        second = self.run_()
        self.assertNoResult(second)
        self.assertEqual(self.done, ["prepared a", "prepared b"])
        wait, self.wait = self.wait, None
        wait.callback(None)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.reload.current.tunnel.gracePeriod, 2)


class Threads:
    """A reactor that is told something from a signal's frame."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def callFromThread(self, call: Callable[[], object]) -> None:
        self.calls.append(call)


class HangupTests(SynchronousTestCase):
    """L{HangupSignal}."""

    def test_signal(self) -> None:
        """The signal asks the reactor, and does nothing in its own frame."""
        installed: dict[int, Any] = {}
        told: list[str] = []
        threads = Threads()

        def call() -> Deferred[None]:
            told.append("reload")
            return succeed(None)

        hangup = HangupSignal(threads, call, install=installed.__setitem__)
        self.assertEqual(installed, {})
        hangup.arm()
        installed[signal.SIGHUP](signal.SIGHUP, None)
        self.assertEqual((told, len(threads.calls)), ([], 1))
        threads.calls[0]()
        self.assertEqual(told, ["reload"])

    def test_whileItStops(self) -> None:
        """A late one does not end a process that is on its way out."""
        installed: dict[int, Any] = {}
        hangup = HangupSignal(Threads(), lambda: succeed(None), install=installed.__setitem__)
        hangup.arm()
        hangup.disarm()
        self.assertEqual(installed, {signal.SIGHUP: signal.SIG_IGN})
