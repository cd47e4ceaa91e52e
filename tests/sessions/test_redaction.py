"""Tests for L{helix_revdial.sessions.redaction}."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions.redaction import (
    _RULES,
    MARK,
    Redactor,
    _lower,
    isSecretName,
    secretsIn,
    secretsOf,
    userinfoOf,
)

LETTERS = "Ab1" * 14

SECRETS = (
    f"hlx_{LETTERS}x",
    f"ghp_{LETTERS[:36]}",
    f"github_pat_{LETTERS}",
    f"glpat-{LETTERS[:20]}",
    f"sk-ant-api03-{LETTERS}",
    "AKIAIOSFODNN7EXAMPLE",
    f"AIza{LETTERS[:35]}",
    f"xoxb-{LETTERS[:24]}",
    f"npm_{LETTERS[:36]}",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
)
"""Made up, of the forms that they are known by."""


class FormTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.redactor = Redactor()

    def test_knownForms(self) -> None:
        """Tokens that say what they are are taken out, wherever they stand."""
        for secret in SECRETS:
            for text in (secret, f"using {secret} now", f'{{"a":"{secret}"}}', f"({secret})\n"):
                done = self.redactor.text(text)
                self.assertNotIn(secret, done)
                self.assertIn(MARK, done)

    @settings(deadline=None, max_examples=100)
    @given(st.data(), st.sampled_from(_RULES), st.sampled_from((str, str.upper, str.lower)))
    def test_nothingIsPassedOver(
        self,
        data: st.DataObject,
        rule: tuple[tuple[str, ...], re.Pattern[str]],
        cased: Callable[[str], str],
    ) -> None:
        """The quick look at a text, of any letters, passes over nothing that is to be found."""
        hints, pattern = rule
        text = cased(data.draw(st.from_regex(pattern)))
        if pattern.search(text) is not None:
            self.assertTrue([hint for hint in hints if hint in _lower(text)], (hints, text))

    def test_authorization(self) -> None:
        """The value of an Authorization header goes, whatever its scheme; its name stays."""
        for text in (
            "Authorization: Bearer opaqueopaque",
            "authorization: Basic dXNlcjpwYXNz",
            "> Proxy-Authorization: ApiKey opaqueopaque",
            '"Authorization": "Bearer opaqueopaque"',
            "curl -H 'Authorization: token opaqueopaque' x",
            "sent Bearer opaqueopaqueopaque",
        ):
            done = self.redactor.text(text)
            self.assertNotIn("opaqueopaque", done)
            self.assertNotIn("dXNlcjpwYXNz", done)
            self.assertIn(MARK, done)

    def test_urls(self) -> None:
        """The password in a URL goes, the rest of it stays."""
        self.assertEqual(
            self.redactor.text("cloning https://ann:hunter22@git.example/x.git"),
            f"cloning https://ann:{MARK}@git.example/x.git",
        )
        self.assertEqual(
            self.redactor.text("https://oauthtoken99@git.example/x"),
            f"https://{MARK}@git.example/x",
        )
        for harmless in (
            "https://git.example/x.git",
            "git@github.com:acme/x.git",
            "ssh://git@git.example/x",
            "http://host:8080/a@b",
        ):
            self.assertEqual(self.redactor.text(harmless), harmless)

    def test_settings(self) -> None:
        """What a name says is secret goes."""
        for text in ("API_KEY=swordfish", "password: swordfish", "MY_TOKEN='swordfish x'"):
            self.assertNotIn("swordfish", self.redactor.text(text), text)

    def test_keys(self) -> None:
        """A private key goes whole, and so does one whose end is missing."""
        key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz\naC1rZXk\n"
        whole = key + "-----END OPENSSH PRIVATE KEY-----"
        self.assertEqual(self.redactor.text(f"a {whole} b"), f"a {MARK} b")
        self.assertEqual(self.redactor.text(f"a {key}"), f"a {MARK}")

    def test_harmlessTextStays(self) -> None:
        """What is no secret is stored as it was said."""
        for text in (
            "",
            "running 3 tests ... ok",
            "the token was refused",
            "authorization failed",
            "commit 3acaebd0b1a2c3d4e5f60718293a4b5c6d7e8f90",
            "tokenizer: 3 files",
            "skill-based matching of the task-list",
            "日本語 ☃ \x1b[31mred\x1b[0m",
        ):
            self.assertEqual(self.redactor.text(text), text)

    def test_longTexts(self) -> None:
        """F: no text makes it slow."""
        began = time.process_time()
        for text in (
            "a" * 65536,
            "token " * 10000,
            "-----BEGIN PRIVATE KEY-----" * 2000,
            "https://" * 8000,
            "authorization " * 4000,
            "a_" * 30000 + "token",
            "eyJ" + "a" * 65000,
            "https://a:" * 6000,
            "a-" * 32000 + "token",
            "eyJ-" * 16000 + ".",
            "x-a-" * 16000 + "authorization",
        ):
            self.redactor.text(text)
        self.assertLess(time.process_time() - began, 5)

    def test_withinWords(self) -> None:
        """What stands before a token, or a name, in the same word is kept."""
        jwt = SECRETS[-1]
        for text, found in (
            (f"the-token-{jwt}", f"the-token-{MARK}"),
            (f"{'a-' * 40}{jwt}.", f"{'a-' * 40}{MARK}."),
            ("X-Forwarded-Authorization: Basic abcdef", f"X-Forwarded-Authorization: Basic {MARK}"),
            ("my.db-password=abcdef", f"my.db-password={MARK}"),
        ):
            self.assertEqual(self.redactor.text(text), found)


class DeclaredTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=100)
    @given(
        st.text(min_size=6, max_size=30).filter(lambda s: "*" not in s),
        st.text(max_size=20),
        st.text(max_size=20),
    )
    def test_declaredSecretsGo(self, secret: str, before: str, after: str) -> None:
        """What the session was given is in nothing that it says."""
        self.assertNotIn(secret, Redactor([secret]).text(before + secret + after))

    def test_shortOnesStay(self) -> None:
        """A secret of a few characters would take out half of every text."""
        self.assertEqual(Redactor(["a", ""]).text("banana"), "banana")

    def test_oneWithinAnother(self) -> None:
        """Of two secrets that begin alike both go whole."""
        self.assertEqual(Redactor(["secret", "secretary"]).text("secretary"), MARK)

    def test_many(self) -> None:
        """F: nor do thousands of them make it slow."""
        began = time.process_time()
        redactor = Redactor(f"{number:06d}secret" for number in range(18_000))
        self.assertEqual(redactor.text("0" * 65536 + "017999secret"), "0" * 65536 + MARK)
        self.assertLess(time.process_time() - began, 5)

    def test_asProgramsPrintThem(self) -> None:
        """A secret within JSON is one, and so is each line of one that has several."""
        redactor = Redactor(['pass"word\\ü'])
        for text in ('pass\\"word\\\\\\u00fc', 'pass\\"word\\\\ü'):
            self.assertEqual(redactor.text(f'{{"a": "{text}"}}'), f'{{"a": "{MARK}"}}')
        key = f"-----BEGIN THING-----\n{LETTERS}1\n{LETTERS}2\nab==\n-----END THING-----\n"
        redactor = Redactor([key])
        self.assertEqual(redactor.text(f"> {LETTERS}2"), f"> {MARK}")
        for text in ("-----BEGIN THING-----", "x ab== y"):
            self.assertEqual(redactor.text(text), text)


class ValueTests(SynchronousTestCase):
    def test_values(self) -> None:
        """Within JSON, texts, names and what stands under a secret's name."""
        done = Redactor(["swordfish"]).value(
            {"message": "a swordfish", "apiKey": "x", "n": 1, "list": ["swordfish", {"p": None}]}
        )
        self.assertEqual(
            done,
            {"message": f"a {MARK}", "apiKey": MARK, "n": 1, "list": [MARK, {"p": None}]},
        )

    def test_deep(self) -> None:
        """What is nested too deeply is not looked at, and not shown."""
        deep: object = "swordfish"
        for _ in range(500):
            deep = [deep]
        self.assertNotIn("swordfish", repr(Redactor(["swordfish"]).value(deep)))

    def test_names(self) -> None:
        """Which settings are secret by their names."""
        for name in ("token", "apiKey", "API_KEY", "github_token", "dbPassword", "secrets"):
            self.assertTrue(isSecretName(name), name)
        for name in ("tokens_per_minute", "tokenizer", "keyboard", "model", "maxTokensUsed"):
            self.assertFalse(isSecretName(name), name)

    def test_secretsIn(self) -> None:
        """The secrets among settings: by name, by declaration, and below either."""
        found = secretsIn(
            {"model": "m", "apiKey": "one", "env": {"DB_PASSWORD": "two"}, "pin": ["three"]},
            declared=["pin"],
        )
        self.assertEqual(found, ["one", "two", "three"])

    def test_secretsOf(self) -> None:
        """What is secret to a session: in its settings, its upload, its repository's address."""
        spec = {
            "agent": {"settings": {"model": "m", "pin": "one"}},
            "repo": {"mode": "git", "url": "https://ann:hunter%4022@h/x", "uploadToken": "two"},
        }
        self.assertEqual(set(secretsOf(spec, ["pin"])), {"one", "two", "hunter%4022", "hunter@22"})
        self.assertEqual(secretsOf({}), [])

    def test_userinfo(self) -> None:
        """What in a repository's address is secret."""
        self.assertEqual(userinfoOf("https://ann:hunter22@h/x"), ["hunter22"])
        self.assertEqual(userinfoOf("https://tokentoken@h/x"), ["tokentoken"])
        self.assertEqual(userinfoOf("ssh://git@h/x"), [])
        self.assertEqual(userinfoOf("git@h:x"), [])
