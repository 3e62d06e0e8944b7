"""What a finished run tells the measures that ask: its training images, the radii of its attack at the judged weights, its times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from composer import atomic
from composer.engine import checkpoint
from composer.engine.dials import Clock, evaluate
from composer.engine.keys import file_digest
from composer.engine.net import Net
from composer.engine.reference import built, check_reference, reference_model, resolve_reference
from composer.engine.session import Node, Session
from composer.engine.step import Executor
from composer.errors import ComposerError
from composer.plan.types import InnerPlan, Pass, Plan, Program
from composer.plan.whole import place, scheduled
from composer.registry import REGISTRY


class Facts:
    """The run behind judged weights, as composer.evaluate.results.Run has it.

    weights  the judged ones, by name
    parts    the parts as they stand; None: as they were when the last stretch ended, from its checkpoint
    epoch    the epoch just finished, whose stretch is meant; None: the last
    """

    def __init__(self, session: Session, weights: dict[str, Tensor], parts: dict[str, Any] | None = None, epoch: int | None = None):
        self.session, self.weights, self._parts = session, weights, parts
        self.node = next(node for node in reversed(session.nodes) if epoch is None or node.segment.first <= epoch)
        self.epoch = epoch or self.node.segment.last

    @property
    def key(self) -> str:
        return self.session.nodes[-1].key

    def images(self, split: str, n: int | None = None) -> tuple[Tensor, Tensor]:
        """The first n training or held-out images, as they are (no augmentation), in the data set's order.

        Errors: ComposerError where no image is held out.
        """
        session = self.session
        rows = (session.rows if split == "train" else session.val_rows)[:n]
        if not len(rows):
            raise ComposerError(f"a measure asks for the {split} images, and there are none", where=place(session.recipe)("evaluate"),
                                fix="hold some out (select.held_out), or leave the measure out")
        train = session.dataset.train
        return (train.x[rows].float() / session.dataset.scale).to(session.device), train.y[rows].to(session.device)

    def step_seconds(self) -> Tensor:
        """[epochs] from the stretches' records; validation and checkpoints are not in it."""
        rows = [row for node in self.session.nodes for row in atomic.read_lines(node.folder / "metrics.jsonl")]
        return torch.tensor([float("nan") if row.get("time/step_ms") is None else row["time/step_ms"] / 1000 for row in rows], dtype=torch.float64)

    def reference(self, text: str) -> Any:
        """A second network, by a file of weights, a finished run's name, or a recipe's; a run of that recipe is its own reference.

        Errors: as composer.engine.reference.resolve_reference.
        """
        if text == self.session.recipe.name:
            return built(self.session, self.weights)
        return reference_model(resolve_reference(text, self.session), self.session)

    def reference_digest(self, text: str) -> str:
        """Of its weights: what was measured with others is not this."""
        if text == self.session.recipe.name:
            return checkpoint.weights_digest(self.weights)
        return file_digest(resolve_reference(text, self.session))

    # -- radii ---------------------------------------------------------------------------------------------------------------------

    def radii(self, point: str = "") -> Tensor:
        """[training images] the radius of the last stretch's inner maximum at the end of the run, batch norm in eval mode.

        point   the inner maximum, by the point it makes; "": the first whose radius is each image's own, else the first. A stretch without one: 0

        The images are those trained on, without augmentation. Schedules stand where they ended, and so does what a part remembers, also where
        the judged weights are those of an earlier epoch.

        Errors: ComposerError where the last stretch makes no such point.
        """
        node = self.node
        inner = self._inner(node.plan, point)
        if inner is None:
            return torch.zeros(len(self.session.rows))
        run = self._executor(node)
        found = [run.radius(roots, inner.id) for roots in self._batches(node, run.net)]
        return torch.cat(found).cpu()

    def _inner(self, plan: Plan, point: str) -> InnerPlan | None:
        images = [i for i in plan.inner if not i.over_weights]
        if not point:
            return next((i for i in images if hasattr(i.eps, "name")), images[0] if images else None)
        name = point if point.startswith("x_") else f"x_{point}"
        found = next((i for i in images if i.id == name), None)
        if found is None:
            raise ComposerError(f"no inner maximum of the last epochs makes '{name}'", where=place(self.session.recipe)("evaluate"),
                                fix=f"one of {', '.join(i.id for i in images) or 'none'}")
        return found

    def _executor(self, node: Node) -> Radius:
        from composer.models.build import build_model

        session, recipe = self.session, node.segment.recipe
        model = build_model(session.recipe.model, session.dataset.shape, session.dataset.classes, session.seed)
        model.load_state_dict({k: v.detach().float() if v.is_floating_point() else v for k, v in self.weights.items()})
        net = Net(model, session.device, seed=session.seed)
        parts = self._parts if self._parts is not None else self._remembered(node)
        run = Radius(still(node.plan), net, parts, session.streams, threat_eps=recipe.threat.eps)
        steps, at = session.feed(node.segment).steps, self.epoch - node.segment.clock
        values = {**{d.path: d.ref for d in node.plan.dials}, **scheduled(recipe)}
        for dial in node.plan.dials:
            run.numbers.set(dial.path, evaluate(dial.ref, Clock(at, at * steps - 1, steps, node.segment.epochs), values.__getitem__, path=dial.path))
        return run

    def _remembered(self, node: Node) -> dict[str, Any]:
        parts = self.session.parts(node, {})
        saved, _ = checkpoint.newest(node.folder)
        for id, part in parts.items():
            state = {k.removeprefix(f"parts/{id}/"): v for k, v in saved.tensors.items() if k.startswith(f"parts/{id}/")} if saved else {}
            if state:
                part.load_state_dict(state)
        return parts

    def _batches(self, node: Node, net: Net) -> Any:
        """The roots of a step, for all training images in order."""
        from composer.engine.judge import batch_of

        session = self.session
        for rows in session.rows.split(batch_of(session)):
            x = net.layout((session.dataset.train.x[rows].float() / session.dataset.scale).to(session.device))
            y = session.dataset.train.y[rows].to(session.device)
            soft = {"y_soft": F.one_hot(y, session.dataset.classes).to(x.dtype)} if node.plan.soft else {}
            yield {"x": x, "y": y, "i": rows.to(session.device), "model": net.model, **soft}


def check_asked(session: Session) -> None:
    """Before hours of training: what the measures will ask of the run is there."""
    for spec in session.recipe.evaluate.measures:
        facts = Facts(session, {})
        if spec.options.get("split", "test") != "test":
            facts.images(spec.options["split"], 1)
        if spec.options.get("point") and any(need.name == "run" for need in REGISTRY.get("measure", spec.use).needs):
            facts._inner(session.nodes[-1].plan, spec.options["point"])
        check_reference(spec, session)


class Radius(Executor):
    """The beginning of a step: as far as the radius of one inner maximum."""

    def radius(self, roots: dict[str, Any], point: str) -> Tensor:
        env = {**roots, "@threat.eps": self.threat_eps, **(self.net.head_roots() if self._head else {})}
        with torch.no_grad():
            for op in self._prelude:
                op(env)
        self.net.freeze(True)
        for plan, run in zip(self.plan.inner, self._inner, strict=True):
            if plan.id == point:
                break
            run(env)
        for op in [self._op(step, writes=False) for step in plan.preamble.steps]:
            op(env)
        eps = self._value(plan.eps, env)
        return torch.as_tensor(eps, dtype=torch.float32, device=roots["x"].device).detach().expand(len(roots["y"])).clone()


def still(plan: Plan) -> Plan:
    """The plan with all passes in eval mode, writing nothing."""
    def program(p: Program) -> Program:
        return replace(p, steps=tuple(replace(s, batch=False, rows=None) if isinstance(s, Pass) else s for s in p.steps))

    inner = tuple(replace(i, writes=False, preamble=program(i.preamble), body=program(i.body)) for i in plan.inner)
    return replace(plan, prelude=program(plan.prelude), inner=inner, outer=program(plan.outer), updates=())


__all__ = ["Facts", "check_asked"]
