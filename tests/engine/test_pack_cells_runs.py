"""Whole runs of several recipes in one pack: records, places, what is refused, and that a pack killed anywhere ends with the bits of one that was not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from composer.engine import checkpoint
from composer.engine.pack import Lockstep
from composer.engine.pack_fit import open_sessions, refusal
from composer.engine.pack_layers import Unpackable
from composer.engine.pack_run import Member, listed, run_pack
from composer.engine.pack_seeds import begun_as, run_seeds
from composer.engine.record import Record
from composer.engine.run import run
from composer.engine.session import Settings
from composer.errors import ComposerError, Diverged, Stopped
from composer.recipe.load import load
from composer.report.live import Live

TIMES = ("seconds", "train_seconds", "out", "peak_memory_bytes")
GRID = [[], ["terms.margin.delta=0.4", "inner.x_adv.terms.margin.delta=0.4"], ["parts.ema.decay=0.7", "terms.align.weight=30.0", "train.lr=0.02"]]


@pytest.fixture
def grid(tiny):
    """grid() gives the runs of three cells with two seeds, cell by cell."""

    def made(recipe="at_ours", sets=GRID, seeds=(0, 1)):
        return [(load(recipe, setting=tiny, sets=own), seed) for own in sets for seed in seeds]

    return made


def settings(out: Path, **more) -> Settings:
    return Settings(**{"out": Path(out), "track": False, "quiet": True, "device": "cpu"} | more)


def timeless(found):
    return {k: {n: v for n, v in result.items() if n not in TIMES} for k, result in found.items()}


def test_a_pack_of_cells_equals_its_runs_alone_to_rounding(grid, record, tmp_path):
    runs = grid(sets=GRID[::2])
    packed = run_pack(runs, settings=settings(tmp_path / "packed"))
    names = [packed[k]["run"] for k in range(4)]
    for seat, (recipe, seed) in enumerate(runs):
        alone, result = run(recipe, seed=seed, settings=settings(tmp_path)), packed[seat]
        a, b = record(tmp_path, alone["run"]), record(tmp_path / "packed", result["run"])
        assert alone["run"] == result["run"] and result["packed"] == 4 and "packed" not in alone and not set(a.keys) & set(b.keys)
        assert b.facts["pack"] == {"runs": [[name, of] for name, (_, of) in zip(names, runs)], "seat": seat}
        assert json.loads((b.folders[-1] / "key.json").read_text())["machine"]["packed"] == f"{seat + 1} of 4"
        assert alone["steps"] == result["steps"] and alone["passes"] == result["passes"] and len(a.rows) == len(b.rows)
        for row, near in zip(a.rows, b.rows, strict=True):
            assert row["train/lr"] == near["train/lr"]
            assert all(near[k] == pytest.approx(row[k], rel=0.05, abs=0.05) for k in row if k.startswith("train/"))
    assert len({result["weights_sha256"] for result in packed.values()}) == 4, "two members are one run"


def test_runs_beside_others_have_other_keys(grid, tmp_path):
    """What sits beside a run decides which calls are made member by member (a word of the loss), and whether one optimiser makes all updates (the rate)."""
    (own, *others), found = grid("mart", [[], ["terms.boosted_ce.constants=exact"], ["terms.kl.weight=2.0", "train.lr=0.02"]], seeds=(0,)), []
    for k, other in enumerate([(own[0], 1), (own[0], 2), *others]):
        result = run_pack([own, other], settings=settings(tmp_path / str(k)))[0]
        machine = json.loads((tmp_path / str(k) / "nodes" / result["prefix_key"] / "key.json").read_text())["machine"]
        assert machine["packed"] == "1 of 2" and ("beside" in machine) == (k > 1), "packs of seeds say nothing of each other"
        found.append((result["prefix_key"], result["weights_sha256"]))
    assert found[0] == found[1], "the seed beside it changes no bit"
    assert len({key for key, _ in found}) == 3 and len({weights for _, weights in found}) > 1


@pytest.mark.parametrize("saves", [3, 11])
def test_killed_while_it_saves(saves, grid, tmp_path, monkeypatch):
    class Killed(BaseException):
        """In place of SIGKILL."""

    runs, keep, made = grid(seeds=(0,)), checkpoint.keep, []
    whole = run_pack(runs, settings=settings(tmp_path / "whole"))

    def dying(folder, saved):
        if len(made) == saves:
            raise Killed
        made.append(folder)
        keep(folder, saved)

    monkeypatch.setattr(checkpoint, "keep", dying)
    with pytest.raises(Killed):
        run_pack(runs, settings=settings(tmp_path / "parts", checkpoint_seconds=0.0))
    monkeypatch.setattr(checkpoint, "keep", keep)
    assert timeless(run_pack(runs, settings=settings(tmp_path / "parts"))) == timeless(whole)


def test_a_lost_result_is_made_again_in_its_place_with_its_bits(grid, tmp_path):
    """Alone in the pack, whose other seats still decide what is computed member by member."""
    import shutil

    runs = grid(seeds=(0,))
    whole = run_pack(runs, settings=settings(tmp_path))
    shutil.rmtree(tmp_path / "nodes" / whole[1]["prefix_key"])
    (tmp_path / "experiments" / whole[1]["run"] / "result.json").unlink()
    assert timeless(run_pack(runs, settings=settings(tmp_path), only=[1])) == timeless(whole)


def test_what_was_begun_with_other_cells_is_not_begun_again_among_seeds(grid, stop_after, tmp_path):
    runs = grid(sets=GRID[:2])
    stop_after(2)
    with pytest.raises(Stopped):
        run_pack(runs, settings=settings(tmp_path))
    stop_after(None)
    with pytest.raises(ComposerError, match="in a pack with runs of other recipes") as error:
        run_seeds(runs[0][0], [0, 1], pack="auto", settings=settings(tmp_path))
    assert "--fresh" in error.value.fix
    done = run_pack(runs, settings=settings(tmp_path))
    again = run_seeds(runs[0][0], [0, 1], pack="auto", settings=settings(tmp_path))
    assert again["runs"] == [done[0], done[1]] and again["packs"] == []


def test_a_pack_killed_before_it_trains_binds_nobody(grid, tmp_path, monkeypatch):
    """Its second run had not begun; the first one's recipe and the second's are there all the same."""
    plain = Member.begin

    def dying(self, live):
        if self.seed == 1:
            raise KeyboardInterrupt
        plain(self, live)

    runs = grid("at", [["terms.ce.weight=2.0"], []], seeds=(0, 1))
    monkeypatch.setattr(Member, "begin", dying)
    with pytest.raises(KeyboardInterrupt):
        run_pack(runs[1:3], settings=settings(tmp_path))
    monkeypatch.setattr(Member, "begin", plain)
    for recipe, seed in runs[1:3]:
        record = Record(tmp_path, recipe, seed)
        assert record.facts["pack"]["runs"] and begun_as(record, settings(tmp_path)) == ({}, False)
        assert (record.folder / "recipe.toml").exists()
    assert "packed" not in run_seeds(runs[2][0], [0], settings=settings(tmp_path))["runs"][0]


@pytest.mark.parametrize(("recipe", "sets", "why"), [
    ("at", [[], ["train.epochs=2"]], "stretches of epochs"), ("at", [[], ["train.batch_size=8"]], "stretches of epochs"),
    ("at", [[], ["model.channels=[4,4,4]"]], "different networks"), ("at", [[], ["threat.steps=1"]], "climb in the same steps"),
    ("at", [[], ["select.held_out=10"]], "training images")])
def test_runs_that_are_not_one_up_to_numbers(recipe, sets, why, grid, tmp_path):
    runs = dict(enumerate(grid(recipe, sets, seeds=(0,))))
    assert why in refusal(list(open_sessions(runs, 2, settings(tmp_path)).values()))
    with pytest.raises(Unpackable, match=why):
        run_pack(list(runs.values()), settings=settings(tmp_path))
    assert not list(tmp_path.glob("experiments/*/record.json"))


def test_progress_is_told_by_the_next_when_the_first_is_lost(grid, tmp_path, monkeypatch):
    plain, epochs, shown = Lockstep._step, [], []

    def poisoned(self, batch, epoch):
        if self.progress.step == 1 and not self.lost:
            self.net.parameters["head.weight"].data[0].fill_(float("nan"))
        plain(self, batch, epoch)

    monkeypatch.setattr(Lockstep, "_step", poisoned)
    monkeypatch.setattr(Live, "step", lambda self, epoch, batch, images=0, **more: shown.append((epoch, batch)))
    observer = SimpleNamespace(epoch=lambda epoch, metrics: epochs.append(epoch), resumed=lambda epoch: None, stop=lambda: "")
    found = run_pack(grid("at", [[]], seeds=(0, 1, 2)), settings=settings(tmp_path), observer=observer)
    assert isinstance(found[0], Diverged) and [found[k]["seed"] for k in (1, 2)] == [1, 2]
    assert epochs == [1, 2, 3] and shown == [(epoch, batch) for epoch in (1, 2, 3) for batch in (1, 2, 3)]


def test_what_a_pack_is_called():
    assert listed(["seed 0", "seed 2"]) == "seeds 0, 2"
    assert listed([f"c{k}" for k in range(8)]) == "c0, c1, c2, c3, c4, c5 and 2 more" and listed(["a, seed 1"]) == "a, seed 1"
