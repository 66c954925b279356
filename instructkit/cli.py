"""The `instructkit` command. Each subcommand is a few lines: what it does lives in the module that it calls.

Exit codes: 0 done; 1 done, but too many records were rejected, no picture is there or something failed on the way; 2 a
mistake in what was asked for, told in one line; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import typer

from instructkit import __version__
from instructkit.errors import UserError

app = typer.Typer(
    name="instructkit",
    help="Instruction tuning of vision-language models the InstructBLIP way.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


ModelName = Annotated[str, typer.Option("--model", help="Model folder, published size or hub name.")]
Device = Annotated[str | None, typer.Option(help="cuda, cuda:N or cpu. Default: the GPU, where there is one.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
AllowPackages = Annotated[
    bool,
    typer.Option(
        "--allow-packages", help="Allow a model folder to name a Python package for its LLM, whose code runs."
    ),
]


def main() -> None:
    """Run the command; a `UserError`, and what the disk refuses, become one line and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"instructkit: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.strerror is None:
            raise
        place = error.filename or "a file"  # a full disk names none
        print(f"instructkit: {place}: cannot be read or written ({error.strerror})", file=sys.stderr)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _instructkit(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"instructkit {__version__}")


@app.command("sources")
def list_sources(
    name: Annotated[str | None, typer.Argument(help="Show this one in detail.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
) -> None:
    """List the source datasets, or describe one.

    A source's page shows the folder that it expects and the keys of its records.
    """
    import msgspec

    from instructkit import sources
    from instructkit.conversion import catalogue

    if as_json:
        chosen = [sources.source(name)] if name else sources.sources()
        print(msgspec.json.format(msgspec.json.encode([catalogue.as_json(source) for source in chosen])).decode())
    elif name:
        print(catalogue.details(sources.source(name)))
    else:
        print(catalogue.overview(sources.sources()))


@app.command()
def convert(
    name: Annotated[str, typer.Argument(help="A source, or 'all' for every release found below --raw.")],
    out: Annotated[Path, typer.Option(help="Folder for converted datasets.")],
    raw: Annotated[Path | None, typer.Option(help="Folder of the release, or a .jsonl file of your own.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that media paths start from.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Default: the paper's, with 'all' also the benchmarks'; 'all' takes every one.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many raw records.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")] = None,
    check_images: Annotated[bool, typer.Option("--check-images", help="Decode every picture and video.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Convert again even if nothing has changed.")] = False,
    ocr: Annotated[
        str | None, typer.Option(help="package:function that reads the words in a picture if the release has none.")
    ] = None,
) -> None:
    """Convert raw releases into instruction examples.

    Writes Parquet shards, a manifest and the list of rejects.
    """
    from instructkit import sources
    from instructkit.conversion import convert as conversion
    from instructkit.conversion.processes import cores

    options: dict[str, Any] = {
        "images": images,
        "limit": limit,
        "jobs": jobs or cores(),
        "check_images": check_images,
        "force": force,
    }
    if name == "all":
        if ocr is not None:
            raise UserError("--ocr reads words for one source: name it instead of 'all'")
        _convert_all(raw, out, split, options)
        return
    folder = raw or sources.default_raw(name)
    if folder is None:
        raise UserError(f"{name}: name the folder of its release with --raw; `instructkit sources {name}` draws it")
    with _bar(name) as progress:
        outcome = conversion.convert(name, folder, out, split=split, progress=progress, ocr=ocr, **options)
    for warning in outcome.warnings:
        print(f"note: {warning}")
    if not outcome.converted:
        print("nothing changed since the last conversion, so there was nothing to do")
    print(outcome.summary())
    if outcome.too_many_rejects:
        print(f"instructkit: {outcome.complaint()}", file=sys.stderr)
    if outcome.no_media:
        print(f"instructkit: {outcome.no_media}", file=sys.stderr)
    if outcome.too_many_rejects or outcome.no_media:
        raise typer.Exit(1)


@app.command()
def render(
    folder: Annotated[Path, typer.Argument(help="Folder with converted datasets.")],
    format: Annotated[str, typer.Option(help="preview, text, messages or llava.")] = "preview",
    limit: Annotated[int | None, typer.Option(min=1, help="Default: 5 a preview, else all.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the wordings.")] = 0,
    task: Annotated[str | None, typer.Option(help="Use another task's templates, say question_generation.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
) -> None:
    """Show examples as the model reads them, or export them."""
    from instructkit.data.dataset import find_datasets
    from instructkit.files import write_stream
    from instructkit.prompts import export

    if format not in export.FORMATS:
        raise UserError(f"no format is called {format!r}; there are {', '.join(export.FORMATS)}")
    if limit is None and format == "preview":
        limit = 5
    parts = export.FORMATS[format](find_datasets(folder), task, seed, limit)
    if out is None:
        sys.stdout.writelines(parts)
    else:
        write_stream(out, parts)
        print(f"wrote {out}")


@app.command()
def mixture(
    folders: Annotated[list[Path], typer.Argument(help="Folders with converted datasets.")],
    weights: Annotated[list[str] | None, typer.Option("--set", help="NAME=FACTOR on a dataset's weight.")] = None,
) -> None:
    """Print sizes and training probabilities of datasets."""
    from instructkit.conversion import catalogue
    from instructkit.data.mixture import probabilities

    sizes, left_out = training_sizes(folders)
    shares = probabilities(sizes, dict(_weight(text) for text in weights or []))
    rows = [("dataset", "examples", "probability")]
    rows += [(name, catalogue.number(size), f"{shares[name]:.4f}") for name, size in sizes.items()]
    print(catalogue.table(rows, right=[1, 2]))
    if left_out:
        print(f"left out, as they are for evaluation: {', '.join(left_out)}")


@app.command()
def world(
    out: Annotated[Path, typer.Option(help="Folder of the releases; `convert all --raw` reads it.")] = Path(
        "data/world/raw"
    ),
    seed: Annotated[int, typer.Option(help="Decides all that is drawn.")] = 0,
    size: Annotated[str, typer.Option(help="tiny, small or full.")] = "tiny",
    sheet: Annotated[Path | None, typer.Option(help="Only draw twelve examples into this PNG.")] = None,
) -> None:
    """Draw the mini-world: 26 small releases to try things on.

    tiny is 1,124 pictures and 84 films, 8 MB on disk, 3 s of one core; small 6,405 and 360, 38 MB, 10 s; full 38,562
    and 1,596, 215 MB, 32 s.
    """
    from instructkit.world.build import WRITERS, build
    from instructkit.world.sheet import write_sheet

    if sheet is not None:
        write_sheet(sheet, seed)
        print(f"wrote {sheet}")
        return
    pictures = films = 0
    with _bar("world", " releases", len(WRITERS), "draws everything again") as progress:
        for release in build(out, seed, size):
            pictures, films = pictures + len(release.pictures), films + len(release.films)
            progress(1)
    print(f"{out}: {len(WRITERS)} releases with {pictures:,} pictures and {films:,} films; next:")
    print(f"instructkit convert all --raw {out} --out {out.parent} --check-images")


@app.command()
def evaluate(
    model: ModelName,
    data: Annotated[str, typer.Option(help="Folder with converted datasets.")],
    benchmarks: Annotated[str, typer.Option(help="held-out, held-in, NAME or NAME/SPLIT; several with commas.")],
    output: Annotated[
        str,
        typer.Option("--output", "--out", help="Folder of the run; started again, it continues where it was."),
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="Number of examples of each benchmark.")] = None,
    eval_batch_size: Annotated[
        int, typer.Option("--eval-batch-size", "--batch-size", min=1, help="Questions per forward pass.")
    ] = 64,
    spread: Annotated[
        int, typer.Option(min=0, help="Number of training wordings to evaluate in addition to each prompt.")
    ] = 0,
    prompts: Annotated[
        str, typer.Option(help="full, or none or name for the bare input in place of the protocols' prompts.")
    ] = "full",
    dtype: Dtype = "float32",
    words: Annotated[
        str | None, typer.Option(help="Descriptions of the pictures, which the model's LLM reads in their place.")
    ] = None,
    exchanged: Annotated[
        bool, typer.Option("--exchanged", help="Ask each question about another picture: the score of a blind model.")
    ] = False,
    allow_packages: AllowPackages = False,
) -> None:
    """Evaluate a model on benchmarks and write a report.

    Over several ranks: deepspeed recipes/evaluate.py.
    """
    from instructkit.runs.cores import share_cores

    share_cores()  # before torch is loaded
    from instructkit.config.read import evaluation_settings
    from instructkit.evaluation.run import evaluate as run
    from instructkit.reports.report import failed, last_lines, write_evaluation_report
    from instructkit.runs.lock import locked
    from instructkit.runs.ranks import Ranks

    settings = evaluation_settings(
        {
            "model.name": model,
            "words": words,
            "exchanged": exchanged,
            "data.root": data,
            "benchmarks": benchmarks,
            "output": output,
            "limit": limit,
            "eval_batch_size": eval_batch_size,
            "spread": spread,
            "prompts": prompts,
            "dtype": dtype,
            "allow_packages": allow_packages,
        }
    )
    with locked(Path(settings.output)):
        found = run(settings, Ranks(), print)
        for line in last_lines(write_evaluation_report(settings)):
            print(line)
    if found is None or failed(found):
        raise typer.Exit(1)


def _benchmarks() -> list[str]:
    from instructkit.prompts.protocols import benchmarks

    return benchmarks()


def _configs() -> list[str]:
    from instructkit.config.read import config_names

    return list(config_names())


@app.command()
def ask(
    words: Annotated[
        list[str], typer.Argument(metavar='PHOTO... "QUESTION"', help='Or FOLDER "QUESTION", or questions.jsonl.')
    ],
    model: ModelName,
    beams: Annotated[int | None, typer.Option(help="Width of the beam search. Default: 1, or the protocol's.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Default: 256, or the protocol's.")] = None,
    candidates: Annotated[str | None, typer.Option(help="Rank these, with commas: yes,no.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="Ask as this benchmark: its prompt, decoding, candidates.", autocompletion=_benchmarks),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Converted datasets, if the protocol ranks their answers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write to this file: .csv or .jsonl.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per forward pass.")] = 32,
    device: Device = None,
    dtype: Dtype = "float32",
    allow_packages: AllowPackages = False,
) -> None:
    """Ask a model about photos, videos or a .jsonl file.

    A folder or a .jsonl file gives CSV, one line per answer.

    Without --protocol the model reads the question as it stands, and its answer is printed as it is made.
    """
    load = _loader(model, device, dtype, allow_packages)
    from instructkit.evaluation.ask import ask as answer

    given = {"num_beams": beams, "max_new_tokens": max_new_tokens}
    done = answer(
        words,
        load,
        protocol=protocol,
        candidates=[each.strip() for each in candidates.split(",")] if candidates is not None else None,
        decoding={name: value for name, value in given.items() if value is not None},
        data=data,
        as_json=as_json,
        out=out,
        batch_size=batch_size,
    )
    if not done:
        raise typer.Exit(1)


@app.command()
def chat(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="Pictures, or one video.")],
    model: ModelName,
    device: Device = None,
    dtype: Dtype = "float32",
    allow_packages: AllowPackages = False,
) -> None:
    """Talk with a model about a photo.

    Type one question per line; Ctrl-D ends. Earlier rounds are put in front of each question.
    """
    load = _loader(model, device, dtype, allow_packages)
    from instructkit.evaluation.ask import chat as talk

    talk(photos, load, _typed_lines(), lambda line: print(line, file=sys.stderr))


@app.command(context_settings={"ignore_unknown_options": True})
def train(
    words: Annotated[
        list[str],
        typer.Argument(metavar="CONFIG [KEY=VALUE ...]", autocompletion=_configs, help="A name or a YAML file."),
    ],
) -> None:
    """Train, evaluate and report on all GPUs, by the shipped recipe.

    Options that are not listed go to DeepSpeed's launcher.

    instructkit train easy_vqa max_steps=20 --num_accelerators 2
    """
    from instructkit.training.recipe import launch_command

    command = launch_command(words)
    sys.stdout.flush()
    os.execv(command[0], command)  # exit code and signals are the launcher's


@app.command("export")
def export_model(
    model: Annotated[str, typer.Argument(help="Model folder, published size or hub name.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    task: Annotated[
        str | None, typer.Option("--as", help="Of a BLIP: captioning, retrieval or vqa.", show_default=False)
    ] = None,
    dtype: Dtype = "float32",
    allow_packages: AllowPackages = False,
) -> None:
    """Write a model as one folder for plain transformers.

    LoRA is merged, and the processor is written too. A BLIP is written as the class of one task.
    """
    from instructkit.models.save import export

    print(export(model, out, dtype=dtype, allow_packages=allow_packages, task=task))


@app.command("configs")
def list_configs() -> None:
    """List the configs that can be named."""
    from instructkit.config.read import config_names, described
    from instructkit.conversion.catalogue import table

    rows = [
        (name, shorten(described(path), 100, placeholder=" ..."), str(path)) for name, path in config_names().items()
    ]
    print(table([("config", "what it trains", "file"), *rows]))


@app.command("benchmarks")
def list_benchmarks() -> None:
    """List the benchmarks and protocols.

    Their names are for `evaluate --benchmarks` and `ask --protocol`.
    """
    from instructkit.conversion.catalogue import table
    from instructkit.prompts.protocols import load_protocol

    rows = [
        (
            each.benchmark,
            f"v{each.version}",
            each.title,
            each.role,
            f"{each.source}/{each.split}",
            each.mode,
            each.metric,
        )
        for each in map(load_protocol, _benchmarks())
    ]
    print(table([("benchmark", "version", "title", "role", "split", "mode", "metric"), *rows]))


@app.command()
def completion(shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")]) -> None:
    """Print the completion script of a shell.

    For example: instructkit completion bash >> ~/.bashrc
    """
    from typer.completion import get_completion_script

    if shell not in ("bash", "zsh", "fish"):
        raise UserError(f"completion for {shell!r}: there are bash, zsh and fish")
    print(get_completion_script(prog_name="instructkit", complete_var="_INSTRUCTKIT_COMPLETE", shell=shell))


@app.command("plan")
def plan_run(
    config: Annotated[str, typer.Option(help="YAML file of a run, or the name of one in recipes/configs.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings over the file's.")] = None,
    gpus: Annotated[str, typer.Option(help="How many; several with commas show how the run scales.")] = "8",
    memory: Annotated[float, typer.Option(min=0, help="GB (10^9 bytes) of a GPU.")] = 80.0,
    reserve: Annotated[float, typer.Option(min=0, help="GB of it that CUDA, NCCL and fragments take.")] = 4.0,
    peak: Annotated[float, typer.Option(min=0.001, help="TFLOP/s of a GPU in bf16.")] = 989.0,
    peak_fp32: Annotated[float, typer.Option(min=0.001, help="TFLOP/s of a GPU in fp32.")] = 67.0,
    efficiency: Annotated[float, typer.Option(min=0.001, max=1, help="Share of the peak that is reached.")] = 0.35,
    link: Annotated[float, typer.Option(min=0.001, help="GB/s a GPU inside a machine.")] = 300.0,
    network: Annotated[float, typer.Option(min=0.001, help="GB/s a GPU between machines.")] = 25.0,
    memory_bandwidth: Annotated[float, typer.Option(min=0.001, help="GB/s of a GPU's memory.")] = 3350.0,
    per_machine: Annotated[int, typer.Option(min=1, help="GPUs of a machine.")] = 8,
    instruction: Annotated[int, typer.Option(min=1, help="Tokens of an instruction.")] = 40,
    answer: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 24,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
) -> None:
    """Estimate memory, time and disk of a training run.

    No GPU and no weights are needed.
    """
    import msgspec

    from instructkit.config.read import find_config, load_config

    with redirect_stdout(sys.stderr):  # where DeepSpeed then logs, which would break JSON
        from instructkit.training.plan.estimate import Assumed, make_plan
    from instructkit.training.plan.shapes import Lengths
    from instructkit.training.plan.text import plan_text

    if device not in ("cuda", "cpu"):
        raise UserError(f"--device {device}: is cuda or cpu")
    assumed = Assumed(
        memory=memory,
        reserve=reserve,
        peak=peak,
        peak_fp32=peak_fp32,
        efficiency=efficiency,
        link=link,
        network=network,
        memory_bandwidth=memory_bandwidth,
        per_machine=per_machine,
        lengths=Lengths(instruction, answer, instruction),
    )
    settings = load_config(find_config(config), words or [])
    if settings.recipe != "instruct":
        raise UserError(f"plan: {config} is for recipes/{settings.recipe}.py; only runs of instruct.py can be planned")
    plan = make_plan(settings, _counts(gpus), assumed, device)
    print(msgspec.json.format(msgspec.json.encode(plan_dict(plan))).decode() if as_json else plan_text(plan))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of evaluated runs.")],
    out: Annotated[Path, typer.Option(help="Folder for comparison.md and comparison.html.")] = Path("."),
) -> None:
    """Compare the reports of several runs."""
    from instructkit.reports.compare import write_comparison

    for path in write_comparison(runs, out):
        print(f"wrote {path}")


def training_sizes(folders: list[Path]) -> tuple[dict[str, int], list[str]]:
    """Sizes of the training sets in and below folders, question generation included, and what else is there.

    Raises:
        UserError: a folder holds no dataset, or none of them is for training.
    """
    from instructkit import sources
    from instructkit.data.dataset import find_datasets, read_manifest

    sizes: dict[str, int] = {}
    left_out = []
    manifests = [read_manifest(path) for folder in folders for path in find_datasets(folder)]
    known = {source.name: source for source in sources.sources()}
    for manifest in manifests:
        source = known.get(manifest.source)
        name = f"{manifest.source}/{manifest.split}"
        if source is not None and manifest.split not in source.splits:  # your own data
            sizes[name] = manifest.examples
        elif manifest.role == "held-out" or (source is not None and manifest.split != source.split):
            left_out.append(name)
        else:
            sizes[manifest.source] = manifest.examples
    sizes |= {
        name: sizes[of] for name, source in known.items() if (of := source.examples_of) is not None and of in sizes
    }
    if not sizes:
        raise UserError(f"{' '.join(map(str, folders))}: no dataset for training here, only {', '.join(left_out)}")
    return sizes, left_out


def _convert_all(raw: Path | None, out: Path, split: str | None, options: dict[str, Any]) -> None:
    from instructkit.conversion import convert_all

    if raw is None:
        raise UserError("convert all: name the folder that holds the releases with --raw")
    if split not in (None, "all"):
        raise UserError(f"convert all: --split is 'all' or not given, not {split!r}; convert the sources one by one")
    results = []
    with _bar("all") as progress:
        for result in convert_all.convert_all(raw, out, every_split=split == "all", progress=progress, **options):
            results.append(result)
    print(convert_all.summary(results))
    if not any(result.outcome for result in results):
        raise UserError(convert_all.no_release(raw))
    if any(result.bad for result in results):
        raise typer.Exit(1)


def plan_dict(value: Any) -> Any:
    """Named tuples as objects with their fields' names, for JSON."""
    if hasattr(value, "_asdict"):
        return {name: plan_dict(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {name: plan_dict(part) for name, part in value.items()}
    return [plan_dict(part) for part in value] if isinstance(value, (list, tuple)) else value


def _counts(text: str) -> list[int]:
    """`8,64` as numbers of GPUs."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UserError(f"--gpus {text}: must be a number of GPUs, or several with commas, such as 64,512")
    return counts


def _loader(model: str, device: str | None, dtype: str, allow_packages: bool) -> Any:
    """What loads a model, when it is called."""
    from instructkit.runs.cores import share_cores

    share_cores()  # before torch is loaded
    from instructkit.evaluation.assistant import load_model

    return lambda: load_model(model, device, dtype, allow_packages)


def _typed_lines() -> Iterator[str]:
    """Lines of the console, or of what stands in its place, to their end."""
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return


@contextmanager
def _bar(
    name: str, unit: str = " records", total: int | None = None, again: str = "goes on from here"
) -> Iterator[Any]:
    """A progress bar; gives the function that moves it. An interrupt says what the same command does then (`again`)."""
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # its thread and the forks of a conversion do not go together
    try:
        with tqdm(desc=name, unit=unit, unit_scale=True, total=total) as bar:
            try:
                yield bar.update
            finally:
                bar.leave = bar.n > 0  # nothing done, nothing to show
    except KeyboardInterrupt:
        print(f"instructkit: stopped; the same command {again}", file=sys.stderr)
        raise typer.Exit(130) from None


def _weight(text: str) -> tuple[str, float]:
    name, _, factor = text.partition("=")
    try:
        return name, float(factor)
    except ValueError:
        raise UserError(f"--set {text}: must be NAME=FACTOR, such as okvqa=1.5") from None


if __name__ == "__main__":
    main()
