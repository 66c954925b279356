"""What the fork server loads before it forks: all that a run of the recipe imports and builds at first use."""
# ruff: noqa: F401

import gc
import tempfile
from pathlib import Path

import instructkit.evaluation.run
import instructkit.reports.report
import instructkit.training.data
import instructkit.training.engine
import instructkit.training.watch
from instructkit.models.save import load_model, save_model
from instructkit.prompts.protocols import benchmarks, load_protocol
from tests.tiny import tiny_model

with tempfile.TemporaryDirectory() as folder:
    for llm in ("llama", "t5"):
        save_model(*tiny_model(llm), Path(folder, llm))
        load_model(str(Path(folder, llm)))
for name in benchmarks():
    load_protocol(name)  # every report reads all of them
gc.freeze()  # no collection looks through the libraries again
