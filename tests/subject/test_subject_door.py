"""An evaluation from end to end: numbers, worst case, rows an image, planted defects, external rows of studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from composer.errors import ComposerError
from composer.evaluate.store import data_digest
from composer.recipe.types import MeasureSpec
from composer.subject import door, find, record
from composer.subject.study import checkpoint_of, evaluate_external

SETS = ("evaluate.pgd-20.steps=3",)


@pytest.fixture(scope="module")
def judged(store: Any) -> tuple[dict[str, Any], Path]:
    file = store.out / "flags.npz"
    return door.evaluate(store.asked(store.run, sets=('evaluate.fgsm={ n = 40 }',)), export=file), file


def test_the_result_is_the_runs_own_and_says_more(store: Any, judged: Any) -> None:
    result = judged[0]
    assert {"model", "protocol", "n", "metrics", "trust", "seconds"} <= set(result)
    assert {k: result["metrics"][k] for k in ("clean", "pgd-20")} == store.result["metrics"]
    assert result["n"] == {"clean": 64, "pgd-20": 64, "fgsm": 40, "worst": 40} and result["worst_of"] == ["clean", "pgd-20", "fgsm"]
    assert json.loads(json.dumps(result))["weights_sha256"] == store.result["weights_sha256"]


def test_rows_of_the_export_against_the_model_itself(store: Any, judged: Any) -> None:
    subject, bench = find.subject(store.asked(store.run))
    x, y = bench.x[:64], bench.y[:64]
    with torch.no_grad():
        z = subject.model(x)
    with np.load(judged[1], allow_pickle=False) as rows:
        clean = (z.argmax(1) == y).numpy()
        others = z.clone()
        others[torch.arange(64), y] = -torch.inf
        assert (rows["clean"] == clean).all() and (rows["label"] == y.numpy()).all() and (rows["predicted"] == z.argmax(1).numpy()).all()
        assert np.allclose(rows["clean_margin"], (z[torch.arange(64), y] - others.amax(1)).numpy(), atol=1e-5)
        assert ((rows["clean_margin"] > 0) == clean).all()
        assert (rows["fgsm"][40:] == -1).all() and (rows["worst"][40:] == -1).all()
        union = rows["clean"][:40].astype(bool) & rows["pgd-20"][:40].astype(bool) & rows["fgsm"][:40].astype(bool)
        assert (rows["worst"][:40].astype(bool) == union).all()
        about = json.loads(str(rows["about"]))
    assert about["data"]["images"]["clean"] == data_digest(x, y) and about["metrics"]["worst"] == union.mean()


def test_both_files_hold_the_same(store: Any, judged: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    result, columns = record.held(Path(judged[0]["stored"]))
    record.export_flags(tmp_path / "f.parquet", result, columns)
    for file in (judged[1], tmp_path / "f.parquet"):
        about, found = record.read_flags(file)
        assert about["subject"] == result["subject"] and set(found) == set(columns)
        assert all(torch.equal(found[k].to(v.dtype).nan_to_num(9.0), v.nan_to_num(9.0)) for k, v in columns.items())
    with pytest.raises(ComposerError, match=r"ending in \.npz or \.parquet"):
        record.export_flags(tmp_path / "f.csv", result, columns)
    (tmp_path / "no.npz").write_bytes(b"nothing")
    with pytest.raises(ComposerError, match="is no export"):
        record.read_flags(tmp_path / "no.npz")


def test_the_worst_case_joins_what_lies_in_the_ball(store: Any) -> None:
    recipe = find.subject(store.asked(store.run))[1].recipe
    measures = [MeasureSpec("clean", "clean", {}), MeasureSpec("in", "pgd", {"eps": 0.1}), MeasureSpec("out", "pgd", {"eps": 0.3}),
                MeasureSpec("l2", "pgd", {"norm": "l2"}), MeasureSpec("margin", "breaking_eps", {}), MeasureSpec("val", "clean", {"split": "val"})]
    assert record.worst_of(measures, recipe.threat) == ["clean", "in"]
    assert record.worst_of(measures[:1] + measures[4:], recipe.threat) == []
    flags = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True, False])}
    assert record.worst(flags, ["a", "b"]).tolist() == [True, False] and record.worst(flags, []) is None      # type: ignore[union-attr]


PLUGIN = '''
from composer import measure
from composer.evaluate import Measured
from composer.shapes import Images, Labels, Module, Norm, ThreatPixels


@measure(attack=True)
def brightness_for_test(model: Module, x: Images, y: Labels, batch_size: int = 250, *, eps: ThreatPixels, norm: Norm) -> Measured:
    """Accuracy when all pixels grow by eps.

    Formula: mean_i [correct(x_i) and correct(clip(x_i + eps))]   [share of images]
    Paper:   own
    """
    held = model.correct(x, y) & model.correct((x + eps).clamp(0, 1), y)
    return Measured(held.cpu())
'''


def test_the_documented_attack_is_the_one_tested_here(root: Path) -> None:
    code = next(block for block in (root / "docs" / "evaluation.md").read_text(encoding="utf-8").split("```") if block.startswith("python"))
    assert code.removeprefix("python").strip().replace("def brightness(", "def brightness_for_test(") == PLUGIN.strip()


def test_an_attack_of_ones_own_joins_the_worst_case(store: Any, tmp_path: Path) -> None:
    """In a process of its own: the registry is closed once the catalogue is read."""
    import subprocess
    import sys

    (tmp_path / "bright.py").write_text(PLUGIN)
    command = [sys.executable, "-c", "from composer.cli import main; main()", "evaluate", store.run, "--out", str(store.out), "--plugin",
               str(tmp_path / "bright.py"), "--set", "evaluate.brightness_for_test={ n = 50 }", "--json", "--quiet"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["worst_of"] == ["clean", "pgd-20", "brightness_for_test"] and result["n"]["worst"] == 50
    assert result["metrics"]["worst"] <= min(result["metrics"]["brightness_for_test"], result["metrics"]["pgd-20"] + 0.1)


def test_a_defect_marks_the_numbers_and_chance_stops_it(store: Any, tmp_path: Path) -> None:
    (tmp_path / "soft.py").write_text(f'''
from composer.subject import find
from composer.subject.types import Asked
from composer.engine.session import Settings
from pathlib import Path
from torch import nn

def base():
    return find.subject(Asked({store.run!r}, settings=Settings(out=Path({str(store.out)!r}))))[0].model

def soft():
    return nn.Sequential(base(), nn.Softmax(1))

def other():
    net = base()
    net.head.reset_parameters()
    return net
''')
    asked = {"data": "digits", "protocol": "cheap", "sets": SETS, "n": 20}
    trust = door.evaluate(store.asked(f"{tmp_path}/soft.py:soft", **asked))["trust"]
    assert not trust["ok"] and sum("probabilities" in flag for flag in trust["flags"]) == 1
    torch.manual_seed(0)
    with pytest.raises(ComposerError, match="chance for 10 classes|right on"):
        door.evaluate(store.asked(f"{tmp_path}/soft.py:other", **asked))
    torch.manual_seed(0)
    forced = door.evaluate(store.asked(f"{tmp_path}/soft.py:other", probe=False, **asked))
    assert not forced["trust"]["ok"] and any("the probe was not believed" in flag for flag in forced["trust"]["flags"])


def test_what_was_evaluated_is_not_free_to_be_removed(store: Any, judged: Any) -> None:
    from composer.report.store import runs

    used = {item.name: item.used_by for item in runs(store.out).of("evaluations")}
    assert any(user.startswith("evaluated/") for user in used[judged[0]["subject"]])


STUDY = """
recipe  = "standard"
setting = "digits"
seeds   = 1

[set]
"train.epochs" = 3
"evaluate" = {{ use = "cheap", n = 64 }}

[cells.theirs]
kind = "external"
checkpoint = "{file}"
model = {{ use = "small_cnn" }}
normalisation = "none"

[cells.gone]
kind = "external"
checkpoint = "nowhere.pt"
model = {{ use = "small_cnn" }}
normalisation = {{ mean = [0.5], std = [0.5] }}
"""


def test_an_external_row_of_a_study_has_a_runs_result(store: Any, tmp_path: Path) -> None:
    from composer.recipe.studies import load_study

    torch.save({"state_dict": {f"module.{k}": v for k, v in store.weights.items()}}, tmp_path / "theirs.pt")
    (tmp_path / "study.toml").write_text(STUDY.format(file="theirs.pt"))
    rows = {row.name: row for row in load_study(tmp_path / "study.toml").rows}
    assert evaluate_external(rows["gone"], store.asked("").settings) is None and rows["gone"].absent
    assert checkpoint_of(rows["theirs"]) == tmp_path / "theirs.pt"
    result = evaluate_external(rows["theirs"], store.asked("").settings)
    assert result is not None and set(store.result) <= set(result)
    assert result["metrics"]["clean"] == store.result["metrics"]["clean"] and result["weights_sha256"] == store.result["weights_sha256"]
    assert result["epochs"] == 0 and "worst" not in result["metrics"] and result["setting"] == "digits"
