"""What of a grid's checkpoints stays on disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from composer.ablate.tree import Tree
from composer.engine.record import Record, read_json


def slim(out: Path, tree: Tree, records: Iterable[Record]) -> None:
    """Only leaves and forks keep their checkpoints, forks of other grids too; other stretches keep their curves."""
    from composer.ablate.work import FORK
    from composer.engine import checkpoint
    from composer.engine.walk import lineage

    forks = {stem.last for stem in tree.walk() if len(stem.cells) > 1}
    for record in records:
        last = (record.facts.get("nodes") or [{}])[-1].get("folder")
        if not last or not (out / "nodes" / last).is_dir():
            continue
        for folder in lineage(out / "nodes" / last)[:-1]:
            epochs = (read_json(folder / "key.json") or {}).get("epochs") or [0, 0]
            if epochs[1] not in forks and not (folder / FORK).exists():
                for name in (checkpoint.CURRENT, checkpoint.PREVIOUS):
                    (folder / name).unlink(missing_ok=True)
