"""Visual Dialog v1.0: ten questions and answers about a picture; each answer is to be found among 100 candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from instructkit.data.examples import Example, Turn
from instructkit.data.readers import RawRecord, Reject, read_json, require
from instructkit.errors import UserError
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.fields import Natural, Text

CANDIDATES = 100


class Round(msgspec.Struct):
    """One round; question and answers are places in the file's lists. Test sets leave the last answer open."""

    question: Natural
    answer: Natural | None = None
    answer_options: Annotated[list[Natural], msgspec.Meta(min_length=CANDIDATES, max_length=CANDIDATES)] | None = None
    gt_index: Annotated[int, msgspec.Meta(ge=0, lt=CANDIDATES)] | None = None


class Dialog(msgspec.Struct):
    """One entry of `data.dialogs`."""

    image_id: Natural
    caption: Text
    dialog: Annotated[list[Round], msgspec.Meta(min_length=1, max_length=10)]


class Pools(msgspec.Struct):
    """`data`: all questions and answers of the file, and the dialogs, still undecoded, that point at them."""

    questions: list[str]
    answers: list[str]
    dialogs: list[msgspec.Raw]


class Content(msgspec.Struct):
    """The file."""

    version: str
    split: str
    data: Pools


class Dense(msgspec.Struct):
    """How right each candidate of one round is, by five annotators; `round_id` counts from 1."""

    image_id: Natural
    round_id: Annotated[int, msgspec.Meta(ge=1, le=10)]
    gt_relevance: list[Annotated[float, msgspec.Meta(ge=0, le=1)]]


_DENSE = "visdial_1.0_val_dense_annotations.json"
_ROUNDS = "{} dialogs of ten rounds, one example a round"

SOURCE = Source(
    name="visdial",
    title="Visual Dialog v1.0",
    task="visual_dialog",
    role="held-out",
    split="val",
    splits={
        "train": Split(("visdial_1.0_train.json", "val2014/"), published=1_232_870, note=_ROUNDS.format("123,287")),
        "val": Split(("visdial_1.0_val.json",), published=20_640, note=_ROUNDS.format("2,064") + "; reads " + _DENSE),
        "test": Split(
            ("visdial_1.0_test.json",), published=8_000, note="one open round a dialog, no answer", hidden=True
        ),
    },
    images="VisualDialog_val2018/VisualDialog_val2018_{image_id:012d}.jpg, likewise test2018; train: COCO 2014",
    tree="""\
visdial/
├── visdial_1.0_train.json
├── visdial_1.0_val.json
├── visdial_1.0_val_dense_annotations.json        (for NDCG; optional)
├── visdial_1.0_test.json
├── VisualDialog_val2018/VisualDialog_val2018_000000239030.jpg ...
├── VisualDialog_test2018/VisualDialog_test2018_000000568676.jpg ...
├── train2014/COCO_train2014_000000000009.jpg ...  (COCO 2014, for train)
└── val2014/COCO_val2014_000000000042.jpg ...      (COCO 2014, for train: tells which folder a picture is in)""",
    licence="CC BY 4.0",
    home="https://visualdialog.org",
    record=Dialog,
    citation="Das et al. 2017, arXiv:1611.08669",
)

_decode = msgspec.json.Decoder(Dialog).decode


def read(raw: Path, split: str) -> Reading:
    """Read `visdial_1.0_{split}.json`, for val the dense annotations as well."""
    path = require(raw, f"visdial_1.0_{split}.json")
    pools = _load(path, split)
    files, warnings, dense = [path], [], {}
    if split == "val" and (raw / _DENSE).is_file():
        files.append(raw / _DENSE)
        dense = {entry.image_id: entry for entry in read_json(raw / _DENSE, list[Dense])}
    elif split == "val":
        warnings.append(f"{raw / _DENSE} is not here: no round gets its relevances, so NDCG cannot be computed")
    picture = (
        _train_picture(raw)
        if split == "train"
        else f"VisualDialog_{split}2018/VisualDialog_{split}2018_{{:012d}}.jpg".format
    )

    def convert(raw_record: RawRecord) -> list[Example]:
        dialog = _decode(raw_record.data)
        prefix = f"visdial/{split}/{dialog.image_id}"
        examples = _rounds(dialog, pools, prefix, picture(dialog.image_id), open_end=split == "test")
        if dialog.image_id in dense:
            _add_relevance(examples, dense[dialog.image_id])
        return examples

    return Reading("v1.0", files, _dialogs(path, pools), convert, raw, warnings)


def _load(path: Path, split: str) -> Pools:
    """Decode the lists; dialogs stay bytes inside the mapped file, so that the largest part is never held."""
    found = read_json(path, Content)
    if found.version != "1.0" or not found.split.startswith(split):
        raise UserError(f"{path}: says that it is version {found.version} of {found.split}, not 1.0 of {split}")
    return found.data


def _dialogs(path: Path, pools: Pools) -> Iterator[RawRecord]:
    for index, dialog in enumerate(pools.dialogs):
        yield RawRecord(path.name, f"data.dialogs[{index}]", bytes(dialog))


def _train_picture(raw: Path) -> Callable[[int], str]:
    """Paths of the train pictures, which come from both folders of COCO 2014; the file does not say from which."""
    folder = raw / "val2014"
    if not folder.is_dir():
        raise UserError(f"{folder}: not here; link COCO's train2014 and val2014, val2014 tells where a picture lies")
    validation = {path.name for path in folder.iterdir()}

    def picture(image_id: int) -> str:
        name = f"COCO_val2014_{image_id:012d}.jpg"
        return f"val2014/{name}" if name in validation else f"train2014/COCO_train2014_{image_id:012d}.jpg"

    return picture


def _rounds(dialog: Dialog, pools: Pools, prefix: str, image: str, open_end: bool) -> list[Example]:
    """One example a round, or with `open_end` one for the last round alone, which then has no answer."""
    history: list[Turn] = []
    examples = []
    for number, entry in enumerate(dialog.dialog, 1):
        question = _look_up(pools.questions, entry.question, "questions")
        is_last = number == len(dialog.dialog)
        if not open_end or is_last:
            example = Example(
                id=f"{prefix}/{number}",
                images=[image],
                question=question,
                references=[dialog.caption.strip()],
                history=list(history),
                meta={"round": str(number)},
            )
            _add_candidates(example, entry, pools, answered=not open_end)
            examples.append(example)
        if not is_last:
            if entry.answer is None:
                raise Reject(f"round {number} has no answer")
            history.append(Turn(question, _look_up(pools.answers, entry.answer, "answers")))
    return examples


def _add_candidates(example: Example, entry: Round, pools: Pools, answered: bool) -> None:
    where = f"round {example.meta['round']}"
    if entry.answer_options is None:
        raise Reject(f"{where} has no answer_options")
    example.choices = [_look_up(pools.answers, option, "answers", blank=True) for option in entry.answer_options]
    if not answered:
        return
    if entry.answer is None or entry.gt_index is None:
        raise Reject(f"{where} has no answer or no gt_index")
    answer = _look_up(pools.answers, entry.answer, "answers")
    if example.choices[entry.gt_index] != answer:
        raise Reject(f"{where}: gt_index {entry.gt_index} points at another answer than answer {entry.answer}")
    example.answers, example.choice = [answer], entry.gt_index


def _add_relevance(examples: list[Example], dense: Dense) -> None:
    if dense.round_id > len(examples) or len(dense.gt_relevance) != CANDIDATES:
        raise Reject(f"dense annotation of round {dense.round_id} with {len(dense.gt_relevance)} values does not fit")
    examples[dense.round_id - 1].relevance = dense.gt_relevance


def _look_up(pool: list[str], index: int, name: str, blank: bool = False) -> str:
    if index >= len(pool):
        raise Reject(f"{index} is beyond the {len(pool)} {name} of the file")
    text = pool[index].strip()
    if not (text or blank):
        raise Reject(f"entry {index} of {name} is blank")
    return text
