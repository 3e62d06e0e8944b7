"""The verbs on any model: evaluate, compare, export. Added to the command line's app."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from composer.cli_run import DataRoot, Json, Out, Plugins, Setting

Target = Annotated[str, typer.Argument(help="A run (name or folder), a checkpoint, a file of weights (with --model), module:function, torchvision:NAME, "
                                            "timm:NAME, or pyautoattack-example.")]
Model = Annotated[str, typer.Option("--model", help="Network of a file of weights: resnet18, wrn-34-10, torchvision:NAME, or a table { use = … }.")]
Normalise = Annotated[str, typer.Option("--normalise", help="none, inside, cifar10, imagenet, data, …, or mean=..,std=… Left out: found, or asked for.")]
Data = Annotated[str, typer.Option("--data", help="What it is judged on: digits, mnist, fashion_mnist, cifar10, cifar100, svhn, tinyimagenet.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="path=value: evaluate.…, threat.…, data.…, model.…. Repeatable.")]
Protocol = Annotated[str, typer.Option("--protocol", help="A table of recipes/protocols.toml: quick, cheap, standard, …")]
Eps = Annotated[str, typer.Option("--eps", help="Radius of the threat: 0.1 or 8/255.")]
Norm = Annotated[str, typer.Option("--norm", help="linf, l2 or l1.")]
Number = Annotated[int | None, typer.Option("--n", help="Images that every measure sees at most.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of the attacks' noise; of a run, the run's own.")]
Batch = Annotated[int | None, typer.Option("--batch-size", help="Images attacked at once.")]
NoProbe = Annotated[bool, typer.Option("--no-probe", help="Judge it although the probe sees a reason not to; it is noted.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch missing data or weights.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


def evaluate(
    target: Target, model: Model = "", normalise: Normalise = "", data: Data = "", setting: Setting = None, protocol: Protocol = "", set_: Sets = None,
    eps: Eps = "", norm: Norm = "", n: Number = None, seed: Seed = None, batch_size: Batch = None, plugin: Plugins = None, data_root: DataRoot = Path("data"),
    download: Download = False, device: Device = "auto", out: Out = Path("runs"), no_probe: NoProbe = False,
    export: Annotated[Path | None, typer.Option("--export", help="One row an image: FILE.npz or FILE.parquet.")] = None,
    as_json: Json = False, quiet: Quiet = False,
) -> None:
    """Judge any PyTorch classifier by a protocol: accuracy under attacks, the worst case, and reasons not to believe the numbers."""
    from composer.cli import plugins
    from composer.subject.door import evaluate as judge

    plugins(plugin)
    asked = _asked(target, model, normalise, data, setting, protocol, set_, eps, norm, n, seed, batch_size, no_probe, out, data_root, download, device, quiet)
    result = judge(asked, say=lambda line: print(line, file=sys.stderr), export=export)
    if as_json:
        print(json.dumps(_plain(result), ensure_ascii=False))
        return
    from composer.report.table import print_result

    print_result(result)


def compare(
    a: Annotated[str, typer.Argument(help="An evaluated model by the name it was evaluated under, or an export (.npz, .parquet).")],
    b: Annotated[str, typer.Argument(help="The other one.")],
    protocol: Protocol = "", out: Out = Path("runs"), as_json: Json = False,
) -> None:
    """Two evaluated models on the same images: McNemar and a paired bootstrap, by attack and by the worst case. Nothing is attacked."""
    from composer.compare import compare as both
    from composer.compare import text

    result = both(a, b, out, protocol)
    print(json.dumps(_plain(result), ensure_ascii=False) if as_json else text(result))


def export(
    target: Target, to: Annotated[str, typer.Option("--to", help="With commas: safetensors, onnx, robustbench.")] = "safetensors",
    folder: Annotated[Path, typer.Option("--folder", help="Where the files go.")] = Path("export"),
    model: Model = "", normalise: Normalise = "", data: Data = "", setting: Setting = None, set_: Sets = None, plugin: Plugins = None,
    data_root: DataRoot = Path("data"), download: Download = False, out: Out = Path("runs"), no_probe: NoProbe = False, as_json: Json = False,
) -> None:
    """Hand a model on: safetensors with a JSON card, ONNX, or files for a RobustBench submission; its evaluations go along."""
    from composer.cli import plugins
    from composer.export import export as write

    plugins(plugin)
    asked = _asked(target, model, normalise, data, setting, "", set_, "", "", None, None, None, no_probe, out, data_root, download, "cpu", True)
    result = write(asked, [kind.strip() for kind in to.split(",") if kind.strip()], folder)
    print(json.dumps(_plain(result), ensure_ascii=False) if as_json else "\n".join(result["files"]))


def add_to(app: typer.Typer) -> None:
    """Put these verbs on the app."""
    for verb in (evaluate, compare, export):
        app.command()(verb)


def _asked(target: str, model: str, normalise: str, data: str, setting: str | None, protocol: str, sets: list[str] | None, eps: str, norm: str,
           n: int | None, seed: int | None, batch_size: int | None, no_probe: bool, out: Path, data_root: Path, download: bool, device: str,
           quiet: bool) -> Any:
    from composer.engine.session import Settings
    from composer.subject.types import Asked

    settings = Settings(out=out, data_root=data_root, download=download, device=device, quiet=quiet)
    return Asked(target, model, normalise, data, setting, tuple(sets or ()), protocol, eps, norm, n, seed, batch_size, not no_probe, settings)


def _plain(result: dict[str, Any]) -> Any:
    from composer import atomic

    return atomic.plain(result)
