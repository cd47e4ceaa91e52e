"""TCP forwards of a server that runs: from its settings, through the API, and their end."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from helix_revdial.listening.proxy_header import ProxyHeaderReader

from .fleet import LIMIT, FleetCase, Server, echo, freePort, receive, until

PATH = "/api/v1/admin/forwards"

MUCH = 4 * 2**20
"""Bytes after which a stream is surely joined on its whole way."""


def addressed(connection: socket.socket) -> None:
    """Sends back all that came before the end of it."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    connection.sendall(data)


def flood(connection: socket.socket) -> None:
    """Sends without an end."""
    while True:
        connection.sendall(bytes(65536))


_sunk: queue.Queue[str] = queue.Queue()


def sink(connection: socket.socket) -> None:
    """Reads; tells when much has come, and how it ended."""
    size = 0
    try:
        while data := connection.recv(65536):
            before, size = size, size + len(data)
            if before < MUCH <= size:
                _sunk.put("much")
        _sunk.put("end")
    except ConnectionResetError:
        _sunk.put("break")


def twoPorts() -> int:
    """The first of two free ports in a row."""
    while True:
        port = freePort()
        try:
            socket.create_server(("127.0.0.1", port + 1)).close()
        except (OSError, OverflowError):
            continue
        return port


class TCPForwardTests(FleetCase):
    """Ports of the server that lead to targets."""

    def setUp(self) -> None:
        super().setUp()
        self.port = twoPorts()

    def forwarding(self, *tables: str) -> Server:
        """A server with two ports for forwards, and forwards in its file."""
        head = f'[forwards]\nports = "{self.port}-{self.port + 1}"\n'
        server = self.server(doors=head + "".join(f"[[forwards.forward]]\n{one}" for one in tables))
        self.wolf(server, echo, addressed)
        return server

    def wolf(self, server: Server, *targets: Any) -> Any:
        runner = self.token(server, kind="runner", patterns=["wolf-*"])
        return self.agent(server, "wolf-1", runner, *targets)

    def connect(self, port: int | None = None) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port or self.port), timeout=LIMIT)

    def create(self, server: Server, token: str | None = None, **words: Any) -> tuple[int, Any]:
        wanted = {"listen": f"tcp:{self.port}", "runner": "wolf-1", "target": "echo", **words}
        status, body = server.request("POST", PATH, token or server.admin, wanted)
        return status, json.loads(body)

    def closes(self, port: int | None = None) -> None:
        """A7: nothing listens there, and the port can be had."""
        port = port or self.port
        with self.assertRaises(ConnectionRefusedError):
            self.connect(port)
        socket.create_server(("127.0.0.1", port)).close()

    def test_fromTheSettings(self) -> None:
        """A forward of the file is there from the start, listed, and not to be deleted."""
        server = self.forwarding(
            f'listen = "tcp:{self.port}"\nrunner = "wolf-1"\ntarget = "echo"\n',
            f'listen = "tcp:{self.port + 1}"\nrunner = "wolf-9"\n',
        )
        with self.connect() as stream:
            self.echoes(stream)
        # The server resets what it cannot lead anywhere, perhaps before the connection is
        # even reported as made here.
        with contextlib.suppress(ConnectionResetError), self.connect(self.port + 1) as stream:
            self.assertEqual(receive(stream), b"")
        until(lambda: server.get(PATH)["items"][1]["failed"], "the failure is counted")
        first, second = server.get(PATH)["items"]
        self.assertEqual(
            (first["listen"], first["accepted"], first["failed"], first["createdBy"]),
            (f"tcp:{self.port}:interface=127.0.0.1", 1, 0, None),
        )
        self.assertEqual((second["failed"], second["lastError"]), (1, "no connection"))
        status, _ = server.request("DELETE", f"{PATH}/{first['id']}", server.admin)
        self.assertEqual(status, 409)

    def test_whileItRuns(self) -> None:
        """Made, used with half-close, deleted: the port is free, the connections are cut."""
        server = self.forwarding()
        with self.nothingLeft(server):
            status, made = self.create(server, target="addressed", proxyProtocol=True)
            self.assertEqual(status, 201, made)
            with self.connect() as stream:
                stream.sendall(b"x" * 300_000)
                stream.shutdown(socket.SHUT_WR)
                found = ProxyHeaderReader().feed(receive(stream))
                assert found is not None
                header, rest = found
                self.assertEqual(getattr(header.source, "port", None), stream.getsockname()[1])
                self.assertEqual(rest, b"x" * 300_000)
            with self.connect() as stream:
                stream.sendall(b"held")
                until(lambda: server.get(PATH)["items"][0]["connections"], "it is open")
                status, _ = server.request("DELETE", f"{PATH}/{made['id']}", server.admin)
                self.assertEqual(status, 204)
                self.assertEqual(receive(stream), b"")
            self.closes()
        self.assertEqual(server.get(PATH)["items"], [])
        events = [one["event"] for one in server.get("/api/v1/admin/audit")["items"]]
        self.assertIn("forward-created", events)
        self.assertIn("forward-deleted", events)

    def test_restart(self) -> None:
        """What was made while the server ran is there again after it was killed."""
        server = self.forwarding()
        _, made = self.create(server)
        server.kill()
        self.startServer(server)
        until(lambda: server.get(PATH)["items"], "the forward is there again")
        (found,) = server.get(PATH)["items"]
        self.assertEqual((found["id"], found["listen"]), (made["id"], made["listen"]))
        agent = self.programs[1]
        until(lambda: agent.text.count("connected as") == 2, "the agent is back")
        with self.connect() as stream:
            self.echoes(stream)

    def test_manyAtOnce(self) -> None:
        """More connections at once than dials may be under way: each gets its stream."""
        server = self.forwarding()
        self.create(server)
        with contextlib.ExitStack() as all_:
            streams = []
            for _ in range(250):
                stream = all_.enter_context(socket.socket())
                stream.setblocking(False)
                stream.connect_ex(("127.0.0.1", self.port))
                streams.append(stream)
            for stream in streams:
                self.echoes(stream)
        (found,) = server.get(PATH)["items"]
        self.assertEqual((found["accepted"], found["failed"], found["refused"]), (250, 0, 0))

    def test_killed(self) -> None:
        """Who is killed breaks what flows: neither end takes what it has for all there is."""
        server = self.forwarding()
        self.programs[1].end()
        agent = self.wolf(server, flood, sink)
        self.create(server, target="flood")
        self.create(server, listen=f"tcp:{self.port + 1}", target="sink")
        with self.connect() as download:
            size = 0
            while size < MUCH:
                size += len(download.recv(65536))
            agent.kill()
            with self.assertRaises(ConnectionResetError):
                while download.recv(65536):
                    pass
        said = len(agent.text)
        agent.start()
        agent.says("connected as", after=said)
        with self.connect(self.port + 1) as upload:
            upload.sendall(bytes(MUCH))
            self.assertEqual(_sunk.get(timeout=LIMIT), "much")
            server.kill()
            self.assertEqual(_sunk.get(timeout=LIMIT), "break")

    def test_refusals(self) -> None:
        """What cannot be is refused, with the field; and who may not make one."""
        server = self.forwarding()
        for words, field in (
            ({"listen": "tcp:1"}, "listen"),
            ({"listen": f"tcp:{self.port}:interface=0.0.0.0"}, "allow"),
            ({"listen": f"tcp:{self.port}:interface=0.0.0.0", "allow": ["10.0.0.0/8"]}, "listen"),
            ({"allow": ["nonsense"]}, "allow"),
            ({"runner": "-"}, "runner"),
        ):
            status, problem = self.create(server, **words)
            self.assertEqual((status, list(problem["errors"])), (400, [field]), problem)
        operator = self.token(server, kind="user", user="ann", role="operator")
        self.assertEqual(self.create(server, operator)[0], 403)
        self.assertEqual(server.get(PATH)["items"], [])

    def test_notOnTheList(self) -> None:
        """Who is not on the list gets nothing, and the target hears nothing."""
        server = self.forwarding()
        self.create(server, allow=["192.0.2.0/24"])
        with self.connect() as stream:
            self.assertEqual(receive(stream), b"")
        (found,) = server.get(PATH)["items"]
        self.assertEqual((found["accepted"], found["refused"], found["failed"]), (1, 1, 0))

    def test_theMakersTokenIsRevoked(self) -> None:
        """F3: a forward ends with the token that it was made with."""
        server = self.forwarding()
        admin = self.token(server, kind="user", user="root", role="admin")
        self.assertEqual(self.create(server, admin)[0], 201)
        with self.connect() as stream:
            self.echoes(stream)
            (record,) = [
                one for one in server.get("/api/v1/tokens")["items"] if one.get("user") == "root"
            ]
            server.request("DELETE", f"/api/v1/tokens/{record['id']}", server.admin)
            self.assertEqual(receive(stream), b"")
        until(lambda: not server.get(PATH)["items"], "the forward is gone")
        self.closes()

    def test_theServerStops(self) -> None:
        """Its ports are closed when the server has stopped."""
        server = self.forwarding(
            f'listen = "tcp:{self.port}"\nrunner = "wolf-1"\ntarget = "echo"\n'
        )
        with self.connect() as stream:
            self.echoes(stream)
            server.end()
            self.assertEqual(receive(stream), b"")
        self.closes()

    def test_aPortThatIsTaken(self) -> None:
        """A forward of the file that cannot listen ends the start with a line."""
        with socket.create_server(("127.0.0.1", self.port)):
            config = self.directory / "taken.toml"
            config.write_text(
                f'[[listen]]\nendpoint = "tcp:{freePort()}:interface=127.0.0.1"\n'
                f'[forwards]\nports = "{self.port}"\n'
                f'[[forwards.forward]]\nlisten = "tcp:{self.port}"\nrunner = "wolf-1"\n'
            )
            done = subprocess.run(
                [
                    str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=",
                    "--logfile=-", "helix-revdial-server", f"--config={config}",
                    f"--state-directory={self.directory / 'other'}",
                ],
                capture_output=True, timeout=LIMIT, env={"PATH": os.environ.get("PATH", "")},
            )  # fmt: skip
        self.assertEqual(done.returncode, 1, done.stdout.decode())
        words = f"forward tcp:{self.port}:interface=127.0.0.1: port {self.port} cannot be had"
        self.assertIn(words, done.stdout.decode())

    def test_checked(self) -> None:
        """C{--check-config} finds a forward that is not within the bounds."""
        config = self.directory / "wrong.toml"
        config.write_text(
            '[forwards]\nports = "20000"\n[[forwards.forward]]\nlisten = "tcp:1"\nrunner = "w"\n'
        )
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("twistd")), "helix-revdial-server",
                f"--config={config}", "--check-config",
            ],
            capture_output=True, timeout=LIMIT, env={"PATH": os.environ.get("PATH", "")},
        )  # fmt: skip
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"the port is not within 20000-20000", done.stdout + done.stderr)
