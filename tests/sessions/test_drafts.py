"""Tests for L{helix_revdial.sessions.drafts}."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from helix_revdial.sessions.drafts import (
    Draft,
    Drafts,
    TooManyDrafts,
    UnknownDraft,
    consume,
)
from helix_revdial.storage.ids import isId
from tests.access.worlds import AccessTestCase
from tests.storage.postgresql import OnPostgreSQL

ANN: dict[str, Any] = {"tenant": "acme", "owner": "ann"}
BOB: dict[str, Any] = {"tenant": "acme", "owner": "bob"}
OTHER: dict[str, Any] = {"tenant": "other", "owner": "ann"}


class DraftTests(AccessTestCase):
    """Kept, changed, listed and deleted by their owner, and by nobody else."""

    def setUp(self) -> None:
        super().setUp()
        self.drafts = Drafts(self.database, self.wallClock, maxDrafts=3)

    def new(self, **fields: Any) -> Draft:
        return self.get(self.drafts.create({"prompt": "x"}, **(ANN | fields)))

    def test_kept(self) -> None:
        """What is kept comes back as it was, nested and not ASCII."""
        data = {"prompt": "höre", "repo": {"mode": "git", "n": [1, None, True]}}
        draft = self.get(self.drafts.create(data, **ANN, project="p"))
        self.assertTrue(isId(draft.id, "draft"))
        found = self.get(self.drafts.get(draft.id, **ANN))
        self.assertEqual((found.data, found.project), (data, "p"))
        self.assertEqual(found.created, found.updated)

    def test_replaced(self) -> None:
        """A change replaces all, and is seen in the order of the list."""
        first, second = self.new(), self.new()
        self.clock.advance(5)
        changed = self.get(self.drafts.put(first.id, {"labels": {}}, **ANN))
        self.assertEqual(changed.data, {"labels": {}})
        self.assertEqual(changed.updated - changed.created, 5)
        self.assertEqual(self.get(self.drafts.get(first.id, **ANN)), changed)
        listed = self.get(self.drafts.list(**ANN))
        self.assertEqual([one.id for one in listed.items], [first.id, second.id])

    def test_nobodyElses(self) -> None:
        """Another user, and one of that name in another tenant, find nothing."""
        draft = self.new()
        for who in (BOB, OTHER):
            self.fails(self.drafts.get(draft.id, **who), UnknownDraft)
            self.fails(self.drafts.put(draft.id, {}, **who), UnknownDraft)
            self.fails(self.drafts.delete(draft.id, **who), UnknownDraft)
            self.assertEqual(self.get(self.drafts.list(**who)).total, 0)
        self.assertEqual(self.get(self.drafts.get(draft.id, **ANN)), draft)

    def test_deleted(self) -> None:
        """Once."""
        draft = self.new()
        self.get(self.drafts.delete(draft.id, **ANN))
        self.fails(self.drafts.delete(draft.id, **ANN), UnknownDraft)
        self.fails(self.drafts.get("draft_no", **ANN), UnknownDraft)

    def test_limit(self) -> None:
        """A user has so many, and room again when one is gone; others have their own."""
        made = [self.new() for _ in range(3)]
        self.fails(self.drafts.create({}, **ANN), TooManyDrafts)
        self.get(self.drafts.create({}, **BOB))
        self.get(self.drafts.delete(made[0].id, **ANN))
        self.new()

    def test_pages(self) -> None:
        """A list comes in pages, of one project if that is wanted."""
        made = []
        for project in ("p", "q", "p"):
            made.append(self.new(project=project).id)
            self.clock.advance(1)
        page = self.get(self.drafts.list(**ANN, page=2, perPage=2))
        self.assertEqual(([one.id for one in page.items], page.total), (made[:1], 3))
        page = self.get(self.drafts.list(**ANN, project="p"))
        self.assertEqual([one.id for one in page.items], [made[2], made[0]])

    def test_consumedOrNot(self) -> None:
        """With a transaction that fails, a draft stays."""
        draft = self.new()

        def fails(connection: Connection) -> None:
            consume(connection, draft.id, "acme", "ann")
            raise ZeroDivisionError

        self.failureResultOf(self.database.run(fails), ZeroDivisionError)
        self.assertEqual(self.get(self.drafts.get(draft.id, **ANN)), draft)
        self.successResultOf(
            self.database.run(lambda connection: consume(connection, draft.id, "acme", "ann"))
        )
        self.fails(self.drafts.get(draft.id, **ANN), UnknownDraft)


class DraftPostgreSQLTests(OnPostgreSQL, DraftTests):
    """The same."""
