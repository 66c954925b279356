"""EfficientNet-Lite0 as a folder of transformers' `EfficientNetModel`.

EfficientNet-Lite (tensorflow/tpu, models/official/efficientnet/lite) is EfficientNet-B0 without squeeze-and-excite and
with ReLU6 in place of swish. transformers' class always has squeeze-and-excite; with all weights zero and a bias of 30
it multiplies by sigmoid(30), which is 1 in float32.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor
from transformers import EfficientNetConfig, EfficientNetModel

from instructkit.errors import UserError
from instructkit.models.load.lavis import read_lavis

SIZE, MEAN, STD = 224, 127 / 255, 128 / 255
"""Pixels of a side, and the colours that it was trained on, of 0 to 1 (`efficientnet_lite_builder.py`)."""
OPEN = 30.0
_BLOCK = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
_ENDS = {
    "_conv_stem": "embeddings.convolution",
    "_bn0": "embeddings.batchnorm",
    "_conv_head": "encoder.top_conv",
    "_bn1": "encoder.top_bn",
}


def write_efficientnet_lite(weights: Path, folder: Path) -> None:
    """Write a file of EfficientNet-Lite0's weights as a folder that `model.vision` can name.

    Args:
        weights: by the names of efficientnet_lite_pytorch; only tensors of it are read, never code.
        folder: that is there.

    Raises:
        UserError: the file holds something else.
    """
    given = {_name(name): tensor for name, tensor in read_lavis(weights).items() if not name.startswith("_fc.")}
    config = EfficientNetConfig(
        width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, image_size=SIZE, hidden_act="relu6"
    )
    with torch.device("meta"):
        model = EfficientNetModel(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    neutral = {name: _neutral(name, shape) for name, shape in shapes.items() if ".squeeze_excite." in name}
    state = given | neutral
    if wrong := sorted(name for name in shapes | state if name not in state or shapes.get(name) != state[name].shape):
        raise UserError(
            f"{weights}: not EfficientNet-Lite0's weights: {wrong[0]} is missing, unknown or of another shape"
        )
    model.load_state_dict(state, assign=True)
    model.save_pretrained(folder)
    facts = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [MEAN] * 3, "image_std": [STD] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))


def _name(name: str) -> str:
    """A tensor's name in transformers' class; as it is where it has none."""
    found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if found and found[2] in _BLOCK:
        return f"encoder.blocks.{found[1]}.{_BLOCK[found[2]]}.{found[3]}"
    stem, _, kind = name.partition(".")
    return f"{_ENDS[stem]}.{kind}" if stem in _ENDS else name


def _neutral(name: str, shape: torch.Size) -> Tensor:
    """Of a squeeze-and-excite that multiplies by one."""
    return torch.full(shape, OPEN if name.endswith("expand.bias") else 0.0)
