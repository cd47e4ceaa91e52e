"""What can be wrong with a door."""

from __future__ import annotations


class ListenError(Exception):
    """A door cannot be as it was asked for.  The text says which and what to do."""


class NeedsRestart(ListenError):
    """A door would have to be another while it is open."""
