"""C{helix serve}, where it cannot."""

from __future__ import annotations

import io
import socket
from contextlib import redirect_stderr, redirect_stdout

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.cli.main import run


class TakenTests(SynchronousTestCase):
    def test_taken(self) -> None:
        """Where it cannot listen there is one line that says so, and no URL."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            for bind, why in (("127.0.0.1", "Address already in use"), ("x" * 70, "no address")):
                with (
                    redirect_stdout(io.StringIO()) as output,
                    redirect_stderr(io.StringIO()) as said,
                ):
                    code = run(["serve", "--mock", "--bind", bind, "--port", port])
                self.assertEqual((code, output.getvalue()), (1, ""))
                self.assertEqual(said.getvalue().count("\n"), 1, said.getvalue())
                self.assertIn(f"port {port}", said.getvalue())
                self.assertIn(why, said.getvalue())
