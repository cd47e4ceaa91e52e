"""
Many agents that are connected and do nothing, in one process.

    python -m benchmarks.idle_agents SERVER TOKEN-FILE COUNT CARRIER

Prints a line when all are connected, and stays until it is ended.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, DeferredSemaphore
from twisted.internet.task import deferLater, react

from helix_revdial.revdial.client import Refused, ServerPath, ServerURL
from helix_revdial.revdial.descriptors import raiseDescriptorLimit
from helix_revdial.revdial.features import ALL, RAW
from helix_revdial.revdial.listener import Listener

AT_A_TIME = 25
"""Agents that connect at once."""


async def hold(reactor: Any, server: str, token: str, count: int, carrier: str) -> None:
    """Connect them all."""
    features = ALL if carrier == "raw" else ALL - {RAW}
    some = DeferredSemaphore(AT_A_TIME)

    def one(number: int) -> Deferred[Any]:
        path = ServerPath(
            reactor,
            ServerURL.parse(server),
            lambda: token,
            key=f"idle-{number}",
            features=features,
        )
        return Deferred.fromCoroutine(_connect(reactor, path))

    waits: list[Deferred[Any]] = [some.run(one, number) for number in range(count)]
    for succeeded, result in await DeferredList(waits, consumeErrors=True):
        if not succeeded:
            raise SystemExit(str(result))
    print("connected", flush=True)
    await Deferred()


async def _connect(reactor: Any, path: ServerPath) -> None:
    while True:
        try:
            await path.connectControl(Listener(reactor, path, {}))
            return
        except Refused as refused:
            # Too many at once; the server spreads them.
            if refused.status != 503:
                raise
            await deferLater(reactor, 0.2)


def main() -> None:
    """Read the arguments and run."""
    server, tokenFile, count, carrier = sys.argv[1:5]
    raiseDescriptorLimit()
    token = Path(tokenFile).read_text().strip()
    react(lambda reactor: Deferred.fromCoroutine(hold(reactor, server, token, int(count), carrier)))


if __name__ == "__main__":
    main()
