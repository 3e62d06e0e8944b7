from __future__ import annotations

import numpy as np
import pytest
import torch

from composer.errors import ComposerError
from composer.evaluate.protocol import evaluate
from composer.recipe.types import MeasureSpec


@pytest.fixture
def folder(digits, tmp_path):
    """Two corruptions of the 200 digits in the layout of CIFAR-10-C: noise that grows with the severity, and images turned round."""
    x, y = digits["test"]
    base = (x * 255).round().byte().permute(0, 2, 3, 1).numpy()
    noise = np.random.default_rng(0).normal(size=(5, *base.shape))
    noisy = np.concatenate([(base + 60.0 * s * noise[s]).clip(0, 255).astype("uint8") for s in range(5)])
    np.save(tmp_path / "noise.npy", noisy)
    np.save(tmp_path / "turned.npy", np.concatenate([base[:, ::-1]] * 5))
    np.save(tmp_path / "labels.npy", np.tile(y.numpy(), 5))
    return tmp_path


def judge(model, digits, threat, folder, n=None, **options):
    return evaluate(model, *digits["test"], [MeasureSpec("c", "corruptions", {"folder": str(folder), **options}, n=n)], threat=threat, seed=0)


@pytest.mark.parametrize("n", [200, 37])
def test_mean_and_details_are_those_of_a_plain_loop(trained, digits, threat, folder, n):
    found = judge(trained, digits, threat, folder, n)
    y = digits["test"][1]
    expected = {}
    for name in ("noise", "turned"):
        images = torch.from_numpy(np.load(folder / f"{name}.npy")).permute(0, 3, 1, 2).float() / 255
        right = (trained(images).argmax(1) == y.repeat(5)).view(5, 200)[:, :n]
        expected[name] = right.double().mean(1)
    table = found.details["c"]["corruptions"]
    for name, rows in expected.items():
        assert [table[name][str(s)] for s in range(1, 6)] == pytest.approx(rows.tolist())
        assert table[name]["mean"] == pytest.approx(float(rows.mean()))
    assert found.metrics["c"] == pytest.approx(float(torch.stack(list(expected.values())).mean()))
    assert found.units == {"c": "share of corruptions"} and found.n == {"c": n}
    assert table["noise"]["1"] > table["noise"]["5"] and table["turned"]["mean"] < 0.7
    assert set(judge(trained, digits, threat, folder, n, only=["noise"]).details["c"]["corruptions"]) == {"noise"}


def test_a_wrong_folder_is_one_clear_error(trained, digits, threat, folder, tmp_path):
    with pytest.raises(ComposerError, match="no corruption 'fog'"):
        judge(trained, digits, threat, folder, only=["fog"])
    labels = np.load(folder / "labels.npy")
    for wrong, words in ((np.roll(labels, 1), "not those of the images"), (labels[:-1], "not those of the images"), (labels[:500], "not those|of shape")):
        np.save(folder / "labels.npy", wrong)
        with pytest.raises(ComposerError, match=words):
            judge(trained, digits, threat, folder)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "noise.npy", np.zeros((1000, 8, 8, 3), "uint8"))
    with pytest.raises(ComposerError, match="of shape"):
        judge(trained, digits, threat, folder)
    np.save(folder / "noise.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ComposerError, match="cannot be read"):
        judge(trained, digits, threat, folder)
    with pytest.raises(ComposerError, match="labels.npy cannot be read"):
        judge(trained, digits, threat, folder / "none")
