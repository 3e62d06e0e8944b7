"""Puts recipes/ and plugins/ into the wheel, as composer/_shipped/, where composer/shipped.py looks for them. The rest is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("recipes", "plugins")
LEAVE_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "tests", "test_*.py", ".*")


class BuildWithShipped(build_py):
    def run(self):
        super().run()
        if self.editable_mode:      # a checkout is read where it lies
            return
        for name in FOLDERS:
            target = Path(self.build_lib, "composer", "_shipped", name)
            shutil.rmtree(target, ignore_errors=True)       # what an earlier build left
            shutil.copytree(Path(__file__).parent / name, target, ignore=LEAVE_OUT)


setup(cmdclass={"build_py": BuildWithShipped})
