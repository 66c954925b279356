"""Question generation from VQAv2: its converted training questions turned round, from answer to question."""

from __future__ import annotations

from dataclasses import replace

from instructkit.sources.vqav2 import SOURCE as VQAV2

SOURCE = replace(
    VQAV2,
    name="vqg_vqav2",
    title="VQG from VQAv2",
    task="question_generation",
    splits={"train": VQAV2.splits["train"]},
    examples_of="vqav2",
)
