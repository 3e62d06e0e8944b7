"""docs/catalogue.md, written from the registry: `python -m composer.report.catalogue` (`--check` only looks whether it is up to date)."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from composer.atomic import write_text
from composer.errors import ComposerError
from composer.options import Option, plain
from composer.plugins import load_all
from composer.recipe.write import quote
from composer.registry import KINDS, REGISTRY, Card, Primitive
from composer.shipped import plugins_dir

PACKAGE = Path(__file__).resolve().parents[1]
PAGE = PACKAGE.parent / "docs" / "catalogue.md"
COMMAND = "python -m composer.report.catalogue"
PLURAL = {"loss": "Losses", "radius": "Radii", "inner": "Inner maxima", "data": "Data sets", "augment": "Augmentations", "optim": "Optimisers"}
HEAD = f"""# The catalogue

Written by `{COMMAND}` from the docstrings and signatures; a test fails when it is out of date. Formula with unit and paper of
every primitive that ships, what it needs (tensors by name), its options, and in its remarks where it differs from public code. A float option
marked "or a schedule" may be a table such as `{{ use = "ramp", first = 0.0, last = 1.0 }}`. `composer show KIND/NAME` prints one entry. How the
names of tensors are read: [write_a_primitive.md](write_a_primitive.md).
"""


def page() -> str:
    """The whole page. Only what ships is on it, whatever else is loaded."""
    load_all()
    kinds = [(kind, [p for p in REGISTRY.all(kind) if home(p)]) for kind in KINDS]
    index = "\n".join(f"- [{title(kind)}](#{anchor(kind)}): " + " ".join(f"`{p.name}`" for p in held) for kind, held in kinds if held)
    blocks = [HEAD, index + "\n"]
    for kind, held in kinds:
        blocks += [f"## {title(kind)}\n", *(entry(p) for p in held)] if held else []
    return "\n".join(blocks)


def title(kind: str) -> str:
    return PLURAL.get(kind, kind.capitalize() + "s")


def anchor(kind: str) -> str:
    return title(kind).lower().replace(" ", "-")


def home(p: Primitive) -> str:
    """Its file as a reader of the repository knows it; '' for what does not ship."""
    file = p.file.resolve() if p.file else None
    for root, name in ((plugins_dir().resolve(), "plugins"), (PACKAGE, "composer")):
        if file and file.is_relative_to(root):
            return f"{name}/{file.relative_to(root).as_posix()}"
    return ""


def entry(p: Primitive) -> str:
    """One primitive: sentence, formula, paper, needs, options, remarks, file."""
    card = p.card
    lines = [f"### {p.kind}/{p.name}\n", prose(card.summary) + "\n"]
    lines += [f"- Formula: {code(card.formula)}"] if card.formula else []
    lines += [f"- Paper: {prose(card.paper)}"] if card.paper else []
    if p.needs:
        lines.append("- Needs: " + ", ".join(f"`{n.name}` {n.shape.dims if n.shape else ''}".strip() for n in p.needs))
    if p.options:
        lines += ["- Options:", *(f"  - {option(o)}" for o in p.options)]
    lines.append(f"- File: `{home(p)}`" + coupling(p))
    return "\n".join([*lines, "", *(f"{block}\n" for block in remarks(card))])


def coupling(p: Primitive) -> str:
    """Whether rows depend on each other: always, or with certain values of options."""
    flag = p.flags.get("couples")
    if isinstance(flag, dict):
        return "; couples the rows of a batch where " + ", ".join(f"`{name} = {quote(value)}`" for name, value in flag.items())
    return "; couples the rows of a batch" if flag == "batch" else ""


def option(o: Option) -> str:
    default = "the threat's" if o.threat else "required" if o.required else f"default {_value(plain(o.default))}"
    return f"`{o.name}`: {prose(o.type_text)}, {default}"


def _value(value: object) -> str:
    return "none" if value is None else f"`{quote(value)}`"


def remarks(card: Card) -> list[str]:
    """What the docstring says besides sentence, formula and paper; lists of options keep their columns."""
    text = re.sub(r"^(Formula|Paper):.*(?:\n[ \t]+.*)*\n?", "", card.text, flags=re.MULTILINE)
    found = []
    for block in text.split("\n\n")[1:]:
        if not block.strip():
            continue
        aligned = any(re.match(r"\S.*?\s{2,}\S", line) for line in block.splitlines())
        found.append(f"```text\n{block.strip(chr(10))}\n```" if aligned else prose(" ".join(block.split())))
    return found


def code(text: str) -> str:
    """In a code span, whatever backticks it holds."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def prose(text: str) -> str:
    """Characters that Markdown would take for its own, outside of code spans."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*<>])", r"\\\1", part) for part in parts)


def stale(file: Path = PAGE) -> str:
    """What to do about a page that is missing or out of date; '' where it is up to date."""
    if file.is_file() and file.read_text(encoding="utf-8") == page():
        return ""
    return f"{file.name} is not what the registry says now; run: {COMMAND}"


def main(arguments: Sequence[str]) -> int:
    if list(arguments) not in ([], ["--check"]):
        raise ComposerError(f"unknown arguments: {' '.join(arguments)}", fix=f"{COMMAND} [--check]")
    if arguments:
        said = stale()
        print(said or f"{PAGE.name} is up to date", file=sys.stdout)
        return 2 if said else 0
    write_text(PAGE, page())
    print(PAGE, file=sys.stdout)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ComposerError as error:
        print(error.text(), file=sys.stderr)
        sys.exit(error.exit_code)
