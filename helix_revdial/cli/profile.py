# -*- test-case-name: tests.cli.test_profile -*-
"""
Which server, and as whom: flags, then the environment, then the profile file.

Owns the reading of C{HELIX_URL}, C{HELIX_API_KEY}, C{HELIX_PROFILE}, of the
profile file and of C{--token-file}.  Opens no connection.

The server has other names, too, that other clients of the same API use: C{--rest-base}
and C{AW_REST_BASE} for its URL, C{--remote-server} and C{AGENTS_WORKFLOW_REMOTE_SERVER}
for its URL or for the name of a C{[[server]]} of the profile.  The flags are one setting;
of the variables C{HELIX_URL} goes first, then C{AW_REST_BASE}.

Invariants:

  - A secret comes from the environment or from a file, never from a flag's
    value, and appears in no text made here.
  - A profile file that somebody else can read or has written is refused
    before a byte of it is used.
  - A key that the profile holds for its own C{url}, or for a C{[[server]]}, is not sent to
    another server.
"""

from __future__ import annotations

import os
import stat
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from helix_revdial.cli.edge import SettingsError, plain

DEFAULT_URL = "http://localhost:8080"

URL_VARIABLE = "HELIX_URL"
REST_VARIABLE = "AW_REST_BASE"
SERVER_VARIABLE = "AGENTS_WORKFLOW_REMOTE_SERVER"
KEY_VARIABLE = "HELIX_API_KEY"
PROFILE_VARIABLE = "HELIX_PROFILE"

MAX_FILE = 64 * 1024
"""Bytes of a profile or token file that are read at most."""

MAX_SECRET = 8 * 1024
"""Characters that a secret may have: more does not fit in a request head."""

MAX_SERVERS = 200
"""Servers that a profile can have names for."""

_PROFILE_KEYS = ("url", "api_key", "token_file", "server")
_SERVER_KEYS = ("name", "url", "api_key", "token_file")


@dataclass(frozen=True)
class ServerURL:
    """
    The server's base URL.

    @ivar scheme: C{http} or C{https}.
    @ivar authority: Host, and port if one was given.
    @ivar prefix: Path before C{/api/v1}; empty, or begins with C{/} and does
        not end with it.
    """

    scheme: str
    authority: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> ServerURL:
        """
        Read a base URL.  A trailing C{/} or C{/api/v1} is taken off.

        @raise ValueError: With a sentence that does not repeat credentials.
        """
        if not text.isprintable() or any(c.isspace() for c in text):
            raise ValueError("a URL has no spaces or control characters in it")
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError(plain(error)) from None
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("expected http://HOST[:PORT] or https://HOST[:PORT]")
        if parts.username is not None or parts.password is not None:
            raise ValueError(f"credentials do not belong in a URL: put the key in {KEY_VARIABLE}")
        if parts.query or parts.fragment:
            raise ValueError("a server's URL has no ? or # part")
        if port == 0:
            raise ValueError("port 0 cannot be connected to")
        prefix = parts.path.rstrip("/").removesuffix("/api/v1").rstrip("/")
        return cls(parts.scheme, parts.netloc, quote(prefix, safe="/%~!$&'()*+,;=:@-._"))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: what a credential is bound to."""
        parts = urlsplit(str(self))
        return (
            self.scheme,
            parts.hostname or "",
            parts.port or (443 if self.scheme == "https" else 80),
        )


@dataclass(frozen=True)
class Settings:
    """
    What a command needs to reach the server.

    @ivar apiKey: The secret, or L{None} where none was found.
    @ivar keyHint: Why there is no key, where there is more to say than that.
    """

    url: ServerURL
    apiKey: str | None = None
    keyHint: str | None = None

    def __repr__(self) -> str:
        return f"Settings(url={self.url}, apiKey={'set' if self.apiKey else 'not set'})"


@dataclass(frozen=True)
class Flags:
    """The global flags as they were given."""

    url: str | None = None
    tokenFile: str | None = None
    profile: str | None = None
    restBase: str | None = None
    remoteServer: str | None = None


@dataclass(frozen=True)
class Profile:
    """
    What the profile file says; each may be missing.

    @ivar servers: By their names, what reads their part.
    """

    url: ServerURL | None = None
    apiKey: str | None = None
    servers: Mapping[str, Callable[[], Profile]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Profile(url={self.url}, apiKey={'set' if self.apiKey else 'not set'})"


def resolve(flags: Flags, environment: Mapping[str, str]) -> Settings:
    """
    Flags win over the environment, the environment over the profile.

    @raise SettingsError: One of them cannot be used; the text names it.
    """
    path, named = _profilePath(flags, environment)
    profile = Profile() if path is None else _profile(path, named)
    url, chosen = _server(flags, environment, profile, path)
    if flags.tokenFile is not None:
        return Settings(url, secretFromFile(flags.tokenFile, "--token-file"))
    if chosen is not None and chosen.apiKey is not None:
        return Settings(url, chosen.apiKey)
    if environment.get(KEY_VARIABLE, "").strip():
        return Settings(url, _secret(environment[KEY_VARIABLE], KEY_VARIABLE))
    if profile.apiKey is not None and profile.url is not None and profile.url.origin != url.origin:
        return Settings(url, None, f"the key in {path} is for {profile.url} and was not sent")
    return Settings(url, profile.apiKey)


def _server(
    flags: Flags, environment: Mapping[str, str], profile: Profile, path: Path | None
) -> tuple[ServerURL, Profile | None]:
    """The server that is meant, and what the profile has of it where it was named."""

    def read(source: str, text: str) -> tuple[ServerURL, Profile | None]:
        if source not in ("--remote-server", SERVER_VARIABLE) or "://" in text:
            return _url(text, source), None
        reading = profile.servers.get(text)
        if reading is None:
            names = ", ".join(sorted(profile.servers)) or "none"
            raise SettingsError(
                f"{source}: {plain(text, 60)!r} is no URL, and no [[server]] of "
                f"{path or 'a profile'} has that name (there are: {plain(names)})"
            )
        found = reading()
        if found.url is None:
            raise SettingsError(f"{path}: [[server]] {text}: has no url")
        return found.url, found

    given = [
        (source, read(source, text))
        for source, text in (
            ("--url", flags.url),
            ("--rest-base", flags.restBase),
            ("--remote-server", flags.remoteServer),
        )
        if text
    ]
    if len({str(url) for _, (url, _) in given}) > 1:
        names = " and ".join(source for source, _ in given)
        raise SettingsError(f"{names} name different servers: give one of them")
    if given:
        named = [found for _, found in given if found[1] is not None]
        return (named or [given[0][1]])[0]
    for source in (URL_VARIABLE, REST_VARIABLE, SERVER_VARIABLE):
        if text := environment.get(source):
            return read(source, text)
    return profile.url or ServerURL.parse(DEFAULT_URL), None


def secretFromFile(path: str, source: str) -> str:
    """
    Read a secret from a file, or from standard input for C{-}.

    The file may be anything that can be read once: a mounted secret, a pipe
    of C{<(…)}, C{/dev/stdin}.

    @param source: The flag or key that named the file, for error texts.

    @raise SettingsError: It cannot be read, or holds no usable secret.
    """
    try:
        if path == "-":
            content = sys.stdin.buffer.read(MAX_FILE + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise SettingsError(f"{source}: {path}: {error.strerror or error}") from None
    name = "standard input" if path == "-" else path
    try:
        return _secret(content.decode("ascii"), f"{source}: {name}")
    except UnicodeDecodeError:
        raise SettingsError(f"{source}: {name}: a secret is one line of ASCII text") from None


def _secret(text: str, source: str) -> str:
    """A secret without the white space around it, if it can stand in a header field."""
    secret = text.strip()
    if not secret:
        raise SettingsError(f"{source}: empty; expected a secret on one line")
    if len(secret) > MAX_SECRET:
        raise SettingsError(f"{source}: longer than {MAX_SECRET:,} characters; not a secret")
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise SettingsError(f"{source}: expected one line of ASCII text without spaces")
    return secret


def _url(text: str, source: str) -> ServerURL:
    try:
        return ServerURL.parse(text)
    except ValueError as error:
        raise SettingsError(f"{source}: {error}") from None


def _profilePath(flags: Flags, environment: Mapping[str, str]) -> tuple[Path | None, bool]:
    """Where the profile is, and whether somebody named it (it must exist then)."""
    if flags.profile is not None:
        return Path(flags.profile), True
    if environment.get(PROFILE_VARIABLE):
        return Path(environment[PROFILE_VARIABLE]), True
    base = environment.get("XDG_CONFIG_HOME")
    if not base or not os.path.isabs(base):
        home = environment.get("HOME")
        if not home:
            return None, False
        base = os.path.join(home, ".config")
    return Path(base, "helix", "profile.toml"), False


def _profile(path: Path, named: bool) -> Profile:
    content = _privateBytes(path, named)
    if content is None:
        return Profile()
    try:
        values = tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: {plain(error)}") from None
    servers = values.pop("server", [])
    if not isinstance(servers, list) or not all(isinstance(one, dict) for one in servers):
        raise SettingsError(f"{path}: server must be written as [[server]]")
    if len(servers) > MAX_SERVERS:
        raise SettingsError(f"{path}: more than {MAX_SERVERS} [[server]]")
    byName: dict[str, Callable[[], Profile]] = {}
    for one in servers:
        name = one.get("name")
        where = f"{path}: [[server]] {plain(name, 60)}" if name else f"{path}: [[server]]"
        if not isinstance(name, str) or not name or "://" in name or not name.isprintable():
            raise SettingsError(f"{where}: name must be a word that is no URL")
        if name in byName:
            raise SettingsError(f"{where}: there are two of that name")
        # Its token file is read when it is meant.
        byName[name] = partial(_entry, one, where, path, _SERVER_KEYS)
    whole = _entry(values, str(path), path, _PROFILE_KEYS)
    return Profile(whole.url, whole.apiKey, byName)


def _entry(values: Mapping[str, Any], where: str, path: Path, known: tuple[str, ...]) -> Profile:
    """A server's URL and key, as a table of the profile has them."""
    for key, value in values.items():
        if key not in known:
            raise SettingsError(f"{where}: unknown key {plain(key)!r} (known: {', '.join(known)})")
        if not isinstance(value, str):
            raise SettingsError(f"{where}: {key} must be a string")
    if "api_key" in values and "token_file" in values:
        raise SettingsError(f"{where}: api_key and token_file exclude each other")
    url = _url(values["url"], f"{where}: url") if values.get("url") else None
    if "token_file" in values:
        tokenFile = os.path.join(path.parent, os.path.expanduser(values["token_file"]))
        return Profile(url, secretFromFile(tokenFile, f"{where}: token_file"))
    if "api_key" in values:
        return Profile(url, _secret(values["api_key"], f"{where}: api_key"))
    return Profile(url)


def _privateBytes(path: Path, named: bool) -> bytes | None:
    """
    The content of a file that belongs to this user alone.

    What is checked is the opened file, so that nobody can exchange it between
    the check and the reading.

    @return: L{None} if there is none and nobody named it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        if named:
            raise SettingsError(f"{path}: no such profile") from None
        return None
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}") from None
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        os.close(descriptor)
        raise SettingsError(f"{path}: not a regular file")
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(status.st_mode):
            raise SettingsError(f"{path}: not a regular file")
        if status.st_uid != os.geteuid():
            raise SettingsError(f"{path}: belongs to another user; refused")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise SettingsError(
                f"{path}: others can read it (mode {mode:04o}); run: chmod 600 {path}"
            )
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise SettingsError(f"{path}: larger than {MAX_FILE:,} bytes; not a profile")
    return content


__all__ = ["DEFAULT_URL", "Flags", "Profile", "ServerURL", "Settings", "resolve", "secretFromFile"]
