# -*- test-case-name: tests.api.test_proxy -*-
"""
C{…/http/{target}/…}: any HTTP request, to a service beside an agent.

Decides who may (the table of targets in C{docs/access.md}), for each request; the rest
is L{HTTPProxy <helix_revdial.gateways.proxy.HTTPProxy>}'s.  L{ByName} does the same for
requests whose C{Host} names the target: an origin of its own for each, on which the API
never answers.

The caller's token is ours and stays here.  Where the service wants credentials of its
own, the token comes as C{X-Helix-Authorization}, and C{Authorization} is the service's.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from helix_revdial.access.policy import Expose, SessionFacts, mayDial, sessionOf
from helix_revdial.access.principals import Principal
from helix_revdial.api.authority import Authority, asking
from helix_revdial.api.observation import aboutOf
from helix_revdial.api.problems import problemOf
from helix_revdial.api.services import Services
from helix_revdial.api.tracing import traceOf
from helix_revdial.api.waiting import waitOf
from helix_revdial.config import GatewaysSection
from helix_revdial.gateways.forwarding import OWN_AUTHORIZATION, BadAnswer, Caller
from helix_revdial.gateways.proxy import Ended, Errand
from helix_revdial.http.operations import ANY, Call, Operation
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver, Response
from helix_revdial.listening.sources import ProxySources
from helix_revdial.revdial.errors import DialError, NotAllowed
from helix_revdial.revdial.offered import TARGET_NAME
from helix_revdial.revdial.requests import RUNNER_KEY
from helix_revdial.settings import trustedProxies

DEFAULT = "default"
"""Stands for the agent's default target."""

OPEN: tuple[Expose, ...] = ("operator", "owner")
"""Targets that may be for a caller at all."""

_PREFIX_PARTS = 7
"""Slashes up to the service's own path: C{/api/v1/runners/wolf-1/http/api/…}."""

Answer = Response | HandedOver


class Forwarder:
    """Forwards calls that have been let in, if the target is for their callers."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._proxies: tuple[GatewaysSection, ProxySources | None] | None = None

    def _trusted(self, request: Request) -> bool:
        """Whether the request comes from a proxy of the operator's."""
        section = self._services.config.gateways
        if self._proxies is None or self._proxies[0] is not section:
            self._proxies = section, trustedProxies(section)
        proxies = self._proxies[1]
        return proxies is not None and proxies.trusts(request.peer)

    async def toRunner(self, call: Call, target: str, path: bytes, prefix: bytes) -> Answer:
        """
        @param call: Its C{params} name the C{runner}.
        @param target: As the caller names it.
        @param path: The request target for the service.
        @param prefix: What stands before it here.
        """
        runner = call.params["runner"]
        if RUNNER_KEY.fullmatch(runner) is None:
            raise Problem(400, "A runner key is up to 128 letters, digits, '.', '_' and '-'.")
        session = sessionOf(runner)
        facts = None if session is None else await self._services.sessions.facts(session)
        return await self._forward(call, runner, facts, target, path, prefix)

    async def toSession(self, call: Call, target: str, path: bytes, prefix: bytes) -> Answer:
        """
        @param call: Its C{resource} is the session.
        """
        session: SessionFacts = call.resource
        runner = self._services.runnerOf(session.id)
        return await self._forward(call, runner, session, target, path, prefix)

    async def _forward(
        self,
        call: Call,
        runner: str,
        session: SessionFacts | None,
        target: str,
        path: bytes,
        prefix: bytes,
    ) -> Answer:
        services, request, principal = self._services, call.request, asking(call)
        if TARGET_NAME.fullmatch(target) is None:
            raise Problem(400, "A target's name is letters, digits, '.', '_' and '-'.")
        if path.startswith(b"//"):
            # Some would take what follows for another host.
            raise Problem(400, "The path for the service must begin with one slash.")
        what = f"Runner {runner}"
        if not any(mayDial(principal, runner, expose, session) for expose in OPEN):
            # Whether it is connected is not for this caller to know.
            raise self._refused(call, principal, runner, target)
        trace = traceOf(request)
        errand = Errand(
            caller=f"{principal.tenant}/{principal.user or principal.family}",
            family=principal.family,
            runner=runner,
            target=None if target == DEFAULT else target,
            path=path,
            allow=lambda expose: (
                services.stillValid(principal) and mayDial(principal, runner, expose, session)
            ),
            about=aboutOf(request.requestId, trace),
            who=Caller(
                request.clientHost,
                request.secure,
                trusted=self._trusted(request),
                prefix=prefix,
            ),
            wait=waitOf(request),
            passAuthorization=OWN_AUTHORIZATION in request.headers,
            written=(
                *trace.headers(),
                (b"X-Request-Id", request.requestId.encode("ascii")),
            ),
        )
        try:
            return await services.proxy.forward(request, errand)
        except NotAllowed:
            raise self._refused(call, principal, runner, target) from None
        except DialError as error:
            raise problemOf(error, what) from None
        except BadAnswer as error:
            raise Problem(
                502,
                f"{what}: its service's answer cannot be passed on: {error}.",
                code="bad-answer",
            ) from None
        except Ended:
            raise Problem(401, "The token has been revoked.", code="unauthenticated") from None

    def _refused(self, call: Call, principal: Principal, runner: str, target: str) -> Problem:
        self._services.audit.record(
            "http-refused",
            subject=principal.tokenId,
            tenant=principal.tenant,
            runner=runner,
            target=target,
            peer=call.request.clientHost,
        )
        name = "default target" if target == DEFAULT else f"target {target}"
        # Nor is it said whether there is one that is for others.
        return Problem(403, f"Runner {runner} has no {name} for this token.", code="not-allowed")


def operations(services: Services) -> list[Operation]:
    """The rows: each with and without a path behind its last slash."""
    forwarder = Forwarder(services)

    async def toRunner(call: Call) -> Answer:
        path, prefix = _split(call.request)
        return await forwarder.toRunner(call, call.params["target"], path, prefix)

    async def toSession(call: Call) -> Answer:
        path, prefix = _split(call.request)
        return await forwarder.toSession(call, call.params["target"], path, prefix)

    rows = []
    for what, run, word in (("runner", toRunner, "dial"), ("session", toSession, "session-dial")):
        for name, rest in (("Root", ""), ("Path", "{rest:path}")):
            rows.append(
                Operation(
                    name=f"proxy{what.capitalize()}{name}",
                    method=ANY,
                    path=f"/api/v1/{what}s/{{{what}}}/http/{{target}}/{rest}",
                    run=run,
                    access=word,
                    rate=None,
                    errors=(400, 401, 403, 404, 502, 503, 504),
                    summary=f"Send a request to an HTTP service of a {what}.",
                    description=(
                        "The request goes to the service as it is, and so does the answer; an "
                        "upgrade such as WebSocket goes through. The target `default` is the "
                        "agent's default. Prefer: wait=SECONDS bounds the time to the answer's "
                        "first byte."
                    ),
                    tags=("http",),
                )
            )
    return rows


def _split(request: Request) -> tuple[bytes, bytes]:
    """The request target for the service, exactly as sent, and what stood before it."""
    path, mark, query = request.rawTarget.partition(b"?")
    parts = path.split(b"/", _PREFIX_PARTS)
    return b"/" + parts[_PREFIX_PARTS] + mark + query, b"/".join(parts[:_PREFIX_PARTS])


# By name

_NAME = re.compile(r"([a-z0-9](?:-?[a-z0-9])*)--([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)")
_SESSION = re.compile(r"ses-([0-7][0-9a-hjkmnp-tv-z]{25})")


def hostOf(request: Request) -> str:
    """The host that a request names, in lower case, without port and dots behind it."""
    host = (request.headers.get(b"host") or b"").decode("latin-1").lower()
    if host.startswith("["):
        return host
    return host.partition(":")[0].rstrip(".")


class ByName:
    """
    Answers requests whose C{Host} is C{TARGET--RUNNER.BASE}.

    C{TARGET} and C{RUNNER} are names in lower case that a host name can hold.  A
    session's runner is called by the session: C{ses-} and the rest of its id in lower
    case.  Each name stands for one runner, whoever is connected: a runner that cannot
    be written so has none.
    """

    def __init__(
        self, services: Services, authority: Authority, baseDomain: Callable[[], str | None]
    ) -> None:
        """
        @param baseDomain: The domain of now; C{None}: there are no names.
        """
        self._authority = authority
        self._baseDomain = baseDomain
        self._forwarder = Forwarder(services)

    def isFor(self, request: Request) -> bool:
        """Whether the request is none for the API."""
        base = self._baseDomain()
        return base is not None and hostOf(request).endswith("." + base)

    async def __call__(self, request: Request) -> Answer:
        """
        Answer a request that L{isFor} us.

        @raise Problem: It is not answered.
        """
        label = hostOf(request).removesuffix(f".{self._baseDomain()}")
        named = _NAME.fullmatch(label)
        if named is None:
            raise Problem(404, "This host names no target: they are called TARGET--RUNNER.")
        target, slug = named.groups()
        call = Call(request, _BY_NAME)
        session = _SESSION.fullmatch(slug)
        word = "dial"
        if session is None:
            call.params["runner"] = slug
        else:
            word = "session-dial"
            call.params["session"] = f"ses_{session[1].upper()}"
        call.principal = await self._authority.authenticate(request)
        if call.principal is not None:
            request.authenticated()
        await self._authority.authorise(call, word)
        if session is None:
            return await self._forwarder.toRunner(call, target, request.rawTarget, b"")
        return await self._forwarder.toSession(call, target, request.rawTarget, b"")


async def _nothing(call: Call) -> None:
    """What is reached by name has no row of its own."""


_BY_NAME = Operation(
    name="proxyByName",
    method=ANY,
    path="/",
    run=_nothing,
    summary="Send a request to an HTTP service.",
)


__all__ = ["ByName", "operations"]
