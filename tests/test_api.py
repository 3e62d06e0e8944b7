"""The Python door."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import composer
from composer.errors import ComposerError, Errors


def test_build_binds_options() -> None:
    huber = composer.build("loss", "modified_huber", alpha=1.345)
    a, b = torch.zeros(2, 3), torch.full((2, 3), 100.0)
    expected = 1.345 * 100 + (1 - torch.pi / 2) * 1.345**2
    assert torch.allclose(huber(a, b), torch.full((2,), expected))


def test_build_names_a_wrong_option() -> None:
    with pytest.raises(ComposerError, match="alpha"):
        composer.build("loss", "modified_huber", alpha=-1.0)
    with pytest.raises(ComposerError, match="modified_huber"):
        composer.build("loss", "modified_hubr")


def test_a_part_is_built() -> None:
    assert composer.build("part", "logit_ema", decay=0.5).decay == 0.5


def test_load_edit_check_show() -> None:
    recipe = composer.load("mart_ours", setting="digits")
    composer.check(recipe)
    milder = recipe.without("margin").edit(set={"terms.kl.weight": 2.0})
    assert milder.experiment_id != recipe.experiment_id
    assert "terms.margin" not in composer.show(milder)
    with pytest.raises(Errors):
        recipe.edit(set={"terms.nothing": 1})


def test_run_is_a_dict_and_resumes(tmp_path: Path) -> None:
    recipe = composer.load("standard", sets=["train.epochs=1", "evaluate.use=cheap", "evaluate.n=32"])
    result = composer.run(recipe, seed=1, out=tmp_path, quiet=True, track=False)
    assert result["seed"] == 1 and result["epochs"] == 1
    assert composer.run(recipe, seed=1, out=tmp_path, quiet=True, track=False) == result


def test_rooms_that_share_a_name_are_still_decorators() -> None:
    import composer.data
    import composer.inner
    import composer.optim

    assert callable(composer.data) and callable(composer.inner) and callable(composer.optim)
