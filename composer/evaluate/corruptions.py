"""Accuracy on a folder of corrupted test images, in the layout of CIFAR-10-C: one array of images a corruption, five severities in a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from composer.errors import ComposerError
from composer.evaluate.results import Measured
from composer.registry import measure
from composer.shapes import Images, Labels, Module, Tensor

LABELS, SEVERITIES = "labels.npy", 5


@measure(unit="share of corruptions")
def corruptions(model: Module, x: Images, y: Labels, batch_size: int, report: Any, *, folder: str, only: tuple[str, ...] = ()) -> Measured:
    """Share of corruptions and severities under which an image is answered correctly, averaged over images; each corruption's accuracy in the details.

    Image i of the test split is image i of every severity; the labels of the folder must say so. All images are judged, also those
    misclassified as they are. The number is the mean of the corruptions' accuracies.

    folder   holds <corruption>.npy, uint8 [S·N,H,W,C] with the S severities one after the other, and labels.npy, [S·N]
    only     the corruptions to take; all where empty

    Formula: mean_i mean_{c,s} [argmax_k f(x_i^{c,s})_k = y_i]   [share]
    Paper:   Hendrycks and Dietterich, ICLR 2019
    """
    from composer.evaluate.attack import correct_flags

    labels = _array(Path(folder) / LABELS)
    files = _files(Path(folder), only)
    total = len(labels) // SEVERITIES
    if len(labels) % SEVERITIES or len(y) > total or not (torch.from_numpy(labels[:len(y)].astype("int64")) == y.cpu()).all():
        raise ComposerError(f"the labels in {folder} are not those of the images judged", why=f"{len(labels)} labels for {SEVERITIES} severities, {len(y)} images judged",
                            fix="the folder of this data set, its test images in their order")
    hits, table = torch.zeros(len(y)), {}
    for done, file in enumerate(files, 1):
        found = torch.stack([correct_flags(model, _images(file, s * total, len(y), len(labels), x), y, batch_size) for s in range(SEVERITIES)]).double()
        hits += found.sum(0)
        table[file.stem] = {"mean": float(found.mean()), **{str(s + 1): float(found[s].mean()) for s in range(SEVERITIES)}}
        report(done, len(files), file.stem)
    return Measured(hits.float() / (SEVERITIES * len(files)), {}, {"corruptions": table, "error": {name: 1 - row["mean"] for name, row in table.items()}})


def _files(folder: Path, only: tuple[str, ...]) -> list[Path]:
    files = sorted(p for p in folder.glob("*.npy") if p.name != LABELS)
    known = [p.stem for p in files]
    if missing := [name for name in only if name not in known]:
        raise ComposerError(f"no corruption '{missing[0]}' in {folder}", fix=f"one of {', '.join(known)}" if known else "put <corruption>.npy there")
    if not files:
        raise ComposerError(f"no corrupted images in {folder}", fix=f"a folder with <corruption>.npy and {LABELS}, as CIFAR-10-C comes")
    return [p for p in files if p.stem in only] if only else files


def _array(path: Path) -> Any:
    import numpy

    try:
        return numpy.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ComposerError(f"{path} cannot be read", why=str(error), fix="an array as numpy saves it, without pickled objects") from None


def _images(file: Path, begin: int, n: int, total: int, like: Tensor) -> Tensor:
    """Float images [n,C,H,W] in [0,1], those of one severity."""
    array = _array(file)
    wanted = (total, *like.shape[2:], like.shape[1])
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype != "uint8" or tuple(array.shape) != wanted:
        raise ComposerError(f"{file} holds {array.dtype} of shape {tuple(array.shape)}", why=f"uint8 of shape {wanted} is needed")
    part = torch.from_numpy(array[begin:begin + n].copy()).to(like.device)
    return part.permute(0, 3, 1, 2).contiguous().to(like.dtype) / 255
