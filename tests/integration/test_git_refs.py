"""Branches and tags of real repositories, by git over TLS and over ssh."""

from __future__ import annotations

import http.server
import ipaddress
import os
import shutil
import ssl
import subprocess
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import trustme
from twisted.internet import reactor as _reactor
from twisted.trial.unittest import TestCase

from helix_revdial.programs import Programs
from helix_revdial.sessions.git_refs import (
    ENVIRONMENT,
    GitAccess,
    GitRefs,
    RemoteFailed,
    RemoteRefused,
)

from ..needs import needsProgram
from ..sessions.names import Names

reactor: Any = _reactor
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    """Serves files, and a redirect to elsewhere."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing."""

    def do_GET(self) -> None:
        if self.path.startswith("/elsewhere.git"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("elsewhere", "x"))
            self.end_headers()
        else:
            super().do_GET()


@needsProgram("git", package="git")
class GitRefsTests(TestCase):
    """Against a web server that holds a repository."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hx-"))
        self.addCleanup(shutil.rmtree, self.directory)
        work = self.directory / "work"
        self.git("init", "--quiet", "--initial-branch", "main", str(work))
        self.git("-C", str(work), "commit", "--quiet", "--allow-empty", "--message", "first")
        self.git("-C", str(work), "branch", "feature/x")
        self.git("-C", str(work), "tag", "--annotate", "--message", "one", "v1")
        self.git("clone", "--quiet", "--bare", str(work), str(self.directory / "x.git"))
        self.git("-C", str(self.directory / "x.git"), "update-server-info")
        self.head = self.git("-C", str(work), "rev-parse", "HEAD").strip()
        authority = trustme.CA()
        self.caFile = self.directory / "ca.pem"
        authority.cert_pem.write_to_path(str(self.caFile))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("code.test").configure_cert(context)
        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(QuietFiles, directory=str(self.directory))
        )
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        thread.start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.programs = Programs(reactor, {"PATH": os.environ["PATH"], **ENVIRONMENT})
        self.addCleanup(self.programs.stop)

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        return subprocess.run(
            ["git", *identity, *arguments], check=True, capture_output=True, text=True, timeout=30
        ).stdout

    def refs(self, access: GitAccess, address: str = "127.0.0.1") -> GitRefs:
        names = Names({"code.test": [address]})
        return GitRefs(self.programs, names, reactor, reactor.seconds, access)

    def url(self, name: str = "x.git") -> str:
        return f"https://code.test:{self.server.server_address[1]}/{name}"

    async def test_https(self) -> None:
        """
        The name is nobody's but the resolver's that checked it, so git used the address
        that it was told.
        """
        refs = self.refs(GitAccess(LOOPBACK, caFile=str(self.caFile)))
        found = await refs.of(self.url())
        self.assertEqual(
            sorted((ref.type, ref.name, ref.sha) for ref in found.refs),
            [
                ("branch", "feature/x", self.head),
                ("branch", "main", self.head),
                ("tag", "v1", self.head),
            ],
        )
        self.assertEqual(found.default, "main")

    async def test_wrong(self) -> None:
        """No such repository, a redirect, a certificate of nobody: one sentence each."""
        refs = self.refs(GitAccess(LOOPBACK, caFile=str(self.caFile)))
        for name in ("none.git", "elsewhere.git"):
            with self.assertRaises(RemoteFailed, msg=name):
                await refs.of(self.url(name))
        with self.assertRaises(RemoteFailed):
            await self.refs(GitAccess(LOOPBACK)).of(self.url())
        with self.assertRaises(RemoteRefused):
            await self.refs(GitAccess(caFile=str(self.caFile))).of(self.url())
