"""What a sweep says: epochs behind and the time left, also after a death; and its pictures."""

from __future__ import annotations

import pytest

from composer import atomic
from composer.search import pace, plots
from composer.search.pace import Told
from composer.search.store import Store, Trial


class Silent:
    def next(self):
        return None

    def seen(self, number, epoch, metrics):
        return "pruned" if metrics["pgd"] < 0.1 else ""

    def ended(self, number): ...


def test_epochs_are_told_once_with_the_time_left(tmp_path, monkeypatch) -> None:
    clock, said, store = [100.0], [], Store(tmp_path, "s")
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock[0])
    for number in range(3):
        store.propose(number, {})
    store.end(0, "done")                                                    # of an earlier sitting, as are two epochs of trial 1
    for epoch in (1, 2):
        atomic.append_line(store.trial(1) / "epochs.jsonl", {"epoch": epoch, "pgd": 0.5})
    told = Told(Silent(), store, 4, 10, said.append)
    assert told.seen(1, 1, {"pgd": 0.5}) == "" and told.seen(1, 2, {"pgd": 0.5}) == "" and not said, "they were told in the earlier sitting"
    clock[0] += 20.0
    told.seen(1, 3, {"clean": 0.75, "pgd": 0.5})
    assert said == ["trial 1, epoch 3: clean 75.00 %  pgd 50.00 %  13/40 epochs  at most 0:09:00 left"]      # 27 epochs at 20 s
    assert told.seen(2, 1, {"pgd": 0.0}) == "pruned"
    store.end(2, "pruned")
    told.ended(2)
    assert said[-1] == "trial 2: pruned" and told.text() == "23/40 epochs  at most 0:02:50 left"             # 17 epochs at 10 s: its rest is not trained


def test_pictures_bear_their_labels(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    space = {"terms.kl.weight": {"low": 1.0, "high": 10.0}, "inner.x_adv.terms.margin.delta": {"choices": [0.5, 0.9]}}
    trials = [Trial(n, {"terms.kl.weight": 1.0 + n, "inner.x_adv.terms.margin.delta": [0.5, 0.9][n % 2]}, "done" if n else "pruned", metrics={"pgd": 0.3 + n / 50}) for n in range(6)]
    result = {"metric": "pgd", "sweep": "s", "space": space, "importance": {"terms.kl.weight": 0.7, "inner.x_adv.terms.margin.delta": 0.3}}
    paths = plots.pictures(trials, result, tmp_path)
    assert {p.name for p in paths} == {"importance.png", "importance.svg", "parallel.png", "parallel.svg"}
    figures = {"importance": plots._importance(result), "parallel": plots._parallel(trials, result)}
    for figure in figures.values():
        figure.canvas.draw()
        box = figure.bbox
        for axes in figure.axes:
            shown = [t for t in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title, axes.xaxis.label, *axes.texts) if t.get_text() and t.get_visible()]
            assert shown
            for text in shown:
                where = text.get_window_extent()
                assert box.x0 - 1 <= where.x0 and where.x1 <= box.x1 + 1 and box.y0 - 1 <= where.y0 and where.y1 <= box.y1 + 1, f"{text.get_text()} is clipped"
    words = [t.get_text() for t in figures["parallel"].axes[0].texts]
    assert {"30.0 %", "40.0 %", "10", "0.9"} <= set(words) and "dashed" in figures["parallel"].axes[0].get_title()
