"""Tests for L{helix_revdial.access.tokens} and what it is made of."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from sqlalchemy import select
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import ILogObserver, LogEvent, eventAsText, globalLogPublisher
from zope.interface import implementer

from helix_revdial.access import recent
from helix_revdial.access.records import TokenError, TokenRecord
from helix_revdial.access.secrets import digestOf
from helix_revdial.access.store import UnknownToken
from helix_revdial.access.tokens import MAX_OVERLAP, TokenConflict
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.storage.ids import newId
from helix_revdial.storage.tables import tokens as table
from tests.access.worlds import START, AccessTestCase
from tests.storage.postgresql import OnPostgreSQL


class ShowingTests(AccessTestCase):
    def make(self, **other: Any) -> tuple[TokenRecord, str]:
        """A runner token."""
        return self.get(
            self.tokens.create("runner", **{"name": "hosts", "patterns": ["wolf-*"], **other})
        )

    def test_whoeverShowsItIsKnown(self) -> None:
        """The secret that was made authenticates as what it was made for."""
        record, secret = self.make(tenant="acme", user="ann")
        principal = self.get(self.tokens.authenticate(secret))
        assert principal is not None
        self.assertEqual(principal.kind, "runner")
        self.assertEqual(principal.tokenId, record.id)
        self.assertEqual(principal.family, record.family)
        self.assertEqual(principal.tenant, "acme")
        self.assertEqual(principal.patterns, ("wolf-*",))
        # The maker lends a runner token nothing.
        self.assertIs(principal.user, None)
        self.assertEqual(principal.roles, frozenset())

    def test_userTokens(self) -> None:
        """A user token speaks for its user in a role."""
        _, secret = self.get(self.tokens.create("user", name="laptop", user="ann", role="operator"))
        principal = self.get(self.tokens.authenticate(secret))
        assert principal is not None
        self.assertEqual((principal.user, principal.roles), ("ann", {"operator"}))
        self.assertTrue(principal.hasRole("admin", "operator"))
        self.assertFalse(principal.hasRole("admin"))

    def test_theSecretsForm(self) -> None:
        """A secret begins with a mark that scanners find, and is 256 bits."""
        made = {self.make()[1] for _ in range(20)}
        self.assertEqual(len(made), 20)
        for secret in made:
            self.assertTrue(re.fullmatch(r"hlx_[A-Za-z0-9_-]{43}", secret), "form")

    def test_anythingElseIsNobody(self) -> None:
        """A wrong, cut, longer or impossible secret is of nobody."""
        _, secret = self.make()
        for wrong in (secret[:-1], secret + "A", secret.swapcase(), "hlx_" + "A" * 43):
            self.assertIs(self.get(self.tokens.authenticate(wrong)), None)

    def test_impossibleSecretsCostNoQuery(self) -> None:
        """What no secret can be is refused without asking the database."""
        before = self.workers.calls
        for wrong in ("", "short", "x" * 513, "with space in it", "bytes\udcffhere", "tab\there!"):
            self.assertIs(self.get(self.tokens.authenticate(wrong)), None)
        self.assertEqual(self.workers.calls, before)

    def test_secretsAreStoredHashed(self) -> None:
        """F1: no row of the table holds the secret or a part of it."""
        _, secret = self.make()
        self.get(self.tokens.importSecret("legacy-secret", "runner", name="l", patterns=["*"]))
        rows = self.successResultOf(
            self.database.read(lambda c: [tuple(row) for row in c.execute(select(table))])
        )
        self.assertEqual(len(rows), 2)
        self.assertNotIn(secret[4:20], repr(rows))
        self.assertNotIn("legacy-secret", repr(rows))

    def test_noSecretInAReprLogOrError(self) -> None:
        """F1: nothing that can be printed or logged shows a secret."""
        logged: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            logged.append(eventAsText(event) + repr(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        record, secret = self.make()
        principal = self.get(self.tokens.authenticate(secret))
        errors = [
            self.fails(
                self.tokens.importSecret(secret, "runner", name="x", patterns=["other"]),
                TokenConflict,
            ),
            self.fails(self.tokens.revoke(newId("tok", 0)), UnknownToken),
        ]
        path = Path(self.mktemp())
        self.get(self.tokens.ensureAdmin(path))
        self.lose()
        errors.append(self.fails(self.tokens.authenticate("hlx_" + "B" * 43), DatabaseUnavailable))
        text = repr((record, principal, self.tokens, errors, [str(e) for e in errors], logged))
        for hidden in (secret, path.read_text().strip(), "B" * 43):
            self.assertNotIn(hidden, text)

    def test_expiry(self) -> None:
        """A token is valid until it expires, also when it was just seen."""
        _, secret = self.make(expires=START + 10)
        self.assertIsNot(self.get(self.tokens.authenticate(secret)), None)
        self.clock.advance(9.9)
        principal = self.get(self.tokens.authenticate(secret))
        assert principal is not None
        self.assertTrue(self.tokens.stillValid(principal))
        self.clock.advance(0.2)
        self.assertIs(self.get(self.tokens.authenticate(secret)), None)
        self.assertFalse(self.tokens.stillValid(principal))


class StormTests(AccessTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.record, self.secret = self.get(
            self.tokens.create("runner", name="hosts", patterns=["*"])
        )

    def test_aStormIsOneQuery(self) -> None:
        """A token that is shown a thousand times is looked up once."""
        before = self.workers.calls
        for _ in range(1000):
            self.assertIsNot(self.get(self.tokens.authenticate(self.secret)), None)
        self.assertEqual(self.workers.calls, before + 1)
        self.clock.advance(recent.FRESH + 1)
        self.get(self.tokens.authenticate(self.secret))
        self.assertEqual(self.workers.calls, before + 2)

    def test_theSameAtTheSameTimeIsOneQuery(self) -> None:
        """Those who show a token while it is looked up share the answer."""
        self.workers.holding = True
        waiting = [
            Deferred.fromCoroutine(self.tokens.authenticate(self.secret)) for _ in range(100)
        ]
        self.assertEqual(len(self.workers.held), 1)
        self.workers.answer()
        for each in waiting:
            principal = self.successResultOf(each)
            assert principal is not None
            self.assertEqual(principal.tokenId, self.record.id)

    def test_oneWhoGivesUpDoesNotFailTheOthers(self) -> None:
        """A look-up that is cancelled is done again for those who wait."""
        self.workers.holding = True
        first = Deferred.fromCoroutine(self.tokens.authenticate(self.secret))
        second = Deferred.fromCoroutine(self.tokens.authenticate(self.secret))
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertNoResult(second)
        self.workers.answer()
        self.assertNoResult(second)
        self.workers.answer()
        self.assertIsNot(self.successResultOf(second), None)

    def test_refusalsAreRememberedForAMoment(self) -> None:
        """A wrong secret is looked up once in a few seconds."""
        before = self.workers.calls
        for _ in range(50):
            self.assertIs(self.get(self.tokens.authenticate("wrong-secret")), None)
        self.assertEqual(self.workers.calls, before + 1)
        self.clock.advance(recent.FRESH_REFUSAL + 1)
        self.get(self.tokens.authenticate("wrong-secret"))
        self.assertEqual(self.workers.calls, before + 2)

    def test_whatWasRefusedCanBeMadeValid(self) -> None:
        """A secret that was refused a moment ago counts once it is imported."""
        self.assertIs(self.get(self.tokens.authenticate("legacy-token")), None)
        self.get(self.tokens.importSecret("legacy-token", "runner", name="x", patterns=["*"]))
        self.assertIsNot(self.get(self.tokens.authenticate("legacy-token")), None)

    def test_guessesDoNotPushKnownTokensOut(self) -> None:
        """However many wrong secrets come, known tokens stay known; and the
        memory for both is bounded."""
        self.patch(recent, "MAX_KNOWN", 10)
        tokens = self.newTokens()
        self.get(tokens.authenticate(self.secret))
        for number in range(50):
            self.get(tokens.authenticate(f"wrong-secret-{number}"))
        before = self.workers.calls
        self.assertIsNot(self.get(tokens.authenticate(self.secret)), None)
        self.assertEqual(self.workers.calls, before)
        self.assertEqual(len(tokens._recent._refused), 10)

    def test_lossOfTheDatabase(self) -> None:
        """
        While the database is lost, tokens that were seen in the last hour are
        taken; others are neither refused nor taken.
        """
        self.get(self.tokens.authenticate(self.secret))
        other = self.get(self.tokens.create("runner", name="o", patterns=["*"]))[1]
        self.lose()
        self.clock.advance(recent.FRESH + 1)
        self.assertIsNot(self.get(self.tokens.authenticate(self.secret)), None)
        self.fails(self.tokens.authenticate(other), DatabaseUnavailable)
        self.clock.advance(recent.KEPT)
        self.fails(self.tokens.authenticate(self.secret), DatabaseUnavailable)
        self.find()
        self.assertIsNot(self.get(self.tokens.authenticate(other)), None)

    def test_lossFailsAllWhoWaitAtOnce(self) -> None:
        """One failed look-up answers everybody who waits for it."""
        self.lose()
        self.workers.holding = True
        waiting = [Deferred.fromCoroutine(self.tokens.authenticate(self.secret)) for _ in range(20)]
        self.workers.answer()
        for each in waiting:
            self.failureResultOf(each, DatabaseUnavailable)
        self.assertEqual(self.workers.held, [])


class ComparisonTests(AccessTestCase):
    def test_onlyTheWholeDigestCounts(self) -> None:
        """F7: an answer that is filed under another digest, of which all but
        the last digit is right, authenticates nobody."""
        record, secret = self.get(self.tokens.create("runner", name="n", patterns=["*"]))
        digest = digestOf(secret)
        almost = digest[:-1] + ("0" if digest[-1] != "0" else "1")
        for stored, expected in ((almost, None), (digest, record.id)):

            async def fetch(asked: str, stored: str = stored) -> tuple[str, TokenRecord]:
                return stored, record

            lookUp = recent.RecentTokens(self.clock, self.wallClock, fetch)
            principal = self.get(lookUp.authenticate(secret))
            self.assertEqual(principal and principal.tokenId, expected)


class RevocationTests(AccessTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.record, self.secret = self.get(
            self.tokens.create("runner", name="hosts", tenant="acme", patterns=["*"])
        )
        self.told: list[str] = []
        self.tokens.onRevoked(self.told.append)

    def test_revokedAtOnce(self) -> None:
        """
        F3: a revoked token is of nobody from then on, also when it was just
        seen, and its family is told before anybody can ask again.
        """
        principal = self.get(self.tokens.authenticate(self.secret))
        assert principal is not None
        ended = self.get(self.tokens.revoke(self.record.id))
        self.assertEqual([record.id for record in ended], [self.record.id])
        self.assertEqual(self.told, [self.record.family])
        self.assertIs(self.get(self.tokens.authenticate(self.secret)), None)
        self.assertFalse(self.tokens.stillValid(principal))

    def test_subscribersSeeItRevoked(self) -> None:
        """What a subscriber asks in the moment it is told is answered so."""
        self.get(self.tokens.authenticate(self.secret))
        seen = []
        self.tokens.onRevoked(
            lambda family: seen.append(self.get(self.tokens.authenticate(self.secret)))
        )
        self.get(self.tokens.revoke(self.record.id))
        self.assertEqual(seen, [None])

    def test_aFamilyIsRevokedWhole(self) -> None:
        """Revoking a family ends the token and all its rotations."""
        _, second = self.get(self.tokens.rotate(self.record.id))
        self.get(self.tokens.authenticate(second))
        self.assertEqual(len(self.get(self.tokens.revoke(self.record.family))), 2)
        for secret in (self.secret, second):
            self.assertIs(self.get(self.tokens.authenticate(secret)), None)
        self.assertEqual(self.told, [self.record.family])

    def test_oneOfAFamily(self) -> None:
        """One of a family can be revoked; the rest of it is valid, and what
        lives in its name is told to come again."""
        _, second = self.get(self.tokens.rotate(self.record.id))
        self.get(self.tokens.revoke(self.record.id))
        self.assertEqual(self.told, [self.record.family])
        self.assertIs(self.get(self.tokens.authenticate(self.secret)), None)
        self.assertIsNot(self.get(self.tokens.authenticate(second)), None)

    def test_aLookUpFromBeforeIsNotBelieved(self) -> None:
        """
        F3: a look-up that read the table before the revocation, and is told
        after it, does not bring the token back.
        """
        self.workers.holding = True
        showing = Deferred.fromCoroutine(self.tokens.authenticate(self.secret))
        self.workers.holding = False
        self.get(self.tokens.revoke(self.record.id))
        before = self.workers.calls
        self.workers.answer()
        self.assertIs(self.successResultOf(showing), None)
        self.assertEqual(self.workers.calls, before + 1, "it was not looked up again")

    def test_aFailedRevocationIsTold(self) -> None:
        """When the database is lost, revoking says so, and nobody is cut."""
        self.lose()
        self.fails(self.tokens.revoke(self.record.id), DatabaseUnavailable)
        self.assertEqual(self.told, [])

    def test_anotherTenantsTokenIsUnknown(self) -> None:
        """Neither revoking, rotating nor reading reaches another tenant."""
        for attempt in (
            self.tokens.revoke(self.record.id, tenant="other"),
            self.tokens.revoke(self.record.family, tenant="other"),
            self.tokens.rotate(self.record.id, tenant="other"),
            self.tokens.get(self.record.id, tenant="other"),
            self.tokens.revoke("tok_nothing"),
        ):
            self.fails(attempt, UnknownToken)
        self.assertIsNot(self.get(self.tokens.authenticate(self.secret)), None)

    def test_again(self) -> None:
        """Revoking twice tells once."""
        self.get(self.tokens.revoke(self.record.id))
        self.assertEqual(self.get(self.tokens.revoke(self.record.id)), [])
        self.assertEqual(self.told, [self.record.family])

    def test_aBrokenSubscriberStopsNobody(self) -> None:
        """A subscriber that raises is logged; the others are told."""
        later: list[str] = []

        def broken(family: str) -> None:
            raise ZeroDivisionError(family)

        self.tokens.onRevoked(broken)
        unsubscribe = self.tokens.onRevoked(later.append)
        self.get(self.tokens.revoke(self.record.id))
        self.assertEqual(later, [self.record.family])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        unsubscribe()
        unsubscribe()

    def test_aSessionsTokens(self) -> None:
        """Every token of a session ends with it."""
        session = newId("ses", START)
        record, secret = self.get(self.tokens.create("session", name="s", session=session))
        self.assertEqual(len(self.get(self.tokens.revokeSession(session))), 1)
        self.assertEqual(self.told, [record.family])
        self.assertIs(self.get(self.tokens.authenticate(secret)), None)
        self.assertEqual(self.get(self.tokens.revokeSession(session)), [])


class RotationTests(AccessTestCase):
    def test_bothAreValidDuringTheOverlap(self) -> None:
        """The successor is of the same family and purpose; the old token is
        valid until the overlap ends, not longer."""
        old, oldSecret = self.get(
            self.tokens.create("runner", name="hosts", tenant="acme", patterns=["a", "b-*"])
        )
        self.get(self.tokens.authenticate(oldSecret))
        new, newSecret = self.get(self.tokens.rotate(old.id, 60))
        self.assertEqual((new.family, new.patterns, new.tenant), (old.family, ("a", "b-*"), "acme"))
        self.assertNotEqual(new.id, old.id)
        self.assertEqual(self.get(self.tokens.get(old.id)).replacement, new.id)
        self.clock.advance(59)
        for secret in (oldSecret, newSecret):
            self.assertIsNot(self.get(self.tokens.authenticate(secret)), None)
        self.clock.advance(2)
        self.assertIs(self.get(self.tokens.authenticate(oldSecret)), None)
        self.assertIsNot(self.get(self.tokens.authenticate(newSecret)), None)

    def test_noOverlap(self) -> None:
        """Without an overlap the old token ends at once."""
        old, secret = self.get(self.tokens.create("runner", name="h", patterns=["*"]))
        self.get(self.tokens.authenticate(secret))
        self.get(self.tokens.rotate(old.id, 0))
        self.assertIs(self.get(self.tokens.authenticate(secret)), None)

    def test_theSuccessorLivesAsLong(self) -> None:
        """A token that was made for a day has a successor for a day; and no
        overlap makes the old one live longer than it would have."""
        old, _ = self.get(
            self.tokens.create("runner", name="h", patterns=["*"], expires=START + 86400)
        )
        self.clock.advance(86000)
        new, _ = self.get(self.tokens.rotate(old.id, 3600))
        self.assertAlmostEqual(new.expires or 0, START + 86000 + 86400)
        self.assertEqual(self.get(self.tokens.get(old.id)).expires, START + 86400)

    def test_whatCannotBeRotated(self) -> None:
        """A token is rotated once, while it lives, with a sensible overlap."""
        old, _ = self.get(self.tokens.create("runner", name="h", patterns=["*"]))
        for overlap in (-1, MAX_OVERLAP + 1, float("nan")):
            self.fails(self.tokens.rotate(old.id, overlap), TokenError)
        new, _ = self.get(self.tokens.rotate(old.id))
        error = self.fails(self.tokens.rotate(old.id), TokenConflict)
        self.assertIn(new.id, str(error))
        self.get(self.tokens.revoke(new.id))
        self.fails(self.tokens.rotate(new.id), TokenConflict)
        self.fails(self.tokens.rotate("tok_nothing"), UnknownToken)


class ExpiringTests(AccessTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.told: list[str] = []
        self.tokens.onRevoked(self.told.append)

    def make(self, seconds: float) -> TokenRecord:
        return self.get(
            self.tokens.create("runner", name="h", patterns=["*"], expires=START + seconds)
        )[0]

    def test_expiredFamiliesAreToldOnce(self) -> None:
        """F3: a family whose token has expired is told, once."""
        record = self.make(10)
        self.assertEqual(self.get(self.tokens.expiring()), frozenset())
        self.clock.advance(10)
        self.assertEqual(self.get(self.tokens.expiring()), {record.family})
        self.assertEqual(self.told, [record.family])
        self.clock.advance(1)
        self.assertEqual(self.get(self.tokens.expiring()), frozenset())

    def test_aLiveRotationKeepsTheFamily(self) -> None:
        """When a rotated token expires, its family lives on; it ends with the
        last."""
        record = self.make(100)
        self.get(self.tokens.rotate(record.id, 10))
        self.clock.advance(11)
        self.assertEqual(self.get(self.tokens.expiring()), frozenset())
        self.clock.advance(100)
        self.assertEqual(self.get(self.tokens.expiring()), {record.family})

    def test_anotherProcessRevokes(self) -> None:
        """F3: what another process revoked is told, and not believed any
        more, as soon as it is looked for."""
        record, secret = self.get(self.tokens.create("runner", name="h", patterns=["*"]))
        self.get(self.tokens.authenticate(secret))
        self.clock.advance(1)
        self.get(self.newTokens().revoke(record.id))
        self.assertEqual(self.get(self.tokens.expiring()), {record.family})
        self.assertEqual(self.told, [record.family])
        self.assertIs(self.get(self.tokens.authenticate(secret)), None)

    def test_ownRevocationsAreNotToldAgain(self) -> None:
        """What this process revoked was told already."""
        record = self.make(100)
        self.get(self.tokens.revoke(record.id))
        self.get(self.tokens.expiring())
        self.assertEqual(self.told, [record.family])

    def test_whatHappenedWhileTheDatabaseWasLost(self) -> None:
        """A look that failed is made up for by the next."""
        record = self.make(10)
        self.clock.advance(5)
        self.lose()
        self.clock.advance(3000)
        self.fails(self.tokens.expiring(), DatabaseUnavailable)
        self.find()
        self.assertEqual(self.get(self.tokens.expiring()), {record.family})

    def test_nextExpiry(self) -> None:
        """The first expiry to come of those that are live."""
        self.assertIs(self.get(self.tokens.nextExpiry()), None)
        self.get(self.tokens.revoke(self.make(5).id))
        self.make(30)
        self.make(20)
        self.assertEqual(self.get(self.tokens.nextExpiry()), START + 20)
        self.clock.advance(25)
        self.assertEqual(self.get(self.tokens.nextExpiry()), START + 30)


class ImportTests(AccessTestCase):
    def test_anySecretFromEightToFiveHundredTwelve(self) -> None:
        """Any 8 to 512 visible ASCII characters can be imported."""
        for secret in (
            "12345678",
            "x" * 512,
            "oh-hallo-insecure-token",
            "~!@#$%^&*()=+",
            "hlx_oops!",
        ):
            self.get(self.tokens.importSecret(secret, "runner", name="legacy", patterns=["*"]))
            self.assertIsNot(self.get(self.tokens.authenticate(secret)), None, secret)

    def test_otherSecretsAreRefused(self) -> None:
        """Shorter, longer, or with other characters: refused, not repeated."""
        for secret in ("1234567", "x" * 513, "with space", "ümlaut-here", "line\nbreak", ""):
            error = self.fails(
                self.tokens.importSecret(secret, "runner", name="l", patterns=["*"]), TokenError
            )
            if secret:
                self.assertNotIn(secret, str(error))

    def test_againIsTheSame(self) -> None:
        """A server that imports its C{RUNNER_TOKEN} at each start has one token."""
        first = self.get(self.tokens.importSecret("legacy-1", "runner", name="l", patterns=["*"]))
        self.clock.advance(100)
        again = self.get(
            self.newTokens().importSecret("legacy-1", "runner", name="l", patterns=["*"])
        )
        self.assertEqual(again, first)

    def test_forAnotherPurpose(self) -> None:
        """A secret that is known stands for one thing."""
        self.get(self.tokens.importSecret("legacy-1", "runner", name="l", patterns=["wolf-*"]))
        self.fails(
            self.tokens.importSecret("legacy-1", "runner", name="l", patterns=["*"]), TokenConflict
        )
        self.fails(
            self.tokens.importSecret("legacy-1", "user", name="l", user="ann", role="admin"),
            TokenConflict,
        )

    def test_whatWasRevokedStaysSo(self) -> None:
        """A revoked secret is not brought back by importing it again."""
        record = self.get(self.tokens.importSecret("legacy-1", "runner", name="l", patterns=["*"]))
        self.get(self.tokens.revoke(record.id))
        self.fails(
            self.tokens.importSecret("legacy-1", "runner", name="l", patterns=["*"]), TokenConflict
        )
        self.assertIs(self.get(self.tokens.authenticate("legacy-1")), None)


class ListTests(AccessTestCase):
    def test_newestFirstInPages(self) -> None:
        """Pages of a tenant's tokens, newest first, with their number."""
        made = []
        for number in range(5):
            self.clock.advance(1)
            made.append(
                self.get(
                    self.tokens.create(
                        "user", name=str(number), tenant="acme", user="ann", role="viewer"
                    )
                )[0]
            )
        self.get(self.tokens.create("runner", name="o", tenant="other", patterns=["*"]))
        page, total = self.get(self.tokens.list(tenant="acme", page=2, perPage=2))
        self.assertEqual(([r.name for r in page], total), (["2", "1"], 5))
        self.get(self.tokens.revoke(made[0].id))
        self.assertEqual(self.get(self.tokens.list(tenant="acme"))[1], 4)
        self.assertEqual(self.get(self.tokens.list(tenant="acme", ended=True))[1], 5)
        self.assertEqual(self.get(self.tokens.list(tenant="acme", kind="runner"))[1], 0)
        self.assertEqual(self.get(self.tokens.list(user="ann"))[1], 4)
        self.assertEqual(self.get(self.tokens.list())[1], 5)


class FirstStartTests(AccessTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.mktemp())
        self.path.parent.mkdir(exist_ok=True)

    def test_theFirstStartWritesAnAdminToken(self) -> None:
        """The file is the owner's alone, whatever the umask, and holds a
        valid admin token; where it is is told."""
        self.addCleanup(os.umask, os.umask(0))
        self.assertEqual(self.get(self.tokens.ensureAdmin(self.path)), self.path)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        principal = self.get(self.tokens.authenticate(self.path.read_text().strip()))
        assert principal is not None
        self.assertTrue(principal.hasRole("admin"))
        self.assertEqual([p.name for p in self.path.parent.glob(".*")], [], "drafts left over")

    def test_laterStartsLeaveItAlone(self) -> None:
        """While an admin token is live the file is not touched, not even when
        it has been taken away."""
        self.get(self.tokens.ensureAdmin(self.path))
        text = self.path.read_text()
        self.assertIs(self.get(self.newTokens().ensureAdmin(self.path)), None)
        self.assertEqual(self.path.read_text(), text)
        self.path.unlink()
        self.assertIs(self.get(self.newTokens().ensureAdmin(self.path)), None)
        self.assertFalse(self.path.exists())

    def test_afterTheLastAdminHasEnded(self) -> None:
        """When no admin token is live, the next start makes another."""
        self.get(self.tokens.ensureAdmin(self.path))
        first = self.path.read_text().strip()
        principal = self.get(self.tokens.authenticate(first))
        assert principal is not None
        self.get(self.tokens.create("user", name="v", user="vic", role="viewer"))
        self.get(self.tokens.revoke(principal.tokenId))
        self.assertEqual(self.get(self.tokens.ensureAdmin(self.path)), self.path)
        second = self.path.read_text().strip()
        self.assertNotEqual(first, second)
        self.assertIs(self.get(self.tokens.authenticate(first)), None)
        self.assertIsNot(self.get(self.tokens.authenticate(second)), None)

    def test_aFileThatCannotBeWritten(self) -> None:
        """Without the file there is no token: nobody would know it."""
        path = self.path.parent / "nowhere" / "admin"
        self.fails(self.tokens.ensureAdmin(path), OSError)
        self.assertEqual(self.get(self.tokens.list(ended=True))[1], 0)

    def test_aLinkIsReplacedNotFollowed(self) -> None:
        """A link that somebody laid where the file goes is not written through."""
        victim = Path(self.mktemp())
        victim.write_text("precious")
        self.path.symlink_to(victim)
        self.get(self.tokens.ensureAdmin(self.path))
        self.assertEqual(victim.read_text(), "precious")
        self.assertFalse(self.path.is_symlink())

    def test_anOpenFileIsReplaced(self) -> None:
        """An earlier file that everybody reads does not lend its mode."""
        self.path.write_text("old")
        self.path.chmod(0o644)
        self.get(self.tokens.ensureAdmin(self.path))
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)


class ShowingPostgreSQLTests(OnPostgreSQL, ShowingTests):
    """The same on PostgreSQL."""


class RevocationPostgreSQLTests(OnPostgreSQL, RevocationTests):
    """The same on PostgreSQL."""


class RotationPostgreSQLTests(OnPostgreSQL, RotationTests):
    """The same on PostgreSQL."""


class ExpiringPostgreSQLTests(OnPostgreSQL, ExpiringTests):
    """The same on PostgreSQL."""


class ImportPostgreSQLTests(OnPostgreSQL, ImportTests):
    """The same on PostgreSQL."""


class ListPostgreSQLTests(OnPostgreSQL, ListTests):
    """The same on PostgreSQL."""


class FirstStartPostgreSQLTests(OnPostgreSQL, FirstStartTests):
    """The same on PostgreSQL."""
