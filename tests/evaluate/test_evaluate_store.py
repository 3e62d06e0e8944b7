from __future__ import annotations

import json
from unittest import mock

import pytest
import torch

from composer.evaluate import protocol
from composer.evaluate.protocol import evaluate
from composer.evaluate.results import Measured
from composer.evaluate.store import Slot
from composer.recipe.types import MeasureSpec

SPECS = [MeasureSpec("clean", "clean", {}), MeasureSpec("pgd-8", "pgd", {})]


class Counting:
    def __init__(self, model):
        self.model, self.images = model, 0

    def __call__(self, x):
        self.images += len(x)
        return self.model(x)


def run(model, digits, threat, store, specs=SPECS, seed=0, **more):
    x, y = digits["test"]
    counting = Counting(model)
    with mock.patch.object(protocol, "_seen", _uncounted(counting)):
        return evaluate(counting, x[:60], y[:60], specs, threat=threat, seed=seed, store=store, **more), counting.images


def _uncounted(counting):
    """What the trust checks ask of the model is not the measures' cost."""
    real = protocol._seen

    def seen(*args):
        before = counting.images
        found = real(*args)
        counting.images = before
        return found

    return seen


def test_the_trust_checks_ask_once(trained, digits, threat, tmp_path):
    x, y = digits["test"]
    first = evaluate(Counting(trained), x[:60], y[:60], SPECS, threat=threat, seed=0, store=tmp_path)
    counting = Counting(trained)
    again = evaluate(counting, x[:60], y[:60], SPECS, threat=threat, seed=0, store=tmp_path)
    assert counting.images == 0 and again.seen == first.seen and again.seen["classes"] == 10
    next(tmp_path.glob("*.seen")).write_text("{")
    assert evaluate(counting, x[:60], y[:60], SPECS, threat=threat, seed=0, store=tmp_path).seen == first.seen and counting.images > 0


def test_what_is_stored_is_not_run_again(trained, digits, threat, tmp_path):
    first, cost = run(trained, digits, threat, tmp_path)
    assert cost > 0
    again, cost = run(trained, digits, threat, tmp_path)
    assert cost == 0
    assert again.metrics == first.metrics
    assert all(torch.equal(again.flags[name], first.flags[name]) for name in first.flags)
    assert again.details == first.details
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors", ".seen"}
    record = json.loads(next(tmp_path.glob("pgd-*.json")).read_text())
    assert (record["n"], record["metric"], record["options"]["eps"]) == (60, first.metrics["pgd-8"], threat.eps)


def test_the_printed_name_is_not_part_of_an_attack(trained, digits, threat, tmp_path):
    run(trained, digits, threat, tmp_path)
    assert run(trained, digits, threat, tmp_path, [MeasureSpec("madry", "pgd", {"steps": 8})])[1] == 0


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"specs": [MeasureSpec("pgd-8", "pgd", {"eps": "threat/2"})]}, {"specs": [MeasureSpec("pgd-8", "pgd", {}, n=59)]},
    {"subject_digest": "other"}])
def test_whatever_changes_the_flags_is_run_anew(trained, digits, threat, tmp_path, change):
    run(trained, digits, threat, tmp_path, subject_digest="one")
    assert run(trained, digits, threat, tmp_path, **{"subject_digest": "one", **change})[1] > 0


def test_other_images_are_other_results(trained, digits, threat, tmp_path):
    run(trained, digits, threat, tmp_path)
    moved = {"test": (digits["test"][0].flip(0), digits["test"][1].flip(0))}
    assert run(trained, moved, threat, tmp_path)[1] > 0


def test_autoattack_depends_on_the_cut_into_batches(trained, digits, threat, tmp_path, quick_autoattack):
    quick_autoattack()
    specs = [MeasureSpec("aa", "aa", {})]
    run(trained, digits, threat, tmp_path, specs, batch_size=60)
    assert run(trained, digits, threat, tmp_path, specs, batch_size=60)[1] == 0
    assert run(trained, digits, threat, tmp_path, specs, batch_size=20)[1] > 0


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_torn_file_is_run_again(trained, digits, threat, tmp_path, suffix):
    first, _ = run(trained, digits, threat, tmp_path)
    for file in tmp_path.glob(f"pgd-*{suffix}"):
        file.write_bytes(file.read_bytes()[:-3])
    again, cost = run(trained, digits, threat, tmp_path)
    assert cost > 0
    assert torch.equal(again.flags["pgd-8"], first.flags["pgd-8"])
    assert run(trained, digits, threat, tmp_path)[1] == 0


def test_a_slot_gives_back_what_it_was_given(tmp_path):
    result = Measured(torch.tensor([0.5, 2.0]), {"clean": torch.tensor([True, False])}, {"seconds": 1.5})
    Slot(tmp_path, "margins-1").save(result, {"use": "margins"})
    held = Slot(tmp_path, "margins-1").load()
    assert torch.equal(held.values, result.values)
    assert held.extra["clean"].tolist() == [True, False]
    assert held.details == {"seconds": 1.5}
    assert Slot(tmp_path, "margins-2").load() is None
    assert Slot(None, "margins-1").load() is None
