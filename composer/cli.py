"""The command line: every verb is one call, what it returns is printed. No logic here, and no torch until a verb needs it.

stdout is the result (with --json one object), everything else goes to stderr. Exit codes: 0 done, 2 the input is wrong, 3 diverged,
75 stopped after a checkpoint, 130 Ctrl-C, 1 a defect of ours.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from composer.errors import ComposerError

app = typer.Typer(name="composer", help="Adversarial training as a value: recipes composed of registered primitives.", no_args_is_help=True,
                  add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]})

SET_HELP = ("path=value, a value as TOML writes it. Repeatable. train.epochs=3 keeps fractions of the run (\"80/110\"); a number in place of a "
            "schedule replaces it; evaluate.n=64 holds for every measure that has no n of its own (evaluate.aa.n=64 for one that has).")
Recipe = Annotated[str, typer.Argument(help="A recipe: a file, or the name of a shipped one.")]
Recipes = Annotated[list[str] | None, typer.Argument(help="Recipes and studies: files, or names of shipped ones. None: all shipped ones.")]
Setting = Annotated[str | None, typer.Option("--setting", help="What it runs on: a shipped setting or a file.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help=SET_HELP)]
Drops = Annotated[list[str] | None, typer.Option("--drop", help="A path to drop. Repeatable.")]
Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="A plugin's file. Repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def say(result: Any, as_json: bool, text: str) -> None:
    """The result on stdout: as one JSON object, or as text."""
    print(json.dumps(result, ensure_ascii=False, indent=2) if as_json else text)


def plugins(files: Sequence[Path] | None) -> None:
    """Open the doors, with what --plugin named. Before anything reads a recipe."""
    from composer.plugins import load_all

    load_all(files or ())


@app.command()
def check(recipes: Recipes = None, setting: Setting = None, set_: Sets = None, drop: Drops = None, plugin: Plugins = None,
          as_json: Json = False) -> None:
    """Read recipes and studies and print everything that is wrong, with file:line and the fix."""
    from composer import verbs
    from composer.verbs.text import checked_text

    plugins(plugin)
    found = verbs.check(recipes or [*verbs.shipped_recipes(), *verbs.shipped_studies()], setting=setting, sets=set_ or (), drops=drop or ())
    ok = all(each.ok for each in found)
    say({"ok": ok, "recipes": [each.as_dict() for each in found]}, as_json, checked_text(found))
    if not ok:
        raise typer.Exit(2)


@app.command()
def diff(a: Recipe, b: Recipe, setting: Setting = None, set_: Sets = None, drop: Drops = None, plugin: Plugins = None, as_json: Json = False) -> None:
    """What differs between two recipes, defaults included, with the lines that say it."""
    from composer import verbs
    from composer.verbs.text import diff_text

    plugins(plugin)
    rows = verbs.diff(a, b, setting=setting, sets=set_ or (), drops=drop or ())
    say({"a": a, "b": b, "differs": rows}, as_json, diff_text(rows, (a, b)))


@app.command("list")
def list_(kind: Annotated[str | None, typer.Argument(help="A kind: loss, view, inner, …")] = None, plugin: Plugins = None,
          as_json: Json = False) -> None:
    """The catalogue: every primitive with formula, paper, options."""
    from composer import verbs
    from composer.verbs.text import list_text

    plugins(plugin)
    rows = verbs.list_primitives(kind)
    say(rows, as_json, list_text(rows, cards=kind is not None))


@app.command()
def schema(study: Annotated[bool, typer.Option("--study", help="The schema of studies instead of recipes and settings.")] = False,
           plugin: Plugins = None) -> None:
    """JSON Schema of recipes, for editors (taplo, VS Code): save it, and name it in a file's first line, `#:schema ./recipe.schema.json`."""
    from composer import verbs

    plugins(plugin)
    say(verbs.schema(study=True) if study else verbs.schema(), True, "")


def _add_working_verbs() -> None:
    from composer import cli_evaluate
    from composer.cli_ablate import add_to
    from composer.cli_run import add

    add(app)
    add_to(app)
    cli_evaluate.add_to(app)


_add_working_verbs()


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: runs the command line and exits with its code."""
    from composer.doctor import foreign_composer

    clash = foreign_composer()
    if clash:
        print(clash, file=sys.stderr)
    sys.exit(run_app(app, list(sys.argv[1:] if arguments is None else arguments)))


def run_app(application: typer.Typer, arguments: list[str]) -> int:
    """Exit code of one command. Users' errors are told without a traceback; a defect of ours with one under COMPOSER_DEBUG=1."""
    debug = os.environ.get("COMPOSER_DEBUG") == "1"
    try:
        code = typer.main.get_command(application).main(args=arguments, prog_name="composer", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:                                    # typer has caught a Ctrl-C
            print("interrupted", file=sys.stderr)
        return code if isinstance(code, int) else 0
    except ComposerError as error:
        print(error.text(), file=sys.stderr)
        if debug:
            traceback.print_exc()
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # the reader (head, less) has seen enough
        return 0
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):      # the command line itself is wrong
            error.show()
            return 2
        return _defect(error, debug)


def _defect(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    else:
        print(f"composer failed: {type(error).__name__}: {error}\n  This is a defect of composer, not of your input.\n"
              "  Fix: run again with COMPOSER_DEBUG=1 and report what it prints", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
