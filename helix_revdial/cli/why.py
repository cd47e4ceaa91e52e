# -*- test-case-name: tests.cli.test_why -*-
"""
C{helix why}: what happened to a runner, a session's runners, or one dial, in sentences.

The server says what it knows (C{/api/v1/admin/streams}, or for a session
C{/api/v1/external-agents/{session}/streams}); here it is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli.edge import PASSED, plain
from helix_revdial.cli.invocation import Identifier, Invocation, jsonFlag, passInvocation
from helix_revdial.cli.output import duration, moment, size

if TYPE_CHECKING:
    from helix_revdial.cli.client import Client, Record

SHOWN = 10
"""Dials that are told of, unless more are asked for."""

_DIAL = re.compile(r"[0-9a-f]{32}")

ADVICE = {
    "not-connected": "No agent was connected under that name, and none was awaited: is it running, "
    "and what does its log say?",
    "reconnect-timeout": "The agent was lost and did not come back in time: look at the network "
    "between, and at the agent's log.",
    "busy": "Too many dials were under way already: is the agent stuck, or a caller in a loop?",
    "timed-out": "The agent was asked and did not dial back: can it open new connections to the "
    "server?",
    "target-timed-out": "The agent dialled back, but its service did not accept: look at the "
    "service beside the agent.",
    "target-refused": "The agent answered, but its service refused or is not there: look at the "
    "service, and at the agent's target settings.",
    "broken": "The connection broke off: look at both logs, by the dial's id.",
    "not-allowed": "Whoever asked may not have that target, or the runner has none of that name: "
    "helix revdial status shows its targets, and whom they are for.",
    "cancelled": "Its caller gave up before there was a stream.",
    "failed": "The caller's own code failed: the server's log says where.",
}
"""What to look at, by the word of a dial's outcome."""

_PHASES = (
    ("asked", "the agent was asked after {}"),
    ("dialBack", "its data connection was up after {}"),
    ("target", "its service took {} to accept"),
    ("firstByteOut", "the first byte went to it after {}"),
    ("firstByteIn", "the first byte came back after {}"),
    ("endOut", "our direction ended after {}"),
    ("endIn", "its direction ended after {}"),
)


@click.command("why")
@click.argument("subject", type=Identifier(), metavar="RUNNER|SESSION|DIAL")
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=SHOWN,
    show_default=True,
    help="Dials to tell of, the latest first.",
)
@jsonFlag
@passInvocation
def why(invocation: Invocation, subject: str, limit: int, asJSON: bool) -> int:
    """
    Explain what happened to a runner, to a session's runners, or to one dial.

    About a session whoever may see it may ask; about runners and dials an
    administrator.
    """
    output = invocation.output

    async def command(reactor: Any, client: Client) -> int:
        if subject.startswith("ses_"):
            answer = await client.sessionStreams(subject, limit)
        elif _DIAL.fullmatch(subject):
            answer = await client.streams(dial=subject, limit=limit)
        else:
            answer = await client.streams(runner=subject, limit=limit)
        if asJSON:
            output.json(answer)
            return PASSED
        for line in told(answer):
            output.line(line)
        return PASSED

    return invocation.ask(command)


def told(answer: Record) -> Iterator[str]:
    """An answer of the server in sentences."""
    runners = _records(answer, "runners")
    items = _records(answer, "items")
    for runner in runners:
        yield from aboutRunner(runner)
    if runners:
        yield ""
    if not items:
        yield "No dial of it is remembered."
    for item in items:
        yield from aboutDial(item)


def _records(answer: Record, name: str) -> list[Record]:
    found = answer.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def aboutRunner(runner: Record) -> Iterator[str]:
    """What is known of a runner."""
    key = plain(runner.get("key"))
    since = f"the server started at {moment(runner.get('server_started_at'))}"
    status = runner.get("status")
    if status == "connected":
        yield (
            f"{key} is connected, since {moment(runner.get('connected_at'))}, from "
            f"{plain(runner.get('peer'))}; it has registered {_times(runner.get('registrations'))} "
            f"since {since}."
        )
    elif status == "grace":
        left = runner.get("grace_seconds_left")
        yield (
            f"{key} is in its grace period, for {_seconds(left)} more: dials wait for it. "
            f"{_lost(runner)}"
        )
    elif runner.get("first_seen") is not None:
        yield f"{key} is not connected, and no longer awaited. {_lost(runner)}"
    else:
        yield f"{key} is not connected, and has not been since {since}."
    if status == "connected" and runner.get("lost_at") is not None:
        yield f"Before that: {_lost(runner)}"
    refusal = runner.get("last_refusal")
    if isinstance(refusal, dict):
        reason = refusal.get("reason")
        event = plain(refusal.get("event"))
        yield (
            f"The last time that somebody was refused under this name ({event}) was at "
            f"{moment(refusal.get('at'))}, from {plain(refusal.get('peer'))}"
            f"{f': {plain(reason)}' if reason else ''}."
        )


def _lost(runner: Record) -> str:
    if runner.get("lost_at") is None:
        return f"It was connected at {moment(runner.get('connected_at'))}."
    return (
        f"Its connection ended at {moment(runner.get('lost_at'))}: "
        f"{plain(runner.get('lost_reason')).rstrip('.')}."
    )


_POOLED = "its agent answered, on a data connection that was parked, after {}"


def aboutDial(item: Record) -> Iterator[str]:
    """What happened to a dial."""
    phases = item.get("phases")
    times = phases if isinstance(phases, dict) else {}
    target = item.get("target")
    where = "the default target" if target is None else f"the target {plain(target)}"
    yield (
        f"Dial {plain(item.get('dial'))} to {plain(item.get('runner'))}, {where}, "
        f"at {moment(item.get('started_at'))}:"
    )
    texts = dict(_PHASES)
    if item.get("pooled"):
        texts["dialBack"] = _POOLED
    happened = [text.format(_ms(times[name])) for name, text in texts.items() if name in times]
    if happened:
        yield f"  {'; '.join(happened)}."
    yield f"  {_end(item, times)}"
    advice = ADVICE.get(str(item.get("outcome")))
    if advice is not None and item.get("state") == "ended":
        yield f"  {advice}"
    ids = [f"{name} {plain(item.get(name))}" for name in ("request", "trace") if item.get(name)]
    if ids:
        yield f"  Asked for by {', '.join(ids)}."


def _end(item: Record, times: Record) -> str:
    state, outcome = item.get("state"), item.get("outcome")
    moved = f"{size(_count(item, 'bytes_in'))} in, {size(_count(item, 'bytes_out'))} out"
    if state == "waiting":
        return "It waits for the runner to come back."
    if state == "asked":
        return "The agent was asked, and has not dialled back yet."
    if state == "open":
        return f"It is open, over {plain(item.get('carrier'))}: {moved}."
    after = f" after {_ms(times['ended'])}" if "ended" in times else ""
    reason = plain(item.get("reason")).rstrip(".")
    if outcome == "connected":
        return f"It ended{after}: {reason}; {moved}."
    return f"It failed{after} ({plain(outcome)}): {reason}."


def _count(item: Record, name: str) -> int:
    value = item.get(name)
    return value if isinstance(value, int) else 0


def _times(count: object) -> str:
    return "once" if count == 1 else f"{plain(count)} times"


def _seconds(value: object) -> str:
    return duration(float(value)) or "-" if isinstance(value, int | float) else "-"


def _ms(value: object) -> str:
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.1f} ms" if value < 1000 else f"{value / 1000:.1f} s"


__all__ = ["aboutDial", "aboutRunner", "told", "why"]
