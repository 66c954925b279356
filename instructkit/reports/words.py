"""Numbers and short phrases that the Markdown and the HTML report share."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from instructkit.evaluation.score import READERS, cut_phrase

_MEASURES = {
    "cider": "CIDEr",
    "vqa_accuracy": "VQA accuracy",
    "vqa_accuracy_evalai": "VQA accuracy (EvalAI)",
    "aokvqa_direct_answer": "direct answer accuracy",
    "ivqa_accuracy": "iVQA accuracy",
    "exact_match": "exact match",
    "top1": "top-1 accuracy",
    "anls": "ANLS",
    "roc_auc": "ROC AUC",
    "visdial": "MRR",
    "retrieval": "TR R@1",
}
_DETAILS = {f"{kind}_r{depth}": f"{kind.upper()} R@{depth}" for kind in ("tr", "ir") for depth in (1, 5, 10)} | {
    "bleu_4": "BLEU@4",
    "test_dev": "on test-dev",
    "test_std": "on test-std",
}


def measure(entry: dict[str, Any]) -> str:
    """What the benchmark's main value is called in papers."""
    return _MEASURES.get(entry["metric"], entry["metric"])


def detail(name: str) -> str:
    """What another measure of a metric is called in papers."""
    return _DETAILS.get(name, name)


class Measured(NamedTuple):
    """A score as tables show it.

    Attributes:
        measure: what it is called.
        value: of this model.
        interval: in words.
        published: by model, in words.
    """

    measure: str
    value: float
    interval: str
    published: dict[str, str]


def measured(entry: dict[str, Any]) -> list[Measured]:
    """The main score of a benchmark, then those that stand beside it."""
    rows = entry["published"]
    main = Measured(measure(entry), entry["value"], interval(entry), {row["model"]: figure(row) for row in rows})
    return [
        main,
        *(
            Measured(
                detail(name),
                entry["details"][name],
                interval({"interval": entry["intervals"][name]}),
                {
                    row["model"]: figure({**row, "value": row["details"][name]})
                    for row in rows
                    if name in row.get("details", {})
                },
            )
            for name in entry.get("also", ())
        ),
    ]


def group_value(value: float | None) -> str:
    """The score of a group of examples."""
    return "cannot be computed" if value is None else f"{value:.2f}"


def interval(entry: dict[str, Any]) -> str:
    """`52.1 to 56.3`, or a dash."""
    return f"{entry['interval'][0]:.1f} to {entry['interval'][1]:.1f}" if entry["interval"] else "-"


def percents(index: int) -> str:
    """The bounds of a bin of a reliability diagram."""
    return f"{10 * index} to {10 * index + 10}"


def size(entry: dict[str, Any]) -> str:
    """`500`, or `100 of 5,000` where not all were scored."""
    part = "" if entry["n"] == entry["available"] else f" of {entry['available']:,}"
    return f"{entry['n']:,}{part}"


def figure(row: dict[str, Any]) -> str:
    """The value of a published row, with a star where it is unverified."""
    return f"{row['value']:.1f}{'' if row['verified'] else '*'}"


def published(row: dict[str, Any]) -> str:
    """A published row in a phrase."""
    return f"{row['model']} {figure(row)}"


def published_count(manifest: dict[str, Any]) -> str:
    """The published number of examples of a split, which says nothing about a miniature of it."""
    if manifest["miniature"]:
        return "miniature"
    return f"{manifest['published']:,}" if manifest["published"] is not None else "-"


def miniatures(entries: list[dict[str, Any]]) -> str:
    """Which benchmarks are made-up miniatures; empty where none is."""
    made_up = [entry["title"] for entry in entries if entry.get("miniature")]
    if not made_up:
        return ""
    which = "all benchmarks" if len(made_up) == len(entries) else ", ".join(made_up)
    return (
        f"In miniature: {which}. Pictures, films and questions are made up, so these scores cannot be compared with "
        "published ones."
    )


def in_words(config: dict[str, Any]) -> str:
    """Whether the pictures were given in words, and by what; empty where the model saw them."""
    model = config.get("model")
    file = model.get("words") if isinstance(model, dict) else None
    if file is None:
        return ""
    return (
        f"The pictures were given in words: the LLM saw none of them, and read what is in each ({file}) in front of "
        "the prompt."
    )


def barely(config: dict[str, Any]) -> str:
    """What to know of benchmarks that were asked without their instructions; empty where they were not."""
    prompts = (config.get("evaluation") or {}).get("prompts", "full")
    if prompts == "full":
        return ""
    added = ", with the names of task and dataset in front" if prompts == "name" else ""
    return f"Each question was asked by its bare input{added}, and not by the protocol's instruction."


def exchanged(config: dict[str, Any]) -> str:
    """Whether each question was asked about another picture; empty where it was about its own."""
    model = config.get("model")
    if not (isinstance(model, dict) and model.get("exchanged")):
        return ""
    return (
        "The pictures were exchanged: each question was asked about another picture of its benchmark than its own, and "
        "its own is shown below. The scores are those of a model that sees nothing."
    )


def unlike_others(config: dict[str, Any], entries: list[dict[str, Any]]) -> list[str]:
    """Why the scores of a report cannot be compared with others, a sentence each."""
    return [note for note in (in_words(config), exchanged(config), barely(config), miniatures(entries)) if note]


def literal(text: str) -> str:
    """A text with every byte visible: as JSON, quotes included, letters of all scripts as they are."""
    return json.dumps(text, ensure_ascii=False)


def candidates(protocol: dict[str, Any]) -> str:
    """What is ranked, or accepted."""
    given, vocabulary = protocol["candidates"], protocol["vocabulary"]
    if given is None:
        return "none"
    if vocabulary:
        top = f"the {vocabulary['top']:,} most frequent answers" if vocabulary["top"] else "all answers"
        return f"{top} of the splits {', '.join(vocabulary['splits'])}"
    if isinstance(given, str):
        return f"the example's {given}"
    return ", ".join(each if isinstance(each, str) else " or ".join(each) for each in given)


def answering(protocol: dict[str, Any]) -> str:
    """How answers come about, in one sentence."""
    if protocol["mode"] == "rank":
        end = {True: "end token scored", False: "end token not scored", None: "end token scored for encoder-decoders"}
        return (
            f"Ranking by log-likelihood ({protocol['score']} over the tokens, {end[protocol['end_token']]}) of "
            f"{candidates(protocol)}."
        )
    if protocol["mode"] == "retrieve":
        settings = protocol["retrieval"]
        return (
            "TR: every picture searches all captions, and is right where it finds one of its own. IR: every caption "
            f"searches all pictures. The {settings['k']} most similar are put in order by how well they match. Texts "
            f"are cut to {settings['text_tokens']} tokens, and ties count against the model."
        )
    decoding = protocol["decoding"]
    accepted = f" Accepted: {candidates(protocol)}." if protocol["candidates"] else ""
    most = f"{decoding['max_new_tokens']}"
    if (other := decoding.get("decoder_only_max_new_tokens")) is not None:
        most = f"{other} ({most} of encoder-decoders)"
    return (
        f"Generation with {decoding['num_beams']} beams, length penalty {decoding['length_penalty']:g}, repetition "
        f"penalty {decoding.get('repetition_penalty', 1.0):g}, {decoding['min_new_tokens']} to {most} new tokens."
        f"{accepted}"
    )


def cut(found: dict[str, Any]) -> str:
    """How many prompts were cut, in one sentence; empty where none was."""
    if not found.get("cut"):
        return ""
    told = cut_phrase(found["cut"])
    return f"{told[0].upper()}{told[1:]}."


def readers(cut: list[str]) -> str:
    """Who read a part of a prompt alone."""
    return " and ".join(dict.fromkeys(READERS[name] for name in cut))


def asked(case: dict[str, Any]) -> str:
    """What an example asked: its prompt, or the picture itself where that searches captions."""
    return case["prompt"] or "(the picture)"


def hits(case: dict[str, Any]) -> str:
    """What a search found first, with scores."""
    return "; ".join(f"{place}. {name} ({score:.2f})" for place, (name, score) in enumerate(case["hits"], 1))


def average(found: dict[str, Any]) -> str:
    """An average in one sentence, or why there is none."""
    if found["value"] is None:
        of = len(found["benchmarks"])
        return (
            f"none: {of - len(found['missing'])} of its {of} benchmarks scored, without {', '.join(found['missing'])}"
        )
    part = f"; only a part of {', '.join(found['partial'])} was scored" if found["partial"] else ""
    return f"{found['value']:.1f} over {len(found['benchmarks'])} benchmarks{part}"


def spread_phrase(entry: dict[str, Any]) -> str:
    """Lowest and highest score over the protocol's prompt and the wordings."""
    values = [entry["value"], *(each["value"] for each in entry["spread"])]
    return (
        f"{min(values):.1f} to {max(values):.1f} over the protocol's prompt and {len(entry['spread'])} training "
        f"wordings, {max(values) - min(values):.1f} apart"
    )


NOTES = (
    "Scores are 0 to 100; CIDEr is 100 times the official value and may be higher.",
    "The interval holds 95% of 1,000 bootstrap draws of the pictures, each with all that was asked about it, with a "
    "fixed seed; of captions the images' scores are drawn, with the document frequencies of the full set.",
)
UNVERIFIED = "Figures with a star are unverified: remembered, not read in the source."
BLIND = (
    "Blind: every question answered with its most frequent training answer, without the image, over the whole split."
)


def notes(entries: list[dict[str, Any]]) -> str:
    """What the table of all scores needs to be read."""
    unverified = [UNVERIFIED] if any(not row["verified"] for entry in entries for row in entry["published"]) else []
    blind = [BLIND] if any(entry["blind_baseline"] is not None for entry in entries) else []
    return " ".join([*NOTES, *unverified, *blind])


ECE = (
    "Confidence is the softmax of the best candidate's log-likelihood over all candidates of the question; the "
    "expected calibration error (ECE) is its mean distance from the accuracy over ten bins."
)
