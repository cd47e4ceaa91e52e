"""
The end of a test as the resource ledger sees it: what was opened is closed, what was
asked for is answered, and no table has anything left.

L{LedgerCheck} is for ends that live in the test's own process, L{assertIdle} for a
server in a process of its own.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from twisted.internet import reactor as _reactor

from helix_revdial.http.factory import HTTPFactory
from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.listener import Listener
from helix_revdial.telemetry.ledger import descriptors, reactorDescriptors, timers
from tests.integration.tunnels import until

reactor: Any = _reactor


class LedgerCheck:
    """
    Looks at this process when it is made, and again when the test is at its end.
    """

    def __init__(self) -> None:
        self._descriptors = self._held()
        self._timers = Counter(timers(reactor.getDelayedCalls()))

    @staticmethod
    def _held() -> Counter[str]:
        held = Counter(descriptors(reactorDescriptors(reactor)))
        for kind in ("reactor", "reserve"):
            # The reactor's own: made when first needed, and kept.
            del held[kind]
        return held

    async def assertEmpty(
        self, *owners: Connections | HTTPFactory | Listener, limit: float = 5.0
    ) -> None:
        """
        Wait until nothing is held that was not held before.

        @param owners: Whose tables have to be empty.
        @param limit: Seconds that the last connections have to go.
        """
        left: dict[str, Any] = {}

        def empty() -> bool:
            left.clear()
            for kind, count in (self._held() - self._descriptors).items():
                left[f"descriptors: {kind}"] = count
            for name, count in (Counter(timers(reactor.getDelayedCalls())) - self._timers).items():
                # The test's own waiting.
                if "deferLater" not in name and "trial" not in name and "test" not in name:
                    left[f"timers: {name}"] = count
            for owner in owners:
                left.update(
                    {f"table: {name}": size for name, size in sizesOf(owner).items() if size}
                )
            return not left

        try:
            await until(empty, "the ledger is empty", limit)
        except AssertionError:
            raise AssertionError(f"left over: {left}") from None


def sizesOf(owner: Connections | HTTPFactory | Listener) -> dict[str, int]:
    """The sizes of what an owner keeps."""
    if isinstance(owner, Listener):
        return {"dial-backs": owner.dialsUnderWay, "agent's streams": owner.openStreams}
    return owner.sizes()


def busyIn(ledger: dict[str, Any]) -> dict[str, int]:
    """
    What a server is doing, whoever is connected to it and has connections parked.

    @param ledger: What C{GET /api/v1/admin/ledger} says.
    """
    counts = {
        "streams": ledger["streams"],
        "pending dials": sum(ledger["pending_dials"].values()),
        "buffered bytes": sum(ledger["buffers"].values()),
        "data connections": ledger["descriptors"].get("data", 0) - ledger["tables"]["parked"],
        "dials": ledger["tables"]["dials"],
        "claims": ledger["tables"]["claims"],
        "turned away": ledger["tables"]["turned_away"],
    }
    return {name: count for name, count in counts.items() if count}


__all__ = ["LedgerCheck", "busyIn", "sizesOf"]
