from __future__ import annotations

import runpy

import pytest

from composer.errors import ComposerError
from composer.registry import REGISTRY
from composer.scaffold import TEMPLATES, check_plugin, scaffold
from composer.testing import scratch


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_template_keeps_the_contracts(tmp_path, kind):
    plugin, _ = scaffold(f"my_{kind}", kind, tmp_path)
    rows = check_plugin(plugin)
    assert [row for row in rows if not row[2]] == []
    assert {row[0] for row in rows} == {f"{kind}/my_{kind}"} and len(rows) >= 3
    assert not REGISTRY.has(kind, f"my_{kind}"), "a check leaves the registry as it was"


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_tests_that_come_with_the_templates_pass(tmp_path, kind):
    _, test = scaffold(f"my_{kind}", kind, tmp_path)
    with scratch():
        tests = {name: fn for name, fn in runpy.run_path(str(test)).items() if name.startswith("test_")}
        for fn in tests.values():
            fn()
    assert len(tests) == 2


def test_nothing_is_overwritten(tmp_path):
    plugin, _ = scaffold("mine", "loss", tmp_path)
    plugin.write_text("my work")
    with pytest.raises(ComposerError, match="exists"):
        scaffold("mine", "loss", tmp_path)
    assert plugin.read_text() == "my work"


@pytest.mark.parametrize(("name", "kind"), [("lambda", "loss"), ("two words", "loss"), ("test_x", "loss"), ("fine", "lossy")])
def test_bad_names_and_kinds(tmp_path, name, kind):
    with pytest.raises(ComposerError):
        scaffold(name, kind, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_check_reports_what_is_broken(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("from composer import loss\nfrom composer.shapes import Labels, Logits\n\n@loss\ndef reduced(logits: Logits, y: Labels):\n"
                    "    return logits.sum()\n")
    failed = {contract: message for _, contract, ok, message in check_plugin(file) if not ok}
    assert {"card", "shape"} <= set(failed) and "never reduce" in failed["shape"]


def test_check_of_a_file_that_registers_nothing(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ComposerError, match="no primitive"):
        check_plugin(tmp_path / "empty.py")
    with pytest.raises(ComposerError, match="no plugin file"):
        check_plugin(tmp_path / "absent.py")
