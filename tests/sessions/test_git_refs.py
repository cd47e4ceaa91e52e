"""Tests for L{helix_revdial.sessions.git_refs}."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.programs import Finished, IRunning, OutputTooLarge, ProgramTimedOut, TooBusy
from helix_revdial.sessions.git_refs import (
    FRESH,
    MAX_KNOWN,
    MAX_REFS,
    MAX_URL,
    MAX_WAITERS,
    GitAccess,
    GitRefs,
    Ref,
    RemoteFailed,
    RemoteRefused,
    command,
    parseRefs,
    parseRemote,
)

from .names import Names

A, B, C = "a" * 40, "b" * 40, "c" * 40
HERE = ipaddress.ip_address("93.184.216.34")
OUTPUT = (
    f"ref: refs/heads/main\tHEAD\n{A}\tHEAD\n{A}\trefs/heads/main\n{B}\trefs/heads/feature/x\n"
    f"{B}\trefs/tags/v1\n{C}\trefs/tags/v2\n{A}\trefs/tags/v2^{{}}\n"
)


class ParseRemoteTests(SynchronousTestCase):
    """What is taken for a repository's URL."""

    def test_taken(self) -> None:
        """https, ssh, and the short form of ssh."""
        for text, expected in (
            ("https://a.example/x.git", ("https", "a.example", 443)),
            ("https://a.example:8443/x.git", ("https", "a.example", 8443)),
            ("https://[2606:2800::1]/x", ("https", "2606:2800::1", 443)),
            ("ssh://git@a.example:2222/x.git", ("ssh", "a.example", 2222)),
            ("ssh://a.example/~me/x.git", ("ssh", "a.example", 22)),
            ("git@github.com:acme/x.git", ("ssh", "github.com", 22)),
            ("github.com:acme/x.git", ("ssh", "github.com", 22)),
        ):
            found = parseRemote(text)
            self.assertEqual((found.scheme, found.host, found.port), expected, text)
            self.assertEqual(found.url, text)

    def test_refused(self) -> None:
        """Other schemes, options, secrets, and what only looks like a URL."""
        for text in (
            "",
            "x" * (MAX_URL + 1),
            "http://a.example/x",
            "git://a.example/x",
            "file:///etc",
            "/etc",
            "ext::sh -c x",
            "ext::sh",
            "--upload-pack=touch",
            "-oProxyCommand=x:y",
            "ssh://-oProxyCommand=x/y",
            "-x@a.example:y",
            "https://user:secret@a.example/x",
            "https://secret@a.example/x",
            "ssh://git:secret@a.example/x",
            "https://a.example/x?token=secret",
            "https://a.example/x#y",
            "https://a.example",
            "https://a.example/",
            "https://a.example:0/x",
            "https://a.example:99999/x",
            "https:///x",
            "https://a.example/x\n",
            "https://a.exa mple/x",
            "git@a.example:/x y",
        ):
            with self.assertRaises(RemoteRefused, msg=text) as caught:
                parseRemote(text)
            self.assertNotIn("secret", str(caught.exception))


class ParseRefsTests(SynchronousTestCase):
    """What git answers."""

    def test_refs(self) -> None:
        """Branches and tags, an annotated tag with its commit, and the default branch."""
        refs, default = parseRefs(OUTPUT)
        self.assertEqual(
            refs,
            (
                Ref("main", "branch", A),
                Ref("feature/x", "branch", B),
                Ref("v1", "tag", B),
                Ref("v2", "tag", A),
            ),
        )
        self.assertEqual(default, "main")

    def test_empty(self) -> None:
        """A repository without commits."""
        self.assertEqual(parseRefs(""), ((), None))

    def test_limit(self) -> None:
        """No more than L{MAX_REFS}."""
        output = "".join(f"{A}\trefs/heads/b{number}\n" for number in range(MAX_REFS + 5))
        self.assertEqual(len(parseRefs(output)[0]), MAX_REFS)


class CommandTests(SynchronousTestCase):
    """How git is asked."""

    def test_https(self) -> None:
        """The address that was checked is the one that is used; redirects are not followed."""
        asked = command(parseRemote("https://a.example:8443/x"), HERE, GitAccess(caFile="/ca"))
        self.assertIn(f"http.curloptResolve=a.example:8443:{HERE}", asked)
        self.assertIn("http.followRedirects=false", asked)
        self.assertIn("http.sslCAInfo=/ca", asked)
        closed = list(asked).index("--")
        self.assertEqual(asked[closed + 1], "https://a.example:8443/x")

    def test_ssh(self) -> None:
        """The same for ssh, with a key of the operator's and no agent's."""
        access = GitAccess(sshKey="/key file", knownHosts="/hosts")
        asked = command(parseRemote("git@a.example:x"), HERE, access)
        (ssh,) = (one for one in asked if one.startswith("core.sshCommand="))
        for option in (
            f"-oHostName={HERE}",
            "-oHostKeyAlias=a.example",
            "'-oIdentityFile=/key file'",
            "-oStrictHostKeyChecking=yes",
            "-oBatchMode=yes",
            "-F none",
        ):
            self.assertIn(option, ssh)


class FakeGit:
    """Runs nothing; answers when a test says so."""

    def __init__(self) -> None:
        self.commands: list[Sequence[str]] = []
        self.answers: list[Deferred[Finished]] = []

    def find(self, name: str) -> str | None:
        return name

    def start(
        self, arguments: Sequence[str], *, standardInput: bytes = b"", outputLimit: int = 0
    ) -> IRunning:
        raise AssertionError("git is run to its end")

    def run(
        self,
        arguments: Sequence[str],
        *,
        outputLimit: int,
        deadline: float,
        standardInput: bytes = b"",
    ) -> Deferred[Finished]:
        self.commands.append(arguments)
        answer: Deferred[Finished] = Deferred()
        self.answers.append(answer)
        return answer

    def stop(self) -> Deferred[None]:
        raise AssertionError("it is not ours to stop")


class GitRefsTests(SynchronousTestCase):
    """Questions, and those that are saved."""

    url = "https://a.example/x.git"

    def setUp(self) -> None:
        self.clock = Clock()
        self.git = FakeGit()
        names = Names({"a.example": [str(HERE)], "inside.example": ["10.0.0.1"]})
        self.refs = GitRefs(self.git, names, self.clock, lambda: 1000.0, GitAccess())

    def ask(self, url: str | None = None) -> Deferred[object]:
        return Deferred.fromCoroutine(self.refs.of(url or self.url))

    def test_asked(self) -> None:
        """What git says, and when it was asked."""
        asked = self.ask()
        self.git.answers[0].callback(Finished(0, OUTPUT.encode(), b""))
        found = self.successResultOf(asked)
        self.assertEqual(found.url, self.url)  # type: ignore[attr-defined]
        self.assertEqual((found.default, found.at), ("main", 1000.0))  # type: ignore[attr-defined]

    def test_remembered(self) -> None:
        """An answer stands for a minute; an error for nobody."""
        self.ask()
        self.git.answers[0].callback(Finished(0, b"", b""))
        self.successResultOf(self.ask())
        self.assertEqual(len(self.git.commands), 1)
        self.clock.advance(FRESH + 1)
        failing = self.ask()
        self.git.answers[1].callback(Finished(128, b"", b"fatal: not found\n"))
        self.failureResultOf(failing, RemoteFailed)
        self.ask()
        self.assertEqual(len(self.git.commands), 3)

    def test_together(self) -> None:
        """The same question twice at once is asked once; who leaves takes nothing along."""
        first, second, third = self.ask(), self.ask(), self.ask()
        first.cancel()
        self.failureResultOf(first)
        self.assertEqual(len(self.git.commands), 1)
        self.git.answers[0].callback(Finished(0, OUTPUT.encode(), b""))
        self.assertEqual(self.successResultOf(second), self.successResultOf(third))

    def test_failure(self) -> None:
        """Everybody who waits is told, with what git complained of."""
        first, second = self.ask(), self.ask()
        self.git.answers[0].callback(Finished(128, b"", b"fatal: no such repository\n"))
        for asked in (first, second):
            failure = self.failureResultOf(asked, RemoteFailed)
            self.assertIn("no such repository", str(failure.value))

    def test_limits(self) -> None:
        """Too much output, too long, too many who wait, too many known."""
        asked = self.ask()
        self.git.answers[0].errback(OutputTooLarge("x"))
        self.failureResultOf(asked, RemoteFailed)
        asked = self.ask()
        self.git.answers[1].errback(ProgramTimedOut("x"))
        self.assertIn("a.example", str(self.failureResultOf(asked, ProgramTimedOut).value))
        waiting = [self.ask() for _ in range(MAX_WAITERS)]
        self.failureResultOf(self.ask(), TooBusy)
        self.git.answers[2].callback(Finished(0, b"", b""))
        for one in waiting:
            self.successResultOf(one)
        for number in range(MAX_KNOWN + 1):
            self.ask(f"https://a.example/{number}")
            self.git.answers[-1].callback(Finished(0, b"", b""))
        self.assertLessEqual(len(self.refs._known), MAX_KNOWN)

    def test_private(self) -> None:
        """A host within is not asked, by name or by address."""
        for url in ("https://inside.example/x", "git@inside.example:x", "https://10.0.0.1/x"):
            self.failureResultOf(self.ask(url), RemoteRefused)
        self.assertEqual(self.git.commands, [])
