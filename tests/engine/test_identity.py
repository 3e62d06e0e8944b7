"""Two identities: the same bits go on, other bits are the user's decision, the same prefix is trained once, the same seed means the same draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from composer.engine import keys
from composer.engine.run import Runner
from composer.engine.session import Session, Settings
from composer.engine.walk import Walk
from composer.errors import ComposerError, Stopped
from composer.recipe.load import load

EMA = "{ use = 'weight_ema', decay = 0.9 }"


@pytest.fixture
def session(tiny, tmp_path):
    """The built run of a recipe, not run."""

    def build(recipe, *, seed=0, sets=(), drops=(), off=(), settings=None):
        made = load(recipe, setting=tiny, sets=list(sets), drops=list(drops))
        return Session(made.without(*off) if off else made, seed, Settings(out=tmp_path, device="cpu", **(settings or {})))

    return build


@pytest.fixture
def keys_of(session):
    return lambda *args, **kwargs: [node.key for node in session(*args, **kwargs).nodes]


# -- an unfinished run that is not the same any more -----------------------------------------------------------------------------------


@pytest.fixture
def begun(go, stop_after, tmp_path):
    """piat_nmse, stopped within its second stretch (epochs 2-3)."""
    stop_after(5)
    with pytest.raises(Stopped):
        go("piat_nmse", tmp_path)
    stop_after(None)


def newer(monkeypatch):
    plain = keys.versions
    monkeypatch.setattr(keys, "versions", lambda: {**plain(), "torch": "99.0"})


CHANGES = {
    "threads": (lambda _: torch.set_num_threads(2), "machine.threads was 1 and is now 2"),
    "a version": (newer, 'versions.torch was "{torch}" and is now "99.0"'),
    "the engine": (lambda patch: patch.setattr(keys, "engine_digest", lambda: "0"), "engine was "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_named(change, begun, go, tmp_path, monkeypatch):
    make, said = CHANGES[change]
    make(monkeypatch)
    with pytest.raises(ComposerError) as error:
        go("piat_nmse", tmp_path)
    assert error.value.exit_code == 2 and error.value.why.startswith(said.format(torch=torch.__version__))
    assert "unfinished run of piat_nmse" in error.value.what and "--fresh" in error.value.fix and "--adopt" in error.value.fix
    assert Path(error.value.where).is_dir() and len(list((tmp_path / "nodes").iterdir())) == 2


def test_the_source_of_a_primitive_belongs_to_the_bits(begun, go, tmp_path, monkeypatch):
    """The loss, the part, the schedule, the ball and the start are all told."""
    plain = keys.file_digest
    held = json.loads((tmp_path / "nodes" / json.loads(next(tmp_path.rglob("record.json")).read_text())["nodes"][1]["key"] / "key.json").read_text())
    assert {"loss/nmse", "part/interpolate", "schedule/piat", "inner/pgd", "ball/linf", "start/uniform", "optim/sgd", "model/small_cnn",
            "data/npz", "measure/pgd"} <= set(held["sources"])
    monkeypatch.setattr(keys, "file_digest", lambda path: "changed" if path.name == "interpolate.py" else plain(path))
    with pytest.raises(ComposerError) as error:
        go("piat_nmse", tmp_path)
    assert error.value.why.startswith("sources.part/interpolate was ")


def test_fresh_trains_anew(begun, go, record, tmp_path, monkeypatch):
    newer(monkeypatch)
    result = go("piat_nmse", tmp_path, settings={"fresh": True})
    assert result["weights_sha256"] == go("piat_nmse", tmp_path / "whole")["weights_sha256"] and "adopted" not in result
    assert [row["epoch"] for row in record(tmp_path, result["run"]).rows] == [1, 2, 3]


def test_fresh_anew_after_the_end(go, tmp_path, monkeypatch):
    """A finished run is shown, with --fresh it is trained again; both give the same numbers."""
    first = go("at", tmp_path)
    steps = []
    plain = Walk.step_done
    monkeypatch.setattr(Walk, "step_done", lambda self, *args: (steps.append(args), plain(self, *args)))
    assert go("at", tmp_path) == first and not steps
    again = go("at", tmp_path, settings={"fresh": True})
    assert len(steps) == 9 and again["weights_sha256"] == first["weights_sha256"]


def test_adopt_goes_on_and_records_it(begun, go, stop_after, record, tmp_path, monkeypatch):
    """What was trained is not trained again; the run says what had changed; neither the old nor the new key claims the mixture."""
    old = {p.name: sorted(f.name for f in p.iterdir()) for p in (tmp_path / "nodes").iterdir()}
    newer(monkeypatch)
    steps, plain = [], Walk.step_done
    monkeypatch.setattr(Walk, "step_done", lambda self, *args: (steps.append(args[:2]), plain(self, *args)))
    stop_after_one = Walk.step_done
    monkeypatch.setattr(Walk, "stop_asked", lambda self: "SIGTERM" if len(steps) == 2 else "")
    with pytest.raises(Stopped):
        go("piat_nmse", tmp_path, settings={"adopt": True})
    assert steps == [(2, 3), (3, 1)] and stop_after_one
    result = go("piat_nmse", tmp_path)                           # adopted once, it goes on without being asked again
    assert steps == [(2, 3), (3, 1), (3, 2), (3, 3)]
    assert result["weights_sha256"] == go("piat_nmse", tmp_path / "whole")["weights_sha256"], "only the version's name had changed"
    assert len(result["adopted"]) == 2 and all('versions.torch was' in line or "parent" in line for line in result["adopted"])
    facts = record(tmp_path, result["run"]).facts["nodes"]
    assert all(node["adopted"] and node["heir_of"] in old for node in facts)
    assert {p.name: sorted(f.name for f in p.iterdir()) for p in (tmp_path / "nodes").iterdir() if p.name in old} == old
    unmixed = [node.key for node in Session(load("piat_nmse", setting=tiny_of(tmp_path, result)), 0, Settings(out=tmp_path, device="cpu")).nodes]
    assert not set(unmixed) & {p.name for p in (tmp_path / "nodes").iterdir()}
    assert [row["epoch"] for row in record(tmp_path, result["run"]).rows] == [1, 2, 3]


def tiny_of(out: Path, result: dict) -> str:
    return result["setting"] + ".toml"


def test_a_finished_run_shows_its_result_at_once(go, tmp_path, monkeypatch):
    """Also after everything of its bits has changed, and without its data."""
    first = go("trades", tmp_path)
    newer(monkeypatch)
    monkeypatch.setattr(Runner, "run", lambda self: pytest.fail("it was run again"))
    assert go("trades", tmp_path) == first


def test_another_precision_is_another_experiment(go, tmp_path):
    """float32's result is not shown for bfloat16."""
    plain = go("standard", tmp_path)
    half = go("standard", tmp_path, settings={"precision": "bf16"})
    assert half["run"] == plain["run"] + "-bf16" and half["weights_sha256"] != plain["weights_sha256"]
    assert half["prefix_key"] != plain["prefix_key"]


# -- prefixes --------------------------------------------------------------------------------------------------------------------------


def test_runs_that_share_a_phase_train_it_once(go, record, tmp_path, monkeypatch):
    """Without nmse, PIAT's clean first epoch is the same; the curves of both runs hold it."""
    one = go("piat_nmse", tmp_path)
    steps, plain = [], Walk.step_done
    monkeypatch.setattr(Walk, "step_done", lambda self, *args: (steps.append(args), plain(self, *args)))
    two = go("piat_nmse", tmp_path, drops=("terms.nmse", "toggle.nmse", "toggle.miss", "toggle.attached", "search"))
    assert len(steps) == 6, "the shared epoch was trained again"
    assert two["steps"] == 9 and two["experiment_id"] != one["experiment_id"]
    keys_one, keys_two = record(tmp_path, one["run"]).keys, record(tmp_path, two["run"]).keys
    assert keys_one[0] == keys_two[0] and keys_one[1] != keys_two[1]
    alone = go("piat_nmse", tmp_path / "alone", drops=("terms.nmse", "toggle.nmse", "toggle.miss", "toggle.attached", "search"))
    assert alone["weights_sha256"] == two["weights_sha256"] and record(tmp_path / "alone", two["run"]).rows == record(tmp_path, two["run"]).rows


def test_a_half_radius_phase_is_shared_with_one_that_never_ends_it(keys_of):
    """mwpb's first epochs do not know what radius comes later."""
    weighted, plain = keys_of("mwpb_trades"), keys_of("mwpb_trades", off=("weighting",))
    assert weighted[0] == plain[0] and weighted[1] != plain[1]


@pytest.mark.parametrize(("change", "same"), [
    ({"off": ("margin",)}, False), ({"off": ("ema",)}, False), ({"seed": 1}, False), ({"sets": ["train.lr=0.06"]}, False), ({"sets": ["threat.eps=0.1"]}, False),
    ({"sets": ["optim.momentum=0.8"]}, False), ({"sets": ["optim.weight_decay=0.0"]}, False), ({"sets": ["optim.clip=2.0"]}, False),
    ({"sets": ["train.batch_size=20"]}, False), ({"sets": ["select.held_out=20"]}, False), ({"sets": ["model.channels=[4,8,16]"]}, False),
    ({"sets": ["model.mean=[0.5]", "model.std=[0.5]"]}, False), ({"sets": ["train.epochs=4"]}, False), ({"settings": {"precision": "tf32"}}, False),
    ({"settings": {"deterministic": True}}, False), ({"sets": ["augment.crop={pad=1}"]}, False),
    ({"sets": ["select.attack.steps=4"]}, False), ({"sets": ["select.from=2"]}, False), ({"sets": ["trace={every=1, clean={}}"]}, False),
    ({"sets": ["evaluate.pgd-3.steps=9"]}, True), ({"sets": ["select.report='last'"]}, True), ({"sets": [f"parts.idle={EMA}"]}, True),
    ({"sets": [f"parts.idle={EMA}", "evaluate.weights='idle'"]}, False), ({"sets": [f"parts.idle={EMA}", "select.weights='idle'"]}, False),
], ids=str)
def test_what_belongs_to_the_bits(change, same, keys_of):
    assert (keys_of("mart_ours", **change) == keys_of("mart_ours")) is same


def test_keys_do_not_depend_on_the_process(keys_of, away, tmp_path, record):
    process = away("mart_ours", tmp_path / "out", "--json")
    assert process.code() == 0
    assert record(tmp_path / "out", json.loads(process.stdout)["run"]).keys == keys_of("mart_ours")


def test_a_part_that_is_read_later_does_not_part_the_epochs_before(keys_of, session):
    """The weights are the same until its reader comes; what it remembers by then is carried, and the reader's key knows of it."""
    late = ["parts.ema={use='logit_ema'}", "terms.align={use='mse', a='ema_adv_logits', b='ema_clean_logits', begin=2}"]
    with_part, other = keys_of("mart", sets=late), keys_of("mart", sets=["terms.mae={begin=2}"])
    assert len(with_part) == 2 and with_part[0] == other[0] and with_part[1] != other[1]
    slower = keys_of("mart", sets=[late[0].replace("}", ", decay=0.7}"), late[1]])
    assert slower[0] == with_part[0] and slower[1] != with_part[1]
    first = session("mart", sets=late).nodes[0]
    assert set(first.carries) == {"ema"} and first.folder.name.startswith(first.key + "+")


def test_a_passive_part_takes_part_when_it_is_judged(go, tmp_path):
    """Without and with a reader of the averaged weights in one store: the second is not served the first one's training, which had no average."""
    plain = go("at", tmp_path)
    idle = go("at", tmp_path, **{"parts.mean": EMA})
    assert idle["weights_sha256"] == plain["weights_sha256"] and idle["prefix_key"] == plain["prefix_key"]
    judged = go("at", tmp_path, **{"parts.mean": EMA, "evaluate.weights": '"mean"'})
    alone = go("at", tmp_path / "alone", **{"parts.mean": EMA, "evaluate.weights": '"mean"'})
    assert judged["weights_sha256"] == alone["weights_sha256"] != plain["weights_sha256"]


# -- pairing ---------------------------------------------------------------------------------------------------------------------------


def test_variants_with_one_seed_see_the_same_draws(session):
    """Same initial weights, same split, same batches with the same augmentation, same start of the attack."""
    crop = ["augment.crop={pad=1}", "augment.flip={}"]
    one, two = session("at", sets=crop), session("at_ours", sets=[*crop, "inner.x_adv.start='uniform'", "parts.mean=" + EMA])
    other = session("at", sets=crop, seed=1)
    for a, b in zip(one.net.model.state_dict().values(), two.net.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(one.net.model.state_dict().values(), other.net.model.state_dict().values(), strict=True))
    assert torch.equal(one.val_rows, two.val_rows) and not torch.equal(one.val_rows, other.val_rows)
    feeds = [s.feed(s.nodes[0].segment) for s in (one, two, other)]
    for epoch in (1, 2):
        for a, b, c in zip(*(f.batches(epoch, 3 * (epoch - 1)) for f in feeds), strict=True):
            assert torch.equal(a.i, b.i) and torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
            assert not torch.equal(a.x, c.x)
    draws = [{d.path: d.kind for d in s.nodes[0].plan.draws} for s in (one, two)]
    shared = draws[0].keys() & draws[1].keys()
    assert any("start" in path for path in shared)
    for path in shared:
        x = torch.zeros(4, 1, 8, 8)
        a, b, c = (s.streams.draw(draws[0][path], path, 7, x) for s in (one, two, other))
        assert torch.equal(a, b) and not torch.equal(a, c)
