"""PIAT's `buffers = "recompute"`: running statistics taken anew at the interpolated weights, from batches of the part's own streams."""

from __future__ import annotations

import copy

import pytest
import torch

from composer.bench.counter import PassCounter
from composer.bench.subject import Bench
from composer.engine.net import Net
from composer.errors import Stopped
from composer.models.build import build_model
from composer.plan.cost import epoch_forwards
from composer.plan.explain import explain
from composer.recipe.load import load
from composer.verbs.show import plans_dict

AGAIN = 'parts.interpolate.buffers="recompute"'


@pytest.fixture
def bench(tiny):
    """A trainer of PIAT's last stretch on 64 digits (two batches of 24, one of 16), its weights two steps away from where it began."""
    from composer.data.sets import load as data

    def make(*sets, augment=True):
        recipe = load("piat", setting=tiny, sets=[AGAIN, *sets])
        if augment:
            recipe = recipe.edit(put={"augment.shift": {"use": "crop", "pad": 1}})
        dataset = data(recipe.data.use, recipe.data.options, "", False)
        session = Bench(recipe, build_model(recipe.model, dataset.shape, dataset.classes, seed=0), dataset=dataset)
        session.rows = torch.arange(64)
        trainer = session.trainer()
        for k, batch in enumerate(trainer.feed.batches(2, 3)):
            if k < 2:
                trainer._step(batch, 2)
        return trainer

    return make


def plain_statistics(model, batches):
    """Means and variances of every batch norm by torch's own module in train mode, averaged over images; counters as they were."""
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    found, images = {}, 0
    for x in batches:
        fresh = copy.deepcopy(model)                      # a copy is its own module: its buffers are no views of the flat tensor
        layers = {name: m for name, m in fresh.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
        for layer in layers.values():
            layer.__class__ = torch.nn.BatchNorm2d
            layer.running_mean, layer.running_var = torch.zeros_like(layer.running_mean), torch.ones_like(layer.running_var)
            layer.momentum = 1.0
        fresh.train()
        with torch.no_grad():
            fresh(x)
        for name, layer in layers.items():
            for key in ("running_mean", "running_var"):
                found[f"{name}.{key}"] = found.get(f"{name}.{key}", 0) + len(x) * getattr(layer, key).double()
        images += len(x)
    assert found and all(name in weights for name in found)
    return {name: total / images for name, total in found.items()}


def test_the_statistics_are_those_of_the_images_at_the_interpolated_weights(bench):
    trainer = bench()
    session, model = trainer.session, trainer.net.model
    began = {name: value.clone() for name, value in trainer.parts["interpolate"].state_dict().items()}
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    trainer._end_epoch(2)
    lam = (2 + 1) / (2 + 10)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), lam * began[name] + (1 - lam) * trained[name])
    batches = list(session.batches("interpolate", 2))
    assert [len(x) for x in batches] == [24, 24, 16]
    state = model.state_dict()
    for name, expected in plain_statistics(model, batches).items():
        torch.testing.assert_close(state[name].double(), expected, rtol=1e-4, atol=1e-6)
        assert not torch.equal(state[name], trained[name])
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert counters and all(torch.equal(state[name], trained[name]) for name in counters)


def test_the_images_are_an_epoch_of_training_from_streams_of_its_own(bench):
    trainer = bench()
    mine, again = (torch.cat(list(trainer.session.batches("interpolate", 2))) for _ in range(2))
    theirs = torch.cat([batch.x for batch in trainer.feed.batches(2, 3)])
    assert torch.equal(mine, again) and not torch.equal(mine, theirs)
    assert not torch.equal(mine, torch.cat(list(trainer.session.batches("interpolate", 3))))
    bare = bench(augment=False)                                  # the rows are those of training, each once
    mine, theirs = torch.cat(list(bare.session.batches("interpolate", 2))), torch.cat([batch.x for batch in bare.feed.batches(2, 3)])
    assert sorted(map(tuple, mine.flatten(1).tolist())) == sorted(map(tuple, theirs.flatten(1).tolist())) and not torch.equal(mine, theirs)


@pytest.mark.parametrize(("sets", "passes"), [((), {1: 3, 2: 3}), (("parts.interpolate.recompute_batches=2",), {1: 2, 2: 2}),
                                              (("parts.interpolate.recompute_batches=7",), {2: 3}), (("parts.interpolate.start_epoch=2",), {1: 0, 2: 3}),
                                              (('parts.interpolate.buffers="copy"',), {2: 0})])
def test_the_end_of_an_epoch_makes_the_passes_of_its_plan(bench, sets, passes):
    for epoch, many in passes.items():
        trainer = bench(*sets)
        assert sum(epoch_forwards(trainer.plan, epoch=epoch, batches=trainer.feed.steps).values()) == many
        with PassCounter(trainer.net.model) as counter:
            trainer._end_epoch(epoch)
        assert (counter.counts.forward, counter.counts.dgrad, counter.counts.wgrad) == (many, 0, 0)


def test_the_cost_is_shown(tiny):
    recipe = load("piat", setting=tiny, sets=[AGAIN])
    shown = plans_dict(recipe)["plans"][-1]
    assert shown["epoch_end"] == {"interpolate": "all"} and "epoch end interpolate: every training batch forward" in shown["text"]
    few = load("piat", setting=tiny, sets=[AGAIN, "parts.interpolate.recompute_batches=2"])
    assert plans_dict(few)["plans"][-1]["epoch_end"] == {"interpolate": 2} and "2 training batches" in plans_dict(few)["plans"][-1]["text"]
    assert plans_dict(load("piat", setting=tiny))["plans"][-1]["epoch_end"] == {} and "epoch end" not in explain(_plan("piat", tiny))


def _plan(name, setting):
    from composer.plan.whole import plans_of

    return plans_of(load(name, setting=setting))[-1][1]


def test_a_network_without_batch_norm_has_nothing_to_recompute():
    from types import SimpleNamespace

    from composer.parts.interpolate import interpolate

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    part = interpolate(lam=0.5, buffers="recompute")
    part.start(SimpleNamespace(model=model, net=Net(model, torch.device("cpu")), batches=None))
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        model[1].weight.add_(1.0)
        part.epoch_end(model, epoch=1)
    torch.testing.assert_close(model[1].weight.detach(), before[0] + 0.5)


def test_a_run_resumes_with_its_bits_and_counts_these_passes(go, stop_after, tmp_path):
    sets = {"parts.interpolate.buffers": "recompute"}
    whole = go("piat", tmp_path / "whole", **sets)
    for steps in (2, 3):
        stop_after(steps)
        with pytest.raises(Stopped):
            go("piat", tmp_path / "parts", **sets)
    stop_after(None)
    parts = go("piat", tmp_path / "parts", **sets)
    assert parts["weights_sha256"] == whole["weights_sha256"] and parts["metrics"] == whole["metrics"]
    usual = go("piat", tmp_path / "usual")
    assert whole["passes"]["forward"] - usual["passes"]["forward"] == whole["steps"] and whole["weights_sha256"] != usual["weights_sha256"]
