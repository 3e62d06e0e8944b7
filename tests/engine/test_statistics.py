"""Running statistics are inputs of a step: handed out by passes, written afterwards in the recipe's order, and no gradient is hurt by them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composer.bench.nets import batch, net
from composer.bench.subject import Subject, load_like_plain
from composer.engine.net import Net
from composer.engine.scope import install

N = 8
CPU = torch.device("cpu")


def images(n: int = N, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, y = batch("cnn8", n, seed=seed)
    return x.double(), y


def worn(model: nn.Module) -> nn.Module:
    """A network whose running statistics are those of nothing it will see: mean -0.2, variance 0.4 (and no ReLU is dead)."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.fill_(-0.2)
            m.running_var.fill_(0.4)
    return model


def fresh() -> nn.Module:
    return worn(net("cnn8").double())


def make(recipe: str, *, sets: tuple[str, ...] = (), drops: tuple[str, ...] = (), **options) -> Subject:
    made = load_like_plain(recipe, steps=2, lr=0.01, sets=sets)
    if drops:
        made = made.edit(drop=list(drops))
    return Subject(made, fresh(), *images(), **options)


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# -- the rule itself -------------------------------------------------------------------------------------------------------------------------


def alone() -> tuple[Tensor, Tensor]:
    """Gradients of an eval pass and of a train pass, each on a network of its own: the truth."""
    x, y = images()
    found = []
    for train in (False, True):
        model = fresh().train(train)
        F.cross_entropy(model(x), y).backward()
        found.append(flat_gradient(model))
    return found[0], found[1]


def test_an_eval_pass_before_a_train_pass_keeps_its_gradient():
    x, y = images()
    ours = Net(fresh(), CPU)
    evaluated, _ = ours(x, batch=False)
    trained, _ = ours(x, batch=True, scratch=ours.stats.scratch())
    (F.cross_entropy(evaluated, y) + F.cross_entropy(trained, y)).backward()
    truth = sum(alone())
    torch.testing.assert_close(flat_gradient(ours.model), truth, rtol=1e-10, atol=1e-12)


def test_plain_batch_norm_breaks_it():
    """Why the rule exists: nn.BatchNorm2d writes in the forward, and the gradient of the eval pass before it is silently another one."""
    x, y = images()
    model = fresh()
    evaluated = model.eval()(x)
    trained = model.train()(x)
    (F.cross_entropy(evaluated, y) + F.cross_entropy(trained, y)).backward()
    truth = sum(alone())
    assert float((flat_gradient(model) - truth).norm() / truth.norm()) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_handed_out_are_those_batch_norm_writes(dtype):
    """One write equals nn.BatchNorm2d's in-place update: running means and variances, and the count of batches."""
    x, _ = images()
    plain, ours = fresh().to(dtype).train(), Net(fresh().to(dtype), CPU)
    expected = plain(x.to(dtype))
    scratch = ours.stats.scratch()
    logits, _ = ours(x.to(dtype), batch=True, scratch=scratch)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    before = {k: v.clone() for k, v in ours.model.state_dict().items()}
    assert all(torch.equal(before[k], v) for k, v in fresh().to(dtype).state_dict().items()), "the pass itself wrote something"
    ours.stats.write(scratch)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], value, rtol=1e-6, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_momenta_may_differ_between_layers():
    x, _ = images()
    pair = []
    for _ in range(2):
        model = fresh()
        model[1].momentum, model[4].momentum = 0.3, 0.05
        pair.append(model)
    plain, ours = pair[0].train(), Net(pair[1], CPU)
    plain(x)
    scratch = ours.stats.scratch()
    ours(x, batch=True, scratch=scratch)
    ours.stats.write(scratch)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_scoped_networks_load_and_copy_as_others_do():
    """Names of the state are the plain network's; what is loaded reaches the flat statistics, which passes read."""
    ours = Net(fresh(), CPU)
    other = net("cnn8", seed=5).double()
    other(images()[0])
    assert set(ours.model.state_dict()) == set(other.state_dict())
    ours.model.load_state_dict(other.state_dict())
    assert float((ours.stats.flat[:32] - other[1].running_mean).abs().max()) == 0
    x, _ = images(seed=1)
    torch.testing.assert_close(ours(x, batch=False)[0], other.eval()(x), rtol=1e-12, atol=1e-12)


def test_after_a_failed_pass_the_network_stands_in_eval_mode():
    ours = Net(fresh(), CPU)
    with pytest.raises(RuntimeError):
        ours(torch.zeros(2, 3, 8, 8, dtype=torch.float64), batch=True, scratch=ours.stats.scratch())
    assert not ours.scope.batch and ours.scope.scratch is None


# -- order and replay ------------------------------------------------------------------------------------------------------------------------


def written_by_hand(model: nn.Module, points: list[Tensor], order: list[int]) -> dict[str, Tensor]:
    """Running statistics after nn.BatchNorm2d has seen these points in this order, weights untouched."""
    seen = copy.deepcopy(model).train()
    for k in order:
        seen(points[k])
    return {name: value for name, value in seen.state_dict().items() if "running" in name or "tracked" in name}


@pytest.mark.parametrize(("updates", "order"), [("['x','x_adv','x']", [0, 1, 0]), ("['x','x_adv']", [0, 1]), ("['x_adv','x']", [1, 0]),
                                                ("['x_adv']", [1]), ("['x','x','x_adv','x_adv']", [0, 0, 1, 1])])
def test_writes_come_in_the_order_of_updates(updates, order):
    """TRADES' nat, adv, nat and others: two passes, any order, repeats replayed; a point that is not named writes nothing."""
    subject = make("trades", sets=(f"outer.updates={updates}",))
    envs = []
    forward = subject.trainer.executor.forward
    subject.trainer.executor.forward = lambda *args: envs.append((found := forward(*args)) and (*found[:2], dict(found[2]))) or found
    subject()
    x_adv = envs[0][2]["x_adv"].contiguous()
    expected = written_by_hand(fresh(), [images()[0], x_adv], order)
    state = subject.model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("mode", ["train_frozen", "eval"])
def test_modes_that_write_nothing(mode):
    subject = make("trades", sets=(f"outer.bn={mode}",), drops=("outer.updates",))
    for _ in range(2):
        subject()
    state, before = subject.model.state_dict(), fresh().state_dict()
    for name, value in before.items():
        same = torch.equal(state[name], value)
        assert same if "running" in name or "tracked" in name else not same, name


def test_frozen_passes_use_the_batch():
    """train_frozen is train mode without writes: the loss is the one of train mode, not of eval mode."""
    losses = {}
    for mode in ("train", "train_frozen", "eval"):
        subject = make("standard", sets=(f"outer.bn={mode}",))
        losses[mode] = float(subject.trainer.executor.forward(subject.batch.roots(), 0)[0].detach())
    assert losses["train"] == losses["train_frozen"] != losses["eval"]


def test_eval_attacks_see_the_statistics_of_the_steps_start_and_write_none():
    subject = make("at")
    made = subject.trainer.executor.forward({**subject.batch.roots(), "model": subject.model}, 0)
    assert made[2]["x_adv"].shape == subject.batch.x.shape
    assert all(torch.equal(v, fresh().state_dict()[k]) for k, v in subject.model.state_dict().items()), "written before the backward"


def test_train_mode_attacks_write_as_they_come():
    """Rice: two attack steps write twice before the loss; then x_adv twice, and the clean pass at the updated weights."""
    subject = make("at_rice")
    subject.trainer.executor.forward({**subject.batch.roots(), "model": subject.model}, 0)
    assert int(subject.session.net.stats.count[0]) == 2
    subject = make("at_rice")
    subject()
    assert int(subject.session.net.stats.count[0]) == 5


# -- batch norm over some rows ---------------------------------------------------------------------------------------------------------------


KEPT = {"some": [1, 0, 1, 1, 0, 1, 0, 0], "all": [1] * 8, "two": [0, 0, 0, 1, 1, 0, 0, 0]}


def layers() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(3)
    plain = nn.BatchNorm2d(5).double()
    with torch.no_grad():
        plain.weight.normal_()
        plain.bias.normal_()
    return worn(nn.Sequential(plain)), worn(nn.Sequential(copy.deepcopy(plain)))


@pytest.mark.parametrize("kept", KEPT)
def test_masked_batch_norm_is_batch_norm_of_the_subset(kept):
    """Kept rows: values, gradients of input, weight and bias, and the statistics written, to 1e-9."""
    mask = torch.tensor(KEPT[kept], dtype=torch.bool)
    x = torch.randn(8, 5, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pull = torch.randn(8, 5, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    plain, masked = layers()
    scope, stats = install(masked, CPU)
    a, b = x[mask].clone().requires_grad_(), x.clone().requires_grad_()
    expected = plain.train()(a)
    scope.batch, scope.scratch, scope.rows = True, stats.scratch(), mask
    found = masked(b)
    torch.testing.assert_close(found[mask], expected, rtol=1e-9, atol=1e-9)
    (expected * pull[mask]).sum().backward()
    (found * pull * mask[:, None, None, None]).sum().backward()
    torch.testing.assert_close(b.grad[mask], a.grad, rtol=1e-9, atol=1e-9)
    assert not b.grad[~mask].any(), "a row that is not kept reaches the statistics"
    torch.testing.assert_close(masked[0].weight.grad, plain[0].weight.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(masked[0].bias.grad, plain[0].bias.grad, rtol=1e-9, atol=1e-9)
    stats.write(scope.scratch)
    torch.testing.assert_close(masked[0].running_mean, plain[0].running_mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(masked[0].running_var, plain[0].running_var, rtol=1e-9, atol=1e-9)


def test_no_kept_row_is_no_update():
    _, masked = layers()
    scope, stats = install(masked, CPU)
    before = stats.flat.clone()
    x = torch.randn(8, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    scope.batch, scope.scratch, scope.rows = True, stats.scratch(), torch.zeros(8, dtype=torch.bool)
    out = masked(x)
    (out.square().mean(dim=(1, 2, 3)) * scope.rows).sum().backward()
    stats.write(scope.scratch)
    torch.testing.assert_close(stats.flat, before, rtol=1e-15, atol=1e-15)
    assert torch.isfinite(out).all() and torch.isfinite(x.grad).all() and not x.grad.any()


# -- the attack and the weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["at", "at_rice", "trades", "mart_ours", "mwpb_trades"])
def test_the_attack_leaves_parameter_gradients_alone(recipe):
    """Neither made where there are none, nor added to where there are some; and the weights are back on the tape afterwards."""
    subject = make(recipe)
    roots = {**subject.batch.roots(), "model": subject.model}
    executor = subject.trainer.executor
    executor.forward(roots, 0)
    assert all(p.grad is None and p.requires_grad for p in subject.model.parameters())
    marks = {}
    for name, p in subject.model.named_parameters():
        p.grad = torch.full_like(p, 7.0)
        marks[name] = p.grad
    executor.forward(roots, 1)
    for name, p in subject.model.named_parameters():
        assert p.grad is marks[name] and bool((p.grad == 7.0).all()), name


def test_an_attack_that_fails_leaves_the_weights_trainable():
    subject = make("at")

    def broken(env):
        raise ValueError("no")

    subject.trainer.executor._inner = [broken]
    with pytest.raises(ValueError, match="no"):
        subject.trainer.executor.forward(subject.batch.roots(), 0)
    assert all(p.requires_grad for p in subject.model.parameters())


def test_a_normalised_gain_that_counts_nobody_is_zero():
    """Mean one where it can be; a batch without a single kept image has loss zero and no gradient, not 0/0."""
    from composer.engine.step import _mean_one

    gain = torch.tensor([0.0, 3.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(_mean_one(gain), gain * 0.75)
    none = torch.zeros(3, requires_grad=True)
    (_mean_one(none) * 2.0).sum().backward()
    assert not _mean_one(none).any() and torch.isfinite(none.grad).all()
