"""`composer run --seeds`: several seeds at once, and what came out of them."""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any


def run_many(recipe: Any, seeds: int | list[int], pack: str, settings: Any, as_json: bool) -> int:
    """Run the seeds, print results and means; the exit code: 0 where there is a result, 3 where every run diverged."""
    from composer.engine.pack_seeds import run_seeds
    from composer.report.table import print_result

    found = run_seeds(recipe, range(seeds) if isinstance(seeds, int) else seeds, pack=pack, settings=settings,
                      say=lambda text: None if settings.quiet else print(text, file=sys.stderr))
    if as_json:
        print(json.dumps(found, ensure_ascii=False, default=str))
    else:
        for result in found["runs"]:
            print_result(result)
        print("\n" + means_text(found))
    return 0 if found["runs"] else 3


def means_text(found: dict[str, Any]) -> str:
    """Mean and standard deviation over the seeds, and what was trained together."""
    lines = []
    for name in found["runs"][0]["metrics"] if found["runs"] else ():
        values = [run["metrics"][name] for run in found["runs"] if run["metrics"].get(name) is not None]
        scale, unit = (1, " " + found["runs"][0]["units"][name]) if name in found["runs"][0].get("units", {}) else (100, " %")
        spread = f" ± {scale * statistics.stdev(values):.2f}" if len(values) > 1 else ""
        lines.append(f"{name}: {scale * statistics.fmean(values):.2f}{spread}{unit} over {len(values)} seeds" if values else f"{name}: none")
    lines += [f"trained together: seeds {', '.join(map(str, pack))}" for pack in found["packs"]]
    lines += [f"seed {each['seed']} diverged: {each['why']}" for each in found["failed"]]
    return "\n".join(lines)
