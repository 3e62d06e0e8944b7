"""Every shipped study of tables, small: digits, two seeds, two epochs, the quick protocol. Its table has all rows.

Hours on two cores: `pytest -m slow tests/ablate/test_studies_small.py`. COMPOSER_SMALL_OUT names a store that is used again, so that a second call
trains nothing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from composer.recipe.studies import load_study

pytestmark = pytest.mark.slow

STUDIES = Path(__file__).resolve().parents[2] / "recipes" / "studies"
WORDS = ("--setting", "digits", "--seeds", "2", "--set", "train.epochs=2", "--set", "evaluate.use=quick")


def of_tables() -> list[str]:
    """Studies that stand beside a printed table; those of figures, and our own, are other tests'."""
    return sorted(path.stem for path in STUDIES.glob("*.toml") if "\ntable" in path.read_text())


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("COMPOSER_SMALL_OUT")
    return Path(named).absolute() if named else tmp_path_factory.mktemp("small")


@pytest.mark.parametrize("study", of_tables())
def test_a_study_gives_its_table(study: str, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from composer.cli import main

    jobs = os.environ.get("COMPOSER_SMALL_JOBS", "0")
    monkeypatch.setattr("sys.argv", ["composer", "ablate", study, *WORDS, "--out", str(out), "--jobs", jobs, "--threads", "1", "--quiet", "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert end.value.code in (0, None), printed.err[-3000:]
    found = json.loads(printed.out)
    told = load_study(study, setting="digits", sets=["train.epochs=2", "evaluate.use=quick"], seeds=2)
    lines = {line["name"]: line for line in found["cells"]}
    for row in told.rows:
        named = [line for name, line in lines.items() if name == row.name or name.startswith(f"{row.name} [by ")]
        assert named, f"{row.name} has no line"
        if row.kind in ("cell", "sweep"):
            assert all(line["metrics"] and (len(line["runs"]) == 2 or line["same_as"] or line["failed"]) for line in named), row.name
    assert not [f for f in found["failed"] if not f["diverged"] and f["name"] not in {r.name for r in told.rows if r.kind == "external"}], found["failed"]
    folder = out / "studies" / found["study"]
    assert all((folder / name).stat().st_size for name in ("table.md", "table.csv", "table.tex", "report.html"))
