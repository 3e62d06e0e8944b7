"""What the command line changes in a study: `--setting`, `--set`, `--drop`, `--seeds` over all of its rows.

    --setting   every row stands on it; rows that the study has on several settings become one
    --set       wins over the study's own edit, takes an axis out of a grid, and may not say what a cell says
    rungs       keep their place in the run when its length changes
    printed     numbers of another setting stand beside nothing
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from composer.errors import ComposerError
from composer.recipe.edit import Edit
from composer.recipe.layers import assignment
from composer.recipe.paths import Dotted, inside, show, split
from composer.recipe.types import MeasureSpec
from composer.registry import REGISTRY

SEEDS = "seeds are how many, or a list of different numbers: 5, or 0,1,7"


@dataclass(frozen=True)
class Command:
    """The part of a command line that speaks of a study. Empty: the study as its file says."""

    setting: str = ""
    sets: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.setting or self.sets or self.drops or self.seeds)

    @cached_property
    def paths(self) -> frozenset[Dotted]:
        """What it sets or drops; texts that are no paths are told where the recipe is read."""
        found = set()
        for text in self.sets:
            with suppress(ValueError):
                found.add(assignment(text)[0])
        for text in self.drops:
            with suppress(ValueError):
                found.add(split(text))
        return frozenset(found)

    def says(self, path: Dotted) -> bool:
        return any(inside(path, each) or inside(each, path) for each in self.paths)

    def words(self) -> str:
        """As it would be typed."""
        seeds = [f"--seeds {','.join(map(str, self.seeds))}"] if self.seeds else []
        return " ".join([*([f"--setting {self.setting}"] if self.setting else []), *(f"--set {s}" for s in self.sets),
                         *(f"--drop {d}" for d in self.drops), *seeds])


NOTHING_SAID = Command()


def command(setting: str | None = None, sets: Sequence[str] = (), drops: Sequence[str] = (), seeds: int | Sequence[int] | None = None) -> Command:
    """Errors: ComposerError for seeds that are none."""
    return Command(setting or "", tuple(sets), tuple(drops), () if seeds is None else seed_list(seeds))


def seed_list(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """5 is 0…4; a list stands as it is. Errors: ComposerError."""
    found = tuple(range(seeds)) if isinstance(seeds, int) and not isinstance(seeds, bool) else tuple(seeds) if isinstance(seeds, (list, tuple, range)) else ()
    if not found or len(set(found)) != len(found) or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in found):
        raise ComposerError(f"seeds = {seeds!r}", where="--seeds", why=SEEDS)
    return found


def yielding(edit: Edit, said: Command, name: str, notes: list[str]) -> Edit:
    """The study's own edit without what the command line sets: it is the default of all rows, and the command line is nearer."""
    lost = [path for path in (*edit.set, *edit.put) if said.says(path)]
    for path in lost:
        notes.append(f"the command line sets {show(path)}: what {name} sets there is left out")
    return replace(edit, set={p: v for p, v in edit.set.items() if p not in lost}, put={p: v for p, v in edit.put.items() if p not in lost})


def rescaled(rungs: tuple[int, ...], last: int) -> tuple[int, ...]:
    """Rungs at the same fractions of a run of another length: each at least one epoch, ever larger, the last its end."""
    scaled = [min(last, max(1, round(rung * last / rungs[-1]))) for rung in rungs]
    return tuple(dict.fromkeys([*(s for s in scaled[:-1] if s < last), last]))


def chief(measured: Iterable[MeasureSpec]) -> str:
    """The measure that stands in for a primary one that is not taken: AutoAttack, else the last accuracy of the protocol; "" where it has none."""
    names = [m.name for m in measured if not REGISTRY.get("measure", m.use).flags.get("unit")]
    return "aa" if "aa" in names else names[-1] if names else ""
