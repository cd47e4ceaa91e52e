"""The documentation as a whole: its links lead somewhere, and its commands are the program's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
from twisted.trial.unittest import SynchronousTestCase

import helix_revdial
from helix_revdial.cli.main import helix
from helix_revdial.config import ServerConfig
from helix_revdial.revdial import parked

ROOT = Path(helix_revdial.__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

WORD = re.compile(r"[^\w\- ]")


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have as links."""
    found = set()
    for line in outsideOfCode(page.read_text(encoding="utf-8")):
        if heading := re.match(r"#+ +(.*)", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            found.add(WORD.sub("", text.lower()).replace(" ", "-"))
    return found


def outsideOfCode(text: str) -> Iterator[str]:
    """The lines that stand in no block of code."""
    for index, part in enumerate(re.split(r"(?m)^ *```.*$", text)):
        if index % 2 == 0:
            yield from part.splitlines()


def commandLines(page: Path) -> Iterator[str]:
    """The lines of a page's code that call C{helix}, without what a shell does with them."""
    text = page.read_text(encoding="utf-8")
    for index, block in enumerate(re.split(r"(?m)^ *```.*$", text)):
        for line in block.replace("\\\n", " ").splitlines() if index % 2 else ():
            for part in re.split(r" \| | && |; | & |  +#|\$\(", line.strip().removeprefix("$ ")):
                if re.match(r"helix (?!_)", part):
                    yield part.rstrip(' )"&')


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that is listed, with its name as it is typed."""
    context = click.Context(group, info_name="helix")
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


class LinkTests(SynchronousTestCase):
    """What the pages point at."""

    def test_links(self) -> None:
        """Each link within the project leads to a file, and to a heading of it."""
        wrong = []
        for page in PAGES:
            for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
                if re.match(r"[a-z]+:", link):
                    continue
                path, _, anchor = link.partition("#")
                target = page.parent / path if path else page
                if not target.exists() or (anchor and anchor not in anchors(target)):
                    wrong.append(f"{page.name}: {link}")
        self.assertEqual(wrong, [])

    def test_everyPageIsFound(self) -> None:
        """Each page is linked from another one."""
        texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
        for page in PAGES[1:]:
            others = [text for other, text in texts.items() if other != page]
            self.assertTrue(any(page.name in text for text in others), page.name)


class NumberTests(SynchronousTestCase):
    """What the pages say of numbers."""

    def test_parkedConnections(self) -> None:
        """Of parked connections the wire's page gives the server's own numbers."""
        text = " ".join((ROOT / "docs" / "wire.md").read_text(encoding="utf-8").split())
        pool = ServerConfig().pool
        for words in (
            f"up to {pool.perRunner} of a runner and {pool.total:,} in all",
            f"that nobody needed for {parked.WINDOW:g} s",
            f"has not opened one within {parked.ASK_LIMIT:g} s is not asked for "
            f"{parked.BACK_OFF:g} s, then for twice as long, up to {parked.MAX_BACK_OFF:g} s",
            f"by a ping after {parked.CHECK_AFTER:g} s (it has {parked.CHECK_LIMIT:g} s)",
            f"after {pool.refresh * parked.OLDEST:g} to {pool.refresh:g} s",
        ):
            self.assertIn(words, text)


class CommandLineTests(SynchronousTestCase):
    """What the pages say of C{helix}."""

    def test_everyCommandIsDocumented(self) -> None:
        """Each command, and each of its flags, stands in the page of the command line."""
        text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
        more = text + "".join(
            (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
            for name in ("forwarding", "diagnosis", "desktop")
        )
        missing = []
        for name, command in [*commands(helix), ("", helix)]:
            *_, last = ("", *name.split())
            if name and last not in re.findall(r"[a-z]+", text):
                missing.append(name)
            for option in command.params:
                if isinstance(option, click.Option) and not option.hidden:
                    flags = [flag for flag in option.opts if flag not in ("--help", "--version")]
                    if flags and not any(re.search(rf"{re.escape(f)}\b", more) for f in flags):
                        missing.append(f"{name} {'/'.join(flags)}")
        self.assertEqual(missing, [])

    def test_whatIsShownCanBeTyped(self) -> None:
        """Each C{helix} in a page's code is a command that there is, with flags that it has."""
        seen = 0
        for page in PAGES:
            for line in commandLines(page):
                words = shlex.split(line.replace("…", "x"))[1:]
                with self.subTest(page=page.name, line=line):
                    self.parse(helix, words, line)
                seen += 1
        self.assertGreater(seen, 20)

    def parse(self, command: click.Command, words: list[str], line: str) -> None:
        """Fail unless these words can be read."""
        context = click.Context(command, info_name="helix")
        try:
            _, rest, _ = command.make_parser(context).parse_args(list(words))
            if isinstance(command, click.Group) and rest:
                found = command.get_command(context, rest[0])
                self.assertIsNotNone(found, line)
                assert found is not None
                self.parse(found, rest[1:], line)
            else:
                self.assertEqual(rest, [], line)
        except click.UsageError as error:
            self.fail(f"{line}: {error.format_message()}")
