# -*- test-case-name: tests.cli.test_checkout -*-
"""
The repository that a task is for: what was named, or the git checkout one stands in.

A server clones from an address, so that a checkout is its C{origin}, its branch, and
what of it the server cannot see.  A password in the address stays here.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from helix_revdial.cli.edge import plain
from helix_revdial.cli.exit_codes import RepositoryError

GIT_SECONDS = 10.0
"""Seconds that one question to git may take."""

_SCP = re.compile(r"(?:[A-Za-z0-9_.][\w.\-]*@)?[A-Za-z0-9][A-Za-z0-9.\-]+:(?!-)[^:\s][^\s]*")


@dataclass(frozen=True)
class Checkout:
    """
    Where a task's files come from.

    @ivar url: The address; L{None}: from nowhere, the workspace is empty.
    @ivar branch: The branch that is checked out; L{None} for none in particular.
    @ivar commit: The commit, where no branch is checked out.
    @ivar unseen: What the server will not see of it, each a phrase.
    """

    url: str | None = None
    branch: str | None = None
    commit: str | None = None
    unseen: tuple[str, ...] = ()


def repositoryOf(given: str | None, directory: Path) -> Checkout:
    """
    The repository.

    @param given: An address, a directory, C{none}, or L{None} for where one stands.
    @param directory: Where one stands.
    @raise RepositoryError: There is none that a server could clone.
    """
    if given is None:
        return _checkout(directory) or Checkout()
    if given == "none":
        return Checkout()
    if "://" in given:
        return Checkout(_address(given))
    place = Path(os.path.expanduser(given))
    place = place if place.is_absolute() else directory / place
    if place.is_dir():
        found = _checkout(place)
        if found is None:
            raise RepositoryError(f"{plain(given, 200)} is no git checkout")
        return found
    if _SCP.fullmatch(given):
        return Checkout(given)
    raise RepositoryError(
        f"{plain(given, 200)} is no git address (https://..., ssh://..., user@host:path), no "
        "directory and not 'none'"
    )


def _checkout(directory: Path) -> Checkout | None:
    url = _git(directory, "remote", "get-url", "origin")
    if not url:
        if _git(directory, "rev-parse", "--git-dir") is None:
            return None
        raise RepositoryError(
            "the checkout here has no remote called origin that a server could clone: name an "
            "address with --repo, or --repo none"
        )
    address = _address(url)
    branch = _git(directory, "symbolic-ref", "--short", "-q", "HEAD")
    commit = None if branch else _git(directory, "rev-parse", "-q", "--verify", "HEAD")
    unseen = []
    changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
    if changed:
        count = len(changed.splitlines())
        unseen.append(f"{count} changed file{'s' if count > 1 else ''}")
    ahead = _git(directory, "rev-list", "--count", "@{upstream}..HEAD") if branch else "0"
    if branch and ahead is None:
        known = _git(directory, "rev-parse", "-q", "--verify", f"refs/remotes/origin/{branch}")
        if not known:
            unseen.append(f"the branch {branch}, which has not been pushed")
    elif ahead and ahead != "0":
        unseen.append(f"{ahead} commit{'s' if ahead != '1' else ''} of {branch}, not pushed yet")
    return Checkout(address, branch, commit, tuple(unseen))


def _address(url: str) -> str:
    """An address as a server may have it."""
    if "://" in url:
        try:
            parts = urlsplit(url)
            host, user, password = parts.hostname, parts.username, parts.password
        except ValueError:
            raise RepositoryError("the repository's address is no URL") from None
        if parts.scheme.lower() in ("http", "https", "ssh", "git") and host:
            secret = password is not None or (user is not None and parts.scheme.startswith("http"))
            if not secret:
                return url
            place = parts.netloc.rpartition("@")[2]
            keeps = f"{user}@" if user and not parts.scheme.startswith("http") else ""
            return urlunsplit(parts._replace(netloc=keeps + place))
    elif _SCP.fullmatch(url):
        return url
    raise RepositoryError(
        f"{plain(url, 200)} is an address on this machine only: no server can clone it; name "
        "another with --repo, or --repo none"
    )


def _git(directory: Path, *arguments: str) -> str | None:
    """What git says; L{None} if it does not know, or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return done.stdout.decode("utf-8", "replace").strip()


__all__ = ["Checkout", "repositoryOf"]
