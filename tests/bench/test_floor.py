"""The floor against sums by hand, passes as the engine makes them, and layers as they are called: on scripted clocks, but for one test."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from composer.bench import gates as gates_module
from composer.bench import products as products_module
from composer.bench.counter import flops
from composer.bench.floor import ROUNDS, Floor, Layer, floor, floor_of
from composer.bench.gates import Gate, gates
from composer.bench.nets import SHAPES, batch, net
from composer.bench.products import KINDS, Product, Way, on_cpu, on_cuda, products, ways
from composer.bench.run import Case, measure
from composer.bench.subject import subject
from composer.bench.timer import Timing, Variant, interleave
from composer.errors import ComposerError
from composer.plan.cost import plan_cost
from composer.plan.types import Cost

ATTACK = Cost(forward=13, dgrad=12, wgrad=2)            # TRADES with ten steps


def one(way: Way) -> tuple[float]:
    return (1.0,)


def of(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*layers)


# -- the sum ---------------------------------------------------------------------------------------------------------------------------------


def test_a_small_net_by_hand():
    """Layers of 3 and 6 weights: every computation costs its layer's weights, an input gradient as much again, a weight gradient thrice that."""
    model = of(nn.Flatten(), nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 6))
    dear = {"forward": 1, "dgrad": 2, "wgrad": 3}
    found = floor(model, torch.rand(5, 1, 1, 3), ATTACK, timer=lambda way: (way.product.weight[0] * way.product.weight[1] * dear[way.kind],))
    first, last = 3 * (13 * 1 + (12 - 2) * 2 + 2 * 3), 6 * (13 * 1 + 12 * 2 + 2 * 3)
    assert found.seconds == first + last == 375 and [layer.seconds for layer in found.layers] == [first, last]


@pytest.mark.parametrize("name", SHAPES)
def test_where_time_is_arithmetic_the_floor_is_the_arithmetic(name):
    """A clock that counts multiplications and additions: the floor is what `counter.flops` finds, less the first layer's idle gradients."""
    def arithmetic(way: Way) -> float:
        p = way.product
        stride, padding = p.way[:2] if p.way else ((), ())
        out = [(n + 2 * q - k) // s + 1 for n, k, s, q in zip(p.x[2:], p.weight[2:], stride, padding, strict=True)]
        return 2 * p.x[0] * torch.Size(out).numel() * torch.Size(p.weight).numel()

    model, (x, _) = net(name), batch(name, 2)
    found = floor(model, x, ATTACK, rounds=1, timer=lambda way: (arithmetic(way),))
    (first,) = [layer for layer in found.layers if layer.product.first]
    assert found.seconds == 2 * flops(model, SHAPES[name]) * (13 + 12 + 2) - 2 * arithmetic(Way(first.product, "dgrad", "", one))
    assert first.product.weight[1] == SHAPES[name][0]


def test_of_each_way_the_median_and_of_the_ways_the_least():
    """Contiguous has the fastest single call and a better mean; by channels has the better median."""
    times = {"contiguous": iter([1.0, 5.0, 5.0, 1.0, 5.0]), "channels_last": iter([4.0, 4.0, 40.0, 4.0, 4.0])}
    slow = iter([9.0] * 100)
    found = floor(of(nn.Conv2d(2, 3, 3)), torch.rand(1, 2, 5, 5), Cost(forward=2), timer=lambda way: (next(times.get(way.layout, slow)),))
    assert ROUNDS == 5 and found.layers[0].best == {"forward": ("channels_last", 4.0)} and found.seconds == 8.0


def test_ways_take_turns():
    """A slow second falls on all ways, not on one: in each round each way is timed once, and in one order."""
    order: list[tuple] = []

    def timer(way: Way) -> tuple[float]:
        order.append((way.product.weight, way.kind, way.layout))
        return (1.0,)

    floor(net("cnn8"), batch("cnn8", 2)[0], ATTACK, rounds=3, timer=timer)
    third = len(order) // 3
    assert order[:third] == order[third:2 * third] == order[2 * third:] and len(set(order)) == third


def test_a_layers_seconds_and_the_report():
    passes, best = {"forward": 3, "dgrad": 0, "wgrad": 1}, {"forward": ("in x out", 0.25), "wgrad": ("out x in", 1.0)}
    layer = Layer(Product((8, 3), (4, 3), (), True), 2, passes, best)
    timing = Timing("base", {"base": Variant((7.0, 9.0, 70.0), (1.0,), (4.0, 8.0, 6.0)), "other": Variant((3.5,), (2.0,), (3.0,))}, ())
    found = Floor((layer, layer)).as_dict(timing)
    assert found["ms"] == 7000.0 and found["over"] == {"base": 9 / 7, "other": 0.5} and json.loads(json.dumps(found)) == found
    assert "over_processor" not in found, "a device has no processor time"
    assert Floor((layer,), 2.0).as_dict(timing).items() >= {"processor_ms": 2000.0, "over_processor": {"base": 3.0, "other": 1.5}}.items()
    assert found["layers"][0] == {"input": [8, 3], "weight": [4, 3], "first": True, "calls": 2, "passes": passes, "ms": 3500.0,
                                  "best": {"forward": {"layout": "in x out", "ms": 250.0}, "wgrad": {"layout": "out x in", "ms": 1000.0}}}


def test_the_table_has_a_row_and_a_column():
    timing = Timing("faithful", {"faithful": Variant((2.0,), (1.0,)), "eager": Variant((1.0,), (2.0,))}, ())
    head, faithful, eager, last = timing.text(machine=False, floor=0.8).splitlines()
    assert head.split() == ["ms", "/", "floor", "faster", "minima", "range"]
    assert faithful.split()[:3] == ["faithful", "2000.00", "2.50"] and eager.split()[:4] == ["eager", "1000.00", "1.25", "2.000"]
    assert last.split() == ["floor", "800.00", "1.00", "2.500"] and "floor" not in timing.text(machine=False)


def test_a_noisy_table_says_it_in_processor_time_too():
    variants = {"faithful": Variant((2.0,), (1.0,), (1.5,)), "eager": Variant((1.0,), (2.0,), (0.75,))}
    layer = Layer(Product((1, 1), (1, 1)), 1, {"forward": 1}, {"forward": ("in x out", 0.8)})
    quiet, noisy = (Timing("faithful", variants, reasons) for reasons in ((), ("load",)))
    assert Floor((layer,), 0.5).table(quiet) == quiet.text(machine=False, floor=0.8)
    assert Floor((layer,)).table(noisy) == noisy.text(machine=False, floor=0.8)
    assert Floor((layer,), 0.5).table(noisy).splitlines()[-1] == "over the floor in processor time, as the clock was noisy: faithful 3.00, eager 1.50"


def test_the_fastest_way_is_chosen_by_each_clock_apart():
    times = {"contiguous": (1.0, 5.0), "channels_last": (2.0, 4.0), "packed": (3.0, 6.0)}
    found = floor(of(nn.Conv2d(2, 3, 3)), torch.rand(1, 2, 5, 5), Cost(forward=10), timer=lambda way: times[way.layout])
    assert (found.seconds, found.processor) == (10.0, 40.0) and found.layers[0].best["forward"][0] == "contiguous"


# -- layers and passes -----------------------------------------------------------------------------------------------------------------------


class Made(TorchDispatchMode):
    """Convolutions a step makes, by weight and kind."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name == "aten::convolution":
            self.found[tuple(args[1].shape), "forward"] += 1
        elif func._schema.name == "aten::convolution_backward":
            for kind, wanted in zip(("dgrad", "wgrad"), args[-1], strict=False):
                self.found[tuple(args[2].shape), kind] += bool(wanted)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", ["standard", "at", "at_rice", "trades", "mart_ours", "awp_trades"])
def test_passes_by_layer_are_those_the_engine_makes(recipe):
    """The first layer's as well, whose input gradients are fewer."""
    step = subject(recipe, "cnn8", n=4, steps=3)
    with Made() as made:
        step()
    found = floor(step.model, step.batch.x, plan_cost(step.plan), rounds=1, timer=one)
    assert {(layer.product.weight, kind): n for layer in found.layers if layer.product.way for kind, n in layer.passes.items() if n} == {
        key: n for key, n in made.found.items() if n}
    assert sum(layer.product.first for layer in found.layers) == 1


@pytest.mark.parametrize("recipe", ["at", "trades", "mart_ours", "awp_trades"])
def test_layers_times_passes_are_the_plans(recipe):
    """A clock that always says 1: 21 layers of ResNet-18, by the passes of the plan, less one layer's input gradients where weights are asked."""
    step = subject(recipe, "resnet18", n=1, steps=2)
    cost = plan_cost(step.plan)
    found = floor(step.model, step.batch.x, cost, rounds=1, timer=one)
    assert found.seconds == 21 * cost.units - cost.wgrad and sum(layer.calls for layer in found.layers) == 21
    assert len(found.layers) == 12, "equal shapes are measured once"


def test_floor_of_takes_network_batch_and_plan(monkeypatch):
    monkeypatch.setattr("composer.bench.floor.on_cpu", one)
    step = subject("trades", "cnn8", n=4)
    found = floor_of(step)
    assert found.seconds == 6 * 27 - 2 and all(layer.product.x[0] == 4 for layer in found.layers)


def test_a_layer_called_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            return self.layer(self.layer(self.layer(x)))

    found = floor(Twice(), torch.rand(3, 2, 4, 4), ATTACK, rounds=1, timer=one)
    assert [(layer.calls, layer.product.first) for layer in found.layers] == [(1, True), (2, False)]
    assert found.seconds == (27 - 2) + 2 * 27


def test_layers_are_found_where_they_are_called_not_where_they_are_kept():
    """A head that calls F.linear on weights of its own; sequences; a module that is never called."""
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.idle, self.tokens = nn.Parameter(torch.rand(7, 5)), nn.Linear(5, 5), nn.Linear(4, 5)

        def forward(self, x):
            return F.linear(self.tokens(x).mean(1), F.normalize(self.w))

    assert products(Odd(), torch.rand(2, 3, 4)) == {Product((6, 4), (5, 4), (), True): 1, Product((2, 5), (7, 5)): 1}


def test_looking_leaves_the_network_as_it_was():
    model = net("cnn8")
    model[1].eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}, [m.training for m in model.modules()]
    products(model, batch("cnn8", 4)[0])
    assert all(torch.equal(t, before[0][name]) for name, t in model.state_dict().items()) and [m.training for m in model.modules()] == before[1]


def test_a_network_without_layers_is_our_error():
    with pytest.raises(ComposerError, match="it has no floor"):
        floor(nn.Flatten(), torch.rand(1, 1, 2, 2), ATTACK, timer=one)


# -- the ways --------------------------------------------------------------------------------------------------------------------------------

LAYERS = {"plain": (nn.Conv2d(2, 6, 3, 1, 1), 9), "thin": (nn.Conv2d(1, 6, 3, 1, 1), 9), "strided": (nn.Conv2d(6, 8, 3, 2, 1), 9),
          "grouped": (nn.Conv2d(6, 6, 3, 1, 1, groups=3), 9), "dilated": (nn.Conv2d(6, 5, 3, 1, 2, 2), 9),
          "same": (nn.Conv2d(6, 5, 3, padding="same"), 9), "transposed": (nn.ConvTranspose2d(6, 5, 3, 2, 1, 1), 9), "linear": (nn.Linear(7, 5), 0)}


@pytest.mark.parametrize("name", LAYERS)
def test_all_ways_agree_with_autograd(name, monkeypatch):
    """Every way computes the layer's output, or its gradient, of the noise it is given."""
    layer, side = LAYERS[name]
    into = layer.weight.shape[1] if name == "linear" else layer.in_channels
    ((product, _),) = products(layer, torch.rand(3, into, *(side, side) * bool(side))).items()
    noise: list[torch.Tensor] = []
    randn = torch.randn
    monkeypatch.setattr(products_module.torch, "randn", lambda *a, **k: noise.append(randn(*a, **k)) or noise[-1])
    with torch.no_grad():
        found = {(way.layout, way.kind): way.call() for way in ways(product, "cpu")}
    x, weight = (t.clone().requires_grad_() for t in noise)
    out = F.linear(x, weight) if name == "linear" else torch.ops.aten.convolution(x, weight, None, *product.way)
    wanted = dict(zip(KINDS, (out, *torch.autograd.grad(out, (x, weight), out.detach())), strict=True))
    layouts = {"out x in", "in x out"} if name == "linear" else {"contiguous", "channels_last"} | ({"packed"} if name != "transposed" else set())
    assert {layout for layout, _ in found} == layouts and {kind for _, kind in found} == set(KINDS)
    for (layout, kind), got in found.items():
        got = got if isinstance(got, torch.Tensor) else got[KINDS.index(kind) - 1]
        got = got.t() if (layout, kind) == ("in x out", "wgrad") else got
        torch.testing.assert_close(got, wanted[kind].detach(), rtol=1e-4, atol=1e-4, msg=f"{layout} {kind}")


def test_a_burst_is_about_a_millisecond(monkeypatch):
    """On a clock of its own: a call of 0.3 ms is timed four times, one of 2 ms once, a free one a thousand times; the first never counts."""
    for cost, calls in ((3e-4, 4), (2e-3, 1), (0.0, 1000)):
        now, made = [0.0], []

        def call(cost=cost, now=now, made=made) -> None:
            now[0] += cost + (1e-9 if not made else 0)
            made.append(1)

        monkeypatch.setattr(products_module.time, "perf_counter", lambda now=now: now[0])
        monkeypatch.setattr(products_module.time, "process_time", lambda now=now: now[0] / 2)
        assert on_cpu(Way(Product((1, 1), (1, 1)), "forward", "", call)) == pytest.approx((cost, cost / 2)) and len(made) == 1 + calls


def test_on_a_device_events_lie_around_the_burst(monkeypatch):
    """On a device that writes down what it is asked: first a call apart, then the device is kept busy until all of the burst is queued."""
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            done.append("event")

        def synchronize(self) -> None:
            done.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 40.0

    for name, made in (("Event", Event), ("synchronize", lambda: done.append("wait")), ("_sleep", lambda cycles: done.append("busy"))):
        monkeypatch.setattr(torch.cuda, name, made)
    (taken,) = on_cuda(Way(Product((1, 1), (1, 1)), "forward", "", lambda: done.append("call")))
    assert taken == pytest.approx(0.004) and done == ["call", "wait", "busy", "event", *["call"] * 10, "event", "wait"]


def test_flags_are_put_back():
    torch.use_deterministic_algorithms(True)
    try:
        seen = []
        floor(of(nn.Linear(2, 2)), torch.rand(1, 2), ATTACK, rounds=1,
              timer=lambda way: seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)) or (1.0,))
        assert set(seen) == {(False, True)} and torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)


# -- measured --------------------------------------------------------------------------------------------------------------------------------


def test_the_floor_is_below_the_engine():
    """In processor time, which other programs move less."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = {name: subject("trades", "cnn8", n=32, steps=2, backend=name) for name in ("eager", "folded")}
        least = floor_of(steps["eager"])
        timing = interleave(steps, rounds=5, warmup=1, again=False)
    finally:
        torch.set_num_threads(threads)
    over = least.over_processor(timing)
    assert set(over) == {"eager", "folded"} and all(ratio > 1 for ratio in over.values()) and least.seconds > 0


# -- in the reports --------------------------------------------------------------------------------------------------------------------------


def test_the_gates_report_it(monkeypatch):
    monkeypatch.setattr(gates_module, "LEAST", 1)
    monkeypatch.setattr("composer.bench.floor.on_cpu", lambda way: (1e-6, 2e-6))
    lines: list[str] = []
    found = gates(("trades",), names=("eager",), cases=(Gate("trades", "cnn8", 2, 0.1, 0.2),), rounds=1, say=lines.append)
    (case,) = found["cases"]
    assert json.loads(json.dumps(found)) == found and case["floor"]["ms"] == pytest.approx(1e-3 * (6 * 27 - 2))
    rows = case["timing"]["variants"]
    assert case["floor"]["processor_ms"] == pytest.approx(2e-3 * (6 * 27 - 2)) and set(case["floor"]["over_processor"]) == set(case["floor"]["over"])
    assert case["floor"]["over"] == pytest.approx({name: rows[name]["ms"] / case["floor"]["ms"] for name in ("faithful", "pruned", "eager")})
    assert "/ floor" in lines[1] and any(line.split()[:3] == ["floor", "0.16", "1.00"] for line in lines[1].splitlines())


def test_so_does_the_plain_bench(monkeypatch):
    monkeypatch.setattr("composer.bench.floor.on_cpu", lambda way: (1e-6, 2e-6))
    found, table = measure(Case("standard", "cnn8", 4), rounds=1)
    assert found["floor"]["ms"] == pytest.approx(1e-3 * (6 * 3 - 1)) and set(found["floor"]["over"]) == set(found["timing"]["variants"])
    assert any(line.startswith("floor") for line in table.splitlines())
    assert [len(layer["best"]) for layer in found["floor"]["layers"]] == [2, 3, 3, 3, 3, 3], "no input gradient reaches the images"


@pytest.mark.gpu
def test_on_a_gpu_events_time_the_device():
    """A bigger layer takes longer, and the floor lies below the engine's step."""
    step = subject("at", "cnn28", n=512, steps=2, device="cuda")
    found = floor_of(step)
    timing = interleave({"engine": step}, rounds=5, again=False)
    assert 0 < found.seconds < timing.variants["engine"].median
    small, large = (floor(of(nn.Conv2d(64, 64, 3)).cuda(), torch.rand(n, 64, 32, 32, device="cuda"), ATTACK).seconds for n in (64, 512))
    assert large > 2 * small
