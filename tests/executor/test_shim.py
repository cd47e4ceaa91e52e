"""What a supervisor says over its socket."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.executor.shim import Answer, Command, _ControlFactory
from helix_revdial.executor.supervisor import Refused, Supervisor


class _Supervisor:
    """Is paused at once."""

    state = "running"
    journal = SimpleNamespace(lastSeq=1)

    async def command(self, verb: str, **_: Any) -> dict[str, Any]:
        if verb != "pause":
            raise Refused("only that")
        self.state = "paused"
        self.journal = SimpleNamespace(lastSeq=2)
        return {}


class AnswerTests(SynchronousTestCase):
    def test_state(self) -> None:
        """With its answer comes the state of then, so that who has it knows of that."""
        factory = _ControlFactory(MemoryReactorClock())
        factory.supervisor = cast(Supervisor, _Supervisor())
        control = factory.buildProtocol(None)
        transport = StringTransport()
        control.makeConnection(transport)
        for number, verb in enumerate(("pause", "dance")):
            transport.clear()
            control.dataReceived(msgspec.json.encode(Command(id=number, verb=verb)) + b"\n")
            answer = msgspec.json.decode(transport.value(), type=Answer)
            self.assertEqual((answer.id, answer.state, answer.seq), (number, "paused", 2))
        self.assertEqual(answer.refused, "only that")
