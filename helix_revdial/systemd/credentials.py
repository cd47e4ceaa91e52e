# -*- test-case-name: tests.systemd.test_credentials -*-
"""
Secrets that the service manager hands over as files (systemd.exec(5),
"Credentials"): C{LoadCredential=token:/etc/x.token} in the unit is a file
C{token} in the directory that C{CREDENTIALS_DIRECTORY} names, which this
process alone can read.

Finds and reads them; what they are for is their user's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

VARIABLE = "CREDENTIALS_DIRECTORY"
"""Where the service manager says in which directory the credentials are."""

MAX_CREDENTIAL = 4096
"""Bytes of a credential that holds one secret."""


class CredentialUnusable(ValueError):
    """A credential was handed over but cannot be read; the text names it, never what it holds."""


def credentialPath(environment: Mapping[str, str], name: str) -> Path | None:
    """
    The file of the credential C{name}.

    @return: L{None} where the service manager handed none over.
    """
    directory = environment.get(VARIABLE, "")
    if not directory or "/" in name or name in ("", ".", ".."):
        return None
    path = Path(directory, name)
    return path if path.is_file() else None


def readCredential(environment: Mapping[str, str], name: str) -> str | None:
    """
    The secret in the credential C{name}, without the white space around it.

    @return: L{None} where there is none.
    @raise CredentialUnusable: It is empty, too long, not text, or cannot be read.
    """
    path = credentialPath(environment, name)
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CREDENTIAL + 1)
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise CredentialUnusable(f"credential {name}: {reason}") from None
    if len(content) > MAX_CREDENTIAL:
        raise CredentialUnusable(f"credential {name}: holds more than {MAX_CREDENTIAL} bytes")
    try:
        text = content.decode("ascii").strip()
    except UnicodeDecodeError:
        # Without "from None" the traceback would hold the content.
        raise CredentialUnusable(f"credential {name}: is not plain text") from None
    if not text:
        raise CredentialUnusable(f"credential {name}: is empty")
    return text


__all__ = ["MAX_CREDENTIAL", "VARIABLE", "CredentialUnusable", "credentialPath", "readCredential"]
