"""
An end of the tunnel that is kept from doing as well as it can.

    python -m benchmarks.variant END CARRIER PATH FLAG...

END is C{server} or C{agent}; CARRIER is C{raw} or C{websocket}: what an agent offers;
PATH is C{sockets}, C{copied} for the same without C{splice}, or C{portable} for the relay
that works on any transport.  The FLAGs are those of the program.  There are no settings
for what nobody should want, so it is done from outside, here and nowhere else: the
programs that the goals are about run as they are.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from helix_revdial import assembly
from helix_revdial.agent import network
from helix_revdial.agent import service as agentService
from helix_revdial.revdial.client import ServerPath
from helix_revdial.revdial.features import ALL, RAW
from helix_revdial.revdial.sockets import SocketRelays


def main() -> None:
    """Run C{twistd} with what is chosen."""
    end, carrier, path = sys.argv[1:4]
    rooms: tuple[Any, ...] = (network, agentService, assembly)
    if carrier == "websocket":
        rooms[0].ServerPath = partial(ServerPath, features=ALL - {RAW})
    for room in rooms[1:]:
        if path == "portable":
            room.SocketRelays = lambda reactor: None
        elif path == "copied":
            room.SocketRelays = partial(SocketRelays, splice=False)
    from twisted.scripts.twistd import run

    flags = ["-n", "--pidfile=", "--logfile=-", f"helix-revdial-{end}"]
    sys.argv[1:] = [*flags, *sys.argv[4:]]
    run()


if __name__ == "__main__":
    main()
