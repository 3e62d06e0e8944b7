"""composer evaluate, compare, export as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from composer.cli import app, run_app


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_app(app, list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import composer

    out = tmp_path_factory.mktemp("store")
    sets = ["train.epochs=2", "train.lr=0.05", 'evaluate.use="cheap"', "evaluate.pgd-20.steps=1"]
    runs = [composer.run(composer.load("standard", sets=sets), seed=seed, out=out, quiet=True, track=False)["run"] for seed in (0, 1)]
    return str(out), runs


def test_two_runs_from_evaluation_to_export(store: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, runs = store
    code, said, err = call(capsys, "evaluate", runs[0], "--out", out, "--json", "--quiet", "--export", str(tmp_path / "f.npz"))
    result = json.loads(said)
    assert code == 0 and err == "" and result["model"] == runs[0] and (tmp_path / "f.npz").is_file()
    code, said, _ = call(capsys, "evaluate", runs[1], "--out", out, "--quiet")
    assert code == 0 and "clean" in said and "worst" in said and "n = 360" in said
    code, said, _ = call(capsys, "compare", *runs, "--out", out)
    assert code == 0 and [line.split()[0] for line in said.splitlines() if line[:5] in ("clean", "pgd-2", "worst")] == ["clean", "pgd-20", "worst"]
    code, said, _ = call(capsys, "compare", *runs, "--out", out, "--json")
    assert {row["measure"] for row in json.loads(said)["rows"]} == {"clean", "pgd-20", "worst"}
    code, said, _ = call(capsys, "export", runs[0], "--out", out, "--to", "safetensors,robustbench", "--folder", str(tmp_path / "x"))
    assert code == 0 and len(said.split()) == 4 and all(Path(f).is_file() for f in said.split())


def test_a_file_says_on_stderr_what_was_done_to_it(store: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from composer.subject.own import weights_of

    weights = weights_of(Path(store[0]) / "experiments" / store[1][0] / "final.safetensors")
    torch.save({"net": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "w.pth")
    arguments = ["evaluate", str(tmp_path / "w.pth"), "--model", "small_cnn", "--data", "digits", "--protocol", "cheap", "--eps", "1/16", "--n", "30",
                 "--set", "evaluate.pgd-20.steps=1", "--out", store[0], "--quiet"]
    code, _, err = call(capsys, *arguments)
    assert code == 2 and "--normalise" in err and "Traceback" not in err
    code, said, err = call(capsys, *arguments, "--normalise", "none", "--json")
    result = json.loads(said)
    assert code == 0 and result["n"]["pgd-20"] == 30 and result["measures"]["pgd-20"]["eps"] == 1 / 16 and result["threat"]["eps"] == 1 / 16
    assert "found under 'net'" in err and "took off the prefix 'module.'" in err and "normalisation: none" in err and "probe: right on" in err


@pytest.mark.parametrize(("arguments", "said"), [
    (["evaluate", "nothing"], "no run, no file of weights"), (["compare", "a", "b"], "no evaluation of 'a'"),
    (["evaluate", "os:getcwd", "--data", "digits"], "a torch.nn.Module is needed"), (["evaluate", "pyautoattack-example", "--data", "digits"], "images with 3 channels"),
    (["evaluate", "pyautoattack-example", "--data", "cifar1"], "there is no bench for it"), (["export", "nothing", "--to", "pt"], "--to pt")])
def test_mistakes_are_told_without_a_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str],
                                               said: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert code == 2 and out == "" and said in err and "Traceback" not in err
