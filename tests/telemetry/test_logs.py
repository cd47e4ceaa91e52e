"""The log for machines: a line for every event, no secret, no exception."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.application.service import Application, IServiceCollection
from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogPublisher,
    formatEventAsClassicLogText,
)
from twisted.python import log as legacy
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from helix_revdial.telemetry.log_writer import LogWriter
from helix_revdial.telemetry.logs import (
    MAX_LINE,
    REDACTED,
    LineObserver,
    LoggingService,
    chooseObserver,
    eventAsJSON,
    eventAsLine,
    observerFor,
    redact,
)

SECRET = "hlx_" + "s3cretS3cret" * 3


def logged(call: Any) -> list[dict[str, Any]]:
    """What the JSON lines of some calls of a logger are."""
    lines: list[dict[str, Any]] = []
    call(Logger("helix_revdial.test", observer=LogPublisher(_Collector(lines))))
    return lines


@implementer(ILogObserver)
class _Collector:
    """Keeps what the JSON lines say."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self._lines = lines

    def __call__(self, event: LogEvent) -> None:
        self._lines.append(json.loads(eventAsJSON(event)))


class Nasty:
    """An object whose own code fails."""

    def __repr__(self) -> str:
        raise ValueError("no repr")

    __str__ = __repr__


class JSONTests(SynchronousTestCase):
    """L{eventAsJSON}."""

    def test_fields(self) -> None:
        """Time, level, logger, message; then the event's own fields, flat."""
        (line,) = logged(
            lambda log: log.info(
                "Dial {dial} to {runner}", dial="d1", runner="wolf-1", bytesIn=3, ok=True, why=None
            )
        )
        self.assertRegex(line.pop("time"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(
            line,
            {
                "level": "info",
                "logger": "helix_revdial.test",
                "message": "Dial d1 to wolf-1",
                "dial": "d1",
                "runner": "wolf-1",
                "bytesIn": 3,
                "ok": True,
                "why": None,
            },
        )

    def test_time(self) -> None:
        """The time is the event's own."""
        line = json.loads(eventAsJSON({"log_time": 1_800_000_000.25}))
        self.assertEqual(line["time"], "2027-01-15T08:00:00.250Z")

    def test_failure(self) -> None:
        """An error has its class and its traceback, as one string."""

        def fail(log: Logger) -> None:
            try:
                raise RuntimeError(f"token={SECRET}")
            except RuntimeError:
                log.failure("it failed")

        (line,) = logged(fail)
        self.assertEqual((line["level"], line["error"]), ("critical", "RuntimeError"))
        self.assertIn("in fail", line["failure"])
        self.assertNotIn(SECRET, json.dumps(line))

    def test_olderLog(self) -> None:
        """Twisted's older log has no levels; its errors are errors."""
        lines: list[dict[str, Any]] = []
        observer = legacy.LogPublisher(publishPublisher=LogPublisher(_Collector(lines)))
        observer.msg("plain", "words")
        observer.msg("it broke", isError=True)
        self.assertEqual(
            [(line["level"], line["message"]) for line in lines],
            [("info", "plain words"), ("critical", "it broke")],
        )

    def test_aFieldMayHaveAnyName(self) -> None:
        """One that has the name of what every line has is kept under another."""
        line = json.loads(eventAsJSON({"log_format": "x", "level": "mine", "logger": "mine"}))
        self.assertEqual((line["level"], line["level_"], line["logger_"]), ("info", "mine", "mine"))

    def test_anyObject(self) -> None:
        """What JSON does not know becomes its text; what has none is said to have none."""
        (line,) = logged(
            lambda log: log.info(
                "x",
                path=Path("/a"),
                raw=b"\xff\x00",
                nasty=Nasty(),
                many=range(3),
                none=float("nan"),
            )
        )
        self.assertEqual((line["path"], line["many"]), ("/a", "range(0, 3)"))
        self.assertEqual(line["nasty"], "a Nasty that cannot be shown")
        self.assertEqual(line["none"], "nan")

    def test_anUnformattableEvent(self) -> None:
        """A message that cannot be formatted is a line all the same."""
        (line,) = logged(lambda log: log.info("{missing.field} {nasty}", nasty=Nasty()))
        self.assertIn("Unable to format event", line["message"])

    def test_bounded(self) -> None:
        """However much an event holds, its line stays short, and is JSON."""
        big = {f"field{number}": "x" * 5000 for number in range(500)}
        for fields in (
            big,
            {"deep": [[["y" * 99] * 99] * 99] * 99},
            {"m": {"a" * 999: "b" * 9999}},
        ):
            text = eventAsJSON({"log_format": "z" * 100_000, **fields})
            self.assertLessEqual(len(text), MAX_LINE)
            self.assertEqual(text.count("\n"), 1)
            json.loads(text)

    def test_oneLine(self) -> None:
        """Line ends in a message do not make a second line."""
        text = eventAsJSON({"log_format": "a\nb\r\n\u2028c"})
        self.assertEqual((text.count("\n"), text[-1]), (1, "\n"))

    @settings(deadline=None, max_examples=150)
    @given(
        st.dictionaries(
            st.text(max_size=12),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                max_leaves=8,
            ),
            max_size=6,
        )
    )
    def test_neverRaises(self, event: dict[str, Any]) -> None:
        """Any event at all is one line of JSON."""
        text = eventAsJSON(event)
        self.assertEqual(text.count("\n"), 1)
        self.assertIsInstance(json.loads(text), dict)
        eventAsLine(event)


class SecretTests(SynchronousTestCase):
    """F1: no secret in a log line."""

    def test_byForm(self) -> None:
        """What looks like a secret is taken out wherever it stands."""
        for text in (
            f"x {SECRET} y",
            f"Authorization: Bearer {SECRET[4:]}",
            f"bearer {SECRET[4:]}",
            f"GET /revdial?revdial.dialer={SECRET[4:]}&revdial.req=abc HTTP/1.1",
            f"wss://cp/x?ticket={SECRET[4:]}",
            f"Revdial-Ticket: {SECRET[4:]}",
            f"postgresql://user:{SECRET[4:]}@db/x",
            f"RUNNER_TOKEN token={SECRET[4:]}",
        ):
            for line in (redact(text), eventAsJSON({"log_format": "{x}", "x": text})):
                self.assertNotIn(SECRET[4:], line)
                self.assertIn(REDACTED, line)

    def test_byName(self) -> None:
        """A field that is named for a secret does not show it; ids of tokens are none."""
        (line,) = logged(
            lambda log: log.info(
                "x",
                token="abcdef",
                userPassword=1,
                api_key="k",
                session_token="t",
                nested={"ticket": "u"},
            )
        )
        for name in ("token", "api_key", "session_token"):
            self.assertEqual(line[name], REDACTED)
        self.assertEqual(line["nested"], {"ticket": REDACTED})
        (line,) = logged(lambda log: log.info("{token}", token="tok_01ABC", credential="family:f"))
        self.assertEqual((line["token"], line["credential"]), ("tok_01ABC", "family:f"))

    def test_ordinaryWordsStay(self) -> None:
        """Sentences about tokens are not secrets."""
        for text in ("the token is unknown", "basic facts", "token=tok_01 was revoked"):
            self.assertEqual(redact(text), text)

    def test_plainTextLog(self) -> None:
        """Twisted's own form is redacted likewise."""
        text = eventAsLine({"log_time": 1.0, "log_format": "x {y}", "y": SECRET})
        assert text is not None
        self.assertIn(f"x hlx_{REDACTED}", text)


class _Odd:
    def word(self) -> str:
        return "called"


class PlainTests(SynchronousTestCase):
    """Lines are what Twisted's own formatter makes of events, only sooner."""

    def test_asTwistedWritesThem(self) -> None:
        """Fields, calls, specifications, several lines, nothing at all, and what fails."""
        for more in (
            {"log_format": "a {b} {c!r} {d:.3f} {{e}}", "b": b"1", "c": "2", "d": 3},
            {"log_format": "{odd.word()}", "odd": _Odd()},
            {"log_format": "{word()} {a[0]}", "word": _Odd().word, "a": [1]},
            {"log_format": "{a.real}", "a": 1},
            {"log_format": "two\nlines {a}", "a": "and\nmore"},
            {"log_format": "{missing}"},
            {"log_format": "{broken"},
            {"log_format": ""},
            {"log_format": None},
            {},
            {"log_format": "a", "log_system": "the\nsystem"},
            {"log_format": "a", "log_time": None},
            {"log_format": b"bytes {a}", "a": 1},
            {"log_format": "failed", "log_failure": Failure(ValueError("why"))},
        ):
            event: dict[str, Any] = {
                "log_time": 1234567890.9,
                "log_namespace": "n",
                "log_level": LogLevel.warn,
            }
            event.update(more)
            self.assertEqual(eventAsLine(event), formatEventAsClassicLogText(event), more)

    def test_aSecretInUnusualLetters(self) -> None:
        """Letters whose lower case is no ASCII count as those that they stand for."""
        self.assertNotIn("hunter2", redact("pa\u017fsword=hunter2"))
        self.assertNotIn("hunter22", redact("BEARER hunter22"))


class ObserverTests(SynchronousTestCase):
    """L{LineObserver} and who chooses it."""

    def observer(self, form: str = "json", level: str = "info") -> tuple[LineObserver, Path]:
        path = Path(self.mktemp())
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
        self.addCleanup(os.close, descriptor)
        return observerFor(form, level, descriptor), path

    def test_level(self) -> None:
        """What is below the level is left out."""
        observer, path = self.observer(level="warn")
        log = Logger("x", observer=LogPublisher(observer))
        log.info("quiet")
        log.warn("loud")
        log.critical("louder")
        messages = [json.loads(line)["message"] for line in path.read_text().splitlines()]
        self.assertEqual(messages, ["loud", "louder"])

    def test_neverRaises(self) -> None:
        """An event that is no event costs nobody anything."""
        observer, _ = self.observer()
        observer({"log_level": "no level"})
        observer({"log_failure": Failure(ValueError()), "log_level": LogLevel.error})

    def test_choice(self) -> None:
        """What twistd's own flags say wins; daemons and files keep Twisted's own text."""
        ours = {"nodaemon": True, "logger": None, "logfile": None}
        for form in ("json", "text"):
            self.assertIsInstance(chooseObserver(dict(ours), form), LineObserver)
            self.assertIsInstance(chooseObserver({**ours, "logfile": "-"}, form), LineObserver)
            self.assertIsNone(chooseObserver({**ours, "logger": "a.b"}, form))
            self.assertIsNone(chooseObserver({**ours, "syslog": True}, form))
            self.assertIsNone(chooseObserver({**ours, "nodaemon": False}, form))
            self.assertIsNone(chooseObserver(None, form))
        path = os.path.abspath(self.mktemp())
        self.assertIsNone(chooseObserver({**ours, "logfile": path}, "text"))
        self.assertIsInstance(chooseObserver({**ours, "logfile": path}, "json"), FileLogObserver)

    def test_twist(self) -> None:
        """C{twist} is told in its own way."""
        options: dict[str, Any] = {"fileLogObserverFactory": None}
        self.assertIsNone(chooseObserver(options, "json"))
        self.assertIsInstance(options["fileLogObserverFactory"](sys.stdout), LineObserver)

    def test_serviceBringsItsObserver(self) -> None:
        """The application has the observer as soon as the service belongs to it."""
        application = Application("x")
        service = LoggingService()
        service.logObserver, _ = self.observer()
        self.assertIsInstance(service.logWriter, LogWriter)
        service.setServiceParent(application)
        self.assertIs(application.getComponent(ILogObserver), service.logObserver)
        self.assertEqual(list(IServiceCollection(application)), [service])


class TwistdTests(SynchronousTestCase):
    """C{twistd --logger}."""

    def test_logger(self) -> None:
        """The observer works for any twistd plugin, down to the last line."""
        done = subprocess.run(
            [
                sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n",
                "--pidfile=", "--logger=helix_revdial.telemetry.logs.jsonObserver",
                "helix-revdial-server", "--listen", "nonsense:1",
            ],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        self.assertNotEqual(done.returncode, 0)
        for line in done.stdout.splitlines():
            json.loads(line)
