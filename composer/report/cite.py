"""`composer cite`: BibTeX for every paper that a recipe, the comments at its head, and the cards of what it uses name."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from composer.errors import ComposerError
from composer.options import Ref
from composer.plan.types import Call
from composer.plan.whole import plans_of
from composer.recipe.types import Inner, MeasureSpec, ModelSpec, OptimSpec, Use
from composer.registry import REGISTRY
from composer.shipped import recipes_dir

VENUE = {"inproceedings": "booktitle", "article": "journal", "misc": "howpublished"}
PARTS = ("method", "threat", "model", "optim", "train", "data", "augment", "select", "trace", "evaluate")
KIND = {Inner: "inner", MeasureSpec: "measure", ModelSpec: "model", OptimSpec: "optim"}
YEAR = re.compile(r"\b(19|20)\d\d\b")


@dataclasses.dataclass(frozen=True)
class Cited:
    """A paper: its key in papers.toml, what names it, its BibTeX."""

    key: str
    by: tuple[str, ...]
    bibtex: str


@dataclasses.dataclass
class Library:
    """papers.toml: facts by key, and the names papers go by in prose, longest first."""

    papers: dict[str, dict[str, Any]]
    names: list[tuple[str, str]]

    def named(self, text: str) -> list[str]:
        """Keys of the papers a text names. Where names overlap the longest counts: 'Croce and Hein, ICML 2020 (FAB)' is not AutoAttack."""
        text = " ".join(text.split())
        found: dict[str, int] = {}
        for name, key in self.names:
            pattern = re.compile(rf"(?<![\w-]){re.escape(name)}(?!\w)")
            for match in pattern.finditer(text):
                found.setdefault(key, match.start())
            text = pattern.sub(lambda match: "\0" * len(match[0]), text)
        return sorted(found, key=found.__getitem__)


def library(file: Path | None = None) -> Library:
    """Errors: ComposerError where a name belongs to two papers, or to one that is not there."""
    file = file or recipes_dir() / "papers.toml"
    tables = tomllib.loads(file.read_text(encoding="utf-8"))
    owner: dict[str, str] = {}
    for key, names in tables["alias"].items():
        for name in names:
            if key not in tables["paper"] or owner.setdefault(name, key) != key:
                raise ComposerError(f'alias "{name}" of {key}', where=file.name, why="no such paper" if key not in tables["paper"] else
                                    f"it is also an alias of {owner[name]}", fix="one paper for each name")
    return Library(tables["paper"], sorted(owner.items(), key=lambda pair: (-len(pair[0]), pair[0])))


def citations(recipe: Any, held: Library | None = None) -> tuple[list[Cited], list[str]]:
    """The papers of a recipe, in order of mention, and the lines of cards that cite something papers.toml does not have."""
    held = held or library()
    by: dict[str, list[str]] = {}
    unknown: list[str] = []
    for place, text in sources(recipe):
        keys = [text] if place == "recipe" and text in held.papers else held.named(text)
        for key in keys:
            by.setdefault(key, []).append(place)
        if not keys and "/" in place and YEAR.search(text):
            unknown.append(f"{place}: {text}")
    return [Cited(key, tuple(places), bibtex(key, held.papers[key])) for key, places in by.items()], unknown


def sources(recipe: Any) -> Iterator[tuple[str, str]]:
    """What may name a paper: the recipe's key, the heads of its file and of those it extends, the cards of all it uses."""
    if recipe.paper:
        yield "recipe", recipe.paper
    for file in files(recipe):
        yield file.name, header(file)
    for kind, use in sorted(uses(recipe)):
        yield f"{kind}/{use}", REGISTRY.get(kind, use).card.paper


def files(recipe: Any) -> list[Path]:
    """The recipe's file and its parents, youngest first."""
    return list(reversed(recipe.stack.recipes))


def header(file: Path) -> str:
    """The comment at the head of a file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    end = next((k for k, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.lstrip("# ") for line in lines[:end])


def uses(recipe: Any) -> set[tuple[str, str]]:
    """(kind, name) of every primitive: those the recipe writes, those its phases write, and the views that names bring in."""
    found: set[tuple[str, str]] = {("phase", table["use"]) for table in recipe.tables.get("phase", {}).values() if "use" in table}
    for segment, plan in plans_of(recipe):
        found |= set(used([getattr(segment.recipe, name) for name in PARTS]))
        programs = (plan.prelude, plan.outer, *(p for i in plan.inner for p in (i.preamble, i.body)))
        found |= {(call.kind, call.use) for p in programs for call in p.steps if isinstance(call, Call)}
    return {pair for pair in found if REGISTRY.has(*pair)}


def used(value: Any) -> Iterator[tuple[str, str]]:
    """What a typed piece of a recipe puts to work, nested tables included."""
    if isinstance(value, (Use, Ref)):
        yield value.kind, value.use
    elif type(value) in KIND:
        yield KIND[type(value)], value.use
    if dataclasses.is_dataclass(value):
        value = [getattr(value, f.name) for f in dataclasses.fields(value)]
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        yield from used(item)


def bibtex(key: str, paper: dict[str, Any]) -> str:
    """One entry. The title is braced, so that styles keep its capitals."""
    fields = {"title": "{" + escape(paper["title"]) + "}", "author": escape(paper["authors"])}
    if "where" in paper:
        fields[VENUE[paper["type"]]] = escape(paper["where"])
    if "year" in paper:
        fields["year"] = str(paper["year"])
    if "arxiv" in paper:
        fields |= {"eprint": paper["arxiv"], "archiveprefix": "arXiv"}
    return "\n".join([f"@{paper['type']}{{{key},", *(f"  {name:<13} = {{{value}}}," for name, value in fields.items()), "}"])


def escape(text: str) -> str:
    return re.sub(r"([&%#_$])", r"\\\1", text)


def cite_text(found: list[Cited], unknown: list[str]) -> str:
    """The entries, each under a comment that says what names it."""
    blocks = [f"% {', '.join(each.by)}\n{each.bibtex}" for each in found]
    if unknown:
        blocks.append("\n".join(["% not in papers.toml:", *(f"%   {line}" for line in unknown)]))
    return "\n\n".join(blocks)
