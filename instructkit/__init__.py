"""Instruction tuning of vision-language models the InstructBLIP way, from raw releases to zero-shot reports.

    import instructkit as ik

    ik.sources()["vqav2"].published                                  # facts of the 26 datasets
    ik.convert("vqav2", raw="releases/vqav2", out="data")            # a release to examples
    data = ik.Dataset("data/vqav2/train")                            # a sequence of ik.Example
    model = ik.load_model("runs/finetune/model", device="cuda", dtype="bf16")
    model.ask("photo.jpg", "What was paid?")                         # also rank, attention; embed of a first stage
    ik.evaluate(model, ["okvqa"], data="data").report("out")
    ik.train("easy_vqa", max_steps=20)                               # the recipe, in this process

Errors that you can fix are raised as `ik.UserError`, in one line. torch is loaded with the first model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

    from instructkit import sources
    from instructkit.conversion.convert import Outcome
    from instructkit.data.examples import Example
    from instructkit.errors import UserError
    from instructkit.evaluation.assistant import Model, load_model
    from instructkit.prompts.dataset import Dataset
    from instructkit.reports.evaluated import Evaluated
    from instructkit.reports.opened import Report

__version__ = "0.1.0"
__all__ = [
    "Dataset",
    "Evaluated",
    "Example",
    "Model",
    "Report",
    "UserError",
    "convert",
    "evaluate",
    "load_model",
    "sources",
    "train",
]

_PLACES = {
    "Dataset": "prompts.dataset",
    "Evaluated": "reports.evaluated",
    "Example": "data.examples",
    "Model": "evaluation.assistant",
    "Report": "reports.opened",
    "UserError": "errors",
    "load_model": "evaluation.assistant",
}


def __getattr__(name: str) -> Any:
    if name == "sources":
        return import_module("instructkit.sources")
    if name not in _PLACES:
        raise AttributeError(f"module 'instructkit' has no attribute {name!r}")
    return getattr(import_module(f"instructkit.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def convert(
    name: str,
    raw: str | PathLike[str] | None = None,
    out: str | PathLike[str] = "data",
    *,
    split: str | None = None,
    images: str | PathLike[str] | None = None,
    limit: int | None = None,
    jobs: int = 1,
    check_images: bool = False,
    force: bool = False,
    ocr: str | None = None,
) -> Outcome:
    """Convert one split of a dataset into examples, `out/<name>/<split>`; what is there already is kept.

    Example:
        >>> made = ik.convert("vqav2", raw="releases/vqav2", out="data")
        >>> made.folder, made.manifest.examples
        (PosixPath('data/vqav2/train'), 443757)

    Args:
        name: a source: a key of `ik.sources()`.
        raw: folder of the release; None for one that comes as a Python package. For `jsonl`, data of your own, also a
            file.
        out: folder of converted datasets.
        split: None for the one that the paper uses.
        images: folder that media paths start from, if not the release's.
        limit: stop after this many raw records.
        jobs: processes; the result does not depend on their number.
        check_images: decode every picture and video.
        force: convert again, though nothing has changed.
        ocr: `package:function` that reads the words on a picture, where the release has none.

    Returns:
        What came out: `folder`, `manifest`, whether it was `converted` now, `warnings`.

    Raises:
        UserError: no such source, split or file; more than 1% of the records do not fit; or none of the pictures that
            were looked for is there.
    """
    import warnings
    from pathlib import Path

    from instructkit import sources
    from instructkit.conversion.convert import convert as convert_split

    folder = sources.default_raw(name) if raw is None else Path(raw)
    if folder is None:
        raise _error(f"{name}: name the folder of its release: raw=...; `instructkit sources {name}` draws it")
    outcome = convert_split(
        name,
        folder,
        Path(out),
        split=split,
        images=None if images is None else Path(images),
        limit=limit,
        jobs=jobs,
        check_images=check_images,
        force=force,
        ocr=ocr,
    )
    if outcome.too_many_rejects or outcome.no_media:
        raise _error(outcome.complaint() if outcome.too_many_rejects else outcome.no_media)
    for line in outcome.warnings:
        warnings.warn(f"{outcome.folder}: {line}", stacklevel=2)
    return outcome


def evaluate(
    model: Model | str | PathLike[str],
    benchmarks: str | Sequence[str],
    data: str | PathLike[str] = "data",
    out: str | PathLike[str] | None = None,
    *,
    limit: int | None = None,
    batch_size: int = 64,
    spread: int = 0,
    prompts: str = "full",
    words: str | PathLike[str] | None = None,
    exchanged: bool = False,
    say: Callable[[str], None] = print,
) -> Evaluated:
    """Evaluate a model on benchmarks, as `instructkit evaluate` does.

    Example:
        >>> found = ik.evaluate(model, ["okvqa", "gqa"], data="data")
        >>> found.scores
        {'okvqa': 43.1, 'gqa': 48.4}
        >>> found.report("out")                             # out/report/report.html, report.md, report.json

    Args:
        model: from `ik.load_model`, or what that takes.
        benchmarks: names (`instructkit benchmarks`), NAME/SPLIT, `held-out` or `held-in`; one or a list.
        data: folder of converted datasets.
        out: folder of the run, where an evaluation that was stopped goes on; None for a temporary one.
        limit: maximum number of examples of each benchmark, the first of its split.
        batch_size: questions a forward pass.
        spread: number of training wordings to ask in beside each benchmark's prompt.
        prompts: full for the benchmarks' prompts; none or name for the bare input in their place, as a run with the
            same `data.instructions` trains on it.
        words: file of descriptions (`instructkit world` writes one) that the model's LLM reads in place of pictures.
        exchanged: ask each question about another picture of its benchmark: the score of a model that sees nothing.
        say: takes the lines about what is being done.

    Returns:
        The scores, and `report(out)` that writes the report.

    Raises:
        UserError: no such model, benchmark or folder, or `out` holds another evaluation.
    """
    from instructkit.reports.evaluated import evaluate_model

    settings = {"limit": limit, "eval_batch_size": batch_size, "spread": spread, "prompts": prompts}
    told = None if words is None else str(words)
    return evaluate_model(model, benchmarks, data, out, **settings, words=told, exchanged=exchanged, say=say)


def train(config: str | PathLike[str] = "easy_vqa", **settings: Any) -> Report:
    """Run the shipped recipe in this process: convert what is missing, train, evaluate, report.

    Several processes or GPUs: `instructkit train`, or `deepspeed recipes/instruct.py`.

    Example:
        >>> report = ik.train("easy_vqa", max_steps=20, output="runs/short")
        >>> report.scores
        {'easy_vqa': 21.3}
        >>> ik.train("finetune", data="mine", **{"model.name": "flan-t5-xl"})

    Args:
        config: name of a config (`instructkit configs`), or a YAML file.
        **settings: over those of the config, as `key=value` words of the command line are.

    Returns:
        The run's report; the model lies in `report.folder / "model"`.

    Raises:
        UserError: a setting, data or a model is not as it must be.
    """
    from instructkit.training.recipe import run_recipe

    return __getattr__("Report")(run_recipe(str(config), settings))


def _error(message: str) -> UserError:
    from instructkit.errors import UserError

    return UserError(message)
