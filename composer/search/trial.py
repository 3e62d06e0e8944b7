"""One trial: a run that reports every epoch, may be stopped at one, and is judged on held-out images alone.

It is engine.run.Runner with two changes: its way tells an observer of every epoch, also of those that were trained before, and at its end no
image of the test split is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from composer import atomic
from composer.engine import checkpoint
from composer.engine.judge import batch_of, evaluation_folder, judged_weights, plain_model
from composer.engine.lock import Held
from composer.engine.record import Record
from composer.engine.run import Recorded, Runner, writable
from composer.engine.session import Session, Settings
from composer.engine.train import Trainer
from composer.engine.walk import lineage
from composer.errors import ComposerError, Diverged, Stopped
from composer.recipe.recipe import Recipe
from composer.recipe.types import MeasureSpec
from composer.search.store import Store
from composer.search.store import read as read_json

Told = Callable[[int, dict[str, float]], str]      # (epoch, held-out accuracies) -> why the trial stops here, or ""
WAIT = 2.0                                         # seconds until a node that another trial is training is asked for again


@dataclass(frozen=True)
class Work:
    """What a trial needs to know beyond its recipe; all of it crosses to a worker.

    measures  judged on held-out images at the end, beyond what validation says
    until     stop after this epoch, judged there by `measures` too; 0: to the end
    """

    store: Store
    number: int
    seed: int
    settings: Settings
    measures: tuple[str, ...] = ()
    until: int = 0
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.store.trial(self.number)


class Halt(Stopped):
    """The trial stops after an epoch, with its state kept. `why`: "pruned", "rung", or what the observer says."""


def train(recipe: Recipe, values: dict[str, Any], work: Work, told: Told) -> str:
    """Train one trial and write down how it ended; returns that, "rung" for one that waits at a rung, or the observer's reason to stop.

    Errors: Stopped for a signal; what is wrong with the trial itself is its end, and no error.
    """
    began = time.monotonic()
    try:
        edited = recipe.edit(set=values, name=f"trial {work.number}") if values else recipe
    except ComposerError as error:
        work.store.end(work.number, "invalid", why=error.text())
        return "invalid"
    try:
        writable(work.settings.out)
        result = _patiently(lambda: TrialRunner(edited, work, told).run())
    except Halt as halt:
        return halt.why
    except Stopped:
        raise
    except Diverged as error:
        work.store.end(work.number, "diverged", why=error.text(), seconds=time.monotonic() - began)
        return "diverged"
    except Exception as error:  # noqa: BLE001  one trial's fault must not end the others
        why = error.text() if isinstance(error, ComposerError) else f"{type(error).__name__}: {error}"
        work.store.end(work.number, "failed", why=why, seconds=time.monotonic() - began)
        return "failed"
    work.store.end(work.number, "done", metrics=result["metrics"], selected_epoch=result["selected_epoch"], seconds=time.monotonic() - began,
                   mlflow_run_id=result["mlflow_run_id"])
    return "done"


def _patiently(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Trials that share epochs train them once: the others wait."""
    while True:
        try:
            return run()
        except Held:
            time.sleep(WAIT)


class TrialRecord(Record):
    """The trial's own folder in place of one among the experiments: `composer run` of the winner is another run, over the same nodes."""

    def __init__(self, work: Work, recipe: Recipe):
        super().__init__(work.settings.out, recipe, work.seed, work.settings.precision)
        self.name, self.folder = f"{work.store.name}-{work.number:03d}", work.folder
        self.facts = self._read("record.json") or {}
        self.result = None


class TrialRunner(Runner):
    """A run without a test."""

    def __init__(self, recipe: Recipe, work: Work, told: Told):
        tags = work.tags | {"cell": work.folder.name} if work.tags else {}       # the same Work goes to all workers but for the number
        super().__init__(recipe, work.seed, work.settings, TrialRecord(work, recipe), tags)
        self.work, self.observe = work, told
        self.rows = {int(row["epoch"]): row for row in atomic.read_lines(work.folder / "epochs.jsonl")}
        self.told: set[int] = set()

    def _tracked(self, began: float) -> dict[str, Any]:
        self.walk = TrialWalk(self)
        return super()._tracked(began)

    def tell(self, epoch: int, metrics: dict[str, float]) -> str:
        """Write the epoch's held-out accuracies down, once, and ask whether to go on."""
        if epoch in self.told:
            return ""
        self.told.add(epoch)
        row = {"epoch": epoch, **held_out(metrics)}
        if self.rows.get(epoch) != row:
            atomic.append_line(self.work.folder / "epochs.jsonl", row)
            self.rows[epoch] = row
        return self.observe(epoch, {k: v for k, v in row.items() if k != "epoch"})

    def _evaluate(self, trainer: Trainer, began: float) -> dict[str, Any]:
        best = trainer.progress.best if self.recipe.select.report != "last" else {}
        epoch = best["epoch"] if best else trainer.progress.epoch
        if best:
            weights = checkpoint.load(self.settings.out / "nodes" / best["node"] / best["file"]).tensors
        else:
            weights = judged_weights(self.session, trainer.parts, self.recipe.evaluate.weights, "evaluate.weights")
        metrics = {k: v for k, v in self.rows.get(epoch, {}).items() if k != "epoch"} | self.measure(weights)
        self.tracker.metrics({f"held-out/{name}": value for name, value in metrics.items()}, trainer.progress.epoch)
        return {"metrics": metrics, "selected_epoch": epoch, "epochs": trainer.progress.epoch, "seconds": round(time.monotonic() - began, 2)}

    def measure(self, weights: dict[str, Any]) -> dict[str, float]:
        """The further measures on held-out images."""
        return measured(self.session, weights, self.work.measures, self._judging)


def measured(session: Session, weights: dict[str, Any], names: Sequence[str], progress: Any = None) -> dict[str, float]:
    """Accuracies of weights on the held-out images, by measures of these names; {} for no names. Kept with the weights, so a second call is quick."""
    specs = measures_of(session.recipe, names)
    if not specs:
        return {}
    from composer.evaluate.protocol import evaluate

    recipe, (x, y) = session.recipe, session.images("val")
    n = min(recipe.select.n or len(y), len(y))
    folder, subject = evaluation_folder(session, weights)
    found = evaluate(plain_model(session, weights), x[:n].to(session.device), y[:n].to(session.device), specs, threat=recipe.threat, seed=session.seed,
                     store=folder, batch_size=batch_of(session), progress=progress, subject_digest=subject)
    return dict(found.metrics)


class TrialWalk(Recorded):
    """The trial's way: every epoch is told, in order, whoever trained it."""

    def __init__(self, runner: TrialRunner):
        super().__init__(runner)
        self.trial = runner

    def taken(self, trainer: Trainer) -> None:
        super().taken(trainer)
        rows = [row for folder in lineage(trainer.node.folder) for row in atomic.read_lines(folder / "metrics.jsonl")]
        for row in rows:
            if row["epoch"] <= trainer.progress.judged and (why := self.trial.tell(row["epoch"], row)):
                raise halt(why, row["epoch"])

    def epoch_done(self, trainer: Trainer, epoch: int, metrics: dict[str, float]) -> None:
        super().epoch_done(trainer, epoch, metrics)
        why = self.trial.tell(epoch, metrics)
        if epoch == self.trial.work.until and epoch < self.session.nodes[-1].segment.last:
            why = why or "rung"
            self._at_rung(trainer, epoch)
        if why and epoch < self.session.nodes[-1].segment.last:
            trainer.meter.reset()                     # the next epoch begins here
            trainer.save()
            raise halt(why, epoch)

    def _at_rung(self, trainer: Trainer, epoch: int) -> None:
        """Those that go on are chosen by the model as it is now."""
        file = self.trial.work.folder / f"rung-{epoch}.json"
        if not file.exists():
            weights = judged_weights(self.session, trainer.parts, self.recipe.evaluate.weights, "evaluate.weights")
            row = {k: v for k, v in self.trial.rows[epoch].items() if k != "epoch"}
            found = row | self.trial.measure(weights)
            atomic.write_json(file, found)
            self.trial.tracker.metrics({f"held-out/{name}": value for name, value in found.items()}, epoch)


def set_threads(threads: int) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def halt(why: str, epoch: int) -> Halt:
    return Halt(f"stopped after epoch {epoch}", why=why)


def held_out(metrics: dict[str, Any]) -> dict[str, float]:
    """What an epoch's record says of held-out images, by the names of the measures. Traces on the test split are no part of it."""
    return {k.removeprefix("val/"): v for k, v in metrics.items() if k.startswith("val/") and v is not None}


def validated(recipe: Recipe) -> tuple[str, ...]:
    """Measures that every epoch's validation gives: clean accuracy, and that under the attack of [select]. Errors: ComposerError where there are none."""
    select = recipe.select
    if select.held_out < 1 or select.attack is None:
        raise ComposerError(f"{recipe.name} on {recipe.setting} has no held-out split to search by", where=recipe.where("select"),
                            why="a search that looked at test images would choose by them",
                            fix='[select] held_out = 1000, attack = { use = "pgd", steps = 10 }')
    return ("clean", select.attack.name)


def measures_of(recipe: Recipe, names: Sequence[str]) -> tuple[MeasureSpec, ...]:
    """The measures of these names: the protocol's, else the registered ones with the threat's values. Errors: ComposerError for unknown names."""
    from composer.errors import suggest
    from composer.registry import REGISTRY

    known = {m.name: m for m in recipe.evaluate.measures}
    registered = {n.replace("_", "-"): n for n in REGISTRY.names("measure") if not REGISTRY.get("measure", n).flags.get("unit")}
    found = []
    for name in names:
        if name not in known and name not in registered:
            raise ComposerError(f"there is no measure '{name}'", where="--select", fix=suggest(name, {*known, *registered}, "measures"))
        found.append(known.get(name) or MeasureSpec(name, registered[name], {}))
    return tuple(found)


def rung(work: Work, epoch: int) -> dict[str, float] | None:
    return read_json(work.folder / f"rung-{epoch}.json")
