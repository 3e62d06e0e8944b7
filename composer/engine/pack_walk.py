"""The way of several runs through their nodes: what is finished is loaded, the rest is trained in lockstep, every member into its own folders."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from composer import atomic
from composer.engine import checkpoint
from composer.engine.chain import Node
from composer.engine.lock import Lock
from composer.engine.pack import Absent, Lockstep
from composer.engine.pack_net import PackedNet, Seats
from composer.engine.session import Session
from composer.engine.train import Progress, Trainer
from composer.engine.walk import Walk, renamed
from composer.errors import ComposerError, Diverged

START = (0, 0)                # a place in the course of a run: steps done, epochs judged
Place = tuple[int, int]


class PackWalk:
    """`train()` takes every member to its end; who diverged is in `lost`, by place among the walks.

    walks   of the members, put there before `train`: each is told by `leads` whether it speaks for the pack
    seats   the slot of each, of the pack's width
    absent  by slot: sessions of runs of other recipes that are not trained here
    """

    def __init__(self, seats: Seats, absent: Mapping[int, Session] | None = None):
        self.seats, self.absent = seats, dict(absent or {})
        self.walks: list[Walk] = []
        self.lost: dict[int, Diverged] = {}
        self.trainers: dict[int, Trainer] = {}
        self._parts: dict[int, dict[str, Any]] = {}
        self._now: tuple[list[int], Mapping[int, Diverged]] = ([], {})          # who trains, and by place among them who has been lost since

    def leads(self, m: int) -> bool:
        """Whether this member speaks for the pack: the first of those that train, between two stretches the first that is not lost."""
        training, lost = self._now
        here = [m for k, m in enumerate(training) if k not in lost] or [m for m in range(len(self.walks)) if m not in self.lost]
        return m == (here or [0])[0]

    def train(self) -> dict[int, Trainer]:
        """The last trainer of every member that is not lost."""
        for walk in self.walks:
            if walk.session.init_note:
                walk.live.say(walk.session.init_note)
            walk.join()
        for members in self._alike(range(len(self.walks)), lambda m: tuple((n.segment.first, n.segment.last) for n in self.walks[m].session.nodes)):
            self._through(members)
        return {m: trainer for m, trainer in self.trainers.items() if m not in self.lost}

    def _alike(self, members: Any, key: Callable[[int], Any]) -> list[list[int]]:
        groups: dict[Any, list[int]] = {}
        for m in members:
            groups.setdefault(key(m), []).append(m)
        return list(groups.values())

    def _through(self, members: list[int]) -> None:
        """Members whose nodes cover the same epochs, node by node."""
        starts = {m: self._start(self.walks[m]) for m in members}
        for k, node in enumerate(self.walks[members[0]].session.nodes):
            here = [m for m in members if starts[m] <= k and m not in self.lost]
            for m in here:
                self._enter(m, k)
            waiting = [m for m in here if not self.walks[m]._loaded(self.trainers[m])]
            if waiting:
                for walk in self.walks:                          # heard from who leads
                    walk.live.phase(", ".join(node.segment.phases), self.trainers[waiting[0]].feed.steps)
                self._train(waiting)

    def _start(self, walk: Walk) -> int:
        """The node that a member goes on from."""
        nodes = walk.session.nodes
        start = max((k for k, node in enumerate(nodes) if (node.folder / "done").exists()), default=0)
        while start and not walk._usable(nodes[start]):
            start -= 1
        return start

    def _enter(self, m: int, k: int) -> None:
        """The member's trainer of its k-th node, as the node before has left things."""
        walk, before = self.walks[m], self.trainers.get(m)
        node = walk.session.nodes[k]
        parts = self._parts[m] = walk.session.parts(node, self._parts.get(m, {}))
        trainer = self.trainers[m] = walk.trainer(node, before.progress if before else Progress(), parts)
        if before is not None:
            same = trainer.recipe.optim.use == before.recipe.optim.use
            trainer.restore(walk._end_of(before), meter=False, optimizer=same and not node.segment.fresh)

    # -- one node ------------------------------------------------------------------------------------------------------------------

    def _train(self, waiting: list[int]) -> None:
        with self._locked(waiting) as locks:
            waiting = [m for m in waiting if not self.walks[m]._loaded(self.trainers[m])]        # another process may have finished some since
            for place, members in self._places(waiting):
                for m in members:
                    self._resume(m, place)
                self._lockstep(members, [locks[m] for m in members])

    @contextlib.contextmanager
    def _locked(self, members: list[int]) -> Iterator[dict[int, Lock]]:
        """The members' folders, in one order for all processes."""
        with contextlib.ExitStack() as stack:
            folders = {m: self.trainers[m].node.folder for m in members}
            yield {m: stack.enter_context(Lock(folders[m])) for m in sorted(members, key=lambda m: str(folders[m]))}

    def _places(self, members: list[int]) -> list[tuple[Place, list[int]]]:
        """Who goes on from where: the place that most members have a checkpoint of, the latest of those; then the others alike.

        A pack that is killed while it saves leaves some members a checkpoint ahead; all have the one before.
        """
        held = {m: self._held(self.trainers[m].node) for m in members}
        groups = []
        while held:
            places = {place for known in held.values() for place in known}
            place = max(places, key=lambda p: (sum(p in known for known in held.values()), p))
            found = [m for m, known in held.items() if place in known]
            groups.append((place, found))
            held = {m: known for m, known in held.items() if m not in found}
        return groups

    def _held(self, node: Node) -> dict[Place, str]:
        """The places that a node's folder has checkpoints of -> the file; its beginning needs none, until two newer ones are there."""
        files = [name for name in (checkpoint.CURRENT, checkpoint.PREVIOUS) if (node.folder / name).exists()]
        found: dict[Place, str] = {} if len(files) == 2 else {START: ""}
        for name in reversed(files):
            try:
                facts = checkpoint.load(node.folder / name).facts
            except ComposerError:
                found.setdefault(START, "")
                continue
            found[facts["progress"]["step"], facts["progress"]["judged"]] = name
        return found

    def _resume(self, m: int, place: Place) -> None:
        """The member's state at that place; records of later steps are void."""
        walk, trainer = self.walks[m], self.trainers[m]
        folder = trainer.node.folder
        checkpoint.tidy(folder)
        file, judged = self._held(trainer.node).get(place, ""), 0
        if file:
            walk._take(trainer, renamed(checkpoint.load(folder / file), trainer.node))
            judged = trainer.progress.judged
        rows = atomic.read_lines(folder / "metrics.jsonl")
        kept = [r for r in rows if r["epoch"] <= judged]
        if kept != rows:
            atomic.write_text(folder / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept))
        walk.rewound(judged or trainer.node.segment.first - 1)
        atomic.write_json(folder / "key.json", {**trainer.node.content, "before": self._before(m)})

    def _before(self, m: int) -> str:
        """The folder of the node that the member came from."""
        nodes, node = self.walks[m].session.nodes, self.trainers[m].node
        k = next(k for k, each in enumerate(nodes) if each is node)
        return nodes[k - 1].folder.name if k else ""

    def _lockstep(self, members: list[int], locks: list[Lock]) -> None:
        trainers = [self.trainers[m] for m in members]
        seats = Seats(tuple(self.seats.taken[m] for m in members), self.seats.width)
        pack = Lockstep(trainers, PackedNet([t.net for t in trainers], tuple(trainers[0].session.dataset.shape), seats), self._absent(seats, trainers[0]))
        self._now = members, pack.lost
        try:
            pack.run_all(locks)
        finally:
            self._now = [], {}
        for k, m in enumerate(members):
            if k in pack.lost:
                self.lost[m] = pack.lost[k]
                continue
            node = self.trainers[m].node
            checkpoint.forget(node.folder, self.trainers[m].progress.best.get("file", ""))
            atomic.write_text(node.folder / "done", node.key + "\n")

    def _absent(self, seats: Seats, lead: Trainer) -> dict[int, Absent]:
        """What those who do not train this stretch would have said of theirs."""
        sessions = {slot: walk.session for slot, walk in zip(self.seats.taken, self.walks, strict=True)} | self.absent
        found = {}
        for slot, session in sessions.items():
            node = next((n for n in session.nodes if n.segment.first <= lead.node.segment.first <= n.segment.last), None)
            if slot not in seats.taken and node is not None:
                found[slot] = Absent.of(node, lead.clock)
        return found
