"""An archive on its whole way: to the server, through the tunnel to a host, into a workspace."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import tarfile
from pathlib import Path
from typing import Any

from .executors import until
from .tunnelled_hosts import TunnelledHostCase

SIZE = 4 * 1024 * 1024


def archive(**files: bytes) -> bytes:
    """A tar archive."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", compresslevel=1) as members:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            members.addfile(member, io.BytesIO(content))
    return made.getvalue()


class UploadTests(TunnelledHostCase):
    """A server, an agent and an executor as processes."""

    @property
    def files(self) -> list[Path]:
        """What the server keeps."""
        directory = self.directory / "server" / "uploads"
        return sorted(directory.iterdir()) if directory.exists() else []

    def promise(self) -> Any:
        return self.api("POST", "/uploads", {})

    def begun(self, promise: Any, content: bytes, length: int) -> socket.socket:
        """An upload of C{length} bytes of which these are sent."""
        fields = promise["headers"] | {
            "Host": "localhost",
            "Authorization": f"Bearer {self.admin}",
            "Content-Length": str(length),
            "Connection": "close",
        }
        lines = [f"PUT {promise['url']} HTTP/1.1", *(f"{n}: {v}" for n, v in fields.items())]
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        return connection

    def put(self, promise: Any, content: bytes) -> tuple[int, bytes]:
        """Upload it all."""
        answer = b""
        with self.begun(promise, content, len(content)) as connection:
            while piece := connection.recv(65536):
                answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    def test_wholeWay(self) -> None:
        """
        A large archive is what the task's workspace begins with; the patch is against it,
        and afterwards nothing of the archive is left on the server.
        """
        self.needPython()
        content = archive(**{"large.bin": os.urandom(SIZE), "old.txt": b"as it was\n"})
        promise = self.promise()
        status, body = self.put(promise, content)
        self.assertEqual(status, 200, body)
        told = json.loads(body)
        self.assertEqual(told["sha256"], hashlib.sha256(content).hexdigest())
        self.assertEqual(len(self.files), 1)
        session = self.task(
            "append old.txt and more",
            repo={"mode": "upload", "uploadToken": promise["uploadToken"]},
            delivery={"mode": "patch"},
        )
        self.reaches(session, "completed")
        _, patch = self.request("GET", f"/api/v1/sessions/{session}/patch")
        self.assertIn(b" as it was\n+and more\n", patch)
        self.assertNotIn(b"large.bin", patch)
        until(lambda: self.files == [], "the archive is gone")
        for log in (self.serverLog, self.log, self.directory / "agent.log"):
            self.assertNotIn(promise["uploadToken"], log.read_text())

    def test_brokenOffAndKilled(self) -> None:
        """What breaks off leaves nothing; what a killed server leaves goes at the next start."""
        promise = self.promise()
        content = archive(a=os.urandom(100_000))
        with self.begun(promise, content[:50_000], len(content)):
            until(lambda: self.files, "it is being received")
        until(lambda: self.files == [], "what broke off is gone")
        with self.begun(promise, content[:50_000], len(content)):
            until(lambda: self.files, "it is being received again")
            self.server.send_signal(signal.SIGKILL)
            self.server.wait()
        self.assertNotEqual(self.files, [])
        self.server = self.startServer()
        until(lambda: self.files == [], "what the server before left is gone")
        status, body = self.put(promise, content)
        self.assertEqual(status, 200, body)
