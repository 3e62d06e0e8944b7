"""A table laid out as text, before any format is chosen: columns with heads of several lines, rows of cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Cell:
    """What stands in one place. `tone`: "", "dim", "bad"."""

    text: str = ""
    bold: bool = False
    tone: str = ""


@dataclass(frozen=True)
class Head:
    """A column: its name, the lines beneath it (images, unit, interval), and the columns it stays with."""

    name: str
    under: tuple[str, ...] = ()
    group: str = ""
    left: bool = False


@dataclass(frozen=True)
class Sheet:
    """Rows begin with their label, which the first head names. `notes` stand right beneath."""

    key: str
    title: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.rows or len(self.heads) < 2

    def without_empty_columns(self) -> Sheet:
        """Columns in which no row says anything are left out."""
        keep = [at for at in range(len(self.heads)) if at == 0 or any(row[at].text for row in self.rows)]
        return replace(self, heads=tuple(self.heads[at] for at in keep), rows=tuple(tuple(row[at] for at in keep) for row in self.rows))


def width_of(sheet: Sheet, at: int) -> int:
    """Characters of a column."""
    head = sheet.heads[at]
    return max(len(text) for text in (head.name, *head.under, *(row[at].text for row in sheet.rows)))


def fitted(sheet: Sheet, width: int, gap: int = 2) -> list[Sheet]:
    """The sheet cut into sheets no wider than `width`, each with the label column; groups of columns stay together where they fit."""
    widths = [width_of(sheet, at) for at in range(len(sheet.heads))]
    room = width - widths[0]
    taken: list[list[int]] = []
    for group in _groups(sheet):
        if taken and _used(taken[-1] + group, widths, gap) <= room:
            taken[-1] += group
        elif _used(group, widths, gap) <= room:
            taken.append(list(group))
        else:
            for at in group:
                if taken and _used([*taken[-1], at], widths, gap) <= room:
                    taken[-1].append(at)
                else:
                    taken.append([at])
    return [_columns(sheet, [0, *ats], number) for number, ats in enumerate(taken)]


def _groups(sheet: Sheet) -> Iterable[list[int]]:
    groups: list[list[int]] = []
    for at in range(1, len(sheet.heads)):
        same = groups and sheet.heads[at].group and sheet.heads[at].group == sheet.heads[groups[-1][-1]].group
        groups = [*groups[:-1], [*groups[-1], at]] if same else [*groups, [at]]
    return groups


def _used(ats: Sequence[int], widths: Sequence[int], gap: int) -> int:
    return sum(widths[at] + gap for at in ats)


def _columns(sheet: Sheet, ats: Sequence[int], number: int) -> Sheet:
    """The rows that say something in these columns."""
    rows = [tuple(row[at] for at in ats) for row in sheet.rows]
    rows = [row for row in rows if number == 0 or any(cell.text for cell in row[1:])]
    return replace(sheet, title=sheet.title if number == 0 else f"{sheet.title} (continued)", heads=tuple(sheet.heads[at] for at in ats), rows=tuple(rows))
