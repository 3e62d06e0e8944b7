"""The head as the engine sees it: its weight and scale as roots of a plan, its projection after every write, its cosines for evaluation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from composer.engine.judge import check_judging, judged_weights, plain_model
from composer.engine.session import Session, Settings
from composer.engine.step import Executor
from composer.errors import ComposerError
from composer.models.weights import load_weights
from composer.recipe.load import load
from composer.registry import REGISTRY

MLP = ('model.use="mlp"', "model.widths=[16]")


def session(recipe: str | Path, tiny: str, out: Path, *sets: str) -> Session:
    drops = ["model.channels"] if MLP[0] in sets else []
    return Session(load(recipe, setting=tiny, sets=list(sets), drops=drops), 0, Settings(out=out, track=False, quiet=True, device="cpu"))


def first_step(s: Session) -> tuple[torch.Tensor, dict, Executor]:
    node = s.nodes[-1]
    executor = Executor(node.plan, s.net, s.parts(node, {}), s.streams, threat_eps=s.recipe.threat.eps)
    batch = next(s.feed(node.segment).batches(1, 0))
    total, _, env = executor.forward({**batch.roots(), "model": s.net.model}, 0)
    return total, env, executor


def lengths(weight: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(weight, dim=1)


def test_the_heads_weight_is_a_root_with_its_gradient(tiny, tmp_path):
    s = session("lsoftmax_standard", tiny, tmp_path, *MLP, "terms.l_softmax.lam=2.0")
    model, l_softmax = s.net.model, REGISTRY.get("loss", "l_softmax").fn
    total, env, _ = first_step(s)
    total.backward()
    found = {name: p.grad.clone() for name, p in s.net.parameters.items()}
    s.net.model.zero_grad()
    expected = l_softmax(model.embed(env["x"]), model.head.weight, env["y"], m=4, lam=2.0).mean()
    expected.backward()
    torch.testing.assert_close(total, expected)
    for name, p in s.net.parameters.items():
        torch.testing.assert_close(found[name], p.grad)
    assert found["head.weight"].abs().max() > 0 and "head.bias" not in found


def test_at_perturbed_weights_the_root_is_perturbed_too(tiny, tmp_path):
    recipe = tmp_path / "l_softmax_awp.toml"
    recipe.write_text('extends = "lsoftmax_standard.toml"\nrequires = ["l_softmax", "awp"]\n[inner.weights]\nuse = "awp"\nbn = "train_frozen"\ngamma = 0.05\n')
    s = session(recipe, tiny, tmp_path, *MLP, "terms.l_softmax.lam=2.0")
    total, env, _ = first_step(s)
    overlay = env["weights"]
    assert not torch.equal(overlay["head.weight"], s.net.model.head.weight) and env["head_weight"] is overlay["head.weight"]
    logits = torch.func.functional_call(s.net.model, overlay, (env["x"],))
    expected = F.cross_entropy(logits, env["y"])
    l_softmax = REGISTRY.get("loss", "l_softmax").fn
    embed = SimpleNamespace(h=None)
    hook = s.net.model.head.register_forward_pre_hook(lambda _, args: setattr(embed, "h", args[0]))
    torch.func.functional_call(s.net.model, overlay, (env["x"],))
    hook.remove()
    torch.testing.assert_close(total, l_softmax(embed.h, overlay["head.weight"], env["y"], m=4, lam=2.0).mean())
    assert not torch.isclose(total, expected), "the margin is there"


def test_the_scale_is_a_root(tiny, tmp_path):
    s = session("he_at", tiny, tmp_path, "model.head.scale=12.0", "threat.steps=1")
    total, env, _ = first_step(s)
    assert env["head_scale"].item() == 12.0
    own = F.one_hot(env["y"], 10).bool()
    torch.testing.assert_close(total, F.cross_entropy(torch.where(own, env["adv_logits"] - 12.0 * 0.2, env["adv_logits"]), env["y"]))
    assert session("at", tiny, tmp_path).net.head_roots()["head_scale"].item() == 1.0


def test_a_head_without_a_matrix_cannot_be_a_root(tiny, tmp_path):
    s = session("he_at", tiny, tmp_path)
    s.net.model.head.weight = None
    s.net._head = s.net._head_facts()
    with pytest.raises(ComposerError, match="no matrix `weight`"):
        first_step(s)


@pytest.mark.parametrize("part", ["", "interpolate", "weight_ema"])
def test_rows_stay_on_the_sphere_through_a_run(go, tmp_path, part):
    recipe = tmp_path / "he.toml"
    parts = {"": "", "interpolate": "[parts]\nmix = { use = 'interpolate', lam = 0.5 }\n",
             "weight_ema": "[parts]\navg = { use = 'weight_ema', decay = 0.9 }\n[evaluate]\nweights = 'avg'\n[select]\nweights = 'avg'\n"}[part]
    recipe.write_text('extends = "he_at.toml"\n' + parts)
    result = go(recipe, tmp_path / "out", **{"train.epochs": 2})
    final = load_file(next((tmp_path / "out").glob("experiments/*/final.safetensors")))
    torch.testing.assert_close(lengths(final["head.weight"]), torch.ones(10))
    assert 0 <= result["metrics"]["pgd-3"] <= result["metrics"]["clean"] <= 1


def test_an_average_of_weights_is_projected_and_itself_left_alone(tiny, tmp_path):
    s = session("he_at", tiny, tmp_path)
    average = {k: v.clone() for k, v in s.net.model.state_dict().items()}
    average["head.weight"] *= 0.7
    held, live = average["head.weight"].clone(), s.net.model.head.weight.detach().clone()
    weights = judged_weights(s, {"avg": SimpleNamespace(weights=lambda: average)}, "avg", "evaluate.weights")
    torch.testing.assert_close(weights["head.weight"], held / 0.7)
    assert torch.equal(average["head.weight"], held) and torch.equal(s.net.model.head.weight, live)


def test_loaded_weights_are_projected(tiny, tmp_path):
    s = session("he_at", tiny, tmp_path)
    state = {k: v.clone() for k, v in s.net.model.state_dict().items()}
    direction = state["head.weight"].roll(1, 0)
    state["head.weight"] = 3.0 * direction
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    load_weights(s.net.model, tmp_path / "w.safetensors")
    torch.testing.assert_close(s.net.model.head.weight.detach(), direction)


def test_cosines_are_judged_where_the_recipe_says_so(tiny, tmp_path):
    scaled, cosine = (session("he_at", tiny, tmp_path, f"evaluate.logits={word}") for word in ("scaled", "cosine"))
    x = scaled.images("test")[0][:8]
    out = [plain_model(s, s.net.model.state_dict())(x) for s in (scaled, cosine)]
    torch.testing.assert_close(out[0], 15 * out[1])
    assert out[1].abs().max() <= 1 + 1e-6 < out[0].abs().max()
    check_judging(cosine)
    with pytest.raises(ComposerError, match="has no scale"):
        check_judging(session("at", tiny, tmp_path, "evaluate.logits=cosine"))
