"""One benchmark: the examples of a protocol through a model, every response written down as it is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from instructkit.data.dataset import MANIFEST, Examples, load_examples, not_converted
from instructkit.data.media_files import Stamps
from instructkit.errors import UserError
from instructkit.evaluation.answer import Answerer, Batch
from instructkit.evaluation.exchanged import Exchange
from instructkit.evaluation.questions import Plan, Question, draw, make_plan
from instructkit.evaluation.responses import ResponseLog
from instructkit.prompts.protocols import VOCABULARY, Protocol
from instructkit.runs.ranks import Ranks


class Task(NamedTuple):
    """A benchmark that can be evaluated.

    Attributes:
        question: how it asks.
        examples: the split that the protocol names.
        plan: what is to be answered.
        vocabulary: candidates, for protocols that take them from other splits.
        hidden: the authors keep the split's answers to themselves.
        folder: where its responses are kept.
        exchange: shows each question another picture; None for its own.
    """

    question: Question
    examples: Examples
    plan: Plan
    vocabulary: list[str] | None
    hidden: bool
    folder: Path
    exchange: Exchange | None = None


def make_task(
    question: Question,
    root: Path,
    folder: Path,
    *,
    limit: int | None,
    batch_size: int,
    hidden: bool = False,
    seed: int | None = None,
    exchanged: bool = False,
) -> Task:
    """Open what a benchmark needs and lay out its batches.

    Args:
        question: how it asks.
        root: folder of converted datasets.
        folder: where its responses are kept.
        limit: number of examples, from the start of the split.
        batch_size: questions a forward pass.
        hidden: the authors keep the split's answers to themselves.
        seed: draws the examples of a limit, instead of the first.
        exchanged: whether each question is asked about another picture of the benchmark.

    Raises:
        UserError: a split is not converted, none of its examples belongs to the benchmark, or there is no picture to
            exchange another for.
    """
    protocol = question.protocol
    for split in [protocol.split, *(protocol.vocabulary.splits if protocol.vocabulary else [])]:
        name = f"{protocol.source}/{split}"
        if not (root / name / MANIFEST).is_file():
            raise UserError(not_converted(name, root))
    examples = load_examples(root / protocol.source / protocol.split)
    if protocol.mode == "retrieve":
        _check_pictures(examples, f"{protocol.source}/{protocol.split}")
    drawn = draw(protocol, examples, limit, seed) if seed is not None and limit is not None else None
    plan = make_plan(question, examples, limit, batch_size, drawn)
    if not plan.batches:
        needs = f" (it needs {', '.join(protocol.needs)})" if protocol.needs else ""
        raise UserError(f"{protocol.source}/{protocol.split}: none of {len(examples):,} examples belongs to it{needs}")
    asked = sorted(index for batch in plan.batches for index in batch)
    exchange = Exchange(protocol.benchmark, examples.take(asked)) if exchanged else None
    return Task(question, examples, plan, load_vocabulary(protocol, root), hidden, folder, exchange)


def answer_benchmark(
    evaluator: Answerer,
    task: Task,
    identity: dict[str, Any],
    *,
    ranks: Ranks | None = None,
    replace: bool = False,
    leave: bool = True,
    media: Stamps | None = None,
) -> ResponseLog:
    """Have every example answered, or those that an evaluation which was stopped left; all ranks call it.

    Args:
        evaluator: the model.
        task: the benchmark.
        identity: what the responses depend on.
        ranks: the processes that share the batches out.
        replace: discard responses that depend on something else, instead of an error.
        leave: whether the progress bar stays when it has ended.
        media: the stamps of the split's media files, by which replaced ones are noticed.

    Returns:
        The finished log.

    Raises:
        UserError: the folder holds other responses.
    """
    ranks = ranks or Ranks()
    protocol, plan = task.question.protocol, task.plan
    log = ResponseLog(task.folder, ranks)
    todo = log.open(identity, plan.names, replace, media)
    mine = todo[ranks.rank :: ranks.world]
    shared = evaluator.shared_trie(protocol, task.vocabulary) if mine else None
    done = len(plan.order) - sum(len(plan.batches[number]) for number in todo)
    with tqdm(
        total=done + sum(len(plan.batches[number]) for number in mine),
        initial=done,
        unit=" questions",
        desc=f"evaluate {protocol.benchmark}",
        leave=leave,
        disable=None if ranks.first else True,  # None: where nobody is watching
    ) as bar:
        for batch in _prepared(evaluator, task, [plan.batches[number] for number in mine]):
            log.append(evaluator.answer(task.question, batch, shared))
            bar.update(len(batch.order))
    log.close(plan.order)
    return log


def _check_pictures(examples: Examples, name: str) -> None:
    """Raise UserError unless each example has a picture of its own, with all its captions."""
    pictures = [example.images for example in examples]
    if any(len(each) != 1 for each in pictures) or len({each[0] for each in pictures}) < len(pictures):
        raise UserError(
            f"{name}: a retrieval needs a split with one example a picture, which has all its captions; here a picture "
            "has several examples, or an example several pictures"
        )


def load_vocabulary(protocol: Protocol, root: Path) -> list[str] | None:
    """The candidates that a protocol takes from other splits, read from `root/<source>/<split>`; else None.

    Raises:
        UserError: one of the splits is not converted, or they hold no answer.
    """
    if protocol.candidates != VOCABULARY or protocol.vocabulary is None:
        return None
    splits = [load_examples(root / protocol.source / split) for split in protocol.vocabulary.splits]
    texts = protocol.vocabulary.texts(example for split in splits for example in split)
    if not texts:
        raise UserError(f"{protocol.benchmark}: {', '.join(str(split.folder) for split in splits)} hold no answers")
    return texts


def _prepared(evaluator: Answerer, task: Task, batches: Sequence[Sequence[int]]) -> Iterable[Batch]:
    """The batches in order; the next one's pictures are decoded while the model is at work on this one."""
    root = Path(task.examples.manifest.media_root)

    def prepare(batch: Sequence[int]) -> Batch:
        examples = task.examples.take(batch)
        if task.exchange is not None:
            examples = list(map(task.exchange, examples))
        return evaluator.prepare(task.question, examples, root, task.vocabulary, task.hidden)

    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(prepare, batches[0]) if batches else None
        for number in range(len(batches)):
            assert following is not None
            ready = following.result()
            if number + 1 < len(batches):
                following = pool.submit(prepare, batches[number + 1])
            yield ready
