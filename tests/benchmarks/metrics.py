"""Time of the two costly metrics on one core: `python -m tests.benchmarks.metrics`.

The last line is JSON: seconds for 10,000 VQA answers with ten annotators each, and for CIDEr-D of 5,000 images with
five references each, tokenisation included. Limits: 2 s and 10 s.
"""

import json
import random
import time

from instructkit.evaluation import metrics

_NOUNS = "man woman dog cat bus train table street plate pizza bench horse field wave surfboard umbrella child kitchen"
_OTHERS = "red large young two several wooden riding holding standing sitting near under with next to on in of and the"
_ANSWERS = "yes|no|two|2|a red bus|the dog|isnt|1,000|St. Paul's|black and white|none|on the left|skate-board|10:30"


def _caption(rng: random.Random, vocabulary: list[str]) -> str:
    words = rng.choices(vocabulary, k=rng.randint(7, 14))
    # About one COCO caption in five holds more than plain words and a final period.
    extra = rng.choice(["", "", "", "", rng.choice(['"stop"', "it's", "black-and-white", "St. Paul", "(left)", "5"])])
    words.insert(rng.randrange(len(words)), extra)
    return " ".join(["A", *words]) + rng.choice([".", "", " ."])


def captions(images: int) -> tuple[list[str], list[list[str]]]:
    """One candidate and five references per image, from 2,000 words as frequent as in natural text."""
    rng = random.Random(0)
    stems = (_NOUNS + " " + _OTHERS).split()
    vocabulary = [word for word in stems for _ in range(20)]
    vocabulary += ["".join(rng.choices("abdeghilmnoprstu", k=rng.randint(4, 9))) for _ in range(2000)]
    references = [[_caption(rng, vocabulary) for _ in range(5)] for _ in range(images)]
    return [_caption(rng, vocabulary) for _ in range(images)], references


def answers(questions: int) -> tuple[list[str], list[list[str]]]:
    """One answer and ten annotators per question; a quarter of the answers are unique strings."""
    rng = random.Random(0)

    def answer() -> str:
        common = rng.choice(_ANSWERS.split("|"))
        return common if rng.random() < 0.75 else f"{common}, {rng.randrange(10**6)}"

    return [answer() for _ in range(questions)], [[answer() for _ in range(10)] for _ in range(questions)]


def main() -> None:
    """Print the times."""
    result = {}
    for key, name, (predictions, references) in (
        ("vqa_10000_s", "vqa_accuracy", answers(10_000)),
        ("cider_5000x5_s", "cider", captions(5_000)),
    ):
        metric = metrics.load(name)
        start = time.perf_counter()
        value = metric.compute(predictions=predictions, references=references)
        result[key] = round(time.perf_counter() - start, 3)
        print(f"{name}: {result[key]:.3f} s for {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
