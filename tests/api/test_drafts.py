"""Tests for L{helix_revdial.api.drafts}."""

from __future__ import annotations

from typing import Any

from helix_revdial.storage.ids import isId
from tests.api.test_tasks import TaskTestCase, body

PATH = "/api/v1/drafts"


class DraftTests(TaskTestCase):
    def draft(self, **fields: Any) -> Any:
        answer = self.server.post(PATH, self.ann, fields)
        self.assertEqual(answer.status, 201, answer.body)
        return answer.json()

    def test_life(self) -> None:
        """Made incomplete, read, replaced, listed, deleted."""
        answer = self.server.post(PATH, self.ann, {"prompt": "later"})
        made = answer.json()
        self.assertTrue(isId(made["id"], "draft"))
        self.assertEqual(answer.headers["location"], f"{PATH}/{made['id']}")
        self.assertEqual(made["createdAt"], made["updatedAt"])
        path = f"{PATH}/{made['id']}"
        self.assertEqual(self.server.get(path, self.ann).json(), made)
        self.server.clock.advance(1)
        content = {"prompt": "now", "repo": {"mode": "git"}, "projectId": "p"}
        changed = self.server.ask("PUT", path, self.ann, content)
        self.assertEqual(changed.status, 200, changed.body)
        told = changed.json()
        self.assertEqual({name: told[name] for name in content}, content)
        self.assertGreater(told["updatedAt"], told["createdAt"])
        listed = self.server.get(PATH, self.ann).json()
        self.assertEqual(listed, {"items": [told], "total": 1})
        self.assertEqual(self.server.get(PATH + "?projectId=q", self.ann).json()["total"], 0)
        self.assertEqual(self.server.delete(path, self.ann).status, 204)
        for method in ("GET", "DELETE", "PUT"):
            self.assertEqual(self.server.ask(method, path, self.ann, {}).status, 404, method)

    def test_empty(self) -> None:
        """Nothing at all is a draft, too."""
        self.assertEqual(set(self.draft()), {"id", "createdAt", "updatedAt"})

    def test_form(self) -> None:
        """What is misspelt or of another kind is refused: it would be lost otherwise."""
        for content, name in (
            ({"promt": "x"}, "promt"),
            ({"prompt": 1}, "prompt"),
            ({"repo": []}, "repo"),
            ({"labels": {"a": 1}}, "labels"),
            ({"projectId": "a\0b"}, "projectId"),
        ):
            answer = self.server.post(PATH, self.ann, content)
            self.assertEqual(answer.status, 400, answer.body)
            self.assertTrue(next(iter(answer.json()["errors"])).startswith(name), answer.body)
        answer = self.server.post(PATH, self.ann, {"labels": {"a": "x" * 200_000}})
        self.assertEqual(answer.status, 413)

    def test_whose(self) -> None:
        """Nobody else's, not even an administrator's; and nothing for viewers."""
        path = f"{PATH}/{self.draft(prompt='x')['id']}"
        for token, status in (
            (None, 401),
            (self.server.user("vic", "viewer"), 403),
            (self.server.user("bob"), 404),
            (self.server.user("root", "admin"), 404),
            (self.server.user("ann", tenant="other"), 404),
        ):
            for method in ("GET", "PUT", "DELETE"):
                self.assertEqual(self.server.ask(method, path, token, {}).status, status)
        self.assertEqual(self.server.get(path, self.ann).status, 200)

    def test_limit(self) -> None:
        """There are no more than so many."""
        self.server.services.drafts._maxDrafts = 2
        self.draft(), self.draft()
        answer = self.server.post(PATH, self.ann, {})
        self.assertEqual((answer.status, answer.json()["code"]), (409, "too-many-drafts"))

    def test_idempotent(self) -> None:
        """The same key makes one draft."""
        headers = {"Idempotency-Key": "k1"}
        made = self.server.ask("POST", PATH, self.ann, {"prompt": "x"}, headers)
        again = self.server.ask("POST", PATH, self.ann, {"prompt": "x"}, headers)
        self.assertEqual((made.status, again.status), (201, 200))
        self.assertEqual(made.json(), again.json())

    def test_handedIn(self) -> None:
        """A task that is made of a draft takes its place; one that is refused does not."""
        draft = self.draft(prompt="x")["id"]
        refused = self.server.post("/api/v1/tasks", self.ann, body(draftId=draft, prompt=" "))
        self.assertEqual(refused.status, 400)
        self.assertEqual(self.server.get(f"{PATH}/{draft}", self.ann).status, 200)
        for token, status in ((self.server.user("bob"), 400), (self.ann, 201), (self.ann, 400)):
            answer = self.server.post("/api/v1/tasks", token, body(draftId=draft))
            self.assertEqual(answer.status, status, answer.body)
        self.assertEqual(set(answer.json()["errors"]), {"draftId"})
        self.assertEqual(self.server.get("/api/v1/sessions", self.ann).json()["total"], 1)
        self.assertEqual(self.server.get(f"{PATH}/{draft}", self.ann).status, 404)
