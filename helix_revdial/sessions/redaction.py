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

# The name of a setting, what stands between, and then its value.
_NAMED = (
    r"(?P<named>\b[\w.\-]*(?:token|secret|passw(?:or)?d|passphrase|api[_\-]?key|access[_\-]?key"
    r"|private[_\-]?key)[\"']?\s{0,3}[:=]\s{0,3})"
    r"(?:\"[^\"\n]{3,}\"|'[^'\n]{3,}'|[^\s\"',;&]{3,})"
)

_PATTERN: Final = re.compile(
    "|".join(
        (
            # A key in its armour, also when its end is cut off.
            r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
            r"(?:[\s\S]*?-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|[\s\S]*)",
            # Authorization: SCHEME VALUE, in a header or in what a program prints of it.
            r"(?P<header>\b(?:proxy-|x-[\w\-]{1,40}-)?authorization[\"']?\s{0,3}[:=]\s{0,3}"
            r"[\"']?(?:(?:bearer|basic|apikey|token|digest|negotiate)\s{1,3})?)[^\s\"',]{3,}",
            r"(?P<scheme>\b(?:bearer|apikey)\s{1,3})[A-Za-z0-9._~+/=\-]{12,}",
            # scheme://user:password@host
            r"(?P<url>\b[a-z][a-z0-9+.\-]{1,20}://[^\s/@:\"'<>]{0,200}:)[^\s/@\"'<>]{1,500}(?=@)",
            r"(?P<bare>\bhttps?://)[^\s/@:\"'<>]{8,500}(?=@)",
            # Tokens that say what they are.
            r"\bhlx[a-z]?_[A-Za-z0-9_\-]{16,}",
            r"\b(?:gh[opsur]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{20,})",
            r"\bgl(?:pat|dt|rt|ptt|ft|soat|cbt|agent)-[A-Za-z0-9_\-]{16,}",
            r"\bsk-[A-Za-z0-9_\-]{16,}",
            r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}",
            r"\bxox[abeoprs]-[A-Za-z0-9\-]{10,}",
            r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
            r"\bAIza[A-Za-z0-9_\-]{30,}",
            r"\bya29\.[A-Za-z0-9_\-]{20,}",
            r"\bnpm_[A-Za-z0-9]{30,}",
            r"\bpypi-[A-Za-z0-9_\-]{30,}",
            r"\bhf_[A-Za-z0-9]{20,}",
            r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*",
            _NAMED,
        )
    ),
    re.IGNORECASE,
)

# Without one of these the pattern has nothing to find; almost every line is such.
_HINT: Final = re.compile(
    r"private key|authorization|bearer|apikey|://|hlx|gh[opsur]_|github_pat|gl[a-z]{2,5}-|sk[-_]"
    r"|rk_|xox|akia|asia|aiza|ya29|npm_|pypi-|hf_|eyj|token|secret|passw|passphrase|[_\-]?key",
    re.IGNORECASE,
)

# The same for plain ASCII, in lower case: to look for each is a tenth of the work.
_HINTS: Final = (
    "authorization", "bearer", "://", "hlx", "ghp_", "gho_", "ghs_", "ghu_", "ghr_",
    "github_pat", "glpat-", "gldt-", "glrt-", "glptt-", "glft-", "glsoat-", "glcbt-", "glagent-",
    "sk-", "sk_", "rk_", "xox", "akia", "asia", "aiza", "ya29", "npm_", "pypi-", "hf_", "eyj",
    "token", "secret", "passw", "passphrase", "key",
)  # fmt: skip


def _mayHoldSecrets(text: str) -> bool:
    if not text.isascii():
        return _HINT.search(text) is not None
    lower = text.lower()
    return any(hint in lower for hint in _HINTS)


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
        declared = sorted((s for s in forms if len(s) >= SHORTEST), key=len, reverse=True)
        self._declared = re.compile("|".join(map(re.escape, declared))) if declared else None

    def text(self, text: str) -> str:
        """The text without its secrets."""
        if self._declared is not None:
            text = self._declared.sub(MARK, text)
        if not _mayHoldSecrets(text):
            return text
        return _PATTERN.sub(_replace, text)

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
    for group in ("named", "header", "scheme", "url", "bare"):
        kept = matched.group(group)
        if kept is not None:
            return kept + MARK
    return MARK
