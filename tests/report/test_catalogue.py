"""The written catalogue is what the registry says, and says all of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from composer.registry import REGISTRY, Card, Primitive, read_card
from composer.report import catalogue


def written() -> str:
    return catalogue.PAGE.read_text(encoding="utf-8")


def test_the_page_is_up_to_date() -> None:
    """In a process of its own: what other tests register is not to be found there."""
    environment = {key: value for key, value in os.environ.items() if key != "COMPOSER_PLUGINS"}
    done = subprocess.run([sys.executable, "-m", "composer.report.catalogue", "--check"], capture_output=True, text=True, env=environment, timeout=120,
                          check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}(then read the difference: it is what users see)"


def test_every_entry_has_formula_and_paper() -> None:
    entries = re.split(r"^### ", written(), flags=re.MULTILINE)[1:]
    assert len(entries) > 60
    assert not [e.split("\n")[0] for e in entries if "- Paper: " not in e or "- File: `" not in e or ("- Formula: `" not in e and not e.startswith(("data/", "measure/", "phase/")))]
    assert not re.search(r"/(work|home|root)/|site-packages", written())


def test_a_page_behind_the_registry_is_told_with_the_command(tmp_path) -> None:
    old = tmp_path / "catalogue.md"
    for text in (None, "# The catalogue\n"):
        if text:
            old.write_text(text)
        assert catalogue.COMMAND in catalogue.stale(old)


def test_an_entry_from_a_docstring(monkeypatch) -> None:
    def thing(probs, *, margin: float = 0.5, mode: str = "a"):
        """A thing of <two> words.

        Formula: max(0, `margin` - p)
                 * 2   [1]
        Paper:   Someone, 2020

        margin   how much
        mode     which

        It differs from the authors' code.
        """

    monkeypatch.setattr(catalogue, "home", lambda p: "plugins/thing.py")
    text = catalogue.entry(Primitive("gain", "thing", thing, {"couples": "batch"}))
    assert text == """### gain/thing

A thing of \\<two\\> words.

- Formula: `` max(0, `margin` - p) * 2 [1] ``
- Paper: Someone, 2020
- Needs: `probs`
- Options:
  - `margin`: number or a schedule, default `0.5`
  - `mode`: string, default `"a"`
- File: `plugins/thing.py`; couples the rows of a batch

```text
margin   how much
mode     which
```

It differs from the authors' code.
"""


def test_remarks_leave_out_what_stands_above() -> None:
    assert catalogue.remarks(read_card("One.\n\nFormula: f\n   g\nPaper: p\n")) == []
    assert catalogue.remarks(Card("", "", "", "One.\n\nTwo\nlines.\n\nFormula: f\nPaper: p\n\nThree.")) == ["Two lines.", "Three."]


def test_strangers_have_no_home() -> None:
    assert catalogue.home(Primitive("gain", "x", test_strangers_have_no_home)) == ""
    assert catalogue.home(REGISTRY.get("loss", "ce")) == "composer/losses/cross_entropy.py"
