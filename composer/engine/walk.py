"""Training a run's nodes in order: what is finished is loaded, epochs that another run has trained are taken over, the rest is trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from composer import atomic
from composer.engine import checkpoint
from composer.engine.chain import Node, cut
from composer.engine.judge import Validator, judged_weights
from composer.engine.lock import Lock
from composer.engine.record import read_json
from composer.engine.session import Session
from composer.engine.train import Progress, Trainer
from composer.errors import ComposerError
from composer.report.live import Live


class Observer(Protocol):
    """Who follows a run: a launcher, a search."""

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """An epoch has ended; its record."""

    def stop(self) -> str:
        """A reason to stop at the next step, or ''."""


@dataclass
class Wish:
    """A reason to stop at the next step, or ''. Signals write it."""

    stop: str = ""


class Walk:
    """The way through the nodes of a session; the trainer's hooks."""

    def __init__(self, session: Session, live: Live, wish: Wish, observer: Observer | None = None):
        self.session, self.live, self.wish, self.observer = session, live, wish, observer
        session.backend.speak(live.say)
        self.recipe, self.settings = session.recipe, session.settings
        self.validator = Validator(session, live.progress)

    def train(self) -> Trainer:
        """To the end of the last node."""
        progress, parts, trainer = Progress(), {}, None
        if self.session.init_note:
            self.live.say(self.session.init_note)
        self.join()
        nodes = self.session.nodes
        start = max((k for k, node in enumerate(nodes) if (node.folder / "done").exists()), default=0)
        while start and not self._usable(nodes[start]):
            start -= 1
        for node in nodes[start:]:
            self.live.phase(", ".join(node.segment.phases), self.session.feed(node.segment).steps)
            parts = self.session.parts(node, parts)
            before, trainer = trainer, self.trainer(node, progress, parts)
            if before is not None:
                trainer.restore(self._end_of(before), meter=False, optimizer=not node.segment.fresh and trainer.recipe.optim.use == before.recipe.optim.use)
            if not self._loaded(trainer):
                with Lock(node.folder) as lock:
                    if not self._loaded(trainer):                     # another run may have finished it since
                        checkpoint.tidy(node.folder)
                        self._resume(trainer)
                        atomic.write_json(node.folder / "key.json", {**node.content, "before": before.node.folder.name if before else ""})
                        trainer.run(lock)
                        checkpoint.forget(node.folder, trainer.progress.best.get("file", ""))
                        atomic.write_text(node.folder / "done", node.key + "\n")
            progress = trainer.progress
        assert trainer is not None
        self.live.phase("")
        return trainer

    def trainer(self, node: Node, progress: Progress, parts: dict[str, Any]) -> Trainer:
        return Trainer(self.session, node, progress, parts, self.session.optimizer(node.segment, parts), self)

    # -- epochs of other runs ------------------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Cut the run after the longest stretch of its epochs that some run has finished, and go on from there."""
        nodes = self.session.nodes
        if self.settings.fresh or any(n.adopted for n in nodes):
            return
        held = finished(self.session.folder, self.session.mark)
        for k in range(len(nodes) - 1, -1, -1):
            node = nodes[k]
            first = node.segment.first
            own = (checkpoint.facts(node.folder / checkpoint.CURRENT).get("progress") or {}).get("epoch", 0)
            for epoch in range(node.segment.last, max(own, first - 1), -1):
                found = next((f for f in held.get(node.chain[epoch - first], ()) if self._has(f, node.pasts[epoch - first], epoch)), None)
                if found is None:
                    continue
                if epoch < node.segment.last:
                    nodes[k:k + 1] = cut(node, epoch, self.session.folder, self.session.mark)
                nodes[k].folder = found
                return
            if own:
                return

    def _has(self, folder: Path, pasts: dict[str, str], epoch: int) -> bool:
        """Its last state is that of the epoch, whole, with the passive parts that this run needs."""
        facts = checkpoint.facts(folder / checkpoint.CURRENT)
        ready = (facts.get("progress") or {}).get("judged") == epoch
        return ready and set(pasts.values()) <= set((facts.get("carries") or {}).values())

    def _usable(self, node: Node) -> bool:
        return (checkpoint.facts(node.folder / checkpoint.CURRENT).get("progress") or {}).get("judged") == node.segment.last

    # -- one node ------------------------------------------------------------------------------------------------------------------

    def _end_of(self, trainer: Trainer) -> checkpoint.Saved:
        saved, _ = checkpoint.newest(trainer.node.folder)
        assert saved is not None
        return renamed(saved, trainer.node)

    def _loaded(self, trainer: Trainer) -> bool:
        """A finished stretch: take its last state over. One whose last checkpoint is damaged is not finished."""
        node = trainer.node
        if not (node.folder / "done").exists() or not self._usable(node):
            return False
        try:
            saved = checkpoint.load(node.folder / checkpoint.CURRENT)
        except ComposerError:
            return False
        self._take(trainer, renamed(saved, node))
        return True

    def _resume(self, trainer: Trainer) -> None:
        """The newest checkpoint of an unfinished stretch, if there is one. Records beyond it are of steps that will be taken again."""
        saved, remark = checkpoint.newest(trainer.node.folder)
        if remark:
            self.live.say(remark)
        path = trainer.node.folder / "metrics.jsonl"
        judged = 0
        if saved is not None:
            self._take(trainer, renamed(saved, trainer.node))
            judged = trainer.progress.judged
        rows = atomic.read_lines(path)
        kept = [r for r in rows if r["epoch"] <= judged]
        if kept != rows:
            atomic.write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
        self.rewound(judged or trainer.node.segment.first - 1)

    def _take(self, trainer: Trainer, saved: checkpoint.Saved) -> None:
        trainer.progress = progress = Progress(**saved.facts["progress"])
        trainer.restore(saved)
        heirs = {n.heir_folder: n.folder.name for n in self.session.nodes if n.adopted}
        if progress.best:
            progress.best = {**progress.best, "node": heirs.get(progress.best["node"], progress.best["node"])}
        self.taken(trainer)
        self.live.resume(progress.epoch, progress.batch)
        if tell := getattr(self.observer, "resumed", None):
            tell(progress.epoch)

    # -- for whoever keeps a record ------------------------------------------------------------------------------------------------

    def rewound(self, epoch: int) -> None:
        """Training goes on after this epoch; what was told of later ones is void."""

    def taken(self, trainer: Trainer) -> None:
        """State was taken over: its epochs' records are this run's too."""

    def told(self, epoch: int, metrics: dict[str, float]) -> None:
        """An epoch's record."""

    def remark(self, text: str) -> None:
        """Something happened in training that the user should know."""
        self.live.say(text)

    # -- what the trainer tells ----------------------------------------------------------------------------------------------------

    def step_done(self, epoch: int, batch: int, steps: int) -> None:
        self.live.step(epoch, batch, self.recipe.train.batch_size)

    def stop_asked(self) -> str:
        if not self.wish.stop and self.settings.stop_file and Path(self.settings.stop_file).exists():
            self.wish.stop = "SIGTERM"                                # it stands for the signal where that does not reach
        return self.wish.stop or (self.observer.stop() if self.observer else "")

    def validate(self, trainer: Trainer, epoch: int) -> dict[str, float]:
        return self.validator(epoch, trainer.parts)

    def epoch_done(self, trainer: Trainer, epoch: int, metrics: dict[str, float]) -> None:
        """Keep the best model, write the epoch's line, tell whoever listens."""
        score = self.validator.score(epoch, metrics)
        best, node = trainer.progress.best, trainer.node
        if score is not None and (not best or score > best["score"]):
            name = f"best-{epoch}.safetensors"
            weights = judged_weights(self.session, trainer.parts, self.recipe.evaluate.weights, "evaluate.weights")
            checkpoint.save(node.folder / name, checkpoint.Saved(weights, {"epoch": epoch, "score": score}))
            trainer.progress.best = {"epoch": epoch, "score": score, "node": node.folder.name, "file": name}
            checkpoint.forget(node.folder, name)
        atomic.append_line(node.folder / "metrics.jsonl", {"epoch": epoch, "step": trainer.progress.step, **metrics})
        self.told(epoch, metrics)
        terms = {k.removeprefix("train/terms."): v for k, v in metrics.items() if k.startswith("train/terms.")}
        values = {k.removeprefix("val/"): v for k, v in metrics.items() if k.startswith("val/")}
        chosen = trainer.progress.best
        self.live.epoch(epoch, terms, values, f"epoch {chosen['epoch']}" if chosen else "", self.validator.errors(metrics))
        if self.observer:
            self.observer.epoch(epoch, metrics)


def finished(nodes: Path, mark: str = "") -> dict[str, list[Path]]:
    """Key -> folders of the store in which training up to it is done. With a mark: the folders of the run that shares nothing and has this mark."""
    found: dict[str, list[Path]] = {}
    for folder in sorted(nodes.iterdir()) if nodes.is_dir() else ():
        name, _, own = folder.name.partition("-")
        if own == mark and (folder / "done").exists():
            found.setdefault(name.partition("+")[0], []).append(folder)
    return found


def lineage(folder: Path) -> list[Path]:
    """The folders that lead to a node, the first stretch first."""
    found = [folder]
    while before := (read_json(found[0] / "key.json") or {}).get("before"):
        found.insert(0, folder.parent / before)
    return found


def renamed(saved: checkpoint.Saved, node: Node) -> checkpoint.Saved:
    """A state of this node with its passive parts under this run's names: another run may have trained them along."""
    there = {past: id for id, past in (saved.facts.get("carries") or {}).items()}
    changed = {id: there[past] for id, past in node.carries.items() if there.get(past, id) != id}
    if not changed:
        return saved
    tensors = {k: v for k, v in saved.tensors.items() if not any(k.startswith(f"parts/{id}/") for id in changed)}
    for id, other in changed.items():
        prefix = f"parts/{other}/"
        tensors.update({f"parts/{id}/{k.removeprefix(prefix)}": v for k, v in saved.tensors.items() if k.startswith(prefix)})
    return checkpoint.Saved(tensors, saved.facts)
