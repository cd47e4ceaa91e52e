# -*- test-case-name: tests.cli.test_task,tests.integration.test_task_cli -*-
"""
Following a session to its end, and what an interrupt means meanwhile.

The session belongs to the server: an interrupt ends the following and leaves the session
running, and says how to come back.  With C{cancelOnInterrupt} the first interrupt
cancels the session, whose end is then waited for; the second one leaves it to itself.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from helix_revdial.cli.edge import FAILED, CommandError
from helix_revdial.cli.event_reader import PATIENCE, TERMINAL, EventReader
from helix_revdial.cli.exit_codes import ENDS

if TYPE_CHECKING:
    from helix_revdial.cli.output import Output
    from helix_revdial.cli.session_view import View
    from helix_revdial.cli.task_api import TaskAPI

TICK = 1.0
"""Seconds between two looks at the clock."""


async def follow(
    reactor: Any,
    api: TaskAPI,
    output: Output,
    session: str,
    view: View,
    *,
    after: int = 0,
    patience: float = PATIENCE,
    tolerant: bool = False,
    cancelOnInterrupt: bool = False,
) -> int:
    """
    Show a session's events until it has ended.

    @param after: The number of the last event that is not wanted.
    @param patience: Seconds for which a server that is away is waited for; 0: any time.
    @param tolerant: Whether it may be away at first, too.

    @return: The exit code for how it ended: L{ENDS}.
    @raise CommandError: It cannot be followed any further.
    """
    from twisted.internet.defer import CancelledError, Deferred
    from twisted.internet.task import LoopingCall

    reader = EventReader(
        api.client,
        session,
        after=after,
        patience=patience,
        tolerant=tolerant,
        onTrouble=view.trouble,
        onBack=view.back,
    )
    over = False
    ticking = LoopingCall(view.tick)
    ticking.clock = reactor
    try:
        try:
            try:
                record = await api.session(session)
            except CommandError:
                if not tolerant:
                    raise
                record = {"id": session}
            view.begin(record)
            ticking.start(TICK, now=False).addErrback(lambda failure: None)
            await _show(reader, view)
        except CancelledError:
            if not cancelOnInterrupt or reader.ended is not None:
                raise
            output.notice(f"helix: cancelling {session}; Ctrl-C again does not wait for its end")
            ending = Deferred.fromCoroutine(_cancel(api, session, reader, view))
            with interrupting(reactor, ending.cancel):
                await ending
        over = True
    except CancelledError:
        view.end()
        if reader.ended is None:
            output.notice(
                f"helix: {session} goes on without you; helix session attach {session} comes back "
                f"to it, helix session stop {session} ends it"
            )
        raise
    finally:
        if ticking.running:
            ticking.stop()
        view.end()
    assert over
    ended = reader.ended
    if ended is None:
        ended = str((await api.session(session)).get("status"))
    return ENDS.get(ended, FAILED)


async def followAll(following: Sequence[Callable[[], Any]]) -> int:
    """
    Follow several sessions at once.

    @param following: Each makes the coroutine that follows one.
    @return: The worst of their exit codes: the first that is not 0.
    @raise CommandError: The first of their errors, after all have ended.
    """
    from twisted.internet.defer import Deferred, DeferredList
    from twisted.python.failure import Failure

    running = [Deferred.fromCoroutine(one()) for one in following]
    found = await DeferredList(running, consumeErrors=True)
    for done, result in found:
        if not done:
            assert isinstance(result, Failure)
            result.raiseException()
    codes = [int(result) for _, result in found]
    return next((code for code in codes if code), 0)


async def waitFor(
    api: TaskAPI, session: str, states: Sequence[str], *, patience: float = PATIENCE
) -> str:
    """
    Wait until a session is in one of these states, or has ended.

    @return: The state.
    """
    record = await api.session(session)
    status = str(record.get("status"))
    last = record.get("lastSeq")
    reader = EventReader(
        api.client, session, after=last if isinstance(last, int) else 0, patience=patience
    )
    if status in states or status in TERMINAL:
        return status
    async with aclosing(reader.events()) as events:
        async for event in events:
            if event.status is not None:
                status = event.status
                if status in states or status in TERMINAL:
                    return status
    return str((await api.session(session)).get("status"))


@contextmanager
def interrupting(reactor: Any, call: Callable[[], object]) -> Iterator[None]:
    """
    What the next Ctrl-C does, where the first has already told the reactor to end.

    @param call: Called on the reactor's thread.
    """

    def interrupted(number: int, frame: FrameType | None) -> None:
        reactor.callFromThread(call)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


async def _show(reader: EventReader, view: View) -> None:
    async with aclosing(reader.events()) as events:
        async for event in events:
            view.event(event)


async def _cancel(api: TaskAPI, session: str, reader: EventReader, view: View) -> None:
    await api.cancel(session)
    await _show(reader, view)


__all__ = ["follow", "followAll", "interrupting", "waitFor"]
