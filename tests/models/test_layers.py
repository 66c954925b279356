"""Layers computed twice, or compiled: the same loss and gradients, less kept, nothing compiled for other lengths."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from instructkit.config.settings import ThroughputConfig, TowersConfig
from instructkit.errors import UserError
from instructkit.models import recompute
from instructkit.models.recompute import compile_layers, compiler, recompute_layers
from instructkit.models.towers import prepare_towers, set_modes
from instructkit.prompts.templates import Prompt
from tests.models.test_throughput import PLAIN, PROMPTS, batch
from tests.tiny import LLMS, tiny_model

PAPER = TowersConfig()
LORA = TowersConfig(vision="lora", llm="lora")


def model_of(llm, towers):
    model, texts = tiny_model(llm)
    model.config.qformer_config.hidden_dropout_prob = 0.0
    prepare_towers(model, towers)
    for module in model.qformer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    set_modes(model, training=True)
    return model, texts


def learned(model, inputs):
    """Loss and the gradients of what is trained."""
    model.zero_grad()
    torch.manual_seed(5)
    answer = model(**inputs)
    answer.total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    return answer.total.detach(), gradients


def learned_and_kept(model, inputs):
    """Besides, how many numbers were kept for the backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (kept.append(tensor.numel()), tensor)[1], lambda t: t):
        return *learned(model, inputs), sum(kept)


@pytest.mark.parametrize("throughput", [ThroughputConfig(), PLAIN], ids=["packed", "plain"])
@pytest.mark.parametrize("towers", [PAPER, LORA], ids=["frozen", "lora"])
@pytest.mark.parametrize("llm", LLMS)
def test_layers_computed_twice_give_the_same_bits_and_keep_less(llm, towers, throughput):
    model, texts = model_of(llm, towers)
    model.throughput = throughput
    inputs = batch(texts)
    loss, gradients, kept = learned_and_kept(model, inputs)
    calls = []
    model.language_model.get_output_embeddings().register_forward_hook(lambda *_: calls.append("head"))
    llm_layers = [part for part in recompute._layers(model) if part in set(model.language_model.modules())]
    inner = next(part for part in llm_layers[0].modules() if isinstance(part, torch.nn.Linear))
    inner.register_forward_hook(lambda *_: calls.append("layer"))
    recompute_layers(model)
    again, others, less = learned_and_kept(model, inputs)
    assert calls.count("layer") == 2 * calls.count("head") > 0
    assert torch.equal(loss, again)
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())
    assert less < 0.5 * kept
    with torch.no_grad():
        model(**inputs)
    assert calls.count("layer") == 3 * calls.count("head") / 2


def test_compiled_layers_give_the_same_and_other_lengths_compile_nothing_anew():
    torch._dynamo.reset()
    model, texts = model_of("llama", PAPER)
    model.qformer.eval()  # compiled layers draw their dropout otherwise
    words = ["is", "there", "a", "red", "circle", "or", "a", "blue", "triangle", "in", "the", "picture"]
    longer = [
        [*PROMPTS, *(Prompt(f"a/c/{i}", "t", " ".join(words[: 3 + more + i]), "yes", [str(i)]) for i in range(more))]
        for more in range(1, 5)
    ]
    batches = [batch(texts, prompts) for prompts in longer]
    expected = [learned(model, inputs) for inputs in batches]
    counter = CompileCounterWithBackend("eager")
    compile_layers(model, counter)
    frames = []
    for inputs, (loss, gradients) in zip(batches, expected, strict=True):
        again, others = learned(model, inputs)
        frames.append(counter.frame_count)
        torch.testing.assert_close(again, loss, atol=1e-4, rtol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, atol=1e-4, rtol=1e-3)
    assert 0 < frames[0] < 40
    assert frames == [frames[0]] * 4


@pytest.mark.skipif(shutil.which(compiler()) is None, reason=f"no C++ compiler ({compiler()}) on this machine")
def test_a_layer_compiles_to_machine_code():
    torch._dynamo.reset()
    model, _ = model_of("llama", TowersConfig(vision="full"))
    layer = model.vision_model.encoder.layers[0]

    def learn(images):
        states = torch.randn(images, 5, 24, generator=torch.Generator().manual_seed(images), requires_grad=True)
        made = layer(states)
        made.square().sum().backward()
        return made.detach(), states.grad

    expected = [learn(images) for images in (2, 3)]
    compile_layers(model)
    for images, wanted in zip((2, 3), expected, strict=True):
        for mine, theirs in zip(learn(images), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_a_missing_compiler_is_said_in_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    model, _ = tiny_model()
    with pytest.raises(UserError, match=r"training.compile=true needs the C\+\+ compiler /nowhere/g\+\+, which is not"):
        compile_layers(model)
