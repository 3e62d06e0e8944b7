"""The verbs that work: run, show, doctor, ui, cite, plugin. Added to the command line's app."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from composer.errors import ComposerError

SET_HELP = "path=value, a value as TOML writes it (composer check --help says more). Repeatable."
Out = Annotated[Path, typer.Option("--out", help="Where everything is written.")]
Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="A plugin's file. Repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Setting = Annotated[str | None, typer.Option("--setting", help="What it runs on: a shipped setting or a file.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help=SET_HELP)]
Drops = Annotated[list[str] | None, typer.Option("--drop", help="A path to drop. Repeatable.")]
DataRoot = Annotated[Path, typer.Option("--data-root", envvar="COMPOSER_DATA", help="Folder of the data sets.")]


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe: a file, or the name of a shipped one.")],
    setting: Setting = None, set_: Sets = None, drop: Drops = None, plugin: Plugins = None, out: Out = Path("runs"), as_json: Json = False,
    seed: Annotated[int, typer.Option(help="Initial weights, order, augmentation, noise, split.")] = 0,
    seeds: Annotated[str, typer.Option("--seeds", help="Several runs: 5 is seeds 0 to 4; or a list, 0,1,7.")] = "",
    pack: Annotated[str, typer.Option("--pack", help="With --seeds, train small networks together: auto, a number of runs, or off.")] = "off",
    data_root: DataRoot = Path("data"),
    download: Annotated[bool, typer.Option("--download", help="Fetch a missing data set.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, tf32, bf16, or bf16-attack (another experiment: it is recorded).")] = "fp32",
    micro_batch: Annotated[str, typer.Option("--micro-batch", help="Images at once: whole, a number, or auto (halved when memory runs out).")] = "whole",
    data_on: Annotated[str, typer.Option("--data-on", help="Where the training images lie: auto, device, host, disk.")] = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Data-parallel processes, started by Ray: a GPU each, or CPU cores.")] = 1,
    sync_bn: Annotated[bool, typer.Option("--sync-bn", help="With workers: batch norm over the rows of all of them.")] = False,
    address: Annotated[str, typer.Option(help="A Ray cluster that is there (host:port or auto); workers are placed on it.")] = "",
    backend: Annotated[str, typer.Option(help="eager, folded, compiled, graph, compiled-graph or auto (docs/performance.md).")] = "eager",
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Bit for bit on CUDA too; slower.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plans and stop.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train anew, whatever is there.")] = False,
    adopt: Annotated[bool, typer.Option("--adopt", help="Go on with an unfinished run although something has changed.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    all_measures: Annotated[bool, typer.Option("--evaluate-both", help="The whole protocol on the unselected model too.")] = False,
) -> None:
    """Train a recipe, evaluate it, record it. The same command again resumes; finished, it shows the result."""
    made = _load(recipe, setting, set_, drop, plugin)
    if dry_run:
        _dry(made, as_json)
        return
    _one_of("--precision", precision, ("fp32", "tf32", "bf16", "bf16-attack"))
    _one_of("--data-on", data_on, ("auto", "device", "host", "disk"))
    from composer.engine.backend import LEGAL

    _one_of("--backend", backend, LEGAL)
    from composer.engine.run import run as execute
    from composer.engine.session import Settings

    settings = Settings(out=out, data_root=data_root, download=download, device=device, precision=precision, backend=backend, deterministic=deterministic,
                        fresh=fresh, adopt=adopt, quiet=quiet, full_other=all_measures, workers=workers, sync_bn=sync_bn, address=address, micro_batch=micro_batch, data_on=data_on)
    if seeds or pack != "off":
        from composer.verbs.seeds import run_many

        raise typer.Exit(run_many(made, _seeds(seeds), pack, settings, as_json))
    result = execute(made, seed=seed, settings=settings)
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=str))
        return
    from composer.report.table import print_result

    print_result(result)


def show(
    what: Annotated[str, typer.Argument(help="A recipe, or a primitive (loss/kl).")],
    why: Annotated[str | None, typer.Option("--why", help="A path: which line set it.")] = None,
    setting: Setting = None, set_: Sets = None, drop: Drops = None, plugin: Plugins = None, as_json: Json = False,
    without: Annotated[list[str] | None, typer.Option("--without", help="A toggle that is off. Repeatable.")] = None,
) -> None:
    """The plan of a recipe with its cost, who set a value, or the card of a primitive."""
    from composer import verbs
    from composer.cli import plugins, say
    from composer.verbs.show import plans_dict, plans_text, primitive_text

    plugins(plugin)
    card = primitive_text(what) if not what.endswith(".toml") and what not in verbs.shipped_recipes() else None     # fat the recipe, inner/fat
    if card is not None:
        say({"card": card}, as_json, card)
        return
    made = _load(what, setting, set_, drop, plugin)
    made = made.without(*without) if without else made
    if why:
        from composer.verbs.text import why_text

        rows = made.why(why)
        say(rows, as_json, why_text(rows))
        return
    if as_json:
        say(plans_dict(made), True, "")
    else:
        print(plans_text(made))


def doctor(out: Out = Path("runs"), data_root: DataRoot = Path("data"), plugin: Plugins = None, as_json: Json = False) -> None:
    """Versions, devices, disk, plugins, and what is missing."""
    from composer import doctor as checkup
    from composer.cli import plugins, say
    from composer.plugins import loaded

    plugins(plugin)
    report = checkup.doctor(out, data_root, plugins=loaded(), torch=True)
    say(report, as_json, "\n".join(checkup.lines(report)))


def ui(out: Out = Path("runs"), port: Annotated[int, typer.Option(help="Port of the page.")] = 5000,
       host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
       open_: Annotated[bool, typer.Option("--open", help="Open a browser.")] = False) -> None:
    """MLflow's page on the store."""
    from composer.ui import ui as serve

    serve(out, port=port, host=host, open_browser=open_)


def cite(recipe: Annotated[str, typer.Argument(help="A recipe: a file, or the name of a shipped one.")],
         setting: Setting = None, set_: Sets = None, drop: Drops = None, plugin: Plugins = None, as_json: Json = False) -> None:
    """BibTeX of every paper that a recipe, its header and the cards of what it uses name."""
    from composer.cli import say
    from composer.report.cite import citations, cite_text

    found, unknown = citations(_load(recipe, setting, set_, drop, plugin))
    papers = [{"key": each.key, "by": list(each.by), "bibtex": each.bibtex} for each in found]
    say({"recipe": recipe, "papers": papers, "unknown": unknown}, as_json, cite_text(found, unknown))


plugin_app = typer.Typer(help="Write and check primitives of your own.", no_args_is_help=True, rich_markup_mode=None)


@plugin_app.command("new")
def plugin_new(name: str, kind: Annotated[str, typer.Option(help="loss, view, gain, radius, inner, part, schedule or phase.")] = "loss",
               folder: Annotated[Path, typer.Option(help="Where the two files go.")] = Path("plugins")) -> None:
    """A new primitive's file and its test."""
    from composer.scaffold import scaffold

    for file in scaffold(name, kind=kind, folder=folder):
        print(file)


@plugin_app.command("check")
def plugin_check(path: Path, as_json: Json = False) -> None:
    """The catalogue's contract tests on a plugin's file."""
    from composer.cli import say
    from composer.scaffold import check_plugin

    rows = check_plugin(path)
    ok = all(row[2] for row in rows)
    text = "\n".join(f"{'ok  ' if good else 'FAIL'}  {primitive}: {contract}{'' if good else ': ' + message}" for primitive, contract, good, message in rows)
    say({"ok": ok, "contracts": [dict(zip(("primitive", "contract", "ok", "message"), map(_plain, row))) for row in rows]}, as_json, text)
    if not ok:
        raise typer.Exit(2)


def add(app: typer.Typer) -> None:
    """Put these verbs on the app."""
    from composer.cli_bench import bench

    for verb in (run, show, doctor, ui, bench, cite):
        app.command()(verb)
    app.add_typer(plugin_app, name="plugin")


def _load(recipe: str, setting: str | None, sets: list[str] | None, drops: list[str] | None, plugin: list[Path] | None) -> Any:
    from composer.cli import plugins
    from composer.verbs.checking import load_whole

    plugins(plugin)
    return load_whole(recipe, setting=setting, sets=sets or (), drops=drops or ())


def _dry(recipe: Any, as_json: bool) -> None:
    from composer.cli import say
    from composer.verbs.show import plans_dict, plans_text

    say(plans_dict(recipe) if as_json else None, as_json, plans_text(recipe) if not as_json else "")


def _seeds(text: str) -> int | list[int]:
    """Errors: ComposerError where no seeds are given."""
    from composer.cli_ablate import seed_list

    found = seed_list(text)
    if found is None:
        raise ComposerError("--pack without --seeds", where="command line", why="one run has nobody to be packed with", fix="--seeds 5, or leave --pack out")
    return found


def _one_of(flag: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        from composer.errors import suggest

        raise ComposerError(f"{flag} {value}", where="command line", why=f"legal are {', '.join(legal)}", fix=suggest(value, legal, "values"))


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, bool)) else str(value)
