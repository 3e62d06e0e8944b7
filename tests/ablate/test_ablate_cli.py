"""`composer ablate` as its user meets it: flags, wrong input, JSON, signals' exit codes, MLflow, plugins; and the Python door."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import composer
from composer.cli import app, run_app


@pytest.fixture
def say(as_found, tiny, recipe, capsys, monkeypatch):
    """say("--toggle", "late", …): the command in this process, its exit code, stdout and stderr."""
    import composer.engine.run
    import composer.track_grid
    from composer.track import NullTracker

    for module in (composer.engine.run, composer.track_grid):
        monkeypatch.setattr(module, "make_tracker", lambda *_, **__: NullTracker())

    def call(*words, target=None, bench=True):
        arguments = ["ablate", str(recipe) if target is None else target, *(["--setting", tiny] if bench else []), *map(str, words)]
        monkeypatch.setattr("sys.argv", ["composer", *arguments])
        code = run_app(app, [a for a in arguments if a])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


HERE = ("--jobs", "0", "--device", "cpu", "--threads", "1")

# -- what is right -------------------------------------------------------------------------------------------------------------------


def test_the_json_is_the_designs(say, tmp_path) -> None:
    code, out, err = say("--toggle", "late, mean", "--seeds", "0,3", "--out", tmp_path, "--json", *HERE)
    found = json.loads(out)
    assert code == 0 and err, "progress is told on stderr"
    assert {"study", "design", "toggles", "seeds", "cells", "effects", "failed", "epochs_trained", "epochs_unshared", "mlflow_parent_run_id", "out"} <= set(found)
    assert (found["design"], found["toggles"], found["seeds"], found["failed"]) == ("full", ["late", "mean"], [0, 3], [])
    assert (found["epochs_trained"], found["epochs_unshared"]) == (14, 32)
    for cell in found["cells"]:
        assert {"name", "off", "runs", "metrics", "delta"} <= set(cell)
        for metric in ("clean", "pgd-3"):
            assert {"mean", "ci95", "values"} <= set(cell["metrics"][metric]) and 0 <= cell["metrics"][metric]["mean"] <= 1
            assert cell["name"] == "full" or {"mean", "ci95", "p_holm"} <= set(cell["delta"][metric])
    assert {e["term"] for e in found["effects"]} == {"late", "mean", "late:mean"}
    assert all({"term", "metric", "estimate", "ci95", "p_holm"} <= set(e) for e in found["effects"])
    assert all(e["p_holm"] is None for e in found["effects"]), "two seeds give no p"


def test_the_table_alone_is_on_stdout(say, tmp_path) -> None:
    code, out, err = say("--toggle", "late", "--seeds", "1", "--out", tmp_path, "--quiet", *HERE)
    assert code == 0 and err == "" and "-late" in out and "pgd-3" in out
    names = {p.name for p in next((tmp_path / "studies").iterdir()).iterdir()}
    assert {"grid.json", "cells", "results.json", "table.md", "table.csv", "table.tex", "failed.json", "report.html"} <= names


def test_a_dry_run_writes_nothing(say, tmp_path) -> None:
    code, out, _ = say("--toggle", "late,heavy", "--seeds", "2", "--out", tmp_path / "runs", "--dry-run", *HERE)
    text = " ".join(out.split())
    assert code == 0 and not (tmp_path / "runs").exists()
    assert "12 epochs are trained, 24 without sharing; 12 of them are left" in text and "epochs 1-3" in text and "same run as -late" in text
    code, out, _ = say("--toggle", "late,heavy", "--seeds", "2", "--out", tmp_path / "runs", "--dry-run", "--json", *HERE)
    found = json.loads(out)
    assert code == 0 and (found["epochs_trained"], found["epochs_unshared"], found["distinct"], found["forks"]) == (12, 24, 3, [3])
    assert found["nested"] == {"heavy": ["late"]} and [c["name"] for c in found["cells"]] == ["full", "-late", "-heavy", "-late -heavy"]
    assert found["seconds"] > 0 and found["disk_bytes"] > 0 and found["passes"] > 0


def test_a_dry_run_tunes_nothing(say, tmp_path, steps) -> None:
    code, out, _ = say("--toggle", "late", "--seeds", "1", "--tune", "3", "--tune-epochs", "2", "--out", tmp_path / "runs", "--dry-run", *HERE)
    assert code == 0 and not steps and not (tmp_path / "runs").exists()
    assert "each of the 2 cells is tuned by 3 trials, 12 epochs in all" in " ".join(out.split())


@pytest.mark.parametrize(("design", "names"), [("one-out", ["full", "-late", "-start", "-mean"]), ("one-in", ["none", "+late", "+start", "+mean", "full"])])
def test_designs(say, tmp_path, design, names) -> None:
    code, out, _ = say("--toggle", "late,start,mean", "--design", design, "--seeds", "1", "--out", tmp_path, "--dry-run", "--json", *HERE)
    assert code == 0 and sorted(c["name"] for c in json.loads(out)["cells"]) == sorted(names)


def test_a_fraction_of_a_design(say, tmp_path) -> None:
    words = ("--toggle", "late,start,mean", "--design", "fractional", "--resolution", "3", "--seeds", "1", "--out", tmp_path, "--dry-run", *HERE)
    code, out, _ = say(*words, "--json")
    found = json.loads(out)
    assert code == 0 and len(found["cells"]) == 4 and found["resolution"] == 3 and found["aliases"]["late"] == ["start:mean"]
    assert "cannot be told apart" in say(*words)[1]


def test_sets_drops_and_names(say, tmp_path) -> None:
    code, out, _ = say("--toggle", "mean", "--set", "train.epochs=5", "--drop", "terms.mae", "--drop", "toggle.late", "--drop", "toggle.heavy", "--name", "mine",
                       "--seeds", "1", "--out", tmp_path, "--dry-run", "--json", *HERE)
    found = json.loads(out)
    assert code == 0 and found["study"].startswith("mine-") and found["epochs_unshared"] == 10


def test_without_sharing(say, tmp_path) -> None:
    code, out, _ = say("--toggle", "late", "--seeds", "1", "--out", tmp_path, "--no-share", "--dry-run", "--json", *HERE)
    assert code == 0 and json.loads(out)["epochs_trained"] == 8


def test_a_study(say, tmp_path, tiny, recipe) -> None:
    study = tmp_path / "alpha.toml"
    study.write_text('recipe = "mwpb_at"\nseeds = 1\n[cells.plain]\nset = { "inner.x_adv.eps.alpha" = 0.0 }\n[cells.some]\nset = { "inner.x_adv.eps.alpha" = 0.4 }\n'
                     '[cells.same]\nset = { "inner.x_adv.eps.alpha" = 0.4 }\n[cells.print]\nkind = "printed"\n')
    code, out, err = say("--set", "train.epochs=4", "--seeds", "2", "--out", tmp_path / "runs", "--json", *HERE, target=str(study))
    assert code == 0, err
    found = json.loads(out)
    assert found["design"] == "study" and found["seeds"] == [0, 1] and (found["epochs_trained"], found["epochs_unshared"]) == (2 * (3 + 1 + 1), 16)
    assert json.loads((tmp_path / "runs" / "studies" / found["study"] / "grid.json").read_text())["cells"][2]["same_as"] == "some"


def test_slurm_is_a_script(say, tmp_path) -> None:
    code, out, err = say("--toggle", "late", "--emit", "slurm", "--gpus-per-run", "0.5", "--slurm", "gpus=2", "--slurm=time=3:00:00", "--seeds", "3")
    script = "".join(line for line in out.splitlines(True) if not line.startswith("# "))
    assert code == 0 and out.startswith("#!") and "#SBATCH --gpus" in out and "3:00:00" in out and "--emit" not in script and "--toggle late" in script and not err
    assert say("--emit", "pbs")[0] == 2 and say("--emit", "slurm", "--slurm", "gpu=2")[0] == 2 and say("--emit", "slurm", "--slurm", "gpus=two")[0] == 2


def test_what_diverges_everywhere_is_code_3(say, tmp_path) -> None:
    words = ("--toggle", "late", "--seeds", "1", "--set", "train.lr=1e30", "--set", "optim.clip=1e30", "--drop", "toggle.wild", "--out", tmp_path, *HERE)
    code, out, _ = say(*words)
    assert code == 3 and "diverged" in out
    assert say(*words, "--json")[0] == 3


# -- what is wrong -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "target", "says"), [
    (("--toggle", "lat"), None, ("has no toggle 'lat'", "late")),
    ((), None, ("no toggle is named", "late")),
    (("--toggle", "late", "--seeds", "x"), None, ("--seeds x", "0,1,7")),
    (("--toggle", "late", "--seeds", "0"), None, ("seeds = 0",)),
    (("--toggle", "late", "--seeds", "1,1"), None, ("seeds = ",)),
    (("--toggle", "late", "--seeds", "-1"), None, ("seeds = ",)),
    (("--toggle", "late", "--design", "half"), None, ("there is no design 'half'",)),
    (("--toggle", "late", "--jobs", "-1"), None, ("--jobs -1",)),
    (("--toggle", "late", "--threads", "-2"), None, ("--threads -2",)),
    (("--toggle", "late", "--gpus-per-run", "-0.5"), None, ("--gpus-per-run -0.5",)),
    (("--toggle", "late", "--precision", "fp64"), None, ("--precision fp64", "fp32")),
    (("--toggle", "late", "--device", "tpu"), None, ("tpu", "auto, cpu or cuda")),
    (("--toggle", "late", "--set", "train.epoch=3"), None, ("train.epoch", "train.epochs")),
    (("--toggle", "late", "--plugin", "nowhere.py"), None, ("nowhere.py",)),
    (("--toggle", "late"), "no_such_recipe", ("no recipe and no study 'no_such_recipe'", "known recipes and studies: ", "mart_ours", "tiny")),
    ((), "tny", ("no recipe and no study 'tny'", "did you mean 'tiny'")),
    (("--toggle", "late,start,mean", "--design", "fractional"), None, ("no fraction of resolution IV", "--design full, or --resolution 3")),
    (("--toggle", "late,start,mean", "--design", "fractional", "--resolution", "2"), None, ("--resolution 2", "two main effects are one", "3 to 16")),
    (("--toggle", "late,start,mean", "--design", "fractional", "--resolution", "99"), None, ("--resolution 99", "3 to 16")),
    (("--toggle", "late", "--set", "terms.mae.weight=0.5", "--drop", "terms.mae"), None, ("terms.mae",)),
    (("--toggle", "start", "--set", "inner.x_adv.start=zero"), None, ("inner.x_adv.start is set by the command line and by toggle.start",)),
    (("--toggle", "late"), "mwpb_2", ("mwpb_2 is a study", "--toggle")),
    (("--design", "full"), "mwpb_2", ("mwpb_2 is a study", "--design")),
    (("--toggle", "late", "--tune", "-3"), None, ("--tune -3",)),
    (("--toggle", "late", "--retries", "-3"), None, ("--retries -3",)),
])
def test_wrong_input_is_code_2_and_says_what_to_do(say, tmp_path, words, target, says) -> None:
    code, out, err = say(*words, "--out", tmp_path / "runs", "--device" if "--device" not in words else "--quiet", *(["cpu"] if "--device" not in words else []), target=target)
    assert code == 2 and out == "" and "Traceback" not in err and "defect" not in err, err
    for text in says:
        assert text in err, err
    assert not (tmp_path / "runs").exists()


def test_a_store_that_cannot_be_written(say, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = say("--toggle", "late", "--seeds", "1", "--out", tmp_path / "file" / "runs", *HERE)
    assert code == 2 and out == "" and "--out" in err and "defect" not in err


# -- signals -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 75)], ids=["ctrl-c", "sigterm"])
def test_a_signal_stops_with_a_checkpoint_and_the_same_command_goes_on(store_of_two, away, tmp_path, helpers, number, code) -> None:
    out = tmp_path / "runs"
    words = ("--toggle", "late,mean", "--seeds", "2", "--jobs", "0", "--quiet")
    first = away(out, *words)
    first.until_epoch(2)
    first.send(number)
    assert first.code() == code, first.stderr
    assert "run the same command again" in first.stderr and first.stdout == ""
    assert list(out.glob("nodes/*/checkpoint.safetensors")) and not list(out.glob("studies/*/results.json")) and not list(out.glob("studies/*/.stop*"))
    second = away(out, *words)
    assert second.code() == 0, second.stderr
    assert helpers.results(out, store_of_two.summary.study) == helpers.results(store_of_two.out, store_of_two.summary.study)
    assert helpers.digests(out) == helpers.digests(store_of_two.out)


# -- MLflow --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mlflow_has_a_parent_and_a_child_for_each_run(recipe, cli, tmp_path) -> None:
    out = tmp_path / "runs"
    words = ("ablate", recipe, "--toggle", "late", "--seeds", "2", "--out", out, "--device", "cpu", "--jobs", "0", "--quiet", "--json")
    found = json.loads(cli(*words).stdout)
    with closing(sqlite3.connect(out / "mlflow.db")) as store:
        runs = dict(store.execute("select run_uuid, status from runs").fetchall())
        tags: dict[str, dict[str, str]] = {}
        for run, key, value in store.execute("select run_uuid, key, value from tags"):
            tags.setdefault(run, {})[key] = value
    parent = found["mlflow_parent_run_id"]
    children = {run: tags[run] for run in runs if tags[run].get("mlflow.parentRunId") == parent}
    assert len(runs) == 5 and len(children) == 4 and set(runs.values()) == {"FINISHED"}
    assert {(t["cell"], t["seed"], t["toggle.late"]) for t in children.values()} == {("full", "0", "on"), ("full", "1", "on"), ("-late", "0", "off"), ("-late", "1", "off")}
    for child in children.values():
        assert len(child["experiment_id"]) == 32 and child["nodes"].split()[-1] == child["prefix_key"]
    names = {p.name for p in (out / "artifacts" / parent).rglob("*") if p.is_file()}
    assert {"results.json", "table.md", "table.tex", "table.csv", "report.html", "grid.json", "failed.json"} <= names and any(n.endswith(".png") for n in names)
    assert json.loads(cli(*words).stdout)["mlflow_parent_run_id"] == parent
    with closing(sqlite3.connect(out / "mlflow.db")) as store:
        assert len(store.execute("select run_uuid from runs").fetchall()) == 5


def test_without_mlflow_there_is_no_store(away, tmp_path) -> None:
    out = tmp_path / "runs"
    one = away(out, "--toggle", "late", "--seeds", "1", "--jobs", "0", "--json", track=True, absent=["mlflow"])
    assert one.code() == 0, one.stderr
    assert json.loads(one.stdout)["mlflow_parent_run_id"] is None and not (out / "mlflow.db").exists()


# -- the Python door -----------------------------------------------------------------------------------------------------------------


def test_the_python_door(as_found, recipe, tiny, tmp_path, steps) -> None:
    made = composer.load(recipe, setting=tiny)
    more = {"out": tmp_path, "jobs": 0, "threads": 1, "device": "cpu", "quiet": True, "track": False}
    found = composer.ablate(made, toggles=["late"], seeds=1, **more)
    assert [c["name"] for c in found["cells"]] == ["full", "-late"] and found["seeds"] == [0] and len(steps) == 5 * 3
    steps.clear()
    import composer.ablate as room

    assert room(str(recipe), ["late"], seeds=1, setting=tiny, **more)["study"] == found["study"] and not steps
    from composer import ablate

    assert callable(ablate) and not steps


def test_a_recipe_that_is_a_value_takes_no_flags(as_found, recipe, tiny, tmp_path) -> None:
    made = composer.load(recipe, setting=tiny)
    with pytest.raises(composer.errors.ComposerError, match="setting"):
        composer.ablate(made, toggles=["late"], setting="digits", out=tmp_path)
    with pytest.raises(composer.errors.ComposerError, match="no toggle 'what'"):
        composer.ablate(made, toggles="late, what", out=tmp_path)
    with pytest.raises(composer.errors.ComposerError, match="precision"):
        composer.ablate(made, toggles="late", out=tmp_path, precision="fp64")
    assert not list(tmp_path.iterdir())


def test_an_edited_recipe(as_found, recipe, tiny, tmp_path, steps) -> None:
    """A value that no file says."""
    made = composer.load(recipe, setting=tiny).edit(set={"train.epochs": 2, "terms.mae.begin": 1, "select.from": 2})
    found = composer.ablate(made, ["late"], seeds=[4], out=tmp_path, jobs=0, threads=1, device="cpu", quiet=True, track=False)
    assert found["epochs_trained"] == 3 and len(steps) == 3 * 3


def test_it_is_there_without_importing_the_room() -> None:
    done = subprocess.run([sys.executable, "-c", "import composer; print(callable(composer.ablate), 'torch' in __import__('sys').modules)"],
                          capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


# -- Ray -----------------------------------------------------------------------------------------------------------------------------

PLUGIN = """
from __future__ import annotations

from composer import loss
from composer.shapes import Labels, Logits, PerExample


@loss
def my_own_loss(logits: Logits, y: Labels) -> PerExample:
    \"\"\"Half the cross entropy.

    Formula: -1/2 log p_y   [nats]
    Paper:   none
    \"\"\"
    import torch.nn.functional as F

    return F.cross_entropy(logits, y, reduction="none") / 2
"""


@pytest.mark.slow
def test_a_plugins_loss_reaches_rays_workers(recipe, tiny, cli, tmp_path, helpers) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    own = tmp_path / "own.toml"
    own.write_text(recipe.read_text() + "\n[terms.my_own_loss]\n[toggle.own]\ndrop = ['terms.my_own_loss']\n")
    words = ["ablate", own, "--toggle", "own,late", "--seeds", "1", "--device", "cpu", "--threads", "1", "--plugin", tmp_path / "mine.py", "--json"]
    ray = cli(*words, "--jobs", "2", "--out", tmp_path / "ray")
    assert ray.returncode == 0, ray.stderr
    assert json.loads(ray.stdout)["failed"] == []
    here = cli(*words, "--jobs", "0", "--out", tmp_path / "here")
    assert here.returncode == 0, here.stderr
    assert helpers.timeless(json.loads(ray.stdout)) == helpers.timeless(json.loads(here.stdout))
    assert helpers.digests(tmp_path / "ray") == helpers.digests(tmp_path / "here")
    assert Path(tmp_path / "ray" / "mlflow.db").exists()
