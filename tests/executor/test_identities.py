"""A user is one session's at a time."""

from __future__ import annotations

import os
import pwd
from collections.abc import Collection

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.executor.identities import (
    Identities,
    Identity,
    NoIdentityLeft,
    busyUsers,
    knownUsers,
)


class IdentitiesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.busy: set[int] = set()

    def looked(self, users: Collection[int]) -> set[int]:
        return self.busy & set(users)

    def test_apart(self) -> None:
        """No number is given out twice; there is an end; what is given back comes last."""
        identities = Identities(1000, 3, self.looked)
        found = [identities.allocate() for _ in range(3)]
        self.assertEqual(found, [Identity(1000, 1001), Identity(1002, 1003), Identity(1004, 1005)])
        self.assertRaises(NoIdentityLeft, identities.allocate)
        identities.release(1004)
        identities.release(1000)
        self.assertEqual(identities.allocate(), Identity(1000, 1001))

    def test_taken(self) -> None:
        """What a session of before has, and what has a process, is not given out."""
        identities = Identities(1000, 3, self.looked)
        identities.taken(1000)
        self.busy = {1003}
        self.assertEqual(identities.allocate(), Identity(1004, 1005))
        self.assertRaises(NoIdentityLeft, identities.allocate)

    def test_real(self) -> None:
        """Users with a process are found, and users that the host knows."""
        own = os.getuid()
        self.assertEqual(busyUsers((own, 4_294_000_000)), {own})
        name = pwd.getpwuid(0).pw_name
        self.assertIn(name, knownUsers(range(1)))
