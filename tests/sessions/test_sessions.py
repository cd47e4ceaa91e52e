"""Tests for L{helix_revdial.sessions.sessions}."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from helix_revdial.sessions import sessions as module
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.sessions import SessionError, Sessions
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.storage.ids import isId, newId
from tests.access.worlds import START, AccessTestCase
from tests.storage.postgresql import OnPostgreSQL


class SessionsTests(AccessTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.sessions = Sessions(self.database, self.clock, self.wallClock)

    def make(self, name: str = "s", tenant: str = "acme", owner: str = "ann") -> Session:
        self.clock.advance(1)
        return self.get(self.sessions.create(name=name, tenant=tenant, owner=owner))

    def test_create(self) -> None:
        """A session has an id, a tenant and an owner from the start."""
        made = self.make("my sandbox")
        self.assertTrue(isId(made.id, "ses"))
        self.assertEqual(
            made,
            Session(made.id, "acme", "ann", "my sandbox", "created", START + 1, updated=START + 1),
        )
        self.assertEqual(self.get(self.sessions.get(made.id)), made)

    def test_names(self) -> None:
        """A name has 1 to 200 characters and no control characters."""
        for name in ("", "x" * 201, "a\nb", "\x1b[2J", "\x00", "\x85", "\udfff"):
            error = self.fails(
                self.sessions.create(name=name, tenant="acme", owner="ann"), SessionError
            )
            assert isinstance(error, SessionError)
            self.assertEqual(error.field, "name")
        self.assertEqual(self.make("日" * 200).name, "日" * 200)

    def test_get(self) -> None:
        """Unknown ids, other forms and other tenants are nothing."""
        made = self.make()
        self.assertIs(self.get(self.sessions.get(newId("ses", 1))), None)
        self.assertIs(self.get(self.sessions.get(made.id, tenant="other")), None)
        self.assertEqual(self.get(self.sessions.get(made.id, tenant="acme")), made)
        before = self.workers.calls
        for odd in ("", "x", made.id + " ", "'; DROP TABLE sessions", "ses_" + "0" * 5000):
            self.assertIs(self.get(self.sessions.get(odd)), None)
            self.assertIs(self.get(self.sessions.delete(odd)), None)
        self.assertEqual(self.workers.calls, before)

    def test_list(self) -> None:
        """Pages, newest first, with what is needed to go on."""
        made = [self.make(str(number)) for number in range(5)]
        self.make("bob's", owner="bob")
        self.make("elsewhere", tenant="other")
        page = self.get(self.sessions.list(tenant="acme", owner="ann", perPage=2))
        self.assertEqual((page.items, page.total, page.nextPage), ([made[4], made[3]], 5, 2))
        page = self.get(self.sessions.list(tenant="acme", owner="ann", page=3, perPage=2))
        self.assertEqual((page.items, page.total, page.nextPage), ([made[0]], 5, None))
        self.assertEqual(self.get(self.sessions.list(tenant="acme")).total, 6)
        self.assertEqual(self.get(self.sessions.list(tenant="acme", page=9)).items, [])
        self.assertEqual(self.get(self.sessions.list(tenant="none")).total, 0)

    def test_theLastPageThatIsFull(self) -> None:
        """A full last page has no next."""
        self.make()
        self.make()
        self.assertIs(self.get(self.sessions.list(tenant="acme", perPage=2)).nextPage, None)

    def test_pagesThatCannotBe(self) -> None:
        """Wrong pages are refused, with the parameter's name."""
        for page, perPage, field in (
            (0, 20, "page"),
            (10**9, 20, "page"),
            (1, 0, "perPage"),
            (1, 201, "perPage"),
        ):
            error = self.fails(
                self.sessions.list(tenant="acme", page=page, perPage=perPage), SessionError
            )
            assert isinstance(error, SessionError)
            self.assertEqual(error.field, field)

    def test_delete(self) -> None:
        """A deleted session is gone for everybody; subscribers are told once."""
        told: list[Session] = []
        unsubscribe = self.sessions.onDeleted(told.append)
        made = self.make()
        self.assertIs(self.get(self.sessions.delete(made.id, tenant="other")), None)
        deleted = self.get(self.sessions.delete(made.id, tenant="acme"))
        assert deleted is not None
        self.assertEqual((deleted.id, deleted.status), (made.id, "deleted"))
        self.assertEqual(told, [deleted])
        self.assertTrue(self.sessions.wasDeleted(made.id))
        self.assertIs(self.get(self.sessions.delete(made.id)), None)
        self.assertIs(self.get(self.sessions.get(made.id)), None)
        self.assertEqual(self.get(self.sessions.list(tenant="acme")).total, 0)
        self.assertEqual(len(told), 1)
        unsubscribe()
        unsubscribe()

    def test_aBrokenSubscriberStopsNobody(self) -> None:
        """A subscriber that raises is logged; the others are told."""
        told: list[Session] = []

        def broken(session: Session) -> None:
            raise ZeroDivisionError(session.id)

        self.sessions.onDeleted(broken)
        self.sessions.onDeleted(told.append)
        self.get(self.sessions.delete(self.make().id))
        self.assertEqual(len(told), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class FactsTests(AccessTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.sessions = Sessions(self.database, self.clock, self.wallClock)
        self.made = self.get(self.sessions.create(name="s", tenant="acme", owner="ann"))

    def test_aStormIsOneQuery(self) -> None:
        """A session that is asked for again and again is looked up once."""
        before = self.workers.calls
        for _ in range(100):
            self.assertEqual(self.get(self.sessions.facts(self.made.id)), self.made)
        self.assertEqual(self.workers.calls, before + 1)
        self.clock.advance(module.FRESH + 1)
        self.get(self.sessions.facts(self.made.id))
        self.assertEqual(self.workers.calls, before + 2)

    def test_deletedIsGoneAtOnce(self) -> None:
        """What was remembered does not outlive a deletion."""
        self.get(self.sessions.facts(self.made.id))
        self.get(self.sessions.delete(self.made.id))
        self.assertIs(self.get(self.sessions.facts(self.made.id)), None)
        self.lose()
        self.fails(self.sessions.facts(self.made.id), DatabaseUnavailable)

    def test_aLookUpFromBeforeIsNotBelieved(self) -> None:
        """A look-up that read before the deletion and is told after it finds
        nothing."""
        self.workers.holding = True
        asking = Deferred.fromCoroutine(self.sessions.facts(self.made.id))
        self.workers.holding = False
        self.get(self.sessions.delete(self.made.id))
        self.workers.answer()
        self.assertIs(self.successResultOf(asking), None)

    def test_lossOfTheDatabase(self) -> None:
        """What was known stays known while the database is lost."""
        self.get(self.sessions.facts(self.made.id))
        self.clock.advance(module.FRESH + 1)
        self.lose()
        self.assertEqual(self.get(self.sessions.facts(self.made.id)), self.made)
        self.fails(self.sessions.facts(newId("ses", 2)), DatabaseUnavailable)
        self.clock.advance(module.KEPT)
        self.fails(self.sessions.facts(self.made.id), DatabaseUnavailable)

    def test_unknownIsNotRemembered(self) -> None:
        """A session that is made by another process is there when it is."""
        self.assertIs(self.get(self.sessions.facts(newId("ses", 3))), None)
        self.assertEqual(len(self.sessions._known), 0)


class SessionsPostgreSQLTests(OnPostgreSQL, SessionsTests):
    """The same on PostgreSQL."""
