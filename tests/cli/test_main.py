"""The command line itself: help, usage errors, the edge where every error ends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from helix_revdial import __version__
from helix_revdial.cli import main
from helix_revdial.cli.client import Client
from helix_revdial.cli.edge import ReaderGone
from tests.cli.fake import CommandTestCase, Given


class MainTests(CommandTestCase):
    """What needs no server."""

    def test_everyCommandHasHelp(self) -> None:
        """C{--help} works for each command, and lists each family."""
        ran = self.helix("--help")
        self.assertEqual((ran.code, ran.err), (0, ""))
        for family, subcommands in {
            "completion": (),
            "connect": (),
            "forward": (),
            "forwards": ("list", "create", "delete"),
            "db": ("upgrade",),
            "desktop": ("serve",),
            "revdial": ("status",),
            "remote": ("agents", "runtimes", "runners", "repos", "workspaces", "projects", "refs"),
            "session": (
                "list",
                "get",
                "logs",
                "events",
                "attach",
                "pause",
                "resume",
                "stop",
                "cancel",
                "prompt",
                "workspace",
                "patch",
                "open",
            ),
            "sessions": ("create", "list", "delete"),
            "spectask": ("revdial", "screenshot", "list"),
            "task": (),
            "tokens": ("create", "rotate", "list", "revoke", "import"),
            "version": (),
        }.items():
            self.assertIn(f"\n  {family} ", ran.out)
            summary = self.helix(family, "--help")
            self.assertEqual(summary.code, 0)
            for subcommand in subcommands:
                self.assertIn(f"\n  {subcommand} ", summary.out)
                self.assertEqual(self.helix(family, subcommand, "-h").code, 0)
        self.assertEqual(self.helix("st", "--help").code, 0)

    def test_helpImportsNoNetworkLibrary(self) -> None:
        """Help starts fast: neither Twisted nor treq nor rich nor SQLAlchemy is imported."""
        code = (
            "import sys\nfrom helix_revdial.cli.main import run\n"
            "for argv in (['--help'], ['spectask', 'revdial', '--help'], ['version'],\n"
            "             ['task', '-h'], ['session', 'logs', '-h'], ['remote', '-h']):\n"
            "    assert run(argv) == 0\n"
            "slow = {'twisted', 'treq', 'rich', 'sqlalchemy', 'msgspec'} & set(sys.modules)\n"
            "sys.exit(f'imported: {slow}' if slow else 0)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=30
        )
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_version(self) -> None:
        """This program's version, and the server's where it is asked for."""
        self.assertEqual(self.helix("version").out, f"helix {__version__}\n")
        self.assertEqual(self.helix("--version").out, f"helix {__version__}\n")
        self.assertEqual(
            self.helix("version", "--json").out, f'{{\n  "helix": "{__version__}"\n}}\n'
        )
        self.assertEqual(self.api.asked, [])
        self.api.on("GET", "/version", Given({"version": "9.9"}))
        self.assertEqual(
            self.helix("version", "--server").out, f"helix {__version__}\nserver 9.9\n"
        )

    def test_usageErrors(self) -> None:
        """One line that names the command's help, exit code 2."""
        for arguments, text in (
            (["bogus"], "No such command 'bogus'; see: helix --help"),
            (
                ["spectask", "revdial"],
                "Missing argument 'SESSION'; see: helix spectask revdial --help",
            ),
            (["spectask", "revdial", "a/b"], "Invalid value for 'SESSION'"),
            (["spectask", "revdial", ".."], "Invalid value for 'SESSION'"),
            (["spectask", "revdial", "x", "--timeout", "0"], "Invalid value for '--timeout'"),
            (["spectask", "revdial", "x", "--timeout", "nan"], "Invalid value for '--timeout'"),
            (["--token", "hl-secret", "version"], "No such option"),
            (["--token=hl-secret", "version"], "No such option"),
            (["completion", "csh"], "Invalid value for"),
        ):
            ran = self.helix(*arguments)
            self.assertEqual((ran.code, ran.out), (2, ""), arguments)
            self.assertTrue(ran.err.startswith(f"helix: {text}"), ran.err)
            self.assertEqual(ran.err.count("\n"), 1, ran.err)
            self.assertNotIn("hl-secret", ran.err)

    def test_noCommand(self) -> None:
        """Nothing to do: the help, on standard error, exit code 2."""
        for arguments in ([], ["spectask"]):
            ran = self.helix(*arguments)
            self.assertEqual((ran.code, ran.out), (2, ""))
            self.assertIn("Usage: helix", ran.err)

    def test_globalFlags(self) -> None:
        """C{--json} and how C{helix} speaks are said before the command, or behind it."""
        self.api.on("GET", "/api/v1/sessions", Given({"items": [{"id": "ses_1"}]}))
        self.api.on("GET", "/api/v1/sessions/ses_1", Given({"id": "ses_1"}))
        for words in (
            ("--json", "session", "list"),
            ("session", "list", "--json"),
            ("--json", "--quiet", "--no-color", "--non-interactive", "session", "list"),
            ("--json", "sessions", "list"),
        ):
            ran = self.helix(*words)
            self.assertEqual((ran.code, ran.err), (0, ""), words)
            self.assertEqual(json.loads(ran.out), [{"id": "ses_1"}])
        self.assertEqual(self.helix("session", "get").err, "helix: session ses_1\n")
        for words in (("--quiet", "session", "get"), ("session", "get", "-q")):
            self.assertEqual(self.helix(*words).err, "", words)
        self.assertEqual(self.helix("session", "get", "nope", "--quiet").code, 1)
        self.assertIn("nope", self.helix("session", "get", "nope", "--quiet").err)

    def test_unforeseenError(self) -> None:
        """A fault of ours is one line too, and says how to see more."""

        async def broken(client: Client) -> None:
            raise KeyError("x\ny")

        self.patch(Client, "sessions", broken)
        ran = self.helix("sessions", "list")
        self.assertEqual(ran.code, 1)
        self.assertRegex(
            ran.err, r"^helix: unforeseen error \(KeyError: [^\n]*HELIX_DEBUG=1[^\n]*\n$"
        )
        self.environment = {"HELIX_DEBUG": "1"}
        self.assertIn("Traceback", self.helix("sessions", "list").err)

    def test_interruptAndBrokenPipe(self) -> None:
        """Ctrl-C outside the reactor is 130; a reader that went away is 141, both silent."""
        for error, code in ((KeyboardInterrupt(), 130), (ReaderGone(), 141)):

            async def raising(client: Client, error: BaseException = error) -> None:
                raise error

            self.patch(main, "_deaf", lambda: 141)
            self.patch(Client, "sessions", raising)
            ran = self.helix("sessions", "list")
            self.assertEqual((ran.code, ran.out), (code, ""))
            self.assertEqual(ran.err.strip(), "")

    def test_completion(self) -> None:
        """Each shell gets its lines; bash's are understood by bash and complete commands."""
        for shell in ("zsh", "fish"):
            self.assertIn("_HELIX_COMPLETE", self.helix("completion", shell).out)
        script = self.helix("completion", "bash").out
        self.assertIn("_HELIX_COMPLETE=bash_complete", script)
        if shutil.which("bash") is not None:
            path = Path(self.mktemp())
            path.write_text(script)
            done = subprocess.run(["bash", "-n", str(path)], capture_output=True, timeout=10)
            self.assertEqual(done.stderr, b"")

    def test_completes(self) -> None:
        """The shell's question is answered."""
        self.environment = {
            "_HELIX_COMPLETE": "bash_complete",
            "COMP_WORDS": "helix spectask r",
            "COMP_CWORD": "2",
        }
        with self.assertRaises(SystemExit) as end:
            self.helix()
        self.assertEqual(end.exception.code, 0)
