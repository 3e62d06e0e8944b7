"""From the words of the command line to a recipe that says what is judged, on what, by what."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from composer.data.sets import load as load_data
from composer.errors import ComposerError, Errors, suggest
from composer.recipe.load import load
from composer.recipe.types import MeasureSpec
from composer.registry import REGISTRY
from composer.subject.types import Asked, Bench

BENCHES = {"digits": "digits", "mnist": "mnist-mlp", "fashion_mnist": "mnist-mlp", "cifar10": "cifar10-resnet18", "cifar100": "cifar100-resnet18",
           "svhn": "svhn-resnet18", "tinyimagenet": "tinyimagenet-resnet18"}
GROUND = "standard.toml"                        # the method plays no part: it only carries data, threat and protocol
WRN = re.compile(r"wrn-(\d+)-(\d+)")


Said = tuple[str, str]                          # a flag of the command line, and the setting it means


def judging(asked: Asked) -> list[Said]:
    """--protocol, --eps, --norm and --set as settings, in that order."""
    said = [(f"--protocol {asked.protocol}", f'evaluate.use="{asked.protocol}"')] if asked.protocol else []
    said += [(f"--eps {asked.eps}", f"threat.eps={_value(asked.eps)}")] if asked.eps else []
    said += [(f"--norm {asked.norm}", f'threat.norm="{asked.norm}"')] if asked.norm else []
    return [*said, *((f"--set #{number}", text) for number, text in enumerate(asked.sets, 1))]


def read(recipe: str | Path, said: Sequence[Said], **more: Any) -> Any:
    """The recipe with the settings; what is wrong with one is told of the flag that was typed. Errors: as composer.recipe.load.load."""
    try:
        return load(recipe, sets=[text for _, text in said], **more)
    except ComposerError as error:
        raise Errors(_of_flag(each, said) for each in error.all) from None


def _of_flag(error: ComposerError, said: Sequence[Said]) -> ComposerError:
    found = re.match(r"--set #(\d+)\b", error.where)
    if found is None:
        return error
    flag = said[int(found[1]) - 1][0]
    return ComposerError(error.what, where=flag + error.where[found.end():], why=error.why, fix=error.fix)


def _value(text: str) -> str:
    return text if re.fullmatch(r"[-+.\deE]+", text) else f'"{text}"'


def ground(asked: Asked) -> Any:
    """The recipe that a bare model is judged by: a setting's data, threat and protocol. Errors: ComposerError where no data are named."""
    said = [(f"--model {asked.model}", f"model={model_table(asked.model)}")] if asked.model else []
    setting = asked.setting
    if not setting:
        if not asked.data:
            raise ComposerError(f"on which images is {asked.target} judged?", where="command line", why="a bare model does not say what it was trained on",
                                fix=f"--data {', '.join(BENCHES)}; or --setting FILE")
        if asked.data not in BENCHES:
            known = REGISTRY.names("data")
            raise ComposerError(f"--data {asked.data}", where="command line", why="there is no bench for it: threat and protocol are not known",
                                fix=f"--setting FILE with [data] use = \"{asked.data}\"" if asked.data in known else suggest(asked.data, BENCHES, "data sets"))
        setting = BENCHES[asked.data]
    if asked.data and (asked.setting or asked.data == "fashion_mnist"):
        said.append((f"--data {asked.data}", f'data={{ use = "{asked.data}" }}'))
    return read(GROUND, [*said, *judging(asked)], setting=setting)


def model_table(text: str) -> str:
    """--model as TOML: `resnet18`, `wrn-34-10`, `torchvision:resnet50`, or a table as a recipe has it."""
    if text.lstrip().startswith("{"):
        try:
            tomllib.loads(f"model = {text}")
        except tomllib.TOMLDecodeError as error:
            raise ComposerError(f"--model {text}", where="command line", why=f"this is no table: {error}", fix='--model \'{ use = "wrn", depth = 34, width = 10 }\'') from None
        return text
    if found := WRN.fullmatch(text):
        depth = int(found[1])
        rule = "6n+4" if (depth - 4) % 6 == 0 else "6n+2"
        return f'{{ use = "wrn", depth = {depth}, width = {found[2]}, depth_rule = "{rule}" }}'
    library, colon, name = text.partition(":")
    return f'{{ use = "{library}", name = "{name}" }}' if colon else f'{{ use = "{text}" }}'


def measures(recipe: Any, n: int | None, images: int | None = None) -> list[MeasureSpec]:
    """The protocol's; `n` caps what each sees. Errors: ComposerError for none, and for more than the `images` there are."""
    if n is not None and n < 1:
        raise ComposerError(f"--n {n}", where="command line", why="nothing would be measured", fix="at least one image")
    if n is not None and images is not None and n > images:
        raise ComposerError(f"--n {n}", where="command line", why=f"there are {images:,} test images", fix=f"--n {images}, or leave it out")
    return [replace(m, n=min(m.n or n, n)) if n else m for m in recipe.evaluate.measures]


def bench(recipe: Any, asked: Asked) -> Bench:
    """Its test images as floats on the CPU, which the measures move to the model's device."""
    dataset = load_data(recipe.data.use, recipe.data.options, asked.settings.data_root, asked.settings.download)
    return Bench(recipe, dataset, dataset.test.x.float() / dataset.scale, dataset.test.y)


def batch_of(model: nn.Module, asked: Asked) -> int:
    """Images judged at once, as runs have it: the cut into batches is part of what AutoAttack's numbers depend on."""
    if asked.batch_size is not None:
        if asked.batch_size < 1:
            raise ComposerError(f"--batch-size {asked.batch_size}", where="command line", why="no image would be attacked", fix="at least 1")
        return asked.batch_size
    return 1000 if sum(p.numel() for p in model.parameters()) < 2_000_000 else 250


def settled(model: nn.Module, device: torch.device) -> nn.Module:
    """float32, contiguous, in eval mode."""
    return model.float().to(device, memory_format=torch.contiguous_format).eval()

