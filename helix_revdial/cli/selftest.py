# -*- test-case-name: tests.cli.test_selftest -*-
"""
Does the tunnel to a session work: the question behind C{helix spectask revdial}.

First the control connection of the runner that the session's data path really
uses, then a screenshot through a data connection, measured from just before
the request to its last byte.  A runner in its grace period is waited for.

L{selfTest} finds out and knows nothing of text; a L{Report} tells it.

Invariants:

  - One deadline bounds everything: waiting for a reconnect, and the exchange.
  - Latency and bytes are measured here, never taken from what the server says.
  - C{error} is L{None} exactly when the test passed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from helix_revdial.cli.edge import FAILED, IN_GRACE, PASSED, CommandError, plain
from helix_revdial.cli.output import Output, duration, size

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from helix_revdial.cli.client import Client, Screenshot, SessionConnection

DEFAULT_TIMEOUT = 60.0
"""Seconds: a grace period (30), a dial (20) and some room."""

POLL = 0.5
"""Seconds between two looks at a runner that is in its grace period."""

NO_CONNECTION = "No RevDial connection for sandbox (not in connman)"
IN_GRACE_PERIOD = "Connection in grace period, waiting for reconnect..."


@dataclass
class Result:
    """
    What was found out.

    @ivar latency: Seconds for the whole screenshot exchange.
    @ivar phases: The phases of the dial, in milliseconds, as the server measured them.
    """

    session: str
    runner: str | None = None
    controlConnected: bool = False
    dataTunnelWorking: bool = False
    latency: float | None = None
    size: int | None = None
    error: str | None = None
    exitCode: int = FAILED
    phases: dict[str, float] = field(default_factory=dict)


class Report(Protocol):
    """Tells a self-test while it runs."""

    def started(self, session: str) -> None:
        """The test begins."""

    def found(self, connection: SessionConnection) -> None:
        """The runner's key is known."""

    def waiting(self, connection: SessionConnection) -> None:
        """The runner is in its grace period, and is waited for."""

    def connected(self, connection: SessionConnection) -> None:
        """The control connection is there; the data path is next."""

    def received(self, screenshot: Screenshot) -> None:
        """A picture came through the tunnel."""

    def finished(self, result: Result) -> None:
        """The test is over."""


async def selfTest(
    client: Client, clock: IReactorTime, session: str, deadline: float, report: Report
) -> Result:
    """
    Test the tunnel to a session's sandbox.

    @param deadline: Seconds for the whole test.

    @return: What was found out; the report has been told everything.

    @raise CommandError: The question could not be asked: the server is
        unreachable, or refuses it.  The report has been told that, too.
    """
    from twisted.internet.task import deferLater

    end = client.monotonic() + deadline

    def left() -> float:
        return end - client.monotonic()

    result = Result(session)
    report.started(session)
    waited = False
    try:
        connection = (await client.connection(session, deadline=left())).value
        result.runner = connection.runner
        report.found(connection)
        while connection.status == "grace" and left() > 0:
            if not waited:
                report.waiting(connection)
                waited = True
            await deferLater(clock, min(POLL, left()))
            if left() > 0:
                connection = (await client.connection(session, deadline=left())).value
        result.runner = connection.runner
    except CommandError as error:
        result.error = str(error)
        if waited:
            result.exitCode = IN_GRACE
        report.finished(result)
        raise
    if connection.status != "connected":
        # Whoever lost a runner and waited for it in vain is told so by the
        # exit code; whoever asks for one that was never there is not.
        result.exitCode = IN_GRACE if waited else FAILED
        result.error = NO_CONNECTION
        if connection.status == "grace":
            result.error = f"Still in grace period after {deadline:g} s"
        report.finished(result)
        return result
    result.controlConnected = True
    report.connected(connection)
    try:
        screenshot = await client.screenshot(session, deadline=left())
    except CommandError as error:
        result.error = str(getattr(error, "short", error))
    else:
        result.dataTunnelWorking = True
        result.latency = screenshot.seconds
        result.size = len(screenshot.data)
        result.phases = screenshot.phases
        result.exitCode = PASSED
        report.received(screenshot)
    report.finished(result)
    return result


def sandboxId(runner: str) -> str:
    """
    The id in a runner key: what stands behind the word for the runner's role.

    C{sandbox-ses_1} and C{desktop-ses_1} are both of C{ses_1};
    C{hydra-sandbox-xyz} is of C{sandbox-xyz}.
    """
    role, _, name = runner.partition("-")
    return name if name and role in ("sandbox", "desktop", "hydra", "wolf", "moonlight") else runner


class TextReport:
    """
    For people.

    @param verbose: Whether to show the connection's details and the phases of
        the dial.
    """

    def __init__(self, output: Output, *, verbose: bool = False) -> None:
        self._output = output
        self._verbose = verbose
        self._found = False

    def started(self, session: str) -> None:
        """See L{Report.started}."""
        self._output.line(f"Testing RevDial connectivity for session {session}...")
        self._output.line()

    def found(self, connection: SessionConnection) -> None:
        """See L{Report.found}."""
        self._found = True
        runner = plain(connection.runner or "-")
        self._output.line("Connection Status:")
        self._output.line(f"  Sandbox ID:     {sandboxId(runner)}")
        self._output.line(f"  RevDial Key:    {runner}")

    def waiting(self, connection: SessionConnection) -> None:
        """See L{Report.waiting}."""
        self._output.line(f"⚠️ {IN_GRACE_PERIOD}")

    def connected(self, connection: SessionConnection) -> None:
        """See L{Report.connected}."""
        self._output.line("  Status:         ✅ Connected")
        detail = connection.detail
        if self._verbose and detail is not None:
            trip = detail.roundTripMs
            for label, text in (
                ("Carrier:", detail.carrier),
                ("Features:", " ".join(detail.features) or "none"),
                ("Address:", detail.remoteAddress),
                ("Since:", detail.connectedSince),
                ("Last heard:", _ago(detail.lastHeardSeconds)),
                ("Round trip:", None if trip is None else f"{trip:.1f}ms"),
                ("Open streams:", detail.openStreams),
                ("Bytes in/out:", f"{size(detail.bytesIn)} / {size(detail.bytesOut)}"),
            ):
                if text is not None:
                    self._output.line(f"  {label:<15} {plain(text)}")
        self._output.line()

    def received(self, screenshot: Screenshot) -> None:
        """See L{Report.received}."""
        self._output.line("Data Path Test (screenshot):")
        self._output.line(f"  Latency:        {round(screenshot.seconds * 1000)}ms")
        self._output.line(f"  Bytes received: {len(screenshot.data):,}")
        self._output.line("  Status:         ✅ Success")
        self._output.line()
        if self._verbose:
            self._output.line("Phases of the dial:")
            for name, milliseconds in screenshot.phases.items():
                self._output.line(f"  {name + ':':<15} {milliseconds:.1f}ms")
            if not screenshot.phases:
                self._output.line("  (the server did not report them)")
            self._output.line()

    def finished(self, result: Result) -> None:
        """See L{Report.finished}."""
        if result.error is not None and result.controlConnected:
            self._output.line("Data Path Test (screenshot):")
            self._output.line("  Status:         ❌ Failed")
            self._output.line()
            self._output.line(f"❌ Data path test failed: {result.error}")
            self._output.line()
        elif result.error is not None and self._found:
            self._output.line("  Status:         ❌ Not connected")
            self._output.line()
            if result.error == NO_CONNECTION:
                self._output.line(f"❌ {NO_CONNECTION}")
            elif result.exitCode == IN_GRACE:
                self._output.line(f"❌ {result.error}")
            self._output.line()
        verdict = "PASSED" if result.exitCode == PASSED else "FAILED"
        self._output.line(f"RevDial connectivity: {verdict}")


def _ago(seconds: float | None) -> str | None:
    return None if seconds is None else f"{duration(seconds)} ago"


class JSONReport:
    """
    For programs: one object on standard output, whatever the outcome.

    @param verbose: Whether the object has C{phases}.
    """

    def __init__(self, output: Output, *, verbose: bool = False) -> None:
        self._output = output
        self._verbose = verbose

    def started(self, session: str) -> None:
        """Nothing to say yet."""

    def found(self, connection: SessionConnection) -> None:
        """Nothing to say yet."""

    def waiting(self, connection: SessionConnection) -> None:
        """Programs get one object only; whoever watches them learns why it takes time."""
        self._output.notice(f"⚠️ {IN_GRACE_PERIOD}")

    def connected(self, connection: SessionConnection) -> None:
        """Nothing to say yet."""

    def received(self, screenshot: Screenshot) -> None:
        """Nothing to say yet."""

    def finished(self, result: Result) -> None:
        """See L{Report.finished}."""
        value: dict[str, Any] = {
            "session_id": result.session,
            "runner": result.runner,
            "control_connected": result.controlConnected,
            "data_tunnel_working": result.dataTunnelWorking,
            "latency_ms": None if result.latency is None else round(result.latency * 1000, 1),
            "bytes": result.size,
            "error": result.error,
        }
        if self._verbose:
            value["phases"] = result.phases
        self._output.json(value)


__all__ = [
    "DEFAULT_TIMEOUT",
    "IN_GRACE_PERIOD",
    "NO_CONNECTION",
    "JSONReport",
    "Report",
    "Result",
    "TextReport",
    "sandboxId",
    "selfTest",
]
