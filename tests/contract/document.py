"""
The API's OpenAPI document, as it is committed in C{docs/openapi.json}.

C{make openapi} writes it anew, unless that would break callers; then, and only when
that is meant, C{make openapi ACCEPT=incompatible}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from helix_revdial.http.openapi import openapi
from tests.api.harness import Server
from tests.contract.changes import incompatibilities

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"


def generated() -> dict[str, Any]:
    """What the operation table says now."""
    document: dict[str, Any] = json.loads(json.dumps(openapi(Server().table)))
    return document


def committed() -> dict[str, Any]:
    """What callers were promised."""
    document: dict[str, Any] = json.loads(COMMITTED.read_text())
    return document


def text(document: dict[str, Any]) -> str:
    """As it is committed: so that a change is a few lines."""
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def main(arguments: list[str]) -> int:
    """
    Write it.

    @return: The status of the process.
    """
    document = generated()
    broken = incompatibilities(committed(), document) if COMMITTED.exists() else []
    if broken and "incompatible" not in arguments:
        print("Not written, since these changes would break callers:", file=sys.stderr)
        for change in broken:
            print(f"  {change}", file=sys.stderr)
        print("If that is meant: make openapi ACCEPT=incompatible", file=sys.stderr)
        return 1
    COMMITTED.write_text(text(document))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
