"""CapFilt from settings to files: pictures are judged over ranks, what is kept is written and converted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from instructkit.config.settings import CapFiltRun
from instructkit.conversion.convert import convert
from instructkit.data import media_files
from instructkit.data.dataset import MANIFEST, convert_command
from instructkit.errors import UserError
from instructkit.evaluation.blocks import Blocks
from instructkit.evaluation.capfilt.decide import Rule
from instructkit.evaluation.capfilt.join import DROPPED, Tally, write_pairs
from instructkit.evaluation.capfilt.judge import PICTURES, Models, Settings, judge, judged
from instructkit.evaluation.capfilt.pictures import Captioned, WebPictures
from instructkit.evaluation.identity import model_identity
from instructkit.files import sha256_of, writing
from instructkit.runs.ranks import Ranks
from instructkit.runs.waiting import first_on_machine, on_first_rank
from instructkit.sources.web_capfilt import OWN_LIST, SOURCE

Say = Callable[[str], None]
BLOCKS = "blocks"
CONVERTED = "data"


def caption_and_filter(config: CapFiltRun, ranks: Ranks, say: Say, load: Callable[[CapFiltRun], Models]) -> Tally:
    """Caption and filter web pictures, and write the pairs that are kept; all ranks call it.

    Beside `capfilt.json` and `dropped.jsonl` the run's folder then has `blocks/`, from which a run that was stopped, or
    one with another threshold, goes on, and `data/`, the pairs as a converted dataset.

    Args:
        config: the settings.
        ranks: the processes that share the blocks out.
        say: takes lines for people.
        load: gives the models, on every rank.

    Returns:
        What it came to, the same on every rank.

    Raises:
        UserError: data, pictures or a model are missing, or the folder holds blocks of other models, data or seed.
    """
    root, folder = Path(config.data.root), Path(config.output)
    on_first_rank(lambda: _check_folder(folder))
    web, human = first_on_machine(
        lambda: ([Captioned(each, root) for each in names] for names in (config.data.web, config.data.human))
    )
    _check_names(web, human)
    on_first_rank(lambda: _look([*web, *human], root, say))
    pictures = WebPictures(web)
    say(f"data      {pictures.listed:,} web pairs of {len(pictures):,} pictures, {sum(map(len, human)):,} human pairs")
    models = load(config)
    blocks = Blocks(folder / BLOCKS, ranks, "run")
    if blocks.open(*on_first_rank(lambda: (_identity(config, web), _media(web, say)))):
        say("media     pictures were replaced since the last start, so all are looked at again")
    settings = Settings(config.captioner.captions, config.seed, config.batch_size)
    judge(models, pictures, settings, blocks)
    tally = on_first_rank(lambda: _write(config, pictures, human, blocks))
    for line in told(tally):
        say(line)
    say(f"output    {folder / OWN_LIST}, {folder / DROPPED} and {folder / CONVERTED / SOURCE.name / SOURCE.split}")
    return tally


def told(tally: Tally) -> list[str]:
    """Lines for the log: what was kept and dropped."""
    lines = [
        f"pictures  {tally.pictures:,}, of which {tally.repeated:,} are listed several times, {tally.unreadable:,} "
        f"cannot be read and {tally.emptied:,} keep no text"
    ]
    for origin in ("web", "synthetic"):
        kept, reasons = tally.kept.get(origin, 0), tally.dropped.get(origin, {})
        if kept or reasons:
            parts = "".join(f", {count:,} {why}" for why, count in sorted(reasons.items()))
            noise = tally.noise(origin)
            share = "" if noise is None else f" (noise ratio {100 * noise:.1f}%)"
            lines.append(f"{origin:<9} {kept:,} kept{parts}{share}")
    return [*lines, f"cut       the filter read only the beginning of {tally.cut:,} texts"] if tally.cut else lines


def _check_folder(folder: Path) -> None:
    """Look that no other run lies there, whose report would be replaced."""
    for name in ("checkpoints", "model", "evaluation"):
        if (folder / name).exists():
            raise UserError(f"{folder}: another run lies here, with {name}/; choose another folder (output=...)")


def _check_names(web: list[Captioned], human: list[Captioned]) -> None:
    names = [each.name for each in (*web, *human)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"data: {name} is named twice in data.web and data.human; name it once")


def _look(datasets: list[Captioned], root: Path, say: Say) -> None:
    for each in datasets:
        looked = media_files.look(root / each.name)
        if looked.none_there:
            raise UserError(f"{each.name}: {looked.line()}: {convert_command(each.name, root, images=True)}")
        if looked.missing:
            say(f"data      {each.name}: {looked.line()}")


def _identity(config: CapFiltRun, web: list[Captioned]) -> dict[str, Any]:
    """All that the blocks depend on: what is kept of them afterwards is no part of it."""
    captioner, scorer = config.captioner, config.filter
    return {
        "captioner": None if captioner.model is None else [model_identity(captioner.model), _plain(captioner)],
        "filter": None if scorer.model is None else [model_identity(scorer.model), scorer.score],
        "data": {each.name: sha256_of(each.examples.folder / MANIFEST) for each in web},
        "seed": config.seed,
        "batch_size": config.batch_size,
        "dtype": config.dtype,
        "pictures": PICTURES,
    }


def _plain(captioner: msgspec.Struct) -> dict[str, Any]:
    return {key: value for key, value in msgspec.to_builtins(captioner).items() if key != "model"}


def _media(web: list[Captioned], say: Say) -> str:
    digests = [media_files.digest(each.examples.folder, say) for each in web]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def _write(config: CapFiltRun, pictures: WebPictures, human: list[Captioned], blocks: Blocks) -> Tally:
    folder = Path(config.output)
    rule = Rule() if config.filter.model is None else Rule(config.filter.least, config.filter.keep)
    low = -1.0 if config.filter.score == "itc" else 0.0
    with writing(folder):
        tally = write_pairs(lambda: judged(blocks, len(pictures)), rule, human, folder, low)
    tally.listed, tally.repeated = pictures.listed, pictures.repeated
    outcome = convert(SOURCE.name, folder, folder / CONVERTED, split=SOURCE.split)
    if (read := outcome.manifest.files[0].path) != OWN_LIST:
        raise UserError(f"{folder}: {read} lies here, too, which {SOURCE.name} reads first; choose another folder")
    if outcome.too_many_rejects:
        raise UserError(outcome.complaint())
    return tally
