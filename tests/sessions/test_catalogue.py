"""Tests for L{helix_revdial.sessions.catalogue}."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions.catalogue import (
    MAX_LISTED,
    MAX_RECENT,
    NOTED_EVERY,
    Catalogue,
    RecentUses,
    nameOf,
    noteUse,
    providerOf,
)
from tests.storage.databases import newDatabase
from tests.storage.postgresql import OnPostgreSQL

GITHUB = "git@github.com:acme/x.git"


class RecentUsesTests(SynchronousTestCase):
    """What need not be noted again."""

    def test_recent(self) -> None:
        """The same use, for a while; another project, repository or tenant is another."""
        uses = RecentUses()
        self.assertFalse(uses.isNoted("t", "a", GITHUB, 0))
        uses.note("t", "a", GITHUB, 0)
        self.assertTrue(uses.isNoted("t", "a", GITHUB, NOTED_EVERY - 1))
        self.assertTrue(uses.isNoted("t", "a", None, 1))
        for tenant, project, url, at in (
            ("t", "a", GITHUB, NOTED_EVERY),
            ("t", "a", GITHUB, -1),
            ("t", "b", GITHUB, 1),
            ("t", None, GITHUB, 1),
            ("t", "a", "https://code.example/y", 1),
            ("u", "a", GITHUB, 1),
        ):
            self.assertFalse(uses.isNoted(tenant, project, url, at), (tenant, project, url, at))

    def test_lastProject(self) -> None:
        """A repository that another project has used since is noted anew."""
        uses = RecentUses()
        for project in ("a", "b"):
            uses.note("t", project, GITHUB, 0)
        self.assertFalse(uses.isNoted("t", "a", GITHUB, 1))
        self.assertTrue(uses.isNoted("t", "b", GITHUB, 1))

    def test_bounded(self) -> None:
        """What was noted longest ago is forgotten."""
        uses = RecentUses()
        for number in range(MAX_RECENT + 1):
            uses.note("t", f"p{number}", None, 0)
        self.assertFalse(uses.isNoted("t", "p0", None, 1))
        self.assertTrue(uses.isNoted("t", "p1", None, 1))


class CatalogueTests(SynchronousTestCase):
    """What tasks have named."""

    def setUp(self) -> None:
        self.database = newDatabase(self)
        self.catalogue = Catalogue(self.database)

    def note(self, at: float, tenant: str = "t", **words: Any) -> None:
        given = {"project": None, "url": None, "branch": None, **words}
        self.successResultOf(
            self.database.run(lambda connection: noteUse(connection, tenant=tenant, at=at, **given))
        )

    def projects(self, **words: Any) -> list[str]:
        asked = self.catalogue.projects(**{"tenant": "t", **words})
        return [one.id for one in self.successResultOf(Deferred.fromCoroutine(asked))]

    def repositories(self, **words: Any) -> list[Any]:
        asked = self.catalogue.repositories(**{"tenant": "t", **words})
        return self.successResultOf(Deferred.fromCoroutine(asked))

    def test_projects(self) -> None:
        """Each once, the one that was used last first; another tenant's never."""
        for at, project in ((1, "a"), (2, "b"), (3, "c"), (4, "a")):
            self.note(at, project=project)
        self.note(5, tenant="other", project="d")
        self.assertEqual(self.projects(), ["a", "c", "b"])
        self.assertEqual(self.projects(only="b"), ["b"])
        self.assertEqual(self.projects(tenant="other"), ["d"])

    def test_repositories(self) -> None:
        """Each once, with the project that used it last."""
        self.note(1, project="a", url=GITHUB, branch="main")
        self.note(2, project="b", url="https://code.example/y", branch=None)
        self.note(3, project="b", url=GITHUB, branch="other")
        first, second = self.repositories()
        self.assertEqual(
            (first.url, first.name, first.provider, first.project, first.branch, first.lastUsed),
            (GITHUB, "acme/x", "github", "b", "main", 3),
        )
        self.assertEqual((second.name, second.provider), ("y", "git"))
        self.assertEqual(self.repositories(project="a"), [])
        self.assertEqual(self.repositories(tenant="other"), [])

    def test_nothing(self) -> None:
        """A task that names neither."""
        self.note(1)
        self.assertEqual((self.projects(), self.repositories()), ([], []))

    def test_limit(self) -> None:
        """No more than L{MAX_LISTED} are shown."""

        def many(connection: Any) -> None:
            for number in range(MAX_LISTED + 1):
                noteUse(
                    connection, tenant="t", project=str(number), url=None, branch=None, at=number
                )

        self.successResultOf(self.database.run(many))
        found = self.projects()
        self.assertEqual((len(found), found[0]), (MAX_LISTED, str(MAX_LISTED)))


class CataloguePostgreSQLTests(OnPostgreSQL, CatalogueTests):
    """The same on PostgreSQL."""


class NameTests(SynchronousTestCase):
    """What a URL is called."""

    def test_names(self) -> None:
        """The last two parts of the path."""
        for url, name, provider in (
            (GITHUB, "acme/x", "github"),
            ("https://gitlab.example/a/b/c.git/", "b/c", "gitlab"),
            ("ssh://git@code.example:22/x", "x", "git"),
            ("code.example:x", "x", "git"),
        ):
            self.assertEqual((nameOf(url), providerOf(url)), (name, provider), url)
