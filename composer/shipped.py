"""Where the recipes and plugins that come with composer lie: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from composer.errors import ComposerError

_PACKAGE = Path(__file__).resolve().parent


def _find(name: str) -> Path:
    """`composer/_shipped/NAME` first: an installed package must never take a folder that happens to lie beside it in site-packages."""
    for folder in (_PACKAGE / "_shipped" / name, _PACKAGE.parent / name):
        if folder.is_dir() and (folder.parent.name == "_shipped" or (_PACKAGE.parent / "pyproject.toml").is_file()):
            return folder
    raise ComposerError(f"the {name} that come with composer are not beside it", where=str(_PACKAGE),
                        why="the installation is incomplete", fix="install robust-composer again, or run from a checkout")


def recipes_dir() -> Path:
    """The folder of shipped recipes (methods; settings/ and studies/ below)."""
    return _find("recipes")


def plugins_dir() -> Path:
    """The folder of shipped plugins."""
    return _find("plugins")
