"""A look at a stranger's model before any attack: a few forward passes, and one plain sentence for everything that does not fit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from composer.errors import ComposerError
from composer.evaluate.guard import Judge, undisturbed
from composer.evaluate.memory import Fit
from composer.evaluate.trust import chance_limit
from composer.shapes import Tensor

IMAGES = 100                # looked at
BATCH = 50
SIGMAS = 3.0                # by which one reading of the pixels must beat another; several are tried
LEAST = 0.05                # share of images that it must gain
DEPENDS = 1e-3              # relative change of an answer when the rest of the batch changes; float32 kernels stay below 1e-5
BIJECTIVE = 0.5             # share of a class's answers on one other class that says: the classes stand in another order


@dataclass(frozen=True)
class Reading:
    """Another way to hand over the pixels: `apply` is tried on the images; where it wins, `reason` is why and `fix` what to do."""

    name: str
    apply: Callable[[Tensor], Tensor]
    reason: str
    fix: str


@dataclass
class Look:
    """What the passes showed. `doubts` mark every number of the model; a `wrong` one should not be attacked at all."""

    n: int = 0
    accuracy: float = float("nan")
    doubts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wrong: ComposerError | None = None


def look_at(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, classes: int, name: str, readings: Sequence[Reading] = ()) -> Look:
    """Look at the model with the first images (float, [0,1], on its device) and their labels.

    Errors: ComposerError where it cannot take the images, does not answer with [N, classes] logits, or none of them is finite.
    """
    x, y = x[:IMAGES], y[:IMAGES]
    found = Look(len(y))
    training = isinstance(model, torch.nn.Module) and model.training
    with undisturbed(model) as judge, torch.no_grad():
        logits = answers(judge, x, classes, name)
        if training:
            found.notes.append("the model came in train mode and is judged in eval mode")
        found.accuracy = share(logits, y)
        found.doubts += _batch_doubts(judge, x, logits) + _output_doubts(logits)
        found.wrong = _other_reading(judge, x, y, logits, readings, name) or _chance(logits, y, classes, name)
    return found


def answers(judge: Judge, x: Tensor, classes: int, name: str) -> Tensor:
    """[N, classes] logits. Errors: ComposerError in one sentence, with the cause that the shapes suggest."""
    try:
        with torch.no_grad():
            made = judge.model(x[:2].to(judge.dtype))
    except Exception as error:  # noqa: BLE001 (a stranger's forward may raise anything)
        raise _refused(error, x, name) from None
    if not isinstance(made, torch.Tensor) or made.ndim != 2 or len(made) != 2:
        kind = f"a tensor of shape {tuple(made.shape)}" if isinstance(made, torch.Tensor) else f"a {type(made).__name__}"
        raise ComposerError(f"{name} answers two images with {kind}", why="logits of shape [N, classes] are needed",
                            fix="return the logits alone, one row an image")
    if made.shape[1] != classes:
        raise ComposerError(f"{name} has {made.shape[1]} classes, the data have {classes}", why="its answers cannot be compared with these labels",
                            fix="name the data it was trained on: --data, or --setting")
    try:
        logits = torch.cat(Fit(BATCH).slices(len(x), lambda i, j: judge(x[i:j])))
    except Exception as error:  # noqa: BLE001 (two images went well, more do not)
        raise _refused(error, x, name) from None
    if not bool(logits.isfinite().any()):
        raise ComposerError(f"{name} answers every image with numbers that are not finite", why="its weights or its input scale are broken")
    return logits


def _refused(error: Exception, x: Tensor, name: str) -> ComposerError:
    """What its forward pass raised, in one line, with the likeliest remedy."""
    if isinstance(error, ComposerError):
        return error
    lines = str(error).strip().splitlines()
    shapes = isinstance(error, (RuntimeError, ValueError, AssertionError, TypeError, IndexError))
    fix = "name the data it was trained on: --data, or --setting"
    if lines and "device" in lines[0].lower():
        fix = "a tensor of it does not move with the model: register_buffer in place of a plain attribute"
    elif not shapes:
        fix = "its forward pass must run on a batch of images alone"
    why = lines[0] if lines and shapes else ": ".join([type(error).__name__, *lines[:1]])
    return ComposerError(f"{name} cannot take images of {'x'.join(map(str, x.shape[1:]))}", why=why, fix=fix)


def share(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(1) == y).double().mean())


def beats(one: Tensor, other: Tensor) -> bool:
    """More of the images are right in `one` ([N] bool) than in `other`, by SIGMAS deviations of the discordant count and LEAST of the images."""
    more, less = int((one & ~other).sum()), int((other & ~one).sum())
    return more - less > SIGMAS * (more + less) ** 0.5 and more - less > LEAST * len(one)


def rights(judge: Judge, x: Tensor, y: Tensor) -> Tensor:
    """[N] bool; a model that cannot take such pixels is right nowhere."""
    with contextlib.suppress(RuntimeError, ValueError):
        return torch.cat([judge(piece).argmax(1) for piece in x.split(BATCH)]) == y
    return torch.zeros_like(y, dtype=torch.bool)


def _other_reading(judge: Judge, x: Tensor, y: Tensor, logits: Tensor, readings: Sequence[Reading], name: str) -> ComposerError | None:
    plain = logits.argmax(1) == y
    if not readings or not beats(torch.ones_like(plain), plain):
        return None                                                    # too few mistakes for anything to be better
    tried = [(int(right.sum()), reading, right) for reading in readings for right in [rights(judge, reading.apply(x), y)]]
    best = max(tried, key=lambda row: row[0])
    if not beats(best[2], plain):
        return None
    return ComposerError(f"{name} is right on {int(plain.sum())} of {len(y)} images as it is given them, and on {best[0]} {best[1].name}",
                         why=best[1].reason, fix=best[1].fix)


def _batch_doubts(judge: Judge, x: Tensor, logits: Tensor) -> list[str]:
    """Each of four images alone, and beside another image."""
    found = []
    stuck = [name for name, m in judge.module.named_modules() if m.training] if judge.module is not None else []
    if stuck:
        found.append(f"modules stay in train mode when the model is put into eval mode: {', '.join(n or 'the model' for n in stuck[:3])}")
    again = judge(x[:BATCH]) - logits[:BATCH]
    if bool((again.norm(dim=1) > DEPENDS * logits[:BATCH].norm(dim=1)).any()):
        return found                                                   # it answers at random: the trust checks say so
    if any(_changes(judge, x[i:i + 1], logits[i]) for i in range(0, min(8, len(x)), 2)):
        found.append("the answer to an image changes with the other images of its batch: batch norm in train mode, or without running statistics")
    return found


def _changes(judge: Judge, image: Tensor, beside: Tensor) -> bool:
    """The answer to the image alone is another one than beside others; batch norm in train mode may refuse a single image."""
    with contextlib.suppress(RuntimeError, ValueError):
        return float((judge(image)[0] - beside).norm()) > DEPENDS * float(beside.norm()) + 1e-10
    return True


def _output_doubts(logits: Tensor) -> list[str]:
    finite = bool(logits.isfinite().all())
    simplex = bool((logits.min() > -1e-5) & (logits.max() < 1 + 1e-5) & ((logits.sum(1) - 1).abs() < 1e-4).all())
    found = ["the outputs are probabilities, not logits: return what the softmax is taken of"] if simplex else []
    return found + ([] if finite else ["some logits are not finite; such images count as misclassified"])


def _chance(logits: Tensor, y: Tensor, classes: int, name: str) -> ComposerError | None:
    """Accuracy that guessing explains, with the likeliest reason."""
    accuracy, limit = share(logits, y), chance_limit(classes, len(y))
    if accuracy > limit:
        return None
    said = logits.argmax(1)
    counts = said.bincount(minlength=classes)
    if int(counts.max()) >= 0.9 * len(y):
        why = f"it answers class {int(counts.argmax())} nearly always: weights that were not trained, or pixels on another scale"
    elif _reordered(said, y, classes):
        why = "each class is answered with another one, consistently: its classes stand in another order"
    else:
        why = "its answers have nothing to do with the labels: weights that were not loaded, other data, or a normalisation that is not known here"
    return ComposerError(f"{name} is right on {int((said == y).sum())} of {len(y)} images, which is chance for {classes} classes", why=why,
                         fix="check the weights, --data and --normalise; --no-probe judges it all the same")


def _reordered(said: Tensor, y: Tensor, classes: int) -> bool:
    table = torch.zeros(classes, classes, dtype=torch.long)
    table.index_put_((y.cpu(), said.cpu()), torch.ones(len(y), dtype=torch.long), accumulate=True)
    seen = table.sum(1) > 1
    best, where = table[seen].max(1)
    apart = len(set(where.tolist())) == len(where)
    return int(seen.sum()) > 1 and apart and float(best.sum()) >= BIJECTIVE * float(table[seen].sum())

