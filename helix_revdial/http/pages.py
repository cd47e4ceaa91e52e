# -*- test-case-name: tests.http.test_pages -*-
"""
A dispatch for a few pages that everybody may read: metrics, health.

For ports of their own, where an operation table (who asks, what they may, what
they sent) would be too much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Request
from helix_revdial.http.response import Response

Page = Callable[[Request], Response]
"""Makes a page, at once."""


class Pages:
    """
    Pages by path.
    """

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = dict(pages)

    async def __call__(self, request: Request) -> Response:
        """
        The page.

        @raise Problem: 404, 405, or what the page raises.
        """
        page = self._pages.get(request.path)
        if page is None:
            known = ", ".join(self._pages)
            raise Problem(404, f"There is no {request.path} on this port; it has: {known}.")
        if request.method not in ("GET", "HEAD"):
            raise Problem(
                405,
                f"{request.path} can only be read.",
                headers=[(b"Allow", b"GET, HEAD")],
            )
        return page(request)


__all__ = ["Page", "Pages"]
