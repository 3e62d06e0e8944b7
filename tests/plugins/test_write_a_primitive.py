"""The page on writing a primitive does what it says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from composer import testing
from composer.scaffold import TEMPLATES, check_plugin
from composer.testing import contracts, scratch

PAGE = (Path(__file__).parents[2] / "docs" / "write_a_primitive.md").read_text(encoding="utf-8")


def test_its_plugin_and_test_run(tmp_path):
    plugin, test = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "focal.py").write_text(plugin, encoding="utf-8")
    (tmp_path / "test_focal.py").write_text(test, encoding="utf-8")
    assert [row for row in check_plugin(tmp_path / "focal.py") if not row[2]] == []
    with scratch():
        tests = {name: fn for name, fn in runpy.run_path(str(tmp_path / "test_focal.py")).items() if name.startswith("test_")}
        for fn in tests.values():
            fn()
    assert set(tests) == {"test_contracts", "test_gamma_zero_is_cross_entropy"}


def test_every_contract_and_template_is_on_the_page():
    testing.load_catalogue()
    listed = set(re.split(r", |\n", "\n".join(re.findall(r"^\| ([a-z][a-z, ]*?) \|", PAGE, re.MULTILINE))))
    seen = set()
    with scratch():
        for kind, name in [("gain", "mail"), ("inner", "pgd"), ("ball", "linf"), ("part", "logit_ema"), ("schedule", "piat"), ("phase", "burn_in"),
                           ("loss", "ce"), ("start", "uniform"), ("radius", "mwpb")]:
            if name == "mail":
                testing.load_file(Path(__file__).parents[2] / "plugins" / "mail.py")
            seen |= {r.contract.split(" ")[0] if r.contract.startswith("optimum") else r.contract for r in contracts(kind, name)}
    assert seen - listed == set()
    assert all(f"{kind}" in PAGE for kind in TEMPLATES)
