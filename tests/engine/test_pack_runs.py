"""Whole runs in packs: what lies in the store afterwards, what is refused, and that a pack killed anywhere ends with the bits of one that was not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from composer.engine import checkpoint
from composer.engine.pack_run import run_pack
from composer.engine.pack_seeds import Packing, packs_of, run_seeds
from composer.engine.session import Settings
from composer.errors import ComposerError, Stopped
from composer.recipe.load import load

TIMES = ("seconds", "train_seconds", "out", "peak_memory_bytes")
SEEDS = [0, 1, 2]
MLP = {"model.use": "mlp", "model.widths": [16], "train.epochs": 1, "select.from": 1}


def timeless(result):
    return {k: v for k, v in result.items() if k not in TIMES}


@pytest.fixture
def several(tiny):
    """several("at", out, pack="3") runs the seeds in this process; with `only`, these places of one pack."""

    def call(recipe, out, *, seeds=SEEDS, pack="3", settings=None, only=None, **sets):
        drops = ("model.channels",) if "model.use" in sets else ()
        said = [f"{path}={value if isinstance(value, str) else json.dumps(value)}" for path, value in sets.items()]
        made = load(recipe, setting=tiny, sets=said, drops=drops)
        made_settings = Settings(**{"out": Path(out), "track": False, "quiet": True, "device": "cpu"} | (settings or {}))
        if only is not None:
            return run_pack([(made, seed) for seed in seeds], settings=made_settings, only=only)
        return run_seeds(made, seeds, pack=pack, settings=made_settings)

    return call


@pytest.mark.parametrize("recipe", ["at", "piat_nmse"])
def test_a_pack_equals_runs_alone_to_rounding(recipe, several, record, tmp_path):
    """In float32 the sign of an attack's step turns rounding into a jump, so curves are near and not equal; keys and folders are never the same."""
    alone, packed = several(recipe, tmp_path, pack="off"), several(recipe, tmp_path / "packed")
    assert packed["packs"] == [SEEDS] and not packed["note"] and not alone["packs"]
    for one, other in zip(alone["runs"], packed["runs"], strict=True):
        a, b = record(tmp_path, one["run"]), record(tmp_path / "packed", other["run"])
        assert one["run"] == other["run"] and one["experiment_id"] == other["experiment_id"]
        assert other["packed"] == 3 and "packed" not in one and not set(a.keys) & set(b.keys)
        assert one["steps"] == other["steps"] and one["passes"] == other["passes"] and one["n"] == other["n"]
        assert len(a.rows) == len(b.rows) == one["epochs"]
        for row, near in zip(a.rows, b.rows, strict=True):
            assert row.keys() == near.keys()
            for name in row:
                if name.startswith("train/"):
                    assert near[name] == pytest.approx(row[name], rel=0.05, abs=0.05), name
        assert abs(one["metrics"]["clean"] - other["metrics"]["clean"]) < 0.3
    digests = {r["weights_sha256"] for found in (alone, packed) for r in found["runs"]}
    assert len(digests) >= 4, "the seeds are one run"


def test_every_member_has_a_record_of_its_own(several, record, tmp_path):
    packed = several("mart_ours", tmp_path)
    for seat, result in enumerate(packed["runs"]):
        held = record(tmp_path, result["run"])
        key = json.loads((held.folders[-1] / "key.json").read_text())
        assert key["machine"]["packed"] == f"{seat + 1} of 3" and key["machine"]["backend"] == "eager"
        assert held.facts["pack"] == {"seeds": SEEDS, "seat": seat}
        folder = tmp_path / "experiments" / result["run"]
        assert {"result.json", "final.safetensors", "metrics.jsonl", "plan.txt", "recipe.toml"} <= {p.name for p in folder.iterdir()}
        assert (held.folders[-1] / "done").exists() and (held.folders[-1] / checkpoint.CURRENT).exists()
        assert result["selected"] == "best" and result["selected_epoch"] == max(held.rows, key=lambda row: (row["val/pgd"], -row["epoch"]))["epoch"]
        saved = checkpoint.load(held.folders[-1] / checkpoint.CURRENT)
        assert saved.facts["progress"]["step"] == result["steps"] and any(k.startswith("optim/") for k in saved.tensors)
        assert any(k.startswith("parts/ema/") for k in saved.tensors)


def test_a_finished_pack_answers_at_once(several, stop_after, tmp_path):
    first = several("at", tmp_path)
    stop_after(1)                                               # any step would end in Stopped
    assert several("at", tmp_path)["runs"] == several("at", tmp_path, pack="auto")["runs"] == first["runs"]


@pytest.mark.parametrize("recipe", ["mart_ours", pytest.param("piat_nmse", marks=pytest.mark.slow)])
def test_stopped_and_resumed_is_in_one_go(recipe, several, stop_after, record, tmp_path):
    whole = several(recipe, tmp_path / "whole")
    for steps in (1, 2, 3):
        stop_after(steps)
        with pytest.raises(Stopped) as stop:
            several(recipe, tmp_path / "parts")
        assert stop.value.exit_code == 75
    stop_after(None)
    parts = several(recipe, tmp_path / "parts")
    assert [timeless(r) for r in parts["runs"]] == [timeless(r) for r in whole["runs"]]
    for result in whole["runs"]:
        held = [record(tmp_path / name, result["run"]).rows for name in ("whole", "parts")]
        rows = [[{k: v for k, v in row.items() if not k.startswith("memory/")} for row in each] for each in held]
        assert rows[0] == rows[1]


class Killed(BaseException):
    """In place of SIGKILL: nothing of ours catches it, nothing is written after it."""


@pytest.mark.parametrize("saves", [1, 5, 8])
def test_killed_while_it_saves_it_goes_on_from_the_last_common_checkpoint(saves, several, record, tmp_path, monkeypatch):
    """A checkpoint after every step; some members have the newest one, others the one before."""
    often = {"checkpoint_seconds": 0.0}
    whole = several("at", tmp_path / "whole")
    keep, made = checkpoint.keep, []

    def dying(folder, saved):
        if len(made) == saves:
            raise Killed
        made.append(folder)
        keep(folder, saved)

    monkeypatch.setattr(checkpoint, "keep", dying)
    with pytest.raises(Killed):
        several("at", tmp_path / "parts", settings=often)
    monkeypatch.setattr(checkpoint, "keep", keep)
    parts = several("at", tmp_path / "parts")
    assert [timeless(r) for r in parts["runs"]] == [timeless(r) for r in whole["runs"]]
    for result in whole["runs"]:
        assert [row["epoch"] for row in record(tmp_path / "parts", result["run"]).rows] == [1, 2, 3]


def test_what_is_missing_of_a_pack_keeps_its_seats(several, tmp_path):
    """A lost result is made again with the same bits, though the others no longer train."""
    whole = several("mart_ours", tmp_path)
    lost = whole["runs"][1]
    import shutil

    shutil.rmtree(tmp_path / "nodes" / lost["prefix_key"])
    (tmp_path / "experiments" / lost["run"] / "result.json").unlink()
    again = several("mart_ours", tmp_path)
    assert again["packs"] == [SEEDS] and [timeless(r) for r in again["runs"]] == [timeless(r) for r in whole["runs"]]
    (tmp_path / "experiments" / lost["run"] / "result.json").unlink()
    shutil.rmtree(tmp_path / "nodes" / lost["prefix_key"])
    assert timeless(several("mart_ours", tmp_path, seeds=[1], pack="auto")["runs"][0]) == timeless(lost), "begun in a pack, it goes on in that pack"


def test_one_run_that_diverges_is_told_and_the_others_finish(several, tmp_path, monkeypatch):
    from composer.engine.pack import Lockstep

    plain = Lockstep._step

    def poisoned(self, batch, epoch):
        if self.progress.step == 4 and len(self.members) == 3:
            self.net.parameters["head.weight"].data[1].fill_(float("nan"))
        plain(self, batch, epoch)

    fine = several("at", tmp_path / "fine")
    monkeypatch.setattr(Lockstep, "_step", poisoned)
    found = several("at", tmp_path / "runs")
    assert [r["seed"] for r in found["runs"]] == [0, 2] and [f["seed"] for f in found["failed"]] == [1] and "diverged" in found["failed"][0]["why"]
    assert [timeless(r) for r in found["runs"]] == [timeless(r) for r in fine["runs"] if r["seed"] != 1]


def test_what_cannot_be_packed_runs_alone_or_is_an_error(several, tmp_path):
    sets = MLP
    found = several("approx_emr_at", tmp_path, pack="auto", seeds=2 * [0] + [1], **sets)
    assert "differentiates twice and couples the rows" in found["note"] and found["packs"] == [] and [r["seed"] for r in found["runs"]] == [0, 1]
    with pytest.raises(ComposerError, match="cannot be packed") as error:
        several("approx_emr_at", tmp_path / "other", pack="2", **sets)
    assert "--pack off" in error.value.fix
    for settings, reason in (({"precision": "bf16"}, "float32"), ({"backend": "compiled"}, "eager"), ({"micro_batch": 8}, "whole")):
        with pytest.raises(ComposerError) as error:
            several("at", tmp_path / "other", settings=settings, **sets)
        assert reason in error.value.why
    assert not list((tmp_path / "other").glob("experiments/*/result.json"))


def test_a_network_too_large_for_packing_to_pay_runs_alone(several, tmp_path, monkeypatch):
    from composer.engine import pack_fit

    monkeypatch.setitem(pack_fit.SMALL, "cpu", 1.0)
    found = several("at", tmp_path, pack="auto", **MLP)
    assert "million operations" in found["note"] and not found["packs"]
    assert several("at", tmp_path / "asked", pack="3", **MLP)["packs"] == [SEEDS], "a number is an order"
    assert several("at", tmp_path / "asked", pack="auto", **MLP)["packs"] == [SEEDS], "what was begun in a pack stays in it"
    found = several("at", tmp_path / "cnn", pack="auto", seeds=[0, 1], **{"train.epochs": 1, "select.from": 1})
    assert "no faster on a CPU" in found["note"] and not found["packs"]


def test_what_was_begun_alone_goes_on_alone(several, stop_after, tmp_path):
    stop_after(4)
    with pytest.raises(Stopped):
        several("at", tmp_path, pack="off", **MLP | {"train.epochs": 2})
    stop_after(None)
    found = several("at", tmp_path, pack="auto", **MLP | {"train.epochs": 2})
    assert found["packs"] == [[1, 2]] and "seed 0 was begun alone" in found["note"] and [r.get("packed") for r in found["runs"]] == [None, 2, 2]


def test_killed_between_the_beginnings_of_two_it_goes_on_as_one_pack(several, tmp_path, monkeypatch):
    from composer.engine.pack_walk import PackWalk

    plain = PackWalk._resume

    def dying(self, m, place):
        if m == 1:
            raise Killed
        plain(self, m, place)

    monkeypatch.setattr(PackWalk, "_resume", dying)
    with pytest.raises(Killed):
        several("at", tmp_path, seeds=[0, 1], pack="2", **MLP)
    monkeypatch.setattr(PackWalk, "_resume", plain)
    found = several("at", tmp_path, seeds=[0, 1, 2], pack="auto", **MLP)
    assert found["packs"] == [[0, 1]] and [r.get("packed") for r in found["runs"]] == [2, 2, None]


def test_a_seed_begun_alone_stays_out_of_a_pack_that_others_were_begun_in(several, stop_after, tmp_path):
    """A study has packed seed 1 in a pack of seeds 0 and 1, whose other seat is free."""
    stop_after(2)
    with pytest.raises(Stopped):
        several("at", tmp_path, seeds=[0], **MLP)
    with pytest.raises(Stopped):
        several("at", tmp_path, seeds=[0, 1], only=[1], **MLP)
    stop_after(None)
    found = several("at", tmp_path, seeds=[0, 1], pack="auto", **MLP)
    assert [r.get("packed") for r in found["runs"]] == [None, 2] and found["failed"] == []


def test_fresh_forgets_the_pack(several, stop_after, tmp_path):
    """Begun in a pack, begun again alone: then it goes on alone."""
    stop_after(2)
    for pack, settings in (("2", {}), ("off", {"fresh": True})):
        with pytest.raises(Stopped):
            several("at", tmp_path, seeds=[0, 1], pack=pack, settings=settings, **MLP)
    stop_after(None)
    found = several("at", tmp_path, seeds=[0], pack="auto", **MLP)
    assert found["packs"] == [] and "begun alone" in found["note"] and "packed" not in found["runs"][0]


def test_phases_and_a_changing_set_of_parts(several, record, tmp_path):
    """Stretches with other plans, fresh optimisers and parts that begin late: the pack is made anew for each."""
    alone, found = several("elsayed_burnin", tmp_path, pack="off"), several("elsayed_burnin", tmp_path / "packed")
    assert [r["steps"] for r in found["runs"]] == [r["steps"] for r in alone["runs"]] and len(found["runs"]) == 3
    for one, other in zip(alone["runs"], found["runs"]):
        a, b = record(tmp_path, one["run"]), record(tmp_path / "packed", other["run"])
        assert len(a.folders) == len(b.folders) > 1
        assert [row["train/lr"] for row in a.rows] == [row["train/lr"] for row in b.rows]


def test_words_of_pack():
    assert Packing.parse("auto").auto and Packing.parse("off").most == 0 and Packing.parse("4") == Packing(4, False)
    for text in ("1", "0", "-2", "some", ""):
        with pytest.raises(ComposerError):
            Packing.parse(text)
    assert packs_of([0, 1, 2, 3, 4], 4) == [(0, 1, 2), (3, 4)] and packs_of([7], 4) == [(7,)] and packs_of([1, 2], 0) == [(1,), (2,)]
    assert packs_of(list(range(33)), 16) == [tuple(range(11)), tuple(range(11, 22)), tuple(range(22, 33))]
    assert replace(Settings(), pack="2 of 5").pack == "2 of 5"
