"""One command line in a process of its own, started by `runpy` with JOB set: arguments, where its output goes, and what is taken from it.

The process is forked from a server that has imported torch already, so it starts in a blink.
"""

from __future__ import annotations

import os
import resource
import sys


def main(arguments: list[str], output: str, errors: str, environment: dict[str, str], file_limit: int | None, track: bool,
         absent: list[str], path: list[str], tell: bool) -> int:
    for stream, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ.update(environment)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    sys.path[:0] = path
    sys.modules.update(dict.fromkeys(absent))              # None: the module cannot be found
    import composer.engine.run
    import composer.report.effects
    import composer.report.plots
    import composer.track_grid
    from composer.cli import app, run_app
    from composer.track import NullTracker

    if not track:
        composer.engine.run.make_tracker = lambda *_, **__: NullTracker()
        composer.track_grid.make_tracker = lambda *_, **__: NullTracker()
        composer.report.plots.curves = lambda *_, **__: None
        composer.report.effects.draw_all = lambda *_, **__: []
    code = run_app(app, arguments)
    if tell:
        print("imported:", *sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    os._exit(main(**JOB))  # noqa: F821  put here by runpy
