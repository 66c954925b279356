"""A model that is asked about photos: words out, candidates in order, or where its queries look.

What a benchmark asks and what is asked here go through one `Evaluator`, so that both give the same answers.
"""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import msgspec
import torch
from torch import Tensor

from instructkit.config.settings import Dtype
from instructkit.data.examples import Example
from instructkit.errors import UserError
from instructkit.evaluation.answer import Evaluator
from instructkit.evaluation.asked import PLAIN, Asked, decoded, example_about, example_of, protocol_of
from instructkit.evaluation.blip import BlipAnswerer, why_not
from instructkit.evaluation.embed import Embeddings, FirstStageModel
from instructkit.evaluation.photos import Photo, Photos, photo_path
from instructkit.evaluation.questions import Question
from instructkit.evaluation.responses import Response
from instructkit.evaluation.score import READERS
from instructkit.models.batches import Captions, Picture, Texts, decode
from instructkit.models.blip import Blip
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.blip_tasks import blip_tasks, open_blip
from instructkit.models.load.pretraining import is_pretraining, load_pretraining
from instructkit.models.save import load_model as load_parts
from instructkit.prompts.protocols import VOCABULARY, Protocol
from instructkit.prompts.templates import Prompt

DTYPES = {name: getattr(torch, name) for name in get_args(Dtype)}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Model:
    """A model with its tokenisers, ready to be asked.

    Example:
        >>> model = load_model("runs/finetune/model")
        >>> model.ask("photo.jpg", "What was paid?")
        '12.50'

    Args:
        model: put into evaluation mode.
        tokens: its tokenisers.
        name: folder or hub name that it came from; an evaluation keeps it with its answers.
    """

    def __init__(self, model: InstructBlip, tokens: Texts, name: str = "") -> None:
        self.evaluator: Any = Evaluator(model, tokens, ranked=None)
        self.name = name

    @property
    def model(self) -> Any:
        """The network: an `InstructBlip`."""
        return self.evaluator.model

    @property
    def tokens(self) -> Any:
        """The tokenisers of LLM and Q-Former."""
        return self.evaluator.texts

    @property
    def dtype(self) -> str:
        """What the LLM computes in: `float32`, `bfloat16` or `float16`."""
        return str(self.model.language_model.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        place: torch.device = self.model.query_tokens.device
        return place

    def ask(
        self,
        photo: Photos | Sequence[Photos],
        question: Asked | Sequence[Asked] = None,
        *,
        protocol: str | Protocol | None = None,
        beams: int | None = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        length_penalty: float | None = None,
        repetition_penalty: float | None = None,
        candidates: Sequence[str] | None = None,
        stream: Callable[[str], object] | None = None,
        batch_size: int = 32,
    ) -> Any:
        """Answer one question, or several.

        Without a protocol the model reads the question as it stands and answers greedily, in at most 256 tokens.

        Example:
            >>> model.ask("photo.jpg", "What was paid?")
            >>> model.ask(["before.jpg", "after.jpg"], "What has changed?")          # both photos, one question
            >>> model.ask("photo.jpg", ["What was paid?", "When?"])                  # one photo, two questions
            >>> model.ask(["a.jpg", "b.jpg"], ["What is it?", "What is it?"])        # a photo for each question
            >>> model.ask("film.mp4", "What happens?", beams=5, length_penalty=-1)
            >>> model.ask("photo.jpg", "Is it red?", protocol="vqav2")               # prompt and decoding of VQAv2

        Args:
            photo: what one question is about. With several questions: the same for all, or a list with one for each.
            question: words, or an `Example` whose fields (`choices`, `context`, ...) the protocol reads; or a list.
            protocol: a benchmark's name (`instructkit benchmarks`): its prompt, and its decoding or candidates.
            beams: width of the beam search.
            max_new_tokens: the answer stops after so many.
            min_new_tokens: the answer does not end before so many.
            length_penalty: exponent of the length in the score of a beam; below 0 favours short answers.
            repetition_penalty: above 1 makes repeated tokens less likely.
            candidates: for a protocol that ranks, and does not say itself what: the best one is the answer.
            stream: called with each piece of the answer as it is made; for one question and one beam.
            batch_size: questions a forward pass.

        Returns:
            The answer; a list of them where `question` is a list.

        Raises:
            UserError: a photo cannot be read, a question is blank or lacks what the protocol reads, or an option does
                not fit.
        """
        options = {
            "num_beams": beams,
            "max_new_tokens": max_new_tokens,
            "min_new_tokens": min_new_tokens,
            "length_penalty": length_penalty,
            "repetition_penalty": repetition_penalty,
        }
        asks = decoded(protocol_of(protocol), {name: value for name, value in options.items() if value is not None})
        several = not isinstance(question, str | Example | None)
        if stream is not None and (several or asks.mode != "generate" or asks.decoding.num_beams > 1):
            raise UserError("an answer is streamed for one question at a time, generated by one beam (beams=1)")
        with _examples(photo, question, asks, candidates) as examples:
            found = [_checked(each).text for each in self.respond(examples, asks, candidates, stream, batch_size)]
        return found if several else found[0]

    def rank(
        self,
        photo: Photos | Sequence[Photos],
        question: Asked | Sequence[Asked],
        candidates: Sequence[str] | None = None,
        *,
        protocol: str | Protocol | None = None,
        score: str | None = None,
        batch_size: int = 32,
    ) -> Any:
        """Candidates by the log-probability that the model gives them as the answer, the best first.

        Example:
            >>> model.rank("photo.jpg", "Is it a cat?", ["yes", "no"])
            [('yes', -1.2), ('no', -3.4)]

        Args:
            photo: as for `ask`.
            question: as for `ask`.
            candidates: what to rank; None for those of the protocol, or the `choices` of an `Example`.
            protocol: a benchmark's name: its prompt, candidates and score rule.
            score: `sum` of the token log-probabilities (the default) or their `mean`.
            batch_size: questions a forward pass.

        Returns:
            Candidates with their scores (nats); a list of such lists where `question` is a list.

        Raises:
            UserError: as `ask`; there are no candidates, or one of them is blank.
        """
        asks = protocol_of(protocol, ranks=True)
        if score is not None:
            if score not in ("sum", "mean"):
                raise UserError(f"score={score!r}: is 'sum' or 'mean'")
            asks = msgspec.structs.replace(asks, score=score)
        with _examples(photo, question, asks, candidates) as examples:
            found = [_checked(each).ranked for each in self.respond(examples, asks, candidates, None, batch_size)]
        return found if not isinstance(question, str | Example | None) else found[0]

    @torch.no_grad()
    def attention(self, photo: Photo, question: str) -> Tensor:
        """Where the queries look: their cross-attention to each patch of the picture, a mean over layers and heads.

        Example:
            >>> model.attention("photo.jpg", "What was paid?").mean(0)      # [height, width], over all queries

        Args:
            photo: one picture.
            question: what the Q-Former reads beside it.

        Returns:
            Shares of attention `[queries, height, width]`, in patches, float32, on the CPU. A query's shares add up to
            1 less what it gives to the encoder's class token.

        Raises:
            UserError: the picture cannot be read, or is a video.
        """
        with _examples(photo, question, PLAIN, None) as (example,):
            if example.video is not None:
                raise UserError(f"{example.video}: attention is shown for one picture, not for a video")
            pixels = decode([Picture(Path(example.images[0]))], self.evaluator.image_size)
        texts = self.tokens.qformer_rows(self.tokens.encode([Prompt(example.id, PLAIN.benchmark, question)]))
        model, queries = self.model, self.model.query_tokens
        features = model.encode_images(pixels.to(self.device, queries.dtype)).to(model.qformer.dtype)
        read: dict[str, Tensor | None] = {"input_ids": None}
        if model.instruction_aware:
            mask = torch.ones(queries.shape[:2], dtype=torch.long)
            read["input_ids"] = texts["qformer_input_ids"].to(self.device)
            read["attention_mask"] = torch.cat([mask, texts["qformer_attention_mask"]], 1).to(self.device)
        with _showing_weights(model.qformer):
            layers = model.qformer(
                query_embeds=queries, encoder_hidden_states=features, output_attentions=True, **read
            ).cross_attentions
        weights = torch.stack([layer[0] for layer in layers if layer is not None]).float().mean((0, 1)).cpu()
        side = math.isqrt(weights.shape[1])  # class and register tokens stand before the patches
        return weights[:, -side * side :].unflatten(1, (side, side))

    def embed(self, *args: Any, **options: Any) -> Embeddings:
        """There are no embeddings; a model of BLIP-2's first stage has them (`FirstStageModel.embed`).

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{self.name or 'the model'}: answers questions and embeds nothing; load a model of BLIP-2's first stage: "
            "a folder that recipes/pretrain_qformer.py wrote, or a Blip2ForImageTextRetrieval"
        )

    def respond(
        self,
        examples: Sequence[Example],
        protocol: Protocol,
        candidates: Sequence[str] | None = None,
        stream: Callable[[str], object] | None = None,
        batch_size: int = 32,
    ) -> Iterator[Response]:
        """Answers in full, in order: prompt, text, scores of candidates, or the error of a single example.

        Args:
            examples: their media are absolute paths, or relative to the working directory.
            protocol: how they are asked.
            candidates: for a protocol that takes them from the answers of other splits.
            stream: as for `ask`.
            batch_size: questions a forward pass.
        """
        question = Question(protocol)
        vocabulary = list(candidates) if candidates and protocol.candidates == VOCABULARY else None
        shared = self.evaluator.shared_trie(protocol, vocabulary)
        for start in range(0, len(examples), batch_size):
            part = examples[start : start + batch_size]
            batch = self.evaluator.prepare(question, part, Path(), vocabulary, hidden=True)
            yield from self.evaluator.answer(question, batch, shared, stream)


class BlipModel(Model):
    """A BLIP with its tokeniser, ready to be asked.

    It continues the words of a question to a caption, if it cannot answer them; `ask(photo, protocol="nocaps_blip")`
    asks for one. A question is about one picture.

    Args:
        model: put into evaluation mode.
        tokens: its tokeniser.
        name: as of `Model`.
    """

    def __init__(self, model: Blip, tokens: Captions, name: str = "") -> None:
        self.evaluator = BlipAnswerer(model, tokens, ranked=None)
        self.name = name

    @property
    def tokens(self) -> Any:
        """The tokeniser."""
        return self.evaluator.captions

    @property
    def dtype(self) -> str:
        """What it computes in: `float32`, `bfloat16` or `float16`."""
        return str(self.model.itm_head.weight.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        place: torch.device = self.model.itm_head.weight.device
        return place

    def attention(self, photo: Photo, question: str) -> Tensor:
        """It has no queries that look at patches.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.name or 'the model'}: is a BLIP, which has no queries whose attention could be shown")

    def embed(self, *args: Any, **options: Any) -> Embeddings:
        """Embeddings that compare photos with texts, as of `FirstStageModel.embed`.

        Raises:
            UserError: likewise, or the model's parts do not compare them.
        """
        if "retrieval" not in self.model.tasks:
            raise UserError(
                f"{self.name or 'the model'}: is a BLIP for {' and '.join(self.model.tasks)}, which embeds nothing; "
                "load a BlipForImageTextRetrieval"
            )
        return FirstStageModel(self.model, self.tokens, self.name).embed(*args, **options)

    def respond(
        self,
        examples: Sequence[Example],
        protocol: Protocol,
        candidates: Sequence[str] | None = None,
        stream: Callable[[str], object] | None = None,
        batch_size: int = 32,
    ) -> Iterator[Response]:
        """As of `Model`.

        Raises:
            UserError: the model cannot do what the protocol asks.
        """
        if not set(self.model.tasks) & {"captioning", "vqa"}:
            raise UserError(
                f"{self.name or 'the model'}: is a BLIP for retrieval, which has no decoder and answers nothing; it "
                "embeds photos and texts (embed)"
            )
        if (reason := why_not(protocol, self.model.tasks)) is not None:
            raise UserError(f"{self.name or 'the model'}: {reason}")
        return super().respond(examples, protocol, candidates, stream, batch_size)


def load_model(
    name: str | os.PathLike[str],
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    allow_packages: bool = False,
) -> Model | FirstStageModel:
    """Load a model to be asked, evaluated or looked into.

    Example:
        >>> model = load_model("runs/finetune/model", device="cuda", dtype="bf16")
        >>> model.ask("photo.jpg", "What was paid?")
        '12.50'

    Args:
        name: a folder that a run wrote, a published size such as `vicuna-7b`, or a name on the Hugging Face hub.
        device: `cuda`, `cuda:1`, `cpu`; None for the GPU where there is one.
        dtype: `float32`, `bfloat16`, `float16` (or `fp32`, `bf16`, `fp16`) that the weights have.
        allow_packages: let the folder name a Python package for its LLM, which is imported and so runs code.

    Returns:
        A model with `ask`, `rank` and `attention`; one of BLIP-2's first stage has `embed` in their place, a BLIP
        (`BlipModel`) those that its parts can do.

    Raises:
        UserError: there is no such model, device or dtype.
    """
    kind: Any = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(_SHORT.get(dtype, dtype))
    if kind not in DTYPES.values():
        raise UserError(f"dtype={str(dtype)!r}: there are {', '.join((*DTYPES, *_SHORT))}")
    place = _device(device)
    if blip_tasks(os.fspath(name)):
        blip, captions = open_blip(os.fspath(name), dtype=kind)
        return BlipModel(blip.to(place), captions, os.fspath(name))
    if is_pretraining(os.fspath(name)):
        stage, captions = load_pretraining(os.fspath(name), dtype=kind)
        stage.to(place)
        return FirstStageModel(stage, captions, os.fspath(name))
    model, tokens = load_parts(os.fspath(name), allow_packages=allow_packages, dtype=kind)
    model.to(place)
    return Model(model, tokens, os.fspath(name))


@contextmanager
def _examples(
    photo: Any, question: Any, protocol: Protocol, candidates: Sequence[str] | None
) -> Iterator[list[Example]]:
    """The examples of a call of `ask` or `rank`; pictures in memory lie in a folder of their own meanwhile."""
    if isinstance(question, str | Example | None):
        asked, photos = [question], [photo]
    else:
        asked = list(question)
        photos = list(photo) if _is_list(photo) else [photo] * len(asked)
        if not asked:
            raise UserError("no question is given: the list is empty")
        if len(photos) != len(asked):
            raise UserError(
                f"{len(photos)} photos for {len(asked)} questions: give one photo for all, or a list with one for each "
                "(several pictures of one question are a list inside it)"
            )
    with tempfile.TemporaryDirectory(prefix="instructkit-") as scratch:
        examples = []
        for number, (each, about) in enumerate(zip(asked, photos, strict=True), start=1):
            name = "the question" if len(asked) == 1 else f"question {number}"
            shown = list(about) if _is_list(about) else [about]
            paths = [
                photo_path(one, Path(scratch), f"photo {place} of {name}" if len(shown) > 1 else f"the photo of {name}")
                for place, one in enumerate(shown, start=1)
            ]
            examples.append(example_about(paths, example_of(each, protocol, candidates, name)))
        yield examples


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _checked(response: Response) -> Response:
    """The response, if it is one; a prompt that was cut is told.

    Raises:
        UserError: it is an error.
    """
    if response.error is not None:
        raise UserError(response.error)
    if response.cut:
        readers = " and ".join(READERS[name] for name in response.cut)
        warnings.warn(f"{response.example} is longer than {readers} reads; its end alone was read", stacklevel=4)
    return response


@contextmanager
def _showing_weights(qformer: Any) -> Iterator[None]:
    """Attention that hands out its weights, which the fast ones do not."""
    before = qformer.config._attn_implementation
    qformer.set_attn_implementation("eager")
    try:
        yield
    finally:
        qformer.set_attn_implementation(before)


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name!r}: there are cpu, cuda and cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={str(name)!r}: this machine has {torch.cuda.device_count()} GPUs; use cpu")
    return device
