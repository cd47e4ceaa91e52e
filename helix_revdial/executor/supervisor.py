# -*- test-case-name: tests.integration.test_executor -*-
"""
One session from its launch to its end.

A L{Supervisor} owns the session's journal while it lives, the task's process and its
companions, and is alone in doing so.  It outlives the executor that started it, and
asks it for nothing: what it is told comes by L{Supervisor.command}, what it has to say
goes into the journal, and C{notify} says that there is more.

  - Everything that happens is one report, in the order in which it happened.  The last
    one is C{exit}; by then nothing of the session runs, and what it delivers is there.
  - A verb is refused where the state forbids it, and does nothing where it is done or
    under way.
  - Output is held back, by not reading it, while the journal is too far ahead of who
    fetches it, or cannot be written.  What is held back is never dropped, but by
    C{cancel}.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial.sessions.executor import HostState, Level, SnapshotMade, WorkspaceFacts

from .command_line import ArgumentTooLong, fillIn, takesPrompt
from .commands import CommandFailed, Commands
from .companions import Companions
from .control_groups import GroupUnusable
from .enter import CANNOT_ENTER
from .journal import Journal
from .layout import Layout
from .output import OutputLines
from .process_table import processTable
from .record import Record
from .workspace import PatchMade, Workspace, WorkspaceFailed

POLL = 0.02
"""Seconds between two looks at whether processes are frozen, or gone."""

FREEZE_SECONDS = 10.0
"""How long it may take until nothing of a task runs."""

KILL_SECONDS = 20.0
"""How long it may take until what was killed is gone."""

DRAIN_SECONDS = 5.0
"""How long what is left of the output may take, once nobody can write any more."""

PARTIAL_SECONDS = 2.0
"""How long a line may be without its end before it is reported."""

TEND_SECONDS = 1.0
"""Between two looks at what has no event of its own."""

MAX_PROMPT = 64 * 1024
"""Bytes of a prompt."""

MAX_PROMPTS_WAITING = 256 * 1024
"""Bytes of prompts that the agent has not read."""

RETRY = 1.0
"""Seconds until the journal is written again, where it could not be."""

_LEVELS: dict[str, Level] = {"stdout": "info", "stderr": "warn", "system": "info"}


class Refused(Exception):
    """What was asked for cannot be; the text says why."""


class _Task(ProcessProtocol):
    """The agent's process."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.lines = {1: OutputLines(), 2: OutputLines()}
        self.exited: Deferred[None] = Deferred()
        self.reason: Failure | None = None
        self.drained: Deferred[None] = Deferred()
        self.unread = 0

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        stream = "stdout" if childFD == 1 else "stderr"
        self._supervisor.output(stream, self.lines[childFD].feed(data))

    def flush(self) -> None:
        """Report what there is of lines that have no end."""
        for descriptor, lines in self.lines.items():
            stream = "stdout" if descriptor == 1 else "stderr"
            self._supervisor.output(stream, lines.flush())

    def processExited(self, reason: Failure) -> None:
        if not self.exited.called:
            # A value and not its failure: it is no exception how a task ends.
            self.reason = reason
            self.exited.callback(None)

    def processEnded(self, reason: Failure) -> None:
        self.flush()
        self.drained.callback(None)


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
        self._notify = notify
        self.state: HostState = "provisioning"
        self.journal = Journal(layout.journal)
        self._confinement = record.confinement(layout, os.getpid())
        self._commands = Commands(reactor, self._confinement, layout, record.tunnelUser)
        self._workspace = Workspace(reactor, record, self._commands)
        self._companions = Companions(
            reactor, record, layout, self._confinement, lambda text: self._say(text, "warn")
        )
        self._task: _Task | None = None
        self._goal: Literal["stop", "cancel"] | None = None
        self._failure: str | None = None
        self._pending: deque[tuple[float, str, dict[str, Any]]] = deque()
        self._retry: IDelayedCall | None = None
        self._kill: IDelayedCall | None = None
        self._held = False
        self._logged = 0
        self._prompts = 0
        self._busy = False
        self._tending = LoopingCall(self._tend)
        self._tending.clock = reactor
        self._partialSince: float | None = None

    # What is reported

    def _report(self, kind: str, **fields: Any) -> None:
        """Write a report, now or as soon as it can be written."""
        self._pending.append((self._wallClock(), kind, fields))
        self._write()

    def _write(self) -> None:
        if self._retry is not None:
            return
        while self._pending:
            at, kind, fields = self._pending[0]
            try:
                self.journal.append(at, kind, **fields)
            except OSError as error:
                self._log.error("the journal cannot be written: {error}", error=error)
                self._retry = self._reactor.callLater(RETRY, self._writeAgain)
                break
            self._pending.popleft()
        self._notify()
        self._hold()

    def _writeAgain(self) -> None:
        self._retry = None
        self._write()

    def _say(self, message: str, level: Level = "info") -> None:
        """A line of the log that is the host's own."""
        self._report("log", level=level, stream="system", message=message)

    def output(self, stream: str, messages: list[str]) -> None:
        """The task has said something."""
        limit = self._spec.limits.logBytes
        for message in messages:
            if self._logged > limit:
                return
            self._logged += len(message.encode())
            if self._logged > limit:
                self._say(f"the output is longer than {limit} bytes: the rest is left out", "warn")
                return
            self._report("log", level=_LEVELS[stream], stream=stream, message=message)

    def _change(self, state: HostState) -> None:
        self.state = state
        self._report("state", state=state)

    def acknowledge(self, seq: int) -> None:
        """Reports up to C{seq} have been fetched, for good."""
        self.journal.acknowledge(seq)
        self._hold()

    def fetched(self, seq: int) -> None:
        """Reports up to C{seq} were sent to whoever asked for them."""
        self.journal.fetched(seq)
        self._hold()

    def _hold(self) -> None:
        """Read the task's output, or leave it where it is."""
        task = self._task
        if task is None or task.transport is None:
            return
        ahead = self.journal.ahead
        most = self._record.terms.outputAhead
        wanted = bool(self._pending) or ahead > (most * 3 // 4 if self._held else most)
        if wanted != self._held and not task.drained.called:
            self._held = wanted
            transport: Any = task.transport
            if wanted:
                transport.pauseProducing()
            else:
                transport.resumeProducing()

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
        self._report("exit", **result)
        while self._pending:
            await deferLater(self._reactor, RETRY)

    async def _live(self) -> dict[str, Any]:
        self._change("provisioning")
        try:
            self._confinement.create()
        except GroupUnusable as error:
            raise WorkspaceFailed(f"the host cannot hold the session: {error}") from None
        await self._workspace.prepare()
        self._report("workspace", workspace=self.facts)
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
        await self._drain(task)
        assert task.reason is not None
        result = self._ending(task.reason)
        if self._goal is None and result.get("exitCode") == 0:
            await self._deliver()
        return result

    @property
    def facts(self) -> WorkspaceFacts:
        """Where the workspace is."""
        path = str(self._layout.workspace)
        return WorkspaceFacts(self._workspace.provider.name, path, os.uname().nodename, path)

    def _start(self) -> _Task:
        layout, spec = self._layout, self._spec
        prompt = layout.temporary / "prompt"
        prompts = layout.home / "prompts"
        self._give(prompt, spec.prompt)
        prompts.mkdir(exist_ok=True)
        if self._record.user is not None:
            os.chown(prompts, self._record.user, self._record.user)
        workspace = str(layout.workspace)
        values = {
            "prompt": spec.prompt,
            "promptFile": str(prompt),
            "workspace": workspace,
            "session": spec.session,
            "version": spec.agent.version,
            "python": self._record.terms.python,
        }
        try:
            command = fillIn(spec.agent.command, values, spec.agent.settings)
        except ArgumentTooLong as error:
            raise WorkspaceFailed(str(error)) from None
        environment = self._confinement.environment(
            str(layout.home),
            str(layout.temporary),
            {
                **self._record.terms.environment,
                **spec.agent.env,
                **self._companions.environment,
                "HELIX_WORKSPACE": workspace,
                "HELIX_PROMPT_FILE": str(prompt),
                "HELIX_PROMPTS": str(prompts),
            },
        )
        argv = self._confinement.argv(command, "task", workspace, newSession=True)
        task = self._task = _Task(self)
        transport = self._reactor.spawnProcess(
            task,
            argv[0],
            argv,
            env=environment,
            path="/",
            childFDs={0: "w", 1: "r", 2: "r"},
        )
        if not takesPrompt(spec.agent.command):
            transport.write(spec.prompt.encode("utf-8", "replace") + b"\n")
        if spec.agent.prompts != "input":
            transport.closeStdin()
        return task

    def _give(self, path: Any, text: str) -> None:
        """Write a file of the session's, whatever is there."""
        path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(path, flags, 0o600), "w", errors="replace") as file:
            file.write(text)
            if self._record.user is not None:
                os.fchown(file.fileno(), self._record.user, self._record.user)

    def _limitRun(self) -> IDelayedCall | None:
        seconds = self._spec.limits.runSeconds
        if seconds is None:
            return None

        def over() -> None:
            self._failure = f"it ran longer than {seconds:g} seconds"
            self._say(self._failure, "error")
            self._stop(self._spec.limits.stopSeconds)

        later: IDelayedCall = self._reactor.callLater(seconds, over)
        return later

    @staticmethod
    def _ending(reason: Failure) -> dict[str, Any]:
        if reason.check(ProcessDone):
            return {"exitCode": 0}
        number = getattr(reason.value, "signal", None)
        if number is not None:
            try:
                return {"signal": signal.Signals(number).name}
            except ValueError:
                return {"signal": f"SIG{number}"}
        code = getattr(reason.value, "exitCode", None)
        if code == CANNOT_ENTER:
            return {"exitCode": code, "error": "the host could not confine the agent"}
        return {"exitCode": code}

    async def _drain(self, task: _Task) -> None:
        """What was written before the end is read to its end."""
        end: float | None = None
        while not task.drained.called:
            if self._goal == "cancel":
                self._abandon(task)
            if self._held:
                # It waits for who fetches the reports, however long.
                end = None
            elif end is None:
                end = self._reactor.seconds() + DRAIN_SECONDS
            elif self._reactor.seconds() > end:
                self._abandon(task)
            await deferLater(self._reactor, POLL)

    @staticmethod
    def _abandon(task: _Task) -> None:
        if task.transport is not None:
            task.transport.loseConnection()

    async def _deliver(self) -> None:
        delivery = self._spec.delivery
        if delivery is None:
            return
        try:
            if delivery.mode == "patch":
                made = await self._workspace.patch()
                self._report("delivery", mode="patch", size=made.size, sha256=made.sha256)
                return
            url = await self._workspace.push(
                self._spec.session, delivery.targetBranch, delivery.mode == "pr"
            )
            self._report("delivery", mode=delivery.mode, url=url)
        except WorkspaceFailed as error:
            self._say(str(error), "error")
            self._failure = str(error)

    async def _killed(self, *, everything: bool = False) -> None:
        """Kill what is left, of the task or of all, and wait until it is gone."""
        end = self._reactor.seconds() + KILL_SECONDS
        part: Literal["task"] | None = None if everything else "task"
        while True:
            # Before it has joined its group it is not found there.
            self._signalTask("KILL")
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

    def _signalTask(self, name: str) -> None:
        """Signal the process that we started, if it lives."""
        if self._task is None or self._task.transport is None or self._exited:
            return
        try:
            self._task.transport.signalProcess(name)
        except ProcessExitedAlready:
            return

    # What it is told

    async def command(
        self, verb: str, *, deadline: float | None = None, text: str | None = None
    ) -> dict[str, Any]:
        """
        Do what was asked for.

        @param deadline: Seconds until it is done by force.
        @param text: A prompt, or a snapshot's label.
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
            if text:
                self._prompt(text)
        elif verb == "token":
            self._companions.setToken(text or "")
        elif verb == "prompt":
            self._prompt(text or "")
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
        self._signalTask("TERM")
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
        if self._task is None:
            await self._commands.stop()
        else:
            await self._killed()

    async def _cancel(self) -> None:
        before, self._goal = self._goal, "cancel"
        if before is None:
            self._change("stopping")
        await self._forced()

    def _prompt(self, text: str) -> None:
        """Hand the agent more to do, in the way that it was declared to take it."""
        encoded = text.encode("utf-8", "replace")
        why = None
        if self._task is None or self.state not in ("running", "paused"):
            why = "the agent does not run"
        elif not text.strip():
            why = "the prompt is empty"
        elif len(encoded) > MAX_PROMPT:
            why = f"the prompt is longer than {MAX_PROMPT} bytes"
        elif self._spec.agent.prompts == "input":
            why = self._promptByInput(encoded)
        elif self._spec.agent.prompts == "files":
            self._prompts += 1
            path = self._layout.home / "prompts" / f"{self._prompts:04}"
            try:
                self._give(path, text)
            except OSError as error:
                why = f"the prompt cannot be written: {error.strerror}"
        else:
            why = "this agent takes no more prompts while it runs"
        if why is None:
            self._report("prompt", accepted=True)
        else:
            self._report("prompt", accepted=False, message=why)
            raise Refused(why)

    def _promptByInput(self, encoded: bytes) -> str | None:
        assert self._task is not None
        transport: Any = self._task.transport
        writer = transport.pipes.get(0) if transport is not None else None
        if writer is None:
            return "the agent has closed its standard input"
        waiting = len(writer.dataBuffer) - writer.offset + writer._tempDataLen
        if waiting > MAX_PROMPTS_WAITING:
            return "the agent has not read the prompts of before"
        transport.write(encoded + b"\n")
        return None

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
            self._report("snapshot", label=label, provider=provider, snapshot=name, mount=mount)
        return SnapshotMade(name, provider, at, mount)

    async def _patch(self) -> PatchMade:
        try:
            return await self._workspace.patch()
        except WorkspaceFailed as error:
            raise Refused(str(error)) from None

    # What has no event

    def _tend(self) -> None:
        self._companions.tend()
        self._reap()
        if not self._pending:
            self.journal.sync()
        task = self._task
        if task is None or task.drained.called:
            return
        if not any(lines.waiting for lines in task.lines.values()):
            self._partialSince = None
        elif self._partialSince is None:
            self._partialSince = self._reactor.seconds()
        elif self._reactor.seconds() - self._partialSince >= PARTIAL_SECONDS:
            task.flush()
            self._partialSince = None

    def _reap(self) -> None:
        """Look after the dead that fell to us, being the parent of whoever lost his."""
        known = set(self._companions.processes)
        if self._task is not None and self._task.transport is not None:
            known.add(self._task.transport.pid)
        own = os.getpid()
        for process in processTable().values():
            if process.dead and process.parent == own and process.pid not in known:
                reaper = _reapers().get(process.pid)
                if reaper is None:
                    try:
                        os.waitpid(process.pid, os.WNOHANG)
                    except ChildProcessError:
                        continue


def _reapers() -> dict[int, Any]:
    """The processes that the reactor looks after itself."""
    from twisted.internet import process

    return process.reapProcessHandlers


__all__ = ["Refused", "Supervisor"]
