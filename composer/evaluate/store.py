"""Per-image results on disk: one safetensors file and one JSON file a measure, each written beside and renamed; the JSON comes last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from composer.atomic import write_bytes, write_json
from composer.evaluate.results import Measured
from composer.shapes import Tensor

FORMAT = 1
UNREADABLE = (OSError, ValueError, KeyError, SafetensorError)      # a torn or foreign file: the measure runs again


def digest(value: Any) -> str:
    """Sixteen hex digits of a JSON-able value, the same whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def data_digest(x: Tensor, y: Tensor) -> str:
    """Digest of the very images and labels that are judged."""
    sink = hashlib.blake2b(f"{tuple(x.shape)}{x.dtype}".encode(), digest_size=8)
    sink.update(x.detach().cpu().contiguous().numpy())
    sink.update(y.detach().cpu().contiguous().numpy())
    return sink.hexdigest()


class Slot:
    """Where one measure's results lie. Without a folder everything is forgotten, which spares the callers a branch."""

    def __init__(self, folder: Path | None, key: str):
        self.folder, self.key = Path(folder) if folder else None, key

    def _path(self, suffix: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.key}{suffix}"

    def save(self, result: Measured, about: dict[str, Any]) -> None:
        if self.folder is None:
            return
        write_bytes(self._path(".safetensors"), _pack({"values": result.values, **result.extra}))
        record = {"format": FORMAT, **about, "n": result.values.numel(), "metric": result.metric, "details": result.details}
        write_json(self._path(".json"), record)
        self._path(".part").unlink(missing_ok=True)

    def load(self) -> Measured | None:
        """The finished result, or None where there is none or it cannot be read (then the measure runs again)."""
        if self.folder is None or not self._path(".json").exists():
            return None
        try:
            record = json.loads(self._path(".json").read_text())
            tensors, _ = _unpack(self._path(".safetensors"))
            values = tensors.pop("values")
        except UNREADABLE:
            return None
        if record.get("format") != FORMAT or values.numel() != record.get("n"):
            return None
        return Measured(values, tensors, record["details"])

    def save_part(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """What is done so far, in one file: tensors and facts can never be of different moments."""
        if self.folder is not None:
            write_bytes(self._path(".part"), _pack(tensors, about))

    def load_part(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if self.folder is None or not self._path(".part").exists():
            return None
        try:
            return _unpack(self._path(".part"))
        except UNREADABLE:
            return None


def _pack(tensors: dict[str, Tensor], about: dict[str, Any] | None = None) -> bytes:
    from safetensors.torch import save

    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return save(plain, metadata={"about": json.dumps(about or {}, sort_keys=True)})


def _unpack(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as source:
        about = json.loads((source.metadata() or {}).get("about", "{}"))
        return {name: source.get_tensor(name) for name in source.keys()}, about  # noqa: SIM118 (no mapping)
