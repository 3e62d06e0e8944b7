"""Models that are code of somebody's: a function named on the command line, a network of a library."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from composer.engine.checkpoint import weights_digest
from composer.engine.session import pick_device
from composer.errors import ComposerError
from composer.evaluate.store import digest
from composer.subject.asked import settled
from composer.subject.files import behind
from composer.subject.normalise import Normalisation, parse
from composer.subject.types import Asked, Bench, Subject

FUNCTION = re.compile(r"(?P<module>[A-Za-z_][\w.]*|[^:]+\.py):(?P<name>[A-Za-z_][\w.]*)")
EXAMPLE = "pyautoattack-example"


def from_function(asked: Asked, bench: Bench) -> Subject:
    """`module:function` or `file.py:function`, called without arguments, gives the module; a module itself may be named too.

    Importing runs the file: it happens because the user named it.
    Errors: ComposerError where it cannot be imported, or gives something else.
    """
    model, files = import_model(asked.target)
    _check_tensors(model, asked.target)
    chosen = parse(asked.normalise, bench.dataset) if asked.normalise else Normalisation("inside the model, or none: the function's business")
    notes = [f"{asked.target} gave a {type(model).__name__} with {sum(p.numel() for p in model.parameters()):,} parameters"]
    if model.training:
        notes.append("the model came in train mode and is judged in eval mode")
    return _subject(asked, "function", model, chosen, notes, _code(model, files))


def from_library(asked: Asked, library: str, name: str, bench: Bench) -> Subject:
    """A network of torchvision or timm with the library's own weights."""
    from composer.subject.library import pretrained

    model, own, notes = pretrained(library, name, asked.settings.download)
    if asked.normalise and asked.normalise != "inside":
        own = parse(asked.normalise, bench.dataset)
        notes[-1] = f"normalisation: {own.text}"
    if notes and bench.dataset.shape[1] < 64:
        notes.append(f"these images are {bench.dataset.shape[1]} pixels wide: far from what it was trained on")
    return _subject(asked, library, model, own, notes, [library, name, _version(library)])


def _subject(asked: Asked, kind: str, model: nn.Module, chosen: Normalisation, notes: list[str], code: list[Any]) -> Subject:
    weights = {k: v.detach().cpu() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    judged = settled(behind(model, chosen), pick_device(asked.settings.device))
    about = {"weights": weights_digest(weights), "code": code, "mean": chosen.mean, "std": chosen.std}
    return Subject(asked.target, kind, judged, digest(about), weights, chosen.text, chosen.mean, chosen.std, seed=asked.seed or 0, notes=notes,
                   built=asked.target)


def _check_tensors(model: nn.Module, name: str) -> None:
    """Weights that hold no numbers cannot be judged, nor put onto a device."""
    for key, value in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(value) or value.is_meta:
            raise ComposerError(f"{name} gave a model whose '{key}' holds no numbers", why="it lies on the device meta, or its shape waits for a first image",
                                fix="build it on the CPU with all shapes, and load its weights in the function")


# -- import ------------------------------------------------------------------------------------------------------------------------


def import_model(target: str) -> tuple[nn.Module, list[Path]]:
    """The module a `module:function` gives, and the files whose code it is."""
    found = FUNCTION.fullmatch(target)
    if found is None:
        raise ComposerError(f"'{target}' names no function", fix="write module:function, or file.py:function")
    module = _module(found["module"], target)
    made: Any = module
    for part in found["name"].split("."):
        if not hasattr(made, part):
            names = [k for k, v in vars(module).items() if not k.startswith("_") and (callable(v) or isinstance(v, nn.Module))]
            raise ComposerError(f"{found['module']} has no '{part}'", where=target, fix=f"one of {', '.join(names[:12])}" if names else "")
        made = getattr(made, part)
    if not isinstance(made, nn.Module):
        made = _call(made, target)
    return made, [Path(module.__file__)] if module.__file__ else []


def _module(name: str, target: str) -> ModuleType:
    """Imported as Python would from the working folder."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        path = Path(name).resolve()
        if not path.is_file():
            raise ComposerError(f"there is no file {name}", where=target)
        spec = importlib.util.spec_from_file_location(f"composer_subject_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    except ComposerError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a stranger's file may raise anything, and a script may end itself)
        absent = isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}.")
        raise ComposerError(f"{name} cannot be imported", where=target, why=said(error),
                            fix="run from the folder it lies in, or name the file: path/to/file.py:function" if absent else "mend the file, or what it imports") from None
    finally:
        if added:
            sys.path.remove(here)


def said(error: BaseException) -> str:
    """The error of somebody's code in one line."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _call(function: Any, target: str) -> nn.Module:
    if not callable(function):
        raise ComposerError(f"{target} is a {type(function).__name__}", why="a function that returns a torch.nn.Module is needed, or the module itself")
    try:
        made = function()
    except (Exception, SystemExit) as error:  # noqa: BLE001
        raise ComposerError(f"{target} failed when it was called without arguments", why=said(error),
                            fix="name a function that needs none and returns the module") from None
    if not isinstance(made, nn.Module):
        raise ComposerError(f"{target} gave a {type(made).__name__}", why="a torch.nn.Module is needed", fix="return the module itself")
    return made


def _code(model: nn.Module, files: list[Path]) -> list[Any]:
    """The sources that define the model, so that stored results are of this very code."""
    for kind in {type(m) for m in model.modules()}:
        if not kind.__module__.startswith("torch."):
            try:
                files = [*files, Path(inspect.getfile(kind))]
            except (TypeError, OSError):
                continue
    return [repr(type(model).__qualname__), *sorted(hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in set(files) if p.is_file())]


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def example_file() -> Path:
    """The weights of the ResNet-18 that pyautoattack ships: CIFAR-10, normal training, pixels in [0,1]."""
    spec = importlib.util.find_spec("pyautoattack")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = next((Path(p) / "examples" / "model_test.pt" for p in places if (Path(p) / "examples" / "model_test.pt").is_file()), None)
    if found is None:
        raise ComposerError(EXAMPLE, why="the package pyautoattack, which brings the weights, is not installed", fix="pip install 'pyautoattack>=0.2,<0.3'")
    return found
