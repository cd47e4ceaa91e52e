"""Tests for L{helix_revdial.agent.proxies}."""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network, ip_address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent.proxies import (
    CredentialsFile,
    CredentialsUnusable,
    Exceptions,
    ProxyChoice,
    ProxyURL,
    environmentExceptions,
    environmentProxies,
    isLoopback,
)

PASSWORD = "pass%40word-0123456789"

labels = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
ports = st.integers(1, 65535)


class ProxyURLTests(SynchronousTestCase):
    def test_forms(self) -> None:
        """With and without scheme, port, brackets and credentials."""
        for text, expected in (
            ("proxy:3128", "http://proxy:3128"),
            ("http://proxy", "http://proxy:80"),
            ("https://proxy", "https://proxy:443"),
            ("HTTP://10.0.0.1:8080/", "http://10.0.0.1:8080"),
            ("http://[::1]:3128", "http://[::1]:3128"),
            (" http://user:secret@proxy:1 ", "http://proxy:1"),
        ):
            self.assertEqual(str(ProxyURL.parse(text)), expected)

    def test_credentials(self) -> None:
        """Percent signs are decoded; F1: nothing that prints the value shows them."""
        proxy = ProxyURL.parse(f"http://us%3Aer:{PASSWORD}@proxy:3128")
        assert proxy.credentials is not None
        self.assertEqual(proxy.credentials.reveal(), "us:er:pass@word-0123456789")
        self.assertNotIn("word", f"{proxy} {proxy!r} {ProxyChoice(proxy)!r}")

    def test_refused(self) -> None:
        """What is no HTTP proxy is refused without repeating it."""
        for text in (
            "socks5://user:word@proxy:1",
            "ftp://user:word@proxy",
            "http://user:word@",
            "http://user:word@proxy:port",
            "http://user:word@proxy:0",
            "http://user:word@proxy/path",
            "http://user:wo%0ard@proxy",
            "http://user:word@pro xy",
            "",
        ):
            error = self.assertRaises(ValueError, ProxyURL.parse, text)
            self.assertNotIn("word@", str(error))
        error = self.assertRaises(ValueError, ProxyURL.parse, "socks5h://proxy:1080")
        self.assertIn("SOCKS", str(error))

    @settings(deadline=None, max_examples=200)
    @given(st.text(max_size=60))
    def test_anything(self, text: str) -> None:
        """Whatever is written is a proxy or a ValueError."""
        try:
            str(ProxyURL.parse(text))
        except ValueError:
            pass


class ExceptionsTests(SynchronousTestCase):
    def excepted(self, text: str, host: str, port: int = 443) -> bool:
        return (host, port) in Exceptions(text)

    def test_names(self) -> None:
        """A name stands for itself and what is below it; a dot before it changes nothing."""
        for entry in ("corp.example", ".corp.example", "*.corp.example", "CORP.Example."):
            self.assertTrue(self.excepted(f"other,{entry}", "cp.corp.example"), entry)
            self.assertTrue(self.excepted(entry, "corp.example."), entry)
            self.assertFalse(self.excepted(entry, "notcorp.example"), entry)
            self.assertFalse(self.excepted(entry, "corp.example.org"), entry)

    def test_addresses(self) -> None:
        """Addresses and ranges are compared as such, in either family."""
        for entry, host, expected in (
            ("10.0.0.0/8", "10.9.8.7", True),
            ("10.0.0.0/8", "11.0.0.1", False),
            ("10.0.0.0/8", "cp.example", False),
            ("10.0.0.7", "10.0.0.7", True),
            ("10.0.0.7", "::ffff:10.0.0.7", True),
            ("fd00::/8", "fd12::1", True),
            ("[fd12::1]", "fd12:0::1", True),
            ("::1", "::1", True),
            ("0.0.7", "10.0.0.7", False),
        ):
            self.assertEqual(self.excepted(entry, host), expected, (entry, host))

    def test_ports(self) -> None:
        """With a port an entry means that port only."""
        for entry, host in (
            ("cp.example:8443", "cp.example"),
            ("10.0.0.7:8443", "10.0.0.7"),
            ("[fd12::1]:8443", "fd12::1"),
        ):
            self.assertTrue(self.excepted(entry, host, 8443), entry)
            self.assertFalse(self.excepted(entry, host, 443), entry)

    def test_everything(self) -> None:
        """A star is everything, nothing is nothing."""
        self.assertTrue(self.excepted("a, *", "cp.example"))
        for text in ("", " , ", ".", ":", ":443", "10.0.0.0/99", "[", "*."):
            self.assertFalse(self.excepted(text, "cp.example"), text)
            self.assertFalse(self.excepted(text, "10.0.0.1"), text)

    @settings(deadline=None, max_examples=200)
    @given(names, names, ports, st.sampled_from(["", ".", "*."]))
    def test_suffixes(self, host: str, suffix: str, port: int, dot: str) -> None:
        """A name is excepted exactly if its last labels are those of an entry."""
        expected = host.split(".")[-len(suffix.split(".")) :] == suffix.split(".")
        self.assertEqual((host, port) in Exceptions(f"{dot}{suffix}"), expected)
        self.assertTrue((f"{host}.{suffix}", port) in Exceptions(f"x {dot}{suffix}:{port}"))

    @settings(deadline=None, max_examples=200)
    @given(
        st.tuples(st.ip_addresses(v=4), st.integers(0, 32))
        | st.tuples(st.ip_addresses(v=6), st.integers(0, 128)),
        st.ip_addresses(),
    )
    def test_ranges(self, base: tuple[object, int], address: object) -> None:
        """A range excepts exactly the addresses in it."""
        text = f"{base[0]}/{base[1]}"
        kind = IPv6Network if ":" in text else IPv4Network
        network = kind(text, strict=False)
        host = ip_address(str(address))
        mapped = getattr(host, "ipv4_mapped", None) or host
        self.assertEqual((str(address), 1) in Exceptions(text), mapped in network)

    @settings(deadline=None, max_examples=200)
    @given(st.text(max_size=60), st.text(max_size=30), ports)
    def test_anything(self, text: str, host: str, port: int) -> None:
        """Whatever is listed and asked, there is an answer."""
        self.assertIn((host, port) in Exceptions(text), (True, False))


class ChoiceTests(SynchronousTestCase):
    def choice(self, **variables: str) -> ProxyChoice:
        return ProxyChoice(
            None, Exceptions(environmentExceptions(variables)), environmentProxies(variables)
        )

    def proxy(self, host: str = "cp.example", /, *, secure: bool = True, **variables: str) -> str:
        return str(self.choice(**variables).forServer(host, 443 if secure else 80, secure))

    def test_environment(self) -> None:
        """Each scheme has its variable; ALL_PROXY is for both; lower case wins."""
        self.assertEqual(self.proxy(HTTPS_PROXY="s:1", HTTP_PROXY="h:1"), "http://s:1")
        self.assertEqual(
            self.proxy(secure=False, HTTPS_PROXY="s:1", HTTP_PROXY="h:1"), "http://h:1"
        )
        self.assertEqual(self.proxy(ALL_PROXY="a:1"), "http://a:1")
        self.assertEqual(self.proxy(secure=False, all_proxy="a:1", HTTP_PROXY="h:1"), "http://h:1")
        self.assertEqual(self.proxy(https_proxy="low:1", HTTPS_PROXY="up:1"), "http://low:1")
        self.assertEqual(self.proxy(https_proxy="", HTTPS_PROXY="up:1"), "http://up:1")
        self.assertEqual(self.proxy(HTTP_PROXY="h:1"), "None")

    def test_exceptions(self) -> None:
        """NO_PROXY, in either case, and loopback."""
        self.assertEqual(self.proxy(HTTPS_PROXY="s:1", NO_PROXY="example"), "None")
        self.assertEqual(self.proxy(HTTPS_PROXY="s:1", no_proxy="example"), "None")
        for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "LOCALHOST."):
            self.assertEqual(self.proxy(host, HTTPS_PROXY="s:1"), "None")
            self.assertTrue(isLoopback(host))

    def test_named(self) -> None:
        """A proxy that was named for the agent is used for everything but its exceptions."""
        choice = ProxyChoice(ProxyURL.parse("n:1"), Exceptions("other"), {"https": ("x", "s:1")})
        for host in ("cp.example", "localhost"):
            self.assertEqual(str(choice.forServer(host, 443, True)), "http://n:1")
        self.assertIsNone(choice.forServer("other", 443, True))

    def test_unusable(self) -> None:
        """A variable that names no HTTP proxy is a complaint where it would be used."""
        choice = self.choice(ALL_PROXY="socks5://user:word@x:1", NO_PROXY="other")
        error = self.assertRaises(ValueError, choice.forServer, "cp.example", 443, True)
        self.assertTrue(str(error).startswith("ALL_PROXY: a SOCKS proxy"))
        self.assertIsNone(choice.forServer("other", 443, True))
        self.assertNotIn("word", repr(choice))


class CredentialsFileTests(SynchronousTestCase):
    def test_readAnew(self) -> None:
        """The file is read at each connection; what cannot be sent is said, not shown."""
        path = os.path.abspath(self.mktemp())
        source = CredentialsFile(path)
        self.assertIn("no such file", str(self.assertRaises(CredentialsUnusable, source)))
        for content, expected in ((b"user:pa:ss\n", b"user:pa:ss"), (b"\xc3\xbc:x", b"\xc3\xbc:x")):
            with open(path, "wb") as file:
                file.write(content)
            self.assertEqual(source(), expected)
        for content in (b"", b"secret", b"a:b\nc:d", b"a:" + b"x" * 2000):
            with open(path, "wb") as file:
                file.write(content)
            error = self.assertRaises(CredentialsUnusable, source)
            self.assertIn("write USER:PASSWORD", str(error))
            self.assertNotIn("secret", str(error))
