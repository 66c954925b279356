"""Models on disk, in transformers' own layout: what is saved here loads in plain transformers, and the reverse."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2Processor,
    BlipImageProcessorPil,
    BlipProcessor,
    InstructBlipProcessor,
)

from instructkit.data.media import CLIP_MEAN, CLIP_STD
from instructkit.errors import UserError
from instructkit.files import writing
from instructkit.models.batches import Captions, Limits, Texts
from instructkit.models.blip import Blip
from instructkit.models.blip2 import Blip2Pretraining
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.bases import check_package
from instructkit.models.load.blip import WEIGHTS
from instructkit.models.load.blip2 import blip2_config, load_blip2, save_weights
from instructkit.models.load.blip_tasks import TASKS, blip_tasks, open_blip
from instructkit.models.load.join import join
from instructkit.models.load.lavis import base_of, is_lavis, load_lavis_state, read_lavis
from instructkit.models.load.llm import OWN_ROWS, answer_end, drop_added_rows, image_token
from instructkit.models.load.look import whole_config
from instructkit.models.load.parts import JOINED, failing, place_of
from instructkit.models.load.pretraining import STAGE1, added
from instructkit.models.load.qformer_text import QFORMER_TOKENIZER, qformer_tokenizer, text_of
from instructkit.models.load.tokenizer_files import open_tokenizer
from instructkit.models.load.trained import TOKENIZERS, apply_trained, facts_of, load_tokenizers
from instructkit.models.plain_text import unclosed
from instructkit.models.vision import VisionEncoder

Places = dict[str, dict[str, str]]
"""Where the bases of folders that hold trained parts lie now: by folder and setting."""


def save_model(model: InstructBlip, texts: Texts, folder: Path, state: dict[str, Any] | None = None) -> None:
    """Write weights, configuration and processor.

    `InstructBlipForConditionalGeneration.from_pretrained(folder)` and `InstructBlipProcessor.from_pretrained(folder)`
    read them, where the Q-Former reads no instruction `Blip2ForConditionalGeneration` and `Blip2Processor`; of a model
    with another family's image encoder `load_model` alone reads the weights.

    Args:
        model: the model.
        texts: its tokenisers.
        folder: made if missing.
        state: weights to write in place of the model's own, for weights that are sharded over ranks.

    Raises:
        UserError: the LLM is quantised.
    """
    if getattr(model.language_model, "is_quantized", False):
        raise UserError(
            f"{folder}: a model with a quantised LLM is not written whole; its trained part is (save_trained)"
        )
    images = _image_processor(model)
    llm = unclosed(texts.llm) if texts.decoder_only else deepcopy(texts.llm)
    blip2 = _is_blip2(model)
    if blip2:
        processor = Blip2Processor(images, llm, num_query_tokens=texts.queries)
        if texts.qformer is not None:
            texts.qformer.save_pretrained(folder / QFORMER_TOKENIZER)
    else:
        processor = InstructBlipProcessor(images, llm, texts.qformer, num_query_tokens=texts.queries)
    processor.save_pretrained(folder)
    image = int(llm.convert_tokens_to_ids(str(processor.image_token)))
    state = dict(model.state_dict()) if state is None else state
    rows = _add_rows(model, state, image + 1)
    if blip2:
        config = blip2_config(model.config, texts.end)
        config.text_config.vocab_size = rows
        save_weights(config, state, folder, words=texts.qformer is not None)
    else:
        model.save_pretrained(folder, state_dict=state)
    _amend(folder / "config.json", model, image, rows)


def _is_blip2(model: InstructBlip) -> bool:
    """Whether a model is written as a BLIP-2: its Q-Former reads no text, and its image encoder is BLIP's."""
    return not model.instruction_aware and not isinstance(model.vision_model, VisionEncoder)


def save_pretraining(
    model: Blip2Pretraining, captions: Captions, folder: Path, state: dict[str, Tensor] | None = None
) -> None:
    """Write the model of BLIP-2's first stage; `load_pretraining` reads it.

    `Blip2ForImageTextRetrieval.from_pretrained(folder)`, `AutoTokenizer` and `AutoImageProcessor` of transformers read
    it, too; of a model with another family's image encoder `load_pretraining` alone reads the weights.

    Args:
        model: the model.
        captions: its tokeniser.
        folder: made if missing.
        state: weights to write in place of the model's own.
    """
    state = dict(model.state_dict()) if state is None else state
    own = added(state)
    _image_processor(model).save_pretrained(folder)
    captions.tokenizer.save_pretrained(folder)
    model.save_pretrained(folder, state_dict={name: state[name] for name in state if name not in own})
    save_file({name: tensor.contiguous() for name, tensor in own.items()}, folder / STAGE1)
    foreign = isinstance(model.vision_model, VisionEncoder)
    content = json.loads((folder / "config.json").read_text())
    content["image_token_index"] = None  # with one transformers would cut the beginning of every text
    content["architectures"] = ["Blip2Pretraining" if foreign else "Blip2ForImageTextRetrieval"]
    if foreign:
        content["model_type"] = JOINED
    (folder / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def save_blip(model: Blip, captions: Captions, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write BLIP's mixture of encoder and decoder; `load_blip` reads it.

    Args:
        model: the model.
        captions: its tokeniser.
        folder: made if missing.
        state: weights to write in place of the model's own; those that encoder and decoder share under one name.
    """
    state = dict(model.named_parameters()) if state is None else state
    _image_processor(model).save_pretrained(folder)
    captions.tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    own = {name: state[name].detach().contiguous() for name, _ in model.named_parameters() if name in state}
    save_file(own, folder / WEIGHTS, {"format": "pt"})
    content = json.loads((folder / "config.json").read_text())
    content |= {"architectures": [Blip.__name__], "model_type": JOINED}
    (folder / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def export_blip(name: str, out: Path, task: str | None, dtype: str = "float32") -> str:
    """Write one part of a BLIP as the class that transformers has for it, with its processor.

    Args:
        name: as for `open_blip`.
        out: folder to write, new or empty.
        task: one of `TASKS`; None for the whole of a pre-trained file of BLIP or LAVIS, as our folder.
        dtype: of the weights that are written.

    Returns:
        What opens the folder, in a line for people.

    Raises:
        UserError: there is no such model or task, the model has no such part, or the folder cannot be written.
    """
    kind = _dtype_to(out, dtype)
    if task is not None and task not in TASKS:
        raise UserError(f"as {task!r}: there are {', '.join(TASKS)}")
    model, captions = open_blip(name, dtype=kind)
    widths = (model.config.vision_config.hidden_size, model.config.text_config.hidden_size)
    if task == "vqa" and widths[0] != widths[1]:
        raise UserError(
            f"{name}: its image encoder is {widths[0]} wide and its text transformer {widths[1]}; the decoder of "
            "BlipForQuestionAnswering reads both by the same weights, so they must be equal"
        )
    whole = is_lavis(name) and not model.fresh and None not in (model.text_encoder, model.text_decoder)
    if task not in model.tasks and not (task is None and whole):
        raise UserError(f"{name}: is a BLIP for {' and '.join(model.tasks)}; export it --as {' or '.join(model.tasks)}")
    with writing(out):
        if task is None:
            save_blip(model, captions, out)
            return f"wrote {out}: a whole BLIP, which recipes/pretrain_blip.py goes on from (model.name={out})"
        part = as_transformers(model, task)
        part.to(kind).save_pretrained(out)
        BlipProcessor(_image_processor(model), captions.tokenizer).save_pretrained(out)
    return f"wrote {out}: {TASKS[task].__name__} and BlipProcessor of transformers open it"


def as_transformers(model: Blip, task: str) -> Any:
    """A copy of one part of BLIP's mixture as the class of `TASKS`, in evaluation mode."""
    config = deepcopy(model.config)
    del config.sharing
    part = TASKS[task](config)
    own = model.state_dict()
    part.load_state_dict({name: own[name] for name in part.state_dict()})
    return part.eval()


def _dtype_to(out: Path, dtype: str) -> torch.dtype:
    """The dtype of that name, for a folder that is new or empty."""
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"dtype {dtype!r}: there are float32, bfloat16 and float16")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; name a new folder")
    found: torch.dtype = getattr(torch, dtype)
    return found


def _image_processor(model: InstructBlip | Blip2Pretraining | Blip) -> BlipImageProcessorPil:
    """How transformers is to prepare pictures: the whole of each as a square, in CLIP's normalisation."""
    size = model.config.vision_config.image_size
    return BlipImageProcessorPil(
        size={"height": size, "width": size}, image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD)
    )


def _add_rows(model: InstructBlip, state: dict[str, Any], rows: int) -> int:
    """Give the embeddings in `state` a row for the image token where they have none, and say how many they have then.

    Here soft prompts take the token's places before anything is looked up; plain transformers looks it up first. The
    new rows are the mean of all: in the output head their score is the mean of all scores, so never the best.
    """
    head = model.get_output_embeddings()
    owners = [model.get_input_embeddings().weight, head.weight, getattr(head, "bias", None)]
    longer: dict[int, torch.Tensor] = {}
    found = 0
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in state and any(parameter is owner for owner in owners):
            tensor = state[name]
            found = max(found, len(tensor))
            if len(tensor) < rows:
                mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
                # Tied weights stay one tensor.
                longer.setdefault(id(parameter), torch.cat([tensor, mean.expand(rows - len(tensor), *mean.shape[1:])]))
                state[name] = longer[id(parameter)]
    return max(found, rows)


def base_places(name: str) -> Places:
    """Where the base of a trained part, its base's base and so on lie, each compared with what was trained on.

    Comparing reads all their weights. One rank may do it for all (`load_model(..., places=...)`).

    Args:
        name: for `load_model`.

    Raises:
        UserError: one is not there, or is another than the one that was trained on.
    """
    places: Places = {}
    while name not in places and (facts := facts_of(Path(name))) is not None:
        places[name] = facts.places(Path(name))
        settings = facts.found(places[name])
        if settings.joined:
            break
        name = settings.name
    return places


def load_model(
    name: str,
    limits: Limits | None = None,
    *,
    allow_packages: bool = False,
    places: Places | None = None,
    **options: Any,
) -> tuple[InstructBlip, Texts]:
    """Load a model and its tokenisers from a folder, a published size's name or the Hugging Face hub.

    A folder that holds only what a run trained (`instructkit.models.load.trained`) is put onto its base, a `.pth` file
    of LAVIS onto the published model of its size.

    Args:
        name: folder, one of `PUBLISHED`, a name on the hub, or a `.pth` file of LAVIS.
        limits: lengths that texts are cut to.
        allow_packages: let a folder name a Python package for its LLM, which imports it and runs its code.
        places: of its bases, where another rank has compared them (`base_places`).
        **options: for `from_pretrained`, such as dtype.

    Raises:
        UserError: there is no such model, it is no InstructBLIP or BLIP-2, or a folder names a package without leave.
    """
    return _load(name, limits, allow_packages, base_places(name) if places is None else places, (), options)


def export(name: str, out: Path, dtype: str = "float32", allow_packages: bool = False, task: str | None = None) -> str:
    """Write a model whole into one folder, what was trained by LoRA merged into its weights; of a BLIP one part.

    Args:
        name: as for `load_model`, or a BLIP.
        out: folder to write, new or empty.
        dtype: of the weights that are written.
        allow_packages: as for `load_model`.
        task: of a BLIP, as for `export_blip`.

    Returns:
        What opens the folder, in a line for people.

    Raises:
        UserError: there is no such model or part, its LLM is quantised, or the folder cannot be written.
    """
    if blip_tasks(name):
        return export_blip(name, out, task, dtype)
    if task is not None:
        raise UserError(f"{name}: is no BLIP, so there are no parts of it to choose from; leave --as out")
    model, texts = load_model(name, allow_packages=allow_packages, dtype=_dtype_to(out, dtype))
    with writing(out):
        save_model(model, texts, out)
    if isinstance(model.vision_model, VisionEncoder):
        return f"wrote {out}: its image encoder is not InstructBLIP's, so instructkit alone opens it (ik.load_model)"
    kind = "Blip2" if _is_blip2(model) else "InstructBlip"
    return f"wrote {out}: {kind}ForConditionalGeneration and {kind}Processor of transformers open it"


def _load(
    name: str,
    limits: Limits | None,
    allow_packages: bool,
    places: Places,
    above: tuple[Path, ...],
    options: dict[str, Any],
) -> tuple[InstructBlip, Texts]:
    """`load_model`; `above` are the folders that led here by their bases."""
    if (facts := facts_of(Path(name))) is not None:
        if (here := Path(name).resolve()) in above:
            raise UserError(f"{name}: is its own base, by {' -> '.join(map(str, (*above, here)))}; name a whole model")
        if (named := facts.package) is not None and not allow_packages:
            raise UserError(
                f"{name}: its instructkit.json names the Python package {named} for the LLM, which would be imported "
                "and run; if you trust the folder and the package, allow it: --allow-packages or allow_packages=true "
                "in an evaluation, model.allow_packages=true in a training"
            )
        settings = facts.found(places[name])
        if settings.joined:
            kept = Path(name) / TOKENIZERS
            model, texts = join(settings, options.get("dtype", torch.float32), lambda: load_tokenizers(kept), limits)
            if (base := facts.bases.get("llm")) is not None:
                check_package(base, Path(name))
        else:
            model, texts = _load(settings.name, limits, allow_packages, places, (*above, here), options)
        apply_trained(model, Path(name), facts)
        return model, texts
    if is_lavis(name):
        state = read_lavis(Path(name))
        model, texts = _load(base_of(state, name), limits, allow_packages, places, above, options)
        load_lavis_state(model, state, name)
        return model, texts
    config = whole_config(name)
    if isinstance(config, Blip2Config):
        return _load_blip2(name, config, limits, options)
    place = place_of(name)
    with failing(name, "no InstructBLIP model can be loaded from there"):
        model = InstructBlip.from_pretrained(place, config=config, **options)
        llm = open_tokenizer(place)
        qformer = open_tokenizer(place, subfolder="qformer_tokenizer")
    drop_added_rows(model.language_model, config)
    if model.config.image_token_index is None:  # saved before transformers 4.46
        model.config.image_token_index = image_token(llm)
    return model, Texts(llm, qformer, model.config, limits)


def _load_blip2(
    name: str, config: Blip2Config, limits: Limits | None, options: dict[str, Any]
) -> tuple[InstructBlip, Texts]:
    model = load_blip2(name, config, **options)
    with failing(name, "its tokenizer cannot be loaded"):
        llm = open_tokenizer(place_of(name))
    drop_added_rows(model.language_model, config)
    if model.config.image_token_index is None:  # saved before transformers 4.46
        model.config.image_token_index = image_token(llm)
    model.config.answer_end = answer_end(config, llm)
    qformer = None if text_of(name) is None else qformer_tokenizer(name)
    return model, Texts(llm, qformer, model.config, limits)


def _amend(config: Path, model: InstructBlip, image: int, rows: int) -> None:
    """Let the configuration name transformers' class, which every tool knows; with another encoder, one none knows.

    The image token is the processor's, and the LLM has as many words as the file has rows of embeddings. How many it
    had is kept, so that what loads here scores as what was saved: one more row takes some probability from the others.
    """
    foreign = isinstance(model.vision_model, VisionEncoder)
    content = json.loads(config.read_text())
    content["image_token_index"] = image
    content.pop(OWN_ROWS, None)
    if rows > (own := model.config.text_config.vocab_size):
        content["text_config"]["vocab_size"], content[OWN_ROWS] = rows, own
    if not _is_blip2(model):
        content["architectures"] = [InstructBlip.__name__ if foreign else InstructBlip.__base__.__name__]
    if foreign:
        content["model_type"] = JOINED
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
