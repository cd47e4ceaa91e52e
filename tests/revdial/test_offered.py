"""What an agent says of its targets, and what that allows."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.exchange import checkedHeaders
from helix_revdial.revdial.offered import (
    MAX_TARGETS,
    MAX_TARGETS_HEADER,
    Expose,
    OfferedTarget,
    exposeOf,
    formatTargets,
    parseTargets,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "targets.json"

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
EXPOSES: st.SearchStrategy[Expose] = st.sampled_from(("internal", "operator", "owner"))


class OfferedTests(SynchronousTestCase):
    """C{Revdial-Targets}."""

    def test_vectors(self) -> None:
        """Each value is read as C{targets.json} says."""
        for vector in json.loads(VECTORS.read_text())["vectors"]:
            found = parseTargets(value.encode() for value in vector["values"])
            shown = None if found is None else [[t.name, t.expose, t.default] for t in found]
            self.assertEqual(shown, vector["targets"], vector["name"])

    @given(st.lists(st.tuples(NAMES, EXPOSES), max_size=MAX_TARGETS, unique_by=lambda t: t[0]))
    @settings(deadline=None, max_examples=50)
    def test_roundTrip(self, given: list[tuple[str, Expose]]) -> None:
        """As many targets as an agent may have are read as they were written."""
        targets = tuple(OfferedTarget(n, e, at == 0) for at, (n, e) in enumerate(given))
        written = formatTargets(targets)
        checkedHeaders([(b"Revdial-Targets", written)])
        self.assertEqual(parseTargets([written]), targets)

    def test_limits(self) -> None:
        """
        What stands beyond either limit is not read; an entry that the limit cuts is
        none, since half a name might be another's.
        """
        many = formatTargets(OfferedTarget(f"t{n}", "owner") for n in range(MAX_TARGETS + 5))
        found = parseTargets([many])
        assert found is not None
        self.assertEqual(len(found), MAX_TARGETS)
        padding = b"x;expose=owner;padding=" + b"p" * (MAX_TARGETS_HEADER - 40)
        long = padding + b", longname;expose=owner" * 3
        found = parseTargets([long])
        assert found is not None
        self.assertEqual([each.name for each in found], ["x"])

    @given(st.lists(st.binary(max_size=200), max_size=4))
    @settings(deadline=None, max_examples=200)
    def test_anything(self, values: list[bytes]) -> None:
        """No bytes make it fail, and none make more targets than there may be."""
        found = parseTargets(values)
        self.assertLessEqual(len(found or ()), MAX_TARGETS)

    def test_whomADialIsFor(self) -> None:
        """
        An agent that says nothing serves its default to the owner and nothing else to
        anybody; one that does, what it says.
        """
        self.assertEqual(exposeOf(None, None), "owner")
        self.assertEqual(exposeOf(None, "api"), "internal")
        said = parseTargets([b"api;expose=operator, ui;expose=owner;default"])
        self.assertEqual(exposeOf(said, None), "owner")
        self.assertEqual(exposeOf(said, "api"), "operator")
        self.assertEqual(exposeOf(said, "ssh"), "internal")
        self.assertEqual(exposeOf(parseTargets([b"api;expose=owner"]), None), "internal")
