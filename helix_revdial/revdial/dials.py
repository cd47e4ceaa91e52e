# -*- test-case-name: tests.revdial.test_table_dials -*-
"""
A dial: one caller's wish for a byte stream to a runner, until it is picked up.

Owns what identifies a dial on the wire and the rule which of it goes into a
conn-ready.  Who may change a dial is the L{table
<helix_revdial.revdial.table.ConnectionTable>} alone; everybody else reads it.

Invariants:

  - C{id} is the dial's for its whole life, and names its stream in logs.  What
    picks it up (C{ticket}, or C{dialer} and C{request}) is made anew for each
    generation that is asked, and is worth nothing for any other.

  - No C{repr} shows what picks a dial up, and what a peer presents is compared
    with it in constant time.
"""

from __future__ import annotations

import hmac
from enum import Enum, auto
from hashlib import sha256
from os import urandom
from secrets import token_hex, token_urlsafe

from helix_revdial.revdial.features import TARGETS, TICKETS
from helix_revdial.revdial.messages import ConnReady

PATH = "/revdial"
"""The path of every C{connPath}.  The Go agents put C{/api/v1} before it."""


class DialState(Enum):
    """How far a dial has come."""

    WAITING = auto()
    """For the runner to come back."""

    ASKED = auto()
    """The agent has been asked, or is to be asked now."""

    PICKED_UP = auto()
    """A data connection has taken it; the table has forgotten it."""

    OVER = auto()
    """It failed or was cancelled; the table has forgotten it."""


class Dial:
    """
    @ivar id: 32 hex digits.
    @ivar key: The runner's key.
    @ivar target: The named service, or C{None} for the agent's default.
    @ivar state: How far it has come.
    @ivar deadline: When the caller's time is up, by the table's clock.
    @ivar generation: Which control connection has been asked, if any.
    @ivar features: What that control connection can do.
    @ivar dialer: The old wire's id of the control connection.
    @ivar request: The old wire's id of this asking.
    """

    __slots__ = (
        "_askings",
        "_ticket",
        "deadline",
        "dialer",
        "features",
        "generation",
        "id",
        "key",
        "request",
        "state",
        "target",
    )

    def __init__(self, key: str, target: str | None, deadline: float) -> None:
        self.id = urandom(16).hex()
        self.key = key
        self.target = target
        self.deadline = deadline
        self.state = DialState.WAITING
        self.generation: int | None = None
        self.features: frozenset[str] = frozenset()
        self._ticket: str | None = None
        self._askings: Askings | None = None
        self.dialer: str | None = None
        self.request: str | None = None

    def __repr__(self) -> str:
        return f"<Dial {self.id} to {self.key!r} target={self.target!r} {self.state.name}>"

    @property
    def ticket(self) -> str | None:
        """
        Picks it up, where C{tickets} is agreed.  It is made when it is looked at first:
        a dial that finds a parked connection has none.
        """
        if self._ticket is None and self._askings is not None and self.dialer is None:
            self._ticket = token_urlsafe(24)
            self._askings.add(self)
        return self._ticket

    def connReady(self) -> ConnReady:
        """
        The message that asks the agent.

        @raise ValueError: The dial is not to be asked for now.
        """
        if self.state is not DialState.ASKED:
            raise ValueError(f"{self!r} is not to be asked for")
        if self.ticket is not None:
            return ConnReady(PATH, self.id, self.ticket, self.target)
        path = f"{PATH}?revdial.dialer={self.dialer}&revdial.req={self.request}"
        return ConnReady(path, self.id if TARGETS in self.features else None, None, self.target)

    def ask(self, generation: int, features: frozenset[str], dialer: str, askings: Askings) -> None:
        """
        Let there be what picks the dial up on this generation.  For the table.

        @param askings: Where it is found by that.
        """
        self.state = DialState.ASKED
        self.generation = generation
        self.features = features
        self._askings = askings
        if TICKETS not in features:
            self.dialer = dialer
            self.request = token_hex(16)
            askings.add(self)

    def forgetAsking(self, state: DialState) -> None:
        """Make what picked the dial up worthless.  For the table."""
        self.state = state
        askings, self._askings = self._askings, None
        if askings is not None and (self._ticket is not None or self.dialer is not None):
            askings.remove(self)
        self._ticket = self.dialer = self.request = None


class Askings:
    """The dials that agents have been asked for, by what picks them up."""

    def __init__(self) -> None:
        self._dials: dict[bytes, Dial] = {}

    def __len__(self) -> int:
        return len(self._dials)

    def add(self, dial: Dial) -> None:
        """Let C{dial}, which is asked for, be found."""
        self._dials[sha256(_nameOf(dial)).digest()] = dial

    def remove(self, dial: Dial) -> None:
        """Let C{dial}, still asked for, be found no more."""
        del self._dials[sha256(_nameOf(dial)).digest()]

    def byTicket(self, ticket: str) -> Dial | None:
        """The dial that C{ticket} picks up."""
        return self._find(_ticketName(ticket))

    def byIds(self, dialer: str, request: str) -> Dial | None:
        """The dial that these ids of the old wire pick up, both being right."""
        return self._find(_idsName(dialer, request))

    def _find(self, name: bytes) -> Dial | None:
        # Found by a digest, so that how long the search takes tells nothing.
        dial = self._dials.get(sha256(name).digest())
        if dial is None or not hmac.compare_digest(_nameOf(dial), name):
            return None
        return dial


def _ticketName(ticket: str) -> bytes:
    return b"ticket " + ticket.encode("utf-8", "replace")


def _idsName(dialer: str, request: str) -> bytes:
    return b"ids " + dialer.encode("utf-8", "replace") + b" " + request.encode("utf-8", "replace")


def _nameOf(dial: Dial) -> bytes:
    if dial.ticket is not None:
        return _ticketName(dial.ticket)
    assert dial.dialer is not None
    assert dial.request is not None
    return _idsName(dial.dialer, dial.request)
