"""What a test needs from the system, and what happens where it is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from twisted.trial.unittest import SkipTest

T = TypeVar("T", bound=Callable[..., Any])


def needsProgram(
    program: str, *, package: str, directories: Sequence[str] = ()
) -> Callable[[T], T]:
    """
    Mark a test (a method or a class) that runs C{program}, which is on the path or
    in one of C{directories}.

    Where the program is missing the test is skipped with the name of Debian's
    package that brings it; in CI that is a failure, so that a silent gap in
    what is tested cannot last.
    """

    def mark(decorated: T) -> T:
        path = ":".join([os.environ.get("PATH", ""), "/usr/sbin:/sbin", *directories])
        if shutil.which(program, path=path) is None:
            message = f"needs {program}: apt-get install {package}"
            if os.environ.get("CI"):
                raise RuntimeError(message)
            decorated.skip = message  # type: ignore[attr-defined]
        return decorated

    return mark


def missing(what: str, *, package: str) -> NoReturn:
    """
    End a test that finds out only while it runs that something of the system is missing.

    @raise SkipTest: always, but for CI, where it is a failure.
    """
    message = f"needs {what}: apt-get install {package}"
    if os.environ.get("CI"):
        raise RuntimeError(message)
    raise SkipTest(message)
