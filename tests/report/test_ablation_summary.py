"""What a summary says, checked against scipy and by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from composer.ablate.summary import Summary, summarise
from composer.ablate.types import Cell, Failure, Grid, Outcome

DESIGN = ("study", "design", "toggles", "seeds", "cells", "effects", "failed", "epochs_trained", "epochs_unshared", "mlflow_parent_run_id", "out")


def values(outcome: Outcome, cell: str, metric: str) -> list[float]:
    return [r["metrics"][metric] for (name, _), r in sorted(outcome.results.items()) if name == cell]


def said(summary: Summary, head: str) -> str:
    return " ".join(text for h, text in summary.footer if h == head)


def test_means_and_deltas_are_those_of_scipy(square, tmp_path: Path) -> None:
    grid, outcome = square(5)
    summary = summarise(grid, outcome, tmp_path)
    ours, base = values(outcome, "-margin", "pgd-20"), values(outcome, "full", "pgd-20")
    line = summary.line("-margin")
    interval = stats.ttest_1samp(ours, 0).confidence_interval()
    assert line.metrics["pgd-20"]["mean"] == pytest.approx(np.mean(ours)) and line.metrics["pgd-20"]["ci95"] == pytest.approx(list(interval))
    paired = stats.ttest_rel(ours, base)
    assert line.delta["pgd-20"]["mean"] == pytest.approx(np.mean(ours) - np.mean(base))
    assert line.delta["pgd-20"]["ci95"] == pytest.approx(list(paired.confidence_interval()))
    main = next(e for e in summary.tables[0].effects if e["term"] == "margin" and e["metric"] == "aa")
    full, ema, margin, both = (np.array(values(outcome, c, "aa")) for c in ("full", "-ema", "-margin", "-ema -margin"))
    assert main["estimate"] == pytest.approx(float(np.mean((full + ema - margin - both) / 2)))


def test_the_json_is_the_designs_and_reads_back(square, tmp_path: Path) -> None:
    summary = summarise(*square(3), tmp_path, mlflow_parent_run_id="abc")
    data = json.loads(json.dumps(summary.as_dict(), allow_nan=False))
    assert list(data)[:len(DESIGN)] == list(DESIGN) and data["mlflow_parent_run_id"] == "abc"
    cell = data["cells"][1]
    assert {"name", "off", "runs", "metrics", "delta"} <= set(cell) and cell["off"] == ["ema"] and len(cell["runs"]) == 3
    assert {"mean", "ci95", "values"} <= set(cell["metrics"]["aa"]) and {"mean", "ci95", "p_holm"} <= set(cell["delta"]["aa"])
    assert cell["delta"]["aa"]["p_holm"] is None and {"term", "metric", "estimate", "ci95", "p_holm"} <= set(data["effects"][0])
    assert {e["term"] for e in data["effects"]} >= {"ema", "margin", "ema:margin"}
    assert Summary.from_dict(data).as_dict() == data


def test_below_five_seeds_nothing_is_tested_or_bold(square, tmp_path: Path) -> None:
    few, many = summarise(*square(3), tmp_path), summarise(*square(6), tmp_path)
    assert any("intervals only" in banner for banner in few.banners) and not any("intervals only" in banner for banner in many.banners)
    for line in few.tables[0].lines:
        assert all(d["p_holm"] is None and not d["bold"] for d in line.delta.values())
    assert any(e["p_holm"] is not None for e in many.tables[0].effects)


def test_the_other_checkpoint_and_the_gap_are_paired(square, tmp_path: Path) -> None:
    grid, outcome = square(4)
    line = summarise(grid, outcome, tmp_path).line("-ema")
    gaps = [r["metrics"]["clean"] - r["metrics_other"]["clean"] for (c, _), r in sorted(outcome.results.items()) if c == "-ema"]
    assert line.gap["clean"]["mean"] == pytest.approx(np.mean(gaps)) and "aa" not in line.gap
    assert line.gap["clean"]["ci95"] == pytest.approx(list(stats.ttest_1samp(gaps, 0).confidence_interval()))
    assert line.epochs["selected"] == {"0": 20, "1": 21, "2": 22, "3": 23}


def test_cost_is_relative_to_the_base(square, tmp_path: Path) -> None:
    grid, outcome = square(2)
    results = {k: {**r, "passes": {"forward": 6600, "dgrad": 6000, "wgrad": 600}} if k[0] == "-margin" else r for k, r in outcome.results.items()}
    summary = summarise(grid, replace(outcome, results=results), tmp_path)
    assert summary.line("full").cost["step"] == 26400 / 600 and summary.line("-margin").cost["relative"] == 0.5


def test_failures_stand_in_the_open(square, tmp_path: Path) -> None:
    lost = (Failure("-ema", 1, "the worker died (signal 9)"), Failure("-margin", 2, "the loss is nan in epoch 3", diverged=True, exit_code=3))
    summary = summarise(*square(3, failed=lost), tmp_path)
    assert summary.as_dict()["failed"][0] == {"name": "-ema", "seed": 1, "why": "the worker died (signal 9)", "diverged": False, "exit_code": 1}
    assert "2 of 12 runs have no result" in said(summary, "failed") and "diverged: the loss is nan" in said(summary, "failed")
    assert summary.line("-ema").failed[0]["seed"] == 1 and summary.line("-ema").n == 2
    assert summary.line("-margin").collapse["collapsed"] == 1 and summary.line("-margin").metrics["clean"]["n"] == 3      # diverged: counted, at 1/K
    assert min(summary.line("-margin").metrics["clean"]["values"]) == pytest.approx(0.1)
    assert summary.line("full").trained["clean"]["n"] == 2                                                                # that seed is out for all


def test_a_cell_that_is_another_one(square, recipe: Any, tmp_path: Path) -> None:
    grid, outcome = square(3)
    twin = Cell("-align -ema", recipe.without("ema", "margin"), off=("ema", "margin"), same_as="-ema -margin")
    summary = summarise(replace(grid, cells=(*grid.cells, twin)), outcome, tmp_path)
    assert summary.line("-align -ema").metrics == summary.line("-ema -margin").metrics and not summary.line("-align -ema").runs
    assert summary.results == 12


def test_a_grid_without_any_result(square, tmp_path: Path) -> None:
    grid, _ = square(2)
    lost = tuple(Failure(c.name, s, "no space left on the disk") for c in grid.cells for s in grid.seeds)
    summary = summarise(grid, Outcome({}, lost), tmp_path)
    assert summary.results == 0 and "8 of 8 runs have no result" in said(summary, "failed") and Summary.from_dict(summary.as_dict()) is not None


def test_rows_of_another_protocol_or_checkpoint_stand_apart(square, recipe: Any, made, tmp_path: Path) -> None:
    grid, outcome = square(3)
    wide = Cell("wider", recipe.edit(set={"threat.eps": 0.3}))
    ends = Cell("to the end", recipe.edit(set={"select.report": "last", "select.held_out": 0}))
    more = {(c.name, s): made(c, s, selected="best" if c is wide else "last", other=False) for c in (wide, ends) for s in grid.seeds}
    summary = summarise(replace(grid, design="study", toggles=(), cells=(*grid.cells, wide, ends)), replace(outcome, results={**outcome.results, **more}), tmp_path)
    assert [[line.name for line in t.lines] for t in summary.tables] == [["full", "-ema", "-margin", "-ema -margin"], ["wider"], ["to the end"]]
    assert [t.checkpoint for t in summary.tables] == ["best", "best", "last"] and "0.3" in summary.tables[1].title
    assert not summary.line("wider").delta and "3 tables" in said(summary, "tables")


def test_a_family_over_two_tables_and_an_unmeasured_primary(square, recipe: Any, made, tmp_path: Path) -> None:
    grid, outcome = square(5)
    wide = Cell("wider", recipe.edit(set={"threat.eps": 0.3}))
    results = {**outcome.results, **{("wider", s): made(wide, s) for s in grid.seeds}}
    grid = replace(grid, design="study", toggles=(), cells=(*grid.cells, wide), analysis={"primary": "mim", "family": ["-ema", "wider"]})
    summary = summarise(grid, replace(outcome, results=results), tmp_path)
    assert [t.statistics["family"] for t in summary.tables] == [["-ema"], []]
    assert summary.primary == "aa" and "mim was to be the primary metric" in said(summary, "note")


def test_a_family_whose_cell_has_no_result(square, tmp_path: Path) -> None:
    grid, outcome = square(5, failed=tuple(Failure("-ema", s, "out of memory") for s in range(5)))
    summary = summarise(replace(grid, analysis={"primary": "aa", "family": ["-ema", "-margin"]}), outcome, tmp_path)
    assert summary.tables[0].statistics["family"] == ["-margin"] and not summary.line("-ema").metrics and summary.line("-margin").delta["aa"]["in_family"]


def test_training_steps_of_the_threat_are_no_protocol(recipe: Any) -> None:
    from composer.ablate.summary.blocks import protocol_of

    own = protocol_of(recipe)["digest"]
    assert protocol_of(recipe.edit(set={"train.lr": 0.01, "inner.x_adv.steps": 5}))["digest"] == own
    assert protocol_of(recipe.edit(set={"threat.step": 0.01}))["digest"] != own                # pgd-20 takes its step from the threat
    assert protocol_of(recipe.edit(set={"evaluate.aa.n": 100}))["digest"] != own


def test_doubts_reach_the_footer(square, tmp_path: Path) -> None:
    grid, outcome = square(3)
    doubt = {"trust": {"ok": False, "flags": ["fgsm 40.0 % is stronger than pgd 60.0 %"]}}
    results = {k: {**r, **doubt} if k[0] == "-ema" and k[1] < 2 else r for k, r in outcome.results.items()}
    summary = summarise(grid, replace(outcome, results=results), tmp_path)
    assert summary.line("-ema").doubts == ("seeds 0, 1: fgsm 40.0 % is stronger than pgd 60.0 %",)
    assert said(summary, "† doubt") == "fgsm 40.0 % is stronger than pgd 60.0 % (numbers of the first such run): -ema (2 of 3 seeds)" and not summary.line("full").doubts


def test_doubts_of_the_other_checkpoint_count_too(square, tmp_path: Path) -> None:
    """Its numbers stand in the same row, best and last."""
    grid, outcome = square(3)
    doubt = {"trust": {"ok": True, "flags": []}, "trust_other": {"ok": False, "flags": ["all logits are equal"]}, "selected": "best"}
    results = {k: {**r, **doubt} if k == ("-ema", 1) else r for k, r in outcome.results.items()}
    summary = summarise(grid, replace(outcome, results=results), tmp_path)
    assert summary.line("-ema").doubts == ("seed 1: the last checkpoint: all logits are equal",)
    assert said(summary, "† doubt") == "the last checkpoint: all logits are equal: -ema (1 of 3 seeds)" and not summary.line("full").doubts


def test_collapse_is_seen_in_the_curves(square, curves, tmp_path: Path) -> None:
    grid, outcome = square(3)
    for (cell, seed), result in outcome.results.items():
        curves(tmp_path, result)
        if (cell, seed) == ("-margin", 1):
            path = tmp_path / "experiments" / result["run"] / "metrics.jsonl"
            path.write_text(path.read_text() + json.dumps({"epoch": 31, "val/clean": 0.9, "val/pgd": 0.02}) + "\n")
    summary = summarise(grid, outcome, tmp_path)
    assert "fell from" in summary.line("-margin").collapse["reasons"]["1"] and summary.line("-margin").collapse["collapsed"] == 1
    assert summary.line("full").trained["aa"]["seeds"] == [0, 2]


def test_common_epochs_in_words(square, tmp_path: Path) -> None:
    grid, outcome = square(3)
    together = " ".join(text for _, text in summarise(grid, outcome, tmp_path).footer)
    assert "5 of 30 epochs are common" in together and "not 12, independent draws" in together and "300 epochs trained in place of 360" in together
    apart = " ".join(text for _, text in summarise(grid, replace(outcome, epochs_common={"full": 8, "-ema": 8}, fork_epochs=(0, 8)), tmp_path).footer)
    assert "0 of 30 epochs are common to all of these cells; some share up to 8" in apart


def test_printed_numbers_stand_beside_ours(study, tmp_path: Path) -> None:
    grid, outcome = study("lma_at_12", 4)
    summary = summarise(grid, outcome, tmp_path)
    row, ours = summary.line("C"), values(outcome, "C", "aa")
    beside = row.beside["aa"]
    spread = stats.t.ppf(0.975, 3) * np.std(ours, ddof=1) * math.sqrt(1 + 1 / 4)
    assert beside["printed"] == pytest.approx(row.printed[0]["values"]["aa"] / 100)
    assert beside["prediction"] == pytest.approx([np.mean(ours) - spread, np.mean(ours) + spread])
    assert (beside["verdict"] == "inside") == (beside["prediction"][0] <= beside["printed"] <= beside["prediction"][1])
    assert not summary.line("A_bce").printed and "confounded" in said(summary, "note") and "the study names 6 seeds" in said(summary, "deviates")
    assert "A differs from C in two things" in said(summary, "study") and summary.printed_table == "lma_at/12"


def test_a_sweep_shows_its_winner_on_held_out_images(study, curves, tmp_path: Path) -> None:
    grid, outcome = study("components_1", 1, other=False)
    burn = [c for c in grid.cells if c.row is not None and c.row.name == "burn_in"]
    for at, cell in enumerate(burn):
        result = outcome.results[(cell.same_as or cell.name), 0]
        folder = tmp_path / "experiments" / result["run"]
        folder.mkdir(parents=True)
        rows = [{"epoch": 20, "val/clean": 0.9 - 0.1 * at, "val/apgd-ce": 0.2 + 0.1 * at}, {"epoch": 30, "val/clean": 0.99, "val/apgd-ce": 0.99}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = summarise(grid, outcome, tmp_path)
    clean, robust = summary.line("burn_in [by clean]"), summary.line("burn_in [by apgd-ce]")
    assert clean.kind == "sweep" and clean.point == dict(burn[0].point) and robust.point == dict(burn[-1].point)
    assert clean.printed[0]["selector"] == "clean" and all(not d["bold"] for d in clean.delta.values())
    assert [line.name for line in summary.tables[0].lines][:3] == ["baseline", "elsayed", "burn_in [by clean]"] and not summary.line("elsayed").runs
    assert "elsayed has no winner by clean" in said(summary, "note") and "sweep rows" in said(summary, "tuned")


def test_foreign_and_printed_rows(study, square, made, recipe: Any, tmp_path: Path) -> None:
    from composer.recipe.studies import Printed, Row

    grid, outcome = study("lma_at_12", 2)
    there = grid.cells[0].recipe
    rows = (Row("theirs", "theirs", "external", "lma_at/cifar10-resnet18", "", "s.toml:1", recipe=there, checkpoint="a.pt"),
            Row("gone", "gone", "external", "lma_at/cifar10-resnet18", "", "s.toml:2", recipe=there, absent="there is no file b.pt"),
            Row("paper", "paper", "printed", "", "", "s.toml:3", printed=(Printed("Paper", "", {"clean": 81.0, "aa": 48.5, "spsa": math.nan}),)))
    grid = replace(grid, study=replace(grid.study, rows=(*grid.study.rows, *rows)))
    results = {**outcome.results, ("theirs", 0): made(Cell("theirs", there), 0)}
    summary = summarise(grid, replace(outcome, results=results), tmp_path)
    assert summary.line("theirs").kind == "external" and summary.line("theirs").metrics["aa"]["n"] == 1 and not summary.line("theirs").delta
    assert summary.line("gone").failed[0]["why"] == "there is no file b.pt" and summary.line("paper").printed[0]["values"] == {"clean": 81.0, "aa": 48.5}
    assert summary.tables[0].lines[-1].name == "paper" and len(summary.tables) == 1


def test_fractional_designs_tell_their_aliases(square, tmp_path: Path) -> None:
    grid, outcome = square(3)
    fraction = replace(grid, design="fractional", resolution=4, aliases={"ema:margin": ("align:inner",)}, notes=("cells: 4 of 16",))
    summary = summarise(fraction, outcome, tmp_path)
    assert "resolution IV" in said(summary, "design") and "cannot be told from align:inner" in said(summary, "aliases")
    assert summary.as_dict()["fractional"] == {"resolution": 4, "aliases": {"ema:margin": ["align:inner"]}}


def test_the_images_noise_comes_from_the_store(square, tmp_path: Path) -> None:
    """Flags are taken only where they are these weights', this measure's, and agree with the result."""
    from safetensors.numpy import save_file

    from composer.engine.judge import subject_of

    grid, outcome = square(3)
    results, noise = {}, np.random.default_rng(0)
    for (name, seed), result in outcome.results.items():
        digest = f"{name}-{seed}"
        folder = tmp_path / "evaluations" / subject_of(grid.cell(name).recipe, digest) / "protocol"
        folder.mkdir(parents=True)
        for measure, use, options in (("clean", "clean", {}), ("pgd-20", "pgd", {"steps": 20}), ("aa", "aa", {})):
            n = result["n"][measure]
            flags = noise.permutation(n) < round(result["metrics"][measure] * n)
            stem = folder / f"{use}-0"
            save_file({"values": flags}, f"{stem}.safetensors")
            Path(f"{stem}.json").write_text(json.dumps({"use": use, "options": options, "data": "d", "metric": float(flags.mean()), "n": n}))
        results[name, seed] = {**result, "weights_sha256": digest}
    whole = summarise(grid, replace(outcome, results=results), tmp_path).line("-ema")
    assert whole.delta["aa"]["ci_image"] and whole.delta["aa"]["ci_both"]
    a, b, both = ((i[1] - i[0]) / 2 for i in (whole.delta["aa"][k] for k in ("ci95", "ci_image", "ci_both")))
    assert both == pytest.approx(math.hypot(a, b))
    results["full", 0]["metrics"] = {**results["full", 0]["metrics"], "aa": 0.5}                # no flags agree with that number
    assert summarise(grid, replace(outcome, results=results), tmp_path).line("-ema").delta["aa"]["ci_image"] is None


def test_a_diagnostic_keeps_its_unit(recipe: Any, made, tmp_path: Path) -> None:
    graded = recipe.edit(put={"evaluate.breaking_eps": {}})
    cells = (Cell("full", graded), Cell("-margin", graded.without("margin"), off=("margin",)))
    grid = Grid("g", "one-out", ("margin",), (0, 1, 2), cells, "full", {"primary": "aa"})
    results = {}
    for cell in cells:
        for seed in grid.seeds:
            one = made(cell, seed, measures=("clean", "pgd-20", "aa"))
            one["metrics"]["breaking_eps"], one["n"]["breaking_eps"] = 0.1 + 0.01 * seed, 360
            results[cell.name, seed] = one
    table = summarise(grid, Outcome(results), tmp_path).tables[0]
    metric = table.metric("breaking_eps")
    assert not metric.rate and metric.unit == "pixels" and table.metric("aa").rate
    assert table.lines[0].metrics["breaking_eps"]["mean"] == pytest.approx(0.11)
