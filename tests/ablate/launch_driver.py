"""A driver to be killed: launches the tasks of a JSON file, and prints the answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from composer.ablate.launch import LaunchOptions, launch
from composer.ablate.types import Task
from composer.errors import ComposerError


def main(file: str) -> int:
    given = json.loads(Path(file).read_text())
    options = LaunchOptions(**{**given["options"], "folder": Path(given["options"]["folder"]), "sys_path": tuple(given["options"]["sys_path"])})
    try:
        answers = launch([Task(**task) for task in given["tasks"]], given["work"], options)
    except ComposerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(answers))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
