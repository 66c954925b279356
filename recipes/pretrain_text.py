"""Pre-train a language model on text: the LLM that a Q-Former is later put in front of, before it knows a picture.

    python -m instructkit.world.text --out data/world/text.jsonl
    deepspeed recipes/pretrain_text.py [--config recipes/configs/text_world.yaml] [key=value ...]

What it does, and the settings that govern it (`instructkit/config/settings.py` explains every one):
    data        documents, a JSON object with `text` a line; one longer than text_tokens is read in
                pieces                                                                              data.text*
    model       a small LLM from random weights, with a tokenizer trained on the text, or model.llm
                to go on from                                                                       model.*
    training    DeepSpeed with ZeRO 0 to 2; batch_size documents a step                             training.*
    throughput  packing lays documents end to end, and each sees itself alone                       throughput.packing
The loss is a mean over the tokens of the global batch. Same seed, same losses, on one rank and on several, up to
rounding. `AutoModelForCausalLM` and `AutoTokenizer` open the folder, and `model.llm=RUN/model` takes the LLM into
`recipes/instruct.py`.
"""

from __future__ import annotations

from instructkit.config.conflicts import check_recipe
from instructkit.config.read import load_config
from instructkit.config.settings import RunConfig
from instructkit.runs.start import start

CONFIG = start(__name__, __doc__, RunConfig, load_config, default="text_world")  # before torch is loaded

from pathlib import Path

from instructkit.reports.once import train_once
from instructkit.runs.run import Run, main
from instructkit.training.best import Best
from instructkit.training.engine import Engine
from instructkit.training.length import say_mixture
from instructkit.training.loop import Loop
from instructkit.training.prepare import prepare_run
from instructkit.training.text import TextData, TextObjective, check_text, read_documents, text_mixture
from instructkit.training.text_model import prepare_text_model, save_text_model


def pretrain_text(run: Run[RunConfig]) -> None:
    """Train, report."""
    check_recipe(run.config, "pretrain_text")
    check_text(run.config)
    prepare_run(run, text_mixture)
    train_once(run, lambda: train(run))


def train(run: Run[RunConfig]) -> None:
    """Train to `max_steps` and save the LLM to `folder/model`."""
    config = run.config
    documents = read_documents(Path(str(config.data.text)))
    model, tokenizer = prepare_text_model(config, documents, run.folder, run.say)
    data = TextData.for_run(run, documents, tokenizer)
    say_mixture(run, data.mixture, "documents")
    engine = Engine(model, TextObjective(), config.training, run.folder)
    loop = Loop(run, engine, data, Best(config.evaluation, []))
    for _ in loop:  # restored, timed, logged and kept by the loop
        pass
    save_text_model(engine, tokenizer, run.folder / "model")
    engine.free()


if __name__ == "__main__":
    main(pretrain_text, CONFIG, CONFIG.output, CONFIG.project)
