# -*- test-case-name: tests.revdial.test_table,tests.revdial.test_table_claims -*-
"""
One key that is connected or in grace, and the rule against clones.

State of the L{connection table <helix_revdial.revdial.table.ConnectionTable>},
which alone may touch it.
"""

from __future__ import annotations

from dataclasses import dataclass
from secrets import token_hex

from helix_revdial.revdial.dials import Dial
from helix_revdial.revdial.effects import Holder


class Runner:
    """
    @ivar takeovers: When live connections under this key were taken over,
        the latest few.
    @ivar dials: What waits, by the dial's id, in order.
    @ivar graceEnds: C{None} while the connection lives.
    @ivar dialer: The old wire's id of this generation.
    @ivar probed: A newcomer was told to find out whether this generation
        answers.
    @ivar contested: This generation has answered such a question.
    """

    __slots__ = (
        "contested",
        "credential",
        "dialer",
        "dials",
        "features",
        "generation",
        "graceEnds",
        "key",
        "owner",
        "probed",
        "takeovers",
    )

    def __init__(self, key: str, owner: str, takeovers: list[float]) -> None:
        self.key = key
        self.owner = owner
        self.takeovers = takeovers
        self.dials: dict[str, Dial] = {}
        self.graceEnds: float | None = None
        self.credential = ""
        self.generation = 0
        self.features: frozenset[str] = frozenset()
        self.dialer = ""
        self.probed = False
        self.contested = False

    def connect(self, credential: str, generation: int, features: frozenset[str]) -> None:
        """The key now belongs to another generation of its owner."""
        self.credential = credential
        self.generation = generation
        self.features = features
        self.dialer = token_hex(16)
        self.graceEnds = None
        self.probed = self.contested = False

    def needsProbe(self, now: float, limit: int, window: float) -> bool:
        """
        Whether a takeover of this live generation looks like the work of a clone:
        it would be the C{limit}th within C{window} seconds, or this generation
        has proven alive against one that was.
        """
        recent = sum(1 for when in self.takeovers if now - when < window)
        return self.contested or recent + 1 >= limit

    def holder(self) -> Holder:
        """A view that does not change."""
        return Holder(
            self.key,
            self.owner,
            self.credential,
            self.generation,
            self.features,
            self.graceEnds,
            len(self.dials),
        )


@dataclass(slots=True)
class Memory:
    """What is remembered of a key that is gone."""

    generation: int
    takeovers: list[float]
