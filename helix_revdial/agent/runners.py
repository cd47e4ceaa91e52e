# -*- test-case-name: tests.agent.test_runners -*-
"""
Several runners of one process, from one TOML file.

C{[[runner]]} is one runner; what it does not say, C{[defaults]} says.  Its keys are
the flags of C{twistd helix-revdial-agent} with C{_} for C{-}, so that there is one
vocabulary (L{helix_revdial.agent.vocabulary}) and one reader
(L{helix_revdial.agent.settings}); beside them stand C{key}, C{targets} and
C{limits}, which flags cannot say as well.

Rules:

  - The file says everything: of the environment only what other programs look at
    too (C{HTTPS_PROXY}, C{CREDENTIALS_DIRECTORY}) is taken.
  - A runner reaches the targets that its own C{targets} name and nothing else;
    there is no default service, and C{[defaults]} has no targets.
  - Every complaint begins with the file and the line.  All of them are said at once.
  - A token stands in a file of its own, never in this one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from ..revdial.listener import MAX_DIALS, MAX_PARKED, MAX_STREAMS
from ..revdial.offered import Expose
from ..toml_settings import Document, TOMLUnusable, readDocument
from .settings import MAX_TARGETS, TARGET_NAME, AgentSettings, SettingsError, readSettings
from .targets import parseTarget
from .vocabulary import SETTINGS, Offered, Setting

MAX_RUNNERS = 64
"""Runners of one process."""

MAX_LIMIT = 100_000
"""The highest limit that can be set."""

_EXPOSES = ("internal", "operator", "owner")
_LIMITS = {"max_dials": MAX_DIALS, "max_streams": MAX_STREAMS, "max_parked": MAX_PARKED}
_TARGET_KEYS = ("name", "address", "expose", "default")

_ELSEWHERE = frozenset({"runner", "local", "targets"})
"""What C{key} and C{targets} say here."""

_ROWS: dict[str, Setting] = {
    row.flag.replace("-", "_"): row
    for row in SETTINGS
    if row.flag
    and not row.ofProcess
    and row.about not in _ELSEWHERE
    and row.flag not in ("api-url", "token")
}
"""The keys of a runner that are flags elsewhere."""

_NUMBERS = ("reconnect", "drain")

_OFFERED = Offered(
    settings=tuple(
        replace(row, variable=None)
        for row in SETTINGS
        if row in _ROWS.values() or row.flag in ("runner-id", "target")
    ),
    dashes="",
    spelled={
        **{row.flag: name for name, row in _ROWS.items() if row.flag},
        "runner-id": "key",
        "target": "targets",
    },
)

KEYS = ("key", "targets", "limits", *sorted(_ROWS))
"""What may stand in C{[[runner]]}; in C{[defaults]} all but the first two."""


@dataclass(frozen=True)
class _Target:
    """One of a runner's targets."""

    name: str
    address: str
    expose: Expose
    default: bool


class _Complaints:
    """What is wrong with the file, each with its line."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self.said: list[str] = []

    def about(self, text: str, *place: str | int) -> None:
        line = f"{self._document.where(*place)}: {text}"
        if line not in self.said:
            # A fault of the defaults is met once for each runner.
            self.said.append(line)

    def unknown(self, name: str, known: tuple[str, ...], *place: str | int) -> None:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; is {close[0]!r} meant?" if close else f"; known are {', '.join(known)}"
        self.about(f"unknown key {name[:100]!r}{hint}", *place)


def readRunners(path: str, environment: Mapping[str, str]) -> tuple[AgentSettings, ...]:
    """
    Read the runners of a file.

    @param path: The file.
    @param environment: The environment variables.
    @raise SettingsError: The file makes no agents; one line for each complaint.
    """
    try:
        document = readDocument(path)
    except TOMLUnusable as error:
        raise SettingsError(str(error)) from None
    complaints = _Complaints(document)
    for name in document.values:
        if name not in ("defaults", "runner"):
            complaints.unknown(name, ("defaults", "runner"), name)
    defaults = document.values.get("defaults", {})
    if not isinstance(defaults, dict):
        complaints.about("defaults is a table: write [defaults]", "defaults")
        defaults = {}
    for name in defaults:
        if name not in KEYS[2:]:
            if name in KEYS[:2]:
                complaints.about(f"{name} belongs to each [[runner]]", "defaults", name)
            else:
                complaints.unknown(name, KEYS[2:], "defaults", name)
    runners = document.values.get("runner", [])
    if not isinstance(runners, list) or not all(isinstance(each, dict) for each in runners):
        complaints.about("runners are tables: write [[runner]]", "runner")
        runners = []
    elif not 1 <= len(runners) <= MAX_RUNNERS:
        complaints.about(f"a file has from one to {MAX_RUNNERS} [[runner]]", "runner")
    found: list[AgentSettings] = []
    keys: dict[str, int] = {}
    for number, table in enumerate(runners[:MAX_RUNNERS]):
        reader = _Reader(document, complaints, defaults, number, table)
        settings = reader.read(environment)
        if settings is None:
            continue
        earlier = keys.setdefault(settings.key, number)
        if earlier != number:
            where = document.where("runner", earlier, "key")
            complaints.about(
                f"there is a runner {settings.key} already ({where})", "runner", number, "key"
            )
        found.append(settings)
    if complaints.said:
        raise SettingsError("\n".join(complaints.said))
    return tuple(found)


class _Reader:
    """One C{[[runner]]}."""

    def __init__(
        self,
        document: Document,
        complaints: _Complaints,
        defaults: Mapping[str, Any],
        number: int,
        table: Mapping[str, Any],
    ) -> None:
        self._document = document
        self._complaints = complaints
        self._defaults = defaults
        self._number = number
        self._table = table
        self._before = len(complaints.said)

    def read(self, environment: Mapping[str, str]) -> AgentSettings | None:
        """The settings, unless there is something to complain of."""
        for name in self._table:
            if name not in KEYS:
                self._complaints.unknown(name, KEYS, "runner", self._number, name)
        flags = self._flags()
        targets = self._targets()
        limits = {name: self._limit(name, standard) for name, standard in _LIMITS.items()}
        if len(self._complaints.said) > self._before:
            return None
        flags["target"] = [f"{each.name}={each.address}" for each in targets]
        try:
            settings = readSettings(flags, environment, _OFFERED)
        except SettingsError as error:
            for line in str(error).splitlines():
                # It begins with the key that is wrong, spelled as here.
                name = line.partition(":")[0].partition(" ")[0]
                self._complaints.about(line, *self._place(name))
            return None
        return replace(
            settings,
            default=next((each.name for each in targets if each.default), targets[0].name),
            expose={each.name: each.expose for each in targets},
            maxDials=limits["max_dials"],
            maxStreams=limits["max_streams"],
            maxParked=limits["max_parked"],
            warnings=tuple(f"{settings.key}: {warning}" for warning in settings.warnings),
        )

    def _place(self, name: str) -> tuple[str | int, ...]:
        """Where this runner's value of a key stands."""
        if name not in self._table and name in self._defaults:
            return ("defaults", name)
        return ("runner", self._number, name)

    def _flags(self) -> dict[str, Any]:
        flags: dict[str, Any] = {"runner-id": self._text("key")}
        for name, row in _ROWS.items():
            value = self._table.get(name, self._defaults.get(name))
            if value is None or row.flag is None:
                continue
            if row.switch:
                if not isinstance(value, bool):
                    self._wrong(name, "true or false")
                elif value:
                    flags[row.flag] = "1"
            elif name in _NUMBERS:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    self._wrong(name, "a number of seconds")
                else:
                    flags[row.flag] = str(value)
            elif row.repeatable:
                several = [value] if isinstance(value, str) else value
                if not isinstance(several, list) or not all(_isText(each) for each in several):
                    self._wrong(name, "a text, or a list of texts")
                else:
                    flags[row.flag] = several
            elif not _isText(value):
                self._wrong(name, "a text")
            else:
                flags[row.flag] = value
        return flags

    def _text(self, name: str) -> str | None:
        value = self._table.get(name)
        if value is None or _isText(value):
            return value
        self._wrong(name, "a text")
        return None

    def _wrong(self, name: str, wanted: str) -> None:
        self._complaints.about(f"{name}: write {wanted}", *self._place(name))

    def _limit(self, name: str, standard: int) -> int:
        for place, table in (
            (("runner", self._number, "limits"), self._table.get("limits", {})),
            (("defaults", "limits"), self._defaults.get("limits", {})),
        ):
            if not isinstance(table, dict):
                if name == "max_dials":
                    text = "limits is a table: { max_dials = 100, max_streams = 1000 }"
                    self._complaints.about(text, *place)
                continue
            if name == "max_dials":
                for each in table:
                    if each not in _LIMITS:
                        self._complaints.unknown(each, tuple(_LIMITS), *place, each)
            if name in table:
                value = table[name]
                # Without parked connections an agent is as good; without dials it is none.
                least = 0 if name == "max_parked" else 1
                if isinstance(value, bool) or not isinstance(value, int):
                    value = -1
                if not least <= value <= MAX_LIMIT:
                    text = f"{name}: write a number from {least} to {MAX_LIMIT}"
                    self._complaints.about(text, *place, name)
                return value
        return standard

    def _targets(self) -> list[_Target]:
        place = ("runner", self._number, "targets")
        given = self._table.get("targets")
        if not isinstance(given, list) or not given:
            self._complaints.about(
                'a runner needs targets: targets = [{ name = "api", address = "127.0.0.1:8080" }]',
                *place,
            )
            return []
        if len(given) > MAX_TARGETS:
            self._complaints.about(f"an agent has at most {MAX_TARGETS} targets", *place)
        found: list[_Target] = []
        for number, each in enumerate(given[:MAX_TARGETS]):
            target = self._target(each, (*place, number))
            if target is None:
                continue
            if any(target.name == other.name for other in found):
                text = f"there are two targets {target.name!r}"
                self._complaints.about(text, *place, number, "name")
            found.append(target)
        if sum(each.default for each in found) > 1:
            self._complaints.about("there are two default targets", *place)
        return found

    def _target(self, given: object, place: tuple[str | int, ...]) -> _Target | None:
        before = len(self._complaints.said)
        if not isinstance(given, dict):
            text = 'a target is a table: { name = "api", address = "127.0.0.1:8080" }'
            self._complaints.about(text, *place)
            return None
        for each in given:
            if each not in _TARGET_KEYS:
                self._complaints.unknown(each, _TARGET_KEYS, *place, each)
        name, address = given.get("name"), given.get("address")
        expose, default = given.get("expose", "owner"), given.get("default", False)
        if not isinstance(name, str) or TARGET_NAME.fullmatch(name) is None:
            text = "name: write letters, digits, '.', '_' and '-', at most 64"
            self._complaints.about(text, *place, "name")
        try:
            if not isinstance(address, str):
                raise ValueError("write host:port or unix:///path")
            parseTarget(address)
        except ValueError as error:
            self._complaints.about(f"address: {error}", *place, "address")
        if expose not in _EXPOSES:
            text = f"expose: write one of {', '.join(_EXPOSES)}"
            self._complaints.about(text, *place, "expose")
        if not isinstance(default, bool):
            self._complaints.about("default: write true or false", *place, "default")
        if len(self._complaints.said) > before:
            return None
        return _Target(str(name), str(address), cast(Expose, expose), bool(default))


def _isText(value: object) -> bool:
    return isinstance(value, str) and value != ""


__all__ = ["KEYS", "MAX_RUNNERS", "readRunners"]
