"""The verbs over many runs: ablate, sweep, report, runs. Added to the command line's app."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from composer.cli_run import DataRoot, Drops, Json, Out, Plugins, Sets, Setting
from composer.errors import ComposerError

Jobs = Annotated[int, typer.Option("--jobs", help="Tasks at once, each a process of Ray; 0: one after the other in this process, without Ray.")]
Gpus = Annotated[float, typer.Option("--gpus-per-run", help="GPUs of one task, or a share of one (0.25).")]
Address = Annotated[str, typer.Option("--address", help="An existing Ray cluster, with --out on a file system that all its machines share.")]
Threads = Annotated[int, typer.Option("--threads", help="CPU threads of one task; 0: the cores over the jobs. They are part of the bits.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda.")]
Backend = Annotated[str, typer.Option(help="eager, folded, compiled, graph, compiled-graph or auto (docs/performance.md).")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Pack = Annotated[str, typer.Option("--pack", help="Train runs of a small network together: auto, at most so many, or off (docs/packing.md).")]


def ablate(
    target: Annotated[str, typer.Argument(help="A recipe (then --toggle), or a study: a file or a shipped name.")] = "",
    toggle: Annotated[str, typer.Option("--toggle", help="Toggles of the recipe, with commas: ema,margin.")] = "",
    design: Annotated[str | None, typer.Option(help="full (up to four toggles), one-out, one-in, fractional.")] = None,
    resolution: Annotated[int, typer.Option(help="Least resolution of a fractional design.")] = 4,
    seeds: Annotated[str, typer.Option(help="5 is 0 to 4; or a list, 0,1,7. Default 5, or the study's.")] = "",
    setting: Setting = None, set_: Sets = None, drop: Drops = None, plugin: Plugins = None, out: Out = Path("runs"), as_json: Json = False,
    data_root: DataRoot = Path("data"), download: Annotated[bool, typer.Option("--download", help="Fetch a missing data set.")] = False,
    device: Device = "auto", precision: Annotated[str, typer.Option(help="fp32, tf32, bf16 or bf16-attack.")] = "fp32", backend: Backend = "eager",
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Bit for bit on CUDA too; slower.")] = False,
    jobs: Jobs = 1, gpus_per_run: Gpus = 0.0, address: Address = "", threads: Threads = 0, pack: Pack = "off", quiet: Quiet = False,
    retries: Annotated[int, typer.Option(help="Times a task is begun again whose worker was killed.")] = 2,
    no_share: Annotated[bool, typer.Option("--no-share", help="Train every cell alone, from its first epoch.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Try again what diverged before.")] = False,
    tune: Annotated[int, typer.Option(help="First tune every cell alike, with so many trials each.")] = 0,
    tune_epochs: Annotated[int, typer.Option("--tune-epochs", help="Epochs of a tuning run; 0: the recipe's own. Schedules shrink with it.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps that a study of kind bench times for each cell.")] = 50,
    name: Annotated[str, typer.Option(help="Name of the study's folder.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print cells, tree and cost, and stop.")] = False,
    emit: Annotated[str, typer.Option(help="slurm: print a batch script that runs this command in an allocation.")] = "",
    slurm: Annotated[list[str] | None, typer.Option("--slurm", help="With --emit: nodes=2, cpus=16, gpus=4, time=24:00:00, partition=…, account=…, memory=….")] = None,
) -> None:
    """Run a recipe with its components off one by one and together, or a study, and print the table with intervals and effects."""
    if emit:
        _emit(emit, slurm or [])
        return
    from composer.ablate.door import grid_for, run_grid
    from composer.ablate.drive import Drive, Options, check_jobs
    from composer.cli import plugins
    from composer.engine.session import Settings

    if tune < 0:
        raise ComposerError(f"--tune {tune}", where="command line", fix="a number of trials, or 0 for none")
    if tune_epochs < 0 or tune_epochs and not tune:
        raise ComposerError(f"--tune-epochs {tune_epochs}", where="command line", fix="a number of epochs, together with --tune")
    plugins(plugin)
    settings = Settings(out=out, data_root=data_root, download=download, device=device, precision=precision, backend=backend, deterministic=deterministic, quiet=quiet)
    grid = grid_for(target or "mart_ours", tuple(t.strip() for t in toggle.split(",") if t.strip()), design=design, seeds=seed_list(seeds), setting=setting,
                    sets=set_ or (), drops=drop or (), resolution=resolution, name=name, settings=settings)
    options = Options(settings=settings, jobs=jobs, gpus_per_run=gpus_per_run, address=address, retries=retries, threads=threads, share=not no_share,
                      again=again, steps=steps, quiet=quiet, command=tuple(sys.argv[1:]), env=_plugins_of(plugin), pack=pack)
    check_jobs(options)
    if tune:
        from composer.ablate.tuned import planned, tuned_grid

        grid = planned(grid, tune, tune_epochs) if dry_run else tuned_grid(grid, options, tune, tune_epochs)
    if dry_run:
        _preview(Drive(grid, options), as_json)
        return
    summary = run_grid(grid, options)
    if as_json:
        from composer.report.ablation.write import dumped

        print(dumped(summary))
    else:
        from composer.report.ablation.terminal import show

        show(summary)
    if not any(line.runs for table in summary.tables for line in table.lines):
        raise typer.Exit(3)


def report(
    target: Annotated[str, typer.Argument(help="A run or a study: its name in the store, or its folder.")],
    out: Out = Path("runs"), as_json: Json = False,
) -> None:
    """Write one self-contained HTML page of a run or a study; a study's tables and plots too."""
    from composer.cli import say
    from composer.report.page import report as write

    path = write(target, out)
    say({"page": str(path)}, as_json, str(path))


def runs(
    out: Out = Path("runs"), as_json: Json = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what no study and no run refers to.")] = False,
    every: Annotated[bool, typer.Option("--all", help="List every node and evaluation.")] = False,
) -> None:
    """What lies in the store, with sizes, and what may be removed."""
    from composer.report.store import runs as survey
    from composer.report.store import runs_text

    store = survey(out, remove)
    print(json.dumps(store.as_dict(), ensure_ascii=False) if as_json else runs_text(store, every))


def sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe with a [search] table: a file, or the name of a shipped one.")],
    trials: Annotated[int, typer.Option(help="Trials in all, over every sitting.")] = 20,
    grid: Annotated[bool, typer.Option("--grid", help="Every combination instead of Optuna's draws.")] = False,
    points: Annotated[int, typer.Option(help="Values of a range without step, on a grid.")] = 3,
    metric: Annotated[str, typer.Option(help="What is climbed on held-out images: clean, or the attack of [select] (the default).")] = "",
    select: Annotated[str, typer.Option(help="Measures with a winner each, with commas: clean,apgd-ce.")] = "",
    no_asha: Annotated[bool, typer.Option("--no-asha", help="Train every trial to its end.")] = False,
    grace: Annotated[int, typer.Option(help="Epochs before a trial may be stopped; 0: a quarter of the run.")] = 0,
    eta: Annotated[float, typer.Option(help="One of so many trials goes on at a rung.")] = 3.0,
    time_budget: Annotated[float, typer.Option(help="Seconds after which no trial goes on.")] = 0.0,
    precision: Annotated[str, typer.Option(help="fp32, tf32 or bf16 (another sweep: it is recorded).")] = "fp32",
    download: Annotated[bool, typer.Option("--download", help="Fetch a missing data set.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin the sweep anew, whatever is there.")] = False,
    adopt: Annotated[bool, typer.Option("--adopt", help="Go on with unfinished trials although something has changed.")] = False,
    seed: Annotated[int, typer.Option(help="Of the trials' runs and of the draws.")] = 0, name: Annotated[str, typer.Option(help="Name of the sweep's folder.")] = "",
    setting: Setting = None, set_: Sets = None, drop: Drops = None, plugin: Plugins = None, out: Out = Path("runs"), as_json: Json = False,
    data_root: DataRoot = Path("data"), device: Device = "auto", jobs: Jobs = 1, gpus_per_run: Gpus = 0.0, address: Address = "", threads: Threads = 0,
    quiet: Quiet = False, retries: Annotated[int, typer.Option(help="Times a trial is taken up again whose process was killed.")] = 2,
) -> None:
    """Search hyper-parameters for robust accuracy on held-out images; the result is a recipe that extends this one."""
    from composer.ablate.drive import PRECISIONS
    from composer.cli import plugins
    from composer.engine.session import Settings
    from composer.recipe.load import load
    from composer.search.options import SweepOptions
    from composer.search.sweep import sweep as search

    plugins(plugin)
    made = load(recipe, setting=setting, sets=set_ or (), drops=drop or ())
    if precision not in PRECISIONS:
        raise ComposerError(f"--precision {precision}", where="command line", fix=f"one of {', '.join(PRECISIONS)}")
    settings = Settings(out=out, data_root=data_root, download=download, device=device, precision=precision, fresh=fresh, adopt=adopt, quiet=True)
    options = SweepOptions(trials=trials, grid=grid, points=points, metric=metric, select=tuple(s.strip() for s in select.split(",") if s.strip()),
                           asha=not no_asha, grace=grace, eta=eta, budget=time_budget, jobs=jobs, gpus_per_run=gpus_per_run, address=address, threads=threads, retries=retries,
                           seed=seed, name=name, settings=settings, say=(lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr)))
    result = search(made, options)
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=str))
        return
    from composer.search.report import text

    print(text(result))


def add_to(app: typer.Typer) -> None:
    """Put these verbs on the app."""
    for verb in (ablate, sweep, report, runs):
        app.command()(verb)


def seed_list(text: str) -> int | list[int] | None:
    """"5" is a number of seeds, "0,1,7" a list, "" nothing. Errors: ComposerError for anything else."""
    if not text:
        return None
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise ComposerError(f"--seeds {text}", where="command line", fix="a number of seeds, such as 5, or a list, such as 0,1,7") from None
    return found if "," in text else found[0]


def _plugins_of(plugin: list[Path] | None) -> dict[str, str]:
    """What workers must load: the files that were named, by absolute path."""
    named = [str(Path(p).absolute()) for p in plugin or ()]
    held = os.environ.get("COMPOSER_PLUGINS", "")
    return {"COMPOSER_PLUGINS": os.pathsep.join([*named, *([held] if held else [])])} if named or held else {}


def _preview(drive: Any, as_json: bool) -> None:
    from composer.ablate.preview import plain, preview, renderables

    numbers = preview(drive)
    if as_json:
        print(json.dumps(plain(drive.grid, numbers), ensure_ascii=False))
        return
    from rich.console import Console

    console = Console()
    for each in renderables(drive, numbers):
        console.print(each)


def _emit(kind: str, asked: list[str]) -> None:
    from dataclasses import fields

    from composer.ablate.slurm import SlurmOptions, batch_script
    from composer.errors import suggest

    if kind != "slurm":
        raise ComposerError(f"--emit {kind}", where="command line", fix="slurm")
    types = {f.name: f.type for f in fields(SlurmOptions) if f.type in ("int", "str")}
    given: dict[str, Any] = {}
    for pair in asked:
        key, _, value = pair.partition("=")
        if key not in types:
            raise ComposerError(f"--slurm {pair}", where="command line", fix=suggest(key, types, "settings"))
        if types[key] == "int" and not value.isdigit():
            raise ComposerError(f"--slurm {pair}", where="command line", fix="a whole number")
        given[key] = int(value) if types[key] == "int" else value
    print(batch_script(["composer", *_without(sys.argv[1:], ("--emit", "--slurm"))], SlurmOptions(**given)), end="")


def _without(words: list[str], options: tuple[str, ...]) -> list[str]:
    """The command line without these options and their values."""
    found, rest = [], iter(words)
    for word in rest:
        if word in options:
            next(rest, None)
        elif word.split("=")[0] not in options:
            found.append(word)
    return found
