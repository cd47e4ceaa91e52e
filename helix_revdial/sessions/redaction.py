# -*- test-case-name: tests.sessions.test_redaction -*-
"""
Secrets are taken out of what a session says before it is stored.

An agent prints what it likes, and its log is kept and shown.  What has the form of
a known token, an C{Authorization} value, a password in a URL or in a setting, and
every secret that the session itself was given, becomes L{MARK}.

It cannot find everything: a secret of a form that nobody knows, that the session
was not given, or that is printed in pieces, stays.  (Keys that are printed line by line:
L{helix_revdial.sessions.key_lines}.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

MARK: Final = "***"
"""What stands where a secret stood."""

SHORTEST: Final = 6
"""Characters that a declared secret has at least: to take out shorter ones would
hide what is no secret."""

LINE: Final = 16
"""Characters from which on a line of a secret that has several is a secret by itself."""

MAX_DEPTH: Final = 50

SECRET_NAME: Final = re.compile(
    r"(?:^|[_.\-]|(?<=[a-z0-9]))(?:token|secret|passw(?:or)?d|passphrase|api[_\-]?key"
    r"|access[_\-]?key|private[_\-]?key|credentials?|auth(?:orization)?)s?$",
    re.IGNORECASE,
)
"""The end of a setting's name whose value is secret."""

_MARKS: Final = ("", "_", "-")

_GITLAB: Final = ("pat", "dt", "rt", "ptt", "ft", "soat", "cbt", "agent")

_RULES: Final = tuple(
    (hints, re.compile(pattern, re.IGNORECASE))
    for hints, pattern in (
        # A key in its armour, also when its end is cut off.
        (
            ("private key",),
            r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
            r"(?:[\s\S]*?-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|[\s\S]*)",
        ),
        # Authorization: SCHEME VALUE, in a header or in what a program prints of it.
        (
            ("authorization",),
            r"(?P<kept>\bauthorization[\"']?\s{0,3}[:=]\s{0,3}"
            r"[\"']?(?:(?:bearer|basic|apikey|token|digest|negotiate)\s{1,3})?)[^\s\"',]{3,}",
        ),
        (
            ("bearer", "apikey"),
            r"(?P<kept>\b(?:bearer|apikey)\s{1,3})[A-Za-z0-9._~+/=\-]{12,}",
        ),
        # scheme://user:password@host
        (
            ("://",),
            r"(?P<kept>\b[a-z][a-z0-9+.\-]{1,20}://[^\s/@:\"'<>]{0,200}:)"
            r"[^\s/@\"'<>]{1,500}(?=@)",
        ),
        (("://",), r"(?P<kept>\bhttps?://)[^\s/@:\"'<>]{8,500}(?=@)"),
        # Tokens that say what they are.
        (("hlx",), r"\bhlx[a-z]?_[A-Za-z0-9_\-]{16,}"),
        (
            ("ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_"),
            r"\b(?:gh[opsur]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{20,})",
        ),
        (
            tuple(f"gl{kind}-" for kind in _GITLAB),
            r"\bgl(?:" + "|".join(_GITLAB) + r")-[A-Za-z0-9_\-]{16,}",
        ),
        (("sk-",), r"\bsk-[A-Za-z0-9_\-]{16,}"),
        (("k_live_", "k_test_"), r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"),
        (("xox",), r"\bxox[abeoprs]-[A-Za-z0-9\-]{10,}"),
        (("akia", "asia"), r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
        (("aiza",), r"\bAIza[A-Za-z0-9_\-]{30,}"),
        (("ya29.",), r"\bya29\.[A-Za-z0-9_\-]{20,}"),
        (("npm_",), r"\bnpm_[A-Za-z0-9]{30,}"),
        (("pypi-",), r"\bpypi-[A-Za-z0-9_\-]{30,}"),
        (("hf_",), r"\bhf_[A-Za-z0-9]{20,}"),
        # Looked for from the beginning of a word: a text that is full of such beginnings is
        # not read from each of them to its end.
        (
            ("eyj",),
            r"(?<![A-Za-z0-9_\-])(?P<kept>[A-Za-z0-9_\-]{0,100}?\b)"
            r"eyJ[A-Za-z0-9_\-]{8,1000}+\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*",
        ),
        # The end of a setting's name, what stands between, and then its value.
        (
            (
                "token",
                "secret",
                "passw",
                "passphrase",
                *(f"{kind}{mark}key" for kind in ("api", "access", "private") for mark in _MARKS),
            ),
            r"(?P<kept>(?:token|secret|passw(?:or)?d|passphrase|api[_\-]?key|access[_\-]?key"
            r"|private[_\-]?key)[\"']?\s{0,3}[:=]\s{0,3})"
            r"(?:\"[^\"\n]{3,}\"|'[^'\n]{3,}'|[^\s\"',;&]{3,})",
        ),
    )
)
"""
What secrets look like, and of each form, in lower case, what one of has to be in a text for
there to be one: to look for that takes a hundredth of the time.  The time that any of them
takes grows with the length of the text only, whatever is in it.
"""

_HINTS: Final = tuple(dict.fromkeys(hint for hints, _ in _RULES for hint in hints))

# Without regard to case these match letters of ASCII, too, and nothing else beyond ASCII does.
_FOLDED: Final = {0x130: "i", 0x131: "i", 0x17F: "s", 0x212A: "k"}


def _lower(text: str) -> str:
    return (text if text.isascii() else text.translate(_FOLDED)).lower()


class Redactor:
    """
    Takes secrets out of one session's texts.
    """

    __slots__ = ("_declared",)

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """
        @param secrets: what the session was given; those shorter than L{SHORTEST}
            are left alone.
        """
        # The longest first: one secret may begin with another.
        forms = {form for secret in secrets for form in _formsOf(secret)}
        self._declared = sorted((s for s in forms if len(s) >= SHORTEST), key=len, reverse=True)

    def text(self, text: str) -> str:
        """The text without its secrets."""
        # One after the other: there may be thousands, and an expression of so many words
        # takes seconds for a line.
        for secret in self._declared:
            text = text.replace(secret, MARK)
        lower = _lower(text)
        if any(hint in lower for hint in _HINTS):
            for hints, pattern in _RULES:
                if any(hint in lower for hint in hints):
                    text = pattern.sub(_replace, text)
        return text

    def value(self, value: Any, depth: int = 0) -> Any:
        """
        The same for all texts within a JSON value; what a secret's name stands
        before is taken out whatever it is.
        """
        if isinstance(value, str):
            return self.text(value)
        if depth >= MAX_DEPTH:
            return MARK if isinstance(value, list | tuple | Mapping) else value
        if isinstance(value, Mapping):
            return {
                self.text(str(name)): MARK
                if isinstance(one, str) and one and isSecretName(str(name))
                else self.value(one, depth + 1)
                for name, one in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(one, depth + 1) for one in value]
        return value


def isSecretName(name: str) -> bool:
    """Whether a setting of this name holds a secret."""
    return SECRET_NAME.search(name) is not None


def secretsIn(settings: Any, declared: Iterable[str] = ()) -> list[str]:
    """
    The secrets among a session's settings.

    @param settings: a JSON value.
    @param declared: names of settings that are secret whatever they are called.
    """
    names = set(declared)
    found: list[str] = []

    def look(value: Any, secret: bool, depth: int) -> None:
        if depth > MAX_DEPTH:
            return
        if isinstance(value, Mapping):
            for name, one in value.items():
                look(one, secret or name in names or isSecretName(str(name)), depth + 1)
        elif isinstance(value, list | tuple):
            for one in value:
                look(one, secret, depth + 1)
        elif secret and isinstance(value, str):
            found.append(value)

    look(settings, False, 0)
    return found


def secretsOf(spec: Mapping[str, Any], declared: Iterable[str] = ()) -> list[str]:
    """
    What is secret to a session, by what it was made from.

    @param spec: a task's request, as builtins.
    @param declared: as for L{secretsIn}.
    """
    repo = spec.get("repo") or {}
    found = secretsIn((spec.get("agent") or {}).get("settings"), declared)
    found += secretsIn(repo, ("uploadToken",))
    for secret in userinfoOf(repo.get("url") or ""):
        # As it stands there, and as git reads it.
        found += {secret, unquote(secret)}
    return found


def secretProperties(schema: Mapping[str, Any]) -> frozenset[str]:
    """
    The properties of a JSON schema that are secret: those that can only be written
    (C{writeOnly}), and those whose C{format} is C{password}.
    """
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return frozenset()
    return frozenset(
        name
        for name, one in properties.items()
        if isinstance(one, Mapping) and (one.get("writeOnly") or one.get("format") == "password")
    )


def userinfoOf(url: str) -> list[str]:
    """The password in a URL, or the name that stands alone there, as tokens do."""
    matched = re.match(r"[a-z][a-z0-9+.\-]*://(?:([^/@:]*)(?::([^/@]*))?@)", url, re.IGNORECASE)
    if matched is None:
        return []
    name, password = matched.groups()
    return [password] if password else [name] if url.lower().startswith("http") else []


def _formsOf(secret: str) -> Iterator[str]:
    """How a secret is printed: as it is, within JSON, or, if it has several, a line of it."""
    yield secret
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    lines = secret.splitlines()
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= LINE and not line.startswith("-----"))


def _replace(matched: re.Match[str]) -> str:
    """What stands where a secret stood, with what stood before it."""
    return str(matched.groupdict().get("kept") or "") + MARK
