"""What CapFilt brings, on scenes of the world: BLIP's Table 1 in miniature.

    python -m tests.benchmarks.capfilt_table --out runs/capfilt_table    # three seeds, under three hours on two cores
    python -m tests.benchmarks.capfilt_table --out runs/look --seeds 1 --steps 50 --tuning 20  # a look

For each seed: web pairs of which 40% are exchanged, and a few human pairs. A small BLIP is pre-trained on both; its
captioner and its filter are finetuned separately on the human pairs. CapFilt's recipe then makes the pairs anew with
the filter, with the captioner, and with both, and a new model is pre-trained from scratch on each, in as many steps.
The first model stands for no CapFilt. Each is asked, without finetuning, for captions of scenes of the test side
(CIDEr, three beams) and to find pictures by captions and captions by pictures (R@1, the nearest 16 re-ranked by ITM).

A run that has ended is read from its folder, so the command may be stopped and started again. `--out` gets the runs and
`report/`: a page, Markdown and JSON, with mean and deviation, and paired differences by seed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
import yaml

from instructkit.config.settings import CaptionerConfig, FilterConfig
from instructkit.conversion.convert import convert
from instructkit.data.dataset import load_examples
from instructkit.evaluation.blocks import Blocks
from instructkit.evaluation.capfilt.models import BlipTool
from instructkit.evaluation.metrics.caption import CiderMetric
from instructkit.evaluation.retrieve import Gallery, Pixels, retrieve
from instructkit.files import write_atomically
from instructkit.models.batches import Picture, decode
from instructkit.models.load.blip import load_blip
from instructkit.prompts.jinja import plain_caption
from instructkit.reports import plots
from instructkit.reports.blocks import Block, Code, Figure, Figures, Heading, Line, Table
from instructkit.reports.files import write_files
from instructkit.runs.provenance import command_line, commit, versions
from instructkit.runs.ranks import Ranks
from instructkit.sources.web_capfilt import OWN_LIST
from instructkit.world.captions import full_caption
from instructkit.world.draw import draw_picture, save_picture
from instructkit.world.scene import Scene
from tests.benchmarks import capfilt_world as trial
from tests.benchmarks.capfilt_world import Clock

CASES = {"none": (False, False), "filter": (False, True), "captioner": (True, False), "both": (True, True)}
"""Whether a captioner writes, and whether a filter drops."""
MEASURES = {"tr_r1": "R@1, texts of a picture", "ir_r1": "R@1, pictures of a text", "cider": "CIDEr"}
RERANKED = 16
_BATCH = 64

Measured = dict[str, dict[str, list[float]]]
"""By case and measure, a value a seed."""


class Verdict(NamedTuple):
    """Whether CapFilt beats none by a measure.

    Attributes:
        differences: both less none, by seed.
        mean: of them.
        error: standard error of the mean; None with one seed.
        beats: whether the mean is more than two standard errors above zero; None with one seed.
    """

    differences: list[float]
    mean: float
    error: float | None
    beats: bool | None


def verdict(none: Sequence[float], both: Sequence[float]) -> Verdict:
    """Compare two cases seed by seed."""
    differences = [high - low for low, high in zip(none, both, strict=True)]
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return Verdict(differences, mean, None, None)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return Verdict(differences, mean, error, mean > 2 * error)


# ---- what is trained ----


def datasets_of(folder: Path, seed: int, options: argparse.Namespace) -> tuple[Path, Path]:
    """Folders of converted datasets: of web and human pairs apart, and of both in one list as they are."""
    root, plain = folder / "data", folder / "none" / "data"
    if not trial.once(folder / "raw", {}):
        web, human = folder / "raw" / "cc3m", folder / "raw" / "coco_caption"
        scenes = trial.scenes_of(f"{seed}/web", "train", options.web)
        pairs = trial.web_pairs(scenes, trial.NOISE, seed)
        trial.write_web(web, scenes, pairs, root)
        written = trial.write_human(human, trial.scenes_of(f"{seed}/human", "train", options.human), root)
        listed = [(web / "images" / pair.name, pair.text, "web") for pair in pairs]
        listed += [(path, told, "human") for path, told in written]
        entries = [{"image": str(path.absolute()), "caption": told, "origin": origin} for path, told, origin in listed]
        both = folder / "raw" / "none"
        both.mkdir(parents=True, exist_ok=True)
        write_atomically(both / OWN_LIST, json.dumps(entries))
        convert("web_capfilt", both, plain)
        trial.keep(folder / "raw", {})
    return root, plain


def models_of(seed: int, options: argparse.Namespace, clock: Clock) -> dict[str, tuple[Path, Path]]:
    """The model that each case ends in, and the data that it was trained on."""
    folder = options.out / f"seed-{seed}"
    root, plain = datasets_of(folder, seed, options)
    first = trial.pretrain(folder / "none" / "pretrained", plain, "web_capfilt", seed, options, clock)
    captioner = trial.finetune(folder / "captioner-model", first, root, ["lm"], seed, options, clock)
    scorer = trial.finetune(folder / "filter-model", first, root, ["itc", "itm"], seed, options, clock)
    found = {"none": (first, plain)}
    for case, (writes, drops) in CASES.items():
        if writes or drops:
            settings = {
                "captioner.model": captioner if writes else None,
                "captioner.max_tokens": trial.CAPTION_TOKENS,
                "filter.model": scorer if drops else None,
                "data.human": ["coco_caption"],
            }
            data = trial.capfilt(folder / case / "capfilt", root, settings, seed, clock)
            model = trial.pretrain(folder / case / "pretrained", data, "web_capfilt", seed, options, clock)
            found[case] = model, data
    return found


# ---- what is measured ----


def test_pictures(out: Path, count: int) -> tuple[list[Scene], list[Path]]:
    """Scenes of the test side whose captions all differ, and their pictures."""
    found: dict[str, Scene] = {}
    number = 0
    while len(found) < count:
        scene = trial.scenes_of(f"tested/{number}", "test", 1)[0]
        found.setdefault(full_caption(scene), scene)
        number += 1
    paths = [out / "tested" / f"{number:06}.jpg" for number in range(count)]
    for scene, path in zip(found.values(), paths, strict=True):
        if not path.is_file():
            save_picture(path, draw_picture(scene))
    return list(found.values()), paths


@torch.no_grad()
def measure(model: Path, scenes: Sequence[Scene], paths: Sequence[Path]) -> dict[str, float]:
    """R@1 both ways in percent, and CIDEr, of a model that was not finetuned."""
    loaded, captions = load_blip(str(model))
    how = CaptionerConfig(decoding="beams", prompt=None, min_tokens=5, max_tokens=trial.CAPTION_TOKENS)
    tool = BlipTool(loaded, captions, how, FilterConfig())
    size = tool.size
    gallery = Gallery(
        images=len(paths),
        pixels=lambda numbers: Pixels(list(numbers), decode([Picture(paths[n]) for n in numbers], size), {}),
        texts=captions.encode([plain_caption(full_caption(scene)) for scene in scenes])[0],
        owner=list(range(len(paths))),
        name="scenes",
        pad=captions.tokenizer.pad_token_id,
    )
    with tempfile.TemporaryDirectory() as scratch:
        blocks = Blocks(Path(scratch), Ranks())
        blocks.open({})
        found = retrieve(loaded, gallery, min(RERANKED, len(paths)), _BATCH, blocks)
    assert found is not None, "there is one rank"
    written: list[str] = []
    for start in range(0, len(paths), _BATCH):
        part = [Picture(path) for path in paths[start : start + _BATCH]]
        features = tool.encode(decode(part, size))
        written += [texts[0] for texts in tool.write(features, [[Random()]] * len(part))]
    references = [[full_caption(scene, n) for n in range(trial.CAPTIONS)] for scene in scenes]
    return {
        "tr_r1": 100 * float((found.of_images.place == 1).float().mean()),
        "ir_r1": 100 * float((found.of_texts.place == 1).float().mean()),
        "cider": CiderMetric().aggregate(written, references)["cider"],
    }


def pairs_of(data: Path) -> dict[str, int]:
    """How many pairs of each origin a model was trained on."""
    (folder,) = (data / "web_capfilt").iterdir()
    counts = dict.fromkeys(("web", "synthetic", "human"), 0)
    for example in load_examples(folder):
        counts[example.meta["origin"]] += 1
    return counts


def seed_of_table(seed: int, options: argparse.Namespace, clock: Clock) -> dict[str, dict[str, Any]]:
    """What each case of a seed reaches, and the pairs behind it."""
    found: dict[str, dict[str, Any]] = {}
    scenes, paths = test_pictures(options.out, options.tested)
    for case, (model, data) in models_of(seed, options, clock).items():
        kept = options.out / f"seed-{seed}" / case / "measured.json"
        if not kept.is_file():
            measured = {"measures": measure(model, scenes, paths), "pairs": pairs_of(data)}
            write_atomically(kept, trial.as_json(measured))
        found[case] = json.loads(kept.read_text())
        told = ", ".join(f"{name} {value:.1f}" for name, value in found[case]["measures"].items())
        print(f"seed {seed}, {case}: {told}", flush=True)
    return found


# ---- what is reported ----


def contents(by_seed: Sequence[Mapping[str, Mapping[str, Any]]], asked: Mapping[str, Any]) -> list[Block]:
    """The report for people, block by block."""
    measured, verdicts = measures_of(by_seed), verdicts_of(by_seed)
    seeds = len(by_seed)
    rows = [
        [case, *(_origins(by_seed, case)), *(_deviation(measured[case][name]) for name in MEASURES)] for case in CASES
    ]
    head = ["CapFilt", "web", "synthetic", "human", *MEASURES.values()]
    compared = [
        [
            MEASURES[name],
            *(f"{each:+.2f}" for each in found.differences),
            f"{found.mean:+.2f}",
            "-" if found.error is None else f"{found.error:.2f}",
            _yes(found.beats),
        ]
        for name, found in verdicts.items()
    ]
    by = ["both less none", *(f"seed {seed}" for seed in range(seeds)), "mean", "standard error", "more than two"]
    figures = [
        Figure(
            f"{title}, mean of {seeds} seed(s).",
            plots.comparison(title, [(case, statistics.mean(measured[case][name]), None) for case in CASES], name),
        )
        for name, title in MEASURES.items()
    ]
    return [
        Heading("CapFilt in miniature", 1),
        Line(
            f"Models pre-trained on pairs of which 40% of the web's do not fit, after CapFilt or without it; "
            f"{asked['tested']:,} scenes of the test side, {seeds} seed(s), no finetuning. Mean ± deviation over "
            "seeds; pairs are those of the first seed.",
            kind="soft",
        ),
        Table(head, rows, tuple(range(1, len(head)))),
        Line(f" {_yes(beats_all(verdicts))}.", "Both beats none by more than two standard errors, by every measure:"),
        Table(by, compared, tuple(range(1, len(by)))),
        Figures(figures),
        Heading("Settings"),
        Code(yaml.safe_dump(dict(asked), sort_keys=False).rstrip(), "yaml"),
        Heading("Versions"),
        Line(", ".join(f"{name} {number}" for name, number in versions().items())),
    ]


def measures_of(by_seed: Sequence[Mapping[str, Mapping[str, Any]]]) -> Measured:
    """Values by case and measure."""
    return {case: {name: [seed[case]["measures"][name] for seed in by_seed] for name in MEASURES} for case in CASES}


def verdicts_of(by_seed: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Verdict]:
    """Both against none by each measure."""
    found = measures_of(by_seed)
    return {name: verdict(found["none"][name], found["both"][name]) for name in MEASURES}


def beats_all(verdicts: Mapping[str, Verdict]) -> bool | None:
    """Whether both beats none by every measure; None with one seed."""
    found = [each.beats for each in verdicts.values()]
    return None if None in found else all(found)


def _origins(by_seed: Sequence[Mapping[str, Mapping[str, Any]]], case: str) -> list[str]:
    return [f"{by_seed[0][case]['pairs'][origin]:,}" for origin in ("web", "synthetic", "human")]


def _deviation(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"


def _yes(found: bool | None) -> str:
    return {True: "yes", False: "no", None: "one seed does not say"}[found]


def write_report(by_seed: Sequence[Mapping[str, Mapping[str, Any]]], asked: Mapping[str, Any], place: Path) -> Any:
    """Write a page, Markdown and JSON into a folder; returns what the JSON holds."""
    blocks, verdicts = contents(by_seed, asked), verdicts_of(by_seed)
    report = {
        "seeds": by_seed,
        "both less none": {name: each._asdict() for name, each in verdicts.items()},
        "both beats none": beats_all(verdicts),
        "settings": asked,
        "run": {"command": command_line(), "commit": commit()},
        "versions": versions(),
    }
    write_files(place, blocks, report)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trial.add_options(parser, steps=250, tuning=120, minutes=165)
    parser.add_argument("--web", type=int, default=6000, help="pictures of the web")
    parser.add_argument("--human", type=int, default=500, help="pictures with five captions by people")
    parser.add_argument("--tested", type=int, default=500, help="scenes of the test side")
    parser.add_argument("--out", type=Path, default=Path("runs/capfilt_table"))
    options = parser.parse_args()
    clock = Clock(options.minutes)
    asked = trial.same_trial(options.out, options)
    test_pictures(options.out, options.tested)
    by_seed = trial.by_seed(partial(seed_of_table, options=options, clock=clock), options.seeds)
    report = write_report(by_seed, asked, options.out / "report")
    print((options.out / "report" / "report.md").read_text())
    print(json.dumps({key: report[key] for key in ("both less none", "both beats none")}))


if __name__ == "__main__":
    with trial.for_people():
        main()
