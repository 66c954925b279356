"""Bad records such as published releases have: of each hundred records of a split one more, which must be rejected."""

from __future__ import annotations

from typing import Any, NamedTuple

SHARE = 100
"""Good records for each bad one, so that rejects stay within what a conversion puts up with."""


class Flaw(NamedTuple):
    """What is wrong with a record.

    Attributes:
        change: what stands under some of its keys instead of what is right.
        reason: part of the reason for which it must be rejected.
        picture: None, or what is wrong with its picture, which only `convert --check-images` sees: `missing` or
            `broken`.
    """

    change: dict[str, Any]
    reason: str
    picture: str | None = None


BLANK = [""] * 10
NO_TEXT = Flaw({"question": None}, "Expected `str`, got `null`")
NO_TURNS = Flaw(
    {"conversations": [{"from": "human", "value": f"{text}What is it?"} for text in ("<image>\n", "")]},
    "human and gpt do not take turns: human, human",
)
OTHER_PICTURE = Flaw({"image": "999999999999.jpg"}, "image is 999999999999.jpg, but image_link ends with")
NO_ANSWER = "no answer that is not blank"

FLAWS = {
    "coco_caption": (Flaw({"sentences": []}, "no captions"),),
    "flickr30k": (Flaw({"sentences": []}, "no captions"),),
    "web_capfilt": (
        Flaw({}, ": missing", "missing"),
        Flaw({}, "broken picture", "broken"),
        Flaw({"caption": " "}, "caption"),
        Flaw({"url": None}, "neither image nor url"),
    ),
    "nocaps": (Flaw({}, "no captions"),),
    "textcaps": (Flaw({"image_id": None}, "Expected `str`, got `null`"),),
    "textvqa": (Flaw({"answers": BLANK}, NO_ANSWER), NO_TEXT),
    "ocrvqa": (
        Flaw({"answers": []}, "3 questions and 0 answers"),
        Flaw({"questions": []}, "0 questions and 3 answers"),
    ),
    "vqav2": (NO_TEXT, Flaw({"answers": []}, NO_ANSWER)),
    "okvqa": (Flaw({"answers": []}, NO_ANSWER), NO_TEXT),
    "aokvqa": (
        Flaw({"correct_choice_idx": 9}, "correct_choice_idx 9 points to none of 4 choices"),
        Flaw({"direct_answers": BLANK}, "no direct answer that is not blank"),
    ),
    "vizwiz": (Flaw({"answers": [{"answer": "", "answer_confidence": "no"}] * 10}, NO_ANSWER), NO_TEXT),
    "gqa": (NO_TEXT, Flaw({"imageId": 7}, "Expected `str`, got `int`")),
    "vsr": (OTHER_PICTURE, Flaw({"label": "yes"}, "got `str`")),
    "iconqa": (Flaw({"answer": 9}, "answer 9 is no index into 4 choices"), NO_TEXT),
    "scienceqa": (Flaw({"answer": 9}, "answer 9 is no index into 4 choices"), NO_TEXT),
    "visdial": (Flaw({"dialog": None}, "Expected `array`, got `null`"),),
    "hatefulmemes": (Flaw({"text": None}, "Expected `str`, got `null`"), Flaw({"label": "yes"}, "got `str`")),
    "llava_conversation": (NO_TURNS, Flaw({"image": None}, "got `null`")),
    "llava_detail": (NO_TURNS,),
    "llava_reasoning": (NO_TURNS,),
    "msvd_qa": (Flaw({"video_id": 999_999}, "video_id 999999 is no video"), Flaw({"answer": None}, "got `null`")),
    "msrvtt_qa": (Flaw({"video_id": 999_999}, "video_id 999999 is no video"), Flaw({"answer": None}, "got `null`")),
    "ivqa": (
        Flaw({f"answer{place}": "" for place in range(1, 6)}, "none of the five answers is there"),
        Flaw({"end": -1}, "are no clip"),
    ),
}
"""By source, in the order in which they are planted."""
