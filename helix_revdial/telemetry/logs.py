# -*- test-case-name: tests.telemetry.test_logs -*-
"""
The log for machines: one JSON object a line, without secrets, never in the way.

L{jsonObserver} is for C{twistd --logger=helix_revdial.telemetry.logs.jsonObserver};
the two services' own settings choose it (or L{textObserver}) by L{chooseObserver}.

Invariants:

  - Whatever an event holds, there is one line for it, of at most L{MAX_LINE} bytes.
  - Nothing is raised, and nothing waits for the reader
    (L{helix_revdial.telemetry.log_writer}).
  - What looks like a secret is taken out: by its form (our tokens, C{Bearer …},
    C{ticket=…} and its like in URLs) and by the name of its field.

A line has C{time} (RFC 3339, UTC), C{level}, C{logger}, C{message}, and then the
event's own fields, flat: C{requestId}, C{dial}, C{runner} and so on.  An error adds
C{error} (its class) and C{failure} (the traceback).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from functools import lru_cache
from math import isfinite
from typing import Any

from twisted.application.service import Service
from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    formatEvent,
    formatEventAsClassicLogText,
    formatTime,
)
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile
from zope.interface import implementer

from .log_writer import FLUSH_LIMIT, LogWriter
from .timestamps import timestamp

MAX_LINE = 16 * 1024
"""Bytes of a line."""

MAX_TEXT = 8 * 1024
"""Characters of a message or a traceback (its end is what is kept)."""

MAX_VALUE = 1024
"""Characters of a field's value."""

MAX_FIELDS = 32
"""Fields of an event, beyond those that every line has."""

MAX_ITEMS = 32
"""Elements of a list or a mapping in a field."""

STANDARD_OUTPUT = 1

LEVELS = ("debug", "info", "warn", "error", "critical")

REDACTED = "[redacted]"

_RESERVED = frozenset(("time", "level", "logger", "message", "error", "failure"))

_LEGACY = frozenset(("format", "isError", "printed", "system", "time", "message", "failure"))
"""What Twisted's older log puts beside an event's own fields."""

_SECRET_FIELD = re.compile(
    r"(?i)^(.*_)?(token|secret|ticket|password|authorization|cookie|credentials?|apikey|api_key)$"
)

_SECRETS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    (("hlx_",), re.compile(r"hlx_[A-Za-z0-9_-]{8,}"), f"hlx_{REDACTED}"),
    (
        ("bearer", "apikey"),
        re.compile(r"(?i)\b(bearer|apikey)\s+[^\s\"',;]{6,}"),
        rf"\1 {REDACTED}",
    ),
    (
        ("basic",),
        re.compile(r"\b([Bb]asic)\s+(?=\S*[A-Z0-9=])[A-Za-z0-9+/]{6,}=*"),
        rf"\1 {REDACTED}",
    ),
    (
        ("=",),
        re.compile(
            r"(?i)\b(revdial\.dialer|revdial\.req|ticket|token|access_token|api_?key|password|secret)"
            r"=(?!tok_)[^\s&\"',;)]+"
        ),
        rf"\1={REDACTED}",
    ),
    (
        ("ticket:", "cookie:", "authorization:"),
        re.compile(r"(?i)\b(revdial-ticket|cookie|authorization):\s*[^\r\n]+"),
        rf"\1: {REDACTED}",
    ),
    (("://",), re.compile(r"(://)[^/\s@:]+:[^/\s@]+@"), rf"\1{REDACTED}@"),
)
"""
What a secret looks like, after what stands in every text that has one, in lower case: to
look for that costs a hundredth of what the expression costs.
"""


def redact(text: str) -> str:
    """C{text} without what looks like a secret."""
    # Where case is not ASCII's, an expression may match letters that are lower cased to
    # others than it names.
    lower = text.lower() if text.isascii() else None
    for signs, pattern, instead in _SECRETS:
        for sign in signs:
            if lower is None or sign in lower:
                text = pattern.sub(instead, text)
                break
    return text


def messageOf(event: LogEvent) -> str:
    """
    The text of an event, as C{formatEvent} makes it.

    Most formats have nothing that C{str} does not know; Twisted's own formatter, in
    Python, takes ten times as long, at two lines for each dial.
    """
    form = event.get("log_format")
    if type(form) is str and "()" not in form and "log_flattened" not in event:
        try:
            return form.format_map(event)
        except Exception:
            # It says what is wrong with the event.
            return formatEvent(event)
    return formatEvent(event)


def eventAsJSON(event: LogEvent) -> str:
    """
    An event as one line of JSON, with its line end.
    """
    try:
        return _line(event)
    except Exception as error:
        # An event may hold objects whose own code fails.
        return _encoded(
            {
                "time": _time(None),
                "level": "error",
                "logger": "helix_revdial.telemetry.logs",
                "message": f"an event could not be written: {type(error).__name__}",
            }
        )


def _line(event: LogEvent) -> str:
    line: dict[str, Any] = {
        "time": _time(event.get("log_time")),
        "level": levelOf(event).name,
        "logger": str(event.get("log_namespace", "-"))[:MAX_VALUE],
        "message": _cut(redact(messageOf(event)), MAX_TEXT),
    }
    failure = event.get("log_failure")
    if isinstance(failure, Failure):
        line["error"] = str(getattr(failure.type, "__name__", failure.type))[:MAX_VALUE]
        line["failure"] = _traceback(failure)
    for name, value in list(event.items()):
        if name.startswith("log_") or name in _LEGACY:
            continue
        if len(line) >= MAX_FIELDS + len(_RESERVED):
            line["truncated"] = True
            break
        field = f"{name}_" if name in _RESERVED else str(name)[:64]
        line[field] = REDACTED if _isSecret(name, value) else _value(value)
    text = _encoded(line)
    if len(text.encode("utf-8", "replace")) > MAX_LINE:
        line = {name: value for name, value in line.items() if name in _RESERVED}
        line["truncated"] = True
        for name in ("message", "failure"):
            if name in line:
                line[name] = line[name][-MAX_VALUE:]
        text = _encoded(line)
    return text


def _encoded(line: Mapping[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":"), ensure_ascii=True) + "\n"


def _time(seconds: object) -> str:
    if isinstance(seconds, int | float) and isfinite(seconds):
        return timestamp(seconds)
    return timestamp(datetime.now(UTC).timestamp())


def levelOf(event: LogEvent) -> Any:
    """The level of an event, of the older log's too."""
    level = event.get("log_level")
    if level is None:
        return LogLevel.error if event.get("isError") else LogLevel.info
    return level


def _traceback(failure: Failure) -> str:
    try:
        text = failure.getTraceback()
    except Exception:
        text = "the traceback could not be made"
    return redact(text)[-MAX_TEXT:]


def _isSecret(name: str, value: object) -> bool:
    if value is None or isinstance(value, bool | int | float):
        return False
    return _SECRET_FIELD.match(name) is not None and not str(value).startswith(("tok_", "family:"))


def _value(value: object, depth: int = 2) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if isinstance(value, str):
        return _cut(redact(value), MAX_VALUE)
    if isinstance(value, bytes):
        return _cut(redact(value[: 2 * MAX_VALUE].decode("utf-8", "replace")), MAX_VALUE)
    if depth and isinstance(value, Mapping):
        return {
            str(name)[:64]: REDACTED if _isSecret(str(name), part) else _value(part, depth - 1)
            for name, part in list(value.items())[:MAX_ITEMS]
        }
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_value(part, depth - 1) for part in list(value)[:MAX_ITEMS]]
    try:
        return _cut(redact(str(value)), MAX_VALUE)
    except Exception:
        return f"a {type(value).__name__} that cannot be shown"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


@lru_cache(maxsize=2)
def _second(when: int) -> str:
    """A second as Twisted's log writes it."""
    return formatTime(when)


def eventAsLine(event: LogEvent) -> str | None:
    """
    An event as Twisted's own log has it, without secrets.
    """
    try:
        if "log_failure" in event or "log_trace" in event:
            text = formatEventAsClassicLogText(event)
            return None if text is None else redact(text)
        message = messageOf(event)
        if not message:
            return None
        system = event.get("log_system")
        if system is None:
            level = event.get("log_level")
            system = f"{event.get('log_namespace', '-')}#{'-' if level is None else level.name}"
        when = event.get("log_time")
        clock = formatTime(when) if when is None else _second(int(when // 1))
        return redact(f"{clock} [{system}] {message}".replace("\n", "\n\t") + "\n")
    except Exception as error:
        return f"an event could not be written: {type(error).__name__}\n"


@implementer(ILogObserver)
class LineObserver:
    """
    Writes each event of a level or above as a line.

    @ivar writer: Where to.
    """

    def __init__(
        self,
        writer: LogWriter,
        lineOf: Callable[[LogEvent], str | None],
        level: str = "info",
    ) -> None:
        """
        @param lineOf: The line of an event, or C{None} for none.
        @param level: One of L{LEVELS}.
        """
        self.writer = writer
        self._lineOf = lineOf
        least = LogLevel.levelWithName(level)
        # To compare two levels takes the library longer than to write most lines.
        self._levels = frozenset(one for one in LogLevel.iterconstants() if not one < least)

    def __call__(self, event: LogEvent) -> None:
        """Write it; an event of no level, as Twisted's older log has them, counts as C{info}."""
        try:
            if levelOf(event) not in self._levels:
                return
            line = self._lineOf(event)
        except Exception:
            return
        if line:
            self.writer.write(line.encode("utf-8", "replace"))
        if event.get("log_format") == _LAST:
            # twistd logs nothing after this, and ends by the signal it got: exit
            # functions do not run.
            self.writer.flush(FLUSH_LIMIT)


_LAST = "Server Shut Down."


def _jsonNotice(count: int) -> bytes:
    event: LogEvent = {
        "log_level": LogLevel.warn,
        "log_namespace": "helix_revdial.telemetry.logs",
        "log_format": _NOTICE,
        "dropped": count,
    }
    return eventAsJSON(event).encode("ascii")


def _textNotice(count: int) -> bytes:
    return f"{_time(None)} [-] {_NOTICE.format(dropped=count)}\n".encode()


_NOTICE = "{dropped} lines of the log were dropped: nobody took them in time"

_FORMATS: dict[str, tuple[Callable[[LogEvent], str | None], Callable[[int], bytes]]] = {
    "json": (eventAsJSON, _jsonNotice),
    "text": (eventAsLine, _textNotice),
}


def observerFor(form: str, level: str = "info", descriptor: int = STANDARD_OUTPUT) -> LineObserver:
    """
    An observer that writes to a descriptor and never blocks.

    @param form: C{"json"} or C{"text"}.
    @param level: One of L{LEVELS}: what is below it is left out.
    """
    lineOf, lost = _FORMATS[form]
    return LineObserver(LogWriter(descriptor, lost=lost), lineOf, level)


def jsonObserver() -> LineObserver:
    """For C{twistd --logger}: JSON lines on standard output."""
    return observerFor("json")


def textObserver() -> LineObserver:
    """For C{twistd --logger}: Twisted's own lines on standard output, never in the way."""
    return observerFor("text")


def chooseObserver(
    runner: MutableMapping[str, Any] | None, form: str, level: str = "info"
) -> ILogObserver | None:
    """
    The observer by which the program that runs us is to log.

    To be called while its command line is read.  What its own flags say
    (C{--logger}, C{--syslog}, and for text C{--logfile}) is left alone.

    @param runner: The options of C{twistd} or C{twist}, or C{None}.
    @param form: C{"json"} or C{"text"}.
    @param level: One of L{LEVELS}.
    @return: For L{LoggingService}; C{None} where there is nothing to do, and with
        C{twist}, which has been told already.
    """
    if runner is None:
        return None
    if "fileLogObserverFactory" in runner:
        if form == "json":
            observer = observerFor(form, level)
            runner["fileLogObserverFactory"] = lambda file: observer
        return None
    if runner.get("logger") is not None or runner.get("syslog") or "logger" not in runner:
        return None
    path = runner.get("logfile")
    if path not in (None, "", "-"):
        if form == "json":
            return FileLogObserver(LogFile.fromFullPath(path), eventAsJSON)
        return None
    return observerFor(form, level) if runner.get("nodaemon") else None


class LoggingService(Service):
    """
    A service that brings the log's observer along, as an application does
    (C{application.setComponent(ILogObserver, …)}): C{twistd} gives its application to
    the service before it begins to log.

    @ivar logObserver: The observer; C{None} leaves the choice to C{twistd}.
    """

    logObserver: ILogObserver | None = None

    def setServiceParent(self, parent: Any) -> None:
        """Belong to C{parent}, and log in our way if it is an application."""
        if self.logObserver is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.logObserver)
        super().setServiceParent(parent)

    @property
    def logWriter(self) -> LogWriter | None:
        """What the log is written by, where it is ours."""
        return self.logObserver.writer if isinstance(self.logObserver, LineObserver) else None


__all__ = [
    "LEVELS",
    "MAX_LINE",
    "LineObserver",
    "LoggingService",
    "chooseObserver",
    "eventAsJSON",
    "eventAsLine",
    "jsonObserver",
    "observerFor",
    "redact",
    "textObserver",
]
