"""Tests for C{docs/library.md} and the examples beside it."""

from __future__ import annotations

import importlib
import os
import re
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from twisted.trial.unittest import TestCase

from tests.integration.tunnels import reactor

DOCS = Path(__file__).parents[2] / "docs"

NO_CONCH = None if find_spec("bcrypt") else "needs Conch: pip install 'twisted[conch]'"
if NO_CONCH and os.environ.get("CI"):
    raise RuntimeError(NO_CONCH)


class ExampleTests(TestCase):
    """The examples run as they stand."""

    timeout = 30

    def setUp(self) -> None:
        self.patch(sys, "path", [str(DOCS / "examples"), *sys.path])

    async def run_(self, name: str) -> str:
        """Run the example's C{main}, and return what it printed."""
        example = importlib.import_module(name)
        printed = StringIO()
        with redirect_stdout(printed):
            await example.main(reactor)
        return printed.getvalue()

    async def test_treq(self) -> None:
        """treq gets a page through C{Agent.usingEndpointFactory}."""
        self.assertEqual(await self.run_("treq_over_a_tunnel"), "I am beside the agent.\n")

    async def test_conch(self) -> None:
        """Conch runs a command: the server at the agent's end, the client at ours."""
        self.assertEqual(await self.run_("conch_over_a_tunnel"), "beside the agent: uname -a\n")

    if NO_CONCH:
        test_conch.skip = NO_CONCH  # type: ignore[attr-defined]


class TextTests(TestCase):
    def test_codeInTheText(self) -> None:
        """Each piece of Python in the text is Python, and imports what there is."""
        text = (DOCS / "library.md").read_text()
        pieces = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        self.assertGreater(len(pieces), 2)
        for piece in pieces:
            compile(piece, "library.md", "exec")
            for module, names in re.findall(
                r"^from (helix_revdial[\w.]*) import ([\w, ]+)$", piece, re.MULTILINE
            ):
                found = importlib.import_module(module)
                for name in names.split(","):
                    self.assertTrue(hasattr(found, name.strip()), f"{module} has no {name}")

    def test_linksInTheText(self) -> None:
        """Each file that the text points to is there."""
        text = (DOCS / "library.md").read_text()
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            self.assertTrue((DOCS / link).exists(), f"library.md points to {link}")
