"""Tests for what L{helix_revdial.sessions.webhook_calls} knows without asking anybody."""

from __future__ import annotations

import ipaddress

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions.webhook_calls import Target, parseURL, problemOf


class ParseTests(SynchronousTestCase):
    """What a URL says."""

    def test_taken(self) -> None:
        """Scheme, host and port in one form, the path and the query as they stand."""
        for url, target, origin, host in (
            (
                "HTTPS://A.Example/x?y=1#z",
                Target(True, "a.example", 443, "/x?y=1"),
                "https://a.example:443",
                "a.example",
            ),
            (
                "http://a.example:8080",
                Target(False, "a.example", 8080, "/"),
                "http://a.example:8080",
                "a.example:8080",
            ),
            (
                "http://[2606:2800::1]/",
                Target(False, "2606:2800::1", 80, "/"),
                "http://[2606:2800::1]:80",
                "[2606:2800::1]",
            ),
        ):
            found = parseURL(url)
            self.assertEqual(found, target)
            self.assertEqual((found.origin, found.hostHeader), (origin, host))

    def test_refused(self) -> None:
        """Other schemes, secrets in the URL, no host, no port, what could split a head."""
        for url in (
            "",
            "ftp://a.example/",
            "file:///etc/passwd",
            "https:///x",
            "https://ann@a.example/",
            "https://ann:secret@a.example/",
            "https://a.example:0/",
            "https://a.example:70000/",
            "https://a.example:x/",
            "https://[::1/",
            "https://a.example/ x",
            "https://a.example/\r\nX: y",
            "https://ä.example/",
            "https://a.example/" + "x" * 2048,
            "https://" + "a" * 254 + "/",
            "https://" + "a" * 64 + ".example/",
            "https://a..example/",
            "https://a%20b.example/",
            "https://-a.example/",
            "https://[fe80::1%25eth0]/",
        ):
            with self.assertRaises(ValueError, msg=url):
                parseURL(url)
            self.assertTrue(problemOf(url, ()), url)

    @settings(deadline=None, max_examples=200)
    @given(st.text(max_size=60).map(lambda text: "https://" + text))
    def test_anyText(self, url: str) -> None:
        """Any text is a URL or is not."""
        try:
            parseURL(url)
        except ValueError as error:
            self.assertTrue(str(error))


class ProblemTests(SynchronousTestCase):
    """F4: what can be told to be private is refused when it is handed in."""

    def test_private(self) -> None:
        """Addresses in every spelling, and the machine itself."""
        for host in (
            "127.0.0.1",
            "10.0.0.1",
            "169.254.169.254",
            "[::1]",
            "[::ffff:10.0.0.1]",
            "[fe80::1]",
            "localhost",
            "a.localhost",
            "2130706433",
            "127.1",
            "0x7f.0x1",
            "1.2.3.0x4",
        ):
            self.assertTrue(problemOf(f"http://{host}/", ()), host)

    def test_public(self) -> None:
        """Names are judged when they are called."""
        for host in ("a.example", "93.184.216.34", "[2606:2800::1]", "localhost.example"):
            self.assertEqual(problemOf(f"https://{host}/", ()), "", host)

    def test_allowed(self) -> None:
        """What the operator has opened."""
        allowed = [ipaddress.ip_network("10.0.0.0/8")]
        self.assertEqual(problemOf("http://10.1.2.3/", allowed), "")
        self.assertTrue(problemOf("http://192.168.1.1/", allowed))
