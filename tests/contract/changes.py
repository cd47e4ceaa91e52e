"""
What breaks callers between two OpenAPI documents.

A caller of the old document goes on working with the new one if all that it may send is
still taken, and all that it gets it could have got before.  So a request may become
wider, and an answer narrower, and never the other way round; an answer may also get
new members and new words in its lists of words, which callers have to expect.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")

_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")


def incompatibilities(old: Schema, new: Schema) -> list[str]:
    """
    @return: A sentence for each change that breaks a caller of C{old}.
    """
    return list(_Documents(old, new).changes())


class _Documents:
    def __init__(self, old: Schema, new: Schema) -> None:
        self._old = old
        self._new = new
        self._compared: set[tuple[str, str, bool]] = set()

    def changes(self) -> Iterator[str]:
        for path, methods in self._old.get("paths", {}).items():
            for method in METHODS:
                if method not in methods:
                    continue
                place = f"{method.upper()} {path}"
                now = self._new.get("paths", {}).get(path, {}).get(method)
                if now is None:
                    yield f"{place}: the operation was removed"
                else:
                    yield from self._operation(place, methods[method], now)

    def _operation(self, place: str, old: Schema, new: Schema) -> Iterator[str]:
        if old.get("operationId") != new.get("operationId"):
            yield f"{place}: operationId {old.get('operationId')} is now {new.get('operationId')}"
        if not old.get("security") and new.get("security"):
            yield f"{place}: it takes a token now"
        yield from self._parameters(place, old, new)
        yield from self._requestBody(place, old.get("requestBody"), new.get("requestBody"))
        yield from self._responses(place, old.get("responses", {}), new.get("responses", {}))

    def _parameters(self, place: str, old: Schema, new: Schema) -> Iterator[str]:
        before = {(one["in"], one["name"]): one for one in old.get("parameters", [])}
        after = {(one["in"], one["name"]): one for one in new.get("parameters", [])}
        for key, was in before.items():
            where = f"{place}: {key[0]} parameter {key[1]}"
            if key not in after:
                yield f"{where} was removed"
                continue
            now = after[key]
            if now.get("required") and not was.get("required"):
                yield f"{where} is required now"
            yield from self._schema(where, was.get("schema", {}), now.get("schema", {}), True)
        for key in after.keys() - before.keys():
            if after[key].get("required"):
                yield f"{place}: {key[0]} parameter {key[1]} is new and required"

    def _requestBody(self, place: str, old: Schema | None, new: Schema | None) -> Iterator[str]:
        place = f"{place}: request body"
        if new is None:
            if old is not None:
                yield f"{place}: there is none any more"
            return
        if new.get("required") and not (old or {}).get("required"):
            yield f"{place}: it is required now"
        for media, was in (old or {}).get("content", {}).items():
            now = new.get("content", {}).get(media)
            if now is None:
                yield f"{place}: {media} is not taken any more"
            else:
                yield from self._schema(place, was.get("schema", {}), now.get("schema", {}), True)

    def _responses(self, place: str, old: Schema, new: Schema) -> Iterator[str]:
        for status, was in old.items():
            where = f"{place}: answer {status}"
            now = new.get(status)
            if now is None:
                yield f"{where} was removed"
                continue
            for media, content in was.get("content", {}).items():
                if media not in now.get("content", {}):
                    yield f"{where}: {media} was removed"
                    continue
                yield from self._schema(
                    where,
                    content.get("schema", {}),
                    now["content"][media].get("schema", {}),
                    False,
                )

    # Schemas

    def _schema(self, place: str, old: Schema, new: Schema, sent: bool) -> Iterator[str]:
        """@param sent: Whether it is what callers send; else what they get."""
        names = (old.get("$ref", ""), new.get("$ref", ""))
        if all(names):
            if (*names, sent) in self._compared:
                return
            self._compared.add((*names, sent))
        before, after = self._arms(old, self._old), self._arms(new, self._new)
        # What has to fit into what: all that callers of the old one send, into the new one;
        # all that the new one answers, into the old one.
        given, taken = (before, after) if sent else (after, before)
        for arm in given:
            fitting = [other for other in taken if _kind(other) == _kind(arm) or not _kind(other)]
            if not fitting:
                yield f"{place}: {_kind(arm) or 'anything'} " + (
                    "is not taken any more" if sent else "may come now, which it could not before"
                )
                continue
            found = [
                list(self._same(place, *((arm, one) if sent else (one, arm)), sent))
                for one in fitting
            ]
            yield from min(found, key=len)

    @staticmethod
    def _resolved(schema: Schema, document: Schema) -> Schema:
        while "$ref" in schema:
            found: Any = document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            schema = found
        return schema

    def _arms(self, schema: Schema, document: Schema) -> list[Schema]:
        """The alternatives of a schema, each of one type."""
        schema = self._resolved(schema, document)
        if "allOf" in schema:
            # The first is what the types say; what else has to hold is for people and tests.
            return self._arms(schema["allOf"][0], document)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return [arm for one in schema[word] for arm in self._arms(one, document)]
        if isinstance(schema.get("type"), list):
            return [{**schema, "type": one} for one in schema["type"]]
        return [schema]

    def _same(self, place: str, old: Schema, new: Schema, sent: bool) -> Iterator[str]:
        """Two schemas of one type."""
        yield from self._words(place, old, new, sent)
        if sent:
            yield from _bounds(place, old, new)
        yield from self._members(place, old, new, sent)
        if "items" in old and isinstance(new.get("items"), dict):
            yield from self._schema(f"{place}[]", old["items"], new["items"], sent)
        was, now = old.get("additionalProperties", True), new.get("additionalProperties", True)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from self._schema(f"{place}.*", was, now, sent)
        elif sent and now is False and was is not False:
            yield f"{place}: members that it does not name are refused now"

    @staticmethod
    def _words(place: str, old: Schema, new: Schema, sent: bool) -> Iterator[str]:
        was, now = _wordsOf(old), _wordsOf(new)
        if not sent:
            if was is not None and now is None:
                yield f"{place}: it was one of {', '.join(map(str, was))}, and may be anything now"
        elif now is not None and was is None:
            yield f"{place}: it has to be one of {', '.join(map(str, now))} now"
        elif now is not None and was is not None:
            for word in [word for word in was if word not in now]:
                yield f"{place}: {word!r} is not taken any more"

    def _members(self, place: str, old: Schema, new: Schema, sent: bool) -> Iterator[str]:
        was, now = old.get("properties", {}), new.get("properties", {})
        needed, neededNow = set(old.get("required", [])), set(new.get("required", []))
        for name, schema in was.items():
            if name not in now:
                yield f"{place}: member {name} was removed"
            else:
                yield from self._schema(f"{place}.{name}", schema, now[name], sent)
        if sent:
            for name in sorted(neededNow - needed):
                yield f"{place}: member {name} is required now"
        else:
            for name in sorted((needed - neededNow) & now.keys()):
                yield f"{place}: member {name} may be missing now"


def _kind(schema: Schema) -> str:
    found = schema.get("type", "")
    if not found and "enum" in schema and all(isinstance(one, str) for one in schema["enum"]):
        return "string"
    return str(found)


def _wordsOf(schema: Schema) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    found: list[Any] | None = schema.get("enum")
    return found


def _bounds(place: str, old: Schema, new: Schema) -> Iterator[str]:
    for names, worse, word in (
        (_LOWER, lambda was, now: was is None or now > was, "higher"),
        (_UPPER, lambda was, now: was is None or now < was, "lower"),
    ):
        for name in names:
            if name in new and worse(old.get(name), new[name]):
                yield f"{place}: {name} is {new[name]} now, {word} than before"
    for name in ("pattern", "format"):
        if name in new and new[name] != old.get(name):
            yield f"{place}: {name} is {new[name]!r} now"


__all__ = ["incompatibilities"]
