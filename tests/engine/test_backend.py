"""Backends against eager: weights after steps with moving dials, passes, host synchronisation, keys, resume, trouble, refusals."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from composer.bench.counter import count, flops
from composer.bench.nets import batch, net
from composer.bench.subject import Subject, load_like_plain
from composer.engine import backend_compiled
from composer.engine.backend import LEGAL, NAMES, Backend, Work, backend_of, resolve, tail_of, work_of
from composer.engine.backend_compiled import Ready
from composer.engine.backend_program import Program, Refused
from composer.engine.session import Session, Settings
from composer.engine.train import Progress, Trainer
from composer.errors import ComposerError, Diverged, Stopped
from composer.models.build import build_model
from composer.plan.cost import plan_cost
from composer.recipe.load import load
from composer.registry import REGISTRY
from composer.shipped import recipes_dir

from .standins import TracedRecorder, as_traced

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RECIPES = sorted(p.stem for p in recipes_dir().glob("*.toml") if p.stem not in ("papers", "protocols"))
QUICK = ("mart_ours", "at_rice", "awp_trades", "igr_at", "lbgat", "lsoftmax_at", "st_at", "mma", "mwpb_trades")
FAST = ("folded", "compiled", "graph", "compiled-graph")


def backend(name: str) -> Backend:
    return Backend(name, lower=as_traced, recorder=TracedRecorder())


def subject(recipe: str, name: str = "eager", *, n: int = 6, dtype: torch.dtype = torch.float64, sets: tuple[str, ...] = ()) -> Subject:
    x, y = batch("small_cnn", n)
    return Subject(load_like_plain(recipe, steps=2, sets=sets), net("small_cnn").to(dtype), x.to(dtype), y, backend=backend(name))


def state(made: Subject) -> list[torch.Tensor]:
    parts = [t for part in made.parts.values() for t in part.state_dict().values()]
    return [t.detach().double() for t in (*made.model.state_dict().values(), *parts) if t.is_floating_point()]


def agrees(one: Subject, other: Subject) -> None:
    for a, b in zip(state(one), state(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def steps_agree(recipe: str, name: str, sets: tuple[str, ...] = ()) -> tuple[Subject, Subject]:
    """Three steps in three epochs, so that whatever a schedule moves has moved."""
    plain, fast = subject(recipe, sets=sets), subject(recipe, name, sets=sets)
    for epoch in range(3):
        for made in (plain, fast):
            made.trainer._step(made.batch, made.epoch + epoch)
            made.trainer.progress.batch = 0
        agrees(plain, fast)
    return plain, fast


# -- the same mathematics --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "name"), [*((recipe, "compiled") for recipe in QUICK), *((recipe, "graph") for recipe in QUICK[:5])])
def test_three_steps_are_eagers(recipe, name):
    fast = steps_agree(recipe, name)[1]
    assert not [note for note in fast.session.backend.notes if "eagerly" in note]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_on_every_backend(recipe, name):
    fast = steps_agree(recipe, name)[1]
    assert not [note for note in fast.session.backend.notes if "eagerly" in note]


@pytest.mark.parametrize("name", FAST)
def test_dials_move_without_a_new_trace(name):
    """Learning rate, radius, step, weights: all moved, one graph or recording, and the numbers are eager's."""
    sets = tuple(f"{path}={{use='linear',points=[[0,{a}],[20,{b}]]}}" for path, a, b in
                 (("terms.kl.weight", 2.0, 8.0), ("train.lr", 0.1, 0.01), ("inner.x_adv.eps", 0.02, 0.2)))
    _, fast = steps_agree("trades", name, sets)
    executor = fast.trainer.executor
    if "graph" in name:
        assert fast.session.backend.recorder.recordings == 1 and fast.session.backend.recorder.replays == 3
    if name == "compiled":
        assert len(executor._outer_program._made) == 1


def test_a_second_shape_has_a_recording_of_its_own():
    fast = subject("trades", "graph")
    plain = subject("trades")
    small = [type(s.batch)(s.batch.x[:4], s.batch.y[:4], s.batch.i[:4], None) for s in (plain, fast)]
    for _ in range(2):
        for made, tail in zip((plain, fast), small, strict=True):
            made()
            made.trainer._step(tail, made.epoch)
        agrees(plain, fast)
    assert fast.session.backend.recorder.recordings == 2 and fast.session.backend.recorder.replays == 4


def test_the_smaller_last_batch_is_not_compiled():
    fast, plain = subject("at_rice", "compiled"), subject("at_rice")
    fast.trainer.executor.tail = 6
    for made in (plain, fast):
        made()
    agrees(plain, fast)
    assert fast.trainer.executor._outer_program is None and not fast.trainer.executor._looks
    assert tail_of(SimpleNamespace(own=8, rows=range(20), steps=3, from_extra=2)) == 6
    assert tail_of(SimpleNamespace(own=8, rows=range(16), steps=2, from_extra=0)) == 0 == tail_of(SimpleNamespace(steps=1))


# -- passes, and who waits for the device ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["folded", "compiled"])
@pytest.mark.parametrize("recipe", ["standard", "at", "trades", "mart", "at_rice", "mart_ours", "awp_trades", "igr_at"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_passes_are_those_of_the_plan(recipe, name, dtype):
    made = subject(recipe, name, dtype=dtype)
    made()
    cost, counted = plan_cost(made.plan).at(10), count(made.model, made, batch=6)
    assert (counted.forward, counted.dgrad, counted.wgrad) == (cost.forward, cost.dgrad, cost.wgrad)


WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim", "item"}


class Waits(TorchDispatchMode):
    """Operations whose result the host must have before it goes on; on a device each is a wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.split("::")[-1] in WAITS:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def waits_of(recipe: str, name: str, tmp_path, tiny: str) -> list[str]:
    """Of a whole epoch of a run: data, schedules, attack, update, parts, metrics; as on a device, where no step looks at its loss."""
    made = load(recipe, setting=tiny, sets=["train.epochs=4"])
    session = Session(made, 0, Settings(out=tmp_path, device="cpu", track=False, quiet=True))
    session.backend = backend(name)
    node = session.nodes[-1]
    parts = session.parts(node, {})
    trainer = Trainer(session, node, Progress(), parts, session.optimizer(node.segment, parts), None)
    trainer.on_cpu = False
    epoch = node.segment.first
    for each in trainer.feed.batches(epoch, 0):                     # traces and recordings are made in the first
        trainer._step(each, epoch)
    trainer.progress.batch = 0
    with pytest.MonkeyPatch.context() as patch, Waits() as waits:
        patch.setattr(F, "one_hot", lambda y, k: (y.unsqueeze(1) == torch.arange(k)).long())      # PyTorch's looks at its labels, on a CPU alone
        for each in trainer.feed.batches(epoch, trainer.progress.step):
            trainer._step(each, epoch)
    assert trainer.progress.step == 2 * trainer.feed.steps > 2
    return waits.seen


@pytest.mark.parametrize(("recipe", "name"), [("trades", "eager"), ("mart_ours", "folded"), ("awp_trades", "compiled"), ("piat_nmse", "eager"),
                                              ("mma", "compiled"), ("lbgat", "eager"), ("st_at", "folded")])
def test_nobody_waits_within_an_epoch(recipe, name, tmp_path, tiny):
    assert waits_of(recipe, name, tmp_path, tiny) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eager", "folded", "compiled"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_nobody_waits_in_any_recipe(recipe, name, tmp_path, tiny):
    assert waits_of(recipe, name, tmp_path, tiny) == []


def test_the_watch_for_waits_itself():
    with Waits() as waits:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
        bool(torch.ones(()) > 0)
    assert len(waits.seen) >= 3


# -- which, and its key ----------------------------------------------------------------------------------------------------------------------


def work(flops: float = 0.0, **more) -> Work:
    return Work(**{"flops": flops, "programs": 1, "passes": 40, "convolves": True, "attacks": True} | more)


@pytest.mark.parametrize(("asked", "device", "said"), [
    ("quick", CPU, "unknown backend 'quick'"), ("graph", CPU, "records CUDA graphs"), ("compiled-graph", CPU, "records CUDA graphs"),
    ("folded", CUDA, "for a CPU")])
def test_what_a_machine_cannot_do_is_one_error(asked, device, said):
    with pytest.raises(ComposerError, match=said):
        resolve(asked, device, work)


def test_graph_without_cuda_is_one_error_on_the_command_line(capsys, tmp_path):
    from composer.cli import app, run_app

    assert run_app(app, ["run", "standard", "--backend", "graph", "--device", "cpu", "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "records CUDA graphs" in err and "Traceback" not in err
    assert run_app(app, ["run", "standard", "--backend", "grahp", "--out", str(tmp_path)]) == 2 and "'graph'" in capsys.readouterr().err


def test_auto_weighs_compiling_against_the_run(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    cost = 8.0 + 40 * 0.07
    enough = cost / 0.03 * 1.2e11
    assert resolve("auto", CPU, lambda: work(1.01 * enough)).name == "compiled" and resolve("auto", CPU, lambda: work(0.99 * enough)).name == "folded"
    assert resolve("auto", CPU, lambda: work(convolves=False)).name == resolve("auto", CPU, lambda: work(attacks=False)).name == "eager"
    assert resolve("auto", CUDA, work).name == "graph" and resolve("auto", CUDA, lambda: work(recordable="it draws")).name == "eager"
    assert resolve("auto", torch.device("mps"), work).name == "eager"
    monkeypatch.setattr("shutil.which", lambda name: None)
    choice = resolve("auto", CPU, lambda: work(1e20))
    assert choice.name == "folded" and "no C++ compiler" in choice.why
    with pytest.raises(ComposerError, match="needs a C\\+\\+ compiler"):
        resolve("compiled", CPU, work)


def test_what_was_chosen_is_said_once():
    heard: list[str] = []
    made = backend_of("auto", CPU, work)
    made.speak(heard.append)
    made.tell("and so on")
    made.tell("and so on")
    assert len(heard) == 2 and heard[0].startswith("backend folded: about 11 s of compiling") and LEGAL == ("auto", *NAMES)


@pytest.mark.parametrize(("recipe", "programs", "once", "step"), [
    ("trades", 1, 6, 6),                # two passes with weight gradients; the attack is folded
    ("at_rice", 2, 3 + 2, 3 + 2 * 2),   # its attack, two steps, is in train mode
    ("awp_trades", 2, 6 + 6, 6 + 6)])   # what climbs the weights
def test_the_work_of_a_run_is_what_compiling_takes_over(recipe, programs, once, step):
    made = subject(recipe, dtype=torch.float32)
    found = work_of([(made.plan, 100)], made.session.net, (1, 8, 8), 10, 64)
    assert found.flops == step * 100 * 64 * flops(made.model, (1, 8, 8)) and (found.programs, found.passes) == (programs, 7 * once)
    assert found.convolves and found.attacks and not found.recordable


def test_programs_that_are_never_compiled_are_no_work():
    recipe, model, x, y = dropping()
    made = Subject(recipe, model, x, y)
    assert work_of([(made.plan, 100)], made.session.net, (1, 8, 8), 10, 4).flops == 0.0


def keys_of(tiny, tmp_path, name: str) -> list[str]:
    recipe = load("at", setting=tiny)
    return [node.key for node in Session(recipe, 0, Settings(out=tmp_path, device="cpu", backend=name, track=False, quiet=True)).nodes]


def test_no_key_holds_for_two_backends(tiny, tmp_path):
    eager, folded, compiled, auto = (keys_of(tiny, tmp_path, name) for name in ("eager", "folded", "compiled", "auto"))
    assert not set(eager) & set(folded) and not set(folded) & set(compiled) and auto == folded


# -- runs ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["folded", "compiled"])
def test_a_stopped_run_goes_on_bit_for_bit(name, go, stop_after, record, tmp_path, monkeypatch):
    monkeypatch.setattr(backend_compiled, "compiled", as_traced)
    settings = {"backend": name}
    whole = go("mart_ours", tmp_path / "whole", settings=settings)
    stop_after(4)
    for _ in range(2):
        with pytest.raises(Stopped):
            go("mart_ours", tmp_path / "out", settings=settings)
    stop_after(None)
    again = go("mart_ours", tmp_path / "out", settings=settings)
    assert again["weights_sha256"] == whole["weights_sha256"] and again["passes"] == whole["passes"]
    assert record(tmp_path / "out", whole["run"]).rows == record(tmp_path / "whole", whole["run"]).rows
    eager = go("mart_ours", tmp_path / "out2")
    assert eager["passes"] == whole["passes"] and eager["prefix_key"] != whole["prefix_key"]


@pytest.mark.parametrize("name", ["folded", "compiled"])
def test_what_diverged_is_named(name, go, tmp_path, monkeypatch):
    monkeypatch.setattr(backend_compiled, "compiled", as_traced)
    with pytest.raises(Diverged, match="terms.ce"):
        go("at", tmp_path, settings={"backend": name}, drops=["optim.clip"], **{"train.lr": 1e30})


def test_divided_batches_run_on_it(go, tmp_path, monkeypatch):
    """Loss by loss backwards: gradients of pieces add up as in eager."""
    monkeypatch.setattr(backend_compiled, "compiled", as_traced)
    made = [go("at", tmp_path / name, settings={"backend": name, "micro_batch": 8}, **{"train.epochs": 1}) for name in ("eager", "compiled")]
    assert made[0]["metrics"]["clean"] == pytest.approx(made[1]["metrics"]["clean"], abs=0.1)


@pytest.mark.parametrize(("share", "held"), [(1.0, False), (1.0, True), (0.25, False)])
def test_ready_gradients_are_handed_out_without_a_copy_where_nobody_else_holds_them(share, held):
    """Twice, as the pieces of a divided batch do: gradients add up, and what others hold is not written to."""
    w = torch.nn.Parameter(torch.zeros(3))
    made = torch.arange(3.0)
    place, kept = made.data_ptr(), [made] if held else []
    total = Ready.apply(torch.ones(()), [made], w)
    del made
    (share * total).backward()
    assert w.grad.tolist() == [0.0, share, 2 * share] and (w.grad.data_ptr() == place) == (share == 1.0 and not held)
    Ready.apply(torch.ones(()), [torch.ones(3)], w).backward()
    assert w.grad.tolist() == [1.0, 1 + share, 1 + 2 * share] and (not held or kept[0].tolist() == [0, 1, 2])


# -- refusals --------------------------------------------------------------------------------------------------------------------------------


def test_a_branch_on_a_value_is_refused_with_the_reason():
    program = Program(lambda x: [x * 2 if x.sum().item() > 0 else x], as_traced)
    for _ in range(2):
        with pytest.raises(Refused, match="data-dependent|tracing tensor"):
            program([torch.ones(3)])


def test_a_program_reads_what_it_holds_anew_each_time():
    held = torch.ones(())
    program = Program(lambda x, y: [x * held + y], as_traced)
    x = torch.arange(3.0)
    assert program([x, x])[0].tolist() == [0, 2, 4]
    held.fill_(5.0)
    assert program([x, x])[0].tolist() == [0, 6, 12] and len(program._made) == 1
    assert program([x, torch.ones(3)])[0].tolist() == [1, 6, 11] and len(program._made) == 2, "two tensors are not one tensor twice"
    assert program([x[:2], x[:2].clone()])[0].tolist() == [0, 6]


def test_a_term_that_cannot_be_traced_runs_eagerly_and_is_said(monkeypatch):
    """A loss with a branch on a value: the one way to be refused that the catalogue's contract tests keep out of shipped losses."""
    plain = REGISTRY.get("loss", "ce")

    def looks(logits, y, **options):
        return plain.fn(logits, y, **options) if float(logits.detach().sum()) < 1e30 else logits.sum(1)

    eager = subject("standard")
    get = REGISTRY.get
    monkeypatch.setattr(REGISTRY, "get", lambda kind, name: replace(plain, fn=looks) if (kind, name) == ("loss", "ce") else get(kind, name))
    fast = subject("standard", "compiled")
    fast()
    eager()
    agrees(eager, fast)
    assert any("the outer program is not compiled, it runs eagerly" in note for note in fast.session.backend.notes)


def dropping() -> tuple:
    recipe = load("trades", setting="digits", sets=["model.use=wrn", "model.depth=10", "model.width=1", "model.dropout=0.3", "threat.steps=1"])
    x, y = batch("small_cnn", 4)
    return recipe, build_model(recipe.model, (1, 8, 8), 10, seed=0), x, y


@pytest.mark.parametrize("name", ["compiled", "graph"])
def test_a_network_that_draws_is_not_frozen(name):
    """Its masks change from step to step; a recording would repeat the first."""
    made, eager = (Subject(*dropping(), backend=backend(each)) for each in (name, "eager"))
    for _ in range(2):
        made()
        eager()
    if name == "graph":
        for a, b in zip(state(eager), state(made), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert any("the network draws in its forward" in note for note in made.session.backend.notes)
