"""What an evaluation is asked to do: the command's options and the recipe's `key=value` words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import yaml

from instructkit.config import Count, Dtype, Positive, RunConfig
from instructkit.errors import UserError, did_you_mean


class EvaluationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Model, data, benchmarks.

    Attributes:
        model: a folder that `save_pretrained` wrote, the name of a published size or a name on the hub.
        data: folder of converted datasets, `<data>/<source>/<split>`.
        benchmarks: `held-out`, `held-in`, names of protocols, or NAME/SPLIT for another split than the protocol's.
        out: folder of the run: responses in `evaluation/`, report in `report/`.
        limit: at most so many examples of each, the first of the split; None for all.
        batch_size: questions a forward pass.
        spread: evaluate so many training wordings beside each protocol's prompt.
        dtype: that the model computes in.
        allow_packages: whether the model's folder may name a Python package for its LLM, whose code then runs.
    """

    model: str
    data: str
    benchmarks: list[str]
    out: str
    limit: Positive | None = None
    batch_size: Positive = 32
    spread: Count = 0
    dtype: Dtype = "float32"
    allow_packages: bool = False


def dtype_of(config: RunConfig) -> Dtype:
    """What the evaluation at the end of a run computes in: what is set, or else the run's precision."""
    return config.evaluation.dtype or ("bfloat16" if config.training.precision == "bf16" else "float32")


def make_settings(values: dict[str, Any]) -> EvaluationSettings:
    """Check values by name, type and range; `benchmarks` may be one text with commas.

    Raises:
        UserError: a name is unknown or missing, or a value does not fit.
    """
    known = EvaluationSettings.__struct_fields__
    for name in values:
        if name not in known:
            raise UserError(f"unknown setting {name!r}; {did_you_mean(name, known)}")
    if isinstance(values.get("benchmarks"), str):
        names = [name.strip() for name in values["benchmarks"].split(",") if name.strip()]
        values = {**values, "benchmarks": names}
    missing = [name for name in ("model", "data", "benchmarks", "out") if values.get(name) in (None, [])]
    if missing:
        raise UserError(f"evaluation needs {', '.join(f'{name}=...' for name in missing)}")
    try:
        return msgspec.convert(values, EvaluationSettings)
    except msgspec.ValidationError as error:
        raise UserError(f"evaluation settings: {error}") from error


def settings_from_words(words: Sequence[str]) -> EvaluationSettings:
    """Settings from words such as `model=runs/easy_vqa/model limit=100`.

    Raises:
        UserError: a word is no `key=value`, or its key or value does not fit.
    """
    values: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign:
            raise UserError(f"{word!r}: settings are given as key=value, such as limit=100")
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{word!r}: the value is no YAML") from error
    return make_settings(values)
