"""C{helix tokens}: a secret is shown once, and lost never."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from tests.cli.fake import CommandTestCase, Given, problem

SECRET = "hl-made-by-the-server"
RECORD = {
    "id": "tok_1",
    "kind": "runner",
    "name": "hosts",
    "patterns": ["wolf-*"],
    "created": "2026-11-21T07:00:00Z",
}


class TokenTestCase(CommandTestCase):
    """A directory, and an API that makes tokens."""

    def setUp(self) -> None:
        """Both."""
        super().setUp()
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.file = self.directory / "secret"
        self.api.on("POST", "/api/v1/tokens", Given({**RECORD, "token": SECRET}, 201))
        self.api.on("POST", "/api/v1/tokens/tok_1/rotate", Given({**RECORD, "token": SECRET}))


class CreateTests(TokenTestCase):
    """C{create} and C{rotate}."""

    def test_secretAloneOnStandardOutput(self) -> None:
        """Standard output has the secret and nothing else; the notice goes elsewhere."""
        ran = self.helix(
            "tokens", "create", "--name", "hosts", "--pattern", "wolf-*", "--expires-in", "30d"
        )
        self.assertEqual((ran.out, ran.code), (SECRET + "\n", 0))
        self.assertEqual(
            ran.err,
            "Token tok_1 created; its secret is shown this once only: store it now.\n",
        )
        self.assertEqual(
            self.api.asked[0].body,
            {"kind": "runner", "name": "hosts", "patterns": ["wolf-*"], "expiresIn": 2_592_000.0},
        )

    def test_json(self) -> None:
        """C{--json} is the whole record, the secret in it."""
        ran = self.helix("tokens", "create", "--name", "a", "--pattern", "x", "--json")
        self.assertEqual(json.loads(ran.out), {**RECORD, "token": SECRET})

    def test_outputFile(self) -> None:
        """The file is the user's alone, and the secret is nowhere else."""
        ran = self.helix(
            "tokens", "create", "--kind", "session", "--session", "ses_1", "--name", "a",
            "--output-file", str(self.file), "--json",
        )  # fmt: skip
        self.assertEqual(ran.code, 0)
        self.assertEqual(self.file.read_text(), SECRET + "\n")
        self.assertEqual(stat.S_IMODE(self.file.stat().st_mode), 0o600)
        self.assertNotIn(SECRET, ran.out + ran.err)
        self.assertEqual(json.loads(ran.out), RECORD)
        self.assertEqual(os.listdir(self.directory), ["secret"])

    def test_existingFileIsNotReplacedByANewToken(self) -> None:
        """No token is made when its file would take another secret's place."""
        self.file.write_text("other")
        ran = self.helix(
            "tokens", "create", "--name", "a", "--pattern", "x", "--output-file", str(self.file)
        )
        self.assertEqual(ran.code, 2)
        self.assertEqual(ran.err, f"helix: {self.file}: exists already; name another file\n")
        self.assertEqual(self.api.asked, [])
        self.assertEqual(self.file.read_text(), "other")

    def test_noPlaceNoToken(self) -> None:
        """Where the file cannot be written, no token is asked for."""
        missing = str(self.directory / "missing" / "secret")
        ran = self.helix(
            "tokens", "create", "--name", "a", "--pattern", "x", "--output-file", missing
        )
        self.assertEqual((ran.code, self.api.asked), (2, []))

    def test_refusedLeavesNoFile(self) -> None:
        """A refusal leaves nothing behind."""
        self.api.on("POST", "/api/v1/tokens", problem(403, "administrators only"))
        ran = self.helix(
            "tokens", "create", "--name", "a", "--pattern", "x", "--output-file", str(self.file)
        )
        self.assertEqual((ran.code, ran.err), (1, "helix: 403 - administrators only\n"))
        self.assertEqual(os.listdir(self.directory), [])

    def test_rotatedSecretTakesItsPredecessorsPlace(self) -> None:
        """C{rotate --output-file} replaces the file as a whole, with the overlap in seconds."""
        self.file.write_text("the old one")
        ran = self.helix(
            "tokens", "rotate", "tok_1", "--overlap", "1h", "--output-file", str(self.file)
        )
        self.assertEqual((ran.code, ran.out), (0, ""))
        self.assertEqual(self.file.read_text(), SECRET + "\n")
        self.assertEqual(stat.S_IMODE(self.file.stat().st_mode), 0o600)
        self.assertEqual(self.api.asked[0].body, {"overlap": 3600.0})

    def test_noSecretInTheAnswer(self) -> None:
        """A server that sends no secret is an error that names the token."""
        self.api.on("POST", "/api/v1/tokens", Given(RECORD))
        ran = self.helix("tokens", "create", "--name", "a", "--pattern", "x")
        self.assertEqual((ran.code, ran.out), (1, ""))
        self.assertIn("token tok_1 but sent no secret; revoke it", ran.err)

    def test_contradictions(self) -> None:
        """Flags that do not go together are refused before anything is asked."""
        for flags in (
            ["--kind", "runner"],
            ["--kind", "session"],
            ["--kind", "user", "--pattern", "x"],
            ["--kind", "user", "--session", "ses_1"],
            ["--kind", "runner", "--pattern", "x", "--role", "admin"],
            ["--kind", "runner", "--pattern", "x", "--expires-in", "soon"],
            ["--kind", "runner", "--pattern", "x", "--expires-in", "0"],
            ["--kind", "alien"],
        ):
            ran = self.helix("tokens", "create", "--name", "a", *flags)
            self.assertEqual(ran.code, 2, flags)
            self.assertTrue(ran.err.startswith("helix: "), ran.err)
            self.assertEqual(ran.err.count("\n"), 1, ran.err)
        self.assertEqual(self.api.asked, [])


class OtherTests(TokenTestCase):
    """C{list}, C{revoke}, C{import}."""

    def test_list(self) -> None:
        """A table without secrets."""
        self.api.on(
            "GET",
            "/api/v1/tokens",
            Given(
                {
                    "items": [
                        RECORD,
                        {**RECORD, "id": "tok_2", "revoked": "2026-11-21T08:00:00.000Z"},
                        {**RECORD, "id": "tok_3", "expires": "2001-01-01T00:00:00.000Z"},
                        {**RECORD, "id": "tok_4", "replacement": "tok_5"},
                        {**RECORD, "id": "tok_5", "expires": "9999-01-01T00:00:00Z"},
                        {**RECORD, "id": "tok_6", "expires": "soon"},
                    ],
                    "total": 6,
                }
            ),
        )
        ran = self.helix("tokens", "list", "--all")
        self.assertEqual(self.api.asked[0].query, {"perPage": "100", "ended": "true"})
        lines = ran.out.splitlines()
        self.assertRegex(
            lines[1], r"^tok_1 +runner +hosts +- +wolf-\* +2026-11-21 07:00:00Z +- +active$"
        )
        states = [line.split()[-1] for line in lines[2:]]
        self.assertEqual(states, ["revoked", "expired", "replaced", "active", "unknown"])
        self.helix("tokens", "list")
        self.assertEqual(self.api.asked[-1].query, {"perPage": "100"})

    def test_revoke(self) -> None:
        """Each is revoked; the first refusal ends the command."""
        self.api.on("DELETE", "/api/v1/tokens/tok_1", Given(b"", 204, None))
        ran = self.helix("tokens", "revoke", "tok_1", "tok_9")
        self.assertEqual((ran.out, ran.code), ("Revoked tok_1\n", 1))
        self.assertTrue(ran.err.startswith("helix: 404 - "), ran.err)

    def test_importFromFileAndStandardInput(self) -> None:
        """The secret comes from a file or standard input, and is not shown."""
        self.api.on(
            "POST", "/api/v1/tokens/import", Given({**RECORD, "token": "runner-secret"}, 201)
        )
        self.file.write_text("runner-secret\n")
        for source, stdin in ((str(self.file), b""), ("-", b"  runner-secret\n")):
            ran = self.helix(
                "tokens", "import", source, "--name", "hosts", "--pattern", "wolf-*", stdin=stdin
            )
            self.assertEqual((ran.out, ran.err, ran.code), ("Imported tok_1\n", "", 0))
            self.assertEqual(
                self.api.asked[-1].body,
                {
                    "kind": "runner",
                    "name": "hosts",
                    "patterns": ["wolf-*"],
                    "token": "runner-secret",
                },
            )

    def test_importNeverRepeatsASecret(self) -> None:
        """Whoever gives the secret itself, or a bad one, does not find it in the error."""
        for source, stdin in (
            ("hl-secret-on-argv", b""),
            ("-", b""),
            ("-", b"two hl-secret words"),
            ("-", b"hl-secret\nhl-secret"),
            ("-", b"hl-secret\xff"),
            ("-", b"hl-secret" * 5000),
        ):
            ran = self.helix(
                "tokens", "import", source, "--name", "a", "--pattern", "x", stdin=stdin
            )
            self.assertEqual(ran.code, 2, (source, stdin[:20]))
            self.assertNotIn("hl-secret", ran.out + ran.err)
        self.assertEqual(self.api.asked, [])
