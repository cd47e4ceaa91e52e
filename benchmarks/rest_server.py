"""
The server, with a port for what an executor would report.

    python -m benchmarks.rest_server PORT ARGUMENTS-OF-TWISTD

C{POST /bench/sessions/{id}/lines} there stores lines of a session's log, as the reports
of a host are stored.  All else is the program as it is run in earnest.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from helix_revdial.control_plane import ControlPlane
from helix_revdial.sessions.events import EventLog


class Lines(Resource):
    """The one page."""

    isLeaf = True

    def __init__(self, events: EventLog) -> None:
        super().__init__()
        self._events = events

    def render_POST(self, request: Any) -> int:
        """Store them."""
        session = request.path.split(b"/")[3].decode("ascii")
        lines = json.loads(request.content.read())
        stored = Deferred.fromCoroutine(
            self._events.appendMany(
                session,
                [("log", {"level": "info", "message": line, "stream": "stdout"}) for line in lines],
            )
        )

        def done(result: object) -> None:
            request.write(b"{}")
            request.finish()

        stored.addCallback(done)
        return NOT_DONE_YET


def main() -> None:
    """Run C{twistd} with the port added."""
    port = int(sys.argv[1])
    start = ControlPlane.startService

    def startService(controlPlane: ControlPlane) -> None:
        from twisted.internet import reactor as installed

        reactor: Any = installed
        start(controlPlane)
        site = Site(Lines(controlPlane.services.events))
        site.noisy = False
        reactor.listenTCP(port, site, interface="127.0.0.1")

    controlPlaneClass: Any = ControlPlane
    controlPlaneClass.startService = startService
    from twisted.scripts.twistd import run

    sys.argv[1:] = ["-n", "--pidfile=", "--logfile=-", "helix-revdial-server", *sys.argv[2:]]
    run()


if __name__ == "__main__":
    main()
