"""Turns: how many go at once, who is next, and how a wait ends."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.errors import DialTimeout, NotConnected, TooManyPendingDials
from helix_revdial.revdial.turns import MAX_WAITING, Turns


class TurnsTests(SynchronousTestCase):
    """Two may go at once."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.turns = Turns(self.clock, 2)
        self.started: list[tuple[str, float]] = []
        self.under: dict[str, Deferred[str]] = {}

    def take(
        self, name: str, timeout: float = 10.0, place: str = "here", atOnce: bool = False
    ) -> Deferred[str]:
        def start(left: float) -> Deferred[str]:
            self.started.append((name, left))
            result: Deferred[str] = Deferred()
            self.under[name] = result
            return result

        return self.turns.take(place, start, timeout, atOnce=atOnce)

    @property
    def names(self) -> str:
        return "".join(name for name, _ in self.started)

    def nothingLeft(self) -> None:
        self.assertEqual((len(self.turns), self.clock.getDelayedCalls()), (0, []))
        self.assertEqual((self.turns._under, self.turns._waiting), ({}, {}))

    def test_inOrder(self) -> None:
        """So many at once; the others in the order in which they came, with the time left."""
        results = [self.take(name) for name in "abcd"]
        self.assertEqual((self.names, len(self.turns)), ("ab", 2))
        self.clock.advance(4)
        self.under["b"].callback("B")
        self.assertEqual(self.started[2:], [("c", 6.0)])
        self.under["a"].errback(NotConnected())
        self.assertEqual(self.names, "abcd")
        self.under["c"].callback("C")
        self.under["d"].callback("D")
        self.failureResultOf(results[0], NotConnected)
        self.assertEqual([self.successResultOf(one) for one in results[1:]], ["B", "C", "D"])
        self.nothingLeft()

    def test_eachPlace(self) -> None:
        """Places do not wait for each other."""
        for name in "abc":
            self.take(name)
        self.take("d", place="there")
        self.assertEqual(self.names, "abd")

    def test_atOnce(self) -> None:
        """Who need not wait does not, and is counted."""
        for name in "abc":
            self.take(name)
        self.take("d", atOnce=True)
        self.assertEqual(self.names, "abd")
        self.under["a"].callback("")
        self.assertEqual(self.names, "abd", "two are under way still")
        self.under["d"].callback("")
        self.assertEqual(self.names, "abdc")

    def test_noTurnInTime(self) -> None:
        """A wait that takes all the time there is ends with that, and its place is another's."""
        self.take("a")
        self.take("b")
        late, other = self.take("c", timeout=3), self.take("d")
        self.clock.advance(3)
        self.failureResultOf(late, DialTimeout)
        self.under["a"].callback("")
        self.assertEqual(self.names, "abd")
        self.assertNoResult(other)

    def test_cancelled(self) -> None:
        """Who gives up while waiting is forgotten; who was started is cancelled."""
        first = self.take("a")
        self.take("b")
        gone = self.take("c")
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.assertEqual(len(self.turns), 0)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(self.names, "ab")
        self.under["b"].callback("")
        self.nothingLeft()

    def test_tooMany(self) -> None:
        """So many may wait; one more is told at once."""
        self.take("a")
        self.take("b")
        for _ in range(MAX_WAITING):
            self.take("x")
        error = self.failureResultOf(self.take("y"), TooManyPendingDials).value
        self.assertEqual(error.retryAfter, 1.0)

    def test_allFailAtOnce(self) -> None:
        """A thousand that fail as soon as they are started are no recursion; order is kept."""
        self.take("a")
        self.take("b")
        ended: list[int] = []

        def start(number: int) -> Deferred[None]:
            ended.append(number)
            return succeed(None) if number % 2 else fail(NotConnected())

        results = [
            self.turns.take("here", lambda left, number=number: start(number), 10.0)  # type: ignore[misc]
            for number in range(MAX_WAITING)
        ]
        self.under["a"].callback("")
        self.assertEqual(ended, list(range(MAX_WAITING)))
        for number, result in enumerate(results):
            if number % 2:
                self.successResultOf(result)
            else:
                self.failureResultOf(result, NotConnected)
        self.under["b"].callback("")
        self.nothingLeft()

    def test_anotherPlaceIsFreedMeanwhile(self) -> None:
        """What ends at another place while one is called has its next called too."""
        for name, place in (("a", "1"), ("b", "1"), ("c", "2"), ("d", "2"), ("e", "2")):
            self.take(name, place=place)

        def start(left: float) -> Deferred[None]:
            self.under["c"].callback("")
            return succeed(None)

        self.turns.take("1", start, 10.0)
        self.under["a"].callback("")
        self.assertEqual(self.names, "abcde")

    def test_startFails(self) -> None:
        """Where starting itself goes wrong the turn is given back."""

        def start(left: float) -> Deferred[None]:
            raise ValueError("no")

        for _ in range(3):
            self.assertRaises(ValueError, self.turns.take, "here", start, 10.0)
        self.nothingLeft()

    def test_limitIsRaised(self) -> None:
        """Another limit holds from the next turn on."""
        for name in "abcd":
            self.take(name)
        self.turns.most = 4
        self.under["a"].callback("")
        self.assertEqual(self.names, "abcd")
