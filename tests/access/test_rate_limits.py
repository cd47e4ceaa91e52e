"""Tests for L{helix_revdial.access.rate_limits}: how often somebody may call."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.principals import Principal
from helix_revdial.access.rate_limits import Rate, RateExceeded, RateLimits, RateSettings


def caller(user: str = "ann", tenant: str = "t", project: str | None = None) -> Principal:
    return Principal("user", "tok", "fam", tenant, user=user, project=project)


class RateTests(SynchronousTestCase):
    def limits(
        self,
        user: Rate = Rate(),  # noqa: B008 (frozen)
        tenant: Rate = Rate(),  # noqa: B008
        project: Rate = Rate(),  # noqa: B008
        **more: int,
    ) -> RateLimits:
        self.clock = Clock()
        rates = {"user": user, "tenant": tenant, "project": project}
        return RateLimits(self.clock, RateSettings(rates), **more)  # type: ignore[arg-type]

    def taken(self, limits: RateLimits, principal: Principal, tries: int) -> int:
        """How many of so many calls are let through."""
        count = 0
        for _ in range(tries):
            try:
                limits.take(principal)
            except RateExceeded:
                continue
            count += 1
        return count

    def test_burst(self) -> None:
        """After a quiet time so many at once, then at the steady rate."""
        limits = self.limits(Rate(2, 5))
        self.assertEqual(self.taken(limits, caller(), 20), 5)
        self.clock.advance(1)
        self.assertEqual(self.taken(limits, caller(), 20), 2)
        self.clock.advance(3600)
        self.assertEqual(self.taken(limits, caller(), 20), 5)

    def test_retryAfter(self) -> None:
        """After the seconds that are told there is room; they are whole, and at least one."""
        for perSecond, burst in ((100.0, 3), (0.1, 1), (0.3, 2), (1.0, 1)):
            limits = self.limits(Rate(perSecond, burst))
            self.taken(limits, caller(), burst)
            error = self.assertRaises(RateExceeded, limits.take, caller())
            self.assertGreaterEqual(error.retryAfter, 1)
            self.assertIsInstance(error.retryAfter, int)
            self.clock.advance(error.retryAfter)
            limits.take(caller())

    def test_others(self) -> None:
        """One user's calls, and one tenant's, take nothing from another's."""
        limits = self.limits(Rate(1, 2), tenant=Rate(1, 3))
        self.assertEqual(self.taken(limits, caller("ann"), 10), 2)
        self.assertEqual(self.taken(limits, caller("bob"), 10), 1)
        self.assertEqual(self.taken(limits, caller("ann", "other"), 10), 2)

    def test_refusedCountsForNobody(self) -> None:
        """A call that the user's bucket refuses takes nothing from the tenant's."""
        limits = self.limits(Rate(1, 2), tenant=Rate(1, 4))
        self.taken(limits, caller("ann"), 50)
        self.assertEqual(self.taken(limits, caller("bob"), 10), 2)

    def test_project(self) -> None:
        """Those who are confined to a project share its bucket."""
        limits = self.limits(project=Rate(1, 2))
        self.assertEqual(self.taken(limits, caller("ann", project="p"), 5), 2)
        error = self.assertRaises(RateExceeded, limits.take, caller("bob", project="p"))
        self.assertEqual(error.scope, "project")
        self.assertEqual(self.taken(limits, caller("bob", project="q"), 5), 2)
        self.assertEqual(self.taken(limits, caller("bob"), 5), 5)
        self.assertEqual(self.taken(limits, caller("bob", "other", "p"), 5), 2)

    def test_named(self) -> None:
        """Somebody in particular may more, or less."""
        limits = self.limits(Rate(1, 2))
        limits.setLimits(
            RateSettings(
                {"user": Rate(1, 2)},
                {("user", "t/ann"): Rate(1, 7), ("tenant", "u"): Rate(1, 1)},
            )
        )
        self.assertEqual(self.taken(limits, caller("ann"), 50), 7)
        self.assertEqual(self.taken(limits, caller("bob"), 50), 2)
        self.assertEqual(self.taken(limits, caller("ann", "u"), 50), 1)

    def test_noLimit(self) -> None:
        """A rate of nothing is no limit, and keeps nothing."""
        limits = self.limits()
        self.assertEqual(self.taken(limits, caller(), 1000), 1000)
        self.assertEqual(sum(limits.sizes().values()), 0)

    def test_machines(self) -> None:
        """Runners and sandboxes are not counted."""
        limits = self.limits(Rate(1, 1), tenant=Rate(1, 1))
        for kind in ("runner", "session"):
            principal = Principal(kind, "tok", "fam", "t", session="s")
            self.assertEqual(self.taken(limits, principal, 100), 100)

    def test_bounded(self) -> None:
        """The tables stay within their limit; who calls now is not forgotten."""
        limits = self.limits(Rate(1, 2), maxBuckets=10)
        self.taken(limits, caller("busy"), 2)
        for number in range(100):
            limits.take(caller(f"user{number}"))
            self.assertEqual(self.taken(limits, caller("busy"), 1), 0)
            if number % 5 == 0:
                self.clock.advance(0)
            limits._full["user"].move_to_end("t/busy")
        self.assertLessEqual(limits.sizes()["rate_user"], 10)

    @settings(deadline=None, max_examples=50)
    @given(
        st.floats(0.5, 50),
        st.integers(1, 20),
        st.lists(st.floats(0, 3), min_size=1, max_size=80),
    )
    def test_neverMore(self, perSecond: float, burst: int, gaps: list[float]) -> None:
        """In any time there are no more than the burst and what the rate gives."""
        limits = self.limits(Rate(perSecond, burst))
        times = []
        for gap in gaps:
            self.clock.advance(gap)
            if self.taken(limits, caller(), 1):
                times.append(self.clock.seconds())
        for first, begin in enumerate(times):
            for last, end in enumerate(times[first:], first):
                self.assertLessEqual(last - first + 1, burst + (end - begin) * perSecond + 1e-3)
