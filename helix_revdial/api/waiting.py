# -*- test-case-name: tests.api.test_external_agents -*-
"""How long a caller is ready to wait."""

from __future__ import annotations

import re

from helix_revdial.http.request import Request

_WAIT = re.compile(rb"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?:[,;]|$)", re.IGNORECASE)


def waitOf(request: Request) -> float | None:
    """
    C{Prefer: wait=SECONDS} (RFC 7240, 4.3), at least one; C{None} where the caller does
    not say.
    """
    for value in request.headers.getAll(b"prefer"):
        found = _WAIT.search(value)
        if found:
            return max(1.0, float(found[1]))
    return None
