# -*- test-case-name: tests.sessions.test_lifecycle -*-
"""
The states of a task's session, and what may follow what.

No clock, no database: L{advance} says which states a session goes through when
something happens to it.  L{TRANSITIONS} is the whole table; whatever L{advance}
says, each step of it is one of the table's.

What happens is either asked for (C{provision}, C{pause}, C{resume}, C{stop},
C{cancel}) or reported (C{started}, C{paused}, C{succeeded}, C{failed},
C{broke}).  What is asked for and cannot be is L{Illegal}.  A report is the truth
and is never illegal: where it comes as a surprise (a process ends while it is
being paused) the session goes through the states in between.
"""

from __future__ import annotations

from typing import Final, Literal, Protocol

from automat import NoTransition, TypeMachineBuilder

Status = Literal[
    "queued",
    "provisioning",
    "running",
    "pausing",
    "paused",
    "resuming",
    "stopping",
    "stopped",
    "completed",
    "failed",
    "cancelled",
]

Goal = Literal["stopped", "cancelled"]
"""What a session that is stopping is to become."""

Input = Literal[
    "provision",
    "pause",
    "resume",
    "stop",
    "cancel",
    "started",
    "paused",
    "succeeded",
    "failed",
    "broke",
]
"""
What happens: C{provision}: an executor is to run it.  C{started}: its process runs
(again).  C{succeeded} and C{failed}: its process ended, by its exit code.  C{broke}:
it is the executor that failed.
"""

STATES: Final[tuple[Status, ...]] = (
    "queued",
    "provisioning",
    "running",
    "pausing",
    "paused",
    "resuming",
    "stopping",
    "stopped",
    "completed",
    "failed",
    "cancelled",
)

TERMINAL: Final[frozenset[str]] = frozenset({"stopped", "completed", "failed", "cancelled"})

ACTIVE: Final[tuple[Status, ...]] = tuple(state for state in STATES if state not in TERMINAL)

TRANSITIONS: Final[dict[Status, frozenset[Status]]] = {
    "queued": frozenset({"provisioning", "stopping", "failed"}),
    "provisioning": frozenset({"running", "stopping", "failed"}),
    "running": frozenset({"pausing", "stopping", "completed", "failed"}),
    "pausing": frozenset({"paused", "failed", "stopping"}),
    "paused": frozenset({"resuming", "stopping"}),
    "resuming": frozenset({"running", "failed", "stopping"}),
    "stopping": frozenset({"stopped", "cancelled", "failed"}),
    "stopped": frozenset(),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""What may follow each state."""


class Illegal(Exception):
    """
    What was asked for cannot be in this state.  HTTP answers 409.

    @ivar status: the state.
    """

    def __init__(self, status: str, asked: str) -> None:
        self.status = status
        super().__init__(f"The session is {status}: {_WHY.get(asked, asked)} is not possible now.")


_WHY: Final = {
    "pause": "to pause it",
    "resume": "to resume it",
    "stop": "to stop it",
    "cancel": "to cancel it",
    "prompt": "to prompt it",
}

_Steps = tuple[Status, ...]


class _Inputs(Protocol):
    """What happens; each returns the states that the session goes through."""

    def provision(self) -> _Steps: ...
    def pause(self) -> _Steps: ...
    def resume(self) -> _Steps: ...
    def stop(self) -> _Steps: ...
    def cancel(self) -> _Steps: ...
    def started(self) -> _Steps: ...
    def paused(self) -> _Steps: ...
    def succeeded(self) -> _Steps: ...
    def failed(self) -> _Steps: ...
    def broke(self) -> _Steps: ...


_builder = TypeMachineBuilder(_Inputs, object)
_queued = _builder.state("queued")
_provisioning = _builder.state("provisioning")
_running = _builder.state("running")
_pausing = _builder.state("pausing")
_paused = _builder.state("paused")
_resuming = _builder.state("resuming")
# "stopping", apart by what it is to become.
_stopping = _builder.state("stopping")
_cancelling = _builder.state("cancelling")
_stopped = _builder.state("stopped")
_completed = _builder.state("completed")
_failed = _builder.state("failed")
_cancelled = _builder.state("cancelled")

_queued.upon(_Inputs.provision).to(_provisioning).returns(("provisioning",))
_running.upon(_Inputs.pause).to(_pausing).returns(("pausing",))
_pausing.upon(_Inputs.pause).to(_pausing).returns(())
_paused.upon(_Inputs.resume).to(_resuming).returns(("resuming",))
_resuming.upon(_Inputs.resume).to(_resuming).returns(())

# Nobody has to end what nobody has begun.
_queued.upon(_Inputs.stop).to(_stopped).returns(("stopping", "stopped"))
_queued.upon(_Inputs.cancel).to(_cancelled).returns(("stopping", "cancelled"))
for _state in (_provisioning, _running, _pausing, _paused, _resuming):
    _state.upon(_Inputs.stop).to(_stopping).returns(("stopping",))
    _state.upon(_Inputs.cancel).to(_cancelling).returns(("stopping",))
_stopping.upon(_Inputs.stop).to(_stopping).returns(())
_stopping.upon(_Inputs.cancel).to(_cancelling).returns(())
_cancelling.upon(_Inputs.stop).to(_cancelling).returns(())
_cancelling.upon(_Inputs.cancel).to(_cancelling).returns(())

_provisioning.upon(_Inputs.started).to(_running).returns(("running",))
_resuming.upon(_Inputs.started).to(_running).returns(("running",))
_running.upon(_Inputs.started).to(_running).returns(())
_pausing.upon(_Inputs.paused).to(_paused).returns(("paused",))
_paused.upon(_Inputs.paused).to(_paused).returns(())
# The executor did otherwise than it was asked.
_pausing.upon(_Inputs.started).to(_running).returns(("paused", "resuming", "running"))
_paused.upon(_Inputs.started).to(_running).returns(("resuming", "running"))
_provisioning.upon(_Inputs.paused).to(_paused).returns(("running", "pausing", "paused"))
_running.upon(_Inputs.paused).to(_paused).returns(("pausing", "paused"))
_resuming.upon(_Inputs.paused).to(_resuming).returns(())

_provisioning.upon(_Inputs.succeeded).to(_completed).returns(("running", "completed"))
_running.upon(_Inputs.succeeded).to(_completed).returns(("completed",))
_pausing.upon(_Inputs.succeeded).to(_completed).returns(
    ("paused", "resuming", "running", "completed")
)
_paused.upon(_Inputs.succeeded).to(_completed).returns(("resuming", "running", "completed"))
_resuming.upon(_Inputs.succeeded).to(_completed).returns(("running", "completed"))
for _state in (_provisioning, _running, _pausing, _resuming):
    _state.upon(_Inputs.failed).to(_failed).returns(("failed",))
    _state.upon(_Inputs.broke).to(_failed).returns(("failed",))
_queued.upon(_Inputs.failed).to(_failed).returns(("failed",))
_queued.upon(_Inputs.broke).to(_failed).returns(("failed",))
_paused.upon(_Inputs.failed).to(_failed).returns(("resuming", "failed"))
_paused.upon(_Inputs.broke).to(_failed).returns(("resuming", "failed"))
# However the process of a session that is stopping ends: that was wanted.
_stopping.upon(_Inputs.succeeded).to(_stopped).returns(("stopped",))
_stopping.upon(_Inputs.failed).to(_stopped).returns(("stopped",))
_cancelling.upon(_Inputs.succeeded).to(_cancelled).returns(("cancelled",))
_cancelling.upon(_Inputs.failed).to(_cancelled).returns(("cancelled",))
for _state in (_stopping, _cancelling):
    _state.upon(_Inputs.broke).to(_failed).returns(("failed",))
    _state.upon(_Inputs.started).to(_state).returns(())
    _state.upon(_Inputs.paused).to(_state).returns(())
# What is told of a session that has ended comes too late.
for _state in (_stopped, _completed, _failed, _cancelled):
    _state.upon(_Inputs.started).to(_state).returns(())
    _state.upon(_Inputs.paused).to(_state).returns(())
    _state.upon(_Inputs.succeeded).to(_state).returns(())
    _state.upon(_Inputs.failed).to(_state).returns(())
    _state.upon(_Inputs.broke).to(_state).returns(())

_machine = _builder.build()

_STATES: Final = {
    "queued": _queued,
    "provisioning": _provisioning,
    "running": _running,
    "pausing": _pausing,
    "paused": _paused,
    "resuming": _resuming,
    "stopping": _stopping,
    "stopped": _stopped,
    "completed": _completed,
    "failed": _failed,
    "cancelled": _cancelled,
}


def advance(status: str, goal: str | None, happened: Input) -> tuple[_Steps, Goal | None]:
    """
    What becomes of a session.

    @param status: the state that it is in.
    @param goal: what it is to become, if it is stopping.
    @param happened: what was asked or reported.
    @return: the states that it goes through, in order (none if nothing changes);
        and its goal from then on.
    @raise Illegal: for what was asked and cannot be.
    @raise ValueError: for a status that is none of a task's.
    """
    state = _STATES.get(status)
    if state is None:
        raise ValueError(f"{status!r} is no state of a task")
    if state is _stopping and goal == "cancelled":
        state = _cancelling
    machine = _machine(object(), state)
    try:
        steps: _Steps = getattr(machine, happened)()
    except NoTransition:
        raise Illegal(status, happened) from None
    aims: Goal | None = "cancelled" if goal == "cancelled" else "stopped" if goal else None
    if happened == "cancel":
        aims = "cancelled"
    elif happened == "stop" and aims is None:
        aims = "stopped"
    return steps, aims
