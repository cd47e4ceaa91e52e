"""
Why the desktop service could not do what it was asked.

Each class says what a caller can do about it; L{helix_revdial.desktop.operations}
gives each one its HTTP status.  The texts are read by people who see nothing
but the answer, so they name the display, the program or the limit.
"""

from __future__ import annotations


class DesktopError(Exception):
    """
    Something that the desktop service was asked for did not work.

    The message is one sentence for people; it carries no clipboard content.
    """


class NoDisplay(DesktopError):
    """There is no display to look at, or it does not answer to its programs."""


class CannotServe(DesktopError):
    """The service cannot listen where it was told to."""
