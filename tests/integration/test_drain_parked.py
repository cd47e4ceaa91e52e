"""
The server and the agent as processes that are told to stop while data connections are
parked, and while a connection to a service waits for another request.

Both may take minutes to drain: who ends soon had nothing to wait for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import test_drain
from .forked import Running
from .test_server import DEADLINE

MINUTES = "300"


class Desktop(test_drain.Desktop):
    """A desktop service that keeps connections, and can be told to hold its answers."""

    protocol_version = "HTTP/1.1"
    goOn = threading.Event()

    def do_GET(self) -> None:
        if not self.path.endswith("delay=0.0"):
            self.goOn.wait(2 * DEADLINE)
        super().do_GET()


class ParkedCase(test_drain.DrainCase):
    """An agent that has been dialled, and has connections parked."""

    def settings(self) -> list[str]:
        return ["--set", f"drain.timeout={MINUTES}"]

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(**more, HELIX_AGENT_DRAIN=MINUTES)

    def setUp(self) -> None:
        super().setUp()
        self.desktop.RequestHandlerClass = Desktop
        Desktop.goOn.clear()

    def warm(self) -> None:
        """Have connections parked, and one to the desktop that waits for another request."""
        self.until(lambda: self.ask()[0] == 200, "a picture")
        self.until(lambda: self.parked() >= 2, "connections parked")
        self.streams(1)

    def hold(self) -> Callable[[], Any]:
        """Ask for a picture that does not come before it may."""
        # What waits is given out at once; so another is dialled for.
        others = [self.inThread(lambda: self.ask(0.01)) for _ in range(2)]
        self.streams(2)
        self.assertTrue(self.lastWasPooled())

        def pictures() -> Any:
            Desktop.goOn.set()
            return [each() for each in others]

        return pictures

    def picture(self) -> None:
        status, _, picture = self.ask()
        self.assertEqual((status, picture), (200, test_drain.PICTURE), self.said())

    def tables(self) -> Any:
        return self.call("GET", "/api/v1/admin/ledger")["tables"]

    def parked(self) -> int:
        count: int = self.tables()["parked"]
        return count

    def lastWasPooled(self) -> bool:
        """Whether the stream that began last was one over a parked connection."""
        items = self.call("GET", "/api/v1/admin/streams")["items"]
        pooled: bool = items[0]["pooled"]
        return pooled

    def sockets(self, process: Running) -> int:
        """TCP connections of a process that are open."""
        mine = {
            os.readlink(f"/proc/{process.pid}/fd/{number}")
            for number in os.listdir(f"/proc/{process.pid}/fd")
        }
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return sum(
            f"socket:[{fields[9]}]" in mine and fields[3] == "01"
            for fields in (line.split() for line in lines)
        )

    def quietLogs(self) -> None:
        said = self.said()
        for word in ("Traceback", "Unhandled"):
            self.assertNotIn(word, said)


class ServerTests(ParkedCase):
    """SIGTERM at the server."""

    def test_stops(self) -> None:
        """
        G1, G2: what is parked and what waits is let go of at once; streams over connections
        that were parked end whole; and where there is nothing else, the server ends.
        """
        agent = self.startAgent()
        self.warm()
        asked = self.hold()
        self.server.terminate()
        # Both streams' own connections, and those to the desktop.
        self.until(lambda: self.sockets(agent) == 4, "no connections but the streams'")
        self.assertIsNone(self.server.poll())
        for status, _, picture in asked():
            self.assertEqual((status, picture), (200, test_drain.PICTURE))
        self.ends(self.server, DEADLINE)
        self.server = self.startServer()
        self.warm()
        self.server.terminate()
        self.ends(self.server, DEADLINE)
        self.until(lambda: self.sockets(agent) == 0, "no connection of the agent")
        self.quietLogs()


class AgentTests(ParkedCase):
    """SIGTERM at the agent."""

    def test_stops(self) -> None:
        """
        G1, G2: the server lets go of what is parked and what waits at once; streams over
        connections that were parked end whole; where there is nothing else, the agent ends.
        """
        agent = self.startAgent()
        self.warm()
        asked = self.hold()
        agent.terminate()
        self.until(lambda: not self.parked(), "none parked")
        self.assertIsNone(agent.poll())
        for status, _, picture in asked():
            self.assertEqual((status, picture), (200, test_drain.PICTURE))
        self.ends(agent, DEADLINE)
        agent = self.startAgent()
        self.warm()
        agent.terminate()
        self.ends(agent, DEADLINE)
        self.quietLogs()


class KeptTests(ParkedCase):
    """The control connection outlives the server; what is parked does not."""

    keepsPort = True

    def settings(self) -> list[str]:
        return [*super().settings(), "--set", "drain.keep_connections=100"]

    def test_restart(self) -> None:
        """
        A dial to the next server is answered, and connections are parked there, for its
        generation; the agent's control connection is that of before.
        """
        agent = self.startAgent()
        self.warm()
        said = len(self.agents.said)
        self.server.terminate()
        self.ends(self.server, DEADLINE)
        self.until(lambda: self.sockets(agent) == 1, "no connection but the kept one")
        self.server = self.startServer()
        self.warm()
        asked = self.hold()
        for status, _, picture in asked():
            self.assertEqual((status, picture), (200, test_drain.PICTURE))
        self.assertEqual(self.agents.said[said:], [])
        self.quietLogs()


del ParkedCase
