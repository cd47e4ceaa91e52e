# -*- test-case-name: tests.integration.test_executor -*-
"""
One session from its launch to its end.

A L{Supervisor} owns the session's journal while it lives
(L{Reporting <helix_revdial.executor.reporting.Reporting>} writes it), the task's process
(L{Task <helix_revdial.executor.task.Task>}) and its companions, and is alone in doing so.
It outlives the executor that started it, and asks it for nothing: what it is told comes by
L{Supervisor.command}, what it has to say goes into the journal, and C{notify} says that
there is more.

  - Everything that happens is one report, in the order in which it happened.  The last
    one is C{exit}; by then nothing of the session runs, and what it delivers is there.
  - A verb is refused where the state forbids it, and does nothing where it is done or
    under way.
  - Output that is held back is never dropped, but by C{cancel}.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable
from typing import Any, Literal

from twisted.internet import process
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from helix_revdial.sessions.executor import HostState, SnapshotMade, WorkspaceFacts

from .checkout import WorkspaceFailed
from .command_line import ArgumentTooLong
from .commands import CommandFailed, Commands
from .companions import Companions
from .control_groups import GroupUnusable
from .delivery import Delivery, PatchMade
from .journal import Journal
from .layout import Layout
from .process_table import reapOrphans
from .record import Record
from .reporting import RETRY, Reporting
from .task import Task
from .workspace import Workspace

POLL = 0.02
"""Seconds between two looks at whether processes are frozen, or gone."""

FREEZE_SECONDS = 10.0
"""How long it may take until nothing of a task runs."""

KILL_SECONDS = 20.0
"""How long it may take until what was killed is gone."""

TEND_SECONDS = 1.0
"""Between two looks at what has no event of its own."""


class Refused(Exception):
    """What was asked for cannot be; the text says why."""


class Supervisor:
    """
    Supervises one session.

    @ivar state: Where it is.
    @ivar journal: Its reports.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        record: Record,
        layout: Layout,
        wallClock: Callable[[], float],
        notify: Callable[[], None],
    ) -> None:
        """
        @param wallClock: Seconds since 1970, for the reports.
        @param notify: Called when there are new reports, or another state.
        """
        self._reactor = reactor
        self._record = record
        self._spec = record.spec
        self._layout = layout
        self._wallClock = wallClock
        self.state: HostState = "provisioning"
        self.journal = Journal(layout.journal)
        self._reporting = Reporting(
            reactor,
            self.journal,
            wallClock,
            notify,
            outputAhead=record.terms.outputAhead,
            logBytes=record.spec.limits.logBytes,
        )
        self._confinement = record.confinement(layout, os.getpid())
        self._commands = Commands(reactor, self._confinement, layout, record.tunnelUser)
        self._workspace = Workspace(reactor, record, self._commands)
        self._companions = Companions(
            reactor,
            record,
            layout,
            self._confinement,
            lambda text: self._reporting.say(text, "warn"),
        )
        self._task: Task | None = None
        self._goal: Literal["stop", "cancel"] | None = None
        self._failure: str | None = None
        self._kill: IDelayedCall | None = None
        self._busy = False
        self._prompted = 0
        self._tending = LoopingCall(self._tend)
        self._tending.clock = reactor

    def _change(self, state: HostState) -> None:
        self.state = state
        self._reporting.report("state", state=state)

    def acknowledge(self, seq: int) -> None:
        """Reports up to C{seq} have been fetched, for good."""
        self._reporting.acknowledge(seq)

    def fetched(self, seq: int) -> None:
        """Reports up to C{seq} were sent to whoever asked for them."""
        self._reporting.fetched(seq)

    # Its life

    async def run(self) -> None:
        """
        Run the session.

        @return: When its last report is on the disk.
        """
        self._tending.start(TEND_SECONDS, now=False).addErrback(
            lambda failure: self._log.failure("what has no event is not tended", failure)
        )
        result: dict[str, Any]
        try:
            result = await self._live()
        except WorkspaceFailed as error:
            result = {"error": str(error)}
        except Exception:
            self._log.failure("the session failed")
            result = {"error": "the host failed: its operator finds the reason in its log"}
        if self._goal is not None and "exitCode" not in result:
            name = "SIGKILL" if self._goal == "cancel" else "SIGTERM"
            result = {"signal": result.get("signal", name)}
        if self._failure is not None:
            result["error"] = self._failure
        await self._commands.stop()
        await self._companions.stop()
        await self._killed(everything=True)
        if self._kill is not None and self._kill.active():
            self._kill.cancel()
        self._tending.stop()
        self.state = "ended"
        self._reporting.report("exit", **result)
        while not self._reporting.complete:
            await deferLater(self._reactor, RETRY)

    async def _live(self) -> dict[str, Any]:
        self._change("provisioning")
        try:
            unbounded = self._confinement.create()
        except GroupUnusable as error:
            raise WorkspaceFailed(f"the host cannot hold the session: {error}") from None
        if unbounded:
            self._reporting.say(
                f"this host does not bound a task's {' and '.join(unbounded)}", "warn"
            )
        await self._workspace.prepare()
        self._reporting.report("workspace", workspace=self.facts)
        if self._goal is None:
            await self._companions.start()
        if self._goal is not None:
            return {}
        task = self._start()
        self._change("running")
        overdue = self._limitRun()
        await task.exited
        if overdue is not None and overdue.active():
            overdue.cancel()
        await self._killed()
        await task.drain(lambda: self._goal == "cancel")
        result = task.ending
        if self._goal is None and result.get("exitCode") == 0:
            await self._deliver()
        return result

    @property
    def facts(self) -> WorkspaceFacts:
        """Where the workspace is."""
        path = str(self._layout.workspace)
        return WorkspaceFacts(self._workspace.provider.name, path, os.uname().nodename, path)

    def _start(self) -> Task:
        task = Task(self._reactor, self._record, self._layout, self._reporting.output)
        try:
            task.start(self._confinement, self._companions.environment)
        except ArgumentTooLong as error:
            raise WorkspaceFailed(str(error)) from None
        self._task = self._reporting.source = task
        return task

    def _limitRun(self) -> IDelayedCall | None:
        seconds = self._spec.limits.runSeconds
        if seconds is None:
            return None

        def over() -> None:
            self._failure = f"it ran longer than {seconds:g} seconds"
            self._reporting.say(self._failure, "error")
            self._stop(self._spec.limits.stopSeconds)

        later: IDelayedCall = self._reactor.callLater(seconds, over)
        return later

    async def _deliver(self) -> None:
        wanted, delivery = self._spec.delivery, self._workspace.delivery
        if wanted is None:
            return
        try:
            if wanted.mode == "patch":
                made = await delivery.patch()
                self._sayLeftOut(delivery)
                self._reporting.report("delivery", mode="patch", size=made.size, sha256=made.sha256)
                return
            url = await delivery.push(self._spec.session, wanted.targetBranch, wanted.mode == "pr")
            self._sayLeftOut(delivery)
            self._reporting.report("delivery", mode=wanted.mode, url=url)
        except WorkspaceFailed as error:
            self._reporting.say(str(error), "error")
            if self._goal is None:
                self._failure = str(error)

    def _sayLeftOut(self, delivery: Delivery) -> None:
        if delivery.leftOut:
            self._reporting.say(f"not everything is delivered: {delivery.leftOut}", "warn")

    async def _killed(self, *, everything: bool = False) -> None:
        """Kill what is left, of the task or of all, and wait until it is gone."""
        end = self._reactor.seconds() + KILL_SECONDS
        part: Literal["task"] | None = None if everything else "task"
        while True:
            # Before it has joined its group it is not found there.
            if self._task is not None:
                self._task.signal("KILL")
            besides = () if everything else self._companions.processes
            if self._confinement.kill(part, besides) and self._exited:
                break
            self._reap()
            if self._reactor.seconds() > end:
                self._log.error("processes that were killed are not gone")
                return
            await deferLater(self._reactor, POLL)
        self._reap()

    @property
    def _exited(self) -> bool:
        return self._task is None or self._task.exited.called

    # What it is told

    async def command(
        self,
        verb: str,
        *,
        deadline: float | None = None,
        text: str | None = None,
        number: int | None = None,
    ) -> dict[str, Any]:
        """
        Do what was asked for.

        @param deadline: Seconds until it is done by force.
        @param text: A prompt, or a snapshot's label.
        @param number: The prompt's: one that was taken is not taken again.
        @return: What there is to answer.
        @raise Refused: It cannot be.
        """
        if self.state == "ended":
            raise Refused("the session has ended")
        if verb == "cancel":
            await self._cancel()
        elif verb == "stop":
            self._stop(self._spec.limits.stopSeconds if deadline is None else deadline)
        elif verb == "pause":
            await self._alone(self._pause)
        elif verb == "resume":
            await self._alone(self._resume)
        elif verb == "token":
            self._companions.setToken(text or "")
        elif verb == "prompt":
            self._prompt(text or "", number)
        elif verb == "snapshot":
            made: SnapshotMade = await self._alone(lambda: self._snapshot(text or ""))
            return {
                "snapshot": made.snapshot,
                "provider": made.provider,
                "at": made.at,
                "mount": made.mount,
            }
        elif verb == "patch":
            patch: PatchMade = await self._alone(self._patch)
            return {"size": patch.size, "sha256": patch.sha256}
        else:
            raise Refused(f"there is no verb {verb[:40]!r}")
        return {}

    async def _alone(self, do: Callable[[], Any]) -> Any:
        """One thing after the other: what freezes and thaws, and what looks at files."""
        end = self._reactor.seconds() + 600.0
        while self._busy:
            if self._reactor.seconds() > end:
                raise Refused("the session is busy")
            await deferLater(self._reactor, POLL)
        self._busy = True
        try:
            return await do()
        finally:
            self._busy = False

    def _mustRun(self, what: str) -> None:
        if self._task is None:
            raise Refused(f"the session is still being provisioned: it cannot be {what}")
        if self.state == "stopping":
            raise Refused(f"the session is being stopped: it cannot be {what}")
        if self._task.exited.called:
            raise Refused(
                f"the agent has ended, and its work is being delivered: it cannot be {what}"
            )

    async def _pause(self) -> None:
        if self.state == "paused":
            return
        self._mustRun("paused")
        await self._freeze()
        if self.state == "running":
            self._change("paused")

    async def _freeze(self) -> None:
        end = self._reactor.seconds() + FREEZE_SECONDS
        try:
            while not self._confinement.freeze(self._companions.processes):
                if self.state == "stopping" or self._reactor.seconds() > end:
                    self._confinement.thaw(self._companions.processes)
                    raise Refused("the task cannot be frozen")
                await deferLater(self._reactor, POLL)
        except GroupUnusable as error:
            raise Refused(f"the task cannot be frozen: {error}") from None

    async def _resume(self) -> None:
        if self.state == "running" and self._task is not None:
            return
        self._mustRun("resumed")
        self._confinement.thaw(self._companions.processes)
        self._change("running")

    def _stop(self, deadline: float) -> None:
        if self._goal is not None:
            return
        self._goal = "stop"
        self._change("stopping")
        self._kill = self._reactor.callLater(deadline, self._force)
        if self._task is None:
            self._force()
            return
        self._task.signal("TERM")
        self._confinement.signal(signal.SIGTERM, "task", self._companions.processes)
        self._thaw()

    def _thaw(self) -> None:
        try:
            self._confinement.thaw(self._companions.processes)
        except GroupUnusable as error:
            self._log.warn("the task cannot be thawed: {error}", error=error)

    def _force(self) -> None:
        """The deadline is over."""
        Deferred.fromCoroutine(self._forced()).addErrback(
            lambda failure: self._log.failure("the session cannot be killed", failure)
        )

    async def _forced(self) -> None:
        if self._task is None or self._task.exited.called:
            # It is provisioned, or what it has done is delivered.
            await self._commands.stop()
        else:
            await self._killed()

    async def _cancel(self) -> None:
        before, self._goal = self._goal, "cancel"
        if before is None:
            self._change("stopping")
        await self._forced()

    def _prompt(self, text: str, number: int | None) -> None:
        """Hand the agent more to do, in the way that it was declared to take it."""
        if number is not None and number <= self._prompted:
            return
        if self._task is None or self.state not in ("running", "paused"):
            why: str | None = "the agent does not run"
        else:
            why = self._task.prompt(text)
        if why is None:
            self._prompted = max(self._prompted, number or 0)
            self._reporting.report("prompt", accepted=True)
        else:
            self._reporting.report("prompt", accepted=False, message=why)
            raise Refused(why)

    async def _snapshot(self, label: str) -> SnapshotMade:
        if self.state == "provisioning":
            raise Refused("the session is still being provisioned")
        freeze = self.state == "running"
        if freeze:
            await self._freeze()
        try:
            name = f"snap-{secrets.token_hex(10)}"
            at = self._wallClock()
            mount = await self._workspace.provider.snapshot(name)
        except (CommandFailed, OSError) as error:
            raise Refused(f"there is no snapshot: {error}") from None
        finally:
            if freeze and self.state == "running":
                self._thaw()
        provider = self._workspace.provider.name
        if self.state != "ended":
            # Who asked for it may not hear of it: he does by this.
            self._reporting.report(
                "snapshot", label=label, provider=provider, snapshot=name, mount=mount
            )
        return SnapshotMade(name, provider, at, mount)

    async def _patch(self) -> PatchMade:
        try:
            return await self._workspace.delivery.patch()
        except WorkspaceFailed as error:
            raise Refused(str(error)) from None

    # What has no event

    def _tend(self) -> None:
        self._companions.tend()
        self._reap()
        if self._reporting.complete:
            self.journal.sync()
        if self._task is not None:
            self._task.tend()

    def _reap(self) -> None:
        """Look after the dead that fell to us, being the parent of whoever lost his."""
        known = set(self._companions.processes)
        if self._task is not None and self._task.process is not None:
            known.add(self._task.process)
        reapOrphans(known | set(process.reapProcessHandlers))


__all__ = ["Refused", "Supervisor"]
