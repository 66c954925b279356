"""VQA accuracy as the official VQA evaluation computes it.

Source: `PythonEvaluationTools/vqaEvaluation/vqaEval.py` of GT-Vision-Lab/VQA, its oddities included, because published
numbers contain them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from .base import ExampleMetric

_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_ANY_SIGN = re.compile(f"[{re.escape(_SIGNS)}]")
_TO_BLANK = {ord(sign): " " for sign in _SIGNS}
_COUNTING = "zero one two three four five six seven eight nine ten"
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_COUNTING.split())} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))

_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:at] + word[at + 1 :] for at, char in enumerate(word) if char == "'"]


# The one entry that takes an apostrophe away is a slip of the official table. Its entries with capitals ("Im", "Ive")
# are left out: the text is in lower case by then, so that they never match.
CONTRACTIONS = {typo: word for word in _CONTRACTIONS.split() for typo in _without_one_apostrophe(word)} | {
    "somebody'd": "somebodyd"
}


def clean(text: str) -> str:
    """Line breaks and tabs become blanks, outer white space goes."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(text: str, digit: str = "[0-9]") -> str:
    r"""Take out 21 punctuation signs and the periods, as the official script does.

    A sign becomes a blank; it vanishes where it stands beside a blank anywhere in the text, and all signs vanish if the
    text has a comma between digits anywhere. Periods go unless a digit follows, at most 32 of them.

    Args:
        text: The cleaned text.
        digit: Regular expression of a digit. ASCII, as the script's Python 2 had it; the EvalAI variant has `\d`.
    """
    result = text
    if _ANY_SIGN.search(text):
        thousands = re.search(f"{digit},{digit}", text)
        for sign in set(_SIGNS).intersection(text):
            if thousands or f"{sign} " in text or f" {sign}" in text:
                result = result.replace(sign, "")
        result = result.translate(_TO_BLANK)
    if "." in result:
        # The script passes re.UNICODE, which is 32, where `sub` takes the count.
        result = re.sub(rf"\.(?!{digit})", "", result, count=32)
    return result


def strip_articles(text: str) -> str:
    """Lower case, number words to digits, no articles, missing apostrophes put back."""
    words = (_NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=1 << 16)
def normalise(text: str) -> str:
    """What the official script compares when the annotators disagree."""
    return strip_articles(strip_punctuation(clean(text)))


def leave_one_out(matches: int, annotators: int) -> float:
    """Mean over the annotators of min(1, matching answers of the others / 3).

    Args:
        matches: How many annotators gave the predicted answer.
        annotators: How many there are in all.
    """
    if matches == 0:
        return 0.0
    agreeing = matches * min(1.0, (matches - 1) / 3)
    return (agreeing + (annotators - matches) * min(1.0, matches / 3)) / annotators


@lru_cache(maxsize=1 << 16)
def normalise_evalai(text: str) -> str:
    """What the EvalAI server of TextVQA compares.

    Commas and question marks go first, and a possessive becomes a word of its own.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return strip_articles(strip_punctuation(clean(text.strip()), digit=r"\d"))


class VqaAccuracyMetric(ExampleMetric):
    """`vqa_accuracy`, 0..100: mean of the official VQA accuracy (VQAv2, OKVQA, VizWiz)."""

    key = "vqa_accuracy"

    @staticmethod
    def score_one(prediction: str, answers: Sequence[str]) -> float:
        """Official accuracy, 0..1, of one prediction against the annotators' answers (ten in VQAv2).

        Unanimous annotators are compared without any normalisation. Articles go even where they are the whole answer.
        """
        cleaned, prediction = [clean(answer) for answer in answers], clean(prediction)
        if len(set(cleaned)) > 1:
            cleaned, prediction = [normalise(answer) for answer in cleaned], normalise(prediction)
        return leave_one_out(cleaned.count(prediction), len(cleaned))


class VqaAccuracyEvalAIMetric(ExampleMetric):
    """`vqa_accuracy_evalai`, 0..100: mean VQA accuracy as the EvalAI server computes it (TextVQA).

    Source: `VQAEvalAIAccuracy` and `EvalAIAnswerProcessor` of facebookresearch/mmf. Unanimous answers are normalised as
    well.
    """

    key = "vqa_accuracy_evalai"

    @staticmethod
    def score_one(prediction: str, answers: Sequence[str]) -> float:
        """EvalAI accuracy, 0..1, of one prediction against the annotators' answers."""
        matches = [normalise_evalai(answer) for answer in answers].count(normalise_evalai(prediction))
        return leave_one_out(matches, len(answers))
