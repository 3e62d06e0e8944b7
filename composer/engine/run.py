"""`composer run`: train what is missing, evaluate, track, and hand back one result. The same call again resumes, or shows the result."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from composer import atomic
from composer.engine import checkpoint
from composer.engine.judge import Validator, judge, judged_weights
from composer.engine.keys import first_difference
from composer.engine.lock import Lock
from composer.engine.record import Record, flat, read_json
from composer.engine.session import Node, Session, Settings
from composer.engine.signals import Signals
from composer.engine.train import Progress, Trainer, stopped
from composer.errors import ComposerError
from composer.plan.cost import plan_cost
from composer.plan.whole import title
from composer.report.live import Live
from composer.track import make_tracker


def run(recipe: Any, *, seed: int = 0, settings: Settings | None = None, tags: dict[str, str] | None = None) -> dict[str, Any]:
    """Train, evaluate and record one recipe with one seed; the result as design's JSON."""
    settings = settings or Settings()
    writable(settings.out)
    record = Record(settings.out, recipe, seed)
    if record.result and not settings.fresh:
        return record.result
    return Runner(recipe, seed, settings, record, tags or {}).run()


def writable(out: Path) -> None:
    """Before anything is computed: can results be kept?"""
    probe = out / f".probe-{os.getpid()}"
    atomic.write_text(probe, "")
    probe.unlink(missing_ok=True)


class Runner:
    """One run in the making."""

    def __init__(self, recipe: Any, seed: int, settings: Settings, record: Record, tags: dict[str, str]):
        self.recipe, self.seed, self.settings, self.record, self.tags = recipe, seed, settings, record, tags
        self.stop = ""
        self.live = Live(0, 1, quiet=True)

    def run(self) -> dict[str, Any]:
        began = time.monotonic()
        title = f"{self.recipe.name} on {self.recipe.setting}, seed {self.seed}"
        self.session = Session(self.recipe, self.seed, self.settings)
        self._same_bits()
        total = self.session.nodes[-1].segment.last
        steps = self.session.feed(self.session.nodes[0].segment).steps
        self.tracker = make_tracker(self.settings.out, experiment=self.recipe.name, enabled=self.settings.track, folder=self.record.folder)
        status = "FAILED"
        with Live(total, steps, title, quiet=self.settings.quiet) as self.live, Signals(self):
            try:
                self._start_tracking()
                trainer = self._train()
                result = self._evaluate(trainer, began)
                status = "FINISHED"
            except BaseException as error:
                status = "KILLED" if getattr(error, "exit_code", 0) == 75 or isinstance(error, KeyboardInterrupt) else "FAILED"
                raise
            finally:
                self.tracker.finish(status)
        if self.tracker.note and not self.settings.quiet:
            self.live.say(self.tracker.note)
        result["mlflow_run_id"] = self.tracker.run_id
        atomic.write_json(self.record.folder / "result.json", result)
        return result

    # -- identity ------------------------------------------------------------------------------------------------------------------

    def _same_bits(self) -> None:
        """Nodes of an earlier, unfinished sitting must be the ones of now, or the user decides."""
        nodes, old = self.session.nodes, self.record.facts.get("nodes", [])
        if self.settings.fresh:
            import shutil

            for node in nodes:
                shutil.rmtree(node.folder, ignore_errors=True)
            (self.record.folder / "result.json").unlink(missing_ok=True)
            old = []
        for node, before in zip(nodes, old):
            if before["key"] == node.key:
                continue
            folder = self.settings.out / "nodes" / before["key"]
            held = read_json(folder / "key.json")
            if held is None:
                break
            difference = first_difference(held, node.content)
            if not self.settings.adopt:
                raise ComposerError(f"an unfinished run of {self.record.name} is not the same any more", where=str(folder), why=difference,
                                    fix="--fresh trains it anew, --adopt goes on with it as it is and records that")
            node.adopted, node.key, node.folder = difference, before["key"], folder
        self.record.keep(recipe=self.recipe.name, setting=self.recipe.setting, seed=self.seed, experiment_id=self.recipe.experiment_id,
                         nodes=[{"key": n.key, "epochs": [n.segment.first, n.segment.last]} | ({"adopted": n.adopted} if n.adopted else {}) for n in nodes])

    # -- training ------------------------------------------------------------------------------------------------------------------

    def _train(self) -> Trainer:
        """Walk the nodes: finished ones are loaded, the first unfinished one resumes, the rest are trained."""
        self.validator = Validator(self.session, self.live.progress)
        progress, parts, trainer = Progress(), {}, None
        saved: checkpoint.Saved | None = None
        for node in self.session.nodes:
            self.live.phase(", ".join(node.segment.phases), self.session.feed(node.segment).steps)
            parts = self.session.parts(node, parts)
            trainer = Trainer(self.session, node, progress, parts, self._optimizer(node, trainer), self)
            if saved is not None:
                trainer.restore(saved, meter=False, optimizer=not node.segment.fresh)
            own, remark = checkpoint.newest(node.folder)
            if remark:
                self.live.say(remark)
            if own is not None:
                trainer.progress = progress = Progress(**own.facts["progress"])
                trainer.restore(own)
                self._rewind(node, progress)
                self.live.resume(progress.epoch, progress.batch)
            if not (node.folder / "done").exists():
                with Lock(node.folder) as lock:
                    if own is None:
                        atomic.write_json(node.folder / "key.json", node.content)
                    trainer.run(lock)
                    atomic.write_text(node.folder / "done", node.key + "\n")
            progress = trainer.progress
            saved = checkpoint.newest(node.folder)[0]
        assert trainer is not None
        self.live.phase("")
        return trainer

    def _optimizer(self, node: Node, before: Trainer | None) -> Any:
        """The optimiser goes on from stretch to stretch; its options may have been edited by a phase."""
        return self.session.optimizer(node.segment)

    def _rewind(self, node: Node, progress: Progress) -> None:
        """Records beyond the checkpoint are of steps that will be taken again."""
        path = node.folder / "metrics.jsonl"
        if path.exists():
            rows = [r for r in atomic.read_lines(path) if r["epoch"] <= progress.judged]
            atomic.write_text(path, "".join(json.dumps(r) + "\n" for r in rows))
        self.tracker.rewind(progress.judged)

    # -- what the trainer tells ----------------------------------------------------------------------------------------------------

    def step_done(self, epoch: int, batch: int, steps: int) -> None:
        self.live.step(epoch, batch, self.recipe.train.batch_size)

    def stop_asked(self) -> str:
        return self.stop

    def validate(self, trainer: Trainer, epoch: int) -> dict[str, float]:
        return self.validator(epoch, trainer.parts)

    def epoch_done(self, trainer: Trainer, epoch: int, metrics: dict[str, float]) -> None:
        """Keep the best model, write the epoch's line, tell the tracker and the screen."""
        score = self.validator.score(epoch, metrics)
        best = trainer.progress.best
        if score is not None and (not best or score > best["score"]):
            name = f"best-{epoch}.safetensors"
            weights = judged_weights(self.session, trainer.parts, self.recipe.evaluate.weights, "evaluate.weights")
            checkpoint.save(trainer.node.folder / name, checkpoint.Saved(weights, {"epoch": epoch, "score": score}))
            self._forget(best, trainer)
            trainer.progress.best = {"epoch": epoch, "score": score, "node": trainer.node.key, "file": name}
        atomic.append_line(trainer.node.folder / "metrics.jsonl", {"epoch": epoch, "step": trainer.progress.step, **metrics})
        self.tracker.metrics(metrics, epoch)
        terms = {k.removeprefix("train/terms."): v for k, v in metrics.items() if k.startswith("train/terms.")}
        values = {k.removeprefix("val/"): v for k, v in metrics.items() if k.startswith("val/")}
        chosen = trainer.progress.best
        self.live.epoch(epoch, terms, values, f"epoch {chosen['epoch']}" if chosen else "")

    def _forget(self, best: dict[str, Any], trainer: Trainer) -> None:
        """The former best may go, unless a checkpoint on disk still names it."""
        held, _ = checkpoint.newest(trainer.node.folder) if (trainer.node.folder / checkpoint.CURRENT).exists() else (None, "")
        named = (held.facts["progress"]["best"] or {}).get("file") if held else None
        if best and best["node"] == trainer.node.key and best["file"] != named:
            (trainer.node.folder / best["file"]).unlink(missing_ok=True)

    # -- the end -------------------------------------------------------------------------------------------------------------------

    def _evaluate(self, trainer: Trainer, began: float) -> dict[str, Any]:
        select = self.recipe.select
        last = judged_weights(self.session, trainer.parts, self.recipe.evaluate.weights, "evaluate.weights")
        weights = {"last": {k: v.clone() for k, v in last.items()}}
        best = trainer.progress.best
        if best and select.report != "last":
            weights["best"] = checkpoint.load(self.settings.out / "nodes" / best["node"] / best["file"]).tensors
        chosen = "best" if "best" in weights else "last"
        checkpoint.save(self.record.folder / "final.safetensors", checkpoint.Saved(weights[chosen], {"selected": chosen, "run": self.record.name}))
        judged = judge(self.session, weights[chosen], full=True, progress=self._judging)
        other = next((w for w in weights if w != chosen), None)
        second = None
        if other and select.report == "both":
            second = judge(self.session, weights[other], full=self.settings.full_other, progress=lambda n, d, t: self._judging(f"{other}/{n}", d, t))
        result = self._result(trainer, judged, second, chosen, checkpoint.weights_digest(weights[chosen]), time.monotonic() - began)
        self._track_result(result, judged)
        return result

    def _judging(self, name: str, done: int, total: int) -> None:
        self.live.progress(name, done, total)
        if self.stop:
            raise stopped(self.stop, f"while judging by {name}", "training is done and what was judged is kept")

    def _result(self, trainer: Trainer, judged: Any, second: Any, chosen: str, digest: str, seconds: float) -> dict[str, Any]:
        totals = {"forward": 0, "dgrad": 0, "wgrad": 0}
        for node in self.session.nodes:
            cost = plan_cost(node.plan)
            times = (node.segment.last - node.segment.first + 1) * self.session.feed(node.segment).steps
            for name in totals:
                totals[name] += getattr(cost, name) * times
        p = trainer.progress
        return {
            "run": self.record.name, "recipe": self.recipe.name, "setting": self.recipe.setting, "seed": self.seed,
            "experiment_id": self.recipe.experiment_id, "prefix_key": self.session.nodes[-1].key, "weights_sha256": digest, "epochs": p.epoch,
            "steps": p.step, "seconds": round(seconds, 2), "train_seconds": round(p.seconds, 2), "passes": totals,
            "protocol": self.recipe.evaluate.protocol, "n": judged.n, "selected": chosen, "selected_epoch": p.best["epoch"] if chosen == "best" else p.epoch,
            "metrics": judged.metrics, "metrics_other": second.metrics if second else {}, "trust": judged.trust, "out": str(self.settings.out),
            "mlflow_run_id": None,
        } | self._expect(judged)

    def _expect(self, judged: Any) -> dict[str, Any]:
        if not self.recipe.expect:
            return {}
        from composer.report.table import compare_expect

        return {"expect": compare_expect(self.recipe.expect, judged.metrics, judged.n)}

    # -- tracking ------------------------------------------------------------------------------------------------------------------

    def _start_tracking(self) -> None:
        from composer.plan.explain import explain

        params = {"recipe": self.recipe.name, "setting": self.recipe.setting, "seed": self.seed} | flat(self.recipe.tables)
        tags = {"experiment_id": self.recipe.experiment_id, "prefix_key": self.session.nodes[-1].key, **self.tags}
        self.tracker.start(self.record.name, params, tags)
        if self.tracker.note:
            self.live.say(self.tracker.note)
        filled, plan = self.recipe.filled(), "\n\n".join(explain(n.plan, title(n.segment)) for n in self.session.nodes)
        atomic.write_text(self.record.folder / "recipe.toml", filled)
        atomic.write_text(self.record.folder / "plan.txt", plan + "\n")
        self.tracker.text(filled, "recipe.toml")
        self.tracker.text(plan, "plan.txt")

    def _track_result(self, result: dict[str, Any], judged: Any) -> None:
        self.tracker.metrics({f"test/{k}": v for k, v in result["metrics"].items()}, result["epochs"])
        self.tracker.metrics({f"test-{'last' if result['selected'] == 'best' else 'best'}/{k}": v for k, v in result["metrics_other"].items()}, result["epochs"])
        self.tracker.text(json.dumps(result, indent=1, default=str), "result.json")
        self.tracker.artifact(self.record.folder / "final.safetensors", "checkpoint")
        for node in self.session.nodes:
            if (node.folder / "metrics.jsonl").exists():
                self.tracker.artifact(node.folder / "metrics.jsonl", f"curves/{node.segment.first}-{node.segment.last}")


__all__ = ["Record", "Runner", "Settings", "run"]
