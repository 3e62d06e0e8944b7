"""Precisions: where bfloat16 is, and where float32 stays: weights, head, logits, losses, evaluation; what is said and recorded."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from composer.bench.nets import batch, net
from composer.bench.subject import Subject, load_like_plain
from composer.engine import run
from composer.engine.net import Net
from composer.engine.session import Settings, set_numerics
from composer.evaluate.guard import undisturbed
from composer.models.build import build_model
from composer.options import Ref
from composer.recipe.types import ModelSpec

CPU = torch.device("cpu")


def shipped(precision: str) -> Net:
    return Net(build_model(ModelSpec("small_cnn", {"channels": (4, 8, 8)}, Ref("head", "linear")), (1, 8, 8), 10, 0), CPU, precision=precision)


def watched(made: Net) -> dict[str, list[torch.dtype]]:
    """Types that the first convolution and the head give, pass by pass."""
    seen: dict[str, list[torch.dtype]] = {"conv": [], "head": []}
    conv = next(m for m in made.model.modules() if isinstance(m, nn.Conv2d))
    conv.register_forward_hook(lambda module, args, out: seen["conv"].append(out.dtype))
    made.model.head.register_forward_hook(lambda module, args, out: seen["head"].append(out.dtype))
    return seen


@pytest.mark.parametrize("features", [False, True])
def test_the_head_and_the_logits_are_float32(features):
    """Logits rounded to eight bits tie; these are float32's, of an embedding in bfloat16."""
    made, (x, _) = shipped("bf16"), batch("small_cnn", 64)
    seen = watched(made)
    logits, embedded = made(made.layout(x), batch=False, features=features)
    assert seen == {"conv": [torch.bfloat16], "head": [torch.float32]} and logits.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = made.model.embed(made.layout(x)).float()
    assert torch.equal(logits, F.linear(expected, made.model.head.weight, made.model.head.bias))
    assert (embedded is None) is not features and (embedded is None or torch.equal(embedded, expected))
    full, _ = shipped("fp32")(x, batch=False)
    assert not torch.equal(full, logits) and (full - logits).abs().max() < 0.05
    assert not torch.equal(logits.bfloat16().float(), logits)


@pytest.mark.parametrize(("precision", "attack", "outer"), [
    ("fp32", torch.float32, torch.float32), ("tf32", torch.float32, torch.float32), ("bf16", torch.bfloat16, torch.bfloat16),
    ("bf16-attack", torch.bfloat16, torch.float32)])
def test_which_passes_are_half(precision, attack, outer):
    """TRADES-AWP with two attack steps: the attack's passes; then the ascent over the weights and the outer passes."""
    x, y = batch("cnn8", 8)
    recipe = load_like_plain("awp_trades", steps=2)
    made = Subject(recipe, net("cnn8"), x, y, precision=precision)
    seen: list[torch.dtype] = []
    conv = next(m for m in made.model.modules() if isinstance(m, nn.Conv2d))
    conv.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    made()
    assert len(seen) == 3 + 2 + 2 and seen[:3] == [attack] * 3 and seen[3:] == [outer] * 4
    assert all(p.dtype == torch.float32 for p in made.model.parameters()) and made.trainer.meter.sums.isfinite().all()
    states = [v for state in made.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    assert states and all(v.dtype == torch.float32 for v in states)


def test_an_attack_that_fails_leaves_the_precision_as_it_was():
    made = shipped("bf16-attack")
    assert not made.half
    with pytest.raises(ZeroDivisionError):
        made.attack(lambda env: 1 / 0)({})
    assert not made.half
    made.attack(lambda env: env.append(made.half))(seen := [])
    assert seen == [True]


def test_a_run_says_and_records_its_precision(go, tmp_path, capsys, monkeypatch):
    tags: list[dict[str, str]] = []

    def tracker(*args, plain=run.make_tracker, **more):
        made = plain(*args, **more)
        made.start = lambda name, params, tags_: tags.append(tags_)
        return made

    monkeypatch.setattr(run, "make_tracker", tracker)
    plain = go("at", tmp_path)
    half = go("at", tmp_path, settings={"precision": "bf16-attack", "quiet": False})
    said = capsys.readouterr().err
    assert said.count("another experiment than fp32") == 1 and "bf16-attack" in said
    assert half["precision"] == "bf16-attack" and half["notes"] == [half["notes"][0]] and "attacks on images run in bfloat16" in half["notes"][0]
    assert half["run"] == plain["run"] + "-bf16-attack" and half["prefix_key"] != plain["prefix_key"] and half["weights_sha256"] != plain["weights_sha256"]
    assert plain["precision"] == "fp32" and "notes" not in plain
    assert [each["precision"] for each in tags] == ["fp32", "bf16-attack"] and "micro_batch" not in tags[0]


def test_products_are_float32_unless_tf32_was_asked_for():
    products = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in products]
    try:
        for precision, allowed in (("tf32", True), ("bf16", False), ("bf16-attack", False), ("fp32", False)):
            set_numerics(Settings(precision=precision))
            assert [each.allow_tf32 for each in products] == [allowed] * 2, precision
        set_numerics(Settings(precision="tf32"))
        with undisturbed(nn.Linear(2, 2)):
            assert [each.allow_tf32 for each in products] == [False] * 2, "evaluation is float32 whatever training is"
        assert [each.allow_tf32 for each in products] == [True] * 2
    finally:
        for each, allowed in zip(products, before, strict=True):
            each.allow_tf32 = allowed


def test_a_bf16_run_is_judged_in_float32(go, tmp_path, monkeypatch):
    """Validation and the final protocol see float32 products only."""
    from composer.evaluate import guard

    seen, plain = set(), guard.Judge.__call__

    def call(self, x):
        kept = []
        handle = next(m for m in self.module.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(lambda module, args, out: kept.append(out.dtype))
        try:
            return plain(self, x)
        finally:
            handle.remove()
            seen.update(kept)

    monkeypatch.setattr(guard.Judge, "__call__", call)
    go("at", tmp_path, settings={"precision": "bf16"})
    assert seen == {torch.float32}


def test_sgd_is_fused_and_the_same(monkeypatch):
    """The fused update and the loop over tensors agree to the last bit or two; fused is what a run takes."""
    from composer.optim import sgd

    def steps(fused):
        torch.manual_seed(0)
        p = [torch.randn(7, 5, requires_grad=True), torch.randn(3, requires_grad=True)]
        made = sgd([{"params": p}], fused=fused)
        for _ in range(5):
            for group in made.param_groups:
                group["lr"] = 0.1
            for each in p:
                each.grad = torch.randn_like(each)
            made.step()
        return torch.cat([each.detach().flatten() for each in p]), made

    (one, made), (two, _) = steps("auto"), steps("no")
    assert made.param_groups[0]["fused"] is True
    torch.testing.assert_close(one, two, rtol=3e-7, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["tf32", "bf16", "bf16-attack"])
def test_precisions_on_cuda(precision):
    x, y = batch("cnn8", 32, device="cuda")
    made = Subject(load_like_plain("trades", steps=2), net("cnn8").cuda(), x, y, precision=precision)
    made()
    assert made.trainer.meter.sums.isfinite().all() and all(p.dtype == torch.float32 for p in made.model.parameters())
