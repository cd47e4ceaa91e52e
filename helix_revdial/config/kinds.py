# -*- test-case-name: tests.test_config -*-
"""What sections are made of."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400 * 30)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
CallRate = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
Size = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
Days = Annotated[float, msgspec.Meta(ge=0, le=36_500)]


def snake(name: str) -> str:
    """The name of a key in the file, of an attribute."""
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename=snake):
    """A table of the file: attributes in camelCase here, keys in snake_case there."""
