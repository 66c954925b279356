"""Question generation from A-OKVQA: its converted training questions turned round, from answer to question."""

from __future__ import annotations

from dataclasses import replace

from instructkit.sources.aokvqa import SOURCE as AOKVQA

SOURCE = replace(
    AOKVQA,
    name="vqg_aokvqa",
    title="VQG from A-OKVQA",
    task="question_generation",
    splits={"train": AOKVQA.splits["train"]},
    examples_of="aokvqa",
)
