"""Write and filter captions for web pictures (CapFilt): a captioner adds texts, a filter drops those that do not fit.

    deepspeed recipes/capfilt.py [--config recipes/configs/capfilt.yaml] captioner.model=... filter.model=... [...]

What it does, and the settings that govern it (`instructkit/config/settings.py` explains every one):
    data        web pictures with their texts, and human pairs that are added as they are               data.*
    captioner   writes one caption for each picture by nucleus sampling, or several; drawn from the
                seed and the picture's name                                                             captioner.*
    filter      scores each text with its picture; drops what is below a threshold, or keeps the best   filter.*
Out come BLIP's list `capfilt.json`, which the source `web_capfilt` reads, the same list converted in `data/`,
`dropped.jsonl` and `report/`. Blocks of pictures are dealt out to the ranks; killed and started again, with as many
ranks or not, it goes on where it was and ends in the same bytes. Another threshold asks no model again.
"""

from __future__ import annotations

from instructkit.config.read import load_capfilt
from instructkit.config.settings import CapFiltRun
from instructkit.runs.start import start

SETTINGS = start(__name__, __doc__, CapFiltRun, load_capfilt, default="capfilt")  # before torch is loaded

from instructkit.evaluation.capfilt.models import load_models
from instructkit.evaluation.capfilt.run import caption_and_filter
from instructkit.reports.capfilt import write_capfilt_report
from instructkit.runs.ranks import current_ranks
from instructkit.runs.run import Run, main
from instructkit.runs.waiting import on_first_rank


def capfilt(run: Run[CapFiltRun]) -> None:
    """Caption and filter on all ranks; the first writes the pairs and the report."""
    run.begin(anew=False)
    tally = caption_and_filter(run.config, current_ranks(), run.say, load_models)
    on_first_rank(lambda: write_capfilt_report(run.config, tally, run.folder))
    run.say(f"report    {run.folder / 'report' / 'report.html'}, report.md and report.json")


if __name__ == "__main__":
    main(capfilt, SETTINGS, SETTINGS.output)
