"""Grids whose cells are trained together where they are one up to numbers: packs of cells and seeds, that stay as they were begun."""

from __future__ import annotations

import json

import pytest

from composer.ablate.pack_tasks import packed
from composer.ablate.packs import Packs, runs_text
from composer.ablate.types import Task
from composer.errors import Stopped

MLP = {"sets": ("model.use=mlp", "model.widths=[64,64]", "train.epochs=2"), "drops": ("model.channels",)}
D = "d = { set = { 'terms.align.weight' = 3.0 } }"
STUDY = """
recipe = "at_ours"
[analysis]
primary = "clean"
[cells]
a = {{}}
b = {{ set = {{ "parts.ema.decay" = 0.7, "terms.margin.delta" = 0.4, "inner.x_adv.terms.margin.delta" = 0.4 }} }}
c = {{ drop = ["terms.margin"] }}
{more}
"""


@pytest.fixture
def study(tmp_path, tiny):
    """study('d = {…}') is the grid of a study with that cell more."""
    from composer.ablate.door import grid_for

    def make(more="", *, without="", seeds=2, **given):
        file = tmp_path / "grid.toml"
        text = STUDY.format(more=more)
        file.write_text("\n".join(line for line in text.splitlines() if not without or not line.startswith(f"{without} = ")))
        return grid_for(file, seeds=seeds, setting=tiny, **(MLP | given))

    return make


def pairs(tasks):
    return [t.runs for t in tasks]


def test_cells_that_are_one_up_to_numbers_become_one_task(study, drive, tmp_path):
    it = drive(study(), tmp_path / "runs", pack="auto")
    joint = (("a", 0), ("a", 1), ("b", 0), ("b", 1))
    assert it.packs.joint == (joint,) and it.packs.cells == {"c"} and it.packs.seeds == ((0, 1),)
    both, single = it.tasks(set())
    assert both.runs == joint and both.spec["only"] == [0, 1, 2, 3] and not both.after and single.runs == (("c", 0), ("c", 1))
    assert both.title == "Cells a, b with seeds {0, 1} together" and single.title == "c, seeds 0, 1 together"
    assert [each["seed"] for each in both.spec["runs"]] == [0, 1, 0, 1] and len({each["recipe"] for each in both.spec["runs"]}) == 2
    note = it.packs.note
    assert "Cells a, b with seeds {0, 1} are trained together; that equals training them alone to rounding, not bit for bit." in note
    assert "Seeds {0, 1} of c are trained together" in note and "With no other cell: c: one run has terms.margin (margin) where another has" in note
    (half,) = [t for t in it.tasks({("a", 0), ("c", 0), ("c", 1)})]
    assert half.runs == joint[1:] and half.spec["only"] == [1, 2, 3] and len(half.spec["runs"]) == 4


def test_one_seed_of_several_cells(study, drive, tmp_path):
    it = drive(study(seeds=1), tmp_path / "runs", pack="auto")
    assert it.packs.joint == ((("a", 0), ("b", 0)),) and not it.packs.seeds
    assert {t.runs: t.cell for t in it.tasks(set())} == {(("a", 0), ("b", 0)): "a", (): "c"}


def test_packs_are_of_at_most_so_many_runs(study, drive, tmp_path):
    it = drive(study(D, seeds=2), tmp_path / "runs", pack="4")
    assert it.packs.joint == ((("a", 0), ("a", 1), ("b", 0)), (("b", 1), ("d", 0), ("d", 1)))
    it = drive(study(D, seeds=3), tmp_path / "runs", pack="4")
    assert not it.packs.joint and it.packs.seeds == ((0, 1, 2),) and it.packs.cells == {"a", "b", "c", "d"}, "packs of one cell are packs by seed"


def test_the_record_equals_the_unpacked_one_to_rounding(study, drive, tmp_path, helpers):
    """Float32: the sign of an attack's step turns rounding into a jump, so what is trained is near and not equal."""
    alone, packed = drive(study(), tmp_path / "alone"), drive(study(), tmp_path / "runs", pack="auto")
    one, other = alone.run().as_dict(), packed.run().as_dict()
    assert other["failed"] == [] and [c["name"] for c in one["cells"]] == [c["name"] for c in other["cells"]] == ["a", "b", "c"]
    for a, b in zip(one["cells"], other["cells"], strict=True):
        assert [r["run"] for r in a["runs"]] == [r["run"] for r in b["runs"]]
        held = [json.loads((tmp_path / "runs" / "experiments" / r["run"] / "result.json").read_text())["packed"] for r in b["runs"]]
        assert held == ([2, 2] if a["name"] == "c" else [4, 4])
        for mine, theirs in zip(a["runs"], b["runs"]):
            rows = [[json.loads(line) for line in (out / "experiments" / mine["run"] / "metrics.jsonl").read_text().splitlines()]
                    for out in (tmp_path / "alone", tmp_path / "runs")]
            assert len(rows[0]) == len(rows[1]) == 2
            for row, near in zip(*rows, strict=True):
                assert row.keys() == near.keys() and all(near[k] == pytest.approx(row[k], rel=1e-2, abs=1e-2) for k in row if k.startswith("train/"))
            assert theirs["seed"] == mine["seed"]
    assert other["epochs_trained"] == one["epochs_trained"] and len(helpers.digests(tmp_path / "runs")) == 6
    text = (packed.folder / "table.md").read_text() if (packed.folder / "table.md").exists() else "\n".join(p.read_text() for p in packed.folder.glob("*.md"))
    assert "are trained together" in text and "a, b with seeds" in text


def test_a_cell_that_is_added_makes_a_pack_of_its_own(study, drive, tmp_path, steps, helpers):
    first = drive(study(), tmp_path / "runs", pack="auto")
    first.run()
    before, _ = helpers.digests(tmp_path / "runs"), steps.clear()
    assert drive(study(), tmp_path / "runs", pack="auto").packs == first.packs, "as the store knows it, it is what it was"
    more = drive(study(D), tmp_path / "runs", pack="auto")
    assert more.packs.joint == first.packs.joint and more.packs.cells == {"c", "d"} and "Seeds {0, 1} of c, d are trained" in more.packs.note
    assert more.run().as_dict()["failed"] == []
    after = helpers.digests(tmp_path / "runs")
    assert {k: after[k] for k in before} == before and len(after) == 8 and {seed for _, seed, _ in steps} == {0}
    seeds = drive(study(D, seeds=3), tmp_path / "runs", pack="auto")
    assert seeds.packs.joint == (*more.packs.joint, (("a", 2), ("b", 2), ("d", 2)), (("d", 0), ("d", 1)))


def test_what_was_begun_together_goes_on_together(study, drive, tmp_path, monkeypatch, helpers):
    """Killed within a pack; then the grid has lost a cell and got another, and no packs are asked for any more."""
    from composer.engine.pack import Lockstep

    whole = drive(study(), tmp_path / "whole", pack="auto")
    whole.run()
    plain = Lockstep._step

    def dying(self, batch, epoch):
        if self.progress.step == 4:
            raise KeyboardInterrupt
        plain(self, batch, epoch)

    monkeypatch.setattr(Lockstep, "_step", dying)
    with pytest.raises(Stopped):
        drive(study(), tmp_path / "runs", pack="auto").run()
    monkeypatch.setattr(Lockstep, "_step", plain)
    other = drive(study(D, without="b"), tmp_path / "runs", pack="off")
    (pack,) = other.packs.joint
    assert pack[:2] == (("a", 0), ("a", 1)) and {seed for _, seed in pack[2:]} == {0, 1} and not {"b", "d"} & {cell for cell, _ in pack}
    assert {t.runs for t in other.tasks(set())} >= {(("a", 0), ("a", 1))} and other.run().as_dict()["failed"] == []
    last = drive(study(), tmp_path / "runs", pack="auto")
    assert last.packs.joint == whole.packs.joint and last.run().as_dict()["failed"] == []
    mine, theirs = helpers.digests(tmp_path / "runs"), helpers.digests(tmp_path / "whole")
    both = {r.name for r in (whole._record(name, seed) for name in "ab" for seed in (0, 1))}
    assert {run: mine[run] for run in both} == {run: theirs[run] for run in both}, "bit for bit, in whatever sittings"


def test_a_pack_killed_before_it_trains_binds_no_cell(study, drive, tmp_path, monkeypatch):
    """The other cell is no longer there, and never got a recipe of its own."""
    from composer.engine.pack_run import Member

    with monkeypatch.context() as patch:
        patch.setattr(Member, "begin", lambda self, live: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(Stopped):
            drive(study(seeds=1), tmp_path / "runs", pack="auto").run()
    it = drive(study(D, without="b", seeds=1), tmp_path / "runs", pack="auto")
    assert it.packs.joint == ((("a", 0), ("d", 0)),) and it.run().as_dict()["failed"] == []


def test_runs_begun_by_seed_or_alone_join_no_pack_of_cells(study, drive, tmp_path, monkeypatch):
    from composer.engine.pack_seeds import run_seeds

    at = drive(study(), tmp_path / "runs", pack="auto")
    settings = at.options.settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("composer.engine.pack.Lockstep.run_all", lambda self, locks: (_ for _ in ()).throw(KeyboardInterrupt))
        with at.as_workers(), pytest.raises(KeyboardInterrupt):
            run_seeds(at.grid.cell("a").recipe, [0, 1], pack="2", settings=settings)
    with at.as_workers():
        run_seeds(at.grid.cell("b").recipe, [0], settings=settings)
    again = drive(study(D), tmp_path / "runs", pack="auto")
    assert again.packs.joint == ((("b", 1), ("d", 0), ("d", 1)),) and again.packs.cells == {"a", "c"} and again.packs.seeds == ((0, 1),)


@pytest.fixture
def kill(monkeypatch):
    """kill(Trainer, 4): what trains so dies before its fifth step; kill() lets it live."""
    held = []

    def at(kind=None, step=0):
        for where, plain in held:
            monkeypatch.setattr(where, "_step", plain)
        held.clear()
        if kind is None:
            return
        plain = kind._step

        def dying(self, batch, epoch):
            if self.progress.step == step:
                raise KeyboardInterrupt
            plain(self, batch, epoch)

        held.append((kind, plain))
        monkeypatch.setattr(kind, "_step", dying)

    return at


def packed_of(it):
    """(cell, seed) -> the width of the pack that its result comes from, None: alone."""
    return {(c.name, s): it._record(c.name, s).result.get("packed") for c in it.grid.distinct for s in it.grid.seeds}


def test_runs_begun_alone_stay_out_of_packs_by_seed(study, drive, kill, tmp_path):
    from composer.engine.train import Trainer

    kill(Trainer, 4)
    with pytest.raises(Stopped):
        drive(study(without="b"), tmp_path / "runs").run()
    kill()
    it = drive(study(without="b"), tmp_path / "runs", pack="auto")
    assert it.packs.alone == {("a", 0)} and "Cells a with seeds {0} were begun alone and go on alone." in it.packs.note
    assert {t.id: t.runs for t in it.tasks(set())} == {"a/s0": (), "a/s1": (("a", 1),), "c/s0+1": (("c", 0), ("c", 1))}
    assert it.run().as_dict()["failed"] == [] and packed_of(it) == {("a", 0): None, ("a", 1): 2, ("c", 0): 2, ("c", 1): 2}


def test_a_run_begun_alone_waits_for_no_packed_prefix(grid, drive, kill, two, tmp_path, helpers):
    """Killed in the epoch behind the shared ones."""
    from composer.engine.train import Trainer

    kill(Trainer, 10)
    with pytest.raises(Stopped):
        drive(grid("late", "mean", seeds=2), tmp_path / "other").run()
    kill()
    it = drive(grid("late", "mean", seeds=2), tmp_path / "other", pack="2")
    ((cell, seed),) = it.packs.alone
    tasks = it.tasks(set())
    assert [t.after for t in tasks if (t.cell, t.seed, t.kind) == (cell, seed, "run")] == [""] and any(t.kind == "prefix" and len(t.seeds) == 2 for t in tasks)
    assert it.run().as_dict()["failed"] == [] and [pair for pair, width in packed_of(it).items() if width is None] == [(cell, seed)]
    run = it._record(cell, seed).name
    assert helpers.digests(tmp_path / "other")[run] == helpers.digests(two.out)[run], "bit for bit what it is alone"


@pytest.mark.parametrize("how", ["off", "auto"])
@pytest.mark.parametrize(("toggles", "step"), [(("start",), 4), (("strong", "start"), 4), (("late",), 10)], ids=["sole", "prefix", "behind"])
def test_what_was_packed_though_it_does_not_pay_stays_packed(how, toggles, step, grid, drive, kill, tmp_path):
    """A convolutional network, packed by order: in a run, in a prefix, behind it."""
    from composer.engine.pack import Lockstep

    first = drive(grid(*toggles, seeds=2), tmp_path / "runs", pack="2")
    kill(Lockstep, step)
    with pytest.raises(Stopped):
        first.run()
    kill()
    again = drive(grid(*toggles, seeds=2), tmp_path / "runs", pack=how)
    assert (again.packs.seeds, again.packs.cells, again.packs.joint) == (first.packs.seeds, first.packs.cells, ())
    assert again.run().as_dict()["failed"] == [] and set(packed_of(again).values()) == {2}


def test_packs_that_are_known_by_their_records_alone_stay(grid, drive, kill, tmp_path):
    """The study's record is lost; what was not begun is packed where it pays."""
    from composer.engine.pack import Lockstep

    first = drive(grid("start", seeds=2), tmp_path / "runs", pack="2")
    kill(Lockstep, 4)
    with pytest.raises(Stopped):
        first.run()
    kill()
    (first.folder / "grid.json").unlink()
    again = drive(grid("start", seeds=2), tmp_path / "runs", pack="auto")
    assert again.packs.cells == {"full"} and again.packs.seeds == ((0, 1),) and "Not packed: -start" in again.packs.note
    assert again.run().as_dict()["failed"] == [] and packed_of(again) == {("full", 0): 2, ("full", 1): 2, ("-start", 0): None, ("-start", 1): None}


def waiting(seed):
    """One seed's tasks: M and N, which share epochs, wait for L's run."""
    def run(cell, after):
        spec = {"kind": "run", "recipe": cell, "name": cell, "seed": seed, "settings": {}}
        return Task(f"{cell}/s{seed}", "run", f"{cell}, seed {seed}", spec, after, 4, cell, seed)

    prefix = Task(f"P/s{seed}", "prefix", "", {"kind": "prefix", "recipe": "M", "seed": seed}, f"L/s{seed}", 2, "M", seed)
    return [run("L", ""), prefix, run("M", prefix.id), run("N", prefix.id)]


APART = {task.id: task.after for seed in (0, 1) for task in waiting(seed)}


@pytest.mark.parametrize(("cells", "alone", "want", "leads"), [
    ("LMN", [], {"L/s0+1": "", "P/s0+1": "L/s0+1", "M/s0+1": "P/s0+1", "N/s0+1": "P/s0+1"}, {(("L", 0), ("L", 1))}),
    ("MN", [], APART, {()}),
    ("LMN", [("L", 0)], APART, {(), (("L", 1),)})], ids=["all", "lead_unfit", "lead_begun_alone"])
def test_what_waits_for_a_run_that_is_trained_alone_is_alone(cells, alone, want, leads):
    """A lead that cannot be packed is in no pack though others wait for it; runs that wait each for their own seed's lead are no pack either."""
    made = packed([*waiting(0), *waiting(1)], Packs(((0, 1),), frozenset(cells), alone=frozenset(alone)), lambda name: (name, name))
    assert {task.id: task.after for task in made} == want and {task.runs for task in made if task.cell == "L"} == leads


def test_cells_behind_one_that_cannot_be_packed(study, drive, tmp_path):
    rank = "d = { put = { 'evaluate.rank' = { use = 'rank', reference = 'approx_emr_at' } } }\ne = { recipe = 'approx_emr_at' }"
    it = drive(study(rank), tmp_path / "runs", pack="auto")
    assert not it.packs.cells and "e: terms.emr differentiates twice" in it.packs.note and "a: it waits for e, which is trained alone" in it.packs.note


def test_cells_that_share_epochs_are_packed_by_seed(grid, drive, tmp_path):
    it = drive(grid("heavy", "late", seeds=2), tmp_path / "runs", pack="4")
    assert it.packs.joint == () and len(it.packs.cells) >= 2, "they fork late"
    assert any(t.kind == "prefix" and t.seeds == (0, 1) for t in it.tasks(set()))


def test_a_run_of_a_pack_trains_its_epochs_itself_though_others_share_them_by_now(study, drive, tmp_path, helpers):
    """A late cell forks from one that was begun in a pack: its prefix is for itself."""
    first = drive(study(), tmp_path / "runs", pack="auto")
    first.run()
    for file in (tmp_path / "runs").glob("experiments/*/result.json"):
        file.unlink()
    late = "d = { put = { 'terms.mae' = { begin = 1 } } }"
    it = drive(study(late), tmp_path / "runs", pack="auto")
    assert it.tree.forks and it.packs.joint[0] == first.packs.joint[0]
    tasks = it.tasks(set())
    joint = next(t for t in tasks if t.runs == first.packs.joint[0])
    assert joint.after == "" and any(t.kind == "prefix" for t in tasks)
    assert it.run().as_dict()["failed"] == []


def test_points_of_a_grid_without_rungs_are_packed(study, drive, tmp_path):
    sweep = 'row = { kind = "sweep", grid = { "terms.align.weight" = [1.0, 2.0, 3.0] }, select = ["pgd"] }'
    it = drive(study(sweep, seeds=1), tmp_path / "runs", pack="auto")
    assert {cell for pack in it.packs.joint for cell, _ in pack} >= {"a", "b", "row#1", "row#2", "row#3"}
    found = it.run().as_dict()
    assert found["failed"] == [] and all(it._compared(name, 0) for name in it.ends)
    rungs = sweep.replace("select", "rungs = [1, 2], keep = 1, select")
    it = drive(study(rungs, seeds=1), tmp_path / "rungs", pack="auto")
    assert {cell for pack in it.packs.joint for cell, _ in pack} == {"a", "b"} and "judged one by one" in it.packs.note


def test_a_cell_that_diverges_is_a_failure_and_the_others_are_results(study, drive, tmp_path):
    wild = drive(study("d = { set = { 'train.lr' = 1e30, 'optim.clip' = 1e30 } }", seeds=1), tmp_path / "runs", pack="auto")
    assert ("d", 0) in wild.packs.joint[0]
    found = wild.run().as_dict()
    assert {(f["name"], f["diverged"]) for f in found["failed"]} == {("d", True)}
    assert [len(c["runs"]) for c in found["cells"]] == [1, 1, 1, 0]


def test_what_a_pack_is_called():
    assert runs_text([("a", 0), ("a", 1), ("b", 0), ("b", 1)]) == "Cells a, b with seeds {0, 1}"
    assert runs_text([("a", 0), ("a", 1), ("b", 0)]) == "Cells a with seeds {0, 1} and b with seeds {0}"
