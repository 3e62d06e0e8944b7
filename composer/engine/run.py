"""`composer run`: train what is missing, evaluate, track, and hand back one result. The same call again resumes, or shows the result."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from composer import atomic
from composer.engine import checkpoint, micro, remarks
from composer.engine.judge import check_judging, evaluation_folder, judge, judged_weights, selection
from composer.engine.lock import Lock
from composer.engine.record import Record, flat
from composer.engine.session import Session, Settings
from composer.engine.settle import settle
from composer.engine.signals import Signals
from composer.engine.train import Trainer, stopped
from composer.engine.walk import Observer, Walk, Wish, lineage
from composer.errors import ComposerError
from composer.plan.cost import epoch_forwards, plan_cost
from composer.plan.whole import title
from composer.report.figures import keep_run
from composer.report.live import Live
from composer.track import make_tracker


def run(recipe: Any, *, seed: int = 0, settings: Settings | None = None, tags: dict[str, str] | None = None,
        observer: Observer | None = None) -> dict[str, Any]:
    """Train, evaluate and record one recipe with one seed; the result as design's JSON. `observer` follows it, and may stop it."""
    settings = settings or Settings()
    writable(settings.out)
    record = Record(settings.out, recipe, seed, settings.variant)
    if record.result and not settings.fresh:
        return record.result
    if settings.address and settings.workers < 2:
        raise ComposerError(f"--address {settings.address} with one worker", where="command line", fix="--workers 2 or more; one worker runs here, without Ray")
    if settings.workers > 1:
        from composer.engine.fleet import run_fleet

        if observer is not None:
            raise ComposerError(f"--workers {settings.workers} within a grid or a search", where="--workers", fix="leave it out: cells already run side by side")
        return run_fleet(recipe, seed=seed, settings=settings, tags=tags or {})
    return Runner(recipe, seed, settings, record, tags or {}, observer).run()


def writable(out: Path) -> None:
    """Before anything is computed: can results be kept?"""
    probe = out / f".probe-{os.getpid()}"
    try:
        atomic.write_text(probe, "")
    except ComposerError as error:
        raise ComposerError(error.what.replace(str(probe.resolve()), str(out)), where=f"--out {out}", fix=error.fix) from None
    probe.unlink(missing_ok=True)


class Runner:
    """One run in the making."""

    def __init__(self, recipe: Any, seed: int, settings: Settings, record: Record, tags: dict[str, str], observer: Observer | None = None):
        self.recipe, self.seed, self.settings, self.record, self.tags, self.observer = recipe, seed, settings, record, tags, observer
        self.wish = Wish()
        self.live, self.display = Live(0, 1, quiet=True), Live

    def run(self) -> dict[str, Any]:
        """Everything under one lock: two processes with one command would write one record."""
        began = time.monotonic()
        title = f"{self.recipe.name} on {self.recipe.setting}, seed {self.seed}"
        with Signals(self.wish), Lock(self.record.folder):
            self.session = self._session()
            check_judging(self.session)
            micro.check(self.settings.micro_batch, [node.plan for node in self.session.nodes])
            settle(self.session, self.record)
            steps = self.session.feed(self.session.nodes[0].segment).steps
            self.tracker = make_tracker(self.settings.out, experiment=self.recipe.name, enabled=self.settings.track, folder=self.record.folder)
            with self.display(self.session.nodes[-1].segment.last, steps, title, quiet=self.settings.quiet) as self.live:
                self.walk = self._walk()
                result = self._tracked(began)
            result["mlflow_run_id"] = self.tracker.run_id
            result = atomic.plain(result)
            atomic.write_json(self.record.folder / "result.json", result)
        return result

    def _session(self) -> Session:
        return Session(self.recipe, self.seed, self.settings)

    def _walk(self) -> Recorded:
        return Recorded(self)

    def _tracked(self, began: float) -> dict[str, Any]:
        status, said = "FAILED", ""
        try:
            said = self._start_tracking()
            for line in remarks.remarks(self.session):
                self.live.say(line)
            result = self._evaluate(self.walk.train(), began)
            status = "FINISHED"
            return result
        except BaseException as error:
            status = "KILLED" if getattr(error, "exit_code", 0) in (75, 130) or isinstance(error, KeyboardInterrupt) else "FAILED"
            raise
        finally:
            self.tracker.finish(status)
            if self.tracker.note != said:
                self.live.say(self.tracker.note)

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
        self.record.keep(evaluated=sorted({evaluation_folder(self.session, each)[1] for each in weights.values()}))
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
        if reason := self.walk.stop_asked():
            raise stopped(reason, f"while judging by {name}", "training is done and what was judged is kept")

    def _result(self, trainer: Trainer, judged: Any, second: Any, chosen: str, digest: str, seconds: float) -> dict[str, Any]:
        totals = {"forward": 0, "dgrad": 0, "wgrad": 0}
        for node in self.session.nodes:
            cost = plan_cost(node.plan).at(self.session.dataset.classes)
            epochs, steps = range(node.segment.first, node.segment.last + 1), self.session.feed(node.segment).steps
            for name in totals:
                totals[name] += getattr(cost, name) * len(epochs) * steps
            totals["forward"] += sum(sum(epoch_forwards(node.plan, epoch=e, batches=steps).values()) for e in epochs)
        p = trainer.progress
        return {
            "run": self.record.name, "recipe": self.recipe.name, "setting": self.recipe.setting, "seed": self.seed,
            "experiment_id": self.recipe.experiment_id, "prefix_key": self.session.nodes[-1].key, "weights_sha256": digest, "epochs": p.epoch,
            "steps": p.step, "seconds": round(seconds, 2), "train_seconds": round(p.seconds, 2), "passes": totals,
            "protocol": self.recipe.evaluate.protocol, "classes": self.session.dataset.classes, "n": judged.n,
            "selected": chosen, "selected_epoch": p.best["epoch"] if chosen == "best" else p.epoch,
            "metrics": judged.metrics, "metrics_other": second.metrics if second else {}, "trust": judged.trust, "out": str(self.settings.out),
            "mlflow_run_id": None,
        } | ({"trust_other": second.trust} if second and not second.trust["ok"] else {}) | ({"units": judged.units} if judged.units else {}) \
            | self._expect(judged) | self._adoptions() | remarks.facts(self.session, p) | selection(self.recipe, p.best)

    def _expect(self, judged: Any) -> dict[str, Any]:
        if not self.recipe.expect:
            return {}
        from composer.report.table import compare_expect

        return {"expect": compare_expect(self.recipe.expect, judged.metrics, judged.n, judged.units)}

    def _adoptions(self) -> dict[str, Any]:
        found = [f"epochs {n.segment.first}-{n.segment.last}: {n.adopted}" for n in self.session.nodes if n.adopted]
        return {"adopted": found} if found else {}

    # -- tracking ------------------------------------------------------------------------------------------------------------------

    def _start_tracking(self) -> str:
        """Returns what the tracker had to say, which was then said."""
        from composer.plan.explain import explain

        params = {"recipe": self.recipe.name, "setting": self.recipe.setting, "seed": self.seed} | flat(self.recipe.tables)
        nodes = [node.key for node in self.session.nodes]
        tags = {"experiment_id": self.recipe.experiment_id, "prefix_key": nodes[-1], "nodes": " ".join(nodes), **remarks.tags(self.session), **self.tags}
        self.tracker.start(self.record.name, params, tags)
        if self.tracker.note:
            self.live.say(self.tracker.note)
        filled, plan = self.recipe.filled(), "\n\n".join(explain(n.plan, title(n.segment)) for n in self.session.nodes)
        atomic.write_text(self.record.folder / "recipe.toml", filled)
        atomic.write_text(self.record.folder / "plan.txt", plan + "\n")
        self.tracker.text(filled, "recipe.toml")
        self.tracker.text(plan, "plan.txt")
        return self.tracker.note

    def _track_result(self, result: dict[str, Any], judged: Any) -> None:
        self.tracker.metrics({f"test/{k}": v for k, v in result["metrics"].items()}, result["epochs"])
        self.tracker.metrics({f"test-{'last' if result['selected'] == 'best' else 'best'}/{k}": v for k, v in result["metrics_other"].items()}, result["epochs"])
        self.tracker.metrics({"trust/ok": float(result["trust"].get("ok", True))}, result["epochs"])
        self.tracker.text(json.dumps(result, indent=1, default=str), "result.json")
        self.tracker.artifact(self.record.folder / "final.safetensors", "checkpoint")
        self._track_curves(result)
        for picture in keep_run(self.record.folder, judged, self.recipe.evaluate.measures, self.record.name):
            self.tracker.artifact(picture, "figures")

    def _track_curves(self, result: dict[str, Any]) -> None:
        """The epochs' records of all stretches in one file, and a picture of them."""
        from composer.report.plots import curves

        files = [folder / "metrics.jsonl" for folder in lineage(self.session.nodes[-1].folder)]
        rows = [row for file in files if file.exists() for row in atomic.read_lines(file)]
        atomic.write_text(self.record.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self.tracker.artifact(self.record.folder / "metrics.jsonl", "curves")
        try:
            picture = curves(rows, self.record.folder / "curves.png", self.record.name, result["selected_epoch"])
        except ImportError:
            picture = None                                            # no matplotlib: the numbers are there all the same
        if picture:
            self.tracker.artifact(picture, "curves")


class Recorded(Walk):
    """The way of a run that is tracked."""

    def __init__(self, runner: Runner):
        super().__init__(runner.session, runner.live, runner.wish, runner.observer)
        self.tracker, self.record = runner.tracker, runner.record

    def rewound(self, epoch: int) -> None:
        self.tracker.rewind(epoch)

    def told(self, epoch: int, metrics: dict[str, float]) -> None:
        self.tracker.metrics(metrics, epoch)

    def taken(self, trainer: Trainer) -> None:
        """Curves of epochs that another run trained are this run's too."""
        for folder in lineage(trainer.node.folder):
            tracked = self.record.facts.get("tracked", [])
            if folder.name in tracked:
                continue
            for row in atomic.read_lines(folder / "metrics.jsonl"):
                if row["epoch"] <= trainer.progress.judged:
                    self.tracker.metrics({k: v for k, v in row.items() if k not in ("epoch", "step") and v is not None}, row["epoch"])
            self.record.keep(tracked=[*tracked, folder.name])


__all__ = ["Record", "Runner", "Settings", "run"]
