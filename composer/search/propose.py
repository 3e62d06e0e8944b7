"""What a sweep tries next. A source hands out trials, is told of their epochs and ends, and lives in the driver; it knows no Ray cluster."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

from composer.search.options import SweepOptions
from composer.search.space import Space, decode, distributions, encode
from composer.search.store import Store, Trial

OUT_OF_TIME = "time"


@dataclass(frozen=True)
class Job:
    """A trial to be trained now."""

    number: int
    values: dict[str, Any]


class Source(Protocol):
    """Where trials come from."""

    def next(self) -> Job | None:
        """The next trial, or None: there is no further one."""

    def seen(self, number: int, epoch: int, metrics: dict[str, float]) -> str:
        """An epoch of a trial; why it stops here ("pruned", "time"), or ""."""

    def ended(self, number: int) -> None:
        """The trial has ended, or was left; its folder says how."""


class Points:
    """Given points in their order: a grid. Points that have ended are passed over, those that crashed are tried again."""

    def __init__(self, store: Store, points: Sequence[dict[str, Any]], *, ended: tuple[str, ...] = ("done", "diverged", "invalid"), deadline: float = 0.0):
        self.store, self.deadline = store, deadline
        for number in range(store.count(), len(points)):
            store.propose(number, points[number])
        self.jobs = [Job(n, dict(points[n])) for n in range(len(points)) if store.read(n).status not in ended]

    def next(self) -> Job | None:
        return self.jobs.pop(0) if self.jobs and not over(self.deadline) else None

    def seen(self, number: int, epoch: int, metrics: dict[str, float]) -> str:
        return OUT_OF_TIME if over(self.deadline) else ""

    def ended(self, number: int) -> None: ...


def over(deadline: float) -> bool:
    return bool(deadline) and time.time() > deadline


@dataclass
class Rungs:
    """ASHA (Li et al., MLSys 2020) as Ray has it: at each rung a trial goes on that is among the best 1/eta of those that came there before.

    at  epochs of the rungs; () stops nobody
    """

    at: tuple[int, ...]
    eta: float
    measure: str
    _held: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.at:
            from ray.tune.schedulers import ASHAScheduler

            self.asha = ASHAScheduler(time_attr="epoch", metric="score", mode="max", grace_period=self.at[0], reduction_factor=self.eta,
                                      max_t=self.at[-1] * (1 + self.eta) / 2, stop_last_trials=False)

    def stops(self, number: int, epoch: int, metrics: dict[str, float]) -> bool:
        if not self.at or self.measure not in metrics:
            return False
        trial = SimpleNamespace(trial_id=str(number))
        if number not in self._held:
            self._held.add(number)
            self.asha.on_trial_add(None, trial)
        return self.asha.on_trial_result(None, trial, {"epoch": epoch, "score": metrics[self.measure]}) == "STOP"


def rungs(epochs: int, grace: int, eta: float) -> tuple[int, ...]:
    """grace, grace·eta, grace·eta², … below the run's end; grace 0 is a quarter of the run, in which no trial is stopped."""
    at = float(grace or max(1, -(-epochs // 4)))
    found = []
    while at < epochs:
        found.append(int(at))
        at *= eta
    return tuple(found)


class Drawn:
    """Optuna's draws (TPE, seeded), told of what earlier sittings found. Unfinished trials come first, in their order.

    Draws of a later sitting come from a seed of its own: the same one would give the same first draws again.
    """

    def __init__(self, store: Store, space: Space, options: SweepOptions, measure: str, stopper: Rungs, deadline: float = 0.0):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.store, self.space, self.measure, self.rungs, self.deadline = store, space, measure, stopper, deadline
        self.dists, self.total = distributions(space), options.trials
        held = store.trials()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                        # options of TPE that Optuna calls experimental
            sampler = optuna.samplers.TPESampler(seed=options.seed + 1009 * len(held), n_startup_trials=min(10, max(3, options.trials // 4)))
            self.study = optuna.create_study(direction="maximize", sampler=sampler, pruner=optuna.pruners.NopPruner())
        self.open: dict[int, Any] = {}
        self.count = len(held)
        for trial in held:
            self._learn(trial)
        self.waiting = [t.number for t in held if t.status in ("unfinished", "failed")][:max(0, options.trials)]

    def next(self) -> Job | None:
        if over(self.deadline) or not self.waiting and self.count >= self.total:
            return None
        if self.waiting:
            number = self.waiting.pop(0)
            self.study.enqueue_trial(encode(self.space, self.store.read(number).values))
        else:
            number, self.count = self.count, self.count + 1
        asked = self.study.ask(self.dists)
        values = decode(self.space, asked.params)
        self.store.propose(number, values)
        self.open[number] = asked
        return Job(number, values)

    def seen(self, number: int, epoch: int, metrics: dict[str, float]) -> str:
        if number in self.open and self.measure in metrics:
            self.open[number].report(metrics[self.measure], epoch)
        if over(self.deadline):
            return OUT_OF_TIME
        if self.rungs.stops(number, epoch, metrics):
            self.store.end(number, "pruned", why=f"below the best 1/{self.rungs.eta:g} at a rung, in epoch {epoch}")
            return "pruned"
        return ""

    def ended(self, number: int) -> None:
        import optuna

        asked = self.open.pop(number, None)
        if asked is None:
            return
        state, value = told(self.store.read(number), self.measure)
        if state == "PRUNED" and not self.study.trials[asked.number].intermediate_values:
            state, value = "FAIL", None
        self.study.tell(asked, None if state != "COMPLETE" else value, state=optuna.trial.TrialState[state])

    def _learn(self, trial: Trial) -> None:
        """An earlier sitting's trial, for the sampler and for the rungs."""
        import optuna

        for row in trial.curve:
            self.rungs.stops(trial.number, int(row["epoch"]), row)
        state, value = told(trial, self.measure)
        if state == "FAIL" or set(trial.values) != set(self.space):
            return
        curve = {int(row["epoch"]): row[self.measure] for row in trial.curve if self.measure in row}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState[state], params=encode(self.space, trial.values),
                                                           distributions=self.dists, value=value, intermediate_values=curve))


def told(trial: Trial, measure: str) -> tuple[str, float | None]:
    """(state, value) for Optuna. A method that diverges has accuracy 0: that is an outcome; a crash is none."""
    if trial.status == "diverged":
        return "COMPLETE", 0.0
    if trial.status == "done" and trial.score(measure) is not None:
        return "COMPLETE", trial.score(measure)
    if trial.status == "pruned" and trial.score(measure) is not None:
        return "PRUNED", trial.score(measure)
    return "FAIL", None
