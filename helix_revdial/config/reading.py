# -*- test-case-name: tests.test_config -*-
"""
File, environment and flags into one L{ServerConfig}, and where it is wrong.

Invariant: whatever cannot be used is told with its place: the line of the file, the
name of the variable, or the flag.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .server import ServerConfig

PREFIX = "HELIX_REVDIAL_"


class ConfigError(Exception):
    """The settings cannot be used; the text says where and what to do."""


def load(
    path: Path | None,
    environment: Mapping[str, str],
    settings: Sequence[str] = (),
    listen: Sequence[str] = (),
) -> ServerConfig:
    """
    Read the settings.

    @param path: The TOML file, or L{None} for none.
    @param environment: The process's environment; only names that begin with
        L{PREFIX} are looked at.
    @param settings: Flags of the form C{section.key=value}.
    @param listen: Endpoint strings that replace those of the file.

    @raise ConfigError: With the file and line, the variable or the flag that
        is wrong.
    """
    text = ""
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
            raw = tomllib.loads(text)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: not UTF-8 text") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: {error}") from None
    # The file is checked on its own first, so that what is wrong in it is
    # reported with its line, whatever overrides it.
    _convert(raw, lambda place: _where(path, text, place))
    for name, value in environment.items():
        if name.startswith(PREFIX):
            _override(raw, name, _split(name), value)
    for setting in settings:
        name, equals, value = setting.partition("=")
        place = tuple(name.strip().split("."))
        if not equals or len(place) != 2:
            raise ConfigError(f"--set {setting}: expected SECTION.KEY=VALUE")
        _override(raw, f"--set {name}", (place[0], place[1]), value)
    if listen:
        raw["listen"] = [{"endpoint": endpoint} for endpoint in listen]
    config = _convert(raw, lambda place: "settings")
    if not config.listen:
        raise ConfigError("no [[listen]] endpoint: the server would be reachable by nobody")
    return config


def _convert(raw: dict[str, Any], where: Any) -> ServerConfig:
    try:
        return msgspec.convert(raw, ServerConfig)
    except msgspec.ValidationError as error:
        message, _, tail = str(error).partition(" - at `$")
        place = tail.rstrip("`").lstrip(".")
        unknown = re.match(r"Object contains unknown field `(.*)`", message)
        if unknown:
            field = unknown.group(1)
            place = f"{place}.{field}" if place else field
            message = f"unknown key {field!r}"
        raise ConfigError(f"{where(place)}: {place}: {message}") from None


def _where(path: Path | None, text: str, place: str) -> str:
    """The file and line in which the key C{place} (C{section.key}) stands."""
    names = [re.sub(r"\[[0-9.]*\]", "", name) for name in place.split(".")]
    while names:
        found = _lineOf(text, names)
        if found is not None:
            return f"{path}, line {found}"
        # In an inline table, a key has no line of its own.
        names.pop()
    return f"{path}"


def _lineOf(text: str, names: list[str]) -> int | None:
    """The line of a key, or the first of a table of that name."""
    table: list[str] = []
    found: int | None = None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?", line)
        key = re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line)
        if header:
            table = [part.strip().strip("\"'") for part in header.group(1).split(".")]
            if table == names and found is None:
                found = number
        elif key:
            parts = [part.strip("\"'") for part in key.group(1).split(".")]
            if table + parts == names:
                return number
    return found


def _split(variable: str) -> tuple[str, str]:
    name = variable.removeprefix(PREFIX).lower()
    for field in msgspec.structs.fields(ServerConfig):
        # A section's own name may have the sign that stands between it and a key.
        if "_" in field.encode_name and name.startswith(field.encode_name + "_"):
            return field.encode_name, name[len(field.encode_name) + 1 :]
    section, _, key = name.partition("_")
    return section, key


def _override(raw: dict[str, Any], source: str, place: tuple[str, str], value: str) -> None:
    """Put one value from outside the file into C{raw}, read as TOML where it can be."""
    section, key = place
    if (section, key) == ("listen", ""):
        raw["listen"] = [{"endpoint": part} for part in value.split()]
        return
    known = {field.encode_name: field for field in msgspec.structs.fields(ServerConfig)}
    kind = known[section].type if section in known and section != "listen" else None
    if kind is None or key not in {f.encode_name for f in msgspec.structs.fields(kind)}:
        raise ConfigError(f"{source}: unknown setting (no key {key!r} in [{section}])")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word: a string that needs no quotes here
    candidate = {**raw.get(section, {}), key: parsed}
    try:
        msgspec.convert(candidate, kind)
    except msgspec.ValidationError as error:
        if isinstance(parsed, str):
            raise ConfigError(f"{source}: {str(error).partition(' - at')[0]}") from None
        # A number or a date where a string is wanted, such as a bare token.
        candidate[key] = value
        try:
            msgspec.convert(candidate, kind)
        except msgspec.ValidationError:
            raise ConfigError(f"{source}: {str(error).partition(' - at')[0]}") from None
    raw[section] = candidate
