# -*- test-case-name: tests.sessions.test_synthetic -*-
"""
An executor that runs nothing: what a session would report, by a script.

For tests, for trying the API out (C{helix serve --mock}), and for whoever writes a
client.  It has a random number generator with a fixed seed and an injected clock: the same
seed and the same prompt give the same reports at the same times.

A session gets a workspace, runs, logs a number of lines, has a snapshot with a
moment in its middle, delivers what the task asks for, and ends with exit code 0.
Words of the prompt make it otherwise:

  - C{fail}: it ends with exit code 1; C{exit=N}: with that code;
  - C{crash}: the host fails in its middle;
  - C{refuse}: the host does not take it;
  - C{hang}: it does not mind SIGTERM: a stop takes until the deadline;
  - C{forever}: it logs until it is stopped (or has logged L{MAX_STEPS} lines);
  - C{steps=N}: how many lines (at most L{MAX_STEPS}); C{delay=S}: seconds between
    them.

Pause, resume, stop, cancel and prompt do what they say.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.web.iweb import IBodyProducer

from helix_revdial.sessions.executor import (
    ExecutorRefused,
    HostHealth,
    HostSession,
    HostState,
    LaunchSpec,
    Prompt,
    Report,
    SnapshotMade,
    Verb,
    WorkspaceFacts,
)

MAX_STEPS: Final = 10_000

_LINES: Final = (
    ("info", "Reading the sources"),
    ("debug", "Looking at the configuration"),
    ("info", "Editing a file"),
    ("info", "Running the tests"),
    ("warn", "A test was slow"),
    ("info", "Thinking about what is next"),
    ("error", "A test failed; trying otherwise"),
    ("info", "Writing down what was done"),
)

PATCH: Final = b"""\
diff --git a/HELLO b/HELLO
new file mode 100644
--- /dev/null
+++ b/HELLO
@@ -0,0 +1 @@
+hello
"""


class _Run:
    """One session's script."""

    def __init__(self, owner: SyntheticExecutor, spec: LaunchSpec) -> None:
        self.spec = spec
        self.journal: list[Report] = []
        self.state: HostState = "provisioning"
        self.exit: Report | None = None
        self.workspace: WorkspaceFacts | None = None
        self.snapshots: list[str] = []
        self._prompted = 0
        self._owner = owner
        self._waiting: list[Deferred[None]] = []
        self._random = random.Random(f"{owner.seed}\n{spec.prompt}")  # noqa: S311 - no secret
        self._script = self._steps()
        self._timer: IDelayedCall | None = None
        self._rest: float | None = None
        self._next: Callable[[], None] | None = None
        self._again()

    @property
    def ended(self) -> bool:
        """Whether there will be no further report."""
        return self.exit is not None

    # The script: seconds to wait, and what then happens.

    def _steps(self) -> Iterator[tuple[float, Callable[[], None]]]:
        owner, prompt = self._owner, self.spec.prompt
        numbers = {name: float(value) for name, value in _NUMBER.findall(prompt)}
        words = set(re.findall(r"[a-z]+", prompt.lower()))
        step = numbers.get("delay", owner.delay)
        count = int(min(numbers.get("steps", self._random.randint(4, 9)), MAX_STEPS))
        code = int(numbers.get("exit", 1 if "fail" in words else 0))
        yield step, self._begin
        yield step, lambda: self._goTo("running")
        line = 0
        while line < count or "forever" in words:
            level, message = self._random.choice(_LINES)
            number = line
            yield (
                step * self._random.uniform(0.5, 1.5),
                lambda level=level, message=message, number=number: self._log(  # type: ignore[misc]
                    level, f"{message} ({number + 1})"
                ),
            )
            line += 1
            if line == count // 2:
                if "crash" in words:
                    yield step, lambda: self._end(error="the synthetic host failed")
                    return
                yield step, self._moment
            if line >= MAX_STEPS:
                yield step, lambda: self._end(error="the synthetic host has had enough")
                return
        if self.spec.delivery is not None and code == 0:
            yield step, self._deliver
        yield step, lambda: self._end(exitCode=code)

    def _again(self) -> None:
        seconds, then = next(self._script)
        self._next = then
        self._timer = self._owner.clock.callLater(seconds / self._owner.speed, self._due)

    def _due(self) -> None:
        self._timer = None
        then, self._next = self._next, None
        if then is not None:
            then()
        if not self.ended:
            self._again()

    def _halt(self) -> None:
        """Stop the clock of the script, and keep what was left of its time."""
        if self._timer is not None:
            self._rest = self._timer.getTime() - self._owner.clock.seconds()
            self._timer.cancel()
            self._timer = None

    # What happens

    def _report(self, kind: Any, **fields: Any) -> Report:
        report = Report(len(self.journal) + 1, self._owner.wallClock(), kind, **fields)
        self.journal.append(report)
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.called:
                one.callback(None)
        return report

    def _goTo(self, state: HostState) -> None:
        self.state = state
        self._report("state", state=state)

    def _begin(self) -> None:
        preference = self.spec.snapshotPreference or ["copy"]
        self.workspace = WorkspaceFacts(
            snapshotProvider=preference[0], mountPath="/workspace", host="synthetic"
        )
        self._report("workspace", workspace=self.workspace)
        self._log("info", f"Preparing a workspace for {self.spec.agent.type}", "system")
        if self.spec.fromSnapshot is not None:
            source = self.spec.fromSnapshot
            self._log("info", f"It begins with {source.snapshot} of {source.session}", "system")

    def _log(self, level: str, message: str, stream: str = "stdout") -> None:
        self._report("log", level=level, stream=stream, message=message)

    def _moment(self) -> None:
        made = self.snapshot("half-way")
        self._report("moment", label="half-way", note="half-way", snapshot=made.snapshot)

    def snapshot(self, label: str) -> SnapshotMade:
        """Pretend to make a snapshot."""
        name = f"synthetic-{self._random.getrandbits(32):08x}"
        provider = (self.spec.snapshotPreference or ["copy"])[0]
        self.snapshots.append(name)
        if self.ended:
            # Nothing is reported after the end.
            return SnapshotMade(name, provider, self._owner.wallClock())
        made = self._report("snapshot", label=label, provider=provider, snapshot=name)
        return SnapshotMade(name, provider, made.at)

    def _deliver(self) -> None:
        delivery = self.spec.delivery
        assert delivery is not None
        if delivery.mode == "patch":
            digest = hashlib.sha256(PATCH).hexdigest()
            self._report("delivery", mode="patch", size=len(PATCH), sha256=digest)
        else:
            branch = delivery.targetBranch or "main"
            self._report(
                "delivery", mode=delivery.mode, url=f"https://git.example/{delivery.mode}/{branch}"
            )

    def _end(
        self, exitCode: int | None = None, signal: str | None = None, error: str | None = None
    ) -> None:
        if not self.ended:
            self._halt()
            self.state = "ended"
            # Before anybody is told of it.
            self.exit = Report(0, 0, "exit", exitCode=exitCode, signal=signal, error=error)
            self.exit = self._report("exit", exitCode=exitCode, signal=signal, error=error)

    # What is asked

    def control(self, verb: Verb, deadline: float, prompt: Prompt | None) -> None:
        """Do what is asked; reports tell of it."""
        if self.ended:
            raise ExecutorRefused("the session has ended")
        match verb:
            case "pause" if self.state == "running":
                self._halt()
                self._goTo("paused")
            case "resume" if self.state == "paused":
                self._goTo("running")
                rest, self._rest = self._rest or 0, None
                self._timer = self._owner.clock.callLater(max(rest, 0), self._due)
            case "prompt" if prompt is not None and prompt.number > self._prompted:
                self._prompted = prompt.number
                self._report("prompt", accepted=True)
            case "cancel":
                self._end(signal="SIGKILL")
            case "stop" if self.state != "stopping":
                self._halt()
                self._goTo("stopping")
                hangs = "hang" in self.spec.prompt.lower().split()
                self._next = lambda: self._end(signal="SIGKILL" if hangs else "SIGTERM")
                wait = deadline if hangs else self._owner.delay / self._owner.speed
                self._timer = self._owner.clock.callLater(wait, self._due)
            case "pause" | "resume":
                if self.state in ("provisioning", "stopping"):
                    raise ExecutorRefused(f"the session is {self.state}")
            case _:
                pass

    def changed(self) -> Deferred[None]:
        """Fires at the next report."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def close(self) -> None:
        """Nothing more happens."""
        self._halt()
        if not self.ended:
            self._end(signal="SIGKILL")


_NUMBER = re.compile(r"\b(steps|delay|exit)=(\d+(?:\.\d+)?)")


class SyntheticExecutor:
    """
    See the module.

    @ivar seed: what its randomness begins with.
    @ivar speed: how many times faster than by the script.
    @ivar delay: seconds between two reports, about.
    @ivar launched: how often each session was launched.
    """

    kind = "synthetic"

    def __init__(
        self,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        *,
        seed: int = 0,
        speed: float = 1.0,
        delay: float = 1.0,
        slots: int = 1000,
    ) -> None:
        self.clock = clock
        self.wallClock = wallClock
        self.seed = seed
        self.speed = speed
        self.delay = delay
        self.launched: dict[str, int] = {}
        self._slots = slots
        self._runs: dict[str, _Run] = {}

    async def launch(self, session: str, spec: LaunchSpec) -> None:
        """Begin the script."""
        if "refuse" in re.findall(r"[a-z]+", spec.prompt.lower()):
            raise ExecutorRefused("the synthetic host was told to refuse it")
        source = spec.fromSnapshot
        if source is not None and source.snapshot not in self._snapshotsOf(source.session):
            raise ExecutorRefused("the snapshot that it begins with is not on this host any more")
        if session not in self._runs:
            self.launched[session] = self.launched.get(session, 0) + 1
            self._runs[session] = _Run(self, spec)

    async def control(
        self, session: str, verb: Verb, *, deadline: float, prompt: Prompt | None = None
    ) -> None:
        """Do what is asked."""
        self._run(session).control(verb, deadline, prompt)

    async def reports(self, session: str, after: int) -> AsyncIterator[Report]:
        """The script so far, and then as it goes on."""
        run = self._run(session)
        while True:
            while after < len(run.journal):
                after += 1
                yield run.journal[after - 1]
            if run.ended:
                return
            await run.changed()

    async def describe(self, session: str) -> HostSession | None:
        """Where the script is."""
        run = self._runs.get(session)
        if run is None:
            return None
        return HostSession(
            session,
            run.state,
            len(run.journal),
            None if run.exit is None else run.exit.exitCode,
            None if run.exit is None else run.exit.signal,
            None if run.exit is None else run.exit.error,
            run.workspace,
        )

    async def sessions(self) -> list[HostSession]:
        """Where every script is."""
        found = [await self.describe(session) for session in sorted(self._runs)]
        return [each for each in found if each is not None]

    async def acknowledge(self, session: str, seq: int) -> None:
        """All is kept, whatever is stored elsewhere."""

    async def snapshot(self, session: str, label: str) -> SnapshotMade:
        """Pretend to make one."""
        return self._run(session).snapshot(label)

    async def upload(self, name: str, archive: IBodyProducer) -> str:
        """Nothing is unpacked here, so nothing is taken."""
        return name

    async def patch(self, session: str) -> AsyncIterator[bytes]:
        """A patch that adds a file."""
        self._run(session)
        yield PATCH

    async def forget(self, session: str) -> None:
        """Forget the script."""
        run = self._runs.pop(session, None)
        if run is not None:
            run.close()

    async def host(self) -> HostHealth:
        """Always well."""
        return HostHealth(
            os="synthetic",
            arch="none",
            snapshotCapabilities=["copy", "git"],
            agents=[],
            runtimes=["local", "devcontainer", "disabled"],
            slots=self._slots,
            running=sum(not run.ended for run in self._runs.values()),
            host="synthetic",
        )

    def _snapshotsOf(self, session: str) -> list[str]:
        run = self._runs.get(session)
        return [] if run is None else run.snapshots

    def stop(self) -> None:
        """End all scripts."""
        for run in self._runs.values():
            run.close()

    def _run(self, session: str) -> _Run:
        run = self._runs.get(session)
        if run is None:
            raise ExecutorRefused("there is no such session on this host")
        return run
