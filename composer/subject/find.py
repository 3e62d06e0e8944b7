"""Which of all the things a user may name is it?"""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from composer.errors import ComposerError
from composer.recipe.load import catalogue
from composer.subject import asked as words
from composer.subject.foreign import EXAMPLE, FUNCTION, example_file, from_function, from_library
from composer.subject.types import Asked, Bench, Subject

FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".tar", ".bin")


def subject(asked: Asked) -> tuple[Subject, Bench]:
    """The model that is meant and the bench it is judged on.

    Errors: ComposerError where nothing of that name is there, where the data or the network of a bare model are not named, where weights
    do not fit, and where the normalisation cannot be told.
    """
    catalogue()
    if asked.target == EXAMPLE:
        return _example(asked)
    library, colon, name = asked.target.partition(":")
    if colon and library in ("torchvision", "timm"):
        bench = _bench(asked)
        return from_library(asked, library, name, bench), bench
    if not (asked.model and Path(asked.target).is_file()):
        from composer.subject.own import from_run, locate, recipe_of

        own = locate(asked.target, asked.settings.out)
        if own is not None:
            bench = words.bench(recipe_of(own, asked), asked)
            return from_run(asked, own, bench), bench
    if Path(asked.target).is_file() and not FUNCTION.fullmatch(asked.target):
        return _file(asked)
    if FUNCTION.fullmatch(asked.target):
        bench = _bench(asked)
        return from_function(asked, bench), bench
    raise nothing(asked)


def _bench(asked: Asked) -> Bench:
    return words.bench(words.ground(asked), asked)


def _example(asked: Asked) -> tuple[Subject, Bench]:
    from composer.subject.files import from_file

    file = example_file()
    asked = replace(asked, data=asked.data or ("" if asked.setting else "cifar10"), model=asked.model or "resnet18", normalise=asked.normalise or "none")
    bench = _bench(asked)
    found = from_file(asked, file, bench, name=EXAMPLE, kind="example")
    found.notes[-1] = f"{found.notes[-1]} (its authors feed it pixels in [0,1]); trained without attacks on CIFAR-10"
    return found, bench


def _file(asked: Asked) -> tuple[Subject, Bench]:
    from composer.subject.files import from_file

    if not asked.model and not asked.setting:
        raise ComposerError(f"which network are the weights {asked.target} of?", where="command line", why="a file of tensors does not say",
                            fix="--model resnet18 (or preact_resnet18, wrn-34-10, torchvision:NAME, a table), or a --setting with its network")
    bench = _bench(asked)
    found = from_file(asked, Path(asked.target), bench)
    if not asked.model:
        found.notes.insert(0, f"the network is {bench.recipe.model.use}, as the setting {bench.recipe.setting} says")
    return found, bench


def nothing(asked: Asked) -> ComposerError:
    """Nothing of that name: what was looked for, and the nearest run."""
    folder = asked.settings.out / "experiments"
    runs = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    near = difflib.get_close_matches(asked.target, runs, n=1, cutoff=0.5)
    if asked.target.endswith(FILES):
        path = Path(asked.target)
        beside = sorted(p.name for p in path.parent.glob("*") if p.suffix in FILES) if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.5)
        return ComposerError(f"there is no file {asked.target}", why=f"looked in {path.parent.resolve()}" if path.parent.is_dir() else f"nor a folder {path.parent}",
                             fix=f"did you mean {path.parent / close[0]}?" if close else "name a file that is there")
    return ComposerError(f"'{asked.target}' is no run, no file of weights and no module:function", why=f"runs were looked for in {folder}",
                         fix=f"did you mean {near[0]}?" if near else "name a run of the store (--out), a file, module:function, torchvision:NAME, "
                         f"timm:NAME, or {EXAMPLE}")
