# -*- test-case-name: tests.sessions.test_git_refs,tests.integration.test_git_refs -*-
"""
The branches and tags of a repository that a user names: C{git ls-remote}, made
safe to be asked for by anybody who has a token.

What holds:

  - only C{https} and C{ssh} (also in its short form C{git@host:path}); no
    password in the URL; nothing that git could take for an option;
  - the host is resolved once and must be public, and git is told to use that
    very address; redirects are not followed;
  - git gets an environment of its own: no prompts, no configuration and no
    credentials but those of the operator's settings;
  - each question has a deadline and a limit on what it may bring; few run at a
    time; the same question asked twice at once is asked once; answers stand
    for a minute.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import hyperlink
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHostnameResolver, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial.access.cache import AnswerCache
from helix_revdial.programs import IPrograms, OutputTooLarge, ProgramTimedOut, TooBusy
from helix_revdial.sessions.public_addresses import (
    Address,
    AddressRefused,
    Network,
    publicAddress,
)

FRESH: Final = 60.0
"""Seconds for which an answer stands."""

MAX_KNOWN: Final = 1000
"""Repositories whose answers are remembered."""

DEADLINE: Final = 20.0
"""Seconds for one question."""

MAX_OUTPUT: Final = 4 * 1024 * 1024
"""Bytes that git may answer."""

MAX_REFS: Final = 5000
"""References that are shown; those that come first."""

MAX_URL: Final = 2048
"""Characters of a URL."""

MAX_WAITERS: Final = 256
"""Callers that wait for one and the same answer."""

ENVIRONMENT: Final = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "/bin/false",
    "SSH_ASKPASS": "/bin/false",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ALLOW_PROTOCOL": "https:ssh",
    "GIT_OPTIONAL_LOCKS": "0",
    "HOME": "/nonexistent",
    "LC_ALL": "C",
}
"""What git's environment has besides C{PATH}."""

_SCP = re.compile(r"(?:(?P<user>[A-Za-z0-9._-]+)@)?(?P<host>[A-Za-z0-9._-]+):(?P<path>[^/:].*)")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|[0-9A-Fa-f:]+")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_UNSAFE = re.compile(r"[\x00-\x20\x7f-\xa0\ud800-\udfff]")


class RemoteRefused(ValueError):
    """A repository's URL that is not taken.  The text says what to do.  HTTP answers 400."""


class RemoteFailed(Exception):
    """The repository did not answer as one.  A sentence for people.  HTTP answers 502."""


@dataclass(frozen=True, slots=True)
class Remote:
    """
    A repository elsewhere.

    @ivar url: as git takes it, without any secret.
    @ivar scheme: C{"https"} or C{"ssh"}.
    """

    url: str
    scheme: Literal["https", "ssh"]
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Ref:
    """
    A branch or a tag.

    @ivar name: without C{refs/heads/} or C{refs/tags/}.
    @ivar sha: of the commit; for an annotated tag, of the commit that it names.
    """

    name: str
    type: Literal["branch", "tag"]
    sha: str


@dataclass(frozen=True, slots=True)
class Refs:
    """
    What a repository has.

    @ivar default: the branch that C{HEAD} names, if it does.
    @ivar at: when it was asked, in seconds since the epoch.
    """

    url: str
    refs: tuple[Ref, ...]
    default: str | None
    at: float


@dataclass(frozen=True, slots=True)
class GitAccess:
    """
    How the server reaches repositories.

    @ivar allowed: networks that are not public and may be reached.
    @ivar sshKey: file of the private key, readable by the server alone.
    @ivar knownHosts: file of the hosts' keys; without it any key is taken.
    @ivar caFile: PEM file of the authorities, instead of the system's.
    """

    allowed: tuple[Network, ...] = ()
    sshKey: str | None = None
    knownHosts: str | None = None
    caFile: str | None = None


def parseRemote(text: str) -> Remote:
    """
    A repository's URL.

    @raise RemoteRefused: for one that is not taken.
    """
    if not text or len(text) > MAX_URL or _UNSAFE.search(text) is not None:
        raise RemoteRefused(f"a URL has 1 to {MAX_URL} characters and no spaces")
    if "://" not in text:
        return _short(text)
    try:
        parsed = hyperlink.parse(text, decoded=False)
        host, port, userinfo = str(parsed.host), parsed.port, str(parsed.userinfo)
    except ValueError:
        raise RemoteRefused("this is no URL") from None
    if parsed.scheme not in ("https", "ssh"):
        raise RemoteRefused("a repository's URL begins with https:// or ssh://")
    if ":" in userinfo or (parsed.scheme == "https" and userinfo):
        raise RemoteRefused("a URL carries no password or token; the server has its own access")
    if userinfo and _USER.fullmatch(userinfo) is None:
        raise RemoteRefused("this user's name cannot be in a URL")
    if _HOST.fullmatch(host) is None:
        raise RemoteRefused("this host's name cannot be")
    if parsed.query or parsed.fragment:
        raise RemoteRefused("a repository's URL has no query and no fragment")
    if port is None or not 1 <= port <= 65535:
        raise RemoteRefused("a port is 1 to 65535")
    if not any(parsed.path):
        raise RemoteRefused("the URL names no repository")
    scheme: Literal["https", "ssh"] = "https" if parsed.scheme == "https" else "ssh"
    return Remote(parsed.to_text(), scheme, host, port)


def _short(text: str) -> Remote:
    """C{user@host:path}, as scp has it."""
    matched = _SCP.fullmatch(text)
    if matched is None or _HOST.fullmatch(matched["host"]) is None:
        raise RemoteRefused("a repository's URL is https://…, ssh://… or git@host:path")
    if matched["user"] is not None and _USER.fullmatch(matched["user"]) is None:
        raise RemoteRefused("this user's name cannot be in a URL")
    return Remote(text, "ssh", matched["host"], 22)


def parseRefs(output: str) -> tuple[tuple[Ref, ...], str | None]:
    """
    What C{git ls-remote --symref} wrote.

    @return: at most L{MAX_REFS} references, and the default branch.
    """
    default = None
    found: dict[str, Ref] = {}
    for line in output.splitlines():
        value, _, name = line.partition("\t")
        if value.startswith("ref: refs/heads/") and name == "HEAD":
            default = value.removeprefix("ref: refs/heads/")
        elif name.startswith("refs/heads/"):
            found[name] = Ref(name.removeprefix("refs/heads/"), "branch", value)
        elif name.startswith("refs/tags/"):
            # The commit of an annotated tag follows the tag's own line.
            bare = name.removesuffix("^{}")
            found[bare] = Ref(bare.removeprefix("refs/tags/"), "tag", value)
    return tuple(found.values())[:MAX_REFS], default


class GitRefs:
    """
    Asks repositories what they have.

    @ivar access: how; may be replaced.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        programs: IPrograms,
        resolver: IHostnameResolver,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        access: GitAccess,
    ) -> None:
        """
        @param programs: runs git, in an environment that has L{ENVIRONMENT}.
        @param clock: for deadlines and the age of answers.
        @param wallClock: the time of day, in seconds since the epoch.
        """
        self._programs = programs
        self._resolver = resolver
        self._clock = clock
        self._wallClock = wallClock
        self.access = access
        self._known: AnswerCache[str, Refs] = AnswerCache(
            clock.seconds, limit=MAX_KNOWN, fresh=FRESH, kept=FRESH
        )
        self._asking: dict[str, list[Deferred[Refs]]] = {}

    async def of(self, url: str) -> Refs:
        """
        The branches and tags of a repository.

        @raise RemoteRefused: for a URL that is not taken, or a host that is not public.
        @raise RemoteFailed: when it does not answer as a repository does.
        @raise helix_revdial.programs.ProgramTimedOut: after L{DEADLINE} seconds.
        @raise helix_revdial.programs.TooBusy: when too many are asked for.
        """
        remote = parseRemote(url)
        known = self._known.get(remote.url)
        if known is not None:
            return known
        waiters = self._asking.get(remote.url)
        if waiters is not None and len(waiters) >= MAX_WAITERS:
            raise TooBusy("too many wait for this repository's answer")

        def leave(waiter: Deferred[Refs]) -> None:
            self._asking[remote.url].remove(waiter)

        waiter: Deferred[Refs] = Deferred(leave)
        if waiters is not None:
            waiters.append(waiter)
        else:
            self._asking[remote.url] = [waiter]
            # Nobody's leaving ends it: its answer is for whoever asks next.
            Deferred.fromCoroutine(self._ask(remote)).addBoth(self._tell, remote.url)
        return await waiter

    def _tell(self, outcome: Refs | Failure, url: str) -> None:
        if isinstance(outcome, Refs):
            self._known.put(url, outcome)
        for waiter in self._asking.pop(url):
            waiter.callback(outcome)

    async def _ask(self, remote: Remote) -> Refs:
        try:
            address = await publicAddress(
                self._resolver, self._clock, remote.host, self.access.allowed
            )
        except AddressRefused as refused:
            raise RemoteRefused(str(refused)) from None
        try:
            finished = await self._programs.run(
                command(remote, address, self.access), outputLimit=MAX_OUTPUT, deadline=DEADLINE
            )
        except OutputTooLarge:
            raise RemoteFailed("the repository has too many branches and tags") from None
        except ProgramTimedOut:
            raise ProgramTimedOut(
                f"{remote.host} did not answer within {DEADLINE:g} seconds"
            ) from None
        if finished.exitCode != 0:
            self._log.info(
                "git ls-remote of {host} failed: {complaint}",
                host=remote.host,
                complaint=finished.complaint(),
            )
            raise RemoteFailed(
                f"{remote.host} has no such repository, or not for this server "
                f"({finished.complaint()})"
            )
        refs, default = parseRefs(finished.output.decode("utf-8", "replace"))
        return Refs(remote.url, refs, default, self._wallClock())


def command(remote: Remote, address: Address, access: GitAccess) -> Sequence[str]:
    """
    How git is asked, at an address that was checked.
    """
    options: list[str] = ["git", "-c", "http.followRedirects=false", "-c", "credential.helper="]
    if remote.scheme == "https":
        if not _isAddress(remote.host):
            shown = f"[{address}]" if address.version == 6 else str(address)
            pinned = f"http.curloptResolve={remote.host}:{remote.port}:{shown}"
            options += ["-c", pinned]
        # What an environment says of proxies would lead elsewhere.
        options += ["-c", "http.proxy="]
        if access.caFile is not None:
            options += ["-c", f"http.sslCAInfo={access.caFile}"]
    else:
        options += ["-c", f"core.sshCommand={shlex.join(_ssh(remote, address, access))}"]
    wanted = ["HEAD", "refs/heads/*", "refs/tags/*"]
    return [*options, "ls-remote", "--symref", "--", remote.url, *wanted]


def _ssh(remote: Remote, address: Address, access: GitAccess) -> list[str]:
    hosts = access.knownHosts
    options = {
        "BatchMode": "yes",
        "HostName": str(address),
        "HostKeyAlias": remote.host if remote.port == 22 else f"[{remote.host}]:{remote.port}",
        "ConnectTimeout": "10",
        "ProxyCommand": "none",
        "ForwardAgent": "no",
        "ClearAllForwardings": "yes",
        "IdentitiesOnly": "yes",
        "IdentityFile": access.sshKey or "none",
        "UserKnownHostsFile": hosts or "/dev/null",
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes" if hosts else "accept-new",
    }
    return ["ssh", "-F", "none", *(f"-o{name}={value}" for name, value in options.items())]


def _isAddress(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
