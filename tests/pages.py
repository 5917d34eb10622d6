"""Reads README and docs for the tests of `tests/docs`: pages, links, blocks of code, commands."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType

from support import ROOT

DOCS = ROOT / "docs"
# What people read: files at the top, and the pages of the site.
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
MANUAL = [path for path in PAGES if path.name != "CHANGELOG.md"]  # what holds for this version
FENCE = re.compile(r"^( *)(`{3,}|~{3,}) *([\w+-]*)[^\n]*\n(.*?)^ *\2[ \t]*$", re.M | re.S)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def hooks() -> ModuleType:
    """Return `docs/hooks.py`, which mkdocs calls."""
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Block:
    """One fenced block of code, or one line of code within a sentence."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the fenced blocks of a page in some languages."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        indent, language, code = match[1], match[3].lower(), match[4]
        code = re.sub(f"^{indent}", "", code, flags=re.M)
        if language in languages:
            found.append(Block(page, text[: match.start()].count("\n") + 2, language, code))
    return found


def inline_code(page: Path) -> list[Block]:
    """Return what stands between single backticks, outside of fenced blocks."""
    text = page.read_text(encoding="utf-8")
    plain = FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    return [
        Block(page, plain[: match.start()].count("\n") + 1, "", " ".join(match[1].split()))
        for match in INLINE.finditer(plain)
    ]


@dataclass(frozen=True)
class Call:
    """One command of a shell block, as words. `folder` is where a `cd` before it leads."""

    block: Block
    words: tuple[str, ...]
    folder: str = "."
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.block} {shlex.join(self.words)}"

    @property
    def _place(self) -> int | None:
        """The place of the word that names a command of this package; None for other programs."""
        if Path(self.words[0]).name == "coseg":
            return 1
        for place, word in enumerate(self.words):
            if re.match(r"coseg_lightning(\.|$)", word) and self.words[place - 1] == "-m":
                return place
        return None

    @property
    def command(self) -> str | None:
        """The command of this package that is called, such as `run`; None for other programs."""
        if self._place is None:
            return None
        word = self.words[self._place] if self._place < len(self.words) else ""
        return word.removeprefix("coseg_lightning").removeprefix(".") or "--help"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of a command of this package."""
        return self.words[(self._place or 0) + 1 :]


def calls(block: Block) -> Iterator[Call]:
    """Yield the commands of a shell block."""
    folder = "."
    text = re.sub(r"\\\n\s*", " ", block.text)
    for line in text.splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set(";&|") or not word:
                words.append(word)
                continue
            environment = {}
            while words and re.match(r"\w+=", words[0]) and Path(words[0]).name != "coseg":
                key, _, value = words.pop(0).partition("=")
                environment[key] = value
            for redirection in ("<", ">", ">>", "2>"):
                words = words[: words.index(redirection)] if redirection in words else words
            if words and words[0] == "cd":
                folder = words[1]
            elif words:
                yield Call(block, tuple(words), folder, environment)
            words = []


@cache
def all_calls() -> tuple[Call, ...]:
    """Return every command of the manual, in shell blocks and within sentences."""
    found: list[Call] = []
    for page in MANUAL:
        for block in blocks(page, "sh", "bash", "shell", "console"):
            found += calls(block)
        for code in inline_code(page):
            if re.match(
                r"(\S*/)?coseg [a-z]|(\S*/)?python3? (-m coseg_lightning|\S+\.py)", code.text
            ):
                found += calls(code)
    return tuple(found)
