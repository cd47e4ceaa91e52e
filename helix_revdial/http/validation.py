# -*- test-case-name: tests.http.test_operations -*-
"""
From bytes and strings of callers to typed values, with everything that is wrong.

msgspec stops at the first fault; a caller who has three fields wrong wants to
hear of three.  So where decoding fails, each field is tried by itself.

Whether a field is needed may hang on another one.  A struct then has a static method
C{needed}, which is given its members as they came and names those fields; whoever uses
the struct still has to check it where all else is well.
"""

from __future__ import annotations

import functools
import itertools
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

import msgspec

from helix_revdial.http.problem import Problem, validationProblem

T = TypeVar("T")

MAX_MEMBERS = 100
"""Members of a list or an object that are looked at one by one; of those behind them the
first that is wrong is told."""

MAX_DEPTH = 64
"""Lists and objects within one another: who keeps a value, shows it, or sends it on reads it
again with less of the stack left than there was here."""

EXACT = 2**53
"""Up to here a number is the same to all who read JSON (RFC 8259, section 6)."""

_MISSING = "is required"


def decodeJSON(data: bytes, type_: type[T]) -> T:
    """
    Decode a JSON body.

    @raise Problem: (400) if it is no JSON, or not of that type: then with
        C{errors} per field.
    """
    if not data.strip():
        # No body is an object without fields: enough where all have defaults.
        data = b"{}"
    try:
        # Almost no body has so many brackets that it could be too deep.
        if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _isDeep(data):
            raise RecursionError
        try:
            return msgspec.json.decode(data, type=type_)
        except msgspec.ValidationError as error:
            single = _single(error)
            # JSON has one kind of numbers: 5.0 is an integer, too, as JSON Schema has it.
            value = _integral(msgspec.json.decode(data))
            with suppress(msgspec.ValidationError):
                return msgspec.convert(value, type_)
    except RecursionError:
        raise Problem(
            400,
            "The request body is nested too deeply: "
            f"{MAX_DEPTH} lists and objects within one another are taken.",
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, f"The request body is not valid JSON: {error}.") from None
    problems: dict[str, list[str]] = {}
    _collect(value, type_, "", problems, strict=True)
    raise validationProblem(problems or single)


def _integral(value: Any) -> Any:
    """The same value, with an C{int} for each number that is one."""
    if isinstance(value, dict):
        return {name: _integral(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_integral(member) for member in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT:
        return int(value)
    return value


def _isDeep(data: bytes) -> bool:
    """
    @raise RecursionError: It is very deep.
    """
    level = [msgspec.json.decode(data)]
    for _ in range(MAX_DEPTH):
        level = [
            member
            for value in level
            for member in (value.values() if isinstance(value, dict) else value)
            if isinstance(member, list | dict)
        ]
        if not level:
            return False
    return True


def decodeQuery(pairs: Sequence[tuple[str, str]], type_: type[T]) -> T:
    """
    Decode the pairs of a query.

    A field whose type is a list takes every value of its name; any other name
    may come once.

    @raise Problem: (400) with C{errors} per parameter.
    """
    fields = _parametersOf(cast(Any, type_))
    values: dict[str, Any] = {}
    problems: dict[str, list[str]] = {}
    for name, value in pairs:
        if name in fields and _takesMany(fields[name].type):
            values.setdefault(name, []).append(value)
        elif name in fields and name in values:
            problems[name] = ["is given more than once"]
        else:
            values[name] = value
    if not problems:
        try:
            return msgspec.convert(values, type_, strict=False)
        except msgspec.ValidationError as error:
            _collect(values, type_, "", problems, strict=False)
            problems = problems or _single(error)
    raise validationProblem(problems)


@functools.cache
def _parametersOf(type_: Any) -> dict[str, Any]:
    """The fields of a struct by their names; msgspec evaluates annotations at each look."""
    return {field.encode_name: field for field in msgspec.structs.fields(type_)}


def _collect(
    value: object, type_: Any, path: str, problems: dict[str, list[str]], *, strict: bool
) -> None:
    """Note each fault of C{value} in C{problems}."""
    struct = _structOf(type_)
    if struct is not None and isinstance(value, Mapping) and not struct.__struct_config__.tag:
        fields = msgspec.structs.fields(struct)
        needed = struct.needed(value) if hasattr(struct, "needed") else ()
        for field in fields:
            name = f"{path}.{field.encode_name}" if path else field.encode_name
            if field.encode_name in needed and not value.get(field.encode_name):
                problems.setdefault(name, []).append(_MISSING)
            elif field.encode_name in value:
                _collect(value[field.encode_name], field.type, name, problems, strict=strict)
            elif field.required:
                problems.setdefault(name, []).append(_MISSING)
        if struct.__struct_config__.forbid_unknown_fields:
            known = {field.encode_name for field in fields}
            for unknown in [str(key) for key in value if key not in known][:10]:
                name = f"{path}.{unknown}" if path else unknown
                problems.setdefault(name, []).append("is not known")
        if problems:
            return
    members = _membersOf(value, type_)
    if members is not None:
        before = len(problems)
        for name, member, memberType in members:
            _collect(member, memberType, path + name, problems, strict=strict)
        if len(problems) > before:
            return
    try:
        msgspec.convert(value, type_, strict=strict)
    except msgspec.ValidationError as error:
        for name, texts in _single(error, path).items():
            problems.setdefault(name, []).extend(texts)


def _single(error: msgspec.ValidationError, path: str = "") -> dict[str, list[str]]:
    """msgspec's one sentence as a field and what is wrong with it."""
    text, _, where = str(error).partition(" - at `$")
    inner = where.rstrip("`").lstrip(".")
    if inner.startswith("["):
        name = path + inner
    else:
        name = ".".join(part for part in (path, inner) if part)
    return {name or "body": [text[:1].lower() + text[1:]]}


def _structOf(type_: Any) -> Any:
    """The struct that a type is, or is when it is not C{None}."""
    if typing.get_origin(type_) is typing.Annotated:
        return _structOf(typing.get_args(type_)[0])
    if typing.get_origin(type_) in (typing.Union, types.UnionType):
        arms = [arm for arm in typing.get_args(type_) if arm is not type(None)]
        return _structOf(arms[0]) if len(arms) == 1 else None
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return type_
    return None


def _membersOf(value: object, type_: Any) -> Iterator[tuple[str, object, Any]] | None:
    """The members of a list or an object that the type names no fields of."""
    if typing.get_origin(type_) is typing.Annotated:
        return _membersOf(value, typing.get_args(type_)[0])
    if typing.get_origin(type_) in (typing.Union, types.UnionType):
        arms = [arm for arm in typing.get_args(type_) if arm is not type(None)]
        return _membersOf(value, arms[0]) if len(arms) == 1 else None
    origin, inner = typing.get_origin(type_), typing.get_args(type_)
    if origin is list and isinstance(value, list):
        return ((f"[{at}]", one, inner[0]) for at, one in enumerate(value[:MAX_MEMBERS]))
    if origin is dict and isinstance(value, Mapping):
        some = itertools.islice(value.items(), MAX_MEMBERS)
        return ((f".{name}", one, inner[1]) for name, one in some)
    return None


def _takesMany(type_: Any) -> bool:
    if typing.get_origin(type_) is typing.Annotated:
        return _takesMany(typing.get_args(type_)[0])
    if typing.get_origin(type_) in (typing.Union, types.UnionType):
        return any(_takesMany(arm) for arm in typing.get_args(type_))
    return (typing.get_origin(type_) or type_) in (list, tuple, set, frozenset)
