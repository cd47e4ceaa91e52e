"""C{helix forwards}: list, create, delete."""

from __future__ import annotations

import json

from tests.cli.fake import CommandTestCase, Given

PATH = "/api/v1/admin/forwards"

FORWARD = {
    "id": "fwd_1",
    "listen": "tcp:20001:interface=127.0.0.1",
    "runner": "wolf-1",
    "target": "db",
    "allow": ["10.0.0.0/8"],
    "proxyProtocol": True,
    "createdBy": "tok_1",
    "connections": 1,
    "accepted": 9,
    "refused": 2,
    "failed": 3,
    "lastError": "no connection",
}


class ForwardsTests(CommandTestCase):
    """Forwards through the API."""

    def test_create(self) -> None:
        """What is wanted is sent; the id and the place are printed."""
        self.api.on("POST", PATH, Given(FORWARD, 201))
        ran = self.helix(
            "forwards", "create", "0", "wolf-1", "db", "--allow", "10.0.0.0/8", "--proxy-protocol"
        )
        self.assertEqual(
            (ran.out, ran.err, ran.code), ("fwd_1 tcp:20001:interface=127.0.0.1\n", "", 0)
        )
        self.assertEqual(
            self.api.asked[-1].body,
            {
                "listen": "tcp:0",
                "runner": "wolf-1",
                "target": "db",
                "allow": ["10.0.0.0/8"],
                "proxyProtocol": True,
            },
        )
        ran = self.helix("forwards", "create", "tcp:20001", "wolf-1", "--json")
        self.assertEqual(json.loads(ran.out), FORWARD)
        body = self.api.asked[-1].body
        assert isinstance(body, dict)
        self.assertNotIn("target", body)

    def test_list(self) -> None:
        """A table, or the records as they are."""
        self.api.on("GET", PATH, Given({"items": [FORWARD]}))
        ran = self.helix("forwards", "list")
        self.assertRegex(ran.out.splitlines()[1], r"^fwd_1 .* 10\.0\.0\.0/8 +v2 +1 +9 +2 +3 +no c")
        self.assertEqual(json.loads(self.helix("forwards", "list", "--json").out), [FORWARD])

    def test_delete(self) -> None:
        """Each is deleted and said so."""
        self.api.on("DELETE", f"{PATH}/fwd_1", Given(b"", 204, None))
        ran = self.helix("forwards", "delete", "fwd_1")
        self.assertEqual((ran.out, ran.code), ("Deleted fwd_1\n", 0))
        self.assertEqual(self.helix("forwards", "delete", "fwd_2").code, 1)
