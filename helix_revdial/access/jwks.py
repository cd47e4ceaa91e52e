# -*- test-case-name: tests.access.test_jwks -*-
"""
The public keys of an issuer of JSON web tokens (RFC 7517), by HTTPS.

L{parseKeys} reads a key set and keeps what fits one algorithm; L{KeySet} has an
issuer's keys at hand and renews them.

What holds:

  - A key is looked up by its id in a table, and nowhere else: no part of a token is
    ever a path, an address or a query.
  - A key is of the type that the algorithm takes.  Symmetric keys are never taken from
    a public place.
  - An issuer that changes its key is asked for it at once.  Nobody who shows tokens can
    have it asked more often than L{MAX_ASKS} times in a row, and then once in
    L{MIN_INTERVAL} seconds, whatever the keys that they name; who has to wait shares one
    request.
  - Keys that are known are used while they are renewed, and, for L{MAX_AGE} seconds,
    while the issuer cannot be reached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import jwt
import msgspec
import treq
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.logger import Logger
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS
from twisted.web.http_headers import Headers

MAX_BYTES: Final = 256 * 1024
"""Bytes of a key set."""

MAX_KEYS: Final = 100
"""Keys of a set; more are not looked at."""

MAX_KEY_ID: Final = 256

FRESH: Final = 600.0
"""Seconds after which keys are renewed while they are used."""

MIN_INTERVAL: Final = 30.0
"""Seconds in which an issuer may be asked once more."""

MAX_ASKS: Final = 5
"""Requests to an issuer in a row, after a quiet time."""

MAX_AGE: Final = 86_400.0
"""Seconds for which keys are used that cannot be renewed."""

TIMEOUT: Final = 10.0
"""Seconds for a whole answer."""

MIN_RSA_BITS: Final = 2048
"""RFC 7518, 3.3."""

_CURVES: Final = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA", *_CURVES}
)
"""What public keys can sign with."""


class KeysUnavailable(Exception):
    """The issuer's keys cannot be had now.  HTTP answers 503."""


def parseKeys(data: bytes, algorithm: str) -> dict[str | None, Any]:
    """
    Read a key set.

    @param algorithm: One of L{ALGORITHMS}.
    @return: The keys that can verify it, by their id; C{None} for one that has none.
    @raise ValueError: for what is no key set.
    """
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("it is no JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it has no list of keys")
    found: dict[str | None, Any] = {}
    for entry in entries[:MAX_KEYS]:
        if not isinstance(entry, dict):
            continue
        name = entry.get("kid")
        if name is not None and not (isinstance(name, str) and len(name) <= MAX_KEY_ID):
            continue
        key = _usable(entry, algorithm)
        if key is not None:
            found.setdefault(name, key)
    return found


def _usable(entry: dict[str, Any], algorithm: str) -> Any:
    if entry.get("use", "sig") != "sig" or entry.get("alg", algorithm) != algorithm:
        return None
    if entry.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    public = {name: value for name, value in entry.items() if name not in ("d", "p", "q", "k")}
    try:
        key = jwt.PyJWK(public, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if algorithm in _CURVES:
        fits = isinstance(key, EllipticCurvePublicKey) and key.curve.name == _CURVES[algorithm]
    elif algorithm == "EdDSA":
        fits = isinstance(key, Ed25519PublicKey)
    else:
        fits = isinstance(key, RSAPublicKey) and key.key_size >= MIN_RSA_BITS
    return key if fits else None


class KeySet:
    """
    The keys of one issuer.
    """

    _log = Logger()

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        clock: IReactorTime,
        algorithm: str,
        name: str,
    ) -> None:
        """
        @param fetch: Asks the issuer.
        @param clock: Tells the time.
        @param algorithm: What the keys are for.
        @param name: What the log calls the issuer.
        """
        self._fetch = fetch
        self._clock = clock
        self._algorithm = algorithm
        self._name = name
        self._keys: Mapping[str | None, Any] = {}
        self._renewed = float("-inf")
        # When it may be asked L{MAX_ASKS} times in a row.
        self._quiet = float("-inf")
        self._waiting: list[Deferred[None]] | None = None

    async def key(self, name: str | None) -> Any:
        """
        The key of that id.

        @param name: C{None}: the token names none, so it is the only one.
        @return: C{None}: there is none.
        @raise KeysUnavailable: There might be, but the issuer does not say.
        """
        now = self._clock.seconds()
        found = self._find(name)
        if found is not None and now - self._renewed < MAX_AGE:
            if now - self._renewed >= FRESH:
                self._ask(now)
            return found
        if self._ask(now):
            waiting: Deferred[None] = Deferred()
            assert self._waiting is not None
            self._waiting.append(waiting)
            await waiting
            now = self._clock.seconds()
        if now - self._renewed >= MAX_AGE:
            raise KeysUnavailable(f"the keys of {self._name} cannot be had now")
        return self._find(name)

    def _find(self, name: str | None) -> Any:
        if name is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(name)

    def _ask(self, now: float) -> bool:
        """
        Have the issuer asked, unless that was done too often lately.

        @return: Whether it is being asked.
        """
        if self._waiting is None:
            quiet = max(self._quiet, now) + MIN_INTERVAL
            if quiet > now + MAX_ASKS * MIN_INTERVAL:
                return False
            self._quiet = quiet
            self._waiting = []
            asking = Deferred.fromCoroutine(self._renew())
            asking.addErrback(
                lambda failure: self._log.failure("The keys are not renewed", failure)
            )
        # It may have been answered at once.
        return self._waiting is not None

    async def _renew(self) -> None:
        try:
            keys = parseKeys(await self._fetch(), self._algorithm)
            if not keys:
                raise ValueError(f"it has no key for {self._algorithm}")
        except Exception as error:
            self._log.warn(
                "The keys of {issuer} cannot be renewed: {reason}",
                issuer=self._name,
                reason=f"{type(error).__name__}: {error}",
            )
        else:
            self._keys = keys
            self._renewed = self._clock.seconds()
        finally:
            waiting, self._waiting = self._waiting or [], None
            for one in waiting:
                if not one.called:
                    one.callback(None)


def httpsFetch(reactor: Any, url: str, trust: bytes | None) -> Callable[[], Awaitable[bytes]]:
    """
    Ask for a key set by HTTPS.

    @param url: C{https://…}; an answer that leads elsewhere is not followed.
    @param trust: PEM certificates of the authorities that are believed instead of the
        platform's.
    @raise ValueError: for another URL, or what are no certificates.
    """
    if not url.startswith("https://"):
        raise ValueError("keys are fetched by https:// only")
    policy = BrowserLikePolicyForHTTPS()
    if trust is not None:
        policy = BrowserLikePolicyForHTTPS(
            trustRoot=trustRootFromCertificates(certificatesIn(trust))
        )
    client = HTTPClient(Agent(reactor, policy, connectTimeout=TIMEOUT))

    async def fetch() -> bytes:
        return await Deferred.fromCoroutine(answer()).addTimeout(TIMEOUT, reactor)

    async def answer() -> bytes:
        response = await client.get(
            url,
            headers=Headers({"Accept": ["application/json"]}),
            allow_redirects=False,
            unbuffered=True,
        )
        if response.code != 200:
            raise ValueError(f"the answer's status is {response.code}")
        pieces: list[bytes] = []
        size = 0

        def collect(piece: bytes) -> None:
            nonlocal size
            size += len(piece)
            if size > MAX_BYTES:
                raise ValueError(f"the answer is larger than {MAX_BYTES} bytes")
            pieces.append(piece)

        await treq.collect(response, collect)
        return b"".join(pieces)

    return fetch


def certificatesIn(pem: bytes) -> list[Certificate]:
    """
    The certificates of a PEM file.

    @raise ValueError: There is none.
    """
    end = b"-----END CERTIFICATE-----"
    found = [Certificate.loadPEM(part + end) for part in pem.split(end)[:-1]]
    if not found:
        raise ValueError("there is no certificate in the file")
    return found


__all__ = [
    "ALGORITHMS",
    "FRESH",
    "MAX_AGE",
    "MAX_ASKS",
    "MAX_BYTES",
    "MAX_KEYS",
    "MIN_INTERVAL",
    "KeySet",
    "KeysUnavailable",
    "certificatesIn",
    "httpsFetch",
    "parseKeys",
]
