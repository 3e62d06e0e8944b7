"""`composer runs`: what lies in the store, how large it is, who refers to it, and the removal of what nothing refers to.

A study refers to its experiments, an experiment to its nodes (with those before them) and to the evaluations of its weights. Studies and
experiments are never removed by themselves: an experiment is what somebody ran.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from composer.errors import ComposerError
from composer.report.read import read_json

KINDS = ("studies", "experiments", "nodes", "evaluations")
LEFTOVERS = (".tmp-*", ".probe-*", ".gone-*")
YOUNG = 3600.0                                                # seconds in which a leftover may still be somebody's


@dataclass(frozen=True)
class Item:
    """One thing in the store. `used_by`: what refers to it; `keep`: why it stays although nothing does."""

    kind: str
    name: str
    bytes: int
    state: str = ""
    used_by: tuple[str, ...] = ()
    keep: str = ""
    removed: bool = False

    @property
    def free(self) -> bool:
        return not self.used_by and not self.keep


@dataclass(frozen=True)
class Store:
    """The list. `other` is MLflow's share; `freed` the bytes that a removal gave back."""

    out: str
    items: tuple[Item, ...]
    other: int = 0
    freed: int = 0
    notes: tuple[str, ...] = ()

    def of(self, kind: str) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.kind == kind)

    def as_dict(self) -> dict[str, Any]:
        return {"out": self.out, "items": [{**asdict(item), "used_by": list(item.used_by), "free": item.free} for item in self.items],
                "bytes": sum(i.bytes for i in self.items if not i.removed) + self.other, "mlflow_bytes": self.other, "freed": self.freed,
                "notes": list(self.notes)}


def runs(out: Path | str = "runs", remove: bool = False) -> Store:
    """List the store; with `remove`, take away what nothing refers to. Without it nothing is touched, and `free` says what would go.

    Errors: ComposerError where there is no store.
    """
    out = Path(out)
    if not out.is_dir():
        raise ComposerError(f"there is no store at {out}", fix="name it with --out; composer run makes one")
    store = survey(out)
    return removal(out, store) if remove else store


def survey(out: Path) -> Store:
    studies = {path.name: path for path in _folders(out / "studies")}
    experiments = {path.name: path for path in _folders(out / "experiments")}
    by_study = {name: members(path) for name, path in studies.items()}
    records = {name: read_json(path / "record.json") or {} for name, path in experiments.items()}
    notes: list[str] = []
    items = [Item("studies", name, size(path), _study_state(path), used_by=("it is a study",)) for name, path in studies.items()]
    items += [Item("experiments", name, size(path), "finished" if (path / "result.json").is_file() else "unfinished",
                   tuple(s for s, used in by_study.items() if name in used), keep="somebody ran it") for name, path in experiments.items()]
    return Store(str(out), (*items, *_nodes(out, records, studies, notes), *_evaluations(out, records, experiments, studies, notes), *_leftovers(out)),
                 sum(size(path) for path in (out / "artifacts", *out.glob("mlflow.db*"))), notes=tuple(notes))


def members(study: Path) -> set[str]:
    """Names of the experiments that a study's results name."""
    found = read_json(study / "results.json") or {}
    cells = found.get("cells") if isinstance(found, dict) else None
    return {str(run["run"]) for cell in cells or [] for run in cell.get("runs") or [] if run.get("run")}


def _study_state(path: Path) -> str:
    if not (path / "results.json").is_file():
        return "unfinished"
    failed = (read_json(path / "results.json") or {}).get("failed") or []
    return f"finished, {len(failed)} failed" if failed else "finished"


# -- who refers to what ------------------------------------------------------------------------------------------------------------


def _nodes(out: Path, records: Mapping[str, Any], studies: Mapping[str, Path], notes: list[str]) -> list[Item]:
    """A node is referred to by the experiments that went through it, and by the nodes that follow it."""
    there = {path.name: path for path in _folders(out / "nodes")}
    users: dict[str, set[str]] = {name: set() for name in there}
    for experiment, record in records.items():
        for name in _with_past(_named(record.get("nodes") or [], there), there):
            users[name].add(experiment)
    open_studies = [name for name, path in studies.items() if not (path / "results.json").is_file()]
    open_studies += [f"the sweep {path.name}" for path in _folders(out / "sweeps") if not any(path.glob("best*.toml"))]
    if open_studies:
        notes.append(f"{', '.join(open_studies)} {'is' if len(open_studies) == 1 else 'are'} unfinished: all nodes are kept, since shared prefixes belong "
                     "to no experiment yet")
    keep = f"{open_studies[0]} is unfinished" if open_studies else ""
    return [Item("nodes", name, size(path), _node_state(path), tuple(sorted(users[name])), keep or ("in work" if _locked(path) else ""))
            for name, path in there.items()]


def _named(entries: Iterable[Any], there: Mapping[str, Any]) -> set[str]:
    """Folders that a record's entries name, under whatever key."""
    return {str(value) for entry in entries if isinstance(entry, Mapping) for value in entry.values() if isinstance(value, str) and value in there}


def _with_past(names: set[str], there: Mapping[str, Path]) -> set[str]:
    """With the nodes before them, also those whose state was taken over."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name in found or name not in there:
            continue
        found.add(name)
        key = read_json(there[name] / "key.json") or {}
        adopted = key.get("adopted") if isinstance(key.get("adopted"), Mapping) else {}
        waiting += [str(past) for past in (key.get("before"), key.get("parent"), adopted.get("from")) if past]
    return found


def _node_state(path: Path) -> str:
    epochs = (read_json(path / "key.json") or {}).get("epochs")
    span = f"epochs {epochs[0]}-{epochs[1]}" if isinstance(epochs, list) and len(epochs) == 2 else ""
    return ", ".join(filter(None, (span, "" if (path / "done").exists() else "unfinished")))


def _locked(path: Path) -> bool:
    held = read_json(path / "lock")
    return isinstance(held, dict) and time.time() - float(held.get("heartbeat") or 0) < YOUNG


def _evaluations(out: Path, records: Mapping[str, Any], experiments: Mapping[str, Path], studies: Mapping[str, Path], notes: list[str]) -> list[Item]:
    """An experiment's record names the evaluations of its weights; where one does not, none can be told to be free."""
    users: dict[str, set[str]] = {}
    for name, record in records.items():
        for subject in record.get("evaluated") or []:
            users.setdefault(str(subject), set()).add(name)
    for path in _folders(out / "evaluated"):                       # what `composer evaluate` was asked for
        users.setdefault(str((read_json(path / "result.json") or {}).get("subject")), set()).add(f"evaluated/{path.name}")
    silent = [name for name, record in records.items() if (experiments[name] / "result.json").is_file() and not record.get("evaluated")]
    foreign = [name for name, path in studies.items() if _has_foreign(path)]
    keep = f"{silent[0]} does not say which are its own" if silent else f"{foreign[0]} may be of it" if foreign else ""
    found = [Item("evaluations", path.name, size(path), f"{len(list(path.glob('*/*.json')))} results", tuple(sorted(users.get(path.name, ()))), keep)
             for path in _folders(out / "evaluations")]
    if keep and any(not item.used_by for item in found):
        notes.append(f"evaluations without a known owner are kept: {keep}")
    return found


def _has_foreign(study: Path) -> bool:
    found = read_json(study / "results.json") or {}
    return any(cell.get("kind") == "external" and cell.get("runs") for cell in found.get("cells") or [])


def _leftovers(out: Path) -> list[Item]:
    """What a killed process left half written."""
    found = [path for pattern in LEFTOVERS for folder in (out, *(out / kind for kind in KINDS)) for path in folder.glob(pattern)]
    return [Item("leftovers", str(path.relative_to(out)), size(path), keep="young" if _age(path) < YOUNG else "") for path in sorted(found)]


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


# -- removal -----------------------------------------------------------------------------------------------------------------------


def removal(out: Path, store: Store) -> Store:
    """Take away what is free, each at one stroke: it is renamed first, so that a killed removal leaves no half of it under its name."""
    items, freed, notes = [], 0, list(store.notes)
    for item in store.items:
        gone = item.free and _take_away(out, item, notes)
        items.append(replace(item, removed=True) if gone else item)
        freed += item.bytes if gone else 0
    return replace(store, items=tuple(items), freed=freed, notes=tuple(notes))


def _take_away(out: Path, item: Item, notes: list[str]) -> bool:
    from composer.engine.lock import Lock

    path = out / item.name if item.kind == "leftovers" else out / item.kind / item.name
    aside = path.parent / f".gone-{os.getpid()}-{path.name}"
    try:
        if item.kind == "nodes":
            with Lock(path):
                os.replace(path, aside)
        else:
            os.replace(path, aside)
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    except (ComposerError, OSError) as error:
        notes.append(f"{item.kind} {item.name} stays: {str(error).splitlines()[0]}")
        return False
    return True


# -- files and text ----------------------------------------------------------------------------------------------------------------


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith(".")) if path.is_dir() else []


def size(path: Path) -> int:
    """Bytes of a file or of everything below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for each in (path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())):
        try:
            total += each.lstat().st_size if not each.is_dir() or each.is_symlink() else 0
        except OSError:
            continue
    return total


def amount(count: int) -> str:
    """`512 B`, `3.4 MB`: powers of ten."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def runs_text(store: Store, every: bool = False) -> str:
    """The list for a terminal: studies and experiments one by one, nodes and evaluations counted, unless `every` is asked for."""
    lines = []
    for kind in (*KINDS, "leftovers"):
        items = store.of(kind)
        if not items:
            continue
        lines.append(f"{kind}: {len(items)}, {amount(sum(i.bytes for i in items))}")
        wide = max(len(i.name) for i in items)
        for item in items if every or kind in ("studies", "experiments") else [i for i in items if i.free or i.removed]:
            lines.append(f"  {item.name:<{wide}}  {amount(item.bytes):>8}  {_words(item)}".rstrip())
    free = [i for i in store.items if i.free and not i.removed]
    gone = [i for i in store.items if i.removed]
    lines += [f"mlflow: {amount(store.other)}"] if store.other else []
    lines += [f"note: {note}" for note in store.notes]
    if gone:
        lines.append(f"removed {len(gone)}, {amount(store.freed)}")
    elif free:
        lines.append(f"nothing refers to {len(free)} of these, {amount(sum(i.bytes for i in free))}: --remove takes them away")
    else:
        lines.append("everything is referred to")
    return "\n".join(lines)


def _words(item: Item) -> str:
    used = [] if item.kind == "studies" else [f"of {', '.join(item.used_by[:2])}{' …' if len(item.used_by) > 2 else ''}"] if item.used_by else []
    free = ["removed"] if item.removed else ["nothing refers to it"] if item.free else []
    return ", ".join(filter(None, [item.state, *used, *free]))
