"""Tests for L{helix_revdial.access.generations}."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred

from helix_revdial.access.generations import Generations
from helix_revdial.storage.failures import DatabaseUnavailable
from tests.access.worlds import AccessTestCase
from tests.storage.postgresql import OnPostgreSQL


class GenerationsTests(AccessTestCase):
    def take(self, generations: Generations, count: int) -> list[int]:
        return [self.get(generations.next()) for _ in range(count)]

    def test_theyGrow(self) -> None:
        """From 1, across blocks, each larger than the one before."""
        generations = Generations(self.database, block=10)
        self.assertEqual(self.take(generations, 25), list(range(1, 26)))

    def test_aStormIsFewWrites(self) -> None:
        """A thousand numbers are one transaction."""
        generations = Generations(self.database)
        before = self.workers.calls
        self.take(generations, 1000)
        self.assertEqual(self.workers.calls, before + 1)

    def test_acrossRestarts(self) -> None:
        """What is left of a block is never given out again."""
        last = self.take(Generations(self.database), 3)[-1]
        self.assertGreater(self.take(Generations(self.database), 1)[0], last)

    def test_twoProcesses(self) -> None:
        """Two processes never give out the same number, and each only grows."""
        one, other = (Generations(self.database, block=3) for _ in range(2))
        mixed = [(self.get(one.next()), self.get(other.next())) for _ in range(20)]
        flat = [number for pair in mixed for number in pair]
        self.assertEqual(len(set(flat)), len(flat))
        for column in zip(*mixed, strict=True):
            self.assertEqual(sorted(column), list(column))

    def test_aboveAnothersNumber(self) -> None:
        """A2: who takes over from another process has a larger number than it."""
        one, other = (Generations(self.database, block=10) for _ in range(2))
        self.take(one, 1)
        theirs = self.take(other, 4)[-1]
        mine = self.get(one.next(above=theirs))
        self.assertGreater(mine, theirs)
        self.assertGreater(self.get(one.next()), mine)

    def test_aboveWithinTheBlock(self) -> None:
        """Numbers of the block that are large enough are used."""
        generations = Generations(self.database, block=10)
        self.assertEqual(self.get(generations.next()), 1)
        self.assertEqual(self.get(generations.next(above=5)), 6)
        self.assertEqual(self.get(generations.next(above=2)), 7)

    def test_aboveEverything(self) -> None:
        """Also above a number that the database has not given out (a restored
        backup)."""
        generations = Generations(self.database, block=10)
        before = self.workers.calls
        self.assertEqual(self.get(generations.next(above=5000)), 5001)
        self.assertEqual(self.workers.calls, before + 1)
        self.assertGreater(self.get(Generations(self.database).next()), 5001)

    def test_oneRefillForAll(self) -> None:
        """Those who come while a block is fetched share it."""
        self.workers.holding = True
        generations = Generations(self.database, block=100)
        waiting = [Deferred.fromCoroutine(generations.next()) for _ in range(50)]
        self.assertEqual(len(self.workers.held), 1)
        self.workers.answer()
        self.assertEqual(sorted(self.successResultOf(each) for each in waiting), list(range(1, 51)))

    def test_moreThanABlockAtOnce(self) -> None:
        """Those for whom the block was too small share the next."""
        self.workers.holding = True
        generations = Generations(self.database, block=10)
        waiting = [Deferred.fromCoroutine(generations.next()) for _ in range(25)]
        for _ in range(3):
            self.assertEqual(len(self.workers.held), 1)
            self.workers.answer()
        self.assertEqual(len({self.successResultOf(each) for each in waiting}), 25)

    def test_oneWhoGivesUp(self) -> None:
        """When the one who fetches gives up, the others fetch."""
        self.workers.holding = True
        generations = Generations(self.database, block=10)
        first = Deferred.fromCoroutine(generations.next())
        second = Deferred.fromCoroutine(generations.next())
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.workers.answer()
        self.assertNoResult(second)
        self.workers.answer()
        self.successResultOf(second)

    def test_lossOfTheDatabase(self) -> None:
        """The rest of a block is given out; then it is told, and it goes on
        when the database is back."""
        generations = Generations(self.database, block=2)
        self.take(generations, 1)
        self.lose()
        self.take(generations, 1)
        self.fails(generations.next(), DatabaseUnavailable)
        self.fails(generations.next(), DatabaseUnavailable)
        self.find()
        self.assertEqual(self.take(generations, 2), [3, 4])

    def test_sillyBlocks(self) -> None:
        """A block without numbers would never end."""
        with self.assertRaises(ValueError):
            Generations(self.database, block=0)


class GenerationsPostgreSQLTests(OnPostgreSQL, GenerationsTests):
    """The same on PostgreSQL."""
