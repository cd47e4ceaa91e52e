"""C{helix server reload}."""

from __future__ import annotations

import json

from tests.cli.fake import CommandTestCase, Given, problem

PATH = "/api/v1/admin/reload"


class ReloadTests(CommandTestCase):
    """The settings are read again by the server."""

    def test_reload(self) -> None:
        """What has changed is listed."""
        self.api.on("POST", PATH, Given({"changed": ["tunnel.grace_period", "listen.tls"]}))
        ran = self.helix("server", "reload")
        self.assertEqual(
            ran.out.splitlines(),
            [
                "Reloaded: certificates were read again.",
                "Changed: tunnel.grace_period",
                "Changed: listen.tls",
            ],
        )
        self.assertEqual((ran.code, ran.err), (0, ""))
        self.assertEqual(self.api.paths(), [f"POST {PATH}"])

    def test_json(self) -> None:
        """JSON is the server's own answer."""
        self.api.on("POST", PATH, Given({"changed": []}))
        self.assertEqual(json.loads(self.helix("server", "reload", "--json").out), {"changed": []})

    def test_refused(self) -> None:
        """What the server has against it is said, and the exit code is 1."""
        sentence = "Nothing was changed. server.database cannot change while the server runs."
        self.api.on("POST", PATH, problem(409, sentence, "needs-restart"))
        ran = self.helix("server", "reload")
        self.assertEqual(ran.code, 1)
        self.assertIn(sentence.rstrip("."), ran.err)
