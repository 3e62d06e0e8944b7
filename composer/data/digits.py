"""Handwritten digits that ship inside scikit-learn: no download, no files."""

from __future__ import annotations

from pathlib import Path

import torch

from composer.data.sets import DataSet, Split, data_set, shares, take_per_class
from composer.registry import data

TEST = 360      # images of the test split; 1,437 train


@data(test=TEST)
def digits(root: Path, download: bool) -> DataSet:
    """8x8 grey digits, 1,437 train and 360 test images in a fixed stratified split; `root` and `download` are not used.

    Formula: pixel = level / 16, levels 0..16   [in [0,1]]
    Paper:   UCI ML Repository, Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998), as in sklearn.datasets.load_digits
    """
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images.astype(np.uint8))[:, None]
    y = torch.from_numpy(bunch.target.astype(np.int64))
    # RandomState's stream is frozen for all versions of NumPy, so the split is the same everywhere
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(y)))
    test = take_per_class(y, order, shares(torch.bincount(y).tolist(), TEST))
    return data_set("digits", Split(x[~test], y[~test]), Split(x[test], y[test]), 10, scale=16.0)
