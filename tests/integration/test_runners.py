"""One agent process with several runners, as it runs on a host, and what it costs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, ClassVar, cast

from twisted.internet.defer import gatherResults

from .agents import TOKEN, TWISTD, AgentTestCase, absolute, reactor, write
from .fleet import freePort
from .scripted import TERMINATED, AgentProcess, ScriptedServer, within

MEMORY = 60 * 1024 * 1024
"""
Bytes that an agent with a hundred streams may occupy for itself.  Beside them some
20 MiB of its resident memory are program files, which the kernel holds once for all
processes, and can take back.
"""

STREAMS = 100


class RunnersTests(AgentTestCase):
    """Runners of one file."""

    timeout: ClassVar[float] = 90

    def agent(self, text: str) -> AgentProcess:
        path = fileOf(absolute(self.mktemp()), text)
        return self.start(*TWISTD, "helix-revdial-agent", f"--config={path}")

    async def test_eachForItself(self) -> None:
        """
        Two runners with two tokens log in, and each reaches its own targets and no
        other's; a third, whose login is refused, does not disturb them; all three say
        whom their targets are for; on SIGTERM they leave together.
        """
        port = self.listen()
        refusing = ScriptedServer()
        refusing.refusal = (403, "this token may not register wolf-3")
        other = reactor.listenTCP(0, refusing, interface="127.0.0.1")
        self.addCleanup(other.stopListening)
        tokens = [absolute(self.mktemp()) for _ in range(2)]
        for number, path in enumerate(tokens):
            write(path, f"{TOKEN}-{number}")
        service, unix = self.serve(), self.serveUnix()
        agent = self.agent(
            f"""
            [defaults]
            server = "http://127.0.0.1:{port.getHost().port}"
            token_file = "{tokens[0]}"
            reconnect = 0.1

            [[runner]]
            key = "wolf-1"
            targets = [{{ name = "wolf", address = "unix://{unix}", expose = "internal" }}]

            [[runner]]
            key = "moonlight-2"
            token_file = "{tokens[1]}"
            targets = [
                {{ name = "ssh", address = "127.0.0.1:{freePort()}", expose = "operator" }},
                {{ name = "web", address = "127.0.0.1:{service}", default = true }},
            ]

            [[runner]]
            key = "wolf-3"
            server = "http://127.0.0.1:{other.getHost().port}"
            targets = [{{ name = "x", address = ":1" }}]
            """
        )
        found = [await self.control(agent) for _ in range(2)]
        wolf, moonlight = sorted(found, key=lambda each: each.query["runnerid"], reverse=True)
        self.assertEqual(wolf.query, {"runnerid": ["wolf-1"]})
        self.assertEqual(wolf.headers["authorization"], f"Bearer {TOKEN}-0")
        self.assertEqual(moonlight.headers["authorization"], f"Bearer {TOKEN}-1")
        self.assertEqual(wolf.headers["revdial-targets"], "wolf;expose=internal;default")
        self.assertEqual(
            moonlight.headers["revdial-targets"], "ssh;expose=operator, web;expose=owner;default"
        )
        for _ in range(2):
            await within(reactor, agent.says("may not register wolf-3"), "the refusal")
        await self.exchange(wolf, None)
        await self.exchange(wolf, "wolf")
        await self.exchange(moonlight, None)
        await self.exchange(moonlight, "web")
        self.assertEqual((await self.failure(wolf, "web"))[0], "unknown-target")
        self.assertEqual((await self.failure(moonlight, "wolf"))[0], "unknown-target")
        self.assertEqual((await self.failure(moonlight, "ssh"))[0], "target-refused")
        self.assertEqual([each.lost.called for each in (wolf, moonlight)], [False, False])
        self.assertEqual(await self.ends(agent, signal.SIGTERM), TERMINATED)
        for control in (wolf, moonlight):
            message = await within(reactor, control.lines.get(), "the goodbye")
            self.assertEqual(message, {"command": "goodbye"})

    async def test_unknownKey(self) -> None:
        """A file with a word that nobody knows is refused with its line, and nothing runs."""
        agent = self.agent('[[runner]]\nkey = "wolf-1"\nservr = "http://a"\n')
        self.assertNotEqual(await within(reactor, agent.ended, "the agent's end"), 0)
        self.assertIn("line 3: unknown key 'servr'; is 'server' meant?", agent.output)

    async def test_memory(self) -> None:
        """An agent with a hundred streams open, all of them used, stays within its limit."""
        port = self.listen()
        agent = self.agent(
            f"""
            [[runner]]
            key = "wolf-1"
            server = "http://127.0.0.1:{port.getHost().port}"
            token_file = "{self.tokenFile()}"
            targets = [{{ name = "web", address = "127.0.0.1:{self.serve()}" }}]
            """
        )
        control = await self.control(agent)
        before = memory(agent)
        asked = [self.server.ask(control) for _ in range(STREAMS)]
        streams = await within(reactor, gatherResults(asked), "a hundred pick-ups")
        for stream in streams:
            stream.wire.write(b"x" * 10_000)
        for stream in streams:
            for _ in range(2000):
                if len(stream.data) >= 10_006:
                    break
                await turn()
            self.assertEqual(len(stream.data), 10_006)
        during = memory(agent)
        said = (
            f"{before['VmRSS'] / 2**20:.1f} MiB resident when connected; with {STREAMS} streams "
            f"{during['VmRSS'] / 2**20:.1f}, of these {during['RssFile'] / 2**20:.1f} of files"
        )
        print(said)
        self.assertLess(during["VmRSS"] - during["RssFile"], MEMORY, said)
        for stream in streams:
            stream.wire.abortConnection()


def fileOf(path: str, text: str) -> str:
    """Write a file; its path."""
    Path(path).write_text(text, encoding="utf-8")
    return path


async def turn() -> None:
    """One turn of the reactor, and a little more."""
    from twisted.internet.task import deferLater

    await deferLater(reactor, 0.005)


def memory(agent: AgentProcess) -> dict[str, int]:
    """Bytes of memory of a process, by the names of proc(5)."""
    pid = cast(Any, agent.transport).pid
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssFile"):
            found[name] = int(value.split()[0]) * 1024
    return found


class CheckTests(AgentTestCase):
    """C{--check} and C{helix diag} as people run them."""

    timeout: ClassVar[float] = 60

    async def test_check(self) -> None:
        """
        Each runner of a file is looked at; what fails is said with what to do, in the exit
        status too; the token is nowhere, and no agent runs.
        """
        service, down = self.serve(), freePort()
        path = fileOf(
            absolute(self.mktemp()),
            f"""
            [defaults]
            server = "http://127.0.0.1:{freePort()}"
            token_file = "{self.tokenFile()}"
            [[runner]]
            key = "wolf-1"
            targets = [{{ name = "up", address = "127.0.0.1:{service}" }}]
            [[runner]]
            key = "wolf-2"
            targets = [{{ name = "down", address = "127.0.0.1:{down}" }}]
            """,
        )
        helix = "import sys; from helix_revdial.cli.main import main; main()"
        for arguments in (
            (*TWISTD, "helix-revdial-agent", f"--config={path}", "--check"),
            ("-c", helix, "diag", f"--config={path}"),
        ):
            agent = self.start(*arguments, environment={"PYTHONIOENCODING": "utf-8"})
            code = await within(reactor, agent.ended, "the end of the check")
            self.assertEqual(code, 1, agent.output)
            for words in (
                "wolf-1 to http://127.0.0.1:",
                "connection refused",
                "nothing listens on port",
                "✅ target up",
                "wolf-2 to http://127.0.0.1:",
                "❌ target down",
            ):
                self.assertIn(words, agent.output)
            self.assertNotIn("Traceback", agent.output)

    async def test_misuse(self) -> None:
        """What cannot be looked at is a usage error, and nothing is asked of a server."""
        helix = "import sys; from helix_revdial.cli.main import main; main()"
        for arguments in (
            ("--config=/nonexistent.toml",),
            ("--server=cp.example",),
            ("--server=http://a", "--runner=-x"),
            ("--server=http://a", "--target=x"),
            ("--config=x", "--insecure"),
        ):
            agent = self.start("-c", helix, "diag", *arguments)
            code = await within(reactor, agent.ended, f"the end of diag {arguments}")
            self.assertEqual(code, 2, agent.output)
            self.assertTrue(agent.output.startswith("helix: "), agent.output)
