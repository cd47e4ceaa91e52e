# -*- test-case-name: tests.revdial.test_errors -*-
"""
Why a dial failed.

One class for each thing a caller can do something about.  Each class carries
C{status}, the HTTP status that an HTTP way in answers with, and C{word}, the
one word that programs and the command line show.  C{str(error)} is a sentence
fragment for people (C{"no connection"}); it never carries a secret.

Whoever raises one of these has already released what the dial held.
"""

from __future__ import annotations

from typing import ClassVar

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.python.failure import Failure


class DialError(Exception):
    """A dial or the stream it gave failed; subclasses say how."""

    status: ClassVar[int] = 502
    word: ClassVar[str] = "broken"
    text: ClassVar[str] = "the tunnel broke"

    def __init__(self, text: str | None = None, *, retryAfter: float | None = None) -> None:
        super().__init__(self.text if text is None else text)
        self.retryAfter = retryAfter
        """Seconds after which another try makes sense, where that is known."""


class NotConnected(DialError):
    """No agent is connected under that name, and none is awaited."""

    status = 503
    word = "not-connected"
    text = "no connection"


class ReconnectTimeout(DialError):
    """The agent was lost and did not come back within the grace period."""

    status = 503
    word = "reconnect-timeout"
    text = "reconnect timeout"


class TooManyPendingDials(DialError):
    """As many dials as may wait for this runner are waiting already."""

    status = 503
    word = "busy"
    text = "max pending dials exceeded"


class DialTimeout(DialError):
    """The agent is connected but did not dial back in time."""

    status = 504
    word = "timed-out"
    text = "dial timed out"


class TargetTimeout(DialError):
    """The agent answered, but its target did not accept in time."""

    status = 504
    word = "target-timed-out"
    text = "the target did not answer in time"


class TargetRefused(DialError):
    """The agent answered, but its target refused or is not there."""

    status = 502
    word = "target-refused"
    text = "the target refused the connection"


class TunnelBroke(DialError):
    """The connection ended before the exchange did."""

    status = 502
    word = "broken"
    text = "the tunnel broke"


class NotAllowed(DialError):
    """The credential does not reach this runner, target or dial."""

    status = 403
    word = "not-allowed"
    text = "not allowed"


class UnknownDial(DialError):
    """A pick-up names a dial that is not outstanding: never asked, over, or used."""

    status = 404
    word = "unknown-dial"
    text = "unknown or spent dial"


class HeldByAnother(DialError):
    """The runner key belongs to another owner, or its holder proved alive."""

    status = 409
    word = "held"
    text = "the runner key is held by another owner"


def wordsOf(failure: Failure) -> str:
    """
    Why a connection or a dial ended, for people: Twisted's own sentences about the ends
    of connections are for programmers.
    """
    error = failure.value
    if type(error) is ConnectionDone:
        return "closed"
    for kind, words in (
        (ConnectionAborted, "the connection was cut"),
        (ConnectionLost, "the connection was lost"),
    ):
        if type(error) is kind:
            return ": ".join([words, *(str(each) for each in error.args if each)])
    return failure.getErrorMessage().rstrip(".") or error.__class__.__name__
