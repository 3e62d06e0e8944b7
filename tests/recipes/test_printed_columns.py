"""Every printed column has a measure of ours beside it, or a reason written here why it has none."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from composer.evaluate.options import resolve_options
from composer.recipe.studies import Bases, Study, load_study
from composer.registry import REGISTRY
from composer.verbs.checking import look

ROOT = Path(__file__).parents[2] / "recipes"
TABLES = {t["id"]: t for t in tomllib.loads((ROOT / "papers.toml").read_text())["table"]}

# The column, and either the measure that stands beside it under another name, or why none does.
OTHER_NAMES = {("emr/8", "pgd"): {"pgd-20", "pgd-10"}, **{("emr/10", f"{kind}_s"): {"seconds_per_step"} for kind in ("standard", "igr", "he", "emr")}}
NO_MEASURE = {(f"emr/{n}", "weight_decay"): "a setting of the row, not a result: the row says it in `set`" for n in (1, 2, 8)}


@pytest.fixture(scope="module")
def studies() -> dict[str, Study]:
    bases = Bases(ROOT, look)
    return {id: load_study(ROOT / "studies" / f"{id.replace('/', '_')}.toml", bases=bases) for id in TABLES}


@pytest.mark.parametrize("id", TABLES)
def test_every_printed_column_has_a_measure_or_a_reason(id: str, studies: dict[str, Study]) -> None:
    for row in (r for r in studies[id].rows if r.printed and r.recipe is not None):
        ours = {m.name for m in row.recipe.evaluate.measures}
        for column in {c for p in row.printed for c in p.values}:
            wanted = OTHER_NAMES.get((id, column), {column})
            assert ours & wanted or NO_MEASURE.get((id, column)), f"{id}, row {row.name}: nothing stands beside the printed column {column}"


def test_no_reason_is_idle() -> None:
    for id, column in [*OTHER_NAMES, *NO_MEASURE]:
        assert column in TABLES[id]["columns"]


def options(studies: dict[str, Study], id: str, name: str) -> dict[str, object]:
    """A measure's options as they are run, in the table's first row."""
    recipe = next(r.recipe for r in studies[id].rows if r.recipe is not None)
    spec = next(m for m in recipe.evaluate.measures if m.name == name)
    settled = resolve_options(spec, recipe.threat)
    return {"use": spec.use, "n": spec.n, **{k: getattr(v, "use", v) for k, v in settled.items()}}


# Typed from the papers' protocols.
PRINTED = [
    *(("lma_at/6", "spsa", {"delta": 0.001, "samples": 100, "steps": 20, "lr": 0.01, "eps": 8 / 255, "norm": "linf", "n": 1000}),
      ("lma_at/7", "square", {"queries": 5000, "eps": 8 / 255, "n": None}),
      ("mwpb/2", "spsa", {"delta": 0.001, "samples": 256, "steps": 100, "lr": 0.01, "eps": 8 / 255, "n": 1000}),
      ("mwpb/2", "square", {"queries": 5000, "eps": 8 / 255}), ("mwpb/7", "aa-l2@128/255", {"use": "aa", "norm": "l2", "eps": 128 / 255}),
      ("mwpb/7", "fab", {"use": "fab", "norm": "linf", "eps": 8 / 255}), ("mwpb/7", "pgd-20@12/255", {"use": "pgd", "steps": 20, "eps": 12 / 255, "step": 1 / 255}),
      ("piat/1", "mim", {"steps": 20, "mu": 1.0, "eps": 8 / 255, "step": 2 / 255}), ("components/1", "apgd-ce", {"use": "apgd_ce", "eps": 8 / 255}),
      ("components/1", "clean_val", {"use": "clean", "split": "val"}), ("emr/1", "margin_train", {"split": "train", "over": "correct", "at": "clean"}),
      ("emr/2", "margin_test", {"split": "test", "over": "correct", "at": "clean"}), ("mwpb/6", "mean_radius", {"use": "mean_radius"}),
      ("emr/10", "seconds_per_step", {"use": "seconds_per_step"})),
]


@pytest.mark.parametrize(("id", "name", "wanted"), PRINTED, ids=[f"{id}-{name}" for id, name, _ in PRINTED])
def test_the_papers_settings(id: str, name: str, wanted: dict[str, object], studies: dict[str, Study]) -> None:
    found = options(studies, id, name)
    assert {k: found[k] for k in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize("id", TABLES)
def test_quick_spares_every_study_what_is_costly(id: str, studies: dict[str, Study]) -> None:
    quick = tomllib.loads((ROOT / "protocols.toml").read_text())["quick"]
    assert quick.keys() == {"clean", "pgd-20", "aa"} and quick["aa"]["n"] <= 200
    for row in [r for r in studies[id].rows if r.recipe is not None][:3]:
        small = row.recipe.edit(set={"evaluate.use": "quick"})
        assert [m.name for m in small.evaluate.measures] == list(quick)
        costly = {m.name for m in small.evaluate.measures if REGISTRY.get("measure", m.use).flags.get("costly")}
        assert costly == {"aa"}
