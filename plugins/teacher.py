"""A second network that shows the first what to say: trained along with it, or fixed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch

from composer import part
from composer.errors import ComposerError
from composer.shapes import Point, Tensor, Unit

Network = Annotated[Any, Unit("nested", kind="model")]


def _live(options: dict[str, Any]) -> bool:
    """A fixed teacher's answer to the clean image can be had once for all programs of a step; a learning one's gradient is wanted."""
    return options["train"]


def _refuses(options: dict[str, Any]) -> tuple[str, str, str] | None:
    if not options["train"] and not options["checkpoint"]:
        return "checkpoint", "a teacher that is not trained along needs weights", "a file of weights, or the name of a finished run; or train = true"
    model = options["model"]
    if options["train"] and options["bn"] == "train" and model is not None and model.options.get("dropout"):
        return "model", "the teacher has random layers, which would be the same at every step", 'bn = "eval", or dropout = 0'
    return None


@part(refuses=_refuses)
class teacher:
    """A second network; its logits at every point that something reads.

    Formula: z_t(x), t the teacher's own weights: fixed, or theta_t - lr dL/dtheta_t at every step, L the same loss   [logits]
    Paper:   Cui et al., ICCV 2021 (LBGAT), trained along; Zi et al., ICCV 2021 (RSLAD), fixed

    model        its architecture; left out, that of the run. Its weights start from random streams of its own
    train        trained along: its parameters join the optimiser, and gradient reaches it from every term that does not cut it (`detach`)
    bn           mode of its passes while it is trained; its running statistics are written after the step, point by point. A fixed one: eval
    checkpoint   a file of weights, or the name of a finished run, to start from; a fixed teacher needs one

    Costs of a plan count the passes of the run's own network only.
    """

    makes = ("logits",)
    per_point = True
    writes_model = False
    live = staticmethod(_live)

    def __init__(self, *, model: Network = None, train: bool = True, bn: Literal["train", "eval"] = "train", checkpoint: str | None = None):
        self.model, self.train, self.bn, self.checkpoint = model, train, bn, checkpoint
        self._net: Any = None
        self._seen: dict[str, Tensor] = {}               # statistics of the last batch, until the step is done

    def start(self, facts: Any) -> None:
        self._net = facts.network(self.model, checkpoint=self.checkpoint, trains=self.train)
        if self._batch and self._net.stochastic:
            raise ComposerError("the teacher has random layers, such as dropout", where="[parts] teacher", why="they would be the same at every step",
                                fix='bn = "eval", or a model without them')
        for parameter in self._net.parameters.values():
            parameter.requires_grad_(self.train)
        if self._batch and self._net.stats is not None:
            self._seen = {point: self._net.stats.scratch() for point in facts.points}

    @property
    def _batch(self) -> bool:
        return self.train and self.bn == "train"

    def read(self, x: Point, *, point: str) -> dict[str, Tensor]:
        logits, _ = self._net(x, batch=self._batch, scratch=self._seen.get(point), name=f"teacher/{point}")
        return {"logits": logits}

    def after_step(self, *, point: str) -> None:
        self._net.project()
        if point in self._seen:
            self._net.stats.write(self._seen[point])

    def network(self) -> Any:
        """What the optimiser trains along: the network, or None where it is fixed."""
        return self._net.model if self.train else None

    def state_dict(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self._net.model.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        held = self.state_dict()
        wrong = [name for name, tensor in held.items() if name not in state or state[name].shape != tensor.shape]
        if wrong:
            raise ComposerError(f"part 'teacher': the saved state does not fit, first at '{wrong[0]}'", fix="start the run anew: it was saved with another teacher")
        with torch.no_grad():
            for name, tensor in held.items():
                tensor.copy_(state[name])
