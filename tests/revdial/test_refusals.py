"""Tests for L{helix_revdial.revdial.refusals}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.exchange import UpgradeRefused
from helix_revdial.revdial.refusals import MAX_TEXT, Refused, refusal
from helix_revdial.revdial.requests import AnswerKind

TOKEN = "hl-very-secret-0123456789"

HTML = (b"content-type", b"text/html")
NGINX = (b"server", b"nginx/1.22.1")


def refused(
    status: int,
    reason: str,
    *headers: tuple[bytes, bytes],
    body: bytes = b"",
    kind: AnswerKind = AnswerKind.OTHER,
) -> Refused:
    return refusal(UpgradeRefused(status, reason, headers, body), kind, TOKEN)


class DiagnosisTests(SynchronousTestCase):
    """What was seen, and what to do about it."""

    def test_upgradeTakenOut(self) -> None:
        """A server that asks for what was asked for never saw it: a proxy, and which one."""
        said = str(refused(426, "Upgrade Required", NGINX))
        self.assertIn("without its Upgrade header", said)
        self.assertIn("a proxy takes it out (nginx/1.22.1 is in between)", said)
        self.assertIn("docs/network.md", said)
        said = str(refused(426, "Upgrade Required", (b"via", b"1.1 squid")))
        self.assertIn("(1.1 squid is in between)", said)
        said = str(refused(426, "Upgrade Required", (b"server", b"helix_revdial/0.1.0")))
        self.assertIn("a proxy takes it out. Let", said)

    def test_serverAway(self) -> None:
        """A gateway's error is not taken for a wrong URL."""
        for status in (502, 503, 504):
            said = str(refused(status, "Bad", HTML, NGINX, body=b"<html>"))
            self.assertTrue(said.startswith(f"{status} Bad from nginx/1.22.1: "), said)
            self.assertIn("does not reach it", said)

    def test_redirect(self) -> None:
        """A redirect is not followed; where it leads is said without path and query."""
        where = (b"location", b"https://cp.example:8443/api/v1/revdial?runnerid=x")
        said = str(refused(308, "Permanent Redirect", where, HTML))
        self.assertIn("this one leads to https://cp.example:8443; is the server URL right?", said)
        for odd in (b"/elsewhere", b"https://[", b"javascript:x"):
            said = str(refused(301, "Moved", (b"location", odd)))
            self.assertIn("redirects are not followed; is", said)

    def test_plainToTLS(self) -> None:
        """nginx says in a page that its port speaks TLS."""
        body = b"<title>400 The plain HTTP request was sent to HTTPS port</title>"
        said = str(refused(400, "Bad Request", HTML, body=body))
        self.assertIn("write https:// in the server URL", said)

    def test_frontend(self) -> None:
        """A page in the API's place, and whose."""
        said = str(refused(200, "OK", HTML, NGINX, kind=AnswerKind.FRONTEND))
        self.assertIn("in the API's place (200 text/html from nginx/1.22.1)", said)

    def test_cut(self) -> None:
        """F1: where a long text is cut, no part of the token is left."""
        escaped = "".join(f"\\u{ord(c):04x}" for c in TOKEN)
        for before in range(MAX_TEXT - len(TOKEN), MAX_TEXT + 1):
            problem = b'{"detail": "%s%s"}' % (b"x" * before, escaped.encode())
            for kind, body in (
                (AnswerKind.OTHER, b"x" * before + TOKEN.encode()),
                (AnswerKind.REFUSED, problem),
            ):
                plain = (b"content-type", b"text/plain")
                said = str(refused(401, "No", plain, body=body, kind=kind))
                self.assertNotIn(TOKEN[:4], said)

    @settings(deadline=None, max_examples=100)
    @given(
        st.sampled_from([200, 301, 400, 401, 403, 404, 426, 500, 502]),
        st.sampled_from(["text/plain", "text/html", "application/problem+json", ""]),
        st.text(max_size=1000),
        st.sampled_from(list(AnswerKind)),
    )
    def test_anything(self, status: int, media: str, body: str, kind: AnswerKind) -> None:
        """F1: whatever comes: never the token, nothing for the terminal, not too long."""
        said = str(
            refused(
                status,
                f"No {TOKEN}",
                (b"content-type", media.encode()),
                (b"server", TOKEN.encode()),
                (b"location", f"https://{TOKEN}/".encode()),
                body=f"{TOKEN}{body}{TOKEN}".encode("utf-8", "replace"),
                kind=kind,
            )
        )
        self.assertNotIn(TOKEN, said)
        self.assertTrue(said.isprintable(), said)
        self.assertLessEqual(len(said), MAX_TEXT + 200)
