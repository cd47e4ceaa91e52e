"""Tests for L{helix_revdial.sessions.agents}."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions.agents import (
    MAX_ERRORS,
    MAX_SECRETS,
    MAX_SETTINGS,
    Agent,
    AgentDeclarationError,
    Agents,
)

SCHEMA = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "enum": ["small", "large"], "default": "small"},
        "turns": {"type": "integer", "minimum": 1},
    },
    "additionalProperties": False,
}

CODER = Agent(
    "coder",
    ("coder", "--model={settings.model}", "{prompt}"),
    ("2.1", "2.0"),
    {"CODER_HOME": "/opt/coder"},
    SCHEMA,
)


class DeclarationTests(SynchronousTestCase):
    """What an operator may declare."""

    def test_wrong(self) -> None:
        """Each fault is told with the agent's name and what to do."""
        for words, expected in (
            ({"type": "Has Space"}, "a type is"),
            ({"command": ()}, "needs a program"),
            ({"command": ("x", "{nothing}")}, "is no place"),
            ({"command": ("x", "{settings.missing}")}, "not among the properties"),
            ({"command": ("x", "{}")}, "is no place"),
            ({"versions": ()}, "versions need"),
            ({"versions": ("a b",)}, "versions need"),
            ({"environment": {"A=B": "x"}}, "no environment variable"),
            ({"schema": {"type": "nothing"}}, "schema"),
            ({"schema": {"type": "string"}}, '"object"'),
        ):
            with self.assertRaises(AgentDeclarationError, msg=str(words)) as caught:
                Agents([Agent(**{"type": "x", "command": ("x",), **words})])  # type: ignore[arg-type]
            self.assertIn(expected, str(caught.exception))

    def test_twice(self) -> None:
        """Two agents of one type."""
        with self.assertRaises(AgentDeclarationError):
            Agents([CODER, CODER])


class AskedTests(SynchronousTestCase):
    """What a task may ask for."""

    def setUp(self) -> None:
        self.agents = Agents([CODER, Agent("plain", ("plain",))])

    def faults(self, settings: dict[str, Any], version: str = "latest") -> dict[str, list[str]]:
        return self.agents.faults("coder", version, settings)

    def test_right(self) -> None:
        """Nothing is wrong with what keeps to the schema."""
        self.assertEqual(self.faults({}), {})
        self.assertEqual(self.faults({"model": "large", "turns": 3}, "2.0"), {})

    def test_unknown(self) -> None:
        """An agent or a version that is not there; those that are, are told."""
        self.assertIn("coder, plain", self.agents.faults("other", "latest", {})["agent.type"][0])
        self.assertIn("2.1, 2.0", self.faults({}, "1.0")["agent.version"][0])

    def test_settings(self) -> None:
        """Each wrong setting is told by its name, never by its value."""
        found = self.faults({"model": "s3cret", "turns": 0, "other": "s3cret"})
        self.assertEqual(
            found.keys(), {"agent.settings.model", "agent.settings.turns", "agent.settings"}
        )
        self.assertNotIn("s3cret", str(found))

    def test_manyFaults(self) -> None:
        """No more than a page of them."""
        many = Agent(
            "many",
            ("x",),
            schema={"type": "object", "additionalProperties": {"type": "integer"}},
        )
        found = Agents([many]).faults("many", "latest", {str(n): "x" for n in range(100)})
        self.assertEqual(len(found), MAX_ERRORS)

    def test_large(self) -> None:
        """F: settings, and the secrets among them, are bounded."""
        agents = Agents([Agent("plain", ("plain",))])
        secrets = {"tokens": [f"secret{number}" for number in range(MAX_SECRETS + 1)]}
        for settings in ({"a": "x" * MAX_SETTINGS}, secrets):
            self.assertEqual(list(agents.faults("plain", "latest", settings)), ["agent.settings"])
        secrets["tokens"].pop()
        for settings in ({"a": "x" * (MAX_SETTINGS - 8)}, secrets):
            self.assertEqual(agents.faults("plain", "latest", settings), {})

    def test_spec(self) -> None:
        """What a host is told: the newest version for "latest", and the defaults."""
        spec = self.agents.spec("coder", "latest", {"turns": 2})
        self.assertEqual(
            (spec.version, spec.command[0], spec.env, spec.settings),
            ("2.1", "coder", {"CODER_HOME": "/opt/coder"}, {"model": "small", "turns": 2}),
        )

    def test_order(self) -> None:
        """They are listed by type."""
        self.assertEqual([agent.type for agent in self.agents], ["coder", "plain"])
