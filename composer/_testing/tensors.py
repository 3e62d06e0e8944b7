"""Every root and view by name, consistent with each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from composer._testing.linear import Linear, linear_model

EPS = 8 / 255
VIEWS = ("logits", "probs", "logp", "features")
ALIASES = {"target_logits": "clean_logits", "target_probs": "clean_probs", "target_logp": "clean_logp", "a": "adv_logits", "b": "clean_logits"}


def tensors(n: int = 8, classes: int = 10, seed: int = 0, dtype: torch.dtype | None = None, shape: tuple[int, ...] = (3, 8, 8)) -> dict[str, Any]:
    """Roots and views of a made-up batch on a linear model: x, x_adv, y, y_soft, i, model, head_weight, head_scale, eps; for the points
    clean and adv `T_logits T_probs T_logp T_features`; plain names mean adv; target_…, a, b as a recipe has them unless rebound.

    Pixels stay at least 0.1 away from 0 and 1. Rows with an even index are classified correctly on x, the others are not. Nothing
    requires a gradient.
    """
    dtype = dtype or torch.get_default_dtype()
    generator = torch.Generator().manual_seed(seed)
    model = linear_model(classes, shape, seed, dtype)
    x = (0.2 + 0.6 * torch.rand(n, *shape, generator=generator, dtype=torch.float64)).to(dtype)
    noise = torch.rand(n, *shape, generator=generator, dtype=torch.float64).to(dtype)
    wrong = torch.randint(1, classes, (n,), generator=generator)
    with torch.no_grad():
        y = (model(x).argmax(1) + wrong * (torch.arange(n) % 2)) % classes
        soft = 0.7 * torch.nn.functional.one_hot(y, classes).to(dtype) + 0.3 / classes
        t: dict[str, Any] = {"x": x, "x_adv": x + EPS * (2 * noise - 1), "y": y, "y_soft": soft, "model": model, "eps": EPS,
                             "i": torch.randperm(10 * n, generator=generator)[:n]}
        t |= head_roots(model)
        t |= {f"{point}_{name}": value for point in ("clean", "adv") for name, value in views(model, t["x" if point == "clean" else "x_adv"]).items()}
    return with_aliases({key: value.detach() if isinstance(value, Tensor) else value for key, value in t.items()})


def head_roots(model: Linear) -> dict[str, Any]:
    return {"head_weight": model.head.weight, "head_scale": torch.ones((), dtype=model.head.weight.dtype)}


def views(model: Linear, x: Tensor) -> dict[str, Tensor]:
    return from_logits(model(x)) | {"features": model.embed(x)}


def from_logits(logits: Tensor) -> dict[str, Tensor]:
    return {"logits": logits, "probs": logits.softmax(1), "logp": logits.log_softmax(1)}


def with_aliases(t: dict[str, Any]) -> dict[str, Any]:
    """Plain names follow adv; targets and the two sides of a two-sided loss as a recipe binds them by itself."""
    plain = {name: t[f"adv_{name}"] for name in VIEWS}
    return t | plain | {name: t[of] for name, of in ALIASES.items()}
