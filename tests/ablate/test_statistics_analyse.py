"""The whole analysis: what each column holds, what is tested, what is said in words."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols

from composer.ablate.statistics import Input, Printed, Settings, Training, analyse, paired_difference, planned_family
from composer.errors import ComposerError

LEVELS = {"full": {"ema": 1, "margin": 1}, "-ema": {"ema": -1, "margin": 1}, "-margin": {"ema": 1, "margin": -1},
          "-ema-margin": {"ema": -1, "margin": -1}}
MEANS = {"full": 0.52, "-ema": 0.50, "-margin": 0.49, "-ema-margin": 0.47}


def made(seeds: int, spread: float = 0.003, means: dict[str, float] = MEANS, seed: int = 0) -> dict[str, dict[int, float]]:
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, spread, seeds)
    return {cell: {s: float(mean + shared[s] + rng.normal(0, spread)) for s in range(seeds)} for cell, mean in means.items()}


def judged(seeds: int, images: int = 10_000, means: dict[str, float] = MEANS, spread: float = 0.003) -> tuple[dict, dict]:
    """Accuracies with flags behind them: the same images are hard for every cell, as in life."""
    hard = np.random.default_rng(7).random(images)
    flags = {}
    for cell, runs in made(seeds, spread, means).items():
        flags[cell] = {s: hard + np.random.default_rng([s, len(cell)]).normal(0, 0.05, images) < v for s, v in runs.items()}
    return {cell: {s: float(f.mean()) for s, f in runs.items()} for cell, runs in flags.items()}, flags


def full(values: dict, **more) -> Input:
    more.setdefault("settings", Settings())
    return Input(metrics=values, levels=LEVELS, reference="full", design="full", **more)


def by_term(result, metric: str = "aa") -> dict:
    return {e.term: e for e in result.effects(metric, shown_only=False)}


def test_primary_interval_is_scipys_on_the_per_seed_contrast():
    values = made(6)
    result = analyse(full({"aa": values}))
    y = {c: np.array(list(v.values())) for c, v in values.items()}
    per_seed = {"ema": (y["full"] - y["-ema"] + y["-margin"] - y["-ema-margin"]) / 2,
                "margin": (y["full"] - y["-margin"] + y["-ema"] - y["-ema-margin"]) / 2,
                "ema:margin": (y["full"] - y["-ema"] - y["-margin"] + y["-ema-margin"]) / 2}
    raw = {name: stats.ttest_1samp(v, 0).pvalue for name, v in per_seed.items()}
    ranked = sorted(raw, key=raw.get)
    for name, numbers in per_seed.items():
        e, test = by_term(result)[name], stats.ttest_1samp(numbers, 0)
        assert e.estimate == pytest.approx(numbers.mean()) and list(e.values.values()) == pytest.approx(numbers)
        assert e.ci95 == pytest.approx(tuple(test.confidence_interval())) and e.ci_seed == e.ci95
        assert e.ci_simultaneous == pytest.approx(tuple(test.confidence_interval(1 - 0.05 / 3)))
        holm = max(min(1.0, (3 - i) * raw[other]) for i, other in enumerate(ranked[:ranked.index(name) + 1]))
        assert e.p_holm == pytest.approx(holm)
    paired = stats.ttest_rel(y["-ema"], y["full"])
    d = result.all_runs.deltas["-ema"]["aa"]
    assert d.ci95 == pytest.approx(tuple(paired.confidence_interval())) and d.p_holm is None and not d.in_family
    assert result.family == ("ema", "margin", "ema:margin") and result.estimand == "effect"


def test_second_line_is_statsmodels_formula():
    values = made(5)
    rows = {"y": [], "ema": [], "margin": [], "seed": []}
    for cell, runs in values.items():
        for seed, v in runs.items():
            for key, item in zip(rows, (v, LEVELS[cell]["ema"], LEVELS[cell]["margin"], seed), strict=True):
                rows[key].append(item)
    fit = ols("y ~ (ema + margin)**2 + C(seed)", pd.DataFrame(rows)).fit()
    line = analyse(full({"aa": values}, one_fork=True)).second_line["aa"]
    assert line.df == 12 and line.label == "least squares, seeds as blocks: assumes equal correlation" and not line.withheld
    for e in line.effects:
        assert e.estimate == pytest.approx(2 * fit.params[e.term]) and e.ci95 == pytest.approx(tuple(2 * fit.conf_int().loc[e.term]))
    contrasts = by_term(analyse(full({"aa": values})))
    spreads = [np.var(list(contrasts[t].values.values()), ddof=1) for t in contrasts]
    assert line.variance_ratio == pytest.approx(max(spreads) / min(spreads))


@pytest.mark.parametrize(("change", "why"), [
    ({}, "different epochs"), ({"drop": ("-ema", None)}, "cells are missing"), ({"drop": ("-ema", 2)}, "different seeds"),
    ({"copy": True}, "same results")])
def test_second_line_is_withheld_with_the_reason(change, why):
    values = made(4)
    if "drop" in change:
        cell, seed = change["drop"]
        values[cell] = {} if seed is None else {s: v for s, v in values[cell].items() if s != seed}
    if "copy" in change:
        values["-ema"] = dict(values["full"])
    line = analyse(full({"aa": values}, one_fork=bool(change))).second_line["aa"]
    assert why in line.withheld and not line.effects


def test_nested_second_line_counts_each_plan_once():
    levels = {"full": {"align": 1, "ema": 1}, "-ema": {"align": 1, "ema": -1}, "-align": {"align": -1}}
    values = made(5, means={"full": 0.52, "-ema": 0.51, "-align": 0.48})
    result = analyse(Input({"aa": values}, levels, "full", "full", nested={"ema": ("align",)}, one_fork=True))
    line, effects = result.second_line["aa"], by_term(result)
    assert line.df == 2 * 4 and {e.term for e in line.effects} == {"align", "ema given align"}
    assert all(e.estimate == pytest.approx(effects[e.term].estimate) for e in line.effects)
    assert effects["ema given align"].kind == "conditional" and effects["align:ema"].status == "not defined"
    assert result.family == ("align", "ema given align") and "not defined" in " ".join(result.notes)


@pytest.mark.parametrize(("seeds", "bold"), [(4, False), (5, True)])
def test_nothing_is_bold_and_no_p_below_five_seeds(seeds, bold):
    values, flags = judged(seeds, means={c: m - 0.04 * (c != "full") for c, m in MEANS.items()}, spread=0.001)
    result = analyse(full({"aa": values}, flags={"aa": flags}))
    effects = by_term(result)
    assert any(e.bold for e in effects.values()) == bold and any(e.p_holm is not None for e in effects.values()) == bold
    assert (result.banners[0] == "intervals only: 4 seeds, tests need 5") if not bold else not result.banners
    assert all(e.ci_simultaneous is not None for e in effects.values() if e.bold)
    assert effects["ema"].verdict == ("resolved" if bold else "interval excludes 0")


def test_only_the_primary_metric_is_tested():
    result = analyse(full({"clean": made(6, seed=1), "aa": made(6)}, settings=Settings(primary="aa")))
    assert result.primary == "aa" and all(e.p_holm is not None for e in by_term(result).values())
    other = by_term(result, "clean")
    assert all(e.p_holm is None and not e.bold and e.ci_simultaneous is None for e in other.values())
    assert all(e.ci95 is not None for e in other.values())


def test_family_as_declared():
    result = analyse(full({"aa": made(6)}, settings=Settings(family=("margin:ema", "-ema"), exploratory="bh")))
    effects = by_term(result)
    assert result.family == ("ema:margin", "-ema") and effects["ema"].p_holm is None and effects["ema"].q_bh is not None
    assert result.all_runs.deltas["-ema"]["aa"].p_holm is not None and result.all_runs.deltas["-margin"]["aa"].p_holm is None
    with pytest.raises(ComposerError, match="marign"):
        analyse(full({"aa": made(6)}, settings=Settings(family=("marign",))))


def test_the_family_is_known_before_anything_is_trained():
    assert planned_family(Input({}, LEVELS, "full", "full")) == ("ema", "margin", "ema:margin")
    assert planned_family(Input({}, LEVELS, "full", "one-out", settings=Settings(primary="aa"))) == ("-ema", "-margin", "-ema-margin")
    for wrong in (Settings(family=("emma",)), Settings(thresholds={"chanse": 0.2})):
        with pytest.raises(ComposerError, match="emma|chanse"):
            planned_family(Input({}, LEVELS, "full", "full", settings=wrong))


def test_one_out_tests_deltas_and_has_no_effects():
    values = {c: v for c, v in made(6).items() if c != "-ema-margin"}
    levels = {c: LEVELS[c] for c in values}
    result = analyse(Input({"aa": values}, levels, "full", "one-out"))
    assert result.estimand == "delta" and result.family == ("-ema", "-margin") and not result.all_runs.effects and not result.second_line
    assert all(by["aa"].p_holm is not None for by in result.all_runs.deltas.values())
    assert result.all_runs.deltas["-ema"]["aa"].estimate < 0                                   # cell minus full: taking it out hurts


def test_one_in_takes_deltas_to_the_bare_recipe():
    values = made(5, means={"none": 0.47, "+ema": 0.49, "+margin": 0.50})
    result = analyse(Input({"aa": values}, {"none": {}, "+ema": {}, "+margin": {}}, "none", "one-in"))
    assert result.family == ("+ema", "+margin") and result.all_runs.deltas["+ema"]["aa"].estimate > 0


def test_a_cell_may_bear_the_name_of_a_toggle():
    values = {"ema" if c == "-ema" else c: v for c, v in made(6).items()}
    levels = {"ema" if c == "-ema" else c: on for c, on in LEVELS.items()}
    result = analyse(Input({"aa": values}, levels, "full", "full"))
    assert result.all_runs.deltas["ema"]["aa"].p_holm is None and by_term(result)["ema"].p_holm is not None


def test_interactions_bring_simple_effects_instead_of_main_effects():
    values = made(6, spread=0.001, means={**MEANS, "full": 0.56})
    result = analyse(full({"aa": values}))
    effects = by_term(result)
    assert not effects["ema"].shown and not effects["margin"].shown and "ema" not in [e.term for e in result.effects()]
    y = {c: np.array(list(v.values())) for c, v in values.items()}
    assert effects["ema with margin off"].ci95 == pytest.approx(tuple(stats.ttest_rel(y["-margin"], y["-ema-margin"]).confidence_interval()))
    assert effects["ema with margin off"].p_holm is None and effects["ema with margin off"].kind == "simple"
    plain = by_term(analyse(full({"aa": made(6)})))
    assert plain["ema"].shown and "ema with margin off" not in plain


def test_both_noises_apart_and_together():
    values, flags = judged(5)
    result = analyse(full({"aa": values}, flags={"aa": flags}))
    e = by_term(result)["ema"]
    f = {c: np.mean([runs[s] for s in range(5)], axis=0) for c, runs in flags.items()}
    image = (f["full"] - f["-ema"] + f["-margin"] - f["-ema-margin"]) / 2
    half = (e.ci_image[1] - e.ci_image[0]) / 2
    assert half == pytest.approx(1.96 * image.std() / 100, rel=0.08) and e.ci_image[0] < e.estimate < e.ci_image[1]
    a = (e.ci95[1] - e.ci95[0]) / 2
    assert e.ci_both == pytest.approx((e.estimate - np.hypot(a, half), e.estimate + np.hypot(a, half)))
    cell = result.all_runs.cells["full"]["aa"]
    assert (cell.ci_image[1] - cell.ci_image[0]) / 2 == pytest.approx(0.0098, rel=0.1)          # ±0.98 point at 10,000 images
    flags["full"][0] = ~flags["full"][0]
    other = analyse(full({"aa": values}, flags={"aa": flags}))                 # results of another evaluation give no interval, and say so
    assert by_term(other)["ema"].ci_image is None and any("aa has no image noise: the per-image results of full, seed 0," in n for n in other.notes)


def test_without_image_noise_nothing_is_bold():
    result = analyse(full({"aa": made(6, spread=0.0005)}))
    effects = by_term(result)
    assert effects["ema"].p_holm < 0.01 and not effects["ema"].bold and effects["ema"].verdict == "resolved over seeds; image noise not measured"
    assert any("image noise was not measured" in note for note in result.notes)


def test_best_of_a_sweep_on_test_is_never_bold():
    values, flags = judged(5, means={c: m - 0.04 * (c != "full") for c, m in MEANS.items()}, spread=0.001)
    some = Input({"aa": values}, LEVELS, "full", "one-out", flags={"aa": flags}, selected_on_test=("-ema",))
    deltas = analyse(some).all_runs.deltas
    assert not deltas["-ema"]["aa"].bold and deltas["-margin"]["aa"].bold


@pytest.mark.parametrize(("seeds", "spread", "words"), [
    (6, 0.0003, "equivalent within ±0.3 points"), (3, 0.01, "not resolved at n = 3"), (6, 0.01, "not resolved at n = 6"),
    (1, 0.01, "one seed: no interval")])
def test_verdict_in_words(seeds, spread, words):
    same = {"full": 0.5, "other": 0.5}
    rng = np.random.default_rng(11)
    flags = {c: {s: np.arange(4000) < round(4000 * (0.5 + rng.normal(0, spread))) for s in range(seeds)} for c in same}
    values = {c: {s: float(f.mean()) for s, f in runs.items()} for c, runs in flags.items()}
    result = analyse(Input({"aa": values}, {c: {} for c in same}, "full", flags={"aa": flags}, settings=Settings(equivalence=0.003)))
    assert result.all_runs.deltas["other"]["aa"].verdict == words


def test_one_seed_has_estimates_and_no_seed_interval():
    result = analyse(full({"aa": made(1)}, images={"aa": 1000}))
    cell = result.all_runs.cells["full"]["aa"]
    assert cell.ci95 is None and cell.sd is None and cell.n == 1 and cell.ci_both is None
    low, high = cell.ci_image
    assert (high - low) / 2 == pytest.approx(0.031, abs=5e-4)                                  # Wilson, ±3.1 points at 1,000 images
    assert by_term(result)["ema"].ci95 is None and by_term(result)["ema"].mde is None


def test_a_missing_seed_pairs_the_rest():
    values = made(5)
    del values["-ema"][2]
    result = analyse(full({"aa": values}))
    d, other = result.all_runs.deltas["-ema"]["aa"], result.all_runs.deltas["-margin"]["aa"]
    assert list(d.values) == [0, 1, 3, 4] and d.n == 4 and other.n == 5
    assert by_term(result)["ema"].n == 4 and by_term(result)["ema"].p_holm is None
    assert result.banners == ("intervals only for -ema (4 seeds), ema (4 seeds), margin (4 seeds), ema:margin (4 seeds): tests need 5",)
    assert any("-ema has no result for seed 2" in note for note in result.notes)


def test_a_missing_cell_keeps_the_deltas_and_names_what_is_lost():
    values = made(5)
    values["-ema-margin"] = {}
    result = analyse(full({"aa": values}))
    assert all(e.status == "not estimable" and e.estimate is None and e.verdict == "not estimable" for e in by_term(result).values())
    assert result.all_runs.deltas["-ema"]["aa"].ci95 is not None
    lost = result.all_runs.deltas["-ema-margin"]["aa"]
    assert lost.status == "not estimable" and lost.why == "no result for -ema-margin"
    assert any("ema: not estimable (no result for -ema-margin: aliased with margin, ema:margin)" in note for note in result.notes)


def test_two_combinations_that_are_one_plan():
    """Not nesting, so the caller names the twin; its combination reads the other cell."""
    levels = {"full": {"inner": 1, "outer": 1}, "-inner": {"inner": -1, "outer": 1}, "-outer": {"inner": 1, "outer": -1},
              "-inner-outer": {"inner": -1, "outer": -1}}
    values = made(5, means={"full": 0.52, "-inner": 0.50, "-outer": 0.49})
    result = analyse(Input({"aa": values}, levels, "full", "full", same_as={"-inner-outer": "-outer"}, one_fork=True))
    assert by_term(result)["inner"].weights == pytest.approx({"full": 0.5, "-inner": -0.5}) and "-inner-outer" not in result.all_runs.deltas
    assert not any("no result" in note for note in result.notes)
    assert result.second_line["aa"].withheld == "one plan stands for several combinations"


def test_a_void_twin_is_not_missing():
    levels = {"full": {"align": 1, "ema": 1}, "-ema": {"align": 1, "ema": -1}, "-align-ema": {"align": -1, "ema": -1},
              "-align": {"align": -1, "ema": 1}}
    values = made(5, means={"full": 0.52, "-ema": 0.51, "-align": 0.48})
    result = analyse(Input({"aa": values}, levels, "full", "full", nested={"ema": ("align",)}, same_as={"-align-ema": "-align"}, one_fork=True))
    assert by_term(result)["align"].weights == pytest.approx({"full": 0.5, "-ema": 0.5, "-align": -1})
    assert not result.second_line["aa"].withheld and set(result.all_runs.cells) == set(values)


def test_ties_are_marked():
    values = made(5)
    values["-ema"] = dict(values["full"])
    result = analyse(full({"aa": values}))
    d = result.all_runs.deltas["-ema"]["aa"]
    assert d.tied and d.ci95 is None and d.mde is None and d.verdict == "tied at every seed"
    assert any("-ema and the reference tie at every seed" in note for note in result.notes)


def test_printed_numbers():
    values, flags = judged(5)
    mean, sd = np.mean(list(values["full"].values())), np.std(list(values["full"].values()), ddof=1)
    half = stats.t.ppf(0.975, 4) * sd * np.sqrt(1.2)
    for printed, word in ((mean + 0.9 * half, "inside"), (mean + 1.1 * half, "outside")):
        b = analyse(full({"aa": values}, flags={"aa": flags}, printed={"full": {"aa": Printed(printed, "53 ± 0.3")}})).beside["full"]["aa"]
        assert b.prediction == pytest.approx((mean - half, mean + half)) and b.verdict == word and b.text == "53 ± 0.3" and b.equivalent is False
    sharp = {c: {s: np.arange(50_000) % 1000 < round(1000 * v) for s, v in runs.items()} for c, runs in made(6, 0.0005).items()}
    values = {c: {s: float(f.mean()) for s, f in runs.items()} for c, runs in sharp.items()}
    near = analyse(full({"aa": values}, flags={"aa": sharp}, printed={"full": {"aa": Printed(0.521)}}, settings=Settings(bootstrap=200)))
    assert near.beside["full"]["aa"].equivalent is True
    assert analyse(full({"aa": values}, printed={"full": {"aa": Printed(0.521)}})).beside["full"]["aa"].equivalent is None


def test_notes_of_a_shared_prefix():
    notes = analyse(full({"aa": made(5)}, common_epochs=80, epochs=110)).notes
    assert "80 of 110 epochs are common to these cells; n = 5 seeds: means have 5, not 20, independent draws" in notes
    assert any("correlation between cells" in note and "0.31" in note for note in notes)


def test_best_minus_last():
    best, last = made(5), made(5, seed=3)
    found = paired_difference(best, last)["-ema"]
    expected = stats.ttest_rel(list(best["-ema"].values()), list(last["-ema"].values()))
    assert found.ci95 == pytest.approx(tuple(expected.confidence_interval())) and found.kind == "delta"


def test_result_is_plain_data_with_the_names_of_the_json():
    values, flags = judged(5)
    told = json.loads(json.dumps(analyse(full({"aa": values}, flags={"aa": flags}, one_fork=True, printed={"full": {"aa": Printed(0.5)}})).as_dict(),
                                 allow_nan=False))
    assert {"mean", "ci95", "values", "ci_image", "ci_both"} <= set(told["all_runs"]["cells"]["full"]["aa"])
    assert {"mean", "ci95", "p_holm", "ci_simultaneous"} <= set(told["all_runs"]["deltas"]["-ema"]["aa"])
    assert {"term", "metric", "estimate", "ci95", "p_holm"} <= set(told["all_runs"]["effects"][0])


@pytest.mark.parametrize(("change", "words"), [
    ({"reference": "ful"}, "'ful'"), ({"settings": Settings(primary="pgd")}, "'pgd'"), ({"metrics": {}}, "no metric"),
    ({"metrics": {"aa": {"ghost": {0: 0.5}}}}, "ghost"), ({"metrics": {"aa": {"full": {0: float("nan")}}}}, "not finite")])
def test_wrong_input_says_so(change, words):
    given = {"metrics": {"aa": made(3)}, "levels": LEVELS, "reference": "full", "design": "full", **change}
    with pytest.raises(ComposerError, match=words):
        analyse(Input(**given))


def test_the_example_of_the_docs(root):
    text = (root / "docs" / "statistics.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if "analyse(" in block)
    code += "\nprint(*result.all_runs.deltas['-ema']['aa'].ci95)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = stats.ttest_1samp([-0.02, -0.01, -0.02], 0).confidence_interval()
    assert [float(word) for word in done.stdout.split()] == pytest.approx([expected.low, expected.high])


def test_statistics_load_nothing_heavy_until_they_are_used():
    code = ("import sys; import composer.ablate.statistics; "
            "bad = {'scipy', 'statsmodels', 'pandas', 'torch'} & set(sys.modules); assert not bad, bad")
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_training_records_change_no_estimate_where_nothing_collapsed():
    values = {"aa": made(3), "clean": made(3, means=dict.fromkeys(LEVELS, 0.85))}
    healthy = {c: {s: Training(single_step=0.6, pgd10=0.5, history=(0.2, 0.4, 0.5)) for s in range(3)} for c in LEVELS}
    with_runs = analyse(full(values, runs=healthy, classes=10, images={"clean": 360}))
    assert with_runs.if_trained is None and with_runs.all_runs == analyse(full(values, images={"clean": 360})).all_runs
    assert all(r.collapsed == 0 and r.n == 3 and r.ci95[1] == pytest.approx(1 - 0.025 ** (1 / 3)) for r in with_runs.collapse)
