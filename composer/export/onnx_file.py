"""ONNX: the model with its normalisation inside, for any number of images, checked against PyTorch's own answers."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import torch

from composer import atomic
from composer.errors import ComposerError
from composer.export.card import name_of
from composer.subject.types import Bench, Subject

CLOSE = 1e-3                # largest difference of a logit that rounding explains


def need_onnx() -> None:
    """Errors: ComposerError where the packages are absent."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ComposerError(f"ONNX needs the package{'s' if len(missing) > 1 else ''} {' and '.join(missing)}, not installed here", where="--to onnx",
                            fix=f"pip install {' '.join(missing)}")


def write_onnx(subject: Subject, bench: Bench, folder: Path) -> Path:
    """<name>.onnx: input `images` [N,C,H,W] in [0,1], output `logits` [N,K], N free. Errors: ComposerError where PyTorch cannot write the network,
    or what it wrote gives other logits."""
    need_onnx()
    import onnx

    model = subject.model
    assert isinstance(model, torch.nn.Module)
    images = bench.x[:2].clone()
    file = folder / f"{name_of(subject)}.onnx"

    def write(beside: Path) -> None:
        batch = torch.export.Dim("batch", min=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(model, (images,), dynamo=True, input_names=["images"], output_names=["logits"],
                                        dynamic_shapes=({0: batch},), verbose=False)
        assert program is not None
        onnx.save_model(program.model_proto, str(beside))

    try:
        atomic.replace_with(file, write)
    except (RuntimeError, TypeError, torch.onnx.OnnxExporterError) as error:
        raise ComposerError(f"{subject.name} cannot be written as ONNX", why=str(error).strip().splitlines()[0]) from None
    agree(file, model, bench.x[:3])
    return file


def agree(file: Path, model: torch.nn.Module, images: torch.Tensor) -> None:
    """The file is well formed, and its logits are PyTorch's, also for another number of images than it was traced with."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    onnx.checker.check_model(str(file))
    with torch.no_grad():
        expected = model(images)
    (found,) = ReferenceEvaluator(str(file)).run(None, {"images": images.numpy()})
    off = float((torch.from_numpy(found) - expected).abs().max())
    if not off <= CLOSE * max(1.0, float(expected.abs().max())):
        file.unlink()
        raise ComposerError(f"{file.name} gave other logits than PyTorch", why=f"they differ by up to {off:.3g}; the file was removed")
