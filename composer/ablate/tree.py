"""The prefix tree: which epochs which cells share. Cells share an epoch exactly if their keys agree after it (`composer.engine.chain`).

A stem is a stretch that all its cells have in common; it forks where they part. A passive part that another run cannot train along (it was read
before, acts at a phase's end, or follows another part's schedule) parts cells too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.ablate.equal import table_text, undisturbed
from composer.ablate.types import Grid

Token = tuple[Any, ...]


@dataclass(frozen=True)
class Stem:
    """Epochs first…last of its cells; `ends` are the cells whose run ends with it."""

    first: int
    last: int
    cells: tuple[str, ...]
    ends: tuple[str, ...]
    children: tuple[Stem, ...]

    @property
    def epochs(self) -> int:
        return self.last - self.first + 1

    def walk(self) -> Iterator[Stem]:
        """This one and all behind it, depth first."""
        waiting = [self]
        while waiting:
            stem = waiting.pop()
            yield stem
            waiting += stem.children[::-1]


@dataclass(frozen=True)
class Tree:
    """One seed's tree; every seed has the same."""

    stems: tuple[Stem, ...]
    lengths: Mapping[str, int]                       # cell -> epochs of its run

    def walk(self) -> Iterator[Stem]:
        for stem in self.stems:
            yield from stem.walk()

    @property
    def trained(self) -> int:
        return sum(stem.epochs for stem in self.walk())

    @property
    def unshared(self) -> int:
        return sum(self.lengths.values())

    @property
    def forks(self) -> tuple[int, ...]:
        """Epochs after which cells part, each once; 0 where several have nothing in common."""
        found = {stem.last for stem in self.walk() if len(stem.cells) > 1}
        return tuple(sorted(found | ({0} if len(self.stems) > 1 else set())))

    def common(self) -> dict[str, int]:
        """Cell -> how many of its epochs another cell has as well."""
        found = dict.fromkeys(self.lengths, 0)
        for stem in self.walk():
            if len(stem.cells) > 1:
                found.update(dict.fromkeys(stem.cells, stem.last))
        return found


def grow(chains: Mapping[str, Sequence[Token]]) -> Tree:
    """The tree of cells given as one token an epoch; equal tokens up to an epoch are a shared prefix. A tree may be as deep as a run is long."""
    found: list[tuple[int, int, int, tuple[str, ...]]] = []              # parent, first epoch - 1, last epoch, cells; parents first
    waiting = [(-1, 0, group) for group in _groups(tuple(chains), chains, 0)[::-1]]
    while waiting:
        parent, at, names = waiting.pop()
        end = _agreed(names, chains, at)
        found.append((parent, at, end, names))
        waiting += [(len(found) - 1, end, group) for group in _groups(names, chains, end)[::-1]]
    below: list[list[Stem]] = [[] for _ in range(len(found) + 1)]       # the last one: what has no parent
    for place in reversed(range(len(found))):
        parent, at, end, names = found[place]
        below[parent].append(Stem(at + 1, end, names, tuple(n for n in names if len(chains[n]) == end), tuple(below[place][::-1])))
    return Tree(tuple(below[-1][::-1]), {name: len(chain) for name, chain in chains.items()})


def _groups(names: tuple[str, ...], chains: Mapping[str, Sequence[Token]], at: int) -> list[tuple[str, ...]]:
    """The cells that go on, by what their next epoch is."""
    groups: dict[Token, list[str]] = {}
    for name in names:
        if len(chains[name]) > at:
            groups.setdefault(chains[name][at], []).append(name)
    return [tuple(group) for group in groups.values()]


def _agreed(names: tuple[str, ...], chains: Mapping[str, Sequence[Token]], at: int) -> int:
    """The epoch up to which these cells are one."""
    end, last, first = at + 1, min(len(chains[n]) for n in names), chains[names[0]]
    while end < last and all(chains[n][end] == first[end] for n in names[1:]):
        end += 1
    return end


# -- from a grid ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ground:
    """What is known of a run's data and network before it runs."""

    keys: Any                                        # composer.engine.chain.Ground
    classes: int
    state: int                                       # bytes of a checkpoint: weights and momentum


@dataclass(frozen=True)
class Course:
    """A cell's run, epoch by epoch: keys and passes (forwards + input gradients + weight gradients, in batches). `peers`: for guests."""

    tokens: tuple[Token, ...]
    passes: tuple[int, ...]
    steps: tuple[int, ...]
    key: str
    state: int
    passive: bool                                    # it has a part that nothing reads at first


class Grounds:
    """Found once for all cells that have data and network in common."""

    def __init__(self, settings: Any):
        self.settings = settings
        self._held: dict[Any, Ground] = {}

    def of(self, recipe: Any, seed: int) -> Ground:
        """Errors: as those of building the run."""
        from composer.engine.session import Session

        init = recipe.train.init
        key = (table_text(recipe, "data"), table_text(recipe, "model"), recipe.select.held_out, recipe.select.stratified, init, seed if init else 0)
        if key not in self._held:
            session = Session(recipe, seed, self.settings)
            size = sum(t.numel() * t.element_size() for t in session.net.model.state_dict().values())
            self._held[key] = Ground(session.ground(session.init_digest() if init else None), session.dataset.classes, 2 * size)
        return self._held[key]


def courses(grid: Grid, settings: Any) -> dict[str, Course]:
    """The course of every distinct cell with the grid's first seed: data and network once for all that have them in common."""
    with undisturbed():
        return _courses(grid, settings)


def _courses(grid: Grid, settings: Any) -> dict[str, Course]:
    from composer.engine.chain import grow as keyed
    from composer.engine.chain import root, stretches
    from composer.engine.guests import unguestable
    from composer.plan.cost import plan_cost

    grounds, found, seed = Grounds(settings), {}, grid.seeds[0]
    for cell in grid.distinct:
        ground = grounds.of(cell.recipe, seed)
        nodes = keyed(stretches(cell.recipe, ground.keys, settings.out), root(seed, ground.keys.init), Path(settings.out) / "nodes")
        apart = unguestable(nodes)
        tokens = tuple((key, *sorted(row.items())) for key, row in zip((k for n in nodes for k in n.chain), apart, strict=True))
        steps, passes = [], []
        for node in nodes:
            train = node.segment.recipe.train
            count = ground.keys.steps(train.batch_size, train.last == "keep")
            epochs = node.segment.last - node.segment.first + 1
            steps += [count] * epochs
            passes += [count * plan_cost(node.plan).at(ground.classes).units] * epochs
        found[cell.name] = Course(tokens, tuple(passes), tuple(steps), nodes[-1].key, ground.state, any(row for n in nodes for row in n.pasts))
    return found


def tree_of(found: Mapping[str, Course], *, share: bool = True) -> Tree:
    """Without `share` every cell stands alone."""
    return grow({name: course.tokens if share else [(name, *token) for token in course.tokens] for name, course in found.items()})


def passes_of(tree: Tree, found: Mapping[str, Course]) -> int:
    """Passes of one seed's tree."""
    return sum(sum(found[stem.cells[0]].passes[stem.first - 1:stem.last]) for stem in tree.walk())
