"""The datasets of a run: which splits it reads, converted where they can be, looked at, opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from instructkit import sources
from instructkit.config.settings import RunConfig
from instructkit.conversion import convert
from instructkit.conversion.processes import cores
from instructkit.data import media_files
from instructkit.data.dataset import MANIFEST, convert_command, load_examples, not_converted
from instructkit.errors import UserError, did_you_mean
from instructkit.evaluation.select import wanted_benchmarks
from instructkit.files import sha256_of
from instructkit.prompts.protocols import Protocol
from instructkit.runs.waiting import first_on_machine
from instructkit.training.data import Part
from instructkit.world.build import WRITERS, build, drawn, is_drawn

Say = Callable[[str], None]
RAW = "raw"
"""Folder of the mini-world's releases below that of the converted ones."""


def training_splits(config: RunConfig) -> list[str]:
    """Each `source/split` that a run trains on; of a language model, which reads a file of text, none.

    Raises:
        UserError: there is no such source or split, two entries of `data.train` are the same dataset under two names,
            or `data.weights` names none of them.
    """
    if config.recipe == "pretrain_text":
        return []
    entries = config.data.train
    known: dict[tuple[str, str], str] = {}
    for entry in entries:
        same = known.setdefault((entry.partition("/")[0], _train_split(entry)), entry)
        if same != entry:
            raise UserError(f"data.train: {same} and {entry} are the same dataset; name it once")
    for name in config.data.weights:
        if name not in entries:
            raise UserError(f"data.weights.{name}: no such dataset in data.train; {did_you_mean(name, entries)}")
    return [_train_split(entry) for entry in entries]


def splits_of(config: RunConfig, candidates: bool = True) -> list[str]:
    """All `source/split` that a run reads: what it trains on, then what its evaluations need.

    Args:
        config: of the run.
        candidates: also those that only give an evaluation's candidates, whose pictures nobody looks at.
    """
    wanted = training_splits(config)
    benchmarks = [*config.evaluation.benchmarks]
    if config.evaluation.every:
        wanted += [_train_split(entry) for entry in config.evaluation.validation]
        benchmarks += config.evaluation.watch
    for each in wanted_benchmarks(benchmarks) if benchmarks else []:
        protocol = each.protocol
        refuse_retrieval(protocol)
        wanted.append(f"{protocol.source}/{protocol.split}")
        if candidates and protocol.vocabulary is not None:
            wanted += [f"{protocol.source}/{split}" for split in protocol.vocabulary.splits]
    return list(dict.fromkeys(wanted))


def refuse_retrieval(protocol: Protocol) -> None:
    """Refuse a benchmark that no run evaluates.

    Raises:
        UserError: images and texts retrieve each other in it.
    """
    if protocol.mode == "retrieve":
        name = protocol.benchmark
        raise UserError(
            f"evaluation: {name} is a retrieval, which a model of BLIP-2's first stage does when it is trained: "
            f"instructkit evaluate --model RUN/model --benchmarks {name}; take it out of benchmarks and watch"
        )


def prepare_data(config: RunConfig, say: Say) -> None:
    """Convert what is not converted yet and can be, in `data.workers` processes or one a core; call on one rank.

    Before that the mini-world is drawn, where the settings name one.

    Raises:
        UserError: a split is neither converted nor can be, because nothing says where its release lies.
    """
    root = Path(config.data.root)
    tqdm.monitor_interval = 0  # its thread and the forks of a conversion do not go together
    if config.data.world is not None:
        _draw_world(root / RAW, config.data.world, say)
    for name in splits_of(config):
        source, _, split = name.partition("/")
        raw = _release(config, source)
        if raw is None:
            if not (root / name / MANIFEST).is_file():
                raise UserError(f"{not_converted(name, root)}, or set data.raw.{source}=RELEASE")
            continue
        with tqdm(desc=f"convert {name}", unit=" records", leave=False) as bar:
            jobs = config.data.workers or cores()
            # The mini-world has planted flaws: pictures that are missing or cut off.
            drawn = config.data.world is not None and raw == root / RAW / source
            outcome = convert.convert(
                source, raw, root, split=split, check_images=drawn, jobs=jobs, progress=bar.update
            )
        manifest = outcome.manifest
        if outcome.too_many_rejects:
            raise UserError(f"{name}: {outcome.complaint()}")
        done = "converted" if outcome.converted else "unchanged, not converted again"
        say(f"data      {name}: {manifest.examples:,} examples, {manifest.rejected:,} rejected ({done})")
        for warning in outcome.warnings:
            say(f"note      {name}: {warning}")


def check_media(config: RunConfig, say: Say) -> None:
    """Ask for some media files of each split that the run shows to its model; call on one rank.

    Raises:
        UserError: not a single one of a split is there.
    """
    root = Path(config.data.root)
    for name in splits_of(config, candidates=False):
        looked = media_files.look(root / name)
        if looked.none_there:
            raise UserError(f"{name}: {looked.line()}: {convert_command(name, root, images=True)}")
        if looked.missing:
            say(f"data      {name}: {looked.line()}")


def media_digests(config: RunConfig, say: Say) -> dict[str, str]:
    """What tells, of each split that the run shows to its model, that a picture or video was replaced."""
    root = Path(config.data.root)
    return {name: media_files.digest(root / name, say) for name in splits_of(config, candidates=False)}


def parts_of(config: RunConfig, entries: Sequence[str]) -> list[Part]:
    """Datasets that training or its validation reads, opened; call on every rank.

    Args:
        config: of the run.
        entries: of `data.train` or `evaluation.validation`.
    """
    return first_on_machine(lambda: open_parts(config, entries))


def open_parts(config: RunConfig, entries: Sequence[str]) -> list[Part]:
    """As `parts_of`, on one rank alone."""
    parts = []
    for entry in entries:
        folder = Path(config.data.root) / _train_split(entry)
        examples = load_examples(folder)
        task = sources.source(entry.split("/")[0]).task
        parts.append(Part(entry, examples, task, Path(examples.manifest.media_root)))
    return parts


def data_digest(config: RunConfig, splits: Iterable[str]) -> dict[str, str]:
    """Checksum of the manifest of each of these splits, and of the text that a language model reads."""
    root = Path(config.data.root)
    files = {name: root / name / MANIFEST for name in splits}
    if config.data.text is not None:
        files["text"] = Path(config.data.text)
    return {name: sha256_of(path) for name, path in files.items() if path.is_file()}


def _train_split(entry: str) -> str:
    """`source/split` of an entry of `data.train`; question generation reads the examples of its VQA source."""
    name, _, split = entry.partition("/")
    source = sources.source(name)
    split = split or source.split
    (sources.source(source.examples_of) if source.examples_of else source).find_split(split)
    return f"{source.examples_of or name}/{split}"


def _release(config: RunConfig, source: str) -> Path | None:
    if source in config.data.raw:
        return Path(config.data.raw[source])
    if config.data.world is not None and source in WRITERS:
        return Path(config.data.root) / RAW / source
    return sources.default_raw(source)


def _draw_world(raw: Path, size: str, say: Say) -> None:
    """Draw the world unless it lies there; what was left by a drawing that was stopped is drawn anew."""
    if is_drawn(raw, size=size):
        say(f"world     {raw}: {size}, drawn before")
        return
    if (other := drawn(raw)) is not None:
        told = ", ".join(f"{key} {found}" for key, found in other.items())
        raise UserError(
            f"data.world={size}: {raw} holds another world ({told}); leave data.world out to read that one, or choose "
            "another data.root"
        )
    releases = tqdm(build(raw, size=size), desc="world", unit=" releases", total=len(WRITERS), leave=False)
    pictures = sum(len(release.pictures) for release in releases)
    say(f"world     {raw}: {size}, {pictures:,} pictures drawn")
