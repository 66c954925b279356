"""The instruction format: one `Example` a question, caption or dialog turn.

Examples hold fields, not prose: templates (`instructkit.prompts.templates`) turn them into text when a batch is made,
so one conversion serves every template.
"""

from __future__ import annotations

import math
from string import ascii_lowercase

import msgspec

TASKS = (
    "captioning",
    "reading_captioning",
    "visual_reasoning",
    "vqa",
    "knowledge_vqa",
    "reading_vqa",
    "question_generation",
    "video_qa",
    "visual_dialog",
    "classification",
    "llava",
)
"""The 11 task groups of InstructBLIP (paper, appendix; held-in and held-out)."""


class Turn(msgspec.Struct, gc=False):
    """One finished round of a conversation."""

    question: str
    answer: str


class Example(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One question, caption or dialog turn about one image, several images or one video.

    Attributes:
        id: `source/split/key`, unique and stable over conversions.
        images: paths below the manifest's `media_root`; several for multi-image questions.
        video: path of the video below `media_root`, instead of images.
        start: first second of the clip inside the video.
        end: last second of the clip inside the video.
        question: the question, without any prompt around it.
        answers: one a human annotator, in the release's order and with repeats; the reply for LLaVA data.
        choices: answer options or ranking candidates, in the release's order; a blank one is never shown or chosen.
        choice: index of the right one in `choices`.
        relevance: how right each of `choices` is, 0 to 1 (VisDial's dense annotations).
        context: text that comes with the question: ScienceQA's hint, the text on a meme.
        lecture: ScienceQA's lecture.
        rationales: human explanations of the answer (A-OKVQA, ScienceQA's solution).
        ocr_tokens: words read off the image, in the release's order.
        references: human captions.
        history: earlier rounds of the dialog.
        statement: a claim about the image that is true or false (VSR).
        meta: further facts of the record that reports group by, such as NoCaps' domain.
    """

    id: str
    images: list[str] = []
    video: str | None = None
    start: float | None = None
    end: float | None = None
    question: str | None = None
    answers: list[str] = []
    choices: list[str] = []
    choice: int | None = None
    relevance: list[float] = []
    context: str | None = None
    lecture: str | None = None
    rationales: list[str] = []
    ocr_tokens: list[str] = []
    references: list[str] = []
    history: list[Turn] = []
    statement: str | None = None
    meta: dict[str, str] = {}

    @property
    def source(self) -> str:
        """Name of the source dataset, the first part of the id."""
        return self.id.split("/", 1)[0]


LETTERS = len(ascii_lowercase)
"""Options that a prompt can letter."""

CAPTIONED = frozenset({"captioning", "reading_captioning"})
"""Tasks whose examples hold captions (`references`) and ask nothing."""
_TEXTS = ("references", "rationales", "ocr_tokens", "images")
_LINES = ("question", "statement", "context", "lecture", "video")


def problem(example: Example, task: str, hidden: bool = False) -> str | None:
    """Why an example cannot be used for its task, or None if it can.

    It needs a picture or a video, what the task asks with (captions: nothing; visual reasoning: a question or a
    statement; classification: a question or a text; the others: a question) and the right reply (captions: references;
    the others: answers or a choice). No text may be blank, an index must lie in its list, a number must be finite.
    Some of several answers may be blank: annotators left them so, and VQA accuracy is a mean over all ten. Some choices
    may be blank as well, since releases have such and the index of the right one counts them; the right one may not.
    Options are lettered in prompts, so there are at most 26; the candidates of a dialog are only ranked.

    Args:
        example: to look at.
        task: one of `TASKS`.
        hidden: True for a split whose replies the authors keep to themselves.
    """
    if not example.images and example.video is None:
        return "has neither pictures nor a video"
    for name in _LINES:
        line = getattr(example, name)
        if line is not None and not line.strip():
            return f"{name} is blank"
    for name in _TEXTS:
        texts = getattr(example, name)
        if texts and not all(map(str.strip, texts)):
            return f"one of {name} is blank"
    if example.answers and not any(map(str.strip, example.answers)):
        return "all answers are blank"
    for path in example.images if example.video is None else (*example.images, example.video):
        if path.startswith("/") or (".." in path and ".." in path.split("/")):
            return f"path {path!r} leaves the media folder"
    return _unasked(example, task, hidden) or _out_of_range(example, task) or _bad_turn(example)


def has_reply(example: Example, task: str) -> bool:
    """Whether an example holds what a model is to write: references of captions, else answers or a choice."""
    return bool(example.references) if task in CAPTIONED else bool(example.answers) or example.choice is not None


def _unasked(example: Example, task: str, hidden: bool) -> str | None:
    """What the task needs and the example lacks."""
    if task in CAPTIONED:
        return None if has_reply(example, task) or hidden else "has no references"
    asks = example.question is not None
    if not asks and task == "visual_reasoning":
        asks = example.statement is not None
    if not asks and task == "classification":
        asks = example.context is not None
    if not asks:
        return "has no question"
    return None if has_reply(example, task) or hidden else "has no answer"


def _out_of_range(example: Example, task: str) -> str | None:
    choices = len(example.choices)
    if example.choice is not None and not 0 <= example.choice < choices:
        return f"choice {example.choice} is not one of {choices} choices"
    if example.choices and not all(map(str.strip, example.choices)):
        if example.choice is not None and not example.choices[example.choice].strip():
            return f"choice {example.choice}, the right one, is blank"
        if not any(map(str.strip, example.choices)):
            return "all choices are blank"
    if choices > LETTERS and task != "visual_dialog":
        return f"{choices} choices are more than the alphabet has letters"
    if example.relevance:
        if len(example.relevance) != choices:
            return f"{len(example.relevance)} relevances for {choices} choices"
        if not all(0 <= value <= 1 for value in example.relevance):
            return "a relevance is not between 0 and 1"
    if example.start is None and example.end is None:
        return None
    start = 0.0 if example.start is None else example.start
    if not (0 <= start < math.inf) or (example.end is not None and not (start < example.end < math.inf)):
        return f"no clip lies between {example.start} and {example.end} s"
    return None


def _bad_turn(example: Example) -> str | None:
    for turn in example.history:
        if not (turn.question.strip() and turn.answer.strip()):
            return "a turn of the history is blank"
    return None
