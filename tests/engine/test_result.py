"""What a run hands back, and the settings that decide what it is of: which batches, which epoch, whose weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from composer.engine import checkpoint
from composer.engine.session import Session, Settings
from composer.engine.train import Trainer
from composer.errors import ComposerError
from composer.recipe.load import load

DESIGN = ["run", "recipe", "setting", "seed", "experiment_id", "prefix_key", "weights_sha256", "epochs", "steps", "seconds", "passes", "protocol", "n",
          "selected", "metrics", "metrics_other", "trust", "out", "mlflow_run_id"]
OURS = ["train_seconds", "selected_epoch", "classes", "precision", "peak_memory_bytes", "peak_memory", "backend", "selection"]
EMA = "{ use = 'weight_ema', decay = 0.5 }"


def test_stdout_is_one_object_with_the_design_s_keys(cli, away, tmp_path):
    """With tracking and AutoAttack on, whose libraries print; the second call shows the same object, to the byte."""
    out, aa = tmp_path / "out", "evaluate.aa={n=4}"
    first = cli("run", "mart_ours", "--out", out, "--json", "--seed", "3", "--set", aa)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert sorted(result) == sorted(DESIGN + OURS) and first.stdout.count("\n") == 1
    assert set(result["passes"]) == {"forward", "dgrad", "wgrad"} and set(result["trust"]) == {"ok", "flags"}
    assert result["n"] == {"clean": 24, "pgd-3": 24, "aa": 4} and set(result["metrics"]) == set(result["n"])
    assert result["recipe"] == "mart_ours" and result["seed"] == 3 and result["run"].endswith("-s3") and len(result["mlflow_run_id"]) == 32
    assert "epoch 3/3" in first.stderr
    second, quiet = away("mart_ours", out, aa, "--json", "--seed=3", track=True), away("mart_ours", out, aa, "--quiet", "--seed=3", track=True)
    assert second.code() == quiet.code() == 0
    assert second.stdout == first.stdout and second.stderr == quiet.stderr == ""
    assert "pgd-3" in quiet.stdout and "{" not in quiet.stdout


def test_passes_are_the_plan_s_times_the_steps(go, tmp_path):
    """at: two attack passes with input gradients and one pass with both kinds, times nine steps; PIAT's clean epoch costs one pass a step."""
    assert go("at", tmp_path)["passes"] == {"forward": 27, "dgrad": 27, "wgrad": 9}
    piat = go("piat_nmse", tmp_path)["passes"]
    assert piat == {"forward": 3 * 1 + 6 * 4, "dgrad": 3 * 1 + 6 * 4, "wgrad": 3 * 1 + 6 * 2}


def test_the_sha_is_of_the_weights_on_disk(go, tmp_path):
    result = go("trades", tmp_path)
    saved = checkpoint.load(tmp_path / "experiments" / result["run"] / "final.safetensors")
    assert checkpoint.weights_digest(saved.tensors) == result["weights_sha256"] and saved.facts["selected"] == result["selected"]


# -- batches ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def batches(monkeypatch):
    """Every batch that a run trains on."""
    seen = []
    plain = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self, batch, epoch: (seen.append(batch), plain(self, batch, epoch))[1])
    return seen


def test_the_last_batch_is_kept_or_dropped(go, batches, tmp_path):
    assert go("standard", tmp_path)["steps"] == 9 and [len(b.y) for b in batches[:3]] == [24, 24, 16]
    batches.clear()
    assert go("standard", tmp_path, **{"train.last": '"drop"'})["steps"] == 6 and {len(b.y) for b in batches} == {24}


def test_extra_images_fill_their_share(go, batches, tmp_path):
    """A quarter of every batch; an epoch stays one pass over the own images; all extra images are seen before one is seen twice."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "extra.npz", x=rng.integers(0, 17, (30, 8, 8, 1), dtype=np.uint8), y=rng.integers(0, 10, 30))
    result = go("at", tmp_path / "out", **{"data.extra": f'"{tmp_path / "extra.npz"}"', "data.extra_fraction": 0.25})
    assert result["steps"] == 3 * 4 and [len(b.y) for b in batches[:4]] == [24, 24, 24, 10 + 6]
    extra = [int(i) for b in batches for i in b.i[b.i >= 80]]
    assert len(extra) == 12 * 6 and all(len(set(extra[k:k + 30])) == 30 for k in (0, 30))
    own = [sorted(int(i) for b in batches[4 * e:4 * e + 4] for i in b.i[b.i < 80]) for e in range(3)]
    assert len(own[0]) == 64 == len(set(own[0])) and own[0] == own[1] == own[2]


def test_resumed_within_extra_images(go, stop_after, tmp_path):
    from composer.errors import Stopped

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "extra.npz", x=rng.integers(0, 17, (30, 8, 8, 1), dtype=np.uint8), y=rng.integers(0, 10, 30))
    sets = {"data.extra": f'"{tmp_path / "extra.npz"}"', "data.extra_fraction": 0.25}
    whole = go("at", tmp_path / "whole", **sets)
    stop_after(6)
    with pytest.raises(Stopped):
        go("at", tmp_path / "parts", **sets)
    stop_after(None)
    assert go("at", tmp_path / "parts", **sets)["weights_sha256"] == whole["weights_sha256"]


# -- which epoch -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scores(monkeypatch):
    """Fix what validation finds, epoch by epoch: the middle one is the best."""
    from composer.engine.judge import Validator

    monkeypatch.setattr(Validator, "__call__", lambda self, epoch, parts: {"val/clean": 0.5, "val/pgd": {1: 0.3, 2: 0.6, 3: 0.4, 4: 0.6}[epoch]})


def test_best_last_and_both(scores, go, tmp_path):
    one = {report: go("at", tmp_path, **{"select.report": f'"{report}"'}) for report in ("best", "last", "both")}
    assert (one["best"]["selected"], one["best"]["selected_epoch"]) == ("best", 2) and (one["last"]["selected"], one["last"]["selected_epoch"]) == ("last", 3)
    assert one["best"]["weights_sha256"] != one["last"]["weights_sha256"] and one["best"]["metrics_other"] == one["last"]["metrics_other"] == {}
    assert one["both"]["selected"] == "best" and one["both"]["metrics"] == one["best"]["metrics"] and one["both"]["metrics_other"] == one["last"]["metrics"]
    assert len({r["prefix_key"] for r in one.values()}) == 1, "the report alone trains nothing anew"
    two_epochs = go("at", tmp_path, **{"train.epochs": 2, "train.lr": '{use="multistep", value=0.05, at=[2], factor=0.1}', "select.report": '"last"'})
    assert two_epochs["weights_sha256"] == one["best"]["weights_sha256"], "the best model is that of the end of epoch 2"


def test_the_first_of_equals_is_best(scores, go, tmp_path):
    assert go("at", tmp_path, **{"train.epochs": 4})["selected_epoch"] == 2


def test_selection_from_the_last_phase(scores, go, tmp_path):
    """PIAT's burn-in is epoch 1, mwpb's half radius epochs 1 and 2."""
    assert go("piat_nmse", tmp_path, **{"select.from": '"last_phase"'})["selected_epoch"] == 2
    assert go("mwpb_trades", tmp_path, **{"select.from": '"last_phase"'})["selected_epoch"] == 3
    assert go("at", tmp_path, **{"select.from": 3})["selected_epoch"] == 3


# -- traces ----------------------------------------------------------------------------------------------------------------------------


def test_traces_of_val_and_test(go, record, tmp_path):
    """Every k epochs, named after their split; a trace on test chooses nothing."""
    plain = go("at", tmp_path)
    for split, n in (("val", 16), ("test", 24)):
        result = go("at", tmp_path, trace=f"{{ every = 2, on = '{split}', clean = {{}}, pgd-2 = {{ use = 'pgd', steps = 2 }} }}")
        rows = record(tmp_path, result["run"]).rows
        assert [sorted(k for k in row if k.startswith("trace")) for row in rows] == [[], [f"trace-{split}/clean", f"trace-{split}/pgd-2"], []]
        assert float(rows[1][f"trace-{split}/clean"] * n).is_integer()
        assert result["weights_sha256"] == plain["weights_sha256"] and result["selected_epoch"] == plain["selected_epoch"]
        if split == "val":
            assert rows[1]["trace-val/clean"] == rows[1]["val/clean"]


# -- whose weights ---------------------------------------------------------------------------------------------------------------------


def averages(go, out, decay=0.5):
    """The weight average of a run by its definition, from the live weights after every step."""
    plain, steps = Trainer._step, []

    def step(self, batch, epoch):
        if not steps:
            steps.append({k: v.detach().clone() for k, v in self.net.model.state_dict().items()})
        plain(self, batch, epoch)
        steps.append({k: v.detach().clone() for k, v in self.net.model.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        go("at", out)
    mean = {k: v.double() for k, v in steps[0].items()}
    for after in steps[1:]:
        mean = {k: decay * mean[k] + (1 - decay) * v.double() for k, v in after.items()}
    return mean


def test_the_averaged_weights_are_judged(go, tmp_path):
    """evaluate.weights = a part: what is saved and judged is the average, worked out here in float64 from the live weights."""
    expected = averages(go, tmp_path / "live")
    result = go("at", tmp_path, **{"parts.mean": EMA, "evaluate.weights": '"mean"', "select.report": '"last"'})
    saved = checkpoint.load(tmp_path / "experiments" / result["run"] / "final.safetensors").tensors
    floats = [k for k, v in saved.items() if v.is_floating_point()]
    assert len(floats) > 10
    for name in floats:
        torch.testing.assert_close(saved[name].double(), expected[name], rtol=1e-5, atol=1e-6)


def test_selection_by_the_averaged_weights(go, record, tmp_path):
    """select.weights = a part: validation sees the average; training does not."""
    live, mean = go("at", tmp_path, **{"select.report": '"last"'}), go("at", tmp_path, **{"parts.mean": EMA, "select.weights": '"mean"', "select.report": '"last"'})
    assert live["weights_sha256"] == mean["weights_sha256"], "the last live weights are the same"
    rows = [record(tmp_path, r["run"]).rows for r in (live, mean)]
    assert [r["train/terms.ce"] for r in rows[0]] == [r["train/terms.ce"] for r in rows[1]]
    assert [(r["val/clean"], r["val/pgd"]) for r in rows[0]] != [(r["val/clean"], r["val/pgd"]) for r in rows[1]]


def test_validation_is_of_the_stated_weights(go, record, tmp_path):
    """The last epoch's validation, repeated on the saved model: live, and averaged."""
    from composer.engine.judge import plain_model

    for sets in ({}, {"parts.mean": EMA, "select.weights": '"mean"', "evaluate.weights": '"mean"'}):
        result = go("at", tmp_path, **sets, **{"select.report": '"last"', "train.epochs": 2})
        saved = checkpoint.load(tmp_path / "experiments" / result["run"] / "final.safetensors").tensors
        made = load("at", setting=result["setting"] + ".toml", sets=[f"{k}={v}" for k, v in {**sets, "train.epochs": 2}.items()])
        session = Session(made, 0, Settings(out=tmp_path, device="cpu"))
        x, y = session.images("val")
        right = (plain_model(session, saved)(x).argmax(1) == y).double().mean().item()
        assert record(tmp_path, result["run"]).rows[-1]["val/clean"] == right


# -- where it starts -------------------------------------------------------------------------------------------------------------------


def test_init_from_a_run_and_from_a_file(go, tmp_path):
    """Both give the same, which is where the other run ended; with no learning rate it stays there."""
    first = go("standard", tmp_path)
    file = tmp_path / "experiments" / first["run"] / "final.safetensors"
    still = {"train.lr": 0.0, "train.epochs": 1, "model.channels": [4, 8, 8]}
    by_name = go("at", tmp_path, **{"train.init": f'"{first["run"]}"'})
    by_file = go("at", tmp_path, **{"train.init": f'"{file}"'})
    assert by_name["weights_sha256"] == by_file["weights_sha256"] and by_name["prefix_key"] == by_file["prefix_key"]
    assert by_name["weights_sha256"] != go("at", tmp_path)["weights_sha256"]
    stayed = go("at", tmp_path, **still, **{"train.init": f'"{first["run"]}"'})
    ours = checkpoint.load(tmp_path / "experiments" / stayed["run"] / "final.safetensors").tensors
    weights = [k for k in ours if k.endswith(("weight", "bias"))]
    assert weights and all(torch.equal(ours[k], checkpoint.load(file).tensors[k]) for k in weights)
    with pytest.raises(ComposerError, match="neither a file nor a finished run"):
        go("at", tmp_path, **{"train.init": '"nobody"'})


# -- the update ------------------------------------------------------------------------------------------------------------------------


def steps_of(recipe, tiny, tmp_path, **sets):
    """A trainer before its first step."""
    from composer.engine.train import Progress

    made = load(recipe, setting=tiny, sets=[f"{k}={v}" for k, v in sets.items()])
    session = Session(made, 0, Settings(out=tmp_path, device="cpu"))
    node = session.nodes[0]
    parts = session.parts(node, {})
    return Trainer(session, node, Progress(), parts, session.optimizer(node.segment, parts), None)


def gradient(trainer, batch):
    total, *_ = trainer.executor.forward({**batch.roots(), "model": trainer.net.model}, 0)
    return torch.autograd.grad(total, trainer.parameters)


@pytest.mark.parametrize("clip", [0.1, 1e6])
def test_the_gradient_is_clipped_by_its_norm(clip, tiny, tmp_path):
    """One step without momentum and decay moves by lr · g · min(1, clip/|g|), |g| over all parameters together."""
    sets = {"optim.clip": clip, "optim.momentum": 0.0, "optim.weight_decay": 0.0, "train.lr": 0.5}
    trainer = steps_of("standard", tiny, tmp_path, **sets)
    batch = next(iter(trainer.feed.batches(1, 0)))
    grads = gradient(trainer, batch)
    norm = torch.sqrt(sum(g.double().square().sum() for g in grads))
    before = [p.detach().clone() for p in trainer.parameters]
    trainer._step(batch, 1)
    assert (float(norm) > clip) == (clip == 0.1)
    for old, new, g in zip(before, trainer.parameters, grads, strict=True):
        torch.testing.assert_close(new.detach(), old - 0.5 * g * min(1.0, clip / float(norm)), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("decay", ["0.1", "{ use = 'linear', points = [[0, 0.1], [3, 0.1]] }"], ids=["number", "schedule"])
def test_what_is_spared_weight_decay(decay, tiny, tmp_path):
    """Biases and norm layers where they are named, nothing otherwise; a schedule on the decay does not bring them back."""
    moved = {}
    for exclude in ("[]", "['bias', 'norm']"):
        sets = {"optim.clip": 1e6, "optim.momentum": 0.0, "train.lr": 0.5, "optim.decay_exclude": exclude}
        with_decay = steps_of("standard", tiny, tmp_path, **sets, **{"optim.weight_decay": decay})
        without = steps_of("standard", tiny, tmp_path, **sets, **{"optim.weight_decay": 0.0})
        batch = next(iter(with_decay.feed.batches(1, 0)))
        first = {k: v.detach().clone() for k, v in with_decay.net.parameters.items()}
        with_decay._step(batch, 1)
        without._step(batch, 1)
        for name, old in first.items():
            pull = without.net.parameters[name].detach() - with_decay.net.parameters[name].detach()      # lr · decay · w
            moved[exclude, name] = pull.abs().max().item() > 0
            if moved[exclude, name]:
                torch.testing.assert_close(pull, 0.05 * old, rtol=1e-3, atol=1e-6)
    norms = {n for n, m in with_decay.net.model.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    for name, p in first.items():
        spared = name.endswith("bias") or name.rpartition(".")[0] in norms
        assert moved["['bias', 'norm']", name] is (not spared), name
        assert moved["[]", name] or not p.any(), name                      # zero weights have nothing to decay
    assert norms and any(spare for spare in moved.values())
