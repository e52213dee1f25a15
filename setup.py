"""What pyproject.toml cannot say: bundles go into the package, and the editable install knows ``preprocessing``."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).parent


class BuildWithBundles(build_py):
    """Copies ``bundles/`` to ``kdml_med/bundles/``; an editable install finds them where they are."""

    def run(self) -> None:
        """Build, then copy; data and runs of somebody who tried the bundles out are no part of them."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "kdml_med" / "bundles"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "bundles", target, ignore=shutil.ignore_patterns("data", "runs", "__pycache__"))


class EditableWithPrograms(editable_wheel):
    """``python -m preprocessing.…`` works from any folder where the repository is installed in place."""

    def run(self) -> None:
        """Map one package more than a wheel has."""
        self.distribution.packages = [*(self.distribution.packages or []), "preprocessing"]
        super().run()


setup(cmdclass={"build_py": BuildWithBundles, "editable_wheel": EditableWithPrograms})
