# -*- test-case-name: tests.sessions.test_tasks -*-
"""What a branch may be called: where a task is handed in, and where it is carried out."""

from __future__ import annotations

import re

_WRONG = re.compile(r"[\x00-\x20\x7f~^:?*\[\\\ud800-\udfff]|\.\.|@\{|//")


def branchProblem(branch: str) -> str:
    """
    What is wrong with a branch's name, by the rules of git-check-ref-format;
    empty if nothing is.
    """
    bad = (
        not branch
        or _WRONG.search(branch) is not None
        or branch.startswith(("-", "/"))
        or branch.endswith(("/", "."))
        or branch == "@"
        or any(part.startswith(".") or part.endswith(".lock") for part in branch.split("/"))
    )
    return "is no name of a branch" if bad else ""
