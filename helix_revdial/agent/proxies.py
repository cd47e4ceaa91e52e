# -*- test-case-name: tests.agent.test_proxies -*-
"""
Which HTTP proxy an agent goes through, if any.

Reads what operators write: C{--proxy}, and the variables that other programs
take (C{HTTPS_PROXY}, C{HTTP_PROXY}, C{ALL_PROXY}, C{NO_PROXY}).  Connects to
nothing.

Rules, which are those of curl and of Go where these two agree:

  - C{HTTPS_PROXY} is for servers over TLS, C{HTTP_PROXY} for the others,
    C{ALL_PROXY} for both where the first is not set.  The name in lower case wins.
  - A proxy of the environment is not used for C{localhost} and loopback
    addresses; one that was named for the agent is used for everything but the
    exceptions named with it.
  - An exception is a name, which stands for itself and all names below it, an
    address, or a range of addresses (C{10.0.0.0/8}), each with a port if only
    that one is meant; or C{*}.  Ranges are compared with addresses in the
    server's URL: names are not resolved for it.

Invariant: a user and a password are in no C{str}, C{repr} or error text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import unquote, urlsplit

from .token import Secret

MAX_CREDENTIALS = 1024
"""Bytes of a user and password."""


class CredentialsUnusable(ValueError):
    """There is no user and password, or none that could be sent; says what to do."""


@dataclass(frozen=True, slots=True)
class CredentialsFile:
    """
    A file that holds C{USER:PASSWORD} and nothing else; read at each connection.
    """

    path: str

    def __call__(self) -> bytes:
        """
        @raise CredentialsUnusable: There are none just now.
        """
        try:
            with open(self.path, "rb") as file:
                content = file.read(MAX_CREDENTIALS + 2).strip()
        except OSError as error:
            reason = (error.strerror or "cannot be read").lower()
            raise CredentialsUnusable(f"the proxy's credentials {self.path}: {reason}") from None
        return usableCredentials(content, self.path)


def usableCredentials(content: bytes, origin: str) -> bytes:
    """
    Check a user and password.

    @raise CredentialsUnusable: They cannot be sent; names C{origin} only.
    """
    if len(content) > MAX_CREDENTIALS or b":" not in content or re.search(rb"[\0-\x1f]", content):
        raise CredentialsUnusable(f"the proxy's credentials {origin}: write USER:PASSWORD")
    return content


@dataclass(frozen=True, slots=True)
class ProxyURL:
    """
    An HTTP proxy.

    @ivar host: A name or an address, without brackets.
    @ivar secure: Whether the proxy itself is spoken to over TLS.
    @ivar credentials: C{USER:PASSWORD} from the URL, if it has them.
    """

    host: str
    port: int
    secure: bool
    credentials: Secret | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> ProxyURL:
        """
        Read C{http://host:port}, C{https://…}, or C{host:port}, with
        C{USER:PASSWORD@} before the host where that is needed.

        @raise ValueError: It is not that; the text repeats nothing of it.
        """
        text = text.strip()
        if "://" not in text:
            text = f"http://{text}"
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
            parts = urlsplit("")
        scheme = parts.scheme.lower()
        if scheme.startswith("socks"):
            raise ValueError(
                "a SOCKS proxy cannot be used; name an HTTP proxy, or the server among "
                "the exceptions"
            )
        if scheme not in ("http", "https") or not host or parts.path.strip("/") or parts.query:
            raise ValueError(
                "a proxy is http://host:port or https://host:port, with USER:PASSWORD@ before "
                "the host if it wants a login (special characters as %XX)"
            )
        if not re.fullmatch(r"[A-Za-z0-9._:-]+", host) or port == 0:
            raise ValueError("the proxy's host and port cannot be")
        credentials = None
        if parts.username is not None:
            user, password = unquote(parts.username), unquote(parts.password or "")
            try:
                usableCredentials(f"{user}:{password}".encode(), "in the URL")
            except CredentialsUnusable:
                raise ValueError("the proxy's user and password cannot be sent") from None
            credentials = Secret(f"{user}:{password}")
        secure = scheme == "https"
        return cls(host, port or (443 if secure else 80), secure, credentials)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}"


class Exceptions:
    """
    The servers that are reached without a proxy, as C{NO_PROXY} lists them.

    What is neither a name nor an address excepts nothing.
    """

    def __init__(self, text: str) -> None:
        """
        @param text: Separated by commas or spaces.
        """
        self.text = text
        self._entries = [each.lower() for each in re.split(r"[,\s]+", text) if each]

    def __contains__(self, server: tuple[str, int]) -> bool:
        host, port = server
        address = _address(host)
        name = host.lower().rstrip(".")
        return any(_excepts(each, name, address, port) for each in self._entries)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _excepts(entry: str, name: str, address: IPv4Address | IPv6Address | None, port: int) -> bool:
    if entry == "*":
        return True
    try:
        network = ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    else:
        return address is not None and address in network
    rest, colon, number = entry.rpartition(":")
    if colon and number.isascii() and number.isdigit():
        if int(number[:6]) != port:
            return False
        entry = rest
        wanted = _address(entry.strip("[]"))
        if wanted is not None:
            return address == wanted
    entry = entry.removeprefix("*").strip(".")
    return bool(entry) and address is None and (name == entry or name.endswith("." + entry))


def isLoopback(host: str) -> bool:
    """Whether C{host} is this machine, by its name or address alone."""
    address = _address(host)
    name = host.lower().rstrip(".")
    return name == "localhost" or (address is not None and address.is_loopback)


@dataclass(frozen=True, slots=True)
class ProxyChoice:
    """
    Which proxy leads to which server.

    @ivar named: The proxy that was named for the agent.
    @ivar exceptions: The exceptions named with it, or those of the environment.
    @ivar environment: The environment's proxies, by C{http} and C{https}, each with
        the name of its variable.
    @ivar visible: Whether the proxy stands in the arguments of the process.
    """

    named: ProxyURL | None = None
    exceptions: Exceptions = field(default_factory=lambda: Exceptions(""))
    environment: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    visible: bool = False

    def forServer(self, host: str, port: int, secure: bool) -> ProxyURL | None:
        """
        The proxy to go through, or C{None} for the direct way.

        @raise ValueError: The environment names one that cannot be; names the
            variable.
        """
        if (host, port) in self.exceptions:
            return None
        if self.named is not None:
            return self.named
        if isLoopback(host):
            return None
        found = self.environment.get("https" if secure else "http")
        if found is None:
            return None
        variable, text = found
        try:
            return ProxyURL.parse(text)
        except ValueError as error:
            raise ValueError(f"{variable}: {error}") from None


def environmentProxies(variables: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The proxies of an environment, for L{ProxyChoice}."""
    found = {}
    for scheme in ("http", "https"):
        own = _first(variables, (f"{scheme}_proxy", f"{scheme}_proxy".upper()))
        general = _first(variables, ("all_proxy", "ALL_PROXY"))
        if own or general:
            found[scheme] = own or general
    return {scheme: pair for scheme, pair in found.items() if pair is not None}


def environmentExceptions(variables: Mapping[str, str]) -> str:
    """What an environment excepts from its proxies."""
    found = _first(variables, ("no_proxy", "NO_PROXY"))
    return found[1] if found else ""


def _first(variables: Mapping[str, str], names: Iterable[str]) -> tuple[str, str] | None:
    return next(((name, variables[name]) for name in names if variables.get(name)), None)


__all__ = [
    "CredentialsFile",
    "CredentialsUnusable",
    "Exceptions",
    "ProxyChoice",
    "ProxyURL",
    "environmentExceptions",
    "environmentProxies",
    "isLoopback",
]
