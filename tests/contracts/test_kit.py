"""The contracts catch what they are for: each breaker below breaks exactly the contract named, and a sound primitive breaks none."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
import torch
import torch.nn.functional as F

from composer import gain, loss, part, view
from composer.errors import ComposerError
from composer.registry import REGISTRY
from composer.shapes import Ge, Images, Labels, Leaf, Logits, LogProbs, Norm, PerExample, Probs, Scalar, Start, ThreatPixels, ThreatSteps, Uniform
from composer.testing import ContractError, contracts, linear_model, plugin, scratch, tensors

COUNTER = [0]


def broken(kind, fn, **rest):
    return {r.contract for r in contracts(kind, fn, strict=False, **rest) if not r.ok}


def documented(fn):
    fn.__doc__ = "A sentence.\n\nFormula: something [nats]\nPaper: somebody"
    return fn


@documented
def sound(logits: Logits, y: Labels, *, temperature: float = 1.0) -> PerExample:
    return F.cross_entropy(logits / temperature, y, reduction="none")


@documented
def reduces(logits: Logits, y: Labels):
    return F.cross_entropy(logits, y)


@documented
def writes(logits: Logits, y: Labels):
    logits.mul_(1.0)
    return F.cross_entropy(logits, y, reduction="none")


@documented
def draws(logits: Logits, y: Labels):
    return F.cross_entropy(logits, y, reduction="none") + torch.rand(len(y)).to(logits)


@documented
def remembers(logits: Logits, y: Labels):
    COUNTER[0] += 1
    return F.cross_entropy(logits, y, reduction="none") + COUNTER[0]


@documented
def overflows(probs: Probs, y: Labels):
    return -probs.gather(1, y[:, None])[:, 0].log()


@documented
def bad_gradient(logits: Logits, y: Labels):
    return (logits - logits.amax(1, keepdim=True)).square().sum(1).clamp(max=1).sqrt() + 0 * y


@documented
def constant(logits: Logits, y: Labels):
    return F.cross_entropy(logits.detach(), y, reduction="none")


@documented
def coupled(logits: Logits, y: Labels):
    each = F.cross_entropy(logits, y, reduction="none")
    return each - each.mean()


@documented
def positional(logits: Logits, y: Labels):
    return F.cross_entropy(logits, y, reduction="none") * torch.arange(len(y)).to(logits)


@documented
def takes_item(logits: Logits, y: Labels, *, scale: float = 2.0):
    return F.cross_entropy(logits, y, reduction="none") * torch.as_tensor(scale).item()


@documented
def branches(logits: Logits, y: Labels, *, scale: float = 2.0):
    each = F.cross_entropy(logits, y, reduction="none")
    return each * scale if each.sum() > 0 else each


@documented
def masks(logits: Logits, y: Labels):
    each = F.cross_entropy(logits, y, reduction="none")
    out = each.clone()
    out[each > 1] = each[each > 1] * 2
    return out


@documented
def rounds_a_dial(logits: Logits, y: Labels, *, scale: float = 2.5):
    return F.cross_entropy(logits, y, reduction="none") * (scale if isinstance(scale, float) else scale.round())


@documented
def bad_choice(logits: Logits, y: Labels, *, mode: Literal["each", "mean"] = "each"):
    return F.cross_entropy(logits, y, reduction="none" if mode == "each" else "mean")


@documented
def reserved(logits: Logits, y: Labels, *, weight: float = 1.0):
    return F.cross_entropy(logits, y, reduction="none") * weight


@pytest.mark.parametrize(("fn", "contract"), [
    (reduces, "shape"), (writes, "pure"), (draws, "pure"), (remembers, "pure"), (overflows, "finite"), (bad_gradient, "finite"), (constant, "finite"),
    (coupled, "permutation"), (positional, "permutation"), (takes_item, "static"), (branches, "static"), (branches, "trace"), (masks, "static"),
    (rounds_a_dial, "dial"),
    (bad_choice, "shape"), (reserved, "names")])
def test_each_breach_is_found(fn, contract):
    assert contract in broken("loss", fn)


def test_a_sound_loss_breaks_none_and_messages_name_what_broke():
    assert broken("loss", sound) == set()
    with pytest.raises(ContractError, match="loss/bad_choice breaks the contract 'shape': mode = 'mean': it returns a tensor") as caught:
        contracts("loss", bad_choice)
    assert caught.value.failures and not any(r.ok for r in caught.value.failures)


@pytest.mark.parametrize("doc", [None, "No formula.\n\nPaper: x", "No unit.\n\nFormula: x\nPaper: y", "No paper.\n\nFormula: x [1]",
                                 "No sentence\n\nFormula: x [1]\nPaper: y"])
def test_the_card_is_read(doc):
    def bare(logits: Logits, y: Labels):
        return F.cross_entropy(logits, y, reduction="none")

    bare.__doc__ = doc
    assert broken("loss", bare) == {"card"}


def test_a_batch_coupled_loss_says_so_and_must_still_follow_a_permutation():
    with scratch():
        assert broken("loss", loss(couples="batch")(coupled)) == set()
        assert broken("loss", loss(couples="batch")(positional)) == {"permutation"}


def test_neutral_values_are_tried():
    @documented
    def leaning(probs: Probs, y: Labels, *, slope: float = 1.0):
        return 1 + slope * probs.gather(1, y[:, None])[:, 0]

    @documented
    def shifted(logits: Logits, *, by: float = 1.0):
        return logits + by

    with scratch():
        assert broken("gain", gain(neutral={"slope": 0.0})(leaning)) == set()
        REGISTRY._of["gain"].clear()
        assert broken("gain", gain(neutral={"slope": 1.0})(leaning)) == {"neutral"}
        assert broken("view", view(neutral={"by": 0.0})(shifted)) == set()
        REGISTRY._of["view"].clear()
        assert broken("view", view(neutral={"by": 0.5})(shifted)) == {"neutral"}


@pytest.mark.filterwarnings("ignore:Dynamo does not know")        # it traces the failing assert's message
def test_needs_are_made_from_their_annotation_and_options_may_be_given():
    @documented
    def odd(some_logp: LogProbs, found: PerExample, noise: Uniform, y: Labels, *, mode: str):
        assert mode == "right"
        return found - some_logp.gather(1, y[:, None])[:, 0] + 0 * noise.flatten(1).sum(1)

    @documented
    def unknown(mystery, y: Labels):
        return mystery

    assert broken("loss", odd, options={"mode": "right"}) == set()
    assert "shape" in broken("loss", odd)
    assert "annotate it" in contracts("loss", unknown, strict=False)[2].message


def test_a_loss_of_input_gradients_is_differentiated_twice():
    @documented
    def input_norm(logits: Logits, x: Leaf):
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return slope.flatten(1).square().sum(1)

    assert broken("loss", input_norm) == set()


@documented
def lazy_attack(x: Images, climb, eps: Scalar, draws, *, step: ThreatPixels, steps: ThreatSteps, start: Start, norm: Norm):
    return {"point": norm(x, eps).project(start(x, norm(x, eps), draws["start"][0]))}


@documented
def unbounded(x: Images, climb, eps: Scalar, draws, *, steps: ThreatSteps):
    for _ in range(steps):
        x = x + eps * climb(point=x).grads["point"].sign()
    return {"point": x}


def test_inner_maxima_are_judged_by_the_optimum():
    assert broken("inner", lazy_attack) == {"optimum linf", "optimum l2"}
    assert "inside" in broken("inner", unbounded)


def test_parts_that_forget_or_meddle_are_found():
    class Base:
        """A sentence.

        Formula: m [1]
        Paper: somebody
        """

        makes, per_point, writes_model = ("logits",), True, False

        def __init__(self, *, decay: Annotated[float, Ge(0)] = 0.5):
            self.decay = decay

        def start(self, facts):
            self.memory, self.count = {p: torch.zeros(facts.batch_size, facts.classes) for p in facts.points}, torch.zeros(())

        offset = 0

        def read(self, logits: Logits, *, point):
            return {"logits": self.decay * self.memory[point][self.offset:self.offset + len(logits)] + (1 - self.decay) * logits}

        def after_step(self, logits: Logits, *, point):
            self.count += 1
            self.memory[point][: len(logits)].copy_(self.read(logits, point=point)["logits"])

        def state_dict(self):
            return dict(self.memory)

        def load_state_dict(self, state):
            for point in self.memory:
                self.memory[point].copy_(state[point])

    class Forgets(Base):
        __doc__ = Base.__doc__

        def state_dict(self):
            return {p: v for p, v in self.memory.items() if p == "adv"}

        def load_state_dict(self, state):
            self.memory["adv"].copy_(state["adv"])

    class Rebinds(Base):
        __doc__ = Base.__doc__

        def after_step(self, logits: Logits, *, point):
            new = self.memory[point].clone()
            new[: len(logits)] = self.read(logits, point=point)["logits"]
            self.memory[point] = new

    class Meddles(Base):
        __doc__ = Base.__doc__

        def epoch_end(self, model, *, epoch):
            with torch.no_grad():
                next(model.parameters()).mul_(0.5)

    class Places(Base):
        __doc__ = Base.__doc__

        def read(self, logits: Logits, *, point):
            return {"logits": self.decay * self.memory[point][: len(logits)] + (1 - self.decay) * logits}

    class Hides(Base):
        __doc__ = Base.__doc__

        def __init__(self, *, decay: float = 0.5, secret: int = 1):
            self.decay = decay

    assert broken("part", Base) == set()
    assert broken("part", Forgets) == {"resume"}
    assert "in place" in broken("part", Rebinds)
    assert "leaves the model" in broken("part", Meddles)
    assert broken("part", Places) == {"divides"}
    assert broken("part", Hides) == {"attributes"}
    with scratch():
        Base.__name__ = "base"
        assert broken("part", part(neutral={"decay": 0.0})(Base)) == set()
        assert broken("part", part(neutral={"decay": 0.5})(Forgets)) >= {"neutral"}


def test_schedules_and_phases():
    @documented
    def clockless(time):
        return 1.0

    @documented
    def divides(epoch, *, value: float = 1.0):
        return value / (epoch - 1) if epoch > 1 else float("nan")

    @documented
    def idle():
        return {"set": {}}

    assert "clock" in broken("schedule", clockless) and broken("schedule", divides) == {"number"}
    assert broken("phase", idle) == {"edit"}


def test_unknown_kind_and_name():
    with pytest.raises(ComposerError, match="no kind 'lose'"):
        contracts("lose", sound)
    with pytest.raises(ComposerError, match="no schedule 'pia'"):
        contracts("schedule", "pia")


def test_a_test_loads_the_plugin_beside_it(tmp_path):
    (tmp_path / "mine.py").write_text("from composer import schedule\n\n@schedule\ndef mine(epoch):\n    return 1.0\n")
    with scratch():
        REGISTRY.frozen = True
        module = plugin(tmp_path / "test_mine.py")
        assert module.mine(3) == 1.0 and REGISTRY.get("schedule", "mine").fn is module.mine and REGISTRY.frozen
        assert plugin(tmp_path / "test_mine.py") is module


def test_tensors_are_consistent():
    t = tensors(n=6, classes=5, seed=3, dtype=torch.float64, shape=(1, 4, 4))
    for point, x in (("clean", "x"), ("adv", "x_adv")):
        torch.testing.assert_close(t[f"{point}_logits"], t[x].flatten(1) @ t["head_weight"].T + t["model"].head.bias)
        torch.testing.assert_close(t[f"{point}_probs"], t[f"{point}_logits"].softmax(1))
        torch.testing.assert_close(t[f"{point}_logp"].exp(), t[f"{point}_probs"])
    assert t["logits"] is t["adv_logits"] and t["a"] is t["adv_logits"] and t["target_logp"] is t["clean_logp"]
    right = t["clean_logits"].argmax(1) == t["y"]
    assert right[0::2].all() and not right[1::2].any()
    torch.testing.assert_close(t["y_soft"].sum(1), torch.ones(6, dtype=torch.float64))
    assert (t["x"] - t["x_adv"]).abs().max() <= 8 / 255 and not any(v.requires_grad for v in t.values() if isinstance(v, torch.Tensor))
    assert torch.equal(tensors(seed=4)["x"], tensors(seed=4)["x"]) and not torch.equal(tensors(seed=4)["x"], tensors(seed=5)["x"])


@pytest.mark.parametrize(("norm", "power"), [("linf", None), ("l2", 2), ("l1", 1)])
def test_the_margin_is_the_exact_distance(norm, power):
    """A step of just under the margin in the steepest direction towards the nearest class keeps the label, just over it changes it."""
    t = tensors(n=6, classes=4, seed=1, dtype=torch.float64, shape=(1, 3, 3))
    model, x, y = t["model"], t["x"], t["clean_logits"].argmax(1)
    distance, weight = model.margin(x, y, norm), model.head.weight.detach()
    assert (distance > 0).all()
    crossed = []
    for k in range(4):
        slope = weight[k] - weight[y]                                                        # [N,D]
        if norm == "linf":
            direction = slope.sign()
        elif norm == "l2":
            direction = slope / slope.norm(dim=1, keepdim=True).clamp(min=1e-12)
        else:
            top = slope.abs().argmax(1)
            direction = F.one_hot(top, slope.shape[1]).double() * slope.gather(1, top[:, None]).sign()
        for factor, changes in ((0.999, False), (1.001, True)):
            z = model(x + factor * distance[:, None, None, None] * direction.reshape(x.shape))
            if changes:
                crossed.append(z[torch.arange(6), k] > z[torch.arange(6), y])
            else:
                assert (z[torch.arange(6), k] <= z[torch.arange(6), y] + 1e-12).all()
    assert torch.stack(crossed).any(0).all()
    wrong = (y + 1) % 4
    assert (model.margin(x, wrong, norm) < 0).all()
    assert linear_model(4, (1, 3, 3), 1).head.weight.dtype == torch.float32


def test_balls_and_starts_that_leak_are_found():
    sound_ball = REGISTRY.get("ball", "linf").fn

    class leaky(sound_ball):
        __doc__ = sound_ball.__doc__

        def project(self, point):
            return torch.minimum(torch.maximum(point, self.x - self.eps), self.x + self.eps)

        def draw(self, noise):
            return self.x + (4 * noise - 2) * self.eps

        def steepest(self, grad):
            return grad / grad.flatten(1).norm(dim=1)[:, None, None, None]

    @documented
    def wandering(x: Images, ball, noise: Uniform):
        return x + torch.rand_like(x)

    assert broken("ball", sound_ball) == set()
    assert broken("ball", leaky) == {"projection", "draw", "steepest"}
    assert "shape" in broken("start", wandering)


def test_inner_maxima_must_take_radii_of_any_form_and_declare_what_they_make():
    @documented
    def one_step(x: Images, climb, eps: Scalar, draws, *, norm: Norm):
        if isinstance(eps, torch.Tensor) and eps.ndim:
            eps = eps * torch.arange(len(eps))
        return {"point": norm(x, eps).project(x + (x - x.mean(0)) * 0 + norm(x, eps).steepest(climb(point=x).grads["point"]))}

    @documented
    def by_row(x: Images, climb, eps: Scalar, draws, *, norm: Norm):
        return {"point": norm(x, eps).project(x + torch.linspace(0, 1, len(x))[:, None, None, None])}

    from composer import inner

    assert "radius" in broken("inner", one_step)
    assert "permutation" in broken("inner", by_row)
    with scratch():
        assert "form" in broken("inner", inner(makes=("kappa",), optimum=False)(one_step))
