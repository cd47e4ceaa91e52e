# -*- test-case-name: tests.sessions.test_agents -*-
"""
The agents that can be asked for: what the operator has declared, and what may
be set for each.

An agent is a command line with places to fill in.  The places are filled on the
runner host, which knows the workspace and hands the prompt over; here stands
which agents and versions there are, and that their settings keep to their
schema, so that a task that cannot run is refused before it is stored.

Invariants:

  - a command is a list, never text for a shell, and each place in it is one of
    L{PLACES} or C{{settings.NAME}};
  - settings are checked against the agent's JSON Schema (draft 2020-12), which
    itself is checked when the server starts;
  - what an agent may not be told (a secret of another) never is: the
    environment of a command is what its declaration says, nothing more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from helix_revdial.sessions.executor import AgentSpec
from helix_revdial.sessions.redaction import secretProperties, secretsIn

PLACES: Final = frozenset({"prompt", "promptFile", "workspace", "session", "version", "python"})
"""
What a host fills in besides settings: the prompt, a file that holds it, the
workspace's directory, the session's id, the agent's version, and the host's own
Python (for the demonstration agent).
"""

DEMONSTRATION: Final = "demonstration"
"""The agent that comes with the project and needs no vendor's program."""

LATEST: Final = "latest"

Prompts = Literal["none", "input", "files"]

_PLACE = re.compile(r"\{([^{}]*)\}")
_SETTING = re.compile(r"settings\.[A-Za-z_][A-Za-z0-9_]*")
_TYPE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

MAX_SETTINGS: Final = 64 * 1024
"""Bytes of one task's settings, as JSON."""

MAX_SECRETS: Final = 200
"""Secrets among them."""

MAX_ERRORS: Final = 20
"""Of one task's settings, how many faults are told."""

_OPEN_SCHEMA: Final[dict[str, Any]] = {"type": "object", "properties": {}}


class AgentDeclarationError(ValueError):
    """A declaration that cannot be.  The text says which, and what to do."""


@dataclass(frozen=True)
class Agent:
    """
    An agent as declared.

    @ivar type: what tasks call it.
    @ivar versions: those that may be asked for, the newest first.
    @ivar command: the command line, with places.
    @ivar environment: what is added to the command's environment.
    @ivar schema: JSON Schema of its settings.
    @ivar prompts: how it takes prompts while it runs, as L{AgentSpec} has it.
    """

    type: str
    command: tuple[str, ...]
    versions: tuple[str, ...] = (LATEST,)
    environment: Mapping[str, str] = field(default_factory=dict)
    schema: Mapping[str, Any] = field(default_factory=lambda: dict(_OPEN_SCHEMA))
    prompts: Prompts = "none"

    def check(self) -> None:
        """
        Make sure that this can be run.

        @raise AgentDeclarationError: otherwise.
        """
        where = f"agent {self.type!r}"
        if _TYPE.fullmatch(self.type) is None:
            raise AgentDeclarationError(
                f"{where}: a type is 1 to 64 of a-z, 0-9, '.', '_', '-', not beginning with a dot"
            )
        if not self.command or not self.command[0]:
            raise AgentDeclarationError(f"{where}: command needs a program")
        if not self.versions or any(_VERSION.fullmatch(one) is None for one in self.versions):
            raise AgentDeclarationError(f"{where}: versions need one at least, without spaces")
        for name in self.environment:
            if _VARIABLE.fullmatch(name) is None:
                raise AgentDeclarationError(f"{where}: {name!r} is no environment variable")
        try:
            Draft202012Validator.check_schema(self.schema)
        except SchemaError as error:
            raise AgentDeclarationError(f"{where}: schema: {error.message}") from None
        if self.schema.get("type") != "object":
            raise AgentDeclarationError(f'{where}: schema: its type must be "object"')
        known = self.schema.get("properties", {})
        for place in (place for word in self.command for place in _PLACE.findall(word)):
            if place in PLACES:
                continue
            if _SETTING.fullmatch(place) is None:
                places = ", ".join(sorted(PLACES))
                raise AgentDeclarationError(
                    f"{where}: {{{place}}} is no place; there are {places} and settings.NAME"
                )
            if place.removeprefix("settings.") not in known:
                raise AgentDeclarationError(
                    f"{where}: {{{place}}} is not among the properties of its schema"
                )


class Agents:
    """
    The agents of a server.
    """

    def __init__(self, agents: Iterable[Agent] = ()) -> None:
        """
        @raise AgentDeclarationError: when one cannot be, or two have one type.
        """
        self._agents: dict[str, Agent] = {}
        for agent in agents:
            agent.check()
            if agent.type in self._agents:
                raise AgentDeclarationError(f"agent {agent.type!r} is declared twice")
            self._agents[agent.type] = agent

    def __iter__(self) -> Iterator[Agent]:
        return iter(sorted(self._agents.values(), key=lambda agent: agent.type))

    def get(self, type: str) -> Agent | None:  # noqa: A002 - the field's own name
        """The agent of that type."""
        return self._agents.get(type)

    def faults(
        self,
        type: str,  # noqa: A002
        version: str,
        settings: Mapping[str, Any],
    ) -> dict[str, list[str]]:
        """
        Why an agent cannot be run as asked.

        @return: per field of a task (C{"agent.settings.model"}), what is wrong;
            empty when it can.
        """
        agent = self._agents.get(type)
        if agent is None:
            known = ", ".join(sorted(self._agents)) or "none"
            return {"agent.type": [f"is not an agent of this server; there are: {known}"]}
        if version not in (LATEST, *agent.versions):
            known = ", ".join(agent.versions)
            return {"agent.version": [f"is not a version of {type}; there are: {known}"]}
        return self._settingsFaults(agent, settings)

    @staticmethod
    def _settingsFaults(agent: Agent, settings: Mapping[str, Any]) -> dict[str, list[str]]:
        if len(msgspec.json.encode(settings)) > MAX_SETTINGS:
            return {"agent.settings": [f"have more than {MAX_SETTINGS} bytes as JSON"]}
        # All that the session says will be looked through for each of them.
        if len(secretsIn(settings, secretProperties(agent.schema))) > MAX_SECRETS:
            return {"agent.settings": [f"have more than {MAX_SECRETS} secrets"]}
        found: dict[str, list[str]] = {}
        errors = Draft202012Validator(agent.schema).iter_errors(dict(settings))
        for number, error in enumerate(errors):
            if number == MAX_ERRORS:
                break
            place = ".".join(["agent.settings", *(str(step) for step in error.absolute_path)])
            found.setdefault(place, []).append(_sentence(error.validator, error.validator_value))
        return found

    def spec(
        self,
        type: str,  # noqa: A002
        version: str,
        settings: Mapping[str, Any],
    ) -> AgentSpec:
        """
        What a host is told to run; L{faults} has found nothing wrong.

        @raise KeyError: for an agent that is not declared (any more).
        """
        agent = self._agents[type]
        defaults = {
            name: value["default"]
            for name, value in agent.schema.get("properties", {}).items()
            if isinstance(value, dict) and "default" in value
        }
        return AgentSpec(
            type=type,
            version=agent.versions[0] if version == LATEST else version,
            command=list(agent.command),
            env=dict(agent.environment),
            settings={**defaults, **settings},
            prompts=agent.prompts,
        )


def _sentence(rule: object, value: object) -> str:
    """What a setting has to be; never what it was, which may be a secret."""
    match rule, value:
        case "type", _:
            return f"must be of type {value}"
        case "enum", list(words):
            return "must be one of " + ", ".join(str(word) for word in words)
        case "required", list(words):
            return "needs " + ", ".join(str(word) for word in words)
        case "additionalProperties", _:
            return "has a setting that this agent does not know"
        case _:
            return f"must keep to {rule} {value}"
