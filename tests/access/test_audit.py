"""Tests for L{helix_revdial.access.audit}."""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import IntegrityError

from helix_revdial.access import audit
from helix_revdial.access.audit import AuditEntry, AuditLog
from helix_revdial.access.secrets import newSecret
from helix_revdial.storage.failures import DatabaseUnavailable
from tests.access.worlds import START, AccessTestCase
from tests.storage.postgresql import OnPostgreSQL


class AuditTests(AccessTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.log = AuditLog(self.database, self.clock, self.wallClock)

    def entries(self, **which: Any) -> list[AuditEntry]:
        return self.get(self.log.list(**which))

    def test_whatIsRecordedIsListed(self) -> None:
        """An entry has all that was said, and is written within a second."""
        self.log.record("refused", subject="tok_1", tenant="acme", status=403, runner="wolf-1")
        self.assertEqual(self.entries(), [])
        self.clock.advance(audit.WRITE_AFTER)
        (entry,) = self.entries()
        self.assertEqual((entry.event, entry.subject, entry.tenant), ("refused", "tok_1", "acme"))
        self.assertEqual(entry.fields, {"status": 403, "runner": "wolf-1"})
        self.assertEqual((entry.at, entry.times), (START, 1))

    def test_recordingTouchesNoDatabase(self) -> None:
        """A hundred entries are one transaction (and one to remove old ones)."""
        before = self.workers.calls
        for number in range(100):
            self.log.record("refused", subject=str(number))
        self.assertEqual(self.workers.calls, before)
        self.clock.advance(audit.WRITE_AFTER)
        self.assertEqual(self.workers.calls, before + 2)
        self.assertEqual(len(self.entries(limit=1000)), 100)

    def test_newestFirstInPages(self) -> None:
        """Pages begin where the last ended; filters hold."""
        for number in range(5):
            self.log.record("refused", subject=str(number), tenant="acme")
        self.log.record("takeover", subject="x", tenant="other")
        self.get(self.log.flush())
        first = self.entries(limit=2, tenant="acme")
        self.assertEqual([entry.subject for entry in first], ["4", "3"])
        rest = self.entries(before=first[-1].id, tenant="acme")
        self.assertEqual([entry.subject for entry in rest], ["2", "1", "0"])
        self.assertEqual([entry.subject for entry in self.entries(event="takeover")], ["x"])

    def test_aFloodOfOneSubject(self) -> None:
        """
        A thousand refusals of one address are a few entries and one that says
        how many more there were, when the minute is over.
        """
        for _ in range(1000):
            self.log.record("refused", subject="192.0.2.1", status=401)
        self.log.record("refused", subject="192.0.2.2", status=401)
        self.clock.advance(audit.WRITE_AFTER)
        self.assertEqual(len(self.entries(limit=1000)), audit.PER_SUBJECT + 1)
        self.clock.pump([audit.WINDOW, audit.WRITE_AFTER])
        newest = self.entries()[0]
        self.assertEqual(newest.subject, "192.0.2.1")
        self.assertEqual(newest.times, 1000 - audit.PER_SUBJECT)
        # The next minute begins anew, and only when there is something.
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.log.record("refused", subject="192.0.2.1", status=401)
        self.clock.advance(audit.WRITE_AFTER)
        self.assertEqual(self.entries()[0].times, 1)

    def test_aFloodOfManySubjects(self) -> None:
        """
        An attacker with many addresses fills neither the table nor the memory,
        and does not keep other events out.
        """
        self.patch(audit, "MAX_SUBJECTS", 1000)
        for number in range(5000):
            self.log.record("refused", subject=f"2001:db8::{number:x}")
        self.assertLessEqual(len(self.log._tallies), 1000)
        self.log.record("takeover", subject="tok_1")
        self.clock.advance(audit.WINDOW)
        self.clock.advance(audit.WRITE_AFTER)
        entries = self.entries(limit=1000)
        self.assertEqual(len(entries), audit.PER_EVENT + 2)
        self.assertEqual(sum(entry.times for entry in entries), 5001)
        self.assertEqual(len([e for e in entries if e.event == "takeover"]), 1)

    def test_theQueueIsBounded(self) -> None:
        """What cannot wait is counted, and the count is written."""
        self.patch(audit, "MAX_QUEUE", 10)
        for number in range(25):
            self.log.record("refused", subject=str(number))
        self.clock.advance(audit.WRITE_AFTER)
        entries = self.entries()
        self.assertEqual(len(entries), 11)
        self.assertEqual((entries[0].event, entries[0].times), ("audit-lost", 15))

    def test_lossOfTheDatabase(self) -> None:
        """Entries wait for the database, and keep their times and order."""
        self.log.record("refused", subject="1")
        self.lose()
        self.clock.advance(audit.WRITE_AFTER)
        self.log.record("refused", subject="2")
        self.clock.advance(audit.RETRY_AFTER)
        self.find()
        self.clock.advance(audit.RETRY_AFTER)
        self.assertEqual([entry.subject for entry in self.entries()], ["2", "1"])

    def test_whatTheDatabaseWillNotHave(self) -> None:
        """A batch that is refused as such is dropped, and the next is written."""
        self.log.record("refused", subject="1")
        self.workers.lost = IntegrityError("statement", {}, Exception("no"))
        self.clock.advance(audit.WRITE_AFTER)
        self.assertEqual(len(self.flushLoggedErrors(IntegrityError)), 1)
        self.find()
        self.log.record("refused", subject="2")
        self.clock.advance(audit.RETRY_AFTER)
        self.assertEqual([entry.subject for entry in self.entries()], ["2"])

    def test_anyValueCanBeRecorded(self) -> None:
        """Whatever a peer sends can be noted, on every database."""
        self.log.record(
            "refused",
            subject="a\x00b\ud800" + "x" * 1000,
            tenant="t\x00",
            long="y" * 10_000,
            nan=float("nan"),
            number=1.5,
            none=None,
            other=("a", b"\xff"),
            **{f"field{number}": number for number in range(100)},
        )
        self.get(self.log.flush())
        (entry,) = self.entries()
        self.assertEqual(len(entry.subject or ""), 255)
        self.assertNotIn("\0", f"{entry.subject}{entry.tenant}")
        self.assertEqual(len(entry.fields["long"]), audit.MAX_VALUE)
        self.assertEqual((entry.fields["nan"], entry.fields["number"]), ("nan", 1.5))
        self.assertEqual(len(entry.fields), audit.MAX_FIELDS)

    def test_noSecretGetsIn(self) -> None:
        """F1: a secret that somebody puts where it does not belong is taken out."""
        secret = newSecret()
        self.log.record("refused", subject=secret, tenant=secret, path=f"/x?token={secret}")
        self.get(self.log.flush())
        self.assertNotIn(secret[4:20], repr(self.entries()))

    def test_oldEntriesLeave(self) -> None:
        """Entries leave after ninety days, and not before."""
        self.log.record("refused", subject="old")
        self.clock.advance(audit.KEEP - 10)
        self.log.record("refused", subject="newer")
        self.clock.pump([audit.WRITE_AFTER])
        self.assertEqual(len(self.entries()), 2)
        self.clock.advance(audit.PRUNE_EVERY)
        self.log.record("refused", subject="newest")
        self.clock.pump([audit.WRITE_AFTER])
        self.assertEqual([entry.subject for entry in self.entries()], ["newest", "newer"])

    def test_stopping(self) -> None:
        """What waits is written, what was counted is told, no timer is left."""
        for _ in range(10):
            self.log.record("refused", subject="1")
        self.get(self.log.stop())
        self.assertEqual(sum(entry.times for entry in self.entries()), 10)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stoppingWithoutADatabase(self) -> None:
        """It stops also when nothing can be written."""
        self.log.record("refused", subject="1")
        self.lose()
        self.fails(self.log.flush(), DatabaseUnavailable)
        self.get(self.log.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])


class AuditPostgreSQLTests(OnPostgreSQL, AuditTests):
    """The same on PostgreSQL."""
