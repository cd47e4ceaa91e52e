"""
The agent, held to one carrier and one relay.

    python -m benchmarks.agent CARRIER PATH FLAG...

CARRIER is C{raw} or C{websocket}: what the agent offers; PATH is C{sockets},
C{copied} for the same without C{splice}, or C{portable}.  The FLAGs are those of C{twistd
helix-revdial-agent}.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from helix_revdial.agent import network, service
from helix_revdial.revdial.client import ServerPath
from helix_revdial.revdial.features import ALL, RAW
from helix_revdial.revdial.sockets import SocketRelays


def main() -> None:
    """Run C{twistd} with what is chosen."""
    carrier, path = sys.argv[1:3]
    if carrier == "websocket":
        # There is no setting for what nobody should want.
        agentNetwork: Any = network
        agentNetwork.ServerPath = partial(ServerPath, features=ALL - {RAW})
    agentService: Any = service
    if path == "portable":
        agentService.SocketRelays = lambda reactor: None
    elif path == "copied":
        agentService.SocketRelays = partial(SocketRelays, splice=False)
    from twisted.scripts.twistd import run

    sys.argv[1:] = ["-n", "--pidfile=", "--logfile=-", "helix-revdial-agent", *sys.argv[3:]]
    run()


if __name__ == "__main__":
    main()
