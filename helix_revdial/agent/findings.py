# -*- test-case-name: tests.integration.test_diagnosis -*-
"""
What a look at the way to a server found: one L{Finding} for each thing looked at.

A finding says what was seen and what to do about it, in sentences for the person
who has to do it.  What an HTTP answer means is judged here, without sockets; the
looking is done by L{helix_revdial.agent.diagnosis}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .proxy import ProxyFailed

Outcome = Literal["ok", "warning", "failed", "skipped"]

SYMBOLS: dict[Outcome, str] = {"ok": "✅", "warning": "⚠️", "failed": "❌", "skipped": "⏭️"}
"""What stands before a finding."""

MAX_SEEN = 300
"""Characters that are repeated of what others said."""

FRONTEND_ADVICE = (
    "the server URL leads to a web frontend or its proxy (Vite, nginx) and not to the API: use the "
    "API's own address and port, or have the frontend pass /api/v1 on to it, upgrades included"
)

UPGRADE_ADVICE = (
    "let what stands in between pass upgrades on; nginx: proxy_http_version 1.1; proxy_set_header "
    'Upgrade $http_upgrade; proxy_set_header Connection "upgrade"'
)

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Finding:
    """
    @ivar check: What was looked at, in a word or two.
    @ivar outcome: C{"ok"}, C{"warning"} (it works, or may), C{"failed"}, or
        C{"skipped"} where it could not be looked at.
    @ivar seen: What was seen.
    @ivar advice: What to do; empty where there is nothing to be done.
    """

    check: str
    outcome: Outcome
    seen: str
    advice: str = ""

    def lines(self) -> list[str]:
        """For people: what was seen, and below it what to do."""
        said = [f"{SYMBOLS[self.outcome]} {self.check:<18} {self.seen}"]
        if self.advice and self.outcome != "ok":
            said.append(f"   {'':<18} → {self.advice}")
        return said

    def asJSON(self) -> dict[str, Any]:
        """For programs."""
        return {
            "check": self.check,
            "outcome": self.outcome,
            "seen": self.seen,
            "advice": self.advice or None,
        }


def plain(text: str) -> str:
    """What others said, as one harmless line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MAX_SEEN else line[: MAX_SEEN - 1] + "…"


def milliseconds(seconds: float) -> str:
    """A time as a finding says it."""
    return f"{seconds * 1000:.0f} ms"


@dataclass(frozen=True, slots=True)
class Heard:
    """
    An HTTP answer.

    @ivar headers: Names in lower case.
    @ivar body: Its beginning.
    """

    status: int
    reason: str
    headers: Headers
    body: bytes

    def header(self, name: bytes) -> str:
        """The first value of a field, or nothing."""
        for key, value in self.headers:
            if key == name:
                return value.decode("latin-1").strip()
        return ""

    @property
    def media(self) -> str:
        """The media type, without parameters."""
        return self.header(b"content-type").partition(";")[0].strip().lower()

    @property
    def isProblem(self) -> bool:
        """Whether it is the API's own word (RFC 9457)."""
        return self.media == "application/problem+json"

    @property
    def detail(self) -> str:
        """What the API says."""
        try:
            said = json.loads(self.body).get("detail")
        except (ValueError, AttributeError):
            return ""
        return plain(said) if isinstance(said, str) else ""

    @property
    def isFrontend(self) -> bool:
        """
        Whether a page was answered, where nobody asked for one.

        Vite's own refusal of a host that it does not know is plain text.
        """
        text = self.body[:4096].lower()
        return (
            self.media == "text/html"
            or text.lstrip().startswith((b"<!doctype html", b"<html"))
            or self.isVite
        )

    @property
    def isVite(self) -> bool:
        """Whether a development server names itself."""
        return self.media != "application/json" and b"vite" in self.body[:4096].lower()

    def said(self) -> str:
        """The status line, the kind of the answer, and who says that it is from them."""
        words = [f"{self.status} {self.reason}".strip()]
        if self.media:
            words.append(self.media)
        for name in (b"server", b"via"):
            if self.header(name):
                words.append(f"{name.decode('ascii')}: {plain(self.header(name))[:80]}")
        return ", ".join(words)


def judgePage(heard: Heard, what: str) -> Finding | None:
    """
    Say what is wrong with an answer that is not the API's own.

    @param what: What was asked.
    @return: C{None} for an answer that the API may have given.
    """
    if heard.status == 407:
        return Finding(
            what,
            "failed",
            f"a proxy in between wants a login ({heard.said()})",
            "name the proxy and its user and password (--proxy, --proxy-credentials), or have it "
            "let this host through",
        )
    if heard.isProblem:
        return None
    if heard.status in (301, 302, 303, 307, 308):
        place = plain(heard.header(b"location"))
        return Finding(
            what,
            "failed",
            f"a redirect to {place or 'nowhere'} ({heard.said()})",
            "use that address as the server URL if it is the API's: redirects are not followed, "
            "since they would take the token along",
        )
    if heard.status in (502, 503, 504):
        return Finding(
            what,
            "failed",
            f"a proxy or frontend answered that what is behind it is away ({heard.said()})",
            "start the server, or correct the address under which the proxy looks for it (one that "
            "limits requests or connections may say the same); if no proxy is meant to be there: "
            + FRONTEND_ADVICE,
        )
    if b"http request" in heard.body.lower() and b"https" in heard.body.lower():
        return Finding(
            what,
            "failed",
            f"the port wants TLS ({heard.said()})",
            "write https:// in the server URL",
        )
    login = heard.header(b"www-authenticate").partition(" ")[0]
    if heard.status == 401 and login and login.lower() != "bearer":
        return Finding(
            what,
            "failed",
            f"something in between wants a login of its own, {plain(login)[:40]} ({heard.said()})",
            "have it let /api/v1 through without one: the agent's token is in Authorization, where "
            "there is no room for another",
        )
    if heard.isFrontend and heard.status in (401, 403, 429) and not heard.isVite:
        return Finding(
            what,
            "failed",
            f"something in between refuses this, in the server's place ({heard.said()})",
            "look at the rules of what is in between (an access list, a firewall for web "
            "applications, a limit of requests), and whether it puts pages of its own in the place "
            "of the server's answers, which may be about the token (nginx: proxy_intercept_errors)",
        )
    if heard.isFrontend:
        return Finding(
            what,
            "failed",
            f"a frontend answered in the API's place ({heard.said()})",
            FRONTEND_ADVICE,
        )
    return None


def judgeVersion(heard: Heard, what: str = "http") -> Finding:
    """What the answer to C{GET /api/v1/version} means."""
    page = judgePage(heard, what)
    if page is not None:
        return page
    if heard.status == 200:
        try:
            version = json.loads(heard.body).get("version")
        except (ValueError, AttributeError):
            version = None
        if isinstance(version, str):
            between = f", through {plain(heard.header(b'via'))}" if heard.header(b"via") else ""
            return Finding(what, "ok", f"the API answers: version {plain(version)}{between}")
    if heard.status == 401:
        return Finding(what, "ok", f"the API answers ({heard.said()})")
    return Finding(
        what,
        "warning",
        f"no version at /api/v1/version ({heard.said()})",
        "it may be the older Go server; if not, the path in the server URL is wrong",
    )


def judgeProxy(failed: ProxyFailed, authority: str) -> Finding:
    """
    What to do about a proxy that does not lead to the server.

    @param authority: The server's host and port.
    """
    status = failed.status
    if status == 407:
        advice = (
            "put USER:PASSWORD for Basic into a file of mode 0600 (--proxy-credentials), or have "
            "the proxy let this host through without a login"
        )
    elif 300 <= status < 400:
        advice = (
            "the proxy wants something of a person first, such as a login page: have it let this "
            "host through to CONNECT"
        )
    elif 400 <= status < 500:
        advice = (
            f"have the proxy allow CONNECT to {authority}; many allow port 443 alone: let the "
            "server listen there"
        )
    elif status or failed.late:
        advice = (
            f"the proxy does not reach {authority}: is the server running, and does the proxy "
            "resolve its name and have a way to it?"
        )
    else:
        advice = "is that an HTTP proxy's address? Correct it: --proxy, HTTPS_PROXY, HTTP_PROXY"
    advice += "; a server that needs no proxy belongs into NO_PROXY"
    return Finding("proxy", "failed", plain(str(failed)), advice)


def judgeUpgrade(heard: Heard, what: str) -> Finding:
    """What an answer other than C{101} to a check means for the upgrade."""
    page = judgePage(heard, what)
    if page is not None:
        return page
    if heard.status == 426:
        return Finding(
            what,
            "failed",
            "the request arrived without its upgrade: something in between took it away "
            f"({heard.said()})",
            UPGRADE_ADVICE,
        )
    if isOlder(heard):
        return Finding(
            what,
            "skipped",
            "the server knows no checks (an older helix_revdial, or the Go server)",
            "an upgrade cannot be tried there without taking the runner over: see the agent's log",
        )
    if heard.isProblem and heard.status in (401, 403, 409, 429, 503):
        return Finding(what, "skipped", f"the server refused before it ({heard.status})")
    if heard.isProblem and heard.status == 404:
        return Finding(
            what,
            "failed",
            f"nothing is at /api/v1/revdial ({heard.said()})",
            "correct the path in the server URL",
        )
    return Finding(
        what, "failed", f"something in between refused the upgrade ({heard.said()})", UPGRADE_ADVICE
    )


def judgeToken(heard: Heard, key: str, *, sent: bool = True) -> Finding | None:
    """
    What an answer to a check says of the token and the runner's name.

    @param key: The runner's key, or nothing.
    @param sent: Whether a token went there; else the agent has a certificate.
    @return: C{None} where it says nothing.
    """
    if not heard.isProblem:
        return None
    said = heard.detail or heard.said()
    challenge = heard.header(b"www-authenticate")
    if heard.status == 401 and not sent:
        return Finding(
            "token",
            "failed",
            f"there is none, and the server does not take the client certificate for one: {said}",
            "give --token-file, or have the server grant the certificate: "
            "[[access.client_certificate]], tls.map_clients",
        )
    if heard.status == 401 and challenge and "error=" not in challenge:
        # RFC 6750, 3.1: a challenge without an error is to one who brought nothing.
        return Finding(
            "token",
            "failed",
            f"it was sent and did not arrive: {said}",
            "something in between takes Authorization out of requests: have it pass that on "
            "(nginx: no proxy_set_header Authorization; a proxy with a login of its own: not for "
            "this path)",
        )
    if heard.status == 401:
        return Finding(
            "token",
            "failed",
            f"the server does not know it: {said}",
            "is it this server's token, and still valid? Make another: helix tokens create",
        )
    if heard.status == 403:
        return Finding(
            "token",
            "failed",
            said,
            f"take a token that may register {key}: helix tokens create --kind runner --pattern "
            f"{key}"
            if key
            else "take a runner's token",
        )
    if heard.status == 409:
        return Finding(
            "token",
            "failed",
            f"it is valid, but {said[:1].lower()}{said[1:]}",
            "another token holds this name: stop that agent, or give this one a name of its own",
        )
    if heard.status in (429, 503):
        return Finding("token", "warning", f"the server has no room just now: {said}", "ask again")
    return None


def isOlder(heard: Heard) -> bool:
    """Whether a server of before there were checks refused one."""
    return heard.status == 400 and b"runnerid" in heard.body


__all__ = [
    "SYMBOLS",
    "Finding",
    "Heard",
    "Outcome",
    "isOlder",
    "judgePage",
    "judgeProxy",
    "judgeToken",
    "judgeUpgrade",
    "judgeVersion",
    "milliseconds",
    "plain",
]
