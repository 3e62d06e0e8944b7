"""The verb bench: one look at a time, by its flag; without one, the engine's steps beside plain PyTorch loops."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer

from composer.cli_run import DataRoot, Json, Sets, Setting
from composer.errors import ComposerError

Tell = Callable[[str], None]
ROUNDS = 7               # of an interleaved timing, where nothing is said; AutoAttack takes minutes a round and has its own


def bench(recipes: Annotated[list[str] | None, typer.Argument(help="With --backends or --reference: recipes by name.")] = None,
          backends: Annotated[bool, typer.Option("--backends", help="Hold every backend against eager: gradients, losses, statistics. 1 where one disagrees.")] = False,
          reference: Annotated[bool, typer.Option("--reference", help="Times beside the authors' loops, with the gates.")] = False,
          methods: Annotated[bool, typer.Option("--methods", help="What each method costs over its base, held against the passes it adds.")] = False,
          pack: Annotated[bool, typer.Option("--pack", help="Seeds of small networks trained together, beside one after the other.")] = False,
          attacks: Annotated[bool, typer.Option("--attacks", help="AutoAttack, exact and fast, beside a direct call of the library, on three models.")] = False,
          selection: Annotated[bool, typer.Option("--selection", help="What validation costs, as a share of an epoch.")] = False,
          precision_gate: Annotated[str, typer.Option(help="A recipe: its robust accuracy at --precision against fp32, set against seed noise.")] = "",
          gpu: Annotated[bool, typer.Option("--gpu", help="On the CUDA device, with seconds per epoch at fp32, tf32, bf16.")] = False,
          full: Annotated[bool, typer.Option("--full", help="More methods and networks; with --attacks whole budgets: hours.")] = False,
          backend: Annotated[list[str] | None, typer.Option("--backend", help="With --backends or --reference: this one alone. Repeatable.")] = None,
          net: Annotated[str, typer.Option(help="With --backends and --methods: small_cnn, cnn8, cnn28 or resnet18.")] = "small_cnn",
          models: Annotated[str, typer.Option(help="With --attacks: digits, cifar10-tiny, pyautoattack-example; with commas.")] = "",
          rounds: Annotated[int | None, typer.Option(help="Interleaved rounds: 7, with --attacks 3 to 5.", show_default=False)] = None,
          threads: Annotated[int, typer.Option(help="Threads of PyTorch; on a shared machine more than one is noisy.")] = 1,
          precision: Annotated[str, typer.Option(help="With --precision-gate: bf16, bf16-attack or tf32.")] = "bf16",
          seeds: Annotated[int, typer.Option(help="With --precision-gate: pairs of runs.")] = 5,
          epochs: Annotated[int, typer.Option(help="With --precision-gate: of each run; 0: a tenth of the recipe's.")] = 0,
          setting: Setting = None, set_: Sets = None, data_root: DataRoot = Path("data"),
          out: Annotated[Path, typer.Option("--out", help="With --attacks and --precision-gate: where models and records lie.")] = Path("runs/bench"),
          device: Annotated[str, typer.Option(help="With --backends and --precision-gate: auto, cpu, cuda.")] = "auto",
          as_json: Json = False) -> None:
    """Passes, time and peak memory of training steps beside faithful and hand-pruned plain PyTorch loops; and other measurements, each by its flag."""
    asked = SimpleNamespace(**locals(), every=ROUNDS if rounds is None else rounds)
    looks: dict[str, Callable[[Any, Tell], tuple[Any, int]]] = {
        "backends": _backends, "reference": _reference, "methods": _methods, "pack": _pack, "attacks": _attacks, "selection": _selection,
        "precision_gate": _gate}
    wanted = [name for name in looks if getattr(asked, name)]
    if len(wanted) > 1:
        raise ComposerError("one measurement at a time", where=" ".join("--" + name.replace("_", "-") for name in wanted), fix="leave one")
    stream = sys.stderr if as_json else sys.stdout
    found, code = (looks[wanted[0]] if wanted else _steps)(asked, lambda line: print(line, file=stream, flush=True))
    if as_json:
        from composer.cli import say

        say(found, True, "")
    if code:
        raise typer.Exit(code)


def _steps(asked: Any, tell: Tell) -> tuple[Any, int]:
    from composer.bench.run import bench as measure

    return measure(full=asked.full, gpu=asked.gpu, rounds=asked.every, threads=asked.threads, say=tell), 0


def _backends(asked: Any, tell: Tell) -> tuple[Any, int]:
    from composer.bench.backends import RECIPES, check
    from composer.engine.session import pick_device

    found = check(asked.recipes or RECIPES, names=asked.backend or [], net_name=asked.net, device=pick_device(asked.device), say=tell)
    return found, 0 if found["ok"] else 1


def _reference(asked: Any, tell: Tell) -> tuple[Any, int]:
    from composer.bench.gates import gates, passed

    found = gates(asked.recipes or [], names=asked.backend or [], rounds=asked.every, threads=asked.threads, say=tell)
    return found, 0 if passed(found) else 1


def _methods(asked: Any, tell: Tell) -> tuple[Any, int]:
    from composer.bench.methods import BATCHES, overheads

    if asked.net not in BATCHES:
        raise ComposerError(f"--net {asked.net}", fix="one of " + ", ".join(BATCHES))
    return overheads(net=asked.net, batch=BATCHES[asked.net], rounds=asked.every, threads=asked.threads, say=tell), 0


def _pack(asked: Any, tell: Tell) -> tuple[Any, int]:
    from composer.bench.pack import bench_packs

    return bench_packs(rounds=asked.every, threads=asked.threads, device="cuda" if asked.gpu else "cpu", say=tell), 0


def _attacks(asked: Any, tell: Tell) -> tuple[Any, int]:
    """3 where flags or forwards are not as they must be."""
    from composer.bench.attacks import NAMES, bench_attacks, holds

    names = tuple(asked.models.split(",")) if asked.models else NAMES
    found = bench_attacks(names, out=asked.out, data_root=asked.data_root, full=asked.full, rounds=asked.rounds, threads=asked.threads, say=tell)
    return found, 0 if holds(found) else 3


def _selection(asked: Any, tell: Tell) -> tuple[Any, int]:
    import torch

    from composer.bench.selection import SHARE, selection

    torch.set_num_threads(asked.threads)
    found = selection(asked.every, tell)
    return found, 0 if all(max(row["share"].values()) <= SHARE for row in found) else 3


def _gate(asked: Any, tell: Tell) -> tuple[Any, int]:
    from composer.bench.precision import gate
    from composer.engine.session import Settings

    settings = Settings(out=asked.out / "precision-gate", data_root=asked.data_root, device=asked.device)
    return gate(asked.precision_gate, settings=settings, seeds=asked.seeds, epochs=asked.epochs, precision=asked.precision, setting=asked.setting,
                sets=asked.set_ or (), say=tell), 0
