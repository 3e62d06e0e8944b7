"""Grids whose seeds are trained together: the tree stays, tasks of several seeds become one, and every run has a result of its own."""

from __future__ import annotations

import json

import pytest

from composer.ablate.pack_tasks import answers_of, packed
from composer.errors import ComposerError

TWO = ("late", "mean")


def test_seeds_of_a_stem_become_one_task(grid, drive, tmp_path) -> None:
    alone, it = drive(grid(*TWO, seeds=3), tmp_path / "runs"), drive(grid(*TWO, seeds=3), tmp_path / "runs", pack="3")
    one, all_ = [t for t in alone.tasks(set()) if t.spec["seed"] == 0], it.tasks(set())
    assert [(t.kind, t.cell, t.epochs) for t in all_] == [(t.kind, t.cell, t.epochs) for t in one] and {t.seeds for t in all_} == {(0, 1, 2)}
    assert all(t.spec["only"] == [0, 1, 2] and "together" in t.title for t in all_)
    assert all(t.spec["seeds"] == [0, 1, 2] if t.kind == "prefix" else t.runs == tuple((t.cell, s) for s in range(3)) for t in all_)
    ids = {t.id for t in all_}
    assert all(not t.after or t.after in ids for t in all_) and [bool(t.after) for t in all_] == [bool(t.after) for t in one]
    half = it.tasks({("full", 1)})
    assert {t.seeds for t in half if t.cell == "full"} == {(0, 2)} and {len(t.spec["runs"]) for t in half if t.kind == "run"} == {3}


def test_seeds_that_miss_other_cells_are_tasks_apart(grid, drive, tmp_path) -> None:
    """A seed that needs no prefix any more cannot wait for the others' one."""
    it = drive(grid(*TWO, seeds=2), tmp_path / "runs", pack="2")
    cells = [c.name for c in it.grid.distinct]
    tasks = it.tasks({(name, 1) for name in cells[1:]})
    assert {t.seeds for t in tasks if t.kind == "prefix"} == {(0,)}
    last = {t.seeds: t.after for t in tasks if t.cell == cells[0]}
    assert set(last) == {(0,), (1,)} and last[1,] == "" and last[0,]


def test_a_packed_grid_trains_what_its_tree_says(grid, drive, tmp_path, steps, helpers) -> None:
    it = drive(grid(*TWO, seeds=2), tmp_path / "runs", pack="2")
    summary = it.run()
    assert helpers.epochs_of(steps) == it.tree.trained == 7, "one step of the two seeds is told once"
    found = summary.as_dict()
    assert [len(c["runs"]) for c in found["cells"]] == [2, 2, 2, 2] and found["failed"] == []
    results = [json.loads(p.read_text()) for p in (tmp_path / "runs" / "experiments").glob("*/result.json")]
    assert len(results) == 8 and all(r["packed"] == 2 for r in results)
    assert any("{0, 1} are trained together" in note for note in it.grid.notes)
    assert json.loads((it.folder / "grid.json").read_text())["packs"] == [[0, 1]]
    steps.clear()
    second = drive(grid(*TWO, seeds=2), tmp_path / "runs", pack="2")
    assert second.run().as_dict()["cells"] == found["cells"] and not steps


def test_shared_epochs_change_no_bit_in_packs(grid, drive, tmp_path, helpers) -> None:
    shared = drive(grid("late", seeds=2), tmp_path / "runs", pack="2")
    alone = drive(grid("late", seeds=2), tmp_path / "alone", pack="2", share=False)
    shared.run(), alone.run()
    mine, theirs = helpers.digests(tmp_path / "runs"), helpers.digests(tmp_path / "alone")
    assert {run: sha for run, (_, sha) in mine.items()} == {run: sha for run, (_, sha) in theirs.items()} and len(mine) == 4


def test_packed_and_unpacked_share_no_node(two, grid, drive, steps, helpers, tmp_path) -> None:
    it = drive(grid("late", seeds=2, sets=["terms.mae.weight=0.7"]), two.out)
    it.run()
    before = {p.name for p in (two.out / "nodes").iterdir()}
    steps.clear()
    other = drive(grid("late", seeds=2, sets=["terms.mae.weight=0.7", "evaluate.pgd-3.steps=2"]), two.out, pack="2")
    other.run()
    after = {p.name for p in (two.out / "nodes").iterdir()}
    assert helpers.epochs_of(steps) == other.tree.trained, "nothing of the unpacked runs was taken"
    machines = [json.loads((two.out / "nodes" / name / "key.json").read_text())["machine"] for name in after - before]
    assert machines and all(m["packed"].endswith("of 2") for m in machines)


def test_a_study_begun_in_packs_goes_on_in_them(grid, drive, tmp_path, steps, helpers) -> None:
    first = drive(grid("late", seeds=2), tmp_path / "runs", pack="2")
    first.run()
    steps.clear()
    more = drive(grid("late", seeds=4), tmp_path / "runs", pack="4")
    assert more.packs.seeds == ((0, 1), (2, 3))
    more.run()
    assert {seed for _, seed, _ in steps} == {2} and helpers.epochs_of(steps) == more.tree.trained


def test_a_seed_that_diverges_is_a_failure_and_the_others_are_results(grid, drive, tmp_path, monkeypatch) -> None:
    from composer.engine.pack import Lockstep

    plain = Lockstep._step

    def poisoned(self, batch, epoch):
        if self.progress.step == 4 and 1 in [t.session.seed for t in self.members]:
            slot = self.seats[[t.session.seed for t in self.members].index(1)]
            self.net.parameters["head.weight"].data[slot].fill_(float("nan"))
        plain(self, batch, epoch)

    monkeypatch.setattr(Lockstep, "_step", poisoned)
    found = drive(grid("late", seeds=3), tmp_path / "runs", pack="3").run().as_dict()
    assert {(f["name"], f["seed"], f["diverged"]) for f in found["failed"]} == {("full", 1, True), ("-late", 1, True)}
    assert [[r["seed"] for r in c["runs"]] for c in found["cells"]] == [[0, 2], [0, 2]]


def test_what_cannot_be_packed(grid, drive, tmp_path, monkeypatch) -> None:
    from composer.engine import pack_fit

    with pytest.raises(ComposerError, match="--pack 1"):
        drive(grid("late", seeds=2), tmp_path / "runs", pack="1")
    it = drive(grid("late", seeds=2), tmp_path / "runs", pack="auto")
    assert not it.packs.seeds and "no faster on a CPU" in it.packs.note and all(not t.seeds for t in it.tasks(set()))
    emr = grid("emr", target="approx_emr_at", seeds=2)
    with pytest.raises(ComposerError, match="cell .* cannot be packed") as error:
        drive(emr, tmp_path / "runs", pack="2")
    assert "couples the rows" in error.value.why
    monkeypatch.setattr(pack_fit, "too_large", lambda session: "")
    some = drive(emr, tmp_path / "runs", pack="auto")
    assert {t.cell: t.seeds for t in some.tasks(set())} == {"full": (), "-emr": (0, 1)} and "Not packed: full" in some.packs.note
    assert "nobody to be packed with" in drive(grid("late", seeds=1), tmp_path / "runs", pack="4").packs.note


def test_answers_by_seed(grid, drive, tmp_path) -> None:
    task = drive(grid("late", seeds=2), tmp_path / "runs", pack="2").tasks(set())[-1]
    both = [(task.cell, 0), (task.cell, 1)]
    found = answers_of(task, {"packed": {"0": {"result": 1}, "1": {"failed": {"why": "x"}}}})
    assert found == dict(zip(both, ({"result": 1}, {"failed": {"why": "x"}})))
    lost = {"failed": {"why": "its worker was lost"}}
    assert answers_of(task, lost) == dict.fromkeys(both, lost)
    assert packed([], drive(grid("late", seeds=2), tmp_path / "runs").packs, lambda name: ("", "")) == []
