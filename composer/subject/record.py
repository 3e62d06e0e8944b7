"""What an evaluation leaves behind: its result and one row an image, so that models can be compared later without attacking again."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composer import atomic
from composer.engine.record import read_json
from composer.errors import ComposerError
from composer.evaluate.options import resolve_options
from composer.evaluate.results import Evaluation
from composer.evaluate.store import digest
from composer.options import plain
from composer.recipe.types import MeasureSpec, Threat
from composer.registry import REGISTRY

FOLDER, WORST = "evaluated", "worst"


def settings_of(measures: Sequence[MeasureSpec], threat: Threat) -> dict[str, dict[str, Any]]:
    """Every measure's registered name and settled options, as JSON: what two evaluations must share to be compared."""
    return {m.name: {"use": m.use, **plain(resolve_options(m, threat))} for m in measures}


def worst_of(measures: Sequence[MeasureSpec], threat: Threat) -> list[str]:
    """The verdicts that join the worst case: of the test images, within the threat's ball. An attack without norm or eps of its own joins too."""
    found = []
    for m in measures:
        flags, options = REGISTRY.get("measure", m.use).flags, resolve_options(m, threat)
        inside = options.get("eps", threat.eps) <= threat.eps and plain(options.get("norm", threat.norm)) == plain(threat.norm)
        if not flags.get("unit") and options.get("split", "test") == "test" and (inside if flags.get("attack") else m.use == "clean"):
            found.append(m.name)
    return found if any(REGISTRY.get("measure", m.use).flags.get("attack") for m in measures if m.name in found) else []


def worst(flags: Mapping[str, Tensor], names: Sequence[str]) -> Tensor | None:
    """[n] bool: withstood all of the named measures, on the images that all of them saw."""
    held = [flags[name] for name in names]
    n = min(map(len, held), default=0)
    return torch.stack([each[:n] for each in held]).all(0) if n else None


def per_image(judged: Evaluation, logits: Tensor, y: Tensor, joined: Tensor | None) -> dict[str, Tensor]:
    """One tensor a column, each over the first images that it knows: label, predicted, margin of the clean image, the verdict of each `<measure>` and its extras."""
    n = len(logits)
    true = logits.gather(1, y[:n, None].long()).squeeze(1)
    rival = logits.scatter(1, y[:n, None].long(), float("-inf")).amax(1)
    columns = {"label": y[:n].clone(), "predicted": logits.argmax(1), "clean_margin": true - rival}
    for name, values in judged.flags.items():
        columns[name] = values
        columns |= {f"{name}/{key}": value for key, value in judged.extra.get(name, {}).items() if value.shape == values.shape}
    return columns | ({WORST: joined} if joined is not None else {})


def slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[-60:] or "model"


def keep(out: Path, target: str, result: dict[str, Any], columns: dict[str, Tensor]) -> Path:
    """evaluated/<model>-<digest of what was judged by what>/: flags first, result.json last."""
    about = {key: result[key] for key in ("subject", "measures", "data", "seed", "n")}
    folder = out / FOLDER / f"{slug(Path(target).name if Path(target).exists() else target)}-{digest(atomic.plain(about))[:8]}"
    atomic.write_bytes(folder / "flags.safetensors", packed(columns))
    atomic.write_json(folder / "result.json", atomic.plain({**result, "target": target}))
    return folder


def packed(columns: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: t.detach().cpu().contiguous() for name, t in columns.items()})


def held(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A kept evaluation. Errors: ComposerError where it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    result = read_json(folder / "result.json")
    try:
        return (result, load_file(folder / "flags.safetensors")) if result else _torn(folder)
    except (OSError, SafetensorError):
        return _torn(folder)


def _torn(folder: Path) -> Any:
    raise ComposerError(f"the evaluation {folder} cannot be read", fix="evaluate it again: what was stored is not attacked twice")


def kept(out: Path, target: str) -> list[Path]:
    """Kept evaluations of what was named: the folder's own name, or what was evaluated under it; the youngest first."""
    found = []
    for file in sorted((out / FOLDER).glob("*/result.json")):
        facts = read_json(file) or {}
        if target in (file.parent.name, facts.get("target"), facts.get("model")):
            found.append(file)
    return [file.parent for file in sorted(found, key=lambda f: f.stat().st_mtime, reverse=True)]


# -- files for other programs ------------------------------------------------------------------------------------------------------


def exportable(file: Path) -> None:
    """Before hours of attacks: can it be written there? Errors: ComposerError."""
    if file.suffix not in (".npz", ".parquet"):
        raise ComposerError(f"--export {file}", where="command line", why="the kind of file is told by its ending", fix="a file ending in .npz or .parquet")
    if file.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ComposerError(f"--export {file}", where="command line", why="the package pyarrow is not installed", fix="pip install pyarrow, or a file ending in .npz")
    beside = file.with_name(f".probe-{os.getpid()}")
    try:
        atomic.write_text(beside, "")
    except ComposerError as error:
        raise ComposerError(f"--export {file}", where="command line", why=error.what, fix="name a file in another folder") from None
    beside.unlink(missing_ok=True)


def export_flags(file: Path, result: dict[str, Any], columns: Mapping[str, Tensor]) -> Path:
    """One row an image as .npz or .parquet; an image that a measure did not see is -1 (npz) or null (parquet) there.

    In the npz the flags are int8 (1 withstood, 0 broken, -1 not judged), numbers float32 with NaN, and `about` is the result as JSON.
    """
    exportable(file)
    rows = max(map(len, columns.values()))
    return (_npz if file.suffix == ".npz" else _parquet)(file, json.dumps(atomic.plain(result)), columns, rows)


def _npz(file: Path, about: str, columns: Mapping[str, Tensor], rows: int) -> Path:
    import numpy as np

    def column(values: Tensor) -> Any:
        empty = np.full(rows, np.nan, np.float32) if values.is_floating_point() else np.full(rows, -1, np.int8 if values.dtype == torch.bool else np.int64)
        empty[: len(values)] = values.cpu().numpy()
        return empty

    arrays = {name: column(values) for name, values in columns.items()}

    def write(beside: Path) -> None:
        with beside.open("wb") as sink:
            np.savez(sink, about=np.array(about), **arrays)

    return atomic.replace_with(file, write)


def _parquet(file: Path, about: str, columns: Mapping[str, Tensor], rows: int) -> Path:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ComposerError(f"--export {file}", why="parquet needs the package pyarrow, which is not installed", fix="pip install pyarrow, or a .npz") from None
    arrays = {name: pa.array([*values.tolist(), *[None] * (rows - len(values))]) for name, values in columns.items()}
    table = pa.table(arrays).replace_schema_metadata({"composer": about})
    return atomic.replace_with(file, lambda beside: pq.write_table(table, beside))


def read_flags(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An exported file as (result, columns), without the rows that a column does not know."""
    try:
        return _read_npz(file) if file.suffix == ".npz" else _read_parquet(file)
    except (OSError, ValueError, KeyError) as error:
        raise ComposerError(f"{file} is no export of an evaluation", why=str(error).splitlines()[0] if str(error) else "") from None


def _read_npz(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    import numpy as np

    with np.load(file, allow_pickle=False) as source:
        about = json.loads(str(source["about"]))
        columns = {name: torch.from_numpy(source[name]) for name in source.files if name != "about"}
    known = {name: (v[v >= 0].bool() if v.dtype == torch.int8 else v) for name, v in columns.items()}
    # a number's NaN may be its own: how many images it knows, its measure's verdict says
    return about, {name: v[:len(known[of])] if v.is_floating_point() and (of := name.rpartition("/")[0]) in known else v for name, v in known.items()}


def _read_parquet(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    about = json.loads(table.schema.metadata[b"composer"])
    return about, {name: torch.tensor([v for v in table[name].to_pylist() if v is not None]) for name in table.column_names}
