"""The API keeps what its committed document promises."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from jsonschema import Draft202012Validator
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.http.problem import Problem
from tests.contract.changes import incompatibilities
from tests.contract.document import committed, generated, text


class CommittedTests(SynchronousTestCase):
    def test_compatible(self) -> None:
        """No caller of the committed document is broken."""
        broken = incompatibilities(committed(), generated())
        self.assertEqual(
            broken, [], "callers of docs/openapi.json would break:\n  " + "\n  ".join(broken)
        )

    def test_current(self) -> None:
        """What is committed is what is served."""
        self.assertTrue(
            text(committed()) == text(generated()),
            "docs/openapi.json is not that of the operation table: run make openapi",
        )


class ErrorTests(SynchronousTestCase):
    def test_eachHasItsType(self) -> None:
        """Every error that is promised has a type of its own kind."""
        for path, methods in generated()["paths"].items():
            for method, operation in methods.items():
                for status in operation["responses"]:
                    if int(status) >= 400:
                        self.assertNotEqual(Problem(int(status)).type, "error", (method, path))

    def test_streams(self) -> None:
        """Where to resume a stream of events, and that it may be over, is in the description."""
        stream = generated()["paths"]["/api/v1/sessions/{session}/events"]["get"]
        self.assertEqual(stream["responses"]["204"], {"description": "No Content"})
        fields = {one["name"]: one for one in stream["parameters"]}
        self.assertEqual(fields["Last-Event-ID"]["in"], "header")
        self.assertFalse(fields["Last-Event-ID"]["required"])

    def test_retryAfter(self) -> None:
        """Each 429 says when to come back."""
        document = generated()
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if "429" in operation["responses"]:
                    headers = operation["responses"]["429"]["headers"]
                    self.assertIn("Retry-After", headers, (method, path))
        self.assertIn("RetryAfter", document["components"]["headers"])

    def test_times(self) -> None:
        """A session's time is a number or a moment, and no other text: the description says so."""
        document = generated()
        for path, field, more in (
            ("moments", "ts", {"label": "x"}),
            ("seek", "ts", {}),
            ("session-branch", "fromTs", {"name": "x"}),
        ):
            body = document["paths"][f"/api/v1/sessions/{{session}}/{path}"]["post"]["requestBody"]
            schema = body["content"]["application/json"]["schema"]
            valid = Draft202012Validator({**schema, "components": document["components"]})
            for given, good in ((1.5, True), ("2026-01-02T03:04:05.678Z", True), ("y", False)):
                self.assertEqual(valid.is_valid({field: given, **more}), good, (path, given))

    def test_tasks(self) -> None:
        """What a task's repository needs is in the description, as the server wants it."""
        document = generated()
        body = document["paths"]["/api/v1/tasks"]["post"]["requestBody"]
        schema = body["content"]["application/json"]["schema"]
        valid = Draft202012Validator({**schema, "components": document["components"]})
        for repo, good in (
            ({"mode": "git", "url": "git@github.com:acme/x.git"}, True),
            ({"mode": "git"}, False),
            ({"mode": "git", "url": None}, False),
            ({"mode": "git", "url": ""}, False),
            ({"mode": "upload", "uploadToken": "hlxu_x"}, True),
            ({"mode": "upload"}, False),
            ({"mode": "upload", "uploadToken": "x", "url": "https://h/x"}, False),
            ({"mode": "none"}, True),
            ({"mode": "none", "url": None}, True),
            ({"mode": "none", "url": "https://h/x"}, False),
        ):
            task = {
                "prompt": "p",
                "repo": repo,
                "runtime": {"type": "local"},
                "agent": {"type": "a"},
            }
            self.assertEqual(valid.is_valid(task), good, repo)


BODY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 10},
        "mode": {"enum": ["a", "b"]},
        "size": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "inner": {"$ref": "#/components/schemas/Inner"},
        "list": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name"],
}
DOCUMENT: dict[str, Any] = {
    "paths": {
        "/things": {
            "post": {
                "operationId": "createThing",
                "security": [],
                "parameters": [
                    {"name": "q", "in": "query", "schema": {"type": "integer", "maximum": 9}}
                ],
                "requestBody": {
                    "required": False,
                    "content": {"application/json": {"schema": BODY}},
                },
                "responses": {
                    "201": {"content": {"application/json": {"schema": copy.deepcopy(BODY)}}},
                    "404": {"content": {}},
                },
            }
        }
    },
    "components": {
        "schemas": {
            "Inner": {
                "type": "object",
                "properties": {
                    "x": {"type": "string"},
                    "again": {"$ref": "#/components/schemas/Inner"},
                },
            }
        }
    },
}


class ChangeTests(SynchronousTestCase):
    """Each kind of change, in what is sent and in what is answered."""

    def changed(self, change: Callable[[Any], object]) -> list[str]:
        """What is found after a change of the operation."""
        new = copy.deepcopy(DOCUMENT)
        change(new)
        return incompatibilities(DOCUMENT, new)

    def operation(self, change: Callable[[Any], object]) -> list[str]:
        return self.changed(lambda document: change(document["paths"]["/things"]["post"]))

    def sent(self, change: Callable[[Any], object]) -> list[str]:
        return self.operation(
            lambda row: change(row["requestBody"]["content"]["application/json"]["schema"])
        )

    def answered(self, change: Callable[[Any], object]) -> list[str]:
        return self.operation(
            lambda row: change(row["responses"]["201"]["content"]["application/json"]["schema"])
        )

    def one(self, found: list[str], *words: str) -> None:
        """There is one sentence, which has these words."""
        self.assertEqual(len(found), 1, found)
        for word in ("POST /things", *words):
            self.assertIn(word, found[0])

    def test_nothing(self) -> None:
        """The same is compatible."""
        self.assertEqual(self.changed(lambda document: None), [])

    def test_operations(self) -> None:
        """An operation that is removed or renamed, or takes a token; a new one is none."""
        self.one(self.changed(lambda d: d["paths"].clear()), "removed")
        self.one(self.operation(lambda row: row.update(operationId="x")), "createThing", "x")
        self.one(self.operation(lambda row: row.update(security=[{"bearer": []}])), "token")
        self.assertEqual(self.changed(lambda d: d["paths"].update({"/new": {"get": {}}})), [])

    def test_statuses(self) -> None:
        """A status that is removed or changed; a new error is none."""
        self.one(self.operation(lambda row: row["responses"].pop("404")), "404", "removed")
        found = self.operation(
            lambda row: row["responses"].update({"200": row["responses"].pop("201")})
        )
        self.one(found, "201", "removed")
        self.assertEqual(self.operation(lambda row: row["responses"].update({"429": {}})), [])

    def test_mediaTypes(self) -> None:
        """A media type that is not taken, or not given, any more."""
        self.one(self.operation(lambda row: row["requestBody"]["content"].clear()), "not taken")
        self.one(self.operation(lambda row: row["responses"]["201"]["content"].clear()), "removed")

    def test_parameters(self) -> None:
        """A parameter that is removed, required, narrower, or new and required."""
        self.one(self.operation(lambda row: row["parameters"].clear()), "q", "removed")
        self.one(self.operation(lambda row: row["parameters"][0].update(required=True)), "required")
        self.one(
            self.operation(lambda row: row["parameters"][0]["schema"].update(maximum=5)), "maximum"
        )
        self.one(
            self.operation(lambda row: row["parameters"][0].update(schema={"type": "boolean"})),
            "integer",
        )
        more: dict[str, Any] = {"name": "r", "in": "query", "schema": {}}
        self.assertEqual(self.operation(lambda row: row["parameters"].append(more)), [])
        more = {**more, "required": True}
        self.one(self.operation(lambda row: row["parameters"].append(more)), "r", "new")

    def test_sentNarrower(self) -> None:
        """What callers may send becomes less."""
        for change, word in (
            (lambda s: s["required"].append("mode"), "mode is required"),
            (lambda s: s["properties"].pop("size"), "size was removed"),
            (lambda s: s["properties"]["name"].update(type="integer"), "string is not taken"),
            (lambda s: s["properties"]["name"].update(maxLength=5), "maxLength"),
            (lambda s: s["properties"]["name"].update(minLength=2), "minLength"),
            (lambda s: s["properties"]["name"].update(pattern="^a"), "pattern"),
            (lambda s: s["properties"]["mode"].update(enum=["a"]), "'b'"),
            (lambda s: s["properties"]["size"].update(anyOf=[{"type": "integer"}]), "null"),
            (lambda s: s["properties"]["list"]["items"].update(enum=["x"]), "one of x"),
            (lambda s: s.update(additionalProperties=False), "refused"),
        ):
            self.one(self.sent(change), word)
        self.one(self.operation(lambda row: row["requestBody"].update(required=True)), "required")

    def test_sentWider(self) -> None:
        """What callers may send becomes more: nobody is broken."""
        for change in (
            lambda s: s["required"].clear(),
            lambda s: s["properties"].update(new={"type": "string"}),
            lambda s: s["properties"]["name"].update(maxLength=50, minLength=0),
            lambda s: s["properties"]["mode"]["enum"].append("c"),
            lambda s: s["properties"]["size"]["anyOf"].append({"type": "string"}),
            lambda s: s["properties"]["list"].pop("items"),
        ):
            self.assertEqual(self.sent(change), [])

    def test_answeredWider(self) -> None:
        """What callers get may be what they do not know, or lack what they do."""
        for change, word in (
            (lambda s: s["properties"].pop("mode"), "mode was removed"),
            (lambda s: s["required"].clear(), "name may be missing"),
            (lambda s: s["properties"]["name"].update(type="integer"), "integer may come"),
            (lambda s: s["properties"]["name"].update(type=["string", "null"]), "null may come"),
            (lambda s: s["properties"].update(mode={"type": "string"}), "anything"),
        ):
            self.one(self.answered(change), word)

    def test_answeredNarrower(self) -> None:
        """More members, and less that may come: nobody is broken."""
        for change in (
            lambda s: s["required"].append("mode"),
            lambda s: s["properties"].update(new={"type": "string"}),
            lambda s: s["properties"]["size"].update(anyOf=[{"type": "integer"}]),
            lambda s: s["properties"]["mode"]["enum"].append("c"),
            lambda s: s["properties"]["name"].update(maxLength=5),
        ):
            self.assertEqual(self.answered(change), [])

    def test_components(self) -> None:
        """A change behind a reference is found, and one that refers to itself ends."""
        found = self.changed(lambda d: d["components"]["schemas"]["Inner"]["properties"].pop("x"))
        self.assertEqual(len(found), 2, "as it is sent, and as it is answered")
        self.assertIn("inner: member x was removed", found[0])
