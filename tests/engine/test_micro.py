"""A batch in pieces: the same step as undivided in float64 for every shipped recipe, the draws untouched by the division, and what happens when memory
runs out.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from composer.bench.subject import Bench
from composer.data.sets import Split, data_set
from composer.engine.micro import check, declared, out_of_memory, parse, refused
from composer.engine.pieces import cuts
from composer.engine.session import Settings
from composer.errors import ComposerError
from composer.models.build import build_model
from composer.recipe.load import load

RECIPES = sorted(p.stem for p in (Path(__file__).resolve().parents[2] / "recipes").glob("*.toml") if p.stem not in ("papers", "protocols"))
MLP = ("model.use='mlp'", "model.widths=[12]")
N, SIZE = 21, 8


@pytest.fixture(autouse=True)
def float64():
    """Parts' memories and draws too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def images(n: int = 44):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 17, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    y = torch.randint(0, 10, (n,), generator=generator)
    return data_set("noise", Split(x, y), Split(x[:4], y[:4]), 10, scale=16.0)


def trainer(recipe: str, micro: str | int, tiny: str, *sets: str, model: tuple[str, ...] = MLP, segment: int = -1, net: nn.Module | None = None):
    made = load(recipe, setting=tiny, sets=[*model, f"train.batch_size={N}", "train.lr=0.05", *sets], drops=("optim.clip", *(("model.channels",) if model is MLP else ())))
    bench = Bench(made, (net or build_model(made.model, (1, 8, 8), 10, 0)).double(), dataset=images(), batch_size=N)
    bench.settings = Settings(micro_batch=micro)
    return bench.trainer(segment)


def train(t, steps: int = 2):
    """Steps on real batches of the feed; weights, running statistics, parts' memories and the epoch's sums."""
    epoch = t.node.segment.first
    for batch in t.feed.batches(epoch, 0):
        batch.x = batch.x.double()
        t._step(batch, epoch)
        steps -= 1
        if not steps:
            break
    found = {f"model.{k}": v for k, v in t.net.model.state_dict().items()} | {f"meter.{k}": v for k, v in t.meter.state().items()}
    for id, part in t.parts.items():
        found |= {f"parts.{id}.{k}": v for k, v in part.state_dict().items()}
    return {k: v.detach().clone() for k, v in found.items()}


def same(a, b, tolerance=1e-9):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("recipe", RECIPES)
def test_pieces_train_what_the_whole_batch_trains(recipe, tiny):
    """Attack, perturbed weights, memories by batch position, by image and by class: 21 rows in pieces of 7, twice, and a last batch of 2."""
    whole = trainer(recipe, "whole", tiny)
    if refused(whole.plan, whole.net, whole.parts):
        with pytest.raises(ComposerError, match="the batch cannot be divided"):
            trainer(recipe, SIZE, tiny)
        return
    divided = trainer(recipe, SIZE, tiny)
    same(train(divided, 3), train(whole, 3))
    assert divided.micro._pieces.bounds == [(0, 7), (7, 14), (14, 21)]


def test_most_recipes_can_be_divided(tiny):
    """Refusals are few and have their reason: a normalised gain, a term of the batch, a teacher with batch norm."""
    found = {}
    for recipe in RECIPES:
        t = trainer(recipe, "whole", tiny)
        if why := refused(t.plan, t.net, t.parts):
            found[recipe] = why
    assert {"gairat", "mimae_at", "elsayed_exp", "piat_gairat"} <= found.keys() and len(found) <= len(RECIPES) // 3, found
    assert "batch norm" in found["lbgat"] and "mart_ours" not in found and "awp_trades" not in found


class Random(nn.Module):
    """Every kind of random layer, no batch norm."""

    def __init__(self):
        super().__init__()
        from torchvision.ops import StochasticDepth

        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(6, 6, 3), nn.Dropout2d(0.4), StochasticDepth(0.4, "row"),
                                  StochasticDepth(0.2, "batch"), nn.Flatten(), nn.Linear(216, 10), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_random_layers_draw_for_the_whole_batch(tiny):
    """trades: clean and adversarial train-mode passes, each with masks of its own; the division moves none of them."""
    def made(micro):
        torch.manual_seed(0)
        return trainer("trades", micro, tiny, net=Random())

    divided, whole = made(SIZE), made("whole")
    assert whole.net.stochastic
    same(train(divided), train(whole))
    torch.manual_seed(0)
    with pytest.raises(ComposerError, match="AlphaDropout cannot draw for a part of a batch"):
        trainer("trades", SIZE, tiny, net=nn.Sequential(Random(), nn.AlphaDropout(0.5)))


def test_every_size_is_covered_once_and_alike():
    for n in range(1, 40):
        for size in range(1, 45):
            pieces = cuts(n, size)
            sizes = [b - a for a, b in pieces]
            assert [a for a, _ in pieces] == [0, *[b for _, b in pieces[:-1]]] and pieces[-1][1] == n
            assert max(sizes) <= size and max(sizes) - min(sizes) <= 1 and len(sizes) == math.ceil(n / size)


# -- batch norm ------------------------------------------------------------------------------------------------------------------------


def test_batch_norm_takes_the_statistics_of_a_piece(tiny):
    """One step of plain training against a loop written here: forwards of 7 rows each, gradients added up, running statistics their mean, written once."""
    t = trainer("standard", 7, tiny, model=())
    model = build_model(t.recipe.model, (1, 8, 8), 10, 0).double().train()       # the same weights, at their start
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    batch = next(t.feed.batches(1, 0))
    batch.x = batch.x.double()
    t._set_dials(1, 0)
    total, means, env = t.micro.gradients(batch, lambda: pytest.fail("it was not divided"))
    t.executor.write_statistics(env)
    seen, loss = [[] for _ in norms], 0.0
    for rows in torch.arange(21).split(7):
        for norm in norms:
            norm.momentum = 1.0
        loss = loss + nn.functional.cross_entropy(model(batch.x[rows]), batch.y[rows], reduction="sum") / 21
        for norm, kept in zip(norms, seen, strict=True):
            kept.append((norm.running_mean.clone(), norm.running_var.clone()))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(total, loss.detach())
    torch.testing.assert_close(means, loss.detach()[None])
    for p, g in zip(t.net.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)
    for mine, kept in zip([m for m in t.net.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)], seen, strict=True):
        torch.testing.assert_close(mine.running_mean, 0.1 * torch.stack([m for m, _ in kept]).mean(0))
        torch.testing.assert_close(mine.running_var, 0.9 + 0.1 * torch.stack([v for _, v in kept]).mean(0))
        assert int(mine.num_batches_tracked) == 1


@pytest.mark.parametrize("recipe", ["at_rice", "trades", "awp_at", "mwpb_trades"])
def test_batch_norm_is_written_as_often_as_without_pieces(recipe, tiny):
    """A train-mode attack writes at every step of it; the attack's and the outer program's writes keep their number whatever the division."""
    def counts(t):
        train(t, 2)
        return t.net.stats.count.tolist()

    assert counts(trainer(recipe, SIZE, tiny, model=())) == counts(trainer(recipe, "whole", tiny, model=()))


def test_what_a_division_means_is_said(tiny):
    norm, plain = trainer("trades", SIZE, tiny, model=()), trainer("trades", SIZE, tiny)
    assert "another experiment" in declared(norm.plan, norm.net.model, 8, 21) and "8 images instead of 21" in declared(norm.plan, norm.net.model, 8, 21)
    assert "to rounding" in declared(plain.plan, plain.net.model, 8, 21)


# -- memory runs out -------------------------------------------------------------------------------------------------------------------


def limited(t, most: int, *, after: int = 0):
    """A network that asks the allocator for 32 PiB when it sees more than so many images, from the given forward on."""
    calls = []

    def look(module, args):
        calls.append(len(args[0]))
        if len(args[0]) > most and len(calls) > after:
            torch.empty(2**55, dtype=torch.uint8)

    t.net.model.register_forward_pre_hook(look)
    said = []
    t.hooks = SimpleNamespace(remark=said.append)
    return said


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("recipe", ["at_rice", "mart_ours"])
def test_the_step_is_made_again_from_the_same_state(recipe, after, tiny):
    """Memory runs out in the attack or in the outer program, after running statistics were written: what comes is what pieces of 6 give from the start."""
    auto, six = trainer(recipe, "auto", tiny, model=()), trainer(recipe, 6, tiny, model=())
    said = limited(auto, 6, after=after)
    found, expected = train(auto), train(six)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert auto.progress.micro == 6 and [(h["step"], h["from"], h["to"]) for h in auto.progress.halved] == [(0, 21, 11), (0, 11, 6)]
    assert "can't allocate memory" in auto.progress.halved[0]["why"]
    assert len(said) == 2 and said[1].startswith("memory ran out at step 0; micro-batches of 6: batch norm")


def test_memory_that_runs_out_at_the_updated_weights(tiny):
    """at_rice's last forward of a step, behind the optimiser, is divided too, and writes once."""
    auto, whole = trainer("at_rice", "auto", tiny, model=()), trainer("at_rice", "whole", tiny, model=())
    limited(auto, 11, after=3)
    found, expected = train(auto, 1), train(whole, 1)
    assert auto.progress.micro == 11 and torch.equal(auto.net.stats.count, whole.net.stats.count)
    assert all(torch.equal(found[f"model.{name}"], p) for name, p in whole.net.model.named_parameters())
    near = {k: v for k, v in expected.items() if "running" in k}
    assert not all(torch.equal(found[k], v) for k, v in near.items())
    for k, v in near.items():
        torch.testing.assert_close(found[k], v, rtol=0.05, atol=0.05)


def test_a_network_without_batch_norm_learns_the_same_after_memory_ran_out(tiny):
    auto = trainer("mart_ours", "auto", tiny)
    limited(auto, 5, after=4)
    same(train(auto), train(trainer("mart_ours", "whole", tiny)))
    assert auto.progress.micro == 3


def test_without_the_option_the_error_says_what_to_do(tiny):
    t = trainer("at", "whole", tiny)
    limited(t, 6)
    with pytest.raises(ComposerError, match="21 images at once does not fit into memory") as error:
        train(t)
    assert "--micro-batch auto" in error.value.fix and "allocate memory" in error.value.why


def test_what_cannot_be_divided_or_is_one_image_is_an_error(tiny):
    coupled = trainer("gairat", "auto", tiny)
    limited(coupled, 6)
    with pytest.raises(ComposerError, match="cannot be divided"):
        train(coupled)
    with pytest.raises(ComposerError, match="--micro-batch 8"):
        check(8, [coupled.plan])
    check("auto", [coupled.plan])
    none = trainer("at", "auto", tiny)
    limited(none, 0)
    with pytest.raises(ComposerError, match="with 1 images at once does not fit") as error:
        train(none)
    assert "more memory" in error.value.fix


def test_other_errors_are_not_taken_for_memory(tiny):
    t = trainer("at", "auto", tiny)
    t.net.model.register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="mat1"):
        train(t)
    assert not t.progress.halved
    for text, memory in (("CUDA out of memory. Tried to allocate 2 GiB", True), ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", True), ("size mismatch", False)):
        assert out_of_memory(RuntimeError(text)) is memory
    assert out_of_memory(torch.OutOfMemoryError("x")) and out_of_memory(MemoryError()) and not out_of_memory(ValueError("out of memory"))


LIMITED = """
import resource, sys, torch
from composer.bench.subject import Bench, load_like_plain
from composer.data.sets import Split, data_set
from composer.engine.session import Settings
from composer.models.build import build_model

torch.set_num_threads(1)
recipe = load_like_plain("trades", steps=1, sets=["model.channels=[64,64,64]", "train.batch_size=512"])
x = torch.randint(0, 17, (512, 1, 28, 28), dtype=torch.uint8)
noise = data_set("noise", Split(x, torch.randint(0, 10, (512,))), Split(x[:2], torch.zeros(2).long()), 10, scale=16.0)
bench = Bench(recipe, build_model(recipe.model, (1, 28, 28), 10, 0), dataset=noise)
bench.settings = Settings(micro_batch="auto")
trainer = bench.trainer()
batch = next(trainer.feed.batches(1, 0))
used = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
limit = used + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
trainer._step(batch, 1)
print(trainer.progress.micro, trainer.meter.broken() or "finite")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on address space is Linux's")
def test_a_process_that_may_have_no_more_memory_divides_its_batch():
    """The real thing: a limit on the process's address space, PyTorch's own allocator, a step that goes through all the same."""
    sizes = []
    for room in (4000, 600):
        done = subprocess.run([sys.executable, "-c", LIMITED, str(room)], check=False, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-2000:]
        size, finite = done.stdout.split()
        assert finite == "finite"
        sizes.append(int(size))
    assert sizes[0] == 0 and 1 < sizes[1] <= 256


@pytest.mark.parametrize("text", ["0", "-3", "half", "1.5"])
def test_a_size_is_a_number_auto_or_whole(text):
    with pytest.raises(ComposerError, match="--micro-batch"):
        parse(text)
    assert parse("12") == 12 and parse(3) == 3 and parse("auto") == "auto"


# -- a run -----------------------------------------------------------------------------------------------------------------------------


def test_a_run_records_the_division_and_its_peak_memory(go, record, tmp_path):
    torch.set_default_dtype(torch.float32)
    plain, divided = go("at", tmp_path), go("at", tmp_path, settings={"micro_batch": "8"})
    assert divided["run"] == plain["run"] + "-fp32-micro-8" and divided["prefix_key"] != plain["prefix_key"]
    assert divided["micro_batch"] == {"asked": "8", "images": 8, "exact": False, "halved": []} and "8 images instead of 24" in divided["notes"][0]
    assert "micro_batch" not in plain and "notes" not in plain
    assert plain["peak_memory"] == "resident set of the process" and 2**26 < plain["peak_memory_bytes"] < 2**40
    rows = (tmp_path / "nodes" / record(tmp_path, plain["run"]).keys[0] / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["memory/peak_bytes"] == plain["peak_memory_bytes"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_the_system_s_figure(tmp_path):
    from composer.engine.peak import _status, _usage, peak_bytes

    cpu = torch.device("cpu")
    before, now = peak_bytes(cpu), 1024 * int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1])
    held = torch.ones((before - now) // 8 + 2**22)             # float64, touched: more than the peak so far
    assert peak_bytes(cpu) >= before + 2**23 and len(held) and _usage() > 2**26
    (tmp_path / "status").write_text("Name: x\nVmHWM:\t  12 kB\n")
    assert _status(tmp_path / "status") == 12288 and _status(tmp_path / "none") == 0


def test_a_stopped_run_goes_on_in_the_same_pieces(go, stop_after, monkeypatch, tmp_path):
    """Memory runs out in the fourth step; stopped after the fifth and resumed on a machine with room, the run still takes the pieces it had."""
    torch.set_default_dtype(torch.float32)
    from composer.engine.net import Net
    from composer.errors import Stopped

    plain = Net.__call__

    def small(self, x, **more):
        if room["left"] <= 0 and len(x) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        room["left"] -= 1
        return plain(self, x, **more)

    room = {"left": 10}
    monkeypatch.setattr(Net, "__call__", small)
    straight = go("at", tmp_path / "straight", settings={"micro_batch": "auto"})
    assert straight["micro_batch"]["halved"][0]["from"] == 24 and straight["micro_batch"]["images"] == 12 and "memory ran out" in straight["notes"][-1]
    room["left"] = 10
    stop_after(5)
    with pytest.raises(Stopped):
        go("at", tmp_path / "stopped", settings={"micro_batch": "auto"})
    stop_after(None)
    monkeypatch.setattr(Net, "__call__", plain)
    resumed = go("at", tmp_path / "stopped", settings={"micro_batch": "auto"})
    assert resumed["weights_sha256"] == straight["weights_sha256"] and resumed["micro_batch"] == straight["micro_batch"]
