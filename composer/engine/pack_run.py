"""Several runs as one pack, from the first lock to the last result: each has its own record, folders, tracking and evaluation.

A pack is a list of runs, each a recipe and a seed: seeds of one recipe, or of several that are one up to numbers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from composer import atomic
from composer.engine import remarks
from composer.engine.judge import check_judging
from composer.engine.lock import Lock
from composer.engine.pack_fit import beside, open_sessions, refusal, seated, width_of
from composer.engine.pack_layers import Unpackable
from composer.engine.pack_net import Seats
from composer.engine.pack_walk import PackWalk
from composer.engine.record import Record
from composer.engine.run import Runner
from composer.engine.session import Session, Settings
from composer.engine.settle import settle
from composer.engine.signals import Signals
from composer.engine.train import Trainer
from composer.engine.walk import Observer, Walk, Wish
from composer.errors import Diverged
from composer.report.live import Live

Outcome = dict[str, Any] | Diverged
Runs = Sequence[tuple[Any, int]]          # recipe, seed


class Member(Runner):
    """One run of a pack, and what it is called there."""

    called = ""

    def __init__(self, *args: Any, wish: Wish, **more: Any):
        super().__init__(*args, **more)
        self.wish = wish

    def open(self, session: Session) -> None:
        self.session = session
        check_judging(session)
        settle(session, self.record)
        atomic.write_text(self.record.folder / "recipe.toml", self.recipe.filled())        # the others may go on without its study (`pack_tasks.outsider`)

    def begin(self, live: Any) -> None:
        from composer.track import make_tracker

        self.live = live
        self.tracker = make_tracker(self.settings.out, experiment=self.recipe.name, enabled=self.settings.track, folder=self.record.folder)
        self.walk = self._walk()
        self._start_tracking()
        for line in remarks.remarks(self.session):
            live.say(line)

    def end(self, trainer: Trainer) -> dict[str, Any]:
        result = self._evaluate(trainer, time.monotonic() - trainer.progress.seconds)      # what the others took is not its own
        self.tracker.finish("FINISHED")
        result = atomic.plain({**result, "mlflow_run_id": self.tracker.run_id, "packed": width_of(self.settings)})
        atomic.write_json(self.record.folder / "result.json", result)
        return result


class Voice:
    """What a member says of its progress, heard while it leads the pack; a remark is heard once, from whoever makes it first (`said`: by all)."""

    def __init__(self, live: Live, name: str, leads: Callable[[], bool], said: set[str]):
        self.live, self.name, self.leads, self.said = live, name, leads, said

    def say(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.live.say(f"{self.name}: {text}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.live, name) if self.leads() else lambda *_, **__: None


class Heard:
    """An observer, told by whoever leads the pack; anybody asks it whether to stop."""

    def __init__(self, observer: Observer, leads: Callable[[], bool]):
        self.observer, self.leads, self.stop = observer, leads, observer.stop

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        if self.leads():
            self.observer.epoch(epoch, metrics)

    def resumed(self, epoch: int) -> None:
        if self.leads() and (tell := getattr(self.observer, "resumed", None)):
            tell(epoch)


def run_pack(runs: Runs, *, settings: Settings, only: Sequence[int] | None = None, tags: Callable[[int], dict[str, str]] | None = None,
             observer: Observer | None = None, names: Sequence[str] = ()) -> dict[int, Outcome]:
    """Train, evaluate and record the runs of a pack; by place the result of each, or the error with which it diverged.

    runs     all of the pack, in its order: a run's place is part of what it computes
    only     places of those that are still to be run (default: all without a result)
    tags     by place
    observer follows the first of them that is not lost
    names    of the runs, in what is said (default: their seeds)

    Errors: Unpackable before anything is written; Stopped after a signal, with every member saved; as those of a run.
    """
    records = [Record(settings.out, recipe, seed, settings.variant) for recipe, seed in runs]
    done: dict[int, Outcome] = {seat: r.result for seat, r in enumerate(records) if r.result and not settings.fresh}
    todo = {seat: run for seat, run in enumerate(runs) if seat not in done and (only is None or seat in only)}
    if not todo:
        return done
    wish, width, names = Wish(), len(runs), names or [f"seed {seed}" for _, seed in runs]
    settings = replace(settings, beside=beside([recipe for recipe, _ in runs]))
    one = not settings.beside
    facts: dict[str, Any] = {"seeds": [seed for _, seed in runs]} if one else {"runs": [[r.name, seed] for r, (_, seed) in zip(records, runs)]}
    with Signals(wish), contextlib.ExitStack() as locks:
        for seat in sorted(todo, key=lambda seat: str(records[seat].folder)):
            locks.enter_context(Lock(records[seat].folder))
        sessions = open_sessions(todo, width, settings)
        if reason := refusal(list(sessions.values())):
            raise Unpackable(reason)
        absent = {} if one else open_sessions({seat: run for seat, run in enumerate(runs) if seat not in todo}, width, settings)
        pack = PackWalk(Seats(tuple(todo), width), absent)
        members = []
        for k, (seat, (recipe, seed)) in enumerate(todo.items()):
            own, told = tags(seat) if tags else {}, Heard(observer, partial(pack.leads, k)) if observer else None
            member = Member(recipe, seed, seated(settings, seat, width), records[seat], own, told, wish=wish)
            member.open(sessions[seat])
            member.called = names[seat]
            members.append(member)
        for seat in todo:                                    # a pack is said once all its members have been opened
            records[seat].keep(pack={**facts, "seat": seat})
        found = _together(members, pack, settings)
        return done | dict(zip(todo, found, strict=True))


def _together(members: list[Member], pack: PackWalk, settings: Settings) -> list[Outcome]:
    """Training in lockstep, then one evaluation after the other."""
    found: dict[int, Outcome] = {}
    session, ended, said = members[0].session, set[int](), set[str]()
    title = f"{members[0].recipe.name} on {members[0].recipe.setting}, {listed(m.called for m in members)} together"
    steps = session.feed(session.nodes[0].segment).steps
    try:
        with Live(session.nodes[-1].segment.last, steps, title, quiet=settings.quiet) as live:
            for k, member in enumerate(members):
                member.begin(Voice(live, member.called, partial(pack.leads, k), said))
                pack.walks.append(member.walk)
            trainers = pack.train()
            for k, member in enumerate(members):
                if k in pack.lost:
                    found[k] = pack.lost[k]
                    continue
                live.stage(member.called)
                member.live = live
                found[k] = member.end(trainers[k])
                ended.add(k)
    except BaseException as error:
        status = "KILLED" if getattr(error, "exit_code", 0) in (75, 130) or isinstance(error, KeyboardInterrupt) else "FAILED"
        _close(members, ended, status)
        raise
    _close(members, ended, "FAILED")
    return [found[k] for k in range(len(members))]


def listed(names: Iterable[str], most: int = 6) -> str:
    """ "seeds 0, 1, 2", or the first of other names and how many there are."""
    found = list(names)
    if all(name.startswith("seed ") for name in found):
        return "seeds " + ", ".join(name.removeprefix("seed ") for name in found)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def _close(members: list[Member], ended: set[int], status: str) -> None:
    for k, member in enumerate(members):
        if k not in ended and hasattr(member, "tracker"):
            member.tracker.finish(status)


def train_pack_prefix(recipe: Any, seeds: Sequence[int], *, until: int, settings: Settings, guests: Sequence[Any] = (),
                      only: Sequence[int] | None = None, observer: Observer | None = None) -> dict[int, dict[str, Any] | Diverged]:
    """The first epochs of a recipe for the seeds of a pack, for every run that begins with them: by seed as `train_prefix` says it, or the error.

    only    seeds that are still to be trained
    Arguments and errors: as `composer.engine.prefix.train_prefix` and `run_pack`.
    """
    from composer.engine.prefix import prepare

    wish, said, todo = Wish(), set[str](), {seat: seed for seat, seed in enumerate(seeds) if only is None or seed in only}
    with Signals(wish):
        sessions = open_sessions({seat: (recipe, seed) for seat, seed in todo.items()}, len(seeds), settings)
        for session in sessions.values():
            check_judging(session)
            prepare(session, until, guests)
        if reason := refusal(list(sessions.values())):
            raise Unpackable(reason)
        first = next(iter(sessions.values()))
        title = f"epochs 1-{until} of {recipe.name} on {recipe.setting}, seeds {', '.join(map(str, todo.values()))} together"
        with Live(until, first.feed(first.nodes[0].segment).steps, title, quiet=settings.quiet) as live:
            pack = PackWalk(Seats(tuple(todo), len(seeds)))
            for k, (seat, seed) in enumerate(todo.items()):
                leads = partial(pack.leads, k)
                voice: Any = Voice(live, f"seed {seed}", leads, said)
                pack.walks.append(Walk(sessions[seat], voice, wish, Heard(observer, leads) if observer else None))
            pack.train()
    found: dict[int, dict[str, Any] | Diverged] = {}
    for k, (seat, seed) in enumerate(todo.items()):
        node = sessions[seat].nodes[-1]
        found[seed] = pack.lost.get(k) or {"node": node.folder.name, "key": node.key, "epochs": until}
    return found


def marked(settings: Settings, nodes: Sequence[str], name: str) -> None:
    """A mark in the folders of nodes: runs part here."""
    for node in nodes:
        atomic.write_text(Path(settings.out) / "nodes" / node / name, "")
