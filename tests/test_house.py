"""The house as drawn: which package may import which, and where the reactor may stand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import helix_revdial

PACKAGE = Path(helix_revdial.__file__).parent

ALL = {
    "revdial",
    "http",
    "gateways",
    "access",
    "sessions",
    "storage",
    "agent",
    "desktop",
    "config",
    "cannot_start",
    "systemd",
    "drain",
    "imported_tokens",
    "keeping",
    "listening",
    "programs",
    "settings",
    "reload",
    "runner_hosts",
    "starting",
    "telemetry",
    "toml_settings",
}

MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "toml_settings": set(),
    "cannot_start": set(),
    "durable": set(),
    "config": set(),
    "revdial": set(),
    "storage": set(),
    "http": set(),
    "access": {"durable", "storage"},
    "programs": set(),
    "systemd": set(),
    "drain": {"http", "revdial"},
    "runner_hosts": {"access", "revdial", "sessions"},
    "imported_tokens": {"access", "config", "systemd"},
    "starting": {"access", "cannot_start", "config", "imported_tokens", "storage", "systemd"},
    "keeping": {"revdial", "systemd"},
    "telemetry": set(),
    "listening": {"revdial"},
    "settings": {
        "config",
        "storage",
        "listening",
        "http",
        "access",
        "revdial",
        "gateways",
        "sessions",
    },
    "reload": {"config"},
    "agent": {"revdial", "systemd", "telemetry", "http", "toml_settings"},
    "gateways": {"revdial", "http", "access"},
    "sessions": {"durable", "storage", "access", "programs"},
    "desktop": {"http", "programs"},
    "executor": {
        "cannot_start",
        "durable",
        "http",
        "programs",
        "sessions",
        "systemd",
        "toml_settings",
    },
    "cli": {"storage", "desktop", "agent", "config", "revdial"},
    "api": ALL | {"api"},
    "assembly": ALL | {"api"},
    "reload_parts": ALL | {"api", "assembly"},
    "control_plane": ALL | {"api", "assembly", "reload_parts"},
    "control_plane_tap": ALL | {"api", "control_plane"},
}
"""Every room, and the rooms that it may import besides itself."""

REACTOR_MAY_STAND_IN = {
    "agent/tap.py": "makeService",
    "control_plane_tap.py": "makeService",
    "agent/compatibility.py": "run",
    "executor/shim.py": "main",
    "executor/tap.py": "makeService",
    "cli/main.py": "react",
}
"""The edges of the program: file and function in which the reactor is imported."""


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        room = relative.parts[0] if len(relative.parts) > 1 else relative.stem
        yield room, relative, ast.parse(path.read_text(), str(path))


def imported(relative: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything of ours that a module imports, at any depth."""
    parts = ("helix_revdial", *relative.with_suffix("").parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


class ImportDirectionTests(SynchronousTestCase):
    """Arrows between the rooms point one way."""

    def test_everyRoomIsDrawn(self) -> None:
        """A new room needs its arrows decided before it is built."""
        rooms = {room for room, _, _ in modules()}
        self.assertEqual(rooms - MAY_IMPORT.keys(), set(), "rooms without a decision")

    def test_arrowsPointOneWay(self) -> None:
        """No room imports one that it may not."""
        wrong = []
        for room, relative, tree in modules():
            for line, name in imported(relative, tree):
                if not name.startswith("helix_revdial."):
                    continue
                other = name.split(".")[1]
                if other == "__version__" or other == room:
                    continue
                if other not in MAY_IMPORT[room]:
                    wrong.append(f"{relative}:{line}: {room} must not import {other} ({name})")
        self.assertEqual(wrong, [], "\n".join(wrong))

    def test_drawnArrowsHaveNoCircle(self) -> None:
        """The drawing itself is free of circles."""
        done: set[str] = set()

        def visit(room: str, path: tuple[str, ...]) -> None:
            self.assertNotIn(room, path, " -> ".join((*path, room)))
            if room not in done:
                for other in MAY_IMPORT[room] - {room}:
                    visit(other, (*path, room))
                done.add(room)

        for room in MAY_IMPORT:
            visit(room, ())


class ReactorTests(SynchronousTestCase):
    """Time and sockets are injected: the reactor is imported at the edges only."""

    def test_reactorIsImportedAtTheEdgesOnly(self) -> None:
        """Only inside the functions that start a process, and never at import time."""
        wrong = []
        for _, relative, tree in modules():
            for node in ast.walk(tree):
                for child in ast.iter_child_nodes(node):
                    child.parent = node  # type: ignore[attr-defined]
            for node in ast.walk(tree):
                names = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import | ast.ImportFrom)
                    else []
                )
                if not any(name.split(".")[-1] == "reactor" for name in names):
                    continue
                functions = []
                parent = getattr(node, "parent", None)
                while parent is not None:
                    if isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef):
                        functions.append(parent.name)
                    parent = getattr(parent, "parent", None)
                if REACTOR_MAY_STAND_IN.get(str(relative)) not in functions:
                    wrong.append(f"{relative}:{node.lineno}")  # type: ignore[attr-defined]
        self.assertEqual(wrong, [])


class NamedTestsTests(SynchronousTestCase):
    """A module's first line says which tests are its own."""

    def test_testsThatAreNamedExist(self) -> None:
        """Who changes a module and runs the tests that it names runs some."""
        tests = Path(__file__).parent.parent
        wrong = []
        for path in sorted(PACKAGE.rglob("*.py")):
            first = path.read_text().partition("\n")[0]
            _, named, rest = first.partition("test-case-name: ")
            if not named:
                continue
            for name in rest.removesuffix("-*-").strip().split(","):
                place = tests.joinpath(*name.split("."))
                if not (place.with_suffix(".py").is_file() or place.is_dir()):
                    wrong.append(f"{path.relative_to(PACKAGE)} names {name}")
        self.assertEqual(wrong, [], "\n".join(wrong))
