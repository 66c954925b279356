"""The recipe of evaluation, whose retrievals are in blocks of a few pictures, texts and matches."""

import runpy
from pathlib import Path

from instructkit.evaluation import retrieve

SIZES = {"IMAGES": 3, "TEXTS": 7, "MATCHED": 2}

if __name__ == "__main__":
    for name, size in SIZES.items():
        setattr(retrieve, name, size)
    runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "evaluate.py"), run_name="__main__")
