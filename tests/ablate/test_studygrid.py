"""Studies as grids, and what the command line does to them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from composer.ablate.describe import describe, rows, without_cells
from composer.ablate.studygrid import confounds, grid_of_study
from composer.ablate.types import Grid
from composer.errors import ComposerError
from composer.plan.whole import plans_of
from composer.recipe.studies import Bases, Study, load_study, study_names
from composer.recipe.study_command import command, rescaled
from composer.verbs.checking import look

ROOT = Path(__file__).parents[2] / "recipes"
FIGURES = {"lma_at_fig1", "emr_fig1", "emr_fig2", "emr_fig3", "emr_fig4_5", "emr_fig6", "mwpb_fig2_4", "piat_fig2", "piat_fig3", "piat_fig4", "piat_fig5",
           "piat_fig6"}
SHORT = {"setting": "digits", "sets": ["train.epochs=2", "evaluate.use=quick"], "seeds": 2}


@pytest.fixture(scope="module")
def short() -> dict[str, tuple[Study, Grid]]:
    bases = Bases(ROOT, look, command(**SHORT))              # type: ignore[arg-type]
    studies = {name: load_study(name, bases=bases) for name in study_names(ROOT)}
    return {name: (study, grid_of_study(study)) for name, study in studies.items()}


def written(folder: Path, text: str) -> Path:
    (folder / "studies").mkdir(exist_ok=True)
    (folder / "studies" / "mine.toml").write_text(textwrap.dedent(text))
    return folder / "studies" / "mine.toml"


def test_every_study_of_a_table_is_a_grid_on_digits(short: dict[str, tuple[Study, Grid]]) -> None:
    """Two epochs of the run, the quick protocol, two seeds, one network and no picture of 32 pixels anywhere; every cell compiles."""
    assert len([study for study, _ in short.values() if study.table]) == 33 and set(short) >= FIGURES
    for study, grid in short.values():
        assert grid.seeds == (0, 1) and len(grid.cells) == sum(row.size for row in study.rows) > 0 and grid.study is study
        for cell in grid.cells:
            recipe = cell.recipe
            assert (recipe.setting, recipe.train.epochs, recipe.evaluate.protocol, recipe.data.use) == ("digits", 2, "quick", "digits"), cell.name
            assert plans_of(recipe)[-1][0].last == 2 + sum(p.stop for p in recipe.phases if p.add)
            assert cell.row is not None and not cell.row.printed
        assert study.analysis.get("primary", "aa") in {m.name for m in grid.cells[0].recipe.evaluate.measures}
        assert len({cell.name for cell in grid.cells}) == len(grid.cells)


def test_what_the_command_line_did_is_noted(short: dict[str, tuple[Study, Grid]]) -> None:
    notes = {name: " · ".join(grid.notes) for name, (_, grid) in short.items()}
    assert "the command line sets evaluate.use: what the study sets there is left out" in notes["mwpb_7"]
    assert "pgd-20@12/255 is not measured here: the primary measure is aa" in notes["mwpb_7"]
    assert "rows on piat/cifar10-resnet18, piat/cifar100-resnet18, piat/svhn-resnet18 are one on digits" in notes["piat_1"]
    assert "at_5e-4 is the same run as at" in notes["emr_9"] and short["emr_9"][1].cell("at_5e-4").same_as == "at"
    assert all("no printed number" in notes[name] for name, (study, _) in short.items() if study.table)
    assert short["components_1"][0].row("dyart").rungs == (1, 3) and "rungs of dyart are epochs 1, 3" in notes["components_1"]
    mart = short["emr_3"][0].row("mart")
    assert mart.absent.startswith("not available") and without_cells(short["emr_3"][1]) == [f"mart: {mart.absent}"]


def test_a_study_as_its_file_says() -> None:
    study = load_study("piat_1", root=ROOT)
    grid = grid_of_study(study)
    assert len(grid.cells) == 18 and grid.base == "at@cifar10" and grid.seeds == study.seeds and not grid.notes and all(r.printed for r in study.rows)
    one = load_study("piat_1", root=ROOT, setting="piat/cifar100-resnet18")            # a setting of its own: the printed numbers are of it
    assert [row.name for row in one.rows] == ["at", "trades", "mart", "gairat", "piat", "piat_nmse"]
    assert {p.group for row in one.rows for p in row.printed} == {"cifar100"} and one.notes == ()
    assert grid_of_study(study, seeds=[3, 5]).seeds == (3, 5)


def test_points_of_a_sweep_are_cells(tmp_path: Path) -> None:
    path = written(tmp_path, """
        recipe = "mart_ours"
        setting = "digits"
        [cells.all]
        kind = "sweep"
        select = ["clean"]
        rungs = [5, 10, 20]
        keep = 2
        grid = { "terms.kl.weight" = [1.0, 5.0, 6.0], "train.epochs" = [20] }
        [cells.plain]
        """)
    grid = grid_of_study(load_study(path))
    assert [c.name for c in grid.cells] == ["all#1", "all#2", "all#3", "plain"] and grid.base == "plain"
    assert grid.cells[2].point == {"terms.kl.weight": 6.0, "train.epochs": 20} and grid.cells[2].recipe.method.terms[1].weight in (6.0, 0.9, 86.0)
    assert grid.cell("plain").same_as == "all#2"                                       # the weight is the recipe's own
    assert rows(grid)[2][1] == "terms.kl.weight = 6.0, train.epochs = 20"
    short = load_study(path, sets=["train.epochs=4"], seeds=[7])
    assert short.row("all").rungs == (1, 2, 4) and short.row("all").keep == 2 and list(short.row("all").grid) == ["terms.kl.weight"]
    assert any("has no such axis" in note for note in short.notes)
    met = load_study(path, sets=["terms.kl.weight=2.0"])
    assert met.row("all").size == 1 and [c.same_as for c in grid_of_study(met).cells] == ["", "all#1"]
    assert load_study(path, sets=["train.epochs=1"]).row("all").rungs == () and load_study(path, sets=["train.epochs=1"]).row("all").keep is None


def test_rungs_keep_their_place_in_the_run() -> None:
    assert rescaled((28, 225), 450) == (56, 450) and rescaled((28, 225), 3) == (1, 3) and rescaled((10, 20, 40), 2) == (1, 2) and rescaled((28, 225), 1) == (1,)


def test_a_cell_and_the_command_line_may_not_set_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, """
        recipe = "mart_ours"
        setting = "digits"
        set = { "terms.kl.weight" = 3.0 }
        [cells.one]
        set = { "terms.align.weight" = 2.0 }
        """)
    with pytest.raises(ComposerError) as caught:
        load_study(path, sets=["terms.align.weight=4.0", "terms.kl.weigth=1"])
    text = caught.value.text()
    assert "terms.align.weight is set by the command line and by cells.one" in text and "--set #2" in text and "terms.kl.weight" in text
    study = load_study(path, sets=["terms.kl.weight=4.0"])                             # the study's own edit is its default
    assert {t.id: t.weight for t in study.row("one").recipe.method.terms}["kl"] == 4.0       # type: ignore[union-attr]
    with pytest.raises(ComposerError, match="no setting 'digit'"):
        load_study(path, setting="digit")
    with pytest.raises(ComposerError, match="--seeds"):
        load_study(path, seeds=0)


def test_a_checkpoint_that_is_not_there_is_told_in_its_row(tmp_path: Path) -> None:
    text = """
        recipe = "mart"
        setting = "digits"
        [cells.at]
        recipe = "at"
        [cells.theirs]
        kind = "external"
        checkpoint = "theirs.pt"
        model = "small_cnn"
        normalisation = "none"
        """
    path = written(tmp_path, text)
    assert load_study(path).row("theirs").absent == "not available: there is no file theirs.pt"
    (path.parent / "theirs.pt").write_bytes(b"weights")
    study = load_study(path)
    assert study.row("theirs").absent == "" and [c.name for c in grid_of_study(study).cells] == ["at"]
    assert without_cells(grid_of_study(study)) == ["theirs: evaluated as it is, theirs.pt"]


def test_confounded_rows_are_told_with_the_rows_that_tell_apart() -> None:
    study = load_study("lma_at_12", root=ROOT)
    told = "A differs from C in 2 things (inner.x_adv.terms.margin, terms.boosted_ce): their difference is confounded; A_bce and A_ce tell them apart"
    assert confounds(study) == [told]
    assert describe(grid_of_study(study))


SPEED = """
import sys, time, tracemalloc
from composer.recipe.load import load
load("mart_ours")
if sys.argv[3] == "size":
    tracemalloc.start()
start = time.process_time()
if sys.argv[2] == "toggles":
    from composer.ablate.cells import grid_of
    names = "ema align margin inner_margin outer_margin miss decay clip momentum start frozen flat".split()
    grid = grid_of(load(sys.argv[1]), names, design="full", seeds=3)
else:
    from composer.ablate.studygrid import grid_of_study
    from composer.recipe.studies import load_study
    grid = grid_of_study(load_study(sys.argv[1]))
print(len(grid.cells), tracemalloc.get_traced_memory()[1] / 2**20 if sys.argv[3] == "size" else time.process_time() - start)
"""
TWELVE = """
    extends = "mart_ours.toml"
    setting = "digits"
    [toggle]
    decay    = { set = { "optim.weight_decay" = 0.0 } }
    clip     = { drop = ["optim.clip"] }
    momentum = { set = { "optim.momentum" = 0.0 } }
    start    = { set = { "inner.x_adv.start" = "zero" } }
    frozen   = { set = { "outer.updates" = ["x"] } }
    flat     = { set = { "train.lr" = 0.01 } }
    """
POINTS = """
    recipe = "mart_ours"
    setting = "digits"
    [cells.all]
    kind = "sweep"
    select = ["clean"]
    [cells.all.grid]
    "terms.margin.weight" = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    "terms.align.weight"  = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    "parts.ema.decay"     = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    "terms.kl.weight"     = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    """


@pytest.mark.slow
@pytest.mark.parametrize("kind,text", [("toggles", TWELVE), ("points", POINTS)])
def test_4096_cells_are_planned_in_five_seconds_and_500_mebibytes(kind: str, text: str, tmp_path: Path) -> None:
    """Every method of the second differs: none is compiled once for several. Seconds of the processor, so that a busy machine does not count."""
    path = written(tmp_path, text)

    def measured(what: str) -> float:
        done = subprocess.run([sys.executable, "-c", SPEED, str(path), kind, what], capture_output=True, text=True, check=True)
        cells, value = map(float, done.stdout.split())
        assert cells == 4096
        return value

    assert min(measured("time") for _ in range(2)) < 5
    assert measured("size") < 500
