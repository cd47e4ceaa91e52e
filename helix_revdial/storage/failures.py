# -*- test-case-name: tests.storage.test_engines -*-
"""
What the failures of databases mean: which of them say that the database cannot be used
now, whichever kind it is.
"""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

# Of all that SQLite reports as an "operational error", what means that the
# database cannot be used now, rather than that a statement is wrong.
_SQLITE_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
    }
)


class DatabaseUnavailable(Exception):
    """
    The database cannot be used now: locked, lost, full, or overloaded.  What
    was asked had no effect, or (when the connection broke while it was being
    committed) an unknown one.  HTTP answers 503.
    """


def unavailable(error: SQLAlchemyError) -> str | None:
    """
    Why the database cannot be used, or C{None} when the error is of another
    kind, such as a violated constraint or a wrong statement.
    """
    if isinstance(error, PoolTimeout):
        return "all connections to the database are in use"
    if not isinstance(error, DBAPIError) or isinstance(error, IntegrityError):
        return None
    original = error.orig
    if isinstance(original, sqlite3.Error):
        code = getattr(original, "sqlite_errorcode", None)
        # The low byte is the class of the error, the rest tells variants apart.
        if code is not None and code & 0xFF in _SQLITE_UNAVAILABLE:
            return f"the database cannot be used: {original}"
        return None
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return f"the database cannot be used: {_said(original)}"
    return None


def _said(original: BaseException | None) -> str:
    """
    What a driver says, in one line.  Values of rows stand behind the first one
    (PostgreSQL's DETAIL and LINE); passwords in none.
    """
    return (str(original).splitlines() or [""])[0].strip()[:300] or type(original).__name__


def refusesToWrite(error: SQLAlchemyError) -> bool:
    """Whether a reading transaction was used for writing: a fault of ours."""
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", 0)
    return bool(code & 0xFF == sqlite3.SQLITE_READONLY)
