import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructkit.evaluation.metrics import ptb

from . import compare_ptb, golden

PTB = golden.load("ptb_tokens")
# Made up strings that once had other tokens than the Java tokenizer gives.
MORE = golden.load("ptb_tokens_more")

# Strings whose tokens differ from the Java tokenizer's.
KNOWN_DIFFERENCES: list[str] = []


def test_tokens_of_every_string() -> None:
    captions = ["a cat"]
    cases = PTB["cases"] + MORE["cases"]
    for case in cases:
        captions += [case["text"], "a cat"]
    got = ptb.tokenize(captions)[1::2]
    different = [c["text"] for c, tokens in zip(cases, got, strict=True) if tokens != c["tokens"]]
    assert different == KNOWN_DIFFERENCES


@pytest.mark.skipif(bool(compare_ptb.missing()), reason=f"no comparison with Java: {compare_ptb.missing()}")
def test_tokens_of_drawn_strings_are_those_of_the_java_tokenizer() -> None:
    words = ["A", "dog", "Street", "black-and-white", "men's", "St.", "t-shirt,", "don't", "(left)", "#5", "10:30"]
    assert compare_ptb.differences(compare_ptb.draw(5_000, 7, words)) == []


def test_sequences_where_neighbours_matter() -> None:
    different = [c["captions"] for c in PTB["sequences"] if ptb.tokenize(c["captions"]) != c["tokens"]]
    # On purpose: there a line break inside a caption gives its second half to the next one, and so on to the last.
    assert different == [["a\rb", "second", "third"], ["first", "x\u2028y", "third"]]
    assert ptb.tokenize(different[0]) == [["a", "b"], ["second"], ["third"]]


@pytest.mark.parametrize("case", PTB["line_breaks"], ids=lambda case: ascii(case["text"]))
def test_a_line_break_inside_a_caption_is_a_blank(case: dict) -> None:
    expected = [token for line in case["lines"] for token in line]
    assert ptb.tokenize(["a cat", case["text"], "a cat"]) == [["a", "cat"], expected, ["a", "cat"]]


def test_captions_of_the_coco_fixture() -> None:
    images = golden.load_shared("cider")["images"]
    references = ptb.tokenize([caption for image in images for caption in image["references"]])
    expected = [caption for image in images for caption in image["references_tokenized"]]
    assert [" ".join(tokens) for tokens in references] == expected
    candidates = ptb.tokenize([image["candidate"] for image in images])
    assert [" ".join(tokens) for tokens in candidates] == [image["candidate_tokenized"] for image in images]


_CAPTION_WORDS = st.sampled_from(
    ["a", "dog", "Mr", "st", "cannot", "Gonna", "J", "no", "etc", "miss", "in", "A", "The", ",", ", ", "wash", "d"]
)


@given(st.lists(_CAPTION_WORDS, max_size=8), st.sampled_from(["", ".", " ."]))
def test_short_way_for_plain_captions_gives_what_the_rules_give(words: list[str], end: str) -> None:
    caption = " ".join(words) + end
    plain = ptb._plain(caption)
    text = f"{caption}\na cat"
    assert plain is None or plain == ptb._lex(text, 0, len(caption))


@given(st.lists(st.text(max_size=20), max_size=4))
def test_any_text_gives_one_list_per_caption(captions: list[str]) -> None:
    got = ptb.tokenize(captions)
    assert len(got) == len(captions)
    assert all(token and " " not in token for tokens in got for token in tokens)
