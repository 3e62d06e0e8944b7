"""Pictures of what measures found beyond one number: curves, margins, radii, ranks, landscapes, calibration, classes, and traces over epochs.

    keep_run(folder, judged, measures, title)     what a run's pictures are drawn from, and the pictures: figures.json, figures/*.png
    draw_study(summary, folder)                   the same pictures with a line or panel for each row of a study
"""

from __future__ import annotations

from composer.report.figures.draw import draw_study, keep_run, run_pictures, study_pictures

__all__ = ["draw_study", "keep_run", "run_pictures", "study_pictures"]
