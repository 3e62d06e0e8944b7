"""A second model beside a bare one: what a measure asks for by the name of a run, a file or a function."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from composer.errors import ComposerError
from composer.subject import find
from composer.subject.types import Asked, Bench, Subject


@dataclass
class Beside:
    """Stands for the need `run` where the judged model has none: it knows other models alone. `key` is of no run."""

    asked: Asked
    bench: Bench
    key: str = ""
    _found: dict[str, Subject] = field(default_factory=dict)

    def _subject(self, text: str) -> Subject:
        if text not in self._found:
            own = self.asked if Path(text).is_file() else replace(self.asked, model="", normalise="")
            found, bench = find.subject(replace(own, target=text))
            if bench.dataset.shape != self.bench.dataset.shape:
                raise ComposerError(f"'{text}' sees images of {bench.dataset.shape}, the judged model of {self.bench.dataset.shape}", where="transfer")
            self._found[text] = found
        return self._found[text]

    def reference(self, text: str) -> Any:
        """Errors: as composer.subject.find.subject."""
        return self._subject(text).model

    def reference_digest(self, text: str) -> str:
        return self._subject(text).digest
