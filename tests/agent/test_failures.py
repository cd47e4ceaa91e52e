"""Tests for L{helix_revdial.agent.failures}."""

from __future__ import annotations

import errno
from socket import EAI_NONAME, gaierror

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent.failures import connectReason
from helix_revdial.agent.proxies import CredentialsUnusable
from helix_revdial.agent.proxy import ProxyFailed
from helix_revdial.agent.trust import NotTrusted


class ConnectReasonTests(SynchronousTestCase):
    def test_words(self) -> None:
        """Each way in which a connection fails has words for people."""
        expected: list[tuple[BaseException, str]] = [
            (error.ConnectionRefusedError(errno.ECONNREFUSED, "x"), "connection refused"),
            (error.ConnectionRefusedError(), "connection refused"),
            (error.getConnectError((errno.ENOENT, "x")), "no such file or directory"),
            (error.getConnectError((errno.EACCES, "x")), "permission denied"),
            (error.NoRouteError(), "network is unreachable"),
            (error.TCPTimedOutError(), "connection timed out"),
            (error.TimeoutError(), "no answer in time"),
            (TimeoutError(), "no answer in time"),
            (error.DNSLookupError("no results"), "the host name does not resolve"),
            (gaierror(EAI_NONAME, "x"), "the host name does not resolve"),
            (OSError(errno.EMFILE, "x"), "too many open files"),
            (error.ConnectionDone(), "the connection was closed"),
            (error.ConnectionLost(), "the connection was closed"),
            (VerificationError(errors=[]), "the server's certificate is for another name"),
            (
                SSL.Error([("SSL routines", "", "certificate verify failed")]),
                "TLS failed: certificate verify failed",
            ),
            (
                SSL.Error([("SSL routines", "", "wrong version number")]),
                "TLS failed: what answers does not speak TLS; is it http:// or ws://?",
            ),
            (SSL.Error(), "TLS failed: the connection was closed"),
            (
                SSL.Error([("system library", "", "")]),
                "TLS failed: the connection was closed",
            ),
            *(
                (
                    SSL.Error([("SSL routines", "", f"{prefix} alert handshake failure")]),
                    "TLS failed: the two ends have nothing in common (version, ciphers), or the "
                    "server wants a certificate (--client-certificate)",
                )
                for prefix in ("sslv3", "ssl/tls", "tls")
            ),
            (
                SSL.Error([("SSL routines", "", "tlsv1 alert unknown ca")]),
                "TLS failed: the server does not trust this agent's certificate "
                "(--client-certificate)",
            ),
            (ProxyFailed("the proxy x"), "the proxy x"),
            (NotTrusted("the server's key"), "the server's key"),
            (CredentialsUnusable("the proxy's credentials"), "the proxy's credentials"),
        ]
        for failed, words in expected:
            self.assertEqual(connectReason(failed), words, repr(failed))

    def test_other(self) -> None:
        """A fault of ours is not put into words for people."""
        self.assertIsNone(connectReason(KeyError("x")))
