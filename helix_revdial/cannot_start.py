# -*- test-case-name: tests.integration.test_server,tests.integration.test_executor -*-
"""
How a service that cannot do its work ends: with one line in its log that says what to do,
and status 1.
"""

from __future__ import annotations

from twisted.logger import Logger


class CannotStart(SystemExit):
    """
    A service cannot do its work.  The text, which says what to do, is the last
    line of the log; a process that does not catch it ends with status 1.

    Not left to the interpreter to print: C{twistd} has standard error by then.
    """

    _log = Logger()

    def __init__(self, text: str) -> None:
        super().__init__(1)
        self.text = text
        self._log.critical("{text}", text=text)

    def __str__(self) -> str:
        return self.text
