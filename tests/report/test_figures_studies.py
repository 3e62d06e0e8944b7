"""The studies of the papers' figures: what each measures on its own setting, and that a small run of it draws its figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from composer.recipe.studies import Bases, load_study
from composer.registry import REGISTRY

ROOT = Path(__file__).parents[2] / "recipes"
MARGINS = {"margin-test", "margin-test-adv", "margin-train", "margin-train-adv"}
# study: rows, what has a picture of its own (printed name -> kind), what is traced, the settings' epochs
STUDIES: dict[str, tuple[int, dict[str, str], set[str], set[int]]] = {
    "lma_at_fig1": (3, {"rank-pgd-20": "ranks", "rank-cw": "ranks"}, set(), {130}),
    "emr_fig1": (5, dict.fromkeys(MARGINS, "histogram"), {"clean", "pgd", *MARGINS}, {50}),
    "emr_fig2": (5, dict.fromkeys(MARGINS, "histogram"), {"clean", "pgd", *MARGINS}, {50}),
    "emr_fig3": (4, {"aa-curve": "curve"}, set(), {100}),
    "emr_fig4_5": (8, dict.fromkeys(MARGINS, "histogram"), {"clean", "pgd", *MARGINS}, {100}),
    "emr_fig6": (25, {}, set(), {100}),
    "mwpb_fig2_4": (3, {"mean_radius": "histogram"}, set(), {110}),
    "piat_fig2": (7, {}, {"clean", "pgd-20"}, {120}),
    "piat_fig3": (18, {}, set(), {120}),
    "piat_fig4": (7, {}, {"clean", "pgd-20"}, {120}),
    "piat_fig5": (8, {}, set(), {120}),
    "piat_fig6": (2, {"landscape": "landscape", "landscape-filter": "landscape"}, set(), {120}),
}


@pytest.fixture(scope="module")
def bases() -> Bases:
    return Bases(ROOT)


@pytest.mark.parametrize("name", STUDIES)
def test_a_figures_study_measures_what_its_figure_shows(name: str, bases: Bases) -> None:
    rows, figures, traced, epochs = STUDIES[name]
    study = load_study(name, bases=bases)
    assert len(study.rows) == rows and not study.table and study.about
    for row in study.rows:
        recipe: Any = row.recipe
        kinds = {m.name: REGISTRY.get("measure", m.use).flags.get("figure") for m in recipe.evaluate.measures}
        assert {k: v for k, v in kinds.items() if v} == figures, row.name
        assert {m.name for m in recipe.trace.measures} == traced and (recipe.trace.every, recipe.trace.on) == ((1, "test") if traced else (0, "val"))
        assert recipe.train.epochs in epochs and recipe.setting == row.setting
    assert Path(study.file).read_text(encoding="utf-8").startswith("# "), "its head says what is inferred"


def test_papers_values(bases: Bases) -> None:
    """Radii, steps and images as settings of the papers have them."""
    def measure(study: str, name: str) -> dict[str, Any]:
        row = load_study(study, bases=bases).rows[0].recipe
        return next(m.options for m in row.evaluate.measures if m.name == name)       # type: ignore[union-attr]

    assert measure("emr_fig3", "aa-curve")["radii"] == pytest.approx([k / 255 for k in range(2, 17, 2)])
    landscape = measure("piat_fig6", "landscape")
    assert (landscape["directions"], landscape["reach"], landscape["grid"]) == ("whole", 1.0, 21) and measure("piat_fig6", "landscape-filter")["directions"] == "filter"
    study = load_study("emr_fig6", bases=bases)
    weights = {(t.options["t"], t.weight.options["value"]) for row in study.rows for t in row.recipe.method.terms if t.id == "emr"}      # type: ignore[union-attr]
    assert weights == {(t, w) for t in (0.1, 1.0, 10.0, 40.0, 100.0) for w in (0.03, 0.1, 0.3, 1.0, 3.0)}
    lam = [row.recipe.method.parts[0].options["lam"] for row in load_study("piat_fig4", bases=bases).rows]      # type: ignore[union-attr]
    assert lam[:6] == [0.0, 0.1, 0.3, 0.5, 0.7, 0.9] and lam[6].use == "piat"
    assert [next(t.weight for t in row.recipe.method.terms if t.id == "nmse") for row in load_study("piat_fig5", bases=bases).rows[::2]] == [3.0, 4.0, 5.0, 6.0]      # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("name,seeds,pictures,more", [
    ("lma_at_fig1", 2, {"figure-rank", "figure-rows"}, ()),
    ("mwpb_fig2_4", 1, {"figure-mean_radius", "figure-rows"}, ()),
    ("piat_fig6", 1, {"figure-landscape", "figure-landscape-of-landscape-filter", "figure-rows"}, ("evaluate.use=piat_fig6", "evaluate.landscape.grid=5", "evaluate.landscape-filter.grid=5")),
    ("emr_fig1", 1, {"figure-effective_margin", "figure-traces", "figure-rows"}, ()),
    ("emr_fig3", 1, {"figure-curve", "figure-rows"}, ("evaluate.use=emr_fig3", "evaluate.aa-curve.n=10", "evaluate.aa-curve.radii=[0.1, 0.3]")),
    ("piat_fig5", 1, {"figure-numbers-over-terms.nmse.weight", "figure-rows"}, ("evaluate.use=piat_aa", "evaluate.aa.n=10"))])
def test_a_small_run_draws_the_figure(name: str, seeds: int, pictures: set[str], more: tuple[str, ...], tmp_path: Path) -> None:
    import composer
    from composer.report.page import report

    sets = ["train.epochs=2", *more]
    summary = composer.ablate(name, setting="digits", seeds=seeds, sets=sets, out=tmp_path, jobs=0, threads=1, quiet=True, track=False)
    assert not summary["failed"]
    folder = tmp_path / "studies" / summary["study"]
    found = {p.stem for p in (folder / "plots").glob("figure-*.png")}
    assert found >= pictures, found
    page = report(summary["study"], tmp_path).read_text(encoding="utf-8")
    assert page.count("<figure>") == len(list((folder / "plots").glob("*.png")))
