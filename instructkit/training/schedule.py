"""The learning rate as a function of the step alone: linear warm-up, then a cosine (paper, section 3.4) or steps."""

from __future__ import annotations

import math

from instructkit.config.settings import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Learning rate of a step, counted from 0; the warm-up ends at the peak in step `warmup_steps`.

    Steps of decay are counted from step 0, too, as LAVIS counts epochs: where the warm-up is longer than `decay_every`,
    the rate falls at once behind it.
    """
    warmup = min(config.warmup_steps, config.max_steps)
    if step < warmup:
        return config.warmup_from + (config.learning_rate - config.warmup_from) * step / warmup
    if config.schedule == "step":
        assert config.decay_every is not None, "an epoch was made steps"
        decayed = config.learning_rate * config.decay ** (step // config.decay_every)
        return max(config.min_learning_rate, decayed)
    done = (step - warmup) / max(config.max_steps - warmup, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * cosine
