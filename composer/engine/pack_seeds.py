"""`composer run --seeds`: several seeds of one recipe, in packs where that is asked for and possible, else one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from composer.engine.pack_fit import open_sessions, refusal, too_large, unfit
from composer.engine.pack_layers import Unpackable
from composer.engine.pack_run import run_pack
from composer.engine.record import Record, read_json
from composer.engine.run import run, writable
from composer.engine.session import Settings
from composer.errors import ComposerError, Diverged

MOST = 16                     # members of a pack where nothing else is said; the bench measures so many


@dataclass(frozen=True)
class Packing:
    """What `--pack` asks for: `most` members a pack (0: none are made); `auto` packs where it can and pays, a number where it can or fails."""

    most: int
    auto: bool

    @classmethod
    def parse(cls, text: str) -> Packing:
        """"auto", "off" or a number. Errors: ComposerError for anything else."""
        if text in ("auto", "off"):
            return cls(MOST if text == "auto" else 0, text == "auto")
        if not text.isdigit() or int(text) < 2:
            raise ComposerError(f"--pack {text}", where="command line", fix="auto, off, or a number of runs of at least 2")
        return cls(int(text), False)


def packs_of(seeds: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """The seeds in groups of at most so many, of nearly equal size."""
    if most < 2 or not seeds:
        return [(seed,) for seed in seeds]
    count = -(-len(seeds) // most)
    small, more = divmod(len(seeds), count)
    ends = [k * small + min(k, more) for k in range(count + 1)]
    return [tuple(seeds[a:b]) for a, b in pairwise(ends)]


@dataclass
class Groups:
    """Seeds by what becomes of them.

    begun   packs that go on as they were begun
    new     packs that are still to be made, or not
    alone   seeds that were begun alone or need no training
    """

    begun: list[tuple[int, ...]]
    new: list[tuple[int, ...]]
    alone: list[int]
    note: str = ""

    def all(self) -> list[tuple[int, ...]]:
        return [*self.begun, *self.new, *((seed,) for seed in self.alone)]


def grouped(recipe: Any, seeds: Sequence[int], packing: Packing, settings: Settings) -> Groups:
    """The seeds by what the store knows of them; `--fresh` forgets it."""
    if settings.fresh:
        return Groups([], packs_of(seeds, packing.most), [])
    held, started, free, done = [], [], [], []
    for seed in seeds:
        record = Record(settings.out, recipe, seed, settings.variant)
        pack, begun = begun_as(record, settings)
        if "runs" in pack and not record.result:
            raise ComposerError(f"seed {seed} of {recipe.name} was begun in a pack with runs of other recipes", where=str(record.folder),
                                why=f"beside {', '.join(name for name, _ in pack['runs'][:3] if name != record.name)}, …",
                                fix="go on with the study that began it, or --fresh")
        if "seeds" in pack:
            held.append(tuple(pack["seeds"]))
        else:
            (done if record.result else started if begun else free).append(seed)
    begun = list(dict.fromkeys(held))
    free = [seed for seed in free if not any(seed in pack for pack in begun)]       # its pack was killed before it had begun itself
    note = f"seed {', '.join(map(str, started))} was begun alone and goes on alone" if started and packing.most else ""
    return Groups(begun, packs_of(free, packing.most), [*started, *done], note)


def begun_as(record: Record, settings: Settings) -> tuple[dict[str, Any], bool]:
    """The pack in which a run was begun, as its record says it ({}: in none), and whether it was begun at all.

    Begun again alone, it is in none; nor is one of which nothing was trained. The curves of a finished run tell of training whose state is lost.
    """
    files = [settings.out / "nodes" / node["folder"] / "key.json" for node in record.facts.get("nodes", ())]
    machines = [key["machine"] for file in files if (key := read_json(file))]
    begun = bool(machines or record.result)
    alone = "packed" not in record.result if record.result else bool(machines) and not any("packed" in m for m in machines)
    trained = begun or (record.folder / "metrics.jsonl").exists()
    return record.facts.get("pack") or {} if trained and not alone else {}, begun


def why_alone(recipe: Any, packs: Sequence[tuple[int, ...]], packing: Packing, settings: Settings) -> str:
    """Why no packs are made of these runs, or ''. Errors: ComposerError where a number of members was asked for and cannot be had."""
    pack = next((p for p in packs if len(p) > 1), ())
    if not pack:
        return ""
    reason = unfit(settings)
    if not reason:
        sessions = list(open_sessions({seat: (recipe, seed) for seat, seed in enumerate(pack[:2])}, len(pack), settings).values())
        reason = (too_large(sessions[0]) if packing.auto else "") or refusal(sessions)
    if reason and not packing.auto:
        raise ComposerError(f"--pack {packing.most}: {recipe.name} cannot be packed", where="command line", why=reason, fix="--pack off, or auto")
    return reason


def run_seeds(recipe: Any, seeds: Sequence[int], *, pack: str = "off", settings: Settings | None = None,
              say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Train, evaluate and record every seed: {"runs": results in the order of the seeds, "failed", "packs", "note"}.

    Runs are packed as `pack` says, else trained one after the other. One that diverges does not stop the others.
    Errors: ComposerError; Stopped after a signal.
    """
    settings, packing = settings or Settings(), Packing.parse(pack)
    writable(settings.out)
    seeds = list(dict.fromkeys(seeds))
    groups = grouped(recipe, seeds, packing, settings)
    if reason := why_alone(recipe, groups.new, packing, settings):
        groups.new = [(seed,) for each in groups.new for seed in each]
        groups.note = "; ".join(filter(None, (f"the runs are not packed: {reason}", groups.note)))
    if groups.note:
        say(groups.note)
    found: dict[int, Any] = {}
    for each in groups.all():
        found |= _one(recipe, each, [s for s in each if s in seeds and (len(each) == 1 or s not in groups.alone)], settings)
    failed = [{"seed": s, "why": str(found[s])} for s in seeds if isinstance(found[s], Diverged)]
    return {"recipe": recipe.name, "setting": recipe.setting, "seeds": seeds, "runs": [found[s] for s in seeds if not isinstance(found[s], Diverged)],
            "failed": failed, "packs": [list(p) for p in groups.all() if len(p) > 1], "note": groups.note}


def _one(recipe: Any, pack: tuple[int, ...], asked: list[int], settings: Settings) -> dict[int, Any]:
    if len(pack) > 1:
        try:
            found = run_pack([(recipe, seed) for seed in pack], settings=settings, only=[k for k, seed in enumerate(pack) if seed in asked])
            return {pack[seat]: outcome for seat, outcome in found.items()}
        except Unpackable as error:
            raise ComposerError(f"seeds {', '.join(map(str, pack))} of {recipe.name} cannot be packed", why=str(error), fix="--pack off") from None
    try:
        return {pack[0]: run(recipe, seed=pack[0], settings=settings)}
    except Diverged as error:
        return {pack[0]: error}
