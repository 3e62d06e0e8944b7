"""Networks that parts train along: in the optimiser, the checkpoint, the key; and fixed ones from a finished run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from composer.engine import checkpoint
from composer.engine.session import Session, Settings
from composer.engine.trained import group_names, renumber, together
from composer.errors import ComposerError, Stopped
from composer.recipe.load import load

FIXED = """
about    = "A fixed teacher's word on adversarial images"
extends  = "at.toml"
requires = ["teacher"]
[parts]
teacher = {{ train = false, checkpoint = "{run}" }}
[terms]
kl = {{ target_logp = "teacher_clean_logp" }}
"""


def session(recipe, tiny, out, **sets):
    made = load(recipe, setting=tiny, sets=[f"{k}={v}" for k, v in sets.items()])
    return Session(made, 0, Settings(out=out, device="cpu", track=False, quiet=True))


def built(recipe, tiny, out, **sets):
    made = session(recipe, tiny, out, **sets)
    parts = made.parts(made.nodes[-1], {})
    return made, parts, made.optimizer(made.nodes[-1].segment, parts)


SMALL = {"parts.teacher.model": '{ use = "small_cnn", channels = [4, 4, 4] }'}


def test_its_parameters_join_the_optimiser_behind_the_models(tiny, tmp_path):
    made, parts, optimizer = built("lbgat", tiny, tmp_path, **SMALL)
    teacher = parts["teacher"].network()
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [id(p) for m in (made.net.model, teacher) for p in m.parameters()]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [made.recipe.optim.options["weight_decay"]]
    _, parts, optimizer = built("lbgat", tiny, tmp_path, **SMALL, **{"optim.decay_exclude": '["norm", "bias"]'})
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    for name, p in parts["teacher"].network().named_parameters():
        assert (id(p) in decayed) == (p.ndim > 1), name


def test_it_starts_from_streams_of_its_own(tiny, tmp_path):
    """Of the same architecture it is not the same network; the same seed gives the same teacher."""
    sets = {"parts.teacher.model": '{ use = "small_cnn", channels = [4, 8, 8] }'}
    made, parts, _ = built("lbgat", tiny, tmp_path, **sets)
    _, again, _ = built("lbgat", tiny, tmp_path, **sets)
    teacher, model = parts["teacher"].state_dict(), made.net.model.state_dict()
    assert teacher.keys() == model.keys()
    assert all(torch.equal(v, again["teacher"].state_dict()[k]) for k, v in teacher.items())
    assert not any(torch.equal(v, model[k]) for k, v in teacher.items() if k.endswith("weight") and v.ndim > 1)


def test_stopped_and_resumed_both_networks_are_in_one_go(go, stop_after, record, tmp_path):
    sets = {"parts.teacher.model": '{ use = "small_cnn", channels = [4, 4, 4] }', "select.report": "last"}
    whole = go("lbgat", tmp_path / "whole", **sets)
    for steps in (2, 3, 2):
        stop_after(steps)
        with pytest.raises(Stopped):
            go("lbgat", tmp_path / "parts", **sets)
    stop_after(None)
    parts = go("lbgat", tmp_path / "parts", **sets)
    assert parts["weights_sha256"] == whole["weights_sha256"]
    saved = [checkpoint.load(record(tmp_path / name, whole["run"]).folders[-1] / checkpoint.CURRENT) for name in ("whole", "parts")]
    assert saved[0].tensors.keys() == saved[1].tensors.keys() and any(k.startswith("parts/teacher/") for k in saved[0].tensors)
    assert all(torch.equal(v, saved[1].tensors[k]) for k, v in saved[0].tensors.items())
    assert sum(k.startswith("optim/") and "momentum" in k for k in saved[0].tensors) == len([n for g in saved[0].facts["optim_names"] for n in g])


def test_a_fixed_teacher_from_a_finished_run(go, tiny, tmp_path):
    """Its weights are the run's and stay; they are part of what the run's key is made of."""
    first = go("standard", tmp_path / "runs")
    recipe = tmp_path / "fixed.toml"
    recipe.write_text(FIXED.format(run=first["run"]))
    made, parts, optimizer = built(recipe, tiny, tmp_path / "runs")
    run = checkpoint.load(tmp_path / "runs" / "experiments" / first["run"] / "final.safetensors").tensors
    assert all(torch.equal(v, run[k]) for k, v in parts["teacher"].state_dict().items())
    assert len([p for g in optimizer.param_groups for p in g["params"]]) == len(list(made.net.model.parameters()))
    result = go(recipe, tmp_path / "runs")
    saved = checkpoint.load(tmp_path / "runs" / "nodes" / result["prefix_key"] / checkpoint.CURRENT)
    assert all(torch.equal(v, saved.tensors[f"parts/teacher/{k}"]) for k, v in run.items())
    other = go("standard", tmp_path / "runs", seed=1)
    recipe.write_text(FIXED.format(run=other["run"]))
    assert session(recipe, tiny, tmp_path / "runs").nodes[0].content["checkpoints"] != made.nodes[0].content["checkpoints"]


def test_a_fixed_teacher_needs_weights(tiny, tmp_path):
    recipe = tmp_path / "fixed.toml"
    recipe.write_text(FIXED.format(run="nobody"))
    with pytest.raises(ComposerError, match="parts.teacher.checkpoint"):
        session(recipe, tiny, tmp_path)
    recipe.write_text(FIXED.format(run="").replace(', checkpoint = ""', ""))
    with pytest.raises(ComposerError, match="a teacher that is not trained along needs weights"):
        session(recipe, tiny, tmp_path)


def test_momentum_finds_its_parameter_by_name():
    """One network alone, then another beside it, decayed apart: each parameter keeps its own momentum."""
    a, b = nn.Linear(2, 2), nn.Linear(2, 3)
    first = torch.optim.SGD(a.parameters(), lr=0.1, momentum=0.9)
    a(torch.ones(1, 2)).sum().backward()
    first.step()
    held = group_names(first, a, {})
    second = torch.optim.SGD([{"params": [a.bias, b.weight]}, {"params": [b.bias, a.weight]}], lr=0.1, momentum=0.9)
    own = group_names(second, a, {"t": b})
    assert own == [["bias", "parts.t.weight"], ["parts.t.bias", "weight"]]
    second.load_state_dict(renumber(first.state_dict(), held, own, second.state_dict()["param_groups"]))
    assert torch.equal(second.state[a.weight]["momentum_buffer"], first.state[a.weight]["momentum_buffer"])
    assert torch.equal(second.state[a.bias]["momentum_buffer"], first.state[a.bias]["momentum_buffer"])
    assert not second.state[b.weight] and not second.state[b.bias]
    assert together(a, {}) is a and list(together(a, {"t": b}).parameters()) == [*a.parameters(), *b.parameters()]
