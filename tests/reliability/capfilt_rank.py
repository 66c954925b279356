"""A rank of `recipes/capfilt.py` whose blocks have another size: PICTURES, then the recipe's own words."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from instructkit.evaluation.capfilt import judge

if __name__ == "__main__":
    judge.PICTURES = int(sys.argv.pop(1))
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "recipes" / "capfilt.py"), run_name="__main__")
