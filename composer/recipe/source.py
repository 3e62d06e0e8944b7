"""TOML files with line numbers. `tomllib` says what a file means; a small scanner beside it says where each key stands."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from composer.errors import ComposerError
from composer.recipe.paths import Dotted

SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
BARE = re.compile(r"[A-Za-z0-9_-]+")
STRINGS = ('"""', "'''", '"', "'")
LITERAL = re.compile(r"[^,\]}\n#]*")
ESCAPED = re.compile(r'(?:[^"\\\n]|\\.)*')


def label(path: Path) -> str:
    """The path as a user would type it: relative where it lies below the working folder."""
    full = Path(os.path.abspath(path))
    try:
        return str(full.relative_to(Path.cwd()))
    except ValueError:
        return str(full)


def short(origin: str) -> str:
    """A primitive's file:line as a user would type it."""
    file, _, line = origin.rpartition(":")
    return f"{label(Path(file))}:{line}" if file else origin


@dataclass(frozen=True, eq=False)
class Doc:
    """One TOML file: its meaning, and the line of every key and of every item of a list (`("drop", "0")`).

    spelled   top-level keys that were misspelt: as meant -> as written
    """

    path: Path
    text: str
    table: dict[str, Any]
    spelled: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def label(self) -> str:
        return label(self.path)

    @cached_property
    def lines(self) -> dict[Dotted, int]:
        return Scanner(self.text).run()

    def place(self, path: Dotted) -> str:
        """file:line of a key, or of the nearest table around it."""
        if path and path[0] in self.spelled:
            path = (self.spelled[path[0]], *path[1:])
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.label}:{self.lines.get(path, 1)}"

    def respelled(self, meant: Mapping[str, str]) -> Doc:
        """The same file with top-level keys renamed (as written -> as meant); lines stay those of what was written."""
        table = {meant.get(key, key): value for key, value in self.table.items()}
        return replace(self, table=table, spelled={right: wrong for wrong, right in meant.items()})


def read(path: Path) -> Doc:
    """Errors: ComposerError with file:line where the file is missing, not UTF-8, or not TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ComposerError("the file is not UTF-8 text", where=f"{label(path)}:1", why=str(error), fix="save it as UTF-8") from None
    except OSError as error:
        raise ComposerError(f"the file cannot be read: {error.strerror or error}", where=label(path)) from None
    return _parsed(text, path, os.getcwd())


@lru_cache(maxsize=256)
def _parsed(text: str, path: Path, folder: str) -> Doc:
    """A file is parsed once as long as it does not change: a recipe is read on every setting that it names."""
    return parse(text, path)


def parse(text: str, path: Path) -> Doc:
    try:
        return Doc(path, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        line = int(found[1]) if found else max(1, text.count("\n") + (not text.endswith("\n")))
        rows = text.splitlines()
        quoted = rows[line - 1].strip() if line <= len(rows) else ""
        message = re.sub(r" \(at .*\)$", "", str(error))
        raise ComposerError(f"not TOML: {message}", where=f"{label(path)}:{line}", why=quoted and f"the line reads: {quoted}",
                            fix="strings stand in quotes, tables inside a line as { key = value }, a key is given once") from None


class Scanner:
    """Positions of keys in a text that tomllib has accepted, so no error is looked for again."""

    def __init__(self, text: str):
        self.text, self.at, self.lines = text, 0, {}

    def run(self) -> dict[Dotted, int]:
        prefix: Dotted = ()
        while self.skip():
            if self.text[self.at] == "[":
                self.at += 1 + self.text.startswith("[[", self.at)
                prefix = self.key(())
                self.at = self.text.index("]", self.at)
                self.at += 1 + self.text.startswith("]]", self.at)
            else:
                self.pair(prefix)
        return self.lines

    def skip(self) -> bool:
        self.at = SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
        return self.at < len(self.text)

    def key(self, prefix: Dotted) -> Dotted:
        line = self.text.count("\n", 0, self.at) + 1
        while True:
            self.skip()
            prefix = (*prefix, self.word())
            self.lines.setdefault(prefix, line)
            self.skip()
            if self.text[self.at] != ".":
                return prefix
            self.at += 1

    def word(self) -> str:
        if self.text[self.at] in "\"'":
            start = self.at
            self.string()
            return tomllib.loads(f"k = {self.text[start:self.at]}")["k"]
        found = BARE.match(self.text, self.at)
        self.at = found.end()  # type: ignore[union-attr]
        return found[0]  # type: ignore[index]

    def pair(self, prefix: Dotted) -> None:
        path = self.key(prefix)
        self.at += 1                                        # the equals sign
        self.value(path)

    def value(self, path: Dotted) -> None:
        self.skip()
        first = self.text[self.at]
        if first in "\"'":
            self.string()
        elif first in "[{":
            self.group(path, "]" if first == "[" else "}")
        else:
            self.at = LITERAL.match(self.text, self.at).end()  # type: ignore[union-attr]

    def group(self, path: Dotted, close: str) -> None:
        self.at += 1
        items = 0
        while self.skip() and self.text[self.at] != close:
            if self.text[self.at] == ",":
                self.at += 1
            elif close == "}":
                self.pair(path)
            else:
                here = (*path, str(items))
                items += 1
                self.lines.setdefault(here, self.text.count("\n", 0, self.at) + 1)
                self.value(here)
        self.at += 1

    def string(self) -> None:
        quote = next(q for q in STRINGS if self.text.startswith(q, self.at))
        self.at += len(quote)
        if quote == '"':
            self.at = ESCAPED.match(self.text, self.at).end() + 1  # type: ignore[union-attr]
            return
        while not self.text.startswith(quote, self.at):
            self.at += 2 if quote == '"""' and self.text[self.at] == "\\" else 1
        self.at += len(quote)
        while len(quote) == 3 and self.text.startswith(quote[0], self.at):      # quotes may touch the closing ones
            self.at += 1
