from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from instructkit.data.examples import Example, Turn
from instructkit.errors import UserError
from instructkit.prompts.protocols import Decoding, Protocol, Row, benchmarks, load_protocol, merge_scores
from instructkit.prompts.templates import templates_folder
from instructkit.sources import source

TOKENS = [f"w{number}" for number in range(31)]
FIRST_30 = (
    "w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15, w16, w17, w18, w19, w20, w21, w22, w23, w24,"
    " w25, w26, w27, w28, w29"
)
FULL = Example(
    id="x/test/1",
    images=["1.jpg"],
    question="What stands there?",
    answers=["tree", "a tree"],
    choices=["tree", "post", "man"],
    choice=1,
    relevance=[0.5, 1.0, 0.0],
    context="It is {green} and 100% tall.",
    ocr_tokens=TOKENS,
    references=["a tree by the road", "one tree"],
    history=[Turn("Is it day?", "yes"), Turn("Any people?", "no")],
    statement="The tree is left of the road.",
    meta={"difficult_direct_answer": "false", "domain": "near-domain"},
)

ASKED = "Question: What stands there? Short answer:"
OPTIONS = "Question: What stands there? Options: (a) tree (b) post (c) man."
PROMPTS = {
    "aokvqa": ASKED,
    "aokvqa_mc": f"{OPTIONS} Short answer:",
    "coco_caption": "A short image description.",
    "coco_caption_blip": "a picture of",
    "coco_caption_blip2": "a photo of",
    "coco_retrieval": "a tree by the road",
    "coco_retrieval_blip": "a tree by the road",
    "easy_vqa": ASKED,
    "flickr30k": "A short image description.",
    "flickr30k_retrieval": "a tree by the road",
    "gqa": ASKED,
    "gqa_blip2_opt": "Question: What stands there? Answer:",
    "gqa_blip2_t5": ASKED,
    "hatefulmemes": 'This is an image with: "It is {green} and 100% tall." written on it. Is it hateful? Answer:',
    "iconqa": f"{OPTIONS} Short answer:",
    "ivqa": ASKED,
    "jsonl": "What stands there?",
    "msrvtt_qa": ASKED,
    "msvd_qa": ASKED,
    "nocaps": "A short image description.",
    "nocaps_blip": "a picture of",
    "nocaps_blip2": "a photo of",
    "ocrvqa": f"OCR tokens: {FIRST_30}. {ASKED}",
    "okvqa": ASKED,
    "okvqa_blip2_opt": "Question: What stands there? Answer:",
    "okvqa_blip2_t5": ASKED,
    "scienceqa": f"Context: It is {{green}} and 100% tall. {OPTIONS} Answer:",
    "textcaps": f"OCR tokens: {FIRST_30}. A short image description.",
    "textvqa": f"OCR tokens: {FIRST_30}. {ASKED}",
    "visdial": "Dialog history: a tree by the road Is it day? yes Any people? no\n " + ASKED,
    "vizwiz": ASKED,
    "vqav2": ASKED,
    "vqav2_blip": "what stands there?",
    "vqav2_blip_generate": "what stands there?",
    "vqav2_blip2_opt": "Question: What stands there? Answer:",
    "vqav2_blip2_t5": ASKED,
    "vsr": 'Based on the image, is this statement true or false? "The tree is left of the road." Answer:',
}
"""Every prompt as the model reads it. One that changes needs another version of its protocol, here and in `FROZEN`."""

FROZEN = {
    "aokvqa": (2, "5e5b4850dfee"),
    "aokvqa_mc": (1, "2901fc819d48"),
    "coco_caption": (2, "2dc34e7e2d65"),
    "coco_caption_blip": (1, "2c3bf04cdfae"),
    "coco_caption_blip2": (1, "47bd059168fd"),
    "coco_retrieval": (1, "bbe0c8c2d680"),
    "coco_retrieval_blip": (1, "5ef661ed6d26"),
    "easy_vqa": (1, "523ccc05b9c5"),
    "flickr30k": (2, "b47849562d55"),
    "flickr30k_retrieval": (1, "2cabd8d2633b"),
    "gqa": (2, "fd3006fb1866"),
    "gqa_blip2_opt": (1, "b944a2b1c088"),
    "gqa_blip2_t5": (1, "10903869df95"),
    "hatefulmemes": (1, "6e8407fa1fc0"),
    "iconqa": (1, "3e4d59362c88"),
    "ivqa": (2, "30c271613818"),
    "jsonl": (1, "b673d126ef09"),
    "msrvtt_qa": (1, "111af47c93b2"),
    "msvd_qa": (2, "ecabdd2df596"),
    "nocaps": (2, "bf04765cb6c5"),
    "nocaps_blip": (1, "5737373b6fb8"),
    "nocaps_blip2": (1, "b83605b634b7"),
    "ocrvqa": (2, "974f01c6cf18"),
    "okvqa": (2, "fb6ee9365712"),
    "okvqa_blip2_opt": (1, "58e0852c7082"),
    "okvqa_blip2_t5": (1, "5d684337dfe5"),
    "scienceqa": (1, "6fb1799a472d"),
    "textcaps": (2, "c2c33885ce31"),
    "textvqa": (2, "374b424ffa2c"),
    "visdial": (1, "1cd144ec1130"),
    "vizwiz": (2, "705e1047dac6"),
    "vqav2": (2, "694211f57d72"),
    "vqav2_blip": (1, "42a63b82a1e4"),
    "vqav2_blip_generate": (1, "7cbc9f9f356d"),
    "vqav2_blip2_opt": (1, "1a3c3b00c432"),
    "vqav2_blip2_t5": (1, "b872ff52e82c"),
    "vsr": (2, "4b1f453fe65b"),
}
"""Version of each protocol, and the digest of all that a score depends on."""


def settings_digest(protocol: Protocol) -> str:
    """Of all that a score depends on; what is only shown beside it is left out."""
    read = {"generate": "decoding", "retrieve": "retrieval"}.get(protocol.mode)
    unused = {"title", "published", "notes", "version", "decoding", "retrieval"} - {read}
    settings = {key: value for key, value in msgspec.to_builtins(protocol).items() if key not in unused}
    return hashlib.sha256(msgspec.json.encode(settings, order="sorted")).hexdigest()[:12]


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_frozen_byte_for_byte(name: str) -> None:
    prompt = load_protocol(name).prompt(FULL)
    assert prompt.instruction == PROMPTS[name]
    assert (prompt.example, prompt.images, prompt.target) == ("x/test/1", ["1.jpg"], None)


@pytest.mark.parametrize("name", FROZEN)
def test_whatever_a_score_depends_on_changes_only_with_the_version(name: str) -> None:
    protocol = load_protocol(name)
    assert (protocol.version, settings_digest(protocol)) == FROZEN[name], "bump the version and note the new pair here"


def test_fields_that_a_dataset_may_lack_leave_no_gap() -> None:
    bare = msgspec.structs.replace(FULL, context=None, ocr_tokens=[], history=[])
    assert load_protocol("scienceqa").prompt(bare).instruction == f"{OPTIONS} Answer:"
    assert load_protocol("textvqa").prompt(bare).instruction == ASKED
    assert load_protocol("textcaps").prompt(bare).instruction == "A short image description."
    assert load_protocol("visdial").prompt(bare).instruction == f"Dialog history: a tree by the road\n {ASKED}"
    with pytest.raises(UserError, match=r"templates/eval/hatefulmemes\.yaml: uses context, which is empty"):
        load_protocol("hatefulmemes").prompt(bare)


def test_the_papers_lists_of_ranked_and_of_generated_sets() -> None:
    modes = {name: load_protocol(name).mode for name in benchmarks()}
    ranked = ["scienceqa", "iconqa", "aokvqa_mc", "hatefulmemes", "visdial", "msvd_qa", "msrvtt_qa"]
    generated = ["nocaps", "flickr30k", "gqa", "vizwiz", "textvqa", "ivqa", "okvqa", "ocrvqa", "vqav2", "vsr"]
    assert {modes[name] for name in ranked} == {"rank"}
    assert {modes[name] for name in generated} == {"generate"}
    assert sorted(name for name in modes if load_protocol(name).role == "held-out") == sorted(
        [
            "nocaps",
            "flickr30k",
            "gqa",
            "vsr",
            "iconqa",
            "textvqa",
            "visdial",
            "hatefulmemes",
            "vizwiz",
            "scienceqa",
            "msvd_qa",
            "msrvtt_qa",
            "ivqa",
        ]
    )


@pytest.mark.parametrize("name", benchmarks())
def test_decoding_is_the_papers_with_what_lavis_adds(name: str) -> None:
    """LAVIS counts the start token in its minimum, and a decoder-only LLM's in its maximum; its penalty is 1.5."""
    protocol = load_protocol(name)
    caption, short = (
        Decoding(
            num_beams=5,
            length_penalty=penalty,
            min_new_tokens=shortest - 1,
            max_new_tokens=longest,
            decoder_only_max_new_tokens=longest - 1,
            repetition_penalty=1.5,
        )
        for penalty, shortest, longest in ((1.0, 10, 80), (-1.0, 1, 10))
    )
    blip2 = {"num_beams": 5, "repetition_penalty": 1.0}
    if name.endswith("_blip2"):  # its own captions: 8 to 30 tokens
        assert protocol.decoding == Decoding(length_penalty=1.0, min_new_tokens=8, max_new_tokens=30, **blip2)
    elif name.endswith("caption_blip") or name == "nocaps_blip":  # BLIP's captions
        assert protocol.decoding == Decoding(num_beams=3, min_new_tokens=5, max_new_tokens=20)
    elif name == "vqav2_blip_generate":
        assert protocol.decoding == Decoding(num_beams=3, max_new_tokens=10)
    elif "_blip2_" in name:  # and short answers
        assert protocol.decoding == Decoding(length_penalty=-1.0, max_new_tokens=10, **blip2)
    elif name == "jsonl":  # of which the paper says nothing: answers of any length
        assert protocol.decoding == Decoding(num_beams=5, length_penalty=1.0, min_new_tokens=1, max_new_tokens=64)
    elif protocol.mode == "generate":
        assert protocol.decoding == (caption if protocol.metric == "cider" else short)
        assert protocol.version > 1
        assert "repetition penalty 1.5" in protocol.notes


def test_published_rows() -> None:
    rows = {name: load_protocol(name).published for name in benchmarks() if load_protocol(name).role == "held-out"}
    assert len(rows) == 13
    for every in rows.values():
        published = [row for row in every if "2305.06500" in row.source]
        assert len(published) == 8
        assert [row.verified for row in published] == [row.model.startswith("InstructBLIP") for row in published]
    cells = {(name, row.model): row.value for name, published in rows.items() for row in published}
    assert cells["nocaps", "InstructBLIP Vicuna-7B"] == 123.1
    assert cells["ivqa", "InstructBLIP FlanT5-XXL"] == 53.8
    assert cells["scienceqa", "BLIP-2 FlanT5-XL"] == 54.9
    assert cells["visdial", "InstructBLIP Vicuna-13B"] == 45.4


def test_blip2s_own_rows_are_marked_zero_shot_or_finetuned() -> None:
    """Beside InstructBLIP's in the benchmarks' own protocols, and in those that ask as BLIP-2 does."""
    cells = {}
    for name in benchmarks():
        protocol = load_protocol(name)
        rows = [row for row in protocol.published if "2301.12597" in row.source]
        assert all(row.verified for row in rows)
        for row in rows:
            _, _, how = row.model.rpartition(", ")
            assert how in ("zero-shot", "finetuned"), row.model
            assert how in row.source
            cells[name, row.model] = row.value
        assert len({row.model for row in protocol.published}) == len(protocol.published)
        if "_blip2" in name:
            assert rows
            assert protocol.role == "extra"
            plain = {row.model: row.value for row in load_protocol(name.partition("_blip2")[0]).published}
            assert all(plain[row.model] == row.value for row in rows)
    assert (
        cells["vqav2", "BLIP-2 FlanT5-XXL, zero-shot"]
        == cells["vqav2_blip2_t5", "BLIP-2 FlanT5-XXL, zero-shot"]
        == 65.2
    )
    assert cells["gqa_blip2_opt", "BLIP-2 OPT-2.7B, zero-shot"] == 34.6
    assert cells["vqav2_blip2_opt", "BLIP-2 OPT-6.7B, finetuned"] == 82.19
    assert cells["nocaps_blip2", "BLIP-2 FlanT5-XL, finetuned"] == 121.6
    assert cells["coco_caption_blip2", "BLIP-2 OPT-2.7B, finetuned"] == 145.8


def test_blips_own_rows_are_marked_zero_shot_or_finetuned() -> None:
    """Table 1 of its paper: without CapFilt, by its filter, by its captioner, by both."""
    cells = {}
    for name in benchmarks():
        for row in load_protocol(name).published:
            if "2201.12086" in row.source:
                _, _, how = row.model.rpartition(", ")
                assert how in ("zero-shot", "finetuned")
                assert how in row.source
                assert row.verified == ("14M" in row.model), "remembered"
                cells[name, row.model] = row
    steps = ("without CapFilt, ", "filter alone, ", "captioner alone, ", ", ")
    for name, how, values in (
        ("coco_retrieval_blip", "finetuned", [(78.4, 60.7), (79.1, 61.5), (79.7, 62.0), (80.6, 63.1)]),
        ("flickr30k_retrieval", "zero-shot", [(93.9, 82.1), (94.1, 82.8), (94.4, 83.6), (94.8, 84.9)]),
        ("coco_caption_blip", "finetuned", [(127.8,), (128.2,), (128.9,), (129.7,)]),
        ("nocaps_blip", "finetuned", [(102.2,), (102.7,), (103.4,), (105.1,)]),
    ):
        for step, value in zip(steps, values, strict=True):
            row = cells[name, f"BLIP ViT-B 14M{'' if step == ', ' else ' '}{step}{how}"]
            assert (row.value, *row.details.values()) == value
    assert cells["vqav2_blip", "BLIP ViT-B CapFilt-L, finetuned"].value == 78.25


@pytest.mark.parametrize(
    ("name", "how", "rows"),
    [
        ("flickr30k_retrieval", "zero-shot", [(96.9, 100, 100, 88.6, 97.6, 98.9), (97.6, 100, 100, 89.7, 98.1, 98.9)]),
        ("coco_retrieval", "finetuned", [(83.5, 96.0, 98.0, 66.3, 86.5, 91.8), (85.4, 97.0, 98.5, 68.3, 87.7, 92.6)]),
    ],
)
def test_published_retrieval_has_both_directions(name: str, how: str, rows: list[tuple[float, ...]]) -> None:
    """TR and IR at 1, 5 and 10 of ViT-L and ViT-g (arXiv 2301.12597)."""
    names = ("tr_r5", "tr_r10", "ir_r1", "ir_r5", "ir_r10")
    found = {row.model: row for row in load_protocol(name).published}
    for model, (first, *others) in zip((f"BLIP-2 ViT-L, {how}", f"BLIP-2 ViT-g, {how}"), rows, strict=True):
        assert found[model].value == first
        assert found[model].details == dict(zip(names, others, strict=True))


BESIDE = {  # arXiv 2301.12597, tables 2, 3 and 4
    ("coco_caption", "bleu_4", "finetuned"): {"OPT-2.7B": 43.7, "OPT-6.7B": 43.5, "FlanT5-XL": 42.4},
    ("vqav2", "test_std", "finetuned"): {"OPT-2.7B": 81.74, "OPT-6.7B": 82.3, "FlanT5-XL": 81.66},
    ("vqav2", "test_dev", "zero-shot"): {"OPT-2.7B": 52.3, "OPT-6.7B": 52.6, "FlanT5-XL": 63.0, "FlanT5-XXL": 65.0},
}


@pytest.mark.parametrize(("name", "measure", "how"), BESIDE)
def test_what_blip2s_paper_gives_beside_the_main_figure(name: str, measure: str, how: str) -> None:
    expected = {f"BLIP-2 {llm}, {how}": value for llm, value in BESIDE[name, measure, how].items()}
    plain = {row.model: row.details[measure] for row in load_protocol(name).published if measure in row.details}
    assert plain == expected
    for other in benchmarks():
        if other.startswith(f"{name}_blip2"):
            rows = [row for row in load_protocol(other).published if row.model in expected]
            assert all(row.details == {measure: expected[row.model]} for row in rows)


# ---- candidates, references, which examples ----


def test_candidates_come_from_the_example_the_protocol_or_a_vocabulary() -> None:
    assert load_protocol("iconqa").options(FULL) == [("tree",), ("post",), ("man",)]
    assert load_protocol("hatefulmemes").options(FULL) == [("no", "false"), ("yes", "true")]
    assert load_protocol("easy_vqa").options(FULL)[:2] == [("circle",), ("green",)]
    assert load_protocol("msvd_qa").options(FULL, ["dog", "run"]) == [("dog",), ("run",)]
    with pytest.raises(UserError, match=r"msvd_qa: no candidates \(vocabulary\) for example x/test/1"):
        load_protocol("msvd_qa").options(FULL)
    with pytest.raises(UserError, match=r"iconqa: no candidates \(choices\) for example x/test/1"):
        load_protocol("iconqa").options(msgspec.structs.replace(FULL, choices=[]))


def test_a_vocabulary_is_the_most_frequent_answers_first() -> None:
    vocabulary = load_protocol("msrvtt_qa").vocabulary
    assert vocabulary is not None
    assert (vocabulary.splits, vocabulary.top) == (["train"], 1500)
    examples = [
        Example(id=str(number), answers=[answer]) for number, answer in enumerate(["b", "a", "c", "a", "b", "d", "a"])
    ]
    examples.append(Example(id="8", answers=[" "] * 9))
    assert msgspec.structs.replace(vocabulary, top=3).texts(examples) == ["a", "b", "c"]
    assert msgspec.structs.replace(vocabulary, top=None).texts(iter(examples)) == ["a", "b", "c", "d"]


def test_msvds_candidates_are_all_answers_of_the_release() -> None:
    vocabulary = load_protocol("msvd_qa").vocabulary
    assert vocabulary is not None
    assert set(vocabulary.splits) == set(source("msvd_qa").splits)
    examples = {split: [Example(id=split, answers=["dog", split])] for split in vocabulary.splits}
    texts = vocabulary.texts(example for split in vocabulary.splits for example in examples[split])
    assert texts == ["dog", "train", "val", "test"]


def test_references_are_what_the_metrics_expect() -> None:
    assert load_protocol("vqav2").reference(FULL) == ["tree", "a tree"]
    assert load_protocol("nocaps").reference(FULL) == ["a tree by the road", "one tree"]
    assert load_protocol("scienceqa").reference(FULL) == ["post"]
    assert load_protocol("vsr").reference(FULL) == ["true", "yes"]
    assert load_protocol("vsr").reference(msgspec.structs.replace(FULL, choice=0)) == ["false", "no"]
    assert load_protocol("hatefulmemes").reference(FULL) == 1
    assert load_protocol("visdial").reference(FULL) == {"gold_index": 1, "relevance": [0.5, 1.0, 0.0]}


@pytest.mark.parametrize("choice", [None, -1, 3])
def test_no_right_candidate_is_an_error(choice: int | None) -> None:
    with pytest.raises(UserError, match="scienceqa: example x/test/1 has no right one among 3 candidates"):
        load_protocol("scienceqa").reference(msgspec.structs.replace(FULL, choice=choice))


def test_which_examples_belong_to_a_benchmark() -> None:
    def changed(**fields: Any) -> Example:
        return msgspec.structs.replace(FULL, **fields)

    assert load_protocol("vqav2").keeps(FULL)
    assert load_protocol("scienceqa").keeps(FULL)
    assert not load_protocol("scienceqa").keeps(changed(images=[]))
    assert load_protocol("aokvqa").keeps(FULL)
    assert not load_protocol("aokvqa").keeps(changed(meta={"difficult_direct_answer": "true"}))
    assert load_protocol("aokvqa_mc").keeps(changed(meta={"difficult_direct_answer": "true"}))


def test_the_texts_of_a_candidate_share_its_probability() -> None:
    options = [("no", "false"), ("yes",), ("maybe", "perhaps", "possibly")]
    shares = [0.2, 0.1, 0.4, 0.05, 0.05, 0.02]
    merged = merge_scores(options, [math.log(share) for share in shares])
    assert [math.exp(score) for score in merged] == pytest.approx([0.3, 0.4, 0.12])
    assert merge_scores([("a", "b"), ("c",)], [-2000.0, -2000.0, -5.5]) == pytest.approx([-2000 + math.log(2), -5.5])
    assert merge_scores([("a", "b")], [-math.inf, -math.inf]) == [-math.inf]
    for scores in ([0.0], [0.0] * 4):
        with pytest.raises(ValueError, match="3 texts of 2 candidates"):
            merge_scores([("a", "b"), ("c",)], scores)


# ---- files with mistakes ----

GOOD: dict[str, Any] = {
    "benchmark": "mine",
    "version": 1,
    "title": "Mine",
    "source": "vqav2",
    "split": "val",
    "task": "vqa",
    "role": "extra",
    "mode": "rank",
    "instruction": "{{ question }}",
    "candidates": ["yes", "no"],
    "metric": "exact_match",
    "references": "answers",
}


RETRIEVES: dict[str, Any] = {
    "task": "captioning",
    "mode": "retrieve",
    "instruction": "{{ references | first }}",
    "retrieval": {"k": 8},
    "candidates": None,
    "metric": "retrieval",
    "references": "references",
}


def written(folder: Path, **changes: Any) -> Path:
    (folder / "eval").mkdir()
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    (folder / "eval" / "mine.yaml").write_bytes(msgspec.yaml.encode(content))
    return folder


def test_a_protocol_of_ones_own(tmp_path: Path) -> None:
    rows = [{"model": "guess", "value": 50, "source": "counted"}]
    protocol = load_protocol("mine", written(tmp_path, published=rows))
    assert protocol.published == [Row("guess", 50.0, "counted", verified=True)]
    assert protocol.prompt(FULL).instruction == "What stands there?"
    assert benchmarks(tmp_path) == ["mine"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "quiz"}, "task 'quiz' is not one of captioning"),
        ({"benchmark": "other"}, "calls itself 'other'; name and file must agree"),
        ({"version": 0}, "version 0; the first is 1"),
        ({"candidates": None}, "ranks, but names no candidates"),
        ({"candidates": "vocabulary"}, "the key vocabulary belongs to"),
        ({"vocabulary": {"splits": ["train"]}}, "the key vocabulary belongs to"),
        ({"candidates": "choices"}, "candidates 'choices' is no field of the task vqa"),
        ({"candidates": ["yes", ["no", "yes"]]}, "candidates must be different texts"),
        ({"candidates": ["yes", " "]}, "candidates must be different texts"),
        ({"candidates": ["yes", []]}, "candidates must be different texts"),
        ({"positive": 2}, "positive is the index, 0 or 1"),
        ({"references": "answer"}, "'answer' in references or needs is no field of an example"),
        ({"references": {"gold_index": "chioce"}}, "'chioce' in references or needs is no field"),
        ({"needs": ["image"]}, "'image' in references or needs is no field of an example"),
        (
            {"candidates": None, "mode": "generate", "references": "right_candidate"},
            "references are the right candidate",
        ),
        ({"instruction": "{{ hint }}"}, "hint is no field of the task vqa; it has question, answers"),
        ({"mode": "guess"}, "mode = 'guess': Expected rank, generate or retrieve"),
        ({"mode": "retrieve", "candidates": None}, "the key retrieval belongs to `mode: retrieve`, and that needs it"),
        ({"retrieval": {"k": 8}}, "the key retrieval belongs to `mode: retrieve`"),
        ({**RETRIEVES, "retrieval": {"k": 0}}, "retrieval needs a k of 1"),
        ({**RETRIEVES, "retrieval": {"text_tokens": 2}}, "text_tokens of 3 at least"),
        ({**RETRIEVES, "metric": "cider"}, "the metric retrieval belongs to `mode: retrieve`, and that takes no other"),
        ({"metric": "retrieval"}, "the metric retrieval belongs to `mode: retrieve`"),
        ({**RETRIEVES, "references": "answers"}, "what is retrieved are the example's captions"),
        ({**RETRIEVES, "candidates": ["yes", "no"]}, "what is retrieved are the example's captions"),
        ({"promt": "x"}, "unknown key promt; there are benchmark, version"),
        ({"decoding": {"min_new_tokens": 11}}, "decoding needs max_new_tokens of 1 and of min_new_tokens at least"),
        ({"decoding": {"decoder_only_max_new_tokens": 0}}, "decoding needs max_new_tokens of 1"),
        ({"decoding": {"repetition_penalty": 0}}, "and a repetition_penalty above 0"),
        ({"decoding": {"beams": 3}}, "unknown key decoding.beams; did you mean num_beams"),
        ({"metric": None}, "missing required field `metric`"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_protocol("mine", written(tmp_path, **changes))
    assert message in str(caught.value)
    assert "eval/mine.yaml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_nearly_right_is_answered_with_the_right_one() -> None:
    with pytest.raises(UserError, match="no benchmark is called 'scienceQA'; did you mean scienceqa"):
        load_protocol("scienceQA")


def test_a_protocol_is_read_once_until_its_file_changes(tmp_path):
    (tmp_path / "eval").mkdir()
    file = tmp_path / "eval" / "gqa.yaml"
    text = (templates_folder() / "eval" / "gqa.yaml").read_text()
    file.write_text(text)
    first = load_protocol("gqa", tmp_path)
    assert load_protocol("gqa", tmp_path) is first
    file.write_text(text.replace(f"version: {first.version}", f"version: {first.version + 10}"))
    assert load_protocol("gqa", tmp_path).version == first.version + 10
    file.write_text(text + "nothing: 1\n")
    with pytest.raises(UserError, match="nothing"):
        load_protocol("gqa", tmp_path)
