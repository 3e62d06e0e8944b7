"""Which toggles are off in which cell: whole factorials, one at a time, and regular fractions with their resolution and aliases.

A cell is a set of toggles, written as bits: bit i is set where toggle i is off. The cell 0 is the recipe with nothing off, and it is in every
design. With codes +1 (on) and -1 (off), a word of factors is a product of columns; a regular fraction keeps the cells in which every word of
its defining relation is +1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from composer.errors import ComposerError

LARGEST = 2**14                 # cells of a full design that anybody can mean
SEARCHED = 5                    # base factors up to which all generators are tried; beyond, a rule gives resolution IV
ROMAN = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII", "XIII", "XIV", "XV", "XVI")


@dataclass(frozen=True)
class Fraction:
    """A regular two-level fraction of `factors` factors in 2^base runs, its generators positive.

    generators  bits of the base factors whose product is factor base, base + 1, …
    words       the defining relation without I: bits over all factors
    """

    factors: int
    base: int
    generators: tuple[int, ...]

    @property
    def words(self) -> tuple[int, ...]:
        return _group(self.base, self.generators)

    @property
    def resolution(self) -> int:
        """Letters of the shortest word; with no word (a full design) one more than there are factors."""
        return min((word.bit_count() for word in self.words), default=self.factors + 1)

    @property
    def pattern(self) -> tuple[int, ...]:
        """The word-length pattern: how many words have 3, 4, … letters."""
        lengths = [word.bit_count() for word in self.words]
        return tuple(lengths.count(n) for n in range(3, self.factors + 1))

    def cells(self) -> list[int]:
        """All runs, the one with nothing off first."""
        made = []
        for low in range(2**self.base):
            high = sum((low & g).bit_count() % 2 << self.base + k for k, g in enumerate(self.generators))
            made.append(low | high)
        return made

    def aliases(self, effect: int, order: int = 2) -> list[int]:
        """The effects of at most `order` factors whose column is that of `effect`."""
        found = [effect ^ word for word in self.words if 0 < (effect ^ word).bit_count() <= order]
        return sorted(found, key=lambda bits: (bits.bit_count(), letters(bits)))


def letters(bits: int) -> tuple[int, ...]:
    """The numbers of the set bits."""
    return tuple(k for k in range(bits.bit_length()) if bits >> k & 1)


def _group(base: int, generators: Sequence[int]) -> tuple[int, ...]:
    words = [0]
    for k, g in enumerate(generators):
        words += [word ^ (g | 1 << base + k) for word in words]
    return tuple(words[1:])


@cache
def fraction(factors: int, resolution: int = 4) -> Fraction:
    """The smallest fraction of at least this resolution. Up to 32 runs it has least aberration: the fewest words of 3 letters, then of 4, …

    Errors: ComposerError where no fraction, only the full design, has it.
    """
    for base in range(2, factors):
        found = _best(factors, base, resolution)
        if found:
            return found
    mixes = {3: ", which mixes main effects with interactions", 4: ", which mixes interactions with each other"}.get(factors, "")
    raise ComposerError(f"{factors} toggles have no fraction of resolution {ROMAN[resolution]} or higher", where="--design fractional",
                        why="only the full design tells so many effects apart",
                        fix="use --design full" + (f", or --resolution {factors}{mixes}" if factors > 2 else ""))       # one generator, all the others


def _best(factors: int, base: int, resolution: int) -> Fraction | None:
    """Least aberration among fractions of 2^base runs; None where none reaches the resolution."""
    count = factors - base
    columns = sorted((c for c in range(1, 2**base) if c.bit_count() >= resolution - 1), key=lambda c: (-c.bit_count() % 2, -c.bit_count(), c))
    if count > len(columns):
        return None
    if base > SEARCHED and resolution <= 4:
        odd = tuple(c for c in columns if c.bit_count() % 2)       # any of these: every word has an even number of letters, and none has two
        return Fraction(factors, base, odd[:count]) if count <= len(odd) else None
    found = (Fraction(factors, base, chosen) for chosen in _choices(columns, base, count, resolution))
    return min(found, key=lambda f: f.pattern, default=None) if base <= SEARCHED + 1 else next(found, None)


def _choices(columns: list[int], base: int, count: int, resolution: int) -> Iterator[tuple[int, ...]]:
    """Sets of generators all of whose words have enough letters, found without walking into those that have not."""

    def grow(chosen: tuple[int, ...], words: list[int], start: int) -> Iterator[tuple[int, ...]]:
        if len(chosen) == count:
            yield chosen
            return
        for at in range(start, len(columns) - (count - len(chosen)) + 1):
            more = [word ^ (columns[at] | 1 << base + len(chosen)) for word in words]
            if min(word.bit_count() for word in more) >= resolution:
                yield from grow((*chosen, columns[at]), words + more, at + 1)

    return grow((), [0], 0)


def full(factors: int) -> list[int]:
    if 2**factors > LARGEST:
        raise ComposerError(f"a full design of {factors} toggles has {2**factors:,} cells", where="--design full", fix="use --design fractional, or one-out")
    return by_size(range(2**factors), factors)


def one_out(factors: int) -> list[int]:
    return [0, *(1 << k for k in range(factors))]


def one_in(factors: int) -> list[int]:
    """Nothing but one toggle on, each in turn, beside all off and all on."""
    every = 2**factors - 1
    return list(dict.fromkeys([0, every, *(every ^ 1 << k for k in range(factors))]))


def by_size(cells: Sequence[int], factors: int) -> list[int]:
    """Few toggles off before many, then in the order of the toggles."""
    held = set(cells)
    if len(held) < 2**factors:
        return sorted(held, key=lambda bits: (bits.bit_count(), letters(bits)))
    return [sum(1 << k for k in some) for size in range(factors + 1) for some in combinations(range(factors), size)]
