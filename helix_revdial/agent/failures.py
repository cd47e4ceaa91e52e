# -*- test-case-name: tests.agent.test_failures -*-
"""
Why a connection could not be made, in words for people.

Twisted's own sentences are for programmers (C{"Connection was refused by other
side: 111: Connection refused."}); what an operator reads in the agent's log and
what a caller is told of a target that is down is made here.
"""

from __future__ import annotations

import errno
from os import strerror
from socket import gaierror

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error

from .proxies import CredentialsUnusable
from .proxy import ProxyFailed
from .trust import NotTrusted

_NUMBERS: dict[type[BaseException], int] = {
    error.ConnectionRefusedError: errno.ECONNREFUSED,
    error.NoRouteError: errno.ENETUNREACH,
    error.TCPTimedOutError: errno.ETIMEDOUT,
}
"""Errors that Twisted may raise without the number that stands behind them."""


_NO_TLS = "what answers does not speak TLS; is it http:// or ws://?"

_UNTRUSTED = "the server does not trust this agent's certificate (--client-certificate)"
_EXPIRED = "this agent's certificate has expired (--client-certificate)"

_TLS_REASONS = {
    "wrong version number": _NO_TLS,
    "packet length too long": _NO_TLS,
    "http request": _NO_TLS,
}
"""What OpenSSL's reasons mean for somebody who sets an agent up."""

_ALERTS = {
    "certificate required": "the server wants a certificate (--client-certificate)",
    "unknown ca": _UNTRUSTED,
    "bad certificate": _UNTRUSTED,
    "certificate unknown": _UNTRUSTED,
    "certificate revoked": _UNTRUSTED,
    "certificate expired": _EXPIRED,
    "protocol version": "the two ends have no version of TLS in common",
    "handshake failure": "the two ends have nothing in common (version, ciphers), or "
    "the server wants a certificate (--client-certificate)",
}
"""
What a server's alerts mean.  Before the name of each OpenSSL has C{tlsv13 alert},
C{tlsv1 alert}, and C{sslv3 alert}, C{ssl/tls alert} or C{tls alert}, by its version.
"""


def connectReason(failed: BaseException) -> str | None:
    """
    Say why a connection was not made or did not live.

    @param failed: What an endpoint's C{connect} failed with, or what
        C{connectionLost} was told.
    @return: A few words in lower case, C{"connection refused"}; C{None} when this
        is none of the errors that connections end with.
    """
    if isinstance(failed, ProxyFailed | CredentialsUnusable | NotTrusted):
        return str(failed)
    if isinstance(failed, error.DNSLookupError | error.UnknownHostError | gaierror):
        return "the host name does not resolve"
    if isinstance(failed, VerificationError):
        return "the server's certificate is for another name"
    if isinstance(failed, SSL.Error):
        return f"TLS failed: {_tlsReason(failed)}"
    number = getattr(failed, "osError", None)
    if not isinstance(number, int) and isinstance(failed, OSError):
        number = failed.errno
    if not isinstance(number, int):
        number = _NUMBERS.get(type(failed))
    if isinstance(number, int):
        return strerror(number).lower()
    if isinstance(failed, error.TimeoutError | TimeoutError):
        return "no answer in time"
    if isinstance(failed, error.ConnectionDone | error.ConnectionLost | error.ConnectionAborted):
        return "the connection was closed"
    return None


def _tlsReason(failed: SSL.Error) -> str:
    # OpenSSL keeps a queue of (library, function, reason).
    for entry in failed.args:
        if isinstance(entry, list):
            reasons = [str(item[-1]) for item in entry if isinstance(item, tuple) and item]
            # The system's own error, such as a reset, has no reason.
            reasons = [reason for reason in reasons if reason]
            if reasons:
                reason = reasons[-1]
                alert = reason.partition(" alert ")[2]
                return _ALERTS.get(alert) or _TLS_REASONS.get(reason, reason)
    return "the connection was closed"


__all__ = ["connectReason"]
