# -*- test-case-name: tests.executor.test_task,tests.integration.test_executor -*-
"""
A session's task: the agent's process, what it reads and what it says.

Made of what the specification declares: the command line with its places filled in, the
environment, the prompt in a file or on standard input, and what comes later in the way
that the agent takes it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from .command_line import fillIn, takesPrompt
from .confinement import Confinement
from .layout import Layout
from .output import OutputLines
from .record import Record

DRAIN_SECONDS = 5.0
"""How long what is left of the output may take, once nobody can write any more."""

PARTIAL_SECONDS = 2.0
"""How long a line may be without its end before it is reported."""

MAX_PROMPT = 64 * 1024
"""Bytes of a prompt."""

MAX_PROMPTS_WAITING = 256 * 1024
"""Bytes of prompts that the agent has not read."""

_POLL = 0.02

_STREAMS = {1: "stdout", 2: "stderr"}
"""By descriptor."""

_TOLD = 3
"""The descriptor on which it is said that the agent cannot be confined."""


class Task(ProcessProtocol):
    """
    The agent's process.

    @ivar exited: Fires when it has ended; others may still write.
    @ivar drained: Fires when there is no more output.
    @ivar held: Whether its output is left where it is.
    """

    def __init__(
        self,
        reactor: Any,
        record: Record,
        layout: Layout,
        output: Callable[[str, list[str]], None],
    ) -> None:
        """
        @param output: Given the stream, and the lines that it has said.
        """
        self.exited: Deferred[None] = Deferred()
        self.drained: Deferred[None] = Deferred()
        self.held = False
        self._reactor = reactor
        self._record = record
        self._spec = record.spec
        self._layout = layout
        self._output = output
        self._lines = {1: OutputLines(), 2: OutputLines()}
        self._reason: Failure | None = None
        # When the line began that a stream has not ended, by descriptor.
        self._begun: dict[int, float] = {}
        self._prompts = 0
        self._unconfined = False

    def start(self, confinement: Confinement, environment: Mapping[str, str]) -> None:
        """
        Start it.

        @param environment: What the host adds to its environment.
        @raise ArgumentTooLong: The command line cannot be.
        """
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
        command = fillIn(spec.agent.command, values, spec.agent.settings)
        whole = confinement.environment(
            str(layout.home),
            str(layout.temporary),
            {
                **self._record.terms.environment,
                **spec.agent.env,
                **environment,
                "HELIX_WORKSPACE": workspace,
                "HELIX_PROMPT_FILE": str(prompt),
                "HELIX_PROMPTS": str(prompts),
            },
        )
        argv = confinement.argv(command, "task", workspace, newSession=True, told=_TOLD)
        transport = self._reactor.spawnProcess(
            self,
            argv[0],
            argv,
            env=whole,
            path="/",
            childFDs={0: "w", 1: "r", 2: "r", _TOLD: "r"},
        )
        if not takesPrompt(spec.agent.command):
            transport.write(spec.prompt.encode("utf-8", "replace") + b"\n")
        if spec.agent.prompts != "input":
            transport.closeStdin()

    def _give(self, path: Path, text: str) -> None:
        """Write a file of the session's, whatever is there."""
        path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(path, flags, 0o600), "w", errors="replace") as file:
            file.write(text)
            if self._record.user is not None:
                os.fchown(file.fileno(), self._record.user, self._record.user)

    # What it says

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == _TOLD:
            self._unconfined = True
            return
        lines = self._lines[childFD]
        found = lines.feed(data)
        if found or not lines.waiting:
            # What waits now, if anything, is another line.
            self._begun.pop(childFD, None)
        if lines.waiting:
            self._begun.setdefault(childFD, self._reactor.seconds())
        self._output(_STREAMS[childFD], found)

    def _flush(self) -> None:
        """Report what there is of lines that have no end."""
        for descriptor in _STREAMS:
            self._flushStream(descriptor)

    def _flushStream(self, descriptor: int) -> None:
        self._begun.pop(descriptor, None)
        self._output(_STREAMS[descriptor], self._lines[descriptor].flush())

    def tend(self) -> None:
        """To be called from time to time: lines that do not end are reported as they are."""
        if self.drained.called or self.held:
            # The rest of a line may lie where it is held.
            return
        now = self._reactor.seconds()
        for descriptor, begun in list(self._begun.items()):
            if now - begun >= PARTIAL_SECONDS:
                self._flushStream(descriptor)

    def hold(self, wanted: bool) -> None:
        """Leave the output where it is, or take it."""
        if self.transport is None or self.drained.called:
            return
        wasHeld, self.held = self.held, wanted
        transport: Any = self.transport
        if wanted:
            transport.pauseProducing()
        else:
            if wasHeld:
                self._begun = dict.fromkeys(self._begun, self._reactor.seconds())
            transport.resumeProducing()

    async def drain(self, hurry: Callable[[], bool]) -> None:
        """
        Read what was written before the end.

        @param hurry: Whether nobody wants it any more.
        """
        end: float | None = None
        while not self.drained.called:
            if hurry():
                self._abandon()
            if self.held:
                # It waits for who fetches the reports, however long.
                end = None
            elif end is None:
                end = self._reactor.seconds() + DRAIN_SECONDS
            elif self._reactor.seconds() > end:
                self._abandon()
            await deferLater(self._reactor, _POLL)

    def _abandon(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    # What it is told

    def prompt(self, text: str) -> str | None:
        """
        Hand the agent more to do, in the way that it was declared to take it.

        @return: Why that cannot be; C{None} when it is done.
        """
        encoded = text.encode("utf-8", "replace")
        if not text.strip():
            return "the prompt is empty"
        if len(encoded) > MAX_PROMPT:
            return f"the prompt is longer than {MAX_PROMPT} bytes"
        if self._spec.agent.prompts == "input":
            return self._promptByInput(encoded)
        if self._spec.agent.prompts == "files":
            self._prompts += 1
            path = self._layout.home / "prompts" / f"{self._prompts:04}"
            try:
                self._give(path, text)
            except OSError as error:
                return f"the prompt cannot be written: {error.strerror}"
            return None
        return "this agent takes no more prompts while it runs"

    def _promptByInput(self, encoded: bytes) -> str | None:
        transport: Any = self.transport
        writer = transport.pipes.get(0) if transport is not None else None
        if writer is None:
            return "the agent has closed its standard input"
        waiting = len(writer.dataBuffer) - writer.offset + writer._tempDataLen
        if waiting > MAX_PROMPTS_WAITING:
            return "the agent has not read the prompts of before"
        transport.write(encoded + b"\n")
        return None

    def signal(self, name: str) -> None:
        """Signal the process that we started, if it lives."""
        if self.transport is None or self.exited.called:
            return
        try:
            self.transport.signalProcess(name)
        except ProcessExitedAlready:
            return

    # Its end

    @property
    def process(self) -> int | None:
        """Its number, while it is the reactor's to look after."""
        transport: Any = self.transport
        return None if transport is None else transport.pid

    def processExited(self, reason: Failure) -> None:
        if not self.exited.called:
            # A value and not its failure: it is no exception how a task ends.
            self._reason = reason
            self.exited.callback(None)

    def processEnded(self, reason: Failure) -> None:
        self._flush()
        self.drained.callback(None)

    @property
    def ending(self) -> dict[str, Any]:
        """How it has ended, as the last report says it."""
        reason = self._reason
        assert reason is not None
        if reason.check(ProcessDone):
            return {"exitCode": 0}
        number = getattr(reason.value, "signal", None)
        if number is not None:
            try:
                return {"signal": signal.Signals(number).name}
            except ValueError:
                return {"signal": f"SIG{number}"}
        code = getattr(reason.value, "exitCode", None)
        if self._unconfined:
            return {"exitCode": code, "error": "the host could not confine the agent"}
        return {"exitCode": code}
