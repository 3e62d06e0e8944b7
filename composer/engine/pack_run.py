"""Several runs of one recipe as one pack, from the first lock to the last result: each has its own record, folders, tracking and evaluation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from composer import atomic
from composer.engine import backend, remarks
from composer.engine.judge import check_judging
from composer.engine.lock import Lock
from composer.engine.pack import Unpackable, why_not
from composer.engine.pack_net import PackedNet, Seats
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

SMALL = {"cpu": 25e6, "cuda": 2e9}        # floating-point operations of a batch's forward up to which a pack is taken to pay (CUDA's is an estimate)
Outcome = dict[str, Any] | Diverged


def width_of(settings: Settings) -> int:
    """Runs in the pack that these settings name; 1: alone."""
    return int(settings.pack.rpartition(" ")[2]) if settings.pack else 1


def seated(settings: Settings, seat: int, width: int) -> Settings:
    """The settings of the run in that place (from 0): packs run eagerly."""
    return replace(settings, pack=f"{seat + 1} of {width}", backend="eager")


def unfit(settings: Settings) -> str:
    """Why runs with these settings cannot be packed, as a sentence without its full stop; '' where they can."""
    if settings.backend not in ("auto", "eager"):
        return f"packs run eagerly, and --backend {settings.backend} was asked for"
    if settings.precision not in ("fp32", "tf32"):
        return f"packs run in float32, and --precision {settings.precision} was asked for"
    if settings.micro_batch != "whole" or settings.workers > 1:
        return "a pack's batches are whole and on one device"
    return ""


def refusal(sessions: Sequence[Session]) -> str:
    """Why these runs cannot be trained together, as a sentence without its full stop; '' where they can. Their networks are one afterwards."""
    first = sessions[0]
    sizes = {len(s.rows) for s in sessions}
    if len(sizes) > 1:
        return f"the runs have {min(sizes)} to {max(sizes)} training images, and their epochs would not have the same steps"
    for node in first.nodes:
        reason = why_not(node.plan, first.parts(node, {}))
        if reason:
            return reason
    try:
        PackedNet([s.net for s in sessions], tuple(first.dataset.shape))
    except Unpackable as error:
        return str(error)
    return ""


def too_large(session: Session) -> str:
    """Why packing does not pay here, as a sentence without its full stop; '' where it does: calls must cost more than what they compute.

    On a CPU a convolution is one call a run, packed or not, and the runs' maps push each other out of the cache: packed, small_cnn was never faster.
    """
    if session.device.type == "cpu" and session.net.channels_last:
        return "a pack of convolutional networks is no faster on a CPU"
    flops = backend.products(session.net, tuple(session.dataset.shape)) * session.recipe.train.batch_size
    limit = SMALL.get(session.device.type, SMALL["cuda"])
    if flops > limit:
        return f"a batch's forward takes {flops / 1e6:,.0f} million operations, and packing pays below {limit / 1e6:,.0f} million on this device"
    return ""


class Member(Runner):
    """One run of a pack."""

    def __init__(self, *args: Any, wish: Wish, **more: Any):
        super().__init__(*args, **more)
        self.wish = wish

    def open(self, session: Session) -> None:
        self.session = session
        check_judging(session)
        settle(session, self.record)

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

    def __init__(self, live: Live, seed: int, leads: Callable[[], bool], said: set[str]):
        self.live, self.seed, self.leads, self.said = live, seed, leads, said

    def say(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.live.say(f"seed {self.seed}: {text}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.live, name) if self.leads() else lambda *_, **__: None


def open_sessions(recipe: Any, seeds: Mapping[int, int], width: int, settings: Settings) -> dict[int, Session]:
    """Seat -> session, of these seeds by seat; the data set is loaded once, and lies on the device once."""
    found: dict[int, Session] = {}
    for seat, seed in seeds.items():
        held = next(iter(found.values()), None)
        found[seat] = session = Session(recipe, seed, seated(settings, seat, width), held.dataset if held else None)
        session.__dict__["held"] = held.__dict__["held"] if held else {}
    return found


def run_pack(recipe: Any, seeds: Sequence[int], *, settings: Settings, only: Sequence[int] | None = None,
             tags: Callable[[int], dict[str, str]] | None = None, observer: Observer | None = None) -> dict[int, Outcome]:
    """Train, evaluate and record the seeds of a pack; the result of each, or the error with which it diverged.

    seeds    all of the pack, in its order: a seed's place is part of what it computes
    only     those that are still to be run (default: all without a result)
    observer follows the first of them

    Errors: Unpackable before anything is written; Stopped after a signal, with every member saved; as those of a run.
    """
    records = {seed: Record(settings.out, recipe, seed, settings.variant) for seed in seeds}
    done: dict[int, Outcome] = {s: r.result for s, r in records.items() if r.result and not settings.fresh}
    todo = {seat: seed for seat, seed in enumerate(seeds) if seed not in done and (only is None or seed in only)}
    if not todo:
        return done
    wish, width = Wish(), len(seeds)
    with Signals(wish), contextlib.ExitStack() as locks:
        for seed in sorted(todo.values()):
            locks.enter_context(Lock(records[seed].folder))
        sessions = open_sessions(recipe, todo, width, settings)
        if reason := refusal(list(sessions.values())):
            raise Unpackable(reason)
        members = []
        for k, (seat, seed) in enumerate(todo.items()):
            own, told = tags(seed) if tags else {}, observer if k == 0 else None
            member = Member(recipe, seed, seated(settings, seat, width), records[seed], own, told, wish=wish)
            member.open(sessions[seat])
            records[seed].keep(pack={"seeds": list(seeds), "seat": seat})
            members.append(member)
        return done | _together(members, Seats(tuple(todo), width), settings)


def _together(members: list[Member], seats: Seats, settings: Settings) -> dict[int, Outcome]:
    """Training in lockstep, then one evaluation after the other."""
    found: dict[int, Outcome] = {}
    session, ended, said = members[0].session, set[int](), set[str]()
    title = f"{members[0].recipe.name} on {members[0].recipe.setting}, seeds {', '.join(str(m.seed) for m in members)} together"
    steps = session.feed(session.nodes[0].segment).steps
    try:
        with Live(session.nodes[-1].segment.last, steps, title, quiet=settings.quiet) as live:
            pack = PackWalk([], seats)
            for k, member in enumerate(members):
                member.begin(Voice(live, member.seed, lambda k=k: k == min((j for j in range(len(members)) if j not in pack.lost), default=0), said))
                pack.walks.append(member.walk)
            trainers = pack.train()
            for k, member in enumerate(members):
                if k in pack.lost:
                    found[member.seed] = pack.lost[k]
                    continue
                live.stage(f"seed {member.seed}")
                member.live = live
                found[member.seed] = member.end(trainers[k])
                ended.add(k)
    except BaseException as error:
        status = "KILLED" if getattr(error, "exit_code", 0) in (75, 130) or isinstance(error, KeyboardInterrupt) else "FAILED"
        _close(members, ended, status)
        raise
    _close(members, ended, "FAILED")
    return found


def _close(members: list[Member], ended: set[int], status: str) -> None:
    for k, member in enumerate(members):
        if k not in ended and hasattr(member, "tracker"):
            member.tracker.finish(status)


def train_pack_prefix(recipe: Any, seeds: Sequence[int], *, until: int, settings: Settings, guests: Sequence[Any] = (),
                      only: Sequence[int] | None = None, observer: Observer | None = None) -> dict[int, dict[str, Any] | Diverged]:
    """The first epochs of a recipe for the seeds of a pack, for every run that begins with them: by seed as `train_prefix` says it, or the error.

    Arguments and errors: as `composer.engine.prefix.train_prefix` and `run_pack`.
    """
    from composer.engine.prefix import prepare

    wish, said, todo = Wish(), set[str](), {seat: seed for seat, seed in enumerate(seeds) if only is None or seed in only}
    with Signals(wish):
        sessions = open_sessions(recipe, todo, len(seeds), settings)
        for session in sessions.values():
            check_judging(session)
            prepare(session, until, guests)
        if reason := refusal(list(sessions.values())):
            raise Unpackable(reason)
        first = next(iter(sessions.values()))
        title = f"epochs 1-{until} of {recipe.name} on {recipe.setting}, seeds {', '.join(map(str, todo.values()))} together"
        with Live(until, first.feed(first.nodes[0].segment).steps, title, quiet=settings.quiet) as live:
            pack = PackWalk([], Seats(tuple(todo), len(seeds)))
            for k, (seat, seed) in enumerate(todo.items()):
                voice: Any = Voice(live, seed, lambda k=k: k == 0, said)
                pack.walks.append(Walk(sessions[seat], voice, wish, observer if k == 0 else None))
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
