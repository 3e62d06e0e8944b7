"""Studies: every printed table has one, its rows stand beside the printed rows, and what is wrong with a study is told in one answer."""

from __future__ import annotations

import json
import math
import textwrap
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from composer.errors import ComposerError, Errors
from composer.recipe.load import load
from composer.recipe.paths import get, split
from composer.recipe.studies import Bases, Study, find_study, load_study, study_names
from composer.verbs import check
from composer.verbs.checking import look

ROOT = Path(__file__).parents[2] / "recipes"
TABLES = {t["id"]: t for t in tomllib.loads((ROOT / "papers.toml").read_text())["table"]}


@pytest.fixture(scope="module")
def studies() -> dict[str, Study]:
    bases = Bases(ROOT, look)
    return {name: load_study(ROOT / "studies" / f"{name}.toml", bases=bases) for name in study_names(ROOT)}


def value(study: Study, row: str, path: str) -> object:
    return get(study.row(row).recipe.full, split(path))


def test_every_printed_table_has_a_study(studies: dict[str, Study]) -> None:
    assert {name for name, s in studies.items() if s.table} == {id.replace("/", "_") for id in TABLES}
    assert all(s.table == name.replace("_", "/").replace("lma/at", "lma_at") for name, s in studies.items() if s.table)


@pytest.mark.parametrize("id", TABLES)
def test_every_printed_row_stands_beside_one_row(id: str, studies: dict[str, Study]) -> None:
    """Each printed number once, as printed: by row, group and column, and where rows repeat also by the value that tells them apart."""
    study, table = studies[id.replace("/", "_")], TABLES[id]
    wanted = Counter((r["row"], r.get("group", ""), column, number) for r in table["rows"] for column, number in zip(table["columns"], r["values"],
                                                                                                                        strict=True))
    found = Counter((p.row, p.group, column, number) for row in study.rows for p in row.printed for column, number in p.values.items())
    assert found == wanted


def test_seeds_are_the_papers_where_it_has_several(studies: dict[str, Study]) -> None:
    """Where it ran once, five; one for a bench and for the search of winners; mwpb_6 asks about the three networks of mwpb_1."""
    several = {"lma_at": 6, "mwpb": 3}
    for study in (s for s in studies.values() if s.table or s.name == "tiny"):      # a figure shows one run, or none says how many
        wanted = 1 if study.name in ("emr_10", "components_1") else several.get(study.table.split("/")[0], 5)
        assert study.seeds == tuple(range(wanted)), study.name
        assert not study.table or TABLES[study.table]["runs"] in (1, wanted)


def test_rows_run_on_the_papers_protocol(studies: dict[str, Study]) -> None:
    for study in studies.values():
        own = {"tiny": "cifar10-tiny", "figures": "digits"}
        paper = study.table.split("/")[0] if study.table else own.get(study.name) or study.name.partition("_fig")[0]
        for row in study.rows:
            assert row.setting.split("/")[0] == paper, (study.name, row.name)
            assert row.recipe is not None and row.recipe.setting == row.setting


def test_the_data_and_network_are_the_tables(studies: dict[str, Study]) -> None:
    nets = {"resnet18": "resnet18", "wrn-34-10": "wrn", "wrn-32-10": "wrn", "vgg16-bn": "vgg16", "mlp-4x1024": "mlp", "cnn-4": "cnn4"}
    sets = {"cifar10", "cifar100", "svhn", "tinyimagenet", "mnist"}
    for study in studies.values():
        table = TABLES.get(study.table, {})
        for row in study.rows:
            if table.get("dataset") in sets:
                assert row.recipe.data.use == table["dataset"], (study.name, row.name)
            if row.group in sets:
                assert row.recipe.data.use == row.group
            if table.get("model") in nets and row.recipe.model.use in nets.values():
                assert row.recipe.model.use == nets[table["model"]], (study.name, row.name)


# Typed from the papers' own text and tables.
VALUES = [
    ("lma_at_2", "parts.ema.decay", {"tau_00": 0.0, "tau_01": 0.1, "tau_02": 0.2, "tau_07": 0.7, "tau_09": 0.9, "tau_09_compensated": 0.9}),
    ("lma_at_3", "parts.ema.decay", {"tau_00": 0.0, "tau_01": 0.1, "tau_02": 0.2, "tau_07": 0.7, "tau_09": 0.9, "tau_01_compensated": 0.1}),
    ("lma_at_4", "terms.align.weight", {f"beta_{b}": float(b) for b in range(80, 93, 2)}),
    ("lma_at_5", "terms.align.weight", {f"beta_{b}": float(b) for b in range(80, 93, 2)}),
    ("lma_at_16", "terms.align.weight", {f"beta_{b}": float(b) for b in range(90, 99, 2)}),
    ("lma_at_16", "terms.align.alpha", {"beta_96": 6.345}),
    ("lma_at_15", "terms.align.alpha", {f"alpha_{a}": a + 0.345 for a in range(1, 8)}),
    ("lma_at_7", "terms.align.alpha", {"at_ours": 2.345, "trades_ours": 2.345, "mart_ours": 2.345, "lma_at": 2.345}),
    ("lma_at_7", "terms.kl.weight", {"trades": 6.0, "mart": 5.0, "mart_ours": 5.0}),
    ("lma_at_8", "terms.align.weight", {"lma_at": 86.0}),
    ("lma_at_9", "terms.align.weight", {"lma_at": 96.0, "trades_ours": 96.0, "mart_ours": 96.0}),
    ("emr_1", "optim.weight_decay", {"st_1e-1": 0.1, "st_1e-4": 1e-4, "at_1e-2": 0.01, "st_emr": 1e-3, "at_emr": 1e-3}),
    ("emr_1", "terms.l_softmax.m", {"st_lsoftmax_1e-1": 4, "at_lsoftmax_1e-4": 4}),
    ("emr_1", "terms.emr.weight.value", {"st_emr": 0.1, "at_emr": 3e-4}),
    ("emr_2", "optim.weight_decay", {"st_1e-2": 0.01, "st_5e-4": 5e-4, "at_5e-4": 5e-4, "st_emr": 5e-4, "at_emr": 5e-4}),
    ("emr_2", "terms.l_softmax.m", {"st_lsoftmax_1e-2": 1, "at_lsoftmax_1e-4": 1}),
    ("emr_2", "terms.emr.weight.value", {"st_emr": 0.01, "at_emr": 0.001}),
    ("emr_3", "optim.weight_decay", {"at": 1e-3, "at_5e-4": 5e-4, "at_igr": 1e-3, "at_he": 2e-4, "at_emr": 5e-4, "trades": 5e-4, "trades_igr": 5e-4,
                                     "trades_emr": 5e-4, "trades_he": 2e-4, "at_mail": 2e-4, "at_mail_emr": 2e-4, "trades_mail": 2e-4,
                                     "trades_mail_emr": 2e-4, "mart_emr": 7e-4}),
    ("emr_3", "terms.emr.weight.value", {"at_emr": 1.0, "trades_emr": 0.3, "at_mail_emr": 1.0, "trades_mail_emr": 3.0, "mart_emr": 1.0}),
    ("emr_3", "terms.emr.t", {"at_emr": 40.0, "trades_emr": 1.0, "at_mail_emr": 1.0, "trades_mail_emr": 1.0, "mart_emr": 1.0}),
    ("emr_3", "terms.kl.weight", {"trades": 12.0, "trades_igr": 12.0, "trades_he": 6.0, "trades_emr": 12.0, "trades_mail": 5.0, "mart_emr": 6.0}),
    ("emr_8", "terms.emr.weight.value", {"mlp_st_emr": 0.1, "mlp_st_approx": 1.0, "mlp_at_emr": 3e-4, "mlp_at_approx": 3e-4, "cnn_st_emr": 0.01,
                                         "cnn_st_approx": 30.0, "cnn_at_emr": 0.001, "cnn_at_approx": 3e-4}),
    ("emr_9", "optim.weight_decay", {"at": 1e-3, "at_5e-4": 5e-4, "at_igr": 1e-3, "at_emr": 5e-4, "trades": 5e-4, "trades_igr": 5e-4, "trades_emr": 5e-4}),
    ("emr_9", "terms.emr.weight.value", {"at_emr": 0.1, "trades_emr": 0.3}),
    ("emr_9", "terms.emr.t", {"at_emr": 40.0, "trades_emr": 0.1}),
    ("mwpb_1", "inner.x_adv.eps.alpha", {"mwpb_at": 0.58, "mwpb_trades": 0.42, "mwpb_mart": 0.55, "mwpb_at_half": 0.0, "mwpb_mart_half": 0.0}),
    ("mwpb_2", "inner.x_adv.eps.alpha", {"mwpb_at": 0.58, "mwpb_trades": 0.42, "mwpb_mart": 0.55, "mwpb_trades_half": 0.0}),
    ("mwpb_3", "inner.x_adv.eps.alpha", {"mwpb_at": 0.50, "mwpb_trades": 0.15, "mwpb_mart": 0.60}),
    ("mwpb_4", "inner.x_adv.eps.alpha", {"mwpb_at": 0.55, "mwpb_trades": 0.40, "mwpb_mart": 0.70}),
    ("mwpb_2", "terms.kl.weight", {"trades": 6.0, "mart": 6.0, "mwpb_mart": 6.0}),
    ("mwpb_1", "terms.kl.weight", {"mart": 5.0, "mwpb_mart": 5.0}),
    ("mwpb_8", "inner.x_adv.eps.alpha", {"alpha_000": 0.0, "alpha_010": 0.1, "alpha_020": 0.2, "alpha_030": 0.3, "alpha_040": 0.4, "alpha_050": 0.5,
                                         "alpha_058": 0.58, "alpha_070": 0.7, "alpha_085": 0.85, "alpha_120": 1.2}),
    ("piat_1", "terms.nmse.weight", {"piat_nmse@cifar10": 5.0, "piat_nmse@cifar100": 5.0, "piat_nmse@svhn": 5.0}),
    ("piat_2", "terms.kl.weight", {"trades@cifar10": 6.0, "mart@cifar100": 6.0, "piat_mart@cifar10": 6.0}),
    ("piat_5", "terms.mse.weight", {"alp@cifar10": 0.5, "alp@cifar100": 0.5}),
    ("components_1", "terms.margin_exp.weight", {"exp_25": 25.0, "exp_1000": 1000.0, "dyart": 1000.0}),
]


@pytest.mark.parametrize(("name", "path", "rows"), VALUES, ids=[f"{n}-{p}" for n, p, _ in VALUES])
def test_values(name: str, path: str, rows: dict[str, float], studies: dict[str, Study]) -> None:
    assert {row: value(studies[name], row, path) for row in rows} == pytest.approx(rows)


def test_every_piat_row_starts_with_clean_epochs(studies: dict[str, Study]) -> None:
    for name in ("piat_1", "piat_2", "piat_3", "piat_5"):
        for row in studies[name].rows:
            first = row.recipe.segments()[0]
            assert (first.first, first.last) == (1, 10) and not first.recipe.method.inner, (name, row.name)


def test_options_of_lma_at_are_the_recipes_toggles(studies: dict[str, Study]) -> None:
    """A and D said by their meaning elsewhere: AT + ours without the attack's margin, LMA-AT without the regulariser."""
    rows, setting = studies["lma_at_12"], "lma_at/cifar10-resnet18"
    for row, recipe in {"A": load("at_ours", setting=setting).without("inner_margin"), "A_bce": load("lma_at", setting=setting).without("inner_margin"),
                        "A_ce": load("at_ours", setting=setting), "B": load("lma_at", setting=setting).without("outer_margin"),
                        "C": load("lma_at", setting=setting), "D": load("lma_at", setting=setting).without("align")}.items():
        assert rows.row(row).recipe.experiment_id == recipe.experiment_id, row


def test_rows_that_two_tables_share_are_one_experiment(studies: dict[str, Study]) -> None:
    for shared in ([("lma_at_2", "tau_02"), ("lma_at_4", "beta_86"), ("lma_at_6", "lma_at"), ("lma_at_12", "C"), ("lma_at_15", "alpha_5")],
                   [("lma_at_3", "tau_02"), ("lma_at_5", "beta_86"), ("lma_at_8", "lma_at")], [("lma_at_9", "lma_at"), ("lma_at_16", "beta_96")],
                   [("mwpb_1", "mwpb_at"), ("mwpb_6", "mwpb_at")], [("mwpb_2", "mwpb_at"), ("mwpb_5", "mwpb_at"), ("mwpb_8", "alpha_058")],
                   [("piat_1", "piat_nmse@cifar10"), ("piat_3", "piat_nmse@cifar10")], [("emr_1", "st_emr"), ("emr_8", "mlp_st_emr")]):
        assert len({studies[name].row(row).recipe.experiment_id for name, row in shared}) == 1, shared


def test_the_half_radius_cells_share_all_but_the_weighting(studies: dict[str, Study]) -> None:
    study = studies["mwpb_1"]
    for name in ("mwpb_at", "mwpb_trades", "mwpb_mart"):
        ours, half = (study.row(n).recipe.segments() for n in (name, f"{name}_half"))
        assert [(s.first, s.last) for s in ours] == [(1, 80), (81, 110)] == [(s.first, s.last) for s in half]
        assert ours[0].recipe.method == half[0].recipe.method and ours[1].recipe.method != half[1].recipe.method


def test_sweeps_of_the_components_paper(studies: dict[str, Study]) -> None:
    study = studies["components_1"]
    assert {r.id: r.size for r in study.rows} == {"baseline": 36, "elsayed": 36, "burn_in": 3, "exp_25": 3, "exp_1000": 3, "fab": 3, "fab_soft": 3,
                                                  "dyart": 15}
    dyart = study.row("dyart")
    assert (dyart.rungs, dyart.keep) == ((28, 225), 10) and [p.selector for p in dyart.printed] == ["clean", "apgd-ce"]
    points = list(dyart.points())
    assert {(r.train.lr.options["value"], r.train.batch_size) for _, r in points} == {(lr, b) for lr in (0.1, 0.01, 0.001)
                                                                                      for b in (64, 128, 256, 512, 1024)}
    assert len({r.experiment_id for _, r in points}) == 15
    assert [p.group for p in study.row("fab").printed] == ["best-clean", "best-apgd"] and study.cells == ()


def test_an_external_row_is_judged_on_its_own_network(studies: dict[str, Study]) -> None:
    mart = studies["emr_3"].row("mart")
    assert mart.kind == "external" and mart.size == 0 and list(mart.points()) == [] and mart.checkpoint
    assert mart.recipe.model.options["shortcut"] == "conv" and studies["emr_3"].row("mart_emr").recipe.model.options["shortcut"] == "pool_pad"
    assert mart.recipe.evaluate == studies["emr_3"].row("at").recipe.evaluate and mart.printed[0].values["aa"] == 51.4


# -- a user's own ----------------------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(textwrap.dedent(text).strip() + "\n", encoding="utf-8")
    return file


def test_all_mistakes_at_once_with_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, """
        recipe  = "lma_at"
        setting = "lma_at/cifar10-resnet18"
        seeds   = [0, 0]
        table   = "lma_at/12"
        sedes   = 3
        [analysis]
        primary = "pgd-21"
        [cells]
        A = { set = { "terms.align.wieght" = 1.0 } }
        B = { set = { "parts.ema.decay" = 2.0 } }
        C = { printed = "E" }
        D = { drop = ["terms.nothing"] }
        F = { kind = "sweep", printed = "A", grid = { "train.lr.value" = [0.1, "much"] }, select = ["clear"] }
        G = { kind = "external", printed = false, checkpoint = "x.pt", model = { use = "wrn" } }
        H = { recipe = "nobody", printed = false }
        I = { printed = false, drop = ["parts.ema"] }
        J = { kind = "cell", rungs = [1], printed = false }
        K = { printed = false, setting = "lma_at/cifar11" }
        L = { kind = "printed", printed = "B", setting = "lma_at/cifar12" }
    """)
    with pytest.raises(Errors) as caught:
        load_study("mine.toml", bases=Bases(ROOT, look))
    lines = {}
    for error in caught.value.all:
        assert error.where.startswith("mine.toml:"), error.text()
        lines.setdefault(int(error.where.split(":")[1].split()[0]), []).append(error.text())
    wanted = {3: "seeds = [0, 0]", 5: "'sedes' is not known", 7: "pgd-21", 9: "terms.align.wieght", 10: "2.0", 11: "no row 'E'", 12: "terms.nothing",
              13: "much", 14: "normalisation", 15: "nobody", 16: "align", 17: "'rungs' is not known", 18: "cifar11", 19: "cifar12"}
    assert set(lines) == set(wanted)
    for line, text in wanted.items():
        assert any(text in told for told in lines[line]), (line, lines[line])
    assert any("clear" in told for told in lines[13])


def test_cells_that_say_the_same_are_one_run(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, """
        recipe = "mart_ours"
        seeds  = [3, 5]
        [cells]
        all     = {}
        default = { set = { "terms.align.weight" = 86.0 } }
        less    = { set = { "terms.align.weight" = 8.6 } }
        by_name = { recipe = "mart_ours" }
        print   = { kind = "printed" }
    """), root=ROOT)
    assert study.same() == [("all", "default", "by_name")] and len(study.runs()) == 2 and study.seeds == (3, 5)
    assert study.row("all").recipe.setting == "digits" and study.row("print").recipe is None
    with pytest.raises(ComposerError, match="there is no row 'less_'"):
        study.row("less_")


def test_the_studys_edit_lies_below_the_rows(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, """
        recipe = "trades"
        set    = { "terms.kl.weight" = 2.0, "train.epochs" = 4 }
        [cells]
        base = {}
        own  = { set = { "terms.kl.weight" = 9.0 } }
        grid = { kind = "sweep", grid = { "terms.kl.weight" = [1.0, 3.0] }, select = ["clean"], rungs = [2, 4], keep = 1 }
    """), root=ROOT)
    assert [value(study, row, "terms.kl.weight") for row in ("base", "own")] == [2.0, 9.0]
    assert [(point, recipe.method.terms[1].weight, recipe.train.epochs) for point, recipe in study.row("grid").points()] == [
        ({"terms.kl.weight": 1.0}, 1.0, 4), ({"terms.kl.weight": 3.0}, 3.0, 4)]


def test_a_name_printed_twice_must_be_told_apart(tmp_path: Path) -> None:
    text = """
        setting = "emr/mnist-mlp"
        table = "emr/1"
        [cells]
        st = {{ recipe = "standard", printed = {} }}
    """
    with pytest.raises(Errors, match="'ST' stands 4 times in table emr/1"):
        load_study(written(tmp_path, text.format('"ST"')), root=ROOT)
    with pytest.raises(Errors, match="no row 'ST' of table emr/1 has these values"):
        load_study(written(tmp_path, text.format('{ row = "ST", weight_decay = 0.2 }')), root=ROOT)
    row = load_study(written(tmp_path, text.format('{ row = "ST", weight_decay = 0.01 }')), root=ROOT).row("st")
    assert row.printed[0].values["clean"] == 96.54 and row.printed[0].pm["margin_test"] == 0.67 and math.isnan(row.printed[0].pm["clean"])


def test_a_group_of_no_row_is_told(tmp_path: Path) -> None:
    with pytest.raises(Errors, match="no row stands on that setting"):
        load_study(written(tmp_path, """
            settings = ["emr/cifar10-resnet18"]
            table = "emr/4"
            groups = { "emr/cifar10-resnet18" = "resnet18", "emr/cifar10-wrn-34-11" = "wrn-34-10" }
            [cells]
            adv = { recipe = "emr_trades", printed = "TRADES+EMR-adv" }
        """), root=ROOT)


def test_check_takes_studies_and_recipes_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_study("tiny", ROOT) == ROOT / "studies" / "tiny.toml" and find_study("at", ROOT) is None
    study, recipe = check(["tiny", "at"], root=ROOT)
    assert study.ok and recipe.ok and recipe.study is None and study.as_dict()["rows"] == 17
    assert json.loads(json.dumps(study.as_dict()))["seeds"] == [0, 1, 2, 3, 4]
    refused, = check(["tiny"], setting="digits", root=ROOT)
    assert [e.where for e in refused.errors] == ["--setting"] and not refused.ok


def test_toggles_are_tried_on_the_settings_of_a_study(tmp_path: Path) -> None:
    """Alive and sound where the recipe stands, dead or without its path on a setting that a study runs it on."""
    recipe = tmp_path / "mine.toml"
    recipe.write_text(textwrap.dedent("""
        extends = "at.toml"
        setting = "lma_at/cifar10-resnet18"
        [toggle]
        decay   = { set = { "optim.weight_decay" = 5e-4 } }
        shifted = { drop = ["augment.crop"] }
    """).strip() + "\n", encoding="utf-8")
    assert [c.errors for c in check([recipe], root=ROOT)] == [()]
    study = tmp_path / "study.toml"
    text = f'recipe = "{recipe.as_posix()}"\nsettings = ["lma_at/cifar10-resnet18"{{}}]\n[cells]\na = {{{{}}}}\nb = {{{{ set = {{{{ "optim.momentum" = 0.5 }}}} }}}}\n'
    study.write_text(text.format(""), encoding="utf-8")
    assert check([study], root=ROOT)[0].ok
    study.write_text(text.format(', "digits"'), encoding="utf-8")
    errors = check([study], root=ROOT)[0].errors
    assert sorted(e.where.rpartition("  ")[2] for e in errors) == ["toggle.decay", "toggle.shifted"] and all("mine.toml:" in e.where for e in errors)
    assert all("on digits, where a study runs this recipe" in e.why for e in errors)
    assert "changes nothing here" in errors[0].what and "augment" in errors[1].text()
