# -*- test-case-name: tests.sessions.test_event_data,tests.sessions.test_events -*-
"""
An event's data as they are stored: without the secrets of its session, in text that JSON
and any database takes, and within limits (L{MAX_MESSAGE}, L{MAX_EVENT}).

Writes nothing; of the tables it reads what a session was made from, within the
transaction of whoever writes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, bindparam, select

from helix_revdial.sessions.redaction import Redactor, secretsOf
from helix_revdial.storage.tables import sessions

MAX_MESSAGE: Final = 64 * 1024
"""Bytes of UTF-8 of a message; what is longer is cut, and says so."""

MAX_EVENT: Final = 256 * 1024
"""Bytes of an event's data as JSON."""

MAX_REDACTORS: Final = 5000
"""Sessions whose secrets are remembered."""


class EventTooLarge(ValueError):
    """An event has more than L{MAX_EVENT} bytes.  HTTP answers 413."""


_SPEC: Final = select(sessions.c.spec, sessions.c.agent_type).where(
    sessions.c.id == bindparam("of_session")
)


class Redactors:
    """
    What is secret to each session, remembered for L{MAX_REDACTORS} of them.

    Used only within a write's thread, and there is one write at a time.
    """

    def __init__(self, secretSettings: Callable[[str], Collection[str]]) -> None:
        """
        @param secretSettings: the names of an agent's settings that are secret,
            whatever they are called.
        """
        self._secretSettings = secretSettings
        self._known: OrderedDict[str, Redactor] = OrderedDict()

    def of(self, connection: Connection, session: str) -> Redactor:
        """A session's; from its row, if it is not remembered."""
        found = self._known.get(session)
        if found is None:
            row = connection.execute(_SPEC, {"of_session": session}).one_or_none()
            if row is None:
                return self.learn(session, {}, "")
            found = self.learn(session, row.spec or {}, row.agent_type or "")
        return found

    def learn(self, session: str, spec: Mapping[str, Any], agent: str) -> Redactor:
        """
        Remember what is secret to a session.

        @param spec: what the session was made from.
        @param agent: the type of its agent.
        """
        secrets = secretsOf(spec, self._secretSettings(agent))
        found = self._known[session] = Redactor(secrets)
        if len(self._known) > MAX_REDACTORS:
            self._known.popitem(last=False)
        return found

    def __len__(self) -> int:
        """How many sessions' are remembered."""
        return len(self._known)


def asStored(data: Mapping[str, Any], redactor: Redactor) -> dict[str, Any]:
    """
    An event's data as they are stored.

    @raise EventTooLarge: if they are.
    """
    cleaned: dict[str, Any] = redactor.value(data)
    message = cleaned.get("message")
    if isinstance(message, str):
        cleaned["message"] = _cut(message)
    try:
        size = len(msgspec.json.encode(cleaned))
    except UnicodeEncodeError:
        # Half of a surrogate pair is no text: neither JSON nor PostgreSQL takes it.
        cleaned = _text(cleaned)
        size = len(msgspec.json.encode(cleaned))
    if size > MAX_EVENT:
        raise EventTooLarge(f"an event has {MAX_EVENT} bytes at most, not {size}")
    return cleaned


def _cut(message: str) -> str:
    if len(message) * 4 <= MAX_MESSAGE:
        return message
    encoded = message.encode("utf-8", "replace")
    if len(encoded) <= MAX_MESSAGE:
        return message
    mark = f"… [{len(encoded)} bytes, cut]"
    return encoded[: MAX_MESSAGE - len(mark) - 2].decode("utf-8", "ignore") + mark


def _text(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_text(name): _text(one) for name, one in value.items()}
    return [_text(one) for one in value] if isinstance(value, list) else value
