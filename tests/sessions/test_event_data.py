"""Tests for L{helix_revdial.sessions.event_data}."""

from __future__ import annotations

from sqlalchemy import Connection
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions import event_data as module
from helix_revdial.sessions.event_data import MAX_EVENT, EventTooLarge, Redactors, asStored
from helix_revdial.sessions.redaction import MARK, Redactor
from tests.sessions.worlds import SessionTestCase


class AsStoredTests(SynchronousTestCase):
    def test_limit(self) -> None:
        """The limit is on the data as JSON, by the byte."""
        room = MAX_EVENT - len('{"x":""}')
        self.assertEqual(asStored({"x": "y" * room}, Redactor(())), {"x": "y" * room})
        self.assertRaises(EventTooLarge, asStored, {"x": "y" * (room + 1)}, Redactor(()))

    def test_deep(self) -> None:
        """Halves of surrogate pairs go wherever they are, names included."""
        stored = asStored({"a\ud800": [{"b": "c\udfff"}, 1]}, Redactor(()))
        self.assertEqual(stored, {"a?": [{"b": "c?"}, 1]})


class RedactorsTests(SessionTestCase):
    def test_remembered(self) -> None:
        """So many sessions' secrets are remembered; one's that was forgotten are read anew."""
        self.patch(module, "MAX_REDACTORS", 3)
        redactors = Redactors(lambda agent: ())
        ids = [
            self.newTask(agent={"type": "demo", "settings": {"token": f"swordfish{n}"}}).id
            for n in range(5)
        ]

        def look(connection: Connection) -> list[str]:
            return [
                redactors.of(connection, one).text(f"swordfish{n}") for n, one in enumerate(ids)
            ]

        for _ in range(2):
            self.assertEqual(self.successResultOf(self.database.read(look)), [MARK] * 5)
            self.assertEqual(len(redactors), 3)

    def test_unknown(self) -> None:
        """A session that is not there has no secrets of its own."""
        redactors = Redactors(lambda agent: ())
        found = self.successResultOf(
            self.database.read(lambda c: redactors.of(c, "ses_nobody").text("swordfish"))
        )
        self.assertEqual(found, "swordfish")
