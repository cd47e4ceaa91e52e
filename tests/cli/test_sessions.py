"""C{helix sessions}: create, list, delete."""

from __future__ import annotations

import json

from tests.cli.fake import CommandTestCase, Given, problem


class SessionsTests(CommandTestCase):
    """Sessions through the API."""

    def test_create(self) -> None:
        """The id alone is printed, so that a script can take it; JSON is the whole session."""
        session = {"id": "ses_1", "name": "demo", "status": "running"}
        self.api.on("POST", "/api/v1/sessions", Given(session, 201))
        for arguments in (["demo"], ["--name", "demo"], ["-n", "demo"]):
            ran = self.helix("sessions", "create", *arguments)
            self.assertEqual((ran.out, ran.err, ran.code), ("ses_1\n", "", 0))
            self.assertEqual(self.api.asked[-1].body, {"name": "demo"})
        ran = self.helix("sessions", "create", "demo", "--json")
        self.assertEqual(json.loads(ran.out), session)

    def test_createNeedsOneName(self) -> None:
        """No name, or two, is a usage error."""
        for arguments in ([], [" "], ["a", "--name", "b"]):
            self.assertEqual(self.helix("sessions", "create", *arguments).code, 2)
        self.assertEqual(self.api.asked, [])

    def test_fieldErrorsAreOneLine(self) -> None:
        """What the server says about single fields is part of the one line."""
        answer = problem(400, "the request is not valid")
        assert isinstance(answer.body, dict)
        answer.body["errors"] = {"name": ["too long", "odd"]}
        self.api.on("POST", "/api/v1/sessions", answer)
        ran = self.helix("sessions", "create", "x")
        self.assertEqual(ran.err, "helix: 400 - the request is not valid (name: too long, odd)\n")
        answer.body["detail"] = "Not valid: name is too long, odd."
        ran = self.helix("sessions", "create", "x")
        self.assertEqual(ran.err, "helix: 400 - Not valid: name is too long, odd.\n")

    def test_list(self) -> None:
        """A table, or the records as they are."""
        items = [{"id": "ses_1", "name": "de\x1bmo", "status": "running", "owner": "u"}]
        self.api.on("GET", "/api/v1/sessions", Given({"items": items, "total": 1}))
        ran = self.helix("sessions", "list")
        self.assertRegex(ran.out.splitlines()[1], r"^ses_1 +de mo +running +u +-$")
        self.assertEqual(json.loads(self.helix("sessions", "list", "--json").out), items)

    def test_delete(self) -> None:
        """Each is deleted and said so."""
        for name in ("ses_1", "ses_2"):
            self.api.on("DELETE", f"/api/v1/sessions/{name}", Given(b"", 204, None))
        ran = self.helix("sessions", "delete", "ses_1", "ses_2")
        self.assertEqual((ran.out, ran.code), ("Deleted ses_1\nDeleted ses_2\n", 0))
        ran = self.helix("sessions", "delete", "ses_3")
        self.assertEqual((ran.out, ran.code), ("", 1))
