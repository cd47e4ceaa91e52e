"""
A program that drives sessions as a server does, on a host that is forgotten with
it, and tells what it was told is written.  A test kills it.

    python -m tests.integration.session_writer URL

Time is made up: the clock goes on as fast as the database takes it.
"""

from __future__ import annotations

import sys
import time

from twisted.internet.task import Clock

from helix_revdial.sessions.driver import Driver
from helix_revdial.sessions.events import EventLog
from helix_revdial.sessions.executors import Executors
from helix_revdial.sessions.sessions import Sessions
from helix_revdial.sessions.synthetic import SyntheticExecutor
from helix_revdial.storage.database import Database
from helix_revdial.storage.schema import upgrade
from helix_revdial.storage.threads import SameThread
from tests.integration.storage_writer import now, tell
from tests.sessions.worlds import prepare, task


def main(url: str) -> None:
    """Start, and drive until killed."""
    upgrade(url)
    database = Database(url, SameThread())
    clock = Clock()
    events = EventLog(database, time.time)
    sessions = Sessions(database, clock, time.time, events)
    executors = Executors(clock, time.time)
    host = SyntheticExecutor(clock, time.time, slots=4)
    executors.add("host-1", host)
    executors.start()
    driver = Driver(clock, time.time, sessions, executors, prepare)
    events.subscribeAll(lambda event: tell("event", event.session, event.seq, event.type))
    tell("started")
    now(driver.start())
    number = 0
    while True:
        number += 1
        prompt = "forever" if number % 3 == 0 else f"steps={number % 9}"
        made = sessions.createTask(task(prompt=prompt), tenant="acme", owner="ann")
        session = now(made)
        tell("session", session.id)
        driver.submit(session)
        for _ in range(12):
            clock.advance(0.5)
        if number % 3 == 0:
            stopped = now(driver.end(session.id, cancel=number % 2 == 0))
            tell("stopping", stopped.id)


if __name__ == "__main__":
    main(*sys.argv[1:])
