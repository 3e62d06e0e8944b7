"""Phases: named edits that act on an interval of epochs. Each gives `{"set": {}, "drop": [], "put": {}}` over paths of the recipe."""

from __future__ import annotations

from typing import Any

from composer.registry import phase


@phase
def burn_in(terms: tuple[str, ...], inner: tuple[str, ...], soft: bool = False) -> dict[str, Any]:
    """Plain training on clean images: every term and inner maximum of the recipe is dropped, one clean cross entropy put instead.

    Its one pass writes the running statistics once, however often the recipe's own passes over clean images do. Under an augmentation that makes
    soft labels (`soft`) it is their cross entropy.

    Formula: mean_i -log p_{y_i}(x_i)   [nats]
    Paper:   PIAT (the first 10 epochs); DyART, Xu et al., ICLR 2023 (10 epochs ahead of the run)
    """
    return {"set": {"outer.updates": ["x"], "outer.after": []}, "drop": [*(f"terms.{id}" for id in terms), *(f"inner.{id}" for id in inner)],
            "put": {"terms.clean_ce": {"use": "soft_ce" if soft else "ce", "at": "clean"}}}


@phase
def half_radius(inner: tuple[str, ...]) -> dict[str, Any]:
    """Half the threat's radius for every inner maximum over images; perturbations of the weights keep theirs.

    Formula: eps_inner = eps_threat / 2   [pixels]
    Paper:   MWPB: 4/255 in the first epochs, per-example radii afterwards
    """
    return {"set": {f"inner.{id}.eps": "threat/2" for id in inner if id.startswith("x_")}, "drop": [], "put": {}}
