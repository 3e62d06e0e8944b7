"""Errors a user reads: where, what, why, and the fix. This is the only place that formats them."""

from __future__ import annotations

from collections.abc import Iterable


class ComposerError(Exception):
    """One or more located problems of the user's input or surroundings.

    `where` is a place the user can open ("recipes/mart.toml:12  terms.kl", "--set #2"), `what` quotes what is there, `why` says what is
    wrong with it, `fix` says what to write or run. `exit_code` is the command line's answer (2: the input is wrong; 3: training diverged).
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = ""):
        self.where, self.what, self.why, self.fix = where, what, why, fix
        super().__init__(self.text())

    def text(self) -> str:
        lines = [self.where] if self.where else []
        pad = "  " if self.where else ""
        lines += [pad + line for part in (self.what, self.why) if part for line in part.splitlines()]
        if self.fix:
            first, *rest = self.fix.splitlines()
            lines += [f"{pad}Fix: {first}", *(f"{pad}     {line}" for line in rest)]
        return "\n".join(lines)

    @property
    def all(self) -> list[ComposerError]:
        return [self]


class Errors(ComposerError):
    """Several problems found in one reading, so that the user mends them in one go."""

    def __init__(self, errors: Iterable[ComposerError]):
        self.errors = [single for error in errors for single in error.all]
        self.exit_code = self.errors[0].exit_code if self.errors else 2
        Exception.__init__(self, self.text())
        self.where = self.what = self.why = self.fix = ""

    def text(self) -> str:
        blocks = [error.text() for error in self.errors]
        if len(blocks) > 1:
            blocks.append(f"{len(blocks)} errors.")
        return "\n".join(blocks)

    @property
    def all(self) -> list[ComposerError]:
        return list(self.errors)


class Diverged(ComposerError):
    """Training met a number that is not finite; the last good checkpoint is kept."""

    exit_code = 3


class Stopped(ComposerError):
    """A signal asked the run to stop; a checkpoint was written first, and the same command goes on from it."""

    exit_code = 75


def suggest(name: str, known: Iterable[str], noun: str) -> str:
    """'Did you mean ...' from close names, else the whole list."""
    import difflib

    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"known {noun}: {', '.join(known) if known else 'none'}"
