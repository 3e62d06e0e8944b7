from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from composer.errors import ComposerError
from composer.testing import contracts, plugin

teacher = plugin(__file__).teacher


class Held:
    """What the engine gives a part that asks for a network: logits W x, statistics that are written when told."""

    def __init__(self, stochastic=False):
        self.model = nn.Linear(4, 3)
        self.parameters = dict(self.model.named_parameters())
        self.stochastic, self.passes = stochastic, []
        self.stats = SimpleNamespace(scratch=lambda: torch.zeros(2), written=[], write=lambda s: self.stats.written.append(s))

    def __call__(self, x, **how):
        self.passes.append(how)
        return self.model(x), None

    def project(self):
        self.passes.append("project")


def begun(held, points=("clean",), **options):
    made, asked = teacher(**options), []
    made.start(SimpleNamespace(points=points, network=lambda spec, **more: asked.append((spec, more)) or held))
    return made, asked


def test_contracts():
    contracts("part", teacher)


def test_a_learning_teacher_hands_its_network_out_and_its_logits_carry_gradient():
    held = Held()
    part, asked = begun(held, model="SPEC", checkpoint="RUN")
    assert asked == [("SPEC", {"checkpoint": "RUN", "trains": True})]
    logits = part.read(torch.ones(2, 4), point="clean")["logits"]
    logits.sum().backward()
    assert part.network() is held.model and held.model.weight.grad is not None
    assert held.passes[0]["batch"] and held.passes[0]["scratch"] is part._seen["clean"] and not held.stats.written
    part.after_step(point="clean")
    assert held.stats.written[0] is part._seen["clean"], "statistics are written after the step, not by the pass"


def test_a_fixed_teacher_runs_in_eval_mode_and_is_read_once_for_all():
    held = Held()
    part, _ = begun(held, train=False, checkpoint="RUN")
    logits = part.read(torch.ones(2, 4), point="clean")["logits"]
    part.after_step(point="clean")
    assert part.network() is None and not logits.requires_grad and not held.passes[0]["batch"] and not held.stats.written
    assert not teacher.live({"train": False}) and teacher.live({"train": True})


def test_random_layers_would_repeat_themselves():
    with pytest.raises(ComposerError, match="random layers"):
        begun(Held(stochastic=True))
    begun(Held(stochastic=True), bn="eval")


def test_a_state_of_another_teacher_is_refused():
    part, _ = begun(Held())
    with pytest.raises(ComposerError, match="does not fit"):
        part.load_state_dict({"weight": torch.zeros(3, 5), "bias": torch.zeros(3)})
